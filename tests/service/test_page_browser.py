"""The web page in a real browser: words, pictures, the larger view, and where the words are."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, Request, Route, expect

from service.app import create_app
from service.server import address_of, bind, server_config
from service.settings import Settings
from service.state import Resources
from service.waiting_room import WaitingRoom
from tests.service.conftest import Running, picture

SEARCH = "/v1/galleries/pets/search"
TEXT = "two dogs, in snow"


@pytest.fixture
def found(page: Page, server: Running) -> Page:
    """The page with the hits of some words."""
    page.goto(server.url)
    page.locator("#query").fill(TEXT)
    page.keyboard.press("Enter")
    expect(page.locator("#grid button").first).to_be_visible()
    return page


def shown_ids(page: Page) -> list[str]:
    return page.locator("#grid .id").all_text_contents()


def test_words_find_what_the_api_finds(found: Page, server: Running) -> None:
    hits = server.client.post(SEARCH, json={"query": TEXT, "k": 30}).json()["hits"]
    assert shown_ids(found) == [hit["id"] for hit in hits]
    assert TEXT.split()[0] in found.url
    expect(found).to_have_title(f"{TEXT} · COTS Retrieval")


def test_a_picture_finds_what_the_api_finds(page: Page, server: Running) -> None:
    page.goto(server.url)
    file: Any = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": picture(7)}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#chip-label")).to_have_text("mine.jpg")
    expect(page.locator("#grid button").first).to_be_visible()
    answer = server.client.post(f"{SEARCH}/upload", files={"file": ("mine.jpg", picture(7))})
    assert shown_ids(page)[:10] == [hit["id"] for hit in answer.json()["hits"]]
    page.locator("#grid button").first.click()
    expect(page.locator("#similar")).to_be_visible()
    expect(page.locator("#explain")).to_be_hidden()  # there are no words


def test_each_word_has_its_map_and_the_picture_comes_back(found: Page) -> None:
    found.locator("#grid button").first.click()
    expect(found.locator("#viewer-image")).to_be_visible()
    found.locator("#explain").click()
    words = found.locator("#words button")
    expect(words).to_have_count(4)
    assert [text.split()[0] for text in words.all_inner_texts()] == ["two", "dogs", "in", "snow"]
    pressed = found.locator("#words button[aria-pressed=true]")
    expect(pressed).to_have_count(1)
    assert words.nth(2).inner_text() == "in"  # what it scores says nothing
    told = [text.split() for text in words.all_inner_texts() if text != "in"]
    assert float(pressed.inner_text().split()[1]) == max(float(number) for _, number in told)
    expect(pressed).to_be_focused()
    expect(found.locator("#viewer-map")).to_be_visible()
    expect(found.locator("#viewer-image")).to_be_hidden()
    assert found.evaluate("document.getElementById('viewer-map').naturalWidth") > 0
    other = found.locator("#words button[aria-pressed=false]").first
    word = other.inner_text().split()[0]
    other.click()
    expect(found.locator("#viewer-map")).to_have_attribute("alt", f"Where “{word}” fits best")
    expect(found.locator("#explain-status")).to_contain_text(f"“{word}”")
    pressed.click()
    expect(found.locator("#viewer-map")).to_be_hidden()
    expect(found.locator("#viewer-image")).to_be_visible()
    stop_the_clock(found)
    asked = explained(found)
    found.keyboard.press("ArrowRight")  # the picture was looked at last, so it is on the next hit
    expect(words).to_have_count(0)
    expect(found.locator("#viewer-image")).to_be_visible()
    found.clock.run_for(5000)
    expect(found.locator("#explain")).to_be_visible()
    assert asked == []


def explained(page: Page) -> list[str]:
    """The items that maps are asked for from now on."""
    asked: list[str] = []

    def listen(request: Request) -> None:
        if request.url.endswith("/v1/explain"):
            asked.append(json.loads(request.post_data or "")["item_id"])

    page.on("request", listen)
    return asked


def stop_the_clock(page: Page) -> None:
    """From now on time passes for the page's timers only where the test lets it."""
    begun = datetime(2024, 1, 1)
    page.clock.install(time=begun)
    page.clock.pause_at(begun + timedelta(hours=1))  # of what is to come


