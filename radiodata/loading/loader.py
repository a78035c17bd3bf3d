"""PatchLoader: batches for a training loop, exact in length, order and state."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from radiodata.errors import ConfigError, StateMismatchError
from radiodata.loading.collate import collate_samples
from radiodata.loading.dataset import current_rank, current_world
from radiodata.loading.transport import make_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from radiodata.loading.dataset import PatchDataset
    from radiodata.loading.transport import At, Batch

STATE_VERSION = 1


class _PatchBatches:
    """Makes the batch of this rank for any (epoch, step)."""

    def __init__(self, dataset: PatchDataset, rank: int, world: int, collate: Callable[[list[Any]], Batch]) -> None:
        self._dataset, self._rank, self._world, self._collate = dataset, rank, world, collate

    def __getitem__(self, at: At) -> Batch:
        return self._collate(self._dataset.samples(self._dataset.plan.rank_batch(*at, self._rank, self._world)))

    def reads(self, at: At) -> list[Callable[[], None]]:
        """Reads that the batch needs."""
        slots = self._dataset.plan.rank_batch(*at, self._rank, self._world)
        return [partial(self._dataset.prefetch, slot) for slot in slots]


class PatchLoader:
    """Batches of a ``PatchDataset``: this rank's part of every global batch.

    The global batches are the same for any number of ranks and workers. ``len()`` is exact and equal on
    every rank. ``state_dict()`` counts the batches handed out; a loader that loads it goes on with the very
    next one, on another number of ranks or workers too.

    Each ``iter()`` begins a new epoch, unless no batch was handed out since the last one or since a state was
    loaded (Lightning asks for an iterator more than once).

    Parameters
    ----------
    dataset
        What the batches are made of.
    batch_size
        Global batch: over all ranks together; a multiple of the number of ranks.
    num_workers
        Worker processes; 0 reads ahead in threads of this process.
    prefetch
        Batches made ahead by each worker, or read ahead by the threads.
    threads
        Threads that read ahead when ``num_workers=0``.
    rank, world_size
        This process among those that train together; by default what ``torch.distributed`` says.
    multiprocessing_context
        ``"fork"``, ``"forkserver"`` or ``"spawn"``; by default Python's.
    pin_memory
        Put batches into page-locked memory, for a quicker copy to the GPU.
    collate_fn
        Makes a batch of samples.
    on_mismatch
        What ``load_state_dict`` does with the state of another plan: refuse it, or begin its epoch anew.

    Raises
    ------
    ConfigError
        When the ranks do not divide the batch, or a number is out of range.
    """

    def __init__(
        self,
        dataset: PatchDataset,
        batch_size: int = 4,
        *,
        num_workers: int = 2,
        prefetch: int = 4,
        threads: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: Literal["fork", "forkserver", "spawn"] | None = None,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Batch] = collate_samples,
        on_mismatch: Literal["error", "restart_epoch"] = "error",
    ) -> None:
        self.patches = dataset  # not `dataset`: Lightning would warn of an IterableDataset with a length
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.rank = current_rank() if rank is None else rank
        self.world_size = current_world() if world_size is None else world_size
        dataset.set_batch_size(batch_size)
        dataset.plan.check_world(self.world_size)
        if on_mismatch not in ("error", "restart_epoch"):
            raise ConfigError(f"on_mismatch must be 'error' or 'restart_epoch', not {on_mismatch!r}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is not among {self.world_size} ranks")
        _warn_of_rereads(dataset, num_workers)
        self._on_mismatch = on_mismatch
        source = _PatchBatches(dataset, self.rank, self.world_size, collate_fn)
        self._transport = make_transport(source, num_workers, prefetch, threads, multiprocessing_context, pin_memory)
        self._epoch, self._step, self._fresh = dataset.epoch, 0, True

    @property
    def epoch(self) -> int:
        """Epoch that is going on, or comes next."""
        return self._epoch

    def __len__(self) -> int:
        """Batches in an epoch; a resumed epoch gives only those that are left of it."""
        return len(self.patches.plan)

    def __iter__(self) -> Iterator[Batch]:
        if not self._fresh:
            self._epoch, self._step, self._fresh = self._epoch + 1, 0, True
        return self._batches(self._epoch, self._step)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(self._transport.iterate(epoch, start, len(self)), start + 1):
            self._epoch, self._step, self._fresh = epoch, step, False
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch` with the next ``iter()``."""
        self._epoch, self._step, self._fresh = epoch, 0, True

    def state_dict(self) -> dict[str, Any]:
        """State after the batches handed out so far; small, and equal on all ranks."""
        plan = self.patches.plan
        return {
            "version": STATE_VERSION,
            "plan_hash": plan.hash,
            "plan": plan.describe(),
            "seed": plan.seed,
            "epoch": self._epoch,
            "step": self._step,
            "global_batch": plan.batch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that `state` counts.

        Raises
        ------
        StateMismatchError
            When the state belongs to another plan, naming the fields that differ.
        """
        if state.get("version") != STATE_VERSION:
            raise StateMismatchError(f"loader state version {state.get('version')}; this is version {STATE_VERSION}")
        epoch, step = int(state["epoch"]), int(state["step"])
        if state["plan_hash"] != self.patches.plan.hash:
            if self._on_mismatch == "error":
                raise StateMismatchError(_difference(state["plan"], self.patches.plan.describe()))
            step = 0
        if step >= len(self):
            epoch, step = epoch + 1, 0
        self._epoch, self._step, self._fresh = epoch, step, True


def _difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    fields = sorted(k for k in {*saved, *now} if saved.get(k) != now.get(k))
    lines = [f"{k}: {saved.get(k)!r} when saved, {now.get(k)!r} now" for k in fields]
    return (
        f"the loader state belongs to another plan ({'; '.join(lines)}): resume with the same settings, or pass "
        "on_mismatch='restart_epoch' to begin its epoch anew"
    )


def _warn_of_rereads(dataset: PatchDataset, workers: int) -> None:
    canonical = dataset.plan.workers
    if workers > 1 and canonical % workers:
        legal = ", ".join(str(n) for n in range(1, canonical + 1) if canonical % n == 0)
        warnings.warn(
            f"num_workers={workers} does not divide canonical_workers={canonical}: batches stay the same, but workers "
            f"read tiles that others read too. Use {legal} workers, or canonical_workers={workers}.",
            stacklevel=3,
        )
