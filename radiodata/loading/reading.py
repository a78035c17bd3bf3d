"""Reading units: one box of tiles for each key, cut into crops."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from radiodata.geometry import box, box_shape, box_slices, clip_box
from radiodata.loading import memory
from radiodata.store.context import handles
from radiodata.store.direct import Meter
from radiodata.store.direct.listing import local_path
from radiodata.store.reader import read_box, read_crops
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box, Voxels
    from radiodata.loading.places import Due
    from radiodata.sampling import Unit
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource

    Room: TypeAlias = Callable[[int, Sequence[int], np.dtype[Any]], Voxels]
    """Gives memory for a crop of a unit, by its number, shape and dtype."""


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
    """

    volume: int
    start: NDArray[np.int64]
    shape: NDArray[np.int64]
    voxels: dict[str, Voxels]
    frame: int | None = None

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

    def read(self, unit: Unit, due: Sequence[Due | None] = ()) -> tuple[list[Crop], dict[str, float]]:
        """Crops of a unit, and what they took: totals of ``LoaderStats``.

        Parameters
        ----------
        due
            When each crop will be taken, as far as that is known: those have a place, and are read into it. Others get
            memory of their own.
        """
        begun, meter = time.perf_counter_ns(), Meter()
        frame = None if unit.channels is None else unit.channels[0]
        crops = [Crop(unit.volume, start, unit.patch, {}, frame) for start in unit.starts]
        read = 0
        for key, held in self.keys.items():

            def room(number: int, shape: Sequence[int], dtype: np.dtype[Any], key: str = key) -> Voxels:
                known = due[number] if due else None
                place = None if known is None else known.place(key, shape, dtype)
                return memory.blocks.empty(shape, dtype) if place is None else place

            voxels, nbytes = self._voxels(held, unit, room, meter)
            read += nbytes
            for crop, one in zip(crops, voxels, strict=True):
                crop.voxels[key] = one
        cut = time.perf_counter_ns() - begun - meter.wall
        seconds = {"read_seconds": meter.read / 1e9, "decode_seconds": meter.decode / 1e9, "cut_seconds": cut / 1e9}
        requests, fetched = handles().remote.taken() if self.schemes else (0, 0)
        counts = {"units_read": 1, "bytes_read": read, "requests": requests, "bytes_fetched": fetched}
        return crops, {**seconds, **counts}

    def _voxels(self, held: KeySource, unit: Unit, room: Room, meter: Meter) -> tuple[list[Voxels], int]:
        """Voxels of each crop under one key, and the bytes of what was read for them."""
        sources = [sources[unit.volume] for sources in held.sources]
        if _as_stored(sources, unit, held):
            return self._read_into_place(sources, unit, room, meter)
        blocks = [self._block(source, unit, meter) for source in sources]
        block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        pad = np.repeat(held.pads[unit.volume], [len(b) for b in blocks]).reshape(-1, 1, 1, 1)
        crops = [_cut(block, unit, start, sources[0].size, held, pad) for start in unit.starts]
        out = [room(number, crop.shape, crop.dtype) for number, crop in enumerate(crops)]
        for place, crop in zip(out, crops, strict=True):
            place[...] = crop
        return out, block.nbytes

    def _read_into_place(
        self, sources: Sequence[VoxelSource], unit: Unit, room: Room, meter: Meter
    ) -> tuple[list[Voxels], int]:
        dtype = np.dtype(sources[0].dtype)
        shape = (sum(source.shape[0] for source in sources), *unit.patch.tolist())
        out = [room(number, shape, dtype) for number in range(len(unit.starts))]
        first = read = 0
        for source in sources:
            last = first + source.shape[0]
            parts = [crop[first:last] for crop in out]
            read_crops(
                source, unit.region, unit.starts, parts, config=self.config, meter=meter, empty=memory.blocks.empty
            )
            read += (last - first) * math.prod(box_shape(unit.region)) * dtype.itemsize
            first = last
        return out, read

    def _block(self, source: VoxelSource, unit: Unit, meter: Meter) -> Voxels:
        chosen = unit.channels if source.shape[0] > 1 else None
        stored = read_box(
            source, unit.region, channels=chosen, config=self.config, meter=meter, empty=memory.blocks.empty
        )
        return physical(stored if chosen is None else stored[:: unit.stride], source)


def _as_stored(sources: Sequence[VoxelSource], unit: Unit, held: KeySource) -> bool:
    """Whether crops are parts of what is stored: without padding, slope, another dtype or chosen channels."""
    if unit.slice_axis is not None or unit.channels is not None:
        return False
    inside = (unit.starts >= 0).all() and (unit.starts + unit.patch <= sources[0].size).all()
    return bool(inside) and all(not source.scaled and source.dtype == held.dtype for source in sources)


def _cut(
    block: Voxels,
    unit: Unit,
    start: NDArray[np.int64],
    size: Sequence[int],
    held: KeySource,
    pad: NDArray[np.float64],
) -> Voxels:
    """Voxels of a crop, in the key's dtype: a view of the block where that will do."""
    wanted = box(start, start + unit.patch)
    real = clip_box(wanted, size)
    if held.label and unit.slice_axis is not None:
        middle = int(wanted[unit.slice_axis].sum()) // 2
        wanted[unit.slice_axis] = real[unit.slice_axis] = (middle, middle + 1)
    inside = block[(slice(None), *box_slices(real, unit.region[:, 0]))]
    if (wanted == real).all():
        out = inside.astype(held.dtype, copy=False)
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
