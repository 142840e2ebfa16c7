"""The page of dropped pairs: one HTML file with its pictures inside, for any browser."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal, Self

from PIL import Image

from index_builder.content import Location
from training.example import BrokenExampleError, Example
from training.sampler import Draw

_THUMBNAIL_PX = 240
_JPEG_QUALITY = 70

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.45 system-ui, sans-serif; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 80rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.3rem; }}
ol {{ display: grid; gap: 1rem; padding: 0; list-style: none;
 grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }}
li {{ border: 1px solid #8886; border-radius: .5rem; padding: .75rem; }}
img, .none {{ display: block; width: 100%; height: 11rem; object-fit: contain; }}
.none {{ display: grid; place-items: center; text-align: center; background: #8882; }}
p {{ margin: .5rem 0; }}
small {{ display: block; font-variant-numeric: tabular-nums; opacity: .8; }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


@dataclass(frozen=True)
class DroppedPair:
    """A pair that the filter dropped, with everything needed to show it.

    Attributes:
        step: optimiser step, from 0.
        number: of the picture; see `training.sampler.Draw`.
        id: of the picture in its source.
        kind: `picture` or `video`.
        caption: the one that was drawn.
        similarity: of the pair's momentum features.
        mean: μ of the similarity queue at that step.
        std: its σ.
        threshold: at or below it a pair is dropped.
        path: of the file or shard; with the three that follow, a `Location`.
        offset_bytes: see there.
        size_bytes: see there.
        root: see there.
    """

    step: int
    number: int
    id: str
    kind: Literal["picture", "video"]
    caption: str
    similarity: float
    mean: float
    std: float
    threshold: float
    path: str
    offset_bytes: int | None
    size_bytes: int | None
    root: str | None

    @classmethod
    def of(
        cls, draw: Draw, *, step: int, similarity: float, mean: float, std: float, threshold: float
    ) -> Self:
        """The pair of a draw, judged at `step`."""
        example, place = draw.example, draw.example.location
        return cls(
            step=step,
            number=draw.number,
            id=example.id,
            kind=example.kind,
            caption=draw.caption,
            similarity=similarity,
            mean=mean,
            std=std,
            threshold=threshold,
            path=place.path,
            offset_bytes=place.offset_bytes,
            size_bytes=place.size_bytes,
            root=place.root,
        )

    @property
    def key(self) -> tuple[int, str]:
        """Equal for one pair that was dropped several times."""
        return self.number, self.caption

    def example(self) -> Example:
        """The picture with this caption alone."""
        location = Location(self.path, self.offset_bytes, self.size_bytes, self.root)
        return Example(self.id, location, (self.caption,), self.kind)


def write_page(
    path: Path,
    read: Callable[[], Iterable[DroppedPair]],
    *,
    name: str,
    num_sigmas: float,
    num_seen: int,
    num_watched: int,
    queue_length: int,
    limit: int,
) -> None:
    """Write the newest `limit` different pairs, newest step first, in a step lowest first.

    Memory is that of `limit` pairs, however many were dropped.

    Args:
        path: of the HTML file; replaced as a whole.
        read: all pairs in the order of their steps; called twice.
        name: of the run.
        num_sigmas: of the filter.
        num_seen: pairs of all steps so far.
        num_watched: those since dropped pairs are kept.
        queue_length: pairs that must be seen before the filter begins.
        limit: pairs shown.

    Raises:
        OSError: if it cannot be written.
    """
    total, newest = _newest(read(), limit)
    times = Counter(pair.key for pair in read() if pair.key in newest)
    shown = sorted(newest.values(), key=lambda pair: (-pair.step, pair.similarity))
    parts = [
        _HEAD.format(title=escape(f"Pairs the momentum filter dropped: {name}")),
        _not_begun(num_seen, queue_length) if num_seen <= queue_length else "",
        _summary(total, shown, num_sigmas, num_watched),
        "<ol>\n",
        *(_card(pair, times[pair.key]) for pair in shown),
        "</ol>\n</body>\n</html>\n",
    ]
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes("".join(parts).encode("utf-8", "replace"))  # captions may hold surrogates
    partial.replace(path)


def _newest(
    pairs: Iterable[DroppedPair], limit: int
) -> tuple[int, dict[tuple[int, str], DroppedPair]]:
    """How many there are, and the last `limit` different ones, each as it was dropped last."""
    total, newest = 0, dict[tuple[int, str], DroppedPair]()
    for pair in pairs:
        total += 1
        newest.pop(pair.key, None)
        newest[pair.key] = pair
        if len(newest) > limit:
            del newest[next(iter(newest))]
    return total, newest


def _not_begun(num_seen: int, queue_length: int) -> str:
    return (
        f"<p>The filter has not begun: of the queue's {queue_length:,} places {num_seen:,} are "
        "filled (objective.instance.queue_length).</p>\n"
    )


def _summary(total: int, shown: list[DroppedPair], num_sigmas: float, num_watched: int) -> str:
    rule = (
        f"<p>A pair is dropped unless its momentum similarity is above mean - {num_sigmas:g} σ "
        "of the queue at that step (eq. 15), once the queue is full.</p>\n"
    )
    if not shown:
        return f"{rule}<p>Of {num_watched:,} pairs none was dropped so far.</p>\n"
    share = total / max(num_watched, 1)
    return (
        f"{rule}<p>Of {num_watched:,} pairs {total:,} ({share:.1%}) were dropped up to "
        f"step {shown[0].step:,}; here are the newest "
        f"{len(shown):,} different ones, newest step first, then lowest similarity.</p>\n"
    )


def _card(pair: DroppedPair, times: int) -> str:
    again = f", {times:,} times so far" if times > 1 else ""
    return (
        f"<li>{_picture(pair)}\n"
        f'<p dir="auto">{escape(pair.caption)}</p>\n'
        f"<small>similarity <b>{pair.similarity:.4f}</b>, threshold {pair.threshold:.4f}</small>\n"
        f"<small>mean {pair.mean:.4f}, σ {pair.std:.4f}, step {pair.step:,}{again}</small>\n"
        f"<small>{escape(pair.id)}</small></li>\n"
    )


def _picture(pair: DroppedPair) -> str:
    try:
        data = _thumbnail(pair.example().picture())
    except BrokenExampleError as err:
        return f'<span class="none">cannot be read: {escape(err.reason)}</span>'
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escape(pair.id)}" src="data:image/jpeg;base64,{encoded}">'


def _thumbnail(img: Image.Image) -> bytes:
    img.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    img.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return file.getvalue()
