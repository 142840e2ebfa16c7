"""Closed-form projections: the closed form is right, weights count, and it finds pictures."""

import copy
import dataclasses

import pytest
import torch
import yaml

from cots_model.checkpoint import CONFIG_FILE
from cots_model.encoder import Encoder
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from tests.training.conftest import assert_equal_states
from training import regression
from training.caption_features import CaptionFeatures
from training.config import AugmentConfig, RegressionConfig
from training.data import read_examples
from training.engine.same_run import write_run
from training.evaluate import embed
from training.feature_cache import FeatureCache, cached_features
from training.regression import (
    fit_projections,
    nearest_turn,
    principal_directions,
    ridge_regression,
)
from training.trainer import train

FROZEN = ("freeze_image=true", "batch_size=8", "epochs=1")


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_RD = torch.randn(40, 6, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.0, 5.0, 0.1, 1.0, 1.0, 30.0]
    ) + torch.arange(6)
    y_RE = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    weight_R = torch.randint(1, 4, (40,), generator=generator).double()
    return x_RD, y_RE, weight_R


@pytest.fixture
def cache(model, preprocess, examples, tmp_path) -> FeatureCache:
    augment = AugmentConfig(num_views=2)
    return cached_features(examples, model.image, preprocess, augment, folder=tmp_path, seed=0)


def fit(model, preprocess, examples, cache, **keys) -> CotsModel:
    fit_projections(model, preprocess, examples, cache, RegressionConfig(**keys), bf16=False)
    return model


def test_a_share_of_the_closed_form_is_mixed_in(model, preprocess, examples, cache):
    """Turned as a whole, both projections alike: its similarities stay."""
    learned, fitted = copy.deepcopy(model), fit(copy.deepcopy(model), preprocess, examples, cache)
    fit_projections(model, preprocess, examples, cache, RegressionConfig(), bf16=False, share=0.25)
    parts = ("text_projection", "image_projection")
    matrix_RE, target_RE = (
        torch.cat([m.get_submodule(part).weight.detach().T for part in parts])
        for m in (fitted, learned)
    )
    turn_EE = nearest_turn(matrix_RE, target_RE)
    for part in parts:
        mixed, ours, theirs = (m.get_submodule(part) for m in (model, learned, fitted))
        weight, bias = turn_EE.T @ theirs.weight, turn_EE.T @ theirs.bias
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(mixed.weight, 0.75 * ours.weight + 0.25 * weight, **close)
        torch.testing.assert_close(mixed.bias, 0.75 * ours.bias + 0.25 * bias, **close)


def test_the_nearest_turn_undoes_one():
    rng = torch.Generator().manual_seed(0)
    matrix_RE = torch.randn(30, 5, generator=rng, dtype=torch.float64)
    turn_EE = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=torch.float64))[0]
    torch.testing.assert_close(nearest_turn(matrix_RE, matrix_RE @ turn_EE), turn_EE)
    other_RE = torch.randn(30, 5, generator=rng, dtype=torch.float64)
    found_EE = nearest_turn(matrix_RE, other_RE)
    torch.testing.assert_close(found_EE @ found_EE.T, torch.eye(5, dtype=torch.float64))
    gap = (matrix_RE @ found_EE - other_RE).norm()
    for _ in range(50):
        turn_EE = torch.linalg.qr(torch.randn(5, 5, generator=rng, dtype=torch.float64))[0]
        assert gap <= (matrix_RE @ turn_EE - other_RE).norm()


def test_a_mixture_does_not_depend_on_the_signs_of_the_directions(
    model, preprocess, examples, cache, monkeypatch
):
    """Another device may find them the other way round."""
    other = copy.deepcopy(model)
    config = RegressionConfig()
    fit_projections(model, preprocess, examples, cache, config, bf16=False, share=0.5)
    found = regression.principal_directions

    def flipped(*args, **kwargs):
        matrix_DE, mean_D = found(*args, **kwargs)
        return matrix_DE * (1 - 2 * (torch.arange(matrix_DE.shape[1]) % 2)), mean_D

    monkeypatch.setattr(regression, "principal_directions", flipped)
    fit_projections(other, preprocess, examples, cache, config, bf16=False, share=0.5)
    for ours, theirs in zip(weights_of(other), weights_of(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_frozen_towers_train_the_projections_alone(configure, tmp_path):
    overrides = (*FROZEN, "freeze_text=true", "regression={when: both, share: 0.5}", "epochs=3")
    started = configure(*FROZEN, "regression.when=last", "epochs=0", f"output={tmp_path / 'start'}")
    train(started)
    config = configure(*overrides)
    result = train(config)
    before, after = (
        CotsModel.from_pretrained(folder).state_dict() for folder in (started.output, config.output)
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {
        f"{side}_projection.{part}" for side in ("image", "text") for part in ("weight", "bias")
    }
    assert result.wall_s > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["freeze_text=true", "objective.language.weight=1"], "freeze_text keeps it as it is"),
        (["freeze_text=true", "data.stream=true"], "not known before"),
        (["freeze_image=true", "regression={when: both, share: 0.5}"], "freeze_text=true"),
    ],
)
def test_runs_with_a_frozen_text_tower_that_make_no_sense_are_refused(
    configure, overrides, message
):
    with pytest.raises(ConfigError, match=message):
        configure(*overrides)


