"""What is said of a build when it is through, or when it came to nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from index_builder.assemble import Published
from index_builder.manifest import SKIPPED_FILE, Modality
from index_builder.options import BuildOptions, BuildReport
from index_builder.parts import Part
from index_builder.publish import version_folder
from index_builder.sources.entry import IMAGE_SUFFIXES, ReaderCounts, Source
from index_builder.sources.metadata_file import MetadataFile

NOUNS: dict[Modality, tuple[str, str]] = {
    "image": ("picture", "pictures"),
    "video": ("video", "videos"),
    "text": ("text", "texts"),
}
_STAGES = ("list", "read", "decode", "wait", "encode", "write", "join", "index", "total")


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number and its noun: `counted(1, "item")` is "1 item", of 2 it is "2 items"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def build_report(
    options: BuildOptions,
    published: Published,
    *,
    counts: ReaderCounts,
    metadata: MetadataFile | None,
    seconds: Mapping[str, float],
    parts: int,
    parts_continued: int,
) -> BuildReport:
    """The report of a build; an update adds what it found."""
    manifest = published.manifest
    return BuildReport(
        gallery=str(options.gallery),
        version=manifest.version,
        published=published.is_new,
        modality=manifest.modality,
        segment_seconds=manifest.recipe.segment_seconds,
        count=manifest.count,
        skipped=manifest.skipped,
        ignored=counts.ignored,
        ignored_unit=counts.unit,
        bad_sidecars=counts.bad_sidecars,
        first_bad_sidecar=counts.first_bad_sidecar,
        metadata_rows=len(metadata) if metadata else 0,
        metadata_matched=metadata.matched if metadata else 0,
        parts=parts,
        parts_continued=parts_continued,
        index={"kind": manifest.index.kind, "reason": manifest.index.reason},
        seconds={stage: round(seconds.get(stage, 0.0), 3) for stage in _STAGES},
        images_per_s=round(manifest.count / max(seconds["total"], 1e-9), 2),
        skipped_file=str(version_folder(options.gallery, manifest.version) / SKIPPED_FILE),
    )


def _ignored(source: Source) -> str:
    if source.counts.unit == "line":
        return counted(source.counts.ignored, "empty line")
    return counted(source.counts.ignored, "other file")


def nothing_indexed(source: Source, options: BuildOptions, parts: Sequence[Part]) -> str:
    """Why nothing was published."""
    noun = NOUNS[options.modality][0]
    skips = [skip for part in parts for skip in part.skips()]
    if not skips:
        hint = ""
        if options.modality == "image":
            suffixes = " ".join(sorted(IMAGE_SUFFIXES))
            hint = (
                f"; files ending in {suffixes} are indexed; give tar shards as "
                f"'{source.name}/*.tar'"
            )
        return f"{source.name} holds no {noun} ({_ignored(source)}){hint}"
    counts = Counter(skip.reason for skip in skips)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))
    first = f"{skips[0].id}: {skips[0].message}"
    return (
        f"no {noun} of {source.name} can be indexed, so nothing was published "
        f"(skipped: {reasons}; the first: {first})"
    )
