"""The error of a run that failed by itself, not by its configuration or data."""

from cots_model.errors import CotsError


class TrainingError(CotsError):
    """The run itself failed, such as by a loss that is not finite."""
