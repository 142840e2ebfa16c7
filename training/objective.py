"""All loss terms of a batch, switched and weighed by configuration (sections 3.2 and 3.3).

L = w_inst L_inst + w_task L_task + w_vision L_CMVM + w_language L_CMLM; the paper's weights are 1,
and Table 3 is which of them are 0.

Shape letters: B batch, F pictures or frames, N queue length, P patches, L text tokens, D width, E
joint width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.videos import mean_frames, pool_frames
from training.batches import Batch
from training.config import ObjectiveConfig
from training.heads import LanguageTokenHead, VisionTokenHead
from training.losses import instance_loss, negatives, task_loss
from training.queues import PairQueues
from training.token_loss import TokenLoss, language_token_loss, vision_token_loss


@dataclass(frozen=True)
class Hidden:
    """What the token-level losses hide in a batch.

    Attributes:
        hidden_FP: bool, hidden patches, of all frames of a video the same (chosen: a neighbouring
            frame would show what is hidden); `None` without that loss.
        code_FP: int64, the image tokenizer's codes of all patches.
        tok_BL: int64, the captions with hidden words; `None` without that loss.
        label_BL: int64, the hidden words, -100 elsewhere.
    """

    hidden_FP: Tensor | None = None
    code_FP: Tensor | None = None
    tok_BL: Tensor | None = None
    label_BL: Tensor | None = None

    def to(self, device: torch.device) -> Hidden:
        """The same on another device."""
        return Hidden(*(t if t is None else t.to(device) for t in vars(self).values()))


@dataclass(frozen=True)
class Keys:
    """Momentum features of a batch, unit vectors.

    Attributes:
        image_BE: of its pictures.
        text_BE: of its captions.
    """

    image_BE: Tensor
    text_BE: Tensor


@dataclass(frozen=True)
class Shares:
    """What part of a whole optimiser step's kept pairs, their frames and words one batch has.

    Every term is a mean; weighed so, the terms of all processes and accumulated batches add up to
    the mean over the whole step, however many pairs the filter dropped in each.
    """

    pairs: float = 1.0
    frames: float = 1.0
    words: float = 1.0


class Terms(NamedTuple):
    """What a batch comes to; scalars by name. A tuple, for DDP and FSDP look for tensors in it.

    Attributes:
        losses: every term, and their weighted sum `total`; in at least float32.
        accuracies: share of the hidden tokens that were named rightly; no gradient.
    """

    losses: dict[str, Tensor]
    accuracies: dict[str, Tensor]


class Objective(nn.Module):
    """The model that is trained, with the heads that only training needs."""

    def __init__(
        self,
        model: CotsModel,
        config: ObjectiveConfig,
        *,
        num_codes: int = 0,
        freeze_image: bool = False,
    ) -> None:
        """Build the heads of the losses that have a weight.

        Args:
            model: trained in place.
            config: weights and options.
            num_codes: of the image tokenizer, if patches are hidden.
            freeze_image: batches hold features, not pixels.

        Raises:
            ConfigError: if a token-level loss does not fit the model or the frozen image tower.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.freeze_image = freeze_image
        self.vision_head: VisionTokenHead | None = None
        self.language_head: LanguageTokenHead | None = None
        if config.vision.weight:
            if freeze_image:
                raise ConfigError(
                    "objective.vision hides patches, and freeze_image keeps no pixels; set "
                    "objective.vision.weight=0 or freeze_image=false"
                )
            self.vision_head = VisionTokenHead(
                hidden_width=model.image.token_width,
                feature_width=model.text.width,
                num_codes=num_codes,
            )
        if config.language.weight:
            vocab_size, word_width = model.text.word_embedding_VW.shape
            self.language_head = LanguageTokenHead(
                hidden_width=model.text.width,
                feature_width=model.image.width,
                vocab_size=vocab_size,
                word_width=word_width,
            )

    def forward(
        self,
        batch: Batch,
        hidden: Hidden,
        keys: Keys,
        queues: PairQueues,
        keep_B: Tensor,
        shares: Shares,
    ) -> Terms:
        """All terms of a batch and their weighted sum.

        Args:
            batch: pairs, on the model's device.
            hidden: what is hidden in them.
            keys: of the momentum encoders.
            queues: keys of earlier pairs.
            keep_B: bool, the pairs that the filter keeps.
            shares: of this batch in the step.
        """
        image_FD = batch.image if self.freeze_image else self.model.image.feature(batch.image)
        text_BD = batch.text_BD  # of a frozen tower
        if text_BD is None:
            text_BD = self.model.text.feature(batch.tok_BL, batch.mask_BL)
        terms = self._contrast(batch, image_FD, text_BD, keys, queues, keep_B)
        terms = {name: term * shares.pairs for name, term in terms.items()}
        accuracies: dict[str, Tensor] = {}
        if self.vision_head is not None:
            found = self._vision(self.vision_head, batch, hidden, text_BD, keep_B)
            terms["vision"] = found.loss * shares.frames
            accuracies["vision"] = found.accuracy * shares.frames
        if self.language_head is not None:
            found = self._language(self.language_head, batch, hidden, image_FD, keep_B)
            terms["language"] = found.loss * shares.words
            accuracies["language"] = found.accuracy * shares.words
        weights = self.config.weights()
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return Terms({**terms, "total": total}, accuracies)

    def _contrast(
        self,
        batch: Batch,
        image_FD: Tensor,
        text_BD: Tensor,
        keys: Keys,
        queues: PairQueues,
        keep_B: Tensor,
    ) -> dict[str, Tensor]:
        instance = self.config.instance
        negative_BN = negatives(
            queues.filled_N,
            queues.image_id_N,
            batch.image_id_B,
            mask_same_image=instance.mask_same_image,
        )
        image_BE = project_images(self.model, image_FD, batch)
        text_BE = self.model.project_text(text_BD)
        with torch.autocast(image_BE.device.type, enabled=False):  # τ = 0.05 needs float32
            loss = instance_loss(
                image_BE,
                text_BE,
                keys.image_BE,
                keys.text_BE,
                queues.image_NE,
                queues.text_NE,
                negative_BN,
                temperature=instance.temperature,
                keep_B=keep_B,
            )
            terms = {"image_to_text": loss.image_to_text, "text_to_image": loss.text_to_image}
            if self.config.task.weight:
                terms["task"] = task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=keep_B)
        return terms

    def _vision(
        self,
        head: VisionTokenHead,
        batch: Batch,
        hidden: Hidden,
        text_BD: Tensor,
        keep_B: Tensor,
    ) -> TokenLoss:
        """Each frame of a video is a picture with the video's caption."""
        hidden_FP, code_FP = cast(Tensor, hidden.hidden_FP), cast(Tensor, hidden.code_FP)
        h_FPD = self.model.image.masked_patches(batch.image, hidden_FP, head.mask_token_D)
        text_FD, keep_F = per_frame(text_BD, batch), per_frame(keep_B, batch)
        return vision_token_loss(head, h_FPD, text_FD, code_FP, hidden_FP, keep_B=keep_F)

    def _language(
        self,
        head: LanguageTokenHead,
        batch: Batch,
        hidden: Hidden,
        image_FD: Tensor,
        keep_B: Tensor,
    ) -> TokenLoss:
        h_BLD = self.model.text(cast(Tensor, hidden.tok_BL), batch.mask_BL)
        frames = batch.num_frames_B
        image_BD = image_FD if frames is None else mean_frames(image_FD, frames)
        word_VW, label_BL = self.model.text.word_embedding_VW, cast(Tensor, hidden.label_BL)
        return language_token_loss(head, h_BLD, image_BD, label_BL, word_VW, keep_B=keep_B)


def project_images(model: CotsModel, image_FD: Tensor, batch: Batch) -> Tensor:
    """Unit vectors `[B,E]` of pictures, or of videos as the mean of their frames."""
    image_FE = model.project_image(image_FD)
    return image_FE if batch.num_frames_B is None else pool_frames(image_FE, batch.num_frames_B)


def per_frame(x_B: Tensor, batch: Batch) -> Tensor:
    """Rows of pairs `[B,…]`, each repeated for all frames of its video: `[F,…]`."""
    if batch.num_frames_B is None:
        return x_B
    count_B = torch.tensor(batch.num_frames_B, device=x_B.device)
    return x_B.repeat_interleave(count_B, dim=0, output_size=sum(batch.num_frames_B))
