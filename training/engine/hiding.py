"""What the token-level losses hide in each batch, from a seed alone.

Shape letters: B pairs, P patches, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.batches import Batch
from training.config import ObjectiveConfig
from training.engine.world import World
from training.image_tokenizer import ImageTokenizer
from training.masking import TextMasker, patch_mask
from training.objective import Hidden
from training.seeds import mix_seeds


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

    def __call__(self, batch: Batch, img_BCHW: Tensor, *, seed: int, world: World) -> Hidden:
        """Hide in a batch that is still on the CPU, and whose normalised pixels are on the device.

        Patches are drawn for all processes together, so that what is hidden does not depend on
        their number; words are drawn by each for its own captions.
        """
        hidden_BP = code_BP = tok_BL = label_BL = None
        if self._grid is not None and self.tokenizer is not None:
            patch_seed = mix_seeds(seed, 0)
            hidden_BP = self._patches(len(batch.tok_BL), self._grid, patch_seed, world)
            code_BP = self._codes(img_BCHW, self._preprocess.mean, self._preprocess.std)
        if self._mask_words is not None:
            rng = torch.Generator().manual_seed(mix_seeds(seed, 1, world.rank))
            masked = self._mask_words(batch.tok_BL, batch.mask_BL, rng)
            tok_BL, label_BL = masked.tok_BL, masked.label_BL
        return Hidden(hidden_BP, code_BP, tok_BL, label_BL)

    def _patches(self, batch: int, grid: tuple[int, int], seed: int, world: World) -> Tensor:
        vision = self._config.vision
        hidden_SP = patch_mask(
            vision.mask,
            batch * world.size,
            grid,
            share=vision.share,
            min_block=vision.min_block,
            rng=torch.Generator().manual_seed(seed),
        )
        return hidden_SP[world.rank * batch : (world.rank + 1) * batch]

    @torch.no_grad()
    def _codes(self, img_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        assert self.tokenizer is not None
        labels_Bhw = self.tokenizer.labels(img_BCHW, mean, std)
        return labels_Bhw.flatten(1)


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
