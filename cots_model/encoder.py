"""A checkpoint ready to embed: what the index builder and the service use.

encoder = Encoder.load("cots-mini")
z_BE = encoder.encode_texts(["two dogs playing in snow"])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cots_model import checkpoint
from cots_model.config import Precision
from cots_model.cores import map_on_cores, part_sizes
from cots_model.errors import CheckpointError, InputError
from cots_model.fused_bert import FusedBert, can_fuse
from cots_model.model import CotsModel
from cots_model.precision import use_int8
from cots_model.preprocess import PicturePreprocess, Preprocess

Vectors = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")

_CORE_PICTURES = 4  # at once on one core; more fall out of its caches
_CORE_TEXTS = 8


@dataclass(frozen=True)
class ReadTexts:
    """Texts that a model has read.

    Attributes:
        z_BE: `[B,E]` float32 unit vectors.
        cut_at_B: of each text the character from which on the model read no more; None if it read
            all.
    """

    z_BE: Vectors
    cut_at_B: tuple[int | None, ...]


class Encoder:
    """Model and preprocessing of one checkpoint on one device.

    Attributes:
        preprocess: turns a picture into what `encode_pixels` takes.
        fingerprint: of the checkpoint.
        device: where the model runs.
    """

    preprocess: PicturePreprocess
    fingerprint: str
    device: torch.device

    def __init__(
        self,
        model: CotsModel,
        preprocess: Preprocess,
        fingerprint: str,
        *,
        precision: Precision = "float32",
    ) -> None:
        """Hold a model in evaluation mode; `Encoder.load` is the usual way here.

        The model is changed: its layout in memory, and with int8 its layers.

        Raises:
            CheckpointError: if the preprocessing gives something that the model does not take.
            InputError: for int8 on a GPU.
        """
        _check_fit(model, preprocess)
        if precision == "int8":
            use_int8(model)
        # channels last halves the time of convolutions
        self._model = model.eval().to(memory_format=torch.channels_last)
        self._preprocess = preprocess
        self.preprocess = preprocess
        self.fingerprint = fingerprint
        self.device = next(model.parameters()).device
        self._precision: Precision = precision
        fused = self._on_cpu and precision == "float32" and can_fuse(model.text)
        self._text_feature = FusedBert(model.text).feature if fused else model.text.feature

    @classmethod
    def load(
        cls,
        source: str | Path = "cots-mini",
        *,
        device: str = "auto",
        precision: Precision = "float32",
    ) -> Encoder:
        """Load a checkpoint, or an ensemble of some: a folder, a bundled name or a hub id.

        Args:
            source: which checkpoint.
            device: `auto` takes the GPU if there is one; else `cpu`, `cuda` or `cuda:N`.
            precision: of the computation; vectors of all precisions can be compared.

        Raises:
            CheckpointError: if the checkpoint is missing, damaged or foreign.
            InputError: if the device does not exist, or does not compute so.
        """
        folder = checkpoint.locate(source)
        if checkpoint.is_ensemble(folder):
            from cots_model.ensemble import load_ensemble

            return load_ensemble(folder, device=device, precision=precision)
        model = CotsModel.from_pretrained(folder, device=resolve_device(device))
        preprocess = Preprocess.from_pretrained(folder)
        fingerprint = checkpoint.read_config(folder).fingerprint
        return cls(model, preprocess, fingerprint, precision=precision)

    @property
    def model(self) -> CotsModel:
        """The checkpoint's model."""
        return self._model

    @property
    def text_preprocess(self) -> Preprocess:
        """The checkpoint's preprocessing, its tokenizer with it."""
        return self._preprocess

    @property
    def name(self) -> str:
        """The model's short name."""
        return self.model.config.name

    @property
    def precision(self) -> Precision:
        """Of the computation."""
        return self._precision

    @property
    def dim(self) -> int:
        """Width E of the joint space."""
        return self.model.config.embed_dim

    def num_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the model reads of all `texts`, each cut to what it takes.

        It may run in any thread, also beside `encode_texts`.
        """
        return int(self._preprocess.text(texts)[1].sum())

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Vectors:
        """Embed texts: `[B,E]` float32 unit vectors."""
        return self.read_texts(texts, batch_size=batch_size).z_BE

    def read_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> ReadTexts:
        """Embed texts, and tell which are longer than what the model reads.

        A GPU takes `batch_size` at a time, each core of a CPU a few: those of like length together,
        for padding is work too, and the longest first, so that cores end together.
        """
        order_B = np.argsort([-len(text) for text in texts], kind="stable")
        sizes = self._sizes(len(texts), _CORE_TEXTS, batch_size)
        parts = [
            [texts[n] for n in order_B[end - size : end]]
            for size, end in zip(sizes, accumulate(sizes), strict=True)
        ]
        read = self._map(self._read_text_batch, parts)
        place_B = np.argsort(order_B)
        sorted_BE = self._stack([part.z_BE for part in read])
        cut_at_B = [cut_at for part in read for cut_at in part.cut_at_B]
        return ReadTexts(sorted_BE[place_B], tuple(cut_at_B[place] for place in place_B))

    def encode_images(self, imgs: Sequence[Image.Image], *, batch_size: int = 32) -> Vectors:
        """Embed RGB pictures: `[B,E]` float32 unit vectors."""
        parts = [
            self.encode_pixels(self._preprocess.images(imgs[start : start + batch_size]))
            for start in range(0, len(imgs), batch_size)
        ]
        return self._stack(parts)

    def encode_pixels(self, img_BCHW: Tensor) -> Vectors:
        """Embed preprocessed pixels `[B,3,H,W]`: `[B,E]` float32 unit vectors.

        A GPU takes the batch whole, each core of a CPU a few pictures at a time.
        """
        count = len(img_BCHW)
        sizes = self._sizes(count, _CORE_PICTURES, count)
        return self._stack(self._map(self._encode_pixel_chunk, img_BCHW.split(sizes)))

    def _encode_pixel_chunk(self, img_BCHW: Tensor) -> Vectors:
        img_BCHW = img_BCHW.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            with self._autocast():
                feature_BD = self.model.image.feature(img_BCHW)
            return _to_numpy(self.model.project_image(feature_BD.float()))

    def _sizes(self, count: int, of_core: int, of_gpu: int) -> list[int]:
        if self._on_cpu:
            return part_sizes(count, of_core)
        return [min(of_gpu, count - start) for start in range(0, count, of_gpu)] if count else []

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def _map(self, call: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        return map_on_cores(call, parts) if self._on_cpu else [call(part) for part in parts]

    def _autocast(self) -> torch.autocast:
        enabled = self._precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _read_text_batch(self, texts: Sequence[str]) -> ReadTexts:
        tokens = self._preprocess.tokens(texts)
        tok_BL, mask_BL = tokens.tok_BL.to(self.device), tokens.mask_BL.to(self.device)
        with torch.inference_mode():
            with self._autocast():
                feature_BD = self._text_feature(tok_BL, mask_BL)
            z_BE = _to_numpy(self.model.project_text(feature_BD.float()))
        return ReadTexts(z_BE, tokens.cut_at_B)

    def _stack(self, parts: list[Vectors]) -> Vectors:
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that exists.

    Raises:
        InputError: for any other name, or for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", name)
    if match is None:
        raise InputError(f"unknown device {name!r}; accepted: auto, cpu, cuda, cuda:N")
    if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} is not here ({torch.cuda.device_count()} GPUs seen); use cpu or auto"
        )
    return torch.device(name)


def _check_fit(model: CotsModel, preprocess: Preprocess) -> None:
    config, vocabulary = preprocess.config, preprocess.tokenizer.get_vocab_size()
    faults = []
    if config.image_size != model.config.image.image_size:
        faults.append(f"image_size {config.image_size}, not {model.config.image.image_size}")
    if config.max_tokens > model.text.max_tokens:
        faults.append(f"max_tokens {config.max_tokens}, over {model.text.max_tokens}")
    if vocabulary > model.text.vocab_size:
        faults.append(f"a vocabulary of {vocabulary:,}, over {model.text.vocab_size:,}")
    if faults:
        raise CheckpointError(
            f"the preprocessing does not fit the model {model.config.name!r}: it has "
            f"{'; '.join(faults)}; take all files from the same checkpoint"
        )


def _to_numpy(z_BE: Tensor) -> Vectors:
    vectors: Vectors = z_BE.cpu().numpy()
    return vectors
