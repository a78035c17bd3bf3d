"""A sample: voxels and what a training loop needs to know of them, as a plain dict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from radiodata.geometry import box, clip_box, crop_affine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Voxels
    from radiodata.loading.aligned import AlignedVolumes

Sample: TypeAlias = "dict[str, Any]"


def make_sample(
    held: AlignedVolumes,
    volume: int,
    start: NDArray[np.int64],
    shape: Sequence[int] | NDArray[np.int64],
    voxels: Mapping[str, Voxels],
    *,
    key: int,
    padding: bool,
) -> Sample:
    """Make the sample of a crop (see ``PatchDataset`` for its fields).

    Parameters
    ----------
    held, volume
        The volumes, and which of them.
    start, shape
        Of the crop, in voxels; a start is negative where the volume is smaller than the crop.
    voxels
        Key to voxels ``(channel, x, y, z)``.
    key, padding
        Seed of whatever is random about the sample; whether it only fills a batch.
    """
    where = box(start, start + np.asarray(shape))
    real = clip_box(where, held.volumes.shapes[volume])
    return {
        **{name: torch.from_numpy(array) for name, array in voxels.items()},
        **{f"{name}_stats": torch.from_numpy(stats[volume].copy()) for name, stats in held.stats.items()},
        "affine": torch.from_numpy(crop_affine(held.affines[volume], start)),
        "spacing": torch.from_numpy(held.spacings[volume].copy()),
        "obs_subject_id": held.volumes.subjects[volume],
        "obs_id": held.obs_ids[volume],
        "box": torch.from_numpy(where),
        "valid": torch.from_numpy(real - start[:, None]),
        "is_padding": padding,
        "key": key,
    }
