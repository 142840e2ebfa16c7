"""Annotation files: Karpathy's json (Flickr8K, Flickr30K, COCO) and COCO captions.

Pictures lie in a folder or in tar shards, and what is said of them becomes the metadata `captions`,
beside `split` and the file's own numbers. In a text gallery the captions themselves are the items,
`FILENAME#0`, `FILENAME#1`, ... The file is read whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cots_model.errors import InputError
from index_builder.items import Json, clean_metadata
from index_builder.location import ContentError, Location, Stamp, is_utf8, uri_of
from index_builder.manifest import Modality
from index_builder.sources.entry import Candidate, ReaderCounts, Skip
from index_builder.sources.finders import Finder
from index_builder.sources.texts import caption_entries

ACCEPTED = (
    "accepted are a list of rows, Karpathy's json (images[].filename and .sentences) and COCO "
    "captions (images[].file_name and annotations[])"
)


@dataclass(frozen=True)
class Annotation:
    """What an annotation file says of one picture.

    Attributes:
        names: of its file, the likelier first; the last, without a folder, is its id.
        captions: as they stand.
        metadata: the rest.
    """

    names: tuple[str, ...]
    captions: list[str]
    metadata: dict[str, Json]

    @property
    def id(self) -> str:
        """The file's name."""
        return self.names[-1]


class AnnotationSource:
    """The pictures of an annotation file, or its captions."""

    def __init__(
        self,
        place: str,
        annotations: Sequence[Annotation],
        finder: Finder,
        *,
        modality: Modality,
        stamp: Stamp | None,
    ) -> None:
        """Take what `read_annotations` gave, and what finds the pictures."""
        self._place = place
        self._annotations = annotations
        self._finder = finder
        self._modality = modality
        self._stamp = stamp
        self.name = place
        self.counts = ReaderCounts()

    @property
    def roots(self) -> tuple[str, ...]:
        """Where the pictures read so far lie; of captions, the file itself."""
        return (self._place,) if self._modality == "text" else self._finder.roots

    def read(self) -> Iterator[Candidate | Skip]:
        """Every picture or caption, in the file's order."""
        for annotation in self._annotations:
            if self._modality == "text":
                yield from self._captions(annotation)
            else:
                yield self._picture(annotation)

    def _picture(self, annotation: Annotation) -> Candidate | Skip:
        try:
            found = self._finder.find(*annotation.names)
        except ContentError as err:
            return Skip(annotation.id, uri_of(self._place), err.reason, str(err))
        except ValueError as err:  # a name that no file can have
            why = f"{annotation.names[0]!a:.60} is no path or url ({err}); mend the annotation file"
            return Skip(annotation.id, uri_of(self._place), "bad_row", why)
        captions: dict[str, Json] = {"captions": list(annotation.captions)}
        metadata = {**annotation.metadata, **(captions if annotation.captions else {})}
        name = annotation.id
        return Candidate(name, found.uri, found.location, name, metadata, found.stamp)

    def _captions(self, annotation: Annotation) -> Iterator[Candidate | Skip]:
        entry = Candidate(
            annotation.id,
            uri_of(self._place),
            Location(self._place),
            annotation.id,
            annotation.metadata,
            self._stamp,
        )
        yield from caption_entries(entry, {"captions": annotation.captions})


def read_annotations(place: str, root: object, splits: frozenset[str]) -> list[Annotation]:
    """The pictures of a Karpathy or COCO file that was read as json.

    Args:
        place: the file, for messages.
        root: its content.
        splits: which splits to take; none takes all.

    Raises:
        InputError: if it is in neither format, or has no such split.
    """
    images = root.get("images") if isinstance(root, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    if not isinstance(first, dict) or not isinstance(images, list) or not isinstance(root, dict):
        found = ", ".join(map(str, list(root)[:8])) if isinstance(root, dict) else "no keys"
        raise InputError(f"{place} is in no known format, its top has {found}; {ACCEPTED}")
    if "filename" in first:
        found_all = [_karpathy(place, number, image) for number, image in enumerate(images)]
    elif "file_name" in first and isinstance(root.get("annotations"), list):
        said = _coco_captions(place, root["annotations"])
        found_all = [_coco(place, number, image, said) for number, image in enumerate(images)]
    else:
        keys = ", ".join(map(str, list(first)[:8]))
        raise InputError(f"{place}: images[0] has {keys}; {ACCEPTED}")
    return _of_splits(place, found_all, splits)


def _of_splits(place: str, all_: list[Annotation], splits: frozenset[str]) -> list[Annotation]:
    known = Counter(str(one.metadata.get("split", "")) for one in all_)
    missing = sorted(splits - set(known))
    if missing:
        there = ", ".join(f"{name or 'none'} ({count:,})" for name, count in sorted(known.items()))
        raise InputError(f"{place} has no split {missing[0]!r}; it has {there}")
    return [one for one in all_ if not splits or one.metadata.get("split") in splits]


def _karpathy(place: str, number: int, image: object) -> Annotation:
    where = f"images[{number}]"
    values = _object(place, where, image)
    name = _text(place, where, values, "filename")
    folder = values.get("filepath")
    names = (f"{folder}/{name}", name) if isinstance(folder, str) and folder else (name,)
    captions = [
        _text(place, f"{where}.sentences[{n}]", _object(place, where, sentence), "raw")
        for n, sentence in enumerate(_list(place, f"{where}.sentences", values.get("sentences")))
    ]
    rest = {k: v for k, v in values.items() if k not in ("filename", "filepath", "sentences")}
    return Annotation(names, captions, _plain(rest))


def _coco_captions(place: str, annotations: list[object]) -> dict[object, list[str]]:
    found: dict[object, list[str]] = defaultdict(list)
    for number, annotation in enumerate(annotations):
        where = f"annotations[{number}]"
        values = _object(place, where, annotation)
        found[str(values.get("image_id"))].append(_text(place, where, values, "caption"))
    return found


def _coco(place: str, number: int, image: object, said: dict[object, list[str]]) -> Annotation:
    values = _object(place, f"images[{number}]", image)
    name = _text(place, f"images[{number}]", values, "file_name")
    rest = _plain({k: v for k, v in values.items() if k not in ("file_name", "id")})
    return Annotation((name,), said.get(str(values.get("id")), []), rest)


def _plain(values: dict[str, object]) -> dict[str, Json]:
    """What is a single word or number; lists of sentence numbers are not kept."""
    return clean_metadata({k: v for k, v in values.items() if isinstance(v, str | int | float)})


def _object(place: str, where: str, value: object) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    raise InputError(f"{place}: {where} is {value!r:.60}; an object is accepted")


def _list(place: str, where: str, value: object) -> list[object]:
    if isinstance(value, list):
        return value
    raise InputError(f"{place}: {where} is {value!r:.60}; a list is accepted")


def _text(place: str, where: str, values: dict[str, object], key: str) -> str:
    value = values.get(key)
    if isinstance(value, str) and is_utf8(value):
        return value
    raise InputError(f"{place}: {where}.{key} is {value!r:.60}; a text is accepted")
