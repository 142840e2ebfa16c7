"""Near-duplicates: groups as brute force finds them, and a page that shows them safely."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cots_model.errors import CotsError, InputError
from index_builder import contact_sheet, duplicates
from index_builder.contact_sheet import write_contact_sheet
from index_builder.duplicates import DuplicateOptions, find_duplicates
from index_builder.gallery import Gallery
from tests.galleries import publish_videos
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors
from tests.videos import numbers, write_clip

EVIL = 'evil "><script>alert(1)<x &copy;.png'
CLOSE = 0.99999  # the tiny model's vectors are near one another


def brute_force(vectors_NE, threshold):
    """Groups of rows, by a walk from every row over all pairs."""
    wide_NE = vectors_NE.astype(np.float64)
    scores_NN = np.array([(wide_NE * row_E).sum(axis=1) for row_E in wide_NE], np.float32)
    near_NN = scores_NN >= np.float32(threshold)
    left, groups = set(range(len(vectors_NE))), []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = {int(n) for row in edge for n in np.flatnonzero(near_NN[row])} - group
        left -= group
        if len(group) > 1:
            groups.append(sorted(group))
    np.fill_diagonal(near_NN, False)
    return sorted(groups, key=lambda rows: (-len(rows), rows[0])), int(near_NN.sum()) // 2


def clustered(count: int, dim: int = 8, *, seed: int = 0) -> np.ndarray:
    """Unit rows, many of them near another: chains, copies and loners."""
    rng = np.random.default_rng(seed)
    vectors_NE = unit_vectors(count, dim, seed=seed)
    for row in range(1, count):
        kind = rng.integers(4)
        if kind < 3:
            noise_E = rng.standard_normal(dim) * (0, 0.05, 0.12)[kind]
            vectors_NE[row] = vectors_NE[rng.integers(row)] + noise_E
    return (vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)).astype(np.float32)


def gallery_of(folder: Path, vectors_NE, **changes) -> Gallery:
    items = plain_items([f"{n:05d}" for n in range(len(vectors_NE))])
    items = [replace(item, **changes) for item in items]
    return Gallery.open(publish_gallery(folder, vectors_NE, items))


def rows_of(report) -> list[list[int]]:
    return [sorted(int(item.id) for item in group.items) for group in report.groups]


@pytest.mark.parametrize("threshold", [0.9, 0.97, 0.995, 1.0])
@pytest.mark.parametrize("block", [7, 64, 2048])
def test_groups_are_those_of_brute_force(tmp_path, monkeypatch, threshold, block):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    vectors_NE = clustered(300)
    gallery = gallery_of(tmp_path / "g", vectors_NE)
    done = []
    report = find_duplicates(gallery, DuplicateOptions(threshold=threshold), progress=done.append)
    groups, num_pairs = brute_force(vectors_NE, threshold)
    assert rows_of(report) == groups
    assert groups
    assert report.num_pairs == num_pairs
    assert report.num_groups == len(groups)
    assert report.num_extra == sum(map(len, groups)) - len(groups)
    assert report.method == "exact"
    assert sum(done) == pytest.approx(1)


def test_a_chain_is_one_group_whatever_the_order_of_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    angles = np.random.default_rng(0).permutation(200) * 0.03
    vectors_NE = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    gallery = gallery_of(tmp_path / "g", vectors_NE)
    [group] = find_duplicates(gallery, DuplicateOptions(threshold=0.9994)).groups
    assert len(group.items) == 200


def test_neighbours_find_the_same_where_there_are_few(tmp_path):
    vectors_NE = unit_vectors(400, seed=1)
    vectors_NE[1:60:3] = vectors_NE[0:59:3]
    gallery = gallery_of(tmp_path / "g", vectors_NE)
    exact = find_duplicates(gallery, DuplicateOptions(threshold=0.9))
    near = find_duplicates(gallery, DuplicateOptions(threshold=0.9, neighbours_above=399))
    assert (exact.method, near.method) == ("exact", "neighbours")
    assert near.groups == exact.groups
    assert len(near.groups) >= 20


def test_group_keeps_the_largest_and_scores_the_others_with_it(tmp_path):
    vectors_NE = clustered(200)
    report = find_duplicates(gallery_of(tmp_path / "g", vectors_NE), DuplicateOptions())
    for group in report.groups:
        first, *others = group.items
        assert first.keep
        assert not any(item.keep for item in others)
        assert first.size_bytes == max(item.size_bytes for item in group.items)
        assert [item.score for item in others] == sorted((i.score for i in others), reverse=True)
        for item in group.items:
            expected = vectors_NE[int(item.id)].astype(float) @ vectors_NE[int(first.id)]
            assert item.score == pytest.approx(expected, abs=1e-6)
            assert item.same_bytes == item.keep


def test_segments_of_one_film_are_not_the_same_bytes(tmp_path):
    items = plain_items(["a", "b", "c"])
    items = [replace(item, sha256="0" * 64, size_bytes=5) for item in items]
    items[1] = replace(items[1], start_s=1.0, end_s=2.0)
    vectors_NE = np.repeat(unit_vectors(1), 3, axis=0)
    gallery = Gallery.open(publish_gallery(tmp_path / "g", vectors_NE, items))
    [group] = find_duplicates(gallery, DuplicateOptions()).groups
    assert [(item.id, item.same_bytes) for item in group.items] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]


def test_too_many_pairs_are_refused_with_the_remedy(tmp_path):
    gallery = gallery_of(tmp_path / "g", np.repeat(unit_vectors(1), 50, axis=0))
    assert find_duplicates(gallery, DuplicateOptions(max_pairs=1225)).num_pairs == 1225
    with pytest.raises(InputError, match=r"1,224 pairs.*higher threshold.*--max-pairs"):
        find_duplicates(gallery, DuplicateOptions(max_pairs=1224))


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0},
        {"threshold": -0.5},
        {"threshold": 1.01},
        {"threshold": float("nan")},
        {"max_groups": 0},
        {"max_pairs": 0},
        {"neighbours": 1},
    ],
)
def test_options_without_meaning_are_refused(options):
    with pytest.raises(InputError, match=r"accepted|at least"):
        DuplicateOptions(**options)


def test_max_groups_lists_the_largest_and_counts_all(tmp_path):
    gallery = gallery_of(tmp_path / "g", clustered(200))
    everything = find_duplicates(gallery, DuplicateOptions())
    some = find_duplicates(gallery, DuplicateOptions(max_groups=2))
    assert some.groups == everything.groups[:2]
    assert (some.num_groups, some.num_extra) == (everything.num_groups, everything.num_extra)


def test_gallery_in_milvus_has_the_same_groups(tmp_path):
    from index_builder.milvus.export import export_gallery
    from index_builder.milvus.options import ExportOptions
    from tests.index_builder.milvus.conftest import lite_file

    gallery = gallery_of(tmp_path / "g", clustered(200))
    with lite_file(tmp_path / "lite.db") as url:
        export_gallery(
            ExportOptions(gallery=tmp_path / "g", to=f"{url}/photos", target=tmp_path / "m")
        )
        found = find_duplicates(Gallery.open(tmp_path / "m"), DuplicateOptions())
    assert found.groups == find_duplicates(gallery, DuplicateOptions()).groups


def save_blocks(path: Path, *, seed: int) -> Path:
    """Nine colours, which bear being made smaller and saved again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(path, compress_level=0)
    return path


