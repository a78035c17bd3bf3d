"""VolumeStitcher: windows of many volumes, in any order, to whole volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from radiodata.errors import ConfigError
from radiodata.inference.stitch import CoverageError, Stitcher
from radiodata.sampling.grid import grid_counts, patch_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from radiodata.inference.blend import Blend
    from radiodata.sampling.grid import Overlap

Start: TypeAlias = tuple[int, ...]


class VolumeStitcher:
    """Gives each volume back as soon as the last of its windows has come.

    Windows of several volumes may come interleaved and in any order. A window that comes again is ignored, as is
    one of a volume already given back, so that repeats which only fill a batch do no harm. Each open volume
    holds what one ``Stitcher`` does.

    Parameters
    ----------
    channels, patch
        Of the predictions.
    overlap
        Of the grid that the windows were made with: it tells how many there are (see ``grid_starts``).
    max_open
        Volumes that may be incomplete at a time: bounds memory.
    blend, sigma, dtype, device
        As of ``Stitcher``.
    """

    def __init__(
        self,
        channels: int,
        patch: int | Sequence[int],
        overlap: Overlap = 0.5,
        *,
        max_open: int = 4,
        blend: Blend = "gaussian",
        sigma: float = 0.125,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if max_open < 1:
            raise ConfigError(f"max_open={max_open}: at least one volume must be open to be stitched")
        self.channels, self.patch, self.overlap = channels, patch_shape(patch), overlap
        self.max_open, self.blend, self.sigma = max_open, blend, sigma
        self.dtype, self.device = dtype, device
        self._open: dict[str, tuple[Stitcher, set[Start]]] = {}
        self._done: set[str] = set()

    def add(
        self,
        volume: str,
        shape: Sequence[int],
        prediction: torch.Tensor,
        start: Sequence[int] | NDArray[np.int64] | torch.Tensor,
    ) -> list[tuple[str, torch.Tensor]]:
        """Add the prediction of one window.

        Parameters
        ----------
        volume
            What tells the volume from others, such as its ``obs_id``.
        shape
            Of the volume, in voxels.
        prediction, start
            Of the window: shapes ``(channel, *patch)`` and ``(3,)``.

        Returns
        -------
        list of (str, Tensor)
            The volume and its prediction ``(channel, x, y, z)`` when this was its last window, else nothing.

        Raises
        ------
        ConfigError
            When shapes do not fit, or more than `max_open` volumes would be incomplete.
        """
        at: Start = tuple(int(s) for s in start)
        if volume in self._done or (volume in self._open and at in self._open[volume][1]):
            return []
        stitcher, seen = self._opened(volume, tuple(int(n) for n in shape))
        stitcher.add(prediction, at)
        seen.add(at)
        if len(seen) < self.expected(stitcher.shape):
            return []
        del self._open[volume]
        self._done.add(volume)
        return [(volume, stitcher.result())]

    def expected(self, shape: Sequence[int]) -> int:
        """Windows of a volume."""
        return int(grid_counts(shape, self.patch, self.overlap).prod())

    def finish(self) -> None:
        """Check that every volume was given back.

        Raises
        ------
        CoverageError
            When windows of some volume have not come.
        """
        if self._open:
            lacking = [f"{v} ({len(s)} of {self.expected(t.shape)} windows)" for v, (t, s) in self._open.items()]
            raise CoverageError(
                f"{len(lacking)} volume(s) incomplete: {', '.join(lacking[:5])}. Were all windows of every volume "
                f"added, made with overlap={self.overlap}?"
            )

    def _opened(self, volume: str, shape: tuple[int, ...]) -> tuple[Stitcher, set[Start]]:
        if volume in self._open:
            known = self._open[volume][0].shape
            if known != shape:
                raise ConfigError(f"{volume}: came with shape {known} first and with {shape} now")
            return self._open[volume]
        if len(self._open) >= self.max_open:
            raise ConfigError(
                f"{volume} would be one more than the {self.max_open} volumes that may be incomplete at a time "
                f"({', '.join(list(self._open)[:5])}): add the windows of a volume together, or raise max_open at "
                f"{4 * (self.channels + 1) * int(np.prod(shape)) / 1e6:,.0f} MB for a volume such as this"
            )
        stitcher = Stitcher(
            shape,
            self.channels,
            self.patch,
            blend=self.blend,
            sigma=self.sigma,
            dtype=self.dtype,
            device=self.device,
        )
        self._open[volume] = (stitcher, set())
        return self._open[volume]
