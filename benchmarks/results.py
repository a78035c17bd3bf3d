"""The JSON: every row summed up, with its ratio to the named peers measured in the same run."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.probes import summary

if TYPE_CHECKING:
    from types import ModuleType

    from benchmarks.measure import Run

SCHEMA = 1


def document(run: Run, entries: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    """Return the whole result of a run, ready for ``json.dumps``."""
    module = run.module
    rows = [_row(entry) for entry in entries]
    for row in rows:
        row["ratios"] = {peer: ratio(row, rows, peer, module) for peer in module.PEERS}
    return {
        "schema": SCHEMA,
        "benchmark": run.name,
        "summary": module.SUMMARY,
        "primary": module.PRIMARY,
        "unit": module.UNIT,
        "higher_is_better": module.HIGHER_IS_BETTER,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wall_s": wall_s,
        "quick": run.quick,
        "repeats": run.repeats,
        "machine": machine.machine(),
        "versions": machine.versions(),
        "revision": machine.revision(),
        "parameters": module.describe(run.parameters),
        "data": run.source.describe(),
        "stores": run.stores,
        "rows": rows,
    }


def ratio(row: dict[str, Any], rows: list[dict[str, Any]], peer: str, module: ModuleType) -> dict[str, Any] | None:
    """Return how many times faster a row is than the peer's fastest row of the same case, and which that is.

    None where either has no measurement.
    """
    best = fastest([r for r in rows if r["family"] == peer and r["case"] == row["case"]], module)
    if best is None or row["status"] != "ok":
        return None
    mine, theirs = (r["metrics"][module.PRIMARY]["median"] for r in (row, best))
    return {"times": mine / theirs if module.HIGHER_IS_BETTER else theirs / mine, "row": best["row"]}


def fastest(rows: list[dict[str, Any]], module: ModuleType) -> dict[str, Any] | None:
    """Return the row with the best median of the primary metric."""
    measured = [row for row in rows if row["status"] == "ok"]
    pick = max if module.HIGHER_IS_BETTER else min
    return pick(measured, key=lambda row: row["metrics"][module.PRIMARY]["median"], default=None)


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    values = entry.pop("values", {})
    metrics = {name: {**summary(list_), "values": list_} for name, list_ in values.items() if list_}
    return {**entry, "metrics": metrics if entry["status"] == "ok" else {}}
