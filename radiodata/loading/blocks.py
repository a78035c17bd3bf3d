"""Blocks: the crops of units that were read and are not all delivered yet, under a byte bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import box, box_slices, clip_box
from radiodata.store.reader import read_box
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box, Voxels
    from radiodata.geometry import Shape3
    from radiodata.sampling import Unit
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource

UnitKey: TypeAlias = "tuple[int, int]"
"""Epoch and number of a unit."""


@dataclass(frozen=True)
class Crop:
    """One crop, read.

    Attributes
    ----------
    volume
        Number of its volume in the plan.
    start
        First voxel in the volume, int64, shape ``(3,)``; negative where the volume is smaller.
    voxels
        Key to voxels ``(channel, x, y, z)``, C order.
    """

    volume: int
    start: NDArray[np.int64]
    voxels: dict[str, Voxels]

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
        One a volume of the plan.
    dtype
        Dtype of every crop under this key: the smallest that holds all volumes' values.
    pads
        Value, one a volume, of what lies outside a volume smaller than the patch.
    """

    sources: Sequence[VoxelSource]
    dtype: str
    pads: Sequence[float]


@dataclass(frozen=True)
class UnitReader:
    """Reads a unit: one box of tiles a key, cut into crops.

    Parameters
    ----------
    keys
        Sample key to its volumes.
    patch
        Crop shape in voxels.
    config
        How TileDB reads.
    """

    keys: Mapping[str, KeySource]
    patch: Shape3
    config: ReadConfig

    def read(self, unit: Unit) -> list[Crop]:
        """Read a unit and cut its crops."""
        crops = [Crop(unit.volume, start, {}) for start in unit.starts]
        for key, held in self.keys.items():
            source = held.sources[unit.volume]
            block = physical(read_box(source, unit.region, config=self.config), source)
            for crop in crops:
                crop.voxels[key] = self._cut(block, unit.region, crop.start, source.size, held, unit.volume)
        return crops

    def _cut(
        self, block: Voxels, region: Box, start: NDArray[np.int64], size: Shape3, held: KeySource, volume: int
    ) -> Voxels:
        wanted = box(start, start + np.asarray(self.patch))
        real = clip_box(wanted, size)
        inside = block[(slice(None), *box_slices(real, region[:, 0]))]
        if inside.shape[1:] == self.patch:
            return np.array(inside, dtype=held.dtype, order="C")
        out = np.full((len(block), *self.patch), held.pads[volume], held.dtype)
        out[(slice(None), *box_slices(real, wanted[:, 0]))] = inside
        return out


class BlockCache:
    """Crops of open units, shared by the threads of a process.

    A unit is read once however many threads ask; a crop is handed out and let go of; what is still
    waiting is bounded in bytes, the least recently used unit being dropped first (and read again, should
    it be asked for).

    Parameters
    ----------
    read
        Reads a unit by its key.
    max_bytes
        Bound on the crops that wait.
    """

    def __init__(self, read: Callable[[UnitKey], list[Crop]], max_bytes: int) -> None:
        if max_bytes < 0:
            raise ConfigError(f"cache_bytes must not be negative: {max_bytes}")
        self._read, self._max_bytes = read, max_bytes
        self._lock = threading.Lock()
        self._waiting: OrderedDict[UnitKey, dict[int, Crop]] = OrderedDict()
        self._reading: dict[UnitKey, Future[list[Crop]]] = {}
        self._bytes = 0
        self.reads = 0
        self.hits = 0

    def take(self, key: UnitKey, crop: int) -> Crop:
        """Hand out one crop of a unit, reading the unit unless it waits here."""
        with self._lock:
            self._forget_other_epochs(key)
            if crop in self._waiting.get(key, ()):
                self.hits += 1
                return self._let_go(key, crop)
        crops = self._read_once(key)
        with self._lock:
            if crop in self._waiting.get(key, ()):
                self._let_go(key, crop)
        return crops[crop]

    def prefetch(self, key: UnitKey, crop: int) -> None:
        """Read a unit ahead of the time when its crop is taken, unless it waits here or is being read."""
        with self._lock:
            if crop in self._waiting.get(key, ()) or key in self._reading:
                return
            future = self._reading[key] = Future()
        self._fill(key, future)

    def _read_once(self, key: UnitKey) -> list[Crop]:
        with self._lock:
            future = self._reading.get(key)
            mine = future is None
            if future is None:
                future = self._reading[key] = Future()
        if mine:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: UnitKey, future: Future[list[Crop]]) -> None:
        try:
            crops = self._read(key)
        except BaseException as error:
            with self._lock:
                del self._reading[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._reading[key]
            self.reads += 1
            self._drop(key)
            self._waiting[key] = dict(enumerate(crops))
            self._bytes += sum(c.nbytes for c in crops)
            while self._bytes > self._max_bytes and self._waiting:
                self._drop(next(iter(self._waiting)))
        future.set_result(crops)

    def _let_go(self, key: UnitKey, crop: int) -> Crop:
        held = self._waiting[key]
        self._waiting.move_to_end(key)
        taken = held.pop(crop)
        self._bytes -= taken.nbytes
        if not held:
            del self._waiting[key]
        return taken

    def _drop(self, key: UnitKey) -> None:
        self._bytes -= sum(c.nbytes for c in self._waiting.pop(key, {}).values())

    def _forget_other_epochs(self, key: UnitKey) -> None:
        for old in [k for k in self._waiting if k[0] < key[0]]:
            self._drop(old)
