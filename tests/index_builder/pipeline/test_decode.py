"""The decoding pool: order, pixels, and pictures that kill, hang, starve or fool their decoder."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from cots_model.errors import CotsError
from cots_model.images import decode_image
from cots_model.preprocess import PackedPreprocess
from index_builder.content import Location
from index_builder.pipeline import process
from index_builder.pipeline.background import Background
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.limits import Usage
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
        if img.size == (23, 23):
            np.ones(400 * 2**20, np.uint8)
        if img.size == (29, 29):
            stands_back = os.sched_getscheduler(0) == os.SCHED_IDLE or os.nice(0) >= 10
            return torch.tensor([stands_back, torch.get_num_threads()]).float()
        if img.size == (31, 31):
            time.sleep(2.5)
        if img.size == (37, 37):
            while True:
                pass
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
    assert [result.number for result in results] == list(range(44))
    values = [result.value for result in results]
    names = [v.id if isinstance(v, Skip) else v.candidate.id for v in values]
    expected = [n for k in range(40) for n in [f"{k:03d}.png"] + [f"skip{k}"] * (k % 10 == 0)]
    assert names == expected
    decoded = [value for value in values if isinstance(value, Decoded)]
    assert [int(value.pixels_U[0, 0, 0, 0]) for value in decoded] == list(range(40))


@pytest.mark.parametrize("ensemble", [False, True])
def test_decode_pool_gives_the_pixels_of_the_preprocessing_to_the_bit(photos, encoder, ensemble):
    preprocess = PackedPreprocess([encoder.preprocess]) if ensemble else encoder.preprocess
    paths = sorted(photos.glob("**/[0-9]*.png"))
    candidates = [Candidate(p.name, p.as_uri(), Location(str(p)), p.name) for p in paths]
    with pool(preprocess) as workers:
        results = list(workers.decode(iter(candidates)))
    assert len(results) == 20
    for path, result in zip(paths, results, strict=True):
        expected = preprocess.image(decode_image(path)).numpy()
        assert result.value.pixels_U.dtype == np.float32
        assert result.value.pixels_U.flags.writeable
        np.testing.assert_array_equal(result.value.pixels_U, expected[None])


def test_decode_pool_skips_pictures_that_kill_hang_or_starve_a_worker(entries):
    sides = [8, 13, 9, 13, 17, 10, 19, 11, 17, 23, 12, 23]
    with pool(HostilePreprocess(), timeout_s=2.0, memory_bytes=200 * 2**20) as workers:
        results = list(workers.decode(entries(sides)))
    values = [result.value for result in results]
    reasons = [v.reason if isinstance(v, Skip) else v.pixels_U.shape[2] for v in values]
    crashed, hung, full = "decoder_crashed", "decoder_timeout", "out_of_memory"
    expected = [8, crashed, 9, crashed, hung, 10, "damaged", 11, hung, full, 12, full]
    assert reasons == expected
    assert "SIGKILL" in values[1].message


def test_decode_pool_works_beside_the_encoder_not_against_it(entries):
    with pool(HostilePreprocess(), workers=1) as workers:
        [result] = workers.decode(entries([29]))
    assert result.value.pixels_U.tolist() == [[1, 1]]


def test_decode_pool_ends_a_picture_that_computes_for_ever(entries):
    with pool(HostilePreprocess(), timeout_s=1.0, workers=1) as workers:
        hung, good = workers.decode(entries([37, 8]))
    assert hung.value.reason == "decoder_timeout"
    assert isinstance(good.value, Decoded)


@pytest.mark.parametrize(("usage", "is_decoded"), [((0.0, True), True), ((0.0, False), False)])
def test_decode_pool_does_not_blame_a_picture_for_a_busy_machine(
    entries, monkeypatch, usage, is_decoded
):
    """A process that would run, had it a core, is waited for; one that sleeps is not."""
    monkeypatch.setattr(process, "usage_of", lambda _: Usage(*usage))
    with pool(HostilePreprocess(), timeout_s=1.0, workers=1) as workers:
        [result] = workers.decode(entries([31]))
    assert isinstance(result.value, Decoded) == is_decoded


def test_decode_pool_does_not_wait_for_ever_for_a_busy_machine(entries, monkeypatch):
    monkeypatch.setattr(process, "usage_of", lambda _: Usage(0.0, True))
    with pool(HostilePreprocess(), timeout_s=0.4, workers=1) as workers:
        [result] = workers.decode(entries([17]))
    assert result.value.reason == "decoder_timeout"


def test_a_process_that_is_held_up_steps_forward(entries, monkeypatch):
    asked = []
    monkeypatch.setattr(process, "step_forward", asked.append)
    with pool(HostilePreprocess(), timeout_s=4.0, workers=1) as workers:
        list(workers.decode(entries([8, 31])))
        assert set(asked) == set(workers.pids)


def test_decode_pool_does_not_blame_a_picture_for_a_slow_consumer(entries):
    with pool(HostilePreprocess(), timeout_s=1.0, workers=1, window=4) as workers:
        results = []
        for result in workers.decode(entries([8] * 6)):
            results.append(result)
            time.sleep(1.2 if len(results) < 3 else 0)
    assert len(results) == 6
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
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_decoder_that_hangs_ends_when_the_builder_is_killed(entries):
    [entry] = entries([17])
    script = (
        "import sys\n"
        "from tests.index_builder.pipeline import test_decode as t\n"
        "if __name__ == '__main__':\n"
        "    with t.pool(t.HostilePreprocess(), workers=1) as pool:\n"
        "        print(*pool.pids, flush=True)\n"
        "        entry = t.Candidate('a', 'file:///a', t.Location(sys.argv[1]), 'a')\n"
        "        list(pool.decode(iter([entry])))\n"
    )
    path = os.path.join(os.path.dirname(entry.location.path), "hang.py")
    with open(path, "w") as file:
        file.write(script)
    command = [sys.executable, path, entry.location.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        pid = int(builder.stdout.readline())
        time.sleep(3.0)  # until it hangs
        builder.kill()
    for _ in range(100):
        if not _is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the decoder went on")


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_decode_pool_can_be_interrupted_while_a_decoder_hangs(entries):
    with pool(HostilePreprocess(), workers=1) as workers:
        results = Background(workers.decode(entries([8, 17])), size=4)
        assert isinstance(next(iter(results)).value, Decoded)
        start = time.monotonic()
        workers.interrupted = True
        results.stop()
        assert time.monotonic() - start < 5.0


def test_background_leaves_a_source_behind_that_hangs(monkeypatch):
    monkeypatch.setattr("index_builder.pipeline.background._STOP_S", 0.2)
    released = threading.Event()
    started = time.monotonic()
    Background((released.wait(60) for _ in range(1)), size=1).stop()
    assert time.monotonic() - started < 5.0
    released.set()


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
