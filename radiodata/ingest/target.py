"""The tables and groups that one ingest writes to: checked before, created, and filled subject by subject."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import tiledb

from radiodata.errors import ConfigError, IngestError, Problem
from radiodata.store import layout
from radiodata.store.context import context
from radiodata.store.obs import IMAGE_TILES, LABEL_TILES, OBS_COLUMNS, OBS_ID, RUN, SUBJECT, TILES_INDEX
from radiodata.store.table import (
    Column,
    check_columns,
    create_table,
    infer_columns,
    read_columns,
    read_table,
    write_rows,
)
from radiodata.store.writer import consolidate_metadata, consolidate_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from radiodata.ingest.discover import SubjectFiles
    from radiodata.ingest.volume import Written
    from radiodata.store.config import ReadConfig, StoreConfig


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

    @property
    def meta_uri(self) -> str:
        """Table of subjects."""
        return layout.join(self.uri, layout.OBS_META)

    def collection(self, name: str) -> str:
        """URI of a collection."""
        return layout.join(self.uri, name)

    def check(self, subjects: Sequence[SubjectFiles]) -> tuple[list[SubjectFiles], list[str]]:
        """Subjects that the cohort lacks, and ids of those that it holds already; writes nothing.

        Raises
        ------
        ConfigError
            When collections or columns are at odds with those of the cohort.
        IngestError
            When the cohort holds a subject with other files.
        """
        there = layout.read_root(self.uri, self.ctx)
        for name in (n for n in self.kinds if n in there):
            self._check_collection(name, self.collection(name))
        held = [c for c in read_columns(self.meta_uri, self.ctx) if c.name != RUN]
        try:
            check_columns(pd.DataFrame() if self.table is None else self.table, held)
        except ConfigError as error:
            raise ConfigError(f"obs_meta of the cohort at {self.uri}: {error}") from error
        present = set(read_table(self.meta_uri, SUBJECT, self.ctx, [RUN]).index)
        known = [s for s in subjects if s.subject in present]
        problems = []
        for name in self.kinds if known else ():
            hashes = self._hashes(name) if name in there else {}
            problems += [p for s in known if (p := _changed(s, name, hashes.get(s.subject)))]
        if problems:
            raise IngestError(f"nothing was written to {self.uri}", problems)
        return [s for s in subjects if s.subject not in present], [s.subject for s in known]

    def create(self) -> None:
        """Create what is not there yet."""
        if not layout.group_exists(self.uri, self.ctx):
            layout.create_whole(self.uri, self._create_root, self.ctx)
        self._create_root(self.uri)

    def _create_root(self, uri: str) -> None:
        layout.create_root(uri, self.ctx)
        meta = layout.join(uri, layout.OBS_META)
        if not tiledb.array_exists(meta, ctx=self.ctx):
            create_table(meta, SUBJECT, self._meta_columns(), self.ctx)
        layout.add_member(uri, layout.OBS_META, self.ctx)
        for name in self.kinds:
            collection = layout.join(uri, name)
            if not layout.group_exists(collection, self.ctx):
                layout.create_whole(collection, partial(self._create_collection, name), self.ctx)
            self._create_collection(name, collection)
            self._check_collection(name, collection)
            layout.add_member(uri, name, self.ctx)

    def _create_collection(self, name: str, uri: str) -> None:
        kind = self.kinds[name]
        layout.create_group(uri, {layout.KIND_KEY: kind, layout.TILE_KEY: self._tile}, self.ctx)
        for part, index, columns in (("obs", OBS_ID, OBS_COLUMNS), ("tiles", TILES_INDEX, _tile_columns(kind))):
            if not tiledb.array_exists(layout.join(uri, part), ctx=self.ctx):
                create_table(layout.join(uri, part), index, columns, self.ctx)

    def disown(self, subjects: Sequence[SubjectFiles]) -> None:
        """Take from `subjects` the rows that a dead run wrote for them in collections that are not written now.

        Its subject rows are missing; with ours, volumes whose voxels were cleaned away would come to light.
        """
        ids = [s.subject for s in subjects]
        for name in set(layout.read_root(self.uri, self.ctx)) - set(self.kinds):
            uri = layout.join(self.collection(name), "obs")
            if read_table(uri, OBS_ID, self.ctx, [SUBJECT])[SUBJECT].isin(ids).any():
                obs = read_table(uri, OBS_ID, self.ctx)
                rows = obs[obs[SUBJECT].isin(ids).to_numpy(bool)].assign(**{SUBJECT: None})
                write_rows(uri, rows, OBS_COLUMNS, self.ctx)

    def commit(self, batch: Sequence[tuple[str, list[Written]]], run: str) -> None:
        """Write rows of whole subjects: tile statistics, volumes, and last the subjects, who make them exist."""
        for name, kind in self.kinds.items():
            volumes = [w for _, written in batch for w in written if w.collection == name]
            tiles = pd.DataFrame([w.tiles for w in volumes], index=[w.key for w in volumes])
            obs = pd.DataFrame([w.obs for w in volumes], index=[w.obs_id for w in volumes])
            write_rows(layout.join(self.collection(name), "tiles"), tiles, _tile_columns(kind), self.ctx)
            write_rows(layout.join(self.collection(name), "obs"), obs, OBS_COLUMNS, self.ctx)
        ids = [subject for subject, _ in batch]
        rows = self.table.loc[ids].copy() if self.table is not None else pd.DataFrame(index=ids)
        rows[RUN] = run
        write_rows(self.meta_uri, rows, read_columns(self.meta_uri, self.ctx), self.ctx)

    def optimize(self, run: str) -> None:
        """Merge what many small writes left: fragment metadata of the shards, fragments of the tables."""
        vfs = tiledb.VFS(ctx=self.ctx)
        consolidate_table(self.meta_uri, self.ctx)
        for name in self.kinds:
            voxels = layout.join(self.collection(name), layout.VOXELS)
            shards = vfs.ls(voxels) if vfs.is_dir(voxels) else []
            consolidate_metadata([s for s in shards if f"/{run}-" in s], self.ctx)
            for part in ("obs", "tiles"):
                consolidate_table(layout.join(self.collection(name), part), self.ctx)

    def _meta_columns(self) -> list[Column]:
        return [*(infer_columns(self.table) if self.table is not None else []), Column(RUN, "string")]

    def _hashes(self, name: str) -> dict[str, str]:
        obs = read_table(layout.join(self.collection(name), "obs"), OBS_ID, self.ctx, [SUBJECT, "source_hash"])
        return dict(zip(obs[SUBJECT], obs["source_hash"], strict=True))

    @property
    def _tile(self) -> str:
        return ",".join(str(t) for t in self.config.tile)

    def _check_collection(self, name: str, uri: str) -> None:
        with tiledb.Group(uri, "r", ctx=self.ctx) as group:
            kind, tile = (group.meta[layout.KIND_KEY], group.meta[layout.TILE_KEY])
        if (kind, tile) != (self.kinds[name], self._tile):
            raise ConfigError(
                f"collection {name!r} of {self.uri} holds {kind}s in tiles {tile}, not {self.kinds[name]}s in "
                f"tiles {self._tile}"
            )


def _tile_columns(kind: str) -> Sequence[Column]:
    return LABEL_TILES if kind == "label" else IMAGE_TILES


def _changed(subject: SubjectFiles, name: str, held: str | None) -> Problem | None:
    path = subject.files[name]
    if held is None:
        return Problem(subject.subject, f"is in the cohort without a volume in {name!r}: it cannot be added later yet")
    found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    if found == held:
        return None
    return Problem(str(path), f"subject {subject.subject!r} is in the cohort with another file in {name!r}")
