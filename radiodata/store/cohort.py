"""A cohort: subjects and the collections of their volumes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError, ObsNotFoundError
from radiodata.store import layout
from radiodata.store.collection import VolumeCollection
from radiodata.store.context import DEFAULT_READ, context
from radiodata.store.obs import RUN, SUBJECT, strings
from radiodata.store.query import subjects_where
from radiodata.store.table import read_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from radiodata.store.config import ReadConfig, StoreConfig, TilingLike


class Cohort:
    """Subjects (`obs_meta`) and named collections of their volumes, at a URI.

    Opening reads the tables and no voxel; ``cohort.CT`` and ``cohort["CT"]`` give a collection.

    Parameters
    ----------
    uri
        A path, or any URI that TileDB knows (``s3://``, ``azure://``, ``gcs://``).
    config
        How TileDB reads.

    Raises
    ------
    CohortNotFoundError
        When there is none.
    FormatVersionError
        When its format is not known to this version.

    Examples
    --------
    >>> cohort = Cohort("demo-data/cohort")                   # doctest: +SKIP
    >>> cohort.CT.iloc[0][100:164, 100:164, 20:84].shape      # doctest: +SKIP
    (64, 64, 64)
    """

    def __init__(self, uri: str | Path, *, config: ReadConfig = DEFAULT_READ) -> None:
        self.uri = str(uri)
        self._config = config
        names = layout.read_root(self.uri, context(config))
        token = uuid.uuid4().hex
        table = layout.join(self.uri, layout.OBS_META)
        self.obs_meta: pd.DataFrame = read_table(table, SUBJECT, context(config)).drop(columns=RUN)
        opened = (VolumeCollection.open(self.uri, name, token, config, self.obs_meta) for name in names)
        # a subject row is written last: volumes without one belong to an ingest that never finished
        self._collections = {c.name: _of_subjects(c, self.obs_meta.index) for c in opened}

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
            workers=workers,
            exist="error",
        )
        return cls(uri)

    @property
    def collections(self) -> tuple[str, ...]:
        """Names of the collections."""
        return tuple(self._collections)

    @property
    def subjects(self) -> list[str]:
        """Ids of the subjects."""
        return strings(self.obs_meta.index)

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
        missing = [s for s in wanted if s not in self.obs_meta.index]
        if missing:
            raise ObsNotFoundError(f"the cohort at {self.uri} has no subject {missing}")
        if len(set(wanted)) < len(wanted):
            raise ConfigError(f"subjects are named twice: {sorted({s for s in wanted if wanted.count(s) > 1})}")
        return self._at(self.obs_meta.index.get_indexer(pd.Index(wanted)))

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
        return self._at(np.flatnonzero(subjects_where(self, expression)))

    def _at(self, positions: NDArray[np.intp]) -> Cohort:
        view = object.__new__(Cohort)
        view.uri, view._config, view.obs_meta = self.uri, self._config, self.obs_meta.iloc[positions]
        view._collections = {n: _of_subjects(c, view.obs_meta.index) for n, c in self._collections.items()}
        return view

    def __len__(self) -> int:
        return len(self.obs_meta)

    def __iter__(self) -> Iterator[str]:
        return iter(self.subjects)

    def __contains__(self, name: object) -> bool:
        return name in self._collections

    def __getitem__(self, name: str) -> VolumeCollection:
        if name not in self._collections:
            held = ", ".join(self._collections) or "none"
            raise ObsNotFoundError(f"the cohort at {self.uri} has no collection {name!r}; it has: {held}")
        return self._collections[name]

    def __getattr__(self, name: str) -> VolumeCollection:
        if name.startswith("_") or name in ("obs_meta", "uri"):  # unpickling asks before anything is set
            raise AttributeError(name)
        try:
            return self[name]
        except ObsNotFoundError as error:
            raise AttributeError(f"{error}") from error

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._collections})

    def __repr__(self) -> str:
        held = ", ".join(f"{n} ({len(c)} {c.kind}s)" for n, c in self._collections.items())
        return f"Cohort({self.uri!r}, {len(self)} subjects, {held or 'no collections'})"


def _of_subjects(collection: VolumeCollection, subjects: pd.Index[Any]) -> VolumeCollection:
    obs = collection.obs
    kept = obs[obs[SUBJECT].isin(list(subjects)).to_numpy(bool)]
    order = subjects.get_indexer(pd.Index(kept[SUBJECT].to_list()))
    return collection.view(kept.iloc[order.argsort(kind="stable")])
