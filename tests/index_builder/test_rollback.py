"""`versions` and `rollback`: what is kept, the way back, and what the next builds make of it."""

import shutil
from pathlib import Path

import pytest

from cots_model.encoder import Encoder
from cots_model.errors import CotsError, GalleryError, InputError
from cots_model.testing import make_tiny_checkpoint
from index_builder import publish, rollback
from index_builder.build import build_gallery
from index_builder.delete import delete_items
from index_builder.gallery import Gallery, OtherModelError
from index_builder.lock import GalleryBusyError, builder_lock
from index_builder.milvus.client import MilvusError
from index_builder.options import BuildOptions
from index_builder.rollback import list_versions, roll_back
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture


@pytest.fixture
def root(build, tmp_path) -> Path:
    """Versions of six, five and four pictures; the last is current."""
    for number in range(6):
        save_picture(tmp_path / "src" / f"{number}.png", seed=number)
    build(tmp_path / "src", tmp_path / "g", keep_versions=3)
    for number in range(2):
        delete_items(tmp_path / "g", [f"{number}.png"], keep_versions=3)
    return tmp_path / "g"


def names(root: Path) -> list[str]:
    """All versions that are kept, the oldest first."""
    return [version.version for version in list_versions(root)][::-1]


def damage(root: Path, version: str, name: str, *, cut: bool = False) -> None:
    path = root / "versions" / version / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] if cut else data[:-1] + bytes([data[-1] ^ 1]))


def test_versions_says_what_each_is(root, encoder):
    newest, middle, oldest = list_versions(root)
    assert [version.count for version in (newest, middle, oldest)] == [4, 5, 6]
    assert (newest.current, middle.current, oldest.current) == (True, False, False)
    assert newest.version > middle.version > oldest.version
    for version in (newest, middle, oldest):
        folder = root / "versions" / version.version
        assert version.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
        assert version.model_fingerprint == encoder.fingerprint
        assert (version.index, version.modality) == ("flat", "image")
        assert (version.problem, version.withdrawn) == (None, False)


def test_rollback_goes_back_one_by_one_and_forward_again(root):
    oldest, middle, newest = names(root)
    report = roll_back(root)
    assert (report.version, report.previous_version, report.count) == (middle, newest, 5)
    assert Gallery.open(root).ids() == [f"{number}.png" for number in range(1, 6)]
    assert not any(verify_gallery(root).values())
    assert roll_back(root, verify=True).version == oldest
    with pytest.raises(InputError, match=f"keeps no version before {oldest}"):
        roll_back(root)
    assert [version.withdrawn for version in list_versions(root)] == [True, True, False]
    assert roll_back(root, to=newest).previous_version == oldest
    assert not any(version.withdrawn for version in list_versions(root))
    assert {path.name for path in root.iterdir()} == {"current", "versions", ".lock"}
    again = roll_back(root, to=newest)
    assert again.version == again.previous_version == newest


def test_what_was_rolled_back_from_goes_before_what_was_current(root, build):
    oldest, _middle, newest = names(root)
    roll_back(root, to=oldest)
    built = build(root.parent / "src", root, keep_versions=2).version
    assert built > newest
    assert names(root) == [oldest, built]
    assert roll_back(root).version == oldest


def test_a_build_that_fails_after_a_rollback_leaves_the_way_forward(root, build, tmp_path):
    *_, newest = names(root)
    roll_back(root)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"")
    with pytest.raises(InputError):
        build(tmp_path / "bad", root)
    assert roll_back(root, to=newest).version == newest


def test_rollback_from_a_build_goes_to_what_was_current_before_it(root, build):
    oldest, middle, newest = names(root)
    roll_back(root)
    built = build(root.parent / "src", root, keep_versions=4).version
    assert names(root) == [oldest, middle, newest, built]
    assert roll_back(root).version == middle


def test_a_new_version_is_named_behind_what_was_rolled_back_from(root, build):
    later = "20990101T000000.000000Z"  # made before the clock went back
    newest = names(root)[-1]
    (root / "versions" / newest).rename(root / "versions" / later)
    (root / "current").write_text((root / "current").read_text().replace(newest, later))
    roll_back(root)
    assert build(root.parent / "src", root).version > later


def test_rollback_killed_before_it_moved_the_pointer_has_not_happened(root, build, monkeypatch):
    _oldest, _middle, newest = names(root)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_write", kill)
        with pytest.raises(KeyboardInterrupt):
            roll_back(root)
    assert Gallery.open(root).version == newest
    assert not any(version.withdrawn for version in list_versions(root))
    built = build(root.parent / "src", root).version
    assert names(root) == [newest, built]


@pytest.mark.parametrize("step", ["sync", "os.replace", "whole_versions"])
@pytest.mark.parametrize("back", [True, False])
def test_a_move_that_fails_leaves_all_as_it_was(root, build, monkeypatch, step, back):
    oldest, middle, newest = names(root)
    if not back:
        roll_back(root)
    before = list_versions(root)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"index_builder.publish.{step}", fail)
        with pytest.raises((CotsError, OSError)):
            roll_back(root, to=middle if back else newest)
    assert list_versions(root) == before
    with pytest.raises(InputError):  # a build that fails removes none of them
        build(root / "nothing", root)
    assert names(root) == [oldest, middle, newest]
    assert roll_back(root, to=newest).version == newest
    assert not any(version.withdrawn for version in list_versions(root))


