"""RollingStitcher: overlapping predictions of windows to a volume, slab by slab, in bounded memory."""

from __future__ import annotations

import mmap
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radiodata.errors import ConfigError
from radiodata.geometry import box, clip_box
from radiodata.inference.blend import window_weights
from radiodata.inference.stitch import CoverageError
from radiodata.sampling.grid import patch_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from radiodata.inference.blend import Blend


class Scratch:
    """An array of zeros: in memory, or in a file without a name, whose pages are given back when asked.

    Parameters
    ----------
    shape, dtype
        Of the array.
    memory
        Bytes that it may take in memory; more than those are in the file.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, memory: int) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self._map: mmap.mmap | None = None
        if size <= memory or size == 0:
            self.array = np.zeros(tuple(shape), dtype)
            return
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self.array = np.frombuffer(self._map, dtype).reshape(tuple(shape))

    def release(self) -> None:
        """Give the pages of a file back to the system, which keeps what they hold (they are shared with the file)."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class RollingStitcher:
    """Weighted mean of the predictions that fell on each voxel, for windows that come in the order of their x.

    Only the planes that windows still to come may reach are held: ``4 * (channels + 1) * patch_x`` bytes for each
    voxel of a plane, and of those no more than `memory` in memory.

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
    device
        Where the sums are held, as far as they are in memory.
    memory
        Bytes; the rest is in a file in the system's folder for such.

    Attributes
    ----------
    first
        First plane that is held.

    Raises
    ------
    ConfigError
        When a setting cannot be used.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        patch: int | Sequence[int],
        *,
        blend: Blend = "gaussian",
        sigma: float = 0.125,
        device: torch.device | str = "cpu",
        memory: int = 1 << 30,
    ) -> None:
        if channels < 1:
            raise ConfigError(f"channels={channels}: a prediction has one channel at least")
        self.shape, self.patch = patch_shape(shape, "shape"), patch_shape(patch)
        self.depth = min(self.patch[0], self.shape[0])
        held = (self.depth, channels + 1, *self.shape[1:])  # the last channel is the sum of the weights
        if 4 * int(np.prod(held, dtype=np.int64)) <= memory:
            self._scratch, self._sums = None, torch.zeros(held, device=device)
        else:
            self._scratch = Scratch(held, np.float32, memory)
            self._sums = torch.from_numpy(self._scratch.array)
        self._weights = window_weights(self.patch, blend, sigma=sigma).to(self._sums.device)
        self._memory, self._touched = memory, 0
        self.first = 0

    def add(self, prediction: torch.Tensor, start: Sequence[int]) -> None:
        """Add the prediction of a window.

        Parameters
        ----------
        prediction
            Shape ``(channel, *patch)``.
        start
            First voxel of the window; its x no less than what was released.

        Raises
        ------
        ConfigError
            When it does not fit, or comes too late.
        """
        whole = box(np.asarray(start), np.asarray(start) + np.asarray(self.patch))
        real = clip_box(whole, self.shape)
        if tuple(prediction.shape) != (self._sums.shape[1] - 1, *self.patch) or (real[:, 1] <= real[:, 0]).any():
            raise ConfigError(
                f"a window of {tuple(prediction.shape)} at {list(start)}: this stitcher takes "
                f"{(self._sums.shape[1] - 1, *self.patch)} inside {self.shape}"
            )
        (x0, x1), (y0, y1), (z0, z1) = real.tolist()
        if x0 < self.first or x1 > self.first + self.depth:
            raise ConfigError(
                f"a window over planes {x0} to {x1} comes out of turn: planes {self.first} to "
                f"{self.first + self.depth} are held; give windows in the order of their x"
            )
        ox, oy, oz = (int(s) for s in start)
        values = prediction.detach().to(self._sums)
        for a, b in self._runs(x0, x1):
            here = (slice(a - ox, b - ox), slice(y0 - oy, y1 - oy), slice(z0 - oz, z1 - oz))
            weights = self._weights[here]
            sums = self._sums[a % self.depth : a % self.depth + b - a, :, y0:y1, z0:z1]
            sums[:, :-1] += (values[:, *here] * weights).movedim(0, 1)
            sums[:, -1] += weights
        self._touch(4 * (x1 - x0) * self._sums.shape[1] * (y1 - y0) * self.shape[2])

    def release(self, until: int) -> torch.Tensor:
        """Mean over the planes up to `until`, which no further window reaches; shape ``(channel, planes, y, z)``.

        Raises
        ------
        CoverageError
            When no window fell on some voxel of them.
        """
        until, parts = min(until, self.shape[0]), []
        for a, b in self._runs(self.first, until):
            sums = self._sums[a % self.depth : a % self.depth + b - a]
            weights = sums[:, -1:]
            if not bool((weights > 0).all()):
                missing = int((weights <= 0).sum())
                raise CoverageError(
                    f"no window fell on {missing:,} voxels of planes {a} to {b} of this volume of {self.shape}: were "
                    "all windows of the grid added?"
                )
            parts.append((sums[:, :-1] / weights).movedim(0, 1))
            sums.zero_()
        self._touch(4 * max(until - self.first, 0) * self._sums[0].numel())
        self.first = max(until, self.first)
        return torch.cat(parts, dim=1) if parts else self._sums.new_zeros(self._sums.shape[1] - 1, 0, *self.shape[1:])

    def planes(self, size: int) -> int:
        """Planes of predictions in so many bytes; one at least."""
        return max(1, size // (4 * self._sums[0].numel()))

    def _touch(self, size: int) -> None:
        """Count what was touched of a file, and give its pages back before there are too many."""
        self._touched += size
        if self._scratch is not None and 2 * self._touched >= self._memory:
            self._scratch.release()
            self._touched = 0

    def _runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Parts of a range of planes that lie together in the ring."""
        edge = start - start % self.depth + self.depth
        return [(a, b) for a, b in ((start, min(stop, edge)), (edge, stop)) if a < b]
