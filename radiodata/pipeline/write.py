"""Writing derived volumes: a collection with geometry, columns and provenance, whole volumes at a time."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.volume import Slot
from radiodata.pipeline.running import Each, Take, Together
from radiodata.pipeline.saving import Made, Place, Save, derived_id
from radiodata.pipeline.stages import ended
from radiodata.store import commits, layout
from radiodata.store.columns import infer_columns
from radiodata.store.context import context
from radiodata.store.obs import OBS_COLUMNS, OBS_ID, SUBJECT, tile_columns
from radiodata.store.segments import read_state
from radiodata.store.table import write_rows
from radiodata.store.writer import consolidate_metadata, consolidate_table
from radiodata.store.writing import Batches, Writer, prune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from radiodata.pipeline.running import Runner
    from radiodata.pipeline.steps import Item
    from radiodata.store.cohort import Cohort
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.draft import Draft
    from radiodata.store.record import Record


@dataclass(frozen=True)
class WriteReport:
    """What a pipeline wrote.

    Attributes
    ----------
    cohort
        The cohort that it was written to, as it is now.
    name
        Of the collection.
    written, present
        Ids of volumes that were written, and of those that were there.
    failed
        Volumes that were skipped.
    """

    cohort: Cohort
    name: str
    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    failed: list[Problem] = field(default_factory=list)

    @property
    def collection(self) -> VolumeCollection:
        """The collection that was written."""
        return self.cohort[self.name]


@dataclass(frozen=True)
class Work:
    """What a pipeline does.

    Attributes
    ----------
    source, view
        The collection, and what of it is taken.
    items
        Gives the volumes of `view` but those of some ids.
    steps
        What is done, for the provenance.
    """

    source: VolumeCollection
    view: VolumeCollection
    items: Callable[[frozenset[str]], Iterable[Item]]
    stages: Sequence[Each | Together | Take]
    steps: list[str]


def write_items(
    work: Work, place: Place, run: Runner, progress: bool | Callable[[int, int], None] = False
) -> WriteReport:
    """Run a pipeline, and write what comes of it; see ``LazyCollection.write``."""
    from radiodata.store.cohort import Cohort

    view, stages = work.view, work.stages
    ctx, provenance = context(place.read), provenance_of(work.source, work.steps)
    there = commits.latest(place.uri, place.read) if layout.check_root(place.uri, ctx) else None
    held = held_ids(there, place, provenance, view)
    if there is None:
        layout.create_root(place.uri, ctx)
    ids = {i: derived_id(i, place.source, place.name) for i in view.ids}
    settled = all(isinstance(s, Each) for s in stages)  # else what comes out hangs on what went before
    skipped = frozenset(i for i, new in ids.items() if new in held) if settled else frozenset()
    present, written = [ids[i] for i in view.ids if i in skipped], list[str]()
    with Writer(place.uri, place.read) as writer:
        folder = writer.commit("create", lambda draft: prepare_draft(draft, place, provenance, None))
        path = folder.collections[place.name].folder
        where = layout.join(place.uri, path)
        # the step goes to a worker with every volume, so it is small
        first = Slot(place.name, where, place.kind, writer.run, 0)
        save = Save(place, first, frozenset() if settled else held)

        def commit(batch: list[Made]) -> None:
            writer.commit(
                f"write {len(batch)} volumes",
                lambda draft: add_made(draft, batch, place, path, work.source, provenance),
            )

        batches, total = Batches(commit), len(view) - len(skipped)
        try:
            with closing(run.run(work.items(skipped), ended(stages, (save,)))) as made, _telling(progress) as tell:
                for done, one in enumerate(made, 1):
                    (present if one.written is None else written).append(one.obs_id)
                    if one.written is not None:
                        batches.add(one)
                    tell(done, total)
                tell(total, total)
        finally:
            batches.flush()  # what is whole stays, also where a volume failed
        prune(writer)
        tidy_run(writer, where)
        writer.clean = bool(run.failed)
    return WriteReport(Cohort(place.uri, config=place.read), place.name, written, present, list(run.failed or []))


def provenance_of(source: VolumeCollection, steps: list[str]) -> dict[str, Any]:
    """What made a collection, from what, with which releases."""
    software = {}
    for package in ("radiodata", "numpy", "scipy", "monai", "torch"):
        try:
            software[package] = version(package)
        except PackageNotFoundError:
            continue
    made_of = {"uri": source.snapshot_uri, "collection": source.name, "version": source.snapshot_version}
    return {"steps": steps, "source": made_of, "software": software}


def held_ids(there: Record | None, place: Place, provenance: dict[str, Any], view: VolumeCollection) -> frozenset[str]:
    """Ids of the collection that is there; refuses one that was made otherwise, or of other voxels."""
    state = there.collections.get(place.name) if there else None
    if state is None:
        return frozenset()
    mine, theirs = provenance, state.provenance or {"steps": None, "source": {}}
    same = mine["steps"] == theirs["steps"] and mine["source"]["collection"] == theirs["source"].get("collection")
    if not same:
        raise ConfigError(
            f"collection {place.name!r} of {place.uri} is there and was made otherwise "
            f"({theirs['steps'] or 'ingested'}, not {mine['steps']}): choose another name, or remove it"
        )
    rows = read_state(place.uri, state.obs, OBS_ID, context(place.read), ["source_hash"])["source_hash"].to_dict()
    now = {derived_id(str(i), place.source, place.name): h for i, h in view.obs["content_hash"].items()}
    other = sorted(i for i, made_of in rows.items() if i in now and now[i] != made_of)
    if other:
        raise ConfigError(
            f"volumes {other[:10]} of collection {place.name!r} of {place.uri} were made of voxels that have "
            "changed since: remove the collection, or write to another"
        )
    return frozenset(map(str, rows))


def prepare_draft(draft: Draft, place: Place, provenance: dict[str, Any], folder: str | None) -> None:
    """Make the collection unless it is there."""
    draft.ensure_collection(place.name, place.kind, place.config.tile, folder=folder, provenance=provenance)


def add_made(
    draft: Draft,
    batch: list[Made],
    place: Place,
    folder: str,
    source: VolumeCollection,
    provenance: dict[str, Any],
) -> None:
    """Add volumes, their columns, and those of their subjects that are not there."""
    prepare_draft(draft, place, provenance, folder)
    written = [one.written for one in batch if one.written is not None]
    subjects = list(dict.fromkeys(w.obs[SUBJECT] for w in written))
    known = draft.present(None, subjects)
    if new := [s for s in subjects if s not in known]:
        draft.add_subjects(source.subjects_table().loc[new])
    tiles = pd.DataFrame([w.tiles for w in written], index=[w.key for w in written])
    write_rows(layout.join(place.uri, folder, "tiles"), tiles, tile_columns(place.kind), context(place.read))
    ids = [w.obs_id for w in written]
    rows = pd.DataFrame([w.obs for w in written], index=ids)[[c.name for c in OBS_COLUMNS]]
    updates = pd.DataFrame([one.updates for one in batch], index=ids).infer_objects()
    columns = infer_columns(updates)
    draft.widen(place.name, updates, columns)
    draft.add_volumes(place.name, pd.concat([rows, updates], axis=1), columns)


def tidy_run(writer: Writer, where: str) -> None:
    """Merge what a run wrote into a few files."""
    import tiledb

    vfs, voxels = tiledb.VFS(ctx=writer.ctx), layout.join(where, layout.VOXELS)
    shards = vfs.ls(voxels) if vfs.is_dir(voxels) else []
    consolidate_metadata([s for s in shards if f"/{writer.run}-" in s], writer.ctx)
    consolidate_table(layout.join(where, "tiles"), context(writer.config, large=True))


@contextmanager
def _telling(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None]]:
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task("write", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
