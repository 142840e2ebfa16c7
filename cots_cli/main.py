"""The console command `cots`: a group whose sub-commands are imported only when they run.

Run `cots --help`, or `python -m cots_cli.main --help`. Exit status: 0 success, 1 failure, 2 wrong
usage or input, 130 interrupted. `COTS_TRACEBACK=1` shows where an unexpected failure came from.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from cots_cli import __version__
from cots_cli.lazy_group import LazyGroup
from cots_model.errors import CotsError, InputError

SUB_COMMANDS = {
    "index": "Build galleries and check them.",
    "serve": "Serve galleries over HTTP, with a web page.",
    "search": "Search a gallery without a server.",
    "train": "Train a model.",
    "evaluate": "Score a checkpoint: R@1/5/10 both ways, MedR.",
    "explain": "Show where in a picture a text is.",
    "ensemble": "Make one checkpoint of several that score together.",
    "bench": "Measure speed on this machine.",
    "demo": "Build a gallery of pictures and serve it.",
}
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_ADVICE = "set COTS_TRACEBACK=1 to see where"

EPILOG = """\b
Examples:
  cots index build photos --gallery galleries/photos
  cots search --gallery galleries/photos "two dogs playing in snow"
  cots serve --galleries galleries
"""


@click.group(
    cls=LazyGroup,
    package="cots_cli",
    sub_commands=SUB_COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="cots")
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    envvar="COTS_LOG_LEVEL",
    default="WARNING",
    show_default=True,
    help="Lowest level logged on stderr; `cots serve` logs INFO unless told otherwise.",
)
@click.pass_context
def cli(ctx: click.Context, log_level: str) -> None:
    """Find pictures with a sentence or a picture."""
    configure_logging(log_level)
    if ctx.get_parameter_source("log_level") is click.core.ParameterSource.COMMANDLINE:
        os.environ["COTS_LOG_LEVEL"] = log_level  # the service's settings read it too
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def configure_logging(level: str) -> None:
    """Send records of `level` and above to stderr, one line each: time, level, logger, message."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s message=%(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        force=True,
    )


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; every error becomes one line on stderr."""
    try:
        result = cli.main(args=args, prog_name="cots", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else int(err.code is not None)
    except BrokenPipeError:
        _drop_output()
        return 1
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", 130)
    except Exception as err:  # noqa: BLE001 - the one place where errors end
        return _report(err)
    return result if isinstance(result, int) else 0


def _report(err: Exception) -> int:
    if os.environ.get("COTS_TRACEBACK") == "1":
        traceback.print_exception(err)
    if isinstance(err, click.ClickException):
        return _say(_usage(err), err.exit_code)
    if isinstance(err, CotsError):
        return _say(str(err), 2 if isinstance(err, InputError) else 1)
    return _say(f"unexpected {type(err).__name__}: {err} ({_ADVICE})", 1)


def _usage(err: click.ClickException) -> str:
    message = err.format_message()
    context = err.ctx if isinstance(err, click.UsageError) else None
    return f"{message} (see {context.command_path} --help)" if context else message


def _say(message: str, status: int) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return status


def _drop_output() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit stays silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
