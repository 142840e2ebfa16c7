"""Walking through json, so that every error names the file, the key and what stands there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cots_model.errors import InputError

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Cursor:
    """A value of a json file and the way to it.

    Attributes:
        file: the file.
        key: the way from its top, such as `images[3].filename`; empty at the top.
        value: what stands there.
    """

    file: Path
    key: str
    value: Any

    def has(self, key: str) -> bool:
        """Whether this is an object with such a key."""
        return isinstance(self.value, dict) and key in self.value

    def at(self, key: str) -> Cursor:
        """The value of a key.

        Raises:
            InputError: if this is no object, or has no such key.
        """
        if not isinstance(self.value, dict):
            raise self.wrong(f"an object with the key {key!r}")
        below = f"{self.key}.{key}" if self.key else key
        if key not in self.value:
            there = ", ".join(map(str, list(self.value)[:8])) or "no keys"
            raise InputError(f"{self.file}: {below} is missing; the keys here are: {there}")
        return Cursor(self.file, below, self.value[key])

    def items(self) -> Iterator[Cursor]:
        """The values of a list.

        Raises:
            InputError: if this is no list.
        """
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for number, value in enumerate(self.value):
            yield Cursor(self.file, f"{self.key}[{number}]", value)

    def text(self) -> str:
        """This string.

        Raises:
            InputError: if it is none.
        """
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def name(self) -> str:
        """This id, a string that is not empty or a whole number, as a string.

        Raises:
            InputError: if it is none.
        """
        if isinstance(self.value, bool) or not isinstance(self.value, str | int):
            raise self.wrong("a string or a whole number")
        if self.value == "":
            raise self.wrong("a name")
        return str(self.value)

    def captions(self) -> list[str]:
        """This string, or this list of strings.

        Raises:
            InputError: if it is neither.
        """
        if isinstance(self.value, str):
            return [self.value]
        if not isinstance(self.value, list):
            raise self.wrong("a string or a list of strings")
        return [item.text() for item in self.items()]

    def wrong(self, accepted: str) -> InputError:
        """The error that something else than `accepted` stands here."""
        found = json.dumps(self.value, ensure_ascii=False)
        found = found if len(found) <= _SHOWN else found[:_SHOWN] + "..."
        return InputError(
            f"{self.file}: {self.key or 'the top'} is {found}; accepted is {accepted}"
        )


def load_json(path: Path) -> Cursor:
    """Read a json file, or a `.jsonl` file as the list of its lines.

    Raises:
        InputError: if it cannot be read or is no json, with the line at fault.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as err:
        raise InputError(f"{path} cannot be read ({err.strerror})") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not UTF-8 ({err}); save it as UTF-8") from err
    if path.suffix.lower() == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        return Cursor(path, "", [_loads(path, line, no) for no, line in lines if line.strip()])
    return Cursor(path, "", _loads(path, text, 1))


def _loads(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        line = err.lineno + first_line - 1
        raise InputError(f"{path}, line {line}: no json ({err.msg}, column {err.colno})") from err
    except RecursionError as err:
        raise InputError(f"{path} is nested too deep to be read") from err
