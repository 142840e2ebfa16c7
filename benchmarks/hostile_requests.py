"""Requests that nobody should send: a seeded stream of them, as bytes for a socket.

Every kind of input has its own ways to be wrong: JSON bodies, numbers, unicode, filters, pictures,
forms, paths, headers, framing. The same seed gives the same requests.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from benchmarks.hostile_inputs import (
    ODD_NUMBERS,
    ODD_TEXTS,
    odd_filter,
    odd_picture,
    odd_value,
)

ODD_PATHS = (
    "/", "//", "/..", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00", "/%ff%fe", "/%",
    "/%zz", "/" + "a" * 5000, "/" + "a/" * 500, "/static/../app.py", "/static/%2e%2e%2fapp.py",
    "/openapi.json?x=%00", "/docs", "/metrics", "/livez/", "/readyz?", "*", "http://other/livez",
    "/v1/galleries/", "/v1/galleries/%00", "/v1/galleries/..%2f..", "/v1/galleries/\u2603",
    "/;/livez", "/v1//galleries", "/.git/config", "/livez#x", "/livez?" + "a=b&" * 500,
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI",
           "get", "FOO", "G" * 300)  # fmt: skip
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Target:
    """What there is to ask the server for.

    Attributes:
        gallery: name of a gallery.
        item_id: of an item in it.
        dim: of its vectors.
    """

    gallery: str
    item_id: str
    dim: int

    @property
    def search(self) -> str:
        """Path of the search route."""
        return f"/v1/galleries/{quote(self.gallery)}/search"

    @property
    def item(self) -> str:
        """Path of the item."""
        return f"/v1/galleries/{quote(self.gallery)}/items/{quote(self.item_id)}"


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        kind: the way in which it is wrong.
        method: of the request, as the client understands it.
        pieces: the bytes, sent one piece after another.
        pause_s: between the pieces.
        leaves: whether the client goes away without waiting for an answer.
        patience_s: how long the client waits before it says that nothing more will come.
    """

    kind: str
    method: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    leaves: bool = False
    patience_s: float | None = None


def good_request(target: Target) -> Attack:
    """One that has to be answered with 200."""
    return _post("good", target.search, json.dumps({"query": "a dog", "k": 3}).encode(), _JSON)


def hostile_requests(target: Target, seed: int) -> Iterator[Attack]:
    """Requests without end; the kinds take turns."""
    rng = random.Random(seed)
    while True:
        for make in _KINDS:
            yield make(rng, target)


