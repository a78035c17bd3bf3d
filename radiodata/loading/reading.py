"""Reading units: one box of tiles for each key, cut into crops."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from radiodata.geometry import box, box_slices, clip_box
from radiodata.loading import memory
from radiodata.store.context import handles
from radiodata.store.direct import Meter
from radiodata.store.direct.listing import local_path
from radiodata.store.reader import read_box
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box, Voxels
    from radiodata.sampling import Unit
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource


@dataclass(frozen=True)
class Crop:
    """One crop, read.

    Attributes
    ----------
    volume
        Number of its volume in the plan.
    start
        First voxel in the volume, int64, shape ``(3,)``; negative where the crop reaches beyond it.
    shape
        In voxels, int64, shape ``(3,)``.
    voxels
        Key to voxels, C order: ``(channel, x, y, z)``, or ``(channel, a, b)`` of a slice.
    frame
        First of its channels, where they were chosen.
    shared
        Keys whose voxels are a view of what was read of the unit, which other crops are views of, too: in no order, and
        not to be written to.
    """

    volume: int
    start: NDArray[np.int64]
    shape: NDArray[np.int64]
    voxels: dict[str, Voxels]
    frame: int | None = None
    shared: set[str] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        """Bytes of voxels."""
        return sum(v.nbytes for v in self.voxels.values())


@dataclass(frozen=True)
class KeySource:
    """Volumes behind one key of a sample.

    Attributes
    ----------
    sources
        For each collection of the key, one a volume of the plan; their channels are stacked.
    dtype
        Dtype of every crop under this key: the smallest that holds all volumes' values.
    pads
        Value of what lies outside of a volume, float64: one for each volume and collection of the key.
    label
        Whether it holds labels: of slices with neighbours it gives the one in the middle.
    """

    sources: Sequence[Sequence[VoxelSource]]
    dtype: str
    pads: NDArray[np.float64]
    label: bool


@dataclass(frozen=True)
class UnitReader:
    """Reads a unit and cuts its crops.

    Parameters
    ----------
    keys
        Sample key to its volumes.
    config
        How TileDB reads.
    """

    keys: Mapping[str, KeySource]
    config: ReadConfig

    @cached_property
    def schemes(self) -> frozenset[str]:
        """Of the object stores that volumes are on; empty where all are on local disks."""
        uris = [sources[0].uri for held in self.keys.values() for sources in held.sources if len(sources)]
        return frozenset(urlsplit(uri).scheme for uri in uris if local_path(uri) is None)

    def read(self, unit: Unit) -> tuple[list[Crop], dict[str, float]]:
        """Crops of a unit, and what they took: totals of ``LoaderStats``."""
        begun, meter = time.perf_counter_ns(), Meter()
        frame = None if unit.channels is None else unit.channels[0]
        crops = [Crop(unit.volume, start, unit.patch, {}, frame) for start in unit.starts]
        read = 0
        for key, held in self.keys.items():
            blocks = [self._block(sources[unit.volume], unit, meter) for sources in held.sources]
            block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            read += block.nbytes
            pad = np.repeat(held.pads[unit.volume], [len(b) for b in blocks]).reshape(-1, 1, 1, 1)
            share = _may_share(block, unit, held)
            size = held.sources[0][unit.volume].size
            for crop, voxels in zip(crops, _cuts(block, unit, size, held, pad, share=share), strict=True):
                crop.voxels[key] = voxels
                if share and voxels.base is not None:
                    crop.shared.add(key)
        cut = time.perf_counter_ns() - begun - meter.wall
        seconds = {"read_seconds": meter.read / 1e9, "decode_seconds": meter.decode / 1e9, "cut_seconds": cut / 1e9}
        requests, fetched = handles().remote.taken() if self.schemes else (0, 0)
        counts = {"units_read": 1, "bytes_read": read, "requests": requests, "bytes_fetched": fetched}
        return crops, {**seconds, **counts}

    def _block(self, source: VoxelSource, unit: Unit, meter: Meter) -> Voxels:
        chosen = unit.channels if source.shape[0] > 1 else None
        stored = read_box(
            source, unit.region, channels=chosen, config=self.config, meter=meter, empty=memory.blocks.empty
        )
        return physical(stored if chosen is None else stored[:: unit.stride], source)


def _may_share(block: Voxels, unit: Unit, held: KeySource) -> bool:
    """Whether crops stay views of what was read: where that keeps no more memory than copies of them would."""
    crops = len(unit.starts) * len(block) * math.prod(unit.patch.tolist()) * block.itemsize
    return unit.slice_axis is None and block.dtype == held.dtype and block.nbytes <= crops


def _cuts(
    block: Voxels, unit: Unit, size: Sequence[int], held: KeySource, pad: NDArray[np.float64], *, share: bool
) -> list[Voxels]:
    """Voxels of each crop of a unit; `share`: views of the block, where they lie inside of the volume."""
    if unit.slice_axis is None and ((unit.starts >= 0) & (unit.starts + unit.patch <= size)).all():
        dx, dy, dz = unit.patch.tolist()
        corners = (unit.starts - unit.region[:, 0]).tolist()
        views = [block[:, x : x + dx, y : y + dy, z : z + dz] for x, y, z in corners]
        return views if share else [np.array(view, dtype=held.dtype, order="C") for view in views]
    return [_cut(block, unit, start, size, held, pad, share=share) for start in unit.starts]


def _cut(
    block: Voxels,
    unit: Unit,
    start: NDArray[np.int64],
    size: Sequence[int],
    held: KeySource,
    pad: NDArray[np.float64],
    *,
    share: bool,
) -> Voxels:
    wanted = box(start, start + unit.patch)
    real = clip_box(wanted, size)
    if held.label and unit.slice_axis is not None:
        middle = int(wanted[unit.slice_axis].sum()) // 2
        wanted[unit.slice_axis] = real[unit.slice_axis] = (middle, middle + 1)
    inside = block[(slice(None), *box_slices(real, unit.region[:, 0]))]
    if (wanted == real).all():
        if share:
            return inside
        out = np.array(inside, dtype=held.dtype, order="C")
    else:
        shape = (len(block), *(wanted[:, 1] - wanted[:, 0]).tolist())
        out = np.empty(shape, held.dtype)
        out[:] = pad
        out[(slice(None), *box_slices(real, wanted[:, 0]))] = inside
    return out if unit.slice_axis is None else _slices_as_channels(out, unit.slice_axis, wanted, real)


def _slices_as_channels(crop: Voxels, axis: int, wanted: Box, real: Box) -> Voxels:
    """``(channel, x, y, z)`` to ``(channel * slices, a, b)``; slices beyond the volume repeat its last one."""
    inside = np.clip(np.arange(*wanted[axis]), real[axis, 0], real[axis, 1] - 1) - wanted[axis, 0]
    stacked = np.moveaxis(crop, axis + 1, 1)[:, inside]
    return np.ascontiguousarray(stacked.reshape(-1, *stacked.shape[2:]))