def test_the_map_of_a_word_goes_with_the_hits(found: Page) -> None:
    found.locator("#query").fill("a dog and a dog")
    found.keyboard.press("Enter")
    expect(found).to_have_title("a dog and a dog · COTS Retrieval")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    words = found.locator("#words button")
    words.nth(4).click()  # the second dog
    stop_the_clock(found)
    asked = explained(found)
    for _ in range(3):  # who leafs through hits waits for no maps
        found.keyboard.press("ArrowRight")
        expect(found.locator("#explain")).to_be_focused()
        found.clock.run_for(200)
    assert asked == []
    found.clock.run_for(100)
    expect(words).to_have_count(5)
    expect(words.nth(4)).to_have_attribute("aria-pressed", "true")
    expect(words.nth(4)).to_be_focused()
    expect(found.locator("#viewer-map")).to_be_visible()
    assert asked == [found.locator("#viewer-id").inner_text()]
    found.keyboard.press("Space")  # the word, not "Find similar"
    expect(words.nth(4)).to_have_attribute("aria-pressed", "false")
    expect(found.locator("#viewer-image")).to_be_visible()
    words.nth(1).click()
    found.locator("#close").click()
    found.locator("#grid button").first.click()
    found.clock.run_for(5000)
    expect(words).to_have_count(0)
    expect(found.locator("#viewer-image")).to_be_visible()
    assert len(asked) == 1


def test_a_video_that_plays_is_not_taken_away(found: Page) -> None:
    found.locator("#grid button").first.click()
    found.evaluate(
        """() => {
          const video = document.getElementById("viewer-video");
          Object.defineProperty(video, "paused", { get: () => false });
          video.hidden = false;
        }"""
    )
    found.locator("#explain").click()
    expect(found.locator("#words button")).to_have_count(4)
    expect(found.locator("#words button[aria-pressed=true]")).to_have_count(0)
    expect(found.locator("#viewer-map")).to_be_hidden()
    expect(found.locator("#words button").first).to_be_focused()
    found.locator("#words button").nth(1).click()
    expect(found.locator("#viewer-map")).to_be_visible()


def test_an_answer_that_is_cut_is_said(found: Page) -> None:
    found.route("**/v1/explain", lambda route: route.fulfill(status=200, body='{"words": ['))
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    expect(found.locator("#explain-status")).to_contain_text("did not come whole")
    expect(found.locator("#explain")).to_be_visible()
    expect(found.locator("#explain")).to_be_enabled()


def test_pictures_of_maps_are_let_go(found: Page) -> None:
    found.evaluate(
        """() => {
          window.held = new Set();
          const [make, drop] = [URL.createObjectURL, URL.revokeObjectURL];
          URL.createObjectURL = (blob) => { const url = make(blob); held.add(url); return url; };
          URL.revokeObjectURL = (url) => { held.delete(url); drop(url); };
        }"""
    )
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    expect(found.locator("#words button")).to_have_count(4)
    assert found.evaluate("held.size") == 4
    found.locator("#close").click()
    expect(found.locator("#viewer")).to_be_hidden()
    found.wait_for_function("held.size === 0")


def place(page: Page) -> int:
    """Of the hit that is shown."""
    facts = page.locator("#viewer-facts").inner_text().split("\n")
    return int(facts[facts.index("place") + 1])


def test_keys_walk_through_the_hits_whatever_was_pressed_before(found: Page) -> None:
    found.locator("#grid button").first.click()
    for expected in (2, 3):
        found.keyboard.press("ArrowRight")
        assert place(found) == expected
    found.locator("#explain").click()
    expect(found.locator("#words button")).to_have_count(4)
    for expected in (4, 5):
        found.keyboard.press("ArrowRight")
        assert place(found) == expected
        expect(found.locator("#viewer :focus")).to_have_count(1)  # the word that was is gone
    found.keyboard.press("ArrowLeft")
    assert place(found) == 4
    for _ in range(40):
        found.locator("#next").dispatch_event("click")
    last = place(found)
    assert last == found.locator("#grid button").count()
    found.keyboard.press("ArrowLeft")
    assert place(found) == last - 1
    found.keyboard.press("Escape")
    expect(found.locator("#viewer")).to_be_hidden()
    expect(found.locator("#grid button").nth(last - 2)).to_be_focused()
    found.keyboard.press("ArrowRight")  # in the grid now
    expect(found.locator("#viewer")).to_be_hidden()
    expect(found.locator("#grid button").nth(last - 1)).to_be_focused()


