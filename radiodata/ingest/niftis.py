"""Ingestion of NIfTI files, by globs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from radiodata.errors import ConfigError
from radiodata.ingest.discover import group_subjects, is_label_name
from radiodata.ingest.items import Inputs
from radiodata.ingest.pipeline import ingest
from radiodata.store import layout
from radiodata.store.columns import infer_columns
from radiodata.store.obs import SUBJECT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import pandas as pd

    from radiodata.ingest.discover import Files, SubjectRule
    from radiodata.ingest.options import Options
    from radiodata.ingest.report import IngestReport


def ingest_niftis(
    uri: str,
    images: Mapping[str, Files],
    *,
    obs_meta: pd.DataFrame | None = None,
    validate_alignment: bool = True,
    subject_id: SubjectRule = None,
    labels: Collection[str] | None = None,
    **options: Unpack[Options],
) -> IngestReport:
    """Ingest NIfTI files (.nii, .hdr and .img, compressed or not) into the cohort at `uri`.

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
    labels
        Collections that hold labels; by default those named as labels are (``seg``, ``label``, ``mask``).
    **options
        See ``Options``.

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When arguments are at odds with each other or with the cohort.
    """
    table, kinds = subject_table(obs_meta), kinds_of(images, labels)
    subjects, problems = group_subjects(images, subject_id, table)
    return ingest(uri, Inputs(kinds, subjects, problems, table=table, aligned=validate_alignment), options)


def kinds_of(names: Iterable[str], labels: Collection[str] | None) -> dict[str, str]:
    """Kind of each collection: as said, or by its name.

    Raises
    ------
    ConfigError
        When there is none, one cannot have its name, or one of `labels` is none of them.
    """
    names = list(names)
    unknown = sorted(set(labels or ()) - set(names))
    if unknown or not names:
        raise ConfigError(f"labels {unknown} are no collections" if unknown else "no collection was given")
    chosen = labels if labels is not None else [n for n in names if is_label_name(n)]
    return {layout.check_name(n): "label" if n in chosen else "image" for n in names}


def subject_table(obs_meta: pd.DataFrame | None) -> pd.DataFrame | None:
    """Give a table of subjects, indexed by their ids.

    Raises
    ------
    ConfigError
        When a subject has two rows, or a column cannot be stored.
    """
    if obs_meta is None:
        return None
    frame = obs_meta.set_index(SUBJECT) if SUBJECT in obs_meta.columns else obs_meta.copy()
    frame.index = frame.index.astype(str)
    twice = sorted(set(frame.index[frame.index.duplicated()]))
    if twice:
        raise ConfigError(f"obs_meta has more than one row for {', '.join(twice[:10])}: one row a subject")
    infer_columns(frame)
    return frame
