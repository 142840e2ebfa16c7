"""Which folders under a root are galleries; light, so that a wrong folder is refused at once."""

from __future__ import annotations

import os
from pathlib import Path

from cots_model.errors import InputError
from index_builder.publish import POINTER


def find_galleries(root: Path) -> list[Path]:
    """The sub-folders of `root` that are galleries, by name.

    Raises:
        InputError: if `root` is missing, cannot be listed, is itself a gallery, or holds none.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; --galleries takes the folder of your galleries")
    if _is_gallery(root):
        raise InputError(
            f"{root} is itself a gallery; --galleries takes the folder above: "
            f"--galleries {root.resolve().parent}"
        )
    try:
        found = list_galleries(root)
    except OSError as err:
        raise InputError(f"{root} cannot be listed ({err.strerror}); check it") from err
    if not found:
        raise InputError(
            f"{root} holds no gallery; build one: cots index build PICTURES --gallery {root}/NAME"
        )
    return found


def list_galleries(root: Path) -> list[Path]:
    """As `find_galleries`, of a root that may have become empty.

    Raises:
        OSError: if it cannot be listed.
    """
    return [folder for folder in sorted(root.iterdir()) if _is_gallery(folder)]


def _is_gallery(folder: Path) -> bool:
    """A folder that may not be entered is none; a disk that fails is an error, not an absence."""
    try:
        os.lstat(folder / POINTER)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return True
