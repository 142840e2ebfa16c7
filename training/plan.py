"""What a run will need, found before it is started: memory per process, operations, time.

    plan = make_plan(load_train_config(Path("training/configs/pretrain_cc4m.yaml")))
    plan.memory_bytes(64), plan.seconds(4_000_000, peak=peak_of("H100"), devices=8)

Memory is counted, not modelled: optimiser steps of the run's own networks, with random weights and
pictures, are done on the CPU while the bytes of all living tensors are added up after every
operation. Two batch sizes tell how each of these sums grows; the largest at a third is its peak,
whichever operation that falls on. Gradients count all the time, as with accumulated batches.
Workspaces of a GPU's libraries and what its allocator leaves unused come on top; GPUs also keep
layer norms in float32 where a CPU has bf16.

Shape letters: B pairs, F pictures or frames, L text tokens, P patches.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cots_model.config import load_config
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from training.batches import Batch
from training.config import EngineConfig, TrainConfig
from training.engine.flops import Flops, StepFlops
from training.engine.hiding import check_grid
from training.engine.speed import Peak
from training.engine.world import World
from training.engine.wrap import wrap
from training.image_tokenizer import DalleEncoder, ImageTokenizer
from training.masking import NOT_A_TARGET, patch_mask
from training.momentum import MomentumCopy
from training.objective import Hidden, Keys, Objective, Shares, project_images
from training.optim import make_optimiser
from training.queues import PairQueues
from training.seeds import row_seeds
from training.tokenizer_source import load_tokenizer_model

DALLE_SOURCE = "facebook/flava-image-codebook"

_SMALL, _LARGE = 2, 4  # pairs of the steps that are counted
_WHOLE_CHUNKS = (128, 192)  # pictures; tokenizers take 16 or 64 at a time


@dataclass(frozen=True)
class Plan:
    """What a run needs on every process.

    Attributes:
        lines: bytes without a pair, and bytes of each pair, after every operation of a step.
        pair_flops: per pair.
        precision: of the run.
    """

    lines: frozenset[tuple[float, float]]
    pair_flops: Flops
    precision: str

    def memory_bytes(self, batch_size: int) -> float:
        """Most of a process that takes so many pairs at once."""
        return max(fixed + batch_size * pair for fixed, pair in self.lines)

    def seconds(self, pairs: int, *, peak: Peak, devices: int, mfu: float) -> float:
        """Of so many pairs on devices that reach the share `mfu` of their peak."""
        return pairs * peak.seconds(self.pair_flops, self.precision) / (mfu * devices)


def make_plan(config: TrainConfig, *, num_tokens: int = 16, num_frames: int = 1) -> Plan:
    """Count what a run needs, without its data and without its first weights.

    Args:
        config: of a run whose image tower is trained.
        num_tokens: L of a typical batch, special tokens and padding included.
        num_frames: of each pair; 1 for pictures.

    Raises:
        ConfigError: if the image tower is frozen, the model cannot be built, or the image
            tokenizer is not there or does not fit.
    """
    if config.freeze_image or config.freeze_text or not config.epochs:
        raise ConfigError(
            "a run with a frozen tower or without epochs cannot be planned: what it needs depends "
            "on its features in memory; choose one with freeze_image=false and freeze_text=false"
        )
    with torch.random.fork_rng(devices=[]):
        steps = _CountedSteps(config, num_tokens, num_frames)
        small, large = steps.trace(_SMALL), steps.trace(_LARGE)
        flops = StepFlops(config, steps.objective, steps.tokenizer)
        pair_flops = flops([steps.batch(_SMALL)]) / _SMALL
    lines = set()
    for at_small, at_large in zip(small, large, strict=True):
        pair = (at_large - at_small) / (_LARGE - _SMALL)
        lines.add((at_small - _SMALL * pair, pair))
    if steps.tokenizer is not None:
        lines.add(steps.codes_line(steps.tokenizer))
    waiting = (config.accumulate - 1) * steps.pixel_bytes  # all batches of a step are there at once
    lines = {(fixed, pair + waiting) for fixed, pair in lines}
    return Plan(frozenset(lines), pair_flops, config.precision)


class _LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive while it is on.

    Attributes:
        trace: the sum after every operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.trace: list[int] = []
        self._now = 0
        self._seen: Any = WeakIdKeyDictionary()

    def watch(self, tensors: object) -> None:
        """Count tensors, in any nesting of lists and dictionaries, from now on."""
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage not in self._seen:
                size = storage.nbytes()
                self._seen[storage] = size
                weakref.finalize(storage, self._gone, size)
                self._now += size

    def _gone(self, size: int) -> None:
        self._now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(result)
        self.trace.append(self._now)
        return result


class _CountedSteps:
    """The networks of a run on the CPU, and steps of random pairs."""

    def __init__(self, config: TrainConfig, num_tokens: int, num_frames: int) -> None:
        self._config, self._num_tokens, self._num_frames = config, num_tokens, num_frames
        shipped = load_config(config.model)
        model, self._preprocess = CotsModel(shipped.model), shipped.preprocess
        vision = config.objective.vision
        self.tokenizer = _tokenizer(vision.tokenizer) if vision.weight else None
        if self.tokenizer is not None:
            check_grid(model.image.patch_grid, self.tokenizer, shipped.preprocess.image_size)
        self.objective = Objective(
            model,
            config.objective,
            num_codes=self.tokenizer.vocab_size if self.tokenizer else 0,
        )
        instance = config.objective.instance
        self._momentum: MomentumCopy[CotsModel] = MomentumCopy(model, momentum=instance.momentum)
        self._queues = PairQueues(instance.queue_length, model.config.embed_dim)
        alone = World(0, 1, torch.device("cpu"))
        recompute = config.engine.activation_checkpointing
        engine = EngineConfig(activation_checkpointing=recompute)
        self._wrapped = wrap(self.objective, self._momentum.module, engine, alone)
        self._optimiser = make_optimiser(self.objective, config.optimiser)
        self._step(_SMALL)  # the optimiser makes its averages in the first step

    def batch(self, size: int) -> Batch:
        """Random pairs."""
        side, length = self.objective.model.config.image.image_size, self._num_tokens
        frames = (self._num_frames,) * size
        return Batch(
            torch.randn(sum(frames), 3, side, side),
            torch.randint(1, self.objective.model.text.vocab_size, (size, length)),
            torch.ones(size, length, dtype=torch.bool),
            torch.arange(size),
            num_frames_B=frames if self._num_frames > 1 else None,
        )

    @property
    def pixel_bytes(self) -> int:
        """Of the pictures of one pair."""
        side = self.objective.model.config.image.image_size
        return self._num_frames * 3 * side * side * 4

    def trace(self, size: int) -> list[int]:
        """Bytes of the tensors that are alive after every operation of a step."""
        live = self._watched()
        with live:
            self._step(size)
        return live.trace

    def codes_line(self, tokenizer: ImageTokenizer) -> tuple[float, float]:
        """Bytes without a pair and of each pair at the worst moment of making codes.

        Codes are made of a fixed number of pictures at a time, so of batches that are larger;
        nothing is computed.
        """
        few, many = _WHOLE_CHUNKS
        peaks = []
        for size in _WHOLE_CHUNKS:
            live = self._watched()
            with FakeTensorMode(allow_non_fake_inputs=True), live:
                side = self.objective.model.config.image.image_size
                tokenizer.labels(torch.empty(size, 3, side, side), [0.5] * 3, [0.5] * 3)
            peaks.append(max(live.trace))
        pair = (peaks[1] - peaks[0]) / (many - few)
        return peaks[0] - few * pair, pair * self._num_frames

    def _watched(self) -> _LiveBytes:
        """With all that is there before a step."""
        live = _LiveBytes()
        parts = (self.objective, self._momentum.module, self._queues, self.tokenizer)
        for part in parts:
            if isinstance(part, nn.Module):
                live.watch([*part.parameters(), *part.buffers()])
                live.watch([parameter.grad for parameter in part.parameters()])
        live.watch([list(state.values()) for state in self._optimiser.state.values()])
        return live

    def _step(self, size: int) -> None:
        batch, bf16 = self.batch(size), self._config.precision == "bf16"
        hidden = self._hide(batch)
        autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        slow = self._momentum.module
        with autocast:
            with torch.no_grad():
                image_BE = project_images(slow, slow.image.feature(batch.image), batch)
                keys = Keys(image_BE, slow.encode_text(batch.tok_BL, batch.mask_BL))
            keep_B = torch.ones(size, dtype=torch.bool)
            found = self._wrapped(batch, hidden, keys, self._queues, keep_B, Shares())
        found.losses["total"].backward()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=False)  # they are counted all the time

    def _hide(self, batch: Batch) -> Hidden:
        length = batch.tok_BL.shape[1]
        hidden_FP = code_FP = tok_BL = label_BL = None
        vision, language = self._config.objective.vision, self._config.objective.language
        if self.tokenizer is not None:
            grid = self.objective.model.image.patch_grid
            seed_F = row_seeds(0, 0, len(batch.image))
            hidden_FP = patch_mask("random", seed_F, grid, share=vision.share)
            code_FP = torch.randint(self.tokenizer.vocab_size, hidden_FP.shape)
        if language.weight:
            tok_BL, label_BL = batch.tok_BL, torch.full_like(batch.tok_BL, NOT_A_TARGET)
            count = math.ceil(language.share * length)
            label_BL[:, :count] = batch.tok_BL[:, :count]
        return Hidden(hidden_FP, code_FP, tok_BL, label_BL)


def _tokenizer(source: str) -> ImageTokenizer:
    """DALL-E's with random weights, so that nothing is fetched; any other must lie here."""
    if source == DALLE_SOURCE:
        return DalleEncoder()
    if not Path(source).exists():
        raise ConfigError(
            f"there is no image tokenizer at {source}; make it with `cots train tokenizer`, or set "
            f"objective.vision.tokenizer={DALLE_SOURCE}"
        )
    return load_tokenizer_model(source)
