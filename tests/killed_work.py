"""Changes of a cohort, for processes that are killed in the middle of them.

As a script it is a server that forks them past their imports: it takes a line ``CHANGE <tab> URI <tab> FOLDER``, says
the pid, and when it gets a line more, how that process ended.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radiodata.ingest import ingest_niftis
from radiodata.pipeline import Clip
from radiodata.store import Cohort
from radiodata.store.writing import Batches

NAMES = ("CT", "seg")
THERE, MORE = 4, 3
GONE = ["s001", "s003"]


def images(root: str, first: int, last: int) -> dict[str, list[Path]]:
    return {name: sorted((Path(root) / name).iterdir())[first:last] for name in NAMES}


def table(first: int, last: int) -> pd.DataFrame:
    return pd.DataFrame({"age": range(40 + first, 40 + last)}, index=[f"s{n:03d}" for n in range(first, last)])


def begin(uri: str, root: str) -> None:
    ingest_niftis(uri, images(root, 0, THERE), obs_meta=table(0, THERE), tiling=16)


def append(uri: str, root: str) -> None:
    Cohort(uri).append(images(root, THERE, THERE + MORE), obs_meta=table(THERE, THERE + MORE))


def measured(volume: Any, row: Any) -> Any:
    return volume, {"mean": float(np.mean(volume)), "twice": int(row["age"]) * 2}


def write(uri: str, root: str) -> None:
    Batches.SIZE, Batches.SECONDS = 2, 0.0  # commits on the way, too
    Cohort(uri).CT.lazy().map(Clip(0, 900)).map(measured).write(name="clipped", workers=2)


def remove(uri: str, root: str) -> None:
    cohort = Cohort(uri)
    cohort.remove(subjects=[s for s in GONE if s in cohort.subjects])


def optimize(uri: str, root: str) -> None:
    Cohort(uri).optimize()


def update(uri: str, root: str) -> None:
    cohort = Cohort(uri)
    cohort.update_obs_meta(pd.DataFrame({"age": 99, "arm": "B"}, index=cohort.subjects[1:]))


CHANGES = {"append": append, "write": write, "remove": remove, "optimize": optimize, "update": update}


def run(what: str, uri: str, root: str) -> None:
    CHANGES[what](uri, root)


def serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                run(*line.rstrip("\n").split("\t"))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
