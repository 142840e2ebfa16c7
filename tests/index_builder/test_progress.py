"""Progress as events, log lines and calls."""

import io
import json
import logging

from index_builder.progress import BarProgress, JsonProgress, LogProgress, Progress, as_progress


def test_progress_leaves_what_was_continued_out_of_the_rate(monkeypatch):
    now_s = iter([0.0] * 2 + [2.0] * 100)
    monkeypatch.setattr("time.monotonic", lambda: next(now_s))
    progress = Progress()
    progress.advance(90, continued=True)
    progress.advance(10)
    assert progress.eta_s is None  # the source is still being listed
    progress.set_total(200)
    assert progress.done == 100
    assert (progress.per_s, progress.eta_s) == (5, 20)
    fresh = Progress()
    fresh.advance(5, continued=True)
    fresh.set_total(10)
    assert fresh.eta_s is None


def test_json_progress_writes_one_event_a_line():
    stream = io.StringIO()
    progress = JsonProgress(stream, interval_s=0)
    progress.advance()
    progress.set_total(3)
    progress.advance(2)
    progress.enter("join")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(e["event"], e["stage"], e["done"], e["total"]) for e in events] == [
        ("progress", "embed", 1, None),
        ("progress", "embed", 3, 3),
        ("progress", "join", 3, 3),
    ]
    assert events[0]["eta_s"] is None
    assert events[1]["eta_s"] == 0
    assert events[1]["per_s"] > 0


def test_progress_is_shown_only_so_often():
    stream = io.StringIO()
    progress = JsonProgress(stream, interval_s=1000)
    for _ in range(100):
        progress.advance()
    assert stream.getvalue() == ""


def test_log_progress_writes_lines_at_info(caplog):
    caplog.set_level(logging.INFO)
    progress = LogProgress(interval_s=0)
    progress.set_total(1234)
    progress.advance(1000)
    assert "embed: 1,000 of 1,234" in caplog.text
    assert "s to go" in caplog.text


def test_bar_progress_counts_and_ends():
    stream = io.StringIO()
    bar = BarProgress(stream, "pictures")
    bar.set_total(10)
    bar.advance(4, continued=True)
    for _ in range(6):
        bar.advance()
    bar.enter("join")
    bar.close()
    assert "10/10" in stream.getvalue()
    assert "pictures" in stream.getvalue()
    assert "join" in stream.getvalue()


def test_a_stage_with_a_total_counts_its_own_entries():
    events, drawn = io.StringIO(), io.StringIO()
    bar, progress = BarProgress(drawn, "pictures"), JsonProgress(events, interval_s=0)
    for one in (bar, progress):
        one.set_total(10)
        one.advance(4, continued=True)
        one.advance(6)
        one.enter("index", total=9)
        one.advance(5)
    bar.close()
    event = json.loads(events.getvalue().splitlines()[-1])
    assert (event["stage"], event["done"], event["total"]) == ("index", 5, 9)
    assert "5/9" in drawn.getvalue()


def test_a_function_is_a_progress_of_the_entries():
    calls = []
    progress = as_progress(calls.append)
    progress.advance(3)
    progress.advance(2, continued=True)
    progress.enter("index", total=5)
    progress.advance(5)
    assert calls == [3, 2]
