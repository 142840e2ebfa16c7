"""What a run writes into its folder, and which of its values may change when it goes on."""

from __future__ import annotations

from cots_model.checkpoint import CARD_FILE, CONFIG_FILE, HASHED_FILES
from training.engine.checkpoints import BEST
from training.engine.dropped import FILTERED
from training.engine.failed import FAILED
from training.engine.run_log import EVENTS, LOG_FILE
from training.engine.states import STATES

FILES = (*HASHED_FILES, CONFIG_FILE, CARD_FILE, LOG_FILE, STATES, BEST, FAILED, FILTERED, EVENTS)
MAY_CHANGE = (
    "output",
    "device",
    "engine",
    "data.train",  # its contents are compared
    "data.evaluate",
    "data.cache_dir",
    "data.num_workers",
    "data.max_broken_share",
    "notes",
    "evaluate_every",
)
