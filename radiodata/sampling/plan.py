"""The plan: units in lane order. It says what each batch of each epoch holds before anything is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling.lanes import LanePlan, SequentialPlan, fit_groups
from radiodata.sampling.permutation import Permutation, hash_ints
from radiodata.sampling.policies import UnitSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.sampling.explain import Explanation
    from radiodata.sampling.policies import Policy
    from radiodata.sampling.units import Planner, Unit
    from radiodata.sampling.volumes import Volumes

_BLOCK, _BLOCKS = 32, 4
"""Batches that are drawn at once, and how often that is kept."""


@dataclass(frozen=True)
class Slot:
    """One crop of a batch.

    Attributes
    ----------
    epoch, unit, crop
        Which crop of which unit of which pass over the crops (the epoch, unless a plan has `steps`).
    sample
        Id of the crop in the epoch, the same in any order.
    key
        63 bits that seed whatever is random about this sample: a hash of (seed, epoch, sample).
    padding
        Whether it only fills the batch.
    """

    epoch: int
    unit: int
    crop: int
    sample: int
    key: int
    padding: bool


@dataclass(frozen=True)
class Plan:
    """Which crops, in which order; the same for any number of ranks and workers.

    Parameters
    ----------
    volumes, policy
        What is sampled, and how.
    patch_size
        Crop's shape in voxels, as the policy takes it: one int or three (``Slices``: two); None for ``Whole``.
    batch
        Global batch (over all ranks).
    crops_per_volume
        Crops of each volume in an epoch, a multiple of `crops_per_unit`; on average, where volumes have weights.
    crops_per_unit
        Crops that share one read (m); 1 turns sharing off.
    cell_tiles
        Side, in tiles, of the cell that a unit's crops start in (k).
    workers
        Canonical workers (Wc): a loader's worker count should divide it.
    mode
        ``"drop"`` leaves out the last, incomplete batch of an epoch; ``"pad"`` fills it with repeats that are
        flagged.
    steps
        Make every epoch this many batches of an endless stream of passes over the crops, whatever their number:
        one epoch goes on where the last one ended.
    order
        ``"lanes"`` mixes the crops of many volumes (see ``LanePlan``); ``"sequential"`` gives them volume by
        volume, unshuffled.
    seed
        Chooses order and crops.

    Raises
    ------
    ConfigError, PlanError
        When the numbers do not fit each other, or the policy cannot be met by these volumes.
    """

    volumes: Volumes
    policy: Policy
    patch_size: int | Sequence[int] | None
    batch: int
    crops_per_volume: int = 16
    crops_per_unit: int = 8
    cell_tiles: int = 1
    workers: int = 8
    mode: Literal["drop", "pad"] = "drop"
    steps: int | None = None
    order: Literal["lanes", "sequential"] = "lanes"
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        if not len(self.volumes):
            raise PlanError("there is no volume to sample from: the cohort, or this part of the split, is empty")
        if not len(self.units):
            raise PlanError("an epoch has no crop: raise crops_per_volume")
        self.pass_steps()

    def _check_numbers(self) -> None:
        for name in ("batch", "crops_per_volume", "crops_per_unit", "cell_tiles", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps is not None and (self.steps < 1 or self.mode != "drop"):
            raise ConfigError(f"steps={self.steps}, mode={self.mode!r}: give at least 1 step, and leave mode alone")
        if self.mode not in ("drop", "pad") or self.order not in ("lanes", "sequential"):
            raise ConfigError(
                f"mode must be 'drop' or 'pad' (or give steps=N), order 'lanes' or 'sequential'; not {self.mode!r} and "
                f"{self.order!r}"
            )
        if self.crops_per_volume % self.crops_per_unit:
            near = self.crops_per_volume // self.crops_per_unit * self.crops_per_unit
            legal = [n for n in (near, near + self.crops_per_unit) if n]
            raise ConfigError(
                f"crops_per_volume ({self.crops_per_volume}) must be a multiple of crops_per_unit "
                f"({self.crops_per_unit}), such as {' or '.join(map(str, legal))}"
            )

    @cached_property
    def patch(self) -> Shape3 | None:
        """Crop's shape in voxels ``(x, y, z)``; None where it is the volume's own."""
        return self.policy.patch(self.volumes, self.patch_size)

    @cached_property
    def units(self) -> Planner:
        """What draws the units."""
        settings = UnitSettings(
            crops=self.crops_per_unit,
            cell_tiles=self.cell_tiles,
            per_volume=self.crops_per_volume // self.crops_per_unit,
            seed=self.seed,
            fill=self.order == "lanes",
        )
        return self.policy.planner(self.volumes, self.patch, settings)

    @cached_property
    def lanes(self) -> LanePlan:
        """What orders the units of a pass."""
        groups = fit_groups(len(self.units), self.batch, self.workers)
        return LanePlan(len(self.units), self.units.crops, self.batch, groups, self.mode)

    @cached_property
    def _sequence(self) -> SequentialPlan:
        return SequentialPlan(self.units.total, self.batch, self.mode)

    def pass_steps(self) -> int:
        """Batches in one pass over the crops; an epoch, unless `steps` says otherwise."""
        return len(self.lanes) if self.order == "lanes" else len(self._sequence)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.pass_steps() if self.steps is None else self.steps

    def batch_at(self, epoch: int, step: int) -> list[Slot]:
        """Global batch number `step` of an epoch."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is outside an epoch of {len(self)} steps")
        if self.steps is not None:
            epoch, step = divmod(epoch * self.steps + step, self.pass_steps())
        units, crops, padding = self._lane_batch(epoch, step) if self.order == "lanes" else self._next(step)
        samples = units * self.units.crops + crops
        keys = (hash_ints(self.seed, epoch, int(s)) for s in samples)
        rows = zip(units.tolist(), crops.tolist(), samples.tolist(), keys, padding.tolist(), strict=True)
        return [Slot(epoch, *row) for row in rows]

    def _lane_batch(self, epoch: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        block, at = divmod(step, _BLOCK)
        batches = self._blocks.get((epoch, block))
        if batches is None:
            batches = self._blocks[epoch, block] = self._lane_batches(epoch, block * _BLOCK)
            for old in list(self._blocks)[:-_BLOCKS]:
                self._blocks.pop(old, None)
        return batches[at]

    def _lane_batches(
        self, epoch: int, first: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
        """Batches from number `first` on, as many as are drawn at once: many permuted numbers cost what few do."""
        steps = range(first, min(first + _BLOCK, len(self.lanes)))
        positions, crops, padding = (np.stack(part) for part in zip(*map(self.lanes.batch_at, steps), strict=True))
        units = _permutation(len(self.units), self.seed, epoch)(positions)
        repeats = [
            self.units.repeats(u, c) for u, c in zip(units.ravel().tolist(), crops.ravel().tolist(), strict=True)
        ]
        return list(zip(units, crops, padding | np.array(repeats).reshape(units.shape), strict=True))

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]]:
        return {}

    def _next(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        numbers, padding = self._sequence.crops_at(step)
        return (*self.units.locate(numbers), padding)

    def rank_batch(self, epoch: int, step: int, rank: int, world: int) -> list[Slot]:
        """Part of a global batch that belongs to one rank."""
        share = self.batch // world
        return self.batch_at(epoch, step)[rank * share : (rank + 1) * share]

    def check_world(self, world: int) -> None:
        """Refuse a number of ranks that does not divide the global batch."""
        if self.batch % world:
            legal = [n for n in range(1, self.batch + 1) if self.batch % n == 0]
            raise ConfigError(
                f"batch_size {self.batch} (global) cannot be shared by {world} ranks: use a multiple of {world}, or "
                f"{', '.join(map(str, legal))} ranks"
            )

    def unit(self, epoch: int, index: int, attempt: int = 0) -> Unit:
        """Draw unit number `index` of a pass; attempts above 0 are what stands in for one that cannot be read."""
        return self.units.unit(epoch, index, attempt)

    def explain(self, *, workers: int = 2, prefetch: int = 4, show: bool = True) -> Explanation:
        """Tell what an epoch reads and gives, before anything is read; print it, and give it back.

        Parameters
        ----------
        workers, prefetch
            Worker processes, and batches that each makes ahead.
        show
            Whether to print it.
        """
        from radiodata.sampling.explain import explain

        told = explain(self, workers=workers, prefetch=prefetch)
        if show:
            print(told)
        return told

    def describe(self) -> dict[str, Any]:
        """Fields that identify the plan: two plans with the same fields give the same batches."""
        return {
            **self.policy.describe(),
            "subjects": len(self.volumes),
            "volumes": self.volumes.digest,
            "tile": list(self.volumes.tile),
            "patch": None if self.patch is None else list(self.patch),
            "batch": self.batch,
            "crops_per_volume": self.crops_per_volume,
            "crops_per_unit": self.crops_per_unit,
            "cell_tiles": self.cell_tiles,
            "workers": self.workers,
            "mode": self.mode,
            "steps": self.steps,
            "order": self.order,
            "seed": self.seed,
        }

    @cached_property
    def hash(self) -> str:
        """Hash of ``describe()``."""
        return hashlib.blake2b(json.dumps(self.describe(), sort_keys=True).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, epoch: int) -> Permutation:
    return Permutation(size, seed, epoch)
