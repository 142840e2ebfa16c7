"""Pictures that cannot be read: counted by reason, some listed, too many of them refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from cots_model.errors import InputError
from training.example import BrokenExampleError

log = logging.getLogger(__name__)

_LISTED = 20
_FIRST = 1_000  # a stream's share is judged by at least so many, or one bad start would end it


class BrokenCount:
    """What one pass met.

    Attributes:
        num_seen: pictures asked for.
        reasons: how many were broken, by reason.
    """

    def __init__(self, *, max_share: float, num_expected: int | None = None) -> None:
        """Begin a pass.

        Args:
            max_share: of pictures that may be broken.
            num_expected: how many the pass has, if that is known.
        """
        self._max_share = max_share
        self._num_known = num_expected or 0
        self._num_expected = num_expected if num_expected is not None else _FIRST
        self._first: BrokenExampleError | None = None
        self.num_seen = 0
        self.reasons: Counter[str] = Counter()

    @property
    def num_broken(self) -> int:
        """All of them."""
        return self.reasons.total()

    def add(self, num_seen: int, errors: Sequence[BrokenExampleError]) -> None:
        """Count some pictures and those of them that are broken; the first 20 go to the log.

        Raises:
            InputError: as soon as more than the allowed share of the whole pass is broken.
        """
        self.num_seen += num_seen
        for error in errors:
            self._first = self._first or error
            self.reasons[error.reason] += 1
            self._check(max(self.num_seen, self._num_expected))
            if self.num_broken <= _LISTED:
                log.warning("left out (%s): %s", error.reason, error)
            elif self.num_broken == _LISTED + 1:
                log.warning("further broken pictures are counted, not listed")

    def finish(self, what: str) -> None:
        """End the pass: log the counts.

        Raises:
            InputError: if more than the allowed share of what was seen is broken.
        """
        if self.num_broken:
            log.warning(
                "%s: %d of %d pictures left out (%s)",
                what,
                self.num_broken,
                self.num_seen,
                self._by_reason(),
            )
            self._check(max(self.num_seen, self._num_known))  # a resumed pass sees but its end

    def _check(self, num_pictures: int) -> None:
        if self.num_broken > self._max_share * num_pictures:
            raise InputError(
                f"{self.num_broken:,} of {num_pictures:,} pictures are broken, {self._by_reason()}"
                f", over the {self._max_share:.1%} allowed "
                f"(data.max_broken_share, --max-broken); the first: {self._first}"
            )

    def _by_reason(self) -> str:
        return ", ".join(f"{reason} {count:,}" for reason, count in self.reasons.most_common())
