"""What is done to volumes on the way in, before they are stored: cropped, resampled, clipped; the grid stays true."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, GeometryError
from radiodata.ingest.items import Grid
from radiodata.ingest.order import c_order
from radiodata.ingest.transforms import Clip, Crop, CropForeground, Resample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata.ingest.items import Loaded


@dataclass(frozen=True)
class Preparation:
    """What is done to the volumes of a subject, in this order; voxels are stored as they come where nothing is said.

    Parameters
    ----------
    crop_foreground
        Cut off what lies beyond the voxels above this physical value, in the first image of a subject; its other
        volumes on the same grid are cut alike, other images by their own voxels.
    spacing
        Resample to this spacing in mm, one number or three along ``(x, y, z)``: images linearly, labels by the nearest
        voxel.
    window
        Clip images to ``(low, high)``.
    """

    crop_foreground: float | None = None
    spacing: float | tuple[float | None, float | None, float | None] | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError(f"window={self.window}: low must be below high")
        if self.spacing is not None:
            Resample(self.spacing)

    def __bool__(self) -> bool:
        return self != Preparation()

    @property
    def steps(self) -> list[str]:
        """What is done, for the provenance."""
        values = dataclasses.asdict(self)
        return [f"{name}={value}" for name, value in values.items() if value is not None]

    def cut_of(self, image: Loaded) -> Crop | None:
        """Where an image is cut, if it is."""
        if self.crop_foreground is None:
            return None
        cut, updates = CropForeground(above=self.crop_foreground)(_given(image), {"affine": image.affine})
        start = np.linalg.solve(image.affine, updates["affine"][:, 3])[:3].round().astype(int)
        stop = start + cut.shape[:3]
        return Crop(tuple(start.tolist()), tuple(stop.tolist()))

    def prepare(self, loaded: Loaded, kind: str, cut: Crop | None) -> Loaded:
        """Give the volume that is stored: physical values, its affine, and no header, for its file cannot come back."""
        transforms: list[Any] = [cut] if cut is not None else []
        transforms += [Resample(self.spacing)] if self.spacing is not None else []
        transforms += [Clip(*self.window)] if self.window is not None and kind == "image" else []
        volume, affine = _given(loaded), loaded.affine
        for transform in transforms:
            row = {"affine": affine, "collection_kind": kind}
            result = transform(volume, row)
            volume, updates = result if isinstance(result, tuple) else (result, {})
            affine = np.asarray(updates.get("affine", affine), np.float64)
        channels = volume[None] if volume.ndim == 3 else np.moveaxis(volume, -1, 0)
        if not channels.size:
            raise GeometryError(f"nothing of it is left after {', '.join(self.steps)}")
        return dataclasses.replace(
            loaded, voxels=c_order(channels), slope=1.0, intercept=0.0, affine=affine, header=b""
        )


def _given(loaded: Loaded) -> NDArray[Any]:
    """Physical values ``(x, y, z[, channel])``, as transforms take them."""
    voxels = loaded.voxels
    if (loaded.slope, loaded.intercept) != (1.0, 0.0):
        voxels = (voxels * np.float64(loaded.slope) + loaded.intercept).astype(np.float32)
    return voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1)


def grid_of(loaded: Loaded) -> Grid:
    """Grid of a volume in memory."""
    channels, x, y, z = loaded.voxels.shape
    return Grid((x, y, z), channels, loaded.affine)
