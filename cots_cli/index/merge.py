"""`cots index merge`: several galleries become one."""

from __future__ import annotations

from pathlib import Path

import click

from cots_cli.index import common, reports


@click.command(
    name="merge",
    epilog="""\b
Examples:
  cots index merge galleries/2024 galleries/2025 --gallery galleries/photos
  cots index merge shards/0 shards/1 shards/2 --gallery galleries/web --index auto
""",
)
@click.argument("galleries", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--gallery", type=click.Path(path_type=Path), required=True, help="Folder to publish into."
)
@common.index_options(defaults=False)
@common.keep_versions
@click.option("--json", "as_json", is_flag=True, help="Print progress and report as JSON.")
def command(
    galleries: tuple[Path, ...],
    gallery: Path,
    index: str | None,
    target_recall: float | None,
    vectors: str | None,
    keep_versions: int,
    as_json: bool,
) -> None:
    """Join GALLERIES, made by one model, or all shards of one build.

    Of an id that comes twice, the first of the galleries keeps it.
    """
    from index_builder.gallery import read_manifest
    from index_builder.merge import merge_galleries

    _, manifest = read_manifest(galleries[0])
    request = common.changed_index(galleries[0], index, target_recall, vectors)
    with common.progress_on_stderr(manifest.modality, as_json=as_json) as progress:
        report = merge_galleries(
            galleries, gallery, index=request, keep_versions=keep_versions, progress=progress
        )
    reports.print_change(report, as_json=as_json)
