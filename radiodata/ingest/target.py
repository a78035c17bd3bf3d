"""The cohort that one ingest writes to: checked before, created, and filled by commits of whole subjects."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import tiledb

from radiodata.errors import ConfigError, Problem, RadiodataError
from radiodata.ingest.preparing import Preparation
from radiodata.store import commits, layout
from radiodata.store.columns import check_columns, infer_columns
from radiodata.store.context import context
from radiodata.store.draft import new_folder
from radiodata.store.obs import OBS_COLUMNS, OBS_ID, SUBJECT, tile_columns
from radiodata.store.segments import read_state
from radiodata.store.table import write_rows
from radiodata.store.writer import consolidate_metadata, consolidate_table
from radiodata.store.writing import prune

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from radiodata.ingest.items import Item, Subject
    from radiodata.ingest.volume import Written
    from radiodata.store.columns import Column
    from radiodata.store.config import ReadConfig, StoreConfig
    from radiodata.store.draft import Draft
    from radiodata.store.record import Record
    from radiodata.store.writing import Writer


_DTYPES: dict[str, Any] = {
    "int": "Int64",
    "float": "float64",
    "bool": "boolean",
    "string": "string",
    "datetime": "datetime64[us]",
}


@dataclass(frozen=True)
class Target:
    """A cohort that is written to.

    Attributes
    ----------
    kinds
        Collection name to ``"image"`` or ``"label"``.
    table
        Rows for `obs_meta`, indexed by subject, where the caller gave some.
    preparation
        What is done to volumes on the way in.
    columns
        Of `obs`, beside the store's own, by collection.
    """

    uri: str
    kinds: dict[str, str]
    table: pd.DataFrame | None
    config: StoreConfig
    read: ReadConfig
    preparation: Preparation = field(default_factory=Preparation)
    columns: dict[str, list[Column]] = field(default_factory=dict)

    @property
    def provenance(self) -> dict[str, Any] | None:
        """What its collections are made of, where volumes are changed on the way in."""
        return {"steps": self.preparation.steps, "source": {"files": "ingested"}} if self.preparation else None

    @property
    def ctx(self) -> tiledb.Ctx:
        """TileDB context of this process."""
        return context(self.read)

    def latest(self) -> Record | None:
        """The cohort as it is, or None where there is none.

        Raises
        ------
        FormatVersionError
            When its format is not known.
        """
        return commits.latest(self.uri, self.read) if layout.check_root(self.uri, self.ctx) else None

    def check(
        self, subjects: Sequence[Subject], there: Record, workers: int
    ) -> tuple[list[Subject], list[str], dict[str, list[Problem]]]:
        """Say what the cohort lacks; writes nothing.

        Returns
        -------
        todo
            Subjects with the volumes that the cohort lacks.
        present
            Ids of subjects that it holds whole already.
        problems
            By subject: files that are not those that it holds.

        Raises
        ------
        ConfigError
            When collections or columns are at odds with those of the cohort.
        """
        for name in (n for n in self.kinds if n in there.collections):
            self._check_collection(name, there)
        present = set(read_state(self.uri, there.obs_meta, SUBJECT, self.ctx, []).index)
        if self.table is not None or any(s.subject not in present for s in subjects):
            self._check_table(there)
        held = {name: self._held(name, there) for name in self.kinds}
        with ThreadPoolExecutor(workers) as pool:  # what is there is read and hashed again
            found = list(pool.map(lambda s: _compared(s, held), subjects))
        problems = {s.subject: why for s, (_, why) in zip(subjects, found, strict=True) if why}
        lacking = [replace(s, items=lacks) for s, (lacks, why) in zip(subjects, found, strict=True) if not why]
        whole = [s.subject for s in lacking if not s.items and s.subject in present]
        return [s for s in lacking if s.items or s.subject not in present], whole, problems

    def create(self) -> None:
        """Create the root of the cohort unless it is there."""
        if not layout.group_exists(self.uri, self.ctx):
            layout.create_whole(self.uri, lambda uri: layout.create_root(uri, self.ctx), self.ctx)
        layout.create_root(self.uri, self.ctx)

    def folders(self, writer: Writer, *, begin: bool) -> dict[str, str]:
        """Folder of each collection, below the cohort's URI; `begin`: create those that are not there, now."""
        if begin:
            record: Record | None = writer.commit("create", lambda draft: self._prepare(draft, {}))
        else:
            record = commits.latest(self.uri, self.read)
        held = {name: c.folder for name, c in record.collections.items()} if record else {}
        return {n: held.get(n) or new_folder(self.uri, n, writer.run, self.ctx) for n in self.kinds}

    def _prepare(self, draft: Draft, folders: dict[str, str]) -> None:
        """Create the collections that are not there, and the columns of a table of subjects that is new."""
        for name, kind in self.kinds.items():
            folder = folders.get(name)
            draft.ensure_collection(name, kind, self.config.tile, folder=folder, provenance=self.provenance)
        if self.table is not None:
            draft.begin_subjects(self.table)

    def add(self, draft: Draft, folders: dict[str, str], batch: Sequence[tuple[str, list[Written]]]) -> None:
        """Add whole subjects: rows of those that are not there, and rows of their volumes, whose voxels are written."""
        self._prepare(draft, folders)
        held = draft.present(None, [subject for subject, _ in batch])
        new = [subject for subject, _ in batch if subject not in held]
        if new:
            bare = pd.DataFrame(index=pd.Index(new, dtype=object))
            draft.add_subjects(self.table.loc[new] if self.table is not None else bare)
        for name, kind in self.kinds.items():
            volumes = [w for _, written in batch for w in written if w.collection == name]
            if volumes:
                tiles = pd.DataFrame([w.tiles for w in volumes], index=[w.key for w in volumes])
                write_rows(layout.join(self.uri, folders[name], "tiles"), tiles, tile_columns(kind), self.ctx)
                ids = [w.obs_id for w in volumes]
                obs = pd.DataFrame([w.obs for w in volumes], index=ids)[[c.name for c in OBS_COLUMNS]]
                columns = self.columns.get(name, [])
                more = typed_frame([w.columns for w in volumes], ids, columns)
                draft.widen(name, more, columns)
                draft.add_volumes(name, pd.concat([obs, more], axis=1), columns)

    def optimize(self, writer: Writer) -> None:
        """Merge what many small writes left: fragment metadata of the shards, fragments of the tile tables."""
        prune(writer)
        vfs = tiledb.VFS(ctx=self.ctx)
        record = commits.latest(self.uri, self.read)
        for name in self.kinds if record else ():
            folder = layout.join(self.uri, record.collections[name].folder)  # type: ignore[union-attr]
            voxels = layout.join(folder, layout.VOXELS)
            shards = vfs.ls(voxels) if vfs.is_dir(voxels) else []
            consolidate_metadata([s for s in shards if f"/{writer.run}-" in s], self.ctx)
            consolidate_table(layout.join(folder, "tiles"), context(self.read, large=True))

    def _check_collection(self, name: str, there: Record) -> None:
        held = there.collections[name]
        if (held.kind, held.tile) != (self.kinds[name], self.config.tile):
            tiles = ",".join(map(str, held.tile)), ",".join(map(str, self.config.tile))
            raise ConfigError(
                f"collection {name!r} of {self.uri} holds {held.kind}s in tiles {tiles[0]}, not {self.kinds[name]}s in "
                f"tiles {tiles[1]}"
            )

        steps = (held.provenance or {}).get("steps", [])
        if steps != self.preparation.steps:
            told = [", ".join(names) or "as they are" for names in (steps, self.preparation.steps)]
            raise ConfigError(
                f"collection {name!r} of {self.uri} holds volumes prepared otherwise ({told[0]}; now {told[1]}): say "
                "the same, or give the collection another name"
            )

    def _check_table(self, there: Record) -> None:
        if not there.obs_meta.columns and not there.obs_meta.segments:
            return
        try:
            check_columns(pd.DataFrame() if self.table is None else self.table, there.obs_meta.columns)
        except ConfigError as error:
            raise ConfigError(f"obs_meta of the cohort at {self.uri}: {error}") from error

    def _held(self, name: str, there: Record) -> _Held:
        """Hashes of the sources of a collection."""
        held = _Held()
        if name in there.collections:
            obs = read_state(self.uri, there.collections[name].obs, OBS_ID, self.ctx, [SUBJECT, "source_hash"])
            for obs_id, subject, digest in zip(obs.index, obs[SUBJECT], obs["source_hash"], strict=True):
                held.by_id[str(obs_id)] = str(digest)
                held.by_subject[str(subject)].add(str(digest))
        return held


