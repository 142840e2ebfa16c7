"""Threads that compute, and give way to those that somebody waits for at every turn."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICENESS = 10
"""So much more than that of the process: a ninth of a core beside one that wants it as well."""

_MOST = 19


def stand_back() -> None:
    """Have this thread, and those that it starts, leave a core to other threads that want it.

    A thread that computes for long and one that answers for a moment are the same to the system:
    where cores are few the second waits for a turn, and with it whoever waits for the interpreter
    that it has. Linux alone knows threads of different priority; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        level = min(_MOST, os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICENESS)
        with contextlib.suppress(OSError):  # forbidden in some containers
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), level)


def niceness() -> int:
    """Of this thread; 0 where threads have none of their own."""
    if sys.platform != "linux":
        return 0
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
