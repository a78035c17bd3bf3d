"""TorchIO's transforms on our samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from radiodata.errors import ConfigError
from radiodata.geometry import spacing_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.loading.sample import Sample


class TorchIO:
    """A TorchIO transform on samples: intensities and labels told apart, the crop's affine in place.

    The volumes named become a ``torchio.Subject`` of ``ScalarImage`` and ``LabelMap`` with the sample's affine; what
    the transform makes of them goes back into the sample beside all its other fields, labels in the dtype they came
    in, and ``affine`` and ``spacing`` follow the first image. TorchIO draws from torch's global generator, which
    ``KeyedTransform`` (and so every loader) seeds by the sample's key; called by itself this draws from that
    generator as it stands.

    Parameters
    ----------
    transform
        Of TorchIO, such as ``tio.RandomAffine()`` or a ``tio.Compose``.
    images, labels
        Keys of the sample: intensities, which are interpolated, and labels, which are not.

    Raises
    ------
    ConfigError
        When no key is named, or the sample lacks one.

    Examples
    --------
    >>> import torchio as tio
    >>> flip = TorchIO(tio.RandomFlip(axes=(0, 1, 2)), images=["image"], labels=["label"])
    """

    def __init__(
        self,
        transform: Callable[[Any], Any],
        *,
        images: Sequence[str] = ("image",),
        labels: Sequence[str] = ("label",),
    ) -> None:
        if isinstance(images, str) or isinstance(labels, str) or not (*images, *labels):
            raise ConfigError(f"TorchIO(images={images!r}, labels={labels!r}): name keys of the sample in lists")
        self.transform, self.images, self.labels = transform, tuple(images), tuple(labels)

    def __call__(self, sample: Sample) -> Sample:
        """Transform the volumes of a sample."""
        import torchio as tio

        missing = [key for key in (*self.images, *self.labels, "affine") if key not in sample]
        if missing:
            raise ConfigError(
                f"TorchIO({self.transform}): the sample has no {missing}, it has {sorted(sample)}; set images=, labels="
            )
        affine = sample["affine"].numpy()
        volumes = {key: tio.ScalarImage(tensor=sample[key], affine=affine) for key in self.images}
        volumes |= {key: tio.LabelMap(tensor=sample[key], affine=affine) for key in self.labels}
        made = self.transform(tio.Subject(volumes)).get_images_dict(intensity_only=False)
        grid = torch.from_numpy(made[(*self.images, *self.labels)[0]].affine.copy())
        changed = {"affine": grid, "spacing": torch.from_numpy(spacing_of(grid.numpy()))}
        whole = {key: made[key].data.to(sample[key].dtype) for key in self.labels if key in made}
        return {**sample, **{key: image.data for key, image in made.items()}, **whole, **changed}

    def __repr__(self) -> str:
        return f"TorchIO({self.transform!r}, images={self.images}, labels={self.labels})"
