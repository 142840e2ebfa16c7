"""The training loop: momentum contrast between pictures and captions (section 3.2).

    result = train(load_train_config(Path("training/configs/cots-mini.yaml")))

Shape letters: B batch, N queue length, E joint width.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cots_model.config import load_config
from cots_model.encoder import Encoder, resolve_device
from cots_model.errors import ConfigError
from cots_model.model import CotsModel
from cots_model.preprocess import Preprocess
from cots_model.videos import pool_frames
from training.batches import Batch, PairBatches
from training.config import TrainConfig
from training.data import Example, read_examples
from training.errors import TrainingError
from training.evaluate import evaluate, format_metrics
from training.feature_cache import FeatureCache, cached_features
from training.initialise import initialise, load_tokenizer
from training.losses import InstanceLoss, instance_loss, negatives
from training.metrics import RetrievalMetrics
from training.momentum import MomentumCopy
from training.optim import lr_factor, make_optimiser, set_lr
from training.orders import ShardOrder
from training.queues import PairQueues
from training.report import model_card

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        checkpoint: its folder.
        fingerprint: of the checkpoint.
        metrics: on the evaluation data, if there is any.
        wall_s: seconds of training, without caching features and the evaluations.
    """

    checkpoint: Path
    fingerprint: str
    metrics: RetrievalMetrics | None
    wall_s: float


