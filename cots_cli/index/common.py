"""What the commands that change a gallery share: options, progress, sizes in words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cots_cli.progress import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from index_builder.indexes.base import IndexRequest
    from index_builder.manifest import Modality
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
    elif not is_quiet():
        bar = BarProgress(sys.stderr, NOUNS[modality][1])
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield LogProgress()


@contextmanager
def bytes_on_stderr(what: str) -> Iterator[Callable[[int], object]]:
    """A bar of bytes on a terminal, and nothing elsewhere; gives what moves it."""
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True, disable=is_quiet(), file=sys.stderr, desc=what) as bar:
        yield bar.update


def megabytes(size_bytes: int) -> str:
    """A size for people, in MB of a million bytes: "0.021 MB", "1,234.5 MB"."""
    size_mb = size_bytes / 1e6
    return f"{size_mb:,.1f} MB" if size_mb >= 10 else f"{size_mb:.3f} MB"
