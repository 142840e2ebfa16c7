"""What the commands that change a gallery say when they are through."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from index_builder.delete import ChangeReport
    from index_builder.manifest import Modality
    from index_builder.options import BuildReport, Changes, UpdatePreview

_GONE_SHOWN = 10


def print_build(report: BuildReport, *, as_json: bool) -> None:
    """The report of a build."""
    if as_json:
        _print_json(report)
        return
    _print_indexed(report)
    _print_rest(report)


def print_update(report: BuildReport, *, as_json: bool, remove_missing: bool) -> None:
    """The report of an update; `remove_missing`: items whose original is gone were dropped."""
    if as_json:
        _print_json(report)
        return
    if report.published:
        _print_indexed(report)
    else:
        held = _items(report.modality, report.count, segmented=report.segment_seconds is not None)
        click.echo(f"{report.gallery}: nothing to do, version {report.version} stays ({held})")
    _print_changes(report, "dropped" if remove_missing else "kept (--remove-missing drops them)")
    _print_rest(report)


def print_preview(preview: UpdatePreview, *, as_json: bool, remove_missing: bool) -> None:
    """What an update would find."""
    if as_json:
        _print_json(preview)
        return
    held = _items(preview.modality, preview.count)
    click.echo(
        f"{preview.gallery}: only looked, nothing is written; version {preview.version} has {held}"
    )
    fate = "would be dropped" if remove_missing else "would be kept (--remove-missing drops them)"
    _print_changes(preview, fate)


def print_change(report: ChangeReport, *, as_json: bool) -> None:
    """The report of a delete or a merge."""
    from index_builder.report import counted

    if as_json:
        _print_json(report)
        return
    click.echo(f"{report.gallery}: {counted(report.count, 'item')}, version {report.version}")
    if report.deleted:
        click.echo(f"deleted: {report.deleted:,}")
    if report.duplicates:
        click.echo(f"skipped: {report.duplicates:,} whose id was taken")
    if report.missing_shards:
        numbers = ", ".join(map(str, report.missing_shards))
        click.echo(f"this is still a shard; to be merged with: {numbers}", err=True)


def _print_json(report: BuildReport | UpdatePreview | ChangeReport) -> None:
    click.echo(json.dumps(asdict(report), ensure_ascii=False))


def _items(modality: Modality, count: int, *, segmented: bool = False) -> str:
    """A number of items, in words: "1 picture", "3 videos and segments"."""
    from index_builder.report import NOUNS, counted

    one, many = NOUNS[modality]
    if segmented:
        one, many = f"{one} or segment", f"{many} and segments"
    return counted(count, one, many)


def _print_indexed(report: BuildReport) -> None:
    from index_builder.report import NOUNS

    what = _items(report.modality, report.count, segmented=report.segment_seconds is not None)
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    click.echo(f"{report.gallery}: {what} indexed, version {report.version}")
    click.echo(f"seconds: {stages}; {report.images_per_s:.1f} {NOUNS[report.modality][1]}/s")
    if report.index["reason"]:
        click.echo(f"index: {report.index['kind']}, {report.index['reason']}")
    if report.parts_continued:
        click.echo(f"continued: {report.parts_continued:,} of {report.parts:,} parts were ready")
    if not report.count:
        click.echo("this shard holds no item; merge it with the others all the same", err=True)


def _print_changes(changes: Changes, fate: str) -> None:
    """How many of each kind, and the first of what is gone."""
    touched = ""
    if changes.touched:
        touched = f" ({changes.touched:,} with other metadata, place or time)"
    found = [
        f"{changes.new:,} new",
        f"{changes.changed:,} changed",
        f"{changes.unchanged:,} unchanged{touched}",
        f"{changes.missing:,} gone",
    ]
    if changes.retried:
        found.append(f"{changes.retried:,} tried again")
    if changes.unreadable:
        found.append(f"{changes.unreadable:,} unreadable and kept")
    if changes.deleted:
        found.append(f"{changes.deleted:,} deleted earlier and left out")
    click.echo(f"source: {', '.join(found)}")
    if not changes.gone:
        return
    click.echo(f"gone, {fate}:")
    for item_id in changes.gone[:_GONE_SHOWN]:
        click.echo(f"  {item_id}")
    if len(changes.gone) > _GONE_SHOWN:
        click.echo(f"  and {len(changes.gone) - _GONE_SHOWN:,} more; --json has them all")


def _print_rest(report: BuildReport) -> None:
    """What was left out, and what became of the metadata."""
    from index_builder.report import NOUNS, counted

    if report.skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.skipped.items())
        click.echo(f"skipped: {reasons}; listed in {report.skipped_file}")
    if report.ignored and report.ignored_unit == "line":
        click.echo(f"ignored: {counted(report.ignored, 'empty line')}")
    elif report.ignored:
        one, many = NOUNS[report.modality]
        files = counted(report.ignored, f"file that is no {one}", f"files that are no {many}")
        click.echo(f"ignored: {files}, or hidden")
    if report.bad_sidecars:
        click.echo(
            f"unusable sidecars: {report.bad_sidecars:,}; the first: {report.first_bad_sidecar}",
            err=True,
        )
    if report.metadata_rows:
        matched = counted(report.metadata_matched, "item")
        rows = counted(report.metadata_rows, "row")
        click.echo(f"metadata: {matched} matched one of {rows}", err=not report.metadata_matched)
