"""`cots index duplicates`: what is in a gallery more than once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cots_cli.progress import is_quiet

if TYPE_CHECKING:
    from index_builder.duplicate_report import DuplicateReport
    from index_builder.gallery import Gallery

_SHOWN = 20


@click.command(
    name="duplicates",
    epilog="""\b
Examples:
  cots index duplicates galleries/photos --html duplicates.html
  cots index duplicates galleries/photos --threshold 0.98 --json > groups.json
  cots index duplicates galleries/photos --threshold 0.999 --ids-file extra.txt
""",
)
@click.argument("gallery", type=click.Path(path_type=Path))
@click.option(
    "--threshold",
    type=float,
    default=0.95,
    show_default=True,
    help="Similarity (dot product) from which two items belong together; above 0, at most 1.",
)
@click.option(
    "--max-groups", type=click.IntRange(1), help="List the largest groups only; all otherwise."
)
@click.option(
    "--max-pairs",
    type=click.IntRange(1),
    default=10_000_000,
    show_default=True,
    help="Give up beyond so many similar pairs.",
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a contact sheet to look at.")
@click.option(
    "--ids-file",
    type=click.Path(path_type=Path),
    help="Write the ids of the listed groups but for the one to keep of each, one per line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the groups as JSON.")
def command(
    gallery: Path,
    threshold: float,
    max_groups: int | None,
    max_pairs: int,
    html: Path | None,
    ids_file: Path | None,
    as_json: bool,
) -> None:
    """List groups of GALLERY's items that are nearly the same; nothing is deleted."""
    from tqdm import tqdm

    from index_builder.duplicates import DuplicateOptions, find_duplicates
    from index_builder.gallery import Gallery

    options = DuplicateOptions(threshold=threshold, max_groups=max_groups, max_pairs=max_pairs)
    opened = Gallery.open(gallery)
    quiet = is_quiet()
    with tqdm(total=1.0, unit="", bar_format="{l_bar}{bar}| {elapsed}<{remaining}",
              disable=quiet, file=sys.stderr) as bar:  # fmt: skip
        report = find_duplicates(opened, options, progress=bar.update)
    notes = []
    if ids_file is not None:
        notes.append(_write_ids(report, ids_file))
    if html is not None:
        notes.append(_write_sheet(opened, report, html, quiet=quiet))
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        _print(report)
    for note in notes:
        click.echo(note, err=as_json)


def _write_ids(report: DuplicateReport, path: Path) -> str:
    from cots_model.errors import CotsError
    from index_builder.report import counted

    extra = [item.id for group in report.groups for item in group.items if not item.keep]
    usable = [item_id for item_id in extra if item_id.splitlines() == [item_id]]
    try:
        path.write_text("".join(f"{item_id}\n" for item_id in usable), "utf-8")
    except OSError as err:
        raise CotsError(f"{path} could not be written ({err}); choose another file") from err
    left_out = len(extra) - len(usable)
    but = f", but for {left_out:,} with line breaks" if left_out else ""
    return f"{path}: {counted(len(usable), 'id')} to delete{but}"


def _write_sheet(gallery: Gallery, report: DuplicateReport, path: Path, *, quiet: bool) -> str:
    from tqdm import tqdm

    from index_builder.contact_sheet import write_contact_sheet
    from index_builder.report import counted

    total = len(report.groups)
    with tqdm(total=total, unit=" groups", disable=quiet, file=sys.stderr) as bar:
        shown = write_contact_sheet(path, gallery, report, progress=bar.update)
    return f"{path}: {counted(shown, 'group')} to look at"


def _print(report: DuplicateReport) -> None:
    from index_builder.report import counted

    how = (
        "every pair compared"
        if report.method == "exact"
        else "nearest neighbours only, through the gallery's index"
    )
    click.echo(
        f"{counted(report.num_groups, 'group')} at {report.threshold:g} or above among "
        f"{counted(report.num_items, 'item')} ({how}); {counted(report.num_extra, 'item')} could go"
    )
    for group in report.groups[:_SHOWN]:
        first, *others = group.items
        listed = ", ".join(
            f"{item.id} {item.score:.4f}{' same bytes' if item.same_bytes else ''}"
            for item in others[:5]
        )
        more = f" and {len(others) - 5:,} more" if len(others) > 5 else ""
        click.echo(f"{len(group.items):4}  keep {first.id}; {listed}{more}")
    if len(report.groups) > _SHOWN:
        more = counted(len(report.groups) - _SHOWN, "group")
        click.echo(f"and {more} more; --json or --html has them")
