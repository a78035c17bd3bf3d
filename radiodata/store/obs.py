"""The columns of `obs` (one row a volume) and of the tile statistics beside the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from radiodata.store.columns import Column
from radiodata.store.layout import shard_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from radiodata._typing import Affine
    from radiodata.geometry import Shape3

SUBJECT = "obs_subject_id"
OBS_ID = "obs_id"
RUN = "ingest_run"

OBS_COLUMNS = (
    Column(SUBJECT, "string"),
    Column("shard", "string"),
    Column("slot", "int"),
    Column("channels", "int"),
    *(Column(f"size_{a}", "int") for a in "xyz"),
    Column("dtype", "string"),
    *(Column(f"spacing_{a}", "float") for a in "xyz"),
    Column("affine", "floats"),
    Column("orientation", "string"),
    Column("slope", "float"),
    Column("intercept", "float"),
    *(Column(f"value_{n}", "float") for n in ("min", "max", "mean", "std", "p005", "p50", "p995")),
    Column("air_threshold", "float"),
    Column("nonair_voxels", "int"),
    Column("label_values", "ints"),
    Column("label_voxels", "ints"),
    Column("foreground_voxels", "int"),
    *(Column(f"foreground_{n}", "float") for n in ("min", "max", "mean", "std", "p005", "p50", "p995")),
    Column("source_uri", "string"),
    Column("source_format", "string"),
    Column("source_dtype", "string"),
    Column("source_orientation", "string"),
    Column("source_hash", "string"),
    Column("content_hash", "string"),
    Column(RUN, "string"),
)
"""Metadata of a volume: no array is opened to answer a question about it.

``slope`` and ``intercept`` bring stored to physical values; ``value_*`` are physical, of the voxels above
``air_threshold`` (``value_min`` and ``value_max`` of all); ``foreground_*`` of an image are of its voxels inside the
labels of its subject that were ingested with it. Sizes in voxels, spacing in mm.
"""

GEOMETRY = frozenset(
    {"affine", "channels", "orientation", "dtype", *(f"{w}_{a}" for w in ("size", "spacing") for a in "xyz")}
)
"""Columns that follow from the grid of a volume."""

STATISTICS = frozenset(
    c.name
    for c in OBS_COLUMNS
    if c.name.startswith(("value_", "label_", "foreground_")) or c.name in ("air_threshold", "nonair_voxels")
)
"""Columns that follow from its voxels."""

IMAGE_TILES = (
    *(Column(n, "floats") for n in ("tile_min", "tile_max", "tile_sum", "tile_sum_sq")),
    Column("tile_nonair", "ints"),
)
"""Statistics of an image, one value per tile in C order of ``(channel, x, y, z)``."""

LABEL_TILES = tuple(Column(n, "ints") for n in ("tile", "label", "voxels", "kept", "points"))
"""Statistics of a label volume, one value per (tile, class) that occurs: the tile's index in C order, the
class, its voxel count, how many coordinates were kept; and those coordinates, as flat indices into the
volume ``(x, y, z)`` in C order, one after another."""

VOLUME_EXTRAS = (
    Column("source_header", "bytes"),
    *(
        column
        for name in ("histogram", "foreground_histogram")
        for column in (Column(name, "ints"), Column(f"{name}_start", "float"), Column(f"{name}_width", "float"))
    ),
    *(Column(f"component_{name}", "ints") for name in ("labels", "voxels", "boxes")),
)
"""What is too large for `obs`, which is read whole: kept beside the tile statistics, one row a volume.

