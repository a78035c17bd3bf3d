"""What a plan knows of the volumes: shapes, tiles, where labels lie. Numbers only; no voxel, no store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3


@dataclass(frozen=True)
class LabelIndex:
    """Label statistics of all volumes, flattened: entries are (tile, class) pairs, points belong to entries.

    Attributes
    ----------
    entry_start
        Entries of volume v are ``entry_start[v]:entry_start[v + 1]``; int64, shape ``(V + 1,)``.
    label, voxels
        Class and voxel count of an entry; int64, shape ``(E,)``.
    point_start
        Points of entry e are ``point_start[e]:point_start[e + 1]``; int64, shape ``(E + 1,)``.
    points
        Flat indices into the volume ``(x, y, z)``, C order; int64, shape ``(P,)``.
    """

    entry_start: NDArray[np.int64]
    label: NDArray[np.int64]
    voxels: NDArray[np.int64]
    point_start: NDArray[np.int64]
    points: NDArray[np.int64]

    @classmethod
    def from_columns(
        cls,
        label: Sequence[NDArray[np.int64]],
        voxels: Sequence[NDArray[np.int64]],
        kept: Sequence[NDArray[np.int64]],
        points: Sequence[NDArray[np.int64]],
    ) -> LabelIndex:
        """Flatten one array a volume of each column."""

        def starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
            return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

        def flat(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
            return np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int64)

        kept_flat = flat(kept)
        return cls(starts([len(c) for c in label]), flat(label), flat(voxels), starts(kept_flat), flat(points))

    def classes(self, volume: int) -> NDArray[np.int64]:
        """Classes above 0 that occur in a volume, ascending."""
        return np.unique(self.label[self.entry_start[volume] : self.entry_start[volume + 1]])

    def weighted_points(
        self, volume: int, shape: NDArray[np.int64], classes: Sequence[int] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Coordinates to centre crops on, and their probabilities.

        Each class that occurs is as likely as the others, each voxel of a class as likely as its others;
        where a tile kept only some of its voxels, they stand for the rest.

        Returns
        -------
        points
            int64, shape ``(N, 3)``; empty where no class occurs.
        weights
            float64, shape ``(N,)``, sum 1.
        """
        first, last = self.entry_start[volume], self.entry_start[volume + 1]
        label, voxels = self.label[first:last], self.voxels[first:last].astype(np.float64)
        wanted = np.ones(len(label), bool) if classes is None else np.isin(label, classes)
        present = np.unique(label[wanted])
        share = np.zeros(len(label))
        for value in present:
            of_class = wanted & (label == value)
            share[of_class] = voxels[of_class] / voxels[of_class].sum() / len(present)
        kept = np.diff(self.point_start[first : last + 1])
        weights = np.repeat(np.divide(share, kept, out=np.zeros_like(share), where=kept > 0), kept)
        flat = self.points[self.point_start[first] : self.point_start[last]]
        used = weights > 0
        points = np.stack(np.unravel_index(flat[used], tuple(shape)), axis=1).astype(np.int64)
        return points.reshape(-1, 3), weights[used]


@dataclass(frozen=True)
class Volumes:
    """The volumes that a plan draws from, in the order of their subjects.

    Attributes
    ----------
    subjects
        Subject ids; they name volumes in errors and identify the plan.
    shapes
        int64, shape ``(V, 3)``, in voxels.
    tile
        Tile extents in voxels.
    labels
        Where labels lie; None when no label collection is loaded.
    """

    subjects: tuple[str, ...]
    shapes: NDArray[np.int64]
    tile: Shape3
    labels: LabelIndex | None = None

    def __len__(self) -> int:
        return len(self.subjects)
