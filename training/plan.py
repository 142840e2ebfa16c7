"""What a run will need, found before it is started: memory per process, operations, time.

    plan = make_plan(load_train_config(Path("training/configs/pretrain_cc4m.yaml")))
    plan.memory_bytes(batch_size=64), plan.seconds(4_000_000, peak=peak_of("H100"), devices=8)

Memory is counted, not modelled: optimiser steps of the run's own networks, with random weights and
pictures, are done on the CPU while the bytes of all living tensors are added up, for two batch
sizes; what grows with the batch and what does not follows from both. Gradients count all the time,
as with accumulated batches. Workspaces of a GPU's libraries and what its allocator leaves unused
come on top; GPUs also keep layer norms in float32 where a CPU has bf16.

Shape letters: B batch, L text tokens, P patches.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cots_model.config import load_config
from cots_model.model import CotsModel
from training.batches import Batch
from training.config import EngineConfig, TrainConfig
from training.engine.flops import StepFlops
from training.engine.speed import Peak
from training.engine.world import World
from training.engine.wrap import wrap
from training.image_tokenizer import DalleEncoder, ImageTokenizer
from training.masking import NOT_A_TARGET, patch_mask
from training.momentum import MomentumCopy
from training.objective import Hidden, Keys, Objective, Shares
from training.optim import make_optimiser
from training.queues import PairQueues
from training.tokenizer_source import load_tokenizer_model

_SMALL, _LARGE = 2, 4  # pairs of the steps that are counted


@dataclass(frozen=True)
class Plan:
    """What a run needs on every process.

    Attributes:
        fixed_bytes: weights, gradients, optimiser, momentum copy, queues, image tokenizer.
        pair_bytes: on top for each pair of a batch: what the backward pass needs.
        pair_flops: operations per pair, as `training.engine.flops` counts them.
        precision: of the run.
    """

    fixed_bytes: float
    pair_bytes: float
    pair_flops: float
    precision: str

    def memory_bytes(self, batch_size: int) -> float:
        """Of a process that takes so many pairs at once."""
        return self.fixed_bytes + batch_size * self.pair_bytes

    def seconds(self, pairs: int, *, peak: Peak, devices: int, mfu: float) -> float:
        """Of so many pairs on devices that reach the share `mfu` of their peak."""
        tflops_per_s = (peak.bf16 if self.precision == "bf16" else peak.fp32) * mfu * devices
        return pairs * self.pair_flops / (tflops_per_s * 1e12)


def make_plan(config: TrainConfig, *, num_tokens: int = 16) -> Plan:
    """Count what a run needs, without its data and without its first weights.

    Args:
        config: of a run whose image tower is trained.
        num_tokens: L of a typical batch, special tokens and padding included.

    Raises:
        ConfigError: if the model cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        steps = _CountedSteps(config, num_tokens)
        small, large = steps.peak_bytes(_SMALL), steps.peak_bytes(_LARGE)
        flops = StepFlops(config, steps.objective, steps.tokenizer)
        pair_flops = flops([steps.batch(_SMALL)]) / _SMALL
    pair_bytes = (large - small) / (_LARGE - _SMALL)
    return Plan(
        fixed_bytes=small - _SMALL * pair_bytes,
        pair_bytes=pair_bytes,
        pair_flops=pair_flops,
        precision=config.precision,
    )


class _LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that are alive while it is on.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.peak = self._now = 0
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
                self.peak = max(self.peak, self._now)

    def _gone(self, size: int) -> None:
        self._now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch(result)
        return result


class _CountedSteps:
    """The networks of a run on the CPU, and steps of random pairs."""

    def __init__(self, config: TrainConfig, num_tokens: int) -> None:
        self._config, self._num_tokens = config, num_tokens
        model = CotsModel(load_config(config.model).model)
        vision = config.objective.vision
        self.tokenizer = _tokenizer(vision.tokenizer) if vision.weight else None
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
        return Batch(
            torch.randn(size, 3, side, side),
            torch.randint(1, self.objective.model.text.vocab_size, (size, length)),
            torch.ones(size, length, dtype=torch.bool),
            torch.arange(size),
        )

    def peak_bytes(self, size: int) -> int:
        """Most bytes of tensors that lived at once in a step."""
        live = _LiveBytes()
        parts = (self.objective, self._momentum.module, self._queues, self.tokenizer)
        for part in parts:
            if isinstance(part, nn.Module):
                live.watch([*part.parameters(), *part.buffers()])
                live.watch([parameter.grad for parameter in part.parameters()])
        live.watch([list(state.values()) for state in self._optimiser.state.values()])
        with live:
            self._step(size)
        return live.peak

    def _step(self, size: int) -> None:
        batch, bf16 = self.batch(size), self._config.precision == "bf16"
        autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
        slow = self._momentum.module
        with autocast:
            with torch.no_grad():
                image_BE = slow.encode_image(batch.image)
                keys = Keys(image_BE, slow.encode_text(batch.tok_BL, batch.mask_BL))
            keep_B = torch.ones(size, dtype=torch.bool)
            hidden = self._hide(batch)
            found = self._wrapped(batch, hidden, keys, self._queues, keep_B, Shares())
        found["loss"]["total"].backward()
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=False)  # they are counted all the time

    def _hide(self, batch: Batch) -> Hidden:
        size, length = batch.tok_BL.shape
        hidden_BP = code_BP = tok_BL = label_BL = None
        vision, language = self._config.objective.vision, self._config.objective.language
        if self.tokenizer is not None:
            grid = self.objective.model.image.patch_grid
            hidden_BP = patch_mask("random", size, grid, share=vision.share, rng=torch.Generator())
            code_BP = torch.randint(self.tokenizer.vocab_size, hidden_BP.shape)
        if language.weight:
            tok_BL, label_BL = batch.tok_BL, torch.full_like(batch.tok_BL, NOT_A_TARGET)
            count = math.ceil(language.share * length)
            label_BL[:, :count] = batch.tok_BL[:, :count]
        return Hidden(hidden_BP, code_BP, tok_BL, label_BL)


def _tokenizer(source: str) -> ImageTokenizer:
    """The one named if it lies here; else DALL-E's network, with random weights."""
    return load_tokenizer_model(source) if Path(source).exists() else DalleEncoder()
