"""Stitcher: overlapping predictions of windows to one volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from radiodata.errors import ConfigError, RadiodataError
from radiodata.geometry import box, box_slices, clip_box
from radiodata.inference.blend import window_weights
from radiodata.sampling.grid import patch_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.inference.blend import Blend


class CoverageError(RadiodataError, ValueError):
    """A volume with voxels that no window has predicted."""


class Stitcher:
    """Weighted mean of the predictions that fell on each voxel of one volume.

    What of a window lies outside the volume is clipped (a patch larger than the volume has a negative start).
    A window added twice counts twice. NaN and infinity are not hidden: they make NaN of the voxels they fall on.

    The mean is kept as it goes, in float32 (West, Comm. ACM 1979), so that windows that agree come back to the
    last bit however many overlap. It takes ``4 * (channels + 1)`` bytes a voxel, 2.1 GB for three classes of
    512 x 512 x 500 voxels; the result is a copy.

    Parameters
    ----------
    shape
        Of the volume, in voxels ``(x, y, z)``.
    channels
        Of the predictions.
    patch
        Shape of the windows, in voxels: one int or three.
    blend, sigma
        How a window's voxels are weighted: see ``window_weights``.
    dtype
        Of the result; a floating type.
    device
        Where the mean is held; predictions are brought there.

    Raises
    ------
    ConfigError
        When a setting cannot be used.

    Examples
    --------
    >>> from radiodata.sampling.grid import grid_starts
    >>> image = torch.rand(1, 20, 20, 20)
    >>> stitcher = Stitcher((20, 20, 20), 1, 16)
    >>> for start in grid_starts((20, 20, 20), 16, overlap=0.5):
    ...     x, y, z = start
    ...     stitcher.add(image[:, x : x + 16, y : y + 16, z : z + 16], start)
    >>> torch.allclose(stitcher.result(), image)
    True
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        patch: int | Sequence[int],
        *,
        blend: Blend = "gaussian",
        sigma: float = 0.125,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels < 1:
            raise ConfigError(f"channels={channels}: a prediction has one channel at least")
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype}: a mean of predictions needs a floating type, such as torch.float32")
        self.shape = patch_shape(shape, "shape")
        self.patch = patch_shape(patch)
        self.dtype = dtype
        self._weights = window_weights(self.patch, blend, sigma=sigma).to(device)
        self._mean = torch.zeros((channels, *self.shape), dtype=torch.float32, device=device)
        self._reached = torch.zeros(self._mean.shape[1:], dtype=torch.float32, device=device)

    def add(self, prediction: torch.Tensor, start: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> None:
        """Add the prediction of a window, or of several.

        Parameters
        ----------
        prediction
            Shape ``(channel, *patch)`` or ``(B, channel, *patch)``; detached from its graph.
        start
            First voxel of each window in the volume, shape ``(3,)`` or ``(B, 3)``.

        Raises
        ------
        ConfigError
            When the shapes do not fit, or a window lies outside the volume.
        """
        window = (len(self._mean), *self.patch)
        many = prediction.detach()[None] if prediction.ndim == 4 else prediction.detach()
        starts = np.atleast_2d(np.asarray(start.cpu() if isinstance(start, torch.Tensor) else start, np.int64))
        if many.shape[1:] != window or starts.shape != (len(many), 3):
            raise ConfigError(
                f"predictions of shape {tuple(prediction.shape)} with starts of shape {starts.shape}: this stitcher "
                f"takes {window} with (3,), or B of both"
            )
        for one, where in zip(many, starts, strict=True):
            self._add(one, where)

    def result(self) -> torch.Tensor:
        """Mean of what was added, shape ``(channel, x, y, z)``.

        Raises
        ------
        CoverageError
            When no window fell on some voxel.
        """
        missing = self._reached == 0
        if missing.any():
            at = missing.nonzero()
            low, high = at.amin(dim=0).tolist(), (at.amax(dim=0) + 1).tolist()
            raise CoverageError(
                f"no window fell on {len(at):,} of the {missing.numel():,} voxels of this volume of {self.shape}: they "
                f"lie in the box {low} to {high}. Were all windows of the grid added?"
            )
        return self._mean.to(self.dtype, copy=True)

    def _add(self, prediction: torch.Tensor, start: NDArray[np.int64]) -> None:
        whole = box(start, start + np.asarray(self.patch))
        real = clip_box(whole, self.shape)
        if (real[:, 1] <= real[:, 0]).any():
            raise ConfigError(f"the window of {self.patch} at {start.tolist()} lies outside the volume of {self.shape}")
        there, here = box_slices(real), box_slices(real, origin=start)
        weights = self._weights[here]
        share = weights / self._reached[there].add_(weights)
        self._mean[:, *there].lerp_(prediction[:, *here].to(self._mean), share)
