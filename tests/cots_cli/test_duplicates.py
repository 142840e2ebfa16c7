"""`cots index duplicates`: what it prints, and the files it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.index_builder.stores import plain_items, publish_gallery, unit_vectors


@pytest.fixture
def gallery(tmp_path):
    """Rows 0 to 2 are one vector, 3 and 4 nearly; 5 is alone; one id has a line break."""
    vectors_NE = unit_vectors(6)
    vectors_NE[1:3] = vectors_NE[0]
    vectors_NE[4] = vectors_NE[3] + np.float32(0.01)
    vectors_NE /= np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    items = plain_items(["a", "b\nc", "d ü.jpg", "e", "f", "g"])
    items[0] = replace(items[0], sha256=items[2].sha256)
    return publish_gallery(tmp_path / "g", vectors_NE, items)


def test_duplicates_prints_groups_and_what_could_go(cots, gallery):
    status, out, err = cots("index", "duplicates", gallery)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("2 groups at 0.95 or above among 6 items (every pair compared); 3")
    assert lines[1].split()[:3] == ["3", "keep", "d"]
    assert "a 1.0000 same bytes" in lines[1]
    assert lines[-1].split()[:4] == ["2", "keep", "f;", "e"]


def test_duplicates_json_has_the_documented_fields(cots, gallery):
    status, out, err = cots("index", "duplicates", gallery, "--threshold", 0.9999999, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    [group] = report.pop("groups")
    items = group.pop("items")
    assert group == {"size": 3, "keep": "d ü.jpg", "same_bytes": False}
    assert [item["id"] for item in items] == ["d ü.jpg", "a", "b\nc"]
    assert [item["same_bytes"] for item in items] == [True, True, False]
    assert [item["keep"] for item in items] == [True, False, False]
    assert report["method"] == "exact"
    assert (report["num_items"], report["num_pairs"], report["num_extra"]) == (6, 3, 2)
    documented = (REPOSITORY / "docs/duplicates.md").read_text("utf-8")
    for name in (*report, "groups", *group, *items[0]):
        assert f"`{name}`" in documented, name


def test_duplicates_writes_ids_one_per_line_and_leaves_out_those_with_line_breaks(
    cots, gallery, tmp_path
):
    ids_file = tmp_path / "ids.txt"
    status, out, _ = cots("index", "duplicates", gallery, "--ids-file", ids_file)
    assert status == 0
    assert ids_file.read_text("utf-8") == "a\ne\n"
    assert f"{ids_file}: 2 ids to delete, but for 1 with line breaks" in out
    status, out, err = cots(
        "index", "duplicates", gallery, "--ids-file", ids_file, "--max-groups", 1, "--json"
    )
    assert status == 0
    assert json.loads(out)["num_groups"] == 2
    assert ids_file.read_text("utf-8") == "a\n"
    assert "1 id to delete" in err


def test_duplicates_writes_a_contact_sheet(cots, gallery, tmp_path):
    sheet = tmp_path / "sheet.html"
    status, out, _ = cots("index", "duplicates", gallery, "--html", sheet)
    assert status == 0
    assert f"{sheet}: 2 groups to look at" in out
    page = sheet.read_text("utf-8")
    assert page.count("<section") == 2
    assert page.count("cannot be shown") == 5  # these items are nowhere


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threshold", "1.5"], "above 0 and at most 1"),
        (["--threshold", "0.0001", "--max-pairs", "3"], "higher threshold"),
        (["--max-groups", "0"], "--max-groups"),
    ],
)
def test_duplicates_refuses_in_one_line(cots, gallery, arguments, said):
    status, out, err = cots("index", "duplicates", gallery, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_duplicates_of_no_gallery_is_refused(cots, tmp_path):
    status, _, err = cots("index", "duplicates", tmp_path / "nowhere")
    assert status == 2
    assert "no gallery" in err


def test_duplicates_into_a_file_that_cannot_be_written_fails(cots, gallery, tmp_path):
    for option in ("--html", "--ids-file"):
        status, _, err = cots("index", "duplicates", gallery, option, tmp_path / "no/where")
        assert status == 1
        assert "could not be written" in err
