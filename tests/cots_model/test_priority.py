"""Threads that give way: they alone, and what they start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cots_model import priority
from cots_model.cores import map_on_cores
from cots_model.priority import NICENESS, niceness, stand_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness")


def in_thread(call: Callable[[], list[int]]) -> list[int]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


def backed() -> list[int]:
    stand_back()
    return [niceness(), *in_thread(lambda: [niceness()])]


def test_a_thread_stands_back_with_those_that_it_starts_and_no_other() -> None:
    before = niceness()
    level = min(19, before + NICENESS)
    assert in_thread(backed) == [level, level]
    assert niceness() == before


def test_it_stands_back_once() -> None:
    assert in_thread(lambda: [*backed(), *backed()]) == in_thread(backed) * 2


def test_where_it_is_forbidden_it_goes_on(monkeypatch) -> None:
    def forbid(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbid)
    assert in_thread(backed) == [niceness()] * 2


def test_elsewhere_nothing_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(priority.sys, "platform", "darwin")
    monkeypatch.delattr(os, "setpriority")
    monkeypatch.delattr(os, "getpriority")
    assert in_thread(backed) == [0, 0]


@pytest.mark.parametrize("parts", [1, 5])
def test_parts_are_computed_at_the_priority_of_who_asks(parts) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def levels() -> list[int]:
        return map_on_cores(lambda _: niceness(), range(parts))

    def backed_levels() -> list[int]:
        stand_back()
        return levels()

    try:
        for _ in range(2):
            assert levels() == [niceness()] * parts
            assert in_thread(backed_levels) == [min(19, niceness() + NICENESS)] * parts
    finally:
        torch.set_num_threads(threads)
