"""Pictures with their captions, from any source the index builder reads, or Karpathy's json."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cots_model.errors import InputError
from cots_model.images import decode_image
from index_builder.content import Location, read_location
from index_builder.open_source import open_source
from index_builder.sources import Skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A picture and everything said about it.

    Attributes:
        id: the picture's id in its source.
        location: where its bytes are.
        captions: at least one.
    """

    id: str
    location: Location
    captions: tuple[str, ...]

    def picture(self) -> Image.Image:
        """Decode the picture to RGB.

        Raises:
            InputError: naming the picture, if it cannot be read or decoded.
        """
        try:
            data, _ = read_location(self.location)
            return decode_image(data)
        except InputError as err:
            raise InputError(
                f"picture {self.id} in {self.location.path}: {err}; mend it or leave it out"
            ) from err


def read_examples(
    sources: Sequence[str], *, image_root: Path | None = None, split: str | None = None
) -> list[Example]:
    """Read all pictures that have captions, in a fixed order.

    Args:
        sources: folders with `name.jpg` + `name.txt|json`, tar shards, or Karpathy json files. In
            json, `captions` is a list or `caption` a string.
        image_root: where the pictures of Karpathy files lie.
        split: for Karpathy files: `train` (which takes `restval` too), `val` or `test`.

    Raises:
        InputError: if a source is missing, or no picture has a caption.
    """
    examples: list[Example] = []
    for source in sources:
        if source.endswith(".json"):
            found = _read_karpathy(Path(source), image_root, split)
        else:
            found = _read_source(source)
        if not found:
            raise InputError(
                f"{source} has no picture with a caption; a sample needs a .txt, or a .json with "
                "'caption' or 'captions'"
            )
        log.info("source %s: %d pictures", source, len(found))
        examples += found
    return examples


def _read_source(source: str) -> list[Example]:
    examples, num_skipped = [], 0
    for item in open_source([source]).read():
        if isinstance(item, Skip):
            num_skipped += 1
            continue
        captions = _captions(item.metadata.get("captions", item.metadata.get("caption")))
        if captions:
            examples.append(Example(item.id, item.location, captions))
        else:
            num_skipped += 1
    if num_skipped:
        log.warning("source %s: %d samples without picture or caption", source, num_skipped)
    return examples


def _captions(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _read_karpathy(path: Path, image_root: Path | None, split: str | None) -> list[Example]:
    """COCO's entries have `filepath`, Flickr's have not."""
    if image_root is None:
        raise InputError(f"{path} names pictures without saying where; give the image root")
    wanted = {"train", "restval"} if split == "train" else {split}
    try:
        entries = json.loads(path.read_bytes())["images"]
        splits = {entry["split"] for entry in entries}
        examples = [
            Example(
                entry["filename"],
                Location(str(image_root / entry.get("filepath", "") / entry["filename"])),
                _captions([sentence["raw"] for sentence in entry["sentences"]]),
            )
            for entry in entries
            if split is None or entry["split"] in wanted
        ]
    except OSError as err:
        raise InputError(f"{path} cannot be read ({err.strerror})") from err
    except (ValueError, KeyError, TypeError) as err:
        raise InputError(
            f"{path} is no Karpathy file ({type(err).__name__}: {err}); it needs "
            "images[].filename, .split and .sentences[].raw"
        ) from err
    if split is not None and not wanted & splits:
        raise InputError(f"{path} has no split {split!r}; it has {sorted(splits)}")
    return [example for example in examples if example.captions]
