"""Decoding the pictures of a request: given up when nobody waits for it any more."""

from __future__ import annotations

import base64
import time

import pytest

from service import queries
from service.jobs import DeadlineError
from service.queries import Part, prepare
from service.schemas import QueryPart
from tests.service.conftest import picture


def test_pictures_behind_the_deadline_are_not_decoded(encoder, monkeypatch) -> None:
    decode, decoded = queries.decode_image, []

    def slow(data, **limits):
        decoded.append(time.sleep(0.1))
        return decode(data, **limits)

    monkeypatch.setattr(queries, "decode_image", slow)
    spec = QueryPart(image=base64.b64encode(picture(1)).decode())
    asked = [(Part(spec, f"queries.{number}"),) for number in range(50)]
    with pytest.raises(DeadlineError):
        prepare(asked, None, encoder.preprocess, 10**6, time.monotonic() + 0.25)
    assert 1 <= len(decoded) < 10
