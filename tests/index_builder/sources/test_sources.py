"""Folders and shards: which pictures they yield, under which ids, and what they leave out."""

import os
import tarfile
import tracemalloc

import pytest

from cots_model.errors import InputError
from index_builder.content import Stamp, read_location
from index_builder.sources.entry import Skip
from index_builder.sources.open import open_source
from index_builder.sources.patterns import expand_pattern
from tests.index_builder.conftest import save_picture
from tests.index_builder.sources.reading import read, write_tar


def test_folder_source_ids_are_relative_paths(photos):
    candidates, skips, counts = read(photos)
    names = [f"{'sub/' if number % 2 else ''}{number:02d}.png" for number in range(20)]
    assert sorted(candidates) == sorted(names)
    assert not skips
    assert counts.ignored == 2  # README.md and .hidden.png; sidecars are used
    assert candidates["00.png"].metadata == {"caption": "zero"}
    assert candidates["sub/01.png"].metadata == {"year": 2021, "tags": ["a", "b"]}


def test_folder_source_reads_in_the_same_order_every_time(photos):
    first, second = ([entry.id for entry in open_source([str(photos)]).read()] for _ in "ab")
    assert first == second


def test_folder_source_links_never_lead_out_or_round(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    save_picture(root / "sub/a.png")
    save_picture(outside / "b.png")
    (root / "sub/loop").symlink_to(root)
    (root / "again").symlink_to(root / "sub")
    (root / "away").symlink_to(outside)
    (root / "away.png").symlink_to(outside / "b.png")
    (root / "copy.png").symlink_to(root / "sub/a.png")
    (root / "broken.png").symlink_to(root / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    candidates, skips, _ = read(root)
    assert set(candidates) == {"sub/a.png", "copy.png"}
    assert skips == {
        "sub/loop": "symlink_loop",
        "again": "symlinked_folder",
        "away": "symlink_outside",
        "away.png": "symlink_outside",
        "broken.png": "broken_symlink",
        "self.png": "symlink_loop",
    }


def test_folder_source_lists_what_is_no_readable_picture_file(tmp_path):
    save_picture(tmp_path / "good.png")
    save_picture(tmp_path / "folder.jpg/inside.png")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb") as handle:
        handle.write(b"x")
    candidates, skips, _ = read(tmp_path)
    assert set(candidates) == {"good.png", "folder.jpg/inside.png"}
    assert skips == {
        "folder.jpg": "not_a_file",
        "fifo.jpg": "not_a_file",
        "phone.HEIC": "unsupported_format",
        "\\xff.jpg": "bad_name",
    }


def test_folder_source_counts_unusable_sidecars_and_keeps_the_picture(tmp_path):
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text("{not json")
    save_picture(tmp_path / "b.png")
    (tmp_path / "b.json").write_text("[1]")
    candidates, _, counts = read(tmp_path)
    assert set(candidates) == {"a.png", "b.png"}
    assert counts.bad_sidecars == 2
    assert counts.first_bad_sidecar.startswith("a.json: ")


def test_folder_source_does_not_enter_the_excluded_folder(tmp_path):
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "gallery/x.png")
    candidates, _, _ = read(tmp_path, exclude=tmp_path / "gallery")
    assert set(candidates) == {"a.png"}


def test_shard_source_finds_the_bytes_of_every_member(tmp_path):
    names = [f"{number:05d}" for number in range(50)]
    members = [
        (f"{name}.{suffix}", f"{name} {suffix}".encode() * (1 + int(name) % 9))
        for name in names
        for suffix in ("jpg", "txt")
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    candidates, skips, counts = read(shard)
    assert list(candidates) == names
    assert not skips
    assert counts.ignored == 0
    for name, data in members:
        key, suffix = name.split(".")
        if suffix == "jpg":
            assert read_location(candidates[key].location)[0] == data
        else:
            assert candidates[key].metadata == {"caption": data.decode()}


def test_shard_source_json_wins_over_txt_and_keys_stop_at_the_first_dot(tmp_path):
    members = [
        ("./d.1/k.seg.png", b"x"),
        ("./d.1/k.txt", b"words"),
        ("./d.1/k.json", b'{"caption": "better", "n": 1}'),
        ("./d.1/k.bin", b"?"),
        ("alone.txt", b"no picture"),
    ]
    candidates, _, counts = read(write_tar(tmp_path / "s.tar", members))
    assert list(candidates) == ["d.1/k"]
    assert candidates["d.1/k"].metadata == {"caption": "better", "n": 1}
    assert counts.ignored == 2


def test_shard_source_keeps_all_pictures_of_a_sample(tmp_path):
    members = [("p.v1.jpg", b"1"), ("p.v2.jpg", b"2"), ("p.txt", b"words"), ("q.avif", b"x")]
    candidates, skips, _ = read(write_tar(tmp_path / "s.tar", members))
    assert list(candidates) == ["p.v1.jpg", "p.v2.jpg"]
    assert skips == {"q.avif": "unsupported_format"}


def test_shard_source_ends_a_damaged_shard_and_goes_on_with_the_next(tmp_path):
    members = [(f"{number}.jpg", b"x" * 2000) for number in range(5)]
    first = write_tar(tmp_path / "0.tar", members)
    first.write_bytes(first.read_bytes()[:6000])
    (tmp_path / "1.tar").write_bytes(b"this is no tar")
    write_tar(tmp_path / "2.tar", [("z.jpg", b"x")])
    candidates, skips, _ = read(tmp_path / "*.tar")
    assert list(candidates) == ["0", "1", "2", "z"]  # decoding will say that 2 is cut off
    assert skips == {"0.tar": "damaged_shard", "1.tar": "damaged_shard"}


HEADER_BYTES, MEMBER_BYTES = 512, 512 + 1024  # a member of 600 bytes fills two blocks


def patched(shard, at, data):
    """The shard with `data` written over its bytes, and the checksum of the header there mended."""
    whole = bytearray(shard.read_bytes())
    whole[at : at + len(data)] = data
    start = at - at % HEADER_BYTES
    whole[start + 148 : start + 156] = b" " * 8
    whole[start + 148 : start + 156] = b"%06o\0 " % sum(whole[start : start + HEADER_BYTES])
    return bytes(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: shard.read_bytes()[: 2 * MEMBER_BYTES + 100],  # within a header
        lambda shard: shard.read_bytes().replace(b"2.jpg", b"?.jpg"),  # the checksum is wrong
        lambda shard: patched(shard, 2 * MEMBER_BYTES + 124, b"\x80" + b"\xff" * 11),  # 2^88 bytes
        lambda shard: patched(shard, 2 * MEMBER_BYTES + 124, b"\xff" * 10 + b"\xfa\0"),  # -1536
    ],
    ids=["short header", "wrong checksum", "endless member", "negative size"],
)
def test_shard_source_says_that_a_header_is_damaged(tmp_path, damage):
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", b"x" * 600) for n in range(5)])
    shard.write_bytes(damage(shard))
    candidates, skips, _ = read(shard)
    assert skips == {"s.tar": "damaged_shard"}
    assert {"0", "1"} <= set(candidates) <= {"0", "1", "2"}


def test_shard_source_reads_no_header_of_a_gigabyte(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", b"x" * 600) for n in range(2)])
    good = shard.read_bytes()[: 2 * MEMBER_BYTES]
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**32
    with shard.open("wb") as file:
        file.write(good + header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**32 + 2**20)  # a hole: no space is taken
    tracemalloc.start()
    candidates, skips, _ = read(shard)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (list(candidates), skips) == (["0", "1"], {"s.tar": "damaged_shard"})
    assert peak_bytes < 2**24


def test_shard_source_may_end_without_the_closing_zeros(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.jpg", b"x" * 600) for n in range(3)])
    shard.write_bytes(shard.read_bytes()[: 3 * MEMBER_BYTES])
    candidates, skips, _ = read(shard)
    assert (list(candidates), skips) == (["0", "1", "2"], {})


def test_sources_tell_of_names_that_are_no_utf_8_in_utf_8(tmp_path):
    folder = os.fsencode(save_picture(tmp_path / "root/a.png").parent)
    os.symlink(b"nothing", folder + b"/\xff.png")
    (tmp_path / "root" / os.fsdecode(b"\xfe.jpg")).mkdir()
    skips = [e for e in open_source([os.fsdecode(folder)]).read() if isinstance(e, Skip)]
    assert {skip.id for skip in skips} == {"\\xff.png", "\\xfe.jpg"}
    for skip in skips:
        assert (skip.message + skip.uri).encode("utf-8")
    with pytest.raises(InputError, match="not valid UTF-8"):
        open_source([os.fsdecode(folder + b"/\xfe.jpg")])


def test_expand_pattern_knows_ranges_choices_and_globs(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "t.tar"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern):
        return [os.path.basename(path) for path in expand_pattern(str(tmp_path / pattern))]

    assert names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("{t,s-09}.tar") == ["t.tar", "s-09.tar"]
    assert names("s-{0,1}?.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    with pytest.raises(InputError, match=r"s-11\.tar is not there"):
        names("s-{10..11}.tar")


@pytest.mark.parametrize("name", ["nothing", "words.txt", "picture.jpg", "shard.tar.gz"])
def test_open_source_says_what_it_accepts(tmp_path, name):
    for file in ("words.txt", "picture.jpg", "shard.tar.gz"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(InputError, match="accepted: a folder"):
        open_source([str(tmp_path / name)])


def test_sources_tell_size_and_time_of_everything_they_list(tmp_path):
    picture = save_picture(tmp_path / "photos/a.png")
    shard = write_tar(tmp_path / "s.tar", [("k.jpg", b"x" * 300)])
    os.utime(picture, (1_600_000_000.5, 1_600_000_000.5))
    os.utime(shard, (1_500_000_000, 1_500_000_000))
    assert read(picture.parent)[0]["a.png"].stamp == Stamp(picture.stat().st_size, 1_600_000_000.5)
    assert read(shard)[0]["k"].stamp == Stamp(300, 1_500_000_000)
    for candidate in (*read(picture.parent)[0].values(), *read(shard)[0].values()):
        assert read_location(candidate.location)[1] == candidate.stamp


def test_video_sources_list_videos_with_their_sidecars(tmp_path):
    for name in ("a.mp4", "sub/b.MKV", "c.wmv", "d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a dog")
    candidates, skips, counts = read(tmp_path, modality="video")
    assert {key: one.metadata for key, one in candidates.items()} == {
        "a.mp4": {"caption": "a dog"},
        "sub/b.MKV": {},
    }
    assert skips == {"c.wmv": "unsupported_format"}
    assert counts.ignored == 1  # d.jpg
    members = [("1.mp4", b"v"), ("1.jpg", b"poster"), ("1.txt", b"words"), ("2.m2ts", b"v")]
    shard = write_tar(tmp_path / "s.tar", members)
    candidates, skips, counts = read(shard, modality="video")
    assert {key: one.metadata for key, one in candidates.items()} == {"1": {"caption": "words"}}
    assert (skips, counts.ignored) == ({"2.m2ts": "unsupported_format"}, 1)
