"""The Ray engine on a real cluster of two workers, beside the plain engine."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_builder.verify import verify_gallery
from tests.index_builder.conftest import save_picture

pytest.importorskip("ray", reason="Ray is not installed; pip install 'cots-retrieval[ray]'")

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two machines of one core, both of them here."""
    port = free_port()
    logs = tmp_path_factory.mktemp("ray") / "log"
    address = f"127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> None:
        with logs.open("ab") as log:
            started.append(
                subprocess.Popen(
                    [*RAY, "--num-cpus=1", *arguments],
                    env=os.environ | QUIET,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        start("--head", f"--port={port}", "--include-dashboard=false")
        deadline_s = time.monotonic() + 60
        while not answers(port):
            assert time.monotonic() < deadline_s, logs.read_text()
            time.sleep(0.1)
        start(f"--address={address}")
        yield address
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(source: Path, gallery: Path, checkpoint: Path, *options: str, address: str = ""):
    return subprocess.run(
        [
            *(sys.executable, "-m", "cots_cli.main", "index", "build", str(source)),
            *("--gallery", str(gallery), "--checkpoint", str(checkpoint)),
            *("--part-items", "8", "--workers", "1", *options),
        ],
        cwd=REPOSITORY,
        env=os.environ | QUIET | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_ray_builds_the_same_gallery_as_the_plain_engine(cluster, tmp_path, tiny_checkpoint):
    for number in range(60):
        save_picture(tmp_path / f"photos/{number % 7}/{number:02d}.png", seed=number)
    (tmp_path / "photos/broken.png").write_bytes(b"no picture")
    versions = {}
    for name, options in (("ray", ["--engine", "ray"]), ("plain", [])):
        root = tmp_path / name
        built = build(tmp_path / "photos", root, tiny_checkpoint, *options, address=cluster)
        assert built.returncode == 0, (built.stdout, built.stderr)
        assert "60 pictures indexed" in built.stdout
        assert not any(verify_gallery(root).values())
        assert not (root / ".build").exists()
        [version] = (root / "versions").iterdir()
        versions[name] = {path.name: path.read_bytes() for path in version.iterdir()}
    assert versions["ray"].keys() == versions["plain"].keys()
    for name, data in versions["ray"].items():
        if name != "manifest.json":
            assert data == versions["plain"][name], name


@pytest.mark.slow
def test_ray_refuses_a_cluster_that_is_not_there(tmp_path, tiny_checkpoint):
    save_picture(tmp_path / "photos/a.png")
    address = f"127.0.0.1:{free_port()}"
    options = ("--engine", "ray")
    built = build(tmp_path / "photos", tmp_path / "g", tiny_checkpoint, *options, address=address)
    assert built.returncode == 1
    assert f"no Ray cluster answers at {address}" in built.stderr.splitlines()[-1]
    assert "ray start --head" in built.stderr.splitlines()[-1]
