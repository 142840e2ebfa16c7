"""A server of one's own: `cots serve` in a process, on a free port of loopback."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import httpx
import numpy as np
import psutil

from cots_model.encoder import Encoder
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors

_START_S = 300
_END_S = 60


@contextlib.contextmanager
def served(
    galleries: Path,
    checkpoint: str,
    log: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, psutil.Popen]]:
    """A ready server: its url and process.

    Args:
        galleries: their root.
        checkpoint: of the model.
        log: file for what it says.
        options: further ones of `cots serve`.
        environment: all of it; that of this process by default.

    Raises:
        ClickException: if it does not start.
    """
    command = [sys.executable, "-c", "from cots_cli.main import main; main()", "serve"]
    where = ["--galleries", str(galleries), "--checkpoint", checkpoint, "--port", "0"]
    with log.open("wb") as errors:
        server = psutil.Popen(
            [*command, *where, *options], stdout=errors, stderr=errors, env=environment
        )
    try:
        yield _url(server, log), server
    finally:
        _end(server)


def _end(server: psutil.Popen) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was told before
        server.terminate()
    try:
        server.wait(_END_S)
    except psutil.TimeoutExpired:
        server.kill()
        raise click.ClickException(f"the server did not end in {_END_S} s") from None


def _url(server: psutil.Popen, log: Path) -> str:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and server.poll() is None:
        found = re.search(r"http://[\w.\[\]:]+", log.read_text("utf-8", "replace"))
        with contextlib.suppress(httpx.TransportError):
            if found and httpx.get(f"{found[0]}/readyz").status_code == 200:
                return found[0]
        time.sleep(0.2)
    raise click.ClickException(f"the server did not start; see {log}")


def write_gallery(root: Path, name: str, items: int, checkpoint: str, *, prefix: str = "") -> Path:
    """A flat gallery of random vectors, made for a model; ids begin with `prefix`."""
    encoder = Encoder.load(checkpoint, device="cpu")
    ids = [f"{prefix}{number:08d}" for number in range(items)]
    vectors_NE: np.ndarray = unit_vectors(items, encoder.dim)
    return publish_gallery(
        root / name, vectors_NE, plain_items(ids), fingerprint=encoder.fingerprint
    )
