"""Ingestion of NIfTI files: check all headers, then write subject by subject, rows last."""

from __future__ import annotations

import hashlib
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
import tiledb

from radiodata.errors import ConfigError, IngestError, Problem, RadiodataError
from radiodata.ingest.discover import SubjectFiles, check_headers, group_subjects, is_label_name
from radiodata.ingest.runs import begin_run, clean_abandoned, end_run
from radiodata.ingest.volume import Slot, Written, write_file
from radiodata.store import layout
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.context import context
from radiodata.store.obs import (
    IMAGE_TILES,
    LABEL_TILES,
    OBS_COLUMNS,
    OBS_ID,
    RUN,
    SUBJECT,
    TILES_INDEX,
)
from radiodata.store.table import Column, create_table, infer_columns, read_table, write_rows
from radiodata.store.writer import consolidate_metadata, consolidate_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from radiodata.ingest.discover import Files, SubjectRule
    from radiodata.store.config import TilingLike

_BATCH = 16


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did: subjects added, and those that were there already."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)


def ingest_niftis(
    uri: str,
    images: Mapping[str, Files],
    *,
    obs_meta: pd.DataFrame | None = None,
    validate_alignment: bool = True,
    subject_id: SubjectRule = None,
    tiling: TilingLike = "isotropic",
    config: StoreConfig | None = None,
    labels: Collection[str] | None = None,
    workers: int = 2,
    exist: Literal["error", "continue"] = "continue",
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Ingest NIfTI files into the cohort at `uri`.

    Every header is read before anything is written: files that are not NIfTI, volumes that do not align,
    ids that occur twice and subjects that lack a file are refused together. A file that turns out damaged
    when it is read whole is refused with its subject; the other subjects are kept, whole, and a rerun goes
    on from there.

    Parameters
    ----------
    uri
        Where the cohort is, or is to be.
    images
        Collection name to a glob, a folder, or a list of paths: ``{"CT": "imagesTr/*.nii.gz", "seg": "labelsTr"}``.
    obs_meta
        One row a subject, indexed by subject id (or with a column ``obs_subject_id``).
    validate_alignment
        Demand that all volumes of a subject have one shape and one affine (0.05 mm at the corners).
    subject_id
        How a path gives its subject id: a regular expression or a callable; see ``subject_of``.
    tiling
        See ``StoreConfig``; `config`, where given, says everything about the layout.
    labels
        Collections that hold labels; by default those named as labels are (``seg``, ``label``, ``mask``).
    workers
        Threads that read, compress and write.
    exist
        ``"error"`` refuses a cohort that is there; ``"continue"`` adds to it and passes over files that it
        holds already, by content.
    progress
        Called with (subjects done, subjects in all).

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When arguments are at odds with each other or with the cohort.
    """
    config = replace(config or StoreConfig(), tiling=config.tiling if config else tiling)
    read = ReadConfig()
    ctx = context(read)
    kinds = _kinds(images, labels)
    table = _table(obs_meta)
    subjects, problems = group_subjects(images, subject_id, table)
    there = layout.group_exists(uri, ctx)
    if there and exist == "error":
        raise ConfigError(f"a cohort exists at {uri}: choose another URI, or add to it with `radiodata ingest`")
    if not problems:
        problems = check_headers(subjects, aligned=validate_alignment, workers=workers)
    if problems:
        raise IngestError(f"nothing was written to {uri}", problems)
    store = _Store(uri, kinds, config, read)
    if there:
        clean_abandoned(uri, ctx)
    store.create(table)
    todo, present = store.missing(subjects)
    run = begin_run(uri, ctx)
    try:
        added, problems = _write_all(store, run, todo, table, workers, progress)
        store.optimize(run)
    finally:
        end_run(uri, run, ctx)
    if problems:
        raise IngestError(
            f"{len(added)} subjects were ingested into {uri}, {len(todo) - len(added)} were refused whole",
            problems,
        )
    return IngestReport(added, present)


def _kinds(images: Mapping[str, Files], labels: Collection[str] | None) -> dict[str, str]:
    unknown = sorted(set(labels or ()) - set(images))
    if unknown or not images:
        raise ConfigError(f"labels {unknown} are no collections" if unknown else "no collection was given")
    chosen = labels if labels is not None else [n for n in images if is_label_name(n)]
    return {layout.check_name(n): "label" if n in chosen else "image" for n in images}


def _table(obs_meta: pd.DataFrame | None) -> pd.DataFrame | None:
    if obs_meta is None:
        return None
    frame = obs_meta.set_index(SUBJECT) if SUBJECT in obs_meta.columns else obs_meta.copy()
    frame.index = frame.index.astype(str)
    twice = sorted(set(frame.index[frame.index.duplicated()]))
    if twice:
        raise ConfigError(f"obs_meta has more than one row for {', '.join(twice[:10])}: one row a subject")
    if RUN in frame.columns:
        raise ConfigError(f"obs_meta has a column {RUN!r}, which the store keeps for itself: rename it")
    return frame


def _meta_columns(table: pd.DataFrame | None) -> list[Column]:
    return [*(infer_columns(table) if table is not None else []), Column(RUN, "string")]


@dataclass(frozen=True)
class _Store:
    """The tables and groups that one ingest writes to."""

    uri: str
    kinds: dict[str, str]
    config: StoreConfig
    read: ReadConfig

    def collection(self, name: str) -> str:
        return layout.join(self.uri, name)

    def create(self, table: pd.DataFrame | None) -> None:
        ctx = context(self.read)
        layout.create_root(self.uri, ctx)
        meta_uri = layout.join(self.uri, layout.OBS_META)
        columns = _meta_columns(table)
        if not tiledb.array_exists(meta_uri, ctx=ctx):
            create_table(meta_uri, SUBJECT, columns, ctx)
            layout.add_member(self.uri, layout.OBS_META, ctx)
        self._check_columns(meta_uri, columns, ctx)
        for name, kind in self.kinds.items():
            self._create_collection(name, kind, ctx)

    def _check_columns(self, meta_uri: str, columns: Sequence[Column], ctx: tiledb.Ctx) -> None:
        schema = tiledb.ArraySchema.load(meta_uri, ctx=ctx)
        held, given = {schema.attr(i).name for i in range(schema.nattr)}, {c.name for c in columns}
        if held != given:
            raise ConfigError(
                f"obs_meta of the cohort at {self.uri} has columns {sorted(held - {RUN})}, the table given has "
                f"{sorted(given - {RUN})}: they must be the same"
            )

    def _create_collection(self, name: str, kind: str, ctx: tiledb.Ctx) -> None:
        uri, tile = self.collection(name), ",".join(str(t) for t in self.config.tile)
        layout.create_group(uri, {layout.KIND_KEY: kind, layout.TILE_KEY: tile}, ctx)
        with tiledb.Group(uri, "r", ctx=ctx) as group:
            held = (group.meta[layout.KIND_KEY], group.meta[layout.TILE_KEY])
        if held != (kind, tile):
            raise ConfigError(
                f"collection {name!r} of {self.uri} holds {held[0]}s in tiles {held[1]}, not {kind}s in tiles {tile}"
            )
        tiles = LABEL_TILES if kind == "label" else IMAGE_TILES
        for part, index, columns in (("obs", OBS_ID, OBS_COLUMNS), ("tiles", TILES_INDEX, tiles)):
            if not tiledb.array_exists(layout.join(uri, part), ctx=ctx):
                create_table(layout.join(uri, part), index, columns, ctx)
        layout.add_member(self.uri, name, ctx)

    def missing(self, subjects: Sequence[SubjectFiles]) -> tuple[list[SubjectFiles], list[str]]:
        """Subjects that are not in the cohort yet, and those that are; refuses changed files."""
        ctx = context(self.read)
        held = set(read_table(layout.join(self.uri, layout.OBS_META), SUBJECT, ctx, [RUN]).index)
        known = [s for s in subjects if s.subject in held]
        problems = []
        for name in self.kinds if known else ():
            obs = read_table(layout.join(self.collection(name), "obs"), OBS_ID, ctx, [SUBJECT, "source_hash"])
            hashes = dict(zip(obs[SUBJECT], obs["source_hash"], strict=True))
            problems += [p for s in known if (p := _changed(s, name, hashes.get(s.subject)))]
        if problems:
            raise IngestError(f"nothing was written to {self.uri}", problems)
        return [s for s in subjects if s.subject not in held], [s.subject for s in known]

    def commit(self, batch: Sequence[tuple[str, list[Written]]], run: str, table: pd.DataFrame | None) -> None:
        """Write rows of whole subjects: tile statistics, volumes, and last the subjects, who make them exist."""
        ctx = context(self.read)
        for name, kind in self.kinds.items():
            volumes = [w for _, written in batch for w in written if w.collection == name]
            tiles = pd.DataFrame([w.tiles for w in volumes], index=[w.key for w in volumes])
            obs = pd.DataFrame([w.obs for w in volumes], index=[w.obs_id for w in volumes])
            columns = LABEL_TILES if kind == "label" else IMAGE_TILES
            write_rows(layout.join(self.collection(name), "tiles"), tiles, columns, ctx)
            write_rows(layout.join(self.collection(name), "obs"), obs, OBS_COLUMNS, ctx)
        ids = [subject for subject, _ in batch]
        rows = table.loc[ids].copy() if table is not None else pd.DataFrame(index=ids)
        rows[RUN] = run
        write_rows(layout.join(self.uri, layout.OBS_META), rows, _meta_columns(table), ctx)

    def optimize(self, run: str) -> None:
        """Merge what many small writes left: fragment metadata of the shards, fragments of the tables."""
        ctx = context(self.read)
        vfs = tiledb.VFS(ctx=ctx)
        consolidate_table(layout.join(self.uri, layout.OBS_META), ctx)
        for name in self.kinds:
            uri = self.collection(name)
            voxels = layout.join(uri, layout.VOXELS)
            shards = vfs.ls(voxels) if vfs.is_dir(voxels) else []
            consolidate_metadata([s for s in shards if f"/{run}-" in s], ctx)
            for part in ("obs", "tiles"):
                consolidate_table(layout.join(uri, part), ctx)


def _changed(subject: SubjectFiles, name: str, held: str | None) -> Problem | None:
    path = subject.files[name]
    if held is None:
        return Problem(subject.subject, f"is in the cohort without a volume in {name!r}: it cannot be added later yet")
    found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    if found == held:
        return None
    return Problem(str(path), f"subject {subject.subject!r} is in the cohort with another file in {name!r}")


def _write_all(
    store: _Store,
    run: str,
    subjects: Sequence[SubjectFiles],
    table: pd.DataFrame | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[str], list[Problem]]:
    added: list[str] = []
    problems: list[Problem] = []
    batch: list[tuple[str, list[Written]]] = []
    for done, (subject, outcome) in enumerate(_written(store, run, subjects, workers), 1):
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            batch.append((subject, outcome))
        if batch and (len(batch) >= _BATCH or done == len(subjects)):
            store.commit(batch, run, table)
            added += [s for s, _ in batch]
            batch = []
        if progress is not None:
            progress(done, len(subjects))
    return added, problems


def _written(
    store: _Store, run: str, subjects: Sequence[SubjectFiles], workers: int
) -> Iterator[tuple[str, list[Written] | Problem]]:
    """Write subjects in threads, at most two waiting a worker, and give them as they are done."""
    waiting = iter(enumerate(subjects))
    running: set[Future[tuple[str, list[Written] | Problem]]] = set()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while True:
            for index, subject in waiting:
                running.add(pool.submit(_write_subject, store, run, index, subject))
                if len(running) >= 2 * workers:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def _write_subject(store: _Store, run: str, index: int, subject: SubjectFiles) -> tuple[str, list[Written] | Problem]:
    written = []
    for name, path in subject.files.items():
        slot = Slot(name, store.collection(name), store.kinds[name], run, index)
        try:
            written.append(write_file(path, subject.subject, slot, store.config, store.read))
        except RadiodataError as error:
            return subject.subject, Problem(str(path), str(error))
    return subject.subject, written
