"""How a user names a source of pictures and captions: a path, or a mapping that says more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field

from cots_model.config import Frozen, parse
from cots_model.errors import ConfigError

Format = Literal[
    "folder", "shards", "karpathy", "coco", "list", "flickr", "table", "msrvtt", "frozen"
]

_PLACED = {"image_root", "split_file"}  # of everything that names pictures without holding them
OPTIONS: dict[str, set[str]] = {
    "folder": set(),
    "shards": set(),
    "karpathy": _PLACED | {"split"},
    "coco": _PLACED,
    "list": _PLACED,
    "flickr": _PLACED,
    "table": _PLACED | {"image_column", "caption_column", "suffix"},
    "msrvtt": _PLACED | {"split", "suffix"},
    "frozen": _PLACED | {"suffix"},
}
"""Which keys of a source mean something for which format."""
_OF_ALL = {"path", "format", "repeat", "weight", "short_captions"}


class SourceConfig(Frozen):
    """One source of pictures or videos with captions.

    Attributes:
        path: a folder, tar shards (`{000..009}.tar`), or an annotation file; relative to the
            working directory.
        format: what it is; `auto` tells from its contents.
        image_root: folder or tar file that the names in an annotation file refer to; not needed
            where all of them are absolute.
        split: for Karpathy files `train` (which takes `restval` too), `val` or `test`; for
            MSRVTT_data.json `train`, `validate` or `test`. Training needs it or `split_file`, and
            so does evaluation where a file has several.
        split_file: keep only what this list names: a text file with one name a line, or a csv with
            a column `video_id`, `image` or `filename`; its column `sentence` replaces the captions.
        image_column: of a table; told from common names if left out.
        caption_column: of a table; told from common names if left out.
        suffix: what a video's id lacks to be a file name; `.mp4` if left out.
        repeat: how often an epoch visits each picture, drawing caption and view anew
            each time, so that a small source weighs more beside a large one.
        weight: what each picture counts in `regression`, beside its repeats.
        short_captions: captions of one or two words that are added to each picture's English
            ones; see `training.short_captions`.
    """

    path: str = Field(min_length=1)
    format: Literal["auto", Format] = "auto"
    image_root: Path | None = None
    split: str | None = None
    split_file: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    suffix: str | None = None
    repeat: int = Field(default=1, ge=1)
    weight: float = Field(default=1.0, gt=0)
    short_captions: int = Field(default=0, ge=0, le=100)

    @property
    def id_suffix(self) -> str:
        """What is put behind an id to make a file name."""
        return ".mp4" if self.suffix is None else self.suffix

    def check_options(self, kind: Format) -> None:
        """Refuse keys that mean nothing for a format.

        Raises:
            ConfigError: naming the key and what the format takes.
        """
        fields = type(self).model_fields.keys() - _OF_ALL
        given = {key for key in fields if getattr(self, key) is not None}
        if unknown := sorted(given - OPTIONS[kind]):
            taken = ", ".join(sorted(OPTIONS[kind])) or "no keys besides path"
            raise ConfigError(
                f"{self.path} is of the format {kind}, which has no use for {', '.join(unknown)}; "
                f"it takes {taken}"
            )


def _from_string(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


Source = Annotated[SourceConfig, BeforeValidator(_from_string)]
"""A source in a configuration: a path, or the keys of `SourceConfig`."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


Sources = Annotated[list[Source], BeforeValidator(_as_list)]
"""Sources in a configuration: a list, or a single one."""


def parse_source(text: str) -> SourceConfig:
    """A source as it is typed: a path, or a mapping `{path: ..., image_root: ...}`.

    Raises:
        ConfigError: for an unknown key or a value that is not accepted.
    """
    if text.startswith("{") and text.endswith("}"):
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as err:
            if "path:" in text:
                raise ConfigError(f"{text} cannot be read as a mapping ({err})") from err
            values = None
        if isinstance(values, dict) and any(value is not None for value in values.values()):
            return parse(SourceConfig, values, origin=text)
    return parse(SourceConfig, {"path": text}, origin=text)


def as_sources(sources: Sequence[str | SourceConfig]) -> list[SourceConfig]:
    """Sources from strings and configurations alike.

    Raises:
        ConfigError: as `parse_source`.
    """
    return [parse_source(source) if isinstance(source, str) else source for source in sources]
