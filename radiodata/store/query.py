"""Filters of cohorts and collections: expressions over the columns of both tables, joined by subject."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from radiodata.errors import ExpressionError
from radiodata.store.expression import parse, unknown_column
from radiodata.store.obs import OBS_ID, SUBJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from radiodata.store.cohort import Cohort
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.layers import Layers


def subjects_where(cohort: Cohort, text: str) -> NDArray[np.bool_]:
    """Subjects of a cohort for which an expression holds, bool, shape ``(subjects,)``.

    Columns are those of `obs_meta`, ``obs_subject_id``, and ``CT.spacing_z`` for that of the subject's volume in CT.

    Raises
    ------
    ExpressionError
        When the text is no expression, names no column, or one of a collection with several volumes of a subject.
    """
    subjects = cohort._index

    def column(name: str) -> pd.Series[Any]:
        if name == SUBJECT:
            return pd.Series(subjects, subjects)
        if name in cohort.columns:
            return cohort._column(name)
        collection, _, of_volume = name.partition(".")
        if collection not in cohort or of_volume not in {OBS_ID, *cohort[collection].columns}:
            raise KeyError(name)
        return _by_subject(cohort[collection], of_volume, subjects)

    held = [SUBJECT, *cohort.columns]
    held += [f"{c}.{n}" for c in cohort.collections for n in (OBS_ID, *cohort[c].columns)]
    return _mask(text, column, held, len(cohort))


def volumes_where(collection: VolumeCollection, text: str) -> NDArray[np.bool_]:
    """Volumes of a collection for which an expression holds, bool, shape ``(volumes,)``.

    Columns are those of `obs`, ``obs_id``, and where `obs` has none of the name those of the volume's subject.

    Raises
    ------
    ExpressionError
        When the text is no expression, or names no column.
    """
    obs_meta = collection._snapshot.obs_meta

    def column(name: str) -> pd.Series[Any]:
        if name == OBS_ID:
            return pd.Series(collection._index, collection._index)
        if name in collection.columns:
            return collection._column(name)
        return obs_meta.column(name).iloc[collection._subject_rows]

    held = [OBS_ID, *collection.columns, *obs_meta.columns]
    return _mask(text, column, held, len(collection))


def rows_where(obs_meta: Layers, text: str) -> NDArray[np.bool_]:
    """Subjects of a table `obs_meta` for which an expression holds, bool, shape ``(subjects,)``.

    Raises
    ------
    ExpressionError
        When the text is no expression, or names no column.
    """

    def column(name: str) -> pd.Series[Any]:
        return pd.Series(obs_meta.index, obs_meta.index) if name == SUBJECT else obs_meta.column(name)

    return _mask(text, column, [SUBJECT, *obs_meta.columns], len(obs_meta))


def _mask(text: str, column: Callable[[str], pd.Series[Any]], held: list[str], n: int) -> NDArray[np.bool_]:
    expression = parse(text)
    try:
        return expression.mask(column, n)
    except KeyError as missing:
        raise unknown_column(str(missing.args[0]), held, text) from None


def _by_subject(collection: VolumeCollection, name: str, subjects: pd.Index[Any]) -> pd.Series[Any]:
    values = pd.Series(collection._index) if name == OBS_ID else collection._column(name)
    column = pd.Series(values.array, pd.Index(collection._column(SUBJECT).to_numpy(object)))
    if not column.index.is_unique:
        twice = column.index[column.index.duplicated()][0]
        raise ExpressionError(
            f"subject {twice!r} has several volumes in {collection.name!r}, so {collection.name}.{name} is not one "
            f"value a subject: filter the collection, cohort.{collection.name}.filter(...)"
        )
    return column.reindex(subjects)
