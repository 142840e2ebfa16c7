"""Video galleries over HTTP: moments, frames, thumbnails of a time, and originals by ranges."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from cots_model.videos import VideoError, decode_frame, iter_clips
from index_builder.content import ContentError
from index_builder.gallery import Gallery
from index_builder.search import search_gallery
from service import rendering
from service.galleries import Registry
from tests.galleries import publish_videos
from tests.service.conftest import error_of
from tests.videos import numbers, write_clip

CLIPS = "/v1/galleries/clips"
PARTS = "/v1/galleries/parts"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_clip(folder / "a b.mp4", 40, size=(320, 240))
    write_clip(folder / "long ü.mkv", 130, size=(320, 240))
    return folder


@pytest.fixture(scope="module")
def found(folder, encoder, root, tmp_path_factory):
    """`clips` whole, and `parts` in segments of four seconds."""
    galleries = tmp_path_factory.mktemp("video galleries")
    publish_videos(galleries / "clips", encoder, folder)
    publish_videos(galleries / "parts", encoder, folder, segment_s=4)
    return Registry.open(galleries, expected_fingerprint=encoder.fingerprint)


@pytest.fixture(scope="module")
def client(serve, found):
    return serve(found=found).client


def hits_of(client, path=CLIPS, **body):
    answer = client.post(f"{path}/search", json={"query": "a dog", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def picture(answer) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    return Image.open(io.BytesIO(answer.content)).convert("RGB")


@pytest.mark.parametrize("rank_by", ["mean", "frame"])
@pytest.mark.parametrize("name", ["clips", "parts"])
def test_hits_are_those_of_a_search_without_a_server(client, found, encoder, name, rank_by):
    query_1E = encoder.encode_texts(["a dog"])
    [expected] = search_gallery(found.loaded[name], query_1E, k=9, rank_by=rank_by)
    hits = hits_of(client, f"/v1/galleries/{name}", rank_by=rank_by)
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    for hit, wanted in zip(hits, expected, strict=True):
        assert hit["score"] == pytest.approx(wanted.score, abs=1e-6)
        assert set(hit["moment"]) == {"time_s", "frame", "score"}
        assert hit["moment"]["time_s"] == wanted.moment.time_s
        assert hit["moment"]["frame"] == wanted.moment.frame
        assert (hit.get("start_s"), hit.get("end_s")) == (wanted.start_s, wanted.end_s)
        assert "frames" not in hit
        if rank_by == "frame":
            assert hit["score"] == hit["moment"]["score"]


def test_frames_are_told_where_they_are_asked_for(client, found):
    for hit in hits_of(client, PARTS, include=["frames"]):
        assert "metadata" not in hit
        gallery = found.loaded["parts"]
        times = [frame["time_s"] for frame in hit["frames"]]
        assert times == gallery.frames.times(gallery.row(hit["id"])).tolist()
        best = hit["frames"][hit["moment"]["frame"]]
        assert best == {"time_s": hit["moment"]["time_s"], "score": hit["moment"]["score"]}
        assert hit["moment"]["score"] == max(frame["score"] for frame in hit["frames"])


def test_a_batch_and_an_upload_have_moments(client, folder):
    body = {"queries": ["a", {"item_id": "a b.mp4"}], "k": 1, "rank_by": "frame"}
    results = client.post(f"{CLIPS}/search", json=body).json()["results"]
    assert all("moment" in result["hits"][0] for result in results)
    out = io.BytesIO()
    decode_frame(folder / "a b.mp4", 1).save(out, "PNG")
    data = {"rank_by": "frame", "include": "frames"}
    answer = client.post(f"{CLIPS}/search/upload", files={"file": out.getvalue()}, data=data)
    assert len(answer.json()["hits"][0]["frames"]) == 16


@pytest.mark.parametrize(("field", "value"), [("rank_by", "frame"), ("include", ["frames"])])
def test_pictures_have_no_frames(serve, field, value):
    answer = serve().client.post("/v1/galleries/pets/search", json={"query": "a", field: value})
    error = error_of(answer, 422)
    assert (error["code"], error["param"]) == ("not_supported", field)
    assert "holds image items" in error["message"]


def test_the_thumbnail_of_a_hit_is_its_moment(client, folder):
    for path in (CLIPS, PARTS):
        for hit in hits_of(client, path):
            name = hit["id"].partition("#")[0]
            img = picture(client.get(f"{hit['thumbnail']}&size=320"))
            expected = decode_frame(folder / name, hit["moment"]["time_s"])
            assert numbers([img]) == numbers([expected])
            assert numbers([img]) == [round(hit["moment"]["time_s"] * 10)]


def test_the_thumbnail_of_an_item_is_in_its_middle(client, folder):
    for path, item_id, number in (
        (CLIPS, "a b.mp4", 20),
        (CLIPS, "long ü.mkv", 65),
        (PARTS, "long ü.mkv#t=0,4", 20),
        (PARTS, "long ü.mkv#t=8,13", 105),
    ):
        item = client.get(f"{path}/items/{item_id.replace('#', '%23')}").json()
        assert item["id"] == item_id
        assert numbers([picture(client.get(f"{item['thumbnail']}?size=320"))]) == [number]
        assert numbers([picture(client.get(f"{item['thumbnail']}?size=320&time_s=2.2"))]) == [22]
    assert picture(client.get(f"{CLIPS}/items/a b.mp4/thumbnail?size=64")).size == (64, 48)


def test_an_item_tells_its_segment(client, folder):
    whole = client.get(f"{CLIPS}/items/long ü.mkv").json()
    assert (whole["duration_s"], "start_s" in whole, "text" in whole) == (13.0, False, False)
    part = client.get(f"{PARTS}/items/long ü.mkv%23t=8,13").json()
    assert (part["start_s"], part["end_s"], part["duration_s"]) == (8.0, 13.0, 13.0)


def test_thumbnails_of_two_times_are_two(client):
    etags = {
        client.get(f"{CLIPS}/items/a b.mp4/thumbnail?{query}").headers["etag"]
        for query in ("", "time_s=1", "time_s=1.1", "time_s=1.1&size=64", "time_s=1.10")
    }
    assert len(etags) == 4
    for etag in etags:
        answer = client.get(
            f"{CLIPS}/items/a b.mp4/thumbnail?time_s=1.1", headers={"if-none-match": etag}
        )
        assert answer.status_code == (304 if etag.endswith('-256-1.1"') else 200)


@pytest.mark.parametrize("time_s", ["-1", "nan", "inf", "x", "1e999"])
def test_times_that_cannot_be_are_refused(client, time_s):
    answer = client.get(f"{CLIPS}/items/a b.mp4/thumbnail?time_s={time_s}")
    assert error_of(answer, 422)["param"] == "time_s"


def test_a_time_behind_the_end_shows_the_last_frame(client):
    """And is not looked for there, which takes as long as decoding all of it."""
    answers = [
        client.get(f"{CLIPS}/items/a b.mp4/thumbnail?time_s={time_s}&size=320")
        for time_s in ("1e300", "4", "77")
    ]
    assert [numbers([picture(answer)]) for answer in answers] == [[39], [39], [39]]
    assert len({answer.headers["etag"] for answer in answers}) == 1


def test_pictures_have_no_times(serve):
    answer = serve().client.get("/v1/galleries/pets/items/cat.jpg/thumbnail?time_s=1")
    error = error_of(answer, 422)
    assert error["param"] == "time_s"
    assert "leave it out" in error["message"]


def test_the_original_plays_from_the_middle(client, folder):
    """By ranges, with the type of a video, also for a segment."""
    data = (folder / "a b.mp4").read_bytes()
    answer = client.get(f"{CLIPS}/items/a b.mp4/content", headers={"range": "bytes=100-299"})
    assert (answer.status_code, answer.content) == (206, data[100:300])
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"].startswith("inline")
    part = client.get(f"{PARTS}/items/long ü.mkv%23t=0,4/content")
    assert part.content == (folder / "long ü.mkv").read_bytes()
    assert part.headers["content-type"] in ("video/x-matroska", "video/matroska")
    assert part.headers["content-disposition"].endswith("long%20%C3%BC.mkv")


@pytest.mark.slow
def test_a_browser_may_show_the_original(serve, found, page):
    """The page that it makes for a video is within our policy."""
    page.goto(f"{serve(found=found).url}{CLIPS}/items/a%20b.mp4/content")
    expect(page.locator("video")).to_be_visible()


@pytest.mark.slow
def test_the_page_explains_the_moment_that_was_found(serve, found, page):
    server = serve(found=found)
    hits = server.client.post(f"{CLIPS}/search", json={"query": "a red car", "k": 30}).json()[
        "hits"
    ]
    page.goto(f"{server.url}/#g=clips&q=a+red+car")
    page.locator("#grid button").first.click()
    expect(page.locator("#viewer-video")).to_be_visible()
    expect(page.locator("#viewer-image")).to_be_hidden()
    with page.expect_request("**/v1/explain") as asked:
        page.locator("#explain").click()
    sent = asked.value.post_data_json
    assert (sent["item_id"], sent["text"]) == (hits[0]["id"], "a red car")
    assert sent["time_s"] == hits[0]["moment"]["time_s"]
    expect(page.locator("#viewer-map")).to_be_visible()
    expect(page.locator("#viewer-video")).to_be_hidden()
    assert page.locator("#viewer-video").evaluate("video => video.paused")
    page.locator("#words button[aria-pressed=true]").click()
    expect(page.locator("#viewer-video")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-facts")).to_contain_text("place")
    expect(page.locator("#viewer-id")).to_have_text(hits[1]["id"])


def test_large_frames_and_files_that_changed_have_no_thumbnail(
    serve, encoder, folder, tmp_path, monkeypatch
):
    source = tmp_path / "films"
    source.mkdir()
    for name in ("large.mp4", "changed.mp4", "gone.mp4"):
        (source / name).write_bytes((folder / "a b.mp4").read_bytes())
    publish_videos(tmp_path / "g" / "here", encoder, source)
    found = Registry.open(tmp_path / "g", expected_fingerprint=encoder.fingerprint)
    write_clip(source / "changed.mp4", 3)
    (source / "gone.mp4").unlink()
    client = serve(found=found, max_image_pixels=320 * 239).client
    for name, code in (
        ("large.mp4", "thumbnail_not_available"),
        ("changed.mp4", "content_changed"),
        ("gone.mp4", "content_missing"),
    ):
        answer = client.get(f"/v1/galleries/here/items/{name}/thumbnail")
        assert error_of(answer, 404)["code"] == code
        assert str(tmp_path) not in answer.text
    answer = client.get("/v1/galleries/here/items/large.mp4/thumbnail")
    assert "too_many_pixels" in answer.json()["error"]["message"]


def test_without_pyav_there_is_no_thumbnail(serve, found, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    answer = serve(found=found).client.get(f"{CLIPS}/items/a b.mp4/thumbnail")
    error = error_of(answer, 404)
    assert error["code"] == "thumbnail_not_available"
    assert "this server cannot decode videos" in error["message"]


def test_videos_that_take_long_hold_up_nothing_else(serve, found, monkeypatch):
    """Each of their threads is at work, and items, originals of texts and /readyz answer."""
    begun, gate = threading.Event(), threading.Event()

    def waiting(*args, **options):
        begun.set()
        gate.wait(30)
        return decode_frame(*args, **options)

    monkeypatch.setattr(rendering, "decode_frame", waiting)
    running = serve(found=found, decode_threads=1, deadline_s=2.0)
    with ThreadPoolExecutor(1) as pool:
        url = f"{running.url}{CLIPS}/items/a b.mp4/thumbnail"
        slow = pool.submit(httpx.get, url, timeout=30)
        assert begun.wait(15)
        start_s = time.monotonic()
        assert running.client.get(f"{CLIPS}/items/a b.mp4").status_code == 200
        hits_of(running.client, query={"item_id": "a b.mp4"})
        assert time.monotonic() - start_s < 2
        assert error_of(slow.result(), 504)["code"] == "deadline_exceeded"
        gate.set()


def test_a_frame_is_looked_for_until_the_deadline_of_its_request(serve, found, monkeypatch):
    asked = []

    def recording(file, time_s, *, max_pixels, until_s):
        asked.append(until_s)
        raise VideoError("timeout", "too long")

    monkeypatch.setattr(rendering, "decode_frame", recording)
    client = serve(found=found, deadline_s=5.0).client
    start_s = time.monotonic()
    answer = client.get(f"{CLIPS}/items/a b.mp4/thumbnail")
    assert error_of(answer, 504)["code"] == "deadline_exceeded"
    assert start_s + 5 <= asked[0] <= time.monotonic() + 5


@pytest.mark.parametrize("view", ["thumbnail", "content"])
@pytest.mark.parametrize(("reason", "status"), [("timeout", 504), ("missing", 404)])
def test_a_bucket_that_does_not_answer_is_a_504(serve, found, monkeypatch, view, reason, status):
    """When the original is opened, and when it is read by the decoder."""

    def failing(*_):
        raise ContentError(reason, "s3://secret/place: no answer within 30 s")

    class Failing(io.BytesIO):
        read = failing

    client = serve(found=found).client
    for opening in (failing, lambda *_: Failing()):
        if view == "content" and opening is not failing:
            continue  # its status is sent already
        monkeypatch.setattr(Gallery, "open_content", opening)
        answer = client.get(f"{CLIPS}/items/a b.mp4/{view}")
        error = error_of(answer, status)
        assert error["code"] == f"content_{reason}"
        assert "secret" not in answer.text


def test_a_frame_that_takes_too_long_is_given_up(folder):
    with pytest.raises(VideoError) as caught:
        decode_frame(folder / "long ü.mkv", 9, until_s=0.0)
    assert caught.value.reason == "timeout"


def test_the_command_line_prints_what_http_sends(client, found, checkpoint):
    from click.testing import CliRunner

    from cots_cli.search import command

    for name in ("clips", "parts"):
        root = found.loaded[name].root
        fixed = ["--gallery", str(root), "--checkpoint", str(checkpoint), "a dog"]
        for rank_by in ("mean", "frame"):
            options = [*fixed, "--rank-by", rank_by]
            result = CliRunner().invoke(command, [*options, "--json"])
            printed = json.loads(result.stdout)["hits"]
            sent = hits_of(client, f"/v1/galleries/{name}", rank_by=rank_by)
            assert [set(hit) for hit in printed] == [set(hit) for hit in sent]
            assert [hit["thumbnail"] for hit in printed] == [hit["thumbnail"] for hit in sent]
            lines = CliRunner().invoke(command, options).stdout.splitlines()
            for line, hit in zip(lines, sent, strict=True):
                score, item_id, moment, _ = line.split("  ")
                assert (float(score), item_id) == (round(hit["score"], 4), hit["id"])
                minutes, seconds = moment.removeprefix("at ").split(":")
                shown_s = int(minutes) * 60 + float(seconds)
                assert shown_s == pytest.approx(hit["moment"]["time_s"], abs=0.1)


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [(0, "0:00.0"), (12.4, "0:12.4"), (59.99, "0:59.9"), (60, "1:00.0"), (3725.05, "1:02:05.0")],
)
def test_times_are_printed_as_clocks(time_s, shown):
    from cots_cli.search import _clock

    assert _clock(time_s) == shown


def test_a_gallery_with_damaged_frames_is_refused(found, encoder, folder, tmp_path):
    from cots_model.errors import GalleryError

    root = publish_videos(tmp_path / "g", encoder, folder)
    [path] = root.glob("versions/*/frames.npy")
    data = np.load(path)
    data[0, 0, 0] += 1
    np.save(path, data)
    with pytest.raises(GalleryError, match=r"frames\.npy is damaged"):
        Gallery.open(root)


def test_clips_have_as_many_frames_as_the_gallery_says(folder, found):
    [clip] = iter_clips(folder / "a b.mp4")
    gallery = found.loaded["clips"]
    assert gallery.frames.times(gallery.row("a b.mp4")).tolist() == list(clip.times_s)


def test_a_frame_of_a_video_is_explained(client, found):
    item_id = found.loaded["clips"].item(0).id
    asked = {"text": "red dog", "gallery": "clips", "item_id": item_id}
    middle = client.post("/v1/explain", json=asked)
    assert middle.status_code == 200, middle.text
    first = client.post("/v1/explain", json={**asked, "time_s": 0.0, "overlay": True})
    assert [word["word"] for word in first.json()["words"]] == ["red", "dog"]
    assert first.json()["similarity"] != middle.json()["similarity"]
