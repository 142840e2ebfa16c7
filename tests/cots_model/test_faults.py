"""What is wrong with a configuration, in words."""

from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field

from cots_model.config import Frozen, parse
from cots_model.errors import ConfigError
from cots_model.faults import describe_unknown


class Inner(Frozen):
    rate: float = Field(default=0.5, gt=0)
    momentum: float = 0.9


class Source(Frozen):
    path: str
    repeat: int = 1


class Whole(Frozen):
    inner: Inner = Inner()
    sources: list[Annotated[Source, BeforeValidator(lambda value: value)]] = []
    maybe: Inner | None = None
    kind: Literal["a", "b"] = "a"
    epochs: int


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epoch": 1, "epochs": 1}, "unknown key epoch; did you mean epochs?"),
        ({"epochs": 1, "inner": {"speed": 1}}, "inner.speed; accepted here: rate, momentum"),
        ({"epochs": 1, "inner": {"momentun": 1}}, "inner.momentun; did you mean inner.momentum?"),
        ({"epochs": 1, "maybe": {"momentun": 1}}, "maybe.momentun; did you mean maybe.momentum?"),
        ({"epochs": 1, "sources": [{"path": "x", "repeats": 2}]}, "did you mean sources.0.repeat"),
        ({}, "mine: epochs is missing"),
        ({"epochs": 1, "sources": [{}]}, "sources.0.path is missing"),
        ({"epochs": "x"}, "epochs: it must be a whole number, not 'x'"),
        ({"epochs": None}, "epochs: it must be a whole number, not null"),
        ({"epochs": 1, "inner": {"rate": -1}}, "rate: Input should be greater than 0, not -1"),
        ({"epochs": 1, "kind": "c" * 99}, "kind: Input should be 'a' or 'b', not 'cccc"),
        ([], "the whole: it must be an object"),
        ({"epochs": 1, "a\nb": 1}, r"unknown key 'a\nb'; accepted here"),
        ({"epochs": "\U0010ffff" * 99}, r"not '\U0010ffff"),
    ],
)  # fmt: skip
def test_a_fault_is_named(values, says):
    with pytest.raises(ConfigError) as caught:
        parse(Whole, values, origin="mine")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Top-K", "k"), ("limit", "k"), ("MinScore", "min_score"), ("min_scores", "min_score")],
)
def test_a_name_from_elsewhere_is_told_as_ours(name, meant):
    told = describe_unknown([name], ["k", "min_score"], elsewhere={"topk": "k", "limit": "k"})
    assert told == f"unknown key {name}; did you mean {meant}?"


def test_a_name_from_elsewhere_for_what_is_not_here_is_no_advice():
    told = describe_unknown(["limit"], ["offset"], elsewhere={"limit": "k"})
    assert told == "unknown key limit; accepted here: offset"


def test_all_faults_are_named_at_once():
    with pytest.raises(ConfigError, match=r"kind: .*; epochs is missing; unknown key a; acc"):
        parse(Whole, {"a": 1, "kind": 3}, origin="mine")
