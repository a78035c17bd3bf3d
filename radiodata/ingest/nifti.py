"""Reading NIfTI files whole and verified: gzip CRC and length, header, voxel count.

nibabel does not check the gzip CRC and some readers take truncated files in silence; here both are
refused. Voxels come out exactly: in the smallest dtype that holds the physical value, bit for bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from radiodata.geometry import axis_codes, ras_transform, reorient, reorient_affine
from radiodata.ingest.exact import InexactError, exact
from radiodata.ingest.files import NiftiError, beginning, content, halves_of, inflated
from radiodata.ingest.items import Grid, Loaded
from radiodata.ingest.order import c_order
from radiodata.store.verify import HASH_DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from radiodata._typing import Affine, Voxels

_APART_MM = 1e-2
_MM = {1: 1e3, 3: 1e-3}
"""mm in a unit of length of ``xyzt_units``, where it is another: metres and micrometres."""


@dataclass(frozen=True)
class NiftiFile:
    """A NIfTI file, as the source of a volume."""

    path: Path
    format = "nifti"

    @property
    def where(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def uri(self) -> str:
        """Its path."""
        return str(self.path)

    def grid(self, orient: str | None) -> Grid:
        """Read its header; see ``read_header``."""
        return read_header(self.path, orient=orient)

    def digest(self) -> str:
        """Hash of its bytes as they are on the disk."""
        return _digest([content(half) for half in halves_of(self.path)])

    def load(self, orient: str | None, *, label: bool) -> Loaded:
        """Read it whole; see ``load``."""
        return load(self.path, orient=orient, label=label)


def read_header(path: Path, *, orient: str | None = None) -> Grid:
    """Read the grid of a NIfTI file; of a compressed one only the beginning is inflated.

    Parameters
    ----------
    path
        Of a .nii, .hdr or .img file; of a pair, either half.
    orient
        ``"RAS"`` gives the grid after the axes are turned to the closest RAS+; ``None`` as it is in the file.

    Raises
    ------
    NiftiError
        When it is not a NIfTI file that we can hold, saying why.
    """
    halves = halves_of(path)
    return grid_of(_header(halves)).turned(orient)


def load(path: Path, *, orient: str | None = "RAS", label: bool = False) -> Loaded:
    """Read a NIfTI file whole.

    Parameters
    ----------
    path
        Of a .nii, .hdr or .img file; of a pair, either half.
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
    halves = halves_of(path)
    header = _header(halves)
    contents = [content(half) for half in halves]
    grid = grid_of(header)
    flat, before = _voxels(header, contents)
    scale = zip(_sensible(header.get_slope_inter), (1.0, 0.0), strict=True)
    part, parts = components(flat.dtype)
    try:
        values, slope, intercept = exact(
            flat.view(part), *(default if given is None else float(given) for given, default in scale), label=label
        )
    except InexactError as error:
        raise NiftiError(str(error)) from error
    voxels = unravel(values, grid, parts)
    affine = grid.affine
    if orient == "RAS":
        turn = ras_transform(affine)
        affine = reorient_affine(affine, turn, grid.shape)
        voxels = reorient(voxels, turn)
    return Loaded(
        voxels=c_order(voxels),
        slope=slope,
        intercept=intercept,
        affine=affine,
        source_dtype=f"rgb{8 * parts}" if flat.dtype.names else str(flat.dtype),
        source_orientation=axis_codes(grid.affine),
        source_hash=_digest(contents),
        header=before,
    )


def _header(halves: Sequence[Path]) -> Any:
    header = header_of(beginning(halves[0]), pair=len(halves) > 1)
    if not halves[-1].is_file():
        raise NiftiError(f"is the header of {halves[-1].name}, which is not there")
    return header