def test_going_back_closes_the_larger_view(found: Page, server: Running) -> None:
    found.locator("#query").fill("a cat")
    found.keyboard.press("Enter")
    expect(found).to_have_title("a cat · COTS Retrieval")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    expect(found.locator("#viewer-map")).to_be_visible()
    found.go_back()
    expect(found.locator("#viewer")).to_be_hidden()
    hits = server.client.post(SEARCH, json={"query": TEXT, "k": 30}).json()["hits"]
    expect(found.locator("#grid .id").first).to_have_text(hits[0]["id"])
    found.locator("#grid button").first.click()
    expect(found.locator("#viewer-image")).to_be_visible()
    expect(found.locator("#viewer-map")).to_be_hidden()
    expect(found.locator("#words button")).to_have_count(0)


def test_a_picture_that_does_not_come_is_said(found: Page) -> None:
    found.route("**/thumbnail?size=1024", lambda route: route.abort())
    found.locator("#grid button").first.click()
    expect(found.locator("#viewer-missing")).to_have_text("no preview")
    expect(found.locator("#viewer-image")).to_be_hidden()


def test_what_is_no_picture_is_named_and_another_may_be_chosen(page: Page, server: Running) -> None:
    page.goto(server.url)
    file: Any = {"name": "broken.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#message")).to_contain_text("broken.jpg is not a picture")
    expect(page.locator("#message button")).to_have_text("Choose another picture")
    page.locator("#gallery").select_option("shards")
    expect(page.locator("#message")).to_contain_text("broken.jpg is not a picture")
    assert page.url.endswith("#g=shards")
    notes: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
    page.locator("#file").set_input_files(notes)
    expect(page.locator("#message")).to_contain_text("notes.txt is not a picture")
    expect(page.locator("#chip")).to_be_hidden()


def test_while_it_loads_a_browser_waits_for_the_page(page: Page, root, encoder, registry) -> None:
    with bind("127.0.0.1", 0) as listener:
        url = address_of(listener)
        with contextlib.closing(WaitingRoom(listener)):
            answer = page.goto(f"{url}/#g=pets&q=a+cat")
            assert answer is not None
            assert (answer.status, answer.headers["content-type"]) == (
                503,
                "text/html; charset=utf-8",
            )
            expect(page.get_by_role("status")).to_contain_text("still loading")
        settings = Settings(galleries=root)
        app = create_app(settings, Resources(encoder, registry))
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        expect(page.locator("#query")).to_have_value("a cat")
        server.should_exit = True
        thread.join(20)


def test_what_cannot_be_explained_is_said_and_may_be_tried_again(found: Page) -> None:
    def refuse(route: Route) -> None:
        asked = json.loads(route.request.post_data or "")
        assert (asked["text"], asked["gallery"]) == (TEXT, "pets")
        route.fulfill(status=422, json={"error": {"message": "this model has no maps"}})

    found.route("**/v1/explain", refuse)
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    expect(found.locator("#explain-status")).to_have_text("this model has no maps")
    expect(found.locator("#explain")).to_be_enabled()
    expect(found.locator("#viewer-image")).to_be_visible()


def test_who_looks_at_another_hit_ends_the_work_for_the_one_before(found: Page) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    found.route("**/v1/explain", hold)
    found.locator("#grid button").first.click()
    found.locator("#explain").click()
    expect(found.locator("#explain-status")).to_contain_text("Looking")
    with found.expect_event("requestfailed", lambda request: request.url.endswith("/v1/explain")):
        found.keyboard.press("ArrowRight")
    expect(found.locator("#explain-status")).to_be_empty()
    expect(found.locator("#explain")).to_be_enabled()
    assert len(held) == 1


def test_a_link_shows_its_words_and_hits_again(page: Page, server: Running) -> None:
    page.goto(f"{server.url}/#g=pets&q=a+cat")
    expect(page.locator("#grid button").first).to_be_visible()
    expect(page.locator("#query")).to_have_value("a cat")
    page.locator("#grid button").first.click()
    page.locator("#similar").click()
    expect(page.locator("#chip-label")).to_contain_text("like")
    page.go_back()
    expect(page.locator("#query")).to_have_value("a cat")


def test_a_picture_of_ones_own_has_its_place_in_the_history(found: Page) -> None:
    words = shown_ids(found)
    file: Any = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": picture(7)}
    found.locator("#file").set_input_files(file)
    expect(found).to_have_title("Picture search · COTS Retrieval")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()
    assert found.url.endswith("#g=pets")
    mine = shown_ids(found)
    assert mine != words
    found.go_back()
    expect(found.locator("#query")).to_have_value(TEXT)
    expect(found.locator("#grid .id").first).to_have_text(words[0])
    found.go_forward()
    expect(found.locator("#chip-label")).to_have_text("mine.jpg")
    expect(found.locator("#grid .id").first).to_have_text(mine[0])
    found.locator("#gallery").select_option("shards")
    expect(found.locator("#chip-label")).to_have_text("mine.jpg")
    expect(found.locator("#status")).to_contain_text("in shards")
    found.reload()  # the picture is gone, and nothing else takes its place
    expect(found.locator("#message")).to_contain_text("Find a picture by words")
    expect(found.locator("#chip")).to_be_hidden()
    other: Any = {"name": "other.jpg", "mimeType": "image/jpeg", "buffer": picture(8)}
    found.locator("#file").set_input_files(other)
    expect(found.locator("#chip-label")).to_have_text("other.jpg")
    found.go_back()
    expect(found.locator("#message")).to_contain_text("Find a picture by words")
    expect(found.locator("#chip")).to_be_hidden()


