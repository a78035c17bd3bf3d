"""A cohort that is being changed: every rule between its tables is checked here, before anything shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import tiledb

from radiodata.errors import ConfigError, ObsNotFoundError
from radiodata.store.columns import Column, check_columns, infer_columns
from radiodata.store.layers import typed
from radiodata.store.layout import OBS_META, check_name, join
from radiodata.store.obs import OBS_COLUMNS, OBS_ID, SUBJECT, TILES_INDEX, tile_columns
from radiodata.store.record import CollectionState, Record, Segment, TableState
from radiodata.store.segments import due, read_state
from radiodata.store.table import create_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from radiodata.geometry import Shape3
    from radiodata.store.record import SegmentKind
    from radiodata.store.writing import Writer

OWN = frozenset(c.name for c in OBS_COLUMNS) | {OBS_ID}


class Draft:
    """The latest version of a cohort, and the changes to it that one commit makes.

    Attributes
    ----------
    record
        The cohort as it will be.
    segments
        What was written for it.
    """

    def __init__(self, writer: Writer, record: Record) -> None:
        self.record = record
        self.segments: list[Segment] = []
        self._writer = writer

    # subjects

    def begin_subjects(self, rows: pd.DataFrame) -> None:
        """Give a table of subjects that holds nothing yet the columns of a frame."""
        if not self.record.obs_meta.segments and not self.record.obs_meta.columns:
            self._put(None, TableState(tuple(infer_columns(rows))))

    def add_subjects(self, rows: pd.DataFrame) -> None:
        """Add rows to `obs_meta`, indexed by subject.

        Raises
        ------
        ConfigError
            When a subject is there, or the columns do not fit.
        """
        table = self.record.obs_meta
        if there := self._writer.present(table, SUBJECT, _ids(rows)):
            raise ConfigError(f"the cohort at {self._writer.uri} holds subjects {_some(there)} already")
        self.begin_subjects(rows)
        table = self.record.obs_meta
        try:
            columns = tuple(check_columns(rows, table.columns))
        except ConfigError as error:
            raise ConfigError(f"obs_meta of the cohort at {self._writer.uri}: {error}") from error
        self._put(None, self._added(OBS_META, SUBJECT, replace(table, columns=columns), rows, "rows"))

    def remove_subjects(self, subjects: Iterable[str]) -> None:
        """Remove subjects, and their volumes in every collection.

        Raises
        ------
        ObsNotFoundError
            When one is not there.
        """
        gone = list(dict.fromkeys(str(s) for s in subjects))
        self._remove(None, gone)
        for name in self.record.collections:
            obs = self.read(name, [SUBJECT])
            self._remove(name, [str(i) for i in obs.index[obs[SUBJECT].isin(gone).to_numpy(bool)]])

    # collections

    def ensure_collection(
        self,
        name: str,
        kind: str,
        tile: Shape3,
        *,
        folder: str | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> CollectionState:
        """Create a collection unless it is there.

        Parameters
        ----------
        folder
            Where voxels of it were written already (see ``new_folder``).

        Raises
        ------
        ConfigError
            When one of the name is there with another kind, other tiles, or in another folder.
        """
        held = self.record.collections.get(check_name(name))
        if held is None:
            place = folder or new_folder(self._writer.uri, name, self._writer.run, self._writer.ctx)
            held = CollectionState(place, kind, tile, TableState(OBS_COLUMNS), provenance)
            tiles = join(self._writer.uri, held.folder, "tiles")
            create_table(tiles, TILES_INDEX, tile_columns(kind), self._writer.ctx)
            self._collections({**self.record.collections, name: held})
        if (held.kind, held.tile) != (kind, tile):
            sides = ",".join(map(str, held.tile)), ",".join(map(str, tile))
            raise ConfigError(
                f"collection {name!r} of {self._writer.uri} holds {held.kind}s in tiles {sides[0]}, not {kind}s in "
                f"tiles {sides[1]}"
            )
        if folder not in (None, held.folder):
            raise ConfigError(f"collection {name!r} of {self._writer.uri} was made by another process: run again")
        return held

    def rename_collection(self, name: str, to: str) -> None:
        """Rename a collection; its voxels stay where they are.

        Raises
        ------
        ObsNotFoundError
            When it is not there.
        ConfigError
            When the name is taken, or cannot be one.
        """
        self._collection(name)
        if check_name(to) in self.record.collections:
            raise ConfigError(f"the cohort at {self._writer.uri} has a collection {to!r} already")
        self._collections({(to if n == name else n): c for n, c in self.record.collections.items()})

    def remove_collection(self, name: str) -> None:
        """Remove a collection; subjects stay.

        Raises
        ------
        ObsNotFoundError
            When it is not there.
        """
        self._collection(name)
        self._collections({n: c for n, c in self.record.collections.items() if n != name})

    # volumes

    def add_volumes(self, name: str, rows: pd.DataFrame, extra: Sequence[Column] = ()) -> None:
        """Add rows to `obs` of a collection, indexed by ``obs_id``; their voxels are written.

        Parameters
        ----------
        rows
            Columns of ``OBS_COLUMNS``, and those of `extra`.
        extra
            Columns of the user's; those that the table lacks are added to it.

        Raises
        ------
        ConfigError
            When an ``obs_id`` is taken in any collection, or a subject is not in the cohort.
        """
        state, ids = self._collection(name), _ids(rows)
        for other, held in self.record.collections.items():
            if there := self._writer.present(held.obs, OBS_ID, ids):
                raise ConfigError(f"collection {other!r} of {self._writer.uri} holds {_some(there)} already")
        subjects = {str(s) for s in rows[SUBJECT]}
        if lost := subjects - self._writer.present(self.record.obs_meta, SUBJECT, subjects):
            raise ConfigError(f"the cohort at {self._writer.uri} has no subjects {_some(lost)}: add them first")
        mine = [c for c in state.obs.columns if c.name not in OWN]
        given = rows.reindex(columns=list(dict.fromkeys([*(c.name for c in mine), *(c.name for c in extra)])))
        fresh = [c for c in extra if c.name not in {m.name for m in mine}]
        theirs = [*_fitting(given, mine), *fresh]
        table = replace(state.obs, columns=(*OBS_COLUMNS, *theirs))
        rows = pd.concat([rows[[c.name for c in OBS_COLUMNS]], given], axis=1)
        self._put(name, self._added(join(state.folder, "obs"), OBS_ID, table, rows, "rows"))

    def remove_volumes(self, name: str, ids: Iterable[str]) -> None:
        """Remove volumes of a collection.

        Raises
        ------
        ObsNotFoundError
            When one is not there.
        """
        self._remove(name, list(dict.fromkeys(str(i) for i in ids)))

    # columns

    def update(self, name: str | None, rows: pd.DataFrame) -> None:
        """Write columns of rows that are there: of `obs` of a collection, or (None) of `obs_meta`.

        A column that is new is null in the rows that are not given. One that changes its kind must be given for
        every row.

        Raises
        ------
        ObsNotFoundError
            When a row is not there.
        ConfigError
            When a column is the store's own, or its values do not fit.
        """
        where, index, table = self._place(name)
        self._refuse_lost(where, table, index, _ids(rows))
        if taken := sorted(set(rows.columns) & (OWN if name is not None else {SUBJECT})):
            raise ConfigError(f"columns {taken} of {where} are the store's own: they cannot be written")
        held, columns = {c.name: c for c in table.columns}, []
        for column in infer_columns(rows):
            if column.name in held and not self._replaced(table, index, rows, column):
                (column,) = _fitting(rows[[column.name]], [held[column.name]])
            elif column.name in held:
                table = _without(table, [column.name])
            columns.append(column)
        new = {c.name: c for c in columns}
        kept = [new.pop(c.name, c) for c in table.columns]
        table = replace(table, columns=(*kept, *new.values()))
        self._put(name, self._added(self._folder_of(name), index, table, rows, "columns", columns))

    def widen(self, name: str, rows: pd.DataFrame, columns: Sequence[Column]) -> None:
        """Let a column of earlier volumes that was null, or whole, become what rows that will be added bring.

        Raises
        ------
        ConfigError
            When it can become neither.
        """
        held = {c.name: c for c in self._collection(name).obs.columns if c.name not in OWN}
        for column in columns:
            old = held.get(column.name)
            if old is None or old.kind == column.kind or rows[column.name].isna().all():
                continue
            before = self.read(name, [column.name])[column.name]
            if before.isna().all() or (old.kind, column.kind) == ("int", "float"):
                self.update(name, pd.DataFrame({column.name: typed(before, column.kind)}))
            else:
                check_columns(rows[[column.name]], [old])

    def drop_columns(self, name: str | None, names: Sequence[str]) -> None:
        """Drop columns of the user's: of `obs` of a collection, or (None) of `obs_meta`.

        Raises
        ------
        ConfigError
            When one is not there, or the store's own.
        """
        where, _, table = self._place(name)
        mine = [c.name for c in table.columns if name is None or c.name not in OWN]
        if odd := [n for n in names if n not in mine]:
            raise ConfigError(f"{where} has no columns {odd} that can be dropped; it has {mine}")
        self._put(name, _without(table, names))

    # tables

    def read(self, name: str | None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of `obs` of a collection, or (None) of `obs_meta`."""
        _, index, table = self._place(name)
        return read_state(self._writer.uri, table, index, self._writer.ctx, columns)

    def present(self, name: str | None, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that the table of a collection, or (None) of subjects, holds."""
        _, index, table = self._place(name)
        return self._writer.present(table, index, ids)

    def merge(self, *, whole: bool = False) -> None:
        """Merge the last segments of tables that have many; `whole`: all segments of all tables."""
        for name in (None, *self.record.collections):
            _, index, table = self._place(name)
            last = len(table.segments) if whole else due(table.segments)
            if last < 2 and not (whole and last and table.segments[0].kind != "rows"):
                continue
            kept, merged = table.segments[:-last], replace(table, segments=table.segments[-last:])
            rows = read_state(self._writer.uri, merged, index, self._writer.ctx)
            shorter = replace(table, segments=kept)
            self._put(name, self._added(self._folder_of(name), index, shorter, rows, "rows"))

    def _added(
        self,
        folder: str,
        index: str,
        table: TableState,
        rows: pd.DataFrame,
        kind: SegmentKind,
        columns: Sequence[Column] | None = None,
    ) -> TableState:
        if rows.empty and not len(rows.index):
            return table
        held = table.columns if columns is None else columns
        segment = self._writer.segment(folder, index, rows, held, kind)
        self.segments.append(segment)
        return replace(table, segments=(*table.segments, segment))

    def _remove(self, name: str | None, ids: list[str]) -> None:
        where, index, table = self._place(name)
        self._refuse_lost(where, table, index, ids)
        gone = pd.DataFrame(index=pd.Index(ids, dtype=object))
        self._put(name, self._added(self._folder_of(name), index, table, gone, "removed"))

    def _replaced(self, table: TableState, index: str, rows: pd.DataFrame, column: Column) -> bool:
        """Whether a column is written for every row, so that it may change its kind."""
        every = read_state(self._writer.uri, table, index, self._writer.ctx, []).index
        return set(map(str, every)) == set(_ids(rows))

    def _refuse_lost(self, where: str, table: TableState, index: str, ids: Sequence[str]) -> None:
        if lost := set(ids) - self._writer.present(table, index, ids):
            raise ObsNotFoundError(f"{where} has no {_some(lost)}")

    def _place(self, name: str | None) -> tuple[str, str, TableState]:
        if name is None:
            return f"obs_meta of the cohort at {self._writer.uri}", SUBJECT, self.record.obs_meta
        return f"collection {name!r} of the cohort at {self._writer.uri}", OBS_ID, self._collection(name).obs

    def _folder_of(self, name: str | None) -> str:
        return OBS_META if name is None else join(self._collection(name).folder, "obs")

    def _collection(self, name: str) -> CollectionState:
        if name not in self.record.collections:
            held = ", ".join(self.record.collections) or "none"
            raise ObsNotFoundError(f"the cohort at {self._writer.uri} has no collection {name!r}; it has: {held}")
        return self.record.collections[name]

    def _put(self, name: str | None, table: TableState) -> None:
        if name is None:
            self.record = replace(self.record, obs_meta=table)
        else:
            changed = replace(self._collection(name), obs=table)
            self._collections({**self.record.collections, name: changed})

    def _collections(self, collections: dict[str, CollectionState]) -> None:
        self.record = replace(self.record, collections=dict(sorted(collections.items())))


def new_folder(uri: str, name: str, run: str, ctx: tiledb.Ctx) -> str:
    """Folder for a new collection: another one where something of this name was, or was begun."""
    taken = tiledb.VFS(ctx=ctx).is_dir(join(uri, name, "tiles"))
    return f"{name}-{run}" if taken else name


def _fitting(rows: pd.DataFrame, held: Sequence[Column]) -> list[Column]:
    return check_columns(rows[[c.name for c in held]], held)


def _without(table: TableState, names: Sequence[str]) -> TableState:
    """Table without some columns: segments keep them, and are not asked for them again."""
    kept = tuple(c for c in table.columns if c.name not in names)
    segments = [replace(s, names=tuple(n for n in s.names if n not in names)) for s in table.segments]
    return replace(table, columns=kept, segments=tuple(s for s in segments if s.names or s.kind != "columns"))


def _ids(rows: pd.DataFrame) -> list[str]:
    ids = [str(i) for i in rows.index]
    if len(set(ids)) < len(ids):
        raise ConfigError(f"rows are given twice: {_some({i for i in ids if ids.count(i) > 1})}")
    return ids


def _some(names: Iterable[str]) -> str:
    named = sorted(names)
    return f"{named[:10]}{' and more' if len(named) > 10 else ''}"
