"""Manifests: every format says the same, rows are checked one by one, nothing leads astray."""

import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cots_model.errors import InputError
from index_builder.content import ContentError, Location, location_of, read_location
from index_builder.sources.entry import Candidate, Skip
from index_builder.sources.finders import FolderFinder
from index_builder.sources.metadata_file import read_metadata_file
from index_builder.sources.open import open_source
from index_builder.sources.rows import open_rows
from index_builder.sources.stages import with_metadata
from tests.index_builder.conftest import save_picture
from tests.index_builder.sources.reading import entries_of, read, write_tar

ROWS = [
    {"id": "007", "path": "a.png", "year": 2020, "price": 1.5, "new": True, "title": "one, two"},
    {"id": "8", "path": "sub/b.png", "year": 2021, "price": 2.0, "new": False, "title": 'the "b"'},
]


def write(folder, kind, rows):
    file = folder / f"items.{kind}"
    if kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        quoted = [[f'"{str(v).replace(chr(34), chr(34) * 2)}"' for v in r.values()] for r in rows]
        lines = [mark.join(rows[0]), *(mark.join(cells) for cells in quoted)]
        file.write_text("﻿" + "\r\n".join(lines) + "\r\n", "utf-8")
    elif kind == "json":
        file.write_text(json.dumps(rows))
    elif kind == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.fixture
def pictures(tmp_path):
    save_picture(tmp_path / "a.png", seed=1)
    save_picture(tmp_path / "sub/b.png", seed=2)
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_entries(pictures, kind):
    source = open_source([str(write(pictures, kind, ROWS))])
    first, second = source.read()
    assert (first.id, second.id) == ("007", "8")
    assert first.metadata == {"year": 2020, "price": 1.5, "new": True, "title": "one, two"}
    assert [type(value) for value in second.metadata.values()] == [int, float, bool, str]
    assert source.roots == (str(pictures),)
    for entry in (first, second):
        data, stamp = read_location(entry.location)
        assert entry.stamp == stamp
        assert read_location(location_of(entry.uri, None, None, source.roots))[0] == data


def test_without_an_id_the_name_as_written_is_the_id(pictures):
    file = write(pictures, "csv", [{"file": "./a.png"}, {"file": "sub/b.png"}])
    assert list(read(file)[0]) == ["a.png", "sub/b.png"]


def test_the_first_of_the_known_columns_names_the_file(pictures):
    rows = [{"url": "http://h/a.png", "image": "b.png", "video": "v.mp4", "filename": "a.png"}]
    file = write(pictures, "json", rows)
    [entry] = entries_of(file)
    assert entry.location.path == str(pictures / "a.png")
    assert set(entry.metadata) == {"url", "image", "video"}
    del rows[0]["filename"]
    write(pictures, "json", rows)
    assert entries_of(file)[0].location.path == str(pictures / "b.png")
    assert entries_of(file, modality="video")[0].location.path == str(pictures / "v.mp4")


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_manifest_without_a_known_column_says_which_there_are(pictures, kind):
    file = write(pictures, kind, [{"picture": "a.png", "video": "v.mp4"}])
    with pytest.raises(InputError) as caught:
        open_source([str(file)])
    for said in (file.name, "picture", "filename", "--modality video"):
        assert said in str(caught.value)


def test_bad_rows_are_skipped_each_with_file_row_and_column(pictures):
    rows = [
        {"id": "ok", "path": "a.png"},
        {"id": "a", "path": 5},
        {"id": "b"},
        {"id": "c", "path": " "},
        {"id": None, "path": "a.png"},
        {"id": True, "path": "a.png"},
        {"id": "d", "path": "nul\0.png"},
        {"id": "e", "path": "lone\udcff.png"},
        ["no", "row"],
    ]
    candidates, skips, _ = read(write(pictures, "json", rows))
    assert list(candidates) == ["ok"]
    assert skips == {f"items.json#{n:08d}": "bad_row" for n in range(2, 10)}
    entries = entries_of(pictures / "items.json")
    told = [entry.message for entry in entries if isinstance(entry, Skip)]
    assert told[0].startswith("items.json, row 2: column path: holds 5; a path or url is accepted")
    assert told[3].startswith("items.json, row 5: column id: holds nothing")
    assert told[-1].startswith("items.json, row 9: is list ['no', 'row']")


