"""What a training plan must know of a cohort: spacings, shapes, intensities, classes; from its tables, no voxel."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.store.cohort import Cohort
    from radiodata.store.collection import VolumeCollection

    Vector = tuple[float, float, float]

_ANISOTROPIC = 3.0


@dataclass(frozen=True)
class Intensity:
    """Physical values of many volumes, from their histograms.

    Attributes
    ----------
    voxels
        How many there are.
    p005, p50, p995
        Percentiles 0.5, 50 and 99.5.
    """

    voxels: int
    min: float
    max: float
    mean: float
    std: float
    p005: float
    p50: float
    p995: float


@dataclass(frozen=True)
class Class:
    """One class of a label collection.

    Attributes
    ----------
    volumes
        That it occurs in.
    voxels
        Of all of them.
    components
        Connected components of each of those volumes, on average.
    component_mm3
        Median volume of a component.
    component_mm
        Median sides of the box around a component, mm.
    """

    volumes: int
    voxels: int
    components: float
    component_mm3: float
    component_mm: Vector


@dataclass(frozen=True)
class Images:
    """An image collection.

    Attributes
    ----------
    shape, spacing
        Medians: voxels, and mm.
    target_spacing
        mm that nnU-Net resamples to: the median; along an axis that is more than three times as coarse as the others,
        and has less than a third of their voxels, the 10th percentile, but no less than the others.
    target_shape
        Median shape at that spacing.
    body, foreground
        Intensities of voxels above air, and of those inside labels; None where there are none.
    """

    volumes: int
    channels: int
    dtypes: list[str]
    shape: Vector
    shape_range: tuple[Vector, Vector]
    spacing: Vector
    spacing_range: tuple[Vector, Vector]
    target_spacing: Vector
    target_shape: Vector
    body: Intensity | None
    foreground: Intensity | None


@dataclass(frozen=True)
class Labels:
    """A label collection, by class."""

    volumes: int
    classes: dict[int, Class]


@dataclass(frozen=True)
class Fingerprint:
    """A cohort as nnU-Net's dataset fingerprint sums it up (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z)."""

    subjects: int
    images: dict[str, Images]
    labels: dict[str, Labels]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def fingerprint(cohort: Cohort) -> Fingerprint:
    """Sum up a cohort; see ``Cohort.fingerprint``."""
    held = {name: cohort[name] for name in cohort.collections if len(cohort[name])}
    images = {name: _images(c) for name, c in held.items() if c.kind == "image"}
    labels = {name: _labels(c) for name, c in held.items() if c.kind == "label"}
    return Fingerprint(len(cohort), images, labels)


def intensities(collection: VolumeCollection, *, foreground: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values that occur in a collection, sorted, and how often each does: centres of the bins of its histograms.

    Parameters
    ----------
    foreground
        Of the voxels inside labels; else of those above air.
    """
    table = collection.histograms(foreground=foreground)
    values, counts = [np.zeros(0)], [np.zeros(0)]
    airs = collection.obs["air_threshold"].tolist()
    for air, (histogram, start, width) in zip(airs, table.itertuples(index=False), strict=True):
        at = start + width * (np.arange(len(histogram)) + (0.0 if width == 1 else 0.5))  # whole: the bin is the value
        kept = np.ones(len(at), bool) if foreground else at > air
        values.append(at[kept])
        counts.append(np.asarray(histogram, np.float64)[kept])
    merged, inverse = np.unique(np.concatenate(values), return_inverse=True)
    return merged, np.bincount(inverse, np.concatenate(counts), minlength=len(merged))


def _intensity(collection: VolumeCollection, name: str) -> Intensity | None:
    values, counts = intensities(collection, foreground=name == "foreground")
    total = counts.sum()
    if not total:
        return None
    reached = np.cumsum(counts) / total
    low, middle, high = (float(values[np.searchsorted(reached, q)]) for q in (0.005, 0.5, 0.995))
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    prefix = "foreground" if name == "foreground" else "value"
    ends = float(collection.obs[f"{prefix}_min"].min()), float(collection.obs[f"{prefix}_max"].max())
    return Intensity(int(total), *ends, mean, std, low, middle, high)


def typical_shape(collection: VolumeCollection) -> Vector:
    """Median shape of the volumes of a collection, in voxels."""
    return _vector(np.median(_shapes(collection), axis=0))


def _shapes(collection: VolumeCollection) -> NDArray[Any]:
    return collection.obs[[f"size_{a}" for a in "xyz"]].to_numpy(np.float64)


def _images(collection: VolumeCollection) -> Images:
    obs, shapes = collection.obs, _shapes(collection)
    spacings = obs[[f"spacing_{a}" for a in "xyz"]].to_numpy(np.float64)
    target = _target(np.median(shapes, axis=0), spacings)
    return Images(
        len(collection),
        int(obs["channels"].max()),
        sorted({str(d) for d in obs["dtype"]}),
        typical_shape(collection),
        (_vector(shapes.min(axis=0)), _vector(shapes.max(axis=0))),
        _vector(np.median(spacings, axis=0)),
        (_vector(spacings.min(axis=0)), _vector(spacings.max(axis=0))),
        _vector(target),
        _vector(np.median(shapes * spacings / target, axis=0)),
        _intensity(collection, "body"),
        _intensity(collection, "foreground"),
    )


def _target(shape: NDArray[Any], spacings: NDArray[Any]) -> NDArray[Any]:
    target = np.median(spacings, axis=0)
    coarse = int(np.argmax(target))
    others = np.delete(np.arange(3), coarse)
    if target[coarse] > _ANISOTROPIC * target[others].max() and shape[coarse] * _ANISOTROPIC < shape[others].max():
        target = target.copy()
        target[coarse] = max(np.percentile(spacings[:, coarse], 10), target[others].max() + 1e-5)
    return np.asarray(target)


def _labels(collection: VolumeCollection) -> Labels:
    obs, found = collection.obs, dict[int, list[Any]]()
    parts = collection.components()
    columns = (parts[n] for n in ("component_labels", "component_voxels", "component_boxes"))
    voxel = obs[[f"spacing_{a}" for a in "xyz"]].to_numpy(np.float64)
    rows = zip(obs["label_values"], obs["label_voxels"], voxel, *columns, strict=True)
    for values, counts, spacing, classes, sizes, boxes in rows:
        sides = np.asarray(boxes, np.float64).reshape(-1, 3, 2)
        sides = (sides[:, :, 1] - sides[:, :, 0]) * spacing
        for value, count in zip(values, counts, strict=True):
            if value > 0:
                mine = np.asarray(classes) == value
                mm3 = np.asarray(sizes, np.float64)[mine] * float(spacing.prod())
                found.setdefault(int(value), []).append((int(count), mm3, sides[mine]))
    return Labels(len(collection), {value: _class(found[value]) for value in sorted(found)})


def _class(volumes: list[Any]) -> Class:
    sizes = np.concatenate([mm3 for _, mm3, _ in volumes])
    sides = np.concatenate([s for _, _, s in volumes])
    some = len(sizes) > 0
    return Class(
        len(volumes),
        sum(count for count, _, _ in volumes),
        len(sizes) / len(volumes),
        float(np.median(sizes)) if some else 0.0,
        _vector(np.median(sides, axis=0)) if some else (0.0, 0.0, 0.0),
    )


def _vector(values: Any) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z
