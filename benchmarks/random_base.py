"""The paper's model and DALL-E's tokenizer with random weights, to measure speed and memory with.

python benchmarks/random_base.py runs/base runs/dalle.pt

How long a step takes does not depend on the weights, and no weights have to be fetched.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from cots_model.config import load_config
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from training.image_tokenizer import DalleEncoder


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("tokenizer", type=click.Path(path_type=Path))
def main(folder: Path, tokenizer: Path) -> None:
    """Write a checkpoint to FOLDER, and the tokenizer's weights to the file TOKENIZER."""
    torch.manual_seed(0)
    config = load_config("cots-base")
    words = Preprocess.from_pretrained("cots-mini").tokenizer  # BERT's, as in the paper
    preprocess = Preprocess(config.preprocess, words)
    CotsModel(config.model).save_pretrained(folder, preprocess, card="Random weights.\n")
    torch.save(DalleEncoder().state_dict(), tokenizer)


if __name__ == "__main__":
    main()
