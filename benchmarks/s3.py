"""Benchmark ``s3``: random crops in batches from a real S3 server, behind a proxy that slows it as a line does.

The server and the proxy are processes of their own, on the same processors as the reader. Every epoch reads from the
server, but for the rows that say otherwise. ``bandwidth share``: bytes that came, of those that the line could have
brought; what is lacking is decoding, or waiting.
"""

from __future__ import annotations

import importlib
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import LoaderSpec
from benchmarks.loader import Run
from benchmarks.phantom import Phantoms
from benchmarks.probes import memory_bytes
from benchmarks.registry import Row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.contenders.cloud import Remote

SUMMARY = "random crops in batches from S3: samples/s, bytes and requests per sample"
PRIMARY, UNIT, HIGHER_IS_BETTER = "samples_per_s", "samples/s", True
PEERS = ("RadiObject", "zarr", "local")
HERE = "benchmarks.contenders.cloud:"


@dataclass(frozen=True)
class Parameters:
    shape: tuple[int, int, int] = (512, 512, 200)
    volumes: int = 4
    crop: int = 96
    batch: int = 4
    crops_per_volume: int = 64
    lines: tuple[tuple[int, int], ...] = ((0, 1000), (10, 1000), (30, 1000), (100, 1000), (30, 100))  # ms, Mbit/s
    least_s: float = 5.0
    cap_s: float = 10.0
    limit_s: float = 900.0
    repeats: int = 2
    seed: int = 0


FULL = Parameters()
QUICK = Parameters(
    shape=(128, 128, 96),
    volumes=2,
    crop=32,
    crops_per_volume=16,
    lines=((0, 1000), (30, 1000)),
    least_s=0.3,
    cap_s=3.0,
    limit_s=120.0,
    repeats=1,
)

OURS, NEEDS = HERE + "RemoteRadiodata", ("radiodata",)
ROWS = (
    Row("local", "radiodata, local disk", OURS, NEEDS, {"local": True}, 0, None, "the limit of decoding"),
    Row("radiodata", "radiodata, threads", OURS, NEEDS, {}, 0),
    Row("radiodata", "radiodata, 2 workers", OURS, NEEDS, {}, 2, None, "", False),
    Row("radiodata", "radiodata, tiles cached on disk", OURS, NEEDS, {"cache": True}, 0, None, "from the second epoch"),
    Row("RadiObject", "RadiObject", HERE + "RemoteRadiObject", ("radiobject",), {"tile": 64}, 0),
    Row("zarr", "zarr v3, obstore, 16 threads", HERE + "RemoteZarr", ("zarr", "obstore"), {}, 0),
    Row("files", "whole files, one ahead", HERE + "WholeFiles", ("obstore",), {}, 0, None, "crops of a volume follow"),
)


def data(folder: Path, parameters: Parameters) -> Phantoms:
    return Phantoms(folder, parameters.shape, parameters.volumes)


def cases(parameters: Parameters, row: Row) -> list[dict[str, Any]]:
    """Return one case for each line between reader and server."""
    crop = parameters.crop
    told = {"crop": crop, "crop_bytes": crop**3 * 2}
    return [{"case": f"{ms} ms, {mbit} Mbit/s", "kind": f"{ms},{mbit}", **told} for ms, mbit in parameters.lines]


def describe(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters as they go into the JSON."""
    return asdict(parameters)


def measure(
    contender: Remote,
    phantoms: Phantoms,
    folder: Path,
    parameters: Parameters,
    row: Row,
    case: dict[str, Any],
) -> dict[str, Any]:
    """Time one loader; return its figures as lists of one, to be pooled over repeats."""
    from benchmarks.cloud import serve

    p = parameters
    ms, mbit = map(int, case["kind"].split(","))
    per_volume = row.crops_per_volume or p.crops_per_volume
    spec = LoaderSpec(p.crop, p.batch, row.workers, per_volume, p.seed)
    importlib.import_module("torch.utils.data")
    with serve(folder.parent) as (port, proxy):
        contender.publish(folder.name, port)
        proxy.set(latency=ms / 1000, mbit=mbit)
        tick = time.perf_counter()
        with closing(Run(_loader(contender, phantoms, folder, proxy.port, spec))) as run:  # before the server goes
            batch = run.step()
            first_batch_s = time.perf_counter() - tick
            image = contender.image(batch)
            run.warm_up(p.cap_s)
            proxy.taken()
            begin = time.perf_counter()
            timed = run.timed(p.least_s, p.cap_s, p.batch)
            spent = time.perf_counter() - begin
            requests = proxy.taken()
            memory = memory_bytes()
        samples = max(float(timed[PRIMARY] or 0) * spent, 1)
        received = sum(r.received for r in requests)
    return {
        **{name: [value] for name, value in timed.items()},
        "first_batch_s": [first_batch_s],
        "memory_bytes": [memory],
        "bytes_per_sample": [received / samples],
        "requests_per_sample": [len(requests) / samples],
        "bandwidth_share": [received / spent / (mbit * 125_000)],
        "dtype": str(image.dtype).removeprefix("torch."),
        "crops_per_volume": per_volume,
        "capped": run.cut,
    }


def _loader(contender: Any, phantoms: Phantoms, folder: Path, port: int, spec: LoaderSpec) -> Iterable[Any]:
    if getattr(contender, "local", False):
        batches: Iterable[Any] = contender.loader(phantoms, folder, spec)
        return batches
    return contender.remote(phantoms, folder.name, port, spec)
