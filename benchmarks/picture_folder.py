"""A folder of many different pictures, made from the development data by harmless edits.

    python benchmarks/picture_folder.py /tmp/mixed --pictures 20000

Photos of flickr8k, web_pairs, exercises and fashion are cropped, mirrored, made brighter or darker,
and saved as JPEG, half of them 500 pixels long as web photos are, half 224; videos are copied
beside them. The same number gives the same files.
"""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
from PIL import Image, ImageEnhance, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LONG_SIDES = (500, 224)
_PER_FOLDER = 1000


def make_folder(data: Path, folder: Path, num_pictures: int) -> None:
    """Fill `folder`; what is there already is kept, so that a second call costs nothing."""
    done = folder / ".complete"
    if done.exists() and done.read_text() == str(num_pictures):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(2) as processes:
        shares = [(data, folder, num_pictures, share, 2) for share in range(2)]
        list(processes.map(_make_share, shares))
    for path in sorted((data / "videos").glob("*.mp4")):
        shutil.copy(path, folder / path.name)
    done.write_text(str(num_pictures))


def _make_share(task: tuple[Path, Path, int, int, int]) -> None:
    data, folder, num_pictures, share, shares = task
    originals = list(_originals(data))
    for number in range(share, num_pictures, shares):
        tar, offset, size = originals[number % len(originals)]
        with tar.open("rb") as file:
            file.seek(offset)
            original = file.read(size)
        target = folder / f"{number // _PER_FOLDER:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(_edited(original, random.Random(number)))


def _originals(data: Path) -> Iterator[tuple[Path, int, int]]:
    """Where the pictures lie: shard, offset and size in bytes."""
    tars = [tar for name in ("flickr8k", "web_pairs", "exercises", "fashion")
            for tar in sorted((data / name).glob("*.tar"))]  # fmt: skip
    for tar in tars:
        with tarfile.open(tar) as archive:
            for member in archive:
                if member.name.lower().endswith(SUFFIXES):
                    yield tar, member.offset_data, member.size


def _edited(original: bytes, choice: random.Random) -> bytes:
    """A JPEG of a part of the picture, seen a little differently."""
    img = Image.open(io.BytesIO(original)).convert("RGB")
    width, height = img.size
    kept = choice.uniform(0.75, 0.98)
    left, top = (choice.uniform(0, (1 - kept) * side) for side in img.size)
    long_side = choice.choice(LONG_SIDES)
    scale = long_side / (kept * max(width, height))
    size = (max(1, round(kept * width * scale)), max(1, round(kept * height * scale)))
    box = (left, top, left + kept * width, top + kept * height)
    img = img.resize(size, Image.Resampling.BICUBIC, box=box)
    if choice.random() < 0.5:
        img = ImageOps.mirror(img)
    img = ImageEnhance.Brightness(img).enhance(choice.uniform(0.8, 1.2))
    buffer = io.BytesIO()
    img.save(buffer, "JPEG", quality=choice.randint(75, 95))
    return buffer.getvalue()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--pictures", type=click.IntRange(1), default=20_000, show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("../shared/data"),
    show_default=True,
    envvar="COTS_SHARED_DATA",
    help="The development data.",
)
def main(folder: Path, pictures: int, data: Path) -> None:
    """Make FOLDER."""
    make_folder(data, folder, pictures)


if __name__ == "__main__":
    main()
