"""`cots index update`: a gallery catches up with its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from cots_cli.index import common, reports

if TYPE_CHECKING:
    from index_builder.manifest import VectorType


@click.command(
    name="update",
    epilog="""\b
Examples:
  cots index update galleries/photos
  cots index update galleries/photos --dry-run
  cots index update galleries/photos --compare hash --remove-missing
  cots index update galleries/photos --index hnsw
""",
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.argument("src", nargs=-1)
@click.option("--checkpoint", help="Folder, name or hub id.  [the one it was built with]")
@common.index_options(defaults=False)
@click.option(
    "--compare",
    type=click.Choice(("stamp", "hash")),
    default="stamp",
    show_default=True,
    help="Unchanged is: same place, size and time, or same content.",
)
@click.option("--remove-missing", is_flag=True, help="Drop items whose original is gone.")
@click.option("--restore-deleted", is_flag=True, help="Let ids back in that were deleted.")
@click.option("--dry-run", is_flag=True, help="Only say what is new, changed and gone.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@common.decoding
@click.option(
    "--metadata",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Another metadata file.",
)
@common.keep_versions
@click.option("--json", "as_json", is_flag=True, help="Print progress and report as JSON.")
def command(
    gallery: Path,
    src: tuple[str, ...],
    checkpoint: str | None,
    index: str | None,
    target_recall: float | None,
    vectors: VectorType | None,
    compare: Literal["stamp", "hash"],
    remove_missing: bool,
    restore_deleted: bool,
    dry_run: bool,
    device: str,
    workers: int,
    part_items: int,
    decode_timeout: float,
    metadata: Path | None,
    keep_versions: int,
    as_json: bool,
) -> None:
    """Embed what is new or has changed in the source of GALLERY, or in SRC from now on.

    Where all is as it was nothing is published.
    """
    from index_builder.gallery import read_manifest
    from index_builder.options import UpdateOptions, absolute_sources
    from index_builder.update import preview_update, update_gallery

    _, manifest = read_manifest(gallery)  # a wrong folder should not wait for the model
    request = common.changed_index(gallery, index, target_recall, vectors)
    checkpoint = checkpoint or manifest.recipe.checkpoint or "cots-mini"
    options = UpdateOptions(
        gallery=gallery,
        sources=src,
        metadata=metadata,
        index=request,
        compare=compare,
        remove_missing=remove_missing,
        restore_deleted=restore_deleted,
        workers=workers,
        decode_timeout_s=decode_timeout,
        part_items=part_items,
        keep_versions=keep_versions,
        checkpoint=absolute_sources((checkpoint,))[0] if Path(checkpoint).is_dir() else checkpoint,
        device=device,
    )
    if dry_run:
        with common.progress_on_stderr(manifest.modality, as_json=as_json) as progress:
            preview = preview_update(options, progress=progress)
        reports.print_preview(preview, as_json=as_json, remove_missing=remove_missing)
        return
    from cots_model.encoder import Encoder

    precision = manifest.recipe.precision
    encoder = Encoder.load(checkpoint, device=device, precision=precision)  # type: ignore[arg-type]
    with common.progress_on_stderr(manifest.modality, as_json=as_json) as progress:
        report = update_gallery(options, encoder, progress=progress)
    reports.print_update(report, as_json=as_json, remove_missing=remove_missing)
