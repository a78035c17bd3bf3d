"""Intensity normalisation on the device, from statistics recorded at ingest: no pass over the voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from radiodata.store import VolumeCollection

Normalization: TypeAlias = 'Literal["ct", "mr"] | None'


@dataclass(frozen=True)
class Window:
    """Intensities of a training set: clip to ``low..high``, then subtract `mean` and divide by `std`.

    Percentiles 0.5 and 99.5 of the voxels inside labels, and the moments after clipping, as nnU-Net does for CT
    (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z); of all voxels above air where there are no labels.
    """

    low: float
    high: float
    mean: float
    std: float

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise an image of any shape into float32."""
        return (image.float().clamp_(self.low, self.high) - self.mean) / self.std


def window_of(collection: VolumeCollection) -> Window:
    """Window of a collection, from the histograms of its volumes; no voxel is read.

    Of the voxels inside labels, where labels were ingested with every volume; else of those above air.
    """
    from radiodata.store.fingerprint import intensities

    inside = collection.obs["foreground_voxels"]
    labelled = bool(inside.notna().all() and inside.sum() > 0)
    return _window(*intensities(collection, foreground=labelled))


def _window(values: NDArray[Any], counts: NDArray[Any]) -> Window:
    if not counts.sum():
        return Window(0.0, 1.0, 0.0, 1.0)
    reached = np.cumsum(counts) / counts.sum()
    low, high = (float(values[np.searchsorted(reached, q)]) for q in (0.005, 0.995))
    clipped = np.clip(values, low, high)
    mean = float(np.average(clipped, weights=counts))
    std = float(np.sqrt(np.average((clipped - mean) ** 2, weights=counts)))
    return Window(low, high, mean, std or 1.0)


def standardize(image: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """Z-score every image by its own volume's mean and standard deviation (MR).

    Parameters
    ----------
    image
        ``(B, C, x, y, z)``.
    stats
        ``(B, 4)``: mean, standard deviation, percentiles 0.5 and 99.5.
    """
    shape = (-1, *(1,) * (image.ndim - 1))
    mean, std = stats[:, 0].view(shape), stats[:, 1].view(shape)
    return (image.float() - mean) / std.clamp(min=1e-6)


def check_normalization(kind: str | None) -> None:
    """Refuse a kind of normalisation that is not known."""
    if kind not in ("ct", "mr", None):
        raise ConfigError(f"normalize must be 'ct', 'mr' or None, not {kind!r}")
