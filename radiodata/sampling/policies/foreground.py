"""Crops by label: around foreground, balanced over classes, or with enough foreground in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError
from radiodata.sampling.policies.base import (
    CropPolicy,
    floor_of,
    label_index,
    refuse_absent,
    refuse_poor,
)
from radiodata.sampling.targets import Boxes, Points, Target
from radiodata.sampling.volumes import Needs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.floors import Floor
    from radiodata.sampling.volumes import LabelIndex, Volumes


@dataclass(frozen=True)
class Foreground(CropPolicy):
    """With probability `p` a crop centred on a foreground voxel, else a uniform one.

    The class is drawn first, each class that occurs in the volume being equally likely, then a voxel of it:
    small organs are seen as often as large ones. A volume without foreground gives uniform crops.

    Parameters
    ----------
    p
        Share of crops with a foreground centre.
    classes
        Classes that count as foreground; all above 0 by default.
    label
        Sample key of the labels; the first label collection by default.
    max_air, weights
        As for ``CropPolicy``.

    Raises
    ------
    ConfigError
        When `p` is no probability, or `classes` holds 0 or less.
    """

    p: float = 0.33
    classes: tuple[int, ...] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p <= 1:
            raise ConfigError(f"Foreground(p={self.p}): p must be a probability between 0 and 1")
        object.__setattr__(self, "classes", classes_of(self.classes, "Foreground"))

    def needs(self) -> Needs:
        """Where labels lie."""
        return super().needs() | Needs(labels=True)

    def _prepare(
        self, volumes: Volumes, patch: Shape3, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, Any]:
        index = label_index(volumes, "Foreground", self.label)
        refuse_absent(index, volumes, "Foreground", self.classes or ())
        return weights, index

    def _target(self, volumes: Volumes, patch: NDArray[np.int64], state: LabelIndex, volume: int) -> Target:
        shape = volumes.shapes[volume]
        shares = None if self.classes is None else dict.fromkeys(self.classes, 1.0)
        points, weights = state.weighted_points(volume, shape, shares)
        return _mixture(shape, patch, self.p, points, weights)


@dataclass(frozen=True)
class Balanced(CropPolicy):
    """Crops whose centres have given shares of classes, over the whole cohort.

    The class is drawn first, by its share; then a volume among those that hold it; then a voxel of it. So the
    shares hold however rare a class is and in however few volumes it occurs, and a volume gives more crops
    the more it has of what is rare.

    Parameters
    ----------
    shares
        Class to share, in any unit: ``{0: 1, 1: 1, 2: 2}``. 0 stands for a crop that is uniform over a volume;
        any volume gives it.
    label, max_air, weights
        As for ``Foreground``.

    Raises
    ------
    ConfigError
        When there is no share, or one is negative.
    """

    shares: Mapping[int, float]
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = {int(c): float(s) for c, s in dict(self.shares).items()}
        if any(c < 0 or not 0 <= s < float("inf") for c, s in shares.items()) or not sum(shares.values()) > 0:
            raise ConfigError(f"Balanced(shares={shares}): give classes from 0 with shares from 0, not all of them 0")
        object.__setattr__(self, "shares", {c: s for c, s in sorted(shares.items()) if s > 0})

    def needs(self) -> Needs:
        """Where labels lie."""
        return super().needs() | Needs(labels=True)

    def _prepare(
        self, volumes: Volumes, patch: Shape3, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, Any]:
        index = label_index(volumes, "Balanced", self.label)
        base = np.ones(len(volumes)) if weights is None else weights
        held = {c: base * (index.holds(c) if c else 1.0) for c in self.shares}
        refuse_absent(index, volumes, "Balanced", [c for c, w in held.items() if not w.sum()])
        total = sum(self.shares.values())
        by_class = {c: share / total * held[c] / held[c].sum() for c, share in self.shares.items()}
        return np.sum(list(by_class.values()), axis=0), (index, by_class)

    def _target(
        self, volumes: Volumes, patch: NDArray[np.int64], state: tuple[LabelIndex, dict[int, Any]], volume: int
    ) -> Target:
        index, by_class = state
        shape = volumes.shapes[volume]
        here = {c: float(w[volume]) for c, w in by_class.items()}
        points, weights = index.weighted_points(volume, shape, {c: w for c, w in here.items() if c})
        return _mixture(shape, patch, 1 - here.get(0, 0.0) / sum(here.values()), points, weights)


@dataclass(frozen=True)
class MinForeground(CropPolicy):
    """Uniform crops of which at least a fraction is foreground.

    The amount is reckoned from the counts of each tile, a tile's foreground being spread evenly over it
    (see ``Floor``): no voxel is read to decide.

    Parameters
    ----------
    fraction
        Least share of the crop's voxels, above 0.
    classes, label, max_air, weights
        As for ``Foreground``.

    Raises
    ------
    ConfigError
        When `fraction` is no share.
    """

    fraction: float = 0.01
    classes: tuple[int, ...] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"MinForeground(fraction={self.fraction}): it is a share above 0, at most 1")
        object.__setattr__(self, "classes", classes_of(self.classes, "MinForeground"))

    def needs(self) -> Needs:
        """Where labels lie."""
        return super().needs() | Needs(labels=True)

    def _prepare(
        self, volumes: Volumes, patch: Shape3, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, Any]:
        index = label_index(volumes, "MinForeground", self.label)
        refuse_absent(index, volumes, "MinForeground", self.classes or ())
        floors = [self._floor(volumes, patch, index, v) for v in range(len(volumes))]
        refuse_poor(volumes, patch, floors, f"MinForeground(fraction={self.fraction})")
        return weights, index

    def _floor(self, volumes: Volumes, patch: Shape3 | NDArray[np.int64], index: LabelIndex, volume: int) -> Floor:
        counts = index.counts(volume, volumes.grid(volume), self.classes)
        return floor_of(volumes, volume, patch, counts, self.fraction)

    def _target(self, volumes: Volumes, patch: NDArray[np.int64], state: LabelIndex, volume: int) -> Target:
        shape = volumes.shapes[volume]
        floor = self._floor(volumes, patch, state, volume)
        return Target(shape, patch, ((1.0, Boxes.whole(shape)),), floor)


def classes_of(classes: object, policy: str) -> tuple[int, ...] | None:
    """Classes as ints, all above 0; None for all."""
    if classes is None:
        return None
    out = tuple(int(c) for c in classes)  # type: ignore[attr-defined]
    if not out or min(out) <= 0:
        raise ConfigError(f"{policy}(classes={out}): give classes above 0")
    return out


def _mixture(
    shape: NDArray[np.int64],
    patch: NDArray[np.int64],
    p: float,
    points: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> Target:
    """Crops around points with probability `p`, else uniform ones; uniform where there is no point."""
    uniform = Boxes.whole(shape)
    if not len(points) or p <= 0:
        return Target(shape, patch, ((1.0, uniform),))
    pointed = Points(points, weights)
    return Target(shape, patch, ((1.0, pointed),) if p >= 1 else ((1 - p, uniform), (p, pointed)))
