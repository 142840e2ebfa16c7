"""A root of galleries that a test changes while they are served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cots_model.encoder import Encoder
from service.galleries import Registry
from tests.service.conftest import Running

FEW = [f"a picture of {n} dogs" for n in range(8)]
MANY = [f"a city of {n} towers" for n in range(20)]


@dataclass
class Place:
    """A root of its own with one gallery, `live`, and two templates beside it."""

    root: Path
    few: Path
    many: Path
    encoder: Encoder

    @property
    def live(self) -> Path:
        return self.root / "live"

    def open(self, **options) -> Registry:
        return Registry.open(self.root, expected_fingerprint=self.encoder.fingerprint, **options)


def count(server: Running, name: str = "live") -> int:
    return server.client.get(f"/v1/galleries/{name}").json().get("count", -1)


def reload(server: Running, name: str = "live"):
    return server.client.post(f"/v1/galleries/{name}/reload")
