"""Whatever is wrong with a request: a 4xx in the error shape that names what and where."""

from __future__ import annotations

import base64
import io
import json
import math
import time

import pytest
from PIL import Image

from service.settings import Settings
from tests.service.conftest import error_of, picture

SEARCH = "/v1/galleries/pets/search"
JSON = {"content-type": "application/json"}

BAD_BODIES = [
    ({}, "query_missing", "query"),
    ({"query": None}, "query_missing", "query"),
    ({"query": ""}, "text_empty", "query"),
    ({"query": " \t\n\u3000"}, "text_empty", "query"),
    ({"query": {"text": " "}}, "text_empty", "query"),
    ({"query": "a" * 1_000_000}, "text_too_long", "query"),
    ({"query": "ü" * 4097}, "text_too_long", "query"),
    ({"query": 5}, "query_form", "query"),
    ({"query": True}, "query_form", "query"),
    ({"query": {}}, "query_form", "query"),
    ({"query": {"text": "a", "item_id": "b"}}, "query_form", "query"),
    ({"query": {"text": 5}}, "invalid_value", "query.text"),
    ({"query": {"texts": "a"}}, "unknown_field", "query.texts"),
    ({"query": []}, "query_parts", "query"),
    ({"query": ["a"] * 17}, "query_parts", "query"),
    ({"query": ["a", {"text": "b", "weight": "2"}]}, "invalid_value", "query.1.weight"),
    ({"query": {"image": "%%%"}}, "invalid_base64", "query.image"),
    ({"query": {"image": "data:image/png,abc"}}, "invalid_base64", "query.image"),
    ({"query": {"image": ""}}, "image_empty", "query.image"),
    ({"query": {"image": "aGVsbG8="}}, "image_unsupported_format", "query.image"),
    ({"query": {"image_url": "http://127.0.0.1/"}}, "not_supported", "query.image_url"),
    ({"query": {"item_id": "none"}}, "item_not_found", "query.item_id"),
    ({"query": {"embedding": []}}, "embedding_length", "query.embedding"),
    ({"query": {"embedding": [1.0] * 31}}, "embedding_length", "query.embedding"),
    ({"query": {"embedding": [0.0] * 32}}, "embedding_values", "query.embedding"),
    ({"query": {"embedding": ["1"] * 32}}, "invalid_value", "query.embedding.0"),
    ({"query": "a", "k": 0}, "invalid_value", "k"),
    ({"query": "a", "k": -1}, "invalid_value", "k"),
    ({"query": "a", "k": 1001}, "invalid_value", "k"),
    ({"query": "a", "k": 10**30}, "invalid_value", "k"),
    ({"query": "a", "k": True}, "invalid_value", "k"),
    ({"query": "a", "k": "3"}, "invalid_value", "k"),
    ({"query": "a", "k": 2.5}, "invalid_value", "k"),
    ({"query": "a", "offset": -1}, "invalid_value", "offset"),
    ({"query": "a", "offset": 10_001}, "invalid_value", "offset"),
    ({"query": "a", "min_score": "high"}, "invalid_value", "min_score"),
    ({"query": "a", "include": ["everything"]}, "invalid_value", "include.0"),
    ({"query": "a", "limit": 3}, "unknown_field", "limit"),
    ({"query": "a", "filter": {"year": {"gte": 2020}}}, "invalid_filter", "filter.year.gte"),
    ({"query": "a", "filter": {"year": {"above": 1}}}, "invalid_filter", "filter.year.above"),
    ({"query": "a", "filter": []}, "invalid_value", "filter"),
    ({"query": "a", "deduplicate": 1}, "invalid_value", "deduplicate"),
    ({"query": "a", "rank_by": "frame"}, "not_supported", "rank_by"),
    ({"query": "a", "include": ["frames"]}, "not_supported", "include"),
    ({"query": "a", "queries": ["b"]}, "query_form", "queries"),
    ({"queries": []}, "invalid_value", "queries"),
    ({"queries": ["a"] * 257}, "invalid_value", "queries"),
    ([], "invalid_body", None),
    ("a dog", "invalid_body", None),
]


@pytest.mark.parametrize(("body", "code", "param"), BAD_BODIES)
def test_bad_search_is_422_naming_the_field(client, body, code, param) -> None:
    error = error_of(client.post(SEARCH, json=body), 422)
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"


RAW_BODIES = [
    b"",
    b"{",
    b"not json",
    b'{"query": "\xff"}',
    b'{"query": "\\ud800"}',
    b"[" * 100_000,
    b'{"query": ' + b"9" * 5000 + b"}{",
]


