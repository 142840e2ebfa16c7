"""`cots search` as people type it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cots_cli.search import command
from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, ImageError
from cots_model.testing import make_tiny_checkpoint
from index_builder.build import build_gallery
from index_builder.gallery import Gallery
from index_builder.indexes.open import open_index
from index_builder.options import BuildOptions
from index_builder.search import search_gallery


@pytest.fixture(scope="module")
def gallery(tiny_checkpoint, tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("photos")
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"photo {number}.png")
        (source / f"photo {number}.txt").write_text(f"words {number}")
    root = tmp_path_factory.mktemp("galleries") / "my photos"
    options = BuildOptions(sources=(str(source),), gallery=root, workers=1)
    build_gallery(options, Encoder.load(tiny_checkpoint, device="cpu"))
    return root


@pytest.fixture
def search(gallery, tiny_checkpoint):
    def run(*arguments: object) -> Result:
        fixed = ["--gallery", str(gallery), "--checkpoint", str(tiny_checkpoint)]
        return CliRunner().invoke(command, fixed + [str(argument) for argument in arguments])

    return run


def hits_of(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert set(body) == {"hits"}
    return body["hits"]


def test_search_prints_the_hits_of_search_gallery(search, gallery, tiny_checkpoint):
    hits = hits_of(search("a dog", "-k", 5, "--json"))
    query_1E = Encoder.load(tiny_checkpoint, device="cpu").encode_texts(["a dog"])
    [expected] = search_gallery(Gallery.open(gallery), query_1E, k=5)
    assert [(hit["id"], hit["score"]) for hit in hits] == [(e.id, e.score) for e in expected]
    first = hits[0]
    assert set(first) == {"id", "score", "uri", "thumbnail", "metadata"}
    number = first["id"].removeprefix("photo ").removesuffix(".png")
    assert first["metadata"] == {"caption": f"words {number}"}
    assert first["uri"].endswith(f"/photo%20{number}.png")
    path = f"/v1/galleries/my%20photos/items/photo%20{number}.png/thumbnail"
    assert first["thumbnail"] == path


def test_words_need_no_quotes(search):
    assert search("a", "red", "dog", "--json").stdout == search("a red dog", "--json").stdout


def test_search_tells_on_a_terminal_what_it_is_at(search, monkeypatch):
    quiet = search("a dog")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    monkeypatch.setattr("cots_cli.progress.is_quiet", lambda: False)
    told = search("a dog")
    assert told.stdout == quiet.stdout
    places = [told.stderr.index(step) for step in ("1/4 loading", "2/4 loading the model", "4/4")]
    assert places == sorted(places)


def test_the_folder_of_galleries_is_no_gallery(gallery, tiny_checkpoint, tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / name).symlink_to(gallery)
    result = CliRunner().invoke(command, ["--gallery", str(tmp_path), "a dog"])
    assert isinstance(result.exception, GalleryError)
    folders = ", ".join(str(tmp_path / name) for name in "abc")
    assert str(result.exception).endswith(f"holds some; name one: {folders} and 2 more")


def test_search_by_image_finds_that_image(search, gallery):
    item = Gallery.open(gallery).item(7)
    picture = gallery.parent / "query.png"
    picture.write_bytes(Gallery.open(gallery).read_content(7))
    hits = hits_of(search("--image", picture, "-k", 3, "--json"))
    assert hits[0]["id"] == item.id
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-5)


def test_search_pages_and_cuts_off(search):
    everything = hits_of(search("snow", "-k", 12, "--json"))
    assert len(everything) == 12
    assert hits_of(search("snow", "-k", 5, "--offset", 5, "--json")) == everything[5:10]
    cutoff = repr(everything[3]["score"])
    above = hits_of(search("snow", "-k", 12, "--min-score", cutoff, "--json"))
    assert above == [hit for hit in everything if hit["score"] >= everything[3]["score"]]
    nothing = search("snow", "--min-score", "1")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "nothing found\n")


def test_search_says_where_it_ends_to_read(search):
    long = search("snow " * 500, "-k", "1")
    assert long.exit_code == 0
    assert "Note: the query is longer than" in long.stderr
    assert "Note" not in search("snow", "-k", "1").stderr
    [told] = json.loads(search("snow " * 500, "-k", "1", "--json").stdout)["warnings"]
    assert (told["param"], told["code"]) == ("query", "text_cut")
    assert told["message"].startswith("query is longer than")
    assert "warnings" not in json.loads(search("snow", "-k", "1", "--json").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["words", "--image", "x.jpg"],
        ["  "],
        ["x", "-k", "0"],
        ["x", "-k", "1001"],
        ["x", "--min-score", "35"],
        ["x", "--min-score", "nan"],
    ],
)
def test_search_refuses_wrong_usage(search, arguments):
    result = search(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_search_filters_and_leaves_out_duplicates(search):
    everything = hits_of(search("snow", "-k", 12, "--json"))
    raw = {"caption": {"in": ["words 3", "words 7"]}}
    hits = hits_of(search("snow", "--filter", json.dumps(raw), "--json"))
    assert hits == [hit for hit in everything if hit["metadata"]["caption"][6:] in ("3", "7")]
    distinct = hits_of(
        search("snow", "-k", 12, "--deduplicate", "--duplicate-similarity", 0.5, "--json")
    )
    assert 1 <= len(distinct) <= 12
    assert distinct[0] == everything[0]
    assert all(hit in everything for hit in distinct)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "--filter is not JSON"),
        ("[" * 100_000, "--filter is not JSON"),
        ("3", "filter is a number; accepted is an object"),
        ('{"caption": {"gte": 3}}', "filter.caption.gte is given a number"),
        ('{"year": {"gte": 3}}', "the columns are 'caption'"),
    ],
)
def test_search_refuses_filters_that_do_not_fit(search, text, said):
    result = search("snow", "--filter", text)
    assert result.exit_code != 0
    assert said in (result.stderr or str(result.exception))


def test_search_refuses_a_foreign_gallery_and_a_broken_image(search, gallery, tmp_path):
    checkpoint = make_tiny_checkpoint(tmp_path / "other", seed=9)
    result = search("words", "--checkpoint", checkpoint)
    assert isinstance(result.exception, GalleryError)
    assert Gallery.open(gallery).manifest.model_fingerprint in str(result.exception)
    (tmp_path / "x.jpg").write_text("text")
    assert isinstance(search("--image", tmp_path / "x.jpg").exception, ImageError)
    assert isinstance(search("words", "--gallery", tmp_path).exception, GalleryError)


def test_the_device_is_that_of_the_index_too(search, monkeypatch):
    asked = []

    def recording(*args, device, **options):
        asked.append(device)
        return open_index(*args, device=device, **options)

    monkeypatch.setattr("index_builder.gallery.open_index", recording)
    assert len(hits_of(search("a dog", "--device", "cpu", "--json"))) == 10
    assert asked == ["cpu"]
