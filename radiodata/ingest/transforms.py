"""Transforms of volumes, at ingest and in pipelines, that keep the grid true: on scipy, nibabel and MONAI.

Each is called with ``(volume, obs_row)`` and says in ``touches`` which columns it may change, so that filters on others
need no voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from radiodata.errors import ConfigError, GeometryError
from radiodata.geometry import box, box_slices, crop_affine, reorient, reorient_affine, shape3, spacing_of, world_box
from radiodata.store.obs import GEOMETRY, STATISTICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Affine, Box

Row = Mapping[str, Any]
_VALUES = STATISTICS | {"dtype"}
_GRID = STATISTICS | GEOMETRY
_OTHERS: Any = ((1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class Resample:
    """Resample to a voxel spacing; the field of view keeps its centre, and its size to within a voxel.

    Parameters
    ----------
    spacing
        In mm along ``(x, y, z)``, or one for all; None along an axis keeps it.
    order
        Of the spline: 0 nearest, 1 linear, 3 cubic; by default 1, and 0 for labels.

    Notes
    -----
    Integers stay integers of their dtype, rounded. There is no low-pass filter before downsampling.
    """

    spacing: float | tuple[float | None, float | None, float | None]
    order: int | None = None
    touches: ClassVar[frozenset[str]] = _GRID

    def __post_init__(self) -> None:
        parts = self.spacing if isinstance(self.spacing, Sequence) else (self.spacing,) * 3
        if len(parts) != 3 or any(s is not None and not 0 < s < float("inf") for s in parts):
            raise ConfigError(f"Resample(spacing={self.spacing!r}): one or three positive lengths in mm")
        object.__setattr__(self, "spacing", tuple(None if s is None else float(s) for s in parts))

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Resample one volume."""
        affine = np.asarray(row["affine"], np.float64)
        old, shape = spacing_of(affine), np.array(volume.shape[:3])
        wanted = self.spacing if isinstance(self.spacing, tuple) else (self.spacing,) * 3
        new = np.array([o if w is None else w for o, w in zip(old, wanted, strict=True)])
        sides = np.maximum(np.round(shape * old / new), 1).astype(int)
        step = new / old
        first = ((shape - 1) - (sides - 1) * step) / 2
        if np.array_equal(sides, shape) and np.allclose(step, 1, rtol=1e-9, atol=0):
            return volume, {}
        to_old = np.eye(4)
        to_old[:3, :3], to_old[:3, 3] = np.diag(step), first
        out = _interpolate(volume, to_old, sides.tolist(), _order(self.order, row), "nearest", 0)
        return out, {"affine": affine @ to_old}


@dataclass(frozen=True)
class ResampleTo:
    """Resample onto a given grid.

    Parameters
    ----------
    affine
        Of the grid, ``(4, 4)``, voxel index to world mm (RAS+).
    shape
        ``(x, y, z)``.
    order
        As of ``Resample``.
    fill
        Value beyond the centres of the volume's outermost voxels.
    """

    affine: tuple[tuple[float, ...], ...]
    shape: tuple[int, int, int]
    order: int | None = None
    fill: float = 0
    touches: ClassVar[frozenset[str]] = _GRID

    def __post_init__(self) -> None:
        matrix = np.asarray(self.affine, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise ConfigError(f"ResampleTo(affine={self.affine!r}): none of shape (4, 4) that can be inverted")
        object.__setattr__(self, "affine", tuple(tuple(line) for line in matrix.tolist()))
        object.__setattr__(self, "shape", shape3(self.shape))

    @classmethod
    def like(cls, volume: Any, **more: Any) -> ResampleTo:
        """Onto the grid of another volume."""
        return cls(volume.affine, volume.shape[:3], **more)

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Resample one volume."""
        to_old = np.linalg.inv(np.asarray(row["affine"], np.float64)) @ np.asarray(self.affine)
        out = _interpolate(volume, to_old, self.shape, _order(self.order, row), "constant", self.fill)
        return out, {"affine": np.asarray(self.affine)}


@dataclass(frozen=True)
class Reorient:
    """Turn axes to anatomical codes such as ``"RAS"`` or ``"LPS"``: flips and permutes only."""

    codes: str = "RAS"
    touches: ClassVar[frozenset[str]] = _GRID

    def __post_init__(self) -> None:
        if not _is_codes(self.codes):
            raise ConfigError(f"Reorient({self.codes!r}): three letters, one of each of LR, PA, IS, such as 'RAS'")

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Turn one volume."""
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        affine = np.asarray(row["affine"], np.float64)
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(self.codes))).astype(np.int8)
        channels = np.moveaxis(volume, -1, 0) if volume.ndim == 4 else volume[None]
        turned = reorient(channels, turn)
        out = turned[0] if volume.ndim == 3 else np.moveaxis(turned, 0, -1)
        return np.ascontiguousarray(out), {"affine": reorient_affine(affine, turn, volume.shape[:3])}


