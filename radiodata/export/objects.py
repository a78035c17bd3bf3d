"""Volumes as objects of MONAI, TorchIO and SimpleITK; each keeps the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, ExportError

if TYPE_CHECKING:
    import SimpleITK
    import torchio
    from monai.data.meta_tensor import MetaTensor
    from numpy.typing import NDArray

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_monai(volume: Any) -> MetaTensor:
    """MetaTensor ``(channel, x, y, z)`` with its affine (RAS+, as MONAI has it); see ``Volume.to_monai``."""
    try:
        from monai.data.meta_tensor import MetaTensor
    except ImportError as error:
        raise _lacking("MONAI", "monai") from error
    import torch

    meta = {"obs_id": volume.obs_id, "obs_subject_id": volume.obs_subject_id}
    return MetaTensor(_tensor(volume), affine=torch.from_numpy(np.array(volume.affine)), meta=meta)


def to_torchio(volume: Any) -> torchio.Image:
    """ScalarImage or LabelMap ``(channel, x, y, z)`` with its affine (RAS+); see ``Volume.to_torchio``."""
    try:
        import torchio
    except ImportError as error:
        raise _lacking("TorchIO", "torchio") from error
    cls = torchio.LabelMap if volume.kind == "label" else torchio.ScalarImage
    return cls(tensor=_tensor(volume), affine=np.array(volume.affine), obs_id=volume.obs_id)


def to_sitk(volume: Any) -> SimpleITK.Image:
    """Image of SimpleITK: axes of the volume, world in LPS; see ``Volume.to_sitk``.

    Raises
    ------
    ExportError
        When the axes are not at right angles, which ITK cannot hold.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise _lacking("SimpleITK", "sitk") from error
    voxels = volume.to_numpy()
    affine = _LPS @ np.asarray(volume.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ExportError(f"the axes of volume {volume.obs_id!r} are not at right angles: ITK cannot hold them")
    turned = np.ascontiguousarray(np.moveaxis(voxels, (0, 1, 2), (2, 1, 0)))
    image: Any = SimpleITK.GetImageFromArray(turned, isVector=voxels.ndim == 4)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetMetaData("obs_id", volume.obs_id)
    return image


def _tensor(volume: Any) -> Any:
    """Voxels ``(channel, x, y, z)``; torch has no unsigned ints beyond 8 bits that others compute with."""
    import torch

    voxels: NDArray[Any] = volume.to_numpy()
    wider = {"uint16": np.int32, "uint32": np.int64}.get(voxels.dtype.name)
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels, -1, 0).astype(wider or voxels.dtype)))


def _lacking(library: str, extra: str) -> ConfigError:
    return ConfigError(f"{library} is not installed: pip install 'radiodata[{extra}]'")
