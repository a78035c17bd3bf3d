"""SlidingWindow: a network over a volume of any size, that is read tile by tile and never held whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from radiodata.errors import ConfigError
from radiodata.geometry import box, box_slices
from radiodata.inference.blend import BLENDS
from radiodata.inference.rolling import RollingStitcher, Scratch
from radiodata.sampling.grid import grid_starts, patch_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from radiodata._typing import Box
    from radiodata.geometry import Shape3
    from radiodata.inference.blend import Blend
    from radiodata.sampling.grid import Overlap


_GIVEN = 8 << 20
"""Bytes of predictions that are given out together, about."""


class Readable(Protocol):
    """A volume of which parts can be read."""

    @property
    def size(self) -> Shape3:
        """In voxels ``(x, y, z)``."""

    @property
    def tile(self) -> Shape3:
        """Extents of its tiles: reads that end at their borders read none twice."""

    @property
    def pad(self) -> float | Sequence[float]:
        """Value of what lies outside, or one a channel."""

    def read(self, region: Box) -> NDArray[Any] | torch.Tensor:
        """Voxels of a box inside the volume, ``(channel, x, y, z)``."""


class TensorVolume:
    """A volume in memory, to be predicted like one of the store; outside of it is its lowest value, by channel.

    Parameters
    ----------
    voxels
        ``(channel, x, y, z)``, on any device.
    """

    def __init__(self, voxels: torch.Tensor) -> None:
        self._voxels = voxels
        self.size: Shape3 = (voxels.shape[1], voxels.shape[2], voxels.shape[3])
        self.tile = self.size
        self.pad = voxels.flatten(1).amin(dim=1).tolist()

    def read(self, region: Box) -> torch.Tensor:
        """Voxels of a box, not copied."""
        return self._voxels[:, *box_slices(region)]


@dataclass(frozen=True)
class SlidingWindow:
    """Predicts a volume window by window, plane by plane.

    Windows are those of ``grid_starts``, in rows along x. Each tile is read once, and let go when no window needs it
    any more; predictions are put together by ``RollingStitcher`` and given out as soon as they are whole. So what is
    held depends on the planes of a volume and not on how many there are, and of predictions no more than `memory`.

    Parameters
    ----------
    patch
        Shape of a window: one int or three.
    overlap
        Of neighbours, as of ``grid_starts``.
    blend, sigma
        How a window's voxels are weighted: see ``window_weights``.
    flips
        Axes along which windows are also predicted mirrored, each and all together; the mean of all is taken.
    batch
        Windows that pass the network together.
    memory
        Bytes of predictions that are held in memory; the rest is in a file in the system's folder for such.

    Raises
    ------
    ConfigError
        When a setting cannot be used.
    """

    patch: int | Sequence[int]
    overlap: Overlap = 0.5
    blend: Blend = "gaussian"
    sigma: float = 0.125
    flips: Sequence[int] = ()
    batch: int = 4
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        patch_shape(self.patch)
        grid_starts((1, 1, 1), self.patch, self.overlap)
        if self.blend not in BLENDS:
            raise ConfigError(f"blend={self.blend!r}: choose one of {', '.join(BLENDS)}")
        if self.batch < 1 or self.memory < 0:
            raise ConfigError(f"SlidingWindow(batch={self.batch}, memory={self.memory}): give 1, and 0, or more")
        if sorted({*self.flips}) != sorted(self.flips) or not {*self.flips} <= {0, 1, 2}:
            raise ConfigError(f"flips={list(self.flips)}: give axes of 0, 1 and 2, each once")

    def slabs(
        self,
        volume: Readable,
        network: Callable[[torch.Tensor], torch.Tensor],
        *,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
        device: torch.device | str = "cpu",
        stitch_on: torch.device | str | None = None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Predict a volume.

        Parameters
        ----------
        network
            Given windows ``(n, C, *patch)``, gives predictions ``(n, K, *patch)``.
        prepare
            Given windows in the dtype of the volume on `device`, gives what the network is given: casts and normalises.
        device
            Of the network.
        stitch_on
            Where predictions are put together; by default there, too.

        Yields
        ------
        int, Tensor
            First plane, and the predictions ``(K, planes, y, z)`` of it and those after it, float32; in the order of
            x, each plane once.
        """
        patch, size = patch_shape(self.patch), volume.size
        starts = grid_starts(size, patch, self.overlap)
        rows = np.unique(starts[:, 0])
        held, stitcher = _Planes(volume), None
        for number, x in enumerate(rows.tolist()):
            held.move(max(x, 0), min(x + patch[0], size[0]))
            windows = starts[starts[:, 0] == x]
            for first in range(0, len(windows), self.batch):
                part = windows[first : first + self.batch]
                crops = torch.stack([held.window(start, patch) for start in part]).to(device)
                out = self._predicted(network, crops.float() if prepare is None else prepare(crops))
                stitcher = stitcher or RollingStitcher(
                    size,
                    out.shape[1],
                    patch,
                    blend=self.blend,
                    sigma=self.sigma,
                    device=stitch_on or device,
                    memory=self.memory,
                )
                for prediction, start in zip(out, part.tolist(), strict=True):
                    stitcher.add(prediction, start)
            assert stitcher is not None
            until = int(rows[number + 1]) if number + 1 < len(rows) else size[0]
            while (begun := stitcher.first) < until:  # a few planes at a time: each is a copy
                yield begun, stitcher.release(min(until, begun + stitcher.planes(_GIVEN)))

    def classes(self, volume: Readable, network: Callable[[torch.Tensor], torch.Tensor], **how: Any) -> NDArray[Any]:
        """Class of each voxel, the one with the largest prediction: uint8 (or uint16), shape ``(x, y, z)``.

        Arguments are those of ``slabs``. More than `memory` bytes of them are in a file.
        """
        out: Scratch | None = None
        for first, slab in self.slabs(volume, network, **how):
            if slab.shape[0] > 2**16:
                raise ConfigError(f"a prediction of {slab.shape[0]} classes: 65,536 at the most")
            dtype = np.uint8 if slab.shape[0] <= 256 else np.uint16
            out = out or Scratch(volume.size, dtype, self.memory)
            out.array[first : first + slab.shape[1]] = slab.argmax(dim=0).cpu().numpy()
            out.release()
        assert out is not None
        return out.array

    def _predicted(self, network: Callable[[torch.Tensor], torch.Tensor], windows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = mirrored(network, windows, self.flips)
            if tuple(out.shape[2:]) != tuple(windows.shape[2:]) or len(out) != len(windows):
                raise ConfigError(
                    f"the network made {tuple(out.shape)} of windows {tuple(windows.shape)}: a sliding window needs "
                    "one prediction a voxel"
                )
        return out


def mirrored(
    network: Callable[[torch.Tensor], torch.Tensor], patches: torch.Tensor, flips: Sequence[int]
) -> torch.Tensor:
    """Mean, float32, of the predictions of patches ``(n, C, x, y, z)`` and of them mirrored along `flips`.

    Each axis is mirrored and all together: two, four or eight predictions.
    """
    out, ways = network(patches).float(), 1
    for axes in (axes for k in range(1, len(flips) + 1) for axes in combinations(flips, k)):
        dims = [axis + 2 for axis in axes]
        out, ways = out + network(patches.flip(dims)).flip(dims).float(), ways + 1
    return out / ways


class _Planes:
    """Planes of a volume that windows are cut of: read once, in whole tiles, and let go when they are passed."""

    def __init__(self, volume: Readable) -> None:
        self._volume, self._start, self._stop = volume, 0, 0
        self._parts: list[torch.Tensor] = []  # one for each read, one after another along x

    def move(self, start: int, stop: int) -> None:
        """Hold planes `start` to `stop` at least."""
        size, tile = self._volume.size, self._volume.tile[0]
        while self._parts and self._start + self._parts[0].shape[1] <= start:
            self._start += self._parts.pop(0).shape[1]
        while self._stop < stop:
            upto = min((self._stop // tile + 1) * tile, size[0])
            region = box(np.array([self._stop, 0, 0]), np.array([upto, *size[1:]]))
            self._parts.append(torch.as_tensor(self._volume.read(region)))
            self._stop = upto

    def window(self, start: NDArray[np.int64], patch: Shape3) -> torch.Tensor:
        """Voxels of a window; those outside the volume have its pad value."""
        low = np.maximum(start, 0)
        high = np.minimum(start + np.asarray(patch), self._volume.size)
        out = self._parts[0].new_empty((len(self._parts[0]), *patch))
        out[:] = torch.as_tensor(self._volume.pad, dtype=out.dtype, device=out.device).reshape(-1, 1, 1, 1)
        at = self._start
        for part in self._parts:
            a, b = max(int(low[0]), at), min(int(high[0]), at + part.shape[1])
            if a < b:
                place = (
                    slice(a - int(start[0]), b - int(start[0])),
                    *_between(low[1:] - start[1:], high[1:] - start[1:]),
                )
                out[:, *place] = part[:, a - at : b - at, low[1] : high[1], low[2] : high[2]]
            at += part.shape[1]
        return out


def _between(low: NDArray[np.int64], high: NDArray[np.int64]) -> tuple[slice, slice]:
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
