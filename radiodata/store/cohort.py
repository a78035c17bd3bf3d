"""A cohort: subjects and the collections of their volumes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from radiodata.errors import ConfigError, ObsNotFoundError
from radiodata.store import commits
from radiodata.store.changes import Changes
from radiodata.store.collection import VolumeCollection
from radiodata.store.config import ReadConfig
from radiodata.store.manifest import Manifest, demand_same, manifest_of
from radiodata.store.query import subjects_where
from radiodata.store.show import cohort_html
from radiodata.store.snapshot import Snapshot, open_snapshot
from radiodata.store.view import View, copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import pandas as pd
    import pyarrow
    from numpy.typing import NDArray

    from radiodata.store.config import StoreConfig, TilingLike
    from radiodata.store.fingerprint import Fingerprint
    from radiodata.store.layers import Layers


class Cohort(Changes, View["Cohort"]):
    """Subjects (`obs_meta`) and named collections of their volumes, at a URI.

    Opening reads the tables and no voxel; ``cohort.CT`` and ``cohort["CT"]`` give a collection. A cohort is what
    was committed when it was opened: methods that write give a new one, and this one stays as it is.

    Parameters
    ----------
    uri
        A path, or any URI that TileDB knows (``s3://``, ``azure://``, ``gcs://``).
    config
        How it is read and written, and its key where it is encrypted; by default as the environment says.
    at
        Open the cohort as it was: a version (see ``versions``), or a datetime or ISO 8601 text (local time where it
        names no zone). By default the latest.
    demand
        Refuse to open what is not the same, to the voxel, as when this manifest was taken (see ``freeze``): a
        ``Manifest`` or its hash.

    Raises
    ------
    CohortNotFoundError
        When there is none.
    FormatVersionError
        When its format is not known to this version.
    EncryptionError
        When the key is not that of the cohort.
    StateMismatchError
        When it is not what `demand` says.

    Examples
    --------
    >>> cohort = Cohort("demo-data/cohort")                   # doctest: +SKIP
    >>> cohort.CT.iloc[0][100:164, 100:164, 20:84].shape      # doctest: +SKIP
    (64, 64, 64)
    """

    _what = "subject"

    def __init__(
        self,
        uri: str | Path,
        *,
        config: ReadConfig | None = None,
        at: int | str | datetime | None = None,
        demand: Manifest | str | None = None,
    ) -> None:
        self.uri, self.config = str(uri), config or ReadConfig.from_env()
        self._snapshot: Snapshot = open_snapshot(self.uri, self.config, at)
        self._given: NDArray[np.intp] | None = None
        self._past = at is not None
        if demand is not None:
            demand_same(self.freeze(), demand)

    @classmethod
    def from_niftis(
        cls,
        uri: str | Path,
        images: Mapping[str, str | Path | Sequence[str | Path]],
        *,
        obs_meta: pd.DataFrame | None = None,
        validate_alignment: bool = True,
        subject_id: str | Callable[[Path], str] | None = None,
        tiling: TilingLike = "isotropic",
        config: StoreConfig | None = None,
        read: ReadConfig | None = None,
        workers: int = 2,
    ) -> Cohort:
        """Ingest NIfTI files into a new cohort; see ``radiodata.ingest.ingest_niftis`` for the arguments."""
        from radiodata.ingest import ingest_niftis

        ingest_niftis(
            str(uri),
            images,
            obs_meta=obs_meta,
            validate_alignment=validate_alignment,
            subject_id=subject_id,
            tiling=tiling,
            config=config,
            read=read,
            workers=workers,
            exist="error",
        )
        return cls(uri, config=read)

    # what it holds

    @property
    def version(self) -> int:
        """Number of the commit that it is."""
        return self._snapshot.record.version

    @property
    def versions(self) -> list[int]:
        """Versions that can be opened with `at`, ascending."""
        return commits.versions(self.uri, self.config)

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the collections."""
        return tuple(self._snapshot.record.collections)

    @property
    def subjects(self) -> list[str]:
        """Ids of the subjects."""
        return self.ids

    @property
    def obs_meta(self) -> pd.DataFrame:
        """One row a subject, indexed by ``obs_subject_id``; a copy, to write columns see ``update_obs_meta``."""
        return copied(self._frame)

    def to_arrow(self) -> pyarrow.Table:
        """`obs_meta` as an Arrow table, ``obs_subject_id`` first; needs ``radiodata[arrow]``."""
        from radiodata.export import to_arrow

        return to_arrow(self.obs_meta)

    def fingerprint(self) -> Fingerprint:
        """Sum up spacings, shapes, intensities and classes, as recorded at ingest; no voxel is read.

        Of a filtered cohort: of what is left.
        """
        from radiodata.store.fingerprint import fingerprint

        return fingerprint(self)

    def freeze(self) -> Manifest:
        """Manifest of what this cohort or view holds; its hash changes with any voxel, grid or table value.

        It reads tables and no voxel: of these it takes the hashes that were recorded at ingest (``verify`` compares
        them with the voxels).
        """
        return manifest_of(self)

    # views

    @property
    def _table(self) -> Layers:
        return self._snapshot.obs_meta

    @property
    def _whole(self) -> bool:
        return self._given is None

    @cached_property
    def _rows(self) -> NDArray[np.intp]:
        return np.arange(len(self._table)) if self._given is None else self._given

    def _at(self, rows: NDArray[np.intp]) -> Cohort:
        view = object.__new__(Cohort)
        view.uri, view.config, view._snapshot, view._past = self.uri, self.config, self._snapshot, self._past
        view._given = rows
        return view

    def _one(self, row: int) -> Cohort:
        return self._at(np.array([row], np.intp))

    def _name(self) -> str:
        return f"the cohort at {self.uri}"

    def subset(self, subjects: Iterable[str]) -> Cohort:
        """View of some subjects, in the order given, and of their volumes in every collection.

        Raises
        ------
        ObsNotFoundError
            When a subject is not in the cohort.
        ConfigError
            When a subject is named twice.
        """
        wanted = [str(s) for s in subjects]
        rows = self._find(wanted)
        if len(set(wanted)) < len(wanted):
            raise ConfigError(f"subjects are named twice: {sorted({s for s in wanted if wanted.count(s) > 1})}")
        return self._at(rows)

    def filter(self, expression: str) -> Cohort:
        """View of the subjects for which an expression holds, and of their volumes: ``"age > 40 and sex == 'F'"``.

        Columns of `obs_meta`, ``obs_subject_id``, and ``CT.spacing_z`` for that of the subject's volume in a
        collection; see ``radiodata.store.expression`` for what can be written.

        Raises
        ------
        ExpressionError
            When it is no expression, names a column that is not there, or compares what cannot be compared.

        Examples
        --------
        >>> cohort.filter("sex == 'F' and age between 40 and 60").CT       # doctest: +SKIP
        >>> cohort.filter("CT.spacing_z <= 1.5 and diagnosis is not null")  # doctest: +SKIP
        """
        return self._at(self._rows[subjects_where(self, expression)])

    def __iter__(self) -> Iterator[str]:
        return iter(self.subjects)

    def __contains__(self, name: object) -> bool:
        return name in self._snapshot.record.collections

    def __getitem__(self, name: str) -> VolumeCollection:
        if name not in self:
            held = ", ".join(self.collections) or "none"
            raise ObsNotFoundError(f"the cohort at {self.uri} has no collection {name!r}; it has: {held}")
        return VolumeCollection(name, self._snapshot, None if self._given is None else self._volumes(name))

    def _volumes(self, name: str) -> NDArray[np.intp]:
        """Positions of the volumes of these subjects, in the order of the subjects."""
        rank = np.full(len(self._table), -1, np.intp)
        rank[self._rows] = np.arange(len(self._rows))
        ranks = rank[self._snapshot.subject_of(name)]
        rows = np.flatnonzero(ranks >= 0)
        return rows[np.argsort(ranks[rows], kind="stable")]

    def __getattr__(self, name: str) -> VolumeCollection:
        if name.startswith("_") or name in ("uri", "config"):  # unpickling asks before anything is set
            raise AttributeError(name)
        try:
            return self[name]
        except ObsNotFoundError as error:
            raise AttributeError(f"{error}") from error

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.collections})

    def __repr__(self) -> str:
        held = ", ".join(f"{n} ({len(self[n])} {self[n].kind}s)" for n in self.collections)
        return f"Cohort({self.uri!r}, {len(self)} subjects, {held or 'no collections'})"

    def _repr_html_(self) -> str:
        return cohort_html(self)
