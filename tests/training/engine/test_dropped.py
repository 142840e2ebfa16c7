"""Dropped pairs: all of them are kept, with the caption that was drawn, and shown safely."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cots_model.errors import ConfigError, CotsError, InputError
from index_builder.content import Location
from tests.training.conftest import EXACT
from tests.training.engine.test_resume import stop_at
from tests.training.engine.test_two_processes import launch
from training.dropped_page import DroppedPair, write_page
from training.engine.dropped import FILTERED, FilterReport
from training.engine.stopping import StoppedError
from training.example import Example
from training.orders import MemoryOrder
from training.sampler import Draw, PairStream
from training.trainer import train

WITH_FILTER = ("objective.filter.enabled=true", "objective.filter.num_sigmas=0.5", "epochs=4")
RUN = """
import sys
from pathlib import Path
from training.config import load_train_config
from training.engine.dropped import FilterReport
from training.trainer import train
train(load_train_config(Path(sys.argv[1])), report=FilterReport(Path(sys.argv[1] + ".html")))
"""


def lines_of(output: Path) -> list[dict]:
    paths = sorted((output / FILTERED).glob("rank-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture
def whole(configure, tmp_path):
    """An uninterrupted run, and its page."""
    config = configure(*WITH_FILTER, f"output={tmp_path / 'whole'}")
    train(config, report=FilterReport(tmp_path / "whole.html"))
    return config, tmp_path / "whole.html"


def test_every_dropped_pair_is_kept_with_its_figures(whole):
    config, _ = whole
    lines = lines_of(config.output)
    log = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    for figures in log:
        dropped = [line for line in lines if line["step"] == figures["step"]]
        assert len(dropped) == round((1 - figures["filter/kept"]) * 8)
        for line in dropped:
            assert line["similarity"] <= line["threshold"] == figures["filter/threshold"]
            assert (line["mean"], line["std"]) == (figures["filter/mean"], figures["filter/std"])
    assert 8 < len(lines) < 100
    assert min(line["step"] for line in lines) == 2  # the queue of 12 is full after two batches


def test_the_caption_is_the_one_that_was_drawn(whole, examples):
    config, _ = whole
    stream = PairStream(MemoryOrder(examples), batch_size=8, seed=config.seed)
    drawn = [step.draws for epoch in range(4) for step in stream.epoch(epoch)]
    lines = lines_of(config.output)
    for line in lines:
        [draw] = [draw for draw in drawn[line["step"]] if draw.number == line["number"]]
        assert (line["caption"], line["id"]) == (draw.caption, draw.example.id)
    assert len({line["caption"].startswith("a ") for line in lines}) == 2  # of both captions


@pytest.mark.parametrize("step", [3, 6, 10])
def test_a_stopped_run_ends_with_the_same_page(configure, whole, monkeypatch, tmp_path, step):
    config = configure(*WITH_FILTER)
    report = FilterReport(tmp_path / "page.html")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(StoppedError):
            train(config, report=report)
    assert max(line["step"] for line in lines_of(config.output)) <= step
    assert report.path.read_text().count("<li>") > 0
    train(config, report=report)
    assert lines_of(config.output) == lines_of(whole[0].output)
    assert report.path.read_bytes() == whole[1].read_bytes()


def test_what_a_killed_run_does_again_is_listed_once(configure, whole, monkeypatch, tmp_path):
    """A crash between two states: the lines behind the last state come twice, the last is half."""
    config = configure(*WITH_FILTER, "engine.save_every=3")
    report = FilterReport(tmp_path / "page.html")
    with monkeypatch.context() as patch:
        patch.setattr("training.engine.run.Run._finish_epoch", lambda *_, **_keys: None)
        patch.setattr("training.engine.states.StateFolder._remove_old", lambda _: None)
        train(config, report=report)
    for path in (config.output / "states").glob("*"):
        if not 0 < int(path.name[6:15]) <= 3:
            path.unlink()
    with (config.output / FILTERED / "rank-000.jsonl").open("a") as file:
        file.write('{"step": 99, "cap')
    train(config, report=report)
    assert lines_of(config.output) == lines_of(whole[0].output)


@pytest.mark.slow
def test_two_processes_list_what_one_does(configure, model_yaml, tmp_path):
    values = yaml.safe_load(model_yaml.read_text())
    values["model"]["text"]["options"] |= EXACT
    exact = tmp_path / "exact.yaml"
    exact.write_text(yaml.safe_dump(values))
    found = []
    for size in (1, 2):
        config = configure(
            f"model={exact}",
            *WITH_FILTER,
            "optimiser.lr=1e-4",
            f"batch_size={8 // size}",
            f"output={tmp_path / str(size)}",
        )
        path = tmp_path / f"{size}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        launch(path, size, RUN)
        assert len(list((config.output / FILTERED).glob("rank-*"))) == size
        lines = lines_of(config.output)
        found.append({(line["step"], line["number"], line["caption"]) for line in lines})
        page = (tmp_path / f"{size}.yaml.html").read_text()
        assert page.count("<li>") == len({key[1:] for key in found[-1]})
    assert found[0] == found[1]


def test_a_report_needs_the_filter(configure, tmp_path):
    report = FilterReport(tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"filter is off .* set objective\.filter\.enabled=true"):
        train(configure(), report=report)
    assert not report.path.exists()


def test_a_report_that_cannot_be_written_is_refused_at_once(configure, tmp_path):
    (tmp_path / "file").write_text("")
    report = FilterReport(tmp_path / "file" / "page.html")
    with pytest.raises(InputError, match="give --report-filtered another file"):
        train(configure(*WITH_FILTER), report=report)


def test_a_page_that_fails_ends_no_training(configure, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.engine.dropped.write_page", full)
    config = configure(*WITH_FILTER)
    with pytest.raises(CotsError, match=r"page\.html could not be written"):
        train(config, report=FilterReport(tmp_path / "page.html"))
    assert caplog.text.count("could not be written") == 4
    assert (config.output / "config.json").is_file()


# The page by itself.


def pair_of(path: Path, number: int = 0, caption: str = "a dog", **figures: float) -> DroppedPair:
    example = Example(path.name, Location(str(path)), (caption, "another"))
    values = {"step": 5, "similarity": 0.1, "mean": 0.5, "std": 0.1, "threshold": 0.3} | figures
    return DroppedPair.of(Draw(example, caption, number, (0,)), **values)


def page_of(pairs: list[DroppedPair], folder: Path, limit: int = 200, num_seen: int = 80) -> str:
    path = folder / "page.html"
    write_page(
        path,
        lambda: iter(pairs),
        name="a<run>",
        num_sigmas=2,
        num_seen=num_seen,
        num_watched=40,
        queue_length=12,
        limit=limit,
    )
    return path.read_text("utf-8")


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "wide.png"
    Image.new("RGB", (1200, 300), "red").save(path)
    return path


def test_the_page_holds_small_pictures(picture, tmp_path):
    page = page_of([pair_of(picture)], tmp_path)
    [encoded] = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    img = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert (img.format, img.size) == ("JPEG", (240, 60))
    assert img.getpixel((9, 9))[0] > 240


def test_the_page_needs_nothing_from_elsewhere(picture, tmp_path):
    page = page_of([pair_of(picture)], tmp_path)
    assert not re.search(r"https?:|//[a-z]|<link|<script|url\(|@import", page)
    assert "default-src 'none'; img-src data:" in page
    assert 'name="viewport"' in page


def test_the_page_escapes_what_others_wrote(tmp_path):
    path = tmp_path / '"><img src=x onerror=alert(1)>.png'
    Image.new("RGB", (8, 8)).save(path)
    caption = "<script>alert('x')</script> & \udcff"
    page = page_of([pair_of(path, caption=caption)], tmp_path)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; ?" in page
    assert "a&lt;run&gt;" in page


def test_the_page_shows_the_newest_different_pairs(picture, tmp_path):
    pairs = [pair_of(picture, n % 7, f"caption {n % 7}", step=n // 2) for n in range(20)]
    page = page_of(pairs, tmp_path, limit=3)
    assert re.findall(r"caption (\d)", page) == ["4", "5", "3"]  # 18 and 19, then 17
    assert "Of 40 pairs 20 (50.0%) were dropped up to step 9; here are the newest 3" in page
    assert "step 9, 3 times so far" in page


def test_the_page_lists_a_step_lowest_first(picture, tmp_path):
    pairs = [pair_of(picture, n, similarity=s) for n, s in enumerate((0.2, -0.4, 0.1))]
    assert re.findall(r"<b>(.*?)</b>", page_of(pairs, tmp_path)) == ["-0.4000", "0.1000", "0.2000"]


def test_the_page_does_without_pictures_that_are_gone(picture, tmp_path):
    page = page_of([pair_of(tmp_path / "gone.png"), pair_of(picture, 1)], tmp_path)
    assert "cannot be read: missing" in page
    assert page.count("<img ") == 1


def test_the_page_says_that_there_is_nothing(tmp_path):
    assert "Of 40 pairs none was dropped so far" in page_of([], tmp_path)
    waiting = page_of([], tmp_path, num_seen=7)
    assert "of the queue's 12 places 7 are filled" in waiting
