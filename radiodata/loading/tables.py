"""Numbers and names from the tables: weights of volumes, and targets that travel with samples."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from radiodata.errors import ConfigError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata.store import Cohort, VolumeCollection


@dataclass(frozen=True)
class TableTarget:
    """A column that gives one value a sample: what a classifier or a regression learns.

    Parameters
    ----------
    column
        Of `obs_meta`, or of `obs` of the first key's collection. Integers become int64, floats float32,
        booleans bool; text is given as it is, unless `classes` says otherwise.
    classes
        Values in the order of their class numbers; the sample holds the number, int64. The same for training,
        validation and test, which is why it is not taken from the column.
    """

    column: str
    classes: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | TableTarget) -> TableTarget:
        """Target of a column's name, or of ``{"column": ..., "classes": [...]}``."""
        if isinstance(given, TableTarget):
            return given
        if isinstance(given, str):
            return cls(given)
        unknown = sorted(set(given) - {"column", "classes"})
        if unknown or "column" not in given:
            raise ConfigError(f"target {dict(given)}: give a column's name, or column and classes")
        classes = given.get("classes")
        return cls(given["column"], None if classes is None else tuple(classes))

    def values(self, cohort: Cohort, collection: VolumeCollection) -> NDArray[Any]:
        """One value a subject of the cohort, shape ``(V,)``.

        Raises
        ------
        PlanError
            When the column is missing, lacks a value, or holds one that is no class.
        """
        column = find_column(cohort, collection, self.column)
        _refuse(column.isna(), cohort, f"target column {self.column!r} has no value")
        if self.classes is not None:
            numbers = pd.Index(self.classes).get_indexer(pd.Index(column.to_list()))
            odd = pd.Series(numbers < 0)
            _refuse(odd, cohort, f"target column {self.column!r} holds none of the classes {list(self.classes)}")
            return np.asarray(numbers, np.int64)
        if pd.api.types.is_bool_dtype(column.dtype):
            return column.to_numpy(bool)
        if pd.api.types.is_integer_dtype(column.dtype):
            return column.to_numpy(np.int64)
        if pd.api.types.is_float_dtype(column.dtype):
            return column.to_numpy(np.float32)
        return column.astype(str).to_numpy(object)


def as_sample_value(values: NDArray[Any], volume: int) -> Any:
    """Value of one volume, as it stands in a sample: a tensor of no axes, or text."""
    value = values[volume]
    return value if isinstance(value, str) else torch.as_tensor(value)


def weights_of(cohort: Cohort, collection: VolumeCollection, name: str) -> NDArray[np.float64]:
    """One number a subject of the cohort from a column; NaN where it has none.

    Raises
    ------
    PlanError
        When the column is missing or holds no numbers.
    """
    column = find_column(cohort, collection, name)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise PlanError(f"column {name!r} holds {column.dtype}, not numbers: it cannot weight volumes")
    return column.to_numpy(np.float64, na_value=np.nan)


def find_column(cohort: Cohort, collection: VolumeCollection, name: str) -> pd.Series[Any]:
    """Column of `obs_meta`, or else of a collection's `obs`, in the order of the cohort's subjects.

    Raises
    ------
    PlanError
        When neither table has it, naming those that are near.
    """
    if name in cohort.obs_meta.columns:
        return cohort.obs_meta[name]
    if name in collection.columns:
        return collection.column(name)
    held = [*map(str, cohort.obs_meta.columns), *collection.columns]
    near = difflib.get_close_matches(name, held, n=3)
    hint = f"; near it: {', '.join(near)}" if near else f"; obs_meta has {list(cohort.obs_meta.columns)}"
    raise PlanError(f"there is no column {name!r} in obs_meta, nor in obs of {collection.name!r}{hint}")


def _refuse(mask: pd.Series[Any], cohort: Cohort, what: str) -> None:
    at: Sequence[int] = np.flatnonzero(mask.to_numpy(bool)).tolist()
    if at:
        named = ", ".join(repr(cohort.subjects[i]) for i in at[:5]) + (f" and {len(at) - 5} more" if at[5:] else "")
        raise PlanError(f"{what} for subjects {named}: fill it, or leave them out with cohort.subset([...])")
