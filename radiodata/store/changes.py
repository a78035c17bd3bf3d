"""What changes a cohort: subjects, collections and columns added, replaced and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from radiodata.errors import ConfigError, ObsNotFoundError
from radiodata.store.obs import SUBJECT
from radiodata.store.writing import optimize, write_once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    import pandas as pd

    from radiodata.store.config import ReadConfig, StoreConfig
    from radiodata.store.draft import Draft
    from radiodata.store.layers import Layers


class Changes:
    """Methods of a cohort that write; each gives the cohort that comes of it, and leaves this one as it is."""

    uri: str
    config: ReadConfig
    _past: bool

    if TYPE_CHECKING:

        @property
        def version(self) -> int: ...  # noqa: D102
        @property
        def collections(self) -> tuple[str, ...]: ...  # noqa: D102
        @property
        def _table(self) -> Layers: ...

    def append(
        self,
        images: Mapping[str, str | Path | Sequence[str | Path]],
        *,
        obs_meta: pd.DataFrame | None = None,
        labels: Collection[str] | None = None,
        subject_id: str | Callable[[Path], str] | None = None,
        validate_alignment: bool = True,
        config: StoreConfig | None = None,
        workers: int = 2,
    ) -> Self:
        """Add subjects, or collections of subjects that are there, from NIfTI files: all of them, or nothing.

        See ``radiodata.ingest.ingest_niftis`` for the arguments; ``radiodata ingest`` keeps what could be taken.
        Tiles are those of the collections that are there, unless `config` says otherwise.
        """
        from radiodata.ingest import ingest_niftis

        ingest_niftis(
            self._writable(),
            images,
            obs_meta=obs_meta,
            validate_alignment=validate_alignment,
            subject_id=subject_id,
            config=config,
            read=self.config,
            labels=labels,
            workers=workers,
            atomic=True,
        )
        return self._again()

    def add_collection(self, name: str, files: str | Path | Sequence[str | Path], **options: Any) -> Self:
        """Add a collection of subjects that are there, from NIfTI files; `options` as of ``append``."""
        from radiodata.ingest.discover import group_subjects

        if name in self.collections:
            raise ConfigError(f"the cohort at {self.uri} has a collection {name!r} already: use append")
        given, _ = group_subjects({name: files}, options.get("subject_id"), None)
        if lost := sorted({s.subject for s in given}.difference(self._table.index)):
            raise ObsNotFoundError(f"the cohort at {self.uri} has no subjects {lost[:10]}: use append")
        return self.append({name: files}, **options)

    def remove(self, *, subjects: str | Iterable[str] = (), collection: str | None = None) -> Self:
        """Remove subjects with all of their volumes, or a collection; ``optimize`` frees the disk.

        Raises
        ------
        ObsNotFoundError
            When a subject or the collection is not there.
        """
        gone = [subjects] if isinstance(subjects, str) else list(subjects)

        def change(draft: Draft) -> None:
            draft.remove_subjects(gone)
            if collection is not None:
                draft.remove_collection(collection)

        return self._write(f"remove {collection or f'{len(gone)} subjects'}", change)

    def rename_collection(self, name: str, to: str) -> Self:
        """Rename a collection.

        Raises
        ------
        ObsNotFoundError
            When it is not there.
        ConfigError
            When the name is taken, or cannot be one.
        """
        return self._write(f"rename {name} to {to}", lambda draft: draft.rename_collection(name, to))

    def update_obs_meta(self, rows: pd.DataFrame) -> Self:
        """Write columns of subjects, those of the frame in the rows of the frame; types are kept.

        Parameters
        ----------
        rows
            Indexed by subject, or with a column ``obs_subject_id``. A new column is null where no row is given.

        Raises
        ------
        ObsNotFoundError
            When a subject is not there.
        ConfigError
            When values do not fit a column that is there.
        """
        given = rows.set_index(SUBJECT) if SUBJECT in rows.columns else rows
        return self._write(f"update {list(given.columns)}", lambda draft: draft.update(None, given))

    def drop_obs_meta(self, *columns: str) -> Self:
        """Drop columns of `obs_meta`.

        Raises
        ------
        ConfigError
            When one is not there.
        """
        return self._write(f"drop {list(columns)}", lambda draft: draft.drop_columns(None, columns))

    def update_obs(self, collection: str, rows: pd.DataFrame) -> Self:
        """Write columns of volumes, those of the frame in the rows of the frame, indexed by ``obs_id``.

        Raises
        ------
        ObsNotFoundError
            When a volume or the collection is not there.
        ConfigError
            When a column is the store's own, or values do not fit.
        """
        return self._write(f"update {list(rows.columns)}", lambda draft: draft.update(collection, rows))

    def drop_obs(self, collection: str, *columns: str) -> Self:
        """Drop columns of `obs` that were added with ``update_obs``.

        Raises
        ------
        ConfigError
            When one is not there, or the store's own.
        """
        return self._write(f"drop {list(columns)}", lambda draft: draft.drop_columns(collection, columns))

    def optimize(self) -> Self:
        """Merge the segments of the tables, forget earlier versions, and free the disk of what only they held.

        Who opened an earlier version must open the cohort again; runs that write at the same time are left alone.
        """
        optimize(self._writable(), self.config)
        return self._again()

    def _write(self, what: str, change: Callable[[Draft], None]) -> Self:
        write_once(self._writable(), what, change, self.config)
        return self._again()

    def _writable(self) -> str:
        if self._past:
            raise ConfigError(f"this is version {self.version} of the cohort at {self.uri}: open the latest to write")
        return self.uri

    def _again(self) -> Self:
        return type(self)(self.uri, config=self.config)  # type: ignore[call-arg]
