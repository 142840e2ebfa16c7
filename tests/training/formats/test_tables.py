"""Flickr's caption files, and tables with named columns."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.conftest import png, two_colours, write_tar
from tests.training.formats.conftest import colours, said

EXPECTED = [("a.jpg", ("A dog, a cat , and me .", "two")), ("b.jpg", ('he said "hi", twice',))]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results_20130124.token", "a.jpg#0\tA dog, a cat , and me .\na.jpg#1\ttwo\n"),
        ("captions.txt", "image,caption\na.jpg,A dog, a cat , and me .\na.jpg,two\n"),
        ("captions.txt", "a.jpg,A dog, a cat , and me .\r\na.jpg,two\r\n"),
        (
            "results.csv",
            "image_name| number| comment\na.jpg| 0| A dog, a cat , and me .\na.jpg| 4   two\n",
        ),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"format": "flickr"}])
def test_flickr_captions_hold_commas(read, name, text, keys):
    last = {
        "results_20130124.token": 'b.jpg#0\the said "hi", twice\n',
        "captions.txt": '\nb.jpg,"he said ""hi"", twice"\n',
        "results.csv": 'b.jpg| 0| he said "hi", twice\n',
    }[name]
    examples = read(name, text + last, **keys)
    assert said(examples) == EXPECTED
    assert colours(examples) == ["a", "b"]


def test_flickr_names_may_be_strange(read):
    text = "2258277193_586949ec62.jpg.1#0\tno such picture\nb (1), x.jpg#0\tone\n"
    assert said(read("f.token", text)) == [
        ("2258277193_586949ec62.jpg.1", ("no such picture",)),
        ("b (1), x.jpg", ("one",)),
    ]


def test_flickr_names_the_line_at_fault(error):
    text = "image,caption\na.jpg,one\nand something else\n"
    message = error("captions.txt", text, format="flickr")
    assert "captions.txt, line 3: 'and something else'; accepted are 'name.jpg,caption'" in message


def test_a_split_file_chooses_pictures(read, tmp_path):
    (tmp_path / "trainImages.txt").write_text("b.jpg\n")
    text = "a.jpg#0\tone\nb.jpg#0\ttwo\n"
    assert said(read("f.token", text, split_file=tmp_path / "trainImages.txt")) == [
        ("b.jpg", ("two",))
    ]


@pytest.mark.parametrize(
    ("name", "text", "keys"),
    [
        ("t.csv", 'filename,price,caption\na.jpg,3,"one, two"\nb.jpg,4,three\n', {}),
        ("t.csv", 'caption,image\n"one, two",a.jpg\nthree,b.jpg\n', {}),
        ("t.csv", "filepath\ttitle\na.jpg\tone, two\nb.jpg\tthree\n", {}),
        ("t.tsv", "filepath\ttitle\na.jpg\tone, two\nb.jpg\tthree\n", {}),
        (
            "t.tsv",
            "file\tde\ten\na.jpg\teins\tone, two\nb.jpg\tzwei\tthree\n",
            {"image_column": "file", "caption_column": "en"},
        ),
    ],
)
def test_csv_and_tsv_have_named_columns(read, name, text, keys):
    examples = read(name, text, **keys)
    assert said(examples) == [("a.jpg", ("one, two",)), ("b.jpg", ("three",))]
    assert colours(examples) == ["a", "b"]


def test_rows_of_a_picture_are_put_together(read, caplog):
    text = 'image,text,n\na.jpg,one,1\nb.jpg,"a\nb",2\na.jpg,two,3\nc.jpg,,4\nd.jpg,NA,5\n'
    assert said(read("t.csv", text, format="table")) == [
        ("a.jpg", ("one", "two")),
        ("b.jpg", ("a\nb",)),
        ("d.jpg", ("NA",)),
    ]
    assert "1 pictures without a caption" in caplog.text


def parquet(tmp_path, **columns) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "captions",
    [
        [["one", "two"], ["three"]],
        pa.array([["one", "two"], ["three"]], pa.large_list(pa.large_string())),
    ],
)
def test_parquet_may_hold_lists_of_captions(read, tmp_path, captions):
    parquet(tmp_path, filename=["a.jpg", "b.jpg"], caption=captions, price=[1.5, None])
    examples = read("t.parquet", None)
    assert said(examples) == [("a.jpg", ("one", "two")), ("b.jpg", ("three",))]


def test_parquet_may_have_dictionaries(read, tmp_path):
    parquet(tmp_path, path=pa.array(["a.jpg", "a.jpg"]).dictionary_encode(), text=["one", None])
    assert said(read("t.parquet", None)) == [("a.jpg", ("one",))]


def test_pictures_may_lie_in_a_tar(read, tmp_path):
    members = [("./x/a.png", png(two_colours("red", "red"))), ("b.png", b"no picture")]
    root = write_tar(tmp_path / "images.tar", members)
    text = "image,caption,n\nx/a.png,one,1\nb.png,two,2\nc.png,three,3\n"
    good, bad, gone = read("t.csv", text, image_root=root, format="table")
    assert good.picture().getpixel((0, 0)) == (255, 0, 0)
    for example in (bad, gone):
        with pytest.raises(Exception, match=f"picture {example.id} in .*images.tar"):
            example.picture()


@pytest.mark.parametrize(
    ("name", "content", "keys", "says"),
    [
        ("t.csv", "name,caption\nx,y\n", {}, "columns name, caption; say with image_column which"),
        ("t.csv", "image,words\nx,y\n", {}, "say with caption_column which one to take"),
        ("t.csv", "image,caption\nx,y\n", {"image_column": "img"}, "no column 'img'; it has image"),
        (
            "t.csv",
            "image,caption,n\na.jpg,one,two,3\n",
            {},
            "t.csv cannot be read (CSV parse error",
        ),
        ("t.csv", "image,caption,n\n,one,3\n", {}, "t.csv, row 1: no image"),
        ("t.csv", "", {}, "t.csv is empty"),
        ("t.csv", b"image,caption,n\n\xff,one,3\n", {"format": "table"}, "UTF"),
        ("t.csv", None, {}, "t.csv cannot be read (there is no such file)"),
        ("t.parquet", b"PAR", {}, "t.parquet cannot be read as parquet"),
        ("t.csv", "image,caption,n\nx,y,3\n", {"split": "train"}, "no use for split"),
    ],
)
def test_a_bad_table_says_what_is_wrong(error, name, content, keys, says):
    assert says in error(name, content, **keys)


def test_columns_of_another_type_are_refused(error, tmp_path):
    parquet(tmp_path, image=[{"bytes": b"x"}], caption=["one"])
    assert "the column image is struct" in error("t.parquet", None)
    parquet(tmp_path, image=["a.jpg"], caption=[3])
    assert "the column caption is int64; accepted are strings and lists" in error("t.parquet", None)


@pytest.mark.parametrize(("name", "count"), [("exercises", 1_746), ("fashion", 4_000)])
def test_real_tables_beside_a_tar(shared_data, name, count):
    from training.data import read_examples
    from training.formats.source import SourceConfig

    folder = shared_data / name
    source = SourceConfig(path=str(folder / "items.parquet"), image_root=folder / "images.tar")
    examples = read_examples([source])
    assert len(examples) == count
    assert min(examples[-1].picture().size) > 10