def _digest(contents: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for data in contents:
        digest.update(data)
    return digest.hexdigest()[:HASH_DIGITS]


def _voxels(header: Any, contents: Sequence[bytes]) -> tuple[Voxels, bytes]:
    """Voxels in the order of the file, and the bytes before them in a single file."""
    pair = len(contents) > 1
    shape, dtype, offset = (
        header.get_data_shape(),
        header.get_data_dtype(),
        _sensible(lambda: int(header["vox_offset"])),
    )
    need, least = int(np.prod(shape, dtype=object)) * dtype.itemsize, 0 if pair else len(header.binaryblock)
    data = inflated(contents[-1], offset + need) if offset >= least else b""
    if len(data) < offset + need or offset < least:
        have = len(data) - offset
        raise NiftiError(
            f"is truncated: shape {tuple(shape)} of {dtype} needs {need} bytes of voxels at {offset}, it has {have}"
        )
    flat = np.frombuffer(data, dtype, count=need // dtype.itemsize, offset=offset)
    return flat, single(header) if pair else bytes(data[:offset])


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


def unravel(flat: Voxels, grid: Grid, parts: int) -> Voxels:
    """Voxels ``(channel, x, y, z)`` of those in the order of a file, whose parts come one after another."""
    cube = flat.reshape((parts, *grid.shape, grid.channels // parts), order="F")
    return np.transpose(cube, (4, 0, 1, 2, 3)).reshape((grid.channels, *grid.shape))


def ravel(voxels: Voxels, parts: int) -> Voxels:
    """Undo ``unravel``."""
    channels, *shape = voxels.shape
    cube = voxels.reshape((channels // parts, parts, *shape))
    return np.ravel(np.transpose(cube, (1, 2, 3, 4, 0)), order="F")


def header_of(data: bytes, *, pair: bool = False) -> Any:
    """Header, of nibabel, of a NIfTI-1 or -2 file.

    Parameters
    ----------
    pair
        Whether it is to be that of a .hdr and .img pair.

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
            if (header["magic"].item()[:2] == b"ni") != pair:
                one = "a single file, by its header, with the name of half a pair: name it .nii"
                half = "one half of a .hdr and .img pair, by its header: name them so, beside each other"
                raise NiftiError(f"is {one if pair else half}")
            return header
    if data.startswith(b"version https://git-lfs"):
        raise NiftiError("is a git-lfs pointer, not the file itself: run `git lfs pull`")
    if data[128:132] == b"DICM":
        raise NiftiError("is a DICOM file with a NIfTI name")
    if pair and data[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        raise NiftiError("is an Analyze 7.5 header, which does not tell left from right: convert it to NIfTI")
    raise NiftiError("is not a NIfTI-1 or NIfTI-2 file (no magic in its header)")


def single(header: Any) -> bytes:
    """First bytes, up to the voxels, of a single file with the header of a pair."""
    alone = header.copy()
    alone["magic"] = header.single_magic
    alone["vox_offset"] = len(header.binaryblock) + 4
    return bytes(alone.binaryblock) + bytes(4)


def header_like(header: bytes, dtype: str) -> bytes:
    """First bytes of a single file with the grid of another, and one volume of voxels of `dtype` as they are."""
    head = header_of(header).copy()
    head.set_data_dtype(dtype)
    head.set_data_shape((*head.get_data_shape(), 1, 1, 1)[:3])
    head["scl_slope"], head["scl_inter"], head["cal_min"], head["cal_max"] = 1.0, 0.0, 0.0, 0.0
    return single(head)


def _sensible(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (HeaderDataError, WrapStructError, ValueError) as error:
        raise NiftiError(f"has a header that makes no sense: {error}") from error


def grid_of(header: Any) -> Grid:
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
    affine, notes = _affine(header)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise NiftiError(f"has an affine that cannot be inverted: {affine.tolist()}")
    channels = (int(np.prod(rest)) if rest else 1) * parts
    return Grid((spatial[0], spatial[1], spatial[2]), channels, affine, notes)


def _affine(header: Any) -> tuple[Affine, tuple[str, ...]]:
    """Affine in mm: of the sform where its code is set, else of the qform; and what is odd about it."""
    best = np.array(_sensible(header.get_best_affine), np.float64)
    notes = []
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        try:
            apart = float(np.abs(header.get_qform() - best).max())
        except (HeaderDataError, ValueError, np.linalg.LinAlgError):
            apart = np.inf
        if not apart < _APART_MM:
            codes = int(header["sform_code"]), int(header["qform_code"])
            notes.append(f"sform (code {codes[0]}) and qform (code {codes[1]}) differ by {apart:.3g}: sform is used")
    unit = int(header["xyzt_units"]) & 7
    if unit in _MM:
        best[:3] *= _MM[unit]
        notes.append(f"its affine is in {'metres' if unit == 1 else 'micrometres'}: it is stored in mm")
    return best, tuple(notes)


def _unscaled(header: Any) -> bool:
    slope, intercept = _sensible(header.get_slope_inter)
    return slope in (None, 1.0) and intercept in (None, 0.0)
