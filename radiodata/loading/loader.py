"""PatchLoader: batches for a training loop, exact in length, order and state."""

from __future__ import annotations

import multiprocessing
import warnings
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from radiodata.errors import ConfigError, StateMismatchError
from radiodata.loading.collate import bytes_of, collate_samples
from radiodata.loading.dataset import current_rank, current_world
from radiodata.loading.estimate import Estimate, estimate
from radiodata.loading.machine import cores
from radiodata.loading.memory import batches
from radiodata.loading.stats import LoaderStats, Stats
from radiodata.loading.transport import make_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from radiodata.loading.cache import BlockCache, UnitKey
    from radiodata.loading.dataset import PatchDataset
    from radiodata.loading.memory import Allocate
    from radiodata.loading.places import Places
    from radiodata.loading.readahead import Read
    from radiodata.loading.transport import At, Batch
    from radiodata.sampling import Slot

STATE_VERSION = 1
_WORKERS_THREADS, _MOST_THREADS, _REMOTE_THREADS = 2, 4, 16
_AHEAD, _REMOTE_AHEAD = 8, 32
_DRAWN = 512


class _PatchBatches:
    """Makes the batch of this rank for any (epoch, step)."""

    allocate: Allocate = batches.empty

    def __init__(
        self,
        dataset: PatchDataset,
        rank: int,
        world: int,
        collate: Callable[[list[Any]], Batch],
        ahead: int,
        units: int,
    ) -> None:
        self._dataset, self._rank, self._world, self._collate = dataset, rank, world, collate
        self.ahead, self.units = ahead, units
        self._drawn: dict[At, list[Slot]] = {}

    def batch(self, at: At, places: Places | None = None) -> Batch:
        """Make the batch of an (epoch, step), whose crops may lie in their places already."""
        blocks = self.blocks()
        hits = blocks.hits
        if self._collate is collate_samples:
            arrays = dict if places is None else partial(places.take, *at)
            batch: Batch = self._dataset.batch(self._slots(at), self.allocate, arrays)
        else:
            samples = self._dataset.samples(self._slots(at))
            with self.stats.timed("collate"):
                batch = self._collate(samples)
        self.stats.count("hits", blocks.hits - hits)
        return batch

    @property
    def stats(self) -> Stats:
        """Recorder of this process."""
        return self._dataset.stats

    @property
    def anywhere(self) -> bool:
        """Whether no transform, nor a function of the user's that makes a batch of samples, is called."""
        return self._collate is collate_samples and not self._dataset.transforms

    @property
    def crops(self) -> int:
        """Crops of one unit."""
        return self._dataset.plan.units.crops

    @property
    def spread(self) -> int:
        """Steps of an epoch over which the crops of one unit are spread."""
        return self.crops * self._dataset.plan.workers

    def reads(self, at: At) -> list[Read]:
        """Units, and crops of them, that the batch takes."""
        return [((slot.epoch, slot.unit), slot.crop) for slot in self._slots(at)]

    def blocks(self) -> BlockCache:
        """Give the cache of this process."""
        return self._dataset.blocks()

    def fetches(self) -> bool:
        """Whether reading is waiting: not where no unit of the last few had to be fetched from an object store."""
        return self._dataset.fetches()

    def describe(self, key: UnitKey) -> str:
        """Say which volume and box a unit is."""
        return f"unit {key[1]}: {self._dataset.describe_unit(key)}"

    def _slots(self, at: At) -> list[Slot]:
        """Slots of a batch, drawn once: first to read ahead, and again to make it."""
        drawn = self._drawn.get(at)
        if drawn is None:
            drawn = self._drawn[at] = self._dataset.plan.rank_batch(*at, self._rank, self._world)
            if len(self._drawn) > _DRAWN:
                self._drawn.pop(next(iter(tuple(self._drawn))), None)  # two threads, of two iterators, may do so
        return drawn


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
        Worker processes; 0 makes batches in this one: one ahead, in a thread, or, where there are transforms or a
        `collate_fn`, when it is asked for.
    prefetch
        Batches made ahead by each worker.
    threads
        Threads that read ahead, in each process that reads; with 0, a batch's reads are done one after another
        when it is made. By default 2 in a worker, and in this process one fewer than it has cores, 1 to 4; 16 where
        units come from an object store, whose answers they wait for.
    read_ahead
        Steps of its own for which a process reads ahead, as far as the dataset's `cache_bytes` allow; by default 8,
        and 32 from an object store, and then on while few units are held, so that a short epoch does not begin with a
        wait.
    rank, world_size
        This process among those that train together; by default what ``torch.distributed`` says.
    multiprocessing_context
        ``"fork"``, ``"forkserver"`` or ``"spawn"``; by default Python's, but ``"forkserver"`` for ``"fork"`` where
        volumes are on an object store other than S3: their libraries do not outlive a fork.
    pin_memory
        Put batches into page-locked memory, for a quicker copy to the GPU.
    collate_fn
        Makes a batch of samples.
    timeout
        Seconds that a batch may take before the loader gives up and says what hangs; None waits for ever.
    on_mismatch
        What ``load_state_dict`` does with the state of another plan: refuse it, or begin its epoch anew.
    repeat_epoch
        Give the batches of the first epoch in every epoch, to see whether a network can learn them by heart.

    Raises
    ------
    ConfigError
        When the ranks do not divide the batch, or a number is out of range.

    Warns
    -----
    UserWarning
        When the loader may need more memory than there is (see ``estimate``).
    """

    def __init__(
        self,
        dataset: PatchDataset,
        batch_size: int = 4,
        *,
        num_workers: int = 2,
        prefetch: int = 4,
        threads: int | None = None,
        read_ahead: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        multiprocessing_context: Literal["fork", "forkserver", "spawn"] | None = None,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Batch] = collate_samples,
        timeout: float | None = 300.0,
        on_mismatch: Literal["error", "restart_epoch"] = "error",
        repeat_epoch: bool = False,
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
        units = 0
        if read_ahead is None:
            read_ahead = _REMOTE_AHEAD if dataset.schemes else _AHEAD
            units = batch_size // self.world_size * dataset.plan.workers if dataset.plan.order == "lanes" else 0
        if read_ahead < 0:
            raise ConfigError(f"read_ahead={read_ahead}: steps, from 0")
        _warn_of_rereads(dataset, num_workers)
        self._on_mismatch = on_mismatch
        source = _PatchBatches(dataset, self.rank, self.world_size, collate_fn, read_ahead, units)
        self._stats = Stats()
        self._transport = make_transport(
            source,
            num_workers,
            prefetch,
            _threads(dataset, num_workers) if threads is None else threads,
            _start_method(multiprocessing_context, dataset.schemes),
            pin_memory,
            timeout=timeout,
            cache_bytes=dataset.cache_bytes,
            goes_on=dataset.plan.order == "lanes" and not repeat_epoch,
            stats=self._stats,
        )
        self._shape = (num_workers, prefetch, pin_memory)
        self.estimate().warn()
        self._epoch, self._step, self._fresh = dataset.epoch, 0, True
        self._repeat, self._last = repeat_epoch, len(self)

    @property
    def epoch(self) -> int:
        """Epoch that is going on, or comes next."""
        return self._epoch

    def __len__(self) -> int:
        """Batches in an epoch; a resumed epoch gives only those that are left of it."""
        return len(self.patches.plan)

    def __iter__(self) -> Iterator[Batch]:
        if not self._fresh:
            self._epoch, self._step, self._fresh = self._next(), 0, True
        return self._batches(self._epoch, self._step)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        with closing(self._transport.iterate(epoch, start, len(self))) as batches:
            for step in range(start, len(self)):
                with self._stats.timed("wait"):
                    batch = next(batches)
                self._stats.merge({"batches": 1, "bytes_delivered": bytes_of(batch)})
                self._epoch, self._step, self._fresh = epoch, step + 1, False
                yield batch
                del batch

    def stats(self) -> LoaderStats:
        """What the loader did so far, and what it spent its time on; ``print(loader.stats())`` is a table."""
        return self._stats.report()

    def estimate(self) -> Estimate:
        """Memory that the loader will need, beside what there is; ``print(loader.estimate())`` is a table."""
        workers, prefetch, pin = self._shape
        share = self.batch_size // self.world_size
        return estimate(
            sample_bytes=self.patches.sample_bytes,
            samples=share,
            batches=len(self),
            cache_bytes=self.patches.cache_bytes,
            workers=workers,
            prefetch=prefetch,
            pin_memory=pin,
        )

    def close(self) -> None:
        """End workers and threads, and let go of what they read, before the loader goes; ``iter()`` begins anew."""
        self._transport.close()

    def stop_after(self, batches: float) -> None:
        """Take note that a trainer takes no more than so many batches of an epoch: its state is then at the next."""
        self._last = int(min(batches, len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Begin `epoch` with the next ``iter()``."""
        self._epoch, self._step, self._fresh = epoch, 0, True

    def state_dict(self) -> dict[str, Any]:
        """State after the batches handed out so far; small, and equal on all ranks."""
        plan = self.patches.plan
        ended = self._step >= self._last < len(self)
        return {
            "version": STATE_VERSION,
            "plan_hash": plan.hash,
            "plan": plan.describe(),
            "seed": plan.seed,
            "epoch": self._next() if ended else self._epoch,
            "step": 0 if ended else self._step,
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
            epoch, step = epoch + (not self._repeat), 0
        self._epoch, self._step, self._fresh = epoch, step, True

    def _next(self) -> int:
        return self._epoch + (not self._repeat)


def _threads(dataset: PatchDataset, workers: int) -> int:
    if dataset.schemes:
        return _REMOTE_THREADS
    return _WORKERS_THREADS if workers else min(_MOST_THREADS, max(1, cores() - 1))  # one makes the batches


def _start_method(asked: str | None, schemes: frozenset[str]) -> str | None:
    others = sorted(schemes - {"s3"})
    if not others or (asked or multiprocessing.get_start_method()) != "fork":
        return asked
    if asked is None:
        return "forkserver"
    raise ConfigError(
        f"multiprocessing_context='fork': what reads {others[0]}:// does not work in a forked process; use 'forkserver'"
    )


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