@dataclass(frozen=True)
class Crop:
    """Cut voxels `start` to `stop` out, ``(x, y, z)``."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    touches: ClassVar[frozenset[str]] = _GRID

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Cut one volume."""
        inside = box(self.start, self.stop)
        if (inside[:, 0] < 0).any() or (inside[:, 1] > volume.shape[:3]).any() or (inside[:, 0] >= inside[:, 1]).any():
            raise GeometryError(f"the box {inside.tolist()} does not lie in a volume of {volume.shape[:3]}")
        return _cut(volume, inside, row)


@dataclass(frozen=True)
class CropWorld:
    """Cut out the voxels that cover a box in the world, as far as it lies in the volume.

    Parameters
    ----------
    box_mm
        Two ends along each world axis (RAS+, mm), shape ``(3, 2)``.
    """

    box_mm: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    touches: ClassVar[frozenset[str]] = _GRID

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Cut one volume."""
        return _cut(volume, world_box(row["affine"], self.box_mm, volume.shape[:3]), row)


@dataclass(frozen=True)
class CropForeground:
    """Cut off what lies beyond the voxels above a value, in any channel.

    Parameters
    ----------
    above
        Foreground is greater than this.
    margin
        Voxels kept around it.
    """

    above: float = 0.0
    margin: int = 0
    touches: ClassVar[frozenset[str]] = _GRID

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Cut one volume."""
        mask = volume > self.above if volume.ndim == 3 else (volume > self.above).any(axis=3)
        spans = []
        for axis in range(3):
            at = np.flatnonzero(mask.any(axis=_OTHERS[axis]))
            if not len(at):
                raise GeometryError(f"no voxel is above {self.above:g}: there is no foreground to crop to")
            side = volume.shape[axis]
            spans.append((max(int(at[0]) - self.margin, 0), min(int(at[-1]) + 1 + self.margin, side)))
        return _cut(volume, np.array(spans, np.int64), row)


@dataclass(frozen=True)
class Pad:
    """Pad evenly on both sides, to at least a size.

    Parameters
    ----------
    size
        ``(x, y, z)`` in voxels, or one for all.
    value
        Of what is added.
    """

    size: int | tuple[int, int, int]
    value: float = 0
    touches: ClassVar[frozenset[str]] = _GRID

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Pad one volume."""
        short = np.maximum(np.array(shape3(self.size)) - volume.shape[:3], 0)
        if not short.any():
            return volume, {}
        _refuse_value(self.value, volume.dtype)
        before = short // 2
        widths = [(int(b), int(s - b)) for b, s in zip(before, short, strict=True)] + [(0, 0)] * (volume.ndim - 3)
        out = np.pad(volume, widths, constant_values=np.asarray(self.value, volume.dtype))
        return out, {"affine": crop_affine(row["affine"], -before)}


@dataclass(frozen=True)
class Clip:
    """Clip values to ``[low, high]``; the dtype stays."""

    low: float
    high: float
    touches: ClassVar[frozenset[str]] = _VALUES

    def __call__(self, volume: NDArray[Any], row: Row) -> NDArray[Any]:
        """Clip one volume."""
        low, high = self.low, self.high
        if volume.dtype.kind in "iu":
            info = np.iinfo(volume.dtype)
            low, high = max(int(np.ceil(low)), info.min), min(int(np.floor(high)), info.max)
        clipped: NDArray[Any] = np.clip(volume, low, high).astype(volume.dtype, copy=False)
        return clipped


@dataclass(frozen=True)
class Cast:
    """Cast to a dtype; values that it cannot hold are refused, not wrapped."""

    dtype: str
    touches: ClassVar[frozenset[str]] = _VALUES

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        except TypeError as error:
            raise ConfigError(f"Cast({self.dtype!r}): no dtype of NumPy") from error

    def __call__(self, volume: NDArray[Any], row: Row) -> NDArray[Any]:
        """Cast one volume."""
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            values = np.rint(volume) if volume.dtype.kind == "f" else volume
            low, high = values.min(), values.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ConfigError(f"NaN or infinity cannot be cast to {dtype}")
            _refuse_value(float(low), dtype)
            _refuse_value(float(high), dtype)
            volume = values
        return volume.astype(dtype)


@dataclass(frozen=True)
class Normalize:
    """Subtract a mean and divide by a standard deviation; by default the volume's own. Gives float32."""

    mean: float | None = None
    std: float | None = None
    touches: ClassVar[frozenset[str]] = _VALUES

    def __call__(self, volume: NDArray[Any], row: Row) -> NDArray[Any]:
        """Normalise one volume."""
        mean = float(volume.mean(dtype=np.float64)) if self.mean is None else self.mean
        std = float(volume.std(dtype=np.float64)) if self.std is None else self.std
        if not std > 0:
            raise ConfigError(f"a standard deviation of {std:g} cannot be divided by: all voxels are alike")
        out: NDArray[Any] = volume.astype(np.float32)
        out -= np.float32(mean)
        out /= np.float32(std)
        return out


