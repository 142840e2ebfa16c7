"""Builds in processes that can be killed: one that has all imports and a model forks the others.

python killing.py CHECKPOINT     then a job a line on stdin, and its outcome a line on stdout
"""

import importlib
import json
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Killer:
    """Runs jobs in forked processes."""

    def __init__(self, checkpoint: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(checkpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, source: Path, gallery: Path, **job: object) -> dict:
        """One build. Job: `hook`, `count` and `after`, or `kill_s`; gives `status`, `seconds` and
        the report's `parts` and `parts_continued`."""
        line = json.dumps({"source": str(source), "gallery": str(gallery), **job})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


def main() -> None:
    import torch

    from cots_model.encoder import Encoder

    torch.set_num_threads(1)
    encoder = Encoder.load(sys.argv[1], device="cpu")
    importlib.import_module("index_builder.build")
    decode = importlib.import_module("index_builder.pipeline.decode")
    with decode.DecodePool(encoder.preprocess, workers=1, timeout_s=60, window=1) as pool:
        assert list(pool.decode(iter(()))) == []
    # the server that decoders are forked from is no child of the builds: they cannot look after it
    server = multiprocessing.forkserver._forkserver
    ensure, server.ensure_running = server.ensure_running, lambda: None
    for line in sys.stdin:
        revive(server._forkserver_pid, ensure)
        print(json.dumps(fork_one(json.loads(line), encoder)), flush=True)  # noqa: T201


def revive(server: int, ensure: Callable[[], None]) -> None:
    """Start the server again if it died of a build that was killed while asking it."""
    process = multiprocessing.get_context("forkserver").Process(target=os.getpid)
    try:
        process.start()
        process.join()
    except (OSError, EOFError):
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        ensure()


def fork_one(job: dict, encoder: object) -> dict:
    result = Path(job["gallery"]).with_suffix(".result")
    result.unlink(missing_ok=True)
    start_s = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            result.write_text(json.dumps(build(job, encoder)))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked process must not come back
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    if "kill_s" in job:
        time.sleep(job["kill_s"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    outcome = {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start_s}
    return outcome | (json.loads(result.read_text()) if result.exists() else {})


def build(job: dict, encoder: object) -> dict:
    from index_builder.build import build_gallery
    from index_builder.options import BuildOptions

    if "hook" in job:
        die_at(job["hook"], job["count"], after=job["after"])
    options = BuildOptions(
        sources=(job["source"],),
        gallery=Path(job["gallery"]),
        workers=1,
        batch_size=4,
        part_items=6,
    )
    report = build_gallery(options, encoder)
    return {"parts": report.parts, "parts_continued": report.parts_continued}


def die_at(hook: str, count: int, *, after: bool) -> None:
    """Kill this process at the `count`-th call of `module:name`, before it or after it."""
    module, path = hook.split(":")
    owner = importlib.import_module(module)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def replacement(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = original(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(owner, name, replacement)


if __name__ == "__main__":
    main()
