"""Weights of a window's voxels: how overlapping predictions share a voxel."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from radiodata.geometry import Shape3

Blend: TypeAlias = Literal["constant", "gaussian", "linear", "cosine", "hann"]
BLENDS: tuple[str, ...] = get_args(Blend)
LEAST = 1e-3


def window_weights(patch: Shape3, blend: Blend = "gaussian", *, sigma: float = 0.125) -> torch.Tensor:
    """Weight of each voxel of a window.

    Parameters
    ----------
    patch
        Shape of the window.
    blend
        ``"constant"``: all alike. ``"gaussian"``: most in the middle, where a network sees the most around; the
        default of nnU-Net (Isensee et al., Nature Methods 2021). ``"linear"``: a hat. ``"cosine"``: half a
        period, flatter in the middle than the hat. ``"hann"``: a whole raised one, of which halves that overlap add up
        to the same everywhere.
    sigma
        Of the gaussian, as a share of the patch; an eighth in nnU-Net's and MONAI's sliding windows.

    Returns
    -------
    Tensor of float32, shape `patch`
        At most 1 and at least 0.001 (MONAI's bound), so that what only a corner has seen keeps its digits.

    Raises
    ------
    ConfigError
        When there is no such blend, or `sigma` is not positive.
    """
    if blend not in BLENDS:
        raise ConfigError(f"blend={blend!r}: choose one of {', '.join(BLENDS)}")
    if not sigma > 0:
        raise ConfigError(f"sigma={sigma}: give a positive share of the patch, such as 0.125")
    profiles = [_profile(n, blend, sigma) for n in patch]
    product = reduce(lambda a, b: a[..., None] * b, profiles)
    return product.clamp_min(LEAST).to(torch.float32)


def _profile(length: int, blend: str, sigma: float) -> torch.Tensor:
    """Weights along one axis; positive, and symmetric about its middle."""
    x = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    if blend == "gaussian":
        return torch.exp(-(x**2) / (2 * (sigma * length) ** 2))
    if blend == "linear":
        return 1 - x.abs() / ((length + 1) / 2)
    if blend == "hann":
        return torch.cos(torch.pi * x / (length + 1)) ** 2
    if blend == "cosine":
        return torch.cos(torch.pi * x / (length + 1))
    return torch.ones(length, dtype=torch.float64)
