"""A collection: like volumes (CT, T1w, seg) of a cohort, one row of `obs` each."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd
import tiledb

from radiodata.errors import ObsNotFoundError, StoreError
from radiodata.geometry import shape3
from radiodata.store import layout
from radiodata.store.context import context
from radiodata.store.obs import (
    IMAGE_TILES,
    LABEL_TILES,
    OBS_ID,
    SUBJECT,
    TILES_INDEX,
    VoxelSources,
    source_of,
    strings,
    visible_columns,
    volume_key,
)
from radiodata.store.query import volumes_where
from radiodata.store.table import read_ragged, read_table
from radiodata.store.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from radiodata.geometry import Shape3
    from radiodata.store.config import ReadConfig
    from radiodata.store.table import Ragged


class VolumeCollection:
    """Volumes of one kind, a view: selecting gives another view and reads nothing.

    Attributes
    ----------
    name
        Its name in the cohort.
    uri
        Its TileDB group.
    kind
        ``"image"`` or ``"label"``.
    tile
        Tile extents ``(x, y, z)`` in voxels.
    obs
        One row a volume, indexed by ``obs_id``.
    config
        How TileDB reads.
    """

    def __init__(
        self,
        name: str,
        uri: str,
        kind: str,
        tile: Shape3,
        obs: pd.DataFrame,
        token: str,
        config: ReadConfig,
        obs_meta: pd.DataFrame | None = None,
    ) -> None:
        self.name, self.uri, self.kind, self.tile, self.obs = name, uri, kind, tile, obs
        self._token, self.config = token, config
        self._obs_meta = pd.DataFrame() if obs_meta is None else obs_meta

    @classmethod
    def open(
        cls, cohort_uri: str, name: str, token: str, config: ReadConfig, obs_meta: pd.DataFrame | None = None
    ) -> VolumeCollection:
        """Open a collection of the cohort at `cohort_uri`, whose subject table is `obs_meta`."""
        uri, ctx = layout.join(cohort_uri, name), context(config)
        with tiledb.Group(uri, "r", ctx=ctx) as group:
            kind, tile = str(group.meta[layout.KIND_KEY]), str(group.meta[layout.TILE_KEY])
        obs = read_table(layout.join(uri, "obs"), OBS_ID, ctx, visible_columns())
        return cls(name, uri, kind, shape3([int(t) for t in tile.split(",")]), obs, token, config, obs_meta)

    def __len__(self) -> int:
        return len(self.obs)

    def __iter__(self) -> Iterator[Volume]:
        return (self._volume(i) for i in range(len(self)))

    @property
    def loc(self) -> _Loc:
        """Select by ``obs_id``: a volume, or a view by a list of ids or a boolean mask."""
        return _Loc(self)

    @property
    def iloc(self) -> _ILoc:
        """Select by position: a volume, or a view by a slice or a list."""
        return _ILoc(self)

    def of_subject(self, subject: str) -> Volume:
        """Give the volume of a subject.

        Raises
        ------
        ObsNotFoundError
            When the subject has none here, or several (use ``.obs`` to choose).
        """
        at = np.flatnonzero((self.obs[SUBJECT] == subject).to_numpy(bool))
        if len(at) != 1:
            found = "no volume" if not len(at) else f"{len(at)} volumes {list(self.obs.index[at])}"
            raise ObsNotFoundError(f"subject {subject!r} has {found} in collection {self.name!r}")
        return self._volume(int(at[0]))

    def view(self, obs: pd.DataFrame) -> VolumeCollection:
        """Give the collection restricted to the rows of `obs`."""
        same = (self._token, self.config, self._obs_meta)
        return VolumeCollection(self.name, self.uri, self.kind, self.tile, obs, *same)

    def filter(self, expression: str) -> VolumeCollection:
        """View of the volumes for which an expression holds: ``"spacing_z < 3 and age > 40"``.

        Columns of `obs`, ``obs_id``, and columns of the volume's subject in `obs_meta`; see
        ``radiodata.store.expression`` for what can be written.

        Raises
        ------
        ExpressionError
            When it is no expression, names a column that is not there, or compares what cannot be compared.
        """
        return self.view(self.obs[volumes_where(self, self._obs_meta, expression)])

    def sources(self) -> VoxelSources:
        """Voxel sources of every volume, in the order of ``.obs``."""
        return VoxelSources(self.uri, self.obs, self._token)

    def tile_columns(self, names: Sequence[str]) -> dict[str, Ragged]:
        """Columns of the per-tile statistics in the order of ``.obs``, each flat; no voxel is read.

        A cohort of 100,000 label volumes has tens of millions of label points: nothing is made for a volume.
        """
        ids, columns = read_ragged(layout.join(self.uri, "tiles"), TILES_INDEX, context(self.config), names)
        shards, slots = strings(self.obs["shard"]), self.obs["slot"].tolist()
        at = ids.get_indexer(pd.Index([volume_key(s, n) for s, n in zip(shards, slots, strict=True)]))
        if at.min(initial=0) < 0:
            lost = self.obs.index[at < 0][0]
            raise StoreError(f"volume {lost!r} of {self.uri} has no tile statistics: ingest it again")
        return {name: column.take(np.asarray(at, np.int64)) for name, column in columns.items()}

    def tile_statistics(self) -> pd.DataFrame:
        """Per-tile statistics in the order of ``.obs`` (see ``IMAGE_TILES`` and ``LABEL_TILES``); no voxel is read."""
        columns = self.tile_columns([c.name for c in (LABEL_TILES if self.kind == "label" else IMAGE_TILES)])
        rows = {name: pd.Series(column.rows(), self.obs.index, dtype=object) for name, column in columns.items()}
        return pd.DataFrame(rows, index=self.obs.index)

    def histograms(self) -> pd.DataFrame:
        """Histogram of every volume: counts, lower edge of the first bin, bin width (physical values).

        Of the voxels above ``air_threshold``.
        """
        names = ["histogram", "histogram_start", "histogram_width"]
        return read_table(layout.join(self.uri, "obs"), OBS_ID, context(self.config), names).loc[self.obs.index]

    def _volume(self, at: int) -> Volume:
        row = self.obs.iloc[at]
        return Volume(source_of(self.uri, str(self.obs.index[at]), row, self._token), row, self.config)

    def __repr__(self) -> str:
        return f"VolumeCollection({self.name!r}, {self.kind}, {len(self)} volumes, tile={self.tile})"


class _Loc:
    def __init__(self, collection: VolumeCollection) -> None:
        self._collection = collection

    @overload
    def __getitem__(self, key: str) -> Volume: ...
    @overload
    def __getitem__(self, key: list[str] | list[bool] | pd.Series[bool]) -> VolumeCollection: ...
    def __getitem__(self, key: Any) -> Volume | VolumeCollection:
        held = self._collection
        if isinstance(key, str):
            _refuse_missing([key], held)
            return held._volume(int(held.obs.index.get_indexer(pd.Index([key]))[0]))
        if isinstance(key, pd.Series) and pd.api.types.is_bool_dtype(key.dtype):
            return held.view(held.obs.loc[key])  # a mask of ours in another order is aligned by its index
        keys = list(key)
        if keys and isinstance(keys[0], str):
            _refuse_missing(keys, held)
        return held.view(held.obs.loc[keys])


class _ILoc:
    def __init__(self, collection: VolumeCollection) -> None:
        self._collection = collection

    @overload
    def __getitem__(self, key: int) -> Volume: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int]) -> VolumeCollection: ...
    def __getitem__(self, key: Any) -> Volume | VolumeCollection:
        held = self._collection
        if not isinstance(key, int | np.integer):
            return held.view(held.obs.iloc[key])
        if not -len(held) <= key < len(held):
            raise IndexError(f"position {key} is out of range: collection {held.name!r} has {len(held)} volumes")
        return held._volume(int(key) % len(held))


def _refuse_missing(keys: Sequence[str], collection: VolumeCollection) -> None:
    missing = [k for k in keys if k not in collection.obs.index]
    if missing:
        near = difflib.get_close_matches(missing[0], [str(i) for i in collection.obs.index], n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise ObsNotFoundError(f"collection {collection.name!r} has no volume {missing}{hint}")
