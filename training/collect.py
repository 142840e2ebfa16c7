"""Turn freely available drawings with names into webdataset shards for training.

    python -m training.collect stamps FOLDER shards/stamps.tar   # unpacked tuxpaint-stamps-default
    python -m training.collect emoji FOLDER shards/emoji.tar     # unpacked emoji-datasource-google

Photographs of people and dogs teach little about cats, fruit or trains; these pictures do.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from cots_model.errors import ImageError
from cots_model.images import decode_image

log = logging.getLogger(__name__)

_UNNAMED_GROUPS = {"Flags", "Symbols", "Component"}
_OPENINGS = ("a", "a drawing of a", "a picture of a")


@dataclass(frozen=True)
class Drawing:
    """A picture file and what it shows."""

    path: Path
    captions: list[str]


def read_stamps(folder: Path) -> Iterator[Drawing]:
    """Tux Paint's stamps: `name.png` with `name.txt`, whose first line is English."""
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if text.is_file() and not path.stem.endswith("_mirror"):
            lines = text.read_text("utf-8", "replace").strip().splitlines()
            if lines and lines[0].strip():
                yield Drawing(path, [lines[0].strip()])


def read_emoji(folder: Path) -> Iterator[Drawing]:
    """The emoji-datasource package: `emoji.json` and `img/google/64/*.png`; flags left out."""
    names = folder / "emoji.json"
    for entry in json.loads(names.read_bytes()) if names.is_file() else []:
        path = folder / "img" / "google" / "64" / entry["image"]
        if entry["category"] not in _UNNAMED_GROUPS and path.is_file():
            shorts = [_readable(short) for short in entry["short_names"]]
            captions = [entry["name"].lower()]
            captions += [f"{opening} {short}" for short in shorts for opening in _OPENINGS]
            yield Drawing(path, list(dict.fromkeys(captions)))


def _readable(short_name: str) -> str:
    """`cat2` and `red_car` are a cat and a red car."""
    return short_name.replace("_", " ").replace("-", " ").rstrip("0123456789")


READERS = {"stamps": read_stamps, "emoji": read_emoji}


@click.command()
@click.argument("kind", type=click.Choice(sorted(READERS)))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("shard", type=click.Path(path_type=Path, dir_okay=False))
def main(kind: str, folder: Path, shard: Path) -> None:
    """Write the drawings of KIND under FOLDER into SHARD, as JPEG on white with their captions."""
    num_written = 0
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w") as archive:
        for number, drawing in enumerate(READERS[kind](folder)):
            try:
                img = decode_image(drawing.path)
            except ImageError as err:
                log.warning("left out: %s", err)
                continue
            img.thumbnail((384, 384))
            jpeg = io.BytesIO()
            img.save(jpeg, "JPEG", quality=92)
            _add(archive, f"{number:06d}.jpg", jpeg.getvalue())
            _add(archive, f"{number:06d}.json", json.dumps({"captions": drawing.captions}).encode())
            num_written += 1
    if not num_written:
        shard.unlink()
        raise click.UsageError(
            f"{folder} holds no drawings of kind {kind!r}; unpack the package there"
        )
    log.info("%s: %d drawings", shard, num_written)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
