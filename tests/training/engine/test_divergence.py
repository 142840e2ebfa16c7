"""A run whose figures are finite and useless is stopped; one that learns is not."""

import math

import pytest

from training.config import EngineConfig
from training.engine.divergence import LossWatch
from training.engine.failed import FAILED
from training.engine.run_log import LOG_FILE
from training.engine.states import StateFolder
from training.engine.step_report import StepReport
from training.errors import TrainingError
from training.trainer import train

FIVE = EngineConfig(diverges_after=5)


def report(
    loss: float,
    *,
    image: float = 0.1,
    text: float = 0.1,
    kept: float = 1.0,
    std: float = 0.1,
    is_full: bool = True,
) -> StepReport:
    figures = (0.5, std, 0.3, 1.0, 1e-4)
    return StepReport({"total": loss}, {}, kept, *figures, is_full, image, text, ())


def stop(reports, config: EngineConfig = FIVE) -> str | None:
    """What is said at the step where it stops."""
    watched = LossWatch(config)
    for step, one in enumerate(reports):
        try:
            watched.check(one, step=step)
        except TrainingError as err:
            return str(err)
    return None


def test_a_loss_that_stays_high_stops_the_run():
    said = stop([report(2.0)] * 20 + [report(6.1)] * 20)
    assert "diverged by step 24: 6.1, for 5 steps above 3 times its median of 2; lower" in said


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 20 + [6.0] * 20,  # not above
        [2.0] * 20 + ([9.0] * 4 + [2.0]) * 10,  # it comes back
        [1.1**step for step in range(60)],  # slowly
        [9.0] * 20 + [1.0] * 40,
        [2.0] * 2 + [9.0] * 40,  # two of five are no measure
    ],
)
def test_a_loss_that_is_only_noisy_does_not(losses):
    assert stop([report(loss) for loss in losses]) is None


@pytest.mark.parametrize("first", [0.0, 2.0])
def test_a_low_first_loss_is_not_the_measure(first):
    assert stop([report(loss) for loss in [first] + [8.0] * 300], EngineConfig()) is None


def test_as_many_high_losses_as_typical_ones_stop_the_run():
    losses = [2.0, 2.5] * 100 + [8.0] * 200
    assert stop([report(loss) for loss in losses[:-1]], EngineConfig()) is None
    said = stop([report(loss) for loss in losses], EngineConfig())
    assert "diverged by step 399: 8, for 200 steps above 3 times its median of 2.25" in said


def test_steps_without_a_kept_pair_are_passed_over():
    """Their loss of 0 is neither good nor the end of a row of high ones."""
    none = report(0.0, kept=0.0)
    assert stop([none] * 20 + [report(8.0)] * 20) is None
    said = stop([report(2.0)] * 5 + [none, report(9.0)] * 5)
    assert "diverged by step 14: 9, for 5 steps above" in said


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("kept", [1.0, 0.0])  # of pairs that are all alike none is above μ - 2σ
def test_features_that_are_one_and_the_same_stop_the_run(side, kept):
    said = stop([report(2.0)] * 3 + [report(2.0, kept=kept, **{side: 1e-6})] * 20)
    assert f"the {side} features have collapsed by step 7: 1 - |mean| of the unit vectors" in said
    assert f"in the {side} queue is 1.0e-06, and below 0.0001 for 5 steps" in said


def test_pairs_that_fit_equally_well_are_no_collapse():
    """Their similarities do not differ, the features do."""
    assert stop([report(2.0, std=0.0)] * 20) is None


def test_a_queue_of_one_never_collapses(configure):
    """Its one row has nothing to differ from."""
    config = configure(
        "objective.instance.queue_length=1", "engine={diverges_after: 2, collapses_below: 1}"
    )
    train(config)
    assert not (config.output / FAILED).exists()


def test_queues_that_are_not_full_say_nothing():
    """Few negatives make a small loss; an empty queue has no spread."""
    empty = {"image": math.nan, "text": math.nan, "std": math.nan}
    filling = [report(0.0, **empty, is_full=False), report(0.1, image=0.0, is_full=False)]
    assert stop(filling * 10 + [report(9.0)] * 20) is None


def test_it_can_be_switched_off():
    reports = [report(2.0)] * 20 + [report(1e9, image=0.0, text=0.0)] * 100
    assert stop(reports, EngineConfig(diverges_after=0)) is None


def test_it_goes_on_where_it_was_stopped():
    reports = [report(2.0)] * 20 + [report(9.0)] * 4
    watched = LossWatch(FIVE)
    for step, one in enumerate(reports):
        watched.check(one, step=step)
    resumed = LossWatch(FIVE)
    resumed.restore(watched.state())
    with pytest.raises(TrainingError, match="by step 24"):
        resumed.check(report(9.0), step=24)


def test_a_run_that_diverges_leaves_its_state_and_pictures(configure):
    """At a rate that throws all features on one point, every figure stays finite."""
    config = configure(
        "optimiser.lr=5", "epochs=20", "engine={diverges_after: 5, collapses_below: 0.01}"
    )
    with pytest.raises(TrainingError, match=r"(collapsed|diverged) by step (\d+)") as caught:
        train(config)
    step, state = StateFolder(config.output / FAILED).load_latest()
    assert f"by step {step - 1}" in str(caught.value)
    assert len(set(state["pictures"])) == 8
    assert all(name in str(caught.value) for name in state["pictures"])
    assert (config.output / LOG_FILE).read_text().count("\n") == step - 1
