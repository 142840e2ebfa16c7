"""Floating point operations of a training step, counted without running it.

    flops = StepFlops(config, objective, tokenizer)(batches)

The networks are built once more on the meta device, where nothing is computed, and torch's counter
watches their forward pass. Counting a real step instead would include what activation checkpointing
computes twice, and would turn compiled blocks back into eager ones. As in PaLM (Chowdhery et al.
2022, appendix B), a backward pass counts twice the forward pass, so what is recomputed does not
count. Left out are projections, similarities and the optimiser: below 0.1 % for the paper's model.

Shape letters: L text tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cots_model.model import CotsModel
from training.batches import Batch
from training.config import TrainConfig
from training.image_tokenizer import ImageTokenizer
from training.objective import Objective

_TRAINED = 3  # forward, and twice that backward
_SLOW = 1  # the momentum copy goes forward only


@dataclass(frozen=True)
class ForwardFlops:
    """Of one forward pass of one picture or caption.

    Attributes:
        image: all networks of the image tower.
        patches: its first network alone, which sees the picture with hidden patches.
        token: of a text of L tokens, this times L ...
        token_pair: ... and this times L².
        tokenizer: codes of a picture; 0 without hidden patches.
        vision_head: of one hidden patch; 0 likewise.
        language_head: of one hidden word; 0 without hidden words.
    """

    image: float
    patches: float
    token: float
    token_pair: float
    tokenizer: float = 0.0
    vision_head: float = 0.0
    language_head: float = 0.0

    def text(self, num_tokens: int) -> float:
        """Of a text of so many tokens, padding included."""
        return self.token * num_tokens + self.token_pair * num_tokens**2


@dataclass(frozen=True)
class Flops:
    """Of a step, by how fast a GPU does them.

    Attributes:
        networks: in the precision of the run.
        tokenizer: codes of pictures, which are always made by convolutions in float32.
    """

    networks: float
    tokenizer: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.networks + self.tokenizer

    def __truediv__(self, number: float) -> Flops:
        """A part of them."""
        return Flops(self.networks / number, self.tokenizer / number)


class StepFlops:
    """Counts the steps of one process."""

    def __init__(
        self, config: TrainConfig, objective: Objective, tokenizer: ImageTokenizer | None
    ) -> None:
        """Build the networks on the meta device, count, and forget them.

        Args:
            config: of the run.
            objective: that is trained.
            tokenizer: of hidden patches.
        """
        self._config = config
        self.forward = count_forward(objective, tokenizer)
        vision = config.objective.vision
        self._hidden_patches = 0.0
        if vision.weight:
            height, width = objective.model.image.patch_grid
            self._hidden_patches = vision.share * height * width

    def __call__(self, batches: Sequence[Batch]) -> Flops:
        """Operations of one optimiser step of this process."""
        networks = sum(
            len(batch.image) * self._per_picture()
            + len(batch.tok_BL) * self._per_caption(batch.tok_BL.shape[1])
            for batch in batches
        )
        hides = bool(self._config.objective.vision.weight)
        pictures = sum(len(batch.image) for batch in batches) if hides else 0
        return Flops(networks, pictures * self.forward.tokenizer)

    def _per_picture(self) -> float:
        one = self.forward
        flops = 0.0 if self._config.freeze_image else (_TRAINED + _SLOW) * one.image
        if self._config.objective.vision.weight:
            flops += _TRAINED * (one.patches + self._hidden_patches * one.vision_head)
        return flops

    def _per_caption(self, num_tokens: int) -> float:
        one, language = self.forward, self._config.objective.language
        flops = 0.0 if self._config.freeze_text else (_TRAINED + _SLOW) * one.text(num_tokens)
        if language.weight:
            hidden = language.share * num_tokens
            flops += _TRAINED * (one.text(num_tokens) + hidden * one.language_head)
        return flops


def count_forward(objective: Objective, tokenizer: ImageTokenizer | None) -> ForwardFlops:
    """Count one picture and one caption of a module that may be split or compiled."""
    config, num_codes = objective.model.config, tokenizer.vocab_size if tokenizer else 0
    tokenizer_flops = _tokenizer_flops(tokenizer, config.image.image_size) if tokenizer else 0
    with torch.device("meta"):
        model = CotsModel(config).eval()
        heads = Objective(model, objective.config, num_codes=num_codes).eval()
        img_BCHW = torch.empty(1, 3, config.image.image_size, config.image.image_size)
        short, long = (_text_flops(model, length) for length in (4, 8))
        token_pair = (long - 2 * short) / (8**2 - 2 * 4**2)
        return ForwardFlops(
            image=_count(lambda: model.image.feature(img_BCHW)),
            patches=_count(lambda: model.image(img_BCHW)),
            token=(short - token_pair * 4**2) / 4,
            token_pair=token_pair,
            tokenizer=tokenizer_flops,
            vision_head=_vision_head_flops(heads),
            language_head=_language_head_flops(heads),
        )


def _text_flops(model: CotsModel, length: int) -> int:
    tok_BL = torch.zeros(1, length, dtype=torch.int64)
    return _count(lambda: cast(Any, model.text.trunk)(input_ids=tok_BL))


def _tokenizer_flops(tokenizer: ImageTokenizer, side: int) -> int:
    device = next(cast(nn.Module, tokenizer).parameters()).device
    with FakeTensorMode(allow_non_fake_inputs=True):  # it asks for its device, so not on meta
        img_BCHW = torch.empty(1, 3, side, side, device=device)
        return _count(lambda: tokenizer.labels(img_BCHW, [0.5] * 3, [0.5] * 3))


def _vision_head_flops(heads: Objective) -> int:
    head, model = heads.vision_head, heads.model
    if head is None:
        return 0
    h_MD, text_MG = torch.empty(1, model.image.token_width), torch.empty(1, model.text.width)
    return _count(lambda: head(h_MD, text_MG))


def _language_head_flops(heads: Objective) -> int:
    head, model = heads.language_head, heads.model
    if head is None:
        return 0
    h_MD, image_MG = torch.empty(1, model.text.width), torch.empty(1, model.image.width)
    return _count(lambda: head(h_MD, image_MG, model.text.word_embedding_VW))


@torch.no_grad()
def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
