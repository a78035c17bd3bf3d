"""Run a pipeline in a process that may take only so much memory: ``limited_script.py KIND SOURCE TARGET MIB``.

Linux has no limit on resident memory; RLIMIT_DATA bounds what a process can make resident beside its files: everything
private and writable. It is set once imports, contexts, threads and kernels are there, to what is in use then and MIB
more: a kernel that is not compiled yet takes numba, 122 MB.
"""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from radiodata.pipeline import Clip, Normalize
from radiodata.store import Cohort


def limit(mib: int) -> int:
    """Allow this process so many MiB more than it has."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmData"))
    most = int(line.split()[1]) * 1024 + (mib << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    return most


def kernels_at_once() -> None:
    """Have kernels loaded with the first volume that is written here, not once some have been."""
    from radiodata.store.direct import writing

    writing.LEAST = 0


def steps(lazy: Any) -> Any:
    return lazy.map(Clip(-1000, 1000)).map(Normalize(0, 500))


def warm(cohort: Cohort, target: str, **how: Any) -> None:
    steps(cohort.CT.lazy().head(4)).write(f"{target}-warm", **how)


def main(kind: str, source: str, target: str, mib: int) -> None:
    cohort = Cohort(source)
    if kind == "eager":
        warm(cohort, target)
        limit(mib)
        steps(cohort.CT)
    elif kind in ("threads", "volumes"):
        warm(cohort, target, workers=2)
        limit(mib)
        if kind == "threads":
            steps(cohort.CT.lazy()).write(target, workers=2)
        else:
            total = sum(float(v.voxels.sum()) for v in steps(cohort.CT.lazy()).iter_volumes(workers=2))
            print(total)
    elif kind == "processes":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            warm(cohort, target, executor=pool)
            for job in [pool.submit(limit, mib) for _ in range(8)]:  # soft: set again from what is in use is no matter
                job.result()
            limit(mib)
            steps(cohort.CT.lazy()).write(target, executor=pool)
    elif kind == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            client.run(kernels_at_once)
            warm(cohort, target, executor=client)
            client.run(limit, mib)
            limit(mib)
            steps(cohort.CT.lazy()).write(target, executor=client)


kernels_at_once()  # in processes begun here, too

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
