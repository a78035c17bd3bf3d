"""Benchmark ``train``: the same small network fed by each contender; samples/s, and the share of a step spent waiting.

As ``gpu_training``, with more contenders and fewer steps: on a CPU the network has the processors that a loader needs.
"""

from __future__ import annotations

from benchmarks.gpu_training import (
    HERE,
    HIGHER_IS_BETTER,
    OURS,
    PRIMARY,
    UNIT,
    Parameters,
    cases,
    data,
    describe,
    measure,
)
from benchmarks.registry import READERS, Row

__all__ = ["HIGHER_IS_BETTER", "PRIMARY", "UNIT", "cases", "data", "describe", "measure"]

SUMMARY = "one small network fed by every contender: samples/s, share of a step spent waiting"
PEERS = ("limit", *READERS)

FULL = Parameters(steps=24, crops_per_volume=32)
QUICK = Parameters(shape=(128, 128, 96), volumes=2, crop=32, crops_per_volume=16, warm_up=2, steps=6, repeats=1)

ROWS = (
    Row("limit", "tensors in memory", "benchmarks.gpu_training:OnDevice", note="the limit: nothing is loaded"),
    Row("radiodata", "radiodata, 2 workers", HERE + "radiodata:Radiodata", ("radiodata",), OURS, 2),
    Row("radiodata", "radiodata, threads", HERE + "radiodata:Radiodata", ("radiodata",), OURS, 0),
    Row("blosc2", "blosc2 (nnU-Net 2.8), 2 workers", HERE + "nnunet:NnunetBlosc2", ("blosc2",), {"since": "2.8"}, 2),
    Row("blosc2", "blosc2 (nnU-Net 2.7), 2 workers", HERE + "nnunet:NnunetBlosc2", ("blosc2",), {"since": "2.7"}, 2),
    Row("memmap", "memmap, 2 workers", HERE + "memmap:Memmap", (), {}, 2),
    Row("zarr", "zarr v3, 2 workers", HERE + "zarr:Zarr", ("zarr",), {}, 2),
    Row("RadiObject", "RadiObject, 2 spawned workers", HERE + "radiobject:RadiObject", ("radiobject",),
        {"start": "spawn"}, 2),
    Row("MONAI", "MONAI CacheDataset, 2 workers", HERE + "monai:Monai", ("monai",), {"cache": True}, 2, None,
        "volumes in memory"),
    Row("TorchIO", "TorchIO Queue, 2 workers", HERE + "torchio:TorchIO", ("torchio",), {}, 2, 8,
        "8 crops a volume read"),
)  # fmt: skip
