"""The web page: served whole, and obeying its own policy without the network."""

from __future__ import annotations

import re

import pytest

ASSETS = ["/", "/static/app.js", "/static/grid.js", "/static/app.css", "/static/icon.svg"]


def test_page_refers_only_to_what_this_server_has(client) -> None:
    page = client.get("/").text
    references = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(references) >= 4
    for reference in references:
        assert reference.startswith(("/static/", "#"))
        if reference.startswith("/"):
            assert client.get(reference).status_code == 200
    imports = re.findall(r'from "([^"]+)"', client.get("/static/app.js").text)
    assert imports == ["/static/grid.js"]


@pytest.mark.parametrize("path", ASSETS)
def test_page_file_has_type_validator_and_policy(client, path) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304


def test_page_obeys_its_own_policy(client) -> None:
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", page)
    for path in ("/static/app.js", "/static/grid.js"):
        script = client.get(path).text
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


def test_page_scripts_use_only_ids_that_exist(client) -> None:
    ids = set(re.findall(r'id="([^"]+)"', client.get("/").text))
    for path in ("/static/app.js", "/static/grid.js"):
        used = set(re.findall(r'\$\("([^"]+)"\)', client.get(path).text))
        assert used
        assert used <= ids


def test_page_names_outside_the_table_are_404(client) -> None:
    for name in ("../app.py", "..%2fapp.py", "app.py", "index.html", ""):
        assert client.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize(("max_k", "hits"), [(1000, 30), (30, 30), (7, 7)])
def test_page_asks_for_no_more_than_there_may_be(serve, max_k, hits) -> None:
    server = serve(max_k=max_k, probe_interval_s=60.0)
    assert f'<html lang="en" data-hits="{hits}">' in server.client.get("/").text
    assert "dataset.hits" in server.client.get("/static/app.js").text
