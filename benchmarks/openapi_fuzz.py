"""Every route under generated requests: schemathesis against the server's own OpenAPI document.

    python -m benchmarks.openapi_fuzz --cases 2000            # every route, all checks
    python -m benchmarks.openapi_fuzz --cases 200             # a quick look

A server with a small random model and a gallery of random pictures is started on loopback and
ended afterwards. Its document and the answers are checked: no 5xx, no undocumented status, type or
body, valid requests accepted, invalid ones refused, nothing slower than 10 s. The exit status is
that of schemathesis; its output and a summary go to --out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.server import served
from cots_model.encoder import Encoder
from cots_model.hardware import describe_hardware
from cots_model.testing import make_tiny_checkpoint
from index_builder.build import build_gallery
from index_builder.options import BuildOptions

CONFIG = Path(__file__).resolve().parent / "schemathesis.toml"
HOOKS = CONFIG.with_name("schemathesis_hooks.py")
NAMES = ("cat.jpg", "wide.png", "dogs/rex in snow.jpg", "other.jpg")


def make_gallery(folder: Path) -> tuple[Path, Path]:
    """A checkpoint and a root with one gallery; both paths."""
    checkpoint = make_tiny_checkpoint(folder / "tiny")
    source = folder / "pictures"
    source.mkdir()
    rng = np.random.default_rng(0)
    (source / "dogs").mkdir()
    for name in NAMES:  # those of schemathesis.toml
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / name)
    options = BuildOptions(sources=(str(source),), gallery=folder / "root" / "pets", workers=1)
    build_gallery(options, Encoder.load(checkpoint, device="cpu"))
    return checkpoint, folder / "root"


def fuzz(
    url: str, cases: int, folder: Path, *options: str, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run schemathesis against a server.

    Args:
        url: of the server.
        cases: generated requests per route.
        folder: where it runs.
        options: more of its own.
        timeout_s: after which it is ended.

    Raises:
        TimeoutExpired: if it takes longer.
    """
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color"]
    return subprocess.run(
        [*program, "run", f"{url}/openapi.json", "--max-examples", str(cases), *options],
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@click.command()
@click.option("--cases", default=2000, show_default=True, help="Generated requests per route.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"))
def main(cases: int, out: Path) -> None:
    """Fuzz every route; exit as schemathesis does."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, root = make_gallery(Path(temporary))
        log = Path(temporary, "log")
        with served(root, str(checkpoint), log, "--device", "cpu") as (url, _):
            begun_s = time.monotonic()
            done = fuzz(url, cases, Path(temporary))
            seconds = time.monotonic() - begun_s
            still_ready = httpx.get(f"{url}/readyz").status_code == 200
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": asdict(describe_hardware(torch.device("cpu"))),
        "schemathesis": version("schemathesis"),
        "cases_per_route": cases,
        "seconds": round(seconds, 1),
        "exit_status": done.returncode,
        "ready_afterwards": still_ready,
    }
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stamp}-openapi_fuzz.txt").write_text(done.stdout + done.stderr, "utf-8")
    (out / f"{stamp}-openapi_fuzz.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    click.echo(done.stdout)
    click.echo(json.dumps(summary, indent=2))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
