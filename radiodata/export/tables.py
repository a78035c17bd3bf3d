"""Tables of a cohort as Arrow tables and AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata
    import pyarrow

    from radiodata.store.collection import VolumeCollection

FEATURES = ("value_min", "value_max", "value_mean", "value_std", "value_p005", "value_p50", "value_p995")


def to_arrow(table: pd.DataFrame) -> pyarrow.Table:
    """Arrow table of `obs` or `obs_meta`, the id as its first column; nulls and types are kept."""
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("pyarrow is not installed: pip install 'radiodata[arrow]'") from error
    return pyarrow.Table.from_pandas(table.reset_index(), preserve_index=False)


def to_anndata(collection: VolumeCollection, features: Sequence[str] | None = None) -> anndata.AnnData:
    """AnnData of a collection, volumes by feature columns; the other columns are its `obs`, the subject's among them.

    Parameters
    ----------
    features
        Columns of numbers, of `obs` or `obs_meta`; by default those that were added to `obs` (radiomics), and the
        statistics of the voxels.

    Raises
    ------
    ConfigError
        When anndata is not installed, or a column is not there or holds no numbers.
    """
    try:
        import anndata
    except ImportError as error:
        raise ConfigError("anndata is not installed: pip install 'radiodata[anndata]'") from error
    table = collection.joined()
    chosen = list(features) if features is not None else [*collection.own_numbers(), *FEATURES]
    odd = [n for n in chosen if n not in table.columns or not pd.api.types.is_numeric_dtype(table[n])]
    if odd:
        raise ConfigError(f"collection {collection.name!r} has no columns of numbers {odd}")
    matrix = table[chosen].astype("Float64").to_numpy(np.float64, na_value=np.nan)
    rest = table.drop(columns=[*chosen, *(c for c in table.columns if _lists(table[c]))])
    for name in rest.columns:  # h5ad holds strings, numbers, booleans and categories
        if pd.api.types.is_datetime64_any_dtype(rest[name].dtype):
            rest[name] = rest[name].dt.strftime("%Y-%m-%dT%H:%M:%S")
        if pd.api.types.is_string_dtype(rest[name].dtype):
            rest[name] = pd.Categorical(rest[name].astype(object))
    rest.index = rest.index.astype(object)
    return anndata.AnnData(X=matrix, obs=rest, var=pd.DataFrame(index=pd.Index(chosen, dtype=object)))


def _lists(column: pd.Series) -> bool:  # type: ignore[type-arg]
    return column.dtype == object and any(isinstance(v, np.ndarray) for v in column.head(1))
