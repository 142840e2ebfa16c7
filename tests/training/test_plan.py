"""What a run needs, counted before it starts."""

import json

import pytest
import torch

from cots_cli.main import run
from cots_model.errors import ConfigError
from training.dvae import Dvae, DvaeConfig
from training.engine.speed import peak_of
from training.plan import _CountedSteps, make_plan
from training.tokenizer_source import save_dvae

FULL = ("objective.task.weight=1", "objective.language.weight=1", "precision=fp32")


def weights_bytes(config) -> int:
    from cots_model.config import load_config
    from cots_model.model import CotsModel

    return sum(p.numel() * 4 for p in CotsModel(load_config(config.model).model).parameters())


def test_memory_has_the_copies_of_the_weights_and_grows_with_the_batch(configure):
    config = configure(*FULL)
    plan = make_plan(config)
    assert plan.memory_bytes(0) >= 5 * weights_bytes(config)  # gradient, averages, momentum copy
    assert plan.memory_bytes(64) > plan.memory_bytes(8) > plan.memory_bytes(0)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_memory_of_a_large_batch_is_what_is_counted_with_it(configure, recompute):
    config = configure(*FULL, f"engine.activation_checkpointing={str(recompute).lower()}")
    counted = max(_CountedSteps(config, num_tokens=16, num_frames=1).trace(64))
    assert make_plan(config).memory_bytes(64) == pytest.approx(counted, rel=0.01)


def test_captions_frames_and_recomputed_blocks_change_what_a_pair_takes(configure):
    short, long = (make_plan(configure(*FULL), num_tokens=n) for n in (6, 30))
    assert long.memory_bytes(64) > short.memory_bytes(64)
    assert long.pair_flops.total > short.pair_flops.total
    saved = make_plan(configure(*FULL, "engine.activation_checkpointing=true"), num_tokens=30)
    assert saved.memory_bytes(64) < long.memory_bytes(64)
    assert saved.pair_flops == long.pair_flops
    videos = make_plan(configure(*FULL), num_tokens=30, num_frames=4)
    assert videos.memory_bytes(64) > 1.5 * long.memory_bytes(64)
    assert videos.pair_flops.total > 1.5 * long.pair_flops.total


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze_image=true"], "freeze_image=false"),
        (
            ["objective.vision.weight=1", "objective.vision.tokenizer=runs/none"],
            "make it with `cots train tokenizer`",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(configure, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(configure(*overrides))


def test_codes_are_planned_and_must_fit_the_patches(configure, tmp_path):
    """A wide tokenizer takes more at once than anything else of the tiny model."""
    torch.manual_seed(0)
    run = (*FULL, "objective.vision.weight=1", f"objective.vision.tokenizer={tmp_path / 'codes'}")
    save_dvae(Dvae(DvaeConfig(vocab_size=8, grid=4, widths=[8, 8])), tmp_path / "codes")
    small = make_plan(configure(*run))
    save_dvae(Dvae(DvaeConfig(vocab_size=8, grid=4, widths=[4096, 8])), tmp_path / "codes")
    wide = make_plan(configure(*run))
    activation = 64 * 4096 * 8 * 8 * 4  # 64 pictures at a time, the first convolution's output
    assert wide.memory_bytes(64) > activation
    assert wide.memory_bytes(64) > 2 * small.memory_bytes(64)
    pixels = 3 * 32 * 32 * 4  # more pairs take no more, but for their pixels
    assert any(fixed > activation and pair < 3 * pixels for fixed, pair in wide.lines)
    assert wide.pair_flops.tokenizer > small.pair_flops.tokenizer > 0
    save_dvae(Dvae(DvaeConfig(vocab_size=8, grid=2, widths=[8, 8])), tmp_path / "codes")
    with pytest.raises(ConfigError, match=r"2 x 2 codes .* 4 x 4 patches"):
        make_plan(configure(*run))


def test_accumulated_batches_wait_in_memory(configure):
    one, four = (make_plan(configure(*FULL, f"accumulate={n}")) for n in (1, 4))
    assert four.memory_bytes(64) - one.memory_bytes(64) == pytest.approx(3 * 64 * 3 * 32 * 32 * 4)


def test_time_follows_from_the_operations(configure):
    plan, peak = make_plan(configure(*FULL)), peak_of("NVIDIA H100 80GB HBM3")
    seconds = plan.seconds(1000, peak=peak, devices=2, mfu=0.5)
    assert seconds == pytest.approx(1000 * plan.pair_flops.total / (2 * 0.5 * peak.fp32 * 1e12))


def test_the_command_prints_figures(configure, tmp_path, capsys):
    configure()
    args = ["train", "plan", "--config", str(tmp_path / "run.yaml"), "--pairs", "4e6"]
    assert run([*args, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert min(figures.values()) >= 0
    assert figures["gib_twice_the_batch"] >= figures["gib"] > 0
    assert run(args) == 0
    printed = capsys.readouterr()
    assert "memory of each process" in printed.out
    assert "counting two small steps" in printed.err
    assert run([*args[:-1], "-3"]) == 2
    assert "range" in capsys.readouterr().err
    assert run([*args, "--gpu", "GTX 970"]) == 2
    assert "use A100, H100, H200 or L40S" in capsys.readouterr().err


def test_planning_changes_nothing_outside(configure):
    torch.manual_seed(3)
    expected = torch.rand(8)
    torch.manual_seed(3)
    config = configure()
    make_plan(config)
    assert not config.output.exists()
    assert torch.equal(torch.rand(8), expected)
