"""VolumeLoader: whole volumes, for validation, test and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from radiodata.loading.dataset import PatchDataset, current_rank, current_world
from radiodata.loading.loader import PatchLoader
from radiodata.sampling import Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from radiodata.loading.aligned import Keys
    from radiodata.loading.sample import Sample
    from radiodata.loading.tables import TableTarget
    from radiodata.store import Cohort, ReadConfig


class VolumeLoader(PatchLoader):
    """Whole volumes, one a batch on each rank, in the order of the cohort; ranks take turns.

    Where the number of volumes is not a multiple of the ranks, the last turn repeats volumes, flagged
    ``is_padding``, so that every rank makes the same number of steps. Samples are those of
    ``PatchDataset``, with a batch axis of 1.

    Parameters
    ----------
    cohort, keys, transform, targets, read
        As for ``PatchDataset``.
    num_workers, rank, world_size, multiprocessing_context, pin_memory
        As for ``PatchLoader``.
    """

    def __init__(
        self,
        cohort: Cohort,
        keys: Keys,
        *,
        transform: Callable[[Sample], Any] | Sequence[Callable[[Sample], Any]] | None = None,
        targets: Mapping[str, str | Mapping[str, Any] | TableTarget] | None = None,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: Literal["fork", "forkserver", "spawn"] | None = None,
        pin_memory: bool = False,
        read: ReadConfig | None = None,
    ) -> None:
        world = current_world() if world_size is None else world_size
        dataset = PatchDataset(
            cohort,
            keys,
            policy=Whole(),
            mode="pad",
            order="sequential",
            batch_size=world,
            transform=transform,
            targets=targets,
            read=read,
        )
        super().__init__(
            dataset,
            world,
            num_workers=num_workers,
            prefetch=1,
            threads=1,
            rank=current_rank() if rank is None else rank,
            world_size=world,
            multiprocessing_context=multiprocessing_context,
            pin_memory=pin_memory,
        )
