"""A cohort at one version, its tables in memory; views of it are positions."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from radiodata.store import commits, layout
from radiodata.store.context import context
from radiodata.store.obs import OBS_ID, RUN, SUBJECT
from radiodata.store.segments import read_state

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np
    import tiledb
    from numpy.typing import NDArray

    from radiodata.store.config import ReadConfig
    from radiodata.store.record import CollectionState, Record


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
    obs_meta: pd.DataFrame
    obs: dict[str, pd.DataFrame]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @cached_property
    def subject_of(self) -> dict[str, NDArray[np.intp]]:
        """Position in `obs_meta` of the subject of each volume, by collection."""
        return {n: self.obs_meta.index.get_indexer(pd.Index(t[SUBJECT].to_numpy(object))) for n, t in self.obs.items()}

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
    ctx = context(config)
    with ThreadPoolExecutor(2) as pool:
        obs_meta = pool.submit(read_state, uri, record.obs_meta, SUBJECT, ctx)
        obs = {n: pool.submit(_volumes, uri, c, ctx) for n, c in record.collections.items()}
        return Snapshot(uri, config, record, obs_meta.result(), {n: job.result() for n, job in obs.items()})


def _volumes(uri: str, state: CollectionState, ctx: tiledb.Ctx) -> pd.DataFrame:
    return read_state(uri, state.obs, OBS_ID, ctx, [n for n in state.obs.names if n != RUN])
