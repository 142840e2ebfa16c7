r"""`cots serve --check`: everything that serving needs, tried without listening.

report = check(Settings.load())
print("\n".join(report.lines()))
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from cots_model.encoder import Encoder
from index_builder.gallery import Gallery
from service.settings import Settings
from service.state import Resources

_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ModelCheck:
    """The model, and how long it took for one text and one picture (the second time)."""

    name: str
    fingerprint: str
    dim: int
    device: str
    precision: str
    probe_ms: float
    problem: str | None = None


@dataclass(frozen=True)
class GalleryCheck:
    """One gallery; all but name and problem is unknown if it was refused."""

    name: str
    problem: str | None = None
    modality: str | None = None
    count: int | None = None
    dim: int | None = None
    index: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        settings: those in force, with the number of API keys in the place of their hashes.
        model: the model.
        galleries: all of them, by name.
        require_all: whether one refused gallery is one too many.
    """

    settings: dict[str, Any]
    model: ModelCheck
    galleries: tuple[GalleryCheck, ...]
    require_all: bool

    @property
    def problems(self) -> list[str]:
        """One line for each thing that is wrong."""
        model = [] if self.model.problem is None else [f"model: {self.model.problem}"]
        refused = [f"{g.name}: {g.problem}" for g in self.galleries if g.problem is not None]
        return [*model, *refused]

    @property
    def ok(self) -> bool:
        """Whether a server with these settings would be ready."""
        refused = [gallery for gallery in self.galleries if gallery.problem is not None]
        served = len(refused) < len(self.galleries)
        return self.model.problem is None and served and not (refused and self.require_all)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": self.ok,
            "problems": self.problems,
            "settings": self.settings,
            "model": asdict(self.model),
            "galleries": [asdict(gallery) for gallery in self.galleries],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        keys = self.settings["api_keys"]
        yield (
            f"settings  http://{self.settings['host']}:{self.settings['port']}, "
            f"{keys or 'no'} API {'key' if keys == 1 else 'keys'}, "
            f"workers: {self.settings['workers']}"
        )
        model = self.model
        yield (
            f"model     {model.name}, {model.dim} dimensions, {model.precision} on {model.device}, "
            f"{model.probe_ms:.0f} ms for a text and a picture: {model.problem or 'ok'}"
        )
        for gallery in self.galleries:
            if gallery.problem is not None:
                yield f"gallery   {gallery.name}: refused: {gallery.problem}"
                continue
            yield (
                f"gallery   {gallery.name}: {gallery.count:,} items ({gallery.modality}), "
                f"{gallery.index}, version {gallery.version}: ok"
            )
        yield "ready to serve" if self.ok else "not ready: see above"


def check(settings: Settings) -> Report:
    """Load what a server loads, as it does, and try it.

    Raises:
        InputError: if there is no gallery, or the checkpoint or all galleries are unusable.
        CotsError: if a device cannot be used.
    """
    resources = Resources.load(settings)
    registry = resources.registry
    served = [_check_gallery(name, gallery) for name, gallery in registry.loaded.items()]
    refused = [GalleryCheck(name, problem) for name, problem in registry.refused.items()]
    return Report(
        settings=_shown(settings),
        model=_check_model(resources.encoder),
        galleries=tuple(sorted([*served, *refused], key=lambda found: found.name)),
        require_all=settings.require_all_galleries,
    )


def _shown(settings: Settings) -> dict[str, Any]:
    values = settings.model_dump(mode="json", exclude={"api_key_sha256"})
    return {**values, "api_keys": len(settings.api_key_sha256)}


def _check_model(encoder: Encoder) -> ModelCheck:
    side = encoder.preprocess.image_size
    picture = Image.new("RGB", (side, side), "grey")
    for _ in range(2):  # the first pass also warms up
        begun_s = time.monotonic()
        vectors = [encoder.encode_texts(["a dog"]), encoder.encode_images([picture])]
        probe_ms = (time.monotonic() - begun_s) * 1000
    lengths = np.linalg.norm(np.concatenate(vectors), axis=1)
    good = bool(np.allclose(lengths, 1.0, atol=_LENGTH_TOLERANCE))
    return ModelCheck(
        name=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        device=encoder.device.type,
        precision=encoder.precision,
        probe_ms=round(probe_ms, 3),
        problem=None if good else f"its vectors are not of length 1 but {lengths}",
    )


def _check_gallery(name: str, gallery: Gallery) -> GalleryCheck:
    manifest = gallery.manifest
    return GalleryCheck(
        name=name,
        problem=_self_test(gallery),
        modality=manifest.modality,
        count=manifest.count,
        dim=manifest.dim,
        index=manifest.index.kind,
        version=gallery.version,
    )


def _self_test(gallery: Gallery) -> str | None:
    """Search for one of its own vectors; what is wrong with the best hit, if anything."""
    if not len(gallery):
        return None
    vector_E = gallery.vector(len(gallery) // 2)
    scores_QK, _ = gallery.search(vector_E[None], 1)
    best, expected = float(scores_QK[0, 0]), float(vector_E @ vector_E)
    if not np.isfinite(best) or best < expected - _LENGTH_TOLERANCE:
        return (
            f"a search for one of its own vectors scores {best:.4f} instead of {expected:.4f}; "
            "run `cots index verify` on it"
        )
    return None
