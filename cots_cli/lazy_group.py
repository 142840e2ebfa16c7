"""A command group whose sub-commands are imported only when they run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that knows its sub-commands by name and imports the one that is asked for."""

    def __init__(
        self, *args: Any, package: str, sub_commands: Mapping[str, str], **options: Any
    ) -> None:
        """Find command `name` as `<package>.<name>.command`; see `click.Group` for the rest.

        Args:
            args: of the group.
            package: where the sub-commands' modules are.
            sub_commands: their names and short help, in the order of the help table.
            options: of the group.
        """
        super().__init__(*args, **options)
        self._package = package
        self._sub_commands = dict(sub_commands)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help table."""
        return list(self._sub_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `<package>.<name>` and return its `command`."""
        if cmd_name not in self._sub_commands:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown name, saying which names there are."""
        if args and not args[0].startswith("-") and args[0] not in self._sub_commands:
            known = ", ".join(self._sub_commands)
            raise click.UsageError(f"no command {args[0]!r}; there are: {known}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of sub-commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._sub_commands.items()))
