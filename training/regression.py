"""Both projections in closed form, from the features of towers that are not trained meanwhile.

The text projection takes the principal directions of the captions' features, weaker ones
strengthened as asked. The image projection is the ridge regression of what the captions of a
picture then say on average. It knows no negatives: it tells kinds of pictures apart well (dogs in
snow from dogs in water) where momentum contrast on a small set tells single pictures apart well.

Shape letters: M pictures, V views, K captions, R rows, D width, E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.caption_features import CaptionFeatures
from training.config import RegressionConfig
from training.example import Example
from training.feature_cache import FeatureCache


def fit_projections(
    model: CotsModel,
    preprocess: Preprocess,
    examples: Sequence[Example],
    cache: FeatureCache,
    config: RegressionConfig,
    *,
    bf16: bool,
    captions: CaptionFeatures | None = None,
    share: float = 1.0,
) -> None:
    """Replace the weights of both projections; a picture counts its weight times its repeats.

    Args:
        model: changed in place; its text tower makes the captions' features.
        preprocess: of the model.
        examples: the M pictures.
        cache: their image features; those of broken pictures are left out.
        config: ridge and whitening.
        bf16: run the text tower in autocast.
        captions: features of all captions, if the text tower has already made them.
        share: of the closed form in the new weights; the rest is what they were.
    """
    rows = [row for row in range(len(examples)) if not cache.is_broken(row)]
    known = [examples[row] for row in rows]
    texts = [text for example in known for text in example.captions]
    captions = captions or CaptionFeatures.embed(model, preprocess, texts, bf16=bf16)
    feature_MVD = cache.views(rows)
    dim = model.config.embed_dim
    fitted = _closed_form(known, feature_MVD, captions.get(texts), config, dim=dim)
    projections = (model.text_projection, model.image_projection)
    if share < 1:  # turning both changes no similarity, but it does change what a mixture is
        now_RE = torch.cat([p.weight.detach().double().cpu().T for p in projections])
        turn_EE = nearest_turn(torch.cat([matrix_DE for matrix_DE, _ in fitted]), now_RE)
        fitted = [(matrix_DE @ turn_EE, bias_E @ turn_EE) for matrix_DE, bias_E in fitted]
    for projection, (matrix_DE, bias_E) in zip(projections, fitted, strict=True):
        _assign(projection, matrix_DE, bias_E, share)


def _closed_form(
    examples: Sequence[Example],
    feature_MVD: Tensor,
    caption_KD: Tensor,
    config: RegressionConfig,
    *,
    dim: int,
) -> list[tuple[Tensor, Tensor]]:
    """Matrix `[D,E]` and bias `[E]` of the texts' projection, then of the pictures'."""
    num_pictures, num_views, _ = feature_MVD.shape
    count_M = torch.tensor([len(example.captions) for example in examples])
    owner_K = torch.arange(num_pictures).repeat_interleave(count_M)
    counted = [example.weight * example.repeat for example in examples]
    weight_M = torch.tensor(counted, dtype=torch.float64)
    weight_K = (weight_M / count_M)[owner_K]
    matrix_DE, mean_D = principal_directions(caption_KD, weight_K, dim, whitening=config.whitening)
    said_KE = F.normalize((caption_KD.double() - mean_D) @ matrix_DE, dim=1)
    target_ME = torch.zeros(num_pictures, dim, dtype=torch.float64)
    target_ME.index_add_(0, owner_K, said_KE / count_M[owner_K, None])
    image = ridge_regression(
        feature_MVD.flatten(0, 1),
        target_ME.repeat_interleave(num_views, dim=0),
        weight_M.repeat_interleave(num_views),
        ridge=config.ridge,
    )
    return [(matrix_DE, -mean_D @ matrix_DE), image]


def nearest_turn(matrix_RE: Tensor, target_RE: Tensor) -> Tensor:
    """The orthogonal `[E,E]` that brings one matrix closest to another (Schönemann 1966).

    Principal directions have no sign, and close ones are any basis of what they span: another
    device finds others.
    """
    left_EE, _, right_EE = torch.linalg.svd(matrix_RE.T @ target_RE)
    turn_EE: Tensor = left_EE @ right_EE
    return turn_EE


def principal_directions(
    feature_KD: Tensor, weight_K: Tensor, dim: int, *, whitening: float
) -> tuple[Tensor, Tensor]:
    """The `dim` strongest directions of weighted features, and their mean, in float64.

    Args:
        feature_KD: features.
        weight_K: what each counts.
        dim: how many directions E, at most D; directions without any spread are zero.
        whitening: a direction of standard deviation σ is scaled by σ to the minus `whitening`.

    Returns:
        `[D,E]`, scaled so that projected features have length 1 on average, and the mean `[D]`.

    Raises:
        ValueError: if the features are less wide than that.
    """
    feature_KD, share_K = feature_KD.double(), (weight_K / weight_K.sum()).double()
    if feature_KD.shape[1] < dim:
        raise ValueError(f"features {feature_KD.shape[1]} wide have no {dim} directions")
    mean_D = share_K @ feature_KD
    centred_KD = feature_KD - mean_D
    variance_D, vector_DD = torch.linalg.eigh(centred_KD.T @ (centred_KD * share_K[:, None]))
    variance_E = variance_D.flip(0)[:dim]
    real_E = variance_E > 1e-9 * variance_E[0].clamp(min=1e-30)
    scale_E = torch.where(real_E, variance_E.clamp(min=1e-30) ** (-whitening / 2), 0.0)
    matrix_DE = vector_DD.flip(1)[:, :dim] * scale_E
    length = share_K @ (centred_KD @ matrix_DE).norm(dim=1)
    return matrix_DE / length.clamp(min=1e-30), mean_D


def ridge_regression(
    feature_RD: Tensor, target_RE: Tensor, weight_R: Tensor, *, ridge: float
) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression on standardised features.

    Minimises Σ w |x̂ W + b - y|² / Σ w + ridge |W|², x̂ the features with mean 0 and variance 1.

    Args:
        feature_RD: features x.
        target_RE: targets y.
        weight_R: what each row counts.
        ridge: penalty.

    Returns:
        W for features as they are `[D,E]`, and its bias `[E]`, in float64.
    """
    share_R = (weight_R / weight_R.sum()).double()
    mean_D = share_R @ feature_RD.double()
    scale_D = (share_R @ (feature_RD.double() - mean_D).square()).sqrt().clamp(min=1e-6)
    x_RD = (feature_RD.double() - mean_D) / scale_D
    mean_E = share_R @ target_RE.double()
    gram_DD = x_RD.T @ (x_RD * share_R[:, None])
    gram_DD += ridge * torch.eye(len(gram_DD), dtype=torch.float64)
    moment_DE = x_RD.T @ ((target_RE.double() - mean_E) * share_R[:, None])
    matrix_DE = torch.linalg.solve(gram_DD, moment_DE) / scale_D[:, None]
    return matrix_DE, mean_E - mean_D @ matrix_DE


@torch.no_grad()
def _assign(layer: nn.Linear, matrix_DE: Tensor, bias_E: Tensor, share: float) -> None:
    layer.weight.lerp_(matrix_DE.T.to(layer.weight), share)
    layer.bias.lerp_(bias_E.to(layer.bias), share)
