"""The task-level loss against the published number and against a naive loop."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.training.published import published_inputs
from training.losses import instance_loss, negatives, task_loss


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    return published_inputs()


def naive(i2t_BC, t2i_BC, rows):
    """Eq. 12 and 14, one number at a time; columns at -inf are left out."""
    total = 0.0
    for b in rows:
        used = [c for c in range(i2t_BC.shape[1]) if i2t_BC[b, c] > -math.inf]
        exp_p = [math.exp(i2t_BC[b, c]) for c in used]
        exp_q = [math.exp(t2i_BC[b, c]) for c in used]
        p = [e / sum(exp_p) for e in exp_p]
        q = [e / sum(exp_q) for e in exp_q]
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        total += sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
    return total / len(rows)


def test_task_loss_gives_the_published_number(published):
    loss = instance_loss(**published, temperature=0.05)
    task = task_loss(loss.i2t_BC, loss.t2i_BC)
    assert task.dtype == torch.float64
    assert task.item() == pytest.approx(15.2371369519, abs=1e-9)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2], [0, 3]])
@pytest.mark.parametrize("filled", [10, 6, 1])
def test_task_loss_matches_a_naive_loop(published, rows, filled):
    published["negative_BN"] = negatives(
        torch.arange(10) < filled,
        torch.tensor([7, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        torch.tensor([7, 50, 9, 51]),
        mask_same_image=True,
    )
    keep_B = torch.zeros(4, dtype=torch.bool)
    keep_B[rows] = True
    loss = instance_loss(**published)
    task = task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=keep_B)
    expected = naive(loss.i2t_BC, loss.t2i_BC, rows)
    assert task.item() == pytest.approx(expected, abs=1e-12)


def test_task_loss_is_the_sum_of_both_divergences():
    p, q = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64)
    forth = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    back = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert forth != pytest.approx(back, rel=0.1)
    assert task_loss(p.log(), q.log()).item() == pytest.approx(forth + back, abs=1e-12)
    assert task_loss(q.log(), p.log()).item() == pytest.approx(forth + back, abs=1e-12)


def test_task_loss_is_zero_where_both_tasks_agree(published):
    loss = instance_loss(**published)
    assert task_loss(loss.i2t_BC, loss.i2t_BC + 3.0).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("filled", [0, 1, 6])
def test_rows_that_weigh_nothing_leave_loss_and_gradient_finite(published, filled):
    online = [published[name].requires_grad_() for name in ("image_BE", "text_BE")]
    published["negative_BN"][:, filled:] = False
    loss = instance_loss(**published)
    task = task_loss(loss.i2t_BC, loss.t2i_BC)
    task.backward()
    assert (task.item() > 0) == (filled > 0)
    for feature_BE in online:
        assert feature_BE.grad.isfinite().all()
        assert (feature_BE.grad.abs().sum() > 0) == (filled > 0)
    for name in ("image_queue_NE", "text_queue_NE"):
        published[name] = published[name][:filled]
    published["negative_BN"] = published["negative_BN"][:, :filled]
    short = instance_loss(**published)
    expected = task_loss(short.i2t_BC, short.t2i_BC).item()
    assert task.item() == pytest.approx(expected, abs=1e-12)


def test_task_loss_sends_gradient_to_both_sides(published):
    loss = instance_loss(**published)
    i2t_BC = loss.i2t_BC.detach().requires_grad_()
    t2i_BC = loss.t2i_BC.detach().requires_grad_()
    task_loss(i2t_BC, t2i_BC).backward()
    assert i2t_BC.grad.abs().sum() > 0
    assert t2i_BC.grad.abs().sum() > 0


@pytest.mark.parametrize("keep", [None, [True, False, True, True], [False] * 4])
def test_gradient_of_the_task_loss_is_that_of_differences(published, keep):
    keep_B = None if keep is None else torch.tensor(keep)
    published["negative_BN"][:, 6:] = False

    def task(image_BE, text_BE):
        online = {"image_BE": image_BE, "text_BE": text_BE}
        loss = instance_loss(**published | online)
        return task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=keep_B)

    inputs = [published[name].clone().requires_grad_() for name in ("image_BE", "text_BE")]
    assert torch.autograd.gradcheck(task, inputs)


def test_a_dropped_pair_reaches_neither_loss_nor_gradient(published):
    keep_B = torch.tensor([False, True, True, False])
    loss = instance_loss(**published)
    expected = task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=keep_B)
    i2t_BC, t2i_BC = loss.i2t_BC.clone(), loss.t2i_BC.clone()
    i2t_BC[0], t2i_BC[0], i2t_BC[3] = torch.nan, torch.inf, -torch.inf
    i2t_BC.requires_grad_()
    t2i_BC.requires_grad_()
    task = task_loss(i2t_BC, t2i_BC, keep_B=keep_B)
    task.backward()
    assert torch.equal(task, expected)
    for logits_BC in (i2t_BC, t2i_BC):
        assert (logits_BC.grad[~keep_B] == 0).all()
        assert logits_BC.grad[keep_B].isfinite().all()
        assert (logits_BC.grad[keep_B] != 0).any()


def test_task_loss_of_no_kept_pair_is_a_zero_in_the_graph(published):
    online = [published[name].requires_grad_() for name in ("image_BE", "text_BE")]
    loss = instance_loss(**published)
    task = task_loss(loss.i2t_BC, loss.t2i_BC, keep_B=torch.zeros(4, dtype=torch.bool))
    assert task.item() == 0.0
    task.backward()
    for feature_BE in online:
        assert torch.equal(feature_BE.grad, torch.zeros(4, 8, dtype=torch.float64))


@pytest.mark.parametrize("size", [20.0, 1e4, 1e30])
def test_task_loss_of_extreme_float32_logits_is_finite(size):
    """exp(-40), the smallest of τ = 0.05, is 0 in float16; the others are 0 in float32 too."""
    i2t_BC = (size * torch.tensor([[1.0, -1.0, -torch.inf]])).requires_grad_()
    t2i_BC = (size * torch.tensor([[-1.0, 1.0, -torch.inf]])).requires_grad_()
    loss = task_loss(i2t_BC, t2i_BC)
    loss.backward()
    assert loss.item() == pytest.approx(4 * size, rel=1e-6)
    assert i2t_BC.grad.isfinite().all()
    assert t2i_BC.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_task_loss_of_half_precision_logits_is_made_in_float32(published, dtype):
    loss = instance_loss(**published)
    i2t_BC, t2i_BC = loss.i2t_BC.to(dtype), loss.t2i_BC.to(dtype)
    task = task_loss(i2t_BC, t2i_BC)
    assert task.dtype == torch.float32
    assert torch.equal(task, task_loss(i2t_BC.float(), t2i_BC.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task_loss(i2t_BC, t2i_BC), task)


def test_task_loss_agrees_with_the_divergence_of_torch(published):
    loss = instance_loss(**published)
    log_p, log_q = F.log_softmax(loss.i2t_BC, dim=1), F.log_softmax(loss.t2i_BC, dim=1)
    expected = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    expected += F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    task = task_loss(loss.i2t_BC, loss.t2i_BC)
    assert task.item() == pytest.approx(expected.item(), abs=1e-12)
