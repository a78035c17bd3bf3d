"""Intensity normalisation on the device, from statistics recorded at ingest: no pass over the voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from radiodata.store import VolumeCollection

Normalization: TypeAlias = 'Literal["ct", "mr"] | None'


@dataclass(frozen=True)
class Window:
    """Intensities of a training set: clip to ``low..high``, then subtract `mean` and divide by `std`.

    Percentiles 0.5 and 99.5 of all voxels above air, and the moments after clipping, as nnU-Net does for CT
    (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), here over body voxels.
    """

    low: float
    high: float
    mean: float
    std: float

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise an image of any shape into float32."""
        return (image.float().clamp_(self.low, self.high) - self.mean) / self.std


def window_of(collection: VolumeCollection) -> Window:
    """Window of a collection, from the histograms of its volumes; no voxel is read."""
    table = collection.histograms()
    values, counts = [], []
    columns = (table[n].tolist() for n in ("histogram", "histogram_start", "histogram_width"))
    for histogram, start, width, air in zip(*columns, collection.obs["air_threshold"].tolist(), strict=True):
        at = np.arange(len(histogram)) + (0.0 if width == 1 else 0.5)  # whole numbers: the bin is the value
        above = start + width * at > air
        values.append((start + width * at)[above])
        counts.append(np.asarray(histogram)[above])
    return _window(np.concatenate(values), np.concatenate(counts).astype(np.float64))


def _window(values: np.ndarray, counts: np.ndarray) -> Window:  # type: ignore[type-arg]
    if not counts.sum():
        return Window(0.0, 1.0, 0.0, 1.0)
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
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
