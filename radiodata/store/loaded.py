"""Volumes in memory with their grid, and what volumes of both kinds can be turned into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from radiodata.geometry import axis_codes, spacing_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import SimpleITK
    import torchio
    from monai.data.meta_tensor import MetaTensor
    from numpy.typing import DTypeLike, NDArray

    from radiodata._typing import Affine


class _Gridded(Protocol):
    @property
    def affine(self) -> Affine: ...
    @property
    def obs_id(self) -> str: ...
    def to_numpy(self) -> NDArray[Any]: ...


class Outward:
    """What leaves the store: files, and the objects of other libraries. Each keeps the grid."""

    def to_nifti(self: _Gridded, path: str | Path) -> Path:
        """Write a NIfTI file, ``.nii`` or ``.nii.gz``; it is there whole or not at all.

        A volume that was ingested from a NIfTI file comes back as it was: voxels, dtype, scaling, sform and qform
        with their codes, units, axes; the header is the file's, byte for byte. Any other is written in RAS+ with
        its affine as sform.

        Raises
        ------
        ExportError
            When NIfTI cannot hold it.
        """
        from radiodata.export import to_nifti

        return to_nifti(self, path)

    def to_monai(self: _Gridded) -> MetaTensor:
        """Give a MONAI MetaTensor, ``(channel, x, y, z)``, its affine in RAS+; needs ``radiodata[monai]``."""
        from radiodata.export import to_monai

        return to_monai(self)

    def to_torchio(self: _Gridded) -> torchio.Image:
        """Give a TorchIO ScalarImage, or a LabelMap of a label volume; needs ``radiodata[torchio]``."""
        from radiodata.export import to_torchio

        return to_torchio(self)

    def to_sitk(self: _Gridded) -> SimpleITK.Image:
        """Give a SimpleITK image, in LPS as ITK has it; needs ``radiodata[sitk]``."""
        from radiodata.export import to_sitk

        return to_sitk(self)


@dataclass(frozen=True, eq=False)
class LoadedVolume(Outward):
    """A volume in memory.

    Attributes
    ----------
    voxels
        ``(x, y, z)``, or ``(x, y, z, channel)``; physical values.
    affine
        Voxel index to world mm (RAS+), shape ``(4, 4)``.
    obs_id, obs_subject_id
        Which volume it is, or was made of, and whose.
    kind
        ``"image"`` or ``"label"``.
    obs
        Columns of `obs` and of the subject, with what was computed.
    updates
        Columns that were computed: those that are written to `obs`.
    position
        Among the volumes of a pipeline.
    """

    voxels: NDArray[Any]
    affine: Affine
    obs_id: str
    obs_subject_id: str
    kind: str = "image"
    obs: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """``(x, y, z)``, or ``(x, y, z, channel)``."""
        return self.voxels.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the voxels."""
        return self.voxels.dtype

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm along ``(x, y, z)``."""
        x, y, z = spacing_of(self.affine).tolist()
        return (x, y, z)

    @property
    def orientation(self) -> str:
        """Closest anatomical codes of the axes, such as ``"RAS"``."""
        return axis_codes(self.affine)

    def to_numpy(self) -> NDArray[Any]:
        """Give the voxels, not copied."""
        return self.voxels

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.voxels, dtype or self.voxels.dtype, copy=copy)

    def __repr__(self) -> str:
        spacing = " x ".join(f"{s:g}" for s in self.spacing)
        return f"LoadedVolume({self.obs_id!r}, shape={self.shape}, dtype={self.dtype}, spacing={spacing} mm)"