def test_a_csv_row_with_other_cells_than_the_heading_is_skipped(pictures):
    file = pictures / "items.csv"
    file.write_text('path,note\na.png,x\nsub/b.png\na.png,"two\nlines"\n\n,no path\n')
    entries = entries_of(file)
    assert [type(entry) for entry in entries] == [Candidate, Skip, Candidate, Skip]
    assert "row 2: has 1 cells, but the heading 2" in entries[1].message
    assert entries[2].metadata == {"note": "two\nlines"}
    assert "row 5: column path: holds nothing" in entries[3].message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"path": "a.png"}\n{"path": "b'),
        ("x.csv", b'path\na.png\n"b.png\n'),
        ("x.csv", b"path,note\na.png,good\nb.png,\xff\n"),
        ("x.json", b'[{"path": "a.png"}'),
        ("x.json", b"[" * 100_000),
        ("x.parquet", b"PAR1 not really PAR1"),
        ("x.csv", b"path,path\na.png,b.png\n"),
        ("x.csv", b""),
    ],
)
def test_a_manifest_that_breaks_off_publishes_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        entries_of(tmp_path / name)


def test_a_damaged_parquet_says_which_row_it_got_to(tmp_path):
    file = tmp_path / "x.parquet"
    table = pa.table({"path": [f"{n:05d}.png" for n in range(3000)]})
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(table, file, row_group_size=1000, **options)
    data = bytearray(file.read_bytes())
    at = data.index(b"02000.png")
    data[at - 30 : at] = b"\xff" * 30  # the header of the last page
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.parquet cannot be read beyond row 1024 ") as caught:
        entries_of(file)
    assert "\n" not in str(caught.value)


def test_relative_names_never_leave_their_folder(pictures):
    outside = save_picture(pictures.parent / "outside/x.png")
    folder = pictures / "sub"
    (folder / "link.png").symlink_to(outside)
    (folder / "inner.png").symlink_to(folder / "b.png")
    names = ["../a.png", "../../../../etc/passwd", "t/../b.png", "link.png", "inner.png"]
    file = write(folder, "json", [{"path": name} for name in names])
    candidates, skips, _ = read(file)
    assert list(skips.values()) == ["outside_root"] * 2
    assert read_location(candidates["t/../b.png"].location)[0]
    assert read_location(candidates["inner.png"].location)[0]
    with pytest.raises(ContentError) as caught:
        read_location(candidates["link.png"].location)
    assert caught.value.reason == "symlink_outside"


def test_absolute_paths_are_taken_unless_a_root_is_given(pictures, tmp_path_factory):
    elsewhere = save_picture(tmp_path_factory.mktemp("elsewhere") / "x y.png")
    (pictures / "linked").symlink_to(elsewhere.parent)
    names = [str(elsewhere), f"file://{elsewhere}".replace(" ", "%20"), "a.png"]
    names.append(str(pictures / "sub/b.png"))
    file = write(pictures, "json", [{"id": str(n), "path": p} for n, p in enumerate(names)])
    source = open_source([str(file)])
    entries = list(source.read())
    assert [entry.location.path for entry in entries[:2]] == [str(elsewhere)] * 2
    assert set(source.roots) == {str(elsewhere.parent), str(pictures)}
    for entry in entries:
        assert read_location(location_of(entry.uri, None, None, source.roots))[1] == entry.stamp
    for arguments in ([str(file), str(pictures)], [str(file)]):
        root = None if len(arguments) == 2 else pictures
        candidates, skips, _ = read(*arguments, root=root)
        assert (list(candidates), set(skips.values())) == (["2", "3"], {"outside_root"})


def test_a_root_holds_the_files_of_a_manifest_elsewhere(pictures, tmp_path_factory):
    file = write(tmp_path_factory.mktemp("lists"), "csv", ROWS)
    assert all(entry.stamp is None for entry in entries_of(file))  # nothing is there
    for candidates in (read(file, pictures)[0], read(file, root=pictures)[0]):
        assert [one.location.root for one in candidates.values()] == [str(pictures)] * 2
        assert all(one.stamp for one in candidates.values())


