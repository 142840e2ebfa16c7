"""Several checkpoints that score together (the paper's COTS†, table 1): a folder like any other.

    write_ensemble(["runs/a", "runs/b"], Path("runs/both"), name="both")
    encoder = Encoder.load("runs/both")        # index, search and serve with it

A score is the mean of the members' scores: n unit vectors beside each other, each divided by √n,
are a unit vector whose dot product with another such vector is that mean. Members may differ in
everything: sizes, tokenizers, preprocessing.

    config.json         format version, name, the members' fingerprints in their order
    member-0/, ...      the checkpoints themselves
    README.md           what it is

Shape letters: B batch, E joint width, X numbers of all that one picture is turned into.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from cots_model import checkpoint
from cots_model.config import Frozen, Precision, parse
from cots_model.cores import on_idle_core
from cots_model.encoder import Encoder, ReadTexts, Vectors
from cots_model.errors import CheckpointError
from cots_model.preprocess import PackedPreprocess

MAX_MEMBERS = 8

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EnsembleConfig(Frozen):
    """Contents of an ensemble's `config.json`."""

    format: Literal["cots-ensemble"] = "cots-ensemble"
    format_version: Literal[1] = 1
    name: str
    members: Annotated[tuple[_Sha256, ...], Field(min_length=2, max_length=MAX_MEMBERS)]

    @property
    def fingerprint(self) -> str:
        """Sha256 (hex) over the members' fingerprints in their order."""
        return combined_fingerprint(self.members)