class Trainer:
    """Model, momentum copy, queues and optimiser of one run."""

    def __init__(self, config: TrainConfig, model: CotsModel, steps_per_epoch: int) -> None:
        """Take over `model`, whose trainable parameters are those that require a gradient."""
        self.config = config
        self.device = resolve_device(config.device)
        self.model = model.to(self.device)
        self.momentum = MomentumCopy(self.model, momentum=config.instance.momentum)
        length, dim = config.instance.queue_length, model.config.embed_dim
        self.queues = PairQueues(length, dim).to(self.device)
        self.optimiser = make_optimiser(self.model, config.optimiser)
        self.steps_per_epoch = steps_per_epoch
        self.step = 0

    def train_step(self, batch: Batch) -> InstanceLoss:
        """One optimiser step on one batch; the queues take its keys afterwards.

        Raises:
            TrainingError: if the loss is not finite, naming the step.
        """
        factor = lr_factor(
            self.step, self.steps_per_epoch, self.config.epochs, self.config.optimiser
        )
        set_lr(self.optimiser, factor)
        batch = batch.to(self.device)
        self.model.train()
        loss, image_key_BE, text_key_BE = self._loss(batch)
        if not torch.isfinite(loss.total):
            raise TrainingError(
                f"the loss is {loss.total.item()} at step {self.step}; lower the lr"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(self._trained(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        self.queues.enqueue(image_key_BE, text_key_BE, batch.image_id_B)
        self.step += 1
        return loss

    def _loss(self, batch: Batch) -> tuple[InstanceLoss, Tensor, Tensor]:
        """The loss, and the keys that it used, `[B,E]` each."""
        if self.step > 0:  # eq. 4 and 5: once per optimiser step, before the keys are computed
            self.momentum.update(self.model)
        with torch.no_grad():
            image_key_BE, text_key_BE = self._encode(self.momentum.module, batch)
        image_BE, text_BE = self._encode(self.model, batch)
        instance = self.config.instance
        negative_BN = negatives(
            self.queues.filled_N,
            self.queues.image_id_N,
            batch.image_id_B,
            mask_same_image=instance.mask_same_image,
        )
        loss = instance_loss(
            image_BE,
            text_BE,
            image_key_BE,
            text_key_BE,
            self.queues.image_NE,
            self.queues.text_NE,
            negative_BN,
            temperature=instance.temperature,
        )
        return loss, image_key_BE, text_key_BE

    def _encode(self, model: CotsModel, batch: Batch) -> tuple[Tensor, Tensor]:
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            frozen = self.config.freeze_image
            image_BD = batch.image if frozen else model.image.feature(batch.image)
            image_BE = model.project_image(image_BD)
            if batch.num_frames_B is not None:
                image_BE = pool_frames(image_BE, batch.num_frames_B)
            text_BE = model.encode_text(batch.tok_BL, batch.mask_BL)
        return image_BE, text_BE

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]


def train(config: TrainConfig) -> TrainResult:
    """Run a whole training as configured and write the checkpoint.

    Raises:
        ConfigError: if the configuration does not fit the model.
        InputError: if data or first weights are missing or broken.
        TrainingError: if the loss stops being finite.
    """
    torch.manual_seed(config.seed)
    model, preprocess = _make_model(config)
    batches = _make_batches(config, model, preprocess)
    evaluated = read_examples(config.data.evaluate) if config.data.evaluate else []
    trainer = Trainer(config, model, len(batches))
    config.output.mkdir(parents=True, exist_ok=True)
    wall_s = 0.0
    for epoch in range(config.epochs):
        loss, epoch_s = _run_epoch(trainer, batches, epoch)
        wall_s += epoch_s
        due = (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == config.epochs
        fingerprint, metrics = _write_checkpoint(
            trainer, preprocess, evaluated if due else [], batches.num_pictures, wall_s
        )
        _log_epoch(config.output, epoch, loss, metrics)
    return TrainResult(config.output, fingerprint, metrics, wall_s)


def _make_model(config: TrainConfig) -> tuple[CotsModel, Preprocess]:
    shipped = load_config(config.model)
    model = CotsModel(shipped.model.model_copy(update={"name": config.name}))
    initialise(model, config.init)
    return model, Preprocess(shipped.preprocess, load_tokenizer(config.init))


def _make_batches(config: TrainConfig, model: CotsModel, preprocess: Preprocess) -> PairBatches:
    data = config.data
    if data.stream and config.freeze_image:
        raise ConfigError("a stream has no feature cache; set data.stream or freeze_image to false")
    examples = [] if data.stream else read_examples(data.train)
    return PairBatches(
        ShardOrder(data.train, block_size=data.block_size) if data.stream else examples,
        preprocess,
        config.augment,
        batch_size=config.batch_size,
        seed=config.seed,
        feature_cache=_feature_cache(config, model, preprocess, examples),
        num_workers=data.num_workers,
        num_frames=data.num_frames,
        max_broken_share=data.max_broken_share,
    )


def _feature_cache(
    config: TrainConfig, model: CotsModel, preprocess: Preprocess, examples: list[Example]
) -> FeatureCache | None:
    if not config.freeze_image:
        return None
    tower = model.image.requires_grad_(False).to(resolve_device(config.device))
    return cached_features(
        examples,
        tower,
        preprocess,
        config.augment,
        folder=config.data.cache_dir,
        seed=config.seed,
        bf16=config.precision == "bf16",
        max_broken_share=config.data.max_broken_share,
    )


def _run_epoch(trainer: Trainer, batches: PairBatches, epoch: int) -> tuple[float, float]:
    """Train one epoch; returns its mean loss and its seconds."""
    started = time.perf_counter()
    total = 0.0
    bar = tqdm(
        batches.epoch(epoch), total=len(batches), desc=f"epoch {epoch}", unit="step", disable=None
    )
    for batch in bar:
        loss = trainer.train_step(batch).total.item()
        total += loss
        bar.set_postfix(loss=f"{loss:.3f}")
    wall_s = time.perf_counter() - started
    mean_loss = total / len(batches)
    log.info("epoch %d: loss %.4f, %.0f s", epoch, mean_loss, wall_s)
    return mean_loss, wall_s


def _write_checkpoint(
    trainer: Trainer,
    preprocess: Preprocess,
    evaluated: list[Example],
    num_pictures: int,
    wall_s: float,
) -> tuple[str, RetrievalMetrics | None]:
    """Write the online model, score what was written, and put the figures on its card."""
    config, folder = trainer.config, trainer.config.output
    fingerprint = trainer.model.save_pretrained(folder, preprocess, card="", storage=config.storage)
    metrics = None
    if evaluated:
        metrics = evaluate(
            Encoder.load(folder, device=config.device),
            evaluated,
            num_frames=config.data.num_frames,
            max_broken_share=config.data.max_broken_share,
        )
        log.info("scores\n%s", format_metrics(metrics))
    card = model_card(config, metrics, num_pictures=num_pictures, step=trainer.step, wall_s=wall_s)
    (folder / "README.md").write_text(card, "utf-8")
    return fingerprint, metrics


def _log_epoch(folder: Path, epoch: int, loss: float, metrics: RetrievalMetrics | None) -> None:
    line = {"epoch": epoch, "loss": loss, "metrics": asdict(metrics) if metrics else None}
    with (folder / "log.jsonl").open("a" if epoch else "w") as file:
        file.write(json.dumps(line) + "\n")
