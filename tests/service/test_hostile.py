"""A few hundred hostile requests of every kind: no 5xx, no hang, no fault in the log."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from benchmarks.hostile import exchange, is_fault
from benchmarks.hostile_requests import Attack, Target, good_request, hostile_requests

TARGET = Target(gallery="pets", item_id="dogs/100%?.jpg", dim=32)


# Of a form that is cut short starlette forgets the file; the memory goes with the object.
@pytest.mark.filterwarnings("ignore:Unclosed file <tempfile:ResourceWarning")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_requests_get_no_server_error_and_good_ones_are_answered(
    server, caplog, seed
) -> None:
    caplog.set_level(logging.ERROR)
    address = urlsplit(server.url)

    def send(attack: Attack) -> tuple[Attack, str]:
        return attack, exchange(address.hostname or "", address.port or 0, attack, timeout_s=20)

    attacks = list(itertools.islice(hostile_requests(TARGET, seed), 240))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, [*attacks, *[good_request(TARGET)] * 4]))
    faults = [
        (a.kind, outcome, a.pieces[0][:2000]) for a, outcome in answers if is_fault(a, outcome)
    ]
    assert faults == []
    of_others = "service.readiness"  # servers of other tests, whose model was taken away
    assert [r.getMessage() for r in caplog.records if r.name != of_others] == []
    assert server.client.get("/readyz").status_code == 200
    outcomes = Counter(outcome for _, outcome in answers)
    assert {"200", "400", "404", "422"} <= set(outcomes), outcomes  # it got through to all parts


def test_same_seed_gives_the_same_requests() -> None:
    first, second, other = (
        list(itertools.islice(hostile_requests(TARGET, seed), 60)) for seed in (5, 5, 6)
    )
    assert first == second
    assert first != other


def test_server_errors_and_hangs_would_be_noticed() -> None:
    good = good_request(TARGET)
    bad = next(hostile_requests(TARGET, 1))
    no_http = next(one for one in hostile_requests(TARGET, 1) if one.kind == "framing")
    assert all(is_fault(bad, outcome) for outcome in ("500", "503", "504", "closed", "hang"))
    assert not any(is_fault(bad, outcome) for outcome in ("200", "422"))
    assert not is_fault(no_http, "closed")
    assert [is_fault(good, outcome) for outcome in ("200", "422")] == [False, True]
