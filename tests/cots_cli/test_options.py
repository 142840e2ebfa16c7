"""Options that several commands have."""

from typing import get_args

import click

from cots_cli import options
from cots_model.config import Precision


def test_every_precision_of_an_encoder_can_be_asked_for():
    @click.command()
    @options.precision
    def command(precision: str) -> None:
        """Take the option."""

    [option] = command.params
    assert tuple(option.type.choices) == get_args(Precision)
