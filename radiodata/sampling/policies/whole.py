"""Everything of a volume: windows that cover it, or the volume itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.geometry import shape3
from radiodata.sampling.grid import grid_counts, grid_start_at
from radiodata.sampling.policies.base import Described, volume_weights
from radiodata.sampling.units import Unit, UnitPlanner
from radiodata.sampling.volumes import Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.policies.base import UnitSettings
    from radiodata.sampling.units import Planner
    from radiodata.sampling.volumes import Volumes


@dataclass(frozen=True)
class Grid(Described):
    """Sliding windows that cover every volume; each comes once an epoch.

    Windows are neighbours of each other in the order of a unit, so that its crops share their tiles.

    Parameters
    ----------
    overlap
        Of neighbours: a share of the patch (float) or voxels (int), one or three.
    """

    overlap: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.overlap, int | float):
            object.__setattr__(self, "overlap", tuple(self.overlap))

    def needs(self) -> Needs:
        """Nothing beyond shapes."""
        return Needs()

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """Crop shape in voxels."""
        if patch_size is None:
            raise ConfigError("Grid needs a patch_size: one int or three")
        return shape3(patch_size, "patch_size")

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> Planner:
        """What lists the units."""
        if patch is None:
            raise ConfigError("Grid needs a patch_size: one int or three")
        return GridPlanner(volumes, patch, self.overlap, settings.crops, settings.seed, settings.fill)


@dataclass(frozen=True)
class GridPlanner:
    """Units of neighbouring windows; the same in every epoch.

    Parameters
    ----------
    volumes, patch, overlap
        What is covered, and by which windows.
    crops
        Windows a unit (m).
    fill
        Whether a volume's last unit repeats its last window until it is full.
    """

    volumes: Volumes
    patch: Shape3
    overlap: float | tuple[float, ...]
    crops: int
    seed: int
    fill: bool

    def __len__(self) -> int:
        return int(self._units[-1])

    @property
    def total(self) -> int:
        """Windows in an epoch."""
        return int(self._windows[-1])

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Unit number `index`; nothing can stand in for a part of a volume."""
        if attempt:
            raise PlanError("a window of a grid has no replacement: use on_error='raise' or 'skip' with Grid")
        volume = self.volume_of(epoch, index)
        first = (index - int(self._units[volume])) * self.crops
        last = min(first + self.crops, self._count(volume))
        numbers = np.arange(first, first + self.crops if self.fill else last)
        starts = self._starts(volume, np.minimum(numbers, last - 1))
        return Unit.of(volume, starts, np.asarray(self.patch, np.int64), self.volumes.shapes[volume])

    def volume_of(self, epoch: int, index: int) -> int:
        """Volume of a unit."""
        return int(np.searchsorted(self._units, index, side="right")) - 1

    def repeats(self, index: int, crop: int) -> bool:
        """Whether a crop only fills its unit."""
        volume = self.volume_of(0, index)
        return (index - int(self._units[volume])) * self.crops + crop >= self._count(volume)

    def locate(self, crops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unit, and crop in it, of windows numbered volume by volume."""
        volumes = np.searchsorted(self._windows, crops, side="right") - 1
        within = crops - self._windows[volumes]
        return self._units[volumes] + within // self.crops, within % self.crops

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return grid_counts(self.volumes.shapes, self.patch, self.overlap)

    @cached_property
    def _windows(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(np.prod(self._counts, axis=1))])

    @cached_property
    def _units(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(-(-np.prod(self._counts, axis=1) // self.crops))])

    def _count(self, volume: int) -> int:
        return int(self._windows[volume + 1] - self._windows[volume])

    def _starts(self, volume: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = self._counts[volume]
        at = _there_and_back(numbers, counts)
        shape: list[int] = self.volumes.shapes[volume].tolist()
        return grid_start_at(np.ravel_multi_index(tuple(at.T), tuple(counts)), shape, self.patch, self.overlap)


def _there_and_back(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Grid indices of windows in an order in which each is a neighbour of the last; shape ``(n, 3)``."""
    x, y, z = np.unravel_index(numbers, tuple(counts))
    row = x * counts[1] + y
    y = np.where(x % 2, counts[1] - 1 - y, y)
    z = np.where(row % 2, counts[2] - 1 - z, z)
    return np.stack([x, y, z], axis=1)


@dataclass(frozen=True)
class Whole(Described):
    """Whole volumes, one a unit, each once an epoch; `patch_size`, `crops_per_volume` and the like do not apply.

    Volumes of several shapes cannot be stacked: give each rank one a step, or a `transform` or `collate_fn`
    that brings them to one.

    Parameters
    ----------
    weights
        As for ``CropPolicy``.
    """

    weights: str | None = None

    def needs(self) -> Needs:
        """A column of weights, where one is named."""
        return Needs(names=frozenset() if self.weights is None else frozenset({self.weights}))

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """No shape of its own."""
        if patch_size is not None:
            raise ConfigError(f"Whole() takes no patch_size, but it is {patch_size}: leave it out, or use Uniform()")
        return None

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> Planner:
        """What lists the units."""
        weights = None if self.weights is None else volume_weights(volumes, self.weights)
        return WholePlanner(volumes, (1, 1, 1), _no_target, 1, 1, 1, settings.seed, weights)


class WholePlanner(UnitPlanner):
    """Units of one whole volume."""

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Unit number `index` of an epoch."""
        volume = self._reserve(epoch, index, attempt) if attempt else self.volume_of(epoch, index)
        shape = self.volumes.shapes[volume]
        return Unit.of(volume, np.zeros((1, 3), np.int64), shape, shape)


def _no_target(volume: int) -> Any:
    return None
