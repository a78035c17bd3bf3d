"""Units: one read of neighbouring tiles that yields several crops, each distributed as the policy says.

The first crop of a unit is drawn from the policy's target. The cell of crop starts it falls in (side k
tiles, tile-aligned, offset anew each epoch) is the unit's cell; the other crops are drawn from the target
given that cell. So every single crop keeps the target's distribution, and all share most of their tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from radiodata.geometry import box, clip_box
from radiodata.sampling.permutation import hash_ints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box
    from radiodata.geometry import Shape3
    from radiodata.sampling.targets import Target
    from radiodata.sampling.volumes import Volumes


@dataclass(frozen=True)
class Unit:
    """One read.

    Attributes
    ----------
    volume
        Number of the volume.
    starts
        Crop starts, int64, shape ``(m, 3)``; negative where the volume is smaller than the patch.
    patch
        Shape of every crop, int64, shape ``(3,)``.
    region
        Smallest box of the volume that holds every crop, shape ``(3, 2)``.
    channels
        First and last + 1 of the channels (time frames) to read; None for all.
    stride
        Step between those channels.
    slice_axis
        Axis along which what lies outside of the volume repeats its border (2.5-D); None pads everywhere.
    """

    volume: int
    starts: NDArray[np.int64]
    patch: NDArray[np.int64]
    region: Box
    channels: tuple[int, int] | None = None
    stride: int = 1
    slice_axis: int | None = None

    @classmethod
    def of(cls, volume: int, starts: NDArray[np.int64], patch: NDArray[np.int64], shape: NDArray[np.int64]) -> Unit:
        """Unit of crops at `starts` in a volume of `shape`."""
        size: list[int] = shape.tolist()
        return cls(volume, starts, patch, clip_box(box(starts.min(axis=0), starts.max(axis=0) + patch), size))

    def part(self, crops: Sequence[int]) -> Unit:
        """The unit of some of its crops, by number."""
        starts, inside = self.starts[list(crops)], self.region
        low, high = starts.min(axis=0), starts.max(axis=0) + self.patch
        return replace(self, starts=starts, region=box(np.maximum(low, inside[:, 0]), np.minimum(high, inside[:, 1])))

    def moved(self, shift: NDArray[np.int64], patch: NDArray[np.int64], shape: NDArray[np.int64]) -> Unit:
        """The unit with its crops moved and resized."""
        other = Unit.of(self.volume, self.starts + shift, patch, shape)
        return replace(self, starts=other.starts, patch=patch, region=other.region)


class Planner(Protocol):
    """Draws the units of an epoch."""

    @property
    def crops(self) -> int:
        """Crops a unit (m)."""

    def __len__(self) -> int:
        """Units in an epoch."""

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Draw unit number `index`; attempts above 0 are what stands in for it where it cannot be read."""

    def volume_of(self, epoch: int, index: int) -> int:
        """Volume of a unit."""

    def repeats(self, index: int, crop: int) -> bool:
        """Whether a crop only fills its unit."""

    def locate(self, crops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unit, and crop in it, of the epoch's crops numbered volume by volume, without those that repeat."""

    @property
    def total(self) -> int:
        """Crops in an epoch, without those that repeat."""


@dataclass(frozen=True)
class UnitPlanner:
    """Draws units from the policy's targets; the same (seed, epoch, unit) gives the same unit anywhere.

    Parameters
    ----------
    volumes, patch
        What is sampled, and the crop's shape in voxels.
    target
        Distribution of crop starts in a volume.
    crops
        Crops a unit (m); 1 draws every crop on its own.
    cell_tiles
        Side of a cell in tiles (k).
    per_volume
        Units a volume gives in an epoch, on average.
    seed
        Chooses the draw.
    weights
        Share of the units that each volume gets, float64, shape ``(V,)``; None for the same share. Counts are
        within one of what they should be, and exact over the epochs.
    """

    volumes: Volumes
    patch: Shape3
    target: Callable[[int], Target]
    crops: int
    cell_tiles: int
    per_volume: int
    seed: int
    weights: NDArray[np.float64] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.volumes) * self.per_volume

    @property
    def total(self) -> int:
        """Crops in an epoch."""
        return len(self) * self.crops

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Draw unit number `index` of an epoch."""
        volume = self._reserve(epoch, index, attempt) if attempt else self.volume_of(epoch, index)
        rng = keyed_rng(self.seed, epoch, index, attempt)
        patch = np.asarray(self.patch, np.int64)
        target = self.target(volume)
        first = target.draw(rng)
        starts = first[None]
        if self.crops > 1:
            low, high = self._cell(epoch, first)
            starts = np.concatenate([starts, target.draw_within(rng, low, high, self.crops - 1)])
        return Unit.of(volume, starts, patch, self.volumes.shapes[volume])

    def volume_of(self, epoch: int, index: int) -> int:
        """Volume of a unit."""
        if self.weights is None:
            return index // self.per_volume
        shift = keyed_rng(self.seed, epoch, -2).random()
        at = int(np.searchsorted(self._reached, (index + shift) / len(self), side="right"))
        return min(at, self._last)

    def repeats(self, index: int, crop: int) -> bool:
        """No crop only fills its unit."""
        return False

    def locate(self, crops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unit, and crop in it."""
        return crops // self.crops, crops % self.crops

    @cached_property
    def _reached(self) -> NDArray[np.float64]:
        weights = np.ones(len(self.volumes)) if self.weights is None else self.weights
        reached: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        return reached

    @cached_property
    def _last(self) -> int:
        weights = np.ones(len(self.volumes)) if self.weights is None else self.weights
        return int(np.flatnonzero(weights)[-1])

    def _reserve(self, epoch: int, index: int, attempt: int) -> int:
        """A volume drawn as others are, but not the one that failed, where there is another."""
        failed = self.volume_of(epoch, index)
        for turn in range(64):
            other = self.volume_of(epoch, hash_ints(self.seed, epoch, index, attempt, turn) % len(self))
            if other != failed:
                return other
        return failed

    def _cell(self, epoch: int, start: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tile = np.asarray(self.volumes.tile, np.int64)
        side = tile * self.cell_tiles
        offset = tile * _shift(self.seed, epoch, self.cell_tiles)
        low = (np.maximum(start, 0) + offset) // side * side - offset
        return low, low + side


@lru_cache(maxsize=8)
def _shift(seed: int, epoch: int, cell_tiles: int) -> NDArray[np.int64]:
    """Tiles by which the cells of an epoch are moved along each axis."""
    return keyed_rng(seed, epoch, -1).integers(0, cell_tiles, size=3)


def keyed_rng(seed: int, epoch: int, index: int, attempt: int = 0) -> np.random.Generator:
    """Random stream of its own for every (seed, epoch, index, attempt): Philox 4x64 (Salmon et al. 2011)."""
    key = np.array([seed, epoch], np.int64).astype(np.uint64)
    counter = np.array([0, 0, attempt, index], np.int64).astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
