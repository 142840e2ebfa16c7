"""Options that several commands have."""

from __future__ import annotations

import click

precision = click.option(
    "--precision",
    type=click.Choice(("float32", "bfloat16", "int8")),  # cots_model.config.Precision
    default="float32",
    show_default=True,
    help="bfloat16 is faster where the processor knows it; int8 runs on CPUs.",
)
