"""How the levels come together in a step: their sum, and what one side tells the other."""

import pytest
import torch

from cots_model.image_tower import ImageTower
from cots_model.text_tower import TextTower
from training.dvae import Dvae, DvaeConfig
from training.engine.world import World
from training.tokenizer_source import save_dvae
from training.trainer import make_batches, make_model, make_stepper


@pytest.fixture
def start(configure, examples, tmp_path):
    """The stepper of a run with these losses, and its batches."""
    dvae = Dvae(DvaeConfig(vocab_size=16, grid=4, widths=(8,), num_blocks=0, code_dim=8))
    save_dvae(dvae, tmp_path / "tokenizer")

    def make(**weights):
        tokens = {"tokenizer": str(tmp_path / "tokenizer"), "min_block": 2}
        objective = {"instance": {"queue_length": 12}, "vision": tokens}
        for level, weight in weights.items():
            objective.setdefault(level, {})["weight"] = weight
        config, world = configure(objective=objective), World(0, 1, torch.device("cpu"))
        model, preprocess = make_model(config)
        batches = make_batches(config, examples, None, None, preprocess, world)
        stepper = make_stepper(config, model, preprocess, world, len(batches))
        return stepper, list(batches.epoch(0))

    return make


def test_the_total_is_the_weighted_sum_of_all_losses(start):
    stepper, batches = start(instance=2, task=3, vision=5, language=7)
    weights = {"image_to_text": 2, "text_to_image": 2, "task": 3, "vision": 5, "language": 7}
    for batch in batches[:3]:
        losses = stepper.run([batch]).losses
        expected = sum(weight * losses[name] for name, weight in weights.items())
        assert losses["total"] == pytest.approx(expected, rel=1e-5)
    assert losses.keys() == {*weights, "total"}
    assert all(losses[name] > 0 for name in weights)


def test_the_papers_sum_has_no_weights(start):
    stepper, batches = start(instance=1, task=1, vision=1, language=1)
    for batch in batches[:2]:
        losses = stepper.run([batch]).losses
    assert losses["total"] == pytest.approx(sum(losses.values()) / 2, rel=1e-5)


@pytest.mark.parametrize("level", ["vision", "language"])
def test_a_hidden_token_is_told_the_other_sides_feature_with_nothing_hidden(
    start, monkeypatch, level
):
    """It is the very feature of the online encoder that contrast takes, with its gradient."""
    kind = TextTower if level == "vision" else ImageTower
    feature, seen, told = kind.feature, [], []

    def record(self, *inputs):
        found = feature(self, *inputs)
        seen.append((self, inputs[0], found))
        return found

    monkeypatch.setattr(kind, "feature", record)
    stepper, batches = start(instance=0, **{level: 1})
    head = getattr(stepper.objective, f"{level}_head")
    head.register_forward_pre_hook(lambda _head, inputs: told.append(inputs[1]))
    stepper.run([batches[0]])

    model, batch = stepper.objective.model, batches[0].to(torch.device("cpu"))
    other, plain = (model.text, batch.tok_BL) if level == "vision" else (model.image, batch.image)
    [(_, given, found)] = [call for call in seen if call[0] is other]
    assert torch.equal(given, plain)
    [told_MG] = told
    assert told_MG.requires_grad
    assert {tuple(row) for row in told_MG.tolist()} <= {tuple(row) for row in found.tolist()}
    trained = [p for p in other.parameters() if p.grad is not None and p.grad.any()]
    assert trained
    projection = model.text_projection if level == "vision" else model.image_projection
    assert not any(p.grad is not None and p.grad.any() for p in projection.parameters())
