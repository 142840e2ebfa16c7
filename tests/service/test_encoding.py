"""The encoder behind its queue: what is embedded together, what not again, too little memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cots_model.cores import map_on_cores
from cots_model.encoder import ReadTexts
from service import encoding
from service.encoding import (
    Embedder,
    EncodedText,
    EncoderMemoryError,
    Pixels,
    TextCache,
    Texts,
)
from service.errors import to_api_error
from service.jobs import DeadlineError
from service.pace import Pace


class Lengths:
    """Embeds a text as its length, a picture as its first pixel; fails from `too_many` on."""

    dim = 1
    device = torch.device("cuda:0")
    preprocess = SimpleNamespace(image_size=2)

    def __init__(self, too_many: int = 10**6) -> None:
        self.too_many = too_many
        self.batches: list[list[str] | int] = []

    def read_texts(self, texts):
        self._check(len(texts))
        self.batches.append(list(texts))
        z_BE = np.array([[len(text)] for text in texts], np.float32)
        return ReadTexts(z_BE, tuple(9 if len(text) > 9 else None for text in texts))

    def encode_pixels(self, img_BCHW):
        self._check(len(img_BCHW))
        self.batches.append(len(img_BCHW))
        return img_BCHW[:, 0, 0, :1].numpy()

    def _check(self, count: int) -> None:
        if count >= self.too_many:
            raise torch.OutOfMemoryError("CUDA out of memory")


def embed(encoder, *jobs, at_once=False, **options):
    """Embed jobs one after the other, or all while the thread is held up."""

    async def scenario():
        embedder = Embedder(encoder, capacity=9, **{"max_batch": 32, **options})
        far = time.monotonic() + 10
        if not at_once:
            return [(await embedder.embed(job, deadline_s=far)).value.z_BE for job in jobs]
        with embedder._pool._changed:  # no job is taken before all are there
            tasks = [asyncio.create_task(embedder.embed(job, deadline_s=far)) for job in jobs]
            for _ in range(3):
                await asyncio.sleep(0)
        return [done.value.z_BE for done in await asyncio.gather(*tasks)]

    return asyncio.run(scenario())


def pixels(*values: float) -> Pixels:
    return Pixels(tuple(torch.full((3, 2, 2), value) for value in values))


def test_many_pictures_are_encoded_a_part_at_a_time() -> None:
    encoder = Lengths()
    [found_BE] = embed(encoder, pixels(*range(70)))
    assert found_BE[:, 0].tolist() == list(range(70))
    assert encoder.batches == [32, 32, 6]


def test_a_text_is_embedded_once() -> None:
    encoder = Lengths()
    jobs = (Texts(("a", "bb", "a")), Texts(("bb",)), Texts(("ccc", "a")))
    found = embed(encoder, *jobs, cached_texts=10)
    assert [vectors[:, 0].tolist() for vectors in found] == [[1, 2, 1], [2], [3, 1]]
    assert encoder.batches == [["a", "bb"], ["ccc"]]
    encoder = Lengths()
    embed(encoder, *jobs[1:], jobs[1], cached_texts=0)
    assert encoder.batches == [["bb"], ["ccc", "a"], ["bb"]]


def test_what_was_asked_for_longest_ago_is_forgotten() -> None:
    cache = TextCache(2)
    one = EncodedText(np.zeros(1, np.float32), None)
    for text in ("a", "b"):
        cache.add(text, one)
    assert cache.get("a") is not None
    cache.add("c", one)
    assert cache.get("b") is None
    assert cache.get("a") is not None


def test_where_texts_are_cut_is_told_in_their_order_also_of_those_that_are_known() -> None:
    long, short = "l" * 12, "s"
    jobs = [Texts((short, long)), Texts((long, short, long, "m" * 11)), pixels(1.0, 2.0)]

    async def scenario() -> list[tuple[int | None, ...]]:
        embedder = Embedder(Lengths(), capacity=9, max_batch=32, cached_texts=1)
        far = time.monotonic() + 10
        return [(await embedder.embed(job, deadline_s=far)).value.cut_at_B for job in jobs]

    assert asyncio.run(scenario()) == [(None, 9), (9, None, 9, 9), (None, None)]


def test_a_batch_counts_texts_and_a_larger_job_goes_alone() -> None:
    encoder = Lengths()
    jobs = [Texts(("a", "b", "c")), Texts(("d",)), Texts(("e", "f")), Texts(tuple("ghijkl"))]
    embed(encoder, *jobs, at_once=True, max_batch=4)
    assert [sorted(batch) for batch in encoder.batches] == [
        ["a", "b", "c", "d"],
        ["e", "f"],
        list("ghijkl"),
    ]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_batch_of_a_slow_model_is_cut_after_a_second(device, monkeypatch) -> None:
    encoder = Lengths()
    encoder.device = torch.device(device)
    monkeypatch.setattr(Pace, "expected_s", lambda self, job, units: 0.15 * units)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    embed(encoder, *(Texts((f"text {n}",)) for n in range(9)), at_once=True)
    sizes = [len(batch) for batch in encoder.batches]
    assert sizes == ([4, 4, 1] if device == "cpu" else [6, 3])  # as many for each of four cores


class OnCores(Lengths):
    """Embeds on the cores of a CPU; the text `slow` waits until the next batch has begun."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.is_next = threading.Event()

    def read_texts(self, texts):
        self.batches.append(list(texts))
        if "slow" not in texts:
            self.is_next.set()
        return ReadTexts(np.concatenate(map_on_cores(self._embed, texts)), (None,) * len(texts))

    def encode_pixels(self, img_BCHW):
        self.batches.append(len(img_BCHW))
        found = np.concatenate(
            map_on_cores(lambda imgs: imgs[:, 0, 0, :1].numpy(), img_BCHW.split(8))
        )
        time.sleep(0.1)  # for another to begin, if it might
        return found

    def _embed(self, text):
        if text == "slow":
            assert self.is_next.wait(30)
        return np.array([[len(text)]], np.float32)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_begins_on_the_core_that_another_leaves(threads) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder = OnCores()
        if threads == 1:
            encoder.is_next.set()  # one core has no place for it
        jobs = [Texts(("slow", "quick")), Texts(("next",))]
        found = embed(encoder, *jobs, at_once=True, max_batch=2)
    finally:
        torch.set_num_threads(before)
    assert [vectors[:, 0].tolist() for vectors in found] == [[4, 5], [4]]
    assert encoder.batches == [["slow", "quick"], ["next"]]


