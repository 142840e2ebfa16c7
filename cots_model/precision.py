"""The towers' matrix products in 8-bit integers: faster where a CPU has instructions for them.

Shape letters: I inputs, O outputs, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cots_model.errors import InputError
from cots_model.model import CotsModel

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer whose product is of integers: one scale per output and one per row."""

    weight_IO: Tensor
    scale_O: Tensor
    bias_O: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        """Take the weights of a trained layer, rounded to 8 bits."""
        super().__init__()
        weight_OI = layer.weight.detach()
        scale_O1 = (weight_OI.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=1e-12)
        bias_O = torch.zeros_like(weight_OI[:, 0]) if layer.bias is None else layer.bias.detach()
        rounded_OI = (weight_OI / scale_O1).round().to(torch.int8)
        self.register_buffer("weight_IO", rounded_OI.T.contiguous())
        self.register_buffer("scale_O", scale_O1[:, 0].clone())
        self.register_buffer("bias_O", bias_O.clone())

    def forward(self, x: Tensor) -> Tensor:
        """`[…,I]` float32 → `[…,O]` float32; every row is rounded by its own largest number."""
        x_RI = x.reshape(-1, x.shape[-1])
        scale_R1 = (x_RI.abs().amax(dim=1, keepdim=True) / _LARGEST).clamp(min=1e-12)
        rounded_RI = (x_RI / scale_R1).round_().to(torch.int8)
        sum_RO = torch._int_mm(rounded_RI, self.weight_IO) * scale_R1
        y_RO: Tensor = torch.addcmul(self.bias_O, sum_RO, self.scale_O)
        return y_RO.view(*x.shape[:-1], -1)


def use_int8(model: CotsModel) -> None:
    """Replace the linear layers of both towers, in place.

    The attention of texts is spared: it is short work, and most of the error would come from it.

    Raises:
        InputError: if the model is not on a CPU.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise InputError(f"precision int8 runs on a CPU, not on {device}; take bfloat16 or float32")
    for tower, spared in ((model.image, None), (model.text, "attention")):
        for path, parent in list(tower.named_modules()):
            if spared in path.split("."):
                continue
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, name, Int8Linear(layer))
