"""A tiny real checkpoint, galleries really built, and real servers on loopback."""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from torch import Tensor

from cots_model.encoder import Encoder, ReadTexts, Vectors
from cots_model.testing import make_tiny_checkpoint
from index_builder.build import build_gallery
from index_builder.options import BuildOptions
from service.app import create_app
from service.galleries import Registry
from service.server import address_of, bind, server_config
from service.settings import Settings
from service.state import Resources

Serve = Callable[..., "Running"]


def picture(seed: int, *, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    """A random picture with some structure, encoded."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


class GatedEncoder(Encoder):
    """The real encoder, on a device that stands still while the gate is closed."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.model, encoder.preprocess, encoder.fingerprint)
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[list[str]] = []
        self.batches: list[list[str]] = []

    def read_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> ReadTexts:
        self.begun.append(list(texts))
        self.gate.wait(30)
        self.batches.append(list(texts))
        return super().read_texts(texts, batch_size=batch_size)

    def encode_pixels(self, img_BCHW: Tensor) -> Vectors:
        self.gate.wait(30)
        return super().encode_pixels(img_BCHW)


class Running:
    """A server in a thread, and a client of it."""

    def __init__(self, settings: Settings, resources: Resources) -> None:
        self.settings = settings
        self.app = create_app(settings, resources)
        self._listener = bind("127.0.0.1", 0)
        self.url = address_of(self._listener)
        self._server = uvicorn.Server(server_config(self.app, settings))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()


def wait_until(condition: Callable[[], Any], *, seconds: float = 15.0) -> None:
    """Poll until `condition` holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("service") / "tiny")


@pytest.fixture(scope="session")
def encoder(checkpoint: Path) -> Encoder:
    return Encoder.load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Id to bytes of the gallery `pets`."""
    names = ["cat.jpg", "dogs/rex in snow.jpg", "dogs/ünï ☃.jpg", "dogs/100%?.jpg"]
    names += [f"more/{n:02d}.jpg" for n in range(16)]
    found = {name: picture(seed) for seed, name in enumerate(names)}
    return {**found, "wide.png": picture(99, size=(900, 300), kind="PNG")}


@pytest.fixture(scope="session")
def root(
    tmp_path_factory: pytest.TempPathFactory, encoder: Encoder, pictures: dict[str, bytes]
) -> Path:
    """A root of two galleries: `pets` from a folder, `shards` from a tar."""
    folder = tmp_path_factory.mktemp("galleries")
    source = tmp_path_factory.mktemp("pictures")
    for name, data in pictures.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    shard = source.parent / "shard-0.tar"
    with tarfile.open(shard, "w") as tar:
        for seed, key in enumerate(("x", "x/thumbnail", "y")):
            data = picture(200 + seed)
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    for name, origin in (("pets", source), ("shards", shard)):
        options = BuildOptions(sources=(str(origin),), gallery=folder / name, workers=1)
        build_gallery(options, encoder)
    return folder


@pytest.fixture(scope="session")
def registry(root: Path, encoder: Encoder) -> Registry:
    return Registry.open(root, expected_fingerprint=encoder.fingerprint)


@pytest.fixture(scope="module")
def serve(root: Path, encoder: Encoder, registry: Registry) -> Iterator[Serve]:
    """Start servers with settings of the test's own; all are stopped behind the module.

    Their probes run the model in threads of this process, which other tests count and measure.
    """
    with contextlib.ExitStack() as stack:

        def start(
            *, model: Encoder | None = None, found: Registry | None = None, **settings: Any
        ) -> Running:
            resources = Resources(model or encoder, found or registry)
            running = Running(Settings(galleries=root, port=0, **settings), resources)
            return stack.enter_context(running)

        yield start


@pytest.fixture(scope="module")
def server(serve: Serve) -> Running:
    """The module's server, with default settings."""
    return serve()


@pytest.fixture
def client(server: Running) -> httpx.Client:
    return server.client


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check the status and the error shape; return the error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    error: dict[str, Any] = body["error"]
    return error


@pytest.fixture(scope="session")
def live_templates(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two galleries of texts, which a `place` publishes as one version after another."""
    from tests.galleries import publish_texts
    from tests.service.places import FEW, MANY

    folder = tmp_path_factory.mktemp("templates")
    for name, texts in (("few", FEW), ("many", MANY)):
        source = folder / f"{name}.txt"
        source.write_text("\n".join(texts), "utf-8")
        publish_texts(folder / name, encoder, texts, source)
    return {"few": folder / "few", "many": folder / "many"}


@pytest.fixture
def place(live_templates: dict[str, Path], encoder: Encoder, tmp_path: Path) -> Any:
    """A `tests.service.places.Place` with `few` in it."""
    from tests.service.places import Place
    from tests.service.versions import publish_copy

    (tmp_path / "root").mkdir()
    place = Place(tmp_path / "root", live_templates["few"], live_templates["many"], encoder)
    publish_copy(place.few, place.live)
    return place
