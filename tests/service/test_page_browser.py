"""The web page in a real browser: words, pictures, the larger view, and where the words are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

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
    return page.locator("#grid .id").all_inner_texts()


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
    similarities = [float(text.split()[1]) for text in words.all_inner_texts()]
    assert float(pressed.inner_text().split()[1]) == max(similarities)
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
    words.nth(2).click()
    found.keyboard.press("ArrowRight")  # another hit: its words are not looked for yet
    expect(words).to_have_count(0)
    expect(found.locator("#viewer-map")).to_be_hidden()
    expect(found.locator("#viewer-image")).to_be_visible()
    expect(found.locator("#explain")).to_be_enabled()


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
