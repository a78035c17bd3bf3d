"""A cohort at one version, its tables in memory; views of it are positions."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from radiodata.store import commits, layout
from radiodata.store.context import LARGE_ROWS, bounded, context, handles
from radiodata.store.direct.listing import local_path
from radiodata.store.index import Index, index_uri, read_index
from radiodata.store.obs import OBS_ID, RUN, SUBJECT
from radiodata.store.segments import open_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import tiledb
    from numpy.typing import NDArray

    from radiodata.store.config import ReadConfig
    from radiodata.store.layers import Layers
    from radiodata.store.record import CollectionState, Record, TableState
    from radiodata.store.table import Raw


@dataclass(frozen=True)
class Snapshot:
    """Tables of a cohort at one version, as they were read; nobody changes them.

    Attributes
    ----------
    token
        Identity of what was opened: array handles belong to it (see ``Handles.reading``).
    obs
        Table of volumes of each collection.
    index
        Where the index of this version is, and its size in bytes, where there is one.
    """

    uri: str
    config: ReadConfig
    record: Record
    obs_meta: Layers
    obs: dict[str, Layers]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    index: tuple[str, int] | None = None
    _subject_of: dict[str, NDArray[np.intp]] = field(default_factory=dict, repr=False)

    @cached_property
    def _subjects(self) -> dict[str, int]:
        return {subject: at for at, subject in enumerate(self.obs_meta.ids.tolist())}

    def subject_of(self, name: str) -> NDArray[np.intp]:
        """Position in `obs_meta` of the subject of each volume of a collection."""
        if name not in self._subject_of:
            subjects = self.obs[name].texts(SUBJECT).tolist()
            if subjects == self.obs_meta.ids.tolist():  # one of each: no need to look them up
                self._subject_of[name] = np.arange(len(subjects))
            else:
                self._subject_of[name] = np.fromiter(map(self._subjects.__getitem__, subjects), np.intp, len(subjects))
        return self._subject_of[name]

    def state(self, name: str) -> CollectionState:
        """State of a collection."""
        return self.record.collections[name]


def open_snapshot(uri: str, config: ReadConfig, at: int | str | datetime | None = None) -> Snapshot:
    """Open the latest version of a cohort, or another one.

    Raises
    ------
    CohortNotFoundError
        When there is none.
    FormatVersionError
        When its format is not known.
    StoreError
        When it cannot be read, or has no such version.
    """
    if local_path(uri) is not None and not layout.check_root(uri, context(config)):
        raise layout.no_cohort(uri)
    if at is not None:
        return _load(uri, config, commits.at(uri, at, config))
    found = commits.settled(uri, config, lambda record: _load(uri, config, record))
    if found is None:
        layout.check_root(uri, context(config))  # says what is wrong where something is
        raise layout.no_cohort(uri)
    return found


def _load(uri: str, config: ReadConfig, record: Record) -> Snapshot:
    size = None if local_path(uri) is not None else commits.index_size(uri, record.version, config)
    if size is None:
        layout.check_root(uri, context(config))
        return bounded(uri, config, lambda: _read(uri, config, record, Index(), None))
    where = index_uri(uri, record.version)
    index = read_index(where, size, config)
    handles().direct.learn(where, index.shards, index.tiles)
    return _read(uri, config, record, index, (where, size))


def _read(uri: str, config: ReadConfig, record: Record, index: Index, place: tuple[str, int] | None) -> Snapshot:
    known = index.tables
    with ThreadPoolExecutor(2) as pool:
        obs_meta = pool.submit(
            open_state, uri, record.obs_meta, SUBJECT, _context(record.obs_meta, config), None, known
        )
        obs = {n: pool.submit(_volumes, uri, c, _context(c.obs, config), known) for n, c in record.collections.items()}
        tables = {n: job.result() for n, job in obs.items()}
        return Snapshot(uri, config, record, obs_meta.result(), tables, index=place)


def _context(table: TableState, config: ReadConfig) -> tiledb.Ctx:
    return context(config, large=max((s.rows for s in table.segments), default=0) > LARGE_ROWS)


def _volumes(uri: str, state: CollectionState, ctx: tiledb.Ctx, known: Mapping[str, Raw]) -> Layers:
    return open_state(uri, state.obs, OBS_ID, ctx, [n for n in state.obs.names if n != RUN], known)
