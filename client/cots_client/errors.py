"""One tree of errors under `CotsError`, and how an answer of the server becomes one of them."""

from __future__ import annotations

import datetime
import email.utils
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import httpx


class CotsError(Exception):
    """Base of every error of this package."""


class InputError(CotsError, ValueError):
    """What the caller gave cannot be sent; the message says what is accepted."""


class PictureError(InputError):
    """A picture cannot be read; of `search_many` a `QueryError` in the place of its result."""


class AnswerError(CotsError):
    """What came back is not an answer of COTS Retrieval."""


class GalleryChangedError(CotsError):
    """The gallery got a new version between two pages, so that they do not belong together."""


class ModelChangedError(CotsError):
    """The server got another model between two requests, whose vectors do not compare."""


class TransportError(CotsError, ConnectionError):
    """There was no answer: the server cannot be reached, or the connection broke."""


class DeadlineError(TransportError, TimeoutError):
    """There was no answer within `timeout_s` of the client."""


class APIError(CotsError):
    """The server answered with an error.

    Attributes:
        status: of HTTP.
        type: kind of error, such as `invalid_request_error`.
        code: short and stable, what programs go by, such as `gallery_not_found`.
        param: field of the request at fault, dotted; `None` if it is none of them.
        message: what was wrong and what to do, for people.
        request_id: of this request, as in the server's log.
        retry_after_s: seconds after which the server wants to be asked again, if it said so.
    """

    def __init__(
        self,
        status: int,
        type: str,
        code: str,
        param: str | None,
        message: str,
        request_id: str | None,
        retry_after_s: float | None = None,
    ) -> None:
        # All of them, so that it can be pickled, as between processes.
        super().__init__(status, type, code, param, message, request_id, retry_after_s)
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.message = message
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        request = f", request {self.request_id}" if self.request_id else ""
        return f"{self.message} (HTTP {self.status} {self.code}{request})"


class AuthenticationError(APIError):
    """401 or 403: the API key is missing or not accepted."""


class NotFoundError(APIError):
    """404: no such gallery, item, original, model or route."""


class ConflictError(APIError):
    """409: the published version of the gallery was refused; the one before is served."""


class TooLargeError(APIError):
    """413: the request is larger than the server takes."""


class InvalidRequestError(APIError):
    """400 or 422: a field is not accepted; `param` names it."""


class OverloadedError(APIError):
    """429: the queue of the server is full."""


class UnavailableError(APIError):
    """503: the gallery or the whole server cannot answer now."""


class DeadlineExceededError(APIError):
    """504: the server did not finish in its own time and dropped the work."""


class QueryError(CotsError):
    """Why one query of `search_many` failed; given back as a value, in the place of its result.

    Attributes:
        index: of the query in what was given, from 0.
        type: as of `APIError`, like the others; `input_error` if the query was not sent.
        code: such as `text_empty`; `picture_unreadable` for a picture that this side cannot read.
        param: such as `queries.3.image`, numbered like `index`.
        message: what was wrong and what to do.
    """

    def __init__(self, index: int, type: str, code: str, param: str | None, message: str) -> None:
        super().__init__(index, type, code, param, message)
        self.index = index
        self.type = type
        self.code = code
        self.param = param
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


_CLASSES: dict[int, type[APIError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    409: ConflictError,
    413: TooLargeError,
    422: InvalidRequestError,
    429: OverloadedError,
    503: UnavailableError,
    504: DeadlineExceededError,
}


Renumber: TypeAlias = Callable[[str | None, str], tuple[str | None, str]]
"""`param` and `message` with other numbers."""


def as_told(param: str | None, message: str) -> tuple[str | None, str]:
    """As the server counts."""
    return param, message


def api_error(response: httpx.Response, renumber: Renumber = as_told) -> APIError:
    """The error that an answer means, also where something in between answered.

    Args:
        response: read, and no success.
        renumber: from how the server counts to how the caller does.
    """
    kind = _CLASSES.get(response.status_code, APIError)
    error = {**_foreign_error(response), **_body_error(response)}
    param, message = renumber(error["param"], error["message"])
    return kind(
        response.status_code,
        error["type"],
        error["code"],
        param,
        message,
        response.headers.get("x-request-id"),
        retry_after_s(response.headers),
    )


def is_for_now(response: httpx.Response) -> bool:
    """Whether a 503 ends by itself: it says when, is a gateway's, or of a server that changes."""
    error = _body_error(response)
    is_own = {"type", "code", "message"} <= error.keys()
    passing = not is_own or error["code"] in ("not_ready", "shutting_down")
    return passing or retry_after_s(response.headers) is not None


def parse_json(response: httpx.Response) -> Any:
    """The body.

    Raises:
        ValueError: if it is no JSON, or lists of lists without end.
    """
    try:
        return response.json()
    except RecursionError as err:
        raise ValueError("nested too deep") from err


def _body_error(response: httpx.Response) -> dict[str, str]:
    """Those fields of an error of the service that the body has."""
    try:
        body = parse_json(response)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return {}
    fields = ("type", "code", "param", "message")
    return {name: error[name] for name in fields if isinstance(error.get(name), str)}


def _foreign_error(response: httpx.Response) -> dict[str, Any]:
    """For an answer that is not in the shape of the service: a proxy's, or another program's."""
    status, place = response.status_code, place_of(response.request)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if response.is_redirect:
        cure = f"it redirects to {response.headers.get('location')}; set base_url to where it is"
    else:
        cure = "that is no answer of COTS Retrieval; check base_url, and proxies in between"
    message = f"{place} answered {status} {response.reason_phrase}: {cure}"
    return {"type": kind, "code": f"http_{status}", "param": None, "message": message}


def place_of(request: httpx.Request) -> str:
    """Method and address of a request, for messages."""
    return f"{request.method} {request.url.copy_with(query=None)}"


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds to wait by `Retry-After`, a number or a date (RFC 9110, section 10.2.3).

    A date is compared with the server's own `Date`, where there is one: clocks differ.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        then = _time(value)
        if then is None:
            return None
        now = _time(headers.get("date", "")) or datetime.datetime.now(datetime.UTC)
        seconds = (then - now).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _time(http_date: str) -> datetime.datetime | None:
    try:
        time = email.utils.parsedate_to_datetime(http_date)
    except (ValueError, OverflowError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
