"""Crops that hold enough of something (tissue, foreground), by the counts that each tile has of it.

A tile's voxels of interest are taken to be spread evenly over it, so the amount in a crop is a sum of tiles
and parts of tiles: exact where the crop's faces lie on tile borders, an estimate between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from radiodata.sampling.targets import Boxes, centre_range

if TYPE_CHECKING:
    from radiodata.sampling.targets import Accept, Floats, Ints, Mask

_ENOUGH = 0.1
_PROBES = 256
_CORNERS = np.array(list(np.ndindex(2, 2, 2)))
_SIGNS = (-1.0) ** (3 - _CORNERS.sum(axis=1))


@dataclass(frozen=True)
class Floor:
    """Crop starts of one volume whose crops hold at least so much.

    Parameters
    ----------
    counts
        Voxels of interest in every tile, float64, shape ``(tx, ty, tz)``.
    tile, shape, patch
        In voxels, int64, shape ``(3,)``.
    least
        Voxels of interest that a crop must hold.
    """

    counts: Floats
    tile: Ints
    shape: Ints
    patch: Ints
    least: float

    def __call__(self, starts: Ints) -> Mask:
        """Whether crops at `starts`, shape ``(n, 3)``, hold enough."""
        return self.amount(starts) >= self.least * (1 - 1e-9)

    def amount(self, starts: Ints) -> Floats:
        """Voxels of interest in crops at `starts`, float64, shape ``(n,)``."""
        ends = np.stack([starts, starts + self.patch]).clip(0, self.shape)
        below = self._below(ends[_CORNERS, :, np.arange(3)].transpose(0, 2, 1).reshape(-1, 3))
        amount: Floats = _SIGNS @ below.reshape(8, -1)
        return amount

    @cached_property
    def _sums(self) -> Floats:
        sums = np.zeros(tuple(n + 1 for n in self.counts.shape))
        sums[1:, 1:, 1:] = self.counts.cumsum(0).cumsum(1).cumsum(2)
        return sums

    def _below(self, at: Ints) -> Floats:
        """Voxels of interest in the box from the origin to `at`: linear between tile borders on every axis."""
        tile = np.minimum(at // self.tile, np.array(self.counts.shape) - 1)
        start = tile * self.tile
        part = (at - start) / (np.minimum(start + self.tile, self.shape) - start)
        weights = np.where(_CORNERS[:, None, :] == 1, part, 1 - part).prod(axis=2)
        around = (tile + _CORNERS[:, None, :]).reshape(-1, 3)
        below: Floats = (weights * self._sums[tuple(around.T)].reshape(8, -1)).sum(axis=0)
        return below

    def _edges(self, axis: int) -> Ints:
        """Starts between which the amount is linear along an axis; the first and the last + 1 included."""
        last = max(int(self.shape[axis] - self.patch[axis]), 0)
        borders = np.arange(0, self.shape[axis] + self.tile[axis], self.tile[axis])
        at = np.concatenate([[0, last], borders, borders - self.patch[axis]])
        return np.append(np.unique(at[(at >= 0) & (at <= last)]), last + 1)

    def most(self) -> float:
        """Largest amount that any crop holds."""
        grid = np.stack(np.meshgrid(*(self._edges(a)[:-1] for a in range(3)), indexing="ij"), -1).reshape(-1, 3)
        return float(self.amount(self._placed(grid)).max())

    def possible(self) -> bool:
        """Whether some crop holds enough; quick where the one around the fullest tile does, or all is too little."""
        if self.counts.sum() < self.least:
            return False
        fullest = np.array(np.unravel_index(int(self.counts.argmax()), self.counts.shape)) * self.tile + self.tile // 2
        around = np.clip(fullest - self.patch // 2, 0, np.maximum(self.shape - self.patch, 0))
        return bool(self(self._placed(around[None]))[0]) or self.most() >= self.least * (1 - 1e-9)

    def _placed(self, starts: Ints) -> Ints:
        spare = self.shape - self.patch
        return np.where(spare < 0, -((-spare) // 2), starts)

    def cover(self, low: Ints, high: Ints) -> Boxes:
        """Boxes of centres, uniform over all, beyond which no crop with a start in ``[low, high)`` holds enough.

        Pieces in which the amount is linear along every axis are bounded by their corners; where few draws
        would be accepted, pieces that are neither all in nor all out are halved.
        """
        edges = [_between(self._edges(a), low[a], high[a]) for a in range(3)]
        low, high = (
            np.stack(np.meshgrid(*e, indexing="ij"), -1).reshape(-1, 3) for e in zip(*_spans(edges), strict=True)
        )
        while True:
            low, high, mixed = self._bounded(low, high)
            boxes = self._boxes(low, high)
            if not mixed.any() or self._accepted(boxes) >= _ENOUGH:
                return boxes
            halves = [_halved(low[mixed], high[mixed])]
            low, high = (np.concatenate([kept[~mixed], *(h[i] for h in halves)]) for i, kept in enumerate((low, high)))

    def _bounded(self, low: Ints, high: Ints) -> tuple[Ints, Ints, Mask]:
        values = [self(self._placed(np.where(corner == 1, high - 1, low))) for corner in _CORNERS]
        some, every = np.logical_or.reduce(values), np.logical_and.reduce(values)
        splits = ((high - low) > 1).any(axis=1)
        return low[some], high[some], (~every & splits)[some]

    def _boxes(self, low: Ints, high: Ints) -> Boxes:
        first, last = centre_range(low, high, self.shape, self.patch)
        size = np.prod(last - first, axis=1).astype(np.float64)
        return Boxes(first, last, size / size.sum() if len(size) else size)

    def _accepted(self, boxes: Boxes) -> float:
        centres = boxes.draw(np.random.default_rng(0), _PROBES)
        spare = np.maximum(self.shape - self.patch, 0)
        return float(self(self._placed(np.clip(centres - self.patch // 2, 0, spare))).mean())


@dataclass(frozen=True)
class AllOf:
    """Starts that every one of some conditions accepts."""

    accepts: tuple[Accept, ...]

    @classmethod
    def of(cls, *accepts: Accept | None) -> Accept:
        """Conditions that are there."""
        given = tuple(a for a in accepts if a is not None)
        return given[0] if len(given) == 1 else cls(given)

    def __call__(self, starts: Ints) -> Mask:
        """Whether each start is accepted."""
        accepted: Mask = np.logical_and.reduce([accept(starts) for accept in self.accepts])
        return accepted

    def cover(self, low: Ints, high: Ints) -> Boxes:
        """Boxes of the first condition, outside of which nothing is accepted."""
        return self.accepts[0].cover(low, high)


def _between(edges: Ints, low: np.int64, high: np.int64) -> Ints:
    inside = edges[(edges > low) & (edges < high)]
    return np.concatenate([[low], inside, [min(high, edges[-1])]])


def _spans(edges: list[Ints]) -> list[tuple[Ints, Ints]]:
    return [(e[:-1], e[1:]) for e in edges]


def _halved(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Every box cut in two along each axis that is longer than one."""
    middle = (low + high + 1) // 2
    lows, highs = [], []
    for side in np.ndindex(2, 2, 2):
        up = np.array(side, bool)
        a, b = np.where(up, middle, low), np.where(up, high, middle)
        real = (b > a).all(axis=1)
        lows.append(a[real])
        highs.append(b[real])
    return np.concatenate(lows), np.concatenate(highs)
