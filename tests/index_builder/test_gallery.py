"""An open gallery: search, items, originals, and everything that must be refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from cots_model.testing import make_tiny_checkpoint
from index_builder.content import ContentError
from index_builder.gallery import Gallery, ItemNotFoundError
from index_builder.manifest import version_files
from index_builder.search import search_gallery
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture


@pytest.fixture
def copy(gallery_root, tmp_path):
    return Path(shutil.copytree(gallery_root, tmp_path / "copy"))


@pytest.fixture
def gallery(gallery_root):
    return Gallery.open(gallery_root)


def version_file(root: Path, name: str) -> Path:
    return next(root.glob(f"versions/*/{name}"))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_gallery_scores_are_the_dot_products_of_stored_vectors(gallery, encoder):
    query_QE = encoder.encode_texts(["a dog", "two cats in snow"])
    scores_QK, rows_QK = gallery.search(query_QE, 50)
    assert scores_QK.shape == (2, 20)
    for query_E, scores_K, rows_K in zip(query_QE, scores_QK, rows_QK, strict=True):
        assert sorted(rows_K) == list(range(20))
        assert list(scores_K) == sorted(scores_K, reverse=True)
        stored_KE = np.array([gallery.vector(row) for row in rows_K])
        np.testing.assert_allclose(scores_K, stored_KE @ query_E, atol=2e-7)


def test_gallery_gives_copies_of_one_picture_in_order_of_id(build, tmp_path, encoder):
    names = ["z.png", "b/a.png", "a.png", "ä.png", "B.png", "a/z.png", "c.png"]
    for name in names:
        save_picture(tmp_path / "src" / name, seed=5)
    save_picture(tmp_path / "src/other.png", seed=6)
    build(tmp_path / "src", tmp_path / "g", batch_size=1)
    gallery = Gallery.open(tmp_path / "g")
    query_1E = gallery.vector(gallery.row("a.png"))[None]
    [all_hits] = search_gallery(gallery, query_1E, k=8)
    tied = [hit.id for hit in all_hits if hit.id != "other.png"]
    assert len({hit.score for hit in all_hits if hit.id != "other.png"}) == 1
    assert tied == sorted(names)
    for k in range(1, 8):
        [hits] = search_gallery(gallery, query_1E, k=k)
        assert hits == all_hits[:k]


def test_search_gallery_pages_and_cuts_off(gallery, encoder):
    query_1E = encoder.encode_texts(["a dog"])
    [everything] = search_gallery(gallery, query_1E, k=20)
    assert len(everything) == 20
    pages = [search_gallery(gallery, query_1E, k=6, offset=o)[0] for o in (0, 6, 12, 18, 24)]
    assert [hit for page in pages for hit in page] == everything
    cutoff = everything[7].score
    [above] = search_gallery(gallery, query_1E, k=20, min_score=cutoff)
    assert above == [hit for hit in everything if hit.score >= cutoff]
    assert 8 <= len(above) < 20


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 1, "offset": -1}])
def test_search_gallery_refuses_numbers_without_meaning(gallery, encoder, options):
    with pytest.raises(InputError, match="accepted"):
        search_gallery(gallery, encoder.encode_texts(["x"]), **options)


def test_gallery_search_refuses_queries_that_do_not_fit(gallery):
    dim = gallery.manifest.dim
    for query in (np.zeros((1, dim + 1)), np.zeros(dim), np.full((1, dim), np.nan)):
        with pytest.raises(InputError, match="accepted"):
            gallery.search(query, 1)
    assert search_gallery(gallery, np.zeros((0, dim), np.float32), k=3) == []


def test_gallery_finds_items_by_id(gallery):
    for row in range(len(gallery)):
        assert gallery.row(gallery.item(row).id) == row
    with pytest.raises(ItemNotFoundError, match="no item 'nobody'"):
        gallery.row("nobody")
    for row in (-1, 20):
        with pytest.raises(IndexError):
            gallery.item(row)
        with pytest.raises(IndexError):
            gallery.vector(row)


def test_gallery_refuses_another_model_naming_both(gallery_root, encoder, tmp_path):
    checkpoint = make_tiny_checkpoint(tmp_path / "other", seed=1, embed_dim=encoder.dim)
    other = Encoder.load(checkpoint, device="cpu")
    with pytest.raises(GalleryError) as caught:
        Gallery.open(gallery_root, expected_fingerprint=other.fingerprint)
    message = str(caught.value)
    assert encoder.fingerprint in message
    assert other.fingerprint in message
    assert "--checkpoint" in message


@pytest.mark.parametrize("name", [*version_files("image", "flat"), "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_gallery_refuses_a_damaged_file_naming_it(copy, name, damage):
    path = version_file(copy, name)
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1] if path.stat().st_size else b"x")
    elif path.stat().st_size:
        flip_a_bit(path)
    else:
        path.write_bytes(b"x")
    with pytest.raises(GalleryError, match=name):
        Gallery.open(copy)
    damaged = [file for file, problem in verify_gallery(copy).items() if problem]
    assert len(damaged) == 1
    assert damaged[0].endswith(name)


def test_gallery_refuses_a_damaged_pointer_and_other_folders(copy, tmp_path):
    for text in ("", "../../etc x", "20260101T000000.000000Z nothex"):
        (copy / "current").write_text(text)
        with pytest.raises(GalleryError, match="current is damaged"):
            Gallery.open(copy)
    (copy / "current").unlink()
    with pytest.raises(GalleryError, match="no finished version"):
        Gallery.open(copy)
    with pytest.raises(GalleryError, match="no gallery at"):
        Gallery.open(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(GalleryError, match="is not a gallery"):
        Gallery.open(tmp_path / "plain")


def test_gallery_never_unpickles(copy):
    path = version_file(copy, "vectors.npy")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    republish(copy)
    with pytest.raises(GalleryError, match=r"vectors\.npy is damaged"):
        Gallery.open(copy)


def test_gallery_refuses_a_newer_format_and_files_that_disagree(copy):
    republish(copy, format_version=3)
    with pytest.raises(GalleryError, match="format version 3"):
        Gallery.open(copy)
    republish(copy, format_version=2, count=19)
    with pytest.raises(GalleryError, match=r"vectors\.npy"):
        Gallery.open(copy)
    path = version_file(copy, "vectors.npy")
    vectors_NE = np.load(path)
    np.save(path, vectors_NE[::-1].copy())
    republish(copy, count=20)
    Gallery.open(copy)
    assert "index.faiss" in [file for file, problem in verify_gallery(copy).items() if problem]


def republish(root: Path, **changes: object) -> None:
    """Write manifest and pointer so that all hashes fit the files as they are."""
    import hashlib

    manifest_path = version_file(root, "manifest.json")
    manifest = json.loads(manifest_path.read_text()) | changes
    for name in manifest["files"]:
        data = version_file(root, name).read_bytes()
        manifest["files"][name] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
        }
    manifest_path.write_text(json.dumps(manifest))
    digest = hashlib.sha256(manifest_path.read_bytes()).hexdigest()
    (root / "current").write_text(f"{manifest_path.parent.name} {digest}\n")


def test_gallery_reads_originals_and_notices_changed_ones(build, tmp_path):
    source = tmp_path / "src"
    originals = {f"{n}.png": save_picture(source / f"{n}.png", seed=n) for n in range(4)}
    build(source, tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g")
    for name, path in originals.items():
        assert gallery.read_content(gallery.row(name)) == path.read_bytes()

    originals["0.png"].touch()  # a new time, the same bytes: still the same picture
    with gallery.open_content(gallery.row("0.png")) as handle:
        assert handle.read() == originals["0.png"].read_bytes()
    flip_a_bit(originals["1.png"])
    originals["2.png"].unlink()
    secret = tmp_path / "secret.png"
    shutil.copy(originals["3.png"], secret)
    originals["3.png"].unlink()
    originals["3.png"].symlink_to(secret)
    expected = {"1.png": "changed", "2.png": "missing", "3.png": "symlink_outside"}
    for name, reason in expected.items():
        for read in (gallery.read_content, gallery.open_content):
            with pytest.raises(ContentError) as caught:
                read(gallery.row(name))
            assert caught.value.reason == reason
    assert Counter(expected.values()).total() == 3


def test_the_device_is_that_of_the_index(gallery_root):
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        Gallery.open(gallery_root, device="tpu")
    Gallery.open(gallery_root, device="cpu")
