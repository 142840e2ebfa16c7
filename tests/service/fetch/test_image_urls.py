"""Searching by the url of a picture: what is fetched, and every trick that must not work."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import trustme

from service.fetch import SystemNetwork, make_fetcher
from tests.service.conftest import Running, error_of, picture, wait_until
from tests.service.fetch.test_addresses import NOT_PUBLIC
from tests.service.fetch.upstream import PICTURE, PUBLIC_V4, PUBLIC_V6, Internet, Upstream

SEARCH = "/v1/galleries/pets/search"
SITE = "http://pictures.example"
SECURE = "https://pictures.example"
LIMITS = {"image_urls": True, "image_url_max_bytes": 1_000_000, "image_url_timeout_s": 20.0}
HASTY = {**LIMITS, "image_url_timeout_s": 1.0}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[trustme.CA]:
    """A certificate authority that this process trusts."""
    made = trustme.CA()
    path: Path = tmp_path_factory.mktemp("authority") / "ca.pem"
    made.cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield made


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    running = Upstream()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Iterator[Upstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pictures.example", "127.0.0.1").configure_cert(context)
    running = Upstream(context)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def internet(upstream: Upstream, secure: Upstream) -> Internet:
    made = Internet()
    made.answers["pictures.example"] = [[PUBLIC_V4]]
    made.servers = {80: upstream.port, 443: secure.port}
    return made


@pytest.fixture(scope="module")
def online(serve, internet: Internet) -> Running:
    """A server that fetches pictures from `internet`."""
    return on(serve(**LIMITS), internet)


@pytest.fixture(scope="module")
def hasty(serve, internet: Internet) -> Running:
    """The same, with a second for each picture."""
    return on(serve(**HASTY), internet)


@pytest.fixture(autouse=True)
def _forgotten(internet: Internet, upstream: Upstream, secure: Upstream) -> None:
    """Each test starts with nothing seen."""
    internet.looked_up.clear()
    internet.connected.clear()
    for server in (upstream, secure):
        server.seen.clear()
        server.left.clear()
        server.server_names.clear()


def on(server: Running, internet: Internet) -> Running:
    service = server.app.state.service
    service.fetcher.close()
    service.fetcher = make_fetcher(server.settings, internet)
    return server


def ask(server: Running, url: str) -> httpx.Response:
    return server.client.post(SEARCH, json={"query": {"image_url": url}})


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def refusal(answer: httpx.Response) -> str:
    error = error_of(answer, 422)
    assert (error["code"], error["param"]) == ("image_url_refused", "query.image_url")
    return str(error["message"])


def failure(answer: httpx.Response) -> str:
    error = error_of(answer, 422)
    assert (error["code"], error["param"]) == ("image_url_failed", "query.image_url")
    return str(error["message"])


@pytest.fixture(scope="module")
def uploaded(online: Running) -> list[str]:
    """The hits for the picture itself."""
    return ids(online.client.post(f"{SEARCH}/upload", files={"file": ("a.jpg", PICTURE)}))


GOOD = ["/ok.jpg", "/stored", "/parameters", "/streamed", "/countdown?3", "/to?ok.jpg"]


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("site", [SITE, SECURE])
def test_picture_by_url_finds_what_the_picture_finds(online, uploaded, site, path) -> None:
    assert ids(ask(online, site + path)) == uploaded


def test_request_says_little_and_keeps_host_and_server_name(online, internet, secure) -> None:
    ids(ask(online, f"{SECURE}/ok.jpg?a=b"))
    assert secure.server_names == ["pictures.example"]
    assert internet.connected == [PUBLIC_V4]
    assert internet.threads == {"fetch"}
    [(path, headers)] = secure.seen
    assert path == "/ok.jpg?a=b"
    assert headers == {
        "host": "pictures.example",
        "accept": "image/*",
        "accept-encoding": "identity",
        "connection": "close",
        "user-agent": "cots-retrieval",
    }


def test_certificate_of_another_name_fails(online, internet, secure) -> None:
    internet.answers["other.example"] = [[PUBLIC_V4]]
    failure(ask(online, "https://other.example/ok.jpg"))
    assert secure.seen == []


def test_proxies_of_the_environment_are_not_used(online, internet, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ids(ask(online, f"{SITE}/ok.jpg"))
    assert internet.connected == [PUBLIC_V4]


def test_cookies_are_not_kept(online, upstream) -> None:
    ids(ask(online, f"{SITE}/cookie?/ok.jpg"))
    assert upstream.paths() == ["/cookie?/ok.jpg", "/ok.jpg"]
    assert not any("cookie" in headers for _, headers in upstream.seen)


ADDRESSES = [a for kind, found in NOT_PUBLIC.items() if kind != "no_address" for a in found]


@pytest.mark.parametrize("address", ADDRESSES)
def test_name_of_an_address_that_is_not_public_is_refused(online, internet, address) -> None:
    internet.answers["inside.example"] = [[address]]
    message = refusal(ask(online, "http://inside.example/ok.jpg"))
    assert internet.connected == []
    assert address not in message


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "[::1]", "10.0.0.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0"),
        *("[2002:7f00:1::]", "169.254.169.254", "127.1", "0x7f.1", "0177.0.0.1", "2130706433"),
        *("0x7f000001", "017700000001", "0", "127.0.0.1.", "[fe80::1%25lo]", "[fd00::1]"),
    ],
)
def test_numbers_that_are_not_public_are_refused_in_any_notation(online, internet, host) -> None:
    refusal(ask(online, f"http://{host}/ok.jpg"))
    assert internet.connected == []


def test_public_numbers_are_fetched(online, internet) -> None:
    for host in (PUBLIC_V4, f"[{PUBLIC_V6}]"):
        ids(ask(online, f"http://{host}/ok.jpg"))
    assert internet.connected == [PUBLIC_V4, PUBLIC_V6]


def test_of_several_addresses_only_public_ones_are_connected_to(online, internet) -> None:
    internet.answers["mixed.example"] = [["127.0.0.1", "::1", PUBLIC_V4, "10.0.0.1"]]
    ids(ask(online, "http://mixed.example/ok.jpg"))
    assert internet.connected == [PUBLIC_V4]


def test_name_that_changes_its_answer_is_looked_up_once_and_gains_nothing(online, internet) -> None:
    internet.answers["rebinds.example"] = [[PUBLIC_V4], ["127.0.0.1"]]
    ids(ask(online, "http://rebinds.example/ok.jpg"))
    assert (internet.looked_up, internet.connected) == (["rebinds.example"], [PUBLIC_V4])
    refusal(ask(online, "http://rebinds.example/ok.jpg"))
    assert internet.connected == [PUBLIC_V4]


def test_name_that_changes_its_answer_during_redirects_is_refused(online, internet) -> None:
    internet.answers["rebinds.example"] = [[PUBLIC_V4], ["169.254.169.254"]]
    refusal(ask(online, "http://rebinds.example/to?/ok.jpg"))
    assert internet.looked_up == ["rebinds.example"] * 2
    assert internet.connected == [PUBLIC_V4]


@pytest.mark.parametrize(
    "target",
    [
        *("http://127.0.0.1/ok.jpg", "http://[::1]/ok.jpg", "http://169.254.169.254/latest/"),
        *("//127.0.0.1/ok.jpg", "http://inside.example/ok.jpg", "http://0x7f.1/ok.jpg"),
        *("file:///etc/passwd", "gopher://127.0.0.1:6379/_FLUSHALL", "ftp://127.0.0.1/"),
        *("http://user:word@pictures.example/ok.jpg", "http://pictures.example:6379/"),
    ],
)
def test_redirect_to_what_is_not_accepted_is_refused(online, internet, upstream, target) -> None:
    internet.answers["inside.example"] = [["10.1.2.3"]]
    refusal(ask(online, f"{SITE}/to?{target}"))
    assert internet.connected == [PUBLIC_V4]
    assert len(upstream.seen) == 1


def test_redirects_may_go_from_http_to_https_and_not_back(online, upstream, secure) -> None:
    ids(ask(online, f"{SITE}/to?{SECURE}/ok.jpg"))
    assert secure.paths() == ["/ok.jpg"]
    upstream.seen.clear()
    refusal(ask(online, f"{SECURE}/to?{SITE}/ok.jpg"))
    assert upstream.seen == []


def test_fourth_redirect_fails(online, upstream) -> None:
    assert "3 redirects" in failure(ask(online, f"{SITE}/countdown?4"))
    assert len(upstream.seen) == 4


def test_name_of_ours_and_name_that_is_none_get_the_same_answer(online, internet) -> None:
    internet.answers["inside.example"] = [["10.1.2.3"]]
    answers = {refusal(ask(online, f"http://{name}.example/x")) for name in ("inside", "nobody")}
    assert len(answers) == 1


def test_server_that_does_not_answer_fails(serve, internet) -> None:
    server = on(serve(**LIMITS, image_url_ports=(81,)), internet)
    internet.answers["down.example"] = [[PUBLIC_V4, PUBLIC_V6]]
    assert "does not answer" in failure(ask(server, "http://down.example:81/"))
    assert internet.connected == [PUBLIC_V4, PUBLIC_V6]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "status 404"),
        ("/partial", "status 206"),
        ("/html", "'text/html'"),
        ("/typeless", "content type ''"),
        ("/long", "larger than 1,000,000 bytes"),
        ("/endless", "larger than 1,000,000 bytes"),
        ("/gzip", "compressed"),
        ("/brotli", "compressed"),
        ("/short", "broke off"),
        ("/nonsense", "broke off"),
        ("/many-headers", "broke off"),
        ("/nowhere", "no url"),
    ],
)
def test_answer_that_cannot_be_a_picture_fails_saying_why(online, path, words) -> None:
    message = failure(ask(online, SITE + path))
    assert words in message
    assert "secret" not in message


def test_picture_that_takes_too_long_fails_and_is_hung_up_on(hasty, upstream) -> None:
    assert "within 1 s" in failure(ask(hasty, f"{SITE}/drip"))
    assert upstream.left.wait(5)


def test_pieces_of_one_byte_hold_up_nobody_else(hasty) -> None:
    answered = 0
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(httpx.post, hasty.url + SEARCH, json=query(f"{SITE}/tiny"))
        while not fetching.done():
            assert hasty.client.get("/livez").status_code == 200
            answered += 1
        failure(fetching.result())
    assert answered > 3


def query(url: str) -> dict[str, object]:
    return {"query": {"image_url": url}}


def test_fetched_bytes_are_decoded_by_the_limits_of_pictures(online, serve, internet) -> None:
    error = error_of(ask(online, f"{SITE}/text.jpg"), 422)
    assert (error["code"], error["param"]) == ("image_unsupported_format", "query.image_url")
    small = on(serve(**LIMITS, max_image_pixels=100), internet)
    assert error_of(ask(small, f"{SITE}/ok.jpg"), 422)["code"] == "image_too_many_pixels"


def test_weighted_list_takes_urls(online) -> None:
    by_url = [{"image_url": f"{SITE}/ok.jpg"}, {"text": "a dog", "weight": -0.5}]
    by_data = {"item_id": "dogs/100%?.jpg"}  # the same picture
    assert picture(3) == PICTURE
    first = online.client.post(SEARCH, json={"query": by_url})
    second = online.client.post(SEARCH, json={"query": [by_data, by_url[1]]})
    assert ids(first) == ids(second)


def test_bad_url_in_a_batch_fails_alone(online, uploaded) -> None:
    queries = [
        {"image_url": f"{SITE}/ok.jpg"},
        {"image_url": "http://127.0.0.1/"},
        "a dog",
        {"image_url": f"{SITE}/missing"},
        [{"text": "a dog"}, {"image_url": "ftp://x"}],
        {"image_url": f"{SITE}/text.jpg"},
    ]
    results = online.client.post(SEARCH, json={"queries": queries}).json()["results"]
    assert [hit["id"] for hit in results[0]["hits"]] == uploaded
    assert len(results[2]["hits"]) == 10
    errors = [(n, r["error"]["code"], r["error"]["param"]) for n, r in enumerate(results)
              if "error" in r]  # fmt: skip
    assert errors == [
        (1, "image_url_refused", "queries.1.image_url"),
        (3, "image_url_failed", "queries.3.image_url"),
        (4, "image_url_refused", "queries.4.1.image_url"),
        (5, "image_unsupported_format", "queries.5.image_url"),
    ]


def test_too_many_urls_in_one_request_are_refused_before_any_is_fetched(online, internet) -> None:
    most = online.settings.max_image_urls
    queries = [{"image_url": f"{SITE}/ok.jpg"}] * (most + 1)
    error = error_of(online.client.post(SEARCH, json={"queries": queries}), 422)
    assert (error["code"], error["param"]) == ("image_url_count", f"queries.{most}.image_url")
    assert internet.looked_up == []
    taken = online.client.post(SEARCH, json={"queries": queries[:-1]}).json()["results"]
    assert all("hits" in result for result in taken)


def test_deadline_of_the_request_ends_the_download(serve, internet, upstream) -> None:
    server = on(serve(**LIMITS, deadline_s=0.4), internet)
    begun_s = time.monotonic()
    assert error_of(ask(server, f"{SITE}/drip"), 504)["code"] == "deadline_exceeded"
    assert time.monotonic() - begun_s < 5
    assert upstream.left.wait(5)


def test_more_urls_than_may_wait_are_429(serve, internet, upstream) -> None:
    server = on(serve(**HASTY, image_url_fetches=1, queue_size=2), internet)
    with ThreadPoolExecutor(2) as pool:
        url = server.url + SEARCH
        waiting = [pool.submit(httpx.post, url, json=query(f"{SITE}/drip")) for _ in range(2)]
        fetcher = server.app.state.service.fetcher
        wait_until(lambda: fetcher.waiting == 2)
        assert error_of(ask(server, f"{SITE}/ok.jpg"), 429)["code"] == "queue_full"
        assert [job.result().status_code for job in waiting] == [422, 422]
    assert len(ids(ask(server, f"{SITE}/ok.jpg"))) == 10


def test_network_of_this_machine_is_looked_up_and_refused(serve, upstream) -> None:
    server = serve(**LIMITS, image_url_ports=(upstream.port,))
    for host in ("127.0.0.1", "localhost", "[::1]", "127.1", "[::ffff:127.0.0.1]"):
        refusal(ask(server, f"http://{host}:{upstream.port}/ok.jpg"))
    assert upstream.seen == []
    refusal(ask(server, f"http://{'a' * 64}.example:{upstream.port}/"))


async def _resolved(host: str) -> list[str]:
    network = SystemNetwork(threads=1)
    try:
        return list(await network.resolve(host, 80))
    finally:
        network.close()


def test_system_network_knows_loopback() -> None:
    assert "127.0.0.1" in asyncio.run(_resolved("localhost"))
    assert asyncio.run(_resolved("127.0.0.1")) == ["127.0.0.1"]


def test_urls_are_refused_where_they_are_switched_off(client) -> None:
    answer = client.post(SEARCH, json={"queries": [{"image_url": f"{SITE}/ok.jpg"}, "a dog"]})
    first, second = answer.json()["results"]
    assert first["error"]["code"] == "not_supported"
    assert "COTS_IMAGE_URLS" in first["error"]["message"]
    assert len(second["hits"]) == 10


def test_fetcher_that_is_closed_ends_its_thread(serve, internet) -> None:
    fetcher = make_fetcher(serve(**LIMITS).settings, internet)
    fetcher.close()
    assert fetcher.join(until_s=time.monotonic() + 5)
    fetcher.close()  # twice does no harm


def results_of(server: Running, paths: list[str]) -> list[str]:
    """For each picture of one request `found`, or why there was none."""
    queries = [{"image_url": SITE + path} for path in paths]
    answer = server.client.post(SEARCH, json={"queries": queries})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    return [r["error"]["message"] if "error" in r else "found" for r in results]


def test_pictures_of_one_request_are_bounded_together(serve, internet) -> None:
    limit = 2 * len(PICTURE) + len(PICTURE) // 2
    server = on(serve(**LIMITS, image_url_total_bytes=limit), internet)
    found = results_of(server, ["/ok.jpg"] * 5)
    assert found.count("found") == 2
    refused = [message for message in found if message != "found"]
    assert all(f"together larger than {limit:,} bytes" in message for message in refused)
    assert results_of(server, ["/ok.jpg"] * 2) == ["found"] * 2  # each request has its own


def test_bytes_of_a_download_that_fails_are_not_counted(serve, internet) -> None:
    limits = {"image_url_total_bytes": len(PICTURE), "image_url_fetches": 1}
    server = on(serve(**LIMITS, **limits), internet)
    first, second = results_of(server, ["/short", "/ok.jpg"])
    assert "broke off" in first
    assert second == "found"


def test_fetcher_that_is_closed_tells_who_waits(serve, internet, upstream) -> None:
    server = on(serve(**LIMITS), internet)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, f"{SITE}/drip")
        wait_until(lambda: upstream.seen)
        server.app.state.service.fetcher.close()
        assert error_of(waiting.result(), 503)["code"] == "shutting_down"
    assert error_of(ask(server, f"{SITE}/ok.jpg"), 503)["code"] == "shutting_down"
