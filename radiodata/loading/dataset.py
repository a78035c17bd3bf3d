"""PatchDataset: crops of a cohort's volumes as an IterableDataset."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from radiodata.geometry import shape3
from radiodata.loading.aligned import align
from radiodata.loading.blocks import BlockCache, UnitReader
from radiodata.loading.sample import Sample, make_sample
from radiodata.loading.transforms import apply
from radiodata.sampling import Plan, Slot, Uniform
from radiodata.store import ReadConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from radiodata.geometry import Shape3
    from radiodata.loading.blocks import Crop, UnitKey
    from radiodata.sampling import Policy
    from radiodata.store import Cohort


class PatchDataset(IterableDataset[Sample]):
    """Crops of a cohort's volumes, in an order that ranks and workers share out and never change.

    The path of one crop: the **plan** says which crop of which unit fills slot j of batch t; the **block
    cache** holds the unit's crops, or asks the **reader** for them, who reads one box of tiles; the dataset
    makes a **sample** of the crop and transforms it; the loader makes a batch of samples.

    A sample is a plain dict. For each key: a tensor ``(channel, x, y, z)`` of the stored dtype (int16 HU for
    CT; cast on the device), and ``KEY_stats`` for images: mean, standard deviation and percentiles 0.5 and
    99.5 of the whole volume. Beside them:

    ========================  ===========================================================================
    ``affine``                of the crop, voxel to world mm; float64 ``(4, 4)``
    ``spacing``               mm; float64 ``(3,)``
    ``obs_subject_id``        str; and ``obs_id`` of the first key's volume
    ``box``                   of the crop in its volume, start and stop; int64 ``(3, 2)``
    ``valid``                 part of the crop that is real where the volume is smaller; int64 ``(3, 2)``
    ``is_padding``            bool: a repeat that only fills the last batch (``mode="pad"``)
    ``key``                   int: seeds all that is random about this sample
    ========================  ===========================================================================

    Iterating gives this rank's and this worker's samples of the current ``epoch``; ``PatchLoader`` does
    more (resuming, prefetching).

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    keys
        Sample key to collection: ``{"image": "CT", "label": "seg"}``. The first sets the grid.
    patch_size
        Crop shape in voxels: one int or three.
    policy
        Where crops fall.
    batch_size
        Global batch: over all ranks together.
    crops_per_volume
        Crops of each volume in an epoch.
    crops_per_unit
        Crops that share one read (m): fewer bytes a crop, more overlap between crops of different batches.
    cell_tiles
        Side of the cell, in tiles, that a unit's crops start in (k); by default about 64 voxels.
    canonical_workers
        Worker counts that divide this number read nothing twice (Wc).
    mode
        ``"drop"`` or ``"pad"`` the last batch.
    seed
        Chooses crops, order, and what transforms draw.
    transform
        Called on every sample, with randomness seeded by its key; MONAI dict transforms apply as they are.
    cache_bytes
        Bound on read but undelivered crops, each process.
    read
        How TileDB reads; by default with one thread in each process or thread of the loader.

    Raises
    ------
    ConfigError, PlanError
        When a setting cannot be used or the cohort cannot give what is asked.
    """

    def __init__(
        self,
        cohort: Cohort,
        keys: Mapping[str, str],
        *,
        patch_size: int | Sequence[int],
        policy: Policy | None = None,
        batch_size: int = 1,
        crops_per_volume: int = 16,
        crops_per_unit: int = 8,
        cell_tiles: int | None = None,
        canonical_workers: int = 8,
        mode: Literal["drop", "pad"] = "drop",
        seed: int = 0,
        transform: Callable[[Sample], Any] | None = None,
        cache_bytes: int = 1 << 30,
        read: ReadConfig | None = None,
    ) -> None:
        super().__init__()
        self._aligned = align(cohort, keys)
        self.transform = transform
        self.cache_bytes = cache_bytes
        self.epoch = 0
        self._reader = UnitReader(self._aligned.keys, shape3(patch_size, "patch_size"), read or ReadConfig(threads=1))
        self.plan = Plan(
            self._aligned.volumes,
            policy or Uniform(),
            self._reader.patch,
            batch_size,
            crops_per_volume=crops_per_volume,
            crops_per_unit=crops_per_unit,
            cell_tiles=cell_tiles or default_cell_tiles(self._aligned.volumes.tile),
            workers=canonical_workers,
            mode=mode,
            seed=seed,
        )
        self._cache: BlockCache | None = None
        self._cache_pid = -1

    def set_batch_size(self, batch_size: int) -> None:
        """Plan for another global batch."""
        self.plan = replace(self.plan, batch=batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples of this rank in an epoch."""
        return len(self.plan) * self.plan.batch // current_world()

    def __iter__(self) -> Iterator[Sample]:
        rank, world = current_rank(), current_world()
        self.plan.check_world(world)
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for step in range(worker, len(self.plan), workers):
            yield from self.samples(self.plan.rank_batch(self.epoch, step, rank, world))

    def samples(self, slots: Sequence[Slot]) -> list[Sample]:
        """Samples of some slots of a batch, transformed."""
        return [self._finished(slot) for slot in slots]

    def prefetch(self, slot: Slot) -> None:
        """Read what a slot of a coming batch needs."""
        self._blocks().prefetch((slot.epoch, slot.unit), slot.crop)

    def _finished(self, slot: Slot) -> Any:
        crop = self._blocks().take((slot.epoch, slot.unit), slot.crop)
        sample = make_sample(
            self._aligned,
            crop.volume,
            crop.start,
            self.plan.patch,
            crop.voxels,
            key=slot.key,
            padding=slot.padding,
        )
        return sample if self.transform is None else apply(self.transform, sample, slot.key)

    def _blocks(self) -> BlockCache:
        if self._cache is None or self._cache_pid != os.getpid():  # a forked worker's cache is its own
            self._cache, self._cache_pid = BlockCache(self._read_unit, self.cache_bytes), os.getpid()
        return self._cache

    def _read_unit(self, key: UnitKey) -> list[Crop]:
        return self._reader.read(self.plan.unit(*key))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


def default_cell_tiles(tile: Shape3) -> int:
    """Tiles on the side of a cell of about 64 voxels; 1 where tiles are larger."""
    return max(1, 64 // max(tile))


def _initialised() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def current_rank() -> int:
    """Rank of this process; 0 where ``torch.distributed`` is not initialised."""
    return torch.distributed.get_rank() if _initialised() else 0


def current_world() -> int:
    """Number of ranks; 1 where ``torch.distributed`` is not initialised."""
    return torch.distributed.get_world_size() if _initialised() else 1
