"""The plan: units in lane order. It says what each batch of each epoch holds before anything is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.sampling.lanes import LanePlan, fit_groups
from radiodata.sampling.permutation import Permutation, hash_ints
from radiodata.sampling.units import Unit, UnitPlanner

if TYPE_CHECKING:
    from radiodata.geometry import Shape3
    from radiodata.sampling.policies import Policy
    from radiodata.sampling.volumes import Volumes


@dataclass(frozen=True)
class Slot:
    """One crop of a batch.

    Attributes
    ----------
    epoch, unit, crop
        Which crop of which unit.
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
    volumes, policy, patch
        What is sampled, how, and the crop's shape in voxels.
    batch
        Global batch (over all ranks).
    crops_per_volume
        Crops of each volume in an epoch, a multiple of `crops_per_unit`.
    crops_per_unit
        Crops that share one read (m); 1 turns sharing off.
    cell_tiles
        Side, in tiles, of the cell that a unit's crops start in (k).
    workers
        Canonical workers (Wc): a loader's worker count should divide it.
    mode
        ``"drop"`` or ``"pad"``; see ``LanePlan``.
    seed
        Chooses order and crops.

    Raises
    ------
    ConfigError, PlanError
        When the numbers do not fit each other, or the policy cannot be met by these volumes.
    """

    volumes: Volumes
    policy: Policy
    patch: Shape3
    batch: int
    crops_per_volume: int = 16
    crops_per_unit: int = 8
    cell_tiles: int = 1
    workers: int = 8
    mode: Literal["drop", "pad"] = "drop"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "crops_per_volume", "crops_per_unit", "cell_tiles", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.mode not in ("drop", "pad"):
            raise ConfigError(f"mode must be 'drop' or 'pad', not {self.mode!r}")
        if self.crops_per_volume % self.crops_per_unit:
            near = self.crops_per_volume // self.crops_per_unit * self.crops_per_unit
            legal = [n for n in (near, near + self.crops_per_unit) if n]
            raise ConfigError(
                f"crops_per_volume ({self.crops_per_volume}) must be a multiple of crops_per_unit "
                f"({self.crops_per_unit}), such as {' or '.join(map(str, legal))}"
            )
        if not len(self.volumes):
            raise PlanError("there is no volume to sample from: the cohort, or this part of the split, is empty")
        self.policy.check(self.volumes)
        len(self.lanes)

    @cached_property
    def units(self) -> UnitPlanner:
        """What draws the units."""
        per_volume = self.crops_per_volume // self.crops_per_unit
        return UnitPlanner(
            self.volumes, self.policy, self.patch, self.crops_per_unit, self.cell_tiles, per_volume, self.seed
        )

    @cached_property
    def lanes(self) -> LanePlan:
        """What orders the units."""
        groups = fit_groups(len(self.units), self.batch, self.workers)
        return LanePlan(len(self.units), self.crops_per_unit, self.batch, groups, self.mode)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.lanes)

    def batch_at(self, epoch: int, step: int) -> list[Slot]:
        """Global batch number `step` of an epoch."""
        positions, crops, padding = self.lanes.batch_at(step)
        units = self._order(epoch)(positions)
        samples = units * self.crops_per_unit + crops
        keys = (hash_ints(self.seed, epoch, int(s)) for s in samples)
        rows = zip(units.tolist(), crops.tolist(), samples.tolist(), keys, padding.tolist(), strict=True)
        return [Slot(epoch, *row) for row in rows]

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

    def unit(self, epoch: int, index: int) -> Unit:
        """Draw unit number `index` of an epoch."""
        return self.units.unit(epoch, index)

    def _order(self, epoch: int) -> Permutation:
        return _permutation(len(self.units), self.seed, epoch)

    def describe(self) -> dict[str, Any]:
        """Fields that identify the plan: two plans with the same fields give the same batches."""
        shapes = np.ascontiguousarray(self.volumes.shapes, np.int64).tobytes()
        subjects = "\n".join(self.volumes.subjects).encode()
        return {
            **self.policy.describe(),
            "subjects": len(self.volumes),
            "volumes": hashlib.blake2b(shapes + subjects, digest_size=8).hexdigest(),
            "tile": list(self.volumes.tile),
            "patch": list(self.patch),
            "batch": self.batch,
            "crops_per_volume": self.crops_per_volume,
            "crops_per_unit": self.crops_per_unit,
            "cell_tiles": self.cell_tiles,
            "workers": self.workers,
            "mode": self.mode,
            "seed": self.seed,
        }

    @cached_property
    def hash(self) -> str:
        """Hash of ``describe()``."""
        return hashlib.blake2b(json.dumps(self.describe(), sort_keys=True).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=8)
def _permutation(size: int, seed: int, epoch: int) -> Permutation:
    return Permutation(size, seed, epoch)
