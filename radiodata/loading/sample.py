"""A sample: voxels and what a training loop needs to know of them, as a plain dict."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch

from radiodata.geometry import box, clip_box, crop_affine
from radiodata.loading.collate import collate_samples
from radiodata.loading.places import in_place
from radiodata.loading.tables import as_sample_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.loading.aligned import AlignedVolumes
    from radiodata.loading.memory import Allocate
    from radiodata.loading.places import Arrays
    from radiodata.loading.reading import Crop

Sample: TypeAlias = "dict[str, Any]"
_NO_ARRAYS: Arrays = MappingProxyType({})


@dataclass(frozen=True)
class Taken:
    """A crop that fills a place of a batch.

    Attributes
    ----------
    key, padding
        Seed of whatever is random about the sample; whether it only fills a batch.
    """

    crop: Crop
    key: int
    padding: bool


def make_sample(held: AlignedVolumes, taken: Taken) -> Sample:
    """Make the sample of a crop, in the crop's memory (see ``PatchDataset`` for its fields).

    Parameters
    ----------
    held
        The volumes that the crop's is one of.
    """
    crop, volume = taken.crop, taken.crop.volume
    where = box(crop.start, crop.start + crop.shape)
    real = clip_box(where, held.volumes.shapes[volume])
    return {
        **{name: torch.from_numpy(array) for name, array in crop.voxels.items()},
        **{f"{name}_stats": torch.from_numpy(stats[volume].copy()) for name, stats in held.stats.items()},
        **{name: as_sample_value(values, volume) for name, values in held.targets.items()},
        **({} if crop.frame is None else {"frame": crop.frame}),
        "affine": torch.from_numpy(crop_affine(held.affines[volume], crop.start)),
        "spacing": torch.from_numpy(held.spacings[volume].copy()),
        "obs_subject_id": held.volumes.subjects[volume],
        "obs_id": held.obs_ids[volume],
        "shape": torch.from_numpy(held.volumes.shapes[volume].copy()),
        "box": torch.from_numpy(where),
        "valid": torch.from_numpy(real - crop.start[:, None]),
        "is_padding": taken.padding,
        "key": taken.key,
    }


def make_batch(held: AlignedVolumes, taken: Sequence[Taken], allocate: Allocate, arrays: Arrays = _NO_ARRAYS) -> Sample:
    """Make the batch of some crops at once: what ``collate_samples`` makes of their samples.

    Parameters
    ----------
    held
        The volumes that the crops' are some of.
    allocate
        Gives the memory of the voxels, by shape and dtype.
    arrays
        Where the crops may lie in their places already (see ``Places``).
    """
    crops = [t.crop for t in taken]
    keys = {name: [crop.voxels[name] for crop in crops] for name in crops[0].voxels}
    if any(v.shape != voxels[0].shape or v.dtype != voxels[0].dtype for voxels in keys.values() for v in voxels):
        samples = [make_sample(held, t) for t in taken]
        return cast("Sample", collate_samples(samples, allocate))  # which says what differs
    volumes = [crop.volume for crop in crops]
    shapes, starts = held.volumes.shapes[volumes], np.array([crop.start for crop in crops])
    where = box(starts, starts + np.array([crop.shape for crop in crops]))
    return {
        **{name: _stacked(voxels, allocate, arrays.get(name)) for name, voxels in keys.items()},
        **{f"{name}_stats": torch.from_numpy(stats[volumes]) for name, stats in held.stats.items()},
        **{
            name: collate_samples([as_sample_value(values, volume) for volume in volumes])
            for name, values in held.targets.items()
        },
        **({} if crops[0].frame is None else {"frame": torch.tensor([crop.frame for crop in crops])}),
        "affine": torch.from_numpy(crop_affine(held.affines[volumes], starts)),
        "spacing": torch.from_numpy(held.spacings[volumes]),
        "obs_subject_id": [held.volumes.subjects[volume] for volume in volumes],
        "obs_id": [held.obs_ids[volume] for volume in volumes],
        "shape": torch.from_numpy(shapes),
        "box": torch.from_numpy(where),
        "valid": torch.from_numpy(np.minimum(np.maximum(where, 0), shapes[..., None]) - starts[..., None]),
        "is_padding": torch.from_numpy(np.array([t.padding for t in taken], np.bool_)),
        "key": torch.from_numpy(np.array([t.key for t in taken], np.int64)),
    }


def _stacked(voxels: Sequence[Voxels], allocate: Allocate, whole: NDArray[Any] | None) -> torch.Tensor:
    if whole is not None and in_place(voxels, whole):
        return torch.from_numpy(whole)
    out = allocate((len(voxels), *voxels[0].shape), voxels[0].dtype)
    for place, one in zip(out, voxels, strict=True):
        place[...] = one
    return torch.from_numpy(out)