@dataclass(frozen=True)
class _Held:
    by_id: dict[str, str] = field(default_factory=dict)
    by_subject: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def of(self, subject: str, item: Item) -> set[str]:
        """Hashes of what the cohort holds in the place of a volume."""
        if item.alone:
            return self.by_subject.get(subject, set())
        return {self.by_id[item.obs_id]} if item.obs_id in self.by_id else set()


def _compared(subject: Subject, held: dict[str, _Held]) -> tuple[tuple[Item, ...], list[Problem]]:
    """Volumes of a subject that the cohort lacks, and those that are not as it holds them."""
    lacking: list[Item] = []
    problems = []
    for item in subject.items:
        hashes = held[item.collection].of(subject.subject, item)
        if not hashes:
            lacking.append(item)
            continue
        try:
            same = item.source.digest() in hashes
        except RadiodataError as error:
            problems.append(Problem(item.source.where, str(error)))
        else:
            if not same:
                why = f"subject {subject.subject!r} is in the cohort with another file in {item.collection!r}"
                problems.append(Problem(item.source.where, why))
    return tuple(lacking), problems


def typed_frame(rows: Sequence[Mapping[str, Any]], ids: Sequence[str], columns: Sequence[Column]) -> pd.DataFrame:
    """Frame of some columns, of rows that may lack some."""
    made = {c.name: pd.Series([row.get(c.name) for row in rows], dtype=_DTYPES[c.kind]).array for c in columns}
    return pd.DataFrame(made, index=pd.Index(list(ids), dtype=object))


def columns_of(subjects: Sequence[Subject]) -> dict[str, list[Column]]:
    """Columns that volumes bring beside the store's own, by collection, of a kind that holds the values of all.

    Raises
    ------
    ConfigError
        When values of one column do not fit together.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for subject in subjects:
        for item in subject.items:
            rows.setdefault(item.collection, []).append(item.columns)
    return {name: infer_columns(pd.DataFrame(given).infer_objects()) for name, given in rows.items() if any(given)}
