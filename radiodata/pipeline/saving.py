"""Saving derived volumes: the last step of a pipeline, done where the others are, in threads or other processes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from radiodata.errors import ConfigError, PipelineError
from radiodata.ingest.volume import Slot, Written, write_voxels
from radiodata.pipeline.steps import loaded
from radiodata.store import layout
from radiodata.store.config import StoreConfig

if TYPE_CHECKING:
    from pathlib import Path

    from radiodata.pipeline.steps import Item
    from radiodata.store.collection import VolumeCollection
    from radiodata.store.config import ReadConfig, TilingLike


def place_of(
    source: VolumeCollection,
    uri: str | Path | None,
    name: str | None,
    kind: str | None,
    tiling: TilingLike | None,
    config: StoreConfig | None,
) -> Place:
    """Where volumes made of `source` are written to; arguments as of ``LazyCollection.write``.

    Raises
    ------
    ConfigError
        When that cannot be.
    """
    home = source.snapshot_uri
    where = str(uri) if uri is not None else home
    if where.rstrip("/") == home.rstrip("/") and name in (None, source.name):
        raise ConfigError(
            f"collection {source.name!r} cannot be written over itself: write(name=...), or to another URI"
        )
    if kind not in (None, "image", "label"):
        raise ConfigError(f"kind={kind!r}: image or label")
    chosen = config or StoreConfig.from_env(tiling=tiling if tiling is not None else source.tile)
    return Place(where, layout.check_name(name or source.name), source.name, kind or source.kind, chosen, source.config)


@dataclass(frozen=True)
class Made:
    """A derived volume whose voxels are written and whose rows are not, and its columns; None: it is there."""

    obs_id: str
    written: Written | None
    updates: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Save:
    """Write the voxels of a volume; the last step."""

    target: Place
    first: Slot
    present: frozenset[str]
    name = "write"

    def __call__(self, item: Item) -> Made:
        """Write one volume, unless it is there."""
        obs_id = self.target.id_of(item)
        if obs_id in self.present:
            return Made(obs_id, None)
        return self.target.save(loaded(item), obs_id, replace(self.first, index=item.position))


@dataclass(frozen=True)
class Place:
    """Where volumes are written to.

    Attributes
    ----------
    source
        Name of the collection that they are made of.
    """

    uri: str
    name: str
    source: str
    kind: str
    config: StoreConfig
    read: ReadConfig

    def id_of(self, item: Item) -> str:
        """Id of the derived volume: with the name of its collection in place of that of the source."""
        return derived_id(item.obs_id, self.source, self.name)

    def save(self, volume: Any, obs_id: str, slot: Slot, header: bytes = b"") -> Made:
        """Write voxels; `header` is that of a NIfTI file that they can be exported as."""
        voxels = _storable(volume.voxels, self.kind)
        channels = voxels[None] if voxels.ndim == 3 else np.moveaxis(voxels, -1, 0)
        source = {
            "source_uri": f"{volume.obs.get('source_uri') or ''}",
            "source_format": "derived",
            "source_dtype": str(volume.voxels.dtype),
            "source_orientation": volume.orientation,
            "source_hash": str(volume.obs.get("content_hash") or ""),
            "source_header": header,
        }
        written = write_voxels(
            slot,
            volume.obs_subject_id,
            obs_id,
            np.ascontiguousarray(channels),
            np.asarray(volume.affine, np.float64),
            source,
            self.config,
            self.read,
        )
        return Made(obs_id, written, dict(volume.updates))


def derived_id(obs_id: str, source: str, name: str) -> str:
    """Id of a volume that is made of another."""
    stem = obs_id.removesuffix(f"_{source}")
    return f"{stem}_{name}" if stem != obs_id else f"{obs_id}_{name}"


def _storable(voxels: Any, kind: str) -> Any:
    narrow = {"bool": np.uint8, "float16": np.float32}.get(voxels.dtype.name)
    if kind == "label" and voxels.dtype.kind == "f":
        raise PipelineError(
            f"it is {voxels.dtype}, and labels are whole numbers: Cast('uint8'), or write(kind='image')"
        )
    if kind == "label" and voxels.ndim == 4:
        raise PipelineError("it has channels, which a label volume cannot have: write(kind='image')")
    native = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    if native.dtype.itemsize > 8:
        raise PipelineError(f"{native.dtype} cannot be stored: Cast('float64')")
    return native if narrow is None else native.astype(narrow)
