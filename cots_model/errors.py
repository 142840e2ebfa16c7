"""Every error this project raises on purpose.

A message says what came, what is accepted and what to do. `InputError` and its children mean that
the caller can mend it (exit code 2, HTTP 4xx); any other `CotsError` is a failure on our side (exit
code 1).
"""


class CotsError(Exception):
    """Root of all errors raised by COTS Retrieval."""


class InputError(CotsError):
    """The caller's input is wrong and the message says how to mend it."""


class ImageError(InputError):
    """A picture that cannot be used.

    Attributes:
        reason: short stable code, for counting: `empty`, `unreadable`, `unsupported_format`,
            `too_many_pixels`, `out_of_memory`, `truncated` or `damaged`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class ConfigError(InputError):
    """A configuration with an unknown key or a value that is not accepted."""


class CheckpointError(InputError):
    """A checkpoint that is missing, damaged, or not one of ours."""


class GalleryError(InputError):
    """A gallery that is missing, damaged, or made by another model."""
