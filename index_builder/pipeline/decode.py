"""A pool of decoding processes that no original can stop.

When a process dies or takes too long over a step, what it was busy with is skipped, the process is
replaced, and what waited behind is given to another. Results come in the order of the source, and
a bounded number is ahead of it: the rest waits in the source, the fetching threads and the pipes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from types import TracebackType
from typing import Literal, Self

from cots_model.errors import InputError
from cots_model.preprocess import PicturePreprocess
from index_builder.pipeline.arrange import InOrder, Raw
from index_builder.pipeline.fetch import Fetched, Fetcher, is_remote
from index_builder.pipeline.gpu_jpeg import BATCH, JpegDecoder
from index_builder.pipeline.limits import IMAGE_MEMORY_BYTES, VIDEO_MEMORY_BYTES
from index_builder.pipeline.process import STARTUP_LIMIT_S, Process, Task, cannot_start
from index_builder.pipeline.protocol import (
    NUM_FRAMES,
    Answer,
    Failure,
    Jpeg,
    Pixels,
    Progress,
    Settings,
)
from index_builder.pipeline.result import Decoded, Result
from index_builder.sources.entry import Candidate, Skip

_POLL_S = 0.25
_CLIPS_AHEAD = 2
_VIDEOS_AHEAD = 4


class DecodePool:
    """Decoding processes; use as a context manager.

    Attributes:
        decode_s: time the processes spent on originals, all of them together.
        read_s: time spent waiting for the source.
        interrupted: set it, and `decode` ends soon, whatever is under way.
    """

    def __init__(
        self,
        preprocess: PicturePreprocess,
        *,
        workers: int,
        timeout_s: float,
        window: int,
        modality: Literal["image", "video"] = "image",
        num_frames: int = NUM_FRAMES,
        segment_s: float | None = None,
        memory_bytes: int | None = None,
        fetch_threads: int = 16,
        fetch_timeout_s: float = 60.0,
        jpeg_decoder: Literal["cpu", "gpu"] = "cpu",
        jpeg_device: str = "cuda",
    ) -> None:
        """Start the processes (their imports run while the caller goes on).

        Args:
            preprocess: sent to each process once.
            workers: how many processes.
            timeout_s: limit for a picture, or for one step of a video: a clip, or as much reading
                as `index_builder.pipeline.watched.STEP_BYTES`. What takes longer is skipped, and
                its process replaced.
            window: how many originals may be under way or waiting to be taken; of videos at most
                four for each process.
            modality: what the originals are.
            num_frames: frames of a clip.
            segment_s: cut videos into segments of this length, each an item.
            memory_bytes: how much memory each process may add to what it starts with; `None` for
                what common originals of the modality need (`index_builder.pipeline.limits`).
            fetch_threads: originals with a url that are fetched at once.
            fetch_timeout_s: limit for fetching one; what takes longer is skipped.
            jpeg_decoder: `gpu` decodes plain JPEGs on `jpeg_device`.
            jpeg_device: a device of PyTorch.

        Raises:
            InputError: if `gpu` is asked for with an ensemble's preprocessing, or for videos.
            CotsError: if videos are to be read and PyAV is not installed.
        """
        _check(modality, jpeg_decoder)
        gpu = jpeg_decoder == "gpu"
        self._gpu = JpegDecoder(preprocess, jpeg_device) if gpu else None
        if memory_bytes is None:
            memory_bytes = IMAGE_MEMORY_BYTES if modality == "image" else VIDEO_MEMORY_BYTES
        self._settings = Settings(preprocess, modality, num_frames, segment_s, memory_bytes)
        self._timeout_s = timeout_s
        self._window = window if modality == "image" else min(window, _VIDEOS_AHEAD * workers)
        self._waiting: list[Task] = []
        self._jpegs: list[tuple[Task, Jpeg, bytes]] = []
        self._order = InOrder(preprocess)
        self.decode_s = 0.0
        self.read_s = 0.0
        self.interrupted = False
        self._fetcher = Fetcher(threads=fetch_threads, timeout_s=fetch_timeout_s)
        self._workers = [Process(self._settings) for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and fetch nothing more."""
        self._fetcher.close()
        for worker in self._workers:
            worker.end()
        self._workers = []

    @property
    def pids(self) -> list[int]:
        """The process ids of the decoding processes."""
        return [worker.pid for worker in self._workers]

    def decode(self, entries: Iterator[Candidate | Skip]) -> Iterator[Result]:
        """Decode every candidate; skips are passed on. Results come in the order of the entries.

        Call it once.

        Raises:
            CotsError: if processes cannot be started.
        """
        num_in, exhausted = 0, False
        while not self.interrupted:
            while not exhausted and num_in - self._order.head < self._window and self._has_room():
                entry = self._next(entries)
                exhausted = entry is None
                if entry is not None:
                    self._admit(num_in, entry)
                    num_in += 1
                self._hand_out()
            yield from self._order.take()
            if exhausted and num_in == self._order.head:
                return
            if num_in > self._order.head:
                self._collect()
                self._hand_out()

    def _next(self, entries: Iterator[Candidate | Skip]) -> Candidate | Skip | None:
        start = time.perf_counter()
        entry = next(entries, None)
        self.read_s += time.perf_counter() - start
        return entry

    def _has_room(self) -> bool:
        num_local = sum(task.fetched is None for task in self._waiting)
        return num_local < len(self._workers) and self._fetcher.has_room()

    def _admit(self, number: int, entry: Candidate | Skip) -> None:
        if isinstance(entry, Skip):
            self._order.put(number, entry)
        elif is_remote(entry.location):
            self._fetcher.start(number, entry)
        else:
            self._waiting.append(Task(number, entry, keep_jpeg=self._gpu is not None))

    def _hand_out(self) -> None:
        """Give what waits to the least busy processes; earlier originals first."""
        self._waiting.sort(key=lambda task: task.number)
        for worker in sorted(self._workers, key=lambda worker: len(worker.tasks)):
            task = next((task for task in self._waiting if worker.takes(task)), None)
            if task is not None:
                self._waiting.remove(task)
                worker.give(task)

    def _collect(self) -> None:
        """Wait for something to happen, and deal with it."""
        self._decode_jpegs()
        listened_to = {w.connection: w for w in self._workers if not self._is_held_back(w)}
        if not listened_to and any(task.number == self._order.head for task in self._waiting):
            self._make_way()
            return
        active = wait([*listened_to, self._fetcher.wakeup], timeout=self._poll_s())
        self._take_arrivals()
        now = time.monotonic()
        for connection, worker in listened_to.items():
            if connection in active:
                self._receive(worker)
            elif not worker.ready and now - worker.since_s > STARTUP_LIMIT_S:
                raise cannot_start(f"no answer after {STARTUP_LIMIT_S:.0f} s")
            elif worker.tasks and worker.is_overdue(self._timeout_s):
                why = f"decoding took over {self._timeout_s:g} s; save it again"
                self._replace(worker, "decoder_timeout", why)

    def _poll_s(self) -> float:
        """Do not wait for what has come, or for what nobody works on."""
        return 0.0 if self._order.held(self._order.head) else _POLL_S

    def _is_held_back(self, worker: Process) -> bool:
        """Whether enough of its video waits for earlier ones: it then waits to be listened to."""
        if not worker.tasks or worker.tasks[0].number == self._order.head:
            return False
        if self._order.held(worker.tasks[0].number) < _CLIPS_AHEAD:
            return False
        worker.since_s = time.monotonic()
        return True

    def _make_way(self) -> None:
        """Every process holds back for an original that was fetched late: begin one of them again.

        Only with videos from a store, and only when one of them stalled.
        """
        worker = max(self._workers, key=lambda worker: worker.tasks[0].number)
        task = worker.tasks.popleft()
        self._order.drop(task.number)
        self._waiting.append(task)
        self._renew(worker)

    def _take_arrivals(self) -> None:
        for arrival in self._fetcher.collect():
            if isinstance(arrival.value, Skip):
                self._settle(arrival.number, arrival.value)
            else:
                keep = self._gpu is not None
                self._waiting.append(Task(arrival.number, arrival.candidate, arrival.value, keep))

    def _receive(self, worker: Process) -> None:
        try:
            answer, payload = worker.receive()
        except (EOFError, OSError):
            why = f"the decoder crashed on it ({worker.ending}); save it again"
            self._replace(worker, "decoder_crashed", why)
            return
        if answer is not None and not isinstance(answer, Progress):
            self._take(worker, answer, payload)

    def _take(self, worker: Process, answer: Answer, payload: bytes) -> None:
        assert not isinstance(answer, Progress)
        self.decode_s += answer.seconds
        task = worker.tasks[0]
        if isinstance(answer, Pixels):
            self._order.put(task.number, Raw(task.candidate, answer, payload), last=answer.last)
        elif isinstance(answer, Failure):
            self._order.put(task.number, _skip(task.candidate, answer.reason, answer.message))
        else:
            self._jpegs.append((task, answer, payload))
        if not isinstance(answer, Pixels) or answer.last:
            worker.tasks.popleft()
            self._fetcher.release(task.number)

    def _settle(self, number: int, skip: Skip) -> None:
        self._order.put(number, skip)
        self._fetcher.release(number)

    def _replace(self, worker: Process, reason: str, message: str) -> None:
        """Skip what the process was busy with, and give the rest to a new one."""
        if not worker.ready:
            raise cannot_start(f"exit code {worker.exit_code}")
        if worker.tasks:
            task = worker.tasks.popleft()
            self._settle(task.number, _skip(task.candidate, reason, message))
        self._renew(worker)

    def _renew(self, worker: Process) -> None:
        self._waiting += worker.tasks
        worker.end()
        self._workers[self._workers.index(worker)] = Process(self._settings)

    def _decode_jpegs(self) -> None:
        """Decode what has gathered for the GPU: a full batch, or all there is to come."""
        idle = not (self._waiting or self._fetcher.busy or any(w.tasks for w in self._workers))
        if self._gpu is None or not self._jpegs or (len(self._jpegs) < BATCH and not idle):
            return
        batch, self._jpegs = self._jpegs[:BATCH], self._jpegs[BATCH:]
        pixels = self._gpu.pixels([data for _, _, data in batch])
        for (task, jpeg, data), pixels_CHW in zip(batch, pixels, strict=True):
            if pixels_CHW is None:
                again = Task(task.number, task.candidate, Fetched(data, jpeg.stamp))
                self._waiting.append(again)
            else:
                pixels_U = pixels_CHW[None]
                decoded = Decoded(task.candidate, jpeg.stamp, jpeg.sha256, pixels_U)
                self._order.put(task.number, decoded)


def _check(modality: str, jpeg_decoder: str) -> None:
    if modality == "video" and jpeg_decoder == "gpu":
        raise InputError("--jpeg-decoder gpu is for pictures; take --jpeg-decoder cpu for videos")


def _skip(candidate: Candidate, reason: str, message: str) -> Skip:
    return Skip(candidate.id, candidate.uri, reason, message)
