"""The queues against a plain list."""

import math

import pytest
import torch

from training.queues import PairQueues


def pairs(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pair number n has image key (n, n), text key (-n, -n) and image id n."""
    number_B = torch.arange(start, start + count)
    keys_BE = number_B[:, None].float().expand(-1, 2)
    return keys_BE, -keys_BE, number_B


class NaiveQueue:
    """Slots overwritten one at a time."""

    def __init__(self, length: int) -> None:
        self.slots = [-1] * length
        self.next = 0

    def put(self, number: int) -> None:
        self.slots[self.next] = number
        self.next = (self.next + 1) % len(self.slots)


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 7, 12, 13, 30])
def test_queue_wraps_around_like_a_list(length, batch):
    queue, naive = PairQueues(length, 2), NaiveQueue(length)
    for step in range(9):
        queue.enqueue(*pairs(step * batch, batch))
        for number in range(step * batch, (step + 1) * batch):
            naive.put(number)
        assert queue.image_id_N.tolist() == naive.slots
        assert int(queue.fill) == min((step + 1) * batch, length)
        assert queue.filled_N.tolist() == [slot >= 0 for slot in naive.slots]
        number_F1 = queue.image_id_N[queue.filled_N].float()[:, None]
        assert torch.equal(queue.image_NE[queue.filled_N], number_F1.expand(-1, 2))
        assert torch.equal(queue.text_NE[queue.filled_N], -number_F1.expand(-1, 2))


def test_queue_takes_batches_of_changing_size():
    queue, naive = PairQueues(10, 2), NaiveQueue(10)
    start = 0
    for batch in (3, 9, 1, 25, 10, 4, 11, 2):
        queue.enqueue(*pairs(start, batch))
        for number in range(start, start + batch):
            naive.put(number)
        start += batch
        assert queue.image_id_N.tolist() == naive.slots


def test_queue_keeps_the_last_of_a_batch_longer_than_itself():
    queue = PairQueues(4, 2)
    queue.enqueue(*pairs(0, 11))
    assert sorted(queue.image_id_N.tolist()) == [7, 8, 9, 10]
    assert queue.filled_N.all()


def test_queue_resumes_from_its_state():
    whole, first = PairQueues(7, 2), PairQueues(7, 2)
    for queue in (whole, first):
        queue.enqueue(*pairs(0, 5))
    second = PairQueues(7, 2)
    second.load_state_dict(first.state_dict())
    for queue in (whole, second):
        queue.enqueue(*pairs(5, 4))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert {"pointer", "fill", "image_id_N"} <= whole.state_dict().keys()


def test_queue_holds_copies_without_gradient():
    keys_BE, texts_BE, id_B = pairs(0, 3)
    keys_BE = keys_BE.clone().requires_grad_()
    queue = PairQueues(4, 2)
    queue.enqueue(keys_BE, texts_BE, id_B)
    assert not queue.image_NE.requires_grad
    with torch.no_grad():
        keys_BE += 100
    assert queue.image_NE.max() == 2


def test_queue_keeps_float32_for_bf16_keys():
    queue = PairQueues(4, 2)
    keys_BE, texts_BE, id_B = pairs(0, 2)
    queue.enqueue(keys_BE.bfloat16(), texts_BE.bfloat16(), id_B)
    assert queue.image_NE.dtype == torch.float32


def test_queue_refuses_no_length():
    with pytest.raises(ValueError, match="queue length 0 leaves no negatives"):
        PairQueues(0, 2)


def unit(*angles: float) -> torch.Tensor:
    angle_B = torch.tensor(angles)
    return torch.stack([angle_B.cos(), angle_B.sin()], dim=1)


def test_spread_is_what_the_mean_of_the_written_rows_lacks_to_one():
    queues = PairQueues(5, 2)
    queues.enqueue(unit(0.2, 0.2, 0.2), unit(0.0, math.pi / 2, math.pi), torch.arange(3))
    assert queues.spread() == pytest.approx((0.0, 2 / 3), abs=1e-6)
    queues.enqueue(unit(0.2, 0.2), unit(0.0, math.pi), torch.arange(2))
    assert queues.spread() == pytest.approx((0.0, 4 / 5), abs=1e-6)


def test_pairs_that_fit_equally_well_have_a_spread():
    queues = PairQueues(4, 2)
    rows_BE = unit(0.0, 1.0, 2.0, 3.0)
    queues.enqueue(rows_BE, rows_BE, torch.arange(4))
    image, text = queues.spread()
    assert image == text > 0.3


def test_rows_of_many_equal_features_have_no_spread():
    """Sums of float32 are exact enough for `engine.collapses_below`."""
    queues = PairQueues(12_800, 256)
    rows_BE = torch.randn(1, 256, generator=torch.Generator().manual_seed(0))
    rows_BE = torch.nn.functional.normalize(rows_BE, dim=1).expand(12_800, -1)
    queues.enqueue(rows_BE, rows_BE, torch.arange(12_800))
    assert max(queues.spread()) < 1e-5


@pytest.mark.parametrize("length", [1, 5])
def test_fewer_than_two_rows_have_no_spread(length):
    queues = PairQueues(length, 2)
    assert all(map(math.isnan, queues.spread()))
    queues.enqueue(unit(0.5), unit(0.5), torch.arange(1))
    assert all(map(math.isnan, queues.spread()))
