"""Where the time of one request goes: told by the worker pools, read when the request ends."""

from __future__ import annotations

from contextvars import ContextVar

QUEUE = "queue"
STAGES = (QUEUE, "decode", "encode", "search", "explain")
_OF_POOL = {"encoder": "encode", "video": "decode"}


class StageTimes:
    """Seconds that one request spent waiting, decoding, encoding, searching and explaining.

    Attributes:
        seconds: by stage; a stage that the request did not reach is not there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, pool: str, *, queue_ms: float, work_ms: float) -> None:
        """Add a job that `pool` has done: its wait, and the time of the batch it was in."""
        stage = _OF_POOL.get(pool, pool)
        for name, spent_ms in ((QUEUE, queue_ms), (stage, work_ms)):
            self.seconds[name] = self.seconds.get(name, 0.0) + spent_ms / 1000


_current: ContextVar[StageTimes | None] = ContextVar("stage_times", default=None)


def measure_stages() -> StageTimes:
    """Begin to measure the request that this task answers."""
    times = StageTimes()
    _current.set(times)
    return times


def job_done(pool: str, *, queue_ms: float, work_ms: float) -> None:
    """A job of the current request is done; outside of requests this is nothing."""
    times = _current.get()
    if times is not None:
        times.add(pool, queue_ms=queue_ms, work_ms=work_ms)
