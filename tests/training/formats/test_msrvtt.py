"""MSR-VTT's published lists: 1kA, 7K and full, as far as they are here."""

import json

import pytest

from tests.training.formats.conftest import said
from training.data import read_examples
from training.formats.source import SourceConfig


@pytest.fixture
def lists(shared_data):
    return shared_data / "msrvtt_annotations"


@pytest.fixture
def whole(tmp_path):
    """The shape of MSRVTT_data.json: all 10,000 ids with the official split."""
    bounds = {"train": (0, 6513), "validate": (6513, 7010), "test": (7010, 10_000)}
    data = {
        "videos": [
            {"video_id": f"video{n}", "split": split}
            for split, span in bounds.items()
            for n in range(*span)
        ],
        "sentences": [{"video_id": f"video{n}", "caption": f"says {n}"} for n in range(10_000)],
    }
    path = tmp_path / "MSRVTT_data.json"
    path.write_text(json.dumps(data))
    return SourceConfig(path=str(path), image_root=tmp_path)


def read(source, **changes):
    return read_examples([source.model_copy(update=changes)])


@pytest.mark.parametrize(("split", "count"), [("train", 6513), ("val", 497), ("test", 2990)])
def test_full(whole, split, count):
    assert len(read(whole, split=split)) == count


@pytest.mark.parametrize(
    ("name", "count"), [("MSRVTT_train.9k.csv", 9_000), ("MSRVTT_train.7k.csv", 7_010)]
)
def test_train_lists_have_no_query_of_1ka(lists, whole, name, count):
    examples = read(whole, split_file=lists / name)
    queries = read(whole, split_file=lists / "MSRVTT_JSFUSION_test.csv")
    assert (len(examples), len(queries)) == (count, 1_000)
    assert not {e.id for e in examples} & {e.id for e in queries}
    assert all(len(e.captions) == 1 and "says" not in e.captions[0] for e in queries)


def test_1ka_queries_stand_by_themselves(lists, tmp_path):
    """Some sentences hold commas in quotes."""
    path = lists / "MSRVTT_JSFUSION_test.csv"
    examples = read_examples([SourceConfig(path=str(path), image_root=tmp_path)])
    assert len(examples) == 1_000
    assert said(examples)[0] == ("video9770.mp4", ("a person is connecting something to system",))
    assert examples[0].location.path == str(tmp_path / "video9770.mp4")
    assert all(e.kind == "video" and len(e.captions) == 1 for e in examples)


def test_full_test_captions_as_a_list(lists, tmp_path):
    path = lists / "msrvtt_caption_test.json"
    examples = read_examples([SourceConfig(path=str(path), image_root=tmp_path)])
    assert len(examples) == 2_990
    assert sum(len(e.captions) for e in examples) == 59_800
    assert examples[0].id == "video7010.mp4"
