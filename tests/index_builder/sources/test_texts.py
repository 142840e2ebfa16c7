"""Texts as items: one per file, line or caption."""

import os

from index_builder.location import Location, Stamp
from index_builder.sources.entry import Candidate, Skip
from index_builder.sources.texts import MAX_TEXT_BYTES
from tests.index_builder.sources.reading import entries_of, read, write_tar


def test_a_folder_gives_a_text_per_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("﻿ a dog\nin snow \n", "utf-8")
    (tmp_path / "sub/b.TXT").write_text("ein Hündchen")
    (tmp_path / "sub/b.json").write_text('{"lang": "de"}')
    (tmp_path / "c.jpg").write_bytes(b"x")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Hündchen".encode("latin-1"))
    (tmp_path / "long.txt").write_bytes(b"x" * (MAX_TEXT_BYTES + 1))
    candidates, skips, counts = read(tmp_path, modality="text")
    assert {key: one.text for key, one in candidates.items()} == {
        "a.txt": "a dog\nin snow",
        "sub/b.TXT": "ein Hündchen",
    }
    assert candidates["sub/b.TXT"].metadata == {"lang": "de"}
    assert candidates["a.txt"].location == Location(str(tmp_path / "a.txt"), root=str(tmp_path))
    assert skips == {"empty.txt": "empty", "latin.txt": "damaged", "long.txt": "too_large"}
    assert counts.ignored == 1


def test_a_text_file_gives_a_text_per_line(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes(b"\xef\xbb\xbfa dog\r\n\r\n" + b"x" * (2 * MAX_TEXT_BYTES) + b"\n\xff\n last")
    os.utime(file, (1_600_000_000, 1_600_000_000))
    first, long, damaged, last = entries_of(file, modality="text")
    assert (first.id, first.text) == ("lines.txt#00000001", "a dog")
    assert first.stamp == Stamp(5, 1_600_000_000)
    assert (last.id, last.text) == ("lines.txt#00000005", "last")
    assert (long.id, long.reason) == ("lines.txt#00000003", "too_large")
    assert (damaged.id, damaged.reason) == ("lines.txt#00000004", "damaged")
    both = tmp_path / "other.txt"
    both.write_text("one\n")
    ids = [entry.id for entry in entries_of(file, both, modality="text")]
    assert ids[-1] == "other.txt#00000001"


def test_shards_give_a_text_per_caption(tmp_path):
    members = [
        ("0.jpg", b"x"),
        ("0.json", b'{"captions": ["one", "two", 3], "year": 2020}'),
        ("1.json", b'{"caption": "alone"}'),
        ("1.txt", b"the same, shorter"),
        ("2.txt", b"just words"),
        ("2.cls", b"4"),
        ("3.json", b'{"year": 1}'),
        ("4.json", b"{broken"),
        ("d/5.txt", b"deep"),
    ]
    candidates, skips, counts = read(write_tar(tmp_path / "s.tar", members), modality="text")
    assert {key: one.text for key, one in candidates.items()} == {
        "0#0": "one",
        "0#1": "two",
        "1": "alone",
        "2": "just words",
        "d/5": "deep",
    }
    assert candidates["0#0"].metadata == {"year": 2020}
    assert skips == {"0#2": "bad_row"}
    assert (counts.ignored, counts.bad_sidecars) == (1, 1)
    assert candidates["2"].location.size_bytes == len("just words")


def test_web_pairs_give_their_alt_texts(shared_data):
    [shard] = (shared_data / "web_pairs").glob("*.tar")
    pictures, texts = entries_of(shard), entries_of(shard, modality="text")
    captions = {one.id: one.metadata["caption"] for one in pictures if isinstance(one, Candidate)}
    assert {one.id: one.text for one in texts if isinstance(one, Candidate)} == captions
    assert len(captions) == 879
    assert not [one for one in texts if isinstance(one, Skip)]
