"""What is done to one volume on its way through a pipeline; runs in workers, so all of it can be pickled."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import pandas as pd

from radiodata.errors import ExpressionError, GeometryError, PipelineError, RadiodataError, is_system_error
from radiodata.geometry import axis_codes, box, spacing_of
from radiodata.store.expression import parse, unknown_column
from radiodata.store.loaded import LoadedVolume
from radiodata.store.obs import OBS_COLUMNS, OBS_ID, STATISTICS
from radiodata.store.reader import read_box
from radiodata.store.volume import physical

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Affine
    from radiodata.store.config import ReadConfig
    from radiodata.store.obs import VoxelSource

Result: TypeAlias = "NDArray[Any] | tuple[NDArray[Any], Mapping[str, Any]]"
Transform: TypeAlias = "Callable[[NDArray[Any], Mapping[str, Any]], Result]"
"""``fn(volume, obs_row) -> volume | (volume, updates)``.

`volume` is ``(x, y, z)``, or ``(x, y, z, channel)``, physical values. `obs_row` cannot be written to: columns of `obs`
and of the subject, ``obs_id``, ``affine`` as ``(4, 4)``, ``collection_kind``, and the updates of earlier transforms.
`updates` are columns for `obs`, and ``affine`` where the grid changed.
"""
BatchTransform: TypeAlias = "Callable[[Sequence[NDArray[Any]], Sequence[Mapping[str, Any]]], Sequence[Result]]"

_RESERVED = frozenset(c.name for c in OBS_COLUMNS) - {"affine"} | {OBS_ID, "collection_kind"}
_SCALARS = (bool, int, float, str, np.generic, datetime.date, pd.Timestamp, type(None), type(pd.NA), type(pd.NaT))


@dataclass(frozen=True, eq=False)
class Unread:
    """A volume of the store whose voxels are not read yet."""

    source: VoxelSource
    config: ReadConfig
    kind: str
    affine: Affine
    obs: Mapping[str, Any]
    position: int = 0

    @property
    def obs_id(self) -> str:
        """Identity of the volume."""
        return self.source.obs_id

    @property
    def obs_subject_id(self) -> str:
        """Subject that it belongs to."""
        return self.source.subject

    @property
    def updates(self) -> Mapping[str, Any]:
        """None yet."""
        return {}

    def load(self) -> LoadedVolume:
        """Read the voxels."""
        stored = read_box(self.source, box((0, 0, 0), self.source.size), config=self.config)
        voxels = physical(stored, self.source)
        voxels = voxels[0] if len(voxels) == 1 else np.ascontiguousarray(np.moveaxis(voxels, 0, -1))
        return LoadedVolume(
            voxels, self.affine, self.obs_id, self.obs_subject_id, self.kind, self.obs, position=self.position
        )


Item: TypeAlias = "Unread | LoadedVolume"


def loaded(item: Item) -> LoadedVolume:
    """Give a volume in memory."""
    return item if isinstance(item, LoadedVolume) else item.load()


@dataclass(frozen=True)
class Map:
    """Apply a transform."""

    fn: Transform

    @property
    def name(self) -> str:
        """How errors and provenance call it."""
        return describe(self.fn)

    def __call__(self, item: Item) -> Item:
        """Give the volume that the transform makes."""
        volume = loaded(item)
        return changed(volume, self.fn(volume.voxels, row_of(volume)))


@dataclass(frozen=True)
class Keep:
    """Keep a volume where an expression holds of its row."""

    text: str
    dtypes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"filter({self.text!r})"

    def __call__(self, item: Item) -> Item | None:
        """Give the volume, or None."""

        def column(name: str) -> pd.Series[Any]:
            value = item.obs[name]
            dtype = self.dtypes.get(name)
            try:
                return pd.Series([value], dtype=dtype if name not in item.updates or pd.isna(value) else None)
            except (TypeError, ValueError):
                return pd.Series([value])

        try:
            mask = parse(self.text).mask(column, 1)
        except KeyError as missing:
            raise unknown_column(str(missing.args[0]), list(item.obs), self.text) from None
        return item if bool(mask[0]) else None


@dataclass(frozen=True)
class AsRow:
    """Give the row of a volume, and let its voxels go."""

    name = "to_obs"

    def __call__(self, item: Item) -> Item:
        """Give the item without voxels."""
        if isinstance(item, Unread):
            return item
        nothing = np.empty((0, 0, 0), item.dtype)
        return dataclasses.replace(item, voxels=nothing)


@dataclass(frozen=True)
class AsVolume:
    """Give the volume in memory."""

    name = "read"

    def __call__(self, item: Item) -> Item:
        """Read the voxels."""
        return loaded(item)


Step: TypeAlias = "Callable[[Any], Any]"


def run_steps(steps: tuple[Step, ...], item: Item) -> Any:
    """Do all steps to a volume; None where one of them drops it.

    Raises
    ------
    PipelineError
        When a step fails: names it and the volume.
    """
    step: Any = None
    try:
        for step in steps:
            if item is None:
                return None
            item = step(item)
    except Exception as error:
        raise _told(error, getattr(step, "name", "a step"), [item]) from error
    return item


def run_batch(fn: BatchTransform, items: Sequence[Item]) -> list[Item]:
    """Apply a transform to several volumes at once.

    Raises
    ------
    PipelineError
        When it fails, or gives another number of volumes.
    """
    try:
        volumes = [loaded(item) for item in items]
        results = fn([v.voxels for v in volumes], [row_of(v) for v in volumes])
        _refuse_count(len(results), len(volumes))
        return [changed(v, r) for v, r in zip(volumes, results, strict=True)]
    except Exception as error:
        raise _told(error, f"batch_map({describe(fn)})", items) from error


def _refuse_count(found: int, wanted: int) -> None:
    if found != wanted:
        raise PipelineError(f"it gave {found} volumes of {wanted}: batch_map gives one for each")


def _told(error: Exception, step: str, items: Sequence[Item]) -> Exception:
    """Error that names volume and step; what is not one volume's fault stays what it is."""
    if isinstance(error, ExpressionError) or is_system_error(error):
        return error
    which = ", ".join(f"volume {item.obs_id!r} (subject {item.obs_subject_id!r})" for item in items)
    what = str(error) if isinstance(error, RadiodataError) else f"{type(error).__name__}: {error}"
    return PipelineError(f"{which}: {step}: {what}")


