"""Distributions of crop starts in one volume: what a policy asks for, exactly drawable inside any cell.

A crop is centred on a voxel and then clamped into the volume, so that the border is neither zeroed nor
seen less than the middle. A volume smaller than the patch leaves one start, which is negative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _no_points() -> NDArray[np.int64]:
    return np.zeros((0, 3), np.int64)


def _no_weights() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True)
class Target:
    """Mixture of centres uniform over the volume and centres on given voxels.

    Parameters
    ----------
    shape, patch
        Volume and patch in voxels, int64, shape ``(3,)``.
    share
        Probability of a crop centred on one of `points`.
    points, weights
        Centres ``(N, 3)`` and their probabilities ``(N,)``, sum 1; empty makes every crop uniform.
    """

    shape: NDArray[np.int64]
    patch: NDArray[np.int64]
    share: float = 0.0
    points: NDArray[np.int64] = field(default_factory=_no_points)
    weights: NDArray[np.float64] = field(default_factory=_no_weights)

    def starts_of(self, centres: NDArray[np.int64]) -> NDArray[np.int64]:
        """Crop starts of centres, shape ``(..., 3)``: clamped into the volume, or centred on a smaller one."""
        spare = self.shape - self.patch
        clamped = np.clip(centres - self.patch // 2, 0, np.maximum(spare, 0))
        return np.where(spare < 0, -((-spare) // 2), clamped)

    def draw(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """One crop start, int64, shape ``(3,)``."""
        if len(self.points) and rng.random() < self.share:
            return self.starts_of(self.points[_choose(rng, self.weights)])
        return self.starts_of(rng.integers(0, self.shape))

    def draw_within(
        self, rng: np.random.Generator, low: NDArray[np.int64], high: NDArray[np.int64], n: int
    ) -> NDArray[np.int64]:
        """`n` crop starts from this distribution given that they lie in ``low <= start < high``; ``(n, 3)``."""
        first, last = self._centres_of(low, high)
        uniform = float(np.prod((last - first) / self.shape)) * (1 - self._share)
        near, weights = self._points_within(low, high)
        pointed = float(weights.sum()) * self._share
        on_point = rng.random(n) * (uniform + pointed) < pointed
        out = self.starts_of(rng.integers(first, last, size=(n, 3)))
        for i in np.flatnonzero(on_point):
            out[i] = near[_choose(rng, weights)]
        return out

    @property
    def _share(self) -> float:
        return self.share if len(self.points) else 0.0

    def _centres_of(
        self, low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Centres that are clamped to starts in [low, high): all beyond a border belong to its start."""
        half, last_start = self.patch // 2, np.maximum(self.shape - self.patch, 0)
        first = np.where(low <= 0, 0, low + half)
        last = np.where(high > last_start, self.shape, high + half)
        return first, last

    def _points_within(
        self, low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        if not len(self.points):
            return self.points, self.weights
        starts = self.starts_of(self.points)
        inside = ((np.maximum(starts, 0) >= low) & (np.maximum(starts, 0) < high)).all(axis=1)
        return starts[inside], self.weights[inside]


def _choose(rng: np.random.Generator, weights: NDArray[np.float64]) -> int:
    reached = np.cumsum(weights)
    return min(int(np.searchsorted(reached, rng.random() * reached[-1], side="right")), len(weights) - 1)
