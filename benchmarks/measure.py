"""Runs a benchmark: prepares each format once, then one fresh process per row and repeat."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from benchmarks.registry import Row

PREPARE_LIMIT_S = 1800.0
CASE_KEYS = ("case", "kind", "crop", "batch")


@dataclass
class Run:
    """One run of one benchmark. ``tell`` gets a line per process."""

    name: str
    module: ModuleType
    data: Path
    quick: bool
    repeats: int
    tell: Callable[[str], None]
    everything: bool = True  # no contender was named
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def parameters(self) -> Any:
        return self.module.QUICK if self.quick else self.module.FULL

    @property
    def source(self) -> Any:
        """What is stored and read: ``make()`` writes it, ``stores`` is the folder of what is made of it."""
        return self.module.data(self.data, self.parameters)

    def measure(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return one entry per row and case: its status and the pooled results of its repeats."""
        self._must({"kind": "data"}, "the data")
        entries = {row.name: [self._entry(row, case) for case in self._cases(row)] for row in rows}
        for repeat in range(self.repeats):
            for row in rows if repeat % 2 == 0 else reversed(rows):  # nobody always runs first
                self._one(row, [e for e in entries[row.name] if e["status"] == "ok"], repeat)
        flat = [entry for row in rows for entry in entries[row.name]]
        order = list(dict.fromkeys(entry["case"] for entry in flat))
        return sorted(flat, key=lambda entry: order.index(entry["case"]))

    def _cases(self, row: Row) -> list[dict[str, Any]]:
        cases: list[dict[str, Any]] = self.module.cases(self.parameters, row)
        return cases

    def _entry(self, row: Row, case: dict[str, Any]) -> dict[str, Any]:
        entry = {"family": row.family, "row": row.name, "note": row.note, "workers": row.workers, **case}
        if missing := row.missing():
            return {**entry, "status": "not installed", "error": f"not installed: {', '.join(missing)}"}
        if self.quick and self.everything and not row.quick:
            return {**entry, "status": "left out", "error": "left out by --quick; --contenders can name it"}
        store = row.build().store(case["crop"])
        prepared = self._prepared(row, case["crop"], store) if store else {"status": "ok"}
        why = {key: prepared[key] for key in ("status", "error", "traceback") if key in prepared}
        return {**entry, "store": store, **why, "values": defaultdict(list)}

    def _one(self, row: Row, entries: list[dict[str, Any]], repeat: int) -> None:
        """Measure the cases of a row in a fresh process and add what comes back to their entries."""
        if not entries:
            return
        cases = [{k: e[k] for k in CASE_KEYS if k in e} | {"folder": self._folder(e["store"])} for e in entries]
        answer = self._child({"kind": "measure", "row": row.name, "cases": cases}, self.parameters.limit_s)
        results = answer.get("cases") or [answer] * len(entries)
        for entry, result in zip(entries, results, strict=True):
            _add(entry, result)
        failed = {entry["error"] for entry in entries if entry["status"] != "ok"}
        self.tell(f"repeat {repeat + 1}/{self.repeats}  {row.name}  {'; '.join(failed) or 'ok'}")

    def _prepared(self, row: Row, crop: int, store: str) -> dict[str, Any]:
        if store not in self.stores:
            self.stores[store] = self._prepare(row, crop, store)
        return self.stores[store]

    def _prepare(self, row: Row, crop: int, store: str) -> dict[str, Any]:
        """Write a format, or find it written by the same versions before; say which."""
        folder, of = Path(self._folder(store)), machine.stamp(row.requires)
        record = folder.with_name(f"{folder.name}.json")
        if record.exists() and (known := json.loads(record.read_text()))["of"] == of:
            return {**known, "reused": True}
        record.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        job = {"kind": "prepare", "row": row.name, "crop": crop, "folder": str(folder)}
        result = {**self._child(job, PREPARE_LIMIT_S), "of": of}
        if result["status"] == "ok":
            record.write_text(json.dumps(result))
        self.tell(f"prepared {store}: {result.get('error', 'ok')}")
        return {**result, "reused": False}

    def _folder(self, store: str | None) -> str:
        return str(self.source.stores / store) if store else ""

    def _must(self, job: dict[str, Any], what: str) -> None:
        result = self._child(job, PREPARE_LIMIT_S)
        if result["status"] != "ok":
            raise RuntimeError(f"could not make {what} in {self.data}:\n{result.get('traceback', result['error'])}")

    def _child(self, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
        common = {"benchmark": self.name, "quick": self.quick, "data": str(self.data)}
        return run_child({**common, **job}, limit_s)


def _add(entry: dict[str, Any], result: dict[str, Any]) -> None:
    """Pool the lists of one repeat with those before; what is no list is said of the row."""
    for key, value in result.items():
        if isinstance(value, list):
            entry["values"][key] += [v for v in value if v is not None]
        else:
            entry[key] = (value or entry.get(key, False)) if key == "capped" else value


def run_child(job: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """Do a job in a fresh process; a crash or an overrun comes back as {"status": "error", ...}."""
    with tempfile.TemporaryDirectory() as scratch:
        path, result, log = (Path(scratch, name) for name in ("job.json", "result.json", "log.txt"))
        path.write_text(json.dumps({**job, "result": str(result)}))
        with log.open("wb") as stream:
            code = _wait([sys.executable, "-m", "benchmarks.child", str(path)], stream, limit_s)
        if result.exists():
            answer: dict[str, Any] = json.loads(result.read_text())
            return answer
        why = f"no result in {limit_s:.0f} s: stopped" if code is None else f"ended with exit status {code}"
        return {"status": "error", "error": why, "traceback": log.read_text(errors="replace")[-2000:]}


def _wait(command: list[str], log: Any, limit_s: float) -> int | None:
    """Run a command in a process group of its own; None says that it was stopped at the limit."""
    paths = [str(machine.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived their parent as well
    process.wait()
