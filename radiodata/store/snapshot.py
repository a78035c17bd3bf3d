"""A cohort at one version, its tables in memory; views of it are positions."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from radiodata.store import commits, layout
from radiodata.store.context import context
from radiodata.store.obs import OBS_ID, RUN, SUBJECT
from radiodata.store.segments import open_state

if TYPE_CHECKING:
    from datetime import datetime

    import tiledb
    from numpy.typing import NDArray

    from radiodata.store.config import ReadConfig
    from radiodata.store.layers import Layers
    from radiodata.store.record import CollectionState, Record, TableState


_LARGE = 10_000


@dataclass(frozen=True)
class Snapshot:
    """Tables of a cohort at one version, as they were read; nobody changes them.

    Attributes
    ----------
    token
        Identity of what was opened: array handles belong to it (see ``Handles.reading``).
    obs
        Table of volumes of each collection.
    """

    uri: str
    config: ReadConfig
    record: Record
    obs_meta: Layers
    obs: dict[str, Layers]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
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
    if not layout.check_root(uri, context(config)):
        raise layout.no_cohort(uri)

    if at is not None:
        return _load(uri, config, commits.at(uri, at, config))
    found = commits.settled(uri, config, lambda record: _load(uri, config, record))
    if found is None:
        raise layout.no_cohort(uri)
    return found


def _load(uri: str, config: ReadConfig, record: Record) -> Snapshot:
    with ThreadPoolExecutor(2) as pool:
        obs_meta = pool.submit(open_state, uri, record.obs_meta, SUBJECT, _context(record.obs_meta, config))
        obs = {n: pool.submit(_volumes, uri, c, _context(c.obs, config)) for n, c in record.collections.items()}
        return Snapshot(uri, config, record, obs_meta.result(), {n: job.result() for n, job in obs.items()})


def _context(table: TableState, config: ReadConfig) -> tiledb.Ctx:
    return context(config, large=max((s.rows for s in table.segments), default=0) > _LARGE)


def _volumes(uri: str, state: CollectionState, ctx: tiledb.Ctx) -> Layers:
    return open_state(uri, state.obs, OBS_ID, ctx, [n for n in state.obs.names if n != RUN])
