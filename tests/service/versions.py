"""New versions of a gallery without building: whole ones, and ones with a fault of their own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from index_builder.gallery import read_manifest
from index_builder.manifest import (
    INDEX_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    VECTORS_FILE,
    sha256_of,
)
from index_builder.publish import Pointer, new_version_name, partial_version, prune, publish

Change = Callable[[Path], None]


def publish_copy(
    template: Path,
    root: Path,
    *,
    unseen: Change | None = None,
    signed: Change | None = None,
    **fields: Any,
) -> str:
    """Publish what `template` holds as a new version of the gallery `root`.

    Args:
        template: a gallery.
        root: the gallery to change; made if it is not there.
        unseen: damages the version's folder after its checksums were taken.
        signed: changes the folder before, so that the checksums are right and the content is not.
        fields: of the manifest, to be replaced.

    Returns:
        the name of the version.
    """
    (root / "versions").mkdir(parents=True, exist_ok=True)
    source, _ = read_manifest(template)
    version = new_version_name(root if (root / "current").exists() else None)
    with partial_version(root, version) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        if signed:
            signed(partial)
        path = partial / MANIFEST_FILE
        manifest = {**json.loads(path.read_bytes()), **fields, "version": version}
        for name in manifest["files"]:
            manifest["files"][name] = sha256_of(partial / name).model_dump()
        path.write_text(json.dumps(manifest), "utf-8")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if unseen:
            unseen(partial)
        publish(root, partial, Pointer(version, digest))
    prune(root, keep=2)
    return version


def flip_last_byte(name: str) -> Change:
    """Damage one file."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return change


def cut(name: str) -> Change:
    """Lose the second half of one file."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


CORRUPT: tuple[dict[str, Any], ...] = (
    {"unseen": flip_last_byte(VECTORS_FILE)},
    {"unseen": cut(INDEX_FILE)},
    {"unseen": lambda folder: (folder / ITEMS_FILE).unlink()},
    {"model_fingerprint": "0" * 64},
)
"""Options of `publish_copy`, each for a version that has to be refused."""