def test_a_caption_is_embedded_as_the_text_tower_does(model, preprocess):
    texts = ["red on blue", "a green and white man", "red on blue"]
    features = CaptionFeatures.embed(model.train(), preprocess, texts, bf16=False)
    assert model.text.training
    with torch.no_grad():
        expected_BD = model.eval().text.feature(*preprocess.text(texts))
    torch.testing.assert_close(features.get(texts), expected_BD, rtol=1e-5, atol=1e-5)


def weights_of(model) -> list[torch.Tensor]:
    layers = (model.image_projection, model.text_projection)
    return [p.detach().clone() for layer in layers for p in layer.parameters()]


def test_the_ridge_solution_has_no_gradient(rows):
    x_RD, y_RE, weight_R = rows
    matrix_DE, bias_E = (t.requires_grad_() for t in ridge_regression(*rows, ridge=0.3))
    share_R = weight_R / weight_R.sum()
    spread_D = (share_R @ (x_RD - share_R @ x_RD).square()).sqrt()
    error_RE = x_RD @ matrix_DE + bias_E - y_RE
    loss = share_R @ error_RE.square().sum(1) + 0.3 * (matrix_DE * spread_D[:, None]).square().sum()
    loss.backward()
    assert matrix_DE.grad.abs().max() < 1e-11
    assert bias_E.grad.abs().max() < 1e-12


