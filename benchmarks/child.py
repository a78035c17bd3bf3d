"""The process that does one job: ``python -m benchmarks.child JOB.json``.

Every (row, repeat) has a process of its own, so that nothing of one is left for the next: no thread, no
cache, no handle. The result is written to the file that the job names.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import registry
from benchmarks.contenders.radiodata import compile_once
from benchmarks.probes import disk

if TYPE_CHECKING:
    from collections.abc import Callable


def main(path: str) -> None:
    """Do the job described in a file: {"kind": "data" | "prepare" | "measure", ...}."""
    warnings.simplefilter("ignore")
    job = json.loads(Path(path).read_text())
    Path(job["result"]).write_text(json.dumps(_guarded(lambda: _do(job))))


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": "ok", **work()}
    except Exception as error:
        short = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        return {"status": "error", "error": short, "traceback": traceback.format_exc()}


def _do(job: dict[str, Any]) -> dict[str, Any]:
    module = registry.benchmark(job["benchmark"])
    parameters = module.QUICK if job["quick"] else module.FULL
    source = module.data(Path(job["data"]), parameters)
    if job["kind"] == "data":
        source.make()
        compile_once()
        return {}
    row = next(row for row in module.ROWS if row.name == job["row"])
    contender = row.build()
    contender.import_all()
    if job["kind"] == "prepare":
        return _prepare(contender, source, Path(job["folder"]), job["crop"])

    def one(case: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = module.measure(contender, source, Path(case["folder"]), parameters, row, case)
        return result

    return {"cases": [_guarded(partial(one, case)) for case in job["cases"]]}


def _prepare(contender: Any, source: Any, folder: Path, crop: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    tick = time.perf_counter()
    contender.prepare(source, folder, crop)
    return {"prepare_s": time.perf_counter() - tick, **disk(folder)}


if __name__ == "__main__":
    main(sys.argv[1])
