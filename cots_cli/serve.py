"""`cots serve`: galleries over HTTP, with a web page."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from service.settings import Settings

EPILOG = """\b
Examples:
  cots serve --galleries galleries
  cots serve --galleries galleries --port 9000 --checkpoint runs/mine
  cots serve --galleries galleries --workers 4
  cots serve --galleries galleries --config serve.yaml --check --json
  COTS_API_KEY_SHA256=$(printf %s "$KEY" | sha256sum | cut -d' ' -f1) \\
      cots serve --galleries galleries --host 0.0.0.0

Flags go over COTS_* variables, these over the --config file. docs/http.md lists all settings.
"""


@click.command(name="serve", epilog=EPILOG)
@click.option(
    "--galleries", type=click.Path(path_type=Path), help="Folder whose sub-folders are galleries."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port.  [default: 8000]")
@click.option("--checkpoint", help="Model folder, bundled name or hub id.  [default: cots-mini]")
@click.option("--device", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that answer, with a model each.  [default: 1]",
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option(
    "--allow-public",
    is_flag=True,
    default=None,
    help="Listen beyond this machine without API keys.",
)
@click.option(
    "--check", is_flag=True, help="Try settings, model and galleries, tell what was found, and end."
)
@click.option("--json", "as_json", is_flag=True, help="With --check: tell it as JSON.")
def command(config: Path | None, check: bool, as_json: bool, **flags: Any) -> int:
    """Serve every gallery under a folder over HTTP, with a web page at /.

    Several workers share one address. Vectors are in memory once, models once for each worker.
    """
    from service.worker_environment import spin_little

    spin_little()
    from service.logs import configure_logging
    from service.root import find_galleries
    from service.settings import Settings

    if as_json and not check:
        raise click.UsageError("--json tells what --check found; add --check")
    settings = Settings.load(config, **flags)
    settings.check_bind()
    find_galleries(settings.galleries)
    configure_logging(settings.log_level)
    if check:
        return _check(settings, as_json)
    _serve(settings)
    return 0


def _check(settings: Settings, as_json: bool) -> int:
    from service.check import check

    report = check(settings)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else "\n".join(report.lines()))
    return 0 if report.ok else 2


def _serve(settings: Settings) -> None:
    from service.server import bind

    with bind(settings.host, settings.port) as listener:
        if settings.workers > 1:
            from service.workers import run_workers

            run_workers(settings, listener, on_start=_say_address)
        else:
            _serve_alone(settings, listener)


def _serve_alone(settings: Settings, listener: socket.socket) -> None:
    from service.server import leave, serve
    from service.waiting_room import WaitingRoom

    signal.signal(signal.SIGTERM, _end_loading)  # uvicorn takes it over when all is loaded
    with contextlib.closing(WaitingRoom(listener)) as room:

        def begin(address: str) -> None:
            room.close()
            _say_address(address)

        try:
            from service.app import create_app
            from service.state import Resources

            app = create_app(settings, Resources.load(settings))
            has_ended = serve(app, settings, listener, on_start=begin)
        except KeyboardInterrupt:
            click.echo("Error: interrupted", err=True)
            leave(130)
        except _Ended:
            leave(0, "SIGTERM while the model and the galleries load; nothing was begun")
    if not has_ended:
        leave()


class _Ended(BaseException):
    """SIGTERM while the model and the galleries load: nothing is lost by ending at once."""


def _end_loading(sig: int, frame: FrameType | None) -> NoReturn:
    raise _Ended


def _say_address(address: str) -> None:
    click.echo(f"COTS Retrieval is at {address} (stop it with Ctrl-C)", err=True)
