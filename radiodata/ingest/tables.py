"""Ingestion by a table: one row a subject, paths of its files in some columns, what is known of it in the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.files import SUFFIXES
from radiodata.ingest.items import Inputs, Item, Subject
from radiodata.ingest.nifti import NiftiFile
from radiodata.ingest.niftis import kinds_of, subject_table
from radiodata.ingest.pipeline import ingest
from radiodata.store.obs import SUBJECT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from radiodata.ingest.options import Options
    from radiodata.ingest.report import IngestReport


def ingest_table(
    uri: str,
    table: str | Path | pd.DataFrame,
    *,
    images: Mapping[str, str] | None = None,
    validate_alignment: bool = True,
    labels: Collection[str] | None = None,
    **options: Unpack[Options],
) -> IngestReport:
    """Ingest the NIfTI files that a table names into the cohort at `uri`.

    Parameters
    ----------
    uri
        Where the cohort is, or is to be.
    table
        CSV or TSV file, or a frame: one row a subject, with its id in the column ``obs_subject_id``, else in the first
        (of a frame: in the index). Paths are relative to the folder of the file. A subject without a path in a column
        has no volume in that collection.
    images
        Collection name to the column of its paths; by default the columns all of whose values end as NIfTI files do,
        each a collection of its name. The other columns go to `obs_meta`.
    validate_alignment, labels
        As of ``ingest_niftis``.
    **options
        See ``Options``.

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When the table names no files, or arguments are at odds with each other or with the cohort.
    """
    frame, folder = _frame(table)
    chosen = dict(images) if images is not None else {n: n for n in frame.columns if _holds_paths(frame[n])}
    if lost := [column for column in chosen.values() if column not in frame.columns]:
        raise ConfigError(f"the table has no columns {lost}; it has {list(frame.columns)}")
    if not chosen:
        raise ConfigError("no column of the table holds paths of NIfTI files only: say images={NAME: COLUMN}")
    rest = frame.drop(columns=list(dict.fromkeys(chosen.values())))
    known = subject_table(rest if len(rest.columns) else rest.copy())
    assert known is not None
    kinds = kinds_of(chosen, labels)
    subjects, problems = [], []
    for subject, row in zip(known.index, frame.to_dict("records"), strict=True):
        items = _items(str(subject), row, chosen, folder)
        if items:
            subjects.append(Subject(str(subject), items))
        else:
            problems.append(Problem(str(subject), f"has no path in {list(chosen.values())}"))
    return ingest(uri, Inputs(kinds, subjects, problems, table=known, aligned=validate_alignment), options)


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV or TSV file, indexed by subject: by its column ``obs_subject_id``, else by the first.

    Raises
    ------
    ConfigError
        When it cannot be read.
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        names = pd.read_csv(path, sep=separator, nrows=0).columns
        key = SUBJECT if SUBJECT in names else names[0]
        ids = pd.read_csv(path, sep=separator, usecols=[key], dtype=str, na_filter=False)[key]  # as written: 001, NA
        return pd.read_csv(path, sep=separator).drop(columns=key).set_index(pd.Index(ids, name=key))
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"the table {path} cannot be read: {error}") from error


def _frame(table: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, Path]:
    if isinstance(table, pd.DataFrame):
        return (table.set_index(SUBJECT) if SUBJECT in table.columns else table), Path()
    return read_rows(Path(table)), Path(table).parent


def _holds_paths(column: pd.Series[Any]) -> bool:
    known = column.dropna()
    return len(known) > 0 and all(str(value).lower().endswith((*SUFFIXES, ".img", ".img.gz")) for value in known)


def _items(subject: str, row: Mapping[Any, Any], images: Mapping[str, str], folder: Path) -> tuple[Item, ...]:
    paths = {name: row[column] for name, column in images.items() if not pd.isna(row[column]) and str(row[column])}
    return tuple(Item(f"{subject}_{name}", name, NiftiFile(folder / str(path))) for name, path in paths.items())
