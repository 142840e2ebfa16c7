"""`cots index delete`: items leave a gallery."""

from __future__ import annotations

from pathlib import Path

import click

from cots_cli.index import common, reports


@click.command(
    name="delete",
    epilog="""\b
Examples:
  cots index delete galleries/photos 2019/blurred.jpg 2019/private.jpg
  cots index delete galleries/photos --ids-file ids.txt --json
""",
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--ids-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One id a line.",
)
@common.keep_versions
@click.option("--json", "as_json", is_flag=True, help="Print progress and report as JSON.")
def command(
    gallery: Path, ids: tuple[str, ...], ids_file: Path | None, keep_versions: int, as_json: bool
) -> None:
    """Publish GALLERY without some items; updates leave them out from now on.

    The originals are not touched. The version before stays on disk until it is pruned.
    """
    from cots_model.errors import InputError
    from index_builder.delete import delete_items
    from index_builder.gallery import read_manifest

    names = list(ids)
    if ids_file is not None:
        try:
            lines = ids_file.read_text("utf-8").split("\n")  # ids may hold other ends of lines
        except (OSError, UnicodeDecodeError) as err:
            raise InputError(f"{ids_file} cannot be read as UTF-8 ({err}); one id a line") from err
        names += [line for line in lines if line]
    if not names:
        raise click.UsageError("say what to delete: ids, or --ids-file FILE with one id a line")
    _, manifest = read_manifest(gallery)
    with common.progress_on_stderr(manifest.modality, as_json=as_json) as progress:
        report = delete_items(gallery, names, keep_versions=keep_versions, progress=progress)
    reports.print_change(report, as_json=as_json)