@pytest.mark.parametrize("body", RAW_BODIES)
def test_body_that_is_not_json_is_400(client, body) -> None:
    assert error_of(client.post(SEARCH, content=body, headers=JSON), 400)["code"] == "invalid_json"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity"])
def test_numbers_beyond_float_are_refused(client, number) -> None:
    body = f'{{"query": "a", "min_score": {number}}}'
    error = error_of(client.post(SEARCH, content=body, headers=JSON), 422)
    assert error["param"] == "min_score"
    values = ",".join([number] * 32)
    body = f'{{"query": {{"embedding": [{values}]}}}}'
    assert client.post(SEARCH, content=body, headers=JSON).status_code == 422
    for body, param in (
        (f'{{"query": {{"text": "a", "weight": {number}}}}}', "query.weight"),
        (f'{{"query": "a", "filter": {{"year": {{"gte": {number}}}}}}}', "filter.year.gte"),
        (f'{{"query": {number}}}', "query"),
        (f'{{"query": "a", "k": {number}}}', "k"),
    ):
        assert error_of(client.post(SEARCH, content=body, headers=JSON), 422)["param"] == param


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_wrong_content_type_is_415_naming_the_right_one(client, kind) -> None:
    headers = {"content-type": kind} if kind else {}
    error = error_of(client.post(SEARCH, content=b'{"query": "a"}', headers=headers), 415)
    assert "application/json" in error["message"]
    upload = client.post(f"{SEARCH}/upload", content=b"{}", headers=JSON)
    assert "multipart/form-data" in error_of(upload, 415)["message"]


def test_json_content_types_with_parameters_are_accepted(client) -> None:
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"):
        answer = client.post(SEARCH, content=b'{"query": "a"}', headers={"content-type": kind})
        assert answer.status_code == 200


def _truncated() -> bytes:
    return picture(1, size=(300, 300))[:2000]


def _huge() -> bytes:
    out = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(out, "PNG")
    return out.getvalue()


def _svg() -> bytes:
    return b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_truncated, "image_truncated"),
        (_huge, "image_too_many_pixels"),
        (_svg, "image_unsupported_format"),
        (bytes, "image_empty"),
    ],
)
def test_broken_image_is_422_with_the_reason_in_json_and_upload(client, make, reason) -> None:
    data = make()
    body = {"query": {"image": base64.b64encode(data).decode()}}
    assert error_of(client.post(SEARCH, json=body), 422)["code"] == reason
    upload = client.post(f"{SEARCH}/upload", files={"file": ("a.jpg", data)})
    error = error_of(upload, 422)
    assert (error["code"], error["param"]) == (reason, "file")


def test_one_pixel_image_is_searched(client) -> None:
    files = {"file": ("a.png", picture(1, size=(1, 1), kind="PNG"))}
    assert len(client.post(f"{SEARCH}/upload", files=files).json()["hits"]) == 10


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"k": "0"}, "invalid_value", "k"),
        ({"k": "many"}, "invalid_value", "k"),
        ({"limit": "3"}, "unknown_field", "limit"),
        ({"query": "a dog"}, "unknown_field", "query"),
        ({"k": ["1", "2"]}, "repeated_field", "k"),
        ({"min_score": "nan"}, "invalid_value", "min_score"),
        ({"filter": "{"}, "invalid_json", "filter"),
        ({"filter": '{"a": {"eq": 1}}'}, "invalid_filter", "filter.a.eq"),
        ({"filter": "3"}, "invalid_value", "filter"),
        ({"deduplicate": "maybe"}, "invalid_value", "deduplicate"),
    ],
)
def test_bad_upload_field_is_422_naming_it(client, fields, code, param) -> None:
    files = {"file": ("a.jpg", picture(1))}
    error = error_of(client.post(f"{SEARCH}/upload", files=files, data=fields), 422)
    assert (error["code"], error["param"]) == (code, param)


def test_upload_without_file_is_422(client) -> None:
    answer = client.post(f"{SEARCH}/upload", files={"k": (None, b"3")})
    assert error_of(answer, 422)["code"] == "file_missing"
    elsewhere = client.post(f"{SEARCH}/upload", files={"image": ("a.jpg", picture(1))})
    assert error_of(elsewhere, 422)["message"] == "unknown field image; did you mean file?"
    error = error_of(client.post(f"{SEARCH}/upload", files={"file": (None, b"cat.jpg")}), 422)
    assert error["code"] == "file_missing"
    assert "file is a text ('cat.jpg'); send the picture itself" in error["message"]


