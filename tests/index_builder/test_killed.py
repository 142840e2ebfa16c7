"""Builds killed with SIGKILL at twenty moments, and run again."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index_builder.gallery import Gallery
from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture, version_content
from tests.index_builder.killing import Killer

NUM_PICTURES = 20
PARTS = 4
RNG = random.Random(5)

# where, how often it is called at least in a build, and whether all parts are ready by then
HOOKS = [
    ("index_builder.listing:Listing._write", PARTS, False),
    ("index_builder.part_builder:PartBuilder._take", NUM_PICTURES, False),
    ("index_builder.part_builder:PartBuilder._take", NUM_PICTURES, False),
    ("cots_model.encoder:Encoder.encode_pixels", 6, False),
    ("index_builder.parts:write_items", PARTS, False),
    ("index_builder.parts:sync", 20, False),
    ("index_builder.parts:os.rename", PARTS, False),
    ("index_builder.join:join_items", 1, True),
    ("index_builder.join:write_vectors", 1, True),
    ("index_builder.assemble:build_index", 1, True),
    ("index_builder.publish:sync", 9, False),
    ("index_builder.publish:os.replace", 1, True),
    ("index_builder.publish:os.replace", 1, True),
    ("index_builder.assemble:prune", 1, True),
]
MOMENTS = [
    {"hook": hook, "count": RNG.randint(1, calls), "after": bool(number % 2), "ready": ready}
    for number, (hook, calls, ready) in enumerate(HOOKS)
] + [{"share": (number + RNG.random()) / 6} for number in range(6)]


@pytest.fixture(scope="module")
def killer(tiny_checkpoint) -> Iterator[Killer]:
    killer = Killer(tiny_checkpoint)
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("killed") / "photos"
    for number in range(NUM_PICTURES):
        save_picture(root / f"{number:02d}.png", seed=number)
    (root / "05.png").write_bytes(b"")
    (root / "17.png").write_text("text")
    return root


@pytest.fixture(scope="module")
def published(killer, tmp_path_factory) -> Path:
    """A gallery of other pictures, which the killed builds are to replace."""
    folder = tmp_path_factory.mktemp("published")
    for number in range(3):
        save_picture(folder / "old" / f"{number}.png", seed=100 + number)
    assert killer.run(folder / "old", folder / "g")["status"] == 0
    return folder / "g"


@pytest.fixture(scope="module")
def whole(killer, source, published, tmp_path_factory) -> tuple[Path, float]:
    """What an uninterrupted build gives, and how long it takes."""
    root = tmp_path_factory.mktemp("whole") / "g"
    shutil.copytree(published, root)
    outcome = killer.run(source, root)
    assert (outcome["status"], outcome["parts"], outcome["parts_continued"]) == (0, PARTS, 0)
    return root, outcome["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=[m.get("hook", "time") for m in MOMENTS])
def test_build_killed_at_any_moment_serves_the_old_version_and_goes_on(
    killer, source, published, whole, tmp_path, moment
):
    expected, seconds = version_content(whole[0]), whole[1]
    root = tmp_path / "g"
    shutil.copytree(published, root)
    job = dict(moment)
    if "share" in job:
        job["kill_s"] = job.pop("share") * seconds
    ready = job.pop("ready", False)
    killed = killer.run(source, root, **job)
    assert killed["status"] == -9 or "kill_s" in job  # one that was through could not be killed

    gallery = Gallery.open(root)
    old = version_content(published)
    assert version_content(root) in (old, expected)
    assert not any(verify_gallery(root).values())
    scores, _ = gallery.search(gallery.vector(1)[None], 1)
    np.testing.assert_allclose(scores, 1.0, atol=1e-5)

    again = killer.run(source, root)
    assert again["status"] == 0
    if ready:
        assert again["parts_continued"] == PARTS
    assert version_content(root) == expected
    assert {path.name for path in root.iterdir()} == {"current", "versions", ".lock"}
    assert not list(root.glob("versions/.partial-*"))
    assert len(list(root.glob("versions/*"))) <= 2
