"""Crops anywhere, or where a map says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import PlanError
from radiodata.sampling.policies.base import CropPolicy, volume_weights
from radiodata.sampling.targets import Boxes, Target
from radiodata.sampling.volumes import Needs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.volumes import TileIndex, Volumes


@dataclass(frozen=True)
class Uniform(CropPolicy):
    """Crop centres uniform over the voxels of a volume; crops are clamped into it.

    Parameters
    ----------
    max_air, weights
        As for ``CropPolicy``.
    """

    def _target(self, volumes: Volumes, patch: NDArray[np.int64], state: Any, volume: int) -> Target:
        shape = volumes.shapes[volume]
        return Target(shape, patch, ((1.0, Boxes.whole(shape)),))


@dataclass(frozen=True)
class Weighted(CropPolicy):
    """Crops by weight: volumes by a column, or centres by a collection of probability maps.

    Parameters
    ----------
    by
        A column of `obs_meta` or `obs`: volumes give crops in proportion to it, uniform within each. Or a
        collection whose volumes are maps of values from 0, on the grid of the first key's: a tile is drawn in
        proportion to the sum of its values, then a centre uniform in the tile (the tiles' statistics are
        all that is read).
    max_air, weights
        As for ``CropPolicy``.
    """

    by: str = ""

    def needs(self) -> Needs:
        """The column or the maps."""
        return super().needs() | Needs(names=frozenset({self.by}))

    def _prepare(
        self, volumes: Volumes, patch: Shape3, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, Any]:
        if self.by not in volumes.maps:
            if self.by not in volumes.columns:
                raise PlanError(
                    f"Weighted(by={self.by!r}): there is no such column in obs_meta or obs, nor a collection"
                )
            of_column = volume_weights(volumes, self.by)
            return (of_column if weights is None else of_column * weights), None
        maps = volumes.maps[self.by]
        bad = maps.totals() <= 0
        if maps.low is not None:
            bad |= maps.low < 0
        if bad.any():
            raise PlanError(
                f"Weighted(by={self.by!r}): maps must hold values from 0, not all of them 0; those of subjects "
                f"{volumes.named(bad)} do not. Leave them out with cohort.subset([...])."
            )
        return weights, maps

    def _target(self, volumes: Volumes, patch: NDArray[np.int64], state: TileIndex | None, volume: int) -> Target:
        shape = volumes.shapes[volume]
        if state is None:
            return Target(shape, patch, ((1.0, Boxes.whole(shape)),))
        grid = state.grid(volume, volumes.grid(volume))
        tiles = np.argwhere(grid > 0)
        low = tiles * np.asarray(volumes.tile, np.int64)
        weights = grid[tuple(tiles.T)]
        boxes = Boxes(low, np.minimum(low + np.asarray(volumes.tile), shape), weights / weights.sum())
        return Target(shape, patch, ((1.0, boxes),))
