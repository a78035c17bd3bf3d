"""``python -m benchmarks list``, ``python -m benchmarks run NAME`` and ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks import registry, report
from benchmarks.machine import ROOT
from benchmarks.measure import Run
from benchmarks.results import document

UNKNOWN = 2  # exit status for a name that does not exist, as argparse has it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process being measured ends as well
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)
    if options.command == "list":
        return _list(console)
    if options.command == "report":
        return _report(options.results)
    if options.name not in registry.MODULES:
        print(
            f"no benchmark is called {options.name!r}; there are {', '.join(registry.MODULES)}",
            file=sys.stderr,
        )
        return UNKNOWN
    try:
        rows = registry.select(registry.benchmark(options.name).ROWS, options.contenders)
    except ValueError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    return _run(console, options, rows)


def _run(console: Console, options: argparse.Namespace, rows: list[registry.Row]) -> int:
    module = registry.benchmark(options.name)
    repeats = options.repeats or (module.QUICK if options.quick else module.FULL).repeats
    run = Run(options.name, module, options.data, options.quick, repeats, _tell, everything=options.contenders is None)
    begin = time.perf_counter()
    entries = run.measure(rows)
    result = document(run, entries, time.perf_counter() - begin)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    report.show(console, result)
    if options.plot:
        from benchmarks.plot import plot

        plot(result, options.plot)
    return 0


def _report(folder: Path) -> int:
    from benchmarks import page

    try:
        print(page.write(folder))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return UNKNOWN
    return 0


def _list(console: Console) -> int:
    for name in registry.MODULES:
        module = registry.benchmark(name)
        console.print(f"[bold]{name}[/bold]  {module.SUMMARY}", highlight=False)
        for row in module.ROWS:
            missing = row.missing()
            state = f"  (not installed: {', '.join(missing)})" if missing else ""
            console.print(f"  {row.name}{state}", highlight=False)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the benchmarks and their rows")
    page = commands.add_parser("report", help="make one page of the results")
    page.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="of JSONs")
    run = commands.add_parser("run", help="run one benchmark")
    run.add_argument("name", help="a benchmark, as `list` prints it")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    run.add_argument("--plot", type=Path, metavar="FILE", help="draw the result here (PNG)")
    run.add_argument("--quick", action="store_true", help="small volumes, few reads: does it run?")
    run.add_argument("--repeats", type=_positive, metavar="N", help="processes per row and case")
    run.add_argument("--contenders", metavar="A,B", help="only these, by family or by row")
    default = Path(tempfile.gettempdir()) / "radiodata-bench"
    run.add_argument("--data", type=Path, default=default, metavar="DIR", help=f"made once, kept (default {default})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
