"""A sample: voxels and what a training loop needs to know of them, as a plain dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from radiodata.geometry import box, clip_box, crop_affine
from radiodata.loading.tables import as_sample_value

if TYPE_CHECKING:
    from radiodata.loading.aligned import AlignedVolumes
    from radiodata.loading.reading import Crop

Sample: TypeAlias = "dict[str, Any]"


def make_sample(held: AlignedVolumes, crop: Crop, *, key: int, padding: bool) -> Sample:
    """Make the sample of a crop (see ``PatchDataset`` for its fields).

    Parameters
    ----------
    held
        The volumes that the crop's is one of.
    crop
        Its voxels, and where they lie.
    key, padding
        Seed of whatever is random about the sample; whether it only fills a batch.
    """
    volume = crop.volume
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
        "is_padding": padding,
        "key": key,
    }