class EnsembleEncoder(Encoder):
    """Embeds by every member, and puts their vectors beside each other.

    Attributes:
        members: the encoders, on one device.
    """

    preprocess: PackedPreprocess

    def __init__(self, members: Sequence[Encoder], *, name: str | None = None) -> None:
        """Combine loaded checkpoints; their names joined by `+` are the default name.

        Raises:
            CheckpointError: if they are fewer than two or more than eight, one of them is an
                ensemble, or two are the same.
        """
        _check_members([member.fingerprint for member in members])
        if any(isinstance(member, EnsembleEncoder) for member in members):
            raise CheckpointError("a member is an ensemble itself; give its members instead")
        self.members = tuple(members)
        self.device = members[0].device
        self.fingerprint = combined_fingerprint([member.fingerprint for member in members])
        self.preprocess = PackedPreprocess([member.preprocess for member in members])
        self._name = name or "+".join(member.name for member in members)

    @property
    def model(self) -> NoReturn:
        """There is none: each member has its own.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.name!r} is an ensemble; load one of its members instead")

    @property
    def name(self) -> str:
        """Short name."""
        return self._name

    @property
    def precision(self) -> Precision:
        """Of the members' computation."""
        return self.members[0].precision

    @property
    def dim(self) -> int:
        """Width of the joint space: the sum of the members'."""
        return sum(member.dim for member in self.members)

    def num_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the members read together."""
        return sum(member.num_tokens(texts) for member in self.members)

    def read_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> ReadTexts:
        """Embed texts; one that a member cuts counts as cut, where the first of them does so."""
        with on_idle_core(None):
            read = [m.read_texts(texts, batch_size=batch_size) for m in self.members[:-1]]
        read.append(self.members[-1].read_texts(texts, batch_size=batch_size))
        ends_of_texts = zip(*(one.cut_at_B for one in read), strict=True)
        cut_at_B = tuple(
            min((end for end in ends if end is not None), default=None) for ends in ends_of_texts
        )
        return ReadTexts(_beside([one.z_BE for one in read]), cut_at_B)

    def encode_images(self, imgs: Sequence[Image.Image], *, batch_size: int = 32) -> Vectors:
        """Embed RGB pictures: `[B,E]` float32 unit vectors."""
        with on_idle_core(None):
            z_NBE = [m.encode_images(imgs, batch_size=batch_size) for m in self.members[:-1]]
        return _beside([*z_NBE, self.members[-1].encode_images(imgs, batch_size=batch_size)])

    def encode_pixels(self, img_BX: Tensor) -> Vectors:
        """Embed what `preprocess` made of pictures, `[B,X]`: `[B,E]` float32 unit vectors."""
        *parts, last = self.preprocess.unpack(img_BX)
        with on_idle_core(None):
            z_NBE = [m.encode_pixels(x) for m, x in zip(self.members[:-1], parts, strict=True)]
        return _beside([*z_NBE, self.members[-1].encode_pixels(last)])


def write_ensemble(sources: Sequence[str | Path], folder: Path, *, name: str | None = None) -> str:
    """Copy checkpoints into `folder` as one ensemble, and return its fingerprint.

    Args:
        sources: checkpoints: folders, bundled names or hub ids; their order counts.
        folder: new or empty; it is there as a whole or not at all.
        name: shown to users and stored in galleries; the members' joined by `+` by default.

    Raises:
        CheckpointError: if a source is missing, damaged or an ensemble itself, two are the same,
            there are fewer than two or more than eight, or `folder` holds something.
    """
    members = [checkpoint.locate(source) for source in sources]
    configs = [checkpoint.read_config(member) for member in members]
    fingerprints = tuple(config.fingerprint for config in configs)
    _check_members(fingerprints)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty; give a new folder for the ensemble")
    name = name or "+".join(config.model.name for config in configs)
    config = EnsembleConfig(name=name, members=fingerprints)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".ensemble-"))
    partial.chmod(0o755)
    try:
        for place, member in enumerate(members):
            _copy(member, partial / _member_name(place))
        (partial / checkpoint.CARD_FILE).write_text(_card(config), "utf-8")
        text = config.model_dump_json(indent=2) + "\n"
        (partial / checkpoint.CONFIG_FILE).write_text(text, "utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return config.fingerprint


def load_ensemble(
    folder: Path, *, device: str, precision: Precision = "float32"
) -> EnsembleEncoder:
    """Load what `write_ensemble` wrote; `Encoder.load` is the usual way here.

    Raises:
        CheckpointError: if it is of a later format, or a member is missing, damaged or another
            than it was.
        ConfigError: for unknown or bad keys.
        InputError: if the device does not exist, or does not compute so.
    """
    path = folder / checkpoint.CONFIG_FILE
    values = checkpoint.read_json(path)
    checkpoint.check_version(folder, values)
    config = parse(EnsembleConfig, values, origin=str(path))
    members = []
    for place, expected in enumerate(config.members):
        member = folder / _member_name(place)
        if not member.is_dir():  # or its name might be taken for a hub id
            raise CheckpointError(
                f"{folder} is incomplete: {member.name} is missing; copy it again"
            )
        encoder = Encoder.load(member, device=device, precision=precision)
        if encoder.fingerprint != expected:
            raise CheckpointError(
                f"{member} is another checkpoint ({encoder.fingerprint[:12]}…) than {path} says "
                f"({expected[:12]}…); copy the whole folder again, or make the ensemble anew"
            )
        members.append(encoder)
    return EnsembleEncoder(members, name=config.name)


def combined_fingerprint(members: Sequence[str]) -> str:
    """The fingerprint of an ensemble of checkpoints with these fingerprints, in their order."""
    canonical = json.dumps([checkpoint.ENSEMBLE_FORMAT, *members], separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _beside(parts: Sequence[Vectors]) -> Vectors:
    return np.concatenate(parts, axis=1) * np.float32(1 / math.sqrt(len(parts)))


def _check_members(fingerprints: Sequence[str]) -> None:
    if not 2 <= len(fingerprints) <= MAX_MEMBERS:
        raise CheckpointError(
            f"an ensemble has 2 to {MAX_MEMBERS} checkpoints, not {len(fingerprints)}"
        )
    if len(set(fingerprints)) < len(fingerprints):
        raise CheckpointError(
            "two members are the same checkpoint, which changes no score; give different ones"
        )


def _member_name(place: int) -> str:
    return f"{checkpoint.MEMBER_PREFIX}{place}"


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in (*checkpoint.HASHED_FILES, checkpoint.CARD_FILE, checkpoint.CONFIG_FILE):
        if name != checkpoint.CARD_FILE or (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _card(config: EnsembleConfig) -> str:
    lines = [f"- `{_member_name(n)}`: {print_}" for n, print_ in enumerate(config.members)]
    members = "\n".join(lines)
    return (
        f"# {config.name}\n\nAn ensemble of COTS checkpoints: its score is the mean of theirs.\n\n"
        f"{members}\n"
    )
