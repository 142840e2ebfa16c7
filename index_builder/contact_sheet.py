"""Groups of near-duplicates as one HTML page to look at: self-contained, without scripts.

Thumbnails are in the page as data URIs and nothing is loaded from elsewhere, which the page's own
policy also forbids. Texts are escaped; an original that cannot be shown is said in its place.
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

from PIL import Image

from cots_model.errors import CotsError
from cots_model.images import decode_image
from index_builder.duplicate_report import Duplicate, DuplicateGroup, DuplicateReport
from index_builder.gallery import Gallery
from index_builder.report import counted

MAX_GROUPS = 200
MAX_PICTURES = 12
"""Of one group; the page says how many more there are."""

_SIDE_PX = 224
_LONGEST_S = 30.0
_MAX_TEXT = 400

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --keep: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --keep: #56d364; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 78rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; font-weight: 600; }
.note { background: var(--soft); border-radius: .5rem; padding: .75rem 1rem; margin: 1rem 0; }
section { border-top: 1px solid var(--line); padding: 1.25rem 0; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
figure { margin: 0; border: 2px solid var(--line); border-radius: .5rem; overflow: hidden; }
figure.keep { border-color: var(--keep); }
img, .none { display: block; width: 100%; height: 13rem; object-fit: contain;
  background: var(--soft); }
.none { display: grid; place-items: center; padding: 1rem; text-align: center; overflow: auto; }
figcaption { padding: .6rem .75rem; overflow-wrap: anywhere; font-size: .9rem; }
figcaption b { display: block; font-weight: 600; }
.badge { color: var(--keep); font-weight: 700; }
small { display: block; opacity: .75; font-size: .8rem; }
""".strip()


def write_contact_sheet(
    path: Path,
    gallery: Gallery,
    report: DuplicateReport,
    *,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Write the page; it appears whole or not at all.

    Args:
        path: the file to write.
        gallery: the gallery that was looked at.
        report: what was found there.
        progress: called with 1 for each group written.

    Returns:
        the number of groups shown: the first `MAX_GROUPS`.

    Raises:
        CotsError: if the file cannot be written.
    """
    groups = report.groups[:MAX_GROUPS]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with fresh.open("w", encoding="utf-8", errors="replace") as page:
                page.write(_head(report, len(groups)))
                for number, group in enumerate(groups, start=1):
                    page.writelines(_section(gallery, number, group))
                    progress(1)
                page.write("</main>\n</html>\n")
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as err:
        raise CotsError(f"{path} could not be written ({err}); choose another file") from err
    return len(groups)


def _head(report: DuplicateReport, num_shown: int) -> str:
    title = f"Near-duplicates in {report.gallery}"
    how = (
        "Every pair of items was compared."
        if report.method == "exact"
        else "Only the nearest neighbours of each item were looked at, through the gallery's index."
    )
    left_out = report.num_groups - num_shown
    more = f" The first {num_shown:,} are shown; {left_out:,} are not." if left_out else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<main>
<h1>{escape(title)}</h1>
<p>{counted(report.num_groups, "group")} of items whose similarity is at least
{report.threshold:g}, among
{counted(report.num_items, "item")} of version {escape(report.version)}. {how}{more}</p>
<p class="note">Nothing was deleted. The item marked <span class="badge">keep</span> has the most
pixels of its group, of equals the most bytes. A group can hold items that are less similar to it
than the threshold, joined by others between them: look before you delete.</p>
"""


def _section(gallery: Gallery, number: int, group: DuplicateGroup) -> Iterator[str]:
    shown = group.items[:MAX_PICTURES]
    left_out = len(group.items) - len(shown)
    more = f"; the first {len(shown)} are shown, {left_out:,} are not" if left_out else ""
    same = " with the same bytes" if all(item.same_bytes for item in group.items) else ""
    heading = f"Group {number:,}: {len(group.items):,} items{same}{more}"
    yield f'<section aria-labelledby="g{number}">\n<h2 id="g{number}">{heading}</h2>\n<ol>\n'
    for item in shown:
        yield _figure(gallery, item)
    yield "</ol>\n</section>\n"


def _figure(gallery: Gallery, item: Duplicate) -> str:
    if item.keep:
        badge = '<span class="badge">keep</span>'
    else:
        same = ", same bytes" if item.same_bytes else ""
        badge = f"similarity {item.score:.4f}{same}"
    return (
        f'<li><figure{" class=keep" if item.keep else ""} tabindex="0">{_picture(gallery, item)}'
        f"<figcaption><b>{escape(item.id)}</b>{badge} · {_size(item)}"
        f"<small>{escape(item.uri)}</small></figcaption></figure></li>\n"
    )


def _size(item: Duplicate) -> str:
    pixels = f"{item.width} × {item.height} pixels, " if item.width else ""
    return f"{pixels}{item.size_bytes:,} bytes"


def _picture(gallery: Gallery, item: Duplicate) -> str:
    row = gallery.row(item.id)
    if gallery.manifest.modality == "text":
        text = gallery.item(row).text or ""
        return f'<div class="none">{escape(text[:_MAX_TEXT])}</div>'
    try:
        img = _frame(gallery, row) if gallery.manifest.modality == "video" else _image(gallery, row)
    except CotsError as err:
        return f'<div class="none">cannot be shown: {escape(str(err))}</div>'
    img.thumbnail((_SIDE_PX * 2, _SIDE_PX * 2), Image.Resampling.LANCZOS, reducing_gap=2.0)
    out = io.BytesIO()
    img.save(out, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    alt = escape(item.id)
    return f'<img alt="{alt}" loading="lazy" src="data:image/jpeg;base64,{data}">'


def _image(gallery: Gallery, row: int) -> Image.Image:
    return decode_image(gallery.read_content(row))


def _frame(gallery: Gallery, row: int) -> Image.Image:
    """The frame in the middle of a video, or of the segment of one."""
    from cots_model.videos import decode_frame

    until_s = time.monotonic() + _LONGEST_S
    with gallery.open_content(row) as file:
        return decode_frame(file, gallery.item(row).middle_s, until_s=until_s)
