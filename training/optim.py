"""AdamW groups and the learning-rate schedule."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW

from cots_model.errors import ConfigError
from training.config import OptimiserConfig

_MAY_BE_OFF = {"vision_head", "language_head"}  # with their losses
_NEVER_DECAYED = ("pos_embed", "cls_token", "mask_token", "position_embeddings")


def freeze_unmoved(model: nn.Module, config: OptimiserConfig) -> None:
    """Spare the gradients of what `lr_scale` gives the rate 0; before the model is wrapped."""
    for full_name, parameter in model.named_parameters():
        if _rate(full_name, config)[1] == 0:
            parameter.requires_grad_(False)


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> AdamW:
    """AdamW over the trainable parameters, one group per (decay, rate).

    Biases, norms, position, class and mask tokens do not decay, nor what timm spares in a network,
    such as register tokens and tables of relative positions. Each group carries its `peak_lr`.

    Raises:
        ConfigError: if a prefix of `lr_scale` matches no trainable parameter, or all are frozen.
    """
    undecayed = _undecayed(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    used, trained = set(), list[str]()
    for full_name, parameter in model.named_parameters():
        prefix, rate = _rate(full_name, config)
        if parameter.requires_grad or rate == 0:
            used.add(prefix)
        if not parameter.requires_grad:
            continue
        trained.append(_name(full_name))
        decays = full_name not in undecayed
        groups.setdefault((config.weight_decay if decays else 0.0, rate), []).append(parameter)
    unused = sorted(set(config.lr_scale) - used - _MAY_BE_OFF)
    if unused:
        parts = sorted({".".join(name.split(".")[:2]) for name in trained})
        raise ConfigError(
            f"optimiser.lr_scale: no trainable parameter starts with {unused}; there are {parts}"
        )
    if not groups:
        raise ConfigError("optimiser.lr_scale leaves nothing to train; take out a 0")
    return AdamW(
        [
            {"params": params, "weight_decay": decay, "lr": rate, "peak_lr": rate}
            for (decay, rate), params in groups.items()
        ],
        betas=config.betas,
        eps=config.eps,
    )


def _name(full_name: str) -> str:
    """Of a parameter, where it is one of the encoders inside an `Objective` too."""
    return full_name.removeprefix("model.")


def _rate(full_name: str, config: OptimiserConfig) -> tuple[str, float]:
    """The prefix that counts, and the base rate it comes to."""
    name = _name(full_name)
    prefix = max((p for p in config.lr_scale if name.startswith(p)), key=len, default="")
    return prefix, config.lr * config.lr_scale.get(prefix, 1.0)


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that do not decay."""
    names = {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or any(part in name for part in _NEVER_DECAYED)
    }
    for prefix, part in model.named_modules():
        spared = getattr(part, "no_weight_decay", None)  # timm's networks have it
        if callable(spared):
            names |= {f"{prefix}.{name}" if prefix else name for name in spared()}
    return names


def lr_factor(step: int, steps_per_epoch: int, epochs: int, config: OptimiserConfig) -> float:
    """Share of the peak rate at `step` (from 0): warm-up, constant epochs, then linear to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    constant = config.constant_epochs * steps_per_epoch
    total = epochs * steps_per_epoch
    if step < constant or total <= constant:
        return 1.0
    return (total - step) / (total - constant)


def set_lr(optimiser: AdamW, factor: float) -> None:
    """Set every group to `factor` of its peak rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * factor
