"""Originals behind urls: fetched ahead, in order, within bounds, and never in each other's way."""

import http.server
import io
import threading
import time
from collections import Counter
from email.utils import formatdate

import fsspec
import numpy as np
import pytest
from PIL import Image

from cots_model.images import decode_image
from index_builder.content import Location
from index_builder.pipeline import fetch
from index_builder.pipeline.decode import DecodePool
from index_builder.pipeline.fetch import Fetcher
from index_builder.pipeline.result import Decoded
from index_builder.sources.entry import Candidate, Skip


def picture(number, side=24):
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, 50, 90)).save(buffer, "PNG")
    return buffer.getvalue()


class Store:
    """A web server with pictures, some of which it gives slowly, late, or not at all."""

    def __init__(self):
        self.requests = Counter()
        self.files = {}
        self.now = self.most = 0
        self.let_go = threading.Event()
        self._lock = threading.Lock()
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                with store._lock:
                    store.now += 1
                    store.most = max(store.most, store.now)
                try:
                    self.answer(body=True)
                finally:
                    with store._lock:
                        store.now -= 1

            def answer(self, *, body):
                name = self.path.strip("/")
                how, number = name.split("-")
                store.requests[name, body] += 1
                if body and how == "stalled":
                    store.let_go.wait(30)
                if body and how in ("slow", "late"):
                    time.sleep(0.1 if how == "slow" else 1.5)
                asked = store.requests[name, True] + store.requests[name, False]
                down = how == "down" or (how == "starting" and asked <= 4)
                flaky = how == "flaky" and store.requests[name, True] <= 2
                if how == "gone" or down or (body and (flaky or how == "broken")):
                    self.send_error(404 if how == "gone" else 503)
                    return
                data = store.files.get(name) or picture(int(number))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Last-Modified", formatdate(1_700_000_000, usegmt=True))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def candidate(self, name):
        return Candidate(name, f"{self.url}/{name}", Location(f"{self.url}/{name}"), name)

    def close(self):
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.01)
    server = Store()
    yield server
    server.close()


def pool(encoder, **options):
    settings = {"workers": 2, "timeout_s": 30.0, "window": 32, **options}
    return DecodePool(encoder.preprocess, **settings)


def outcome(result):
    value = result.value
    return value.reason if isinstance(value, Skip) else value.candidate.id


def test_fetched_pictures_are_those_of_the_store_in_order(encoder):
    memory = fsspec.filesystem("memory")
    candidates = []
    for number in range(30):
        memory.pipe_file(f"/pictures/{number:02d}.png", picture(number))
        url = f"memory://pictures/{number:02d}.png"
        candidates.append(Candidate(url, url, Location(url), url))
    with pool(encoder) as workers:
        results = list(workers.decode(iter(candidates)))
    assert [outcome(result) for result in results] == [entry.id for entry in candidates]
    for number, result in enumerate(results):
        expected = encoder.preprocess.image(decode_image(picture(number))).numpy()
        np.testing.assert_array_equal(result.value.pixels_U[0], expected)
        assert result.value.stamp.size_bytes == len(picture(number))


def test_many_objects_are_fetched_at_once_but_no_more_than_asked(encoder, store):
    names = [f"slow-{number}" for number in range(24)]
    with pool(encoder, fetch_threads=6) as workers:
        results = list(workers.decode(map(store.candidate, names)))
    assert [outcome(result) for result in results] == names
    assert 3 <= store.most <= 6


def test_a_stalled_object_holds_up_itself_alone(encoder, store):
    names = ["slow-1", "stalled-2", *[f"slow-{number}" for number in range(3, 20)]]
    with pool(encoder, fetch_threads=2, fetch_timeout_s=2.0) as workers:
        results = list(workers.decode(map(store.candidate, names)))
        started = [name for name, body in store.requests if body]
    assert [outcome(r) for r in results] == [n.replace("stalled-2", "fetch_timeout") for n in names]
    assert len(started) == len(names)


