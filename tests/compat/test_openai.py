"""OpenAI's own client, as published, against a running server."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from torch import Tensor

from cots_model.encoder import Encoder, Vectors
from cots_model.images import decode_image
from tests.compat.conftest import KEY, KEY_SHA256, data_uri
from tests.service.conftest import GatedEncoder, Running, error_of, picture, wait_until


@pytest.fixture(scope="module")
def ai(server: Running) -> Iterator[OpenAI]:
    with connect(server) as made:
        yield made


def connect(server: Running, **options) -> OpenAI:
    options = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
    return OpenAI(base_url=f"{server.url}/v1", **options)


def numbers(answer) -> np.ndarray:
    return np.array([entry.embedding for entry in answer.data], np.float32)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_texts_get_the_vectors_of_the_encoder_in_order(ai, encoder, options):
    texts = ["two dogs playing in snow", "a cat", "ein Café ☃"]
    answer = ai.embeddings.create(model=encoder.name, input=texts, **options)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    assert (answer.object, answer.data[0].object, answer.model) == (
        "list",
        "embedding",
        encoder.name,
    )
    np.testing.assert_allclose(numbers(answer), encoder.encode_texts(texts), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(numbers(answer), axis=1), 1, atol=1e-5)


def test_base64_is_exactly_the_floats(client):
    body = {"input": "a dog"}
    [floats] = client.post("/v1/embeddings", json=body).json()["data"]
    [coded] = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()[
        "data"
    ]
    assert isinstance(floats["embedding"], list)
    decoded = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, np.array(floats["embedding"], np.float32))


def test_one_text_is_one_embedding_that_finds_what_the_text_finds(ai, client, encoder):
    [entry] = ai.embeddings.create(model=encoder.name, input="a dog in snow").data
    search = "/v1/galleries/pets/search"
    by_vector = client.post(search, json={"query": {"embedding": entry.embedding}}).json()
    by_text = client.post(search, json={"query": "a dog in snow"}).json()
    assert [hit["id"] for hit in by_vector["hits"]] == [hit["id"] for hit in by_text["hits"]]


def test_usage_counts_the_tokens_that_the_model_reads(ai, encoder):
    texts = ["a dog", "two dogs playing in snow", "word " * 1000]
    usage = ai.embeddings.create(model=encoder.name, input=texts).usage
    assert usage.prompt_tokens == usage.total_tokens == encoder.num_tokens(texts)
    limit = encoder.preprocess.config.max_tokens
    assert encoder.num_tokens(texts[:2]) + limit == usage.prompt_tokens


def test_pictures_get_the_vectors_of_the_encoder(ai, encoder):
    given = [picture(seed) for seed in (1, 2)]
    inputs = [data_uri(given[0]), base64.b64encode(given[1]).decode()]
    answer = ai.embeddings.create(
        model=encoder.name, input=inputs, extra_body={"modality": "image"}
    )
    expected = encoder.encode_images([decode_image(data) for data in given])
    np.testing.assert_allclose(numbers(answer), expected, atol=1e-5)
    assert answer.usage.total_tokens == 0


def test_fields_of_other_servers_are_ignored(ai, encoder):
    extra = {"truncate_prompt_tokens": 5, "priority": 0}
    answer = ai.embeddings.create(model=encoder.name, input="a", user="somebody", extra_body=extra)
    assert len(answer.data) == 1


def test_own_dimensions_are_accepted_and_others_refused(ai, encoder):
    answer = ai.embeddings.create(model=encoder.name, input="a", dimensions=encoder.dim)
    assert len(answer.data[0].embedding) == encoder.dim
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ai.embeddings.create(model=encoder.name, input="a", dimensions=encoder.dim // 2)
    assert caught.value.param == "dimensions"
    assert str(encoder.dim) in caught.value.message


BAD_INPUTS = [
    ("", "text_empty", "input"),
    (["a", " "], "text_empty", "input.1"),
    (["a", "b", "ü" * 5000], "text_too_long", "input.2"),
    ([], "invalid_value", "input"),
    (["a"] * 257, "invalid_value", "input"),
    ([101, 2054, 102], "not_supported", "input"),
    ([[101, 102], [5]], "not_supported", "input.0"),
    (["a", [5]], "not_supported", "input.1"),
    (["a", None], "invalid_value", "input.1"),
    ({"text": "a"}, "invalid_value", "input"),
    (None, "invalid_value", "input"),
    (5, "invalid_value", "input"),
]


@pytest.mark.parametrize(("given", "code", "param"), BAD_INPUTS)
def test_bad_input_is_a_422_that_names_its_index(ai, encoder, given, code, param):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ai.embeddings.create(model=encoder.name, input="", extra_body={"input": given})
    error = caught.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert param in error.body["message"]


BAD_PICTURES = [
    ("%%%", "invalid_base64", "input.1"),
    ("data:image/png,abc", "invalid_base64", "input.1"),
    ("aGVsbG8=", "image_unsupported_format", "input.1"),
    ("", "image_empty", "input.1"),
    ("https://pictures.example/a.jpg", "not_supported", "input.1"),
]


@pytest.mark.parametrize(("given", "code", "param"), BAD_PICTURES)
def test_bad_picture_is_a_422_that_names_its_index(ai, encoder, given, code, param):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ai.embeddings.create(
            model=encoder.name,
            input=[data_uri(picture(1)), given],
            extra_body={"modality": "image"},
        )
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modality": "audio"}, "modality"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": "many"}, "dimensions"),
        ({"model": 5}, "model"),
    ],
)
def test_bad_field_is_a_422_that_names_it(client, fields, param):
    answer = client.post("/v1/embeddings", json={"input": "a", **fields})
    assert error_of(answer, 422)["param"] == param


def test_bodies_that_are_none_are_4xx(client):
    error_of(client.post("/v1/embeddings", json={}), 422)
    error_of(client.post("/v1/embeddings", json=["a"]), 422)
    headers = {"content-type": "application/json"}
    error_of(client.post("/v1/embeddings", content=b"{", headers=headers), 400)
    error_of(client.post("/v1/embeddings", content=b'{"input": "a"}'), 415)


def test_another_model_is_not_found(ai, encoder):
    with pytest.raises(openai.NotFoundError) as caught:
        ai.embeddings.create(model="text-embedding-3-small", input="a")
    assert caught.value.code == "model_not_found"
    assert encoder.name in caught.value.message


def test_models_are_listed_and_found_by_name(ai, encoder):
    [model] = ai.models.list().data
    assert (model.id, model.object) == (encoder.name, "model")
    assert ai.models.retrieve(encoder.name).id == encoder.name
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-5")


def test_a_base_url_without_v1_works_as_well(server, encoder):
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as ai:
        assert len(ai.embeddings.create(model=encoder.name, input="a").data) == 1
        assert ai.models.retrieve(encoder.name).id == encoder.name


def test_a_body_that_is_too_large_is_413(serve, encoder):
    with connect(serve(max_body_bytes=1000)) as ai, pytest.raises(openai.APIStatusError) as caught:
        ai.embeddings.create(model=encoder.name, input="a" * 2000)
    assert (caught.value.status_code, caught.value.code) == (413, "body_too_large")


def test_keys_are_asked_for(serve, encoder):
    server = serve(api_key_sha256=(KEY_SHA256,))
    with connect(server, api_key=KEY) as ai:
        assert len(ai.embeddings.create(model=encoder.name, input="a").data) == 1
    with (
        connect(server, api_key="wrong") as ai,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        ai.embeddings.create(model=encoder.name, input="a")
    assert caught.value.code == "invalid_api_key"


def test_the_async_client_gets_the_same(server, encoder):
    texts = [f"text {n}" for n in range(8)]

    async def ask() -> list[np.ndarray]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as ai:
            asked = [ai.embeddings.create(model=encoder.name, input=text) for text in texts]
            return [numbers(answer)[0] for answer in await asyncio.gather(*asked)]

    np.testing.assert_allclose(asyncio.run(ask()), encoder.encode_texts(texts), atol=1e-6)


class CountingEncoder(Encoder):
    """The real encoder, and the sizes of its batches of pictures."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.model, encoder.preprocess, encoder.fingerprint)
        self.sizes: list[int] = []

    def encode_pixels(self, img_BCHW: Tensor) -> Vectors:
        self.sizes.append(len(img_BCHW))
        return super().encode_pixels(img_BCHW)


