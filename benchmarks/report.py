"""The table that a terminal shows, made of the JSON and nothing else."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

EXTRA = {
    "first_batch_s": "first batch, s",
    "cpu_s_per_sample": "CPU s/sample",
    "step_ms": "ms/step",
    "wait_share": "waiting",
    "memory_bytes": "memory, MB",
    "decoded_share": "decoded, of delivered",
    "overlap": "overlap",
    "bytes_per_sample": "MB/sample",
    "decoded_bytes": "decoded, MB",
    "device_mb": "from the disk, MB",
    "requests_per_sample": "requests/sample",
    "bandwidth_share": "bandwidth share",
    "worker_bytes": "a worker, MB",
    "worst_share": "worst",
    "first_epoch_mb": "after an epoch, MB",
    "grew_mb": "grew by, MB",
    "soak_samples": "samples since",
    "write_ms_per_mb": "write, ms/MB",
    "read_ms_per_mb": "read, ms/MB",
}


def show(console: Console, result: dict[str, Any]) -> None:
    """Print where a run was made, its rows and the sizes of the stores."""
    console.print(heading(result), highlight=False)
    for case, rows in by_case(result):
        console.print(table(result, case, rows))
    if result["stores"]:
        console.print(stores(result))


def by_case(result: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of each case, in the order of the cases."""
    ordered = sorted(result["rows"], key=_case_order(result))
    return [(case, list(rows)) for case, rows in groupby(ordered, key=lambda row: row["case"])]


def heading(result: dict[str, Any]) -> str:
    """Return the lines above the tables: machine, versions, revision, data."""
    m, data = result["machine"], result["data"]
    memory = f"{m['memory_bytes'] / 2**30:.0f} GiB" if m["memory_bytes"] else "memory unknown"
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return (
        f"[bold]{result['benchmark']}[/bold]: {result['summary']}{'  (--quick)' if result['quick'] else ''}\n"
        f"{m['cpu']}, {m['cores']} cores, {memory}; Python {m['python']}; {packages}\n"
        f"revision {result['revision'] or 'unknown'}; {data['what']}; {result['repeats']} repeats, "
        f"{result['wall_s']:.0f} s\n"
        "x PEER: times as fast as that peer's fastest row of the same case"
    )


def table(result: dict[str, Any], case: str, rows: list[dict[str, Any]]) -> Table:
    """Return one case as a table, best median first, what was not measured last."""
    size = f" ({rows[0]['crop_bytes'] / 1e6:.2f} MB a crop)" if "crop_bytes" in rows[0] else ""
    grid = Table(title=f"{case}{size}", title_justify="left")
    names, lines = cells(result, rows)
    for name in names:
        grid.add_column(name, no_wrap=name == names[0], justify="left" if name in (names[0], names[-1]) else "right")
    for line in lines:
        grid.add_row(*line)
    return grid


def cells(result: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns of one case, and its lines, best median first."""
    extra = [name for name in EXTRA if any(name in row["metrics"] for row in rows)]
    ratios = [f"x {peer}" for peer in rows[0]["ratios"]]
    names = ["contender", f"median, {result['unit']}", "IQR", "n", *(EXTRA[e] for e in extra), *ratios, "remarks"]
    sign = -1 if result["higher_is_better"] else 1
    ordered = sorted(rows, key=lambda r: sign * _median(r, result["primary"], sign * float("inf")))
    return names, [_cells(row, result["primary"], extra) for row in ordered]


def stores(result: dict[str, Any]) -> Table:
    """Return what each format takes on disk and took to write."""
    grid = Table(title="formats on disk", title_justify="left")
    for name in ("format", "MB", f"of {result['data']['source']}", "files", "written in, s"):
        grid.add_column(name, justify="left" if name == "format" else "right")
    for name, store in result["stores"].items():
        if store["status"] == "ok":
            share = store["bytes"] / result["data"]["source_bytes"]
            written = f"{store['prepare_s']:.1f}"
            grid.add_row(name, f"{store['bytes'] / 1e6:.1f}", f"{share:.2f}", str(store["files"]), written)
        else:
            grid.add_row(name, "-", "-", "-", store["error"])
    return grid


def _cells(row: dict[str, Any], primary: str, extra: list[str]) -> list[str]:
    if row["status"] != "ok":
        blanks = ["-"] * (2 + len(extra) + len(row["ratios"]))
        return [row["row"], "-", *blanks, row["error"]]
    metric = row["metrics"][primary]
    more = [_extra(row["metrics"].get(name), name) for name in extra]
    ratios = [f"{r['times']:.2f}" if (r := row["ratios"][peer]) else "-" for peer in row["ratios"]]
    return [
        row["row"],
        _short(metric["median"]),
        _short(metric["iqr"]),
        str(metric["n"]),
        *more,
        *ratios,
        _remarks(row),
    ]


def _extra(metric: dict[str, Any] | None, name: str) -> str:
    if metric is None:
        return "-"
    megabytes = name in ("memory_bytes", "worker_bytes")
    return f"{metric['median'] / 1e6:.0f}" if megabytes else _short(_scaled(metric["median"], name))


def _scaled(value: float, name: str) -> float:
    return value / 1e6 if name in ("bytes_per_sample", "decoded_bytes") else value


def _remarks(row: dict[str, Any]) -> str:
    said = [
        row["note"],
        row["dtype"] if row.get("dtype", "int16") != "int16" else "",
        "time cap" if row.get("capped") else "",
    ]
    return "; ".join(filter(None, said))


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _median(row: dict[str, Any], primary: str, otherwise: float) -> float:
    return row["metrics"][primary]["median"] if row["status"] == "ok" else otherwise


def _case_order(result: dict[str, Any]) -> Any:
    order = {row["case"]: index for index, row in reversed(list(enumerate(result["rows"])))}
    return lambda row: order[row["case"]]
