"""`cots serve`: galleries over HTTP, with a web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from service.settings import Settings

EPILOG = """\b
Examples:
  cots serve --galleries galleries
  cots serve --galleries galleries --port 9000 --checkpoint runs/mine
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
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option(
    "--allow-public",
    is_flag=True,
    default=None,
    help="Listen beyond this machine without API keys.",
)
def command(config: Path | None, **flags: Any) -> None:
    """Serve every gallery under a folder over HTTP, with a web page at /."""
    from service.logs import configure_logging
    from service.root import find_galleries
    from service.settings import Settings

    settings = Settings.load(config, **flags)
    settings.check_bind()
    find_galleries(settings.galleries)
    configure_logging(settings.log_level)
    _serve(settings)


def _serve(settings: Settings) -> None:
    from service.server import bind, leave, serve

    with bind(settings.host, settings.port) as listener:
        from service.app import create_app
        from service.state import Resources

        app = create_app(settings, Resources.load(settings))
        if not serve(app, settings, listener, on_start=_say_address):
            leave()


def _say_address(address: str) -> None:
    click.echo(f"COTS Retrieval is at {address} (stop it with Ctrl-C)", err=True)
