"""What the requests of one process may hold in memory together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from service.errors import overloaded


class Budget:
    """So much may be held at one time, by all requests together.

    A request that holds little is always let in, so that a few large ones cannot shut it out: how
    many of those there are is for queues and open connections to bound.

    Call it from one thread: that of the event loop.
    """

    def __init__(self, most: int, *, little: int) -> None:
        """Begin with nothing held.

        Args:
            most: units that may be held.
            little: a request that holds no more than this is never refused.
        """
        self.held = 0
        self._most = most
        self._little = little

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """What one request holds, until the `with` block ends: nothing yet."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def has_room(self, more: int, *, of_request: int) -> bool:
        """Whether a request that holds `of_request` units may hold so many more."""
        return of_request + more <= self._little or self.held + more <= self._most


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._units = 0

    def take(self, units: int) -> None:
        """Hold so much more.

        Raises:
            ApiError: 429 if there is no room for it; nothing is taken then.
        """
        if not self._budget.has_room(units, of_request=self._units):
            raise overloaded()
        self._budget.held += units
        self._units += units

    def give_back(self) -> None:
        """Hold nothing any more."""
        self._budget.held -= self._units
        self._units = 0
