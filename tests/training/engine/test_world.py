"""What a run that failed leaves behind."""

import gc
import weakref

import pytest

from training.engine.world import _forget_locals


class Model:
    """Something large."""


def fail(models, cause):
    model = Model()
    models.append(weakref.ref(model))
    raise ValueError("failed") from cause


@pytest.mark.timeout(20)
def test_an_error_keeps_nothing_alive_nor_does_what_led_to_it():
    models = []
    try:
        try:
            fail(models, None)
        except ValueError as first:
            fail(models, first)
    except ValueError as err:
        assert all(model() is not None for model in models)
        err.__cause__.__cause__ = err  # errors may go in circles
        _forget_locals(err)
        gc.collect()
        assert [model() for model in models] == [None, None]
        err.__cause__.__cause__ = None
