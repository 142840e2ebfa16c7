"""Operations of a step: by hand, by torch's counter on a real step, and as shares of a peak."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.batches import PairBatches
from training.config import AugmentConfig
from training.dvae import Dvae
from training.engine.flops import Flops, StepFlops, count_forward
from training.engine.hiding import Hider
from training.engine.run_log import LOG_FILE
from training.engine.speed import Peak, Speed, peak_of
from training.engine.stepper import Stepper
from training.engine.world import World
from training.objective import Objective
from training.tokenizer_config import DvaeConfig
from training.trainer import train

CPU = torch.device("cpu")


def transformer(tokens: int, width: int, hidden: int, depth: int) -> int:
    """Two operations per multiplication: four square matrices, the MLP, attention twice."""
    per_token = 4 * width**2 + 2 * width * hidden
    return 2 * depth * (tokens * per_token + 2 * tokens**2 * width)


def test_one_picture_and_one_caption_cost_what_they_do_by_hand(configure, model):
    one = count_forward(Objective(model, configure().objective), None)
    patches, width = 16, 32
    embedding = 2 * patches * (3 * 8 * 8) * width
    assert one.image == one.patches == embedding + transformer(1 + patches, width, 128, 2)
    for tokens in (5, 30):
        assert one.text(tokens) == pytest.approx(transformer(tokens, width, 64, 2))


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_a_step_costs_what_a_real_one_does(configure, model, preprocess, examples, recompute):
    """Within 10 %: a real one also has similarities, and no gradient of the pixels."""
    config = configure(
        "objective.language.weight=1", f"engine.activation_checkpointing={recompute}"
    )
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    first, second, *_ = made.epoch(0)
    objective = Objective(model, config.objective)
    hider = Hider(config.objective, model, preprocess, None)
    stepper = Stepper(config, objective, hider, World(0, 1, CPU), steps_per_epoch=4)
    stepper.run([first])
    with FlopCounterMode(display=False) as counter:
        stepper.run([second])
    ours, real = StepFlops(config, objective, None)([second]).total, counter.get_total_flops()
    if recompute == "true":  # does not count
        assert real > 1.1 * ours
    else:
        assert ours == pytest.approx(real, rel=0.1)


def test_a_frozen_image_tower_costs_nothing(configure, model, preprocess, examples):
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    batch = next(made.epoch(0))
    costs = []
    for frozen in ("true", "false"):
        config = configure(f"freeze_image={frozen}")
        objective = Objective(model, config.objective, freeze_image=config.freeze_image)
        costs.append(StepFlops(config, objective, None))
    frozen, whole = costs
    assert whole([batch]).total - frozen([batch]).total == 8 * 4 * whole.forward.image
    assert whole([batch, batch]) == Flops(2 * whole([batch]).networks)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A10", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_the_peak_is_known_by_the_name(name, bf16):
    peak = peak_of(name)
    assert (peak and peak.bf16) == bf16


def test_the_speed_is_logged(configure):
    config = configure("epochs=1")
    train(config)
    lines = [json.loads(line) for line in (config.output / LOG_FILE).read_text().splitlines()]
    assert all(line["speed/tflops_per_s"] > 0 for line in lines)
    assert all(line["speed/pairs_per_s"] > 0 for line in lines)
    assert not any("speed/mfu" in line for line in lines)  # nobody knows the peak of a CPU
    for line in lines:
        whole_s = line["speed/step_s"] + line["speed/wait_s"]
        assert line["speed/pairs_per_s"] == pytest.approx(8 / whole_s)


def test_waiting_counts(configure, model, preprocess, examples, monkeypatch):
    """A step of 2 s after 6 s without work does a quarter of what it could."""
    config = configure()
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    batch = next(made.epoch(0))
    hider = Hider(config.objective, model, preprocess, None)
    objective = Objective(model, config.objective)
    speed = Speed(config, Stepper(config, objective, hider, World(0, 1, CPU), steps_per_epoch=4))
    monkeypatch.setattr(speed, "_peak", Peak(bf16=1.0, tf32=1.0, fp32=1.0))
    figures = speed.figures([batch], step_s=2.0, wait_s=6.0)
    assert figures["speed/pairs_per_s"] == 1.0
    assert figures["speed/mfu"] == pytest.approx(figures["speed/tflops_per_s"])  # of one
    assert figures["speed/mfu_computing"] == pytest.approx(4 * figures["speed/mfu"])


def test_hidden_patches_cost_a_pass_a_head_and_a_tokenizer(configure, model, preprocess, examples):
    tokenizer = Dvae(DvaeConfig(vocab_size=8, grid=4, widths=[8, 8])).eval()
    made = PairBatches(examples, preprocess, AugmentConfig(), batch_size=8, seed=0)
    batch = next(made.epoch(0))
    plain = StepFlops(configure(), Objective(model, configure().objective), None)
    config = configure("objective.vision={weight: 1, tokenizer: mine, share: 0.5}")
    ours = StepFlops(config, Objective(model, config.objective, num_codes=8), tokenizer)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokenizer.labels(preprocess.normalise(batch.image), [0.5] * 3, [0.5] * 3)
    head = 2 * 32 * 8  # of each of the 8 hidden patches
    networks = plain([batch]).networks + 8 * 3 * (ours.forward.patches + 8 * head)
    assert ours([batch]) == Flops(networks, counter.get_total_flops())


def test_codes_take_the_time_of_float32_convolutions():
    peak = Peak(bf16=1000.0, tf32=500.0, fp32=50.0)
    flops = Flops(networks=2e15, tokenizer=1e15)
    assert peak.seconds(flops, "bf16") == pytest.approx(2 + 2)
    assert peak.seconds(flops, "fp32") == pytest.approx(40 + 2)
