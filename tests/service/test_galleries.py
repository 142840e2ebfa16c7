"""Galleries under one root: found, named, described, and refused one by one."""

from __future__ import annotations

import shutil
import threading

import pytest

from cots_model.encoder import Encoder
from cots_model.errors import GalleryError, InputError
from index_builder.indexes.open import open_index
from service.galleries import Registry
from service.settings import Settings
from service.state import Resources
from tests.service.conftest import error_of


def test_damaged_gallery_answers_503_alone_and_is_named_by_readyz(
    serve, root, encoder, tmp_path
) -> None:
    shutil.copytree(root, tmp_path / "g", symlinks=True)
    vectors = next((tmp_path / "g" / "shards" / "versions").glob("*/vectors.npy"))
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    found = Registry.open(tmp_path / "g", expected_fingerprint=encoder.fingerprint)
    server = serve(found=found)
    found_pets = server.client.post("/v1/galleries/pets/search", json={"query": "a dog"})
    assert found_pets.status_code == 200
    answer = server.client.post("/v1/galleries/shards/search", json={"query": "a"})
    assert error_of(answer, 503)["code"] == "gallery_unavailable"
    ready = server.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["gallery 'shards' could not be loaded"]
    lenient = serve(found=found, require_all_galleries=False).client.get("/readyz")
    assert lenient.status_code == 200
    assert lenient.json()["warnings"] == ["gallery 'shards' could not be loaded"]


def test_gallery_behind_a_link_has_the_name_of_the_link(serve, root, encoder, tmp_path) -> None:
    (tmp_path / "animals").symlink_to(root / "pets")
    found = Registry.open(tmp_path, expected_fingerprint=encoder.fingerprint)
    client = serve(found=found).client
    assert [one["name"] for one in client.get("/v1/galleries").json()["galleries"]] == ["animals"]
    answer = client.post("/v1/galleries/animals/search", json={"query": "a", "k": 1}).json()
    assert answer["gallery"] == "animals"
    assert client.get(answer["hits"][0]["thumbnail"]).status_code == 200


def test_registry_refuses_roots_without_galleries(root, tmp_path) -> None:
    for folder, words in (
        (tmp_path / "none", "not a folder"),
        (tmp_path, "holds no gallery"),
        (root / "pets", "is itself a gallery"),
    ):
        with pytest.raises(InputError, match=words):
            Registry.open(folder, expected_fingerprint="0")
    with pytest.raises(GalleryError, match="no gallery could be opened"):
        Registry.open(root, expected_fingerprint="of another model")


def test_galleries_are_described(client, registry) -> None:
    listed = client.get("/v1/galleries").json()["galleries"]
    assert [gallery["name"] for gallery in listed] == ["pets", "shards"]
    one = client.get("/v1/galleries/pets").json()
    assert one == listed[0]
    wanted = {"name", "modality", "count", "dim", "index", "version", "model", "created"}
    assert wanted <= set(one)
    manifest = registry.loaded["pets"].manifest
    assert (one["count"], one["dim"], one["modality"]) == (manifest.count, 32, "image")


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_device_of_the_settings_is_that_of_the_indexes(root, checkpoint, monkeypatch, device):
    asked = []

    def recording(*args, device, **options):
        asked.append(device)
        return open_index(*args, device=device, **options)

    monkeypatch.setattr("index_builder.gallery.open_index", recording)
    Resources.load(Settings(galleries=root, checkpoint=str(checkpoint), device=device))
    assert asked == [device] * 2


def test_what_loads_ends_so_that_only_the_encoder_has_helpers(root, checkpoint, monkeypatch):
    threads = []

    def recording(*args, load=Encoder.load, **options):
        threads.append(threading.current_thread())
        return load(*args, **options)

    monkeypatch.setattr("service.state.Encoder.load", recording)
    Resources.load(Settings(galleries=root, checkpoint=str(checkpoint)))
    [thread] = threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()