def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
    fields = {"Host": "localhost", "Connection": "close", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass")


def _post(kind: str, path: str, body: bytes, headers: dict[str, str]) -> Attack:
    head = _head("POST", path, {**headers, "Content-Length": str(len(body))})
    return Attack(kind, "POST", (head + body,))


def _part(rng: random.Random, target: Target) -> Any:
    """A query part that is nearly one."""
    odd = rng.choice(ODD_TEXTS)
    makers: tuple[Callable[[], Any], ...] = (
        lambda: odd,
        lambda: {"text": odd},
        lambda: {"text": odd_value(rng, 3)},
        lambda: {"image": _encoded_picture(rng)},
        lambda: {"image": _encoded_picture(rng)[: rng.randrange(200)]},
        lambda: {"image": f"data:{odd[:20]};base64,{_encoded_picture(rng)}"},
        lambda: {"image": odd},
        lambda: {"image_url": rng.choice(("http://127.0.0.1/", "file:///x", "http://[", odd))},
        lambda: {"item_id": rng.choice((odd, target.item_id, "../" + target.item_id))},
        lambda: {"embedding": [rng.choice((0.0, 1, -1, 1e308, 1e-320))] * target.dim},
        lambda: {"embedding": [odd_value(rng, 5) for _ in range(rng.choice((0, target.dim, 999)))]},
        lambda: {"text": "a", "weight": rng.choice(ODD_NUMBERS)},
        lambda: {rng.choice(ODD_TEXTS)[:30]: odd},
        lambda: odd_value(rng),
    )
    return rng.choice(makers)()


def _encoded_picture(rng: random.Random) -> str:
    return base64.b64encode(odd_picture(rng)).decode()


def _search_body(rng: random.Random, target: Target) -> dict[str, Any]:
    body: dict[str, Any] = {"query": "a dog"}
    if rng.random() < 0.6:
        several = [_part(rng, target) for _ in range(rng.choice((0, 1, 2, 16, 17)))]
        body["query"] = rng.choice((_part(rng, target), several))
    if rng.random() < 0.15:
        body["queries"] = [_part(rng, target) for _ in range(rng.choice((0, 1, 5, 40, 257)))]
        if rng.random() < 0.8:
            del body["query"]
    for name in ("k", "offset", "min_score"):
        if rng.random() < 0.2:
            body[name] = rng.choice(ODD_NUMBERS)
    if rng.random() < 0.3:
        body["filter"] = odd_filter(rng)
    for name in ("deduplicate", "include", "rank_by", rng.choice(ODD_TEXTS)[:40]):
        if rng.random() < 0.1:
            body[name] = rng.choice((True, ["embedding"], "frame", odd_value(rng)))
    return body


def _json_search(rng: random.Random, target: Target) -> Attack:
    raw = json.dumps(_search_body(rng, target)).encode()
    if rng.random() < 0.8:  # NaN is no JSON, and not much comes after that
        raw = raw.replace(b"NaN", b"-1").replace(b"Infinity", b"7")
    return _post("json", target.search, raw, _JSON)


def _broken_json(rng: random.Random, target: Target) -> Attack:
    raw = bytearray(json.dumps(_search_body(rng, target)).encode())
    for _ in range(rng.choice((1, 1, 3, 20))):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    nested = rng.choice((b"[", b'{"query":', b'{"filter":{"not":')) * rng.choice((100, 50_000))
    cut = bytes(raw[: rng.randrange(len(raw) + 1)])
    twice = b'{"query": "a", "query": {"text": "b"}, "k": 1, "k": 2}'
    number = b'{"query": "a", "k": ' + b"9" * rng.choice((20, 400, 5000)) + b"}"
    body = rng.choice((bytes(raw), cut, nested, twice, number, rng.randbytes(200), b"\xff\xfe{}"))
    return _post("broken json", target.search, body, _JSON)


def _other_routes(rng: random.Random, target: Target) -> Attack:
    """Bodies for the routes beside search; where there is no such route they are a 404."""
    path, body = rng.choice((
        ("/v1/embeddings", {"model": "cots-mini", "input": odd_value(rng)}),
        ("/v1/embeddings", {"input": ["a", rng.choice(ODD_TEXTS)], "dimensions": 2,
                            "encoding_format": rng.choice(("base64", "float", "x"))}),
        ("/v1/explain", {"gallery": target.gallery, "item_id": target.item_id,
                         "text": odd_value(rng, 3)}),
        ("/knn-service", {"text": odd_value(rng, 3), "modality": "image", "num_images":
                          rng.choice(ODD_NUMBERS), "indice_name": target.gallery}),
        ("/metadata", {"ids": odd_value(rng), "indice_name": rng.choice((target.gallery, "x"))}),
        (target.search.replace("/search", "/reload"), odd_value(rng)),
        (target.search.replace(target.gallery, quote(rng.choice(ODD_TEXTS[:8]), errors="replace")),
         {"query": "a"}),
    ))  # fmt: skip
    kind = {} if rng.random() < 0.2 else _JSON
    return _post("other routes", path, json.dumps(body).encode(), kind)


def _upload(rng: random.Random, target: Target) -> Attack:
    edge = rng.choice(("x", "x" * 70, "-", "a b", '"', "\u2603"))
    name = rng.choice(("file", "file", "file", "picture", "", "file\x00"))
    shown = rng.choice(("a.jpg", "../../a.jpg", "\x00.jpg", "a" * 3000, '"; x="', "\u2603.png"))
    fields = [(name, f'; filename="{shown}"', odd_picture(rng))]
    for _ in range(rng.choice((0, 1, 2, 40))):
        option = rng.choice(("k", "offset", "min_score", "filter", "include", "query", "k"))
        value = rng.choice((*ODD_TEXTS, *map(str, ODD_NUMBERS), json.dumps(odd_filter(rng))))
        fields.append((option, "", value.encode("utf-8", "replace")))
    if rng.random() < 0.1:
        fields.append(fields[0])
    body = b"".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{field}"{extra}\r\n\r\n'.encode()
        + data + b"\r\n" for field, extra, data in fields
    )  # fmt: skip
    body += rng.choice((f"--{edge}--\r\n".encode(), f"--{edge}--\r\n".encode(), b"", b"--"))
    if rng.random() < 0.2:
        body = body[: rng.randrange(len(body))]
    kind = rng.choice(
        (*["multipart/form-data; boundary="] * 8, "multipart/form-data;boundary=", "a/")
    )
    return _post("upload", f"{target.search}/upload", body, {"Content-Type": kind + edge})


def _path(rng: random.Random, target: Target) -> Attack:
    odd = quote(rng.choice(ODD_TEXTS)[:200], errors="replace", safe=rng.choice(("", "/")))
    value = quote(str(rng.choice((*ODD_NUMBERS, *ODD_TEXTS[:20]))), errors="replace")
    path = rng.choice((
        rng.choice(ODD_PATHS),
        f"/v1/galleries/{odd}",
        f"/v1/galleries/{target.gallery}/items/{odd}",
        f"{target.item}/{odd}",
        f"{target.item}?{odd}={value}",
        f"{target.item}/thumbnail?size={value}",
        f"{target.item}/thumbnail?time_s={value}",
        f"{target.item}/content/../../{odd}",
        f"/static/{odd}",
        "/" + "".join(rng.choice("/.%~ab\\?#&;=") for _ in range(rng.choice((3, 30)))),
    ))  # fmt: skip
    method = rng.choice(METHODS) if rng.random() < 0.3 else rng.choice(("GET", "HEAD"))
    return Attack("path", method, (_head(method, path, {}),))


