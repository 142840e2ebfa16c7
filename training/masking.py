"""Which patches and which words are hidden for the token-level losses (section 3.2.1, 4.1).

Patches are hidden in exactly the configured share of every picture, words at random as BERT does.
Every pair has a seed of its own and its draws depend on nothing else, so that a run can be
repeated, and a pair is treated alike in whichever batch and process it comes.

Shape letters: B batch, A pictures of it that lack hidden patches, P patches of an h x w grid, row
by row, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cots_model.errors import ConfigError
from training.seeds import uniform

NOT_A_TARGET = -100

_MIN_RATIO = 0.3  # BEiT


def patch_mask(
    kind: Literal["random", "block"],
    seed_B: np.ndarray,
    grid: tuple[int, int],
    *,
    share: float = 0.4,
    min_block: int = 16,
) -> Tensor:
    """Bool `[B,P]`, true where a patch is hidden: round(share * P) in every row, exactly.

    Args:
        kind: `random` draws patches one by one, `block` draws rectangles (BEiT, which the paper
            follows; it is open which of the two it means).
        seed_B: uint64, of `training.seeds.row_seeds`; each picture's mask depends on its own.
        grid: height and width in patches.
        share: of the patches (paper: 0.4).
        min_block: smallest area of a rectangle in patches (BEiT: 16).

    Raises:
        ConfigError: if this share hides no patch of such a grid, or all of them.
    """
    num_patches = grid[0] * grid[1]
    count = round(share * num_patches)
    if not 0 < count < num_patches:
        raise ConfigError(
            f"a share of {share} hides {count} of {num_patches} patches; "
            "choose one that hides some and leaves some, such as 0.4"
        )
    if kind == "random":
        return _random_masks(seed_B, num_patches, count)
    return torch.from_numpy(_block_masks(seed_B, grid, count, min_block))


def _random_masks(seed_B: np.ndarray, num_patches: int, count: int) -> Tensor:
    u_BP = torch.from_numpy(uniform(seed_B, num_patches))
    chosen_BC = u_BP.topk(count, dim=1).indices
    return torch.zeros(u_BP.shape, dtype=torch.bool).scatter_(1, chosen_BC, value=True)


def _block_masks(
    seed_B: np.ndarray, grid: tuple[int, int], count: int, min_block: int
) -> np.ndarray:
    """Bool `[B,P]` with exactly `count` cells in every row, in rectangles.

    As in BEiT, a rectangle has an area between `min_block` and all of what is left to hide, and its
    height is 0.3 to 1 / 0.3 times its width. Unlike BEiT (chosen), each covers a random visible
    cell, so that it always adds some, and the last one is cut to fit. All pictures that lack some
    get a rectangle at once.
    """
    mask_BP = np.zeros((len(seed_B), grid[0] * grid[1]), dtype=bool)
    open_A, turn = np.arange(len(seed_B)), 0
    while len(open_A):
        u_A6 = uniform(seed_B[open_A], 6, start=6 * turn)
        mask_AP = mask_BP[open_A]
        left_A = count - mask_AP.sum(axis=1)
        new_AP = _rectangles(mask_AP, grid, left_A, min_block, u_A6) & ~mask_AP
        too_many_A = np.flatnonzero(new_AP.sum(axis=1) >= left_A)
        new_AP[too_many_A] = _cut(new_AP[too_many_A], left_A[too_many_A], u_A6[too_many_A, 5])
        mask_BP[open_A] = mask_AP | new_AP
        open_A, turn = np.delete(open_A, too_many_A), turn + 1
    return mask_BP


def _rectangles(
    mask_AP: np.ndarray, grid: tuple[int, int], left_A: np.ndarray, min_block: int, u_A6: np.ndarray
) -> np.ndarray:
    """Bool `[A,P]`: one rectangle a picture, over a random cell that `mask_AP` leaves visible."""
    smallest_A = np.minimum(min_block, left_A)
    area_A = smallest_A + u_A6[:, 0] * (left_A - smallest_A)
    ratio_A = np.exp((2 * u_A6[:, 1] - 1) * -math.log(_MIN_RATIO))
    visible_AP = ~mask_AP
    number_A = (u_A6[:, 4] * visible_AP.sum(axis=1)).astype(np.int32)  # of the visible cells
    cell_A = (visible_AP.cumsum(axis=1, dtype=np.int32) > number_A[:, None]).argmax(axis=1)
    row_A, column_A = np.divmod(cell_A, grid[1])
    rows_Ah = _span(row_A, np.sqrt(area_A * ratio_A), grid[0], u_A6[:, 2])
    columns_Aw = _span(column_A, np.sqrt(area_A / ratio_A), grid[1], u_A6[:, 3])
    block_Ahw: np.ndarray = rows_Ah[:, :, None] & columns_Aw[:, None, :]
    return block_Ahw.reshape(mask_AP.shape)


def _span(cell_A: np.ndarray, length_A: np.ndarray, side: int, u_A: np.ndarray) -> np.ndarray:
    """Bool `[A,side]`: a run of about `length_A` places that holds `cell_A`; u in [0, 1)."""
    size_A = np.clip(np.rint(length_A).astype(np.int64), 1, side)
    first_A, last_A = np.maximum(0, cell_A - size_A + 1), np.minimum(cell_A, side - size_A)
    start_A = first_A + (u_A * (last_A - first_A + 1)).astype(np.int64)
    place_h = np.arange(side)
    run_Ah: np.ndarray = (place_h >= start_A[:, None]) & (place_h < (start_A + size_A)[:, None])
    return run_Ah


def _cut(new_AP: np.ndarray, left_A: np.ndarray, u_A: np.ndarray) -> np.ndarray:
    """The first `left_A` cells of each row, or the last, as `u_A` has it."""
    rank_AP = new_AP.cumsum(axis=1, dtype=np.int32)
    skip_A = np.where(u_A < 0.5, 0, rank_AP[:, -1] - left_A)[:, None]
    cut_AP: np.ndarray = new_AP & (rank_AP > skip_A) & (rank_AP <= skip_A + left_A[:, None])
    return cut_AP


@dataclass(frozen=True)
class MaskedText:
    """Captions with hidden words.

    Attributes:
        tok_BL: int64, the tokens to encode.
        label_BL: int64, the hidden tokens; `NOT_A_TARGET` (-100) elsewhere.
    """

    tok_BL: Tensor
    label_BL: Tensor


class TextMasker:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % a random one, 10 % stay.

    Special tokens and padding are never chosen and never put in (chosen; BERT's random tokens may
    be special ones).
    """

    def __init__(
        self, *, vocab_size: int, mask_id: int, special_ids: Iterable[int], share: float = 0.15
    ) -> None:
        """Prepare the tables.

        Args:
            vocab_size: V; ids are below it.
            mask_id: of [MASK].
            special_ids: never chosen; [MASK] and padding among them.
            share: probability with which a token is chosen (paper: 0.15).

        Raises:
            ConfigError: if the share is not between 0 and 1.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"a share of {share} of the words; use a number in (0, 1]")
        self.share = share
        self.mask_id = mask_id
        self.ordinary_V = torch.ones(vocab_size, dtype=torch.bool)
        self.ordinary_V[[mask_id, *special_ids]] = False
        self.ordinary_id_K = self.ordinary_V.nonzero().flatten()

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Tokenizer, *, share: float = 0.15, mask_token: str = "[MASK]"
    ) -> TextMasker:
        """The masker for a tokenizer's own special tokens.

        Raises:
            ConfigError: if it has no such mask token.
        """
        mask_id = tokenizer.token_to_id(mask_token)
        if mask_id is None:
            raise ConfigError(
                f"the tokenizer has no token {mask_token!r}; take one of a masked language model"
            )
        added = tokenizer.get_added_tokens_decoder()
        special_ids = [number for number, token in added.items() if token.special]
        vocab_size = max(tokenizer.get_vocab().values()) + 1
        return cls(vocab_size=vocab_size, mask_id=mask_id, special_ids=special_ids, share=share)

    def __call__(self, tok_BL: Tensor, mask_BL: Tensor, seed_B: np.ndarray) -> MaskedText:
        """Hide words of every caption: at least one of each that has any.

        Args:
            tok_BL: int64, on the CPU as all of this is.
            mask_BL: bool, true on tokens, false on padding; how much there is makes no difference.
            seed_B: uint64, of `training.seeds.row_seeds`.
        """
        u_BL3 = torch.from_numpy(uniform(seed_B, 3 * tok_BL.shape[1])).view(*tok_BL.shape, 3)
        chosen_BL = self._choose(mask_BL & self.ordinary_V[tok_BL], u_BL3[..., 0])
        row_BL = (u_BL3[..., 1] * len(self.ordinary_id_K)).long()
        shown_BL = tok_BL.masked_fill(u_BL3[..., 2] < 0.8, self.mask_id)
        shown_BL = torch.where(u_BL3[..., 2] >= 0.9, self.ordinary_id_K[row_BL], shown_BL)
        return MaskedText(
            torch.where(chosen_BL, shown_BL, tok_BL), tok_BL.masked_fill(~chosen_BL, NOT_A_TARGET)
        )

    def _choose(self, word_BL: Tensor, u_BL: Tensor) -> Tensor:
        """Each word with probability `share`; where that takes none, one at random."""
        u_BL = u_BL.masked_fill(~word_BL, torch.inf)
        chosen_BL = u_BL < self.share
        if not word_BL.shape[1]:
            return chosen_BL
        lowest_BL = torch.zeros_like(chosen_BL).scatter_(1, u_BL.argmin(dim=1)[:, None], value=True)
        return chosen_BL | (lowest_BL & word_BL)
