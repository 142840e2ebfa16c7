"""Latency of one query at a time: embed a sentence, embed a picture, search an exact index."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle

import faiss
import numpy as np
import torch
from PIL import Image

from cots_cli.bench_report import Report, Stage, measure
from cots_model.encoder import Encoder, Vectors
from cots_model.hardware import describe_hardware, num_cores
from cots_model.images import decode_image
from index_builder.indexes.cpu import CpuProposer
from index_builder.indexes.effort import Effort

SENTENCES = (
    "a dog",
    "two dogs playing in snow",
    "a man in a red jacket climbs a steep rock face",
    "children run through a fountain on a hot summer day",
    "a black and white cat asleep on a wooden chair beside the window of an old house",
)
PICTURE_SIZE = (640, 480)


def measure_query(
    encoder: Encoder, *, items: int, k: int, runs: int, threads: int | None = None
) -> Report:
    """Time every stage of a query on this machine.

    Args:
        encoder: the model, on its device.
        items: random unit vectors in the index.
        k: hits asked for.
        runs: timed calls of each stage.
        threads: CPU threads; all cores by default.
    """
    load = os.getloadavg()[0]
    with _cpu_threads(threads or num_cores()):
        stages = (*_encoding(encoder, runs), _searching(encoder.dim, items=items, k=k, runs=runs))
        hardware = describe_hardware(encoder.device)
    return Report(
        benchmark="query",
        model=encoder.name,
        model_fingerprint=encoder.fingerprint,
        hardware=hardware,
        parameters={
            "items": items,
            "dim": encoder.dim,
            "k": k,
            "index": "flat",
            "picture": f"JPEG {PICTURE_SIZE[0]}x{PICTURE_SIZE[1]}",
            "sentences": len(SENTENCES),
        },
        stages=stages,
        load_average=round(load, 2),
    )


@contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """As many threads for PyTorch and FAISS, and those of before afterwards."""
    torch_before, faiss_before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(torch_before)
        faiss.omp_set_num_threads(faiss_before)


def _encoding(encoder: Encoder, runs: int) -> tuple[Stage, ...]:
    sentences = cycle(SENTENCES)
    jpeg = _random_jpeg()
    picture = decode_image(jpeg)
    return (
        measure("encode text", lambda: encoder.encode_texts([next(sentences)]), runs=runs),
        measure("decode image", partial(decode_image, jpeg), runs=runs),
        measure("encode image", partial(encoder.encode_images, [picture]), runs=runs),
    )


def _searching(dim: int, *, items: int, k: int, runs: int) -> Stage:
    """An exact inner-product index, as a gallery has."""
    rng = np.random.default_rng(0)
    index = faiss.IndexFlatIP(dim)
    for start in range(0, items, 100_000):
        index.add(_unit_vectors(rng, min(100_000, items - start), dim))
    queries = cycle(_unit_vectors(rng, 16, dim))
    proposer = CpuProposer(index)
    width = min(k, items)

    def search() -> object:
        return proposer.propose(next(queries)[None], width, Effort())

    return measure("search", search, runs=runs)


def _unit_vectors(rng: np.random.Generator, count: int, dim: int) -> Vectors:
    z_NE = rng.standard_normal((count, dim), dtype=np.float32)
    unit: Vectors = z_NE / np.linalg.norm(z_NE, axis=1, keepdims=True)
    return unit


def _random_jpeg() -> bytes:
    """A smooth random picture, as large as a typical photo on the web."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()
