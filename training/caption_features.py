"""Features of captions before projection, made once: for closed forms and for a frozen text tower.

Shape letters: B pairs, K captions, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess

_BATCH = 128  # captions


class CaptionFeatures:
    """Features of captions, by their text; held in memory, float32."""

    def __init__(self, rows: dict[str, int], feature_KD: Tensor) -> None:
        """Take features `[K,D]` and the row of each caption; `embed` is the usual way here."""
        self._rows = rows
        self._feature_KD = feature_KD

    @classmethod
    def embed(
        cls, model: CotsModel, preprocess: Preprocess, captions: Iterable[str], *, bf16: bool
    ) -> CaptionFeatures:
        """Embed captions with the text tower as it is, in evaluation mode.

        Args:
            model: whose text tower it is.
            preprocess: of the model.
            captions: equal ones are embedded once.
            bf16: run the tower in autocast.
        """
        texts = sorted(set(captions), key=lambda text: (len(text), text))  # like lengths together
        device = next(model.text.parameters()).device
        was_training = model.text.training
        model.text.eval()
        features = []
        for at in tqdm(range(0, len(texts), _BATCH), desc="captions", unit="batch", disable=None):
            tok_BL, mask_BL = preprocess.text(texts[at : at + _BATCH])
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                feature_BD = model.text.feature(tok_BL.to(device), mask_BL.to(device))
            features.append(feature_BD.float().cpu())
        model.text.train(was_training)
        feature_KD = torch.cat(features) if features else torch.zeros(0, model.text.width)
        return cls({text: row for row, text in enumerate(texts)}, feature_KD)

    def get(self, captions: Sequence[str]) -> Tensor:
        """Features `[B,D]` of captions that were embedded."""
        return self._feature_KD[[self._rows[text] for text in captions]]
