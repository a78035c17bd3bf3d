r"""The lane plan: one global order of crops for every number of ranks and workers.

Units, shuffled, are dealt whole to lanes; a batch takes one crop of each of G lanes, and batches cycle
through the groups of lanes::

            slot 0   slot 1   slot 2   slot 3          G = 4 slots, Wc = 2 groups, m = 2 crops a unit
    batch 0  u0.0     u1.0     u2.0     u3.0    group 0
    batch 1  u4.1     u5.1     u6.1     u7.1    group 1     groups start at different crops, so that
    batch 2  u0.1     u1.1     u2.1     u3.1    group 0     they take turns in opening units: G of them
    batch 3  u12.0    u13.0    u14.0    u15.0   group 1     at once, whose crops fill m batches

Rank r of R takes slots ``[r*G/R, (r+1)*G/R)``, worker w of W takes batches ``t % W == w``. Neither changes
what a batch holds; a worker meets its own open units again because W divides Wc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from radiodata.errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LanePlan:
    """Arithmetic of the order: which crop of which shuffled unit is in slot j of batch t.

    Parameters
    ----------
    units
        Units in an epoch (U).
    crops
        Crops a unit (m).
    batch
        Global batch (G).
    groups
        Canonical workers (Wc).
    mode
        ``"drop"`` leaves out the last, incomplete batch (fewer than G crops); ``"pad"`` fills it with
        repeats that are flagged.

    Raises
    ------
    PlanError
        When an epoch has no batch.
    """

    units: int
    crops: int
    batch: int
    groups: int
    mode: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise PlanError(
                f"an epoch has {self.units * self.crops} crops, fewer than one batch of {self.batch}: raise "
                "crops_per_volume, lower batch_size, or use mode='pad'"
            )

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.batch * self.groups

    @property
    def rounds(self) -> int:
        """Units that each lane gets whole.

        Where fewer than G units would be left over, the last round joins them: dealt crop by crop, so few
        could not fill a batch without two crops of one unit.
        """
        rounds, left = divmod(self.units, self.lanes)
        return rounds - 1 if rounds and 0 < left < self.batch else rounds

    @property
    def main_steps(self) -> int:
        """Batches made of lanes; the rest are made of the tail."""
        return self.groups * self.rounds * self.crops

    @property
    def tail_units(self) -> int:
        """Units that fill no round, dealt crop by crop."""
        return self.units - self.rounds * self.lanes

    def __len__(self) -> int:
        tail = self.tail_units * self.crops
        return self.main_steps + (tail // self.batch if self.mode == "drop" else -(-tail // self.batch))

    def batch_at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Batch number `step`.

        Returns
        -------
        positions
            Position in the shuffled order of each slot's unit, int64, shape ``(G,)``.
        crops
            Crop of that unit, int64, shape ``(G,)``.
        padding
            Whether the slot repeats a crop only to fill the batch, bool, shape ``(G,)``.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is outside an epoch of {len(self)} steps")
        slot = np.arange(self.batch)
        if step >= self.main_steps:
            return self._tail_batch((step - self.main_steps) * self.batch + slot)
        group, turn = step % self.groups, step // self.groups
        crop = (turn + group % self.crops) % (self.rounds * self.crops)
        positions = crop // self.crops * self.lanes + group * self.batch + slot
        return positions, np.full(self.batch, crop % self.crops), np.zeros(self.batch, bool)

    def _tail_batch(self, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        total = self.tail_units * self.crops
        wrapped = at % total
        positions = self.rounds * self.lanes + wrapped % self.tail_units
        return positions, wrapped // self.tail_units, at >= total


@dataclass(frozen=True)
class SequentialPlan:
    """Crops in their own order, volume by volume: for inference, where a volume should be done soon.

    Parameters
    ----------
    total
        Crops in an epoch.
    batch
        Global batch (G).
    mode
        As for ``LanePlan``.
    """

    total: int
    batch: int
    mode: Literal["drop", "pad"] = "pad"

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise PlanError(f"an epoch has {self.total} crops, fewer than one batch of {self.batch}: use mode='pad'")

    def __len__(self) -> int:
        return self.total // self.batch if self.mode == "drop" else -(-self.total // self.batch)

    def crops_at(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Numbers of the crops of a batch, int64, and whether they only fill it, bool; shape ``(G,)``."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} is outside an epoch of {len(self)} steps")
        at = step * self.batch + np.arange(self.batch)
        return at % self.total, at >= self.total


def fit_groups(units: int, batch: int, wanted: int) -> int:
    """Canonical workers for a small epoch: halved until every lane gets a unit; never depends on R or W."""
    groups = wanted
    while groups > 1 and units < batch * groups:
        groups //= 2
    return groups
