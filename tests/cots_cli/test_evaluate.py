"""`cots evaluate` as people type it."""

import json
import shutil
from dataclasses import asdict

import pytest

from cots_model.encoder import Encoder
from tests.cots_cli.conftest import save_noise
from training.cutoffs import KEPT_PERCENT
from training.data import read_examples
from training.evaluate import embed, format_metrics


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven pictures with one to three captions each."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(7):
        save_noise(folder / f"{number}.png", number)
        captions = [f"caption {letter} of {number}" for letter in "abc"[: 1 + number % 3]]
        (folder / f"{number}.json").write_text(json.dumps({"captions": captions}))
    return folder


@pytest.fixture
def expected(photos, tiny_checkpoint):
    return embed(
        Encoder.load(tiny_checkpoint, device="cpu"), read_examples([str(photos)])
    ).metrics()


def test_evaluate_prints_json(cots, photos, tiny_checkpoint, expected):
    status, out, err = cots(
        "evaluate", "--data", photos, "--checkpoint", tiny_checkpoint, "--device", "cpu", "--json"
    )
    assert (status, err) == (0, "")
    assert json.loads(out) == asdict(expected)
    assert json.loads(out)["text_to_image"]["num_queries"] == 1 + 2 + 3 + 1 + 2 + 3 + 1
    assert json.loads(out)["image_to_text"]["num_queries"] == 7


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluate_prints_the_same_table_for_any_batch(
    cots, photos, tiny_checkpoint, expected, batch_size
):
    status, out, _ = cots(
        "evaluate", "--data", photos, "--checkpoint", tiny_checkpoint, "--batch-size", batch_size
    )
    assert status == 0
    assert out == format_metrics(expected) + "\n"


def test_evaluate_prints_what_a_lowest_score_keeps(cots, photos, tiny_checkpoint, expected):
    arguments = ["--data", photos, "--checkpoint", tiny_checkpoint, "--cutoffs"]
    status, table, _ = cots("evaluate", *arguments)
    assert status == 0
    told = json.loads(cots("evaluate", *arguments, "--json")[1])
    cutoffs = told.pop("cutoffs")
    assert told == asdict(expected)
    pairs = zip(cutoffs["min_score"], KEPT_PERCENT, strict=True)
    assert all(one["right_percent"] >= kept for one, kept in pairs)
    tables = table.removeprefix(format_metrics(expected)).strip().split("\n\n")
    for printed, kind in zip(tables, ("min_score", "share_of_best"), strict=True):
        for line, one in zip(printed.split("\n")[1:], cutoffs[kind], strict=True):
            lowest, right, _, others, _ = line.split()
            assert 0 <= one["lowest"] - float(lowest) < 0.001 + 1e-9  # rounded down
            assert float(right) == pytest.approx(one["right_percent"], abs=0.005)
            assert float(others) == pytest.approx(one["others_percent"], abs=0.005)


def test_evaluate_takes_several_sources(cots, photos, tiny_checkpoint):
    arguments = ["--data", photos, "--data", photos, "--checkpoint", tiny_checkpoint, "--json"]
    status, out, _ = cots("evaluate", *arguments)
    assert status == 0
    assert json.loads(out)["image_to_text"]["num_queries"] == 14


def test_evaluate_asks_a_shared_text_once(cots, tiny_checkpoint, tmp_path):
    for number in range(5):
        save_noise(tmp_path / f"{number}.png", number)
        text = "a cat\na pet" if number < 4 else "a train"
        (tmp_path / f"{number}.json").write_text(json.dumps({"captions": text.split("\n")}))
    arguments = ["--data", tmp_path, "--checkpoint", tiny_checkpoint, "--json"]
    apart, shared = (
        json.loads(cots("evaluate", *arguments, *more)[1]) for more in ([], ["--share-texts"])
    )
    assert apart["text_to_image"]["num_queries"] == 9
    assert shared["text_to_image"]["num_queries"] == 3
    assert shared["text_to_image"]["r5"] == shared["image_to_text"]["r5"] == 100
    assert apart["text_to_image"]["r1"] <= 100 * 3 / 9 + 1e-9  # one of four is first


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_evaluate_computes_as_asked(cots, photos, tiny_checkpoint, monkeypatch, precision):
    asked = []
    load = Encoder.load
    monkeypatch.setattr(
        Encoder, "load", lambda source, **how: asked.append(how["precision"]) or load(source, **how)
    )
    arguments = ["--data", photos, "--checkpoint", tiny_checkpoint, "--precision", precision]
    assert cots("evaluate", *arguments)[0] == 0
    assert asked == [precision]


