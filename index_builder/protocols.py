"""The protocols of urls: their fsspec packages, a time limit on every call, and their errors.

Credentials and endpoints come from fsspec's own settings and the protocol's environment
(`FSSPEC_S3_ENDPOINT_URL`, `AWS_*`), never from a url, and no message repeats them.
"""

from __future__ import annotations

import http
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import fsspec
from fsspec.registry import available_protocols, known_implementations

from index_builder.location import ContentError, redact, scheme_of, url_problem

T = TypeVar("T")

_STATUSES = range(100, 600)
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "oci": "ocifs",
    "oss": "ossfs",
    "webdav": "webdav4",
    "github": "requests",
}


def filesystem(url: str) -> Any:
    """The fsspec file system of a url; it keeps no listings.

    Raises:
        ContentError: if the url holds a secret, or its protocol is unknown or lacks its package.
    """
    problem = url_problem(url)
    if problem is not None:
        raise ContentError("unreadable", f"{redact(url)} {problem}")
    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as err:
        package, known = _PACKAGES.get(scheme), known_implementations.get(scheme, {})
        cure = f"pip install {package}" if package else known.get("err", str(err))
        why = f"{scheme}:// needs a package that is not installed: {cure}"
        raise ContentError("unreadable", why) from err
    except Exception as err:
        if scheme in available_protocols():
            raise explain(err, url) from err
        why = (
            f"{redact(url)} has the protocol {scheme}, which fsspec does not know; accepted are "
            "s3, gs, az, http, https, file and others that it knows"
        )
        raise ContentError("unreadable", why) from err


def within(limit_s: float, url: str, call: Callable[[], T]) -> T:
    """Make a call that may hang; what hangs is left behind in a thread that ends with us."""
    outcome: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as err:  # noqa: BLE001 - it belongs to the thread that waits
            outcome.put((None, err))

    threading.Thread(target=run, daemon=True, name="cots-url").start()
    try:
        value, error = outcome.get(timeout=limit_s)
    except queue.Empty:
        raise _too_slow(url, limit_s) from None
    if isinstance(error, Exception):
        raise explain(error, url) from error
    if error is not None:
        raise error
    return cast(T, value)


def explain(err: Exception, url: str) -> ContentError:
    """What went wrong with a url, by reason, without anything secret."""
    name = redact(url)
    if isinstance(err, ContentError):
        return err
    if isinstance(err, TimeoutError):
        return _too_slow(url, None)
    cause = err.__cause__
    if isinstance(err, FileNotFoundError) and isinstance(cause, OSError):  # no connection
        return explain(cause, url)
    status = _status_of(err)
    if status is not None and (status >= 500 or status == 429):
        why = f"the server answered {_named(status)}, which may pass; try again later"
        return ContentError("unreadable", f"{name} could not be read ({why})")
    if isinstance(err, FileNotFoundError) and status in (None, 404, 410):
        hint = "put it back or build again"
        if scheme_of(url) == "memory":
            hint = "memory:// is seen by the process that wrote it alone"
        return ContentError("missing", f"{name} is not there; {hint}")
    if isinstance(err, PermissionError):
        why = "access denied; check the credentials and their rights"
        return ContentError("unreadable", f"{name} could not be read ({why})")
    if isinstance(err, FileNotFoundError) and status is not None:  # fsspec's word for most answers
        why = f"the server answered {_named(status)}; see that it lets this machine read it"
        return ContentError("unreadable", f"{name} could not be read ({why})")
    said = " ".join(redact(f"{type(err).__name__}: {err}").split())[:300]
    why = f"{said}; check the endpoint, the network and the credentials"
    return ContentError("unreadable", f"{name} could not be read ({why})")


def _status_of(err: BaseException | None) -> int | None:
    """The status of the answer behind an error, as the packages of the protocols keep it."""
    while err is not None:
        answer = getattr(err, "response", None)
        if isinstance(answer, dict):  # botocore's
            return cast(int | None, answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for holder in (err, answer):
            words = (getattr(holder, word, None) for word in ("status", "status_code", "code"))
            status = next((word for word in words if isinstance(word, int)), None)
            if status in _STATUSES:
                return status
        err = err.__cause__
    return None


def _named(status: int) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _too_slow(url: str, limit_s: float | None) -> ContentError:
    waited = "in time" if limit_s is None else f"within {limit_s:g} s"
    return ContentError(
        "timeout", f"{redact(url)}: no answer {waited}; check the endpoint and the network"
    )
