"""Segmentation by a 2-D network, slice by slice, with neighbouring slices as channels (2.5-D)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from radiodata.errors import ConfigError
from radiodata.inference import mirrored
from radiodata.lightning.segmentation import SegmentationModule
from radiodata.sampling import Slices

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SliceSegmentationModule", "stack_slices"]


class SliceSegmentationModule(SegmentationModule):
    """A 2-D network that gives each voxel of a slice one class; whole volumes are predicted slice by slice.

    Training batches are those of ``Slices``: ``image`` (B, C * (2 * neighbours + 1), a, b) and ``label`` (B, 1, a, b).
    In validation, test and prediction each plane passes the network whole, padded to a multiple of `divisor`; what
    lies beyond the first and the last slice is the slice at the border, as in training.

    Parameters
    ----------
    axis, neighbours
        As of the ``Slices`` that the network is trained on.
    divisor
        What the sides of a plane must be a multiple of, for the network's strides.
    sw_batch_size
        Slices that pass the network together.
    network, num_classes
        As of ``SegmentationModule``.
    settings
        Its other arguments; `flips` are axes of the plane, and `roi_size` and `overlap` do not apply.

    Raises
    ------
    radiodata.errors.ConfigError
        When `axis`, `neighbours` or `divisor` cannot be used.
    """

    def __init__(
        self,
        network: Any,
        num_classes: int,
        *,
        axis: str | int = "axial",
        neighbours: int = 1,
        divisor: int = 16,
        sw_batch_size: int = 16,
        **settings: Any,
    ) -> None:
        super().__init__(network, num_classes, sw_batch_size=sw_batch_size, **settings)
        if divisor < 1:
            raise ConfigError(f"divisor={divisor}: give the product of the network's strides")
        self.axis, self.neighbours, self.divisor = Slices(axis, neighbours).number, neighbours, divisor
        if self.axis in self.flips:
            raise ConfigError(
                f"flips={self.flips}: axis {self.axis} is that across the slices; mirror those of the plane"
            )
        self._plane_flips = [[a for a in range(3) if a != self.axis].index(flip) for flip in self.flips]

    def predict_labels(self, image: Tensor) -> Tensor:
        """Labels (1, x, y, z), uint8, of a volume (C, x, y, z), slice by slice."""
        planes = stack_slices(image, self.axis, self.neighbours)
        a, b = planes.shape[2:]
        pad = (0, -b % self.divisor, 0, -a % self.divisor)
        labels = [
            mirrored(self.network, functional.pad(part, pad, mode="replicate"), self._plane_flips)[..., :a, :b]
            .argmax(dim=1)
            .to(torch.uint8)
            for part in planes.split(self.sw_batch_size)  # type: ignore[no-untyped-call]
        ]
        return torch.movedim(torch.cat(labels), 0, self.axis)[None]

    def _streamed(self, batch: Any) -> Tensor:
        raise ConfigError("a network of slices predicts whole volumes: RadiologyDataModule(stream=False)")


def stack_slices(image: Tensor, axis: int, neighbours: int) -> Tensor:
    """Slices of a volume with their neighbours as channels.

    Parameters
    ----------
    image
        ``(C, x, y, z)``.
    axis
        Across the slices.
    neighbours
        On either side; at the border the last slice stands for those beyond it.

    Returns
    -------
    Tensor of shape ``(slices, C * (2 * neighbours + 1), a, b)``
        In the order of ``Slices``.
    """
    planes = torch.movedim(image, axis + 1, 0)
    count, reach = len(planes), torch.arange(-neighbours, neighbours + 1, device=image.device)
    index = (torch.arange(count, device=image.device)[:, None] + reach).clamp(0, count - 1)
    stacked = planes[index]  # (slices, neighbours, C, a, b)
    return torch.movedim(stacked, 1, 2).flatten(1, 2)
