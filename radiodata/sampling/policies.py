"""Policies: where crops should fall. Each reads metadata and tile statistics, never a voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling.targets import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from radiodata.sampling.volumes import Volumes


@runtime_checkable
class Policy(Protocol):
    """Where crops should fall in each volume."""

    def check(self, volumes: Volumes) -> None:
        """Refuse volumes that this policy cannot sample from, with ``PlanError``."""

    def target(self, volumes: Volumes, volume: int, patch: NDArray[np.int64]) -> Target:
        """Distribution of crop starts in volume number `volume`."""

    def describe(self) -> dict[str, Any]:
        """Fields that identify the policy, as plain JSON values."""


@dataclass(frozen=True)
class Uniform:
    """Crop centres uniform over the voxels of a volume; crops are clamped into it."""

    def check(self, volumes: Volumes) -> None:
        """Accept any volumes."""

    def target(self, volumes: Volumes, volume: int, patch: NDArray[np.int64]) -> Target:
        """Distribution of crop starts in volume number `volume`."""
        return Target(volumes.shapes[volume], patch)

    def describe(self) -> dict[str, Any]:
        """Fields that identify the policy."""
        return {"policy": "uniform"}


@dataclass(frozen=True)
class Foreground:
    """With probability `p` a crop centred on a foreground voxel, else a uniform one.

    The class is drawn first, each class that occurs in the volume being equally likely, then a voxel of it:
    small organs are seen as often as large ones. A volume without foreground gives uniform crops.

    Parameters
    ----------
    p
        Share of crops with a foreground centre.
    classes
        Classes that count as foreground; all above 0 by default.

    Raises
    ------
    ConfigError
        When `p` is no probability, or `classes` holds 0 or less.
    """

    p: float = 0.33
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"Foreground(p={self.p}): p must be a probability between 0 and 1")
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(int(c) for c in self.classes))
            if not self.classes or min(self.classes) <= 0:
                raise ConfigError(f"Foreground(classes={self.classes}): give classes above 0")

    def check(self, volumes: Volumes) -> None:
        """Refuse volumes without label statistics, and classes that occur nowhere."""
        if volumes.labels is None:
            raise PlanError(
                "Foreground needs a label collection among the dataset's keys: add one, such as "
                '{"image": "CT", "label": "seg"}, or use Uniform()'
            )
        found = {int(c) for c in set(volumes.labels.label.tolist())}
        missing = sorted(set(self.classes or ()) - found)
        if missing or not found:
            raise PlanError(
                f"Foreground: class {missing or 'above 0'} occurs in none of the {len(volumes)} volumes; the label "
                f"collection holds classes {sorted(found)}. Check the split and the label values."
            )

    def target(self, volumes: Volumes, volume: int, patch: NDArray[np.int64]) -> Target:
        """Distribution of crop starts in volume number `volume`."""
        if volumes.labels is None:
            raise PlanError("Foreground needs a label collection among the dataset's keys")
        shape = volumes.shapes[volume]
        points, weights = volumes.labels.weighted_points(volume, shape, self.classes)
        return Target(shape, patch, self.p, points, weights)

    def describe(self) -> dict[str, Any]:
        """Fields that identify the policy."""
        return {"policy": "foreground", "p": self.p, "classes": self.classes and list(self.classes)}
