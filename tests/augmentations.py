"""Transforms that worker processes of any start method can import."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Sample = dict[str, Any]
KEYS = ["image", "label"]


def shifted(sample: Sample, *, rng: np.random.Generator) -> Sample:
    """NumPy function with a generator of its own."""
    return {**sample, "image": sample["image"] + rng.normal(0, 10), "shift": torch.tensor(rng.normal())}


def noisy(sample: Sample) -> Sample:
    """Torch, NumPy and Python functions that draw from global generators; a mean depends on threads."""
    import random

    image = sample["image"].float() + torch.randn(sample["image"].shape) + np.random.normal() + random.random()
    return {**sample, "image": image - image.mean()}


def monai_pipeline(*, lazy: bool = False) -> Any:
    """Spatial and intensity augmentation of MONAI."""
    import monai.transforms as mt

    affine = mt.RandAffined(
        KEYS, prob=0.8, rotate_range=0.4, scale_range=0.2, mode=("bilinear", "nearest"), padding_mode="border"
    )
    choice = mt.OneOf([mt.RandScaleIntensityd("image", 0.3, prob=1), mt.RandShiftIntensityd("image", 30, prob=1)])
    noise = mt.RandGaussianNoised("image", prob=0.7, std=20.0)
    return mt.Compose([mt.RandFlipd(KEYS, prob=0.5, spatial_axis=0), affine, choice, noise], lazy=lazy)


def torchio_pipeline() -> Any:
    """Augmentation of TorchIO in its adapter."""
    import torchio as tio

    from radiodata.loading.transforms import TorchIO

    return TorchIO(tio.Compose([tio.RandomAffine(p=0.8), tio.RandomNoise(std=5), tio.RandomFlip()]))


def everything() -> list[Any]:
    """All kinds in one list."""
    return [shifted, monai_pipeline(), [noisy, torchio_pipeline()], monai_pipeline(lazy=True)]