@pytest.fixture(scope="module")
def copies(build, tmp_path_factory) -> Path:
    """Pictures with a copy, a smaller one and a re-saved one of each, and the gallery of them."""
    folder = tmp_path_factory.mktemp("copies")
    for number in range(6):
        original = save_blocks(folder / f"src/{number}.png", seed=number)
        shutil.copy(original, folder / f"src/{number} copy.png")
        img = Image.open(original)
        img.resize((40, 40)).save(folder / f"src/{number} small.png")
        img.save(folder / f"src/{number} saved.jpg", quality=95)
    shutil.copy(folder / "src/0.png", folder / f"src/{EVIL}")
    build(folder / "src", folder / "gallery")
    return folder


def test_copies_of_pictures_are_found_as_brute_force_finds_them(copies):
    gallery = Gallery.open(copies / "gallery")
    vectors_NE = gallery.vectors.rows(np.arange(len(gallery)))
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    ids = gallery.ids()
    expected = [[ids[row] for row in rows] for rows in brute_force(vectors_NE, CLOSE)[0]]
    assert [sorted(item.id for item in group.items) for group in report.groups] == expected
    assert [len(group.items) for group in report.groups] == [5, 4, 4, 4, 4, 4]
    for group in report.groups:
        first = group.items[0]
        assert (first.width, first.height) == (48, 48)
        by_id = {item.id: item for item in group.items}
        for item_id, item in by_id.items():
            same = (copies / "src" / item_id).read_bytes() == (
                copies / "src" / first.id
            ).read_bytes()
            assert item.same_bytes == same
    assert any(item.same_bytes and not item.keep for g in report.groups for item in g.items)


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


def parse(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text("utf-8"))
    page.close()
    return page


