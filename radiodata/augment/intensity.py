"""Changes of intensity, sample by sample, of batches ``(n, C, ...)``; each has one number a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from radiodata.augment.draws import normals

if TYPE_CHECKING:
    from collections.abc import Sequence


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers ``(n,)``, or ``(n, C)``, in a shape that goes with a batch, on its device."""
    return values.to(like.device, like.dtype).reshape(*values.shape, *(1,) * (like.ndim - values.ndim))


def add_noise(image: torch.Tensor, std: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Add normal noise of standard deviation `std`, ``(n,)``."""
    noise = torch.stack([normals(seed, image.shape[1:], image.device) for seed in seeds])
    return image + per_sample(std, image) * noise.to(image.dtype)


def blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur by a Gaussian of `sigma` voxels, ``(n, C)``, cut off at three of the largest."""
    radius = max(1, int((3 * sigma.max()).ceil()))
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-(steps**2) / (2 * sigma[..., None].clamp(min=1e-3) ** 2))
    weights = weights / weights.sum(-1, keepdim=True)
    for axis in range(2, image.ndim):
        length = image.shape[axis]
        out = torch.zeros_like(image)
        for place, step in enumerate(range(-radius, radius + 1)):
            index = (torch.arange(length, device=image.device) + step).clamp(0, length - 1)
            out += per_sample(weights[..., place], image) * image.index_select(axis, index)
        image = out
    return image


def scale_intensity(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply by `factor`, ``(n,)``."""
    return image * per_sample(factor, image)


def change_contrast(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Stretch about the mean of each channel by `factor`, ``(n,)``; what was the range stays the range."""
    axes = tuple(range(2, image.ndim))
    mean = image.mean(axes, keepdim=True)
    stretched = (image - mean) * per_sample(factor, image) + mean
    return torch.minimum(torch.maximum(stretched, image.amin(axes, keepdim=True)), image.amax(axes, keepdim=True))


def change_gamma(image: torch.Tensor, gamma: torch.Tensor, *, invert: bool = False) -> torch.Tensor:
    """Raise intensities, scaled to 0..1, to the power `gamma`, ``(n,)``; mean and spread of each channel are kept."""
    axes = tuple(range(2, image.ndim))
    signed = -image if invert else image
    low, high = signed.amin(axes, keepdim=True), signed.amax(axes, keepdim=True)
    width = (high - low).clamp(min=1e-7)
    changed = ((signed - low) / width) ** per_sample(gamma, image) * width + low
    mean, std = signed.mean(axes, keepdim=True), signed.std(axes, keepdim=True)
    now, spread = changed.mean(axes, keepdim=True), changed.std(axes, keepdim=True).clamp(min=1e-7)
    kept = (changed - now) / spread * std + mean
    return -kept if invert else kept


def lower_resolution(image: torch.Tensor, zoom: torch.Tensor) -> torch.Tensor:
    """Take every sample down to `zoom`, ``(n,)`` in 0..1, of its resolution (nearest voxel), and back (linear)."""
    return torch.stack([_lowered(one, float(z)) for one, z in zip(image, zoom, strict=True)])


def _lowered(image: torch.Tensor, zoom: float) -> torch.Tensor:
    for axis in range(1, image.ndim):
        length = image.shape[axis]
        coarse = max(1, round(length * zoom))
        ratio = length / coarse
        kept = ((torch.arange(coarse, device=image.device) + 0.5) * ratio - 0.5).round().long().clamp(0, length - 1)
        at = (torch.arange(length, device=image.device, dtype=torch.float32) + 0.5) / ratio - 0.5
        low = at.floor().clamp(0, coarse - 1)
        share = (at - low).clamp(0, 1).to(image.dtype).view(-1, *(1,) * (image.ndim - 1 - axis))
        low = low.long()
        few = image.index_select(axis, kept)
        after = (low + 1).clamp(max=coarse - 1)
        image = torch.lerp(few.index_select(axis, low), few.index_select(axis, after), share)
    return image
