"""Vectors to try indexes on: real pictures and captions, and a gallery widened from them.

Each further vector is one of the pictures, moved within the cloud of its 32 nearest neighbours:
Gaussian weights on the differences to them, so that the noise has the local covariance.

Shape letters: n vectors, b a block of them, E dimensions, M neighbours.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from cots_model.encoder import Encoder, Vectors
from cots_model.images import decode_image
from index_builder.manifest import VectorType
from index_builder.vectors import StoredVectors, open_vectors, write_vectors

PICTURES = {  # shares of the pictures, by archive
    "flickr8k/train-00000.tar": 10,
    "flickr8k/train-00001.tar": 10,
    "flickr8k/val-00000.tar": 10,
    "exercises/images.tar": 9,
    "fashion/images.tar": 13,
    "web_pairs/00000.tar": 8,
}
NEIGHBOURS = 32
HELD_OUT = 6  # every sixth picture is a query
BLOCK = 4096


@dataclass(frozen=True)
class Embedded:
    """Unit vectors `[n,E]`: pictures to make the gallery of, and queries by name."""

    pictures: Vectors
    queries: dict[str, Vectors]


def gallery(pictures_nE: Vectors, count: int, path: Path, vector_type: VectorType) -> StoredVectors:
    """Write and open `count` unit vectors: the pictures, and others among them."""
    shape = (count, pictures_nE.shape[1])
    info = write_vectors(path, lambda: _widened(pictures_nE, count), shape, vector_type)
    return open_vectors(path, shape, info)


def _widened(pictures_nE: Vectors, count: int) -> Iterator[Vectors]:
    """The pictures, and others among them, `[b,E]` at a time."""
    yield pictures_nE[:count]
    rng = np.random.default_rng(0)
    neighbours = min(NEIGHBOURS, len(pictures_nE) - 1)
    _, near_nM = faiss.knn(
        pictures_nE, pictures_nE, neighbours + 1, metric=faiss.METRIC_INNER_PRODUCT
    )
    for start in range(len(pictures_nE), count, BLOCK):
        chosen_b = rng.integers(0, len(pictures_nE), min(BLOCK, count - start))
        weight_bM = rng.standard_normal((len(chosen_b), neighbours), dtype=np.float32)
        centre_bE = pictures_nE[chosen_b]
        away_bME = pictures_nE[near_nM[chosen_b, 1:]] - centre_bE[:, None]
        block_bE = centre_bE + np.einsum("bm,bme->be", weight_bM, away_bME) / np.sqrt(neighbours)
        yield _unit(block_bE)


def embed(data: Path, cache: Path, pictures: int, captions: int, device: str) -> None:
    """Embed so many pictures of `data`, and captions of Flickr8k and COCO, into a `.npz` file."""
    encoder = Encoder.load("cots-mini", device=device)
    whole = sum(PICTURES.values())
    parts = [
        _embed_archive(encoder, data / name, pictures * share // whole)
        for name, share in PICTURES.items()
    ]
    rng = np.random.default_rng(0)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        cache,
        pictures=np.concatenate(parts),
        flickr8k=encoder.encode_texts(_choose(rng, _flickr8k(data), captions)),
        coco=encoder.encode_texts(_choose(rng, _coco(data), captions)),
    )


def _embed_archive(encoder: Encoder, path: Path, count: int) -> Vectors:
    pictures = []
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None or not member.name.endswith((".jpg", ".png", ".webp")):
                continue
            if len(pictures) == count:
                break
            pictures.append(decode_image(content.read()))
    return encoder.encode_images(pictures)


def _flickr8k(data: Path) -> list[str]:
    document = json.loads((data / "flickr8k/dataset_flickr8k.json").read_text("utf-8"))
    return [said["raw"] for picture in document["images"] for said in picture["sentences"]]


def _coco(data: Path) -> list[str]:
    document = json.loads((data / "coco_annotations/captions_val2017.json").read_text("utf-8"))
    return [said["caption"] for said in document["annotations"]]


def _choose(rng: np.random.Generator, texts: list[str], count: int) -> list[str]:
    return [texts[at] for at in rng.choice(len(texts), count, replace=False)]


def read(cache: Path) -> Embedded:
    """What `embed` wrote, with some of the pictures for queries."""
    with np.load(cache, allow_pickle=False) as arrays:
        pictures = arrays["pictures"]
        captions = {"Flickr8k captions": arrays["flickr8k"], "COCO captions": arrays["coco"]}
    held_out = np.arange(len(pictures)) % HELD_OUT == 0
    return Embedded(pictures[~held_out], {**captions, "pictures": pictures[held_out]})


def _unit(vectors_NE: Vectors) -> Vectors:
    unit: Vectors = vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return unit.astype(np.float32)
