"""Pictures by url, where the settings let them be fetched, on the routes of other protocols."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openai
import pytest
from openai import OpenAI

from cots_model.images import decode_image
from service.fetch import make_fetcher
from tests.compat.conftest import data_uri
from tests.service.conftest import Running
from tests.service.fetch.upstream import PICTURE, PUBLIC_V4, Internet, Upstream

SITE = "http://pictures.example"


@pytest.fixture(scope="module")
def online(serve, mixed) -> Iterator[Running]:
    """A server that reaches an internet of one site."""
    upstream, internet = Upstream(), Internet()
    internet.answers["pictures.example"] = [[PUBLIC_V4]]
    internet.servers = {80: upstream.port}
    server = serve(found=mixed, image_urls=True)
    service = server.app.state.service
    service.fetcher.close()
    service.fetcher = make_fetcher(server.settings, internet)
    yield server
    upstream.stop()


@pytest.fixture(scope="module")
def ai(online) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{online.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def embed(ai: OpenAI, encoder, inputs: list[str]) -> np.ndarray:
    extra = {"modality": "image"}
    answer = ai.embeddings.create(model=encoder.name, input=inputs, extra_body=extra)
    return np.array([entry.embedding for entry in answer.data])


def test_urls_are_embedded_beside_pictures(ai, encoder):
    expected = encoder.encode_images([decode_image(PICTURE)] * 2)
    found = embed(ai, encoder, [f"{SITE}/ok.jpg", data_uri(PICTURE)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://10.0.0.1/a.jpg", "image_url_refused"),
        ("HTTP://127.0.0.1/a.jpg", "image_url_refused"),
        ("http://unknown.example/a.jpg", "image_url_refused"),
        (f"{SITE}/gzip", "image_url_failed"),
    ],
)
def test_a_url_that_gives_nothing_is_named(ai, encoder, url, code):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        embed(ai, encoder, [data_uri(PICTURE), url])
    assert caught.value.param == "input.1"
    assert caught.value.code == code


def test_more_urls_than_allowed_are_refused(ai, encoder, online):
    most = online.settings.max_image_urls
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        embed(ai, encoder, [f"{SITE}/ok.jpg"] * (most + 1))
    assert (caught.value.code, caught.value.param) == ("image_url_count", f"input.{most}")


def test_clip_retrieval_searches_by_url(clip_client, online, tmp_path):
    (tmp_path / "same.jpg").write_bytes(PICTURE)
    options = {"url": f"{online.url}/knn-service", "indice_name": "photos", "deduplicate": False}
    client = clip_client.ClipClient(**options)
    by_url = client.query(image=f"{SITE}/ok.jpg")
    assert by_url == client.query(image=str(tmp_path / "same.jpg"))
    assert len(by_url) == 6
    refused = client.query(image="http://10.0.0.1/a.jpg")["error"]
    assert (refused["code"], refused["param"]) == ("image_url_refused", "image_url")
