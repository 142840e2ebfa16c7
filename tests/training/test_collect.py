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


@pytest.fixture
def svgs(tmp_path):
    """Named by code points, as vendors do; others are left out."""
    folder = tmp_path / "svgs"
    for number, name in enumerate(["1F436", "2615-fe0f", "assets/1f1eb-1f1f7", "1F1E9", "logo"]):
        path = folder / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = f"width='{9 + number}' height='9'"
        path.write_text(
            f"<svg xmlns='http://www.w3.org/2000/svg' {size}><circle r='4' cx='4' cy='4'/></svg>"
        )
    return folder


def test_emoji_are_drawn_and_asked_for_as_said(tmp_path, names, svgs):
    pytest.importorskip("resvg_py")
    shard = tmp_path / "o.tar"
    asked = ["--ask", "label", "--caption", "a photo of a {}"]
    done = collect("emoji", svgs, shard, "--names", names, *asked)
    assert done.exit_code == 0, done.output
    examples = read_examples([str(shard)])
    assert [example.captions for example in examples] == [
        ("a photo of a dog face",),
        ("a photo of a hot beverage",),
        ("a photo of a flag: france",),
    ]
    dog = examples[0].picture()
    assert dog.size == (256, 256)
    assert max(dog.getpixel((114, 114))) < 20  # the circle
    assert min(dog.getpixel((250, 250))) > 235


def test_emoji_may_be_pictures_named_by_code_points(tmp_path, names):
    """Transparent ones lie on white."""
    for name in ("1f436.webp", "assets/2615-fe0f.png", "logo.png", "1f1eb-1f1f7.txt"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(path, "PNG" if "txt" in name else None)
    shard = tmp_path / "w.tar"
    done = collect("emoji", tmp_path / "pictures", shard, "--names", names, "--ask", "label")
    assert done.exit_code == 0, done.output
    dog, coffee = read_examples([str(shard)])
    assert (dog.captions, coffee.captions) == (("dog face",), ("hot beverage",))
    assert min(dog.picture().getpixel((10, 10))) > 250


def test_a_broken_drawing_is_left_out(tmp_path, names, svgs, caplog):
    pytest.importorskip("resvg_py")
    (svgs / "1F436.svg").write_text("<svg>")
    assert collect("emoji", svgs, tmp_path / "o.tar", "--names", names).exit_code == 0
    assert len(read_examples([str(tmp_path / "o.tar")])) == 2
    assert "left out: 1F436.svg" in caplog.text


def test_emoji_without_keywords_are_not_asked_by_them(tmp_path, names, svgs):
    pytest.importorskip("resvg_py")
    done = collect("emoji", svgs, tmp_path / "k.tar", "--names", names, "--ask", "keywords")
    assert done.exit_code == 0, done.output
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


def test_emoji_need_their_names(tmp_path):
    shard = tmp_path / "x.tar"
    shard.write_bytes(b"of before")
    assert "needs --names" in collect("emoji", tmp_path, shard).output
    done = collect("emoji", tmp_path, shard, "--names", tmp_path)
    assert done.exit_code == 2
    assert "unpack emojibase-data" in done.output
    assert "has no {}" in collect("stamps", tmp_path, shard, "--caption", "a {name}").output
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    assert shard.read_bytes() == b"of before"
