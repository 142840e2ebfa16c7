"""Benchmarks: figures that are what was timed, and reports that say how they came about."""

import json
import time

import pytest
import torch

from cots_cli.bench_report import measure
from cots_cli.main import run


def test_measure_times_calls_after_the_warm_up():
    pauses_s = iter([0.2, 0.001, 0.001, 0.03, 0.001])
    stage = measure("pause", lambda: time.sleep(next(pauses_s)), runs=4, warm_up=1)
    assert stage.runs == 4
    assert 1.0 <= stage.min_ms <= stage.median_ms < 20 < stage.p95_ms < 200


def test_query_reports_every_stage_and_its_circumstances(tiny_checkpoint, tmp_path, capsys):
    args = ["bench", "query", "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    sizes = ["--items", "500", "--runs", "3", "--threads", "1", "--out", str(tmp_path), "--json"]
    threads = torch.get_num_threads()
    assert run(args + sizes) == 0
    assert torch.get_num_threads() == threads
    printed = json.loads(capsys.readouterr().out)
    [written] = tmp_path.glob("*-query.json")
    assert json.loads(written.read_text()) == printed
    names = [stage["name"] for stage in printed["stages"]]
    assert names == ["encode text", "decode image", "encode image", "search"]
    assert all(0 < s["min_ms"] <= s["median_ms"] <= s["p95_ms"] for s in printed["stages"])
    assert printed["parameters"]["items"] == 500
    assert printed["hardware"]["threads"] == 1
    assert printed["versions"]["torch"]


@pytest.mark.parametrize("option", [("--runs", "0"), ("--items", "0"), ("--device", "tpu")])
def test_query_refuses_values_that_mean_nothing(tiny_checkpoint, capsys, option):
    assert run(["bench", "query", "--checkpoint", str(tiny_checkpoint), *option]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