def test_a_weight_is_as_good_as_a_repetition(rows):
    x_RD, y_RE, weight_R = rows
    often_R = torch.arange(40).repeat_interleave(weight_R.long())
    repeated = ridge_regression(x_RD[often_R], y_RE[often_R], torch.ones(len(often_R)), ridge=0.3)
    for ours, theirs in zip(ridge_regression(*rows, ridge=0.3), repeated, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_constant_feature_is_no_harm(rows):
    x_RD, y_RE, weight_R = rows
    x_RD[:, 2] = 7.0
    matrix_DE, bias_E = ridge_regression(x_RD, y_RE, weight_R, ridge=0.3)
    assert matrix_DE.isfinite().all()
    assert bias_E.isfinite().all()
    assert matrix_DE[2].abs().max() < 1e-6


@pytest.mark.parametrize("whitening", [0.0, 0.25, 1.0])
def test_directions_have_the_spread_that_is_asked_for(rows, whitening):
    x_KD, _, weight_K = rows
    matrix_DE, mean_D = principal_directions(x_KD, weight_K, 4, whitening=whitening)
    z_KE = (x_KD - mean_D) @ matrix_DE
    share_K = weight_K / weight_K.sum()
    covariance_EE = z_KE.T @ (z_KE * share_K[:, None])
    torch.testing.assert_close(covariance_EE, covariance_EE.diag().diag())
    assert (share_K @ z_KE.norm(dim=1)).item() == pytest.approx(1)
    plain_DE, _ = principal_directions(x_KD, weight_K, 4, whitening=0.0)
    plain_EE = ((x_KD - mean_D) @ plain_DE).T @ ((x_KD - mean_D) @ plain_DE * share_K[:, None])
    ratio_E = covariance_EE.diag() / plain_EE.diag() ** (1 - whitening)
    torch.testing.assert_close(ratio_E / ratio_E[0], torch.ones(4, dtype=torch.float64))


def test_directions_that_do_not_exist_are_zero_or_refused(rows):
    x_KD, _, weight_K = rows
    x_KD[:, 1:] = x_KD[:, :1]
    matrix_DE, _ = principal_directions(x_KD, weight_K, 3, whitening=1.0)
    assert matrix_DE[:, 1:].abs().max() == 0 < matrix_DE[:, 0].abs().max()
    with pytest.raises(ValueError, match="6 wide have no 7 directions"):
        principal_directions(x_KD, weight_K, 7, whitening=0.0)


def test_pictures_are_found_without_any_training(
    model, preprocess, examples, cache, tmp_path, shard
):
    """32 pictures of two colours by 64 captions: chance is 31 % among the first ten."""
    model.eval().save_pretrained(tmp_path / "a", preprocess, card="")
    before = embed(Encoder.load(tmp_path / "a", device="cpu"), examples).metrics().text_to_image
    fit(model, preprocess, examples, cache, ridge=0.01, whitening=0.5)
    model.eval().save_pretrained(tmp_path / "b", preprocess, card="")
    after = embed(Encoder.load(tmp_path / "b", device="cpu"), examples).metrics().text_to_image
    assert after.r10 > before.r10 + 20
    assert after.r10 > 60


def test_broken_pictures_are_left_out_and_repeats_count(
    model, preprocess, examples, cache, monkeypatch
):
    whole = weights_of(fit(model, preprocess, examples[:-1], cache))
    repeated = [dataclasses.replace(examples[0], repeat=5), *examples[1:-1]]
    often = weights_of(fit(model, preprocess, repeated, cache))
    assert not torch.equal(often[0], whole[0])
    weighted = [dataclasses.replace(examples[0], weight=2.5, repeat=2), *examples[1:-1]]
    assert torch.equal(weights_of(fit(model, preprocess, weighted, cache))[0], often[0])
    monkeypatch.setattr(FeatureCache, "is_broken", lambda self, row: row == 31)
    for ours, theirs in zip(
        weights_of(fit(model, preprocess, examples, cache)), whole, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_run_starts_and_ends_with_it(configure, shard, preprocess, tmp_path):
    config = configure(*FROZEN, "regression.when=last", "regression.ridge=0.1")
    result = train(config)
    model = CotsModel.from_pretrained(result.checkpoint)
    written = weights_of(model)
    examples = read_examples([str(shard)])
    path = next(config.data.cache_dir.glob("features-*.npy"))
    cache = FeatureCache([(path, range(len(examples)))])
    for ours, theirs in zip(
        weights_of(fit(model, preprocess, examples, cache, ridge=0.1)), written, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    prints = {
        when: train(configure(*FROZEN, f"regression.when={when}", f"output={tmp_path / when}"))
        for when in ("never", "first", "both")
    }
    assert len({result.fingerprint for result in prints.values()}) == 3
    assert (result.checkpoint / CONFIG_FILE).is_file()


def test_it_can_be_all_that_a_run_does(configure, tmp_path):
    trained = train(configure(*FROZEN))
    start = [f"init.{side}=checkpoint:{trained.checkpoint}" for side in ("image", "text")]
    fitting = ("epochs=0", "regression.when=last", f"output={tmp_path / 'fit'}")
    fitted = train(configure("freeze_image=true", "batch_size=8", *start, *fitting))
    before, after = (CotsModel.from_pretrained(r.checkpoint) for r in (trained, fitted))
    assert_equal_states(before.text.state_dict(), after.text.state_dict())
    assert not torch.equal(weights_of(before)[2], weights_of(after)[2])


def test_it_needs_a_frozen_image_tower(configure):
    with pytest.raises(ConfigError, match="set freeze_image=true or"):
        configure("regression.when=first")


def test_it_needs_something_to_do(configure):
    with pytest.raises(ConfigError, match="epochs=0 trains nothing"):
        configure("epochs=0", "freeze_image=true", "regression.when=first")


def test_it_needs_as_many_directions_as_the_joint_space(configure, model_yaml, tmp_path):
    wide = yaml.safe_load(model_yaml.read_text())
    wide["model"]["embed_dim"] = 64
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide))
    config = configure(*FROZEN, "regression.when=last", f"model={tmp_path / 'wide.yaml'}")
    with pytest.raises(ConfigError, match="32 wide have no 64 directions"):
        train(config)


def test_a_first_save_that_failed_does_not_undo_it(configure, tmp_path):
    result = train(configure(*FROZEN, "regression.when=first"))
    half = configure(*FROZEN, "regression.when=first", f"output={tmp_path / 'half'}")
    write_run(half.output, half)
    (half.output / "states").mkdir()
    (half.output / "states/state-000000001.partial-7").write_bytes(b"half")
    again = train(half)
    assert again.fingerprint == result.fingerprint
