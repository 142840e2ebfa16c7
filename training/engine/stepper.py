"""One optimiser step over all processes and accumulated batches (sections 3.2 and 3.3).

Shape letters: B pairs of one batch, S pairs of one batch over all processes, E joint width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cots_model.model import CotsModel
from cots_model.videos import pool_frames
from training.batches import Batch
from training.config import TrainConfig
from training.engine.hiding import Hider
from training.engine.part_times import PartTimes
from training.engine.prepared import Encoded, Judged
from training.engine.step_report import StepReport
from training.engine.world import World
from training.engine.wrap import wrap
from training.errors import TrainingError
from training.filter import AdaptiveMomentumFilter
from training.masking import NOT_A_TARGET
from training.momentum import MomentumCopy
from training.objective import Keys, Objective, Shares, Terms, per_frame
from training.optim import freeze_unmoved, lr_factor, make_optimiser, set_lr
from training.queues import PairQueues
from training.seeds import mix_seeds


class Stepper:
    """The trained module, its momentum copy, the queues and the optimiser.

    Attributes:
        step: optimiser steps done.
        times: of the parts of a step, where they are asked for.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        hider: Hider,
        world: World,
        *,
        steps_per_epoch: int,
    ) -> None:
        """Take over `objective`, already on the device and unwrapped.

        Args:
            config: of the run.
            objective: trained in place.
            hider: what the token-level losses hide.
            world: the processes.
            steps_per_epoch: optimiser steps.

        Raises:
            ConfigError: if `engine` asks for what cannot be done here, or `optimiser.lr_scale`
                names no parameter.
        """
        self.config, self.world, self.hider = config, world, hider
        self.objective = objective
        instance = config.objective.instance
        self.momentum: MomentumCopy[CotsModel] = MomentumCopy(
            objective.model, momentum=instance.momentum
        )
        dim = objective.model.config.embed_dim
        self.queues = PairQueues(instance.queue_length, dim).to(world.device)
        self.filter = AdaptiveMomentumFilter(num_sigmas=config.objective.filter.num_sigmas)
        freeze_unmoved(objective, config.optimiser)
        self.wrapped = wrap(objective, self.momentum.module, config.engine, world)
        self.optimiser = make_optimiser(objective, config.optimiser)
        self.steps_per_epoch = steps_per_epoch
        self.times = PartTimes(world.device)
        self.step = 0

    def run(self, batches: Sequence[Batch]) -> StepReport:
        """One step on `accumulate` batches; the queues take their keys afterwards.

        Raises:
            TrainingError: if a loss, the gradient or a similarity is not finite, naming the step;
                on every process, wherever it was found.
        """
        torch.manual_seed(mix_seeds(self.config.seed, self.step, self.world.rank))
        self.objective.train()
        factor = lr_factor(
            self.step, self.steps_per_epoch, self.config.epochs, self.config.optimiser
        )
        set_lr(self.optimiser, factor)
        if self.step > 0:  # eq. 4 and 5: once per optimiser step, before the keys are computed
            with self.times("momentum average"):
                self.momentum.update(self.objective.model)
        prepared = self._judge([self._encode(batch, i) for i, batch in enumerate(batches)])
        totals = self._totals(prepared)
        self.optimiser.zero_grad(set_to_none=True)
        losses, accuracies = self._backward(prepared, totals)
        grad_norm = self._clip()
        self._check_finite(losses, grad_norm)
        with self.times("optimiser"):
            self.optimiser.step()
        self._enqueue(prepared)
        self.step += 1
        lr = factor * self.config.optimiser.lr
        return self._report(prepared, totals, losses, accuracies, grad_norm, lr)

    def _enqueue(self, prepared: Sequence[Judged]) -> None:
        with self.times("queues"):
            for one in prepared:
                self.queues.enqueue(
                    self.world.gather(one.keys.image_BE),
                    self.world.gather(one.keys.text_BE),
                    self.world.gather(one.batch.image_id_B),
                )

    def _encode(self, batch: Batch, place: int) -> Encoded:
        """Keys and hidden tokens of one batch."""
        device, world = self.world.device, self.world
        loaded, batch = batch, batch.to(device)
        first_row = (place * world.size + world.rank) * len(batch.tok_BL)
        with self.times("codes and masks"):
            seed = mix_seeds(self.config.seed, self.step)
            hidden = self.hider(loaded, batch.image, seed=seed, first_row=first_row)
        with self.times("keys"), torch.no_grad(), self._autocast():
            keys = self._keys(batch)
        return Encoded(batch, keys, hidden.to(device))

    def _judge(self, encoded: Sequence[Encoded]) -> list[Judged]:
        """Filter all batches; where one process cannot, all stop."""
        with self.times("filter"), self.world.together():
            prepared = []
            for one in encoded:
                keys = one.keys
                judged = self.filter(keys.image_BE, keys.text_BE, self.queues, step=self.step)
                prepared.append(Judged(one.batch, keys, one.hidden, judged))
        return prepared

    def _keys(self, batch: Batch) -> Keys:
        model = self.momentum.module
        encode = model.project_image if self.config.freeze_image else model.encode_image
        image_FE = encode(batch.image)
        if batch.num_frames_B is not None:
            image_FE = pool_frames(image_FE, batch.num_frames_B)
        if batch.text_BD is not None:
            return Keys(image_FE, model.project_text(batch.text_BD))
        return Keys(image_FE, model.encode_text(batch.tok_BL, batch.mask_BL))

    def _keep(self, one: Judged) -> Tensor:
        enabled = self.config.objective.filter.enabled
        return one.judged.keep_B if enabled else torch.ones_like(one.judged.keep_B)

    def _totals(self, prepared: Sequence[Judged]) -> Tensor:
        """Kept pairs, their frames and their hidden words of the whole step, `[3]`."""
        counts = torch.stack([self._counts(one) for one in prepared]).sum(dim=0)
        return self.world.sum(counts)

    def _counts(self, one: Judged) -> Tensor:
        keep_B, label_BL = self._keep(one), one.hidden.label_BL
        words = 0 if label_BL is None else (label_BL[keep_B] != NOT_A_TARGET).sum()
        counts = [int(keep_B.sum()), int(per_frame(keep_B, one.batch).sum()), int(words)]
        return torch.tensor(counts, device=self.world.device).double()

    def _backward(
        self, prepared: Sequence[Judged], totals: Tensor
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Losses and accuracies of the whole step; the gradients are where they belong."""
        sums = Terms({}, {})
        for place, one in enumerate(prepared):
            share = (self._counts(one) / totals.clamp(min=1)).tolist()
            with self._sync(last=place + 1 == len(prepared)):
                with self.times("forward"), self._autocast():
                    found = self.wrapped(
                        one.batch,
                        one.hidden,
                        one.keys,
                        self.queues,
                        self._keep(one),
                        Shares(*share),
                    )
                total = found.losses["total"]
                with self.times("backward"):
                    (total * self.world.size).backward()  # gradients are averaged over ranks
            for summed, terms in zip(sums, found, strict=True):
                for name, term in terms.items():
                    summed[name] = summed.get(name, torch.zeros_like(term)) + term.detach()
        losses, accuracies = (
            {name: self.world.sum(term).item() for name, term in terms.items()} for terms in sums
        )
        return losses, accuracies

    def _clip(self) -> float:
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        with self.times("clipping"):
            norm = nn.utils.clip_grad_norm_(trained, self.config.optimiser.clip_norm)
            return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _check_finite(self, losses: dict[str, float], grad_norm: float) -> None:
        wrong = [name for name, value in losses.items() if not math.isfinite(value)]
        if not math.isfinite(grad_norm):
            wrong.append("the gradient")
        if wrong:
            raise TrainingError(
                f"{', '.join(wrong)} not finite at step {self.step}; lower the lr, or look at the "
                "pictures of this step"
            )

    def _report(
        self,
        prepared: Sequence[Judged],
        totals: Tensor,
        losses: dict[str, float],
        accuracies: dict[str, float],
        grad_norm: float,
        lr: float,
    ) -> StepReport:
        judged = prepared[0].judged
        pairs = sum(len(one.keys.text_BE) for one in prepared) * self.world.size
        dropped = tuple(
            (place, row, one.judged.similarity_B[row].item())
            for place, one in enumerate(prepared)
            for row in (~self._keep(one)).nonzero().flatten().tolist()
        )
        return StepReport(
            losses,
            accuracies,
            totals[0].item() / pairs,
            judged.mean,
            judged.std,
            judged.threshold,
            grad_norm,
            lr,
            judged.active,
            *self.queues.spread(),
            dropped,
        )

    def _autocast(self) -> torch.autocast:
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)

    def _sync(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between processes once a step."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return contextlib.nullcontext()
