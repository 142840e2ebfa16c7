"""Annotation files in json: which format one is, and its entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from cots_model.errors import InputError
from training.formats.cursor import Cursor
from training.formats.entries import Entry, clean_captions, grouped
from training.formats.source import Format, SourceConfig

_ACCEPTED = (
    "accepted are Karpathy's (images[].sentences), COCO captions (images[].file_name and "
    "annotations[]), lists of {image, caption}, MSRVTT_data (videos[] and sentences[]) and Frozen "
    "in Time's MSR_VTT (annotations[] without file names)"
)


def guess_json(root: Cursor) -> Format:
    """The format of a json file by its keys.

    Raises:
        InputError: if it is none of them, saying which there are.
    """
    if isinstance(root.value, list):
        return "list"
    images = root.value.get("images") if isinstance(root.value, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    if root.has("videos") and root.has("sentences"):
        return "msrvtt"
    if isinstance(first, dict) and ("sentences" in first or "filename" in first):
        return "karpathy"
    if root.has("annotations"):
        return "coco" if isinstance(first, dict) and "file_name" in first else "frozen"
    if isinstance(first, dict):
        return "karpathy"
    keys = ", ".join(map(str, list(root.value)[:8])) if isinstance(root.value, dict) else "no keys"
    raise InputError(f"{root.file} is in no known format, its top has {keys}; {_ACCEPTED}")


def check_split_is_chosen(root: Cursor, source: SourceConfig, *, for_training: bool) -> None:
    """Refuse to take all splits of a Karpathy or MSR-VTT file together.

    Its test part would enter training, or its training part the scores, and nothing would say so.
    A file of one split can be scored as it is.

    Raises:
        InputError: if neither `split` nor `split_file` says which part is meant, with the splits.
    """
    if source.split is not None or source.split_file is not None:
        return
    top = "videos" if root.has("videos") else "images"
    splits = Counter(
        item.at("split").text() if item.has("split") else "" for item in root.at(top).items()
    )
    if len(splits) < 2 and not (for_training and any(splits)):
        return
    found = ", ".join(f"{name or 'none'} ({count:,})" for name, count in sorted(splits.items()))
    usual = "train" if for_training else "test"
    use = usual if usual in splits else "NAME"
    raise InputError(
        f"{root.file} holds the split{'s' * (len(splits) > 1)} {found}; say which is meant, "
        f"{{path: ..., split: {use}}}, or name its pictures in a split_file"
        f"{'' if for_training else f' (of cots evaluate: --split {use})'}"
    )


def read_karpathy(root: Cursor, source: SourceConfig) -> Iterator[Entry]:
    """`images[]` with `filename`, `split`, `sentences[].raw`; COCO's have `filepath` too."""
    split = source.split
    wanted: set[str | None] = {"train", "restval"} if split == "train" else {split}
    found = set()
    for image in root.at("images").items():
        if split is not None:
            found.add(own := image.at("split").text())
            if own not in wanted:
                continue
        name = image.at("filename").text()
        folder = image.at("filepath").text() + "/" if image.has("filepath") else ""
        raw = [sentence.at("raw").text() for sentence in image.at("sentences").items()]
        yield Entry(name, folder + name, clean_captions(raw))
    _check_split(root, split, wanted, found)


def read_coco(root: Cursor, source: SourceConfig) -> Iterator[Entry]:
    """`images[]` with `id` and `file_name`, `annotations[]` with `image_id` and `caption`."""
    captions = _by_id(root.at("annotations"), "image_id")
    for image in root.at("images").items():
        name = image.at("file_name").text()
        yield Entry(name, name, clean_captions(captions.get(image.at("id").name(), ())))


def read_frozen(root: Cursor, source: SourceConfig) -> Iterator[Entry]:
    """`annotations[]` with `image_id` and `caption`; the id and a suffix make the file's name."""
    for name, captions in _by_id(root.at("annotations"), "image_id").items():
        yield Entry(name, name + source.id_suffix, clean_captions(captions))


def read_msrvtt(root: Cursor, source: SourceConfig) -> Iterator[Entry]:
    """`videos[]` with `video_id` and `split`, `sentences[]` with `video_id` and `caption`."""
    wanted = {"val": "validate"}.get(source.split or "", source.split)
    captions = _by_id(root.at("sentences"), "video_id")
    found = set()
    for video in root.at("videos").items():
        if wanted is not None:
            found.add(own := video.at("split").text())
            if own != wanted:
                continue
        name = video.at("video_id").name()
        yield Entry(name, name + source.id_suffix, clean_captions(captions.get(name, ())))
    _check_split(root, source.split, {wanted}, found)


def read_list(root: Cursor, source: SourceConfig) -> list[Entry]:
    """`[{image or video, caption}]`; a caption is a string or a list of them."""
    return grouped(_list_pairs(root))


def _list_pairs(root: Cursor) -> Iterator[tuple[str, Iterable[object]]]:
    for item in root.items():
        file = item.at("video" if item.has("video") and not item.has("image") else "image")
        yield file.text(), item.at("caption").captions()


def _by_id(annotations: Cursor, key: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in annotations.items():
        found.setdefault(item.at(key).name(), []).append(item.at("caption").text())
    return found


def _check_split(root: Cursor, split: str | None, wanted: set[str | None], found: set[str]) -> None:
    if split is not None and not wanted & found:
        raise InputError(f"{root.file} has no split {split!r}; it has {sorted(found)}")
