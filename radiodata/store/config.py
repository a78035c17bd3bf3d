"""How a store is written and how it is read: validated, immutable, passed explicitly."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from radiodata.errors import ConfigError
from radiodata.geometry import Shape3, shape3

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TilingLike: TypeAlias = "str | int | Sequence[int]"

TILINGS: dict[str, Shape3] = {
    "isotropic": (32, 32, 32),
    "axial": (256, 256, 1),
    "coronal": (256, 1, 256),
    "sagittal": (1, 256, 256),
}
FILTERS = ("byteshuffle", "bitshuffle", "zstd", "lz4", "gzip")
CHECKSUMS = ("md5", "sha256")


def tile_extents(tiling: TilingLike) -> Shape3:
    """Tile extents ``(x, y, z)`` in voxels of a named or explicit tiling.

    Raises
    ------
    ConfigError
        When the tiling is neither a known name nor one or three positive ints.
    """
    if isinstance(tiling, str) and tiling.lower() in TILINGS:
        return TILINGS[tiling.lower()]
    try:
        if isinstance(tiling, str):
            parts = [int(p) for p in tiling.split(",")]
            return shape3(parts[0] if len(parts) == 1 else parts, "tiling")
        return shape3(tiling, "tiling")
    except ValueError as error:
        raise ConfigError(
            f"tiling {tiling!r} is not known: say one of {', '.join(TILINGS)}, or extents such as 64,64,64"
        ) from error


@dataclass(frozen=True)
class StoreConfig:
    """How voxels are laid out on disk.

    Parameters
    ----------
    tiling
        ``"isotropic"`` (32-cube tiles), ``"axial"``, ``"coronal"``, ``"sagittal"`` or extents ``(x, y, z)``.
    filters
        Compression pipeline, each ``name`` or ``name:level``; applied in order on write. ``"zstd:3"`` takes about
        a tenth less disk than the default and a third more time to decode. Others than zstd, alone or after
        ``"byteshuffle"``, are read by TileDB queries, which are slower. A last ``"sha256"`` (or ``"md5"``) is
        one of those; it makes a read of tiles that were damaged on disk fail, where most flipped bits pass.
    slots
        Volumes per packed shard.
    orient
        ``"RAS"`` stores every volume with axes closest to RAS+ (flips and permutes only, nothing is
        interpolated); ``None`` keeps the file's axes.
    reservoir
        Coordinates kept per (tile, class) of a label volume; smaller lesions are kept whole.

    Raises
    ------
    ConfigError
        When a value cannot be used.
    """

    tiling: TilingLike = "isotropic"
    filters: tuple[str, ...] = ("byteshuffle", "zstd:-1")
    slots: int = 256
    orient: str | None = "RAS"
    reservoir: int = 64

    def __post_init__(self) -> None:
        tile_extents(self.tiling)
        for spec in self.filters:
            name, _, level = spec.partition(":")
            known = name in CHECKSUMS and not level
            if not known and (name not in FILTERS or (level and not level.lstrip("-").isdigit())):
                raise ConfigError(
                    f"filter {spec!r} is not known: use {', '.join(FILTERS)}, with ':level', or {', '.join(CHECKSUMS)}"
                )
        if self.orient not in ("RAS", None):
            raise ConfigError(f"orient must be 'RAS' or None, not {self.orient!r}")
        if not 1 <= self.slots <= 65536 or self.reservoir < 1:
            raise ConfigError(f"slots ({self.slots}) and reservoir ({self.reservoir}) must be positive")

    @property
    def tile(self) -> Shape3:
        """Tile extents ``(x, y, z)`` in voxels."""
        return tile_extents(self.tiling)


@dataclass(frozen=True)
class ReadConfig:
    """How voxels are read in this process.

    Parameters
    ----------
    threads
        Threads of one read: of TileDB (compute and I/O), or of a large read of tiles without it; by default one a
        core. Loaders use 1, being many themselves: keep workers x threads <= cores.
    direct
        Read tiles on local disk without a TileDB query where their layout is known (see
        ``radiodata.store.direct``): the same voxels, sooner. False: always through TileDB.
    compiled
        Decode them with a compiled kernel where ``radiodata[fast]`` is installed; the environment variable
        ``RADIODATA_COMPILED=0`` switches it off as well.
    tiledb
        Further TileDB configuration, such as ``{"vfs.s3.region": "eu-west-1"}``.

    Raises
    ------
    ConfigError
        When a key is unknown to TileDB (which itself would accept it in silence).
    """

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    tiledb: Mapping[str, str] = field(default_factory=dict)
    direct: bool = True
    compiled: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}")
        for key in self.tiledb:
            _check_key(key)

    @property
    def key(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """Hashable identity of the TileDB context: what concerns no context is left out."""
        return (self.threads, tuple(sorted((k, str(v)) for k, v in self.tiledb.items())))

    def to_tiledb(self) -> dict[str, str]:
        """Full TileDB configuration: the measured defaults under the caller's own."""
        return {
            # glibc hands the arena back to the system after each query otherwise: 2.5x slower reads
            "sm.mem.malloc_trim": "false",
            # read exactly the tiles' bytes: the default batching joins ranges across gaps
            "vfs.min_batch_gap": "0",
            "vfs.min_batch_size": "0",
            # libtiledb 2.30 crashes at times when it merges the tiles of a sparse array in parallel
            "sm.query.sparse_global_order.preprocess_tile_merge": "0",
            # buffers of a table's columns are as large as TileDB estimates, and not 10 MiB at the least
            "py.init_buffer_bytes": str(1 << 16),
            "sm.compute_concurrency_level": str(self.threads),
            "sm.io_concurrency_level": str(self.threads),
            **{k: str(v) for k, v in self.tiledb.items()},
        }


@lru_cache(maxsize=1)
def _known_keys() -> frozenset[str]:
    import tiledb

    return frozenset(tiledb.Config().dict())


def _check_key(key: str) -> None:
    known = _known_keys()
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"TileDB has no configuration key {key!r}{hint}")
