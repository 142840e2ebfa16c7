"""The token-level losses against naive loops over single tokens."""

import itertools
import math

import pytest
import torch

from cots_model.image_tower import ImageTower
from cots_model.testing import tiny_model_config
from cots_model.text_tower import TextTower
from training.heads import LanguageTokenHead, VisionTokenHead
from training.masking import NOT_A_TARGET, TextMasker, patch_mask
from training.seeds import row_seeds
from training.token_loss import language_token_loss, vision_token_loss

B, P, D, G, V = 3, 6, 4, 5, 7
KEEPS = [None, [True, True, True], [False, True, True], [True, False, False]]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def vision(rng):
    """Arguments of the loss in float64: head, tokens, text features, codes, flags."""
    head = drawn(VisionTokenHead(hidden_width=D, feature_width=G, num_codes=V), rng)
    h_BPD = torch.randn(B, P, D, generator=rng, dtype=torch.float64)
    text_BG = torch.randn(B, G, generator=rng, dtype=torch.float64)
    code_BP = torch.randint(V, (B, P), generator=rng)
    hidden_BP = torch.zeros(B, P, dtype=torch.bool)
    for row, patches in enumerate(([0, 2], [1, 3, 5], [4])):
        hidden_BP[row, patches] = True
    return head, h_BPD, text_BG, code_BP, hidden_BP


@pytest.fixture
def language(vision, rng):
    """Arguments of the loss in float64: head, tokens, image features, labels, embeddings."""
    _, h_BLD, image_BG, code_BP, hidden_BP = vision
    head = LanguageTokenHead(hidden_width=D, feature_width=G, vocab_size=V, word_width=3)
    word_VW = torch.randn(V, 3, generator=rng, dtype=torch.float64)
    label_BL = code_BP.masked_fill(~hidden_BP, NOT_A_TARGET)
    return drawn(head, rng), h_BLD, image_BG, label_BL, word_VW


def drawn(head, rng):
    head = head.double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=rng)
    return head


def naive(logits, h_BPD, feature_BG, label_BP, keep):
    """Eq. 1 and 2, one hidden token of one kept pair at a time."""
    terms, right = [], 0
    for b in range(B):
        for p in range(P):
            if label_BP[b, p] != NOT_A_TARGET and (keep is None or keep[b]):
                logits_V = logits(h_BPD[b, p][None], feature_BG[b][None])[0].tolist()
                log_sum = math.log(sum(math.exp(x) for x in logits_V))
                terms.append(log_sum - logits_V[label_BP[b, p]])
                right += logits_V.index(max(logits_V)) == label_BP[b, p]
    return sum(terms) / len(terms), right / len(terms)


def as_keep(keep) -> torch.Tensor | None:
    return None if keep is None else torch.tensor(keep)


@pytest.mark.parametrize("keep", KEEPS)
def test_vision_token_loss_matches_a_naive_loop(vision, keep):
    head, h_BPD, text_BG, code_BP, hidden_BP = vision
    label_BP = code_BP.masked_fill(~hidden_BP, NOT_A_TARGET)
    expected, right = naive(head, h_BPD, text_BG, label_BP, keep)
    loss, accuracy = vision_token_loss(*vision, keep_B=as_keep(keep))
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert accuracy.item() == pytest.approx(right)
    assert not accuracy.requires_grad


@pytest.mark.parametrize("keep", KEEPS)
def test_language_token_loss_matches_a_naive_loop(language, keep):
    head, h_BLD, image_BG, label_BL, word_VW = language
    expected, right = naive(lambda h, g: head(h, g, word_VW), h_BLD, image_BG, label_BL, keep)
    loss, accuracy = language_token_loss(*language, keep_B=as_keep(keep))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert accuracy.item() == pytest.approx(right)
    assert not accuracy.requires_grad


