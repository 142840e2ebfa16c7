"""Signs of life on a terminal: bars on stderr, and nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def is_quiet() -> bool:
    """Whether no bar is shown: output goes to a file or a pipe, or errors do."""
    return not (sys.stdout.isatty() and sys.stderr.isatty())


@contextmanager
def steps(*names: str) -> Iterator[Callable[[], object]]:
    """A line that says which step is under way; it is gone at the end.

    Args:
        names: of the steps, in their order; the first is under way at once.

    Yields:
        what is called after each step.
    """
    if is_quiet():
        yield lambda: None
        return
    from tqdm import tqdm

    told = iter([f"{number}/{len(names)} {name}" for number, name in enumerate(names, start=1)])
    with tqdm(bar_format="{desc}", desc=next(told), leave=False, file=sys.stderr) as line:
        yield lambda: line.set_description_str(next(told, ""))
