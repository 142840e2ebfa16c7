"""Builds parts from their listings: decode, encode, write.

The same object does it in this process and in a worker on another machine that sees the gallery's
folder: all it needs are the settings, an encoder and the parts to be built.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from cots_model.encoder import Encoder
from cots_model.errors import CotsError
from index_builder.encode import PartEncoder, refreshed_item
from index_builder.listing import Entry, PartSpec, read_listing
from index_builder.manifest import FORMAT_VERSION, JpegDecoder, Modality
from index_builder.parts import Part, PartRows, write_part
from index_builder.pipeline.background import Background
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.protocol import NUM_FRAMES
from index_builder.pipeline.result import Result
from index_builder.presence import GONE, OUT_OF_REACH, Roots, is_out_of_reach
from index_builder.sources.entry import Candidate, Skip
from index_builder.version import VersionRows


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """All that a part depends on besides its entries, and how to decode them; can be pickled.

    Attributes:
        modality: what the items are.
        batch_size: units embedded at once.
        precision: of the computation.
        device: what computes (`device_of`): the last bits differ.
        model_fingerprint: of the model and its preprocessing.
        segment_seconds: length of the segments that videos are cut into.
        jpeg_decoder: where plain JPEGs are decoded.
        base: folder of the published version that unchanged rows are taken from.
        base_sha256: of that version's manifest.
        remove_missing: whether rows of that version go whose original is gone.
        roots: where the originals lie; if one is gone, the build stops.
        workers: decoding processes.
        timeout_s: longest time to decode one original.
    """

    modality: Modality
    batch_size: int
    precision: str
    device: str
    model_fingerprint: str
    segment_seconds: float | None = None
    jpeg_decoder: JpegDecoder = "cpu"
    base: Path | None = None
    base_sha256: str | None = None
    remove_missing: bool = False
    roots: tuple[str, ...] = ()
    workers: int = 1
    timeout_s: float = 60.0

    @property
    def key(self) -> str:
        """What goes into the key of every part."""
        ignored = ("base", "roots", "workers", "timeout_s")
        fields = {name: value for name, value in asdict(self).items() if name not in ignored}
        return f"cots part of format {FORMAT_VERSION}: {sorted(fields.items())}"


@dataclass
class PartBuilder:
    """Builds parts in the order in which they come, decoding ahead of the encoder.

    Attributes:
        settings: what to build.
        encoder: embeds.
        parts: the folder for finished parts.
        advance: called for every entry dealt with.
        seconds: time by stage, so far.
    """

    settings: PartSettings
    encoder: Encoder
    parts: Path
    advance: Callable[[int], object] = lambda _: None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _base: VersionRows | None = None

    def __post_init__(self) -> None:
        """Remember the roots as they are now."""
        self._roots = Roots(self.settings.roots)

    def build(self, specs: Iterable[PartSpec]) -> Iterator[Part]:
        """Build each part and give it once it is on disk.

        Raises:
            CotsError: if the source vanished, or decoding processes cannot be started.
            OSError: if a part cannot be written.
        """
        with ThreadPoolExecutor(1, "part-writer") as writer:
            writing: Future[Part] | None = None
            for spec, rows in self._rows(specs):
                if writing is not None:
                    yield self._written(writing)
                writing = writer.submit(self._write, spec, rows)
            if writing is not None:
                yield self._written(writing)

    def _rows(self, specs: Iterable[PartSpec]) -> Iterator[tuple[PartSpec, PartRows]]:
        """Embed each part; the next one is being decoded, and the last one written, meanwhile."""
        opened: deque[PartSpec] = deque()
        with self._results(_entries(specs, opened)) as results:
            while (result := self._next(results)) is not None:
                spec = opened.popleft()
                encoder = PartEncoder(
                    self.encoder,
                    modality=self.settings.modality,
                    batch_size=self.settings.batch_size,
                )
                for offset, entry in enumerate(read_listing(spec.path)):
                    while True:
                        self._take(encoder, offset, entry, result)
                        if result.last:
                            break
                        result = self._following(results)
                    self.advance(1)
                    if offset + 1 < spec.num_entries:
                        result = self._following(results)
                with self._timed("encode"):
                    rows = encoder.finish()
                yield spec, rows

    def _take(self, encoder: PartEncoder, offset: int, entry: Entry, result: Result) -> None:
        if isinstance(entry.value, Candidate):
            self._roots.see(entry.value.location.root)
        if entry.rows:
            self._reuse(encoder, offset, entry)
        elif isinstance(entry.value, Candidate) and entry.value.text is not None:
            with self._timed("encode"):
                encoder.add_text(offset, entry.value)
        elif isinstance(result.value, Skip):
            self._skip(encoder, offset, entry, result.value)
        else:
            with self._timed("encode"):
                encoder.add(offset, result.value)

    def _skip(self, encoder: PartEncoder, offset: int, entry: Entry, skip: Skip) -> None:
        """Leave it out; of what could not be read at all the old rows stay."""
        if skip.reason in GONE | OUT_OF_REACH:
            self._roots.check()
        is_gone = skip.reason in GONE
        keeps = is_out_of_reach(entry.value, skip) or (is_gone and not self.settings.remove_missing)
        if keeps and not encoder.holds(offset):
            for row in entry.old_rows:
                encoder.reuse(offset, self._old.item(row), *self._old.vectors_of(row))
        encoder.skip(offset, skip)

    def _reuse(self, encoder: PartEncoder, offset: int, entry: Entry) -> None:
        """Old vectors, with metadata, place and time as they are now."""
        assert isinstance(entry.value, Candidate)
        for row in entry.rows:
            item = refreshed_item(self._old.item(row), entry.value)
            encoder.reuse(offset, item, *self._old.vectors_of(row))

    @property
    def _old(self) -> VersionRows:
        """The published version, opened when it is first needed."""
        assert self.settings.base is not None
        self._base = self._base or VersionRows.open(self.settings.base)
        return self._base

    @contextmanager
    def _results(self, entries: Iterator[Candidate | Skip]) -> Iterator[Iterator[Result]]:
        """One last result for every entry, in order."""
        if self.settings.modality == "text":
            yield (Result(number, _as_skip(entry)) for number, entry in enumerate(entries))
            return
        settings = self.settings
        with _start_pool(self.encoder, settings) as pool:
            # A clip has 16 units, 12 MB of pixels: as many units ahead as with pictures.
            units = 1 if settings.modality == "image" else NUM_FRAMES
            ahead = max(2, settings.batch_size // units)
            results = Background(pool.decode(entries), size=ahead)
            try:
                yield iter(results)
            finally:
                pool.interrupted = True
                results.stop()
                self.seconds["read"] += pool.read_s
                self.seconds["decode"] += pool.decode_s

    def _next(self, results: Iterator[Result]) -> Result | None:
        with self._timed("wait"):
            return next(results, None)

    def _following(self, results: Iterator[Result]) -> Result:
        result = self._next(results)
        assert result is not None, "every entry has a last result"
        return result

    def _write(self, spec: PartSpec, rows: PartRows) -> Part:
        with self._timed("write"):
            return write_part(self.parts, spec, rows)

    def _written(self, writing: Future[Part]) -> Part:
        with self._timed("wait"):
            return writing.result()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start


def device_of(encoder: Encoder) -> str:
    """What computes; sums over other numbers of threads, or on another GPU, differ a little."""
    if encoder.device.type == "cuda":
        return torch.cuda.get_device_name(encoder.device)
    return f"{encoder.device.type}, {torch.get_num_threads()} threads"


def _start_pool(encoder: Encoder, settings: PartSettings) -> DecodePool:
    assert settings.modality != "text", "texts are not decoded"
    try:
        return DecodePool(
            encoder.preprocess,
            workers=settings.workers,
            timeout_s=settings.timeout_s,
            window=2 * settings.batch_size + 2 * settings.workers,
            modality=settings.modality,
            segment_s=settings.segment_seconds,
            jpeg_decoder=settings.jpeg_decoder,
            jpeg_device=str(encoder.device),
        )
    except OSError as err:
        raise CotsError(
            f"the decoding processes could not be started ({err}); check the limits on memory and "
            "processes, or take fewer (--workers)"
        ) from err


def _entries(specs: Iterable[PartSpec], opened: deque[PartSpec]) -> Iterator[Candidate | Skip]:
    """All entries to be decoded, part by part; what needs no decoding passes as a skip."""
    for spec in specs:
        opened.append(spec)
        for entry in read_listing(spec.path):
            yield _as_skip(entry.value) if entry.rows else entry.value


def _as_skip(value: Candidate | Skip) -> Skip:
    if isinstance(value, Skip):
        return value
    return Skip(value.id, value.uri, "", "")  # never written: only passes the decoders by
