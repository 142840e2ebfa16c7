"""Saved states of a run: written atomically, checked when read, the last few kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingError

log = logging.getLogger(__name__)

State = dict[str, Any]

_NAME = re.compile(r"state-(\d{9})\.json")


STATES = "states"
"""The folder's name in that of a run."""


class StateFolder:
    """States `state-<step>-<hash>.pt`, each complete once its `state-<step>.json` names its hash.

    So a state that is saved again at the same step takes the place of the first at one moment.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        """Use `folder`, made when a state is saved; all but the newest `keep` are removed."""
        if keep < 1:
            raise ValueError(f"keep {keep} would leave no state; use at least 1")
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps with a complete state, the newest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def save(self, step: int, state: State) -> None:
        """Write a state; killed at any moment, it is there as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self._note(step)
        partial = note.with_suffix(f".partial-{os.getpid()}")
        try:
            torch.save(state, partial)
            digest = _sha256(partial)
            _sync(partial)
            partial.replace(self._weights(step, digest))
        finally:
            partial.unlink(missing_ok=True)
        fresh = note.with_suffix(".partial")
        fresh.write_text(json.dumps({"step": step, "sha256": digest}) + "\n", "ascii")
        _sync(fresh)
        fresh.replace(note)
        _sync(self.folder)
        self._remove_old()

    def load_latest(self) -> tuple[int, State] | None:
        """The newest undamaged state and its step; none if none was saved.

        A damaged one is passed over with a warning.

        Raises:
            TrainingError: if there are states and all are damaged.
        """
        steps = self.steps()
        for step in steps:
            state = self._read(step)
            if state is not None:
                return step, state
        if steps:
            raise TrainingError(
                f"all {len(steps)} states in {self.folder} are damaged; remove the folder to start "
                "again, or restore it from a copy"
            )
        return None

    def _read(self, step: int) -> State | None:
        note = self._note(step)
        try:
            expected = self._digest(step)
            weights = self._weights(step, expected)
            if _sha256(weights) != expected:
                raise ValueError("its contents changed after it was written")
            return dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.PickleError) as err:
            log.warning("the state of %s is damaged (%s); going back to the one before", note, err)
            return None

    def _remove_old(self) -> None:
        """Of states, all but the newest; and what is no state, or part of one that was killed."""
        for step in self.steps()[self.keep :]:
            self._note(step).unlink()  # first, so that what is left is never taken for complete
        used = set[Path]()
        for step in self.steps():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                used |= {self._note(step), self._weights(step, self._digest(step))}
        for path in set(self.folder.glob("state-*")) - used:
            path.unlink(missing_ok=True)

    def _digest(self, step: int) -> str:
        return str(json.loads(self._note(step).read_text("ascii"))["sha256"])

    def _note(self, step: int) -> Path:
        return self.folder / f"state-{step:09d}.json"

    def _weights(self, step: int, digest: str) -> Path:
        return self.folder / f"state-{step:09d}-{digest[:16]}.pt"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
