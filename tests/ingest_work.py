"""An ingest, for processes that are killed in the middle of it: ``ingest_work.py URI FOLDER HOW``.

`HOW` is ``threads``, ``processes``, or the address of a Dask scheduler.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from radiodata.ingest import ingest_niftis
from radiodata.ingest.dicom import Privacy, ingest_dicom
from radiodata.store.writing import Batches

KEY = Privacy(bytes(range(32)))


def run(uri: str, folder: str, how: str) -> None:
    Batches.SIZE, Batches.SECONDS = 2, 0.0  # commits on the way, too
    executor: object = how
    if how.startswith("tcp://"):
        from distributed import Client

        executor = Client(how)
    root = Path(folder)
    ingest_niftis(uri, {n: root / n for n in ("CT", "seg")}, tiling=16, executor=executor, workers=2)
    ingest_dicom(uri, root / "dicom", privacy=KEY, executor=executor, workers=2)


if __name__ == "__main__":
    print("ready", flush=True)
    assert np.__version__
    run(*sys.argv[1:4])
