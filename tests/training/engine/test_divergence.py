"""A run whose figures are finite and useless is stopped; one that learns is not."""

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


def report(loss: float, *, std: float = 0.1, is_full: bool = True) -> StepReport:
    return StepReport({"total": loss}, {}, 1.0, 0.5, std, 0.3, 1.0, 1e-4, is_full, ())


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
    ],
)
def test_a_loss_that_is_only_noisy_does_not(losses):
    assert stop([report(loss) for loss in losses]) is None


def test_features_that_are_one_and_the_same_stop_the_run():
    said = stop([report(2.0)] * 3 + [report(2.0, std=1e-6)] * 20)
    assert "collapsed by step 7: the similarities of the queue differ by no more than 1" in said


def test_queues_that_are_not_full_say_nothing():
    """Few negatives make a small loss; an empty queue has no deviation."""
    filling = [report(0.0, std=float("nan"), is_full=False), report(0.1, std=0.0, is_full=False)]
    assert stop(filling * 10 + [report(9.0)] * 20) is None


def test_it_can_be_switched_off():
    reports = [report(2.0)] * 20 + [report(1e9, std=0.0)] * 100
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
