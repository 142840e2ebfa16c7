"""`cots bench train`: where a training step's time goes."""

import json

import pytest

from cots_cli.main import run


def test_train_reports_where_a_step_goes(configure, tmp_path, capsys):
    config = configure("objective.task.weight=1", "objective.language.weight=1")
    args = ["bench", "train", "--config", str(tmp_path / "run.yaml"), "--runs", "2", "--json"]
    assert run([*args, "objective.task.weight=1", "objective.language.weight=1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    ms = {stage["name"]: stage["median_ms"] for stage in printed["stages"]}
    parts = sum(ms.values()) - ms["encoders alone"]
    figures = printed["figures"]
    assert 0.2 < (parts + figures["loading_ms"]) / figures["step_ms"] < 5  # a busy machine
    assert figures["pairs_per_s"] == pytest.approx(8000 / figures["step_ms"], rel=0.01)
    assert min(ms["encoders alone"], ms["keys"], ms["forward"], ms["backward"]) > 0
    assert 0 < figures["of_encoders_alone"] < 3
    assert figures["tflops_per_s"] > 0
    assert not config.output.exists()


def test_train_refuses_a_frozen_tower(configure, tmp_path, capsys):
    configure()
    args = ["bench", "train", "--config", str(tmp_path / "run.yaml"), "freeze_image=true"]
    assert run(args) == 2
    assert "freeze_image=false" in capsys.readouterr().err
