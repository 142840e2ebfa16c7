"""What a decoding process runs: read, hash, decode and preprocess one original after another.

Nothing heavy is imported here; the preprocessing object that arrives brings what it needs.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, BinaryIO, cast

from cots_model.errors import ImageError
from index_builder.content import ContentError, Stamp, open_location, read_location
from index_builder.pipeline.gpu_jpeg import is_plain_jpeg
from index_builder.pipeline.limits import restrict_process
from index_builder.pipeline.protocol import (
    READY,
    Answer,
    Failure,
    Jpeg,
    Order,
    Pixels,
    Progress,
    Settings,
)
from index_builder.pipeline.result import Clip
from index_builder.pipeline.watched import Watched

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from cots_model.videos import VideoClip

Reply = tuple[Answer, bytes | None]

_OUT_OF_MEMORY = "decoding it takes more memory than a decoder may have; make it smaller"


def worker_main(connection: Connection, settings: Settings) -> None:
    """Answer each `Order` until told to end (`None`), or until the builder is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder ends its workers
    threading.Thread(target=_end_with_builder, daemon=True).start()
    _import_decoder(settings)
    restrict_process(settings.memory_bytes)
    worker = _Worker(connection, settings)
    try:
        connection.send(READY)
        while (order := connection.recv()) is not None:
            worker.carry_out(order)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the builder is gone


def _end_with_builder() -> None:
    """End this process when the builder was killed, even in the midst of a decoder that hangs."""
    builder = multiprocessing.parent_process()
    assert builder is not None
    builder.join()
    os._exit(1)


def _import_decoder(settings: Settings) -> None:
    importlib.import_module("cots_model.images")
    if settings.modality == "video":
        importlib.import_module("cots_model.videos")
        importlib.import_module("av")


class _Worker:
    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        # A quarter of the bytes for the pipe, where the preprocessing can be finished later.
        self._pixels = getattr(settings.preprocess, "pixels", settings.preprocess.image)
        self._start = time.perf_counter()

    def carry_out(self, order: Order) -> None:
        """Decode one original, and send whatever comes of it."""
        data = self._connection.recv_bytes() if order.fetched is not None else None
        self._start = time.perf_counter()
        replies = self._replies(order, data)
        while True:
            try:
                answer, payload = next(replies)
            except StopIteration:
                return
            except Exception as err:  # noqa: BLE001 - one original never ends a build
                answer, payload = self._failure(err), None
            self._connection.send(answer)
            if payload is not None:
                self._connection.send_bytes(payload)
            if isinstance(answer, Failure):
                return

    def _replies(self, order: Order, data: bytes | None) -> Iterator[Reply]:
        if self._settings.modality == "video":
            return self._video(order, data)
        return self._image(order, data)

    def _failure(self, err: Exception) -> Failure:
        from cots_model.videos import VideoError

        if isinstance(err, ImageError | VideoError | ContentError):
            return Failure(err.reason, str(err), self._lap())
        if isinstance(err, MemoryError):
            return Failure("out_of_memory", _OUT_OF_MEMORY, self._lap())
        why = f"decoding failed ({type(err).__name__}: {err}); save it again"
        return Failure("damaged", why, self._lap())

    def _image(self, order: Order, data: bytes | None) -> Iterator[Reply]:
        from cots_model.images import decode_image

        if data is None or order.fetched is None:
            data, stamp = read_location(order.location)
        else:
            stamp = order.fetched
        digest = hashlib.sha256(data).hexdigest()
        if order.keep_jpeg and is_plain_jpeg(data):
            yield Jpeg(stamp, digest, self._lap()), data
            return
        numbers_U = self._numbers([decode_image(data)])
        yield self._answer(stamp, digest, numbers_U, None, last=True), numbers_U.tobytes()

    def _video(self, order: Order, data: bytes | None) -> Iterator[Reply]:
        from cots_model.videos import iter_clips

        file, stamp = self._open(order, data)
        with file, Watched(file, self._progress) as watched:
            digest = watched.sha256()
            clips = iter_clips(
                cast(BinaryIO, watched),
                num_frames=self._settings.num_frames,
                segment_s=self._settings.segment_s,
            )
            for clip, last in _marking_last(clips):
                numbers_U = self._numbers(clip.frames)
                about = Clip(clip.times_s, clip.start_s, clip.end_s, clip.duration_s)
                answer = self._answer(stamp, digest, numbers_U, about, last=last)
                yield answer, numbers_U.tobytes()

    def _open(self, order: Order, data: bytes | None) -> tuple[BinaryIO, Stamp]:
        if data is None or order.fetched is None:
            file, stamp = open_location(order.location)
        else:
            file, stamp = io.BytesIO(data), order.fetched
        if not stamp.size_bytes:
            file.close()
            raise ContentError("empty", "it holds 0 bytes; a video is needed")
        return file, stamp

    def _numbers(self, imgs: list[Image.Image]) -> npt.NDArray[np.uint8 | np.float32]:
        import numpy as np

        return np.stack([self._pixels(img).numpy() for img in imgs])

    def _answer(
        self,
        stamp: Stamp,
        digest: str,
        numbers_U: npt.NDArray[np.uint8 | np.float32],
        clip: Clip | None,
        *,
        last: bool,
    ) -> Pixels:
        shape, dtype = numbers_U.shape, numbers_U.dtype.name
        return Pixels(stamp, digest, shape, dtype, clip, last, self._lap())

    def _progress(self) -> None:
        self._connection.send(Progress())

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._start = now - self._start, now
        return lap


def _marking_last(clips: Iterator[VideoClip]) -> Iterator[tuple[VideoClip, bool]]:
    """Each clip, and whether it is the last: known once the next has been asked for."""
    from cots_model.videos import VideoError

    previous: VideoClip | None = None
    for clip in clips:
        if previous is not None:
            yield previous, False
        previous = clip
    if previous is None:
        raise VideoError("damaged", "the video has no frame that can be decoded; save it again")
    yield previous, True
