"""What a policy is, and what all policies that draw crops have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.geometry import shape3
from radiodata.sampling.floors import AllOf, Floor
from radiodata.sampling.units import UnitPlanner
from radiodata.sampling.volumes import Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.targets import Target
    from radiodata.sampling.units import Planner
    from radiodata.sampling.volumes import LabelIndex, Volumes


@dataclass(frozen=True)
class UnitSettings:
    """How a policy's crops are grouped into units.

    Attributes
    ----------
    crops
        Crops a unit (m).
    cell_tiles
        Side of a cell in tiles (k).
    per_volume
        Units a volume gives in an epoch.
    seed
        Chooses the draw.
    fill
        Whether units that lack crops repeat some, so that every unit has `crops`.
    """

    crops: int
    cell_tiles: int
    per_volume: int
    seed: int
    fill: bool = True


@runtime_checkable
class Policy(Protocol):
    """Where crops should fall in each volume. Reads metadata and tile statistics, never a voxel."""

    def needs(self) -> Needs:
        """What it asks to know of the volumes."""

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """Crop shape in voxels that a patch size means; None where it is the volume's own."""

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> Planner:
        """What draws the units; refuses volumes that it cannot sample from, with ``PlanError``."""

    def describe(self) -> dict[str, Any]:
        """Fields that identify the policy, as plain JSON values."""


class Described:
    """Policies are frozen dataclasses: their fields identify them."""

    def describe(self) -> dict[str, Any]:
        """Fields that identify the policy, as plain JSON values."""
        held = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        return {"policy": type(self).__name__, **held}


def _plain(value: Any) -> Any:
    if isinstance(value, Described):
        return value.describe()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True, kw_only=True)
class CropPolicy(Described, ABC):
    """A policy that draws crops at random.

    Parameters
    ----------
    max_air
        Largest share of a crop that may be air (see ``air_threshold`` in `obs`), by the first image's tile
        statistics; None takes any crop.
    weights
        Column of `obs_meta` or `obs`: how many crops a volume gives in proportion to the others; by default
        all give the same.
    """

    max_air: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.max_air is not None and not 0 <= self.max_air <= 1:
            raise ConfigError(f"max_air={self.max_air}: it is a share, between 0 and 1")

    def needs(self) -> Needs:
        """What it asks to know of the volumes."""
        names = frozenset() if self.weights is None else frozenset({self.weights})
        return Needs(tissue=self.max_air is not None, names=names)

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """Crop shape in voxels."""
        if patch_size is None:
            raise ConfigError(f"{type(self).__name__} needs a patch_size: one int or three")
        return shape3(patch_size, "patch_size")

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> UnitPlanner:
        """What draws the units."""
        if patch is None:
            raise ConfigError(f"{type(self).__name__} needs a patch_size: one int or three")
        self._check(volumes, patch)
        weights = None if self.weights is None else volume_weights(volumes, self.weights)
        weights, state = self._prepare(volumes, patch, weights)
        target = partial(self._accepted, volumes, patch, state)
        s = settings
        return UnitPlanner(volumes, patch, target, s.crops, s.cell_tiles, s.per_volume, s.seed, weights)

    def _check(self, volumes: Volumes, patch: Shape3) -> None:
        flat = ((volumes.shapes == 1) & (np.asarray(patch) > 1)).any(axis=1)
        if flat.any():
            first = int(np.flatnonzero(flat)[0])
            raise PlanError(
                f"a patch of {'x'.join(map(str, patch))} cannot be cut from volumes that are 2-D (subjects "
                f"{volumes.named(flat)}; shape {tuple(volumes.shapes[first].tolist())}): give a patch_size with 1 "
                "along that axis, or use Slices"
            )
        if self.max_air is None:
            return
        if volumes.tissue is None:
            raise PlanError("max_air needs an image collection among the dataset's keys")
        refuse_poor(
            volumes, patch, [self._tissue(volumes, v, patch) for v in range(len(volumes))], f"max_air={self.max_air}"
        )

    def _tissue(self, volumes: Volumes, volume: int, patch: Shape3) -> Floor:
        assert volumes.tissue is not None
        assert self.max_air is not None
        counts = volumes.tissue.grid(volume, volumes.grid(volume))
        return floor_of(volumes, volume, patch, counts, 1 - self.max_air)

    def _accepted(self, volumes: Volumes, patch: Shape3, state: Any, volume: int) -> Target:
        target = self._target(volumes, np.asarray(patch, np.int64), state, volume)
        if self.max_air is None:
            return target
        return target.only(AllOf.of(target.accept, self._tissue(volumes, volume, patch)))

    def _prepare(
        self, volumes: Volumes, patch: Shape3, weights: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, Any]:
        """Weights of the volumes, and whatever the targets of all of them share; refuse what cannot be."""
        return weights, None

    @abstractmethod
    def _target(self, volumes: Volumes, patch: NDArray[np.int64], state: Any, volume: int) -> Target:
        """Distribution of crop starts in a volume."""


