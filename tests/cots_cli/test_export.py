"""`cots index export`: to Milvus Lite, and what is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from index_builder.gallery import Gallery
from tests.index_builder.milvus.conftest import lite_file
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors


@pytest.fixture
def gallery(tmp_path):
    items = plain_items([f"{n:02d}.jpg" for n in range(30)])
    return publish_gallery(tmp_path / "g", unit_vectors(30), items)


@pytest.fixture
def url(tmp_path):
    with lite_file(tmp_path / "lite.db") as found:
        yield f"{found}/photos"


def test_export_verify_info_and_search(cots, gallery, url, tmp_path):
    target = tmp_path / "served" / "photos"
    target.parent.mkdir()
    status, out, err = cots("index", "export", gallery, "--to", url, "--gallery", target)
    assert (status, err) == (0, "")
    assert out.startswith(f"{url}: 30 items, 30 written now, all read back")
    status, out, _ = cots("index", "verify", target)
    assert status == 0
    status, out, _ = cots("index", "info", target, "--json")
    assert json.loads(out)["index"]["parameters"]["collection"] == "photos"
    status, out, _ = cots("index", "export", gallery, "--to", url, "--gallery", target, "--json")
    assert json.loads(out)["written"] == 0
    query_QE = unit_vectors(2, seed=3)
    found, expected = (Gallery.open(root).search(query_QE, 5) for root in (target, gallery))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("to", "status", "said"),
    [
        ("milvus://root:hunter2@localhost/photos", 2, "COTS_MILVUS_TOKEN"),
        ("http://localhost/photos", 2, ": milvus://HOST"),
        ("milvus://127.0.0.1:1/photos", 2, "cannot connect to Milvus"),
    ],
)
def test_export_refuses_in_one_line(cots, gallery, tmp_path, to, status, said):
    found, out, err = cots("index", "export", gallery, "--to", to, "--gallery", tmp_path / "t")
    assert (found, out) == (status, "")
    assert said in err
    assert "hunter2" not in err
    assert err.count("\n") == 1


def test_export_of_no_gallery_is_refused(cots, tmp_path):
    arguments = ("--to", "milvus://localhost/photos", "--gallery", tmp_path / "t")
    status, _, err = cots("index", "export", tmp_path / "nowhere", *arguments)
    assert status == 2
    assert "no gallery" in err
