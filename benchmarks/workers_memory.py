"""Memory of several workers beside one: vectors are mapped, and in memory once.

    python -m benchmarks.workers_memory                     # 1 and 4 workers, 500,000 vectors
    python -m benchmarks.workers_memory --items 50000       # a quick look

A gallery of random vectors is written, served, and searched until every worker has answered; then
the memory of the parent and all workers is read from the kernel. PSS divides a page by the number
of processes that share it, so its sum is what the machine spends; RSS counts shared pages in each.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import torch

from benchmarks.server import served, write_gallery
from cots_model.encoder import Encoder
from cots_model.hardware import describe_hardware

CHECKPOINT = "cots-mini"
MIB = 1024 * 1024
_START_S = 300


def measure(root: Path, workers: int, log: Path) -> dict[str, Any]:
    """Serve with some workers and read their memory, in MiB."""
    options = ("--workers", str(workers), "--device", "cpu")
    with served(root, CHECKPOINT, log, *options) as (url, parent):
        _search_on_all(url, workers)
        processes = [parent, *parent.children(recursive=True)]
        memories = [process.memory_full_info() for process in processes]
        maps = [m for p in processes for m in p.memory_maps() if m.path.startswith(str(root))]
    return {
        "workers": workers,
        "processes": len(memories),
        "pss_mib": round(sum(memory.pss for memory in memories) / MIB),
        "rss_mib": round(sum(memory.rss for memory in memories) / MIB),
        "gallery_files_pss_mib": round(sum(m.pss for m in maps) / MIB),
        "gallery_files_rss_mib": round(sum(m.rss for m in maps) / MIB),
        "largest_pss_mib": round(max(memory.pss for memory in memories) / MIB),
    }


def _search_on_all(url: str, workers: int) -> None:
    """Ask on new connections until every worker has answered a few searches."""
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        if f"cots_ready_workers {float(workers)}" in httpx.get(f"{url}/metrics").text:
            break
        time.sleep(0.5)
    for number in range(20 * workers):
        query = {"query": f"picture {number}"}
        httpx.post(f"{url}/v1/galleries/many/search", json=query, timeout=60).raise_for_status()


@click.command()
@click.option("--items", default=500_000, show_default=True)
@click.option("--workers", default=(1, 4), multiple=True, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
def main(items: int, workers: tuple[int, ...], out: Path) -> None:
    """Measure and write one JSON file."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "galleries"
        write_gallery(root, "many", items, CHECKPOINT)
        log = Path(temporary) / "server.log"
        figures = [measure(root, number, log) for number in workers]
    dim = Encoder.load(CHECKPOINT, device="cpu").dim
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": asdict(describe_hardware(torch.device("cpu"))),
        "items": items,
        "vectors_mib": round(items * dim * np.dtype(np.float32).itemsize / MIB),
        "figures": figures,
    }
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stamp}-workers_memory.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
