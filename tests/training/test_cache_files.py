"""The lock of a cache file: one holder at a time, also while lock files come and go."""

import fcntl
import threading
import time

import pytest

from training.cache_files import alone


def wait_for(condition) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.01)


def test_who_waited_for_a_lock_file_that_was_removed_waits_for_the_new_one(tmp_path, caplog):
    """The second waits, the first ends and removes its lock file, and a third makes another one."""
    file = tmp_path / "cache.npy"
    path = file.with_suffix(".lock")
    entered = threading.Event()

    def second() -> None:
        with alone(file):
            entered.set()

    def num_waits() -> int:
        return caplog.text.count("waiting for another process")

    thread = threading.Thread(target=second)
    with path.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        thread.start()
        wait_for(lambda: num_waits() == 1)
        path.unlink()
        third = path.open("w")
        fcntl.flock(third, fcntl.LOCK_EX)
    with third:
        wait_for(lambda: num_waits() == 2 or entered.is_set())
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
    assert not path.exists()


def test_lock_is_free_after_a_failure(tmp_path):
    file = tmp_path / "cache.npy"
    for _ in range(2):
        with pytest.raises(KeyError), alone(file):
            raise KeyError
    with alone(file):
        pass
    assert not file.with_suffix(".lock").exists()
