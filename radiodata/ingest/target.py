"""The cohort that one ingest writes to: checked before, created, and filled by commits of whole subjects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
import tiledb

from radiodata.errors import ConfigError, IngestError, Problem
from radiodata.store import commits, layout
from radiodata.store.columns import check_columns
from radiodata.store.context import context
from radiodata.store.draft import new_folder
from radiodata.store.obs import OBS_COLUMNS, OBS_ID, SUBJECT, tile_columns
from radiodata.store.segments import read_state
from radiodata.store.table import write_rows
from radiodata.store.writer import consolidate_metadata, consolidate_table
from radiodata.store.writing import prune

if TYPE_CHECKING:
    from collections.abc import Sequence

    from radiodata.ingest.discover import SubjectFiles
    from radiodata.ingest.volume import Written
    from radiodata.store.config import ReadConfig, StoreConfig
    from radiodata.store.draft import Draft
    from radiodata.store.record import Record
    from radiodata.store.writing import Writer


@dataclass(frozen=True)
class Target:
    """A cohort that is written to.

    Attributes
    ----------
    kinds
        Collection name to ``"image"`` or ``"label"``.
    table
        Rows for `obs_meta`, indexed by subject, where the caller gave some.
    """

    uri: str
    kinds: dict[str, str]
    table: pd.DataFrame | None
    config: StoreConfig
    read: ReadConfig

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

    def check(self, subjects: Sequence[SubjectFiles], there: Record) -> tuple[list[SubjectFiles], list[str]]:
        """Files that the cohort lacks, by subject, and ids of subjects that it holds whole already; writes nothing.

        Raises
        ------
        ConfigError
            When collections or columns are at odds with those of the cohort.
        IngestError
            When the cohort holds a subject with other files.
        """
        for name in (n for n in self.kinds if n in there.collections):
            self._check_collection(name, there)
        present = set(read_state(self.uri, there.obs_meta, SUBJECT, self.ctx, []).index)
        if self.table is not None or any(s.subject not in present for s in subjects):
            self._check_table(there)
        hashes = {name: self._hashes(name, there) for name in self.kinds}
        problems = [p for s in subjects for n in s.files if (p := _changed(s, n, hashes[n].get(s.subject)))]
        if problems:
            raise IngestError(f"nothing was written to {self.uri}", problems)
        lacking = [replace(s, files={n: f for n, f in s.files.items() if s.subject not in hashes[n]}) for s in subjects]
        whole = [s.subject for s in lacking if not s.files and s.subject in present]
        return [s for s in lacking if s.files or s.subject not in present], whole

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
            draft.ensure_collection(name, kind, self.config.tile, folder=folders.get(name))
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
                obs = pd.DataFrame([w.obs for w in volumes], index=[w.obs_id for w in volumes])
                draft.add_volumes(name, obs[[c.name for c in OBS_COLUMNS]])

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
            consolidate_table(layout.join(folder, "tiles"), self.ctx)

    def _check_collection(self, name: str, there: Record) -> None:
        held = there.collections[name]
        if (held.kind, held.tile) != (self.kinds[name], self.config.tile):
            tiles = ",".join(map(str, held.tile)), ",".join(map(str, self.config.tile))
            raise ConfigError(
                f"collection {name!r} of {self.uri} holds {held.kind}s in tiles {tiles[0]}, not {self.kinds[name]}s in "
                f"tiles {tiles[1]}"
            )

    def _check_table(self, there: Record) -> None:
        if not there.obs_meta.columns and not there.obs_meta.segments:
            return
        try:
            check_columns(pd.DataFrame() if self.table is None else self.table, there.obs_meta.columns)
        except ConfigError as error:
            raise ConfigError(f"obs_meta of the cohort at {self.uri}: {error}") from error

    def _hashes(self, name: str, there: Record) -> dict[str, str]:
        """Hash of the file of each subject in a collection."""
        if name not in there.collections:
            return {}
        obs = read_state(self.uri, there.collections[name].obs, OBS_ID, self.ctx, [SUBJECT, "source_hash"])
        return dict(zip(obs[SUBJECT], obs["source_hash"], strict=True))


def _changed(subject: SubjectFiles, name: str, held: str | None) -> Problem | None:
    if held is None:
        return None
    path = subject.files[name]
    found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    if found == held:
        return None
    return Problem(str(path), f"subject {subject.subject!r} is in the cohort with another file in {name!r}")
