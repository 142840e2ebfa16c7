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

# where; which of its calls; whether after it; whether all parts are ready by then
HOOKS = [
    ("index_builder.listing:Listing._write", range(1, PARTS + 1), False, False),
    ("index_builder.part_builder:PartBuilder._take", range(1, 8), False, False),
    ("index_builder.part_builder:PartBuilder._take", range(8, NUM_PICTURES + 1), True, False),
    ("cots_model.encoder:Encoder.encode_pixels", range(1, 7), False, False),
    ("index_builder.parts:write_items", range(1, PARTS + 1), True, False),
    ("index_builder.parts:sync", range(1, 21), False, False),
    ("index_builder.parts:os.rename", range(1, PARTS + 1), False, False),
    ("index_builder.join:join_items", range(1, 2), False, True),
    ("index_builder.join:write_vectors", range(1, 2), True, True),
    ("index_builder.assemble:build_index", range(1, 2), True, True),
    ("index_builder.publish:sync", range(1, 7), False, True),
    ("index_builder.publish:os.rename", range(PARTS + 1, PARTS + 2), False, True),
    ("index_builder.publish:os.rename", range(PARTS + 1, PARTS + 2), True, True),
    ("index_builder.publish:os.replace", range(1, 2), False, True),
    ("index_builder.publish:os.replace", range(1, 2), True, True),
    ("index_builder.assemble:prune", range(1, 2), True, True),
]
MOMENTS = [
    {"hook": hook, "count": RNG.choice(calls), "after": after, "ready": ready}
    for hook, calls, after, ready in HOOKS
] + [{"share": (number + RNG.random()) / 4} for number in range(4)]


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
    moved = moment.get("hook", "").endswith((".replace", "prune")) and moment["after"]
    assert version_content(root) in ((expected,) if moved else (old, expected))
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


@pytest.mark.slow
def test_build_killed_again_and_again_gets_through(killer, source, published, whole, tmp_path):
    root = tmp_path / "g"
    shutil.copytree(published, root)
    rng = random.Random(6)
    for hook, calls, after, _ in rng.sample(HOOKS, 5):
        killer.run(source, root, hook=hook, count=rng.choice(calls), after=after)
        assert not any(verify_gallery(root).values())
    assert killer.run(source, root)["status"] == 0
    assert version_content(root) == version_content(whole[0])
