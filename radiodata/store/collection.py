"""A collection: like volumes (CT, T1w, seg) of a cohort, one row of `obs` each."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import ObsNotFoundError, StoreError
from radiodata.store import layout
from radiodata.store.context import bounded, context
from radiodata.store.obs import (
    IMAGE_TILES,
    LABEL_TILES,
    OBS_COLUMNS,
    SUBJECT,
    TILES_INDEX,
    VoxelSources,
    source_of,
    strings,
    volume_key,
)
from radiodata.store.query import rows_where, volumes_where
from radiodata.store.show import collection_html
from radiodata.store.table import read_ragged, read_table
from radiodata.store.view import View, copied
from radiodata.store.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import anndata
    import pyarrow
    from numpy.typing import NDArray

    from radiodata.geometry import Shape3
    from radiodata.pipeline import LazyCollection, MappedVolumes
    from radiodata.pipeline.steps import Transform
    from radiodata.store.config import ReadConfig
    from radiodata.store.layers import Layers
    from radiodata.store.snapshot import Snapshot
    from radiodata.store.table import Ragged

_FEW = 256
_STORES_OWN = frozenset(c.name for c in OBS_COLUMNS)


class VolumeCollection(View[Volume]):
    """Volumes of one kind, a view: selecting gives another view and reads nothing.

    Attributes
    ----------
    name
        Its name in the cohort.
    uri
        Where its voxels are.
    kind
        ``"image"`` or ``"label"``.
    tile
        Tile extents ``(x, y, z)`` in voxels.
    provenance
        Of a derived collection: what made it, and from what; else None.
    config
        How TileDB reads.
    """

    _what = "volume"

    def __init__(self, name: str, snapshot: Snapshot, rows: NDArray[np.intp] | None = None) -> None:
        state = snapshot.state(name)
        self.name, self.uri = name, layout.join(snapshot.uri, state.folder)
        self.kind: str = state.kind
        self.tile: Shape3 = state.tile
        self.provenance: dict[str, Any] | None = state.provenance
        self.config: ReadConfig = snapshot.config
        self._snapshot, self._given = snapshot, rows

    @property
    def obs(self) -> pd.DataFrame:
        """One row a volume, indexed by ``obs_id``; a copy, to write columns see ``update_obs``."""
        return copied(self._frame)

    def column(self, name: str) -> pd.Series[Any]:
        """One column of ``obs``, which alone is decoded; a copy.

        Raises
        ------
        KeyError
            When there is none.
        """
        return self._column(name).copy()

    @property
    def _table(self) -> Layers:
        return self._snapshot.obs[self.name]

    @property
    def _whole(self) -> bool:
        return self._given is None

    @cached_property
    def _rows(self) -> NDArray[np.intp]:
        return np.arange(len(self._table)) if self._given is None else self._given

    def _at(self, rows: NDArray[np.intp]) -> VolumeCollection:
        return VolumeCollection(self.name, self._snapshot, rows)

    def _one(self, row: int) -> Volume:
        cells = self._table.row(row)
        source = source_of(self.uri, str(self._table.index[row]), cells, self._snapshot.token, self._snapshot.index)
        header = partial(_header_of, self._at(np.array([row], np.intp)))
        return Volume(source, cells, self.config, kind=self.kind, header=header)

    def _name(self) -> str:
        return f"collection {self.name!r} of the cohort at {self._snapshot.uri}"

    def __iter__(self) -> Iterator[Volume]:
        return (self._one(int(row)) for row in self._rows)

    def of_subject(self, subject: str) -> Volume:
        """Give the volume of a subject.

        Raises
        ------
        ObsNotFoundError
            When the subject has none here, or several (use ``.obs`` to choose).
        """
        at = np.flatnonzero((self._column(SUBJECT) == subject).to_numpy(bool))
        if len(at) != 1:
            found = "no volume" if not len(at) else f"{len(at)} volumes {list(self._index[at])}"
            raise ObsNotFoundError(f"subject {subject!r} has {found} in collection {self.name!r}")
        return self._one(int(self._rows[at[0]]))

    def filter(self, expression: str) -> VolumeCollection:
        """View of the volumes for which an expression holds: ``"spacing_z < 3 and age > 40"``.

        Columns of `obs`, ``obs_id``, and columns of the volume's subject in `obs_meta`; see
        ``radiodata.store.expression`` for what can be written.

        Raises
        ------
        ExpressionError
            When it is no expression, names a column that is not there, or compares what cannot be compared.
        """
        return self._at(self._rows[volumes_where(self, expression)])

    @property
    def _subject_rows(self) -> NDArray[np.intp]:
        """Positions, in the table of subjects, of the subjects of these volumes."""
        return self._snapshot.subject_of(self.name)[self._rows]

    def joined(self) -> pd.DataFrame:
        """Columns of `obs`, and of the volume's subject where `obs` has none of the name; one row a volume."""
        meta = self._snapshot.obs_meta.frame
        theirs = meta[[n for n in meta.columns if n not in self.columns]]
        rows = theirs.iloc[self._subject_rows]
        return pd.concat([self._frame, rows.set_axis(self._index)], axis=1)

    def own_numbers(self) -> list[str]:
        """Columns of numbers that were added to `obs`."""
        given = [c.name for c in self._snapshot.state(self.name).obs.columns if c.name not in _STORES_OWN]
        return [n for n in given if pd.api.types.is_numeric_dtype(self._column(n))]

    def to_arrow(self) -> pyarrow.Table:
        """`obs` as an Arrow table, ``obs_id`` first; needs ``radiodata[arrow]``."""
        from radiodata.export import to_arrow

        return to_arrow(self.obs)

    def to_anndata(self, features: Sequence[str] | None = None) -> anndata.AnnData:
        """Volumes by feature columns, as AnnData; see ``radiodata.export.to_anndata``."""
        from radiodata.export import to_anndata

        return to_anndata(self, features)

    def filter_subjects(self, expression: str) -> VolumeCollection:
        """View of the volumes of subjects for which an expression over `obs_meta` holds.

        Raises
        ------
        ExpressionError
            When it is no expression, names a column that is not there, or compares what cannot be compared.
        """
        return self._at(self._rows[rows_where(self._snapshot.obs_meta, expression)[self._subject_rows]])

    def map(self, fn: Transform, **how: Any) -> MappedVolumes:
        """Apply ``fn(volume, obs_row) -> volume | (volume, updates)`` to every volume now, and keep them in memory.

        `how` is as of ``LazyCollection.iter_volumes``; see ``lazy`` for what does not fit in memory.
        """
        from radiodata.pipeline import MappedVolumes

        return MappedVolumes.of(self, fn, **how)

    def lazy(self) -> LazyCollection:
        """Begin a pipeline that streams: steps are noted, and run when something asks for what they give."""
        from radiodata.pipeline import LazyCollection

        return LazyCollection(self)

    @property
    def snapshot_uri(self) -> str:
        """URI of the cohort."""
        return self._snapshot.uri

    @property
    def snapshot_version(self) -> int:
        """Version of the cohort that this is of."""
        return self._snapshot.record.version

    def subjects_table(self) -> pd.DataFrame:
        """`obs_meta` of the cohort, of all subjects."""
        return copied(self._snapshot.obs_meta.frame)

    def sources(self) -> VoxelSources:
        """Voxel sources of every volume, in the order of ``.obs``."""
        return VoxelSources(self.uri, self._index, self._column, self._snapshot.token, self._snapshot.index)

    def tile_columns(self, names: Sequence[str]) -> dict[str, Ragged]:
        """Columns of the per-tile statistics in the order of ``.obs``, each flat; no voxel is read.

        A cohort of 100,000 label volumes has tens of millions of label points: nothing is made for a volume.
        """
        where = layout.join(self.uri, "tiles")
        ids, columns = bounded(where, self.config, lambda: read_ragged(where, TILES_INDEX, context(self.config), names))
        at = ids.get_indexer(pd.Index(self._keys()))
        self._refuse_lost(at)
        return {name: column.take(np.asarray(at, np.int64)) for name, column in columns.items()}

    def tile_statistics(self) -> pd.DataFrame:
        """Per-tile statistics in the order of ``.obs`` (see ``IMAGE_TILES`` and ``LABEL_TILES``); no voxel is read."""
        columns = self.tile_columns([c.name for c in (LABEL_TILES if self.kind == "label" else IMAGE_TILES)])
        rows = {name: pd.Series(column.rows(), self._index, dtype=object) for name, column in columns.items()}
        return pd.DataFrame(rows, index=self._index)

    def histograms(self, *, foreground: bool = False) -> pd.DataFrame:
        """Histogram of every volume: counts, lower edge of the first bin, bin width (physical values).

        Of the voxels above ``air_threshold``, or of those inside labels (empty where there were none at ingest).
        """
        name = "foreground_histogram" if foreground else "histogram"
        return self._extras([name, f"{name}_start", f"{name}_width"])

    def components(self) -> pd.DataFrame:
        """Connected components of every label volume (26 neighbours, the 1,000 largest of each class).

        ``component_labels`` and ``component_voxels`` hold a number each, ``component_boxes`` six: start and stop along
        x, y and z.
        """
        return self._extras(["component_labels", "component_voxels", "component_boxes"])

    def source_headers(self) -> list[bytes]:
        """Header of the file of every volume, byte for byte; empty for a derived one."""
        return list(self._extras(["source_header"])["source_header"])

    def _extras(self, names: list[str]) -> pd.DataFrame:
        keys = self._keys()
        some, where = keys if len(keys) <= _FEW else None, layout.join(self.uri, "tiles")

        def read() -> pd.DataFrame:
            return read_table(where, TILES_INDEX, context(self.config), names, ids=some)

        found = bounded(where, self.config, read) if keys else pd.DataFrame(columns=names)
        at = found.index.get_indexer(pd.Index(keys, dtype=object))
        self._refuse_lost(at)
        return found.iloc[at].set_axis(self._index)

    def _keys(self) -> list[str]:
        shards, slots = strings(self._column("shard")), self._column("slot").tolist()
        return [volume_key(s, n) for s, n in zip(shards, slots, strict=True)]

    def _refuse_lost(self, at: NDArray[np.intp]) -> None:
        if len(at) and at.min() < 0:
            lost = self._index[at < 0][0]
            raise StoreError(f"volume {lost!r} of {self.uri} has no tile statistics: ingest it again")

    def __repr__(self) -> str:
        return f"VolumeCollection({self.name!r}, {self.kind}, {len(self)} volumes, tile={self.tile})"

    def _repr_html_(self) -> str:
        return collection_html(self)


def _header_of(one: VolumeCollection) -> bytes:
    return one.source_headers()[0]