@dataclass(frozen=True)
class MonaiTransform:
    """A transform of MONAI, of one image: it is given a MetaTensor ``(channel, x, y, z)``, and its affine is kept.

    Parameters
    ----------
    transform
        Such as ``monai.transforms.Spacing((1, 1, 1))``, or a ``Compose`` of several.
    name
        How the provenance calls it; by default its class and what it was made of, where that is plain.
    """

    transform: Callable[[Any], Any] = field(repr=False)
    name: str = ""
    touches: ClassVar[frozenset[str]] = _GRID

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", _named(self.transform))

    def __call__(self, volume: NDArray[Any], row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
        """Transform one volume."""
        import torch
        from monai.data.meta_tensor import MetaTensor

        channels = np.moveaxis(volume, -1, 0) if volume.ndim == 4 else volume[None]
        given = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(channels)), affine=torch.from_numpy(row["affine"].copy())
        )
        found = self.transform(given)
        if not isinstance(found, MetaTensor):
            raise GeometryError(f"{self.name} gave {type(found).__name__}, and not a MetaTensor with its affine")
        out = found.detach().cpu().numpy()
        out = out[0] if len(out) == 1 else np.moveaxis(out, 0, -1)
        return np.ascontiguousarray(out), {"affine": found.affine.detach().cpu().double().numpy()}


def _is_codes(codes: str) -> bool:
    return len(codes) == 3 and all(sum(c in pair for c in codes) == 1 for pair in ("LR", "PA", "IS"))


def _named(transform: Any) -> str:
    if parts := getattr(transform, "transforms", None):
        return f"{type(transform).__name__}[{', '.join(map(_named, parts))}]"
    plain = {
        name: value
        for name, value in sorted(vars(transform).items() if hasattr(transform, "__dict__") else ())
        if not name.startswith("_") and isinstance(value, bool | int | float | str | tuple | list | np.ndarray)
    }
    told = ", ".join(f"{n}={v.tolist() if isinstance(v, np.ndarray) else v!r}" for n, v in plain.items())
    return f"{getattr(transform, '__qualname__', type(transform).__qualname__)}({told})"


def _cut(volume: NDArray[Any], inside: Box, row: Row) -> tuple[NDArray[Any], dict[str, Any]]:
    return np.ascontiguousarray(volume[box_slices(inside)]), {"affine": crop_affine(row["affine"], inside[:, 0])}


def _order(order: int | None, row: Row) -> int:
    return order if order is not None else (0 if row.get("collection_kind") == "label" else 1)


def _interpolate(
    volume: NDArray[Any], to_old: Affine, shape: Sequence[int], order: int, mode: str, fill: float
) -> NDArray[Any]:
    """Sample a volume at voxels of another grid, given the matrix that makes old indices of new ones."""
    from scipy.ndimage import affine_transform

    _refuse_value(fill, volume.dtype)
    matrix: Any = to_old[:3, :3]
    if np.array_equal(matrix, np.diag(np.diag(matrix))):
        matrix = np.diag(matrix)
    exact = order == 0 or volume.dtype.kind == "f"
    work = volume.dtype if exact else np.float64 if volume.dtype.itemsize > 2 else np.float32
    channels = [volume] if volume.ndim == 3 else [volume[..., c] for c in range(volume.shape[3])]
    made = [
        affine_transform(
            part,
            matrix,
            to_old[:3, 3],
            tuple(shape),
            output=work,
            order=order,
            mode=mode,
            cval=fill,
            prefilter=order > 1,
        )
        for part in channels
    ]
    out: NDArray[Any] = made[0] if volume.ndim == 3 else np.stack(made, axis=-1)
    if not exact:
        info = np.iinfo(volume.dtype)
        out = np.clip(np.rint(out), info.min, info.max).astype(volume.dtype)
    return out


def _refuse_value(value: float, dtype: np.dtype[Any]) -> None:
    if dtype.kind in "iu" and not (np.iinfo(dtype).min <= value <= np.iinfo(dtype).max and float(value).is_integer()):
        raise ConfigError(f"{value:g} cannot be held by {dtype}")
