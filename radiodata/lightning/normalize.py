"""Intensity normalisation on the device, from statistics recorded at ingest: no pass over the voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.loading.aligned import Keys
    from radiodata.store import Cohort, VolumeCollection


@dataclass(frozen=True)
class Window:
    """Intensities of a training set: clip to ``low..high``, then subtract `mean` and divide by `std`.

    ``window_of`` takes it of a collection: percentiles 0.5 and 99.5 of the voxels inside labels, and the moments
    after clipping, as nnU-Net does for CT (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z); of all voxels above
    air where there are no labels. Give one of your own for, say, lung: ``Window(-1000, 400, -300, 400)``.
    """

    low: float
    high: float
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Normalise an image of any shape into float32."""
        return (image.float().clamp(self.low, self.high) - self.mean) / self.std


Normalization: TypeAlias = 'Literal["ct", "mr"] | Window | None'
"""``"ct"``: the window of the training subjects; ``"mr"``: z-score by each volume's own statistics; None: none."""


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
    """Z-score every image by its own volume's mean and standard deviation (MR, PET).

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


@dataclass(frozen=True)
class _Part:
    """Channels of one collection within an image."""

    how: Normalization
    channels: int


@dataclass(frozen=True)
class Normalizer:
    """Normalises the images of batches, collection by collection; see ``normalizer_of``."""

    parts: Mapping[str, tuple[_Part, ...]]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint: a network is to be given what it was trained on, whatever is predicted."""
        return {
            key: [{"how": asdict(p.how) if isinstance(p.how, Window) else p.how, "channels": p.channels} for p in parts]
            for key, parts in self.parts.items()
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Normalizer:
        """Undo ``state_dict``."""

        def part(held: Mapping[str, Any]) -> _Part:
            how = held["how"]
            return _Part(Window(**how) if isinstance(how, Mapping) else how, held["channels"])

        return cls({key: tuple(map(part, parts)) for key, parts in state.items()})

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Give a batch whose images are normalised, float32."""
        out = dict(batch)
        for key, parts in self.parts.items():
            if key in batch:
                out[key] = self._image(batch[key], batch.get(f"{key}_stats"), parts)
        return out

    def _image(self, image: torch.Tensor, stats: torch.Tensor | None, parts: tuple[_Part, ...]) -> torch.Tensor:
        if len(parts) == 1:
            return _normalized(image, stats, parts[0].how)
        slices = image.shape[1] // sum(part.channels for part in parts)  # neighbours of a slice are channels
        pieces = torch.split(image, [part.channels * slices for part in parts], dim=1)  # type: ignore[no-untyped-call]
        return torch.cat(
            [
                _normalized(piece, None if stats is None else stats[:, place], part.how)
                for place, (piece, part) in enumerate(zip(pieces, parts, strict=True))
            ],
            dim=1,
        )


def _normalized(image: torch.Tensor, stats: torch.Tensor | None, how: Normalization) -> torch.Tensor:
    if isinstance(how, Window):
        return how(image)
    if how == "mr" and stats is not None:
        return standardize(image, stats)
    return image.float()


def normalizer_of(cohort: Cohort, images: Keys, normalize: Normalization | Mapping[str, Normalization]) -> Normalizer:
    """Normaliser of batches.

    Parameters
    ----------
    cohort
        The training subjects, of whom windows are taken.
    images
        Sample key to collection, or collections, of images.
    normalize
        How; or collection to how.

    Raises
    ------
    ConfigError
        When a collection is given no way, or one that is not known.
    """
    parts = {}
    for key, names in images.items():
        held = [names] if isinstance(names, str) else list(names)
        parts[key] = tuple(_part(cohort[name], normalize) for name in held)
    return Normalizer(parts)


def check_normalization(normalize: Any) -> None:
    """Refuse what is no kind of normalisation.

    Raises
    ------
    ConfigError
        When it is none.
    """
    for how in normalize.values() if isinstance(normalize, Mapping) else (normalize,):
        if not (how in ("ct", "mr", None) or isinstance(how, Window)):
            raise ConfigError(f"normalize must be 'ct', 'mr', a Window or None, or name one a collection, not {how!r}")


def _part(collection: VolumeCollection, normalize: Normalization | Mapping[str, Normalization]) -> _Part:
    if isinstance(normalize, Mapping):
        if collection.name not in normalize:
            raise ConfigError(f"normalize={dict(normalize)} does not say how for collection {collection.name!r}")
        how: Normalization = normalize[collection.name]
    else:
        how = normalize
    channels = int(collection.obs["channels"].max()) if len(collection) else 1
    return _Part(window_of(collection) if how == "ct" else how, channels)
