"""Running a pipeline over many volumes: in order, a few at once, by threads or any executor."""

from __future__ import annotations

from collections import deque
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from radiodata.errors import ConfigError, PipelineError, Problem, WorkerDiedError
from radiodata.executors import of_caller, threads
from radiodata.pipeline.steps import run_batch, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from radiodata.pipeline.steps import BatchTransform, Item, Step

T = TypeVar("T")


@dataclass(frozen=True)
class Each:
    """Steps that are done to one volume after another."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Together:
    """A transform of several volumes at once."""

    fn: BatchTransform
    size: int


@dataclass(frozen=True)
class Take:
    """The first `n` that come."""

    n: int


@dataclass(frozen=True)
class Runner:
    """Who does the work.

    Attributes
    ----------
    submit
        As of an executor; None: this thread does it.
    pending
        Most volumes that are under way, or done and not asked for yet.
    failed
        Where volumes that fail are listed; None: the first one ends it.
    """

    submit: Callable[..., Any] | None
    pending: int
    failed: list[Problem] | None = None

    def run(self, items: Iterable[Item], stages: Sequence[Each | Together | Take]) -> Generator[Any, None, None]:
        """Take volumes through all stages, in order; close it, and nothing of it runs any more."""
        stream: Iterator[Any] = iter(items)
        working: list[Generator[Any, None, None]] = []
        for stage in stages:
            if isinstance(stage, Take):
                stream = _first(stream, stage.n)
            elif isinstance(stage, Each):
                working.append(self._ordered(run_steps, _each(stage, stream)))
                stream = (done for done in working[-1] if done is not None)
            else:
                working.append(self._ordered(run_batch, _together(stage, stream)))
                stream = (item for batch in working[-1] for item in batch)
        try:
            yield from stream
        finally:
            for part in reversed(working):
                part.close()

    def _ordered(
        self, work: Callable[..., T], jobs: Iterator[tuple[tuple[Any, ...], Sequence[Item]]]
    ) -> Generator[T, None, None]:
        """Results of jobs in their order; of those that fail, none."""
        if self.submit is None:
            for args, items in jobs:
                with self._listing(items) as done:
                    done.append(work(*args))
                yield from done
            return
        waiting: deque[tuple[Any, Sequence[Item]]] = deque()
        try:
            for args, items in jobs:
                try:
                    waiting.append((self.submit(work, *args), items))
                except BrokenExecutor as error:
                    raise _died(error, [*waiting, (None, items)]) from error
                if len(waiting) >= self.pending:
                    yield from self._next(waiting)
            while waiting:
                yield from self._next(waiting)
        finally:
            for future, _ in waiting:
                future.cancel()
            for future, _ in waiting:  # what cannot be cancelled any more must have ended before this returns
                with suppress(BaseException):
                    future.result()

    def _next(self, waiting: deque[tuple[Any, Sequence[Item]]]) -> list[Any]:
        future, items = waiting[0]
        with self._listing(items) as done:
            try:
                done.append(future.result())
            except BrokenExecutor as error:
                raise _died(error, waiting) from error
            finally:
                waiting.popleft()
        return done

    @contextmanager
    def _listing(self, items: Sequence[Item]) -> Iterator[list[Any]]:
        try:
            yield []
        except PipelineError as error:
            if self.failed is None:
                raise
            self.failed.extend(Problem(item.obs_id, str(error)) for item in items)


@contextmanager
def runner(workers: int = 1, executor: Executor | Any = None, failed: list[Problem] | None = None) -> Iterator[Runner]:
    """Give a runner: this thread, `workers` threads, or an executor of the caller's.

    Parameters
    ----------
    executor
        Any ``concurrent.futures.Executor`` (threads, processes, loky), or a Dask client.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers}: must be at least 1")
    if executor is not None:
        pool = of_caller(executor, workers)
        yield Runner(pool.submit, 2 * pool.workers, failed)
    elif workers == 1:
        yield Runner(None, 1, failed)
    else:
        with threads(workers) as pool:
            yield Runner(pool.submit, 2 * pool.workers, failed)


def _died(error: BaseException, waiting: Iterable[tuple[Any, Sequence[Item]]]) -> WorkerDiedError:
    flying = [item.obs_id for _, items in waiting for item in items]
    return WorkerDiedError(
        f"a worker of the pipeline died ({error}); volumes under way: {flying}. It may have run out of memory: "
        "take fewer workers. What was written stays; run again to go on"
    )


def _each(stage: Each, stream: Iterator[Item]) -> Iterator[tuple[tuple[Any, ...], Sequence[Item]]]:
    return (((stage.steps, item), (item,)) for item in stream)


def _together(stage: Together, stream: Iterator[Item]) -> Iterator[tuple[tuple[Any, ...], Sequence[Item]]]:
    return (((stage.fn, batch), batch) for batch in _batches(stream, stage.size))


def _first(stream: Iterator[T], n: int) -> Iterator[T]:
    """As ``islice``, but what is beyond is not asked for."""
    for number, item in enumerate(stream, 1) if n else ():
        yield item
        if number == n:
            return


def _batches(stream: Iterator[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in stream:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
