"""Masks of segmentations and structure sets, on the grid of what they are drawn on."""

from __future__ import annotations

import io
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.executors import without_warnings
from radiodata.ingest.dicom.scan import DicomError, parsing, read_bytes, read_dataset
from radiodata.ingest.dicom.stacks import LPS_TO_RAS
from radiodata.ingest.items import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from radiodata.ingest.dicom.labels import LabelFile

    Mask = NDArray[np.bool_]

_OFF_GRID = 0.05
"""Voxels of a segmentation lie on those of the image to this part of one."""
_OFF_PLANE = 0.25
"""Contours lie in planes of the image to this part of their distance; points of one contour as much."""


def masks(file: LabelFile, grid: Grid, numbers: Sequence[int]) -> Iterator[tuple[int, Mask]]:
    """Give the mask of each label, ``(x, y, z)``: columns, rows and slices.

    Parameters
    ----------
    grid
        Of the stack that they are drawn on, as its files hold it.
    numbers
        Of the labels that are asked for.

    Raises
    ------
    DicomError
        When the file cannot be decoded, or does not lie on the grid.
    """
    if file.kind == "SEG":
        yield from _segments(file, grid, numbers)
    else:
        yield from _regions(file, grid, numbers)


def _segments(file: LabelFile, grid: Grid, numbers: Sequence[int]) -> Iterator[tuple[int, Mask]]:
    segmentation = _read(file)
    for number in numbers:
        with parsing(f"{file.source}: segment {number} cannot be decoded"), without_warnings():
            volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
            inside = np.asarray(volume.array)[..., 0]
        # fractions of a voxel count from one half
        mask = (inside >= 0.5 if inside.dtype.kind == "f" else inside > 0).transpose(2, 1, 0)
        yield number, _onto(mask, _affine(volume), grid, file)


def own_grid(file: LabelFile) -> Grid:
    """Grid of a segmentation's own, for one whose series is not there.

    Raises
    ------
    DicomError
        When it cannot be decoded, or its frames make no volume.
    """
    with parsing(f"{file.source}: its frames make no volume"), without_warnings():
        volume = _read(file).get_volume(combine_segments=False, segment_numbers=[file.names[0][0]])
        z, y, x = volume.spatial_shape
    return Grid((x, y, z), 1, _affine(volume))


def _read(file: LabelFile) -> Any:
    from highdicom.seg import segread

    content = read_bytes(file.source)
    # highdicom tells of what it mends in the headers
    with parsing(f"{file.source}: cannot be read as a segmentation"), without_warnings():
        return segread(io.BytesIO(content))


def _affine(volume: Any) -> NDArray[np.float64]:
    """Affine, columns, rows and slices to RAS+, of a volume of highdicom, whose indices are (slice, row, column)."""
    return LPS_TO_RAS @ np.asarray(volume.affine, np.float64)[:, [2, 1, 0, 3]]


def _onto(mask: Mask, affine: NDArray[np.float64], grid: Grid, file: LabelFile) -> Mask:
    """Put a mask where it lies in a grid: flipped, turned and moved by whole voxels, never resampled."""
    matrix = np.linalg.solve(grid.affine, affine)
    whole = np.round(matrix)
    far = np.abs(matrix[:3, :3] - whole[:3, :3]) @ np.asarray(mask.shape) + np.abs(matrix[:3, 3] - whole[:3, 3])
    turn = whole[:3, :3]
    if mask.shape[2] == 1 and np.abs(turn).sum() != 3:  # the distance to a next slice that is not there tells nothing
        turn = turn.copy()
        turn[:, 2] = np.cross(turn[:, 0], turn[:, 1])
        far = np.abs(matrix[:3, :2] - turn[:, :2]) @ np.asarray(mask.shape[:2]) + np.abs(matrix[:3, 3] - whole[:3, 3])
    if not np.array_equal(np.abs(turn).sum(axis=0), np.ones(3)) or far.max() > _OFF_GRID:
        raise DicomError(f"{file.source}: its voxels do not lie on those of the series that it segments: resample it")
    at = np.argwhere(mask) @ turn.T.astype(np.int64) + whole[:3, 3].astype(np.int64)
    shape = grid.shape
    if len(at) and ((at < 0).any() or (at >= shape).any()):
        raise DicomError(f"{file.source}: it labels voxels beyond the {shape} of the series that it segments")
    out = np.zeros(shape, bool)
    out[tuple(at.T)] = True
    return out


def _regions(file: LabelFile, grid: Grid, numbers: Sequence[int]) -> Iterator[tuple[int, Mask]]:
    with parsing(f"{file.source}: its contours make no sense"):
        data = read_dataset(file.source)
        drawn: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
        for region in data.get("ROIContourSequence") or []:
            for contour in region.get("ContourSequence") or []:
                if str(contour.get("ContourGeometricType")) in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                    points = np.array([float(v) for v in contour.ContourData], np.float64).reshape(-1, 3)
                    drawn[int(region.ReferencedROINumber)].append(points)
    for number in numbers:
        yield number, _filled(drawn[number], grid, file, number)


def _filled(contours: Sequence[NDArray[np.float64]], grid: Grid, file: LabelFile, number: int) -> Mask:
    """Voxels whose centres lie inside an odd number of contours: one within another is a hole."""
    from skimage.draw import polygon

    shape = grid.shape
    out, to_voxel = np.zeros(shape, bool), np.linalg.inv(grid.affine) @ LPS_TO_RAS
    for points in contours:
        at: Any = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        plane = round(float(at[:, 2].mean()))
        if float(np.abs(at[:, 2] - plane).max()) > _OFF_PLANE or not 0 <= plane < shape[2]:
            raise DicomError(
                f"{file.source}: a contour of region {number} does not lie in a plane of the series that it refers to"
            )
        inside: Any = polygon(at[:, 0], at[:, 1], shape[:2])
        out[(*inside, plane)] ^= True
    return out