def test_an_upload_has_one_picture(client) -> None:
    for times, told in (
        (2, "file was sent 2 times; send one picture"),
        (16, "file was sent 16 times; send one picture"),
        (17, "the form has more than 16 files; send one picture, as file"),
    ):
        files = [("file", ("a.jpg", picture(1)))] * times
        error = error_of(client.post(f"{SEARCH}/upload", files=files), 422)
        assert (error["code"], error["param"]) == ("repeated_field", "file")
        assert error["message"] == told


def test_malformed_multipart_is_a_4xx(client) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = client.post(f"{SEARCH}/upload", content=b"--y\r\n", headers={"content-type": kind})
        assert answer.status_code in (400, 422)
        error_of(answer, answer.status_code)


@pytest.mark.parametrize("name", ["nope", "..", "%2e%2e", "..%2f..", "pets%00", "%ff", "p" * 3000])
def test_unknown_gallery_is_404(client, name) -> None:
    for answer in (
        client.get(f"/v1/galleries/{name}"),
        client.post(f"/v1/galleries/{name}/search", json={"query": "a"}),
    ):
        error_of(answer, 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/galleries"),
        ("GET", "/v1/galleries/pets"),
        ("POST", "/v1/galleries/pets/reload"),
        ("POST", "/v1/galleries/pets/search"),
        ("POST", "/v1/galleries/pets/search/upload"),
        ("GET", "/v1/galleries/pets/items/any"),
        ("GET", "/v1/galleries/pets/items/any/content"),
        ("GET", "/v1/galleries/pets/items/any/thumbnail"),
        ("POST", "/v1/explain"),
    ],
)
def test_query_parameter_that_means_nothing_is_refused(client, method, path) -> None:
    body = {"json": {"query": "a dog"}} if method == "POST" else {}
    error = error_of(client.request(method, f"{path}?top=5", **body), 422)
    assert (error["code"], error["param"]) == ("unknown_field", "top")


def test_a_reload_takes_no_body(client) -> None:
    reload = "/v1/galleries/pets/reload"
    for body in (b"", b" \n", b" { } \n"):
        assert client.post(reload, content=body).status_code == 200
    for body in (b'{"version": "x"}', b"x"):
        error = error_of(client.post(reload, content=body), 422)
        assert error["code"] == "invalid_body"
        assert "takes no body" in error["message"]


def test_a_long_name_of_a_parameter_is_cut(client) -> None:
    error = error_of(client.get(f"/v1/galleries?{'a' * 5000}=5"), 422)
    assert error["param"] == "a" * 59 + "…"
    assert len(error["message"]) < 200


def thumbnail_path(client) -> str:
    hits = client.post(SEARCH, json={"query": "a", "k": 1}).json()["hits"]
    return str(hits[0]["thumbnail"])


