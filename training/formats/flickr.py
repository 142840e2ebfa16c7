r"""Flickr8k's and Flickr30k's caption files, whose captions hold commas that nothing protects.

A line is `name.jpg#0<tab>caption` (`results_20130124.token`), `name.jpg,caption` (`captions.txt`)
or `name.jpg| 0| caption` (`results.csv`): it is split behind the picture's suffix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cots_model.errors import InputError
from training.formats.entries import Entry, grouped
from training.formats.text_file import read_lines

_NAME = r"(?P<name>\S(?:.*?\S)??\.(?:jpe?g|png))"
_LINES = (
    re.compile(r"(?P<name>[^\t]+?)#\d+\t(?P<caption>.*)"),
    re.compile(_NAME + r"\s*\|\s*\d+\s*\|?(?P<caption>.*)", re.IGNORECASE),
    re.compile(_NAME + r"\s*,(?P<caption>.*)", re.IGNORECASE),
)
_HEADER = re.compile(r"(image|image_name|filename|file_name)\s*[,|\t]", re.IGNORECASE)
_ACCEPTED = "accepted are 'name.jpg,caption', 'name.jpg#0<tab>caption' and 'name.jpg| 0| caption'"


def looks_like_flickr(lines: list[str]) -> bool:
    """Whether the first lines of a file, of which the first may be a header, are in this format.

    A header with more than two columns between commas makes it a table.
    """
    rows = [line for line in lines if line.strip()]
    if rows and _HEADER.match(rows[0]):
        if rows[0].count(",") > 1 or "\t" in rows[0]:
            return False
        rows = rows[1:]
    return bool(rows) and all(_parse(row) is not None for row in rows)


def read_flickr(path: Path) -> list[Entry]:
    """The pictures of a caption file, in order of first mention.

    Raises:
        InputError: if it cannot be read, or a line is in none of the forms.
    """
    return grouped(_pairs(path))


def _pairs(path: Path) -> Iterator[tuple[str, list[object]]]:
    for number, line in enumerate(read_lines(path), start=1):
        pair = _parse(line)
        if pair is not None:
            yield pair[0], [pair[1]]
        elif line.strip() and not (number == 1 and _HEADER.match(line)):
            raise InputError(f"{path}, line {number}: {line[:60]!r}; {_ACCEPTED}")


def _parse(line: str) -> tuple[str, str] | None:
    for form in _LINES:
        match = form.fullmatch(line)
        if match:
            return match["name"].strip(), _unquote(match["caption"].strip())
    return None


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text