def floor_of(
    volumes: Volumes, volume: int, patch: Shape3 | NDArray[np.int64], counts: NDArray[np.float64], fraction: float
) -> Floor:
    """Starts of crops of which at least `fraction` (of what is inside the volume) is of interest."""
    size, shape = np.asarray(patch, np.int64), volumes.shapes[volume]
    least = fraction * float(np.prod(np.minimum(size, shape)))
    return Floor(counts, np.asarray(volumes.tile, np.int64), shape, size, least)


def refuse_poor(volumes: Volumes, patch: Shape3, floors: Sequence[Floor], what: str) -> None:
    """Refuse volumes of which no crop holds enough."""
    poor = np.array([not floor.possible() for floor in floors], bool)
    if poor.any():
        first = int(np.flatnonzero(poor)[0])
        best = floors[first].most() / float(np.prod(np.minimum(patch, volumes.shapes[first])))
        raise PlanError(
            f"{what}: no crop of {'x'.join(map(str, patch))} satisfies it in {int(poor.sum())} of {len(volumes)} "
            f"volumes (subjects {volumes.named(poor)}; the best crop of the first holds {best:.3g}). Ask for less, "
            "take a smaller patch, or leave these subjects out with cohort.subset([...])."
        )


def volume_weights(volumes: Volumes, name: str) -> NDArray[np.float64]:
    """One weight a volume from a column, checked.

    Raises
    ------
    PlanError
        When the column is missing, or holds what is no weight.
    """
    if name not in volumes.columns:
        raise PlanError(f"there is no column {name!r} in obs_meta or obs to weight volumes by")
    weights = np.asarray(volumes.columns[name], np.float64)
    bad = ~np.isfinite(weights) | (weights < 0)
    if bad.any():
        raise PlanError(
            f"column {name!r} holds no weight (a finite number, not below 0) for subjects {volumes.named(bad)}: fill "
            "the column, or leave these subjects out with cohort.subset([...])"
        )
    if not weights.sum() > 0:
        raise PlanError(f"column {name!r} is 0 for all {len(volumes)} volumes: nothing would be drawn")
    return weights


def label_index(volumes: Volumes, policy: str, key: str | None) -> LabelIndex:
    """Where the labels of a sample key lie; the first label collection by default.

    Raises
    ------
    PlanError
        When there is none.
    """
    if key is not None and key in volumes.labels:
        return volumes.labels[key]
    if key is None and volumes.labels:
        return next(iter(volumes.labels.values()))
    held = f"; label keys are: {', '.join(volumes.labels)}" if volumes.labels else ""
    raise PlanError(
        f"{policy} needs a label collection among the dataset's keys{'' if key is None else f' under {key!r}'}: add "
        f'one, such as {{"image": "CT", "label": "seg"}}, or use Uniform(){held}'
    )


def refuse_absent(index: LabelIndex, volumes: Volumes, policy: str, wanted: Sequence[int]) -> None:
    """Refuse classes that occur in none of the volumes."""
    found = index.classes.tolist()
    missing = sorted(set(wanted) - set(found))
    if missing or not found:
        raise PlanError(
            f"{policy}: class {missing or 'above 0'} occurs in none of the {len(volumes)} volumes; the label "
            f"collection holds classes {found}. Check the split and the label values."
        )
