"""Voxels in the smallest dtype that gives every physical value back, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from radiodata.errors import RadiodataError

if TYPE_CHECKING:
    from radiodata._typing import Voxels

_WORK = ("int16", "int32", "int64")
_IMAGE_DTYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64")


class InexactError(RadiodataError, ValueError):
    """Values that no dtype of the store holds."""


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
            raise InexactError(f"its {native.dtype} values do not fit float64: convert the file first")
    return (single if same else native.astype(np.float64, copy=False)), slope, intercept


def _exact_ints(stored: Voxels, slope: float, intercept: float, label: bool) -> tuple[Voxels, float, float]:
    if (slope, intercept) == (1.0, 0.0):
        return _narrow(stored, label), 1.0, 0.0
    if slope.is_integer() and intercept.is_integer() and stored.size:
        a, b, ends = int(slope), int(intercept), (int(stored.min()), int(stored.max()))
        reached = [*ends, a, b, *(a * end for end in ends), *(a * end + b for end in ends)]
        if max(abs(value) for value in reached) < 2**61:
            # in the narrowest dtype that holds all that is passed through: of a CT, a quarter of the memory
            work = next(n for n in _WORK if np.iinfo(n).min <= min(reached) and max(reached) <= np.iinfo(n).max)
            values = stored.astype(work)
            if a != 1:
                values *= np.dtype(work).type(a)
            values += np.dtype(work).type(b)
            return _narrow(values, label), 1.0, 0.0
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
    raise InexactError(f"its values {low}..{high} fit no integer type")
