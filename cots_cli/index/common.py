"""What the commands that change a gallery share: options, progress and reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from index_builder.delete import ChangeReport
    from index_builder.indexes.base import IndexRequest
    from index_builder.manifest import Modality
    from index_builder.options import BuildReport
    from index_builder.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

_INDEXES = ("flat", "hnsw", "ivf", "ivfpq", "cagra", "auto")
_VECTORS = ("float32", "float16", "int8")


def index_options(*, defaults: bool) -> Callable[[F], F]:
    """`--index`, `--target-recall` and `--vectors`; without defaults they stay as they were."""
    index, recall, vectors = ("flat", 0.95, "float32") if defaults else (None, None, None)
    options = (
        click.option(
            "--index",
            type=click.Choice(_INDEXES),
            default=index,
            show_default=defaults,
            help="auto chooses by count, memory and device, and says why.",
        ),
        click.option(
            "--target-recall",
            type=click.FloatRange(0, 1, min_open=True),
            default=recall,
            show_default=defaults,
            help="Recall@10 beside exact search that the index is tuned to.",
        ),
        click.option(
            "--vectors",
            type=click.Choice(_VECTORS),
            default=vectors,
            show_default=defaults,
            help="How vectors are stored.",
        ),
    )

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def keep_versions(function: F) -> F:
    """`--keep-versions`."""
    return click.option(
        "--keep-versions",
        type=click.IntRange(1),
        default=2,
        show_default=True,
        help="How many versions stay, the new one included.",
    )(function)


def decoding(function: F) -> F:
    """`--workers`, `--part-items` and `--decode-timeout`."""
    options = (
        click.option(
            "--workers",
            type=click.IntRange(0, 256),
            default=0,
            help="Decoding processes; 0: one per core, at most 8.",
        ),
        click.option(
            "--part-items",
            type=click.IntRange(0),
            default=0,
            help="Entries per part; a killed run loses at most one. 0: 1024, of videos 64.",
        ),
        click.option(
            "--decode-timeout",
            type=click.FloatRange(0, min_open=True),
            default=60.0,
            show_default=True,
            help="Seconds after which a picture, or a step of a video, is skipped.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def changed_index(
    gallery: Path, index: str | None, target_recall: float | None, vectors: str | None
) -> IndexRequest | None:
    """The index asked for, with what is not said as the gallery's recipe has it."""
    from index_builder.gallery import read_manifest
    from index_builder.indexes.base import IndexRequest

    _, manifest = read_manifest(gallery)
    if index is None and target_recall is None and vectors is None:
        return None
    recipe = manifest.recipe
    return IndexRequest(
        kind=index or recipe.index,  # type: ignore[arg-type]  # checked there
        target_recall=target_recall or recipe.target_recall,
        vectors=vectors or recipe.vectors,  # type: ignore[arg-type]
    )


@contextmanager
def progress_on_stderr(modality: Modality, *, as_json: bool) -> Iterator[Progress]:
    """Events for machines, a bar on a terminal, lines in the log otherwise."""
    from index_builder.progress import BarProgress, JsonProgress, LogProgress
    from index_builder.report import NOUNS

    if as_json:
        yield JsonProgress(sys.stderr)
    elif sys.stdout.isatty() and sys.stderr.isatty():
        bar = BarProgress(sys.stderr, NOUNS[modality][1])
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield LogProgress()


def print_report(report: BuildReport, *, as_json: bool, remove_missing: bool = False) -> None:
    """The report of a build or an update.

    Args:
        report: of it.
        as_json: print it for machines.
        remove_missing: items whose original is gone were dropped.
    """
    from index_builder.report import NOUNS

    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    noun, nouns = NOUNS[report.modality]
    what = noun if report.count == 1 else nouns
    if report.segment_seconds is not None:
        what += " and segments"
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    click.echo(f"{report.gallery}: {report.count:,} {what} indexed, version {report.version}")
    click.echo(f"seconds: {stages}; {report.images_per_s:.1f} {nouns}/s")
    if report.index["reason"]:
        click.echo(f"index: {report.index['kind']}, {report.index['reason']}")
    if report.parts_continued:
        click.echo(f"continued: {report.parts_continued:,} of {report.parts:,} parts were ready")
    if report.unchanged or report.missing or report.deleted:
        fate = ", dropped" if remove_missing else ", kept (--remove-missing drops them)"
        gone = f"{report.missing:,}{fate if report.missing else ''}"
        click.echo(
            f"unchanged: {report.unchanged:,}; originals gone: {gone}; "
            f"deleted earlier and left out: {report.deleted:,}"
        )
    if report.skipped:
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.skipped.items())
        click.echo(f"skipped: {reasons}; listed in {report.skipped_file}")
    if report.ignored:
        click.echo(f"ignored: {report.ignored:,} files that are no {nouns}, or hidden")
    _print_metadata(report)


def _print_metadata(report: BuildReport) -> None:
    if report.bad_sidecars:
        click.echo(
            f"unusable sidecars: {report.bad_sidecars:,}; the first: {report.first_bad_sidecar}",
            err=True,
        )
    if report.metadata_rows:
        matched, rows = report.metadata_matched, report.metadata_rows
        line = f"metadata: {matched:,} items matched one of {rows:,} rows"
        click.echo(line, err=not report.metadata_matched)


def print_change(report: ChangeReport, *, as_json: bool) -> None:
    """The report of a delete or a merge."""
    if as_json:
        click.echo(json.dumps(asdict(report), ensure_ascii=False))
        return
    click.echo(f"{report.gallery}: {report.count:,} items, version {report.version}")
    if report.deleted:
        click.echo(f"deleted: {report.deleted:,}")
    if report.duplicates:
        click.echo(f"skipped: {report.duplicates:,} whose id was taken")
    if report.missing_shards:
        numbers = ", ".join(map(str, report.missing_shards))
        click.echo(f"this is still a shard; to be merged with: {numbers}", err=True)
