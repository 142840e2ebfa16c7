"""Which patches and words are hidden: exact counts, shapes of blocks, BERT's proportions."""

import numpy as np
import pytest
import torch

from cots_model.errors import ConfigError
from cots_model.testing import make_tokenizer
from training.masking import NOT_A_TARGET, TextMasker, patch_mask
from training.seeds import row_seeds, uniform

KINDS = ("random", "block")


def seeds_of(seed: int, count: int) -> np.ndarray:
    return row_seeds(seed, 0, count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("grid", "share", "count"),
    [
        ((24, 24), 0.4, 230),
        ((14, 14), 0.4, 78),
        ((4, 4), 0.4, 6),
        ((3, 7), 0.4, 8),
        ((7, 7), 0.4, 20),
        ((1, 10), 0.5, 5),
        ((9, 1), 0.9, 8),
        ((2, 1), 0.5, 1),
        ((24, 24), 0.99, 570),
    ],
)
def test_every_picture_hides_exactly_its_share(kind, grid, share, count):
    assert count == round(share * grid[0] * grid[1])
    for seed in range(40):
        hidden_BP = patch_mask(kind, seeds_of(seed, 3), grid, share=share)
        assert hidden_BP.shape == (3, grid[0] * grid[1])
        assert hidden_BP.dtype == torch.bool
        assert hidden_BP.sum(dim=1).tolist() == [count] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_patch_masks_repeat_with_their_seed(kind):
    first, again, other = (patch_mask(kind, seeds_of(seed, 4), (24, 24)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not any(torch.equal(first[0], first[row]) for row in (1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_of_a_picture_depends_on_its_own_seed(kind):
    """Processes and accumulated batches draw their own pictures alone."""
    together_BP = patch_mask(kind, row_seeds(3, 0, 12), (24, 24))
    for first, count in ((0, 4), (4, 4), (4, 8), (11, 1)):
        part_BP = patch_mask(kind, row_seeds(3, first, count), (24, 24))
        assert torch.equal(part_BP, together_BP[first : first + count])


@pytest.mark.parametrize("kind", KINDS)
def test_patch_masks_leave_the_global_generator_alone(kind):
    state = torch.get_rng_state()
    patch_mask(kind, seeds_of(0, 2), (6, 6))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_masks_hide_every_patch_equally_often():
    """Of 20,000 masks the share of each patch is 0.4 with a deviation of 0.0035."""
    share_P = patch_mask("random", seeds_of(0, 20_000), (5, 8)).float().mean(dim=0)
    assert (share_P - 0.4).abs().max() < 0.016


def test_block_masks_reach_every_patch():
    share_P = patch_mask("block", seeds_of(0, 2_000), (8, 8)).float().mean(dim=0)
    assert share_P.min() > 0.1  # corners are in fewer rectangles
    assert share_P.max() < 0.65


def hidden_neighbours(hidden_BP: torch.Tensor, side: int) -> float:
    """Share of the pairs of neighbours of hidden patches that are hidden too."""
    hidden_Bhw = hidden_BP.view(-1, side, side)
    both = (hidden_Bhw[:, 1:] & hidden_Bhw[:, :-1]).sum()
    return float(both / hidden_Bhw[:, :-1].sum())


def test_block_masks_hide_neighbours_together():
    blocks = hidden_neighbours(patch_mask("block", seeds_of(0, 100), (24, 24)), 24)
    singles = hidden_neighbours(patch_mask("random", seeds_of(0, 100), (24, 24)), 24)
    assert singles == pytest.approx(0.4, abs=0.02)
    assert blocks > 0.75


def test_a_block_that_fits_is_a_rectangle():
    """As large as all there is to hide, the first block is the only one but for its rounding."""
    grid, count = (40, 40), 200
    for seed in range(30):
        hidden_BP = patch_mask(
            "block", seeds_of(seed, 1), grid, share=count / 1600, min_block=count
        )
        row_K, column_K = hidden_BP.view(grid).nonzero().T
        widths = [width for width in row_K.bincount().tolist() if width]
        assert widths.count(max(set(widths), key=widths.count)) >= 0.5 * len(widths)
        ratio = (row_K.bincount() > 3).sum() / (column_K.bincount() > 3).sum()
        assert 0.25 < ratio < 4


def test_min_block_sets_how_coarse_the_masks_are():
    fine, coarse = (
        hidden_neighbours(
            patch_mask("block", seeds_of(0, 100), (24, 24), share=0.2, min_block=area), 24
        )
        for area in (1, 100)
    )
    assert coarse > fine


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_an_empty_mask(kind):
    assert patch_mask(kind, seeds_of(0, 0), (4, 4)).shape == (0, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "share"), [((1, 1), 0.4), ((4, 4), 0.0), ((4, 4), 0.99)])
def test_a_share_that_hides_none_or_all_is_refused(kind, grid, share):
    with pytest.raises(ConfigError, match="choose one that hides some and leaves some"):
        patch_mask(kind, seeds_of(0, 2), grid, share=share)


PAD, CLS, SEP, MASK, VOCAB = 0, 2, 3, 4, 1000
SPECIAL = {0, 1, 2, 3, 4}


@pytest.fixture
def masker() -> TextMasker:
    return TextMasker(vocab_size=VOCAB, mask_id=MASK, special_ids=SPECIAL)


def captions(batch: int, words: int, padding: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """[CLS] word word ... [SEP] [PAD] ..., no word twice."""
    tok_BL = torch.full((batch, words + 2 + padding), PAD)
    tok_BL[:, 0] = CLS
    tok_BL[:, 1 : words + 1] = 10 + torch.arange(words)
    tok_BL[:, words + 1] = SEP
    return tok_BL, tok_BL != PAD


def test_masking_takes_and_treats_words_as_bert_does(masker):
    """Of 800,000 words; the bounds are five deviations and more."""
    tok_BL, mask_BL = captions(8_000, 100)
    masked = masker(tok_BL, mask_BL, seeds_of(0, len(tok_BL)))
    chosen_BL = masked.label_BL != NOT_A_TARGET
    assert chosen_BL[:, 1:101].float().mean() == pytest.approx(0.15, abs=0.002)
    before_M, after_M = tok_BL[chosen_BL], masked.tok_BL[chosen_BL]
    kept, hidden = (after_M == before_M).float().mean(), (after_M == MASK).float().mean()
    assert hidden == pytest.approx(0.8, abs=0.006)
    assert kept == pytest.approx(0.1 + 0.1 / (VOCAB - 5), abs=0.005)
    random_M = after_M[(after_M != MASK) & (after_M != before_M)]
    assert len(random_M) / len(after_M) == pytest.approx(0.1, abs=0.005)
    count_V = random_M.bincount(minlength=VOCAB)
    assert count_V[5:].min() > 0
    assert count_V[5:].max() < 3 * count_V[5:].float().mean()


def test_labels_are_the_words_that_were_hidden(masker):
    tok_BL, mask_BL = captions(50, 20)
    masked = masker(tok_BL, mask_BL, seeds_of(0, len(tok_BL)))
    chosen_BL = masked.label_BL != NOT_A_TARGET
    assert torch.equal(masked.label_BL[chosen_BL], tok_BL[chosen_BL])
    assert torch.equal(masked.tok_BL[~chosen_BL], tok_BL[~chosen_BL])
    assert (masked.label_BL[~chosen_BL] == -100).all()
    assert torch.equal(tok_BL, captions(50, 20)[0])  # the input is left alone


def test_special_tokens_and_padding_are_neither_hidden_nor_put_in():
    masker = TextMasker(vocab_size=12, mask_id=MASK, special_ids=SPECIAL, share=1.0)
    rng = torch.Generator().manual_seed(0)
    tok_BL = torch.randint(12, (400, 30), generator=rng)
    mask_BL = torch.rand(400, 30, generator=rng) < 0.7
    masked = masker(tok_BL, mask_BL, seeds_of(0, 400))
    special_BL = torch.isin(tok_BL, torch.tensor(sorted(SPECIAL)))
    chosen_BL = masked.label_BL != NOT_A_TARGET
    assert torch.equal(chosen_BL, mask_BL & ~special_BL)
    put_in_M = masked.tok_BL[chosen_BL]
    assert set(put_in_M.tolist()) == {MASK} | set(range(5, 12))


@pytest.mark.parametrize("words", [1, 2, 5])
def test_every_caption_hides_at_least_one_word(masker, words):
    tok_BL, mask_BL = captions(2_000, words)
    for seed in range(5):
        label_BL = masker(tok_BL, mask_BL, seeds_of(seed, len(tok_BL))).label_BL
        count_B = (label_BL != NOT_A_TARGET).sum(dim=1)
        assert count_B.min() == 1
        none = 0.85**words
        expected = 0.15 * words + none
        assert count_B.float().mean() == pytest.approx(expected, abs=0.1)
        share_L = (label_BL != NOT_A_TARGET).float().mean(dim=0)
        assert share_L[1 : words + 1].max() - share_L[1 : words + 1].min() < 0.08


def test_a_caption_without_words_hides_none(masker):
    tok_BL, mask_BL = captions(3, 0)
    masked = masker(tok_BL, mask_BL, seeds_of(0, len(tok_BL)))
    assert torch.equal(masked.tok_BL, tok_BL)
    assert (masked.label_BL == NOT_A_TARGET).all()
    empty_BL = torch.zeros(2, 0, dtype=torch.int64)
    assert masker(empty_BL, empty_BL.bool(), seeds_of(0, 2)).label_BL.shape == (2, 0)


def test_text_masks_repeat_with_their_seed(masker):
    tok_BL, mask_BL = captions(8, 40)
    first, again, other = (
        masker(tok_BL, mask_BL, seeds_of(seed, len(tok_BL))) for seed in (3, 3, 4)
    )
    assert torch.equal(first.tok_BL, again.tok_BL)
    assert torch.equal(first.label_BL, again.label_BL)
    assert not torch.equal(first.label_BL, other.label_BL)


def test_the_words_of_a_caption_depend_on_its_own_seed(masker):
    """However long the others of its batch are."""
    tok_BL, mask_BL = captions(8, 40, padding=9)
    together = masker(tok_BL, mask_BL, row_seeds(3, 0, 8))
    part = masker(tok_BL[5:, :42], mask_BL[5:, :42], row_seeds(3, 5, 3))
    assert torch.equal(part.tok_BL, together.tok_BL[5:, :42])
    assert torch.equal(part.label_BL, together.label_BL[5:, :42])


def test_masker_knows_the_special_tokens_of_a_tokenizer(preprocess):
    tokenizer = preprocess.tokenizer
    masker = TextMasker.from_tokenizer(tokenizer, share=1.0)
    tok_BL, mask_BL = preprocess.text(["a dog runs", "two red cats in the snow §"])
    masked = masker(tok_BL, mask_BL, seeds_of(0, len(tok_BL)))
    special = {tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    assert masker.mask_id == tokenizer.token_to_id("[MASK]")
    assert len(masker.ordinary_V) == tokenizer.get_vocab_size()
    assert tokenizer.token_to_id("[UNK]") in tok_BL[1]
    for before, label in zip(tok_BL.flatten().tolist(), masked.label_BL.flatten(), strict=True):
        assert (label == NOT_A_TARGET) == (before in special)


def test_added_words_are_words_like_any_other():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["snowboarding"])
    masker = TextMasker.from_tokenizer(tokenizer)
    assert masker.ordinary_V[tokenizer.token_to_id("snowboarding")]
    assert not masker.ordinary_V[tokenizer.token_to_id("[SEP]")]


def test_masker_refuses_a_tokenizer_without_a_mask_token():
    with pytest.raises(ConfigError, match="no token '<mask>'"):
        TextMasker.from_tokenizer(make_tokenizer(), mask_token="<mask>")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_masker_refuses_what_is_no_share(share):
    with pytest.raises(ConfigError, match=r"use a number in \(0, 1\]"):
        TextMasker(vocab_size=10, mask_id=4, special_ids=SPECIAL, share=share)


def test_uniform_numbers_are_uniform_and_those_of_their_place():
    """Of a million numbers; the bounds are five deviations and more."""
    seed_B = row_seeds(5, 0, 1_000)
    u_BK = uniform(seed_B, 1_000)
    assert 0 <= u_BK.min() < 1e-5 < 1 - 1e-5 < u_BK.max() < 1
    assert np.histogram(u_BK, bins=10, range=(0, 1))[0] == pytest.approx(100_000, abs=1_600)
    assert abs(np.corrcoef(u_BK[:, 0], u_BK[:, 1])[0, 1]) < 0.16
    assert abs(np.corrcoef(u_BK[:-1].ravel(), u_BK[1:].ravel())[0, 1]) < 0.005
    assert len(np.unique(u_BK)) == 1_000_000
    assert np.array_equal(uniform(seed_B[7:9], 3, start=10), u_BK[7:9, 10:13])


def test_splitmix_gives_its_published_numbers():
    """Its reference implementation (Vigna) with seed 1234567."""
    seed_1 = np.array([1234567], dtype=np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [(value >> 11) * 2.0**-53 for value in published]
    assert uniform(seed_1, 3)[0].tolist() == expected