def test_objects_that_all_stall_end_in_reasonable_time(encoder, store):
    names = [f"stalled-{number}" for number in range(12)]
    with pool(encoder, fetch_threads=4, fetch_timeout_s=0.5) as workers:
        results = list(workers.decode(map(store.candidate, names)))
    assert {outcome(result) for result in results} == {"fetch_timeout"}


def test_passing_trouble_is_tried_again_and_lasting_trouble_is_told(encoder, store):
    names = ["flaky-1", "gone-2", "broken-3", "good-4"]
    with pool(encoder) as workers:
        results = list(workers.decode(map(store.candidate, names)))
    assert [outcome(result) for result in results] == ["flaky-1", "missing", "unreadable", "good-4"]
    assert store.requests["flaky-1", True] == 3


def test_local_and_fetched_pictures_mix(encoder, store, photos):
    local = [
        Candidate(path.name, path.as_uri(), Location(str(path)), path.name)
        for path in sorted(photos.glob("0*.png"))
    ]
    mixed = [
        entry
        for pair in zip(local, map(store.candidate, ["slow-1", "good-2"] * 2), strict=False)
        for entry in pair
    ]
    with pool(encoder) as workers:
        results = list(workers.decode(iter(mixed)))
    assert [outcome(result) for result in results] == [entry.id for entry in mixed]


def test_fetcher_stops_at_its_bounds_until_bytes_are_released(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bounds/a", b"x" * 1000)
    memory.pipe_file("/bounds/b", b"x" * 5000)
    monkeypatch.setattr(fetch, "LARGEST_BYTES", 4000)
    fetcher = Fetcher(threads=2, max_bytes=2500)
    try:
        arrivals = {}
        for number, name in enumerate("aaab"):
            assert fetcher.has_room() is (number < 3)
            url = f"memory://bounds/{name}"
            if number < 3:
                fetcher.start(
                    number, Candidate(url, url, Location(url, size_bytes=1000, offset_bytes=0), url)
                )
        while fetcher.busy:
            arrivals |= {arrival.number: arrival.value for arrival in fetcher.collect()}
        assert [len(arrivals[number].data) for number in range(3)] == [1000] * 3
        assert not fetcher.has_room()
        fetcher.release(1)
        assert fetcher.has_room()
        url = "memory://bounds/b"
        fetcher.start(3, Candidate(url, url, Location(url), url))
        while fetcher.busy:
            arrivals |= {arrival.number: arrival.value for arrival in fetcher.collect()}
        assert arrivals[3] is None  # too large: whoever decodes it opens it
    finally:
        fetcher.close()


def test_an_object_too_large_to_be_fetched_is_opened_by_the_decoder(encoder, store, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST_BYTES", 10)
    with pool(encoder) as workers:
        [result] = workers.decode(iter([store.candidate("good-1")]))
    assert isinstance(result.value, Decoded)


def test_videos_held_back_make_way_for_one_that_was_fetched_late(encoder, tmp_path, store):
    """Every process waits for its clips to be taken, and what must come first has no process."""
    pytest.importorskip("av")
    from tests.index_builder.pipeline.test_videos import save_video

    local = [save_video(tmp_path / f"{name}.mp4", 20, seed=n) for n, name in enumerate("ab")]
    store.files["late-1"] = save_video(tmp_path / "late.mp4", 4).read_bytes()
    candidates = [
        store.candidate("late-1"),
        *[Candidate(path.name, path.as_uri(), Location(str(path)), path.name) for path in local],
    ]
    with pool(encoder, modality="video", segment_s=2.0, num_frames=2) as workers:
        results = list(workers.decode(iter(candidates)))
    assert [result.number for result in results] == [0] * 2 + [1] * 10 + [2] * 10
    starts = [result.value.clip.start_s for result in results]
    assert starts == [0.0, 2.0, *[2.0 * n for n in range(10)] * 2]


def test_a_store_that_is_down_is_not_taken_for_a_missing_object(encoder, store):
    names = ["down-1", "starting-2", "gone-3"]
    with pool(encoder) as workers:
        results = list(workers.decode(map(store.candidate, names)))
    assert [outcome(result) for result in results] == ["unreadable", "starting-2", "missing"]
    assert "the server answered 503" in results[0].value.message
