"""Real pictures, a tiny real model, and real galleries built from them."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cots_model.encoder import Encoder
from index_builder.build import build_gallery
from index_builder.options import BuildOptions, BuildReport

_NUMBERS = itertools.count()


def save_picture(path: Path, *, seed: int = 0, side: int = 24) -> Path:
    """Save random pixels, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def version_content(root: Path) -> dict[str, bytes | dict]:
    """All that must be equal where two galleries are: every file, and of the manifest what is not
    the time of its making."""
    from index_builder.gallery import read_manifest

    folder, manifest = read_manifest(root)
    content: dict[str, bytes | dict] = {
        name: (folder / name).read_bytes() for name in manifest.files
    }
    assert {path.name for path in folder.iterdir()} == {*content, "manifest.json"}
    fields = json.loads((folder / "manifest.json").read_bytes())
    del fields["version"], fields["created"]
    for name in ("latency_ms", "exact_latency_ms"):
        (fields["index"]["measured"] or {}).pop(name, None)
    content["manifest.json"] = fields
    return content


@pytest.fixture(scope="session")
def encoder(tiny_checkpoint: Path) -> Encoder:
    return Encoder.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def build(encoder: Encoder) -> Callable[..., BuildReport]:
    """Build a gallery with one worker, small batches and small parts."""

    def run(source: Path | str, gallery: Path, **options: object) -> BuildReport:
        settings = {"workers": 1, "batch_size": 4, "part_items": 8, **options}
        return build_gallery(
            BuildOptions(sources=(str(source),), gallery=gallery, **settings), encoder
        )

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures in two folders, with sidecars, hidden and foreign files beside them."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(20):
        save_picture(root / f"{'sub/' if number % 2 else ''}{number:02d}.png", seed=number)
    (root / "00.txt").write_text("zero")
    (root / "sub/01.json").write_text('{"year": 2021, "tags": ["a", "b"]}')
    (root / "README.md").write_text("not a picture")
    save_picture(root / ".hidden.png")
    return root


@pytest.fixture(scope="session")
def gallery_root(
    photos: Path, build: Callable[..., BuildReport], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A gallery of `photos`; do not change it."""
    root = tmp_path_factory.mktemp("galleries") / "photos"
    build(photos, root)
    return root


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 server on loopback, and the environment that leads there; gives its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "never-to-be-shown")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The url of a new bucket."""
    import fsspec

    name = f"bucket-{next(_NUMBERS)}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(name)
    return f"s3://{name}"
