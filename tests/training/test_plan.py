"""What a run needs, counted before it starts."""

import json

import pytest
import torch

from cots_cli.main import run
from training.engine.speed import peak_of
from training.plan import make_plan

FULL = ("objective.task.weight=1", "objective.language.weight=1", "precision=fp32")


def weights_bytes(config) -> int:
    from cots_model.config import load_config
    from cots_model.model import CotsModel

    return sum(p.numel() * 4 for p in CotsModel(load_config(config.model).model).parameters())


def test_memory_has_the_five_copies_of_the_weights_and_grows_with_the_batch(configure):
    config = configure(*FULL)
    plan = make_plan(config)
    copies = plan.fixed_bytes / weights_bytes(config)
    assert 5 <= copies < 7  # weights, gradient, two averages, momentum copy; a head, queues
    assert plan.memory_bytes(8) - plan.memory_bytes(4) == pytest.approx(4 * plan.pair_bytes)
    assert plan.pair_bytes > 0


def test_longer_captions_and_recomputed_blocks_change_what_a_pair_takes(configure):
    short, long = (make_plan(configure(*FULL), num_tokens=n) for n in (6, 30))
    assert long.pair_bytes > short.pair_bytes
    assert long.pair_flops > short.pair_flops
    saved = make_plan(configure(*FULL, "engine.activation_checkpointing=true"), num_tokens=30)
    assert saved.pair_bytes < long.pair_bytes
    assert saved.pair_flops == long.pair_flops


def test_time_follows_from_the_operations(configure):
    plan, peak = make_plan(configure(*FULL)), peak_of("NVIDIA H100 80GB HBM3")
    seconds = plan.seconds(1000, peak=peak, devices=2, mfu=0.5)
    assert seconds == pytest.approx(1000 * plan.pair_flops / (2 * 0.5 * peak.fp32 * 1e12))


def test_the_command_prints_figures(configure, tmp_path, capsys):
    configure()
    args = ["train", "plan", "--config", str(tmp_path / "run.yaml"), "--pairs", "4e6"]
    assert run([*args, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert min(figures.values()) >= 0
    assert figures["gib"] >= figures["gib_fixed"] > 0
    assert run(args) == 0
    assert "memory of each process" in capsys.readouterr().out
    assert run([*args, "--gpu", "GTX 970"]) == 2
    assert "use A100, H100, H200 or L40S" in capsys.readouterr().err


def test_planning_changes_nothing_outside(configure):
    state = torch.get_rng_state()
    config = configure()
    make_plan(config)
    assert not config.output.exists()
    assert torch.equal(torch.get_rng_state(), state)
