"""Building a gallery beside the encoder alone: how much of its speed is left, and its memory.

    python benchmarks/index_throughput.py                  # 20,000 pictures: 45 minutes, 2 cores
    python benchmarks/index_throughput.py --pictures 320   # a quick look

A folder of pictures and videos is made, or found from an earlier call. The encoder embeds batches
of preloaded pixels before, and again after, `cots index build` has run on the folder in a process
of its own, with the memory of it and of all its children sampled. Then `cots index verify`, and a
gallery of the videos in the same folder. Text and JSON go to --out.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from picture_folder import make_folder
from PIL import Image

from cots_model.config import Precision
from cots_model.encoder import Encoder
from cots_model.hardware import describe_hardware
from cots_model.images import decode_image

COTS = (sys.executable, "-m", "cots_cli.main")
_SAMPLE_S = 1.0  # looking at all processes costs some milliseconds


@dataclass
class Memory:
    """Largest memory of a process and all its descendants; pages they share count for each."""

    pid: int
    peak_bytes: int = 0
    peak_of_one_bytes: int = 0
    peak_proportional_bytes: int = 0
    cpu_s: dict[int, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(_SAMPLE_S):
            number += 1
            try:
                self._sample(proportional=number % 25 == 1)
            except psutil.Error:
                continue

    def _sample(self, *, proportional: bool) -> None:
        root = psutil.Process(self.pid)
        processes = [root, *root.children(recursive=True)]
        used = [process.memory_info().rss for process in processes]
        for process in processes:
            times = process.cpu_times()
            self.cpu_s[process.pid] = times.user + times.system
        self.peak_bytes = max(self.peak_bytes, sum(used))
        self.peak_of_one_bytes = max(self.peak_of_one_bytes, *used)
        if proportional:  # slow for the system, so once in a while
            shared = sum(process.memory_full_info().pss for process in processes)
            self.peak_proportional_bytes = max(self.peak_proportional_bytes, shared)


@dataclass(frozen=True)
class Child:
    """What a command came to."""

    seconds: float
    cpu_s: float
    peak_mb: float
    peak_of_one_mb: float
    peak_proportional_mb: float
    report: dict[str, Any]


def run_child(*arguments: str, threads: int) -> Child:
    """Run a command that prints a JSON report, and watch its memory."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [*COTS, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    with Memory(process.pid) as memory:
        output, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"cots {' '.join(arguments)} failed with {process.returncode}")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return Child(
        round(time.perf_counter() - start, 2),
        round(sum(memory.cpu_s.values()), 2),
        round(memory.peak_bytes / 1e6),
        round(memory.peak_of_one_bytes / 1e6),
        round(memory.peak_proportional_bytes / 1e6),
        json.loads(lines[-1]) if lines else {},
    )


def time_batches(
    encoder: Encoder, img_BCHW: torch.Tensor, runs: int
) -> tuple[list[float], list[float]]:
    """Seconds, and seconds of CPU, of embedding preloaded pixels, after once to warm up."""
    encoder.encode_pixels(img_BCHW)
    seconds, cpu_s = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), time.process_time()
        encoder.encode_pixels(img_BCHW)
        seconds.append(time.perf_counter() - start)
        cpu_s.append(time.process_time() - cpu_start)
    return seconds, cpu_s


def preload(encoder: Encoder, folder: Path, batch_size: int) -> torch.Tensor:
    """The first pictures of a folder as one batch of pixels."""
    paths = sorted(folder.glob("*/*.jpg"))[:batch_size]
    imgs: list[Image.Image] = [decode_image(path) for path in paths]
    return torch.stack([encoder.preprocess.image(img) for img in imgs])


