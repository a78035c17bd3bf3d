"""The record of a commit: which tables, in which segments, are the cohort at one version; immutable, plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from radiodata.errors import StoreError
from radiodata.geometry import Shape3, shape3
from radiodata.store.columns import Column

if TYPE_CHECKING:
    from collections.abc import Iterator

SegmentKind = Literal["rows", "columns", "removed"]


@dataclass(frozen=True)
class Segment:
    """One array of a table, written once.

    Attributes
    ----------
    path
        Below the cohort's URI.
    kind
        ``"rows"`` (whole rows; they replace rows of the same id), ``"columns"`` (some columns of rows that are
        there), or ``"removed"`` (ids of rows that are gone).
    rows
        How many.
    names
        Columns that it holds.
    """

    path: str
    kind: SegmentKind
    rows: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableState:
    """A table at one version: its columns, and the segments that make it, the later ones over the earlier."""

    columns: tuple[Column, ...] = ()
    segments: tuple[Segment, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its columns."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True)
class CollectionState:
    """A collection at one version.

    Attributes
    ----------
    folder
        Below the cohort's URI; holds its voxels and tile statistics, and stays when the collection is renamed.
    obs
        Its table of volumes.
    provenance
        Of a derived collection: what made it, and from what.
    """

    folder: str
    kind: str
    tile: Shape3
    obs: TableState
    provenance: dict[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A cohort at one version.

    Attributes
    ----------
    time
        When it was committed, ISO 8601, UTC.
    what, run
        The operation, and the run that it belongs to.
    software
        Release that wrote it.
    """

    version: int
    time: str
    what: str
    run: str
    software: str
    obs_meta: TableState = field(default_factory=TableState)
    collections: dict[str, CollectionState] = field(default_factory=dict)

    def next(self, what: str, run: str, software: str) -> Record:
        """Record that follows, with the same content."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        return replace(self, version=self.version + 1, time=max(now, self.time), what=what, run=run, software=software)

    def tables(self) -> Iterator[TableState]:
        """Its tables."""
        yield self.obs_meta
        yield from (collection.obs for collection in self.collections.values())

    def segments(self) -> set[str]:
        """Paths of all segments."""
        return {segment.path for table in self.tables() for segment in table.segments}

    def to_json(self) -> bytes:
        """As bytes of JSON."""
        plain = {
            "version": self.version,
            "time": self.time,
            "what": self.what,
            "run": self.run,
            "software": self.software,
            "obs_meta": _plain_table(self.obs_meta),
            "collections": {
                name: {
                    "folder": c.folder,
                    "kind": c.kind,
                    "tile": list(c.tile),
                    "obs": _plain_table(c.obs),
                    "provenance": c.provenance,
                }
                for name, c in self.collections.items()
            },
        }
        return json.dumps(plain, indent=1).encode()

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> Record:
        """Record of what ``to_json`` gave.

        Raises
        ------
        StoreError
            When it is damaged.
        """
        try:
            plain = json.loads(raw)
            collections = {name: _collection(c) for name, c in plain.pop("collections").items()}
            return cls(**{**plain, "obs_meta": _table(plain["obs_meta"]), "collections": collections})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the record {where} of the cohort is damaged: {error}; restore it from a copy") from error


def _plain_table(table: TableState) -> dict[str, Any]:
    return {
        "columns": [column.to_dict() for column in table.columns],
        "segments": [[s.path, s.kind, s.rows, list(s.names)] for s in table.segments],
    }


def _table(plain: dict[str, Any]) -> TableState:
    columns = tuple(Column.from_dict(c) for c in plain["columns"])
    return TableState(columns, tuple(Segment(p, k, n, tuple(names)) for p, k, n, names in plain["segments"]))


def _collection(plain: dict[str, Any]) -> CollectionState:
    tile, obs = shape3(plain["tile"]), _table(plain["obs"])
    return CollectionState(plain["folder"], plain["kind"], tile, obs, plain["provenance"])
