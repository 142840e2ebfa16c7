"""`cots index info`: what a gallery is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.index import common

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from index_builder.manifest import IndexInfo, Manifest, Parameter


@click.command(name="info", epilog="\b\nExample:\n  cots index info galleries/photos --json\n")
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(gallery: Path, as_json: bool) -> None:
    """Say what GALLERY's current version is: items, sources, model, index, what was skipped."""
    from index_builder.gallery import read_manifest

    folder, manifest = read_manifest(gallery)
    if as_json:
        click.echo(manifest.model_dump_json())
        return
    click.echo(f"{gallery}: version {manifest.version}")
    for name, value in _facts(manifest, folder):
        click.echo(f"  {name:9}  {value}")


def _facts(manifest: Manifest, folder: Path) -> Iterator[tuple[str, str]]:
    """Names and values, in the order in which one asks for them."""
    from index_builder.manifest import SKIPPED_FILE
    from index_builder.report import NOUNS, counted

    recipe, shard = manifest.recipe, manifest.shard
    items = counted(manifest.count, *NOUNS[manifest.modality])
    if recipe.segment_seconds is not None:
        items += f", in segments of {recipe.segment_seconds:g} s"
    yield "items", items
    if shard is not None:
        held = ", ".join(map(str, shard.numbers))
        yield "shard", f"{held} of {shard.of}; `cots index merge` joins them"
    yield "created", manifest.created
    for source in recipe.sources:
        yield "source", source
    if recipe.metadata:
        yield "metadata", recipe.metadata
    made_of = f", from {recipe.checkpoint}" if recipe.checkpoint else ""
    yield "model", f"{manifest.model_name}{made_of}, computed in {recipe.precision}"
    yield "", f"fingerprint {manifest.model_fingerprint}"
    yield "vectors", f"{manifest.vectors.type}, {manifest.dim} components each"
    yield "index", _kind(manifest.index, recipe.index)
    measured = _measured(manifest.index)
    if measured:
        yield "", measured
    sizes = {name: info.size_bytes for name, info in manifest.files.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    total = f"{common.megabytes(sum(sizes.values()))} in {counted(len(sizes), 'file')}"
    yield "size", f"{total}, the largest {largest} of {common.megabytes(sizes[largest])}"
    skipped = sum(manifest.skipped.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.skipped.items())
    listed = f": {reasons}; listed in {folder / SKIPPED_FILE}" if skipped else ""
    yield "skipped", f"{skipped:,}{listed}"


def _kind(index: IndexInfo, wanted: str) -> str:
    """The kind, with what it was built and is searched with, and why it was taken."""
    chosen = " (chosen by auto)" if wanted == "auto" else ""
    made = _parameters({**index.parameters, **index.search})
    return f"{index.kind}{chosen}{made}" + (f"; {index.reason}" if index.reason else "")


def _parameters(values: Mapping[str, Parameter]) -> str:
    return "".join(f", {name} {value}" for name, value in values.items())


def _measured(index: IndexInfo) -> str:
    found = index.measured
    if found is None:
        return ""
    return (
        f"recall@10 {found.recall_at_10:.3f} and {found.latency_ms:.2f} ms a query, exact search "
        f"{found.exact_latency_ms:.2f} ms ({found.num_queries:,} queries when it was built)"
    )
