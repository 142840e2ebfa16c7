"""The log of a run: json lines and TensorBoard curves, also after a restart."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.engine.run_log import EVENTS, LOG_FILE, RunLog


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def curve(folder, name) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / EVENTS)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def write(folder, steps, *, start: int, value: float) -> None:
    with RunLog(folder, step=start) as log:
        for step in steps:
            log.record(step, {"loss/total": value, "lr": 0.5})


def test_every_step_is_in_both(tmp_path):
    write(tmp_path, range(3), start=0, value=1.5)
    assert lines(tmp_path) == [{"step": s, "loss/total": 1.5, "lr": 0.5} for s in range(3)]
    assert curve(tmp_path, "loss/total") == [(0, 1.5), (1, 1.5), (2, 1.5)]


def test_what_is_no_number_is_left_out(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        log.record(0, {"filter/mean": float("nan"), "lr": 0.5, "loss/total": float("inf")})
    assert (tmp_path / LOG_FILE).read_text() == '{"step": 0, "lr": 0.5}\n'


def test_a_continued_log_forgets_what_is_done_again(tmp_path):
    write(tmp_path, range(5), start=0, value=1.0)
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 5, "loss')  # killed while writing
    write(tmp_path, range(3, 6), start=3, value=2.0)
    assert [(line["step"], line["loss/total"]) for line in lines(tmp_path)] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert dict(curve(tmp_path, "loss/total"))[3] == 2.0


def test_a_new_run_starts_the_log_anew(tmp_path):
    write(tmp_path, range(5), start=0, value=1.0)
    write(tmp_path, range(1), start=0, value=3.0)
    assert [line["loss/total"] for line in lines(tmp_path)] == [3.0]


def test_scores_of_an_epoch_that_is_done_again_are_there_once(tmp_path):
    """Killed after scoring, before that was saved: the next step is the same in both states."""
    for finished, scores in ((False, [0.7]), (True, [0.7])):
        write(tmp_path, range(3), start=0, value=1.0)
        with RunLog(tmp_path, step=3, epoch=0) as log:
            log.record_scores(2, 0, {"r1": 0.7})
        with RunLog(tmp_path, step=3, epoch=int(finished)) as log:
            if not finished:
                log.record_scores(2, 0, {"r1": 0.7})
        found = [line["r1"] for line in lines(tmp_path) if line.get("epoch") == 0]
        assert found == scores
        assert [value for _, value in curve(tmp_path, "r1")][-1:] == pytest.approx(scores)
        assert [step for step, _ in curve(tmp_path, "loss/total")] == [0, 1, 2]


def test_a_log_that_cannot_be_cut_stays_whole(tmp_path, monkeypatch):
    """Killed between writing the new one and renaming it."""
    write(tmp_path, range(5), start=0, value=1.0)
    before = (tmp_path / LOG_FILE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            RunLog(tmp_path, step=3)
    assert (tmp_path / LOG_FILE).read_bytes() == before