Components are those of each class of a label volume (26 neighbours), the largest first: class, voxel count, and
box, six numbers each: start and stop along x, y and z.
"""

TILES_INDEX = "volume_key"


def tile_columns(kind: str) -> tuple[Column, ...]:
    """Columns of the table that holds tile statistics, by the kind of the collection."""
    return (*(LABEL_TILES if kind == "label" else IMAGE_TILES), *VOLUME_EXTRAS)


def volume_key(shard: str, slot: int) -> str:
    """Identity of written voxels: never used again, not even after an update of the volume."""
    return f"{shard}/{slot}"


@dataclass(frozen=True)
class VoxelSource:
    """All that a read of one volume's voxels needs; small and picklable.

    Attributes
    ----------
    shape
        ``(channel, x, y, z)``.
    token
        Snapshot of the cohort that hands it out (see ``Handles.array``).
    index
        Where the index of that version is, and its size in bytes; None: there is none.
    """

    uri: str
    slot: int
    shape: tuple[int, int, int, int]
    dtype: str
    slope: float
    intercept: float
    obs_id: str
    subject: str
    token: str
    index: tuple[str, int] | None = None

    @property
    def size(self) -> Shape3:
        """Spatial shape ``(x, y, z)``."""
        return self.shape[1:]

    @property
    def scaled(self) -> bool:
        """Whether physical values differ from stored ones."""
        return self.slope != 1.0 or self.intercept != 0.0


def source_of(
    collection_uri: str, obs_id: str, row: pd.Series[Any], token: str, index: tuple[str, int] | None = None
) -> VoxelSource:
    """Voxel source of one row of `obs`."""
    return VoxelSource(
        uri=shard_uri(collection_uri, str(row["shard"])),
        slot=int(row["slot"]),
        shape=(int(row["channels"]), int(row["size_x"]), int(row["size_y"]), int(row["size_z"])),
        dtype=str(row["dtype"]),
        slope=float(row["slope"]),
        intercept=float(row["intercept"]),
        obs_id=str(obs_id),
        subject=str(row[SUBJECT]),
        token=token,
        index=index,
    )


def strings(column: pd.Index[Any] | pd.Series[Any]) -> list[str]:
    """Strings of a column; quicker than iterating over one of pandas' string dtype."""
    return [str(value) for value in column.to_numpy(object)]


class VoxelSources(Sequence[VoxelSource]):
    """Voxel sources of many volumes, made when they are asked for: 100,000 of them cost a few megabytes.

    Parameters
    ----------
    collection_uri, token, index
        As for ``source_of``.
    ids, column
        Of the volumes, and what gives a column of their table by its name.
    """

    def __init__(
        self,
        collection_uri: str,
        ids: pd.Index[str],
        column: Callable[[str], pd.Series[Any]],
        token: str,
        index: tuple[str, int] | None = None,
    ) -> None:
        shards, self._shard = np.unique(column("shard").to_numpy(str), return_inverse=True)
        self._uris = [shard_uri(collection_uri, name) for name in shards.tolist()]
        self._slot = column("slot").to_numpy(np.int64)
        sizes = [column(n).to_numpy(np.int64) for n in ("channels", "size_x", "size_y", "size_z")]
        self._shape = np.stack(sizes, axis=1)
        dtypes, self._dtype = np.unique(column("dtype").to_numpy(str), return_inverse=True)
        self._dtypes = [str(d) for d in dtypes]
        self._scale = np.stack([column(n).to_numpy(np.float64) for n in ("slope", "intercept")], axis=1)
        self._ids = strings(ids)
        self._subjects = strings(column(SUBJECT))
        self._token, self._index = token, index

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> VoxelSource: ...
    @overload
    def __getitem__(self, at: slice) -> list[VoxelSource]: ...
    def __getitem__(self, at: int | slice) -> VoxelSource | list[VoxelSource]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        channels, x, y, z = self._shape[at].tolist()
        slope, intercept = self._scale[at].tolist()
        return VoxelSource(
            uri=self._uris[self._shard[at]],
            slot=int(self._slot[at]),
            shape=(channels, x, y, z),
            dtype=self._dtypes[self._dtype[at]],
            slope=slope,
            intercept=intercept,
            obs_id=self._ids[at],
            subject=self._subjects[at],
            token=self._token,
            index=self._index,
        )


def affine_of(row: pd.Series[Any]) -> Affine:
    """Affine of a row, shape ``(4, 4)``, float64."""
    return np.asarray(row["affine"], np.float64).reshape(4, 4)
