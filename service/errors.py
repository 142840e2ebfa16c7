"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from cots_model.errors import CotsError, GalleryError, ImageError, InputError
from cots_model.faults import describe_fault, describe_unknown, place_of, shortened
from index_builder.gallery import ItemNotFoundError
from service.encoding import EncoderMemoryError
from service.jobs import DeadlineError, PoolClosedError, QueueFullError
from service.schemas import ErrorBody, ErrorResponse

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_MOST_RETRY_S = 60
_LONGEST = 1000
_CODES = {400: "bad_request", 404: "route_not_found", 405: "method_not_allowed"}


class ApiError(CotsError):
    """An answer other than success.

    Attributes:
        status: HTTP status.
        code: short stable machine code.
        param: the request field at fault, dotted.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def invalid(code: str, message: str, *, param: str | None = None) -> ApiError:
    """A 422: the request is well-formed and its content is not accepted."""
    return ApiError(422, code, message, param=param)


def overloaded(retry_s: float = 0.0) -> ApiError:
    """A 429 that says when to come back, in a second at least."""
    message = (
        "the service is busy: too much waits for this to be done in time; "
        "try again after the Retry-After seconds"
    )
    seconds = min(max(1, math.ceil(retry_s)), _MOST_RETRY_S)
    return ApiError(429, "queue_full", message, headers={"Retry-After": str(seconds)})


def gallery_not_found(name: str) -> ApiError:
    """A 404 for a name that no gallery has."""
    message = f"no gallery {name!r}; GET /v1/galleries lists those there are"
    return ApiError(404, "gallery_not_found", message, param="gallery")


def gallery_away(name: str) -> ApiError:
    """A 404 for a reload of a gallery whose folder is not there, while it is still served."""
    message = (
        f"the folder of gallery {name!r} is not there; what was loaded of it is served for now; "
        "put the folder back, or reload again in some seconds to have the gallery dropped"
    )
    return ApiError(404, "gallery_not_found", message, param="gallery")


def root_at_fault(fault: str) -> ApiError:
    """A 503 for what cannot be loaded because nothing can."""
    return ApiError(503, "gallery_unavailable", f"{fault}; check it and reload")


def unknown_parameter(name: str, known: Sequence[str] = ()) -> ApiError:
    """A 422 for a query parameter that a route does not have."""
    message = describe_unknown([name], known, noun="query parameter")
    return invalid(
        "unknown_field",
        message if known else f"{message}; this route has none",
        param=shortened(name),
    )


def repeated_parameter(name: str, times: int) -> ApiError:
    """A 422 for a query parameter that came more than once."""
    shown = shortened(name)
    message = f"the query parameter {shown} was sent {times} times; send it once"
    return invalid("repeated_field", message, param=shown)


def past_deadline() -> ApiError:
    """A 504 for a request whose time is over."""
    message = "the request did not finish before its deadline and was dropped; try again later"
    return ApiError(504, "deadline_exceeded", message)


def internal() -> ApiError:
    """A 500 that tells nothing about our insides."""
    message = "the service failed on this request; report it with the X-Request-Id header"
    return ApiError(500, "internal_error", message)


def to_api_error(err: Exception, *, param: str | None = None) -> ApiError:
    """Map our exception tree to HTTP; anything unknown is a 500 without details."""
    match err:
        case ApiError():
            return err
        case QueueFullError():
            return overloaded(err.retry_s)
        case DeadlineError():
            return past_deadline()
        case PoolClosedError():
            message = "the service is shutting down; send the request to another instance"
            return ApiError(503, "shutting_down", message)
        case EncoderMemoryError():
            log.error("the model's device is out of memory", exc_info=err)
            message = "the model's device is out of memory; try again later"
            return ApiError(503, "out_of_memory", message)
        case ItemNotFoundError():
            return ApiError(404, "item_not_found", str(err), param=param)
        case ImageError():
            return ApiError(422, f"image_{err.reason}", str(err), param=param)
        case GalleryError():
            log.error("gallery failed while answering", exc_info=err)
            message = "the gallery's files could not be read; run `cots index verify` on it"
            return ApiError(503, "gallery_unavailable", message)
        case InputError():
            return ApiError(422, "invalid_input", str(err), param=param)
    log.error("unexpected failure", exc_info=err)
    return internal()


def error_body(err: ApiError) -> ErrorBody:
    """The contract's error object; lone surrogates are replaced so that it can be sent."""
    kind = _TYPES.get(err.status, "server_error" if err.status >= 500 else "invalid_request_error")
    param = None if err.param is None else _sendable(err.param)
    return ErrorBody(message=_sendable(_cut(str(err))), type=kind, param=param, code=err.code)


class ErrorAnswer(Response):
    """An error as an HTTP answer; leaves its code in the request's state, for log and metrics."""

    def __init__(self, err: ApiError) -> None:
        body = ErrorResponse(error=error_body(err)).model_dump_json()
        super().__init__(body, err.status, err.headers, media_type="application/json")
        self._code = err.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


def error_response(err: ApiError) -> Response:
    """The error as an HTTP answer."""
    return ErrorAnswer(err)


def _cut(message: str) -> str:
    """No answer is long because something in the request was."""
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 1]}…"


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception in the contract's shape."""
    app.add_exception_handler(CotsError, _on_cots_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_cots_error(request: Request, err: Exception) -> Response:
    return error_response(to_api_error(err))


async def _on_http_exception(request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    code = _CODES.get(err.status_code, "http_error")
    message = f"{request.method} {request.scope['path']}: {err.detail}"
    if err.status_code == 404 and _is_route_without_slash(request):
        message = f"{message}; leave out the / at the end"
    if allowed := (err.headers or {}).get("Allow"):
        message = f"{message}; accepted here: {allowed}"
    return error_response(ApiError(err.status_code, code, message, headers=err.headers))


def _is_route_without_slash(request: Request) -> bool:
    path = request.scope["path"]
    if len(path) < 2 or not path.endswith("/"):
        return False
    scope = {
        key: value for key, value in request.scope.items() if key != "fastapi"
    }  # it is written
    scope["path"] = path.rstrip("/")
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)


async def _on_disconnect(request: Request, err: Exception) -> Response:
    """Nobody is there to read it: the status is for the log, and no fault of ours."""
    return error_response(ApiError(499, "client_closed_request", "the client went away"))


async def _on_bad_parameters(request: Request, err: Exception) -> Response:
    assert isinstance(err, RequestValidationError)
    first = err.errors()[0]
    kind, *where = first["loc"]  # such as `query`
    fault = cast(ErrorDetails, {**first, "loc": tuple(where) or (kind,)})
    message = describe_fault(fault, BaseModel)
    return error_response(invalid("invalid_value", message, param=place_of(fault["loc"])))
