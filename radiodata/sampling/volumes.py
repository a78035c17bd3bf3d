"""What a plan knows of the volumes: shapes, tiles, where labels lie. Numbers only; no voxel, no store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.geometry import tile_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3


@dataclass(frozen=True)
class LabelIndex:
    """Label statistics of all volumes, flattened: entries are (tile, class) pairs, points belong to entries.

    Attributes
    ----------
    entry_start
        Entries of volume v are ``entry_start[v]:entry_start[v + 1]``; int64, shape ``(V + 1,)``.
    tile, label, voxels
        Tile (in C order of the volume's tile grid), class and voxel count of an entry; int64, shape ``(E,)``.
    point_start
        Points of entry e are ``point_start[e]:point_start[e + 1]``; int64, shape ``(E + 1,)``.
    points
        Flat indices into the volume ``(x, y, z)``, C order; int64, shape ``(P,)``.
    """

    entry_start: NDArray[np.int64]
    tile: NDArray[np.int64]
    label: NDArray[np.int64]
    voxels: NDArray[np.int64]
    point_start: NDArray[np.int64]
    points: NDArray[np.int64]

    @classmethod
    def from_columns(
        cls,
        tile: Sequence[NDArray[np.int64]],
        label: Sequence[NDArray[np.int64]],
        voxels: Sequence[NDArray[np.int64]],
        kept: Sequence[NDArray[np.int64]],
        points: Sequence[NDArray[np.int64]],
    ) -> LabelIndex:
        """Flatten one array a volume of each column."""
        kept_flat = _flat(kept)
        starts = _starts([len(c) for c in label])
        return cls(starts, _flat(tile), _flat(label), _flat(voxels), _starts(kept_flat), _flat(points))

    @cached_property
    def _owner(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.entry_start) - 1), np.diff(self.entry_start))

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """Classes that occur anywhere, ascending, int64."""
        return np.unique(self.label)

    def holds(self, label: int) -> NDArray[np.bool_]:
        """Whether a class occurs in each volume, shape ``(V,)``."""
        found = np.zeros(len(self.entry_start) - 1, bool)
        found[self._owner[self.label == label]] = True
        return found

    def totals(self, classes: Sequence[int] | None) -> NDArray[np.int64]:
        """Voxels of some classes (None: all above 0) in each volume, shape ``(V,)``."""
        wanted = np.ones(len(self.label), bool) if classes is None else np.isin(self.label, classes)
        weights = np.where(wanted, self.voxels, 0)
        return np.bincount(self._owner, weights, minlength=len(self.entry_start) - 1).astype(np.int64)

    def counts(self, volume: int, grid: Sequence[int], classes: Sequence[int] | None) -> NDArray[np.float64]:
        """Voxels of some classes (None: all above 0) in every tile of a volume, shape `grid`."""
        at = slice(*self.entry_start[volume : volume + 2])
        wanted = slice(None) if classes is None else np.isin(self.label[at], classes)
        out = np.zeros(int(np.prod(grid)))
        np.add.at(out, self.tile[at][wanted], self.voxels[at][wanted])
        return out.reshape(tuple(grid))

    def weighted_points(
        self, volume: int, shape: NDArray[np.int64], shares: Mapping[int, float] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Coordinates to centre crops on, and their probabilities.

        Parameters
        ----------
        shares
            How likely each class is, for those that occur; None makes all that occur equally likely. Each voxel
            of a class is as likely as its others; where a tile kept only some of its voxels, they stand for
            the rest.

        Returns
        -------
        points
            int64, shape ``(N, 3)``; empty where no class occurs.
        weights
            float64, shape ``(N,)``, sum 1.
        """
        first, last = self.entry_start[volume], self.entry_start[volume + 1]
        label, voxels = self.label[first:last], self.voxels[first:last].astype(np.float64)
        present = [c for c in np.unique(label).tolist() if shares is None or shares.get(c, 0) > 0]
        total = sum(1.0 if shares is None else shares[c] for c in present)
        share = np.zeros(len(label))
        for value in present:
            of_class = label == value
            wanted = (1.0 if shares is None else shares[value]) / total
            share[of_class] = voxels[of_class] / voxels[of_class].sum() * wanted
        kept = np.diff(self.point_start[first : last + 1])
        weights = np.repeat(np.divide(share, kept, out=np.zeros_like(share), where=kept > 0), kept)
        flat = self.points[self.point_start[first] : self.point_start[last]]
        used = weights > 0
        points = np.stack(np.unravel_index(flat[used], tuple(shape)), axis=1).astype(np.int64)
        return points.reshape(-1, 3), weights[used]


@dataclass(frozen=True)
class TileIndex:
    """One number for every tile of every volume, flattened.

    Attributes
    ----------
    start
        Tiles of volume v are ``start[v]:start[v + 1]``; int64, shape ``(V + 1,)``.
    values
        float64; tiles of a volume in C order of ``(x, y, z)``.
    low
        Smallest voxel of each volume, float64, shape ``(V,)``, where that matters.
    """

    start: NDArray[np.int64]
    values: NDArray[np.float64]
    low: NDArray[np.float64] | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[NDArray[Any]], low: NDArray[np.float64] | None = None) -> TileIndex:
        """Flatten one array a volume."""
        return cls(_starts([len(r) for r in rows]), np.concatenate([np.zeros(0), *rows]), low)

    def grid(self, volume: int, counts: Sequence[int]) -> NDArray[np.float64]:
        """Numbers of one volume, shape `counts`."""
        return self.values[self.start[volume] : self.start[volume + 1]].reshape(tuple(counts))

    def totals(self) -> NDArray[np.float64]:
        """Sum over the tiles of each volume, shape ``(V,)``."""
        return np.diff(np.concatenate([[0.0], np.cumsum(self.values)])[self.start])


