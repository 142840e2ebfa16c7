"""The clients as they are published, and the servers of `tests/service` they talk to.

`make setup` installs the clients; see `requirements.txt` beside this file.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cots_model.images import decode_image
from index_builder.content import file_uri
from index_builder.items import Item
from service.galleries import Registry
from tests.galleries import publish_texts, publish_videos
from tests.index_builder.stores import publish_gallery
from tests.service.conftest import checkpoint as checkpoint
from tests.service.conftest import client as client
from tests.service.conftest import encoder as encoder
from tests.service.conftest import picture
from tests.service.conftest import pictures as pictures
from tests.service.conftest import registry as registry
from tests.service.conftest import root as root
from tests.service.conftest import serve as serve
from tests.service.conftest import server as server
from tests.videos import write_clip

KEY = "a-long-key-of-a-client"
KEY_SHA256 = hashlib.sha256(KEY.encode()).hexdigest()
TEXTS = ["a dog runs in the snow", "two cats", "a boat on a lake"]


def data_uri(data: bytes) -> str:
    """A picture as OpenAI's protocol carries it."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def mixed(encoder, tmp_path_factory) -> Registry:
    """`photos` with metadata (of one the file is gone), `texts`, and `films`."""
    folder = tmp_path_factory.mktemp("originals")
    galleries = tmp_path_factory.mktemp("mixed")
    _publish_photos(galleries / "photos", encoder, folder)
    publish_texts(galleries / "texts", encoder, TEXTS, folder / "texts.txt")
    films = tmp_path_factory.mktemp("films")
    write_clip(films / "walk.mp4", 40, size=(320, 240))
    publish_videos(galleries / "films", encoder, films)
    return Registry.open(galleries, expected_fingerprint=encoder.fingerprint)


def _publish_photos(gallery: Path, encoder, folder: Path) -> None:
    items, imgs = [], []
    for number in range(6):
        path = folder / f"{number}.jpg"
        data = picture(300 + number)
        path.write_bytes(data)
        items.append(
            Item(
                id=path.name,
                uri=file_uri(str(path)),
                size_bytes=len(data),
                mtime_s=path.stat().st_mtime,
                sha256=hashlib.sha256(data).hexdigest(),
                metadata={
                    "caption": f"photo {number}",
                    "id": "of the table",
                    "item_id": "of the table",
                    "image": "https://example.org/of-the-table.jpg",
                    "year": 2000 + number,
                },
            )
        )
        imgs.append(decode_image(data))
    (folder / "5.jpg").unlink()
    publish_gallery(
        gallery,
        encoder.encode_images(imgs),
        items,
        fingerprint=encoder.fingerprint,
        source=str(folder),
    )


@pytest.fixture(scope="session")
def clip_client() -> ModuleType:
    """The module of clip-retrieval's client, from the installed package, without the rest of it."""
    package = importlib.metadata.distribution("clip-retrieval")
    path = Path(str(package.locate_file("clip_retrieval/clip_client.py")))
    spec = importlib.util.spec_from_file_location("clip_client", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clip_client"] = module
    spec.loader.exec_module(module)
    return module