def test_a_query_parameter_is_sent_once(client) -> None:
    path = thumbnail_path(client)
    error = error_of(client.get(f"{path}?siz=64&siz=128"), 422)
    assert error["message"] == "unknown query parameter siz; did you mean size?"
    error = error_of(client.get(f"{path}?size=64&size=128"), 422)
    assert (error["code"], error["param"]) == ("repeated_field", "size")
    assert "2 times" in error["message"]
    assert client.get(f"{path}?size=64").status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"query": "a", "off_set": 3}, "unknown field off_set; did you mean offset?"),
        ({"query": "a", "limit": 3}, "unknown field limit; did you mean k?"),
        ({"query": "a", "topK": 3}, "unknown field topK; did you mean k?"),
        ({"text": "a"}, "unknown field text; did you mean query?"),
        ({"query": "a", "colour": 3}, "unknown field colour; accepted here: k, offset, min_score,"),
        ({"query": {"text": "a", "k": 3}}, "query has k, which is of the whole search; put it"),
        ({"queries": [3, {"text": "a", "k": 3}] * 200}, "queries has 400 entries"),
        ({"image": "AAAA"}, 'unknown field image; put it into query: {"query": {"image": …}}'),
        ({"photo": "AAAA"}, 'unknown field photo; put it into query: {"query": {"image": …}}'),
        ({"imageUrl": "x"}, 'unknown field imageUrl; put it into query: {"query": {"image_url": …'),
        ({"id": "a.jpg"}, 'unknown field id; put it into query: {"query": {"item_id": …}}'),
        ({"vector": [1.0]}, 'unknown field vector; put it into query: {"query": {"embedding": …}}'),
        ({"query": {"prompt": "a"}}, "unknown field query.prompt; did you mean query.text?"),
        ({"query": {"photo": "a"}}, "unknown field query.photo; did you mean query.image?"),
        ({"query": {"url": "a"}}, "unknown field query.url; did you mean query.image_url?"),
        ({"query": {"txt": "a"}}, "unknown field query.txt; did you mean query.text?"),
        ({"query": "a", "k": "ten"}, "k: it must be a whole number, not 'ten'"),
        ({"query": "a", "k": "9" * 10**6}, "k: it must be a whole number, not '999"),
        ({"query": "a", "deduplicate": None}, "deduplicate: it must be true or false, not null"),
        ({"query": "a", "include": {"a": 1}}, "include: it must be a list, not an object"),
        ({"query": "a", "min_score": 35}, "min_score is 35.0; -1 to 1 is accepted"),
        ({"query": "a", "min_score": -1.01}, "min_score is -1.01; -1 to 1 is accepted"),
        ({"query": "a", "offset": -1}, "offset is -1; 0 to 10,000 is accepted"),
        ({"query": "a", "filter": [1]}, "filter: it must be an object, not a list of 1"),
        ({"query": "a", "offset": [1] * 5000}, "not a list of 5,000"),
        ({"query": "a", "o" * 10**6: 3}, "unknown field ooo"),
        ({"query": "a", "\n" * 100: 3}, r"unknown field '\n\n"),
        ({"query": "a", "": 3}, "unknown field ''; accepted"),
        ({"query": "a", "k": -(10**18)}, f"k is -1{',000' * 6}; 1 to 1,000 is accepted"),
        ({"query": "a", "k": 10**4000}, "k is 10,000,000"),
        ({"query": 3}, "query is a number; accepted: a string"),
        ({"queries": []}, "queries has 0 entries"),
        ({"query": "a", "include": ["frames"] * 17}, "at most 16 items after validation, not 17"),
        ([], "the body is a list; send an object"),
    ],
)
def test_what_came_and_what_is_accepted_are_said_in_few_words(client, body, says) -> None:
    error = error_of(client.post(SEARCH, json=body), 422)
    assert says in error["message"]
    assert len(error["message"]) <= 1000
    assert len(error["param"] or "") <= 64


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": {"embedding": [""] * 400_000}}, "query.embedding.0"),
        ({f"key{number}": 1 for number in range(400_000)}, "key0"),
        ({"query": {f"key{number}": 1 for number in range(400_000)}}, "query.key0"),
        ({"query": "a", "include": [1] * 400_000}, "include"),
    ],
)
def test_many_faults_take_no_longer_than_one(client, body, param) -> None:
    raw = json.dumps(body).encode()
    begun_s = time.process_time()
    error = error_of(client.post(SEARCH, content=raw, headers=JSON), 422)
    assert error["param"] == param
    assert time.process_time() - begun_s < 1


def test_an_upload_names_the_field_that_may_be_meant(client) -> None:
    files = {"file": ("a.jpg", picture(1))}
    for name, says in (
        ("off_set", "unknown field off_set; did you mean offset?"),
        ("limit", "unknown field limit; did you mean k?"),
        ("x" * 3900, "unknown field xxx"),
    ):
        error = error_of(client.post(f"{SEARCH}/upload", files=files, data={name: "3"}), 422)
        assert says in error["message"]
        assert len(error["message"]) < 250
        assert len(error["param"]) <= 64


def test_the_value_of_a_query_parameter_is_said(client) -> None:
    answer = client.get(f"{thumbnail_path(client)}?size=large")
    message = error_of(answer, 422)["message"]
    assert message.startswith("size: it must be a whole number")
    assert message.endswith("not 'large'")


def test_unknown_route_and_method_have_the_error_shape(client) -> None:
    assert error_of(client.get("/nope"), 404)["code"] == "route_not_found"
    assert error_of(client.get("/v1/galleries/"), 404)["message"].endswith(
        "leave out the / at the end"
    )
    for path in ("/nope/", "//", "/"):
        assert "leave out" not in client.get(path).text
    wrong = client.get(SEARCH)
    assert error_of(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"


def test_a_method_that_is_not_accepted_names_those_that_are(client) -> None:
    error = error_of(client.get("/v1/explain"), 405)
    assert error["message"].endswith("accepted here: POST")


def test_a_good_request_is_answered_after_all_that(client) -> None:
    answer = client.post(SEARCH, json={"query": "a dog"})
    assert answer.status_code == 200
    assert all(math.isfinite(hit["score"]) for hit in answer.json()["hits"])


def test_text_limit_counts_bytes(client) -> None:
    most = Settings().max_text_bytes
    assert client.post(SEARCH, json={"query": "a" * most}).status_code == 200
