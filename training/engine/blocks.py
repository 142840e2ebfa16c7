"""The blocks of both towers: found, recomputed in the backward pass, compiled.

Blocks, not towers, are compiled: all of a kind share one compilation, FSDP2 may gather between
them, and the hook that hides patches stays outside.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from cots_model.errors import ConfigError
from cots_model.model import CotsModel

COMPILER = "inductor"  # tests choose one that needs no C++ compiler


def blocks_of(model: CotsModel) -> list[nn.Module]:
    """Transformer blocks of both towers: the children of every longest module list."""
    return _image_blocks(model) + _blocks(model.text.trunk)


def _image_blocks(model: CotsModel) -> list[nn.Module]:
    return [block for _, trunk in model.image.networks for block in _blocks(trunk)]


def _blocks(trunk: nn.Module) -> list[nn.Module]:
    lists = [m for m in trunk.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    longest = max(lists, key=len, default=None)
    return list(longest) if longest is not None and len(longest) > 1 else []


def checkpoint_blocks(model: CotsModel) -> None:
    """Keep only the blocks' inputs for the backward pass, and compute the rest again there.

    Random numbers are drawn again as they were, so that the gradients are the same.

    Raises:
        ConfigError: if a tower's library does not know how.
    """
    for network, trunk in model.image.networks:
        try:
            cast(Any, trunk).set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as err:  # so timm says no
            raise _cannot(network.arch) from err
    text = cast(Any, model.text.trunk)
    text.config.use_cache = False  # what it would do with a warning; encoders have no cache
    options = {"use_reentrant": False}
    try:
        if hasattr(text, "activation_checkpointing_enable"):  # the name since transformers 5
            text.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            text.gradient_checkpointing_enable(options)
    except ValueError as err:
        raise _cannot(model.config.text.arch) from err


def compile_blocks(model: CotsModel) -> None:
    """Compile every block in place when it first runs; names of parameters stay as they are."""
    for block in _image_blocks(model):
        block.compile(backend=COMPILER)
    for block in _blocks(model.text.trunk):  # texts differ in length
        block.compile(backend=COMPILER, dynamic=True)


def check_compiles(device: torch.device) -> None:
    """Compile something small, so that a missing compiler is told before the run begins.

    Raises:
        ConfigError: if torch.compile does not work on the device.
    """
    if COMPILER != "inductor":
        return
    options: dict[str, Any] = {"force_disable_caches": True}  # or it would not look for a compiler
    doubled = torch.compile(lambda x: x + x, options=options)
    try:
        doubled(torch.zeros(2, device=device))
    except Exception as err:  # torch and the compilers raise whatever they do
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ConfigError(
            f"engine.compile: torch.compile does not work on {device} ({reason}); install a C++ "
            "compiler such as g++ (and Triton for a GPU), or set engine.compile=false"
        ) from err


def _cannot(arch: str) -> ConfigError:
    return ConfigError(
        f"{arch!r} cannot recompute its blocks in the backward pass; set "
        "engine.activation_checkpointing=false"
    )
