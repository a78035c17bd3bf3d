"""Distributions of crop starts in one volume: what a policy asks for, exactly drawable inside any cell.

A crop is centred on a voxel and then clamped into the volume, so that the border is neither zeroed nor
seen less than the middle. A volume smaller than the patch leaves one start, which is negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from radiodata.errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints: TypeAlias = NDArray[np.int64]
    Floats: TypeAlias = NDArray[np.float64]
    Mask: TypeAlias = NDArray[np.bool_]
    Parts: TypeAlias = "tuple[tuple[float, Centres], ...]"

_FIRST = 8
_MOST = 4096
_PATIENCE = 5
_TRIES = 200


class Centres(Protocol):
    """Distribution of crop centres."""

    def within(self, first: Ints, last: Ints) -> tuple[float, Centres]:
        """Probability of centres in ``first <= centre < last``, and the distribution given that."""

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """`n` centres, int64, shape ``(n, 3)``."""


@dataclass(frozen=True)
class Boxes:
    """A box drawn by weight, then a centre uniform in it.

    Parameters
    ----------
    low, high
        First voxel and last + 1 of every box, int64, shape ``(K, 3)``.
    weights
        Probabilities, float64, shape ``(K,)``, sum 1.
    """

    low: Ints
    high: Ints
    weights: Floats

    @classmethod
    def whole(cls, shape: Ints) -> Boxes:
        """All voxels of a volume, each as likely."""
        return cls(np.zeros((1, 3), np.int64), np.asarray(shape, np.int64)[None], np.ones(1))

    def within(self, first: Ints, last: Ints) -> tuple[float, Boxes]:
        """Probability of a part, and the distribution given that part."""
        low, high = np.maximum(self.low, first), np.minimum(self.high, last)
        inside = np.logical_and.reduce(high > low, axis=1)
        share = np.multiply.reduce((high - low)[inside] / (self.high - self.low)[inside], axis=1) * self.weights[inside]
        mass = float(np.add.reduce(share))
        return mass, Boxes(low[inside], high[inside], share / mass if mass else share)

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """`n` centres."""
        chosen = _choose(rng, self.weights, n)
        if len(self.weights) == 1:
            return rng.integers(self.low[0], self.high[0], (n, 3))
        return rng.integers(self.low[chosen], self.high[chosen])


@dataclass(frozen=True)
class Points:
    """Given centres, drawn by weight.

    Parameters
    ----------
    at
        int64, shape ``(N, 3)``.
    weights
        Probabilities, float64, shape ``(N,)``, sum 1.
    """

    at: Ints
    weights: Floats

    def within(self, first: Ints, last: Ints) -> tuple[float, Points]:
        """Probability of a part, and the distribution given that part."""
        inside: Mask = np.logical_and.reduce((self.at >= first) & (self.at < last), axis=1)
        return self.kept(inside)

    def kept(self, mask: Mask) -> tuple[float, Points]:
        """Probability of some of the points, and the distribution over them."""
        mass = float(self.weights[mask].sum())
        return mass, Points(self.at[mask], self.weights[mask] / mass if mass else self.weights[mask])

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """`n` centres."""
        return self.at[_choose(rng, self.weights, n)]


class Accept(Protocol):
    """Which crop starts may be drawn."""

    def __call__(self, starts: Ints) -> Mask:
        """Whether each of the starts, shape ``(n, 3)``, may be drawn."""

    def cover(self, low: Ints, high: Ints) -> Boxes:
        """Distribution uniform over boxes of centres that hold all acceptable starts in ``[low, high)``."""


@dataclass(frozen=True)
class Target:
    """Mixture of distributions of crop centres, clamped to crop starts, of which some may be barred.

    Parameters
    ----------
    shape, patch
        Volume and patch in voxels, int64, shape ``(3,)``.
    parts
        (share, distribution) pairs; the shares sum to 1.
    accept
        Starts that may be drawn; the distribution is that of the parts given that the start is accepted.
    """

    shape: Ints
    patch: Ints
    parts: Parts
    accept: Accept | None = None

    def only(self, accept: Accept) -> Target:
        """The target with other starts barred."""
        return Target(self.shape, self.patch, self.parts, accept)

    def starts_of(self, centres: Ints) -> Ints:
        """Crop starts of centres, shape ``(..., 3)``: clamped into the volume, or centred on a smaller one."""
        spare = self.shape - self.patch
        starts: Ints = np.minimum(np.maximum(centres - self.patch // 2, 0), np.maximum(spare, 0))
        return starts if (spare >= 0).all() else np.where(spare < 0, -((-spare) // 2), starts)

    def draw(self, rng: np.random.Generator) -> Ints:
        """One crop start, int64, shape ``(3,)``."""
        low = np.zeros(3, np.int64)
        start: Ints = self._draw(rng, self.parts, 1, low, self.shape)[0]
        return start

    def draw_within(self, rng: np.random.Generator, low: Ints, high: Ints, n: int) -> Ints:
        """`n` crop starts from this distribution given that they lie in ``low <= start < high``; ``(n, 3)``."""
        first, last = centre_range(low, high, self.shape, self.patch)
        near = [(share, *part.within(first, last)) for share, part in self.parts]
        total = sum(share * mass for share, mass, _ in near)
        parts = tuple((share * mass / total, part) for share, mass, part in near if share * mass > 0)
        return self._draw(rng, parts, n, low, high)

    def _draw(self, rng: np.random.Generator, parts: Parts, n: int, low: Ints, high: Ints) -> Ints:
        if self.accept is None:
            return self._propose(rng, parts, n)
        found: list[Ints] = []
        lacking, ask = n, max(n, _FIRST)
        for attempt in range(_TRIES):
            if attempt == _PATIENCE:
                parts = self._refined(parts, low, high)
            starts = self._propose(rng, parts, ask)
            found.append(starts[self.accept(starts)][:lacking])
            lacking -= len(found[-1])
            if not lacking:
                return np.concatenate(found)
            ask = min(ask * 2, _MOST)
        raise PlanError(
            f"too few acceptable crops were found in a volume of shape {self.shape.tolist()}: raise max_air, or lower "
            "the fraction that is asked for"
        )

    def _refined(self, parts: Parts, low: Ints, high: Ints) -> Parts:
        """Parts without most of what is never accepted; given acceptance, the distribution is the same.

        Only a lone uniform part can be replaced: among several parts the shares would shift.
        """
        if self.accept is None or len(parts) > 1 or not isinstance(parts[0][1], Boxes) or len(parts[0][1].low) > 1:
            return parts
        return ((1.0, self.accept.cover(np.maximum(low, 0), high)),)

    def _propose(self, rng: np.random.Generator, parts: Parts, n: int) -> Ints:
        if len(parts) == 1:
            return self.starts_of(parts[0][1].draw(rng, n))
        chosen = _choose(rng, np.array([share for share, _ in parts]), n)
        centres = np.empty((n, 3), np.int64)
        for i in np.unique(chosen):
            centres[chosen == i] = parts[i][1].draw(rng, int((chosen == i).sum()))
        return self.starts_of(centres)


def centre_range(low: Ints, high: Ints, shape: Ints, patch: Ints) -> tuple[Ints, Ints]:
    """Centres that are clamped to starts in [low, high): all beyond a border belong to its start."""
    half, last_start = patch // 2, np.maximum(shape - patch, 0)
    return np.where(low <= 0, 0, low + half), np.where(high > last_start, shape, high + half)


def _choose(rng: np.random.Generator, weights: Floats, n: int) -> Ints:
    drawn = rng.random(n)
    if len(weights) == 1:
        return np.zeros(n, np.int64)
    reached = weights.cumsum()
    found = reached.searchsorted(drawn * reached[-1], side="right")
    chosen: Ints = np.minimum(found, len(weights) - 1)
    return chosen
