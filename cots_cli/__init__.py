"""The `cots` command."""

__version__ = "0.1.0"
