"""Queries for load: sentences that never repeat, so that no cache answers them, and pictures."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from benchmarks.open_loop import Call

PICTURE_SIZE = (640, 480)
NUM_PICTURES = 64
K = 10

_WHO = (
    "a man", "two dogs", "a young woman", "three children", "a cyclist", "a brown horse",
    "the red car", "a group of people", "an old sailor", "a black cat", "some tourists", "a boy",
    "a street musician", "two girls in blue shirts", "a small bird", "a hockey player",
)  # fmt: skip
_DOES = (
    "running", "playing with a ball", "looking at the camera", "sitting", "jumping over a fence",
    "waiting", "eating ice cream", "climbing", "asleep", "carrying a yellow umbrella", "dancing",
    "reading a newspaper", "splashing water", "riding a skateboard", "holding hands", "smiling",
)  # fmt: skip
_WHERE = (
    "on the beach", "in deep snow", "beside a lake", "in front of a red brick wall", "at night",
    "on a busy street", "in a field of tall grass", "under a bridge", "near the mountains",
    "on a wooden bench", "in the rain", "at a market", "by the window of an old house", "in a park",
    "on the stairs of a museum", "on a sunny day",
)  # fmt: skip


def sentences(seed: int) -> Iterator[str]:
    """Captions as people write them, of 5 to 20 words; none comes twice."""
    rng = random.Random(seed)  # NumPy's takes ten times as long, and the cores are the server's
    seen = set()
    while True:
        sentence = f"{rng.choice(_WHO)} {rng.choice(_DOES)} {rng.choice(_WHERE)}"
        if rng.random() < 0.5:
            sentence += f" {rng.choice(_WHERE)}"
        if rng.random() < 0.5:
            sentence += f" next to {rng.choice(_WHO)}"
        while sentence in seen:
            sentence += f" and {rng.randrange(2, 1000)} others"
        seen.add(sentence)
        yield sentence


def jpegs(count: int = NUM_PICTURES, *, seed: int = 0) -> list[bytes]:
    """Smooth random pictures, as large as typical photos on the web."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(out, "JPEG")
        files.append(out.getvalue())
    return files


def text_calls(gallery: str, seed: int) -> Callable[[], Call]:
    """Searches by sentences."""
    path = f"/v1/galleries/{gallery}/search"
    stream = sentences(seed)
    return lambda: Call(path, json.dumps({"query": next(stream), "k": K}).encode(), "text")


def image_calls(gallery: str, seed: int) -> Callable[[], Call]:
    """Searches by pictures in base64, each of 64 in turn."""
    path = f"/v1/galleries/{gallery}/search"
    bodies = [
        json.dumps({"query": {"image": base64.b64encode(data).decode()}, "k": K}).encode()
        for data in jpegs(seed=seed)
    ]
    turn = iter(range(10**9))
    return lambda: Call(path, bodies[next(turn) % len(bodies)], "image")


def mixed_calls(gallery: str, seed: int, share_of_images: float) -> Callable[[], Call]:
    """Searches by sentences, and now and then by a picture."""
    rng = np.random.default_rng(seed)
    texts, images = text_calls(gallery, seed), image_calls(gallery, seed)
    return lambda: images() if rng.random() < share_of_images else texts()
