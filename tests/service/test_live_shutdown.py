"""SIGTERM while a gallery loads: the process ends in its grace time, with status 0."""

from __future__ import annotations

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.service.conftest import wait_until
from tests.service.test_serve_command import process
from tests.service.versions import publish_copy

GRACE_S = 5
# The server, with versions that take a minute to load once the first ones are there.
SERVER = f"""
import sys, time
from pathlib import Path
from service.app import create_app
from service.opening import Opener
from service.server import bind, leave, serve
from service.settings import Settings
from service.state import Resources

settings = Settings.load(galleries=Path(sys.argv[1]), checkpoint=sys.argv[2], port=0, device="cpu",
                         drain_s=0.2, grace_s={GRACE_S}, reload_interval_s=float(sys.argv[3]))
app = create_app(settings, Resources.load(settings))

def slow(self, folder, **options):
    print("loading", file=sys.stderr, flush=True)
    time.sleep(60)

Opener.open = slow
say = lambda url: print("at", url, file=sys.stderr, flush=True)
if not serve(app, settings, bind(settings.host, 0), on_start=say):
    leave()
"""


@pytest.mark.parametrize("asked", [True, False])
def test_sigterm_during_a_load_ends_in_the_grace_time(root, checkpoint, tmp_path, asked) -> None:
    shutil.copytree(root / "shards", tmp_path / "g" / "shards", symlinks=True)
    interval_s = 0 if asked else 0.05
    with (
        process(SERVER, tmp_path / "g", checkpoint, interval_s) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        url = server.url()
        publish_copy(root / "shards", tmp_path / "g" / "shards")
        if asked:
            pool.submit(httpx.post, f"{url}/v1/galleries/shards/reload", timeout=30)
        wait_until(lambda: any("loading" in line for line in server.lines))
        begun_s = time.monotonic()
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - begun_s < GRACE_S + 1
