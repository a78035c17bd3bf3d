"""PatchDataset: crops of a cohort's volumes as an IterableDataset."""

from __future__ import annotations

import os
import weakref
from collections import deque
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from radiodata.errors import ConfigError, SampleError, is_system_error
from radiodata.geometry import box
from radiodata.loading.aligned import align
from radiodata.loading.cache import BlockCache
from radiodata.loading.collate import collate_samples
from radiodata.loading.failures import Failures, OnError
from radiodata.loading.reading import UnitReader
from radiodata.loading.sample import Sample, Taken, make_batch, make_sample
from radiodata.loading.stats import Stats
from radiodata.loading.transforms import KeyedTransform
from radiodata.sampling import Plan, Slot, Uniform
from radiodata.sampling.explain import crop_bytes
from radiodata.sampling.permutation import hash_ints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from radiodata.geometry import Shape3
    from radiodata.loading.aligned import Keys
    from radiodata.loading.cache import UnitKey
    from radiodata.loading.memory import Allocate
    from radiodata.loading.places import Arrays
    from radiodata.loading.reading import Crop
    from radiodata.loading.tables import TableTarget
    from radiodata.sampling import Policy
    from radiodata.store import Cohort, ReadConfig


_SKIPPED = object()
_LAST = 16
"""Units that say whether units are fetched."""


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
    ``shape``                 of the volume, in voxels; int64 ``(3,)``
    ``box``                   of the crop in its volume, start and stop; int64 ``(3, 2)``
    ``valid``                 part of the crop that is real where the volume is smaller; int64 ``(3, 2)``
    ``is_padding``            bool: a repeat that only fills the last batch (``mode="pad"``)
    ``key``                   int: seeds all that is random about this sample
    ========================  ===========================================================================

    With ``Slices`` images are ``(channel * slices, a, b)`` and labels ``(channel, a, b)``; with ``Frames``
    ``frame`` is the first of the channels. Each of `targets` gives a field of its own.

    Iterating gives this rank's and this worker's samples of the current ``epoch``; ``PatchLoader`` does
    more (resuming, prefetching).

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    keys
        Sample key to collection: ``{"image": "CT", "label": "seg"}``, or to several whose channels are stacked:
        ``{"image": ["T1w", "FLAIR"]}``. The first sets the grid.
    patch_size
        Crop shape in voxels: one int or three (``Slices``: two); none for ``Whole``.
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
    steps
        Batches of an epoch, whatever the number of crops; see ``Plan``.
    order
        ``"lanes"``, or ``"sequential"``: volume by volume, for inference.
    seed
        Chooses crops, order, and what transforms draw.
    targets
        Sample key to a column of `obs_meta` or `obs` (see ``TableTarget``): ``{"age": "age"}``.
    transform
        Called on every sample, or a list of transforms, one after another; their randomness is keyed by the
        sample (see ``KeyedTransform``). MONAI dict transforms apply as they are, TorchIO's through ``TorchIO``.
    on_error
        What happens when a sample cannot be read or transformed: ``"raise"``; ``"replace"`` by a crop drawn
        for it, the same on any topology; ``"skip"``, which makes the batch smaller and needs `steps`.
    max_errors
        Samples that may fail one after another, in each process.
    check_affines
        Refuse volumes of a subject that do not lie in one place.
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
        keys: Keys,
        *,
        patch_size: int | Sequence[int] | None = None,
        policy: Policy | None = None,
        batch_size: int = 1,
        crops_per_volume: int = 16,
        crops_per_unit: int = 8,
        cell_tiles: int | None = None,
        canonical_workers: int = 8,
        mode: Literal["drop", "pad"] = "drop",
        steps: int | None = None,
        order: Literal["lanes", "sequential"] = "lanes",
        seed: int = 0,
        targets: Mapping[str, str | Mapping[str, Any] | TableTarget] | None = None,
        transform: Callable[[Sample], Any] | Sequence[Callable[[Sample], Any]] | None = None,
        on_error: OnError = "raise",
        max_errors: int = 16,
        check_affines: bool = True,
        cache_bytes: int = 1 << 30,
        read: ReadConfig | None = None,
    ) -> None:
        super().__init__()
        policy = policy or Uniform()
        self._aligned = align(cohort, keys, policy.needs(), targets=targets, check_affines=check_affines)
        self._transform = None if transform is None else KeyedTransform(transform)
        self.cache_bytes = cache_bytes
        self.epoch = 0
        self.stats = Stats()
        self._failures = Failures(on_error, max_errors, self.stats)
        if on_error == "skip" and steps is None:
            raise ConfigError("on_error='skip' makes batches smaller: give steps=N, or use on_error='replace'")
        self._reader = UnitReader(self._aligned.keys, read or replace(cohort.config, threads=1))
        self.plan = Plan(
            self._aligned.volumes,
            policy,
            patch_size,
            batch_size,
            crops_per_volume=crops_per_volume,
            crops_per_unit=crops_per_unit,
            cell_tiles=cell_tiles or default_cell_tiles(self._aligned.volumes.tile),
            workers=canonical_workers,
            mode=mode,
            steps=steps,
            order=order,
            seed=seed,
        )
        self._cache: BlockCache | None = None
        self._cache_pid = -1
        self._requests = deque[float](maxlen=_LAST)

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

    @property
    def schemes(self) -> frozenset[str]:
        """Of the object stores that units come from, such as ``"s3"``; empty where they come from local disks."""
        return self._reader.schemes

    @property
    def transforms(self) -> bool:
        """Whether samples are transformed."""
        return self._transform is not None

    def fetches(self) -> bool:
        """Whether units are fetched: False where none of the last few, from an object store, took a request.

        They come from a cache on this machine's disk then.
        """
        return not self.schemes or len(self._requests) < _LAST or any(tuple(self._requests))

    @property
    def sample_bytes(self) -> int:
        """Bytes of the voxels of a sample; of the largest, where volumes come whole."""
        volumes = self._aligned.volumes
        if self.plan.patch is None:
            return int(volumes.shapes.prod(axis=1).max()) * sum(volumes.voxel_bytes.values())
        return int(crop_bytes(self.plan, self.plan.unit(0, 0)))

    def unit_bytes(self, key: UnitKey) -> int:
        """Bytes of the crops of a unit, known before it is read."""
        if self.plan.patch is not None:
            return self._crop_bytes * self.plan.units.crops
        volume = self.plan.units.volume_of(key[0], key[1])
        return int(self._aligned.volumes.shapes[volume].prod()) * sum(self._aligned.volumes.voxel_bytes.values())

    def describe_unit(self, key: UnitKey) -> str:
        """What a unit reads, for a report on one that takes too long."""
        unit = self.plan.unit(*key)
        inside = ", ".join(f"{low}:{high}" for low, high in unit.region.tolist())
        obs_id, subject = self._aligned.obs_ids[unit.volume], self._aligned.volumes.subjects[unit.volume]
        return f"[{inside}] of volume {obs_id!r} (subject {subject!r})"

    @cached_property
    def _crop_bytes(self) -> int:
        return self.sample_bytes

    def samples(self, slots: Sequence[Slot]) -> list[Sample]:
        """Samples of some slots of a batch, transformed; fewer where some were skipped.

        Raises
        ------
        SampleError
            When a sample cannot be made, and `on_error` does not say otherwise; when all of them were skipped.
        TooManyErrors
            When more than `max_errors` failed one after another.
        """
        return self._made(slots, self._sample)

    def batch(
        self, slots: Sequence[Slot], allocate: Allocate = np.empty, arrays: Callable[[], Arrays] = dict
    ) -> Sample:
        """What ``collate_samples`` makes of ``samples``, sooner: without transforms, all samples of it at once.

        Parameters
        ----------
        allocate
            Gives the memory of its tensors, by shape and dtype.
        arrays
            Gives those that its crops may lie in already, each in its place (see ``Places``).

        Raises
        ------
        SampleError, TooManyErrors
            As ``samples`` does.
        """
        if self._transform is not None:
            samples = self.samples(slots)
            with self.stats.timed("collate"):
                return cast("Sample", collate_samples(samples, allocate))
        taken = self._made(slots, lambda one: one)
        with self.stats.timed("collate"):
            return make_batch(self._aligned, taken, allocate, arrays())

    def _made(self, slots: Sequence[Slot], make: Callable[[Taken], Any]) -> list[Any]:
        made = [self._finished(slot, make) for slot in slots]
        kept = [one for one in made if one is not _SKIPPED]
        if slots and not kept:
            raise self._error(slots[0], None, "read", "all samples of its batch were skipped, so there is no batch")
        return kept

    def _finished(self, slot: Slot, make: Callable[[Taken], Any]) -> Any:
        attempt = 0
        while True:
            try:
                made = self._attempt(slot, attempt, make)
            except SampleError as error:
                self._failures.failed(error)
                if self._failures.on_error == "skip":
                    return _SKIPPED
                attempt += 1
            else:
                self._failures.succeeded()
                return made

    def _attempt(self, slot: Slot, attempt: int, make: Callable[[Taken], Any]) -> Any:
        """Take a crop and make what is wanted of it, or raise what went wrong as an error that names it."""
        unit: UnitKey = (slot.epoch, slot.unit, attempt) if attempt else (slot.epoch, slot.unit)
        key = hash_ints(slot.key, attempt) if attempt else slot.key
        crop = None
        try:
            crop = self.blocks().take(unit, slot.crop)
            return make(Taken(crop, key, slot.padding))
        except Exception as error:
            if is_system_error(error):
                raise
            stage = "read" if crop is None else "transform"
            raise self._error(slot, crop, stage, f"{type(error).__name__}: {error}", attempt) from error

    def _sample(self, taken: Taken) -> Any:
        sample = make_sample(self._aligned, taken)
        if self._transform is None:
            return sample
        with self.stats.timed("transform"):
            return self._transform(sample, taken.key)

    def _error(self, slot: Slot, crop: Crop | None, stage: str, why: str, attempt: int = 0) -> SampleError:
        if crop is None:
            unit = self.plan.unit(slot.epoch, slot.unit, attempt)
            volume, start, shape = unit.volume, unit.starts[slot.crop], unit.patch
        else:
            volume, start, shape = crop.volume, crop.start, crop.shape
        where = box(start, start + shape).tolist()
        return SampleError(self._aligned.obs_ids[volume], self._aligned.volumes.subjects[volume], where, stage, why)

    def blocks(self) -> BlockCache:
        """Give the cache of this process."""
        if self._cache is None or self._cache_pid != os.getpid():  # a forked worker's cache is its own
            me = weakref.proxy(self)  # so that it goes, with its crops, when nobody has it any more
            self._cache = BlockCache(lambda key: me._read_unit(key), self.cache_bytes, lambda key: me.unit_bytes(key))
            self._cache_pid = os.getpid()
        return self._cache

    def _read_unit(self, key: UnitKey) -> dict[int, Crop]:
        """Read the crops of a unit that will be taken, as far as that is known: else all of them."""
        unit, due = self.plan.unit(*key), self.blocks().due(key)
        numbers = sorted(due) or range(len(unit.starts))
        part = unit if len(numbers) == len(unit.starts) else unit.part(numbers)
        crops, took = self._reader.read(part, [due.get(number) for number in numbers])
        self.stats.merge(took)
        self._requests.append(took["requests"])
        return dict(zip(numbers, crops, strict=True))

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
