"""Which patches and which words are hidden for the token-level losses (section 3.2.1, 4.1).

Patches are hidden in exactly the configured share of every picture, words at random as BERT does.
Every draw comes from a CPU generator that the caller seeds, so a run can be repeated.

Shape letters: B batch, P patches of an h x w grid, row by row, L text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cots_model.errors import ConfigError

NOT_A_TARGET = -100

_MIN_RATIO = 0.3  # BEiT


def patch_mask(
    kind: Literal["random", "block"],
    batch: int,
    grid: tuple[int, int],
    *,
    share: float = 0.4,
    min_block: int = 16,
    rng: torch.Generator,
) -> Tensor:
    """Bool `[B,P]`, true where a patch is hidden: round(share * P) in every row, exactly.

    Args:
        kind: `random` draws patches one by one, `block` draws rectangles (BEiT, which the paper
            follows; it is open which of the two it means).
        batch: number of pictures B.
        grid: height and width in patches.
        share: of the patches (paper: 0.4).
        min_block: smallest area of a rectangle in patches (BEiT: 16).
        rng: on the CPU.

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
        return _random_masks(batch, num_patches, count, rng)
    blocks_Bhw = [_block_mask(grid, count, min_block, rng) for _ in range(batch)]
    return torch.stack(blocks_Bhw).flatten(1) if batch else torch.zeros(0, num_patches).bool()


def _random_masks(batch: int, num_patches: int, count: int, rng: torch.Generator) -> Tensor:
    chosen_BC = torch.rand(batch, num_patches, generator=rng).topk(count, dim=1).indices
    return torch.zeros(batch, num_patches, dtype=torch.bool).scatter_(1, chosen_BC, value=True)


def _block_mask(grid: tuple[int, int], count: int, min_block: int, rng: torch.Generator) -> Tensor:
    """Bool `[h,w]` with exactly `count` cells, in rectangles.

    As in BEiT, a rectangle has an area between `min_block` and all of what is left to hide, and its
    height is 0.3 to 1 / 0.3 times its width. Unlike BEiT (chosen), each covers a random visible
    cell, so that it always adds some, and the last one is cut to fit.
    """
    mask_hw = torch.zeros(grid, dtype=torch.bool)
    while (left := count - int(mask_hw.sum())) > 0:
        u_area, u_ratio, u_row, u_column, u_cell, u_end = torch.rand(6, generator=rng).tolist()
        smallest = min(min_block, left)
        area = smallest + u_area * (left - smallest)
        ratio = math.exp((2 * u_ratio - 1) * -math.log(_MIN_RATIO))
        visible_K2 = (~mask_hw).nonzero()
        row, column = visible_K2[int(u_cell * len(visible_K2))].tolist()
        rows = _span(row, math.sqrt(area * ratio), grid[0], u_row)
        columns = _span(column, math.sqrt(area / ratio), grid[1], u_column)
        block_hw = torch.zeros(grid, dtype=torch.bool)
        block_hw[rows, columns] = True
        new_K2 = (block_hw & ~mask_hw).nonzero()
        new_K2 = new_K2[:left] if u_end < 0.5 else new_K2[-left:]
        mask_hw[new_K2[:, 0], new_K2[:, 1]] = True
    return mask_hw


def _span(cell: int, length: float, side: int, u: float) -> slice:
    """A run of about `length` cells that holds `cell` and lies within `side`; u in [0, 1)."""
    size = min(max(1, round(length)), side)
    first, last = max(0, cell - size + 1), min(cell, side - size)
    start = first + int(u * (last - first + 1))
    return slice(start, start + size)


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

    def __call__(self, tok_BL: Tensor, mask_BL: Tensor, rng: torch.Generator) -> MaskedText:
        """Hide words of every caption: at least one of each that has any.

        Args:
            tok_BL: int64, on the CPU as all of this is.
            mask_BL: bool, true on tokens, false on padding.
            rng: on the CPU.
        """
        chosen_BL = self._choose(mask_BL & self.ordinary_V[tok_BL], rng)
        u_BL = torch.rand(tok_BL.shape, generator=rng)
        row_BL = torch.randint(len(self.ordinary_id_K), tok_BL.shape, generator=rng)
        shown_BL = tok_BL.masked_fill(u_BL < 0.8, self.mask_id)
        shown_BL = torch.where(u_BL >= 0.9, self.ordinary_id_K[row_BL], shown_BL)
        return MaskedText(
            torch.where(chosen_BL, shown_BL, tok_BL), tok_BL.masked_fill(~chosen_BL, NOT_A_TARGET)
        )

    def _choose(self, word_BL: Tensor, rng: torch.Generator) -> Tensor:
        """Each word with probability `share`; where that takes none, one at random."""
        u_BL = torch.rand(word_BL.shape, generator=rng).masked_fill(~word_BL, torch.inf)
        chosen_BL = u_BL < self.share
        if not word_BL.shape[1]:
            return chosen_BL
        lowest_BL = torch.zeros_like(chosen_BL).scatter_(1, u_BL.argmin(dim=1)[:, None], value=True)
        return chosen_BL | (lowest_BL & word_BL)
