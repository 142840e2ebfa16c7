"""What the token-level losses hide in each batch, from a seed alone.

Shape letters: B pairs, F pictures or frames, P patches, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.batches import Batch
from training.config import ObjectiveConfig
from training.image_tokenizer import ImageTokenizer
from training.masking import TextMasker, patch_mask
from training.objective import Hidden, per_frame
from training.seeds import mix_seeds, row_seeds


class Hider:
    """Hides patches and words as configured.

    Attributes:
        tokenizer: gives the codes of patches; `None` if none are hidden.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        model: CotsModel,
        preprocess: Preprocess,
        tokenizer: ImageTokenizer | None,
    ) -> None:
        """Prepare.

        Args:
            config: of the objective.
            model: whose patches and words are hidden.
            preprocess: of the model.
            tokenizer: gives the codes of patches; needed if they are hidden.

        Raises:
            ConfigError: if the tokenizer's grid is not that of the image tower's patches.
        """
        self._config = config
        self.tokenizer = tokenizer
        self._preprocess = preprocess.config
        self._grid: tuple[int, int] | None = None
        self._mask_words: TextMasker | None = None
        if config.vision.weight:
            assert tokenizer is not None
            self._grid = model.image.patch_grid
            check_grid(self._grid, tokenizer, preprocess.config.image_size)
        if config.language.weight:
            self._mask_words = TextMasker.from_tokenizer(
                preprocess.tokenizer, share=config.language.share
            )

    def __call__(self, batch: Batch, img_FCHW: Tensor, *, seed: int, first_row: int) -> Hidden:
        """Hide in a batch that is still on the CPU, and whose normalised pixels are on the device.

        Each pair has its own draws by its row in the whole optimiser step, so that what is hidden
        depends neither on the number of processes nor on how many batches are accumulated.

        Args:
            batch: pairs.
            img_FCHW: their pictures, or the frames of their videos.
            seed: of the step.
            first_row: of the batch, among the rows of all batches and processes of the step.
        """
        hidden_FP = code_FP = tok_BL = label_BL = None
        size = len(batch.tok_BL)
        if self._grid is not None:
            seed_B = row_seeds(mix_seeds(seed, 0), first_row, size)
            hidden_FP = per_frame(self._patches(seed_B, self._grid), batch)
            code_FP = self._codes(img_FCHW, self._preprocess.mean, self._preprocess.std)
        if self._mask_words is not None:
            seed_B = row_seeds(mix_seeds(seed, 1), first_row, size)
            masked = self._mask_words(batch.tok_BL, batch.mask_BL, seed_B)
            tok_BL, label_BL = masked.tok_BL, masked.label_BL
        return Hidden(hidden_FP, code_FP, tok_BL, label_BL)

    def _patches(self, seed_B: np.ndarray, grid: tuple[int, int]) -> Tensor:
        vision = self._config.vision
        return patch_mask(vision.mask, seed_B, grid, share=vision.share, min_block=vision.min_block)

    @torch.no_grad()
    def _codes(self, img_FCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        assert self.tokenizer is not None
        labels_Fhw = self.tokenizer.labels(img_FCHW, mean, std)
        return labels_Fhw.flatten(1)


def check_grid(grid: tuple[int, int], tokenizer: ImageTokenizer, image_size: int) -> None:
    """Every patch of the image tower must have one code.

    Raises:
        ConfigError: if it does not.
    """
    side = tokenizer.grid(image_size)
    if grid != (side, side):
        raise ConfigError(
            f"the image tokenizer gives {side} x {side} codes for a picture of {image_size} "
            f"pixels, the image tower has {grid[0]} x {grid[1]} patches; they must be equal"
        )
