"""From a cohort to what a plan and a reader need: the same subjects, in one order, under every key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from radiodata.errors import ConfigError, PlanError
from radiodata.loading.blocks import KeySource
from radiodata.sampling import LabelIndex, Volumes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from radiodata.store import Cohort, VolumeCollection

_TORCH_DTYPES = {"uint16": "int32", "uint32": "int64", "uint64": "int64", "float64": "float32"}
"""Dtypes that torch lacks, or that a network has no use for, and what a crop is given as instead."""

STATS = ("value_mean", "value_std", "value_p005", "value_p995")


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
        float32, shape ``(V, 4)``.
    """

    volumes: Volumes
    keys: dict[str, KeySource]
    affines: NDArray[np.float64]
    spacings: NDArray[np.float64]
    obs_ids: list[str]
    stats: dict[str, NDArray[np.float32]]


def align(cohort: Cohort, keys: Mapping[str, str]) -> AlignedVolumes:
    """Line up the collections behind `keys` by subject.

    Parameters
    ----------
    cohort
        The cohort, or a part of it.
    keys
        Sample key to collection name: ``{"image": "CT", "label": "seg"}``. The first sets the grid.

    Raises
    ------
    ConfigError
        When no key is given.
    PlanError
        When a subject has no volume, or several, in one of the collections, or its volumes differ in shape.
    """
    if not keys:
        raise ConfigError('a dataset needs keys, such as {"image": "CT", "label": "seg"}')
    subjects = cohort.subjects
    held = {key: _by_subject(cohort[name], subjects) for key, name in keys.items()}
    first = next(iter(held.values()))
    shapes = first.obs[["size_x", "size_y", "size_z"]].to_numpy(np.int64)
    for collection in held.values():
        _refuse_other_shapes(first, collection, shapes, subjects)
    labelled = next((c for c in held.values() if c.kind == "label"), None)
    volumes = Volumes(tuple(subjects), shapes, first.tile, None if labelled is None else _label_index(labelled))
    return AlignedVolumes(
        volumes=volumes,
        keys={key: _key_source(collection) for key, collection in held.items()},
        affines=np.stack([np.asarray(a, np.float64).reshape(4, 4) for a in first.obs["affine"]])
        if subjects
        else np.zeros((0, 4, 4)),
        spacings=first.obs[["spacing_x", "spacing_y", "spacing_z"]].to_numpy(np.float64),
        obs_ids=[str(i) for i in first.obs.index],
        stats={k: c.obs[list(STATS)].to_numpy(np.float32) for k, c in held.items() if c.kind == "image"},
    )


def _by_subject(collection: VolumeCollection, subjects: list[str]) -> VolumeCollection:
    counts = collection.obs["obs_subject_id"].value_counts()
    wrong = [s for s in subjects if counts.get(s, 0) != 1]
    if wrong:
        found = {s: int(counts.get(s, 0)) for s in wrong[:10]}
        raise PlanError(
            f"collection {collection.name!r} must hold one volume for each subject; it holds {found}"
            f"{' and more' if len(wrong) > 10 else ''}. Restrict the cohort with cohort.subset([...])."
        )
    order = collection.obs.reset_index().set_index("obs_subject_id").loc[subjects, "obs_id"]
    return collection.view(collection.obs.loc[order.tolist()])


def _refuse_other_shapes(
    first: VolumeCollection, other: VolumeCollection, shapes: NDArray[np.int64], subjects: list[str]
) -> None:
    found = other.obs[["size_x", "size_y", "size_z"]].to_numpy(np.int64)
    differ = np.flatnonzero((found != shapes).any(axis=1))
    if len(differ):
        at = int(differ[0])
        raise PlanError(
            f"collections {first.name!r} and {other.name!r} do not align for {len(differ)} subjects, such as "
            f"{subjects[at]!r}: shapes {tuple(shapes[at])} and {tuple(found[at])}. Resample one onto the other's grid "
            "before ingesting."
        )


def _label_index(collection: VolumeCollection) -> LabelIndex:
    table = collection.tile_statistics()
    return LabelIndex.from_columns(*(table[n].tolist() for n in ("label", "voxels", "kept", "points")))


def _key_source(collection: VolumeCollection) -> KeySource:
    obs = collection.obs
    scaled = (obs["slope"] != 1.0) | (obs["intercept"] != 0.0)
    stored = set(obs["dtype"][~scaled.to_numpy(bool)]) | ({"float32"} if scaled.any() else set())
    dtype = str(np.result_type(*stored)) if stored else "int16"
    pads = [0.0] * len(obs) if collection.kind == "label" else obs["value_min"].tolist()
    return KeySource(collection.sources(), _TORCH_DTYPES.get(dtype, dtype), pads)
