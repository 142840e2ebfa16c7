"""What is served, embeddings, models, reloads and health, from the real service."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from cots_client import (
    AnswerError,
    Client,
    ConflictError,
    InputError,
    InvalidRequestError,
    ModelChangedError,
    NotFoundError,
    image,
    item,
    text,
)
from cots_model.images import decode_image
from index_builder.manifest import VECTORS_FILE
from service.galleries import Registry
from tests.client.conftest import answer
from tests.galleries import publish_texts
from tests.service.conftest import picture
from tests.service.versions import flip_last_byte, publish_copy


def test_galleries_are_described(cots, registry) -> None:
    assert [gallery.name for gallery in cots.galleries()] == ["pets", "shards"]
    found, loaded = cots.gallery("pets"), registry.loaded["pets"]
    assert (found.modality, found.count, found.dim) == ("image", len(loaded), 32)
    assert (found.version, found.model, found.index.kind) == (loaded.version, "tiny", "flat")
    assert found.model_fingerprint == loaded.manifest.model_fingerprint
    assert found.refused is None
    assert datetime.datetime.fromisoformat(found.created)
    with pytest.raises(NotFoundError):
        cots.gallery("none")


def test_a_reload_tells_both_versions_and_a_bad_one_is_refused(serve, encoder, tmp_path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("a\nb", "utf-8")
    publish_texts(tmp_path / "template", encoder, ["a", "b"], source)
    first = publish_copy(tmp_path / "template", tmp_path / "root" / "live")
    found = Registry.open(tmp_path / "root", expected_fingerprint=encoder.fingerprint)
    with Client(serve(found=found, reload_interval_s=0).url) as client:
        second = publish_copy(tmp_path / "template", tmp_path / "root" / "live")
        reloaded = client.reload("live", timeout_s=60)
        assert (reloaded.gallery, reloaded.previous_version, reloaded.version) == (
            "live",
            first,
            second,
        )
        bad = publish_copy(
            tmp_path / "template",
            tmp_path / "root" / "live",
            unseen=flip_last_byte(VECTORS_FILE),
        )
        with pytest.raises(ConflictError) as caught:
            client.reload("live")
        assert caught.value.code == "version_refused"
        served = client.gallery("live")
        assert served.version == second
        assert served.refused is not None
        assert (served.refused.version, served.refused.reason) == (bad, "damaged")
        ready = client.readiness()
        assert ready.ready
        assert "live" in " ".join(ready.warnings)
        with pytest.raises(NotFoundError):
            client.reload("none")


def test_texts_and_pictures_are_embedded_as_by_the_encoder(cots, encoder, tmp_path) -> None:
    texts = ["two dogs playing in snow", "a cat", "ein Café ☃"]
    found = cots.embed(texts)
    np.testing.assert_allclose(found.vectors, encoder.encode_texts(texts), atol=1e-6)
    assert (found.model, found.num_tokens) == ("tiny", encoder.num_tokens(texts))
    data = [picture(seed) for seed in range(3)]
    path = tmp_path / "a.jpg"
    path.write_bytes(data[0])
    shown = cots.embed([path, data[1], image(data[2])])
    expected = encoder.encode_images([decode_image(one) for one in data])
    np.testing.assert_allclose(shown.vectors, expected, atol=1e-5)
    assert shown.num_tokens == 0
    for one, many in (("a cat", texts), (path, data)):
        [vector] = cots.embed(one).vectors
        where = many.index("a cat") if one == "a cat" else 0
        np.testing.assert_allclose(vector, cots.embed(many).vectors[where], atol=1e-6)


def test_more_inputs_than_a_request_takes_are_split(cots, encoder) -> None:
    texts = [f"{n} dogs" for n in range(7)]
    found = cots.embed(iter(texts), batch_size=3)
    np.testing.assert_allclose(found.vectors, encoder.encode_texts(texts), atol=1e-6)
    assert found.num_tokens == encoder.num_tokens(texts)


def test_a_bad_input_is_told_by_its_number_in_what_was_given(cots) -> None:
    for batch_size in (1, 3, 256):
        with pytest.raises(InvalidRequestError) as caught:
            cots.embed(["a", "b", "c", "d", " ", "e"], batch_size=batch_size)
        assert caught.value.param == "input.4"
        assert str(caught.value).startswith("input.4 ")


def test_inputs_are_read_as_the_requests_are_made(script) -> None:
    given: list[int] = []

    def inputs() -> Iterator[str]:
        for number in range(6):
            given.append(number)
            yield f"{number} dogs"

    def embedded(request: httpx.Request) -> httpx.Response:
        given_before.append(len(given))
        data = [{"index": n, "embedding": vector([1, 0])} for n in range(2)]
        return httpx.Response(200, json={"data": data, "model": "m"})

    given_before: list[int] = []
    assert len(script(embedded).ask("embed", inputs(), batch_size=2).vectors) == 6
    assert given_before == [3, 5, 6]  # with the one that did not fit any more


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_picture_is_one_input_whatever_holds_its_bytes(script, kind) -> None:
    body = {"data": [{"index": 0, "embedding": vector([1, 0])}], "model": "m"}
    server = script(answer(200, body))
    assert server.ask("embed", kind(b"data")).vectors == ((1.0, 0.0),)
    assert server.bodies()[0]["input"] == [base64.b64encode(b"data").decode()]


def vector(numbers: list[float]) -> str:
    """As the service sends it."""
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


@pytest.mark.parametrize(("model", "numbers"), [("m2", [1, 0]), ("m1", [1, 0, 0])])
def test_vectors_of_two_models_are_not_joined(script, model, numbers) -> None:
    first = {"data": [{"index": 0, "embedding": vector([1, 0])}], "model": "m1"}
    second = {"data": [{"index": 0, "embedding": vector(numbers)}], "model": model}
    server = script(answer(200, first), answer(200, second))
    with pytest.raises(ModelChangedError, match=r"m1 \(2 numbers\) and .* embed all of them again"):
        server.ask("embed", ["a", "b"], batch_size=1)


def test_vectors_of_one_answer_are_of_one_length(script) -> None:
    data = [{"index": n, "embedding": vector([1] * (n + 1))} for n in range(2)]
    with pytest.raises(AnswerError, match="several lengths"):
        script(answer(200, {"data": data, "model": "m"})).ask("embed", ["a", "b"])


def test_a_model_and_dimensions_that_are_not_served_are_refused(cots) -> None:
    assert cots.embed("a", model="tiny", dimensions=32).model == "tiny"
    with pytest.raises(NotFoundError) as caught:
        cots.embed("a", model="clip")
    assert caught.value.code == "model_not_found"
    with pytest.raises(InvalidRequestError) as refused:
        cots.embed("a", dimensions=16)
    assert refused.value.param == "dimensions"
    [model] = cots.models()
    assert (model.id, model.dimensions) == ("tiny", 32)
    assert "embed" in model.capabilities


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "at least one"),
        (["a", b"x"], "image and text"),
        ([item("x")], "item_id"),
        ([1], r"inputs\[0\] is a int"),
        ([image(b"x", weight=-3)], r"inputs\[0\] has weight -3"),
        (["a", text("b", weight=2)], r"inputs\[1\] has weight 2"),
    ],
)
def test_inputs_that_are_none_are_refused_unsent(script, inputs, words) -> None:
    server = script(answer())
    with pytest.raises(InputError, match=words):
        server.ask("embed", inputs)
    assert server.requests == []


def test_vectors_are_put_in_order_and_checked(script) -> None:
    def vectors(*given: tuple[int, object]) -> dict:
        data = [{"object": "embedding", "index": n, "embedding": v} for n, v in given]
        return {"data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 4}}

    a, b = (base64.b64encode(np.array(v, "<f4").tobytes()).decode() for v in ([1, 0], [0, 0.5]))
    found = script(answer(200, vectors((1, b), (0, a)))).ask("embed", ["x", "y"])
    assert found.vectors == ((1.0, 0.0), (0.0, 0.5))
    assert (found.model, found.num_tokens) == ("m", 4)
    for bad in (vectors((0, a)), vectors((0, a), (0, b)), vectors((0, a), (1, "!"))):
        with pytest.raises(AnswerError):
            script(answer(200, bad)).ask("embed", ["x", "y"])


def test_health(serve, server) -> None:
    with Client(server.url) as client:
        assert client.is_live()
        assert client.is_ready()
        assert client.readiness().reasons == ()
    drained = serve()
    drained.app.state.service.readiness.draining = True
    with Client(drained.url) as client:
        assert client.is_live()
        assert not client.is_ready()
        assert client.readiness().reasons == ("shutting down",)


def test_a_server_that_is_not_there_is_not_live(free_address) -> None:
    with Client(free_address, max_retries=0) as client:
        assert not client.is_live()
        assert not client.is_ready()


def test_a_client_that_is_closed_is_told_and_no_server_is_live(server) -> None:
    client = Client(server.url)
    client.close()
    assert not client.is_live()
    assert not client.is_ready()
    with pytest.raises(InputError, match="the client is closed"):
        client.galleries()


@pytest.fixture
def free_address() -> str:
    """Where nobody listens."""
    from service.server import address_of, bind

    listener = bind("127.0.0.1", 0)
    url = address_of(listener)
    listener.close()
    return url


def test_explain_asks_as_the_contract_says(script, cots) -> None:
    told = {"words": [{"word": "dog", "map": [[0.0, 1.0]]}]}
    server = script(answer(200, told))
    assert server.ask("explain", "a dog", gallery="photos", item_id="a.jpg") == told
    assert server.ask("explain", "a dog", image=b"data", overlay=True, start_layer=2) == told
    assert server.bodies() == [
        {"text": "a dog", "gallery": "photos", "item_id": "a.jpg"},
        {
            "text": "a dog",
            "image": base64.b64encode(b"data").decode(),
            "overlay": True,
            "start_layer": 2,
        },
    ]
    for given in ({}, {"gallery": "a"}, {"gallery": "a", "item_id": "b", "image": b"c"}):
        with pytest.raises(InputError, match="either gallery and item_id, or image"):
            cots.explain("a dog", **given)
