"""What a plan will read and give, told before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.geometry import tiles_touched
from radiodata.sampling.floors import Floor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from radiodata.sampling.plan import Plan
    from radiodata.sampling.units import Unit
    from radiodata.sampling.volumes import LabelIndex

_WINDOW = 20
_MB = 1e6


@dataclass(frozen=True)
class Explanation:
    """An epoch of a plan in numbers; those of single units are the mean of a sample of them.

    Attributes
    ----------
    batches, crops, units, reads
        In an epoch; a read is one box of tiles of one key.
    delivered_bytes, decoded_bytes
        In an epoch: voxels handed out, and tiles decoded for them.
    amplification
        Decoded bytes per delivered byte; above 1 more is decoded than used.
    tiles_per_unit
        Tiles of one key that a unit decodes.
    overlap
        Share of a crop that another crop of its unit has too.
    class_shares
        Sample key to class to its share of the voxels, as tile statistics tell.
    class_presence
        Sample key to class to the share of crops that hold it.
    volumes_per_window, volumes_if_shuffled
        Distinct volumes in the first 20 batches, and in as many of a perfect shuffle of crops.
    batch_bytes
        Voxels of a global batch.
    open_bytes
        Crops that wait for their turn, over all processes and ranks.
    shared_bytes
        Batches on their way from worker processes, over all ranks.
    """

    batches: int
    crops: int
    units: int
    reads: int
    delivered_bytes: float
    decoded_bytes: float
    amplification: float
    tiles_per_unit: float
    overlap: float
    class_shares: dict[str, dict[int, float]]
    class_presence: dict[str, dict[int, float]]
    volumes_per_window: int
    volumes_if_shuffled: float
    batch_bytes: float
    open_bytes: float
    shared_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a logger."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("an epoch", f"{self.batches:,} batches, {self.crops:,} crops, {self.units:,} units, {self.reads:,} reads"),
            ("delivers", f"{self.delivered_bytes / _MB:,.0f} MB, {self.batch_bytes / _MB:,.1f} MB a batch"),
            ("decodes", f"{self.decoded_bytes / _MB:,.0f} MB, {self.amplification:.2f} bytes a delivered byte"),
            ("a unit", f"{self.tiles_per_unit:.1f} tiles a key; its crops share {self.overlap:.0%} of their voxels"),
            (
                "mixing",
                f"{self.volumes_per_window} volumes in {_WINDOW} batches; {self.volumes_if_shuffled:.1f} if shuffled",
            ),
            ("memory", f"{self.open_bytes / _MB:,.0f} MB wait, {self.shared_bytes / _MB:,.0f} MB shared with workers"),
        ]
        for key, shares in self.class_shares.items():
            held = self.class_presence[key]
            rows += [(f"{key} {c}", f"{s:.3%} of voxels, in {held[c]:.0%} of crops") for c, s in shares.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def explain(
    plan: Plan, *, workers: int = 2, prefetch: int = 4, probes: int = 256, class_probes: int = 48
) -> Explanation:
    """Reckon what an epoch of a plan reads and gives; nothing is read for it.

    Parameters
    ----------
    plan
        The plan.
    workers, prefetch
        Worker processes, and batches that each makes ahead.
    probes, class_probes
        Units that are drawn to measure reads, and the classes in crops.
    """
    units = list(_sample(plan, probes))
    per_unit = [_decoded(plan, unit) for unit in units]
    decoded, tiles = (float(np.mean(column)) for column in zip(*per_unit, strict=True))
    delivered = float(np.mean([crop_bytes(plan, unit) for unit in units]))
    crops, count = len(plan) * plan.batch, plan.units.crops
    shares, presence = _classes(plan, units[:class_probes])
    epoch_units = crops / count
    return Explanation(
        batches=len(plan),
        crops=crops,
        units=len(plan.units),
        reads=round(epoch_units * len(plan.volumes.voxel_bytes)),
        delivered_bytes=crops * delivered,
        decoded_bytes=epoch_units * decoded,
        amplification=decoded / (count * delivered) if delivered else 0.0,
        tiles_per_unit=tiles,
        overlap=float(np.mean([_overlap(unit) for unit in units])),
        class_shares=shares,
        class_presence=presence,
        **_mixing(plan),
        batch_bytes=plan.batch * delivered,
        open_bytes=min(plan.lanes.lanes, len(plan.units)) * (count - 1) / 2 * delivered,
        shared_bytes=workers * prefetch * plan.batch * delivered,
    )


def _sample(plan: Plan, probes: int) -> Iterator[Unit]:
    """Units spread over an epoch."""
    total = len(plan.units)
    for index in np.unique(np.linspace(0, total - 1, min(probes, total)).astype(np.int64)).tolist():
        yield plan.unit(0, index)


def crop_bytes(plan: Plan, unit: Unit) -> float:
    """Bytes of the voxels of one crop of a unit, all keys and delivered channels."""
    per_voxel = sum(plan.volumes.voxel_bytes.values()) * _channel_share(plan, unit, unit.stride)
    return float(unit.patch.prod()) * per_voxel


def _channel_share(plan: Plan, unit: Unit, stride: int) -> float:
    if unit.channels is None or plan.volumes.channels is None:
        return 1.0
    return len(range(*unit.channels, stride)) / float(plan.volumes.channels[unit.volume])


def _decoded(plan: Plan, unit: Unit) -> tuple[float, float]:
    """Bytes that a unit decodes over all keys, and tiles of one key."""
    tiles = tiles_touched(unit.region, plan.volumes.tile)
    per_voxel = sum(plan.volumes.voxel_bytes.values()) * _channel_share(plan, unit, 1)
    return tiles * float(np.prod(plan.volumes.tile)) * per_voxel, float(tiles)


def _overlap(unit: Unit) -> float:
    """Mean share of a crop that another crop of the unit covers."""
    pairs = list(combinations(unit.starts, 2))
    if not pairs:
        return 0.0
    apart = np.abs(np.array([a - b for a, b in pairs]))
    return float((np.maximum(unit.patch - apart, 0) / unit.patch).prod(axis=1).mean())


def _mixing(plan: Plan) -> dict[str, Any]:
    window = min(_WINDOW, len(plan))
    slots = [s for step in range(window) for s in plan.batch_at(0, step)]
    found = {plan.units.volume_of(s.epoch, s.unit) for s in slots}
    volumes = len(plan.volumes)
    shuffled = volumes * (1 - (1 - 1 / volumes) ** len(slots))
    return {"volumes_per_window": len(found), "volumes_if_shuffled": float(shuffled)}


def _classes(plan: Plan, units: list[Unit]) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    shares: dict[str, dict[int, float]] = {}
    presence: dict[str, dict[int, float]] = {}
    for key, index in plan.volumes.labels.items():
        amounts = {c: np.concatenate([_amount(plan, index, unit, c) for unit in units]) for c in index.classes.tolist()}
        shares[key] = {c: float(a.mean()) for c, a in amounts.items()}
        voxels = float(np.mean([unit.patch.prod() for unit in units]))
        presence[key] = {c: float((a * voxels >= 1).mean()) for c, a in amounts.items()}
    return shares, presence


def _amount(plan: Plan, index: LabelIndex, unit: Unit, label: int) -> NDArray[np.float64]:
    """Share of every crop of a unit that a class fills."""
    counts = index.counts(unit.volume, plan.volumes.grid(unit.volume), [label])
    if not counts.any():
        return np.zeros(len(unit.starts))
    tile = np.asarray(plan.volumes.tile, np.int64)
    floor = Floor(counts, tile, plan.volumes.shapes[unit.volume], unit.patch, 0.0)
    return floor.amount(unit.starts) / float(unit.patch.prod())
