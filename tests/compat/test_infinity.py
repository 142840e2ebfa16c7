"""Infinity's own client, as published, against a running server."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import pytest
from infinity_client import Client
from infinity_client.api.default import embeddings, embeddings_image, health, models
from infinity_client.models import (
    ImageEmbeddingInput,
    OpenAIEmbeddingInputImage,
    OpenAIEmbeddingInputText,
)
from infinity_client.vision_client import InfinityVisionAPI
from PIL import Image

from cots_model.images import decode_image
from tests.compat.conftest import data_uri
from tests.service.conftest import error_of, picture


@pytest.fixture(scope="module")
def infinity(server) -> Iterator[Client]:
    with Client(base_url=server.url, raise_on_unexpected_status=True) as client:
        yield client


def text_body(**fields) -> OpenAIEmbeddingInputText:
    return OpenAIEmbeddingInputText.from_dict(fields)


def test_texts_get_the_vectors_of_the_encoder(infinity, encoder):
    texts = ["a dog", "two cats"]
    answer = embeddings.sync(client=infinity, body=text_body(input=texts, model=encoder.name))
    found = np.array([entry.embedding for entry in answer.data])
    np.testing.assert_allclose(found, encoder.encode_texts(texts), atol=1e-6)
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.model == encoder.name
    assert answer.usage.total_tokens == encoder.num_tokens(texts)


def test_a_model_that_is_not_specified_is_the_served_one(infinity, encoder):
    body = OpenAIEmbeddingInputText(input_="a dog")
    assert (body.model, body.dimensions) == ("default/not-specified", 0)  # its defaults
    assert embeddings.sync(client=infinity, body=body).model == encoder.name
    shown = OpenAIEmbeddingInputImage(input_=[data_uri(picture(1))])
    assert embeddings.sync(client=infinity, body=shown).model == encoder.name
    named = text_body(input="a dog", model="default/not-specified")
    assert embeddings.sync(client=infinity, body=named).model == encoder.name


@pytest.mark.parametrize("legacy", [False, True])
def test_pictures_get_the_vectors_of_the_encoder(infinity, encoder, legacy):
    data = picture(1)
    if legacy:
        body = ImageEmbeddingInput.from_dict({"input": [data_uri(data)], "model": encoder.name})
        answer = embeddings_image.sync(client=infinity, body=body)
    else:
        fields = {"input": [data_uri(data)], "model": encoder.name, "modality": "image"}
        body = OpenAIEmbeddingInputImage.from_dict(fields)
        answer = embeddings.sync(client=infinity, body=body)
    [entry] = answer.data
    expected = encoder.encode_images([decode_image(data)])[0]
    np.testing.assert_allclose(entry.embedding, expected, atol=1e-5)


def test_bad_input_is_read_as_a_validation_error(infinity):
    answer = embeddings.sync_detailed(client=infinity, body=text_body(input=["a", ""]))
    assert answer.status_code == 422
    assert answer.parsed["error"]["param"] == "input.1"


def test_models_have_stats(infinity, encoder):
    [model] = models.sync(client=infinity).data
    assert model.id == encoder.name
    assert model.stats["queue_absolute"] == 0
    assert "image_embed" in model.capabilities


def test_health_is_the_time(infinity):
    assert abs(health.sync(client=infinity)["unix"] - time.time()) < 30


def test_health_is_503_while_the_model_does_not_answer(serve):
    server = serve()
    server.app.state.service.readiness.draining = True
    error = error_of(server.client.get("/health"), 503)
    assert (error["code"], error["message"]) == ("not_ready", "shutting down")


@pytest.mark.parametrize("format_", ["base64", "float"])
def test_the_vision_client_embeds_texts_and_pictures(server, encoder, format_):
    api = InfinityVisionAPI(url=server.url, format=format_, model=encoder.name)
    try:
        assert api.health()
        texts, used = api.embed(encoder.name, ["a dog"]).result(30)
        img = decode_image(picture(1))
        pictures, _ = api.image_embed(encoder.name, [img]).result(30)
    finally:
        api.tp.shutdown()
        api.session.close()
    np.testing.assert_allclose(np.ravel(texts[0]), encoder.encode_texts(["a dog"])[0], atol=1e-6)
    sent = io.BytesIO()
    img.save(sent, "JPEG")
    again = Image.open(sent).convert("RGB")
    np.testing.assert_allclose(np.ravel(pictures[0]), encoder.encode_images([again])[0], atol=1e-5)
    assert used == encoder.num_tokens(["a dog"])
