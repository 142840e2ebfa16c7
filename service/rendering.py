"""The thumbnail of an item: from memory, or made in the threads that read its kind of original."""

from __future__ import annotations

import functools

from PIL import Image

from cots_model.errors import CotsError, InputError
from cots_model.images import decode_image
from cots_model.videos import VideoError, decode_frame
from index_builder.gallery import Gallery, Item
from service.errors import ApiError, past_deadline
from service.state import Service
from service.thumbnails import make_thumbnail


class FrameError(CotsError):
    """No frame of a video can be shown."""


def no_thumbnail(message: str) -> ApiError:
    """A 404 for an item that cannot be shown."""
    return ApiError(404, "thumbnail_not_available", message, param="id")


def shown_time_s(item: Item, time_s: float | None) -> float:
    """Which moment of a video its thumbnail shows: the one asked for, or the middle."""
    wanted_s = item.middle_s if time_s is None else time_s
    return min(wanted_s, item.duration_s or 0.0)  # behind it there is nothing to look for


async def thumbnail_of(
    service: Service,
    gallery: Gallery,
    row: int,
    item: Item,
    *,
    size_px: int,
    time_s: float | None,
    deadline_s: float,
) -> bytes:
    """A JPEG whose longer side is at most `size_px`.

    Args:
        service: whose threads and memory.
        gallery: that the item is of.
        row: of the item.
        item: a picture, or a video.
        size_px: of the longer side.
        time_s: of a video the frame, see `shown_time_s`; None for pictures.
        deadline_s: on the clock of `time.monotonic`.

    Raises:
        ContentError: if the original is gone, unreadable or not what was indexed.
        ImageError: if it is no picture any more that can be decoded.
        ApiError: 404 if no frame of the video can be shown.
        QueueFullError, DeadlineError: see `WorkerPool.run`.
    """
    key = (item.sha256, size_px, time_s)
    jpeg = service.thumbnails.get(key)
    if jpeg is None:
        max_pixels = service.settings.max_image_pixels
        if time_s is None:
            picture = functools.partial(_picture, gallery, row, size_px, max_pixels)
            jpeg = (await service.decoding.run(picture, deadline_s=deadline_s)).value
        else:
            frame = functools.partial(
                _frame, gallery, row, size_px, max_pixels, time_s=time_s, until_s=deadline_s
            )
            jpeg = (await service.videos.run(frame, deadline_s=deadline_s)).value
        service.thumbnails.put(key, jpeg)
    return jpeg


def _picture(gallery: Gallery, row: int, size_px: int, max_pixels: int) -> bytes:
    return make_thumbnail(read_picture(gallery, row, max_pixels), size_px)


def _frame(
    gallery: Gallery, row: int, size_px: int, max_pixels: int, *, time_s: float, until_s: float
) -> bytes:
    try:
        img = read_frame(gallery, row, max_pixels, time_s=time_s, until_s=until_s)
    except FrameError as err:
        raise no_thumbnail(str(err)) from err
    return make_thumbnail(img, size_px)


def read_picture(gallery: Gallery, row: int, max_pixels: int) -> Image.Image:
    """The picture of an item, RGB; raises `ContentError` and `ImageError`."""
    return decode_image(gallery.read_content(row), max_pixels=max_pixels)


def read_frame(
    gallery: Gallery, row: int, max_pixels: int, *, time_s: float, until_s: float
) -> Image.Image:
    """A frame of the video of an item; nothing but what it needs is read.

    Raises:
        ContentError: if the original is gone, unreadable or not what was indexed.
        FrameError: if there is no such frame.
        ApiError: 504 if it takes too long.
    """
    with gallery.open_content(row) as file:
        try:
            return decode_frame(file, time_s, max_pixels=max_pixels, until_s=until_s)
        except VideoError as err:
            if err.reason == "timeout":
                raise past_deadline() from err
            raise FrameError(f"no frame of the video can be shown ({err.reason})") from err
        except InputError:  # the original, while it was read
            raise
        except CotsError as err:  # PyAV is not installed
            message = "no frame of the video can be shown (this server cannot decode videos)"
            raise FrameError(message) from err
