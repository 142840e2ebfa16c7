"""Thousands of hostile requests against a real `cots serve`: no 5xx, no hang, memory flat.

    python -m benchmarks.hostile --out benchmarks/results

Draws a gallery of pictures, starts the server on it, sends the requests of `hostile_requests.py`
from several threads, and measures the memory of the server. A good request is sent after every
hundred, and has to be answered with 200. The exit status is 1 if anything was not as it has to be.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import select
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.hostile_requests import Attack, Target, good_request, hostile_requests
from benchmarks.server import served
from cots_model.encoder import Encoder
from cots_model.hardware import describe_hardware
from index_builder.build import build_gallery
from index_builder.options import BuildOptions

NUM_PICTURES = 200
WARM_UP = 0.2
FLAT = 0.10


@dataclass
class Tally:
    """What came back.

    Attributes:
        outcomes: by kind of request, how often each status came; `closed` where the server hung up.
        faults: kind, outcome and the first bytes of each request that was not answered well.
        rss_mib: memory of the server, over time.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, attack: Attack, outcome: str) -> None:
        """Count one outcome."""
        with self.lock:
            self.outcomes.setdefault(attack.kind, Counter())[outcome] += 1
            if is_fault(attack, outcome):
                self.faults.append((attack.kind, outcome, repr(attack.pieces[0][:3000])))

    def drift(self) -> float:
        """How much the memory of the last fifth differs from that just after the warm-up."""
        warm = self.rss_mib[int(len(self.rss_mib) * WARM_UP) :]
        share = max(1, len(warm) // 5)
        first, last = warm[:share], warm[-share:]
        return (sum(last) / len(last)) / (sum(first) / len(first)) - 1


def is_fault(attack: Attack, outcome: str) -> bool:
    """Whether the server failed at this request."""
    if attack.kind == "good":
        return outcome != "200"
    if outcome.isdigit():
        return int(outcome) >= 500
    if outcome == "closed":
        return attack.kind != "framing"  # what is no HTTP need not be answered in HTTP
    return outcome == "hang"


def exchange(host: str, port: int, attack: Attack, *, timeout_s: float = 30.0) -> str:
    """Send a request: the status that came back, or `closed`, `left` or `hang`."""
    with socket.create_connection((host, port), timeout=timeout_s) as sock:
        for piece in attack.pieces:
            with contextlib.suppress(ConnectionError):  # the answer may be there already
                sock.sendall(piece)
            time.sleep(attack.pause_s)
        if attack.leaves:
            return "left"
        if attack.patience_s is not None and not _readable(sock, attack.patience_s):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
        return _status(sock, attack.method)


def _readable(sock: socket.socket, patience_s: float) -> bool:
    return bool(select.select([sock], [], [], patience_s)[0])


def _status(sock: socket.socket, method: str) -> str:
    answer = http.client.HTTPResponse(sock, method=method)
    try:
        answer.begin()
        answer.read()
    except TimeoutError:
        return "hang"
    except (http.client.HTTPException, OSError, ValueError):
        return str(answer.status) if isinstance(answer.status, int) else "closed"
    finally:
        answer.close()
    return str(answer.status)


def draw_gallery(root: Path, checkpoint: str) -> str:
    """A gallery of drawn pictures with metadata, under `root`: its name."""
    pictures = root.parent / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    rows = ["id,category,year"]
    for number in range(NUM_PICTURES):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        drawn = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)
        drawn.save(pictures / f"{number}.jpg")
        rows.append(f"{number}.jpg,{('lake', 'beach', '')[number % 3]},{2000 + number % 25}")
    table = root.parent / "metadata.csv"
    table.write_text("\n".join(rows))
    gallery = root / "drawn"
    options = BuildOptions(sources=(str(pictures),), gallery=gallery, metadata=table, workers=1)
    build_gallery(options, Encoder.load(checkpoint, device="cpu"))
    return gallery.name


def find_target(url: str, gallery: str) -> Target:
    """A gallery and an item of it."""
    about = httpx.get(f"{url}/v1/galleries/{gallery}").raise_for_status().json()
    path = f"{url}/v1/galleries/{gallery}/search"
    hits = httpx.post(path, json={"query": "a", "k": 1}).raise_for_status().json()["hits"]
    return Target(gallery, hits[0]["id"], about["dim"])


def attack_all(url: str, target: Target, process: psutil.Process, args: dict[str, Any]) -> Tally:
    """Send everything; memory is measured after every hundredth request."""
    tally = Tally()
    address = httpx.URL(url)
    assert address.port is not None
    stream = itertools.islice(hostile_requests(target, args["seed"]), args["requests"])

    def send(attack: Attack) -> None:
        tally.add(attack, exchange(address.host, address.port or 80, attack))

    with ThreadPoolExecutor(args["threads"]) as pool:
        while batch := list(itertools.islice(stream, 100)):
            list(pool.map(send, batch))
            send(good_request(target))
            tally.rss_mib.append(round(process.memory_info().rss / 2**20, 1))
            done = 100 * len(tally.rss_mib)
            click.echo(f"{done:6} requests, {tally.rss_mib[-1]:.0f} MiB", err=True)
    return tally


@click.command()
@click.option("--checkpoint", default="cots-mini", show_default=True)
@click.option("--requests", type=click.IntRange(100), default=10_000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the report.")
def main(checkpoint: str, out: Path | None, **args: Any) -> None:
    """Send hostile requests to a server of its own and report."""
    with tempfile.TemporaryDirectory() as folder:
        root, log = Path(folder) / "galleries", Path(folder) / "server.log"
        gallery = draw_gallery(root, checkpoint)
        begun_s = time.monotonic()
        with served(root, checkpoint, log) as (url, process):
            tally = attack_all(url, find_target(url, gallery), process, args)
        tracebacks = [line for line in log.read_text().splitlines() if "Traceback" in line]
    drift = tally.drift()
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "version": version("cots-retrieval"),
        **args,
        "command": shlex.join(["python", "-m", "benchmarks.hostile", *sys.argv[1:]]),
        "hardware": asdict(describe_hardware(torch.device("cpu"))),
        "seconds": round(time.monotonic() - begun_s, 1),
        "outcomes": {kind: dict(count.most_common()) for kind, count in tally.outcomes.items()},
        "faults": tally.faults,
        "tracebacks": tracebacks,
        "rss_mib": tally.rss_mib,
        "rss_drift": round(drift, 4),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{time.strftime('%Y-%m-%dT%H%M%S')}-hostile.json"
        path.write_text(json.dumps(report, indent=1, default=str) + "\n")
    shown = {key: value for key, value in report.items() if key != "rss_mib"}
    click.echo(json.dumps(shown, indent=1, default=str))
    failed = tally.faults or tracebacks or abs(drift) > FLAT
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