def test_a_bad_input_fails_before_the_others_are_encoded(serve, encoder):
    model = CountingEncoder(encoder)
    pictures = [data_uri(picture(seed)) for seed in range(3)]
    extra = {"modality": "image"}
    with connect(serve(model=model)) as ai:
        with pytest.raises(openai.UnprocessableEntityError):
            ai.embeddings.create(model=encoder.name, input=[*pictures, "%%%"], extra_body=extra)
        assert 3 not in model.sizes
        ai.embeddings.create(model=encoder.name, input=pictures, extra_body=extra)
        assert 3 in model.sizes


def test_the_client_comes_back_after_a_full_queue(serve, encoder):
    model = GatedEncoder(encoder)
    server = serve(model=model, queue_size=1, encode_batch=1, deadline_s=25.0)
    statuses: list[int] = []
    model.gate.clear()
    try:
        waiting = [_ask_in_a_thread(server, "held by the model")]
        wait_until(lambda: ["held by the model"] in model.begun)
        waiting.append(_ask_in_a_thread(server, "held by the queue"))
        wait_until(lambda: server.app.state.service.embedder.waiting == 1)

        def note(response) -> None:
            statuses.append(response.status_code)
            if response.status_code == 429:
                assert response.headers["retry-after"] == "1"
                model.gate.set()

        with _http_client(note) as http, connect(server, max_retries=3, http_client=http) as ai:
            answer = ai.embeddings.create(model=encoder.name, input="late")
    finally:
        model.gate.set()
    for thread in waiting:
        thread.join(20)
    assert statuses == [429, 200]
    np.testing.assert_allclose(numbers(answer), encoder.encode_texts(["late"]), atol=1e-6)


def test_the_client_retries_what_is_shutting_down(serve, encoder):
    server = serve()
    server.app.state.service.embedder.close()
    statuses: list[int] = []
    with (
        _http_client(lambda response: statuses.append(response.status_code)) as http,
        connect(server, max_retries=1, http_client=http) as ai,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        ai.embeddings.create(model=encoder.name, input="a")
    assert caught.value.code == "shutting_down"
    assert statuses == [503, 503]


def _http_client(note) -> httpx.Client:
    return openai.DefaultHttpxClient(event_hooks={"response": [note]})


def _ask_in_a_thread(server: Running, text: str) -> threading.Thread:
    def ask() -> None:
        httpx.post(f"{server.url}/v1/embeddings", json={"input": text}, timeout=30)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_the_routes_are_described_for_machines(client):
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/embeddings", "/embeddings", "/knn-service", "/metadata"):
        described = paths[path]["post"]
        body = described["requestBody"]["content"]["application/json"]
        assert body["schema"]["required"]
        assert client.post(path, json=body["example"]).status_code in (200, 404)
        assert {"200", "400", "422", "429", "504"} <= described["responses"].keys()
    for path in ("/v1/models", "/models", "/v1/models/{model}", "/health", "/indices-list"):
        assert "200" in paths[path]["get"]["responses"]
