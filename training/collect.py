"""Turn freely available drawings with names into webdataset shards for training.

    python -m training.collect stamps FOLDER shards/stamps.tar    # unpacked tuxpaint-stamps-default
    python -m training.collect clipart FOLDER shards/clipart.tar  # openclipart-png, openclipart-svg
    python -m training.collect emoji FOLDER shards/emoji.tar --names NAMES
    python -m training.collect openmoji NAMES shards/openmoji.tar --caption 'a photo of a {}'
    python -m training.collect openmoji-keywords NAMES shards/openmoji-keywords.tar

An emoji folder is an unpacked emoji-datasource-google or -twitter; NAMES, emojibase-data.
Photographs of people and dogs teach little about cats, fruit or trains; these pictures do.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from cots_model.errors import CotsError, ImageError
from training.drawings import (
    Drawing,
    read_clipart,
    read_emoji,
    read_emoji_names,
    read_openmoji,
    read_stamps,
)

log = logging.getLogger(__name__)

_SIDE_PX = 384

_READERS: dict[str, Callable[[Path, Path], Iterator[Drawing]]] = {
    "clipart": lambda folder, _: read_clipart(folder),
    "emoji": lambda folder, names: read_emoji(folder, read_emoji_names(names)),
    "openmoji": lambda folder, _: read_openmoji(read_emoji_names(folder)),
    "openmoji-keywords": lambda folder, _: read_openmoji(read_emoji_names(folder), keywords=True),
    "stamps": lambda folder, _: read_stamps(folder),
}


@click.command()
@click.argument("kind", type=click.Choice(sorted(_READERS)))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("shard", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--names",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Unpacked emojibase-data, for KIND emoji.",
)
@click.option("--caption", default="{}", help="Each caption, in words around its {}.")
def main(kind: str, folder: Path, shard: Path, names: Path | None, caption: str) -> None:
    """Write the drawings of KIND under FOLDER into SHARD, as JPEG on white with their captions."""
    if kind == "emoji" and names is None:
        raise click.UsageError("KIND emoji needs --names, an unpacked emojibase-data")
    shard.parent.mkdir(parents=True, exist_ok=True)
    try:
        num_written = _write(_READERS[kind](folder, names or folder), shard, caption)
    except CotsError as err:
        shard.unlink(missing_ok=True)
        raise click.UsageError(str(err)) from err
    if not num_written:
        shard.unlink()
        raise click.UsageError(
            f"{folder} holds no drawings of kind {kind!r}; unpack the package there"
        )
    log.info("%s: %d drawings", shard, num_written)


def _write(drawings: Iterable[Drawing], shard: Path, caption: str) -> int:
    num_written = 0
    with tarfile.open(shard, "w") as archive:
        for number, drawing in enumerate(drawings):
            try:
                img = drawing.open()
            except ImageError as err:
                log.warning("left out: %s", err)
                continue
            img.thumbnail((_SIDE_PX, _SIDE_PX))
            jpeg = io.BytesIO()
            img.save(jpeg, "JPEG", quality=92)
            about = {
                "captions": [caption.format(text) for text in drawing.captions],
                "filename": drawing.name,
            }
            _add(archive, f"{number:06d}.jpg", jpeg.getvalue())
            _add(archive, f"{number:06d}.json", json.dumps(about).encode())
            num_written += 1
    return num_written


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
