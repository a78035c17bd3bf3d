"""From a cohort to what a plan and a reader need: the same subjects, in one order, under every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from radiodata.errors import ConfigError, PlanError
from radiodata.loading.reading import KeySource
from radiodata.loading.tables import TableTarget, weights_of
from radiodata.sampling import LabelIndex, Needs, TileIndex, Volumes
from radiodata.store.obs import strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata.store import Cohort, VolumeCollection

Keys: TypeAlias = "Mapping[str, str | Sequence[str]]"
"""Sample key to collection, or to collections whose channels are stacked."""

_TORCH_DTYPES = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float64": "float32"}
"""Dtypes that torch lacks, or that a network has no use for, and what a crop is given as instead."""

STATS = ("value_mean", "value_std", "value_p005", "value_p995")
_SIZES = ("size_x", "size_y", "size_z")
_SPACINGS = ("spacing_x", "spacing_y", "spacing_z")
_CORNER_MM = 0.05


@dataclass(frozen=True)
class AlignedVolumes:
    """Volumes of each key, subject by subject.

    Attributes
    ----------
    volumes
        What the plan is made of.
    keys
        What the reader is made of.
    affines
        Of the first key's volumes, float64, shape ``(V, 4, 4)``.
    spacings
        In mm, float64, shape ``(V, 3)``.
    obs_ids
        Of the first key's volumes.
    stats
        For each image key: mean, standard deviation, percentiles 0.5 and 99.5 of the voxels above air;
        float32, shape ``(V, 4)``, or ``(V, n, 4)`` where the key stacks n collections.
    targets
        Sample key to one value a volume from the tables.
    """

    volumes: Volumes
    keys: dict[str, KeySource]
    affines: NDArray[np.float64]
    spacings: NDArray[np.float64]
    obs_ids: list[str]
    stats: dict[str, NDArray[np.float32]]
    targets: dict[str, NDArray[Any]] = field(default_factory=dict)


def align(
    cohort: Cohort,
    keys: Keys,
    needs: Needs | None = None,
    *,
    targets: Mapping[str, str | Mapping[str, Any] | TableTarget] | None = None,
    check_affines: bool = True,
) -> AlignedVolumes:
    """Line up the collections behind `keys` by subject.

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    keys
        Sample key to collection, or to several to be stacked. The first sets the grid.
    needs
        What a policy asks to know of the volumes.
    targets
        Sample key to a column of the tables.
    check_affines
        Refuse volumes of one subject whose corners lie more than 0.05 mm, or 1 % of a voxel, apart.

    Raises
    ------
    ConfigError
        When no key is given.
    PlanError
        When a subject has no volume, or several, in one of the collections, or its volumes do not align; when
        a column or a value is missing.
    """
    if not keys:
        raise ConfigError('a dataset needs keys, such as {"image": "CT", "label": "seg"}')
    taken = sorted(set(keys) & set(targets or {}))
    if taken:
        raise ConfigError(f"targets {taken} have the names of volume keys: choose others")
    lined = _Lined(cohort, check_affines)
    held = {key: [lined.up(n) for n in ([names] if isinstance(names, str) else names)] for key, names in keys.items()}
    first = lined.first
    return AlignedVolumes(
        volumes=_volumes(cohort, held, needs or Needs(), lined),
        keys={key: _key_source(key, collections) for key, collections in held.items()},
        affines=lined.affines,
        spacings=_numbers(first, _SPACINGS, np.float64),
        obs_ids=first.ids,
        stats={k: _stats(c) for k, c in held.items() if c[0].kind == "image"},
        targets={k: TableTarget.of(t).values(cohort, first) for k, t in (targets or {}).items()},
    )


class _Lined:
    """Collections in the order of the cohort's subjects, on the grid of the first one asked for."""

    def __init__(self, cohort: Cohort, check_affines: bool) -> None:
        self._cohort, self._check, self.subjects = cohort, check_affines, cohort.subjects
        self._held: dict[str, VolumeCollection] = {}

    def up(self, name: str) -> VolumeCollection:
        """Line up a collection; refuse it where it does not align."""
        if name not in self._held:
            collection = _by_subject(self._cohort[name], self.subjects)
            if not self._held:
                self.first = collection
                self.shapes = _numbers(collection, _SIZES, np.int64)
                self.affines = _affines(collection)
            else:
                self._refuse_other_grid(collection)
            self._held[name] = collection
        return self._held[name]

    def _refuse_other_grid(self, other: VolumeCollection) -> None:
        found = _numbers(other, _SIZES, np.int64)
        differ = (found != self.shapes).any(axis=1)
        self._refuse(differ, other, lambda i: f"shapes {tuple(self.shapes[i].tolist())} and {tuple(found[i].tolist())}")
        if self._check:
            apart = _corners_apart(self.affines, _affines(other), self.shapes)
            spacing = _numbers(self.first, _SPACINGS, np.float64)
            self._refuse(
                apart > np.maximum(_CORNER_MM, spacing.min(axis=1) / 100),
                other,
                lambda i: f"their corners lie {apart[i]:.3g} mm apart",
            )

    def _refuse(self, differ: NDArray[np.bool_], other: VolumeCollection, how: Any) -> None:
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise PlanError(
                f"collections {self.first.name!r} and {other.name!r} do not align for {int(differ.sum())} subjects, "
                f"such as {self.subjects[at]!r}: {how(at)}. Resample one onto the other's grid before ingesting"
                f"{'' if 'shapes' in how(at) else ', or pass check_affines=False'}."
            )


