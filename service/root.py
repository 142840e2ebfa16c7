"""Which folders under a root are galleries; light, so that a wrong folder is refused at once."""

from __future__ import annotations

from pathlib import Path

from cots_model.errors import InputError

POINTER = "current"


def find_galleries(root: Path) -> list[Path]:
    """The sub-folders of `root` that are galleries, by name.

    Raises:
        InputError: if `root` is missing, is itself a gallery, or holds none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; --galleries takes the folder of your galleries")
    if _is_gallery(root):
        raise InputError(
            f"{root} is itself a gallery; --galleries takes the folder above: "
            f"--galleries {root.resolve().parent}"
        )
    found = sorted(folder for folder in root.iterdir() if folder.is_dir() and _is_gallery(folder))
    if not found:
        raise InputError(
            f"{root} holds no gallery; build one: cots index build PICTURES --gallery {root}/NAME"
        )
    return found


def _is_gallery(folder: Path) -> bool:
    pointer = folder / POINTER
    return pointer.is_symlink() or pointer.exists()