@pytest.mark.parametrize("keep", [*KEEPS, [False] * 3])
def test_gradient_of_the_vision_token_loss_is_that_of_differences(vision, keep):
    head, h_BPD, text_BG, code_BP, hidden_BP = vision

    def loss(h_BPD, text_BG, *_weights):
        return vision_token_loss(
            head, h_BPD, text_BG, code_BP, hidden_BP, keep_B=as_keep(keep)
        ).loss

    weights = [head.decoder.weight, head.decoder.bias, head.fuse.weight]
    inputs = [h_BPD.requires_grad_(), text_BG.requires_grad_(), *weights]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("keep", [*KEEPS, [False] * 3])
def test_gradient_of_the_language_token_loss_is_that_of_differences(language, keep):
    head, h_BLD, image_BG, label_BL, word_VW = language

    def loss(h_BLD, image_BG, word_VW, *_weights):
        found = language_token_loss(head, h_BLD, image_BG, label_BL, word_VW, keep_B=as_keep(keep))
        return found.loss

    inputs = [x.requires_grad_() for x in (h_BLD, image_BG, word_VW)]
    assert torch.autograd.gradcheck(loss, [*inputs, head.dense.weight, head.norm.weight, head.bias])


def losses(vision, language, keep_B):
    return (
        vision_token_loss(*vision, keep_B=keep_B).loss,
        language_token_loss(*language, keep_B=keep_B).loss,
    )


def test_dropped_pairs_and_visible_tokens_reach_neither_loss_nor_gradient(vision, language):
    keep_B = torch.tensor([True, False, True])
    expected = losses(vision, language, keep_B)
    h_BPD, feature_BG, hidden_BP = vision[1], vision[2], vision[4]  # both losses share them
    h_BPD[1], feature_BG[1], h_BPD[~hidden_BP] = torch.nan, torch.inf, torch.nan
    h_BPD.requires_grad_()
    feature_BG.requires_grad_()
    for before, loss in zip(expected, losses(vision, language, keep_B), strict=True):
        assert torch.equal(before, loss)
        h_BPD.grad = feature_BG.grad = None
        loss.backward()
        counted_BP = hidden_BP & keep_B[:, None]
        assert (h_BPD.grad[counted_BP] != 0).any(dim=1).all()
        assert (h_BPD.grad[~counted_BP] == 0).all()
        assert (feature_BG.grad[keep_B] != 0).any(dim=1).all()
        assert (feature_BG.grad[~keep_B] == 0).all()


@pytest.mark.parametrize("reason", ["dropped", "visible"])
def test_no_hidden_token_of_a_kept_pair_is_a_zero_in_the_graph(vision, language, reason):
    keep_B = torch.zeros(B, dtype=torch.bool) if reason == "dropped" else None
    if reason == "visible":
        vision[4][:], language[3][:] = False, NOT_A_TARGET
    h_BPD, feature_BG = vision[1].requires_grad_(), vision[2].requires_grad_()
    word_VW = language[4].requires_grad_()
    for loss in losses(vision, language, keep_B):
        assert loss.item() == 0.0
        loss.backward()
    weights = dict([*vision[0].named_parameters(), *language[0].named_parameters("language")])
    del weights["mask_token_D"]  # it takes part in the tower, not in the head
    for tensor in [h_BPD, feature_BG, word_VW, *weights.values()]:
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_token_losses_of_extreme_float32_logits_are_finite(vision, language, size):
    for arguments, loss_of in ((vision, vision_token_loss), (language, language_token_loss)):
        single = [x.float() if x.is_floating_point() else x for x in arguments[1:]]
        single[0] = (single[0] * size).requires_grad_()
        single[-1] = single[-1] * size if single[-1].is_floating_point() else single[-1]
        loss = loss_of(arguments[0].float(), *single).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert size / 100 < loss.item() < math.inf
        assert single[0].grad.isfinite().all()


def test_token_losses_are_float32_within_autocast(vision, language):
    for arguments, loss_of in ((vision, vision_token_loss), (language, language_token_loss)):
        head = arguments[0].float()
        single = [x.float() if x.is_floating_point() else x for x in arguments[1:]]
        expected = loss_of(head, *single).loss
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(head, *single).loss
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)


