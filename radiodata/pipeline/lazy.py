"""A pipeline over a collection that is written down first and runs at the end: `cohort.CT.lazy()`."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError
from radiodata.pipeline.running import Each, Take, Together, runner
from radiodata.pipeline.saving import place_of
from radiodata.pipeline.stages import append, drops, ended, settled, unread
from radiodata.pipeline.steps import AsRow, AsVolume, Keep, Map, describe
from radiodata.pipeline.write import Work, write_items
from radiodata.store.columns import infer_columns
from radiodata.store.expression import parse
from radiodata.store.layers import typed
from radiodata.store.obs import GEOMETRY, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from radiodata.errors import Problem
    from radiodata.pipeline.steps import BatchTransform, Step, Transform
    from radiodata.pipeline.write import WriteReport
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.config import StoreConfig, TilingLike
    from radiodata.store.loaded import LoadedVolume


@dataclass(frozen=True)
class _Pick:
    """A choice by position or id."""

    what: str
    pick: Callable[[VolumeCollection], VolumeCollection]
    first: int | None = None


_Op = _Pick | Map | Together | str


class LazyCollection:
    """Steps over the volumes of a collection, in the order they are written.

    Nothing is read until ``write``, ``count``, ``to_obs``, ``iter_volumes``, ``to_numpy_stack`` or ``collect`` asks.
    Volumes stream through: at most a few times `workers` of them are in memory. Choices (``filter``, ``head``, ...)
    that precede every transform read no voxel; so do filters behind transforms that leave their columns alone.
    ``iloc``, ``loc``, ``tail`` and ``sample`` behind a filter that needs voxels run what precedes them twice: once to
    learn what is there.

    See Also
    --------
    radiodata.store.VolumeCollection.lazy : where one comes from.

    Examples
    --------
    >>> resampled = cohort.CT.lazy().filter("spacing_z < 5").map(Resample(1.0)).map(Clip(-1000, 1000))  # doctest: +SKIP
    >>> resampled.write("derived", workers=2)                                                           # doctest: +SKIP
    """

    def __init__(self, source: VolumeCollection, ops: tuple[_Op, ...] = ()) -> None:
        self._source, self._ops = source, ops

    def _with(self, op: _Op) -> LazyCollection:
        return LazyCollection(self._source, (*self._ops, op))

    # steps

    def filter(self, expression: str) -> LazyCollection:
        """Keep volumes for which an expression holds; behind a ``map``, of the columns as that left them.

        Raises
        ------
        ExpressionError
            When it is no expression.
        """
        parse(expression)
        return self._with(expression)

    def filter_subjects(self, expression: str) -> LazyCollection:
        """Keep volumes of the subjects for which an expression over `obs_meta` holds.

        Raises
        ------
        ExpressionError
            When it is no expression, or names a column that is not there.
        """
        chosen = set(self._source.filter_subjects(expression).ids)

        def pick(view: VolumeCollection) -> VolumeCollection:
            return view.iloc[[i in chosen for i in view.ids]]

        return self._with(_Pick(f"filter_subjects({expression!r})", pick))

    def head(self, n: int = 5) -> LazyCollection:
        """Keep the first `n`."""
        _whole(n)
        return self._with(_Pick(f"head({n})", lambda view: view.head(n), first=n))

    def tail(self, n: int = 5) -> LazyCollection:
        """Keep the last `n`."""
        _whole(n)
        return self._with(_Pick(f"tail({n})", lambda view: view.tail(n)))

    def sample(self, n: int, *, seed: int = 0) -> LazyCollection:
        """Keep `n`, drawn without replacement."""
        _whole(n)
        return self._with(_Pick(f"sample({n}, seed={seed})", lambda view: view.sample(n, seed=seed)))

    @property
    def iloc(self) -> _Choice:
        """Choose by position: an int, a slice, a list or a mask."""
        return _Choice(self, "iloc")

    @property
    def loc(self) -> _Choice:
        """Choose by ``obs_id``: one, a list or a mask."""
        return _Choice(self, "loc")

    def map(self, fn: Transform) -> LazyCollection:
        """Apply ``fn(volume, obs_row) -> volume | (volume, updates)`` to every volume."""
        return self._with(Map(_callable(fn)))

    def batch_map(self, fn: BatchTransform, batch_size: int = 4) -> LazyCollection:
        """Apply ``fn(volumes, obs_rows) -> [volume | (volume, updates), ...]`` to `batch_size` volumes at once."""
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        return self._with(Together(_callable(fn), batch_size))

    # ends

    def iter_volumes(
        self, *, workers: int = 1, executor: Executor | Any = None, failed: list[Problem] | None = None
    ) -> Generator[LoadedVolume, None, None]:
        """Give volumes one after another, in order.

        Parameters
        ----------
        workers
            Threads; 1: this one.
        executor
            Any ``concurrent.futures.Executor`` (threads, processes, loky) or a Dask client, in their place.
        failed
            A list: volumes that fail are skipped and listed in it. By default the first one ends the run.

        Raises
        ------
        PipelineError
            When a step fails: names the volume and the step.
        """
        view, stages = self._planned(workers=workers, executor=executor, failed=failed)
        with self._run(view, stages, AsVolume(), workers=workers, executor=executor, failed=failed) as volumes:
            yield from volumes

    def collect(self, **how: Any) -> list[LoadedVolume]:
        """Give all volumes in memory; `how` as of ``iter_volumes``."""
        return list(self.iter_volumes(**how))

    def to_numpy_stack(self, **how: Any) -> NDArray[Any]:
        """Give one array ``(volume, x, y, z[, channel])``; `how` as of ``iter_volumes``.

        Raises
        ------
        ConfigError
            When shapes differ, or there is no volume.
        """
        volumes = self.collect(**how)
        shapes: dict[tuple[int, ...], str] = {}
        for volume in volumes:
            shapes.setdefault(volume.shape, volume.obs_id)
        if len(shapes) != 1:
            told = ", ".join(f"{shape} ({one})" for shape, one in list(shapes.items())[:5]) or "none"
            raise ConfigError(f"volumes can be stacked where all have one shape; there are: {told}")
        return np.stack([volume.voxels for volume in volumes])

    def count(self, **how: Any) -> int:
        """Count the volumes; reads voxels only where a choice behind a transform depends on it."""
        view, stages = self._planned(**how)
        if not any(isinstance(s, Take) or (isinstance(s, Each) and drops(s)) for s in stages):
            return len(view)
        with self._run(view, stages, AsRow(), **how) as rows:
            return sum(1 for _ in rows)

    def to_obs(self, **how: Any) -> pd.DataFrame:
        """Give `obs` as it would be written, one row a volume; reads no voxel where nothing is mapped."""
        view, stages = self._planned(**how)
        if not stages:
            return view.obs
        with self._run(view, stages, AsRow(), **how) as rows:
            found = list(rows)
        ids = [item.obs_id for item in found]
        known = [c for c in view.obs.columns if c not in STATISTICS]
        added = list(dict.fromkeys(name for item in found for name in item.updates))
        table = view.obs.loc[ids, known].copy()
        for name in (n for n in known if n in GEOMETRY):
            cells = [item.obs[name].ravel() if name == "affine" else item.obs[name] for item in found]
            table[name] = pd.Series(cells, table.index, dtype=table[name].dtype)
        made = pd.DataFrame([item.updates for item in found], table.index, columns=added).infer_objects()
        new = {column.name: typed(made[column.name], column.kind) for column in infer_columns(made)}
        table = table.assign(**{name: new.pop(name) for name in list(new) if name in table})
        return pd.concat([table, pd.DataFrame(new, index=table.index)], axis=1)

    def write(
        self,
        uri: str | Path | None = None,
        name: str | None = None,
        *,
        kind: str | None = None,
        tiling: TilingLike | None = None,
        config: StoreConfig | None = None,
        workers: int = 1,
        executor: Executor | Any = None,
        failed: list[Problem] | None = None,
        progress: bool | Callable[[int, int], None] = False,
    ) -> WriteReport:
        """Write the volumes as a collection; a rerun goes on with what is missing.

        Parameters
        ----------
        uri
            The cohort to write to, made where there is none; by default that of the source.
        name
            Of the collection; by default that of the source, in another cohort.
        kind
            ``"image"`` or ``"label"``; by default that of the source.
        tiling, config
            Tiles, or all of the layout; by default tiles as in the source.
        workers, executor, failed
            As of ``iter_volumes``.
        progress
            Show a bar, or call with (volumes done, volumes in all).

        Raises
        ------
        PipelineError
            When a step fails: names the volume and the step. What was written stays.
        ConfigError
            When the collection is there and was made otherwise.
        """
        place = place_of(self._source, uri, name, kind, tiling, config)
        view, stages = self._planned(workers=workers, executor=executor, failed=failed)
        work = Work(self._source, view, lambda skipped: unread(view, skipped), stages, self._steps())
        with runner(workers, executor, failed) as run:
            return write_items(work, place, run, progress)

    # how

    def _steps(self) -> list[str]:
        told = []
        for op in self._ops:
            if isinstance(op, Map):
                told.append(f"map({op.name})")
            elif isinstance(op, Together):
                told.append(f"batch_map({describe(op.fn)}, {op.size})")
            else:
                told.append(f"filter({op!r})" if isinstance(op, str) else op.what)
        return told

    def _planned(self, **how: Any) -> tuple[VolumeCollection, list[Each | Together | Take]]:
        """What is chosen without voxels, and what is to be done to that."""
        view, stages, touched = self._source, list[Each | Together | Take](), frozenset[str]()
        for op in self._ops:
            if isinstance(op, Map):
                touched |= getattr(op.fn, "touches", None) or frozenset({"*"})
                append(stages, op)
            elif isinstance(op, Together):
                touched |= {"*"}
                stages.append(op)
            elif isinstance(op, str):
                if settled(stages) and "*" not in touched and not touched & set(parse(op).columns):
                    view = view.filter(op)
                else:
                    append(stages, Keep(op, {str(n): t for n, t in view.joined().dtypes.items()}))
            elif settled(stages):
                view = op.pick(view)
            elif op.first is not None:
                stages.append(Take(op.first))
            elif any(isinstance(s, Together) for s in stages):
                raise ConfigError(f"{op.what} cannot follow batch_map: choose before")
            else:
                with self._run(view, stages, AsRow(), **how) as rows:
                    there = view.loc[[item.obs_id for item in rows]]
                view = op.pick(there)
                kept = tuple(
                    s for stage in stages if isinstance(stage, Each) for s in stage.steps if isinstance(s, Map)
                )
                stages = [Each(kept)] if kept else []
        return view, stages

    @contextmanager
    def _run(
        self,
        view: VolumeCollection,
        stages: Sequence[Each | Together | Take],
        end: Step,
        *,
        workers: int = 1,
        executor: Any = None,
        failed: list[Problem] | None = None,
    ) -> Iterator[Iterator[Any]]:
        with (
            runner(workers, executor, failed) as run,
            closing(run.run(unread(view), ended(stages, (end,)))) as stream,
        ):
            yield stream

    def __repr__(self) -> str:
        return ".".join([f"{self._source.name}.lazy()", *self._steps()])


class _Choice:
    def __init__(self, lazy: LazyCollection, by: str) -> None:
        self._lazy, self._by = lazy, by

    def __getitem__(self, key: Any) -> LazyCollection:
        if isinstance(key, str | int | np.integer):
            key = [key]
        by, first = self._by, None
        if isinstance(key, slice) and key.start in (None, 0) and key.step in (None, 1) and (key.stop or -1) >= 0:
            first = int(key.stop)
        return self._lazy._with(_Pick(f"{by}[{_told(key)}]", lambda view: getattr(view, by)[key], first))


def _told(key: Any) -> str:
    if isinstance(key, slice):
        return ":".join("" if v is None else str(v) for v in (key.start, key.stop, key.step))
    return ", ".join(map(repr, list(key)))


def _callable(fn: Any) -> Any:
    if not callable(fn):
        raise ConfigError(f"{fn!r} cannot be called: a transform is fn(volume, obs_row) -> volume | (volume, updates)")
    return fn


def _whole(n: int) -> None:
    if n < 0:
        raise ConfigError(f"{n} rows cannot be taken: give 0 or more")
