"""The heads against the formula, and CMLM's against BERT's own."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, DistilBertConfig, DistilBertModel

from cots_model.config import TextTowerConfig
from cots_model.errors import InputError
from cots_model.text_tower import TextTower
from training.config import OptimiserConfig
from training.heads import LanguageTokenHead, VisionTokenHead
from training.initialise import _initialise_text, initialise_language_head
from training.optim import make_optimiser

OPTIONS = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture
def bert_with_head(tmp_path) -> BertForMaskedLM:
    """A BERT whose every weight was drawn, saved in `tmp_path`."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**OPTIONS)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    return model


@pytest.fixture
def head() -> LanguageTokenHead:
    torch.manual_seed(1)
    return LanguageTokenHead(hidden_width=16, feature_width=16, vocab_size=50)


def test_vision_head_classifies_the_sum():
    head = VisionTokenHead(hidden_width=8, feature_width=8, num_codes=5)
    h_MD, text_MG = torch.randn(3, 8), torch.randn(3, 8)
    expected_MV = (h_MD + text_MG) @ head.decoder.weight.T + head.decoder.bias
    assert head(h_MD, text_MG).shape == (3, 5)
    torch.testing.assert_close(head(h_MD, text_MG), expected_MV)
    assert {name for name, _ in head.named_parameters()} == {
        "mask_token_D",
        "decoder.weight",
        "decoder.bias",
    }


def test_vision_head_maps_a_feature_of_another_width():
    head = VisionTokenHead(hidden_width=8, feature_width=12, num_codes=5)
    h_MD, text_MG = torch.randn(3, 8), torch.randn(3, 12)
    fused_MD = h_MD + text_MG @ head.fuse.weight.T + head.fuse.bias
    torch.testing.assert_close(head(h_MD, text_MG), head.decoder(fused_MD))
    assert head.fuse.weight.shape == (8, 12)
    assert head.mask_token_D.shape == (8,)


def test_heads_start_as_small_as_bert_and_beit():
    torch.manual_seed(0)
    vision = VisionTokenHead(hidden_width=768, feature_width=100)
    assert vision.decoder.weight.shape == (8192, 768)
    language = LanguageTokenHead(hidden_width=768, feature_width=100, vocab_size=9)
    for weight in (
        vision.mask_token_D,
        vision.decoder.weight,
        vision.fuse.weight,
        language.fuse.weight,
        language.dense.weight,
    ):
        assert weight.mean().item() == pytest.approx(0.0, abs=0.004)
        assert weight.std().item() == pytest.approx(0.02, abs=0.002)
    for bias in (vision.decoder.bias, vision.fuse.bias, language.dense.bias, language.bias):
        assert not bias.any()


def test_language_head_is_berts_on_the_sum(bert_with_head, head, tmp_path):
    assert initialise_language_head(head, str(tmp_path))
    word_VW = bert_with_head.get_input_embeddings().weight
    h_MD, image_MG = torch.randn(7, 16), torch.randn(7, 16)
    with torch.no_grad():
        expected_MV = bert_with_head.cls(h_MD + image_MG)
        torch.testing.assert_close(head(h_MD, image_MG, word_VW), expected_MV)
        assert (head(h_MD, image_MG, word_VW) - bert_with_head.cls(h_MD)).abs().max() > 0.1


def test_tower_and_head_are_the_whole_masked_language_model(bert_with_head, head, tmp_path):
    tower = TextTower(TextTowerConfig(options=OPTIONS)).eval()
    _initialise_text(tower, str(tmp_path))
    initialise_language_head(head, str(tmp_path))
    tok_BL = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.ones(2, 9, dtype=torch.bool)
    mask_BL[1, 5:] = False
    with torch.no_grad():
        expected_BLV = bert_with_head(tok_BL, attention_mask=mask_BL.long()).logits
        h_MD = tower(tok_BL, mask_BL)[mask_BL]
        logits_MV = head(h_MD, torch.zeros(len(h_MD), 16), tower.word_embedding_VW)
    torch.testing.assert_close(logits_MV, expected_BLV[mask_BL], rtol=1e-5, atol=1e-5)


def test_language_head_is_the_formula_with_other_widths():
    head = LanguageTokenHead(hidden_width=8, feature_width=12, vocab_size=6, word_width=4)
    torch.nn.init.normal_(head.bias)
    h_MD, image_MG, word_VW = torch.randn(3, 8), torch.randn(3, 12), torch.randn(6, 4)
    x_MW = head.dense(h_MD + head.fuse(image_MG))
    x_MW = 0.5 * x_MW * (1 + torch.erf(x_MW / 2**0.5))
    x_MW = (x_MW - x_MW.mean(1, keepdim=True)) / x_MW.std(1, correction=0, keepdim=True)
    expected_MV = x_MW @ word_VW.T + head.bias
    torch.testing.assert_close(head(h_MD, image_MG, word_VW), expected_MV, rtol=1e-4, atol=1e-4)


def test_decoder_is_tied_to_the_word_embeddings(head):
    tower = TextTower(TextTowerConfig(options=OPTIONS))
    assert tower.word_embedding_VW is tower.trunk.embeddings.word_embeddings.weight
    assert not [name for name, p in head.named_parameters() if p.shape == (50, 16)]
    logits_MV = head(torch.randn(3, 16), torch.randn(3, 16), tower.word_embedding_VW)
    F.cross_entropy(logits_MV, torch.tensor([7, 8, 9])).backward()
    assert (tower.word_embedding_VW.grad.abs().sum(dim=1) > 0).all()


def test_what_maps_the_image_feature_stays_as_it_was(bert_with_head, tmp_path):
    head = LanguageTokenHead(hidden_width=16, feature_width=20, vocab_size=50)
    before = head.fuse.weight.clone()
    assert initialise_language_head(head, str(tmp_path))
    assert torch.equal(head.fuse.weight, before)
    assert torch.equal(head.bias, bert_with_head.cls.predictions.bias)


@pytest.mark.parametrize("kind", ["headless", "relu", "distilbert", "random", "checkpoint"])
def test_a_source_without_such_a_head_leaves_it_random(head, tmp_path, kind):
    before = {name: value.clone() for name, value in head.state_dict().items()}
    source = {"random": "random", "checkpoint": "checkpoint:cots-mini"}.get(kind, str(tmp_path))
    if kind == "headless":
        BertModel(BertConfig(**OPTIONS)).save_pretrained(tmp_path)
    elif kind == "relu":
        BertForMaskedLM(BertConfig(**OPTIONS, hidden_act="relu")).save_pretrained(tmp_path)
    elif kind == "distilbert":
        DistilBertModel(DistilBertConfig(n_layers=1, dim=8, n_heads=2)).save_pretrained(tmp_path)
    assert not initialise_language_head(head, source)
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_head_that_does_not_fit_or_cannot_be_read_is_refused(bert_with_head, tmp_path):
    wide = LanguageTokenHead(hidden_width=16, feature_width=16, vocab_size=51)
    with pytest.raises(InputError, match=r"do not fit the tower(.|\n)*bias"):
        initialise_language_head(wide, str(tmp_path))
    with pytest.raises(InputError, match="missing' cannot be loaded"):
        initialise_language_head(wide, str(tmp_path / "missing"))


def test_mask_token_and_biases_do_not_decay():
    head = torch.nn.ModuleDict(
        {"vision": VisionTokenHead(hidden_width=8, feature_width=9, num_codes=5)}
    )
    groups = make_optimiser(head, OptimiserConfig()).param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    vision = head["vision"]
    assert {id(p) for p in decayed} == {id(vision.fuse.weight), id(vision.decoder.weight)}
