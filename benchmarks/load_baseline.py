"""What the model and the index do without a server, in a process of its own; prints JSON.

Offline throughput is that of batches: 64 sentences as they come, 32 pictures as preloaded pixels.
The bare latencies are of one query: a sentence or a JPEG (decoded and preprocessed too), then a
search for it, in turn as a server does them. Each alone, again and again, would find its data in
the caches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.load_queries import K, jpegs, sentences
from cots_model.encoder import Encoder, Vectors
from cots_model.images import decode_image
from index_builder.gallery import Gallery
from index_builder.search import search_gallery

BATCHES = {"text": 64, "image": 32}
KINDS = tuple(BATCHES)
FEWEST_RUNS = 5
ENOUGH_S = 10.0


def median_s(call: Callable[[], object], runs: int) -> float:
    """Median time of a call, after three to warm up; of five runs or more in ten seconds."""
    times_s: list[float] = []
    for _ in range(runs + 3):
        begun_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begun_s)
        if sum(times_s) > ENOUGH_S and len(times_s) > FEWEST_RUNS:
            break
    return float(np.median(times_s[max(0, min(3, len(times_s) - FEWEST_RUNS)) :]))


@click.command()
@click.option("--gallery", type=click.Path(path_type=Path), required=True)
@click.option("--checkpoint", default="cots-mini", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
@click.option("--runs", default=30, show_default=True, type=click.IntRange(min=1))
def main(gallery: Path, checkpoint: str, device: str, kinds: tuple[str, ...], runs: int) -> None:
    """Measure."""
    encoder = Encoder.load(checkpoint, device=device)
    opened = Gallery.open(gallery)
    words = sentences(seed=10_000)
    files = cycle(jpegs(BATCHES["image"]))
    img_BCHW = torch.stack(
        [encoder.preprocess.image(decode_image(data)) for data in islice(files, BATCHES["image"])]
    )

    def texts(count: int) -> Callable[[], Vectors]:
        return lambda: encoder.encode_texts([next(words) for _ in range(count)])

    def one_image() -> Vectors:
        img_CHW = encoder.preprocess.image(decode_image(next(files)))
        return encoder.encode_pixels(img_CHW[None])

    def query(encode: Callable[[], Vectors]) -> Callable[[], object]:
        return lambda: search_gallery(opened, encode(), k=K)

    offline: dict[str, Callable[[], object]] = {
        "text": texts(BATCHES["text"]),
        "image": lambda: encoder.encode_pixels(img_BCHW),
    }
    queries = {"text": query(texts(1)), "image": query(one_image)}
    found = {
        "offline_per_s": {kind: BATCHES[kind] / median_s(offline[kind], runs) for kind in kinds},
        "bare_ms": {kind: 1000 * median_s(queries[kind], 5 * runs) for kind in kinds},
    }
    rounded = {
        name: {key: round(value, 3) for key, value in figures.items()}
        for name, figures in found.items()
    }
    click.echo(json.dumps(rounded))


if __name__ == "__main__":
    main()
