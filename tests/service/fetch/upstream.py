"""An internet of our own: names with answers of the test's choice, and servers on loopback."""

from __future__ import annotations

import gzip
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import httpcore

from tests.service.conftest import picture

PUBLIC_V4 = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
PICTURE = picture(3)


class Internet:
    """A `Network` whose every way ends at loopback.

    Attributes:
        answers: by name, what one lookup after another gives; the last is given ever after.
        servers: by TCP port, the port on loopback of who answers there, at every address.
        looked_up: names, in order.
        connected: addresses, in order.
        threads: names of the threads that asked.
    """

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.servers: dict[int, int] = {}
        self.looked_up: list[str] = []
        self.connected: list[str] = []
        self.threads: set[str] = set()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        self.threads.add(threading.current_thread().name)
        try:  # numbers, also in the odd forms that the C library reads
            found = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)
            return [str(found[0][4][0])]
        except OSError:
            answers = self.answers.get(host, [[]])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect(
        self, address: str, port: int, timeout_s: float
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append(address)
        if port not in self.servers:
            raise httpcore.ConnectError("refused")
        here = self.servers[port]
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", here, timeout=timeout_s)

    def close(self) -> None:
        pass


class Upstream(ThreadingHTTPServer):
    """A server of pictures, good ones and bad ones.

    Attributes:
        seen: the paths asked for, with their headers.
        left: set when a client goes away before the end.
        server_names: what TLS clients called it.
    """

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.left = threading.Event()
        self.server_names: list[str | None] = []
        if tls is not None:
            tls.sni_callback = lambda sock, name, context: self.server_names.append(name)
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def paths(self) -> list[str]:
        return [path for path, _ in self.seen]

    def stop(self) -> None:
        self.shutdown()
        self._thread.join(10)
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        assert isinstance(sys.exception(), OSError), sys.exception()  # clients hang up on us


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.path, headers))
        self.close_connection = True
        name, _, argument = self.path.partition("?")
        _PAGES[name](self, unquote(argument))

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        fields = {"content_type": "image/jpeg", "content_length": str(len(body)), **headers}
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunks: Iterator[bytes], **headers: str) -> None:
        """Without a length; the end of the connection is the end."""
        self.send_response(200)
        for name, value in {"content_type": "image/jpeg", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
        except OSError:
            self.server.left.set()


def _endless() -> Iterator[bytes]:
    while True:
        yield bytes(65536)


def _drip(server: Upstream) -> Iterator[bytes]:
    while True:
        yield b"x"
        server.left.wait(0.02)


def _tiny_pieces() -> Iterator[bytes]:
    """A chunked body in pieces of one byte, as much at a time as the socket takes."""
    while True:
        yield b"1\r\nx\r\n" * 10_000


def _redirect(handler: _Handler, target: str) -> None:
    handler.answer(b"", status=302, location=target)


def _countdown(handler: _Handler, steps: str) -> None:
    left = int(steps)
    _redirect(handler, f"/countdown?{left - 1}" if left > 1 else "/ok.jpg")


_GZIP = gzip.compress(PICTURE)
_PAGES: dict[str, Callable[[_Handler, str], None]] = {
    "/ok.jpg": lambda h, _: h.answer(PICTURE),
    "/other.jpg": lambda h, _: h.answer(picture(4)),
    "/typeless": lambda h, _: h.answer(PICTURE, content_type=""),
    "/stored": lambda h, _: h.answer(PICTURE, content_type="binary/octet-stream"),
    "/parameters": lambda h, _: h.answer(PICTURE, content_type="Image/JPEG; q=1"),
    "/streamed": lambda h, _: h.stream(iter([PICTURE])),
    "/gzip": lambda h, _: h.answer(_GZIP, content_encoding="gzip"),
    "/brotli": lambda h, _: h.answer(PICTURE, content_encoding="br"),
    "/html": lambda h, _: h.answer(b"<p>hello", content_type="text/html"),
    "/text.jpg": lambda h, _: h.answer(b"no picture"),
    "/missing": lambda h, _: h.answer(b"secret words", status=404),
    "/partial": lambda h, _: h.answer(PICTURE, status=206),
    "/cookie": lambda h, target: h.answer(b"", status=302, location=target, set_cookie="session=1"),
    "/long": lambda h, _: h.answer(b"", content_length="999999999"),
    "/short": lambda h, _: h.answer(PICTURE[:100], content_length=str(len(PICTURE))),
    "/endless": lambda h, _: h.stream(_endless()),
    "/drip": lambda h, _: h.stream(_drip(h.server)),
    "/tiny": lambda h, _: h.stream(_tiny_pieces(), transfer_encoding="chunked"),
    "/nonsense": lambda h, _: h.wfile.write(b"not HTTP at all\r\n\r\n") and None,
    "/many-headers": lambda h, _: h.answer(b"", x=" ".join(["y" * 1000] * 200)),
    "/to": _redirect,
    "/countdown": _countdown,
    "/nowhere": lambda h, _: h.answer(b"", status=302),
}
