"""A filter over a million rows, and an exact search of the rows that it leaves.

python benchmarks/filters.py --out benchmarks/results

Every call has another filter, so that no kept mask answers it. Vectors are random, float16.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import torch

from cots_cli.bench_report import Report, Stage, measure, write_report
from cots_model.hardware import describe_hardware
from index_builder.filter import parse_filter
from index_builder.filter_rows import RowFilters
from index_builder.indexes.among import scan_rows
from index_builder.indexes.base import go_on
from index_builder.items import JSON_MARK, METADATA_PREFIX, ItemTable
from index_builder.vectors import StoredVectors

CATEGORIES = ("beach", "lake", "forest", "city", "snow")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--rows", type=int, default=1_000_000, show_default=True)
@click.option("--dim", type=int, default=256, show_default=True)
@click.option("--runs", type=int, default=20, show_default=True)
def main(out: Path, rows: int, dim: int, runs: int) -> None:
    """Time filters of three comparisons, and scans of what they leave."""
    load = os.getloadavg()[0]
    rng = np.random.default_rng(0)
    stages = (*_filters(rng, rows, runs), *_scans(rng, rows, dim, runs))
    report = Report(
        benchmark="filters",
        model="",
        model_fingerprint="",
        hardware=describe_hardware(torch.device("cpu")),
        parameters={"rows": rows, "dim": dim},
        stages=stages,
        load_average=round(load, 2),
    )
    for stage in stages:
        click.echo(f"{stage.name:40} {stage.median_ms:9.2f} ms  p95 {stage.p95_ms:9.2f} ms")
    click.echo(write_report(report, out))


def _filters(rng: np.random.Generator, rows: int, runs: int) -> list[Stage]:
    filters = RowFilters(_items(rng, rows))
    numbers = count()

    def simple() -> object:
        year = {"gte": 2000 + next(numbers) % 20, "lt": 2026}
        return filters.rows(parse_filter({"year": year, "price": {"lt": 1 + next(numbers)}}))

    def texts() -> object:
        low = {"gte": 2000 + next(numbers) / 1e6}
        raw = {"year": low, "category": {"in": ["beach", "snow"]}, "name": {"contains": "99"}}
        return filters.rows(parse_filter(raw))

    def objects() -> object:
        raw = {"exif.iso": {"gte": next(numbers), "lt": 5000}, "tags": {"contains": "a"}}
        return filters.rows(parse_filter(raw))

    return [
        measure("three comparisons of numbers", simple, runs=runs),
        measure("a number, a list and a part of a text", texts, runs=runs),
        measure("decode two columns of JSON", objects, runs=1, warm_up=0),
        measure("three conditions on JSON", objects, runs=runs),
    ]


def _items(rng: np.random.Generator, rows: int) -> ItemTable:
    columns = {
        "id": pa.array([f"{row:08d}" for row in range(rows)]),
        "year": pa.array(rng.integers(1990, 2027, rows)),
        "price": pa.array(rng.random(rows) * 100),
        "category": pa.array(np.array(CATEGORIES)[rng.integers(0, 5, rows)].tolist()),
        "name": pa.array([f"picture {number}" for number in rng.integers(0, rows, rows)]),
        "exif": pa.array([f'{{"iso": {iso}, "lens": "x"}}' for iso in rng.integers(0, 9999, rows)]),
        "tags": pa.array(['["a", "b"]' if even else '["c"]' for even in rng.integers(0, 2, rows)]),
    }
    fields = [
        pa.field(
            name if name == "id" else METADATA_PREFIX + name,
            column.type,
            metadata=JSON_MARK if name in ("exif", "tags") else None,
        )
        for name, column in columns.items()
    ]
    return ItemTable(pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields)))


def _scans(rng: np.random.Generator, rows: int, dim: int, runs: int) -> list[Stage]:
    stored_NE = np.empty((rows, dim), np.float16)
    for start in range(0, rows, 65_536):
        z_nE = rng.standard_normal((min(65_536, rows - start), dim), np.float32)
        stored_NE[start : start + len(z_nE)] = z_nE / np.linalg.norm(z_nE, axis=1, keepdims=True)
    vectors = StoredVectors(stored_NE)
    query_QE = vectors.rows(rng.integers(0, rows, 32))
    stages = []
    for share in (0.01, 0.1, 0.5):
        rows_M = np.flatnonzero(rng.random(rows) < share)
        for queries in (1, 32):
            name = f"scan of {len(rows_M):,} rows, {queries} queries"
            some_QE = query_QE[:queries]
            stages.append(
                measure(
                    name,
                    lambda q=some_QE, r=rows_M: scan_rows(vectors, q, 10, r, go_on),
                    runs=max(3, runs // 4),
                    warm_up=1,
                )
            )
    return stages


if __name__ == "__main__":
    main()