def test_of_pictures_of_ones_own_the_last_few_are_kept(page: Page, server: Running) -> None:
    page.goto(server.url)
    for number in range(22):
        name = f"{number}.jpg"
        file: Any = {"name": name, "mimeType": "image/jpeg", "buffer": picture(number)}
        page.locator("#file").set_input_files(file)
        expect(page.locator("#chip-label")).to_have_text(name)
    page.evaluate("history.go(-19)")
    expect(page.locator("#chip-label")).to_have_text("2.jpg")
    page.go_back()
    expect(page.locator("#message")).to_contain_text("Find a picture by words")


def test_words_that_were_only_typed_are_not_part_of_a_picture_search(found: Page) -> None:
    file: Any = {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": picture(7)}
    found.locator("#file").set_input_files(file)
    found.locator("#query").fill("half typed")
    found.locator("#gallery").select_option("shards")
    expect(found.locator("#status")).to_contain_text("in shards")
    assert found.url.endswith("#g=shards")
    expect(found.locator("#chip-label")).to_have_text("mine.jpg")
    expect(found.locator("#query")).to_have_value("")


def test_the_keyboard_goes_on_where_the_results_are(page: Page, serve) -> None:
    page.goto(serve(max_k=3).url)
    page.locator("#message button").first.press("Enter")
    results = page.locator("#grid button")
    expect(results.nth(0)).to_be_focused()
    page.locator("#more").press("Enter")
    expect(results.nth(3)).to_be_focused()
    page.keyboard.press("Enter")
    page.locator("#similar").press("Enter")
    expect(page.locator("#chip-label")).to_contain_text("like")
    expect(results.nth(0)).to_be_focused()
    page.locator("#query").fill("a dog")
    page.keyboard.press("Enter")
    expect(page).to_have_title("a dog · COTS Retrieval")
    expect(page.locator("#grid:not(.waiting) button").first).to_be_visible()
    expect(page.locator("#query")).to_be_focused()


def test_who_has_no_button_in_hand_is_given_none(found: Page) -> None:
    """Arrow keys scroll the page then, also after a search by the address."""
    found.evaluate("document.activeElement.blur(); location.hash = '#g=pets&q=a+dog'")
    expect(found).to_have_title("a dog · COTS Retrieval")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()
    assert found.evaluate("document.activeElement === document.body")


def test_more_that_did_not_come_is_asked_for_again_from_the_keyboard(page: Page, serve) -> None:
    page.goto(f"{serve(max_k=3).url}/#q=a+dog")
    expect(page.locator("#grid button")).to_have_count(3)
    page.route("**/search", lambda route: route.fulfill(status=503, body="{}"))
    page.locator("#more").press("Enter")
    expect(page.locator("#message")).to_contain_text("The server answered 503")
    page.unroute("**/search")
    again = page.locator("#message button")
    expect(again).to_be_focused()
    again.press("Enter")
    expect(page.locator("#grid button")).to_have_count(6)
    expect(page.locator("#grid button").nth(3)).to_be_focused()


def test_a_link_to_a_gallery_that_is_not_here_says_so(page: Page, server: Running) -> None:
    page.goto(f"{server.url}/#g=birds&q=a+dog")
    expect(page.locator("#message")).to_contain_text("There is no gallery birds")
    expect(page.locator("#grid button")).to_have_count(0)
    page.get_by_role("button", name="Search pets").click()
    expect(page.locator("#grid button").first).to_be_visible()
    assert page.url.endswith("#g=pets&q=a+dog")


def test_a_link_to_an_item_of_a_gallery_that_is_not_here_shows_no_other(page, server) -> None:
    page.goto(f"{server.url}/#g=birds&like=more/00.jpg")
    expect(page.locator("#message")).to_contain_text("There is no gallery birds")
    expect(page.locator("#chip-image")).to_be_hidden()
    page.locator("#query").press("Enter")
    expect(page.locator("#message")).to_contain_text("Find a picture by words")
    page.go_back()
    page.get_by_role("button", name="Go to pets").press("Enter")
    expect(page.locator("#message")).to_contain_text("Find a picture by words")


def test_a_gallery_that_went_away_meanwhile_is_looked_for(page: Page, server: Running) -> None:
    page.goto(server.url)
    told = '{"error": {"message": "no gallery", "code": "gallery_not_found"}}'
    page.route("**/search", lambda route: route.fulfill(status=404, body=told))
    page.locator("#query").fill("a dog")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Which galleries are there?")).to_be_visible()
    page.unroute("**/search")
    page.route("**/v1/galleries", lambda route: route.fulfill(status=200, body='{"galleries": []}'))
    page.get_by_role("button", name="Which galleries are there?").click()
    expect(page.locator("#message")).to_contain_text("There is no gallery yet")
    page.locator("#query").fill("a cat")
    page.keyboard.press("Enter")  # there is nothing to search
    expect(page.locator("#message")).to_contain_text("There is no gallery yet")
    page.unroute("**/v1/galleries")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#grid button").first).to_be_visible()
    expect(page.locator("#query")).to_have_value("a cat")


HOLD_GALLERIES = """
const real = window.fetch;
window.fetch = async (path, options) => {
  if (path === "/v1/galleries") await new Promise((resolve) => (window.letGo = resolve));
  return real(path, options);
};
"""


def test_who_searches_while_the_galleries_load_has_hits_when_they_have(page, server) -> None:
    page.add_init_script(HOLD_GALLERIES)
    page.goto(server.url)
    page.locator("#query").fill("a dog")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Loading…")
    page.evaluate("letGo()")
    expect(page.locator("#grid button").first).to_be_visible()
    expect(page.locator("#query")).to_have_value("a dog")


@pytest.mark.parametrize("link", ["", "#q=two+dogs"])
def test_who_types_while_the_galleries_load_may_go_on(page, server, link) -> None:
    page.add_init_script(HOLD_GALLERIES)
    page.goto(f"{server.url}/{link}")
    page.locator("#query").fill("half a")
    page.evaluate("letGo()")
    expect(page.locator("#status")).to_contain_text("pets")
    expect(page.locator("#message:has-text('Find a picture by words')")).to_have_count(
        int(not link)
    )
    expect(page.locator("#query")).to_have_value("half a")


def test_the_skip_link_keeps_the_search(found: Page) -> None:
    found.locator(".skip").press("Enter")
    expect(found.locator("#grid button").first).to_be_focused()
    assert "q=two" in found.url


def test_an_empty_box_keeps_what_a_picture_found(found: Page) -> None:
    found.locator("#grid button").first.click()
    found.locator("#similar").click()
    expect(found.locator("#chip-label")).to_contain_text("like")
    found.locator("#query").press("Enter")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()
    expect(found.locator("#chip-label")).to_contain_text("like")


def test_an_empty_box_shows_the_beginning(found: Page) -> None:
    found.locator("#query").fill(" ")
    found.keyboard.press("Enter")
    expect(found.locator("#message")).to_contain_text("Find a picture by words")
    expect(found.locator("#grid button")).to_have_count(0)


def test_what_cannot_succeed_is_not_offered_again(page: Page, server: Running) -> None:
    page.goto(f"{server.url}/#g=pets&like=nope.jpg")
    expect(page.locator("#message")).to_contain_text("nope.jpg")
    action = page.locator("#message button")
    expect(action).to_have_text("Change the search")
    action.click()
    expect(page.locator("#query")).to_be_focused()


def test_words_that_are_too_many_are_told_beside_the_hits(found: Page) -> None:
    found.locator("#query").fill("dog " * 200)
    found.keyboard.press("Enter")
    expect(found.locator("#status")).to_contain_text("This is longer than")
    expect(found.locator("#grid:not(.waiting) button").first).to_be_visible()


def test_of_a_long_id_the_end_is_shown(found: Page) -> None:
    found.set_viewport_size({"width": 320, "height": 640})
    long = found.locator("#grid .id", has_text="/").first
    long.evaluate("box => (box.style.maxWidth = '4rem')")
    begins, ends = long.evaluate(
        """box => {
          const [outer, inner] = [box, box.firstChild].map((one) => one.getBoundingClientRect());
          return [inner.left - outer.left, inner.right - outer.right];
        }"""
    )
    assert begins < -1  # out of sight
    assert abs(ends) <= 1
