"""A tiny random checkpoint in the real format, for tests and dry runs."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from cots_model.config import ImageTowerConfig, ModelConfig, PreprocessConfig, TextTowerConfig
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [
    "a",
    "an",
    "the",
    "in",
    "on",
    "of",
    "and",
    "with",
    "dog",
    "cat",
    "man",
    "woman",
    "snow",
    "beach",
    "red",
    "blue",
    "runs",
    "plays",
    "two",
]


def make_tokenizer(words: list[str] | None = None) -> Tokenizer:
    """A BERT tokenizer of letters, digits and `words`; every ASCII word can be spelled."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1) if not chr(code).isupper()]
    tokens = _SPECIAL + characters + [f"##{c}" for c in characters] + (words or _WORDS)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


def tiny_model_config(vocab_size: int, *, embed_dim: int = 32) -> ModelConfig:
    """A two-block vision transformer on 32-pixel pictures and a two-layer BERT."""
    return ModelConfig(
        name="tiny",
        embed_dim=embed_dim,
        image=ImageTowerConfig(
            arch="vit_tiny_patch16_224",
            image_size=32,
            options={"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8},
        ),
        text=TextTowerConfig(
            arch="bert",
            options={
                "vocab_size": vocab_size,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "max_position_embeddings": 64,
            },
        ),
    )


def make_tiny_checkpoint(folder: Path, *, seed: int = 0, embed_dim: int = 32) -> Path:
    """Write a random checkpoint into `folder`; equal seeds give equal fingerprints."""
    tokenizer = make_tokenizer()
    preprocess = Preprocess(PreprocessConfig(image_size=32, max_tokens=32), tokenizer)
    config = tiny_model_config(tokenizer.get_vocab_size(), embed_dim=embed_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CotsModel(config)
        for parameter in model.parameters():  # every weight drawn here, none left at zero
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, preprocess, card="# tiny\n\nRandom weights, for tests.\n")
    return folder
