"""COTS: two separate encoders that meet in one joint space (CVPR 2022, section 3.1).

    model = CotsModel.from_pretrained("cots-mini")
    z_BE = model.encode_image(img_BCHW)     # unit vectors; a dot product is the similarity
    z_BE = model.encode_text(tok_BL, mask_BL)

Shape letters: B batch, L text tokens, D width, E joint width, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cots_model import checkpoint
from cots_model.config import ModelConfig
from cots_model.errors import CheckpointError
from cots_model.image_tower import ImageTower
from cots_model.preprocess import Preprocess
from cots_model.text_tower import TextTower


class CotsModel(nn.Module):
    """Image tower, text tower, and one linear projection to the joint space for each."""

    def __init__(self, config: ModelConfig) -> None:
        """Build both towers with random weights.

        Raises:
            ConfigError: if a tower cannot be built as configured.
        """
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image)
        self.text = TextTower(config.text)
        self.image_dropout = nn.Dropout(config.image.feature_drop_rate)
        self.text_dropout = nn.Dropout(config.text.feature_drop_rate)
        self.image_projection = nn.Linear(self.image.width, config.embed_dim)
        self.text_projection = nn.Linear(self.text.width, config.embed_dim)

    def encode_image(self, img_BCHW: Tensor) -> Tensor:
        """Embed normalised pixels `[B,3,H,W]`: unit vectors `[B,E]`, float32."""
        return self.project_image(self.image.feature(img_BCHW))

    def encode_text(self, tok_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Embed token ids `[B,L]` int64 with mask `[B,L]` bool: unit vectors `[B,E]`, float32."""
        return self.project_text(self.text.feature(tok_BL, mask_BL))

    def project_image(self, feature_BD: Tensor) -> Tensor:
        """From the image feature to the joint space: unit vectors `[B,E]`, float32."""
        return unit(self.image_projection(self.image_dropout(feature_BD)))

    def project_text(self, feature_BD: Tensor) -> Tensor:
        """From the text feature to the joint space: unit vectors `[B,E]`, float32."""
        return unit(self.text_projection(self.text_dropout(feature_BD)))

    @classmethod
    def from_pretrained(
        cls, source: str | Path = "cots-mini", *, device: str | torch.device = "cpu"
    ) -> CotsModel:
        """Load a checkpoint (a folder, a bundled name or a hub id) in evaluation mode, float32.

        Raises:
            CheckpointError: if it is missing, damaged, or its weights do not fit its configuration.
            ConfigError: if its configuration has unknown or bad keys.
        """
        folder = checkpoint.locate(source)
        config = checkpoint.read_config(folder).model
        weights = checkpoint.read_weights(folder / checkpoint.WEIGHTS_FILE)
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in cls(config).state_dict().items()}
        _check_weights(folder, shapes, weights)
        with torch.random.fork_rng(devices=[]):  # the first weights drawn here are thrown away
            model = cls(config)
        model.load_state_dict(weights)
        return model.to(device).eval()

    def save_pretrained(
        self,
        folder: str | Path,
        preprocess: Preprocess,
        *,
        card: str,
        storage: checkpoint.Storage = "float32",
    ) -> str:
        """Write a checkpoint folder and return its fingerprint.

        Args:
            folder: made if missing; files of an earlier checkpoint in it are replaced.
            preprocess: the preprocessing this model was trained with.
            card: Markdown text of the model card.
            storage: number format of the weights; `int8` is the smallest.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / checkpoint.CONFIG_FILE).unlink(missing_ok=True)
        path = folder / checkpoint.WEIGHTS_FILE
        checkpoint.write_weights(path, dict(self.state_dict()), storage)
        preprocess.save(folder)
        (folder / checkpoint.CARD_FILE).write_text(card, "utf-8")
        return checkpoint.write_config(folder, self.config, storage).fingerprint


def unit(x_BE: Tensor) -> Tensor:
    """L2-normalise rows in float32 (chosen: the paper's temperature of 0.05 presumes it)."""
    return F.normalize(x_BE.float(), dim=-1)


def _check_weights(folder: Path, shapes: dict[str, torch.Size], weights: dict[str, Tensor]) -> None:
    faults = [f"{name} is missing" for name in shapes.keys() - weights.keys()]
    faults += [f"{name} is unknown" for name in weights.keys() - shapes.keys()]
    faults += [
        f"{name} is {list(weights[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + ("; …" if len(faults) > 3 else "")
        raise CheckpointError(
            f"the weights in {folder} do not fit its configuration: {shown}; "
            "take model.safetensors and config.json from the same checkpoint"
        )
