"""Every kind of index over 200,000 realistic vectors, beside exact search.

python benchmarks/index_recall.py --vectors runs/index_recall.npz --out benchmarks/results

The gallery is widened from 2,500 real pictures (`realistic_vectors.py`). Queries are real and not
in the gallery: captions of Flickr8k, captions of COCO, and 500 other pictures. VECTORS keeps the
embeddings for the next time.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import click
import faiss
import numpy as np
import torch
from realistic_vectors import Embedded, embed, gallery, read

from cots_cli.bench_report import Report, Stage, summarise, write_report
from cots_model.encoder import Vectors
from cots_model.errors import InputError
from cots_model.hardware import describe_hardware
from index_builder.indexes.base import IndexChoice, IndexRequest, SearchIndex
from index_builder.indexes.build import build_index
from index_builder.indexes.check import check_index
from index_builder.indexes.choose import choose
from index_builder.indexes.exact import ExactIndex
from index_builder.indexes.gpu import Gpus
from index_builder.indexes.measure import Sample, ask
from index_builder.indexes.open import open_index
from index_builder.indexes.scan import VectorScan
from index_builder.manifest import IndexInfo, VectorType
from index_builder.vectors import StoredVectors

ROWS: tuple[tuple[IndexChoice, VectorType], ...] = (
    ("flat", "float32"),
    ("flat", "float16"),
    ("flat", "int8"),
    ("hnsw", "float32"),
    ("ivf", "float32"),
    ("ivfpq", "float32"),
    ("cagra", "float32"),
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"))
@click.option("--vectors", "cache", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--count", type=int, default=200_000, show_default=True, help="Vectors indexed.")
@click.option("--pictures", type=int, default=3000, show_default=True, help="Real ones embedded.")
@click.option("--captions", type=int, default=1000, show_default=True, help="Of each data set.")
@click.option("--kinds", default="flat,hnsw,ivf,ivfpq", show_default=True)
@click.option("--target-recall", type=float, default=0.95, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="CPU cores to use.  [default: all]")
def main(
    data: Path,
    cache: Path,
    out: Path,
    count: int,
    pictures: int,
    captions: int,
    kinds: str,
    target_recall: float,
    device: str,
    threads: int | None,
) -> None:
    """Build, measure and compare; exits with 1 if a kind misses its target."""
    if threads:
        _use_cores(threads)
    load = os.getloadavg()[0]
    if not cache.exists():
        embed(data, cache, pictures, captions, device)
    embedded = read(cache)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            _measure(row, embedded, count, target_recall, device, Path(folder))
            for row in ROWS
            if row[0] in kinds.split(",") and _possible(row[0], count, device)
        ]
    report = Report(
        benchmark="index_recall",
        model="cots-mini",
        model_fingerprint="",
        hardware=describe_hardware(torch.device("cuda" if device.startswith("cuda") else "cpu")),
        parameters={"items": count, "k": 10, "pictures": len(embedded.pictures), "device": device},
        stages=tuple(row.stage for row in rows),
        load_average=round(load, 2),
        figures={key: value for row in rows for key, value in row.figures().items()},
        command=shlex.join(["python", *sys.argv]),
    )
    path = write_report(report, out)
    table = _table(rows, embedded, count)
    path.with_suffix(".md").write_text(f"{report.date}, {report.hardware.summary()}\n\n{table}")
    click.echo(table)
    missed = [row.name for row in rows if min(row.recalls.values()) < target_recall]
    if missed:
        raise click.ClickException(f"under the target of {target_recall}: {', '.join(missed)}")


def _possible(kind: IndexChoice, count: int, device: str) -> bool:
    """Whether a kind can be built here; says why not."""
    try:
        choose(IndexRequest(kind=kind, device=device), (count, 1), Gpus())
    except InputError as err:
        click.echo(f"{kind} is left out: {err}", err=True)
        return False
    return True


@dataclass(frozen=True)
class Row:
    """What was found of one kind.

    Attributes:
        name: kind and how vectors are stored.
        info: for the manifest.
        build_s: time to build, tune and measure.
        made_s: of that, until all rows were in.
        recalls: recall@10 by queries.
        recall_at_100: of the first queries.
        stage: latency of one query.
    """

    name: str
    info: IndexInfo
    build_s: float
    made_s: float
    recalls: dict[str, float]
    recall_at_100: float
    stage: Stage

    def figures(self) -> dict[str, float]:
        """By name, for the report."""
        measured = self.info.measured
        assert measured is not None, "every kind is measured when it is built"
        return {
            f"{self.name} made_s": round(self.made_s, 1),
            f"{self.name} build_s": round(self.build_s, 1),
            f"{self.name} bytes": measured.bytes,
            f"{self.name} recall_at_10 when built": measured.recall_at_10,
            f"{self.name} recall_at_100": round(self.recall_at_100, 4),
            **{f"{self.name} recall_at_10 {key}": value for key, value in self.recalls.items()},
            **{f"{self.name} {key}": float(value) for key, value in self.info.search.items()},
        }


def _measure(
    row: tuple[IndexChoice, VectorType],
    embedded: Embedded,
    count: int,
    target_recall: float,
    device: str,
    folder: Path,
) -> Row:
    kind, vector_type = row
    vectors = gallery(embedded.pictures, count, folder / f"{vector_type}.npy", vector_type)
    request = IndexRequest(
        kind=kind, target_recall=target_recall, vectors=vector_type, device=device
    )
    path = folder / "index.faiss"
    start = perf_counter()
    added: list[float] = []
    info = build_index(
        request, vectors, path, progress=lambda _: added.append(perf_counter() - start)
    )
    build_s = perf_counter() - start
    problem = check_index(path, info, vectors)
    assert problem is None, f"{kind}: {problem}"
    index = open_index(path, info, vectors, device=device)
    recalls, times_ms = {}, {}
    for name, query_QE in embedded.queries.items():
        scan = ExactIndex(VectorScan(vectors), vectors)
        scores_QK, _ = scan.search(query_QE, 10)
        recall_Q, times_ms[name] = ask(index, Sample(query_QE, scores_QK[:, -1]))
        recalls[name] = round(float(recall_Q.mean()), 4)
    first = next(iter(times_ms))
    click.echo(f"{kind} {vector_type}: {build_s:.1f} s, {recalls}", err=True)
    return Row(
        name=f"{kind} {vector_type}",
        info=info,
        build_s=build_s,
        made_s=added[-1],
        recalls=recalls,
        recall_at_100=_recall_at_100(index, vectors, embedded.queries[first]),
        stage=summarise(f"{kind} {vector_type}", times_ms[first].astype(np.float64)),
    )


def _recall_at_100(index: SearchIndex, vectors: StoredVectors, query_QE: Vectors) -> float:
    exact_QK, _ = ExactIndex(VectorScan(vectors), vectors).search(query_QE, 100)
    found_QK, _ = index.search(query_QE, 100)
    return float((found_QK >= exact_QK[:, -1:]).mean())


def _table(rows: list[Row], embedded: Embedded, count: int) -> str:
    queries = list(embedded.queries)
    of = f"{count:,} vectors, {len(embedded.pictures):,} of them real pictures"
    head = (
        "index",
        "made in",
        "file",
        "search",
        "when built",
        *queries,
        "recall@100",
        "p50",
        "p95",
    )
    lines = [f"{of}; recall@10 by queries", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        measured = row.info.measured
        assert measured is not None, "every kind is measured when it is built"
        search = ", ".join(f"{key} {value}" for key, value in row.info.search.items()) or "all"
        recalls = " | ".join(f"{row.recalls[name]:.3f}" for name in queries)
        lines.append(
            f"| {row.name} | {row.made_s:,.1f} s | {measured.bytes / 1e6:,.0f} MB | {search} "
            f"| {measured.recall_at_10:.3f} | {recalls} | {row.recall_at_100:.3f} "
            f"| {row.stage.median_ms:.2f} ms | {row.stage.p95_ms:.2f} ms |"
        )
    return "\n".join(lines) + "\n"


def _use_cores(count: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])
    faiss.omp_set_num_threads(count)
    torch.set_num_threads(count)


if __name__ == "__main__":
    main()
