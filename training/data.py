"""Pictures and videos with their captions, from sources in any format of `training.formats`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cots_model.errors import InputError
from training.example import BrokenExampleError, Example
from training.formats.read import kind_of, read_source
from training.formats.source import OPTIONS, SourceConfig, as_sources
from training.short_captions import with_short_captions

__all__ = ["BrokenExampleError", "Example", "read_examples"]

log = logging.getLogger(__name__)


def read_examples(
    sources: Sequence[str | SourceConfig],
    *,
    image_root: Path | None = None,
    split: str | None = None,
    for_training: bool = False,
) -> list[Example]:
    """Read all pictures and videos that have captions, in a fixed order.

    Args:
        sources: each a path, a mapping as text (see `parse_source`) or a configuration.
        image_root: for annotation files that do not say themselves where their pictures lie.
        split: for Karpathy and MSR-VTT files that do not say themselves which split is meant.
        for_training: such files must then have been told which split, even if they hold one only.

    Raises:
        InputError: if a source is missing or not in its format, no picture has a caption, a split
            is given and no source has any, or a source has several and none is chosen.
    """
    examples: list[Example] = []
    configs = as_sources(sources)
    if split is not None and not any("split" in _options(source) for source in configs):
        raise InputError(f"no source has a split {split!r}; only Karpathy and MSR-VTT files do")
    for source in configs:
        found = read_source(_with_defaults(source, image_root, split), for_training=for_training)
        if not found:
            raise InputError(
                f"{source.path} has no picture with a caption; a sample needs a .txt, or a .json "
                "with 'caption' or 'captions'"
            )
        log.info("source %s: %d pictures", source.path, len(found))
        examples += [
            replace(
                with_short_captions(example, source.short_captions),
                repeat=source.repeat,
                weight=source.weight,
            )
            for example in found
        ]
    return examples


def _with_defaults(
    source: SourceConfig, image_root: Path | None, split: str | None
) -> SourceConfig:
    """Folders and shards have no use for either."""
    takes = _options(source)
    given = {"image_root": image_root, "split": split}
    changes = {
        key: value
        for key, value in given.items()
        if value is not None and key in takes and getattr(source, key) is None
    }
    return source.model_copy(update=changes)


def _options(source: SourceConfig) -> set[str]:
    """Of json, before it is opened, those of the format with most."""
    return OPTIONS[kind_of(source) or "karpathy"]