def row_of(volume: LoadedVolume) -> Mapping[str, Any]:
    """Row that a transform is given."""
    return MappingProxyType(dict(volume.obs))


def changed(volume: LoadedVolume, result: Result) -> LoadedVolume:
    """Volume with the voxels and updates that a transform gave; refuses what lost its grid."""
    voxels, updates = result if isinstance(result, tuple) else (result, {})
    array = np.asarray(voxels)
    if array.ndim not in (3, 4) or not array.size or array.dtype.kind not in "biuf":
        raise GeometryError(
            f"it gave {array.dtype} of shape {array.shape}: a volume is numbers, (x, y, z) or (x, y, z, channel)"
        )
    if not isinstance(updates, Mapping):
        raise PipelineError(f"its updates are {type(updates).__name__}, not a dict of columns")
    given = {_column(name): value for name, value in updates.items()}
    affine = _affine(given.pop("affine", None), volume, array)
    for name, value in given.items():
        if not isinstance(value, _SCALARS):
            raise PipelineError(
                f"its update {name!r} is {type(value).__name__}: a column holds numbers, texts or dates"
            )
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    kept = {n: v for n, v in volume.obs.items() if n not in STATISTICS} if array is not volume.voxels else volume.obs
    obs = {**kept, **grid_columns(array, affine), **plain}
    return dataclasses.replace(volume, voxels=array, affine=affine, obs=obs, updates={**volume.updates, **plain})


def grid_columns(voxels: NDArray[Any], affine: Affine) -> dict[str, Any]:
    """Columns of `obs` that follow from voxels ``(x, y, z[, channel])`` and their affine."""
    spacing = spacing_of(affine)
    return {
        "affine": affine,
        "channels": 1 if voxels.ndim == 3 else voxels.shape[3],
        "orientation": axis_codes(affine),
        "dtype": str(voxels.dtype),
        **{f"size_{a}": int(n) for a, n in zip("xyz", voxels.shape, strict=False)},
        **{f"spacing_{a}": float(s) for a, s in zip("xyz", spacing, strict=True)},
    }


def _column(name: Any) -> str:
    if not isinstance(name, str) or name in _RESERVED:
        why = "not a text" if not isinstance(name, str) else "the store's own"
        raise PipelineError(f"its update {name!r} cannot be written: the name is {why}")
    return name


def _affine(given: Any, volume: LoadedVolume, voxels: NDArray[Any]) -> Affine:
    if given is None:
        if voxels.shape[:3] != volume.shape[:3]:
            raise GeometryError(
                f"it changed the shape from {volume.shape[:3]} to {voxels.shape[:3]} and says nothing of the grid: "
                "return (volume, {'affine': ...}), or use Resample, Crop, Pad of radiodata.pipeline"
            )
        return volume.affine
    affine = np.asarray(given, np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise GeometryError(f"its affine is none of shape (4, 4) that can be inverted: {affine.tolist()}")
    return affine


def describe(fn: Any) -> str:
    """What a transform is, the same in every process; for code it ends in a hash of it."""
    if isinstance(fn, functools.partial):
        given = [*map(repr, fn.args), *(f"{k}={v!r}" for k, v in fn.keywords.items())]
        return f"partial({describe(fn.func)}, {', '.join(given)})" if given else describe(fn.func)
    if dataclasses.is_dataclass(fn) and not isinstance(fn, type):
        return repr(fn)
    code = getattr(fn, "__code__", None)
    if code is None:
        text = repr(fn)
        return text if " at 0x" not in text else f"{type(fn).__module__}.{type(fn).__qualname__}"
    return f"{fn.__module__}.{fn.__qualname__}#{_hash_of(code)}"


def _hash_of(code: Any) -> str:
    digest = hashlib.blake2b(digest_size=4)
    for part in (code.co_code, code.co_names, *(_constant(c) for c in code.co_consts)):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.hexdigest()


def _constant(value: Any) -> Any:
    return _hash_of(value) if hasattr(value, "co_code") else cast("Any", value)
