"""What `/metrics` tells, in the text format of Prometheus.

Every server has a registry of its own. With several workers the folder that `share_metrics` made
holds the figures of each, in prometheus_client's multiprocess mode, and whichever worker is asked
adds them up. Labels have few values: a route is named by its template, a failure by its code.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector

from service.logs import num_lost
from service.stages import STAGES
from service.worker_environment import METRICS_FOLDER

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_VERSION_TIME = "%Y%m%dT%H%M%S.%fZ"
_PROCESS_GAUGES = {
    "process_resident_memory_bytes": "Resident memory; pages that workers share count in each.",
    "process_virtual_memory_bytes": "Virtual memory.",
    "process_open_fds": "Open file descriptors.",
    "process_max_fds": "Most file descriptors that may be open.",
    "process_start_time_seconds": "Start of the process since the epoch.",
}
_CPU = "process_cpu_seconds"


@dataclass(frozen=True)
class GalleryFigures:
    """What is told of a gallery.

    Attributes:
        version: name of the version that is served; `None` if none is.
        count: its items.
        num_loaded: versions taken since the start of the process.
        num_refused: versions refused since then.
    """

    version: str | None
    count: int = 0
    num_loaded: int = 0
    num_refused: int = 0


@dataclass(frozen=True)
class SupervisionCounters:
    """What the parent of several workers counts.

    Attributes:
        restarts: workers that ended unasked, or were ended for their silence.
        silent: the latter alone.
    """

    restarts: Counter
    silent: Counter


def supervision_counters(registry: CollectorRegistry) -> SupervisionCounters:
    """The counters that the parent of several workers adds to, at zero."""
    return SupervisionCounters(
        Counter("cots_worker_restarts", "Workers that ended and were replaced.", registry=registry),
        Counter(
            "cots_silent_workers",
            "Workers that were ended because their event loop did not answer.",
            registry=registry,
        ),
    )


class Metrics:
    """The figures of one server process."""

    def __init__(self, *, worker: int = 0) -> None:
        """Make all of them, at zero.

        Args:
            worker: number of this process among the workers.
        """
        disable_created_metrics()  # a second series beside each, that nothing here is read by
        self._registry = registry = CollectorRegistry()
        self._worker = str(worker)
        self._requests = Counter(
            "cots_requests", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self._durations = Histogram(
            "cots_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "cots_stage_duration_seconds",
            "Time that requests spent in each stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = _gauge(
            "cots_requests_in_flight", "Requests being answered.", "livesum", registry
        )
        self._rejects = Counter(
            "cots_rejected_requests",
            "Requests answered with an error, by its code.",
            ["status", "reason"],
            registry=registry,
        )
        self._batches = Histogram(
            "cots_batch_size",
            "Texts or pictures encoded together, or queries searched.",
            ["kind"],
            buckets=_SIZES,
            registry=registry,
        )
        self._waiting = _gauge("cots_queue_depth", "Waiting jobs.", "livesum", registry, "queue")
        self._ready = _gauge("cots_ready_workers", "Workers that are ready.", "livesum", registry)
        self._galleries = _Galleries(registry)
        self._root_up = _gauge(
            "cots_galleries_root_up",
            "1 if the folder of the galleries can be listed and is not suddenly empty.",
            "livemin",
            registry,
        )
        self._lost_lines = Counter(
            "cots_log_lines_lost",
            "Lines of the log that stderr was not read fast enough for.",
            registry=registry,
        )
        self._num_lost_lines = 0
        self._supervision = supervision_counters(registry)
        self._process = _ProcessFigures(self._worker, registry)
        for stage in STAGES:
            self._stages.labels(stage)
        for kind in ("text", "image", "search"):
            self._batches.labels(kind)

    def build(self, *, version: str, model: str, device: str, precision: str) -> None:
        """Tell what runs here."""
        labels = {
            "version": version,
            "python": platform.python_version(),
            "model": model,
            "device": device,
            "precision": precision,
        }
        info = _gauge("cots_build_info", "What runs; 1.", "livemax", self._registry, *labels)
        info.labels(**labels).set(1)

    def request_begins(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def request_ends(
        self,
        *,
        method: str,
        route: str,
        status: int,
        seconds: float,
        stages: Mapping[str, float],
        reason: str | None,
    ) -> None:
        """A request was answered.

        Args:
            method: of the request.
            route: template of its path.
            status: of the answer; 0 if the client left before there was one.
            seconds: from the head of the request to the end of the answer.
            stages: seconds by stage.
            reason: code of the error that was answered.
        """
        self._in_flight.dec()
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._durations.labels(route).observe(seconds)
        for stage, spent_s in stages.items():
            self._stages.labels(stage).observe(spent_s)
        if reason is not None:
            self._rejects.labels(str(status), reason).inc()

    def batch(self, kind: str, size: int) -> None:
        """`size` texts or pictures (`kind`: text, image) are encoded together."""
        self._batches.labels(kind).observe(size)

    def refresh(
        self,
        *,
        waiting: Mapping[str, int],
        ready: bool,
        galleries: Mapping[str, GalleryFigures],
        root_up: bool = True,
    ) -> None:
        """Take down what is looked up, not counted: queues, galleries, readiness, process, log."""
        for queue, depth in waiting.items():
            self._waiting.labels(queue).set(depth)
        self._ready.set(int(ready))
        self._root_up.set(int(root_up))
        self._galleries.refresh(galleries)
        self._process.refresh()
        num_lost_lines = num_lost()
        self._lost_lines.inc(max(0, num_lost_lines - self._num_lost_lines))
        self._num_lost_lines = num_lost_lines

    def render(self) -> bytes:
        """All figures in the text format, of all workers together."""
        folder = os.environ.get(METRICS_FOLDER)
        if folder is None:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared, path=folder)
        return generate_latest(shared)


class _Galleries:
    """Of workers that serve different versions for a moment, the oldest is told."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._up = _gauge(
            "cots_gallery_up", "1 if the gallery is served.", "livemin", registry, "gallery"
        )
        self._items = _gauge(
            "cots_gallery_items", "Items of the gallery.", "livemin", registry, "gallery"
        )
        self._version = _gauge(
            "cots_gallery_version_timestamp_seconds",
            "When the served version was made, since the epoch; its name is that time.",
            "livemin",
            registry,
            "gallery",
        )
        self._loads = Counter(
            "cots_gallery_loads",
            "Versions that were taken (loaded), or not (refused), by all workers.",
            ["gallery", "outcome"],
            registry=registry,
        )
        self._seen: dict[str, GalleryFigures] = {}

    def refresh(self, galleries: Mapping[str, GalleryFigures]) -> None:
        gone = {name: GalleryFigures(None) for name in self._seen.keys() - galleries.keys()}
        for name, gallery in {**galleries, **gone}.items():
            self._up.labels(name).set(int(gallery.version is not None))
            self._items.labels(name).set(gallery.count)
            self._version.labels(name).set(version_time(gallery.version or ""))
        for name, gallery in galleries.items():
            self._count_loads(name, gallery)

    def _count_loads(self, name: str, gallery: GalleryFigures) -> None:
        before = self._seen.get(name, GalleryFigures(None))
        for outcome, new in (
            ("loaded", gallery.num_loaded - before.num_loaded),
            ("refused", gallery.num_refused - before.num_refused),
        ):
            self._loads.labels(name, outcome).inc(max(0, new))
        self._seen[name] = gallery


