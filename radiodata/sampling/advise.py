"""Advice on tiles, units and workers for a patch, from the same reckoning as ``Plan.explain``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import shape3
from radiodata.sampling.explain import explain
from radiodata.sampling.plan import Plan
from radiodata.sampling.policies import Uniform
from radiodata.sampling.volumes import Volumes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from radiodata.geometry import Shape3
    from radiodata.sampling.explain import Explanation

TILES = (32, 48, 64, 96, 128)
UNITS = (1, 2, 4, 8, 16)
_SEVERAL = 64
_NEARLY = 0.9


@dataclass(frozen=True)
class Costs:
    """Seconds that reading takes.

    Attributes
    ----------
    decode, copy
        Seconds of one core a decoded byte, and a delivered byte.
    tile, read
        Seconds of one core a tile, and a read.
    request, byte
        Seconds of waiting a run of tiles (a request), and a stored byte; many are under way at once.
    in_flight
        Requests under way at once.
    stored
        Stored bytes a decoded byte.
    """

    decode: float = 1.0e-9
    copy: float = 0.5e-9
    tile: float = 5e-6
    read: float = 4e-4
    request: float = 0.0
    byte: float = 0.0
    in_flight: int = 1
    stored: float = 0.4


STORAGES = {"disk": Costs(), "s3": Costs(request=0.03, byte=8e-9, in_flight=16)}
"""Costs measured on a virtual machine of 2 cores; an object store 30 ms away behind 1 Gbit/s."""


@dataclass(frozen=True)
class Advice:
    """What to choose, and what is to be expected of it.

    Attributes
    ----------
    tile
        Side of a tile in voxels (``StoreConfig(tiling=...)``).
    cell_tiles, crops_per_unit, canonical_workers, num_workers, threads
        As for ``PatchDataset`` and ``PatchLoader``.
    crops_per_second
        What the model reckons with; a guide, no promise.
    cpu_per_crop
        Seconds of one core.
    expected
        What ``Plan.explain`` says of the choice.
    """

    tile: int
    cell_tiles: int
    crops_per_unit: int
    canonical_workers: int
    num_workers: int
    threads: int
    crops_per_second: float
    cpu_per_crop: float
    expected: Explanation

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"tiling={self.tile}\n"
            f"cell_tiles={self.cell_tiles}, crops_per_unit={self.crops_per_unit}, "
            f"canonical_workers={self.canonical_workers}\n"
            f"num_workers={self.num_workers}, threads={self.threads}\n"
            f"about {self.crops_per_second:,.0f} crops a second, {self.cpu_per_crop * 1e3:.2f} ms of a core each\n"
            f"{self.expected}"
        )


def advise(
    patch_size: int | Sequence[int],
    *,
    shape: Sequence[int] = (512, 512, 300),
    voxel_bytes: int = 3,
    batch_size: int = 4,
    crops_per_volume: int = 16,
    tile: int | None = None,
    storage: Literal["disk", "s3"] | Costs = "disk",
    cores: int = 2,
    max_overlap: float = 0.5,
    memory: int = 1 << 30,
) -> Advice:
    """Recommend a tile size, units and workers.

    Of the choices whose crops overlap no more than `max_overlap` within a unit and whose waiting crops fit
    into `memory`, those within a tenth of the quickest are taken, and of them the one with the fewest crops
    a unit, which mixes best, and the smallest tile, which serves other patches best.

    Parameters
    ----------
    patch_size
        Crop shape in voxels: one int or three.
    shape
        Of a typical volume, in voxels.
    voxel_bytes
        Bytes of a voxel, all keys together: 3 for an int16 image and a uint8 label.
    batch_size
        Global batch.
    crops_per_volume
        Crops of each volume in an epoch: they come from two places of it at least.
    tile
        Side of the tiles, where the store is made already.
    storage
        ``"disk"``, ``"s3"``, or costs of your own.
    cores
        Cores that the loader may use.
    max_overlap
        Largest mean share of a crop that another one of its unit may have.
    memory
        Bytes of crops that may wait, all processes together.

    Raises
    ------
    ConfigError
        When nothing satisfies the bounds.

    Examples
    --------
    >>> advise(96, cores=4).crops_per_unit
    8
    """
    patch, size = shape3(patch_size, "patch_size"), shape3(shape, "shape")
    costs = storage if isinstance(storage, Costs) else STORAGES[storage]
    workers = 8 if cores <= 8 else int(2 ** np.ceil(np.log2(cores)))
    found = []
    for side, cells, crops in _choices(patch, tile, crops_per_volume // 2):
        told = explain(_plan(patch, size, side, cells, crops, voxel_bytes, batch_size, workers), probes=48)
        if told.overlap <= max_overlap and told.open_bytes <= memory:
            cpu, rate = _speed(told, crops, side, costs, cores)
            found.append((rate, -crops, -side, Advice(side, cells, crops, workers, 0, cores, rate, cpu, told)))
    if not found:
        raise ConfigError(
            f"nothing fits max_overlap={max_overlap} and memory={memory:,}: raise one of them, or lower batch_size"
        )
    best = max(rate for rate, *_ in found)
    return max((f for f in found if f[0] >= _NEARLY * best), key=lambda f: (f[1], f[2], f[0]))[-1]


def _choices(patch: Shape3, tile: int | None, most: int) -> Iterator[tuple[int, int, int]]:
    for side in TILES if tile is None else (tile,):
        for cells in range(1, max(2, max(patch) // side + 1)):
            for crops in (m for m in UNITS if m == 1 or m <= most):
                if crops > 1 or cells == 1:
                    yield side, cells, crops


def _plan(
    patch: Shape3, shape: Shape3, tile: int, cells: int, crops: int, voxel_bytes: int, batch: int, workers: int
) -> Plan:
    volumes = Volumes(
        tuple(map(str, range(_SEVERAL))),
        np.tile(np.array(shape), (_SEVERAL, 1)),
        (tile, tile, tile),
        voxel_bytes={"voxels": voxel_bytes},
    )
    per_volume = -(-batch * workers * 2 // _SEVERAL) * max(UNITS)
    return Plan(volumes, Uniform(), patch, batch, per_volume, crops, cells, workers)


def _speed(told: Explanation, crops: int, tile: int, costs: Costs, cores: int) -> tuple[float, float]:
    """Seconds of a core a crop, and crops a second."""
    delivered = told.delivered_bytes / told.crops
    decoded = delivered * told.amplification
    tiles = told.tiles_per_unit / crops
    cpu = decoded * costs.decode + delivered * costs.copy + tiles * costs.tile + costs.read / crops
    runs = told.tiles_per_unit ** (2 / 3) / crops  # tiles that follow each other along z are one range
    wait = runs * costs.request / costs.in_flight + decoded * costs.stored * costs.byte
    return cpu, 1 / max(cpu / cores, wait)
