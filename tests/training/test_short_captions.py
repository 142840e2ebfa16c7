"""Words taken from sentences."""

import json
from collections import Counter

import pytest
from PIL import Image

from index_builder.content import Location
from training.data import read_examples
from training.example import Example
from training.orders import Mark, ShardOrder
from training.short_captions import with_short_captions

SENTENCES = ("A black cat sleeps on the sofa .", "The cat-like animal is on a couch")
WORDS = {"black", "cat", "sleeps", "sofa", "cat-like", "animal", "like", "couch"}


def example(number, captions=SENTENCES):
    return Example(str(number), Location("a.jpg"), captions)


def test_they_are_words_of_a_caption_in_their_order():
    made = [
        text
        for number in range(300)
        for text in with_short_captions(example(number), 2).captions[len(SENTENCES) :]
    ]
    assert 570 < len(made) <= 600  # none twice
    kinds = Counter()
    for text in made:
        words = text.split()
        kinds["article"] += words[0] == "a"
        words = words[words[0] == "a" :]
        kinds[len(words)] += 1
        assert set(words) <= WORDS
        assert any(
            [word for word in sentence.lower().split() if word in words] == words
            for sentence in SENTENCES
        )
    assert kinds[1] + kinds[2] == len(made)
    assert 150 < kinds[2] < 250
    assert 250 < kinds["article"] < 350


def test_the_same_picture_always_has_the_same():
    assert with_short_captions(example(1), 3) == with_short_captions(example(1), 3)
    assert with_short_captions(example(1), 3) != with_short_captions(example(2), 3)
    assert with_short_captions(example(1), 0) == example(1)


@pytest.mark.parametrize("captions", [("it is on the",), ("三只狗",), ("Un café très agréable",)])
def test_captions_without_words_are_left_as_they_are(captions):
    assert with_short_captions(example(1, captions), 4).captions == captions


def test_sources_say_how_many(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.json").write_text(json.dumps({"captions": list(SENTENCES)}))
    source = f"{{path: {tmp_path}, short_captions: 2}}"
    listed = read_examples([source])
    assert [len(example.captions) for example in listed] == [4, 4, 4]
    order = ShardOrder([source], block_size=2)
    streamed = [
        block[place].example.captions
        for _, block in order.blocks(0, 0, Mark())
        for place in range(len(block))
    ]
    assert sorted(streamed) == sorted(example.captions for example in listed)
    assert order.fingerprint() != ShardOrder([str(tmp_path)], block_size=2).fingerprint()