def test_no_batch_begins_before_the_last_part_of_a_large_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        encoder = OnCores()
        embed(encoder, pixels(*range(70)), Texts(("next",)), at_once=True, max_batch=99)
    finally:
        torch.set_num_threads(before)
    assert encoder.batches == [32, 32, 6, ["next"]]


@pytest.mark.parametrize("job", [Texts(tuple("abcdefg")), pixels(*range(7))])
def test_a_batch_without_memory_is_halved(job) -> None:
    encoder = Lengths(too_many=3)
    [found_BE] = embed(encoder, job)
    [expected_BE] = embed(Lengths(), job)
    assert np.array_equal(found_BE, expected_BE)
    assert max(len(b) if isinstance(b, list) else b for b in encoder.batches) == 2


def test_a_picture_without_memory_is_503_and_the_probe_fails() -> None:
    encoder = Lengths(too_many=1)
    with pytest.raises(EncoderMemoryError) as raised:
        embed(encoder, pixels(1.0))
    error = to_api_error(raised.value)
    assert (error.status, error.code) == (503, "out_of_memory")


class Units(Lengths):
    """Gives unit vectors, takes its time over a picture, and fails at one while told to."""

    preprocess = SimpleNamespace(image_size=2, image=lambda _: torch.ones(3, 2, 2))
    fails = False

    def read_texts(self, texts):
        read = super().read_texts(texts)
        return replace(read, z_BE=np.sign(read.z_BE))

    def encode_pixels(self, img_BCHW):
        if self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        time.sleep(0.02)
        return super().encode_pixels(img_BCHW)


def probed(encoder: Units, *failing: bool) -> Embedder:
    """Probe so often, with pictures failing or not."""

    async def scenario() -> Embedder:
        embedder = Embedder(encoder, capacity=9, max_batch=32)
        for encoder.fails in failing:
            with pytest.raises(EncoderMemoryError) if encoder.fails else contextlib.nullcontext():
                await embedder.probe(timeout_s=10)
        return embedder

    return asyncio.run(scenario())


@pytest.mark.parametrize(("apart", "pictures"), [(0, 5), (10**6, 2)])
def test_a_picture_that_takes_long_is_probed_now_and_then(monkeypatch, apart, pictures) -> None:
    monkeypatch.setattr(encoding, "_PROBES_APART", apart)
    encoder = Units()
    probed(encoder, False, False, False, False)
    assert encoder.batches.count(["probe"]) == 5  # the first time twice, as the picture
    assert encoder.batches.count(1) == pictures


def test_the_pace_is_known_after_one_probe() -> None:
    pace = probed(Units(), False)._pool._pace
    assert pace.expected_s(Pixels, 1) > 0
    assert pace.expected_s(Texts, 1) > 0


def test_a_picture_that_failed_is_probed_again_at_once(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "_PROBES_APART", 10**6)
    encoder = Units()
    probed(encoder, True, True, False)
    assert encoder.batches.count(1) == 2
    assert encoder.batches.count(["probe"]) == 2 + 2 + 2  # each was the first good one, to be


@pytest.mark.parametrize("job", [Texts(tuple(map(str, range(600)))), pixels(*range(70))])
def test_what_is_late_ends_between_two_parts(job) -> None:
    class Slow(Lengths):
        def _check(self, count: int) -> None:
            time.sleep(0.3)

    encoder = Slow()

    async def scenario() -> None:
        embedder = Embedder(encoder, capacity=9, max_batch=32)
        with pytest.raises(DeadlineError):
            await embedder.embed(job, deadline_s=time.monotonic() + 0.1)
        found = await embedder.embed(pixels(1.0), deadline_s=time.monotonic() + 10)
        assert found.value.z_BE.tolist() == [[1.0]]

    asyncio.run(scenario())
    assert [b if isinstance(b, int) else len(b) for b in encoder.batches] in ([256, 1], [32, 1])