def _by_subject(collection: VolumeCollection, subjects: list[str]) -> VolumeCollection:
    held = pd.Index(strings(collection.column("obs_subject_id")))
    at = held.get_indexer(pd.Index(subjects)) if held.is_unique else np.array([-1])
    if at.min(initial=0) >= 0:
        return collection.iloc[at]
    counts = held.value_counts()
    wrong = [s for s in subjects if counts.get(s, 0) != 1]
    found = {s: int(counts.get(s, 0)) for s in wrong[:10]}
    raise PlanError(
        f"collection {collection.name!r} must hold one volume for each subject; it holds {found}"
        f"{' and more' if len(wrong) > 10 else ''}. Restrict the cohort with cohort.subset([...])."
    )


def _numbers(collection: VolumeCollection, names: Sequence[str], dtype: type[np.generic]) -> NDArray[Any]:
    """Columns of numbers beside each other."""
    return np.column_stack([collection.column(name).to_numpy(dtype) for name in names])


def _affines(collection: VolumeCollection) -> NDArray[np.float64]:
    flat = collection.column("affine").tolist()
    return np.array(flat, np.float64).reshape(len(flat), 4, 4)


def _corners_apart(
    one: NDArray[np.float64], other: NDArray[np.float64], shapes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Largest distance of any corner under two affines, in mm, shape ``(V,)``."""
    apart = np.zeros(len(shapes))
    for corner in np.ndindex(2, 2, 2):
        at = np.column_stack([(shapes - 1) * np.array(corner), np.ones(len(shapes))])
        moved = np.einsum("vij,vj->vi", one - other, at)[:, :3]
        apart = np.maximum(apart, np.linalg.norm(moved, axis=1))
    return apart


def _volumes(cohort: Cohort, held: dict[str, list[VolumeCollection]], needs: Needs, lined: _Lined) -> Volumes:
    labels = {k: c[0] for k, c in held.items() if c[0].kind == "label"} if needs.labels else {}
    image = next((c[0] for c in held.values() if c[0].kind == "image"), None)
    maps = {n: lined.up(n) for n in sorted(needs.names) if n in cohort}
    first = lined.first
    return Volumes(
        tuple(lined.subjects),
        lined.shapes,
        first.tile,
        labels={k: _label_index(c) for k, c in labels.items()},
        tissue=_tile_index(image, "tile_nonair") if needs.tissue and image is not None else None,
        maps={n: _tile_index(c, "tile_sum") for n, c in maps.items()},
        columns={n: weights_of(cohort, first, n) for n in sorted(needs.names - set(maps))},
        channels=first.column("channels").to_numpy(np.int64),
        voxel_bytes={k: _voxel_bytes(c) for k, c in held.items()},
    )


def _label_index(collection: VolumeCollection) -> LabelIndex:
    columns = collection.tile_columns(["tile", "label", "voxels", "kept", "points"])
    flat = {name: column.values for name, column in columns.items()}
    first_point = np.concatenate([[0], np.cumsum(flat["kept"])]).astype(np.int64)
    return LabelIndex(columns["label"].start, flat["tile"], flat["label"], flat["voxels"], first_point, flat["points"])


def _tile_index(collection: VolumeCollection, name: str) -> TileIndex:
    """One number a tile: the mean over channels."""
    column = collection.tile_columns([name])[name]
    low, channels = collection.column("value_min").to_numpy(np.float64), collection.column("channels").tolist()
    if set(channels) <= {1}:
        return TileIndex(column.start, column.values.astype(np.float64), low)
    means = [r.astype(np.float64).reshape(c, -1).mean(axis=0) for r, c in zip(column.rows(), channels, strict=True)]
    return TileIndex.from_rows(means, low)


def _stats(collections: list[VolumeCollection]) -> NDArray[np.float32]:
    each = [_numbers(c, STATS, np.float32) for c in collections]
    return each[0] if len(each) == 1 else np.stack(each, axis=1)


def _dtype(collections: list[VolumeCollection]) -> str:
    stored: set[str] = set()
    for collection in collections:
        scaled = ((collection.column("slope") != 1.0) | (collection.column("intercept") != 0.0)).to_numpy(bool)
        stored |= set(collection.column("dtype")[~scaled].unique()) | ({"float32"} if scaled.any() else set())
    dtype = str(np.result_type(*stored)) if stored else "int16"
    return _TORCH_DTYPES.get(dtype, dtype)


def _voxel_bytes(collections: list[VolumeCollection]) -> int:
    channels = sum(int(c.column("channels").max()) if len(c) else 1 for c in collections)
    return channels * np.dtype(_dtype(collections)).itemsize


def _key_source(key: str, collections: list[VolumeCollection]) -> KeySource:
    kinds = {c.kind for c in collections}
    if len(kinds) > 1:
        raise ConfigError(
            f"key {key!r} stacks images and labels ({[c.name for c in collections]}): give each its own key"
        )
    label = kinds == {"label"}
    lowest = [c.column("value_min").to_numpy(np.float64) for c in collections]
    pads = np.zeros((len(lowest[0]), len(lowest))) if label else np.stack(lowest, axis=1)
    return KeySource([c.sources() for c in collections], _dtype(collections), pads, label)
