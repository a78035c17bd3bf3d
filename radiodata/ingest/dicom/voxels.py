"""Voxels of a stack: frames decoded one after another, rescaled exactly, with the axes of NIfTI."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.geometry import axis_codes, ras_transform, reorient, reorient_affine
from radiodata.ingest.dicom.scan import DicomError, parsing, read_bytes, read_dataset
from radiodata.ingest.exact import InexactError, exact
from radiodata.ingest.items import Loaded
from radiodata.ingest.order import c_order
from radiodata.store.verify import HASH_DIGITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pydicom

    from radiodata._typing import Voxels
    from radiodata.ingest.dicom.frames import Frame
    from radiodata.ingest.dicom.scan import Source
    from radiodata.ingest.dicom.stacks import Stack


def load(stack: Stack, *, orient: str | None = "RAS") -> Loaded:
    """Decode a stack.

    Parameters
    ----------
    orient
        ``"RAS"`` flips and permutes the axes to the closest RAS+; ``None`` keeps columns, rows and slices.

    Raises
    ------
    DicomError
        When a file is damaged, or its decoder is not installed.
    """
    files = _Files()
    scales = {(f.slope, f.intercept) for channel in stack.frames for f in channel}
    stored, dtypes = _stored(stack, files)
    cube, slope, intercept = stored, 1.0, 0.0
    if len(scales) == 1:
        try:
            values, slope, intercept = exact(stored.ravel(), *scales.pop())
        except InexactError as error:
            raise DicomError(str(error)) from error
        cube = values.reshape(stored.shape)
    else:
        cube = _rescaled(stored, stack)
    if cube.ndim == 5:  # colours are channels
        cube = np.moveaxis(cube, -1, 1).reshape(-1, *cube.shape[1:4])
    voxels, affine = cube.transpose(0, 3, 2, 1), stack.affine
    if orient == "RAS":
        turn = ras_transform(affine)
        affine = reorient_affine(affine, turn, voxels.shape[1:])
        voxels = reorient(voxels, turn)
    return Loaded(
        c_order(voxels),
        slope,
        intercept,
        affine,
        source_dtype="/".join(sorted(dtypes)),
        source_orientation=axis_codes(stack.affine),
        source_hash=_combined(stack, files.hashes),
    )


def digest(stack: Stack) -> str:
    """Hash of the files that a stack is made of, and of which frames of them, in order."""
    sources = dict.fromkeys(frame.source for channel in stack.frames for frame in channel)
    return _combined(stack, {source: _hash(read_bytes(source)) for source in sources})


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _combined(stack: Stack, hashes: Mapping[Source, bytes]) -> str:
    whole = hashlib.sha256()
    for channel in stack.frames:
        for frame in channel:
            whole.update(hashes[frame.source] + f"{frame.index} {frame.tile};".encode())
    return whole.hexdigest()[:HASH_DIGITS]


def _stored(stack: Stack, files: _Files) -> tuple[Voxels, set[str]]:
    """Stored values ``(channel, z, row, column[, colour])``, and the dtypes of the files."""
    out: Voxels | None = None
    dtypes = set()
    for c, channel in enumerate(stack.frames):
        for z, frame in enumerate(channel):
            plane = files.plane(frame)
            dtypes.add(str(plane.dtype))
            if out is None:
                out = np.empty((len(stack.frames), len(channel), *plane.shape), plane.dtype)
            elif plane.shape != out.shape[2:]:
                raise DicomError(f"{frame.source}: its plane is {plane.shape}, and those before are {out.shape[2:]}")
            elif plane.dtype != out.dtype:
                out = out.astype(np.result_type(out.dtype, plane.dtype), copy=False)
            out[c, z] = plane
    if out is None:
        raise DicomError(f"series {stack.series} has no frames")
    return out, dtypes


def _rescaled(stored: Voxels, stack: Stack) -> Voxels:
    """Physical values, of slopes that differ from plane to plane."""
    out = np.empty(stored.shape, np.float32)
    for c, channel in enumerate(stack.frames):
        for z, frame in enumerate(channel):
            out[c, z] = stored[c, z] * np.float64(frame.slope) + frame.intercept
    return out


class _Files:
    """The file that was opened last: frames of one follow each other."""

    def __init__(self) -> None:
        self.hashes: dict[Source, bytes] = {}
        self._source: Source | None = None
        self._data: pydicom.Dataset | None = None
        self._frames: dict[int, Voxels] = {}

    def plane(self, frame: Frame) -> Voxels:
        """Stored values of a frame, ``(row, column)``, or ``(row, column, colour)``."""
        if frame.source != self._source:
            content = read_bytes(frame.source)
            self.hashes[frame.source] = _hash(content)
            self._source, self._data = frame.source, read_dataset(frame.source, pixels=True, data=content)
            self._frames = {}
        if frame.index not in self._frames:
            self._frames = {frame.index: _decoded(self._data, frame)}
        whole = self._frames[frame.index]
        if frame.tile is None:
            return whole
        row, column = frame.tile
        return whole[row : row + frame.shape[0], column : column + frame.shape[1]]


def _decoded(data: Any, frame: Frame) -> Voxels:
    from pydicom.pixels.utils import pixel_array

    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DicomError(f"{frame.source} holds no pixels")
    with parsing(f"{frame.source}: its pixels cannot be decoded"):
        several = int(data.get("NumberOfFrames") or 1) > 1
        try:
            plane = pixel_array(data, index=frame.index if several else None)
        except (RuntimeError, NotImplementedError) as error:
            raise DicomError(_lacking(frame, data, error)) from error
        return _without_overlays(_whole(plane, data, frame), data)


def _whole(plane: Voxels, data: Any, frame: Frame) -> Voxels:
    told = int(data.get("Rows")), int(data.get("Columns"))
    if plane.shape[:2] != told:
        raise DicomError(f"{frame.source}: its pixels are {plane.shape}, and its header tells of {told}")
    return plane


def _without_overlays(plane: Voxels, data: Any) -> Voxels:
    """Drop overlays that lie in the unused bits of voxels, as scanners of the nineties wrote them."""
    inside = [g for g in range(0x6000, 0x6020, 2) if (g, 0x0102) in data and (g, 0x3000) not in data]
    stored, high = int(data.get("BitsStored") or 0), int(data.get("HighBit") or 0)
    bits = plane.dtype.itemsize * 8
    if plane.dtype.kind == "f" or not stored or stored >= bits or not any(data[g, 0x0102].value for g in inside):
        return plane
    return (plane << (bits - 1 - high)) >> (bits - stored)


def _lacking(frame: Frame, data: Any, error: Exception) -> str:
    syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
    name = getattr(syntax, "name", str(syntax))
    return f"{frame.source}: no decoder of {name} could read it ({error}): pip install 'radiodata[dicom]'"