def _headers(rng: random.Random, target: Target) -> Attack:
    odd = rng.choice((*ODD_TEXTS, "bytes=0-", "bytes=-0", "bytes=9-1", "bytes=0-0,2-3",
                      "bytes=99999999999999999999-", "bytes=-" + "9" * 400, '"x"', "*",
                      "Bearer x", "Basic !!!", "chunked", "gzip", "100-continue"))  # fmt: skip
    name = rng.choice(("Range", "If-None-Match", "If-Range", "X-Request-Id", "Authorization",
                       "Host", "Accept", "Accept-Encoding", "Origin", "Content-Type", "Cookie",
                       "Expect", "Upgrade", "X-Forwarded-For", "Content-Encoding",
                       "Bad Name", ""))  # fmt: skip
    headers = {name: odd}
    if rng.random() < 0.15:
        headers["X-Large"] = "y" * rng.choice((1000, 60_000, 200_000))
    if rng.random() < 0.1:
        headers |= {f"X-{n}": "z" for n in range(rng.choice((50, 3000)))}
    path = rng.choice(
        (f"{target.item}/content", f"{target.item}/thumbnail", target.item, "/", "/x")
    )
    return Attack("headers", "GET", (_head("GET", path, headers),))


def _framing(rng: random.Random, target: Target) -> Attack:
    body = b'{"query": "a"}'
    chunked = {
        **_JSON,
        "Transfer-Encoding": rng.choice(("chunked", "chunked", "x", "gzip, chunked")),
    }
    size = rng.choice((b"e", b"E;a=b", b"0e", b"-1", b"zz", b"ffffffffffffffffff", b"", b"5"))
    pieces = rng.choice((
        (_head("POST", target.search, chunked) + size + b"\r\n" + body + b"\r\n0\r\n\r\n",),
        (_head("POST", target.search, chunked), b"1\r\n{\r\n", b"1\r\n}\r\n", b"0\r\n\r\n"),
        (_head("POST", target.search, {**chunked, "Content-Length": "5"}) + body,),
        (_head("POST", target.search, {**_JSON, "Content-Length": "14, 15"}) + body,),
        (_head("POST", target.search, {**_JSON, "Content-Length": "-1"}) + body,),
        (_head("POST", target.search, {**_JSON, "Content-Length": "9" * 30}) + body,),
        (_head("POST", target.search, {**_JSON, "Content-Length": "3"}) + body,),
        (_head("POST", target.search, {**_JSON, "Content-Length": "99"}) + body,),
        (_head("POST", target.search, _JSON) + body,),
        (_head("GET", "/livez", {"Connection": "keep-alive"}) * 20,),
        (b"GET /livez\r\n\r\n",),
        (b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),),
        (b"GET /livez HTTP/1.1\nHost: localhost\n\n",),
        (b"\r\n" * 50 + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",),
        (rng.randbytes(rng.choice((1, 100, 70_000))),),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",),
    ))  # fmt: skip
    return Attack("framing", "POST", pieces, patience_s=0.5)


def _slow(rng: random.Random, target: Target) -> Attack:
    raw = json.dumps({"query": "a dog" * 50}).encode()
    head = _head("POST", target.search, {**_JSON, "Content-Length": str(len(raw))})
    whole = head + raw
    cuts = sorted(rng.sample(range(1, len(whole)), 4))
    pieces = tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
    leaves = rng.random() < 0.6
    return Attack("slow", "POST", pieces[: rng.randint(1, 4)] if leaves else pieces, 0.01, leaves)


def _large(rng: random.Random, target: Target) -> Attack:
    """Too much, with and without saying so beforehand; rarely, as it costs the sender too."""
    if rng.random() < 0.9:
        return _json_search(rng, target)
    block = b"x" * 1_000_000
    if rng.random() < 0.5:
        head = _head("POST", target.search, {**_JSON, "Content-Length": "22000000"})
        return Attack("large", "POST", (head, *[block] * 22))
    head = _head("POST", target.search, {**_JSON, "Transfer-Encoding": "chunked"})
    return Attack("large", "POST", (head, *[b"f4240\r\n" + block + b"\r\n"] * 22, b"0\r\n\r\n"))


_KINDS: tuple[Callable[[random.Random, Target], Attack], ...] = (
    _json_search, _broken_json, _upload, _path, _headers, _framing, _slow, _other_routes, _large,
    _json_search, _upload, _path,
)  # fmt: skip
