"""In which order an epoch visits its pictures: a function of (seed, epoch) and of nothing else.

An order is a sequence of blocks, each shuffled as a whole. In memory there is one block, of all
pictures. A stream of shards shuffles the shards, reads one after the other, and shuffles what it
read whenever a block is full; so it holds one block at a time, and can begin at any of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cots_model.errors import InputError
from index_builder.sources.open import open_source
from index_builder.sources.shards import ShardSource
from training.example import Example
from training.formats.pairs import iterate_pairs
from training.formats.read import kind_of, read_source
from training.formats.source import SourceConfig, as_sources
from training.short_captions import with_short_captions


@dataclass(frozen=True)
class Entry:
    """A picture of an order.

    Attributes:
        number: what tells it from the others, the same in every epoch; below 2^63.
        example: the picture and its captions.
        visit: from 0, of a picture that an epoch visits several times.
    """

    number: int
    example: Example
    visit: int = 0


@dataclass(frozen=True)
class Mark:
    """Where a block begins.

    Attributes:
        block: its number within the epoch.
        shard: the place in the epoch's order of the shard that it begins in.
        skip: how many pictures of that shard went into blocks before.
    """

    block: int = 0
    shard: int = 0
    skip: int = 0


class Block(Protocol):
    """Shuffled pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Entry: ...


class Order(Protocol):
    """What a `training.sampler.PairStream` walks along."""

    def blocks(self, seed: int, epoch: int, start: Mark) -> Iterator[tuple[Mark, Block]]:
        """The blocks of an epoch from one of them on, each with the mark it begins at."""
        ...

    def count(self) -> int:
        """How many visits of pictures an epoch has."""
        ...

    def fingerprint(self) -> str:
        """Changes when the pictures or their places change; a resumed run must find it again."""
        ...


class MemoryOrder:
    """All pictures are known: one block, a permutation."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Take the pictures; an entry's number is its row."""
        self._examples = examples
        self._end_M = np.cumsum([example.repeat for example in examples])  # of each one's visits

    def blocks(self, seed: int, epoch: int, start: Mark) -> Iterator[tuple[Mark, Block]]:
        """One block."""
        if start != Mark():
            raise InputError(f"there is no block {start.block}; the data have changed")
        order = _rng(seed, epoch).permutation(self.count())
        yield start, _Permuted(self._examples, self._end_M, order)

    def count(self) -> int:
        """Number of pictures, each as often as it repeats."""
        return int(self._end_M[-1]) if len(self._end_M) else 0

    def fingerprint(self) -> str:
        """Of ids, kinds, places, captions, repeats and weights."""
        return _digest([_said(example) for example in self._examples])


class ShardOrder:
    """Shards are read one after the other, in an order that each epoch shuffles anew."""

    def __init__(self, sources: Sequence[str | SourceConfig], *, block_size: int) -> None:
        """Take sources; whatever is no tar shard is read now and cut into pieces.

        Args:
            sources: as `training.data.read_examples` takes them.
            block_size: how many pictures are held and shuffled at a time.

        Raises:
            InputError: if a source is missing or not in its format, or has splits of which none is
                chosen.
        """
        self._block_size = block_size
        self._shards: list[Path | Sequence[Example]] = []
        self._short: list[int] = []  # of each shard
        self._visits: list[tuple[int, int]] = []  # shard, and which visit of it
        for source in as_sources(sources):
            first = len(self._shards)
            if kind_of(source) == "shards":
                source.check_options("shards")
                self._shards += _shard_paths(source.path)
            else:
                examples = read_source(source, for_training=True)
                starts = range(0, len(examples), block_size)
                self._shards += [examples[at : at + block_size] for at in starts]
            added = range(first, len(self._shards))
            self._short += [source.short_captions] * len(added)
            self._visits += [(shard, visit) for visit in range(source.repeat) for shard in added]
        self._count: int | None = None

    def blocks(self, seed: int, epoch: int, start: Mark) -> Iterator[tuple[Mark, Block]]:
        """Blocks of `block_size`; the last may be shorter."""
        order = _rng(seed, epoch).permutation(len(self._visits)).tolist()
        if start.shard > len(order):
            raise InputError(f"there is no shard {start.shard}; the data have changed")
        mark, block = start, list[Entry]()
        for place in range(start.shard, len(order)):
            skip = start.skip if place == start.shard else 0
            entries = self._entries(*self._visits[order[place]], quiet=epoch > 0)
            for used, entry in enumerate(entries, start=1):
                if used <= skip:
                    continue
                block.append(entry)
                if len(block) == self._block_size:
                    yield mark, _shuffled(block, seed, epoch, mark.block)
                    mark, block = Mark(mark.block + 1, place, used), []
        if block:
            yield mark, _shuffled(block, seed, epoch, mark.block)

    def count(self) -> int:
        """Visits of pictures with captions, by reading every shard's headers and captions once."""
        if self._count is None:
            counts = [
                sum(1 for _ in self._entries(number, 0, quiet=True))
                for number in range(len(self._shards))
            ]
            self._count = sum(counts[shard] for shard, _ in self._visits)
        return self._count

    def fingerprint(self) -> str:
        """Of the shards' names and sizes, what is said of other pictures, and the visits."""
        shards = [
            f"{shard.name}@{shard.stat().st_size}"
            if isinstance(shard, Path)
            else _digest([_said(example) for example in shard])
            for shard in self._shards
        ]
        return _digest([*shards, f"{self._block_size}", f"{self._visits}", *self._said_short()])

    def _said_short(self) -> list[str]:
        """Nothing where there are none, as in runs of before there were any."""
        return [f"{self._short}"] if any(self._short) else []

    def _entries(self, number: int, visit: int, *, quiet: bool) -> Iterator[Entry]:
        shard = self._shards[number]
        if isinstance(shard, Path):
            pairs = iterate_pairs(ShardSource([shard]), label=str(shard), quiet=quiet)
        else:
            pairs = iter(shard)
        for example in pairs:
            short = with_short_captions(example, self._short[number])
            yield Entry(_number(number, example), short, visit)


class _Permuted:
    """Entries made when they are asked for: a permutation of millions takes eight bytes each."""

    def __init__(self, examples: Sequence[Example], end_M: np.ndarray, order: np.ndarray) -> None:
        self._examples = examples
        self._end_M = end_M
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Entry:
        place = int(self._order[index])
        row = int(np.searchsorted(self._end_M, place, side="right"))
        return Entry(row, self._examples[row], int(self._end_M[row]) - 1 - place)


def _shard_paths(pattern: str) -> list[Path]:
    source = open_source([pattern])
    if not isinstance(source, ShardSource):
        raise InputError(f"{pattern} is no tar shard; local shards are streamed in training")
    return source.shards


def _said(example: Example) -> str:
    """All of an example but the folder that it lies in."""
    place, captions = example.location.offset_bytes, list(example.captions)
    return repr((example.id, example.kind, place, captions, example.repeat, example.weight))


def _shuffled(block: list[Entry], seed: int, epoch: int, number: int) -> list[Entry]:
    order = np.random.default_rng([seed, epoch, number, 1]).permutation(len(block))
    return [block[row] for row in order.tolist()]


def _rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])


def _number(shard: int, example: Example) -> int:
    """A picture of a stream has no row; its shard's place in the list and its id stand for it."""
    digest = hashlib.blake2b(f"{shard}/{example.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
