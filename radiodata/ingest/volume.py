"""One volume to one row: load, write voxels into a shard slot, count."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, Problem, RadiodataError
from radiodata.geometry import axis_codes, spacing_of
from radiodata.ingest.components import component_columns
from radiodata.ingest.statistics import VolumeStatistics, foreground_statistics, image_statistics, label_statistics
from radiodata.store.context import context
from radiodata.store.layout import shard_name, shard_uri
from radiodata.store.obs import RUN, SUBJECT, VOLUME_EXTRAS, volume_key
from radiodata.store.verify import content_hash
from radiodata.store.writer import ensure_shard, store_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from radiodata._typing import Affine, Voxels
    from radiodata.ingest.items import Item, Loaded
    from radiodata.store.config import ReadConfig, StoreConfig


COMPONENTS = ("component_labels", "component_voxels", "component_boxes")


class VolumeRefusedError(RadiodataError, ValueError):
    """A volume that can be read and cannot be stored."""


@dataclass(frozen=True)
class Slot:
    """Where a volume goes: a place that no other volume of any run is given."""

    collection: str
    collection_uri: str
    kind: str
    run: str
    index: int


@dataclass(frozen=True)
class Written:
    """A volume whose voxels are written and whose rows are not: it does not exist yet.

    Attributes
    ----------
    obs, columns
        Its row: the store's own columns, and others.
    """

    collection: str
    obs_id: str
    obs: dict[str, Any]
    key: str
    tiles: dict[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)
    notes: tuple[Problem, ...] = ()


def load_item(item: Item, kind: str, config: StoreConfig) -> Loaded:
    """Load a volume; refuses one that a label collection cannot hold.

    Raises
    ------
    RadiodataError
        When its files cannot be taken.
    """
    loaded = item.source.load(config.orient, label=kind == "label")
    if kind == "label" and (loaded.voxels.dtype.kind == "f" or (loaded.slope, loaded.intercept) != (1.0, 0.0)):
        raise VolumeRefusedError(
            f"holds values that are not whole numbers, but {item.collection!r} is a label collection"
        )
    if kind == "label" and len(loaded.voxels) > 1:
        raise VolumeRefusedError(f"holds {len(loaded.voxels)} channels, but {item.collection!r} is a label collection")
    return loaded


def write_item(
    item: Item,
    subject: str,
    loaded: Loaded,
    slot: Slot,
    config: StoreConfig,
    read: ReadConfig,
    foreground: NDArray[np.bool_] | None = None,
) -> Written:
    """Write a loaded volume into `slot`, and make its rows; `foreground` as of ``write_voxels``."""
    written = write_voxels(
        slot,
        subject,
        item.obs_id,
        loaded.voxels,
        loaded.affine,
        {
            "source_uri": item.source.uri,
            "source_format": item.source.format,
            "source_dtype": loaded.source_dtype,
            "source_orientation": loaded.source_orientation,
            "source_hash": loaded.source_hash,
            "source_header": loaded.header,
        },
        config,
        read,
        scale=(loaded.slope, loaded.intercept),
        foreground=foreground,
    )
    notes = tuple(Problem(item.source.where, note) for note in loaded.notes)
    return replace(written, columns={**item.columns, **loaded.columns}, notes=notes)


def write_voxels(
    slot: Slot,
    subject: str,
    obs_id: str,
    voxels: Voxels,
    affine: Affine,
    source: dict[str, Any],
    config: StoreConfig,
    read: ReadConfig,
    *,
    scale: tuple[float, float] = (1.0, 0.0),
    foreground: NDArray[np.bool_] | None = None,
) -> Written:
    """Write voxels into `slot`, and make their rows.

    Parameters
    ----------
    voxels
        ``(channel, x, y, z)``, C order, as they are to be stored.
    source
        Columns ``source_*``: where they are from.
    scale
        Slope and intercept that make physical values of them.
    foreground
        Voxels ``(x, y, z)`` that are inside labels, where that is known.
    """
    voxels = voxels if slot.kind == "label" else _as_policy(voxels, config.dtype)
    ctx, dtype = context(read), str(voxels.dtype)
    shard = shard_name(slot.run, slot.index // config.slots, dtype)
    uri, place = shard_uri(slot.collection_uri, shard), slot.index % config.slots
    ensure_shard(uri, dtype, config, ctx, slot.kind)
    store_volume(uri, place, voxels, read)
    statistics = _statistics(voxels, scale, slot.kind, config, foreground)
    row = {
        SUBJECT: subject,
        "shard": shard,
        "slot": place,
        RUN: slot.run,
        **_grid(voxels, affine),
        "slope": scale[0],
        "intercept": scale[1],
        **statistics.obs,
        **source,
        "content_hash": content_hash(voxels),
    }
    extras = {c.name: row.pop(c.name) for c in VOLUME_EXTRAS}
    return Written(slot.collection, obs_id, row, volume_key(shard, place), {**statistics.tiles, **extras})


def _as_policy(voxels: Voxels, dtype: str | None) -> Voxels:
    if dtype is None or str(voxels.dtype) == dtype:
        return voxels
    with np.errstate(over="ignore", invalid="ignore"):
        cast = voxels.astype(dtype)
        back = cast.astype(voxels.dtype)
    wrapped = ((cast < 0) != (voxels < 0)).any()  # 40000 as int16 is -25536, and comes back as 40000
    if wrapped or not np.array_equal(back, voxels, equal_nan=voxels.dtype.kind == "f"):
        low, high = (float(v) for v in (voxels.min(), voxels.max()))
        raise ConfigError(
            f"its values ({voxels.dtype}, {low:g} to {high:g}) would change as {dtype}, which StoreConfig(dtype=...) "
            "demands: choose another, or none"
        )
    return cast


def _statistics(
    voxels: Voxels, scale: tuple[float, float], kind: str, config: StoreConfig, foreground: NDArray[np.bool_] | None
) -> VolumeStatistics:
    values = voxels if scale == (1.0, 0.0) else (voxels * np.float64(scale[0]) + scale[1]).astype(np.float32)
    image = image_statistics(values, config.tile)
    inside = foreground_statistics(values, foreground if kind == "image" else None)
    label = label_statistics(values, config.tile, config.reservoir) if kind == "label" else None
    components = component_columns(values) if kind == "label" else dict.fromkeys(COMPONENTS, ())
    obs = {**image.obs, **inside, **components, **(label.obs if label else {})}
    return VolumeStatistics(obs=obs, tiles=(label or image).tiles)


def _grid(voxels: Voxels, affine: Affine) -> dict[str, Any]:
    channels, *size = voxels.shape
    return {
        "channels": channels,
        **{f"size_{a}": n for a, n in zip("xyz", size, strict=True)},
        **{f"spacing_{a}": float(s) for a, s in zip("xyz", spacing_of(affine), strict=True)},
        "affine": affine.ravel(),
        "orientation": axis_codes(affine),
        "dtype": str(voxels.dtype),
    }
