"""VolumeLoader: whole volumes, for validation, test and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from radiodata.geometry import box
from radiodata.loading.aligned import align
from radiodata.loading.collate import collate_samples
from radiodata.loading.dataset import current_rank, current_world
from radiodata.loading.sample import make_sample
from radiodata.loading.transforms import apply
from radiodata.loading.transport import At, Batch, make_transport
from radiodata.sampling.permutation import hash_ints
from radiodata.store import ReadConfig, read_box
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from radiodata._typing import Voxels
    from radiodata.loading.sample import Sample
    from radiodata.store import Cohort


class _WholeVolumes:
    """Makes the sample of a volume of this rank, batch axis first, for any step."""

    def __init__(
        self,
        cohort: Cohort,
        keys: Mapping[str, str],
        transform: Callable[[Sample], Any] | None,
        rank: int,
        world: int,
        read: ReadConfig,
    ) -> None:
        self._held, self._transform, self._rank, self._world = align(cohort, keys), transform, rank, world
        self._read = read

    def __len__(self) -> int:
        return -(-len(self._held.volumes) // self._world)

    def __getitem__(self, at: At) -> Batch:
        place = at[1] * self._world + self._rank
        volume = place % len(self._held.volumes)
        voxels = {key: self._voxels(key, volume) for key in self._held.keys}
        size = self._held.volumes.shapes[volume]
        padding = place >= len(self._held.volumes)
        sample = make_sample(
            self._held, volume, np.zeros(3, np.int64), size, voxels, key=hash_ints(volume), padding=padding
        )
        if self._transform is not None:
            sample = apply(self._transform, sample, int(sample["key"]))
        return dict(collate_samples([sample]))

    def reads(self, at: At) -> list[Callable[[], None]]:
        """Nothing: whole volumes are read when they are asked for."""
        return []

    def _voxels(self, key: str, volume: int) -> Voxels:
        held = self._held.keys[key]
        source = held.sources[volume]
        stored = read_box(source, box((0, 0, 0), source.size), config=self._read)
        return physical(stored, source).astype(held.dtype, copy=False)


class VolumeLoader:
    """Whole volumes, one a batch, in the order of the cohort; ranks take turns.

    Where the number of volumes is not a multiple of the ranks, the last turn repeats volumes, flagged
    ``is_padding``, so that every rank makes the same number of steps. Samples are those of
    ``PatchDataset``, with a batch axis of 1.

    Parameters
    ----------
    cohort, keys, transform
        As for ``PatchDataset``.
    num_workers, rank, world_size, multiprocessing_context, pin_memory
        As for ``PatchLoader``.
    """

    def __init__(
        self,
        cohort: Cohort,
        keys: Mapping[str, str],
        *,
        transform: Callable[[Sample], Any] | None = None,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: Literal["fork", "forkserver", "spawn"] | None = None,
        pin_memory: bool = False,
        read: ReadConfig | None = None,
    ) -> None:
        rank = current_rank() if rank is None else rank
        world = current_world() if world_size is None else world_size
        self.batch_size = world
        self.num_workers = num_workers
        self._source = _WholeVolumes(cohort, keys, transform, rank, world, read or ReadConfig(threads=1))
        self._transport = make_transport(self._source, num_workers, 1, 1, multiprocessing_context, pin_memory)

    def __len__(self) -> int:
        """Turns: volumes over ranks, rounded up."""
        return len(self._source)

    def __iter__(self) -> Iterator[Batch]:
        return self._transport.iterate(0, 0, len(self))
