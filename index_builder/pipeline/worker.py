"""What a decoding process runs: read, hash, decode and preprocess one picture after another.

Nothing heavy is imported here; the preprocessing object that arrives brings what it needs.
"""

from __future__ import annotations

import hashlib
import signal
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from cots_model.errors import ImageError
from index_builder.content import ContentError, Location, Stamp, read_location

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cots_model.preprocess import PicturePreprocess

READY = "ready"


@dataclass(frozen=True)
class Picture:
    """A decoded picture, without its pixels: those follow as raw bytes.

    Attributes:
        stamp: size and time of the original.
        sha256: hex digest of the original's bytes.
        shape: of the pixels, float32.
        seconds: time spent on it.
    """

    stamp: Stamp
    sha256: str
    shape: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why a picture was left out."""

    reason: str
    message: str
    seconds: float


def worker_main(connection: Connection, preprocess: PicturePreprocess) -> None:
    """Answer each `Location` with a `Picture` and its pixels, or a `Failure`; end when told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder ends its workers
    warnings.simplefilter("ignore")
    _use_one_thread()
    try:
        connection.send(READY)
        while (location := connection.recv()) is not None:
            answer, pixels = _decode(location, preprocess)
            connection.send(answer)
            if pixels is not None:
                connection.send_bytes(pixels.tobytes())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the builder is gone


def _decode(
    location: Location, preprocess: PicturePreprocess
) -> tuple[Picture | Failure, npt.NDArray[np.float32] | None]:
    from cots_model.images import decode_image

    start = time.perf_counter()
    try:
        data, stamp = read_location(location)
        pixels: npt.NDArray[np.float32] = preprocess.image(decode_image(data)).numpy()
    except (ImageError, ContentError) as err:
        return Failure(err.reason, str(err), time.perf_counter() - start), None
    except MemoryError:
        why = "decoding it takes more memory than there is; make it smaller"
        return Failure("out_of_memory", why, time.perf_counter() - start), None
    except Exception as err:  # noqa: BLE001 - one picture never ends a build
        why = f"decoding failed ({type(err).__name__}: {err}); save it again"
        return Failure("damaged", why, time.perf_counter() - start), None
    digest = hashlib.sha256(data).hexdigest()
    return Picture(stamp, digest, pixels.shape, time.perf_counter() - start), pixels


def _use_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
