"""`delete`: a version without some items, and the rest untouched."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cots_model.errors import GalleryError, InputError
from index_builder.delete import delete_items
from index_builder.gallery import Gallery, ItemNotFoundError
from index_builder.lock import GalleryBusyError, builder_lock
from index_builder.verify import verify_gallery


@pytest.fixture
def root(gallery_root, tmp_path) -> Path:
    return Path(shutil.copytree(gallery_root, tmp_path / "g"))


def test_delete_takes_out_the_ids_and_nothing_else(root):
    before = Gallery.open(root)
    report = delete_items(root, ["04.png", "sub/05.png", "04.png"])
    assert (report.count, report.deleted) == (18, 2)
    after = Gallery.open(root)
    assert after.ids() == [name for name in before.ids() if name not in {"04.png", "sub/05.png"}]
    for row, name in enumerate(after.ids()):
        assert np.array_equal(after.vector(row), before.vector(before.row(name)))
        assert after.item(row) == before.item(before.row(name))
    assert not any(verify_gallery(root).values())
    lines = (root / "versions" / after.version / "excluded.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["04.png", "sub/05.png"]
    delete_items(root, ["00.png"])
    lines = Path(root / "versions" / Gallery.open(root).version / "excluded.jsonl").read_text()
    assert lines.count("\n") == 3


def test_delete_drops_metadata_columns_that_nothing_has_any_more(root):
    delete_items(root, ["sub/01.png"])  # the one with year and tags
    gallery = Gallery.open(root)
    assert gallery.item(gallery.row("00.png")).metadata == {"caption": "zero"}
    assert all(set(gallery.item(row).metadata) <= {"caption"} for row in range(len(gallery)))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["00.png", "no", "sub"], ItemNotFoundError, "no item 'no', 'sub'; nothing was deleted"),
        ([f"n{number}" for number in range(12)], ItemNotFoundError, "and 2 more"),
        ([], InputError, "no id was given"),
    ],
)
def test_delete_of_unknown_ids_changes_nothing(root, ids, error, message):
    version = Gallery.open(root).version
    with pytest.raises(error, match=message):
        delete_items(root, ids)
    assert Gallery.open(root).version == version
    assert len(list((root / "versions").iterdir())) == 1


def test_delete_of_everything_is_refused(root):
    with pytest.raises(InputError, match="nothing of the 20 items"):
        delete_items(root, Gallery.open(root).ids())
    assert len(Gallery.open(root)) == 20


def test_delete_refuses_a_busy_a_damaged_and_no_gallery(root, tmp_path):
    with builder_lock(root), pytest.raises(GalleryBusyError):
        delete_items(root, ["00.png"])
    [path] = root.glob("versions/*/items.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(GalleryError, match=r"items\.parquet is damaged"):
        delete_items(root, ["00.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError):
        delete_items(tmp_path / "empty", ["00.png"])
    assert list((tmp_path / "empty").iterdir()) == []
