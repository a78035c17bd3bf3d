"""Units: one read of neighbouring tiles that yields several crops, each distributed as the policy says.

The first crop of a unit is drawn from the policy's target. The cell of crop starts it falls in (side k
tiles, tile-aligned, offset anew each epoch) is the unit's cell; the other crops are drawn from the target
given that cell. So every single crop keeps the target's distribution, and all share most of their tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from radiodata.geometry import box, clip_box, union_box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Box
    from radiodata.geometry import Shape3
    from radiodata.sampling.policies import Policy
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
    region
        Smallest box of the volume that holds every crop, shape ``(3, 2)``.
    """

    volume: int
    starts: NDArray[np.int64]
    region: Box


@dataclass(frozen=True)
class UnitPlanner:
    """Draws units; the same (seed, epoch, unit) gives the same unit anywhere.

    Parameters
    ----------
    volumes, policy, patch
        What is sampled, how, and the crop's shape in voxels.
    crops
        Crops a unit (m); 1 draws every crop on its own.
    cell_tiles
        Side of a cell in tiles (k).
    per_volume
        Units a volume gives in an epoch.
    """

    volumes: Volumes
    policy: Policy
    patch: Shape3
    crops: int
    cell_tiles: int
    per_volume: int
    seed: int

    def __len__(self) -> int:
        return len(self.volumes) * self.per_volume

    def unit(self, epoch: int, index: int) -> Unit:
        """Draw unit number `index` of an epoch."""
        volume = index // self.per_volume
        rng = keyed_rng(self.seed, epoch, index)
        patch = np.asarray(self.patch, np.int64)
        target = self.policy.target(self.volumes, volume, patch)
        first = target.draw(rng)
        low, high = self._cell(epoch, first)
        rest = target.draw_within(rng, low, high, self.crops - 1)
        starts = np.concatenate([first[None], rest])
        boxes = [clip_box(box(s, s + patch), self.volumes.shapes[volume]) for s in starts]
        return Unit(volume, starts, union_box(boxes))

    def _cell(self, epoch: int, start: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tile = np.asarray(self.volumes.tile, np.int64)
        side = tile * self.cell_tiles
        offset = tile * keyed_rng(self.seed, epoch, -1).integers(0, self.cell_tiles, size=3)
        low = (np.maximum(start, 0) + offset) // side * side - offset
        return low, low + side


def keyed_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random stream of its own for every (seed, epoch, index): Philox 4x64 (Salmon et al. 2011)."""
    key = np.array([seed, epoch], np.int64).astype(np.uint64)
    counter = np.array([0, 0, 0, index], np.int64).astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
