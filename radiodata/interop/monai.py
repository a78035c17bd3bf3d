"""MONAI: samples with MetaTensor where that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ToMetaTensor:
    """Transform: tensors of a sample become ``monai.data.MetaTensor``, with the affine of the crop.

    To be the last of a dataset's transforms; the loader is to have ``collate_fn=monai.data.list_data_collate``, which
    keeps what they carry, and ``monai.data.decollate_batch`` takes the batch apart again.

    Parameters
    ----------
    keys
        Of the sample; those that it lacks are passed over.
    """

    def __init__(self, keys: Sequence[str] = ("image", "label")) -> None:
        self.keys = tuple(keys)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give a sample with such tensors; ``filename_or_obj`` is the volume's id."""
        from monai.data import MetaTensor

        affine = torch.as_tensor(sample["affine"], dtype=torch.float64)
        meta = {"filename_or_obj": str(sample["obs_id"]), "spatial_shape": [int(n) for n in sample["shape"]]}
        return {
            **sample,
            **{
                key: MetaTensor(sample[key], affine=affine.clone(), meta=dict(meta))
                for key in self.keys
                if key in sample
            },
        }
