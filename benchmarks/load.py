"""A server under load: Poisson arrivals up to saturation and past it, reloads, and a soak.

    python -m benchmarks.load sweep                  # latency against rate
    python -m benchmarks.load saturation --kind text # beside the encoder alone, in turn
    python -m benchmarks.load reloads                # 100 new versions, 20 corrupt, then SIGTERM
    python -m benchmarks.load soak --minutes 60      # at half load: is memory flat, is latency

Each starts a server of its own on a gallery of random vectors. The generator runs on the same
machine and takes cores from the server: how much is in the report, and how late it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.load_queries import image_calls, mixed_calls, text_calls
from benchmarks.load_reloads import run_reloads
from benchmarks.load_saturation import Round, compare
from benchmarks.load_soak import run_soak
from benchmarks.open_loop import Call, arrivals, one_client, open_loop, percentiles, summarise
from benchmarks.server import served, write_gallery
from cots_model.encoder import resolve_device
from cots_model.hardware import describe_hardware

GALLERY = "many"
WARM_UP_S = 3.0
SATURATED_S = 30.0
OVERLOAD = 1.3
"""Arrivals that saturate, as a multiple of the encoder's offline throughput."""
RATES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.2, 1.5, 2.0)
"""Arrivals, as multiples of the encoder's offline throughput."""
CALLS: Mapping[str, Callable[[str, int], Callable[[], Call]]] = {
    "text": text_calls,
    "image": image_calls,
}


