"""Volumes that were mapped at once and are in memory: `cohort.CT.map(f)`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from radiodata.pipeline.lazy import LazyCollection
from radiodata.pipeline.running import Each, runner
from radiodata.pipeline.saving import place_of
from radiodata.pipeline.steps import Map
from radiodata.pipeline.write import Work, write_items
from radiodata.store.loaded import LoadedVolume

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from radiodata.errors import Problem
    from radiodata.pipeline.steps import Transform
    from radiodata.pipeline.write import WriteReport
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.config import StoreConfig, TilingLike


class MappedVolumes(Sequence[LoadedVolume]):
    """Volumes in memory, made of those of a collection; what does not fit there is for ``collection.lazy()``."""

    def __init__(self, source: VolumeCollection, volumes: list[LoadedVolume], steps: tuple[str, ...]) -> None:
        self._source, self._volumes, self._steps = source, volumes, steps

    @classmethod
    def of(cls, source: VolumeCollection, fn: Transform, **how: Any) -> MappedVolumes:
        """Read every volume of a collection and apply a transform; `how` as of ``map``."""
        return cls(source, LazyCollection(source).map(fn).collect(**how), (f"map({Map(fn).name})",))

    @overload
    def __getitem__(self, at: int) -> LoadedVolume: ...
    @overload
    def __getitem__(self, at: slice) -> MappedVolumes: ...
    def __getitem__(self, at: int | slice) -> LoadedVolume | MappedVolumes:
        if isinstance(at, slice):
            return MappedVolumes(self._source, self._volumes[at], self._steps)
        return self._volumes[at]

    def __len__(self) -> int:
        return len(self._volumes)

    @property
    def obs(self) -> pd.DataFrame:
        """What the transforms computed, one row a volume."""
        return pd.DataFrame([dict(v.updates) for v in self._volumes], index=[v.obs_id for v in self._volumes])

    def map(
        self, fn: Transform, *, workers: int = 1, executor: Executor | Any = None, failed: list[Problem] | None = None
    ) -> MappedVolumes:
        """Apply ``fn(volume, obs_row) -> volume | (volume, updates)`` now; arguments as of ``LazyCollection``."""
        with runner(workers, executor, failed) as run, closing(run.run(self._volumes, [Each((Map(fn),))])) as done:
            return MappedVolumes(self._source, list(done), (*self._steps, f"map({Map(fn).name})"))

    def to_list(self) -> list[LoadedVolume]:
        """Give the volumes."""
        return list(self._volumes)

    def write(
        self,
        uri: str | Path | None = None,
        name: str | None = None,
        *,
        kind: str | None = None,
        tiling: TilingLike | None = None,
        config: StoreConfig | None = None,
        workers: int = 1,
        progress: bool | Callable[[int, int], None] = False,
    ) -> WriteReport:
        """Write the volumes as a collection; arguments as of ``LazyCollection.write``."""
        numbered = [replace(volume, position=n) for n, volume in enumerate(self._volumes)]
        view = self._source.loc[[v.obs_id for v in self._volumes]]
        work = Work(
            self._source, view, lambda skipped: (v for v in numbered if v.obs_id not in skipped), [], list(self._steps)
        )
        with runner(workers) as run:
            return write_items(work, place_of(self._source, uri, name, kind, tiling, config), run, progress)

    def __repr__(self) -> str:
        return f"MappedVolumes({len(self)} volumes of {self._source.name!r}: {'.'.join(self._steps)})"
