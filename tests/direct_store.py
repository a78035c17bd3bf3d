"""Packed shards made by hand, for the tests of reading tiles without TileDB."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tiledb

from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.context import context
from radiodata.store.direct import Direct
from radiodata.store.obs import VoxelSource
from radiodata.store.remote.client import Remote
from radiodata.store.writer import ensure_shard, write_volume

QUERY = ReadConfig(threads=1, direct=False)
PLAIN = ReadConfig(threads=1, compiled=False)
KERNEL = ReadConfig(threads=1)
SHARED = ReadConfig(threads=3)
FILTERS = ("byteshuffle", "zstd:3")
_tokens = itertools.count()


def ctx() -> tiledb.Ctx:
    return context(QUERY)


def voxels_of(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Voxels of which some compress and some do not."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 40, shape).cumsum(-1)
    walk[:, : shape[1] // 3] = 0
    if np.dtype(dtype).kind == "f":
        return walk.astype(dtype)
    bounds = np.iinfo(dtype)
    return (walk % 1000).clip(bounds.min, bounds.max).astype(dtype)


def shard(uri: Path, *volumes: np.ndarray, tile: Any = 16, filters: tuple[str, ...] = FILTERS) -> str:
    """Write volumes into the slots of a new shard."""
    ensure_shard(str(uri), str(volumes[0].dtype), StoreConfig(tiling=tile, filters=filters), ctx())
    for slot, volume in enumerate(volumes):
        write_volume(str(uri), slot, volume, ctx())
    return str(uri)


def source(uri: str, voxels: np.ndarray, slot: int = 0, dtype: str | None = None) -> VoxelSource:
    """Source of a volume, of a snapshot that nobody has opened before."""
    shape = tuple(voxels.shape)
    return VoxelSource(uri, slot, shape, dtype or str(voxels.dtype), 1.0, 0.0, f"v{slot}", "s", f"t{next(_tokens)}")


def whole(voxels: np.ndarray) -> np.ndarray:
    return np.array([[0, n] for n in voxels.shape[1:]])


def is_direct(of: VoxelSource, config: ReadConfig = PLAIN, direct: Direct | None = None) -> bool:
    """Whether the direct path takes a read of the whole volume; a read that it takes is right or fails the test."""
    out = np.empty(of.shape, of.dtype)
    box = np.array([[0, n] for n in of.size])
    return (direct or Direct(Remote())).read(of, box, (0, of.shape[0]), out, config, context)


def fragment(uri: str) -> Path:
    (folder,) = Path(uri, "__fragments").iterdir()
    return folder
