"""The page: ``python -m benchmarks report`` makes Markdown and pictures of the JSONs in a folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks import registry
from benchmarks.goals import GOALS
from benchmarks.plot import plot
from benchmarks.report import by_case, cells
from benchmarks.runs import earlier, record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PAGE = "README.md"
_LEAST_LOSS = 1.05
_NO_PEERS = ("limit", "local")  # what cannot be passed


def write(folder: Path) -> Path:
    """Write the page of the results in a folder into it, a picture beside each; return its path.

    Raises
    ------
    FileNotFoundError
        When there is no result.
    """
    paths = [folder / f"{name}.json" for name in registry.NAMES]
    results = {path.stem: json.loads(path.read_text()) for path in paths if path.exists()}
    if not results:
        raise FileNotFoundError(f"{folder} holds no result: python -m benchmarks run NAME --json {folder}/NAME.json")
    parts = [
        "# Benchmarks",
        _INTRODUCTION,
        "## What was aimed at",
        _goals(results, record(folder, results)),
        "## Where we lose",
        _losses(results),
    ]
    for name, result in results.items():
        plot(result, folder / f"{name}.png")
        parts += [f"## {name}", _heading(result), f"![{result['summary']}]({name}.png)"]
        for case, rows in by_case(result):
            parts += [f"### {case}", _markdown(*cells(result, rows))]
    page = folder / PAGE
    page.write_text("\n\n".join(parts) + "\n")
    return page


_INTRODUCTION = """Made by `python -m benchmarks report` of the JSONs beside it. Each (contender, repeat) is a process
of its own; the order of contenders is reversed every other repeat; the page cache is warm (but in `cold`); what was
read is compared with the truth. `x PEER`: times as fast as that peer's fastest row of the same case. The machines are
shared: read the ratios. What runs before found, of the code and on the machines of their time, is in `runs.json`."""


def _goals(results: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    lines = []
    for goal in GOALS:
        found = goal.value(results)
        said = "not measured" if found is None else f"{found:.3g}"
        met = "" if found is None else "yes" if goal.met(found) else "**no**"
        lines.append(
            [goal.what, f"{'>=' if goal.least else '<='} {goal.wanted:g}", said, met, earlier(runs, goal.what)]
        )
    return _markdown(["", "goal", "found", "met", "before, newest first"], lines)


def _losses(results: dict[str, Any]) -> str:
    """Cases whose best row is another's, and by how much it is ahead of our best one."""
    lines = []
    for name, result in results.items():
        for case, rows in by_case(result):
            there = [r for r in rows if r["status"] == "ok" and r["family"] not in _NO_PEERS]
            measured = {r["row"]: r["metrics"][result["primary"]]["median"] for r in there}
            ours = {r["row"]: measured[r["row"]] for r in there if r["family"] == "radiodata"}
            if not ours:
                continue
            pick = max if result["higher_is_better"] else min
            mine = pick(ours, key=lambda row: ours[row])
            best = ours[mine]
            for row, value in measured.items():
                ahead = value / best if result["higher_is_better"] else best / value
                if row not in ours and ahead >= _LEAST_LOSS:
                    lines.append([name, case, row, f"{ahead:.2f}"])
    return _markdown(["benchmark", "case", "better than our best row", "times"], lines)


def _heading(result: dict[str, Any]) -> str:
    machine, summary = result["machine"], result["summary"]
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return (
        f"{summary[0].upper()}{summary[1:]}{' (--quick)' if result['quick'] else ''}. {result['data']['what']}.\n\n"
        f"{result['date'][:10]}, {machine['cpu']}, {machine['cores']} cores{memory}; {machine['platform']}; Python "
        f"{machine['python']}; {packages}. Revision {result['revision'] or 'unknown'}; {result['repeats']} repeats, "
        f"{result['wall_s']:.0f} s."
    )


def _markdown(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(names) - 2), "---"]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in [names, rule, *lines])
