"""One connection to Milvus: every call has a time limit, every failure is one of our errors.

`pymilvus` is imported here and nowhere else, when the first connection is made.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cots_model.errors import GalleryError
from index_builder.milvus.address import TOKEN_VARIABLE, Address
from index_builder.vectors import Vectors

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 120.0
_ALL_OF_IT = 0.9
LOAD_TIMEOUT_S = 600.0
"""Loading a collection and building its index: minutes where there are many vectors."""


class MilvusError(GalleryError):
    """Milvus cannot be reached, was too slow, or refused; or its client library is missing."""


class MilvusClient:
    """The calls we need, on one collection; safe to use from several threads.

    After a call that was not answered in time one thread at a time tries, and the others fail at
    once, until an answer comes: a server that stands still does not hold all threads of a service.
    """

    def __init__(
        self, address: Address, pymilvus: Any, client: Any, errors: tuple[type[Exception], ...]
    ) -> None:
        """Hold an open connection; `connect` is the way here."""
        self.address = address
        self._pymilvus = pymilvus
        self._client = client
        self._errors = errors
        self._name = address.collection
        self._stands_still = False
        self._trying = threading.Lock()
        weakref.finalize(self, client.close)

    def close(self) -> None:
        """Close the connection; a Milvus Lite file stays open until the process ends."""
        self._client.close()

    def properties(self) -> dict[str, str] | None:
        """Properties of the collection, its description among them; None if there is none."""
        if not self._call(self._client.has_collection, timeout=READ_TIMEOUT_S):
            return None
        found = self._call(self._client.describe_collection, timeout=READ_TIMEOUT_S)
        properties = {str(key): str(value) for key, value in found["properties"].items()}
        return {**properties, "description": str(found.get("description", ""))}

    def create(
        self, fields: Sequence[Mapping[str, Any]], properties: dict[str, str], description: str
    ) -> None:
        """Create the collection with fields of our own notation; see `collection.FIELDS`."""
        schema = self._client.create_schema(
            auto_id=False, enable_dynamic_field=False, description=description
        )
        for entry in fields:
            values = dict(entry)
            for key in ("type", "element_type"):
                if key in values:
                    values[key] = getattr(self._pymilvus.DataType, values[key])
            schema.add_field(values.pop("name"), values.pop("type"), **values)
        self._call(
            self._client.create_collection,
            schema=schema,
            properties=properties,
            consistency_level="Bounded",
            timeout=WRITE_TIMEOUT_S,
        )

    def create_indexes(self, indexes: Sequence[Mapping[str, Any]]) -> None:
        """Create indexes on the fields that have none yet."""
        for index in indexes:
            field = index["field_name"]
            there = self._call(self._client.list_indexes, field_name=field, timeout=READ_TIMEOUT_S)
            if not there:
                params = self._client.prepare_index_params()
                params.add_index(**index)
                self._call(self._client.create_index, index_params=params, timeout=LOAD_TIMEOUT_S)

    def drop(self) -> None:
        """Drop the collection and all it holds."""
        self._call(self._client.drop_collection, timeout=WRITE_TIMEOUT_S)

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        """Write rows; one with the same primary key takes another's place."""
        self._call(self._client.upsert, data=rows, timeout=WRITE_TIMEOUT_S)

    def flush(self) -> None:
        """Seal what was written."""
        self._call(self._client.flush, timeout=LOAD_TIMEOUT_S)

    def load(self) -> None:
        """Make the collection ready for searching; nothing if it is."""
        self._call(self._client.load_collection, timeout=LOAD_TIMEOUT_S)

    def _is_released(self) -> bool:
        found = self._call(self._client.get_load_state, timeout=READ_TIMEOUT_S)
        return bool(found["state"] == self._pymilvus.client.types.LoadState.NotLoad)

    def count(self, where: str = "") -> int:
        """How many rows there are, all that was ever written counted."""
        [found] = self._read(
            self._client.query,
            filter=where,
            output_fields=["count(*)"],
            consistency_level="Strong",
            timeout=READ_TIMEOUT_S,
        )
        return int(found["count(*)"])

    def query(
        self, where: str, fields: Sequence[str], *, strong: bool = False
    ) -> list[dict[str, Any]]:
        """Rows that meet a condition, in no order; at most 16,384."""
        level = {"consistency_level": "Strong"} if strong else {}
        found = self._read(
            self._client.query,
            filter=where,
            output_fields=list(fields),
            timeout=READ_TIMEOUT_S,
            **level,
        )
        return [dict(row) for row in found]

    def search(
        self, query_QE: Vectors, limit: int, fields: Sequence[str], parameters: Mapping[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """The best rows of each query by inner product: `distance` and the fields asked for."""
        found = self._read(
            self._client.search,
            data=query_QE,
            anns_field="vector",
            limit=limit,
            output_fields=list(fields),
            search_params={"metric_type": "IP", "params": dict(parameters)},
            timeout=READ_TIMEOUT_S,
        )
        return [
            [{"distance": hit["distance"], **hit["entity"], "row": hit["row"]} for hit in hits]
            for hits in found
        ]

    def _read(self, function: Callable[..., T], **values: Any) -> T:
        """A call that needs the collection loaded; a restart may have released it."""
        try:
            return self._call(function, **values)
        except MilvusError:
            if self._stands_still or not self._is_released():
                raise
        self._call(self._client.load_collection, timeout=READ_TIMEOUT_S)
        return self._call(function, **values)

    def _call(self, function: Callable[..., T], *, timeout: float, **values: Any) -> T:
        if not self._stands_still:
            return self._try(function, timeout, values)
        if not self._trying.acquire(blocking=False):
            raise MilvusError(
                f"Milvus at {self.address} did not answer in time and is being tried again; check "
                "that the server runs"
            )
        try:
            return self._try(function, timeout, values)
        finally:
            self._trying.release()

    def _try(self, function: Callable[..., T], timeout: float, values: Mapping[str, Any]) -> T:
        start_s = time.monotonic()
        try:
            found = function(self._name, timeout=timeout, **values)
        except self._errors as err:
            self._stands_still = time.monotonic() - start_s >= _ALL_OF_IT * timeout
            raise MilvusError(
                f"Milvus at {self.address} failed ({_first_line(err)}); check that the server runs "
                "and that the collection is there"
            ) from err
        self._stands_still = False
        return found


def connect(address: Address) -> MilvusClient:
    """Connect.

    Raises:
        MilvusError: if the client library is missing (naming how to install it), the server cannot
            be reached within `CONNECT_TIMEOUT_S` or refuses the token, or the file cannot be
            opened.
    """
    try:
        import grpc
        import pymilvus
    except ImportError as err:
        raise _missing(err, "cots-retrieval[milvus]") from err
    for name in ("pymilvus", "milvus_lite"):  # they log tracebacks of errors that we report
        logging.getLogger(name).setLevel(logging.CRITICAL)
    errors = (pymilvus.MilvusException, grpc.RpcError)  # the library lets some of gRPC's through
    endpoint = _start_file(address.endpoint) if address.is_file else address.endpoint
    try:
        client = pymilvus.MilvusClient(
            endpoint,
            token=os.environ.get(TOKEN_VARIABLE, ""),
            db_name=address.database,
            timeout=CONNECT_TIMEOUT_S,
            dedicated=True,
        )
    except errors as err:
        raise MilvusError(
            f"cannot connect to Milvus at {address.uri} ({_first_line(err)}); check that the "
            f"server runs, the url, and {TOKEN_VARIABLE} if it asks for a token"
        ) from err
    return MilvusClient(address, pymilvus, client, errors)


def _start_file(path: str) -> str:
    """Serve a Milvus Lite file from this process, or find it served already; its url."""
    try:
        from milvus_lite.server_manager import server_manager_instance
    except ImportError as err:
        raise _missing(err, "milvus-lite") from err
    logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # calls that it does not know
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise MilvusError(f"there is no folder {folder} for {path}; make it, or name another file")
    url = server_manager_instance.start_and_get_uri(path)
    if url is None:
        raise MilvusError(
            f"{path} cannot be opened: it is damaged, or open in another process (one at a time "
            "can use a Milvus Lite file); stop that one, or run a Milvus server"
        )
    return str(url)


def _missing(err: ImportError, remedy: str) -> MilvusError:
    return MilvusError(
        f"Milvus needs a package that is not installed ({err.name}); run `pip install '{remedy}'`"
    )


def _first_line(err: Exception) -> str:
    details = getattr(err, "details", None)  # gRPC's errors have it
    message = str(details() if callable(details) else getattr(err, "message", "")) or str(err)
    return message.splitlines()[0][:300] if message else type(err).__name__