def test_token_losses_of_bf16_heads_are_made_in_float32(vision, language):
    for arguments, loss_of in ((vision, vision_token_loss), (language, language_token_loss)):
        halves = [x.bfloat16() if x.is_floating_point() else x for x in arguments[1:]]
        loss = loss_of(arguments[0].bfloat16(), *halves).loss
        assert loss.dtype == torch.float32
        assert loss.item() > 0


def test_another_grid_of_codes_is_refused(vision):
    head, h_BPD, text_BG, code_BP, hidden_BP = vision
    with pytest.raises(ValueError, match=r"\[3, 6\] patch tokens, \[3, 5\] codes, \[3, 6\] flags"):
        vision_token_loss(head, h_BPD, text_BG, code_BP[:, :5], hidden_BP)
    with pytest.raises(ValueError, match="the image tokenizer's grid must be the image tower's"):
        vision_token_loss(head, torch.cat([h_BPD, h_BPD], dim=1), text_BG, code_BP, hidden_BP)


@pytest.fixture
def towers(preprocess) -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    config = tiny_model_config(preprocess.tokenizer.get_vocab_size())
    image, text = ImageTower(config.image), TextTower(config.text)
    widths = {"hidden_width": image.token_width, "feature_width": text.width}
    vision = VisionTokenHead(**widths, num_codes=2)
    language = LanguageTokenHead(**widths, vocab_size=text.vocab_size)
    return torch.nn.ModuleDict(
        {"image": image, "text": text, "vision": vision, "language": language}
    )


def trace_of(towers, loss_of, steps) -> list[float]:
    optimiser = torch.optim.AdamW(towers.parameters(), lr=2e-3)
    trace = []
    for _ in range(steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        trace.append(loss.item())
    return trace


def test_hidden_patches_are_learnt_from_the_caption(towers, preprocess, rng):
    """Pictures are new noise in every step, so nothing but the caption tells the code."""
    tok_BL, mask_BL = preprocess.text(["red dog", "blue cat"] * 8)
    code_BP = torch.tensor([0, 1] * 8)[:, None].expand(-1, 16)
    image, text, head = towers["image"], towers["text"], towers["vision"]
    seeds = (row_seeds(step, 0, 16) for step in itertools.count())

    def loss_of():
        img_BCHW = torch.randn(16, 3, 32, 32, generator=rng)
        hidden_BP = patch_mask("block", next(seeds), image.patch_grid)
        h_BPD = image.masked_patches(img_BCHW, hidden_BP, head.mask_token_D)
        text_BG = text.feature(tok_BL, mask_BL)
        return vision_token_loss(head, h_BPD, text_BG, code_BP, hidden_BP).loss

    trace = trace_of(towers, loss_of, 30)
    assert trace[0] == pytest.approx(math.log(2), abs=0.3)
    assert max(trace[-5:]) < 0.1
    assert head.mask_token_D.grad.any()


def test_hidden_words_are_learnt_from_the_picture(towers, preprocess, rng):
    """Each caption is one word, always hidden; the picture is dark or bright."""
    tok_BL, mask_BL = preprocess.text(["red", "blue"] * 8)
    brightness_B111 = torch.tensor([-1.0, 1.0] * 8)[:, None, None, None]
    image, text, head = towers["image"], towers["text"], towers["language"]
    masker = TextMasker.from_tokenizer(preprocess.tokenizer, share=1.0)
    seeds = (row_seeds(step, 0, 16) for step in itertools.count())

    def loss_of():
        masked = masker(tok_BL, mask_BL, next(seeds))
        h_BLD = text(masked.tok_BL, mask_BL)
        img_BCHW = torch.randn(16, 3, 32, 32, generator=rng) + brightness_B111
        word_VW = text.word_embedding_VW
        image_BG = image.feature(img_BCHW)
        return language_token_loss(head, h_BLD, image_BG, masked.label_BL, word_VW).loss

    trace = trace_of(towers, loss_of, 60)
    assert trace[0] == pytest.approx(math.log(text.vocab_size), abs=0.5)
    assert max(trace[-5:]) < 0.3  # ln 2 without the picture