def test_evaluate_reads_karpathy_files(cots, photos, tiny_checkpoint, tmp_path):
    entries = [
        {"filename": f"{n}.png", "split": split, "sentences": [{"raw": f"caption {n}"}]}
        for n, split in enumerate(["train", "test", "test", "val"])
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": entries}))
    fixed = ["evaluate", "--data", path, "--checkpoint", tiny_checkpoint, "--json"]
    status, out, _ = cots(*fixed, "--image-root", photos, "--split", "test")
    assert status == 0
    assert json.loads(out)["image_to_text"]["num_queries"] == 2
    status, _, err = cots(*fixed, "--split", "test")
    assert status == 2
    assert "image_root: ...}, or --image-root" in err
    status, _, err = cots(*fixed, "--image-root", photos)
    assert status == 2
    assert "holds the splits test (2), train (1), val (1); say which is meant" in err
    assert "--split test" in err


def test_evaluate_takes_sources_as_mappings(cots, photos, tiny_checkpoint, tmp_path):
    path = tmp_path / "captions.csv"
    path.write_text("file,words\n0.png,one\n1.png,two\n0.png,three\n")
    source = f"{{path: {path}, image_root: {photos}, image_column: file, caption_column: words}}"
    fixed = ["evaluate", "--checkpoint", tiny_checkpoint, "--json"]
    status, out, err = cots(*fixed, "--data", source)
    assert (status, err) == (0, "")
    assert json.loads(out)["text_to_image"]["num_queries"] == 3
    assert json.loads(out)["image_to_text"]["num_queries"] == 2
    status, _, err = cots(*fixed, "--data", source.replace("image_column", "img_column"))
    assert status == 2
    assert "unknown key img_column; did you mean image_column" in err
    status, _, err = cots(*fixed, "--data", path, "--image-root", photos, "--split", "test")
    assert status == 2
    assert "no source has a split 'test'" in err


def test_evaluate_leaves_out_as_many_as_it_may(cots, photos, tiny_checkpoint, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(photos, folder)
    (folder / "2.png").write_bytes(b"no picture")  # of three captions
    fixed = ["evaluate", "--data", folder, "--checkpoint", tiny_checkpoint, "--json"]
    status, out, err = cots(*fixed, "--max-broken", "0.2")
    assert status == 0
    assert json.loads(out)["image_to_text"]["num_queries"] == 6
    assert json.loads(out)["text_to_image"]["num_queries"] == 10
    assert "evaluation: 1 of 7 pictures left out (unsupported_format 1)" in err
    status, out, err = cots(*fixed, "--max-broken", "0.1")
    assert (status, out) == (2, "")
    assert "1 of 7 pictures are broken, unsupported_format 1, over the 10.0% allowed" in err


def test_evaluate_refuses_when_nothing_is_left(cots, tiny_checkpoint, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.txt").write_text("a dog")
    fixed = ["evaluate", "--data", tmp_path, "--checkpoint", tiny_checkpoint]
    status, _, err = cots(*fixed, "--max-broken", "1")
    assert status == 2
    assert "no picture is left to score" in err


def test_evaluate_scores_videos(cots, tiny_checkpoint, tmp_path):
    from tests.cots_model.test_videos import write_clip

    entries = []
    for count in (2, 5, 40):
        write_clip(tmp_path / f"{count}.mp4", count)
        entries.append({"video": f"{count}.mp4", "caption": [f"{count} frames", "a clip"]})
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    fixed = ["evaluate", "--data", tmp_path / "captions.json", "--checkpoint", tiny_checkpoint]
    status, out, err = cots(*fixed, "--image-root", tmp_path, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["text_to_image"]["num_queries"] == 6


def test_evaluate_names_a_bad_picture(cots, photos, tiny_checkpoint, tmp_path):
    (tmp_path / "bad.png").write_bytes((photos / "0.png").read_bytes()[:200])
    (tmp_path / "bad.txt").write_text("a dog")
    status, out, err = cots("evaluate", "--data", tmp_path, "--checkpoint", tiny_checkpoint)
    assert (status, out) == (2, "")
    assert "picture bad.png in " in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "nowhere.tar"], "nowhere.tar is not there"),
        (["--checkpoint", "nowhere"], "no checkpoint 'nowhere'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--batch-size", "0"], "--batch-size"),
        (["--image-root", "nowhere"], "--image-root"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_evaluate_refuses_bad_input(cots, photos, tiny_checkpoint, arguments, says):
    fixed = ["--checkpoint", tiny_checkpoint, "--data", photos]
    status, out, err = cots("evaluate", *fixed, *arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_evaluate_needs_data(cots):
    status, _, err = cots("evaluate")
    assert status == 2
    assert "--data" in err
