"""Galleries of what is not a plain folder: built by the command, originals found again."""

import hashlib
import json
import subprocess
import sys

import fsspec
import pytest

from index_builder.content import ContentError
from index_builder.gallery import Gallery
from tests.index_builder.conftest import save_picture
from tests.index_builder.sources.reading import write_tar


@pytest.fixture
def build_here(tiny_checkpoint, tmp_path):
    """Build with the command, in a process of its own, and open the gallery."""

    def run(*arguments):
        gallery = tmp_path / "gallery"
        command = [sys.executable, "-m", "cots_cli.main", "index", "build", *map(str, arguments)]
        options = ["--gallery", gallery, "--checkpoint", tiny_checkpoint, "--workers", "1"]
        done = subprocess.run(
            [*command, *map(str, options), "--json"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return Gallery.open(gallery), json.loads(done.stdout.splitlines()[-1])

    return run


def check_originals(gallery):
    for row in range(len(gallery)):
        item = gallery.item(row)
        with gallery.open_content(row) as handle:
            assert hashlib.sha256(handle.read()).hexdigest() == item.sha256
        assert len(gallery.read_content(row)) == item.size_bytes


@pytest.mark.slow
def test_a_bucket_of_shards_and_one_of_pictures_are_built(bucket, build_here, tmp_path):
    pictures = [save_picture(tmp_path / f"p/{n}.png", seed=n) for n in range(3)]
    members = [(f"{n}.png", file.read_bytes()) for n, file in enumerate(pictures)]
    shard = write_tar(tmp_path / "s.tar", [*members, ("2.txt", b"a dog")])
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.pipe_file(f"{bucket}/shards/s-0.tar", shard.read_bytes())
    files.pipe_file(f"{bucket}/loose/a b#1.png", pictures[0].read_bytes())
    gallery, report = build_here(f"{bucket}/shards/*.tar")
    assert report["count"] == 3
    assert gallery.item(2).uri == f"{bucket}/shards/s-0.tar#2.png"
    assert gallery.item(2).metadata == {"caption": "a dog"}
    check_originals(gallery)
    gallery, report = build_here(f"{bucket}/loose")
    assert gallery.ids() == ["a b#1.png"]
    check_originals(gallery)
    files.rm(f"{bucket}/loose/a b#1.png")
    with pytest.raises(ContentError) as caught:
        gallery.open_content(0)
    assert caught.value.reason == "missing"


@pytest.mark.slow
def test_manifest_rows_from_shards_and_folders_are_built(build_here, tmp_path):
    pictures = [save_picture(tmp_path / f"p/{n}.png", seed=n) for n in range(4)]
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.png", pictures[n].read_bytes()) for n in (0, 1)])
    names = tmp_path / "items.csv"
    names.write_text("id,filename,year\nx,0.png,2020\ny,1.png,2021\n")
    gallery, _ = build_here(names, shard)
    assert [gallery.item(row).metadata for row in (0, 1)] == [{"year": 2020}, {"year": 2021}]
    assert gallery.ids() == ["x", "y"]
    check_originals(gallery)
    names.write_text(f"id,path\nz,p/2.png\nw,{pictures[3]}\nbad,../p/3.png\n")
    gallery, report = build_here(names)
    assert gallery.ids() == ["w", "z"]
    assert report["skipped"] == {"outside_root": 1}
    check_originals(gallery)
