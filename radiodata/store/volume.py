"""One volume of a cohort: its metadata at hand, its voxels read on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import GeometryError
from radiodata.geometry import box, box_slices, crop_affine, world_box
from radiodata.store.context import DEFAULT_READ
from radiodata.store.loaded import LoadedVolume, Outward
from radiodata.store.obs import SUBJECT, VoxelSource, affine_of
from radiodata.store.reader import read_box

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from radiodata._typing import Affine, Box, Voxels
    from radiodata.store.config import ReadConfig


_ALL = slice(None)


class Volume(Outward):
    """A volume, indexed like a NIfTI array: ``vol[100:164, 100:164, 50:114]`` reads those tiles only.

    Axes are ``(x, y, z)``, with ``(x, y, z, channel)`` where there are several channels (time frames,
    vector components), as in NIfTI. Axes run closest to RAS+ unless the store was made with
    ``orient=None``. Values are physical: the stored dtype where the store holds physical values (CT: int16
    HU), float32 where a slope and intercept apply.

    Parameters
    ----------
    source
        Where the voxels are.
    row
        The volume's row of `obs`.
    config
        How TileDB reads.
    kind
        ``"image"`` or ``"label"``.
    header
        Reads the header of the file that it was ingested from.
    """

    def __init__(
        self,
        source: VoxelSource,
        row: pd.Series[Any],
        config: ReadConfig = DEFAULT_READ,
        *,
        kind: str = "image",
        header: Callable[[], bytes] = bytes,
    ) -> None:
        self.source = source
        self.obs = row
        self.kind = kind
        self._config = config
        self._header = header

    @property
    def obs_id(self) -> str:
        """Identity, unique in the cohort."""
        return self.source.obs_id

    @property
    def obs_subject_id(self) -> str:
        """Subject that the volume belongs to."""
        return str(self.obs[SUBJECT])

    @property
    def shape(self) -> tuple[int, ...]:
        """``(x, y, z)``, or ``(x, y, z, channel)``."""
        channels = self.source.shape[0]
        return self.source.size if channels == 1 else (*self.source.size, channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype that reads return."""
        return np.dtype(np.float32) if self.source.scaled else np.dtype(self.source.dtype)

    @property
    def affine(self) -> Affine:
        """Voxel index to world mm (RAS+), shape ``(4, 4)``."""
        return affine_of(self.obs)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm along ``(x, y, z)``."""
        return (float(self.obs["spacing_x"]), float(self.obs["spacing_y"]), float(self.obs["spacing_z"]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read by ints and slices (steps and negative indices included), as from an array.

        Raises
        ------
        IndexError
            For an index out of range, too many indices, or one that is neither int nor slice.
        """
        shape = self.shape
        parts = _complete(index, len(shape))
        picks = [_pick(part, size, axis) for axis, (part, size) in enumerate(zip(parts, shape, strict=True))]
        spans, within = [span for span, _ in picks], tuple(of for _, of in picks)
        channels = spans[3] if len(spans) == 4 else (0, 1)
        if (0, 0) in spans:
            block = np.empty((channels[1] - channels[0], *(h - lo for lo, h in spans[:3])), self.dtype)
        else:
            block = self._read(np.array(spans[:3], np.int64), channels)
        block = block[0] if len(spans) == 3 else np.moveaxis(block, 0, -1)
        picked: NDArray[Any] = block[within]
        return picked

    def to_numpy(self) -> NDArray[Any]:
        """Read every voxel; shape as ``.shape``."""
        return self[...]

    def to_stored(self) -> Voxels:
        """Read every voxel as it is stored, ``(channel, x, y, z)``, before slope and intercept."""
        return read_box(self.source, box((0, 0, 0), self.source.size), config=self._config)

    def load(self) -> LoadedVolume:
        """Read every voxel, and keep the grid with them."""
        return self._loaded(self.to_numpy(), self.affine)

    def crop_world(self, box_mm: ArrayLike) -> LoadedVolume:
        """Read the voxels that cover a box in the world, as far as it lies in the volume.

        Parameters
        ----------
        box_mm
            Two ends along each world axis (RAS+, mm), shape ``(3, 2)``.

        Raises
        ------
        GeometryError
            When the box does not meet the volume.
        """
        try:
            inside = world_box(self.affine, box_mm, self.shape[:3])
        except GeometryError as error:
            raise GeometryError(f"volume {self.obs_id!r}: {error}") from error
        return self._loaded(self[box_slices(inside)], crop_affine(self.affine, inside[:, 0]))

    def source_header(self) -> bytes:
        """Read the header of the file that it was ingested from, byte for byte; empty where there is none."""
        return self._header()

    def _loaded(self, voxels: NDArray[Any], affine: Affine) -> LoadedVolume:
        return LoadedVolume(
            voxels, affine, self.obs_id, self.obs_subject_id, self.kind, {str(n): v for n, v in self.obs.items()}
        )

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"volume {self.obs_id!r} is on disk: an array of it is always a copy")
        return self.to_numpy().astype(dtype or self.dtype, copy=False)

    def axial(self, z: int) -> NDArray[Any]:
        """Slice of constant `z`, shape ``(x, y)``."""
        return self[:, :, z]

    def sagittal(self, x: int) -> NDArray[Any]:
        """Slice of constant `x`, shape ``(y, z)``."""
        return self[x]

    def coronal(self, y: int) -> NDArray[Any]:
        """Slice of constant `y`, shape ``(x, z)``."""
        return self[:, y]

    def _read(self, b: Box, channels: tuple[int, int]) -> Voxels:
        stored = read_box(self.source, b, channels=channels, config=self._config)
        return physical(stored, self.source)

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:g}" for s in self.spacing)
        return f"Volume({self.obs_id!r}, shape={self.shape}, dtype={self.dtype}, spacing={spacing} mm)"


def physical(stored: Voxels, source: VoxelSource) -> Voxels:
    """Physical values of stored ones: the same array where they are equal, else float32."""
    if not source.scaled:
        return stored
    scaled = stored.astype(np.float64)
    scaled *= source.slope
    scaled += source.intercept
    return scaled.astype(np.float32)


def _complete(index: Any, ndim: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    for at in dots:
        parts[at : at + 1] = [_ALL] * (ndim - len(parts) + 1)
    if len(parts) > ndim:
        raise IndexError(f"too many indices: {len(parts)} for a volume of {ndim} axes")
    return parts + [_ALL] * (ndim - len(parts))


def _pick(part: Any, size: int, axis: int) -> tuple[tuple[int, int], Any]:
    """Give the span that a part of an index needs, (0, 0) where it is empty; and the part, within that span."""
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step == 1:
            return ((start, stop), _ALL) if start < stop else ((0, 0), _ALL)
        picked = range(start, stop, step)
        if not picked:
            return (0, 0), _ALL
        # min and max of the range are both picked, so either end starts it
        return (min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1), slice(None, None, step)
    if not isinstance(part, int | np.integer) or isinstance(part, bool):
        raise IndexError(f"index {part!r} on axis {axis}: volumes take ints and slices")
    if not -size <= part < size:
        raise IndexError(f"index {part} is out of range for axis {axis} of size {size}")
    at = int(part) % size
    return (at, at + 1), 0
