"""One file to one row: load, write voxels into a shard slot, count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import axis_codes, spacing_of
from radiodata.ingest.nifti import NiftiError, NiftiVolume, load
from radiodata.ingest.statistics import image_statistics, label_statistics
from radiodata.store.context import context
from radiodata.store.layout import shard_name, shard_uri
from radiodata.store.obs import RUN, SUBJECT, VOLUME_EXTRAS, volume_key
from radiodata.store.verify import content_hash
from radiodata.store.writer import ensure_shard, write_volume

if TYPE_CHECKING:
    from pathlib import Path

    from radiodata._typing import Affine, Voxels
    from radiodata.store.config import ReadConfig, StoreConfig


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
    """A volume whose voxels are written and whose rows are not: it does not exist yet."""

    collection: str
    obs_id: str
    obs: dict[str, Any]
    key: str
    tiles: dict[str, Any]


def write_file(path: Path, subject: str, slot: Slot, config: StoreConfig, read: ReadConfig) -> Written:
    """Load a NIfTI file, write its voxels into `slot`, and make its rows.

    Raises
    ------
    NiftiError
        When the file cannot be taken.
    """
    volume = load(path, orient=config.orient, label=slot.kind == "label")
    if slot.kind == "label" and (volume.voxels.dtype.kind == "f" or (volume.slope, volume.intercept) != (1.0, 0.0)):
        raise NiftiError(f"holds values that are not whole numbers, but {slot.collection!r} is a label collection")
    if slot.kind == "label" and len(volume.voxels) > 1:
        raise NiftiError(f"holds {len(volume.voxels)} channels, but {slot.collection!r} is a label collection")
    return write_voxels(
        slot,
        subject,
        f"{subject}_{slot.collection}",
        volume.voxels,
        volume.affine,
        _source(volume, path),
        config,
        read,
        scale=(volume.slope, volume.intercept),
    )


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
    """
    voxels = voxels if slot.kind == "label" else _as_policy(voxels, config.dtype)
    ctx, dtype = context(read), str(voxels.dtype)
    shard = shard_name(slot.run, slot.index // config.slots, dtype)
    uri, place = shard_uri(slot.collection_uri, shard), slot.index % config.slots
    ensure_shard(uri, dtype, config, ctx)
    write_volume(uri, place, voxels, ctx)
    statistics = _statistics(voxels, scale, slot.kind, config)
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


def _statistics(voxels: Voxels, scale: tuple[float, float], kind: str, config: StoreConfig) -> Any:
    values = voxels if scale == (1.0, 0.0) else (voxels * np.float64(scale[0]) + scale[1]).astype(np.float32)
    image = image_statistics(values, config.tile)
    if kind == "image":
        return image
    label = label_statistics(values, config.tile, config.reservoir)
    return type(label)(obs={**image.obs, **label.obs}, tiles=label.tiles)


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


def _source(volume: NiftiVolume, path: Path) -> dict[str, Any]:
    return {
        "source_uri": str(path),
        "source_format": "nifti",
        "source_dtype": volume.source_dtype,
        "source_orientation": volume.source_orientation,
        "source_hash": volume.source_hash,
        "source_header": volume.header,
    }