class _ProcessFigures:
    """Memory, files and CPU time of this process, by the number of its worker."""

    def __init__(self, worker: str, registry: CollectorRegistry) -> None:
        self._source = ProcessCollector(registry=None)
        self._gauges = {
            name: _gauge(name, help_, "livesum", registry, "worker").labels(worker)
            for name, help_ in _PROCESS_GAUGES.items()
        }
        cpu = Counter(_CPU, "CPU time, user and system.", ["worker"], registry=registry)
        self._cpu = cpu.labels(worker)
        self._counted_cpu_s = 0.0

    def refresh(self) -> None:
        for metric in self._source.collect():
            for sample in metric.samples:
                if sample.name in self._gauges:
                    self._gauges[sample.name].set(sample.value)
                elif sample.name == f"{_CPU}_total":
                    self._cpu.inc(max(0.0, sample.value - self._counted_cpu_s))
                    self._counted_cpu_s = sample.value


def version_time(version: str) -> float:
    """Seconds since the epoch at which a gallery's version was made; 0 if its name is no time."""
    try:
        return datetime.strptime(version, _VERSION_TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _gauge(name: str, help_: str, mode: str, registry: CollectorRegistry, *labels: str) -> Gauge:
    """A gauge; `mode` says how those of several workers become one."""
    return Gauge(name, help_, labels, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
