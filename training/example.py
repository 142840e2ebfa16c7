"""A picture or video with everything said about it, and what goes wrong when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from cots_model.errors import InputError
from cots_model.images import decode_image
from cots_model.videos import NUM_FRAMES, decode_video
from index_builder.content import Location, open_location, read_location


class BrokenExampleError(InputError):
    """A picture or video that cannot be read or decoded.

    Attributes:
        reason: short stable code, for counting, such as `missing`, `truncated` or `damaged`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenExampleError], tuple[str, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Example:
    """A picture or a video, and everything said about it.

    Attributes:
        id: its id in its source.
        location: where its bytes are.
        captions: at least one.
        kind: `picture` or `video`.
        repeat: how often an epoch visits it.
        weight: what it counts in `training.regression`, beside its repeats.
    """

    id: str
    location: Location
    captions: tuple[str, ...]
    kind: Literal["picture", "video"] = "picture"
    repeat: int = 1
    weight: float = 1.0

    def picture(self) -> Image.Image:
        """Decode the picture to RGB; of a video, the frame in the middle.

        Raises:
            BrokenExampleError: naming the picture, if it cannot be read or decoded.
        """
        return self.frames(1)[0]

    def frames(self, num_frames: int = NUM_FRAMES) -> list[Image.Image]:
        """The picture alone, or at most `num_frames` frames of the video; RGB.

        Raises:
            BrokenExampleError: naming the picture or video, if it cannot be read or decoded.
            CotsError: for videos, if PyAV is not installed.
        """
        try:
            if self.kind == "picture":
                return [decode_image(read_location(self.location)[0])]
            with open_location(self.location)[0] as file:
                return decode_video(file, num_frames=num_frames)
        except InputError as err:
            message = (
                f"{self.kind} {self.id} in {self.location.path}: {err}; mend it or leave it out"
            )
            raise BrokenExampleError(getattr(err, "reason", "unreadable"), message) from err