def test_shards_hold_the_files_of_a_manifest(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("./d/a.png", b"A"), ("b.png", b"BB"), ("x/b.png", b"")])
    rows = [{"path": name} for name in ("d/a.png", "a.png", "b.png", "other/b.png", "c.png")]
    source = open_source([str(write(tmp_path, "json", rows)), str(shard)])
    entries = list(source.read())
    assert [read_location(entry.location)[0] for entry in entries[:3]] == [b"A", b"A", b"BB"]
    assert [entry.reason for entry in entries[3:]] == ["missing", "missing"]
    assert source.roots == (str(shard),)
    place = location_of(entries[0].uri, entries[0].location.offset_bytes, 1, source.roots)
    assert read_location(place)[0] == b"A"
    shard.write_bytes(shard.read_bytes()[:1100])
    with pytest.raises(InputError, match="cannot be read as a tar file"):
        entries_of(tmp_path / "items.json", shard)


def test_urls_in_rows_are_taken_without_secrets(pictures, bucket):
    import fsspec

    with fsspec.open(f"{bucket}/p/x y.jpg", "wb") as file:
        file.write(b"there")
    urls = [f"{bucket}/p/x y.jpg", "https://h/x.jpg?X-Amz-Signature=HIDDEN", "s3://k:HIDDEN@b/x"]
    file = write(pictures, "json", [{"id": f"{n}", "url": url} for n, url in enumerate(urls)])
    source = open_source([str(file)])
    entries = list(source.read())
    assert read_location(entries[0].location)[0] == b"there"
    assert source.roots == (f"{bucket}/p",)
    assert [entry.reason for entry in entries[1:]] == ["secret_in_url"] * 2
    assert "HIDDEN" not in repr(entries)
    write(pictures, "json", [{"url": "gs://b/x.jpg"}])
    [skip] = open_source([str(file)]).read()
    assert skip.reason == "unreadable"
    assert "pip install gcsfs" in skip.message


@pytest.mark.parametrize("url", ["foo://x/a.jpg", "http://[x/a.jpg", "github://a/b", "git://x"])
def test_a_url_that_cannot_be_opened_ends_its_row_and_not_the_build(pictures, url):
    (pictures / "m.jsonl").write_text(f'{{"path": "a.png"}}\n{{"path": "{url}"}}\n')
    candidates, skips, _ = read(pictures / "m.jsonl")
    assert list(candidates) == ["a.png"]
    assert set(skips) == {"m.jsonl#00000002"}


def test_a_manifest_at_a_url_names_no_local_file(pictures, bucket):
    import fsspec

    rows = [{"path": str(pictures / "a.png")}, {"path": f"file://{pictures}/a.png"}]
    rows += [{"path": "../x.jpg"}, {"path": "x.jpg"}]
    with fsspec.open(f"{bucket}/lists/items.json", "wt") as file:
        json.dump(rows, file)
    candidates, skips, _ = read(f"{bucket}/lists/items.json")
    assert [one.location.path for one in candidates.values()] == [f"{bucket}/lists/x.jpg"]
    assert list(skips.values()) == ["outside_root"] * 3


def test_roots_stay_few_and_cover_everything():
    finder = FolderFinder("/lists", closed=False)
    places = [f"/data/{top}/{n:03d}/x.jpg" for top in "ab" for n in range(40)]
    places += ["/other/deep/er/x.jpg", "/lists/a.jpg", "/lists/sub/b.jpg"]
    for place in places:
        finder.find(place)
    assert finder.roots == ("/data/a", "/data/b", "/lists", "/other/deep")
    backwards = FolderFinder("/lists", closed=False)
    for place in reversed(places):
        backwards.find(place)
    assert backwards.roots == finder.roots


def test_several_manifests_are_read_one_after_the_other(pictures):
    first = write(pictures, "csv", ROWS[:1]).rename(pictures / "part-0.csv")
    second = write(pictures, "csv", ROWS[1:]).rename(pictures / "part-1.csv")
    assert list(read(pictures / "part-*.csv")[0]) == ["007", "8"]
    assert list(read(second, first, pictures)[0]) == ["8", "007"]


def test_columns_of_bytes_are_not_read_and_dates_are_text(pictures):
    import datetime

    table = pa.table(
        {
            "path": ["a.png"],
            "pixels": [b"\0" * 100],
            "image": [{"bytes": b"x", "path": "p"}],
            "when": [datetime.date(2024, 5, 6)],
            "tags": [["a", "b"]],
        }
    )
    pq.write_table(table, pictures / "items.parquet")
    [entry] = entries_of(pictures / "items.parquet")
    assert entry.metadata == {"when": "2024-05-06", "tags": ["a", "b"]}


