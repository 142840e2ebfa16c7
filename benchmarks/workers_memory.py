"""Memory of several workers beside one: vectors are mapped, and in memory once.

    python benchmarks/workers_memory.py                     # 1 and 4 workers, 500,000 vectors
    python benchmarks/workers_memory.py --items 50000       # a quick look

A gallery of random vectors is written, served, and searched until every worker has answered; then
the memory of the parent and all workers is read from the kernel. PSS divides a page by the number
of processes that share it, so its sum is what the machine spends; RSS counts shared pages in each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import psutil
import torch

from cots_model.encoder import Encoder
from cots_model.hardware import describe_hardware
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

MIB = 1024 * 1024
_START_S = 300


def write_gallery(folder: Path, items: int) -> Path:
    """A root with one flat gallery of random vectors, made for the bundled model."""
    encoder = Encoder.load("cots-mini", device="cpu")
    ids = [f"{number:08d}" for number in range(items)]
    vectors_NE = unit_vectors(items, encoder.dim)
    publish_gallery(folder / "many", vectors_NE, plain_items(ids), fingerprint=encoder.fingerprint)
    return folder


def measure(root: Path, workers: int, port: int) -> dict[str, Any]:
    """Serve with some workers and read their memory, in MiB."""
    command = [sys.executable, "-m", "cots_cli.main", "serve", "--galleries", str(root)]
    options = ["--workers", str(workers), "--port", str(port), "--device", "cpu"]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([*command, *options], stderr=log)
        try:
            _search_on_all(url, workers)
            parent = psutil.Process(server.pid)
            processes = [parent, *parent.children(recursive=True)]
            memories = [process.memory_full_info() for process in processes]
            maps = [m for p in processes for m in p.memory_maps() if m.path.startswith(str(root))]
        finally:
            server.terminate()
            server.wait(60)
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
        try:
            ready = httpx.get(f"{url}/metrics").text
        except httpx.TransportError:
            time.sleep(0.5)
            continue
        if f"cots_ready_workers {float(workers)}" in ready:
            break
        time.sleep(0.5)
    for number in range(20 * workers):
        query = {"query": f"picture {number}"}
        httpx.post(f"{url}/v1/galleries/many/search", json=query, timeout=60).raise_for_status()


@click.command()
@click.option("--items", default=500_000, show_default=True)
@click.option("--workers", default=(1, 4), multiple=True, show_default=True)
@click.option("--port", default=8766, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
def main(items: int, workers: tuple[int, ...], port: int, out: Path) -> None:
    """Measure and write one JSON file."""
    with tempfile.TemporaryDirectory() as temporary:
        root = write_gallery(Path(temporary), items)
        figures = [measure(root, number, port) for number in workers]
    dim = Encoder.load("cots-mini", device="cpu").dim
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