def test_sheet_shows_every_picture_escapes_texts_and_loads_nothing(copies, tmp_path):
    gallery = Gallery.open(copies / "gallery")
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    shown = write_contact_sheet(tmp_path / "sheet.html", gallery, report)
    assert shown == len(report.groups)
    page = parse(tmp_path / "sheet.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    items = [item for group in report.groups for item in group.items]
    assert [image["alt"] for image in images] == [item.id for item in items]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "main", "h1", "h2", "p", "span"),
        *("section", "ol", "li", "figure", "img", "figcaption", "b", "small"),
    }
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
    assert EVIL in page.text
    source = (tmp_path / "sheet.html").read_text("utf-8")
    assert "default-src 'none'" in source
    assert not re.search(r"url\(|@import|https?:", source)
    assert sum(attributes.get("class") == "keep" for _, attributes in page.tags) == shown
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.html"]


def test_sheet_is_limited_and_says_so(copies, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_GROUPS", 2)
    monkeypatch.setattr(contact_sheet, "MAX_PICTURES", 2)
    gallery = Gallery.open(copies / "gallery")
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    assert report.num_groups > 2
    assert write_contact_sheet(tmp_path / "sheet.html", gallery, report) == 2
    page = parse(tmp_path / "sheet.html")
    assert [tag for tag, _ in page.tags].count("img") == 4
    assert f"The first 2 are shown; {report.num_groups - 2} are not" in page.text
    assert f"the first 2 are shown, {len(report.groups[0].items) - 2} are not" in page.text


def test_sheet_says_which_original_is_gone(copies, tmp_path, build):
    source = Path(shutil.copytree(copies / "src", tmp_path / "src"))
    build(source, tmp_path / "gallery")
    (source / "1.png").unlink()
    gallery = Gallery.open(tmp_path / "gallery")
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    write_contact_sheet(tmp_path / "sheet.html", gallery, report)
    assert "cannot be shown: 1.png is not in " in parse(tmp_path / "sheet.html").text
    [gone] = [item for group in report.groups for item in group.items if item.id == "1.png"]
    assert gone.width is None
    assert not gone.keep


def test_sheet_that_cannot_be_written_is_one_error(copies, tmp_path):
    gallery = Gallery.open(copies / "gallery")
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    with pytest.raises(CotsError, match="could not be written"):
        write_contact_sheet(tmp_path / "nowhere/sheet.html", gallery, report)


@pytest.mark.slow
def test_sheet_opens_in_a_browser(copies, tmp_path, page):
    """All pictures are decoded, and nothing of the evil name runs."""
    gallery = Gallery.open(copies / "gallery")
    report = find_duplicates(gallery, DuplicateOptions(threshold=CLOSE))
    write_contact_sheet(tmp_path / "sheet.html", gallery, report)
    page.goto((tmp_path / "sheet.html").as_uri())
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as shot:
        pixels_HWC = np.asarray(shot.convert("RGB")).astype(int)
    colourful_HW = np.ptp(pixels_HWC, axis=2) > 40  # texts and lines are grey, but for the badges
    assert colourful_HW.mean() > 0.1


def test_sheet_shows_each_segment_by_its_own_middle(encoder, tmp_path):
    source = tmp_path / "films"
    source.mkdir()
    write_clip(source / "a.mp4", 120, size=(320, 240))
    gallery = Gallery.open(publish_videos(tmp_path / "g", encoder, source, segment_s=4))
    report = find_duplicates(gallery, DuplicateOptions(threshold=0.01))
    write_contact_sheet(tmp_path / "sheet.html", gallery, report)
    found = {}
    for tag, attributes in parse(tmp_path / "sheet.html").tags:
        if tag == "img":
            data = base64.b64decode(attributes["src"].partition(",")[2])
            found[attributes["alt"]] = numbers([Image.open(io.BytesIO(data))])
    assert found == {"a.mp4#t=0,4": [20], "a.mp4#t=4,8": [60], "a.mp4#t=8,12": [100]}


def test_sheet_does_not_wait_for_a_video_that_takes_too_long(encoder, tmp_path, monkeypatch):
    source = tmp_path / "films"
    source.mkdir()
    for name in "ab":
        write_clip(source / f"{name}.mp4", 20)
    gallery = Gallery.open(publish_videos(tmp_path / "g", encoder, source))
    report = find_duplicates(gallery, DuplicateOptions(threshold=0.01))
    monkeypatch.setattr(contact_sheet, "_LONGEST_S", -1.0)
    write_contact_sheet(tmp_path / "sheet.html", gallery, report)
    page = parse(tmp_path / "sheet.html")
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.text.count("cannot be shown: the frame takes too long to get at") == 2
