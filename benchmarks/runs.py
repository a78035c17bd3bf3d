"""What every run found of what was aimed at: kept beside the results, so that one run can be held against another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.goals import GOALS

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.goals import Results

RUNS = "runs.json"


def record(folder: Path, results: Results) -> list[dict[str, Any]]:
    """Keep what results in full say of the goals in ``runs.json`` in a folder; return what it tells of other runs."""
    path = folder / RUNS
    known = json.loads(path.read_text()) if path.exists() else []
    now = [run for name, result in results.items() if (run := _run(name, result))["found"]]
    there = {_key(run) for run in now}
    others = [run for run in known if _key(run) not in there]
    if now:
        path.write_text(json.dumps(sorted([*others, *now], key=_key), indent=1) + "\n")
    return sorted(others, key=_key)


def earlier(runs: list[dict[str, Any]], what: str, most: int = 3) -> str:
    """Figures of a goal in runs, the newest first, each with its day."""
    found = [(run["date"][:10], run["found"][what]) for run in runs if what in run["found"]]
    return ", ".join(f"{figure:.3g} ({day})" for day, figure in found[: -1 - most : -1])


def _run(name: str, result: dict[str, Any]) -> dict[str, Any]:
    figures = {} if result["quick"] else {goal.what: goal.value({name: result}) for goal in GOALS}
    return {
        "benchmark": name,
        "date": result["date"],
        "cpu": result["machine"]["cpu"],
        "revision": result["revision"],
        "repeats": result["repeats"],
        "found": {what: figure for what, figure in figures.items() if figure is not None},
    }


def _key(run: dict[str, Any]) -> tuple[str, str]:
    return run["date"], run["benchmark"]
