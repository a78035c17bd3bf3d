"""A run that writes to a cohort: long work beside readers and other writers, then commits that show at once.

::

    with Writer(uri, config) as writer:                 marks the run: what it leaves behind is told apart
        ...                                             voxels and tile statistics, unseen
        writer.commit("append", lambda draft: ...)      under the lock: checks, segments of tables, the record
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Generic, TypeVar

import tiledb

from radiodata.errors import RadiodataError
from radiodata.store import commits
from radiodata.store.context import LARGE_ROWS, context
from radiodata.store.direct.listing import local_path
from radiodata.store.index import raw_of, write_index
from radiodata.store.layout import join
from radiodata.store.lock import writer_lock
from radiodata.store.record import Record
from radiodata.store.runs import begin_run, clean_abandoned, clean_all, clean_run, end_run
from radiodata.store.segments import stored_rows, write_segment
from radiodata.store.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    import pandas as pd

    from radiodata.store.columns import Column
    from radiodata.store.config import ReadConfig
    from radiodata.store.draft import Draft
    from radiodata.store.record import Segment, SegmentKind, TableState
    from radiodata.store.table import Raw

T = TypeVar("T")


class Writer:
    """One run that writes to the cohort at `uri`; leave it by ``with``, so that its mark is taken away.

    What runs left behind that died is removed first.

    Parameters
    ----------
    uri
        A cohort that is there.
    config
        How TileDB reads and writes.

    Attributes
    ----------
    run
        Id of the run.
    clean
        Whether voxels that no row points to are removed when the run ends; set where some were refused. A run that
        ends by an exception is cleaned in any case.
    """

    def __init__(self, uri: str, config: ReadConfig) -> None:
        self.uri, self.config, self.clean = uri, config, False
        clean_abandoned(uri, config)
        self.run = begin_run(uri, self.ctx)
        self._ids: dict[str, frozenset[str]] = {}
        self._raws: dict[str, Raw] = {}
        self._last: Record | None = None
        self._written = 0

    @property
    def ctx(self) -> tiledb.Ctx:
        """TileDB context of this process."""
        return context(self.config)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None or self.clean:
                clean_run(self.uri, self.run, self.config)
            if kind is None and self._last is not None:
                self.index(self._last)
        finally:
            end_run(self.uri, self.run, self.ctx)

    def index(self, record: Record) -> None:
        """Leave the index of a version, where it is on an object store; warn where it cannot be written."""
        self._last = None
        if local_path(self.uri) is not None:
            return
        try:
            write_index(self.uri, record, self._raws, self.config)
        except (tiledb.TileDBError, RadiodataError) as error:
            warnings.warn(
                f"version {record.version} of the cohort at {self.uri} is whole, but its index could not be written, "
                f"so it opens in more requests until the next commit: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def commit(self, what: str, change: Callable[[Draft], None]) -> Record:
        """Change the cohort: `change` is given its latest version, checks it, and says what becomes of it.

        All of it shows at once, or, where `change` raises or the process dies, nothing.

        Returns
        -------
        Record
            The new version; that which was there where nothing was changed.
        """
        from radiodata import __version__
        from radiodata.store.draft import Draft

        with writer_lock(self.uri, self.ctx):
            before = commits.latest(self.uri, self.config) or Record(0, "", "", "", "")
            draft = Draft(self, before)
            try:
                change(draft)
                if draft.record == before:
                    return before
                draft.merge()
                record = draft.record.next(what, self.run, __version__)
                commits.create(self.uri, record, self.config)
            except BaseException:
                self._discard(draft.segments)
                raise
            held = record.segments()
            self._discard(segment for segment in draft.segments if segment.path not in held)  # merged into others
            self._last = record
        return record

    def segment(
        self, table: str, index: str, frame: pd.DataFrame, columns: Sequence[Column], kind: SegmentKind
    ) -> Segment:
        """Write a segment of a table; `table` is its folder below the cohort's URI."""
        self._written += 1
        path = join(table, f"{self.run}-{self._written:06d}")
        ctx = context(self.config, large=len(frame) > LARGE_ROWS)
        segment = write_segment(self.uri, path, index, frame, columns, ctx, kind)
        self._ids[path] = frozenset(str(i) for i in frame.index)
        if local_path(self.uri) is None:
            self._raws[path] = raw_of(index, *stored_rows(frame, columns, kind))
        return segment

    def present(self, table: TableState, index: str, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that a table holds; segments are written once, so each is read at most once."""
        asked, found = set(ids), set()
        for segment in reversed(table.segments):
            if segment.kind == "columns" or not asked:
                continue
            here = asked & self._segment_ids(segment, index)
            found |= here if segment.kind == "rows" else set()
            asked -= here
        return found

    def _segment_ids(self, segment: Segment, index: str) -> frozenset[str]:
        if segment.path not in self._ids:
            frame = read_table(join(self.uri, segment.path), index, self.ctx, [])
            self._ids[segment.path] = frozenset(str(i) for i in frame.index)
        return self._ids[segment.path]

    def _discard(self, segments: Iterable[Segment]) -> None:
        vfs = tiledb.VFS(ctx=self.ctx)
        for segment in segments:
            if vfs.is_dir(join(self.uri, segment.path)):
                vfs.remove_dir(join(self.uri, segment.path))


class Batches(Generic[T]):
    """Things that are committed together: those that came within two seconds, at least sixteen."""

    SIZE = 16
    SECONDS = 2.0

    def __init__(self, commit: Callable[[list[T]], object]) -> None:
        self._commit, self._held, self._since = commit, list[T](), time.monotonic()

    def add(self, thing: T) -> None:
        """Take a thing, and commit where there are enough."""
        self._held.append(thing)
        if len(self._held) >= self.SIZE and time.monotonic() - self._since >= self.SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commit what is held."""
        held, self._held, self._since = self._held, [], time.monotonic()
        if held:
            self._commit(held)


def write_once(uri: str, what: str, change: Callable[[Draft], None], config: ReadConfig) -> Record:
    """Commit one change of the tables of the cohort at `uri`, in a run of its own."""
    with Writer(uri, config) as writer:
        return writer.commit(what, change)


def optimize(uri: str, config: ReadConfig) -> Record:
    """Make one segment of every table, forget all earlier versions, and free what only they held."""
    with Writer(uri, config) as writer:
        writer.commit("optimize", lambda draft: draft.merge(whole=True))
        with writer_lock(uri, writer.ctx):
            held = [commits.read(uri, version, config) for version in commits.versions(uri, config)]
            forget(uri, held[:-1], held[-1:], config)
            clean_all(uri, config)
        writer.index(held[-1])
    return held[-1]


def prune(writer: Writer) -> None:
    """Forget the versions that a run went through before its last: only whole runs are history."""
    with writer_lock(writer.uri, writer.ctx):
        held = [commits.read(writer.uri, v, writer.config) for v in commits.versions(writer.uri, writer.config)]
        ours = [record for record in held if record.run == writer.run]
        forget(writer.uri, ours[:-1], [r for r in held if r not in ours[:-1]], writer.config)


def forget(uri: str, gone: Sequence[Record], kept: Sequence[Record], config: ReadConfig) -> None:
    """Remove records, and the segments that only they are made of; the caller holds the lock."""
    commits.forget(uri, [record.version for record in gone], config)
    needed = {path for record in kept for path in record.segments()}
    vfs = tiledb.VFS(ctx=context(config))
    for path in {path for record in gone for path in record.segments()} - needed:
        if vfs.is_dir(join(uri, path)):
            vfs.remove_dir(join(uri, path))
