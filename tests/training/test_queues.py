"""The queues against a plain list."""

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
