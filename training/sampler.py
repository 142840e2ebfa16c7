"""Which pair comes when: a stream that can be stopped at any step and goes on exactly the same.

    stream = PairStream(MemoryOrder(examples), batch_size=48, seed=0, rank=rank, world_size=world)
    for step in stream.epoch(3):
        ...                      # step.draws: this rank's pairs; step.state: go on from behind it
    rest = stream.resume(json.loads(saved))

Everything depends on (seed, epoch) alone: the order, the caption each picture gets, and the seed of
its random view. Every rank walks the whole order and takes its share of each step, so that all
ranks have equally many steps. A short last step is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cots_model.errors import InputError
from training.example import Example
from training.orders import Entry, Mark, Order

State = dict[str, Any]
"""A place in a stream, json-able: seed, epoch, step, block, shard, skip, taken, data, batch."""

_KEYS = ("epoch", "step", "block", "shard", "skip", "taken")


@dataclass(frozen=True)
class Draw:
    """One pair of one epoch.

    Attributes:
        example: the picture, with all its captions.
        caption: the one whose turn it is.
        number: what tells the picture from others, below 2^63; in memory its row.
        seed: of everything random about its view.
    """

    example: Example
    caption: str
    number: int
    seed: tuple[int, ...]

    def rng(self) -> np.random.Generator:
        """A generator for the view; equal draws give equal generators."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True)
class Step:
    """The pairs of one rank at one step.

    Attributes:
        draws: `batch_size` pairs.
        state: the place behind this step.
    """

    draws: tuple[Draw, ...]
    state: State


class PairStream:
    """Epochs of steps over an order of pictures."""

    def __init__(
        self, order: Order, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        """Take an order.

        Args:
            order: of the pictures.
            batch_size: pairs per step and rank.
            seed: of orders, captions and views.
            rank: of this process, from 0.
            world_size: number of processes.
        """
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self._order = order
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._data = order.fingerprint()

    def steps_per_epoch(self) -> int:
        """Whole steps in the pictures there are."""
        return self._order.count() // (self._batch_size * self._world_size)

    def epoch(self, number: int) -> Iterator[Step]:
        """The steps of epoch `number` from its start."""
        return self._walk(number, 0, Mark(), 0)

    def start_of(self, epoch: int) -> State:
        """The state at the start of an epoch."""
        return self._state(epoch, 0, Mark(), 0)

    def resume(self, state: Mapping[str, Any]) -> Iterator[Step]:
        """The rest of an epoch: exactly what would have come behind the step of this state.

        Raises:
            InputError: if the state is none, or belongs to other data, another seed or another
                number of pairs per step over all ranks.
        """
        epoch, step, block, shard, skip, taken = self._checked(state)
        return self._walk(epoch, step, Mark(block, shard, skip), taken)

    def _walk(self, epoch: int, step: int, start: Mark, taken: int) -> Iterator[Step]:
        size = self._batch_size * self._world_size
        mine = slice(self._rank * self._batch_size, (self._rank + 1) * self._batch_size)
        pending: list[Entry] = []
        for mark, used, entry in self._entries(epoch, start, taken):
            pending.append(entry)
            if len(pending) == size:
                step += 1
                draws = tuple(self._draw(entry, epoch) for entry in pending[mine])
                yield Step(draws, self._state(epoch, step, mark, used))
                pending = []

    def _entries(self, epoch: int, start: Mark, taken: int) -> Iterator[tuple[Mark, int, Entry]]:
        for mark, block in self._order.blocks(self._seed, epoch, start):
            for place in range(taken, len(block)):
                yield mark, place + 1, block[place]
            taken = 0

    def _draw(self, entry: Entry, epoch: int) -> Draw:
        seed = (self._seed, epoch, entry.number, entry.visit)
        captions = entry.example.captions
        turn = int(np.random.default_rng([*seed, 0]).integers(len(captions)))
        return Draw(entry.example, captions[turn], entry.number, (*seed, 1))

    def _state(self, epoch: int, step: int, mark: Mark, taken: int) -> State:
        values = (epoch, step, mark.block, mark.shard, mark.skip, taken)
        place = dict(zip(_KEYS, values, strict=True))
        return {"seed": self._seed, **place, **self._identity()}

    def _identity(self) -> State:
        return {"data": self._data, "batch": self._batch_size * self._world_size}

    def _checked(self, state: Mapping[str, Any]) -> list[int]:
        expected = {"seed": self._seed, **self._identity()}
        for key, value in expected.items():
            if state.get(key) != value:
                raise InputError(
                    f"the run was stopped with {key} {state.get(key)!r} and now has {value!r}; "
                    "resume with the same data, seed and pairs per step, or start anew"
                )
        values = [state.get(key) for key in _KEYS]
        for key, value in zip(_KEYS, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"the saved place has {key} = {value!r}; a count is needed")
        return values  # type: ignore[return-value]
