"""The decoding pool: order, and pictures that kill, hang or fool their decoder."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.errors import CotsError
from index_builder.content import Location
from index_builder.pipeline.background import Background
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.result import Decoded
from index_builder.sources.entry import Candidate, Skip


class HostilePreprocess:
    """Stands where a decoder's own bug would: some picture sizes kill or hang the process."""

    def image(self, img: Image.Image) -> torch.Tensor:
        if img.size == (13, 13):
            os.kill(os.getpid(), signal.SIGKILL)
        if img.size == (17, 17):
            time.sleep(3600)
        if img.size == (19, 19):
            raise RuntimeError("bug")
        return torch.from_numpy(np.asarray(img, dtype=np.float32).transpose(2, 0, 1).copy())


class UnloadablePreprocess:
    """Cannot be unpickled by a worker, as when a script lacks its main guard."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def entries(tmp_path):
    def make(sides):
        for number, side in enumerate(sides):
            path = tmp_path / f"{number:03d}.png"
            Image.new("RGB", (side, side), (number, 0, 0)).save(path)
            yield Candidate(path.name, path.as_uri(), Location(str(path)), path.name)

    return make


def pool(preprocess, **options):
    settings = {"workers": 2, "timeout_s": 60.0, "window": 8, **options}
    return DecodePool(preprocess, **settings)


def test_decode_pool_keeps_the_order_of_the_source(entries):
    def mixed():
        for number, candidate in enumerate(entries([4 + 40 * (n % 3) for n in range(40)])):
            yield candidate
            if number % 10 == 0:
                yield Skip(f"skip{number}", "file:///", "why", "because")

    with pool(HostilePreprocess()) as workers:
        results = list(workers.decode(mixed()))
        assert workers.decode_s > 0
    values = [result.value for result in results]
    names = [v.id if isinstance(v, Skip) else v.candidate.id for v in values]
    expected = [n for k in range(40) for n in [f"{k:03d}.png"] + [f"skip{k}"] * (k % 10 == 0)]
    assert names == expected
    decoded = [value for value in values if isinstance(value, Decoded)]
    assert [int(value.pixels_U[0, 0, 0, 0]) for value in decoded] == list(range(40))


def test_decode_pool_skips_pictures_that_kill_or_hang_a_worker(entries):
    sides = [8, 13, 9, 13, 17, 10, 19, 11, 17, 12]
    with pool(HostilePreprocess(), timeout_s=2.0) as workers:
        results = list(workers.decode(entries(sides)))
    values = [result.value for result in results]
    reasons = [v.reason if isinstance(v, Skip) else v.pixels_U.shape[2] for v in values]
    crashed, hung = "decoder_crashed", "decoder_timeout"
    assert reasons == [8, crashed, 9, crashed, hung, 10, "damaged", 11, hung, 12]


def test_decode_pool_does_not_blame_a_picture_for_a_slow_consumer(entries):
    with pool(HostilePreprocess(), timeout_s=1.0, workers=1, window=4) as workers:
        results = []
        for result in workers.decode(entries([8] * 6)):
            results.append(result)
            time.sleep(1.2 if len(results) < 3 else 0)
    assert all(isinstance(result.value, Decoded) for result in results)


def test_decode_pool_says_when_workers_cannot_start(entries, capfd):
    with (
        pool(UnloadablePreprocess(), workers=1) as workers,
        pytest.raises(CotsError, match="could not be started"),
    ):
        list(workers.decode(entries([8])))


def test_decode_pool_leaves_no_process_behind(entries):
    with pool(HostilePreprocess()) as workers:
        list(workers.decode(entries([8, 8])))
        pids = workers.pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_background_passes_on_errors_and_stops_early():
    def broken():
        yield 1
        raise ValueError("inside")

    items = Background(broken(), size=4)
    received = []
    with pytest.raises(ValueError, match="inside"):
        received.extend(iter(items))
    items.stop()

    taken = []
    endless = Background((taken.append(n) or n for n in iter(int, 1)), size=3)
    assert next(iter(endless)) == 0
    endless.stop()
    assert len(taken) <= 5
