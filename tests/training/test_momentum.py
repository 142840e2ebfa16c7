"""The momentum encoders (eq. 4 and 5)."""

import pytest
import torch
from torch import nn

from training.momentum import MomentumCopy


@pytest.fixture
def online() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def shift(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by


def test_momentum_copy_is_equal_at_the_start_and_its_own(online):
    copy = MomentumCopy(online)
    before = {name: value.clone() for name, value in copy.module.state_dict().items()}
    for name, value in online.state_dict().items():
        assert torch.equal(before[name], value)
    shift(online, 1.0)
    for name, value in copy.module.state_dict().items():
        assert torch.equal(before[name], value)


@pytest.mark.parametrize("m", [0.0, 0.9, 0.99, 1.0])
def test_momentum_follows_its_formula(online, m):
    copy = MomentumCopy(online, momentum=m)
    expected = [parameter.detach().double() for parameter in online.parameters()]
    for step in range(3):
        shift(online, 0.5 + step)
        copy.update(online)
        expected = [
            m * slow + (1 - m) * fast.detach().double()
            for slow, fast in zip(expected, online.parameters(), strict=True)
        ]
    for slow, value in zip(copy.module.parameters(), expected, strict=True):
        torch.testing.assert_close(slow.double(), value, rtol=0, atol=1e-5)


def test_momentum_copies_buffers(online):
    copy = MomentumCopy(online)
    online(torch.randn(8, 3) * 9 + 5)
    copy.update(online)
    for name, value in online.named_buffers():
        assert torch.equal(copy.module.get_buffer(name), value)


def test_momentum_copy_has_no_gradient_and_no_dropout(online):
    copy = MomentumCopy(online.train())
    assert not any(parameter.requires_grad for parameter in copy.module.parameters())
    assert not any(module.training for module in copy.module.modules())
    assert online.training
    copy.update(online)
    x = torch.ones(2, 3)
    assert torch.equal(copy.module(x), copy.module(x))
    assert not copy.module(x).requires_grad


def test_momentum_is_float32_even_from_bf16():
    """A bf16 average stalls: a thousand steps of 1 % would not move it."""
    online = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(online.weight, 1.0)
    copy = MomentumCopy(online, momentum=0.999)
    nn.init.constant_(online.weight, 1.5)
    for _ in range(1000):
        copy.update(online)
    assert copy.module.weight.dtype == torch.float32
    assert copy.module.weight.item() == pytest.approx(1.5 - 0.5 * 0.999**1000, abs=1e-3)


@pytest.mark.parametrize("m", [-0.1, 1.1, float("nan")])
def test_momentum_refuses_what_is_no_average(online, m):
    with pytest.raises(ValueError, match="use a number in"):
        MomentumCopy(online, momentum=m)