def test_csv_columns_take_the_type_that_all_their_values_have(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("path,n,f,zip,long,mixed\na,1,1,01234,12345678901234567890,1\nb,,2.5,2,3,x\n")
    first, second = open_rows(str(file)).rows()
    long = "12345678901234567890"
    assert first.values == {
        "path": "a",
        "n": 1,
        "f": 1.0,
        "zip": "01234",
        "long": long,
        "mixed": "1",
    }
    assert second.values == {"path": "b", "f": 2.5, "zip": "2", "long": "3", "mixed": "x"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_manifest(tmp_path, kind):
    def peak(num_rows):
        rows = [{"path": f"{n:09d}.png", "note": "x" * 200} for n in range(num_rows)]
        file = write(tmp_path, kind, rows)
        del rows
        source = open_source([str(file)])
        tracemalloc.start()
        count = sum(1 for _ in source.read())
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == num_rows
        return peak_bytes

    assert peak(12_000) < 1.5 * peak(3_000) + 100_000


def test_texts_come_from_rows_one_or_several(tmp_path):
    rows = [
        {"caption": "a dog", "image": "a.jpg", "n": 1},
        {"captions": ["a cat", "a cat again"], "id": "k"},
        {"text": "first choice", "caption": "second", "id": "t"},
        {"id": "none"},
        {"caption": 5, "id": "number"},
        {"caption": " ", "id": "blank"},
    ]
    rows = [{"id": f"row{n}", **row} for n, row in enumerate(rows)]
    candidates, skips, _ = read(write(tmp_path, "jsonl", rows), modality="text")
    assert {key: one.text for key, one in candidates.items()} == {
        "row0": "a dog",
        "k#0": "a cat",
        "k#1": "a cat again",
        "t": "first choice",
    }
    assert candidates["row0"].metadata == {"image": "a.jpg", "n": 1}
    assert skips == {"items.jsonl#00000004": "empty", "number": "bad_row", "blank": "empty"}
    assert candidates["row0"].stamp.size_bytes == len("a dog")
    del rows[0]["id"]
    write(tmp_path, "jsonl", rows[:1])
    source = open_source([str(tmp_path / "items.jsonl")], modality="text")
    assert [entry.id for entry in source.read()] == ["items.jsonl#00000001"]
    assert source.roots == (str(tmp_path / "items.jsonl"),)


def test_exercises_and_fashion_take_their_columns_by_metadata(shared_data):
    for name, num in (("exercises", 1746), ("fashion", 4000)):
        folder = shared_data / name
        table = read_metadata_file(folder / "items.parquet")
        source = open_source([str(folder / "images.tar")])
        entries = list(with_metadata(source.read(), table))
        assert len(entries) == table.matched == len(table) == num
        assert all({"caption", "category"} <= set(entry.metadata) for entry in entries)


def test_exercises_and_fashion_as_manifests_beside_their_shards(shared_data):
    for name, num, key in (("exercises", 1746, "muscle"), ("fashion", 4000, "price")):
        folder = shared_data / name
        candidates, skips, _ = read(folder / "items.parquet", folder / "images.tar")
        assert (len(candidates), skips) == (num, {})
        one = next(iter(candidates.values()))
        assert any(key in column for column in one.metadata)
        assert read_location(one.location)[0][:2] == b"\xff\xd8"


def test_metadata_lines_may_hold_other_ends_of_lines(tmp_path):
    said = "one\u2028two\x85three"
    row = json.dumps({"id": "a.png", "said": said}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_text(row + "\n\n", "utf-8")
    entry = Candidate("a.png", "file:///a.png", Location("/a.png"), "a.png")
    [found] = with_metadata(iter([entry]), read_metadata_file(tmp_path / "m.jsonl"))
    assert found.metadata == {"said": said}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_row_may_hold_a_long_text_but_no_line_is_read_without_end(tmp_path, suffix):
    long = "x" * 400_000
    text = json.dumps({"text": long}) if suffix == "jsonl" else f'text\n"{long}"'
    (tmp_path / f"m.{suffix}").write_text(text + "\n")
    [found] = entries_of(tmp_path / f"m.{suffix}", modality="text")
    assert found.text == long
    with (tmp_path / f"endless.{suffix}").open("w") as file:
        file.write(text)
        file.truncate(2**34)  # a hole: no space is taken
    tracemalloc.start()
    with pytest.raises(InputError, match=r"cannot be read beyond row 0 .a line of over"):
        entries_of(tmp_path / f"endless.{suffix}", modality="text")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**28
