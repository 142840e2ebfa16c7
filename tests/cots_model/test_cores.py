"""Parts of a batch on cores of their own: order, errors, threads, forks."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cots_model.cores import map_on_cores, on_idle_core, part_sizes
from cots_model.encoder import Encoder, Vectors


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of(_: object) -> tuple[str, int]:
    return threading.current_thread().name, torch.get_num_threads()


def threads_of_a_new_thread() -> list[int]:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found


def test_results_are_in_order_and_each_part_has_one_thread() -> None:
    assert map_on_cores(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    found = map_on_cores(threads_of, range(50))
    assert {count for _, count in found} == {1}
    assert len({name for name, _ in found}) <= 2
    assert torch.get_num_threads() == 2
    assert threads_of_a_new_thread() == [2]


def test_parts_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2)
    assert len(map_on_cores(lambda _: meeting.wait(20), range(2))) == 2


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (2, 4, [1, 1]),
        (5, 4, [3, 2]),
        (8, 4, [4, 4]),
        (9, 4, [3, 2, 2, 2]),
        (28, 4, [4, 4, 4, 4, 3, 3, 3, 3]),
        (32, 8, [8, 8, 8, 8]),
    ],
)
def test_two_cores_have_as_many_parts_of_nearly_the_same_size(count, most, sizes) -> None:
    assert part_sizes(count, most) == sizes


def test_a_single_part_has_all_threads_in_one_thread_whoever_asks() -> None:
    found = map_on_cores(threads_of, [1])
    others = threading.Thread(target=lambda: found.extend(map_on_cores(threads_of, [1])))
    others.start()
    others.join()
    assert {count for _, count in found} == {2}
    assert len({name for name, _ in found}) == 1
    assert map_on_cores(threads_of, []) == []


@pytest.mark.timeout(60)
def test_an_idle_core_is_told_of_while_another_goes_on() -> None:
    idle = threading.Event()

    def call(number: int) -> bool:
        return idle.wait(30) if number == 3 else idle.is_set()

    for _ in range(20):  # whichever core takes the last part
        idle.clear()
        with on_idle_core(idle.set):
            assert map_on_cores(call, range(4)) == [False, False, False, True]


def test_no_core_is_idle_while_more_parts_are_to_come_or_nobody_asks() -> None:
    told = []
    with on_idle_core(lambda: told.append("idle")):
        with on_idle_core(None):
            map_on_cores(threads_of, range(4))
        assert not told
    map_on_cores(threads_of, range(4))
    assert not told


def test_one_thread_computes_all_parts_itself() -> None:
    torch.set_num_threads(1)
    assert map_on_cores(threads_of, range(3)) == [(threading.current_thread().name, 1)] * 3


def test_an_error_is_raised_when_all_parts_have_ended() -> None:
    ended = []

    def call(number: int) -> None:
        if number == 1:
            raise ValueError("one is bad")
        ended.append(number)

    with pytest.raises(ValueError, match="one is bad"):
        map_on_cores(call, range(6))
    assert sorted(ended) == [0, 2, 3, 4, 5]


def compute_in_child() -> None:
    torch.set_num_threads(2)
    assert map_on_cores(lambda n: n + 1, range(8)) == list(range(1, 9))


# Python warns of every fork of a process with threads; that is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    map_on_cores(threads_of, range(4))
    child = multiprocessing.get_context("fork").Process(target=compute_in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def embed(encoder: Encoder, count: int) -> tuple[Vectors, Vectors]:
    """The vectors of so many pictures, and of as many texts of several lengths."""
    side = encoder.preprocess.image_size
    img_BCHW = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    texts = [f"{n} dogs in a park" * (1 + n % 3) for n in range(count)]
    return encoder.encode_pixels(img_BCHW), encoder.encode_texts(texts)


def test_vectors_of_other_numbers_of_threads_differ_by_rounding_alone(tiny_checkpoint) -> None:
    encoder = Encoder.load(tiny_checkpoint, device="cpu")
    several = embed(encoder, 23)
    torch.set_num_threads(1)
    one = embed(encoder, 23)
    np.testing.assert_allclose(several[0], one[0], atol=1e-6)
    np.testing.assert_allclose(several[1], one[1], atol=1e-6)
    assert several[0].std() > 0.01


def test_vectors_of_a_full_batch_are_the_same_for_one_core_and_two(tiny_checkpoint) -> None:
    encoder = Encoder.load(tiny_checkpoint, device="cpu")
    two = embed(encoder, 32)
    torch.set_num_threads(1)
    one = embed(encoder, 32)
    assert (two[0] == one[0]).all()
    assert (two[1] == one[1]).all()
