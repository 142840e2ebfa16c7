"""`cots demo`: a gallery of ready pictures, or of your own, behind the service and its web page."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.progress import is_quiet

if TYPE_CHECKING:
    import socket

    from cots_model.encoder import Encoder
    from service.settings import Settings

GALLERY = "demo"
_PICTURES = ".demo-pictures"
_STAMP = ".demo-source.json"


@click.command(
    name="demo",
    epilog="""\b
Examples:
  cots demo
  cots demo --images ~/Pictures --port 9000
""",
)
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Your own folder of pictures, searched recursively.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--gallery-root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("galleries"),
    show_default=True,
    help="Folder for the gallery `demo` and for the pictures collected.",
)
@click.option(
    "--checkpoint", default="cots-mini", show_default=True, help="Folder, name or hub id."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(
    images: Path | None, port: int, host: str, gallery_root: Path, checkpoint: str, device: str
) -> None:
    """Build a gallery of pictures and serve it; the next start uses the gallery again."""
    from service.server import bind
    from service.settings import Settings

    settings = Settings.load(
        galleries=gallery_root,
        host=host,
        port=port,
        checkpoint=checkpoint,
        device=device,
        require_all_galleries=False,  # one made by another model must not stop the demo
    )
    settings.check_bind()
    with bind(host, port) as listener:
        from cots_model.encoder import Encoder

        encoder = Encoder.load(checkpoint, device=device)
        source = images or _collected(gallery_root / _PICTURES)
        _ensure_gallery(source, gallery_root, encoder, own=images is not None)
        _serve(settings, listener, encoder)


def _collected(folder: Path) -> Path:
    """The folder of pictures that packages carry, written once for each version of the packages."""
    from tqdm import tqdm

    from cots_cli.demo_pictures import collect_pictures, package_versions

    wanted = package_versions()
    made_with = folder / ".made-with"
    if made_with.is_file() and made_with.read_text("utf-8") == wanted:
        return folder
    with tqdm(desc="collecting", unit=" pictures", disable=is_quiet(), file=sys.stderr) as bar:
        collect_pictures(folder, bar.update)
    made_with.write_text(wanted, "utf-8")
    return folder


def _ensure_gallery(source: Path, root: Path, encoder: Encoder, *, own: bool) -> None:
    """Build the gallery `demo` unless it already holds these pictures, by this model."""
    from tqdm import tqdm

    from cots_cli.demo_pictures import METADATA_FILE
    from index_builder.build import build_gallery
    from index_builder.options import BuildOptions

    gallery, stamp = root / GALLERY, root / _STAMP
    content = {"pictures": _signature(source, exclude=gallery), "model": encoder.fingerprint}
    if _is_current(stamp, content) and _opens(gallery, encoder):
        click.echo(f"using the gallery {gallery} again", err=True)
        return
    metadata = None if own else source / METADATA_FILE
    options = BuildOptions(sources=(str(source.resolve()),), gallery=gallery, metadata=metadata)
    click.echo(f"building the gallery {gallery}", err=True)
    with tqdm(desc="indexing", unit=" pictures", disable=is_quiet(), file=sys.stderr) as bar:
        report = build_gallery(options, encoder, progress=bar.update)
    click.echo(
        f"{report.count:,} pictures indexed in {report.seconds['total']:.0f} s, "
        f"{sum(report.skipped.values()):,} skipped",
        err=True,
    )
    stamp.write_text(json.dumps(content), "utf-8")


def _is_current(stamp: Path, content: dict[str, str]) -> bool:
    try:
        return bool(json.loads(stamp.read_text("utf-8")) == content)
    except (OSError, ValueError):
        return False


def _opens(gallery: Path, encoder: Encoder) -> bool:
    from cots_model.errors import GalleryError
    from index_builder.gallery import Gallery

    try:
        Gallery.open(gallery, expected_fingerprint=encoder.fingerprint, device="cpu")
    except GalleryError:
        return False
    return True


def _signature(folder: Path, *, exclude: Path) -> str:
    """A hash over place, path, size and time of every file below `folder` that a build looks at."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and Path(parent, name).resolve() != exclude.resolve()
        ]
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            try:
                state = path.stat()
            except OSError:
                continue
            line = f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\0"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _serve(settings: Settings, listener: socket.socket, encoder: Encoder) -> None:
    from service.app import create_app
    from service.galleries import Registry
    from service.logs import configure_logging
    from service.server import leave, serve
    from service.state import Resources

    configure_logging(settings.log_level if "COTS_LOG_LEVEL" in os.environ else "WARNING")
    registry = Registry.open(
        settings.galleries, expected_fingerprint=encoder.fingerprint, device=settings.device
    )
    app = create_app(settings, Resources(encoder, registry))
    if not serve(app, settings, listener, on_start=_say_how):
        leave()


def _say_how(address: str) -> None:
    click.echo(
        f"""
COTS Retrieval is at {address} (stop it with Ctrl-C). Try:

  curl -s {address}/v1/galleries/{GALLERY}/search -H 'content-type: application/json' \\
    -d '{{"query": "a cat", "k": 3}}'
  curl -s {address}/v1/galleries/{GALLERY}
"""
    )
