"""The picture: one panel per case, bars on a log scale, made of the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {"radiodata": "#d1495b", "RadiObject": "#30638e", "blosc2": "#3c8d53"}
OTHER = "#9aa0a6"


def plot(result: dict[str, Any], path: Path, *, most_cases: int | None = None) -> None:
    """Write a PNG with the medians of a result, or of its first cases; whiskers are the quartiles."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))[:most_cases]
    bars = [sum(row["case"] == case for row in result["rows"]) for case in cases]
    across = min(2, len(cases))
    heights = [1 + 0.28 * max(bars[at : at + across]) for at in range(0, len(cases), across)]
    figure, axes = plt.subplots(
        len(heights), across, squeeze=False, figsize=(7 * across, 0.5 + sum(heights)), layout="constrained",
        height_ratios=heights,
    )  # fmt: skip
    for axis, case in zip(axes.flat, cases, strict=False):
        _panel(axis, result, case)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    m = result["machine"]
    figure.suptitle(f"{result['benchmark']}: {result['summary']}\n{m['cpu']}, {m['cores']} cores", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, result: dict[str, Any], case: str) -> None:
    rows = [row for row in result["rows"] if row["case"] == case and row["status"] == "ok"]
    rows.sort(key=lambda row: row["metrics"][result["primary"]]["median"], reverse=not result["higher_is_better"])
    metrics = [row["metrics"][result["primary"]] for row in rows]
    whiskers = [[m["median"] - m["q1"] for m in metrics], [m["q3"] - m["median"] for m in metrics]]
    colours = [COLOURS.get(row["family"], OTHER) for row in rows]
    names = [row["row"] for row in rows]
    if len(rows) == 1 and metrics[0]["median"] > 0:  # a log scale needs two ends
        axis.set_xlim(metrics[0]["median"] / 2, metrics[0]["median"] * 2)
    axis.barh(names, [m["median"] for m in metrics], xerr=whiskers, color=colours, log=True, error_kw={"lw": 0.8})
    for index, metric in enumerate(metrics):
        told = f"{metric['median']:,.0f}" if metric["median"] >= 100 else f"{metric['median']:.3g}"
        axis.annotate(f" {told}", (metric["q3"], index), va="center", fontsize=7)
    axis.set_title(case, fontsize=9)
    axis.set_xlabel(f"{result['unit']}, {'more' if result['higher_is_better'] else 'less'} is better", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.margins(x=0.15)
