"""Policies around another: slices of what it draws (2-D and 2.5-D), frames of 4-D volumes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling.policies.base import Described, Policy
from radiodata.sampling.policies.uniform import Uniform
from radiodata.sampling.units import Unit, keyed_rng

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.policies.base import UnitSettings
    from radiodata.sampling.units import Planner
    from radiodata.sampling.volumes import Needs, Volumes

AXES = {"sagittal": 0, "coronal": 1, "axial": 2, "x": 0, "y": 1, "z": 2}


@dataclass(frozen=True)
class _Around:
    """A planner around another's."""

    inner: Planner
    volumes: Volumes

    @property
    def crops(self) -> int:
        """Crops a unit."""
        return self.inner.crops

    @property
    def total(self) -> int:
        """Crops in an epoch."""
        return self.inner.total

    def __len__(self) -> int:
        return len(self.inner)

    def volume_of(self, epoch: int, index: int) -> int:
        """Volume of a unit."""
        return self.inner.volume_of(epoch, index)

    def repeats(self, index: int, crop: int) -> bool:
        """Whether a crop only fills its unit."""
        return self.inner.repeats(index, crop)

    def locate(self, crops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unit, and crop in it."""
        return self.inner.locate(crops)


@dataclass(frozen=True)
class Slices(Described):
    """2-D crops of slices, or 2.5-D ones with their neighbours as channels.

    A sample's image is ``(channel * (2 * neighbours + 1), a, b)``, its label ``(channel, a, b)``: the slice
    in the middle. At the border of the volume the last slice stands for those beyond it, so that every
    slice is as likely as the policy says.

    Parameters
    ----------
    axis
        ``"axial"`` (z), ``"coronal"`` (y), ``"sagittal"`` (x), or 0, 1, 2.
    neighbours
        Slices on either side.
    policy
        Where the slice, and the patch in its plane, falls. `patch_size` is then one int or two, in the order
        of the axes that are left; None takes whole planes, where all have one size.
    """

    axis: str | int = "axial"
    neighbours: int = 0
    policy: Policy = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if self.axis not in AXES and self.axis not in (0, 1, 2):
            raise ConfigError(f"Slices(axis={self.axis!r}): use one of {', '.join(AXES)}, 0, 1, 2")
        if self.neighbours < 0:
            raise ConfigError(f"Slices(neighbours={self.neighbours}): it is a number of slices, from 0")
        if isinstance(self.policy, Slices):
            raise ConfigError("Slices of Slices: give the inner one's policy")

    @property
    def number(self) -> int:
        """Number of the axis."""
        return AXES[self.axis] if isinstance(self.axis, str) else self.axis

    def needs(self) -> Needs:
        """What the policy inside asks for."""
        return self.policy.needs()

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """Crop shape in voxels: the plane's, and the slice with its neighbours."""
        plane = self._plane(volumes, patch_size)
        if len(plane) != 2 or min(plane) < 1:
            raise ConfigError(f"Slices needs a patch_size of one int or two, in the plane, not {patch_size}")
        plane.insert(self.number, 2 * self.neighbours + 1)
        return (plane[0], plane[1], plane[2])

    def _plane(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> list[int]:
        if isinstance(patch_size, int):
            return [patch_size, patch_size]
        if patch_size is not None:
            return [int(n) for n in patch_size]
        sizes = np.delete(volumes.shapes, self.number, axis=1)
        if len(np.unique(sizes, axis=0)) > 1:
            raise PlanError(
                f"planes have several sizes, from {sizes.min(axis=0).tolist()} to {sizes.max(axis=0).tolist()}: give "
                "Slices a patch_size (larger than a plane pads it)"
            )
        return [int(n) for n in sizes[0]]

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> Planner:
        """What draws the units."""
        if patch is None:
            raise ConfigError("Slices needs the crop shape that its patch() gives")
        thin = list(patch)
        thin[self.number] = 1
        inner = self.policy.planner(volumes, (thin[0], thin[1], thin[2]), settings)
        return SlicesPlanner(inner, volumes, self.number, self.neighbours)


@dataclass(frozen=True)
class SlicesPlanner(_Around):
    """Widens crops of one slice to those with its neighbours."""

    axis: int
    neighbours: int

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Draw unit number `index`."""
        unit = self.inner.unit(epoch, index, attempt)
        shift = np.zeros(3, np.int64)
        shift[self.axis] = self.neighbours
        wide = unit.moved(-shift, unit.patch + 2 * shift, self.volumes.shapes[unit.volume])
        return replace(wide, slice_axis=self.axis)


@dataclass(frozen=True)
class Frames(Described):
    """Some frames (channels) of 4-D volumes, in the crops of another policy.

    The frames of a unit are drawn once for all its crops, so that they share their tiles; each crop's first
    frame is uniform over those possible. Volumes of one channel (a label of all frames) keep it.

    Parameters
    ----------
    policy
        Where the crops fall.
    count
        Frames a sample.
    stride
        Step between them.
    """

    policy: Policy = field(default_factory=Uniform)
    count: int = 1
    stride: int = 1
    _salt: ClassVar[int] = 1 << 32

    def __post_init__(self) -> None:
        if self.count < 1 or self.stride < 1:
            raise ConfigError(f"Frames(count={self.count}, stride={self.stride}): both are numbers from 1")

    def needs(self) -> Needs:
        """What the policy inside asks for."""
        return self.policy.needs()

    def patch(self, volumes: Volumes, patch_size: int | Sequence[int] | None) -> Shape3 | None:
        """Crop shape in voxels."""
        return self.policy.patch(volumes, patch_size)

    @property
    def span(self) -> int:
        """Frames from the first to the last."""
        return (self.count - 1) * self.stride + 1

    def planner(self, volumes: Volumes, patch: Shape3 | None, settings: UnitSettings) -> Planner:
        """What draws the units."""
        channels = np.ones(len(volumes), np.int64) if volumes.channels is None else volumes.channels
        short = channels < self.span
        if short.any():
            raise PlanError(
                f"Frames(count={self.count}, stride={self.stride}) needs {self.span} frames; the volumes of subjects "
                f"{volumes.named(short)} have fewer (the first: {channels[short][0]}). Ask for fewer, or leave these "
                "subjects out with cohort.subset([...])."
            )
        return FramesPlanner(self.policy.planner(volumes, patch, settings), volumes, self, channels, settings.seed)


@dataclass(frozen=True)
class FramesPlanner(_Around):
    """Adds frames to units."""

    frames: Frames
    channels: NDArray[np.int64]
    seed: int

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Draw unit number `index`."""
        unit = self.inner.unit(epoch, index, attempt)
        rng = keyed_rng(self.seed, epoch, index, Frames._salt + attempt)
        first = int(rng.integers(0, self.channels[unit.volume] - self.frames.span + 1))
        return replace(unit, channels=(first, first + self.frames.span), stride=self.frames.stride)
