"""Reading NIfTI files whole and verified: gzip CRC and length, header, voxel count.

nibabel does not check the gzip CRC and some readers take truncated files in silence; here both are
refused. Voxels come out exactly: in the smallest dtype that holds the physical value, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from radiodata.errors import RadiodataError
from radiodata.geometry import Shape3, axis_codes, ras_transform, reorient, reorient_affine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from radiodata._typing import Affine, Voxels

SUFFIXES = (".nii", ".nii.gz")
_IMAGE_DTYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64")
_GZIP_MAGIC = b"\x1f\x8b"
_UNREADABLE = (OSError, EOFError, cast("type[Exception]", igzip_lib.IsalError))


class NiftiError(RadiodataError, ValueError):
    """A file that is not a whole NIfTI volume."""


@dataclass(frozen=True)
class NiftiHeader:
    """Grid of a file, from its header alone.

    Attributes
    ----------
    shape
        ``(x, y, z)``.
    channels
        1, or the number of time frames or vector components; of complex voxels the real and the imaginary part are a
        channel each, of RGB voxels the three colours.
    affine
        Voxel index to world mm (RAS+).
    """

    shape: Shape3
    channels: int
    affine: Affine


@dataclass(frozen=True)
class NiftiVolume:
    """A file's voxels and all that is needed to give the file back.

    Attributes
    ----------
    voxels
        ``(channel, x, y, z)``, C order, stored dtype.
    slope, intercept
        Physical value = stored * slope + intercept; 1 and 0 where the store holds physical values.
    header
        The file's header, byte for byte.
    """

    voxels: Voxels
    slope: float
    intercept: float
    affine: Affine
    source_dtype: str
    source_orientation: str
    source_hash: str
    header: bytes


def read_header(path: Path, *, orient: str | None = None) -> NiftiHeader:
    """Read the grid of a NIfTI file; of a .nii.gz only its beginning is inflated.

    Parameters
    ----------
    orient
        ``"RAS"`` gives the grid after the axes are turned to the closest RAS+; ``None`` as it is in the file.

    Raises
    ------
    NiftiError
        When it is not a NIfTI file that we can hold, saying why.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP_MAGIC
        if zipped:
            with igzip.open(path) as stream:
                head = stream.read(1024)
        else:
            with path.open("rb") as file:
                head = file.read(1024)
    except _UNREADABLE as error:
        raise NiftiError(f"cannot be read ({type(error).__name__}: {error})") from error
    grid = grid_of(header_of(head))
    if orient is None:
        return grid
    turn = ras_transform(grid.affine)
    x, y, z = (grid.shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    return NiftiHeader((x, y, z), grid.channels, reorient_affine(grid.affine, turn, grid.shape))


def load(path: Path, *, orient: str | None = "RAS", label: bool = False) -> NiftiVolume:
    """Read a NIfTI file whole.

    Parameters
    ----------
    orient
        ``"RAS"`` flips and permutes the axes to the closest RAS+; ``None`` keeps them.
    label
        Whether integers may be narrowed to uint8 (label volumes); images become int16 at the least,
        so that one collection has one dtype.

    Raises
    ------
    NiftiError
        When the file is damaged, truncated, or of a kind that we cannot hold.
    """
    raw_bytes, source_hash = _read_verified(path)
    header = header_of(raw_bytes)
    grid = grid_of(header)
    stored, slope, intercept = _raw_array(header, raw_bytes)
    part, parts = components(stored.dtype)
    values, slope, intercept = exact(stored.view(part), slope, intercept, label=label)
    voxels = unravel(values, grid, parts)
    affine = grid.affine
    if orient == "RAS":
        turn = ras_transform(affine)
        affine = reorient_affine(affine, turn, grid.shape)
        voxels = reorient(voxels, turn)
    return NiftiVolume(
        voxels=np.ascontiguousarray(voxels),
        slope=slope,
        intercept=intercept,
        affine=affine,
        source_dtype=f"rgb{8 * parts}" if stored.dtype.names else str(stored.dtype),
        source_orientation=axis_codes(grid.affine),
        source_hash=source_hash,
        header=raw_bytes[: int(header["vox_offset"]) or len(header.binaryblock)],
    )


def components(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """Dtype and number of what a voxel is made of: real and imaginary part, or red, green and blue; else itself.

    Raises
    ------
    NiftiError
        When it is no kind of number.
    """
    if dtype.kind in "iuf":
        return dtype, 1
    if dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}").newbyteorder(dtype.byteorder)
        return part, 2
    if dtype.names and all(dtype[name] == np.uint8 for name in dtype.names):
        return np.dtype(np.uint8), len(dtype.names)
    raise NiftiError(f"holds {dtype} voxels, which are no numbers")


def unravel(flat: Voxels, grid: NiftiHeader, parts: int) -> Voxels:
    """Voxels ``(channel, x, y, z)`` of those in the order of a file, whose parts come one after another."""
    cube = flat.reshape((parts, *grid.shape, grid.channels // parts), order="F")
    return np.transpose(cube, (4, 0, 1, 2, 3)).reshape((grid.channels, *grid.shape))


def ravel(voxels: Voxels, parts: int) -> Voxels:
    """Undo ``unravel``."""
    channels, *shape = voxels.shape
    cube = voxels.reshape((channels // parts, parts, *shape))
    return np.ravel(np.transpose(cube, (1, 2, 3, 4, 0)), order="F")


def exact(stored: Voxels, slope: float, intercept: float, *, label: bool = False) -> tuple[Voxels, float, float]:
    """Narrow voxels to the smallest dtype that gives every physical value back, bit for bit.

    Returns
    -------
    voxels, slope, intercept
        Slope 1 and intercept 0 where the voxels are physical values now.
    """
    if stored.dtype.kind in "iu":
        return _exact_ints(stored, slope, intercept, label)
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if (slope, intercept) == (1.0, 0.0) and (whole := _as_ints(native)) is not None:
        return _narrow(whole, label), 1.0, 0.0
    with np.errstate(over="ignore"):
        single = native.astype(np.float32)
    same = native.dtype == np.float32 or np.array_equal(single.astype(native.dtype), native, equal_nan=True)
    if native.dtype.itemsize > 8 and not same:
        single, same = native.astype(np.float64), True
        if not np.array_equal(single.astype(native.dtype), native, equal_nan=True):
            raise NiftiError(f"its {native.dtype} values do not fit float64: convert the file first")
    return (single if same else native.astype(np.float64, copy=False)), slope, intercept


def _exact_ints(stored: Voxels, slope: float, intercept: float, label: bool) -> tuple[Voxels, float, float]:
    if (slope, intercept) == (1.0, 0.0):
        return _narrow(stored, label), 1.0, 0.0
    if slope.is_integer() and intercept.is_integer() and stored.size:
        lowest, highest = int(stored.min()), int(stored.max())
        parts = [lowest, highest, int(slope), lowest * int(slope), highest * int(slope), int(intercept)]
        if max(abs(part) for part in parts) < 2**61:
            return _narrow(stored.astype(np.int64) * int(slope) + int(intercept), label), 1.0, 0.0
    return _narrow(stored, label), slope, intercept


def _as_ints(values: Voxels) -> Voxels | None:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) >= 2**31:
        return None
    whole = values.astype(np.int32)
    back = whole.astype(values.dtype)
    # signbit: -0.0 would come back as 0.0
    return whole if np.array_equal(back, values) and not (np.signbit(values) & (whole == 0)).any() else None


def _narrow(values: Voxels, label: bool) -> Voxels:
    if not values.size:
        return values.astype("uint8" if label else "int16")
    low, high = int(values.min()), int(values.max())
    small = ("uint8",) if label or values.dtype == np.uint8 else (("int8",) if values.dtype == np.int8 else ())
    for name in (*small, *_IMAGE_DTYPES):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return values.astype(name, copy=False)
    raise NiftiError(f"its values {low}..{high} fit no integer type")


def _read_verified(path: Path) -> tuple[bytes, str]:
    try:
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        if data[:2] == _GZIP_MAGIC:
            data = igzip.decompress(data)
    except _UNREADABLE as error:
        raise NiftiError(f"cannot be read whole ({type(error).__name__}: {error}): the file is damaged") from error
    return data, digest


def header_of(data: bytes) -> Any:
    """Header, of nibabel, of a NIfTI-1 or -2 file.

    Raises
    ------
    NiftiError
        When it is none.
    """
    if not data:
        raise NiftiError("is empty")
    for cls in (nib.Nifti1Header, nib.Nifti2Header):
        if cls.may_contain_header(data):
            header = _sensible(partial(cls, data[: cls.template_dtype.itemsize]))
            if header["magic"].item()[:2] == b"ni":
                raise NiftiError("is one half of a .hdr and .img pair: convert it to a single .nii file")
            return header
    if data.startswith(b"version https://git-lfs"):
        raise NiftiError("is a git-lfs pointer, not the file itself: run `git lfs pull`")
    if data[128:132] == b"DICM":
        raise NiftiError("is a DICOM file with a NIfTI name")
    raise NiftiError("is not a NIfTI-1 or NIfTI-2 file (no magic in its header)")


def _sensible(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise NiftiError(f"has a header that makes no sense: {error}") from error


def grid_of(header: Any) -> NiftiHeader:
    """Grid that a header tells of.

    Raises
    ------
    NiftiError
        When it is of a kind that we cannot hold.
    """
    dtype = _sensible(header.get_data_dtype)
    parts = components(dtype)[1]
    if parts > 1 and not _unscaled(header):
        raise NiftiError(f"holds {dtype} voxels with a slope: write it anew without")
    shape = tuple(int(n) for n in header.get_data_shape())
    if not shape or min(shape) < 1:
        raise NiftiError(f"has no voxels: shape {shape}")
    spatial, rest = (*shape, 1, 1, 1)[:3], shape[3:]
    if sum(n > 1 for n in rest) > 1:
        raise NiftiError(f"has shape {shape}: at most one axis beyond x, y, z can be stored")
    affine = np.asarray(_sensible(header.get_best_affine), np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise NiftiError(f"has an affine that cannot be inverted: {affine.tolist()}")
    channels = (int(np.prod(rest)) if rest else 1) * parts
    return NiftiHeader((spatial[0], spatial[1], spatial[2]), channels, affine)


def _unscaled(header: Any) -> bool:
    slope, intercept = _sensible(header.get_slope_inter)
    return slope in (None, 1.0) and intercept in (None, 0.0)


def _raw_array(header: Any, data: bytes) -> tuple[Voxels, float, float]:
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    offset = int(header["vox_offset"])
    need, have = int(np.prod(shape, dtype=object)) * dtype.itemsize, len(data) - offset
    if offset < len(header.binaryblock) or have < need:
        raise NiftiError(
            f"is truncated: shape {tuple(shape)} of {dtype} needs {need} bytes of voxels at {offset}, it has {have}"
        )
    slope, intercept = _sensible(header.get_slope_inter)
    values = np.frombuffer(data, dtype, count=need // dtype.itemsize, offset=offset)
    return values, 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
