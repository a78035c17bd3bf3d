"""Benchmark ``table``: opening the tables of a cohort, filters and single rows; milliseconds.

The peer is what people do without a framework: a CSV file for the subjects and one for each kind of scan, in pandas.
A filter is checked against ids that numpy worked out. TileDB's rows open arrays only and read what a filter asks for.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.people import People
from benchmarks.probes import touch
from benchmarks.registry import Row

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.contenders.tables import Tables

SUMMARY = "tables of a cohort: open, filter, one row; ms"
PRIMARY, UNIT, HIGHER_IS_BETTER = "ms", "ms", False
PEERS = ("pandas", "TileDB")
HERE = "benchmarks.contenders.tables:"


@dataclass(frozen=True)
class Parameters:
    subjects: int = 100_000
    times: int = 7  # a process, of each filter
    rows: int = 200
    limit_s: float = 400.0
    repeats: int = 3


FULL = Parameters()
QUICK = Parameters(subjects=2_000, times=2, rows=20, limit_s=60.0, repeats=1)

ROWS = (
    Row("radiodata", "radiodata (masks in memory)", HERE + "Radiodata", ("radiodata",)),
    Row("TileDB", "TileDB QueryCondition", HERE + "Condition", ("tiledb",), note="on radiodata's tables; open: arrays"),
    Row("pandas", "pandas, CSV", HERE + "Csv", ("pandas",)),
    Row("parquet", "pandas, Parquet", HERE + "Parquet", ("pandas", "pyarrow")),
)


def data(folder: Path, parameters: Parameters) -> People:
    return People(folder, parameters.subjects)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return what each process of this benchmark measures."""
    kinds = ("open", "filter subjects", "filter volumes", "volumes of subjects", "one row")
    return [{"case": kind, "kind": kind, "crop": 0} for kind in kinds]


def measure(
    contender: Tables, people: People, folder: Path, parameters: Parameters, row: Row, case: dict[str, Any]
) -> dict[str, Any]:
    """Time one case, each result compared with the truth; return {"ms": [...]}."""
    if case["kind"] == "open":
        touch(folder)
        return {PRIMARY: [_timed(lambda: contender.open(folder))[0]]}  # once in a process: nothing is in a cache
    tables = contender.open(folder)
    if case["kind"] == "one row":
        drawn = np.random.default_rng(1).integers(0, people.count, parameters.rows).tolist()
        took, subjects = zip(*(_timed(lambda at=at: contender.row(tables, at)) for at in drawn), strict=True)
        _check(case["kind"], list(subjects), people.obs_meta.index[drawn].tolist())
        return {PRIMARY: list(took)}
    act = {
        "filter subjects": contender.subjects,
        "filter volumes": contender.volumes,
        "volumes of subjects": contender.volumes_of_subjects,
    }[case["kind"]]
    act(tables)  # untimed: what is made once
    took = []
    for _ in range(parameters.times):
        ms, ids = _timed(lambda: act(tables))
        _check(case["kind"], sorted(ids), people.truth[case["kind"]])
        took.append(ms)
    return {PRIMARY: took}


def _timed(act: Any) -> tuple[float, Any]:
    tick = time.perf_counter()
    result = act()
    return 1000 * (time.perf_counter() - tick), result


def _check(kind: str, found: list[str], truth: list[str]) -> None:
    if list(found) != list(truth):
        raise AssertionError(f"{kind} gives {len(found)} ids, and numpy {len(truth)}, or others")


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)