def baseline(
    root: Path, checkpoint: str, kinds: Iterable[str], device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """What `load_baseline.py` measures, while no server is under load."""
    command = [sys.executable, "-m", "benchmarks.load_baseline", "--checkpoint", checkpoint]
    command += ["--device", device]
    for kind in kinds:
        command += ["--kind", kind]
    done = subprocess.run(
        [*command, "--gallery", str(root / GALLERY)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def mean_of(*measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The mean of several baselines."""
    return {
        group: {
            name: round(float(np.mean([one[group][name] for one in measured])), 3)
            for name in figures
        }
        for group, figures in measured[0].items()
    }


def cpu_s(*processes: psutil.Process) -> float:
    """Processor time of processes so far."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def at_rate(
    url: str, server: psutil.Process, next_call: Callable[[], Call], rate: float, seconds: float
) -> dict[str, Any]:
    """The figures of one rate, after a while to warm up."""
    rng = np.random.default_rng(int(1000 * rate))
    due_s = arrivals(rate, WARM_UP_S + seconds, rng)
    own, begun_s = psutil.Process(), time.perf_counter()
    serving = (server, *server.children(recursive=True))  # its workers, if it has some
    before = cpu_s(*serving), cpu_s(own)
    outcomes = asyncio.run(open_loop(url, due_s, next_call))
    took_s = time.perf_counter() - begun_s
    return {
        **asdict(summarise(outcomes, from_s=WARM_UP_S, to_s=WARM_UP_S + seconds)),
        "server_cores": round((cpu_s(*serving) - before[0]) / took_s, 2),
        "generator_cores": round((cpu_s(own) - before[1]) / took_s, 2),
    }


def sweep_kind(
    kind: str,
    url: str,
    server: psutil.Process,
    bare: dict[str, dict[str, float]],
    rates: Sequence[float],
    seconds: float,
    clients: int,
) -> dict[str, Any]:
    """One client alone, then all rates."""
    offline = bare["offline_per_s"][kind]
    one = asyncio.run(one_client(url, CALLS[kind](GALLERY, 1), clients))
    steps = []
    for number, share in enumerate(rates):
        calls = CALLS[kind](GALLERY, 2 + number)
        steps.append({"of_offline": share, **at_rate(url, server, calls, share * offline, seconds)})
        click.echo(f"{kind} {json.dumps(steps[-1])}", err=True)
    return {"one_client_ms": percentiles(one), "rates": steps}


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; None of no values."""
    return round(float(np.mean(values)), 3) if values else None


def conclude(
    bare: dict[str, dict[str, float]], kinds: dict[str, Any], cores: int
) -> dict[str, Any]:
    """The ratios that matter.

    Saturation is the mean of all rates from the encoder's offline throughput on; once as it is,
    and once as if the generator had run on other cores.
    """
    found = {}
    for kind, figures in kinds.items():
        bare_ms, offline_per_s = bare["bare_ms"][kind], bare["offline_per_s"][kind]
        steps = figures["rates"]
        saturated = [step for step in steps if step["of_offline"] >= 1]
        per_s = [step["answered_per_s"] for step in saturated]
        on_other_cores = [
            step["answered_per_s"] / offline_per_s / (1 - step["generator_cores"] / cores)
            for step in saturated
        ]
        refused_ms = [step["rejected_ms"]["p99"] for step in steps if step["rejected_ms"]]
        found[kind] = {
            "one_client_p50_of_bare": round(figures["one_client_ms"]["p50"] / bare_ms, 3),
            "saturation_per_s": mean_or_none(per_s),
            "saturation_of_offline": mean_or_none([one / offline_per_s for one in per_s]),
            "saturation_of_offline_on_other_cores": mean_or_none(on_other_cores),
            "worst_p99_of_429_ms": max(refused_ms, default=None),
            "worst_accepted_ms": max(
                (step["latency_ms"]["max"] for step in steps if step["latency_ms"]), default=None
            ),
        }
    return found


def write(out: Path, name: str, figures: dict[str, Any], device: str = "cpu") -> None:
    """Write a report with where, when and how, and print it without its series."""
    report = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("cots-retrieval"),
        "command": shlex.join(["python", "-m", "benchmarks.load", *sys.argv[1:]]),
        "hardware": asdict(describe_hardware(resolve_device(device))),
        **figures,
    }
    out.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    path = out / f"{stamp}-load_{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    click.echo(json.dumps(figures, indent=1))
    click.echo(f"written to {path}", err=True)


@contextmanager
def workplace(items: int, checkpoint: str) -> Iterator[tuple[Path, Path]]:
    """A root with a gallery of random vectors, and a file for the server's log."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "galleries"
        write_gallery(root, GALLERY, items, checkpoint)
        yield root, Path(folder) / "server.log"


@click.group()
def main() -> None:
    """Put a server of its own under load."""


_checkpoint = click.option("--checkpoint", default="cots-mini", show_default=True)
_items = click.option("--items", default=100_000, show_default=True, help="Vectors to search.")
_out = click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"))


@main.command()
@_checkpoint
@_items
@_out
@click.option("--seconds", default=20.0, show_default=True, help="Measured, of each rate.")
@click.option("--clients", "count", default=200, show_default=True, help="Calls of one client.")
@click.option("--kind", "kinds", type=click.Choice(list(CALLS)), multiple=True, default=list(CALLS))
@click.option(
    "--rate",
    "rates",
    multiple=True,
    default=RATES,
    show_default=True,
    help="Multiples of the encoder's offline throughput.",
)
@click.option("--device", default="cpu", show_default=True, help="Of the server: cpu or cuda.")
@click.option("--serve", default="", help="Further options of cots serve.")
def sweep(
    checkpoint: str, items: int, out: Path, seconds: float, count: int, kinds: tuple[str, ...],
    rates: tuple[float, ...], device: str, serve: str,
) -> None:  # fmt: skip
    """Latency against rate, of texts and of pictures."""
    found: dict[str, Any] = {}
    bare: list[dict[str, dict[str, float]]] = []
    options = ("--device", device, *shlex.split(serve))
    with workplace(items, checkpoint) as (root, log):
        for kind in kinds:
            bare.append(baseline(root, checkpoint, kinds, device))
            with served(root, checkpoint, log, *options) as (url, server):
                found[kind] = sweep_kind(kind, url, server, bare[-1], rates, seconds, count)
        bare.append(baseline(root, checkpoint, kinds, device))
    mean, cores = mean_of(*bare), len(os.sched_getaffinity(0))
    figures = {"items": items, "seconds": seconds, "without_server": mean, "baselines": bare}
    conclusion = conclude(mean, found, cores)
    write(out, "sweep", {**figures, "kinds": found, "conclusion": conclusion}, device)


@main.command()
@_checkpoint
@click.option("--items", default=10_000, show_default=True, help="Vectors to search.")
@_out
@click.option("--kind", type=click.Choice(list(CALLS)), required=True)
@click.option("--rounds", "count", default=6, show_default=True, type=click.IntRange(min=1))
@click.option("--seconds", default=20.0, show_default=True, help="Measured, of each round.")
@click.option(
    "--rate", default=OVERLOAD, show_default=True, help="Multiple of the offline throughput."
)
@click.option("--clients", default=40, show_default=True, help="Calls of one client, a round.")
@click.option("--serve", default="", help="Further options of cots serve.")
def saturation(
    checkpoint: str, items: int, out: Path, kind: str, count: int, seconds: float, rate: float,
    clients: int, serve: str,
) -> None:  # fmt: skip
    """A saturated server and the encoder alone, in turn: for machines whose speed changes.

    Each round is beside what the encoder did before it and after it, while the server is idle.
    """
    rounds: list[Round] = []
    bare: list[dict[str, dict[str, float]]] = []
    with (
        workplace(items, checkpoint) as (root, log),
        served(root, checkpoint, log, "--device", "cpu", *shlex.split(serve)) as (url, server),
    ):
        for number in range(count):
            bare.append(baseline(root, checkpoint, (kind,)))
            one = asyncio.run(one_client(url, CALLS[kind](GALLERY, 1000 + number), clients))
            per_s = rate * bare[-1]["offline_per_s"][kind]
            step = at_rate(url, server, CALLS[kind](GALLERY, number), per_s, seconds)
            rounds.append(Round(percentiles(one)["p50"], step))
            click.echo(f"{kind} {json.dumps(step)}", err=True)
        bare.append(baseline(root, checkpoint, (kind,)))
    figures = compare(
        rounds,
        offline_per_s=[one["offline_per_s"][kind] for one in bare],
        bare_ms=[one["bare_ms"][kind] for one in bare],
    )
    asked = {"items": items, "kind": kind, "rate": rate, "seconds": seconds, "clients": clients}
    write(out, "saturation", {**asked, **figures})


@main.command()
@_checkpoint
@_out
@click.option("--items", default=2000, show_default=True, help="Vectors of each version.")
@click.option("--rate", default=40.0, show_default=True, help="Arrivals per second.")
@click.option("--versions", default=100, show_default=True, help="Published; each fifth corrupt.")
def reloads(checkpoint: str, out: Path, items: int, rate: float, versions: int) -> None:
    """New versions under load, of which some are corrupt; then SIGTERM under load."""
    with tempfile.TemporaryDirectory() as folder:
        figures = run_reloads(Path(folder), checkpoint, items=items, rate=rate, versions=versions)
    write(out, "reloads", figures)
    sys.exit(1 if figures["failures"] else 0)


@main.command()
@_checkpoint
@_items
@_out
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--share-of-images", default=0.1, show_default=True)
@click.option("--load", default=0.5, show_default=True, help="Share of what saturates the server.")
def soak(
    checkpoint: str, items: int, out: Path, minutes: float, share_of_images: float, load: float
) -> None:
    """Constant load for long: texts, and some pictures."""
    with workplace(items, checkpoint) as (root, log):
        bare = baseline(root, checkpoint, CALLS)
        offline = bare["offline_per_s"]
        s_per_call = (1 - share_of_images) / offline["text"] + share_of_images / offline["image"]
        with served(root, checkpoint, log, "--device", "cpu") as (url, server):
            calls = mixed_calls(GALLERY, 0, share_of_images)
            full = at_rate(url, server, calls, OVERLOAD / s_per_call, SATURATED_S)
            click.echo(f"saturated {json.dumps(full)}", err=True)
            rate = load * full["answered_per_s"]
            calls = mixed_calls(GALLERY, 1, share_of_images)
            figures = run_soak(url, server, calls, rate=rate, seconds=60 * minutes)
    asked = {"items": items, "load": load, "share_of_images": share_of_images}
    write(out, "soak", {**asked, "without_server": bare, "saturated": full, **figures})


if __name__ == "__main__":
    main()