@dataclass(frozen=True)
class Needs:
    """What a policy asks to know of the volumes, beyond their shapes.

    Attributes
    ----------
    labels
        Whether it wants to know where labels lie.
    tissue
        Whether it wants to know how much of each tile of the first image is not air.
    names
        Columns of `obs_meta` or `obs`, or collections that hold maps, that it names.
    """

    labels: bool = False
    tissue: bool = False
    names: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.labels or other.labels, self.tissue or other.tissue, self.names | other.names)


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
        Sample key to where its labels lie.
    tissue
        Voxels that are not air in every tile of the first image.
    maps
        Collection to the sum of its values in every tile.
    columns
        Name to one number a volume, float64, shape ``(V,)``.
    channels
        Channels of the first key's volumes, int64, shape ``(V,)``; None where all have one.
    voxel_bytes
        Sample key to bytes of one voxel of it, all channels together.
    """

    subjects: tuple[str, ...]
    shapes: NDArray[np.int64]
    tile: Shape3
    labels: Mapping[str, LabelIndex] = field(default_factory=dict)
    tissue: TileIndex | None = None
    maps: Mapping[str, TileIndex] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    channels: NDArray[np.int64] | None = None
    voxel_bytes: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subjects)

    def grid(self, volume: int) -> Shape3:
        """Tiles along each axis of a volume."""
        return tile_counts(self.shapes[volume], self.tile)

    def named(self, mask: NDArray[np.bool_]) -> str:
        """Subjects that `mask` marks, for an error."""
        found = [self.subjects[i] for i in np.flatnonzero(mask)]
        return ", ".join(map(repr, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

    @cached_property
    def digest(self) -> str:
        """Hash of all that a plan reads here: two plans that differ in it may draw other crops."""
        held = hashlib.blake2b("\n".join(self.subjects).encode(), digest_size=8)
        parts: list[NDArray[Any]] = [self.shapes]
        for key in sorted(self.labels):
            index = self.labels[key]
            parts += [index.entry_start, index.label, index.voxels, index.points]
        parts += [] if self.tissue is None else [self.tissue.values]
        parts += [self.maps[k].values for k in sorted(self.maps)] + [self.columns[k] for k in sorted(self.columns)]
        parts += [] if self.channels is None else [self.channels]
        for part in parts:
            held.update(np.ascontiguousarray(part).data)
        return held.hexdigest()


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _flat(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int64)
