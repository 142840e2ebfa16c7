"""Over 500 files that an index builder must survive, each with what may be made of it.

Everything is made from a seed, so that a file that once broke something can be made again.
"""

from collections.abc import Iterator

from tests.index_builder.damaged import bombs, broken, foreign, formats
from tests.index_builder.damaged.case import Case


def picture_cases() -> Iterator[Case]:
    """All files that go by the name of a picture."""
    yield from broken.cases()
    yield from foreign.cases()
    yield from bombs.cases()
    yield from formats.cases()
