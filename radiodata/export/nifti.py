"""NIfTI files: the ingested one as it was, or a new one around voxels and an affine."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from isal import igzip

from radiodata.errors import ExportError, RadiodataError
from radiodata.geometry import ras_transform, reorient, reorient_affine
from radiodata.ingest.exact import exact
from radiodata.ingest.nifti import components, grid_of, header_of, ravel
from radiodata.store.volume import Volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Affine, Voxels

_SUFFIXES = (".nii", ".nii.gz")
_LARGEST = {nib.Nifti1Image: 32_767, nib.Nifti2Image: 2**63 - 1}


def to_nifti(volume: Any, path: str | Path) -> Path:
    """Write a volume, of the store or in memory, as a NIfTI file; see ``Volume.to_nifti``."""
    place = Path(path)
    if not place.name.endswith(_SUFFIXES):
        raise ExportError(f"{place} must end in .nii or .nii.gz")
    header = volume.source_header() if isinstance(volume, Volume) else b""
    try:
        if header:
            source = volume.source
            raw = restore(volume.to_stored(), source.slope, source.intercept, volume.affine, header)
        else:
            raw = _new(volume.to_numpy(), volume.affine)
    except ExportError as error:
        raise ExportError(f"volume {volume.obs_id!r} cannot be written to {place}: {error}") from error
    _write(place, raw)
    return place


def restore(stored: Voxels, slope: float, intercept: float, affine: Affine, header: bytes) -> bytes:
    """Make the NIfTI file that a volume was ingested from, uncompressed.

    Parameters
    ----------
    stored
        ``(channel, x, y, z)`` as stored.
    slope, intercept
        Of the volume's row.
    affine
        Of the volume.
    header
        The file's first bytes, up to its voxels.

    Raises
    ------
    ExportError
        When the voxels are not those of a file with this header.
    """
    head = header_of(header)
    grid = grid_of(head)
    voxels = _turned_back(stored, affine, grid.affine, (grid.channels, *grid.shape))
    part, parts = components(head.get_data_dtype())
    flat = ravel(voxels, parts)
    scale = tuple(1.0 * (x if x is not None else d) for x, d in zip(head.get_slope_inter(), (1.0, 0.0), strict=True))
    raw = _unscaled(flat, (slope, intercept), scale, part)
    back, *kept = exact(raw, *scale, label=stored.dtype == np.uint8)
    if tuple(kept) != (slope, intercept) or not np.array_equal(back, flat, equal_nan=flat.dtype.kind == "f"):
        raise ExportError(f"its voxels cannot be those of a file of {raw.dtype} with slope {scale[0]}, {scale[1]}")
    return header + raw.tobytes()


def _turned_back(stored: Voxels, affine: Affine, source: Affine, shape: tuple[int, ...]) -> Voxels:
    """Voxels with their axes as in the file: in RAS+ they were turned, else not."""
    turn = ras_transform(source)
    if stored.shape == shape and np.array_equal(affine, source):
        return stored
    if np.array_equal(affine, reorient_affine(source, turn, shape[1:])):
        back = np.empty_like(turn)
        back[turn[:, 0], 0], back[turn[:, 0], 1] = np.arange(3), turn[:, 1]
        voxels: Voxels = reorient(stored, back)
        if voxels.shape == shape:
            return voxels
    raise ExportError("its grid is not that of the file that it was ingested from")


def _unscaled(
    flat: NDArray[Any], held: tuple[float, float], scale: tuple[float, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Voxels as in the file, of values that are physical ones or (`held` is `scale`) not scaled yet."""
    if held == scale:
        return flat.astype(dtype)
    if held != (1.0, 0.0):
        raise ExportError(f"its slope and intercept {held} are not those of the file {scale}")
    return ((flat.astype(np.int64) - int(scale[1])) // int(scale[0])).astype(dtype)


def _new(voxels: NDArray[Any], affine: Affine) -> bytes:
    """NIfTI-1 file (NIfTI-2 where a side is too long) of voxels ``(x, y, z[, channel])`` in RAS+, in mm."""
    narrow = {"bool": np.uint8, "float16": np.float32}.get(voxels.dtype.name)
    values = voxels if narrow is None else voxels.astype(narrow)
    cls = next((c for c, most in _LARGEST.items() if max(values.shape) <= most), nib.Nifti2Image)
    try:
        image = cls(values, affine, dtype=values.dtype)
    except (ValueError, RadiodataError, nib.spatialimages.HeaderDataError) as error:
        raise ExportError(f"NIfTI cannot hold {values.dtype} voxels of shape {values.shape}: {error}") from error
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner" if np.allclose(image.get_qform(), affine, atol=1e-4) else "unknown")
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _write(place: Path, raw: bytes) -> None:
    """Write a file beside its place and move it there."""
    data = igzip.compress(raw, mtime=0) if place.name.endswith(".gz") else raw
    scratch = place.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(place)
    except OSError as error:
        raise ExportError(f"cannot write {place}: {error}") from error
    finally:
        if scratch.exists():
            scratch.unlink()
