"""Frames: planes of DICOM files, classic, enhanced and mosaic, each with its place and what its values mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.executors import without_warnings
from radiodata.ingest.dicom.scan import DicomError, NoImageError

if TYPE_CHECKING:
    import pydicom
    from numpy.typing import NDArray

    from radiodata.ingest.dicom.scan import Header, Source

    Vector = NDArray[np.float64]


_MOST_FRAMES = 1 << 20


@dataclass(frozen=True)
class Frame:
    """One plane.

    Attributes
    ----------
    source, index
        The file, and which of its frames.
    tile
        Of a mosaic: first row and column in the frame; else None.
    shape
        Rows and columns.
    position
        Centre of its first voxel in mm, LPS; None where the file does not tell.
    axes
        Unit vectors in which columns and rows are counted, shape ``(2, 3)``; None where the file does not tell.
    spacing
        mm between columns and between rows.
    slope, intercept
        Of its values.
    apart
        What sets volumes of a series apart, beside the grid: echo, complex component, stack, its number.
    order
        What orders frames at one place, in time or by diffusion weighting.
    """

    source: Source
    index: int
    tile: tuple[int, int] | None
    shape: tuple[int, int]
    position: Vector | None
    axes: Vector | None
    spacing: tuple[float, float]
    thickness: float
    slope: float
    intercept: float
    apart: tuple[Any, ...]
    order: tuple[float, ...]
    uid: str


def frames_of(header: Header) -> list[Frame]:
    """Frames of a file.

    Raises
    ------
    DicomError
        When it holds no image, or one whose geometry makes no sense.
    """
    data = header.dataset
    rows, columns = _demanded(data, "Rows"), _demanded(data, "Columns")
    if rows < 1 or columns < 1:
        name = getattr(data.get("SOPClassUID"), "name", "")
        if name and "Image" not in name:
            raise NoImageError(f"holds no pixels: {name}")
        raise DicomError("holds no pixels")
    functional = data.get("PerFrameFunctionalGroupsSequence")
    if functional:
        shared = (data.get("SharedFunctionalGroupsSequence") or [{}])[0]
        return [_frame(header, n, (rows, columns), _Groups(data, shared, own)) for n, own in enumerate(functional)]
    if (mosaic := _mosaic(header, rows, columns)) is not None:
        return mosaic
    count = _demanded(data, "NumberOfFrames") or 1
    if count > _MOST_FRAMES:
        raise DicomError(f"tells of {count} frames")
    frames = [_frame(header, n, (rows, columns), _Groups(data, {}, {})) for n in range(count)]
    offsets = data.get("GridFrameOffsetVector")
    if count > 1 and offsets is not None and len(offsets) == count and frames[0].axes is not None:
        return [_moved(f, float(o) - float(offsets[0])) for f, o in zip(frames, offsets, strict=True)]
    return frames


class _Groups:
    """Attributes of one frame: in its own functional groups, in the shared ones, or in the data set itself."""

    def __init__(self, data: pydicom.Dataset, shared: Any, own: Any) -> None:
        self._data, self._levels = data, (own, shared)

    def get(self, sequence: str, name: str) -> Any:
        for level in self._levels:
            inside = level.get(sequence)
            if inside and (value := inside[0].get(name)) is not None:
                return value
        return self._data.get(name)


def _frame(header: Header, index: int, shape: tuple[int, int], groups: _Groups) -> Frame:
    position = _numbers(groups.get("PlanePositionSequence", "ImagePositionPatient"), 3)
    orientation = _numbers(groups.get("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _numbers(groups.get("PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None:
        spacing = _numbers(header.dataset.get("ImagerPixelSpacing"), 2)
    if spacing is not None and not (spacing > 0).all():
        raise DicomError(f"has a pixel spacing that is not positive: {spacing.tolist()}")
    between = (1.0, 1.0) if spacing is None else (float(spacing[1]), float(spacing[0]))
    thickness = _number(groups.get("PixelMeasuresSequence", "SliceThickness"))
    slope = _number(groups.get("PixelValueTransformationSequence", "RescaleSlope"), 1.0)
    intercept = _number(groups.get("PixelValueTransformationSequence", "RescaleIntercept"), 0.0)
    dose = header.dataset.get("DoseGridScaling")
    return Frame(
        header.source,
        index,
        None,
        shape,
        position,
        None if orientation is None else _axes(orientation),
        between,
        thickness,
        slope if dose is None else float(dose),
        intercept,
        _apart(header.dataset, groups),
        _order(header.dataset, groups, index),
        str(header.dataset.get("SOPInstanceUID", "")),
    )


def _axes(orientation: Vector) -> Vector:
    axes = orientation.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if (np.abs(lengths - 1) > 0.01).any() or abs(float(axes[0] @ axes[1])) > 0.01:
        raise DicomError(f"has an ImageOrientationPatient of no unit vectors at right angles: {orientation.tolist()}")
    return np.asarray(axes / lengths[:, None], np.float64)


def _apart(data: pydicom.Dataset, groups: _Groups) -> tuple[Any, ...]:
    kind = [str(part) for part in groups.get("MRImageFrameTypeSequence", "FrameType") or data.get("ImageType") or []]
    component = groups.get("MRImageFrameTypeSequence", "ComplexImageComponent")
    parts = {"M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY", "FIELD_MAP", "VELOCITY MAP"}
    parts |= {"PHASE MAP", "FIELD MAP", "B0 MAP", "M_FFE", "M_SE", "P_FFE", "R_FFE", "I_FFE", "PHASE_MAP"}
    echo = _number(groups.get("MREchoSequence", "EffectiveEchoTime"), _number(data.get("EchoTime")))
    unit = groups.get("PixelValueTransformationSequence", "RescaleType")
    return (
        tuple(part for part in kind if part.upper() in parts),
        str(component or ""),
        round(echo, 4) if math.isfinite(echo) else None,
        _whole(data, "EchoNumbers"),
        _whole(data, "SeriesNumber"),
        str(groups.get("FrameContentSequence", "StackID") or ""),
        str(unit or ""),
    )


def _order(data: pydicom.Dataset, groups: _Groups, index: int) -> tuple[float, ...]:
    time = _number(groups.get("FrameContentSequence", "TemporalPositionIndex"), math.nan)
    if not math.isfinite(time):
        time = _number(data.get("TemporalPositionIdentifier"), 0.0)
    weighting = _number(groups.get("MRDiffusionSequence", "DiffusionBValue"), 0.0)
    acquisition, number = (_number(data.get(name), 0.0) for name in ("AcquisitionNumber", "InstanceNumber"))
    return (time, acquisition, weighting, number, index)


def _mosaic(header: Header, rows: int, columns: int) -> list[Frame] | None:
    """Slices of a Siemens mosaic, by what its CSA header tells; None where it is none."""
    data = header.dataset
    if "MOSAIC" not in [str(part).upper() for part in data.get("ImageType") or []]:
        return None
    csareader = _csareader()
    try:
        csa = csareader.get_csa_header(data, "image")
        count = 0 if csa is None else int(csareader.get_n_mosaic(csa) or 0)
        normal = None if csa is None else csareader.get_slice_normal(csa)
    except (ValueError, KeyError, TypeError) as error:
        raise DicomError(f"is a mosaic whose CSA header cannot be read: {error}") from error
    count = count or _whole(data, (0x0019, 0x100A))
    whole = _frame(header, 0, (rows, columns), _Groups(data, {}, {}))
    if not count or whole.position is None or whole.axes is None:
        raise DicomError("is a mosaic that does not tell how many slices it holds, or where they are")
    side = math.ceil(math.sqrt(count))
    shape = rows // side, columns // side
    step = np.cross(*whole.axes)
    if normal is not None and float(np.dot(normal, step)) < 0:
        step = -step
    gap = _number(data.get("SpacingBetweenSlices"), whole.thickness)
    # the position is that of the corner of an image as large as the mosaic, about the same centre
    aside = whole.spacing[0] * (columns - shape[1]) / 2, whole.spacing[1] * (rows - shape[0]) / 2
    first = whole.position + whole.axes[0] * aside[0] + whole.axes[1] * aside[1]
    made = []
    for n in range(count):
        tile = (n // side) * shape[0], (n % side) * shape[1]
        made.append(replace(whole, tile=tile, shape=shape, position=first + step * gap * n))
    return made


def _csareader() -> Any:
    with without_warnings():  # it calls all of its DICOM side experimental; mosaics are tested against references
        from nibabel.nicom import csareader
    return csareader


def _moved(frame: Frame, offset: float) -> Frame:
    start = np.zeros(3) if frame.position is None else frame.position
    return replace(frame, position=start + np.cross(*np.asarray(frame.axes)) * offset)


def _numbers(value: Any, count: int) -> Vector | None:
    if value is None or not len(value):
        return None
    try:
        found = np.array([float(v) for v in value], np.float64)
    except (TypeError, ValueError) as error:
        raise DicomError(f"has a geometry of no numbers: {value!r}") from error
    if len(found) != count or not np.isfinite(found).all():
        raise DicomError(f"has a geometry that makes no sense: {value!r}")
    return found


def _number(value: Any, default: float = math.nan) -> float:
    try:
        return float(_first(value))
    except (TypeError, ValueError):
        return default


def _whole(data: Any, name: Any) -> int:
    value = data.get(name)
    try:
        return int(_first(getattr(value, "value", value)))
    except (TypeError, ValueError):
        return 0


def _demanded(data: Any, name: str) -> int:
    """A whole number, 0 where it is not told.

    Raises
    ------
    DicomError
        When it is told, and is none.
    """
    value = data.get(name)
    if value is None or value == "":
        return 0
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DicomError(f"tells of {name} {value!r}, which is no whole number") from error


def _first(value: Any) -> Any:
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return (value[0] if len(value) else None) if several else value