def test_what_was_rolled_back_from_stays_so_through_later_rollbacks(root, build, tmp_path):
    oldest, middle, _newest = names(root)
    roll_back(root)
    roll_back(root, to=oldest)
    for number in (7, 8):
        save_picture(tmp_path / "src" / f"{number}.png", seed=number)
        build(tmp_path / "src", root, keep_versions=9)
    *_, third, fourth = names(root)
    assert roll_back(root).previous_version == fourth
    assert Gallery.open(root).version == third
    assert roll_back(root).version == oldest  # not to the two that were passed by before
    assert roll_back(root, to=middle).version == middle


def test_rollback_refuses_a_version_whose_manifest_is_not_the_one_published(root):
    _oldest, middle, newest = names(root)
    path = root / "versions" / middle / "manifest.json"
    text = path.read_text("utf-8")
    assert '"count": 5' in text
    path.write_text(text.replace('"count": 5', '"count": 4'), "utf-8")
    assert "not the one that was published" in str(list_versions(root)[1].problem)
    with pytest.raises(GalleryError, match="not the one that was published"):
        roll_back(root)
    assert Gallery.open(root).version == newest


def test_milvus_that_does_not_answer_makes_no_version_damaged(root, monkeypatch):
    def silent(_: object) -> None:
        raise MilvusError("http://milvus does not answer within 5 s")

    monkeypatch.setattr(rollback, "_check_collection", silent)
    with pytest.raises(MilvusError, match=r"^http://milvus does not answer within 5 s$"):
        roll_back(root)


@pytest.mark.parametrize("line", ["nonsense", "20260101T000000.000000Z", "x" * 64])
def test_a_pointer_with_a_damaged_line_is_damaged(root, line):
    roll_back(root)
    path = root / "current"
    path.write_text(f"{path.read_text('ascii')}{line}\n", "ascii")
    with pytest.raises(GalleryError, match="current is damaged"):
        list_versions(root)


def test_versions_of_a_pointer_that_tells_of_the_current_alone_are_known(root):
    """As it was written before it told of the others."""
    oldest, middle, newest = names(root)
    path = root / "current"
    path.write_text(path.read_text("ascii").splitlines()[0] + "\n", "ascii")
    assert names(root) == [oldest, middle, newest]
    assert roll_back(root).version == middle
    assert roll_back(root, to=newest).version == newest


@pytest.mark.parametrize("to", ["nonsense", "20200101T000000.000000Z", "../versions", ""])
def test_rollback_to_a_version_that_is_not_kept_names_those_that_are(root, to):
    kept = names(root)
    with pytest.raises(InputError, match="keeps no version") as caught:
        roll_back(root, to=to)
    assert all(name in str(caught.value) for name in kept)
    assert Gallery.open(root).version == kept[-1]


def test_rollback_refuses_what_a_look_shows_to_be_damaged(root):
    oldest, middle, newest = names(root)
    damage(root, middle, "vectors.npy", cut=True)
    (root / "versions" / oldest / "manifest.json").write_text("{")
    with pytest.raises(GalleryError, match=rf"vectors\.npy: it holds .*, so {newest} stays"):
        roll_back(root)
    with pytest.raises(GalleryError, match=r"manifest\.json"):
        roll_back(root, to=oldest)
    assert Gallery.open(root).version == newest
    found = {version.version: version.problem for version in list_versions(root)}
    assert found[newest] is None
    assert "vectors.npy" in found[middle]
    assert "manifest.json" in found[oldest]


def test_rollback_with_verify_refuses_what_only_a_hash_shows(root):
    _oldest, middle, newest = names(root)
    damage(root, middle, "items.parquet")
    with pytest.raises(GalleryError, match=r"items\.parquet: its sha256"):
        roll_back(root, verify=True)
    assert Gallery.open(root).version == newest


def test_rollback_leads_away_from_a_version_that_is_damaged(root):
    _oldest, middle, newest = names(root)
    damage(root, newest, "manifest.json", cut=True)
    with pytest.raises(GalleryError):
        Gallery.open(root)
    assert roll_back(root).version == middle
    assert len(Gallery.open(root)) == 5


def test_rollback_to_another_model_is_refused_naming_both_unless_it_is_meant(
    root, encoder, tmp_path
):
    other = Encoder.load(make_tiny_checkpoint(tmp_path / "other", seed=1), device="cpu")
    options = BuildOptions(sources=(str(tmp_path / "src"),), gallery=root, workers=1)
    built = build_gallery(options, other).version
    with pytest.raises(OtherModelError, match="--other-model") as caught:
        roll_back(root)
    assert encoder.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)
    assert Gallery.open(root).version == built
    roll_back(root, other_model=True)
    assert Gallery.open(root, expected_fingerprint=encoder.fingerprint)


def test_rollback_waits_for_nobody_and_leaves_other_folders_alone(root, tmp_path):
    with builder_lock(root), pytest.raises(GalleryBusyError):
        roll_back(root)
    (tmp_path / "empty").mkdir()
    for ask in (roll_back, list_versions):
        with pytest.raises(GalleryError, match="is not a gallery"):
            ask(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_version_that_no_pointer_was_moved_to_is_none(root):
    newest = names(root)[-1]
    orphan = root / "versions/20990101T000000.000000Z"
    shutil.copytree(root / "versions" / newest, orphan)
    assert orphan.name not in names(root)
    with pytest.raises(InputError):
        roll_back(root, to=orphan.name)