@click.command()
@click.option("--pictures", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--checkpoint", default="cots-mini", show_default=True)
@click.option("--precision", type=click.Choice(("float32", "bfloat16", "int8")), default="float32")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--runs", default=20, show_default=True, help="Batches timed before, and after.")
@click.option("--videos/--no-videos", default=True, show_default=True, help="Build those as well.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("/tmp/cots-index-throughput"))
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("../shared/data"),
    envvar="COTS_SHARED_DATA", help="The development data.",
)  # fmt: skip
def main(
    pictures: int, checkpoint: str, precision: Precision, batch_size: int, runs: int, videos: bool,
    work: Path, out: Path, data: Path,
) -> None:  # fmt: skip
    """Measure, and write the figures to OUT."""
    folder = work / f"pictures-{pictures}"
    make_folder(data, folder, pictures)
    load_before = os.getloadavg()
    encoder = Encoder.load(checkpoint, device="cpu", precision=precision)
    img_BCHW = preload(encoder, folder, min(batch_size, pictures))
    threads = torch.get_num_threads()
    shutil.rmtree(work / "gallery", ignore_errors=True)
    before, cpu_before = time_batches(encoder, img_BCHW, runs)
    build = run_child(
        "index", "build", str(folder), "--gallery", str(work / "gallery"), "--checkpoint",
        checkpoint, "--device", "cpu", "--batch-size", str(batch_size), "--precision", precision,
        "--json", threads=threads,
    )  # fmt: skip
    after, cpu_after = time_batches(encoder, img_BCHW, runs)
    verify = run_child("index", "verify", str(work / "gallery"), threads=threads)
    encoder_per_s = len(img_BCHW) / float(np.median(before + after))
    figures = {
        "encoder_images_per_s": round(encoder_per_s, 3),
        "encoder_images_per_s_before": round(len(img_BCHW) / float(np.median(before)), 3),
        "encoder_images_per_s_after": round(len(img_BCHW) / float(np.median(after)), 3),
        "build_images_per_s": build.report["images_per_s"],
        "ratio": round(build.report["images_per_s"] / encoder_per_s, 4),
        "ratio_with_start_of_process": round(
            build.report["count"] / build.seconds / encoder_per_s, 4
        ),
        "cpu_share_of_encoder": round(
            float(np.median(cpu_before + cpu_after))
            / len(img_BCHW)
            * build.report["count"]
            / build.cpu_s,
            4,
        ),
        "indexed": build.report["count"],
        "ignored": build.report["ignored"],
        "peak_mb": build.peak_mb,
    }
    results: dict[str, Any] = {
        "benchmark": "index_throughput",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python " + " ".join(sys.argv),
        "hardware": asdict(describe_hardware(torch.device("cpu"))),
        "versions": {name: version(name) for name in ("torch", "pillow", "numpy", "faiss-cpu")},
        "python": platform.python_version(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "parameters": {
            "pictures": pictures,
            "checkpoint": checkpoint,
            "precision": precision,
            "batch_size": batch_size,
        },
        "figures": figures,
        "encoder_batch_s": {"before": before, "after": after},
        "build": asdict(build),
        "verify_s": verify.seconds,
    }
    if videos:
        shutil.rmtree(work / "videos", ignore_errors=True)
        results["videos"] = asdict(
            run_child(
                "index", "build", str(folder), "--gallery", str(work / "videos"), "--checkpoint",
                checkpoint, "--device", "cpu", "--modality", "video", "--json", threads=threads,
            )
        )  # fmt: skip
    write(results, out)


def write(results: dict[str, Any], out: Path) -> None:
    """The whole as JSON, and what matters as text, on the screen too."""
    figures, build, machine = results["figures"], results["build"], results["hardware"]
    load = results["load_average"]["before"][0]
    text = f"""\
{results["date"]}  {machine["cpu"]}, {machine["cores"]} cores, {machine["threads"]} threads, \
load {load:.2f} before
{results["command"]}
encoder alone  {figures["encoder_images_per_s"]:.2f} images/s, before \
{figures["encoder_images_per_s_before"]:.2f}, after {figures["encoder_images_per_s_after"]:.2f}
build          {figures["build_images_per_s"]:.2f} images/s; {figures["indexed"]:,} indexed, \
{figures["ignored"]:,} other files ignored
ratio          {figures["ratio"]:.3f}; {figures["ratio_with_start_of_process"]:.3f} with the start \
of the process; encoder's share of the build's CPU time {figures["cpu_share_of_encoder"]:.3f}
peak memory    {build["peak_mb"]:,} MB of all processes, shared pages counted once \
{build["peak_proportional_mb"]:,}, the largest {build["peak_of_one_mb"]:,}
stages (s)     {build["report"]["seconds"]}
verify         passed, {results["verify_s"]:.1f} s
"""
    if "videos" in results:
        videos = results["videos"]
        text += (
            f"videos         {videos['report']['count']} indexed in {videos['seconds']:.1f} s, "
            f"peak {videos['peak_mb']:,} MB\n"
        )
    out.mkdir(parents=True, exist_ok=True)
    name = f"{results['date'][:19].replace(':', '')}-index"
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (out / f"{name}.txt").write_text(text, "utf-8")
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
