"""Which part of a picture, and which words, a similarity comes from.

    found = explain(model, img_1CHW, tok_1L, mask_1L)
    found.patch_hw, found.token_L
    explain_words(model, img_1CHW, tok_1L, mask_1L, word_WL).patch_Whw

Generic attention explainability (GAE; Chefer, Gur and Wolf, ICCV 2021) for encoders with
self-attention alone, which both of ours are. Per layer Ā = mean over heads of (∇A ⊙ A)⁺ and
R ← R + ĀR from R = I, where ∇A is the gradient of the two vectors' dot product. It sees the first
network of the image tower; one beside it shows in the similarity, not on the map.

Shape letters: l layers, H heads, T tokens, B batch of 1, P patches of an h x w grid, L text tokens,
W words, E dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.text_tower import masked_mean

_FUSED = "fused_attn"


@dataclass(frozen=True)
class Relevance:
    """Why a picture and a text are as similar as they are.

    Attributes:
        similarity: the dot product of their vectors.
        patch_hw: relevance of each patch, from 0.
        token_L: relevance of each text token, from 0; that of padding is 0. Every valid token has
            1 / (number of valid tokens) from the start, R = I; what is above comes from attention.
    """

    similarity: float
    patch_hw: Tensor
    token_L: Tensor


@dataclass(frozen=True)
class WordRelevance:
    """Where in a picture each word of a text is.

    Attributes:
        similarity: the dot product of the vectors of the picture and of the whole text.
        similarity_W: that of the picture and of each word as it stands in the text.
        patch_Whw: relevance of each patch for each word, from 0.
    """

    similarity: float
    similarity_W: Tensor
    patch_Whw: Tensor


def never() -> None:
    """Nothing happens between two words."""


def propagate(
    attention_lHTT: Sequence[Tensor], gradient_lHTT: Sequence[Tensor], *, start_layer: int = 0
) -> Tensor:
    """R `[T,T]`: how much every token's output owes to every token's input.

    Args:
        attention_lHTT: of each layer, `[H,T,T]`, after the softmax.
        gradient_lHTT: of what is explained, with respect to these.
        start_layer: layers before it are left out.

    Raises:
        ValueError: if no layer is left.
    """
    layers = list(zip(attention_lHTT, gradient_lHTT, strict=True))
    if not 0 <= start_layer < len(layers):
        raise ValueError(f"start_layer {start_layer} of {len(layers)} layers; choose a smaller one")
    relevance_TT = torch.eye(layers[0][0].shape[-1], dtype=layers[0][0].dtype)
    relevance_TT = relevance_TT.to(layers[0][0].device)
    for attention_HTT, gradient_HTT in layers[start_layer:]:
        mean_TT = (gradient_HTT * attention_HTT).clamp(min=0).mean(dim=0)
        relevance_TT = relevance_TT + mean_TT @ relevance_TT
    return relevance_TT


def explain(
    model: CotsModel,
    img_1CHW: Tensor,
    tok_1L: Tensor,
    mask_1L: Tensor,
    *,
    start_layer: int = 0,
    text_start_layer: int = 0,
) -> Relevance:
    """Explain the similarity of one picture and one text.

    The map is the row of what the image feature pools over the columns of the patches: the class
    token, and with `pool: cls_mean` also the mean of the patches. Words: the mean of the valid
    rows. Attention is computed eagerly meanwhile, and as before afterwards; weights get no
    gradient.

    Args:
        model: in evaluation mode.
        img_1CHW: normalised pixels of one picture.
        tok_1L: token ids of one text.
        mask_1L: bool, true on its tokens.
        start_layer: of the image tower, the first that counts. All layers of a large vision
            transformer together show artefacts.
        text_start_layer: of the text tower.

    Raises:
        ConfigError: if the first network is no vision transformer, or a tower has not so many
            layers.
        ValueError: for more than one picture or text.
    """
    _check_one_of_each(img_1CHW, tok_1L)
    trunk = _transformer(model)
    seen: list[Tensor] = []
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(_recorded_attention(trunk, seen))
        stack.enter_context(_eager_text(model.text.trunk))
        stack.enter_context(_graph_through(model))
        image_1E = model.encode_image(img_1CHW)
        output = cast(Any, model.text.trunk)(
            input_ids=tok_1L, attention_mask=mask_1L.long(), output_attentions=True
        )
        text_1E = model.project_text(masked_mean(output.last_hidden_state, mask_1L))
        similarity = (image_1E * text_1E).sum()
        words = list(output.attentions)
        gradients = torch.autograd.grad(similarity, [*seen, *words])
    _check_start("image", seen, start_layer)
    _check_start("text", words, text_start_layer)
    patch_TT = _propagate(seen, gradients[: len(seen)], start_layer)
    word_LL = _propagate(words, gradients[len(seen) :], text_start_layer)
    valid_L = mask_1L[0]
    token_L = word_LL[valid_L].mean(dim=0) * valid_L
    return Relevance(similarity.item(), _map(model, trunk, patch_TT), token_L)


def explain_words(
    model: CotsModel,
    img_1CHW: Tensor,
    tok_1L: Tensor,
    mask_1L: Tensor,
    word_WL: Tensor,
    *,
    start_layer: int = 0,
    before_word: Callable[[], object] = never,
) -> WordRelevance:
    """Explain the similarity of one picture and each word of one text.

    A word's vector is made as the text's is, from the outputs of its own tokens alone, which have
    seen the whole text. What is explained is its dot product with the picture's vector.

    Args:
        model: in evaluation mode.
        img_1CHW: normalised pixels of one picture.
        tok_1L: token ids of one text.
        mask_1L: bool, true on its tokens.
        word_WL: bool, true on the tokens of each word; every word has one at least.
        start_layer: of the image tower, the first that counts.
        before_word: called before each word; what it raises ends the whole.

    Raises:
        ConfigError: as `explain`.
        ValueError: for more than one picture or text.
    """
    _check_one_of_each(img_1CHW, tok_1L)
    trunk = _transformer(model)
    seen: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(_recorded_attention(trunk, seen))
        stack.enter_context(_graph_through(model))
        with torch.enable_grad():
            image_E = model.encode_image(img_1CHW)[0]
        _check_start("image", seen, start_layer)
        with torch.no_grad():
            hidden_1LD = model.text(tok_1L, mask_1L)
            text_E = model.project_text(masked_mean(hidden_1LD, mask_1L))[0]
            hidden_WLD = hidden_1LD.expand(len(word_WL), -1, -1)
            word_WE = model.project_text(masked_mean(hidden_WLD, word_WL))
        with torch.enable_grad():
            similarity_W = word_WE @ image_E
        maps = []
        for similarity in similarity_W:
            before_word()
            gradients = torch.autograd.grad(similarity, seen, retain_graph=True)
            patch_TT = _propagate(seen, gradients, start_layer)
            maps.append(_map(model, trunk, patch_TT))
    patch_Whw = torch.stack(maps) if maps else image_E.new_zeros(0, *model.image.patch_grid)
    whole = float(text_E @ image_E.detach())
    return WordRelevance(whole, similarity_W.detach(), patch_Whw)


def _check_one_of_each(img_1CHW: Tensor, tok_1L: Tensor) -> None:
    if len(img_1CHW) != 1 or len(tok_1L) != 1:
        raise ValueError(f"{len(img_1CHW)} pictures and {len(tok_1L)} texts; give one of each")


def _check_start(name: str, layers: Sequence[Tensor], first: int) -> None:
    if not 0 <= first < len(layers):
        raise ConfigError(
            f"the {name} tower has {len(layers)} layers, and none is left from layer {first}; "
            "start at a lower one"
        )


def _propagate(layers: Sequence[Tensor], gradients: Sequence[Tensor], start_layer: int) -> Tensor:
    return propagate(
        [attention[0].detach() for attention in layers],
        [gradient[0] for gradient in gradients],
        start_layer=start_layer,
    )


def _map(model: CotsModel, trunk: VisionTransformer, relevance_TT: Tensor) -> Tensor:
    prefix = trunk.num_prefix_tokens
    row_T = relevance_TT[0]
    if model.config.image.pool == "cls_mean":
        row_T = (row_T + relevance_TT[prefix:].mean(dim=0)) / 2
    return row_T[prefix:].reshape(model.image.patch_grid)


def num_layers(model: CotsModel) -> int:
    """How many layers of the image tower a map can start at.

    Raises:
        ConfigError: if there are no maps of this model: it has no class token that attends patches.
    """
    return len(_transformer(model).blocks)


def _transformer(model: CotsModel) -> VisionTransformer:
    trunk = model.image.trunk
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ConfigError(
            f"{model.config.image.arch!r} has no attention from a class token to patches, so there "
            "is no map; choose a checkpoint with a vision transformer such as 'cots-mini'"
        )
    return trunk


@contextmanager
def _recorded_attention(trunk: VisionTransformer, seen: list[Tensor]) -> Iterator[None]:
    """While it lasts, attention is computed eagerly, and its weights `[B,H,T,T]` are kept."""
    modules = [module for module in trunk.modules() if isinstance(module, Attention)]
    fused = [module.fused_attn for module in modules]

    def keep(_module: nn.Module, _args: object, attention_BHTT: Tensor) -> None:
        seen.append(attention_BHTT)

    handles = [module.attn_drop.register_forward_hook(keep) for module in modules]
    try:
        for module in modules:
            setattr(module, _FUSED, False)  # final for its type checker alone
        yield
    finally:
        for handle, module, before in zip(handles, modules, fused, strict=True):
            handle.remove()
            setattr(module, _FUSED, before)


@contextmanager
def _eager_text(trunk: Any) -> Iterator[None]:
    """While it lasts, the text tower gives its attention weights."""
    before = trunk.config._attn_implementation
    try:
        trunk.set_attn_implementation("eager")
        yield
    finally:
        trunk.set_attn_implementation(before)


@contextmanager
def _graph_through(model: CotsModel) -> Iterator[None]:
    """While it lasts, frozen weights let gradients pass to the attention behind them."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
