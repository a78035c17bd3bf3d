"""How a store is written and how it is read: validated, immutable, passed explicitly."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from radiodata.errors import ConfigError
from radiodata.geometry import Shape3, shape3
from radiodata.store import settings
from radiodata.store.sealing import array_key, check_reference
from radiodata.store.settings import Settings, maybe, truth, whole

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
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


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


def _tiling(value: Any) -> TilingLike:
    """Take a tiling as it was said; lists become tuples."""
    tile_extents(value)
    return value if isinstance(value, str | int) else tuple(int(n) for n in value)


def _filters(value: Any) -> tuple[str, ...]:
    specs = settings.texts(value)
    for spec in specs:
        name, _, level = spec.partition(":")
        known = name in CHECKSUMS and not level
        if not known and (name not in FILTERS or (level and not level.lstrip("-").isdigit())):
            raise ConfigError(
                f"filter {spec!r} is not known: use {', '.join(FILTERS)}, with ':level', or {', '.join(CHECKSUMS)}"
            )
    return specs


def _slots(value: Any) -> int:
    if whole(1)(value) > 65536:
        raise ValueError("it must be at most 65536")
    return int(value)


def _options(value: Any) -> dict[str, str]:
    found = settings.options(value)
    for key in found:
        _check_key(key)
    return found


@dataclass(frozen=True)
class StoreConfig(Settings):
    """How voxels are laid out on disk; from Python, the section ``store`` of a YAML file, or ``RADIODATA_STORE_*``.

    Parameters
    ----------
    tiling
        ``"isotropic"`` (32-cube tiles), ``"axial"``, ``"coronal"``, ``"sagittal"`` or extents ``(x, y, z)``.
    filters
        Compression pipeline, each ``name`` or ``name:level``; applied in order on write. None: what suits the voxels
        (see `pipeline`). ``("byteshuffle", "zstd:3")`` takes about a tenth less disk for a CT and a third more time
        to decode. Others than zstd, alone or after ``"byteshuffle"``, are read by TileDB queries, which are slower.
        A last ``"sha256"`` (or ``"md5"``) is one of those; it makes a read of tiles that were damaged on disk fail,
        where most flipped bits pass.
    slots
        Volumes per packed shard.
    orient
        ``"RAS"`` stores every volume with axes closest to RAS+ (flips and permutes only, nothing is
        interpolated); ``None`` keeps the file's axes.
    dtype
        Of the stored voxels of images, such as ``"float32"``, where a collection must have one; a volume whose values
        would change is refused. None: for each volume the smallest that holds its values exactly.
    reservoir
        Coordinates kept per (tile, class) of a label volume; smaller lesions are kept whole.

    Raises
    ------
    ConfigError
        When a value cannot be used.
    """

    tiling: TilingLike = "isotropic"
    filters: tuple[str, ...] | None = None
    slots: int = 256
    orient: str | None = "RAS"
    dtype: str | None = None
    reservoir: int = 64

    SECTION: ClassVar[str] = "store"
    TAKES: ClassVar[Any] = MappingProxyType(
        {
            "tiling": _tiling,
            "filters": maybe(_filters),
            "slots": _slots,
            "orient": maybe(settings.one_of("RAS")),
            "dtype": maybe(settings.one_of(*DTYPES)),
            "reservoir": whole(1),
        }
    )

    @property
    def tile(self) -> Shape3:
        """Tile extents ``(x, y, z)`` in voxels."""
        return tile_extents(self.tiling)

    def pipeline(self, dtype: str, kind: str = "image") -> tuple[str, ...]:
        """Filters of voxels of `dtype`: `filters`, or what suits them.

        Labels compress so well that a high level costs little to write, and makes them five times as fast to decode as
        the fastest level does. A shuffle does nothing to single bytes, and what is left for zstd there is entropy
        coding, which the negative levels leave out: level 3 saves a tenth. Everything else is best off with the level
        that decodes fastest.

        Parameters
        ----------
        kind
            ``"image"`` or ``"label"``.
        """
        if self.filters is not None:
            return self.filters
        wide = np.dtype(dtype).itemsize > 1
        level = "zstd:9" if kind == "label" else ("zstd:-1" if wide else "zstd:3")
        return ("byteshuffle", level) if wide else (level,)


@dataclass(frozen=True, repr=False)
class ReadConfig(Settings):
    """How a process reads and writes; from Python, the section ``read`` of a YAML file, or ``RADIODATA_READ_*``.

    Where none is passed, it is ``ReadConfig.from_env()``.

    Parameters
    ----------
    threads
        Threads of one read: of TileDB (compute and I/O), or of a large read of tiles without it; by default one a
        core. Loaders use 1, being many themselves: keep workers x threads <= cores.
    direct
        Read and write tiles on local disk without a TileDB query where their layout is known (see
        ``radiodata.store.direct``): the same voxels, and the same files, sooner. False: always through TileDB.
    memory
        MiB that one TileDB query may take at most; TileDB's default is 10 GiB. What does not fit at once is read in
        parts.
    read_ahead
        MiB of the cache that TileDB keeps for small reads from an object store; its default is 10.
    encryption_key
        Where the key of an encrypted cohort is: ``"env:NAME"``, an environment variable of 64 hexadecimal digits, or
        ``"file:PATH"``, a file of those or of 32 bytes. A cohort is encrypted (AES-256-GCM) when it is made with a
        key, and opens with that alone. Needs ``radiodata[encryption]``.
    compiled
        Decode and encode them with a compiled kernel where ``radiodata[fast]`` is installed; without it they are
        decoded here, and encoded by TileDB. The environment variable ``RADIODATA_COMPILED=0`` switches it off as well.
    tiledb
        Further TileDB configuration, such as ``{"vfs.s3.region": "eu-west-1"}``.
    deadline
        Seconds within which an object store must give what a read asks for, all retries included: then
        ``UnreachableError``.
    in_flight
        Requests of one process that may be under way at once; how many are is found by trying.
    gap
        KiB between tiles that are read in vain rather than asked for apart; None: what the measured latency and
        bandwidth say.
    hedge
        Milliseconds after which a range is asked for a second time, and the quicker answer taken; None: never.
    cache
        Folder of a local disk where tiles of object stores are kept; any number of processes may share it. None:
        nowhere.
    cache_size
        MiB that it may take.

    Raises
    ------
    ConfigError
        When a value cannot be used, or a key is unknown to TileDB (which itself would accept it in silence).
    """

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    tiledb: Mapping[str, str] = field(default_factory=dict)
    direct: bool = True
    compiled: bool = True
    memory: int | None = None
    read_ahead: int | None = None
    encryption_key: str | None = None
    deadline: int = 60
    in_flight: int = 64
    gap: int | None = None
    hedge: int | None = None
    cache: str | None = None
    cache_size: int = 16384

    SECTION: ClassVar[str] = "read"
    TAKES: ClassVar[Any] = MappingProxyType(
        {
            "threads": whole(1),
            "tiledb": _options,
            "direct": truth,
            "compiled": truth,
            "memory": maybe(whole(16)),
            "read_ahead": maybe(whole(0)),
            "encryption_key": maybe(check_reference),
            "deadline": whole(1),
            "in_flight": whole(1),
            "gap": maybe(whole(0)),
            "hedge": maybe(whole(1)),
            "cache": maybe(settings.text),
            "cache_size": whole(1),
        }
    )

    @property
    def key(self) -> tuple[Any, ...]:
        """Hashable identity of the TileDB context: what concerns no context is left out."""
        return (self.threads, self.memory, self.read_ahead, self.encryption_key, *sorted(self.tiledb.items()))

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
            **({} if self.memory is None else {"sm.mem.total_budget": str(self.memory << 20)}),
            **({} if self.read_ahead is None else {"vfs.read_ahead_cache_size": str(self.read_ahead << 20)}),
            **s3_endpoint(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")),
            **self.tiledb,
            **self.encryption(),
        }

    def __repr__(self) -> str:
        """As it was made, but for what opens a store."""
        shown = {**{f.name: getattr(self, f.name) for f in fields(self)}, "tiledb": without_secrets(self.tiledb)}
        return f"ReadConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def encryption(self) -> dict[str, str]:
        """What TileDB must be told to open encrypted arrays; empty where they are not.

        Raises
        ------
        ConfigError
            When the key is not where ``encryption_key`` says, or is none.
        """
        if self.encryption_key is None:
            return {}
        return {"sm.encryption_type": "AES_256_GCM", "sm.encryption_key": array_key(self.encryption_key)}


def s3_endpoint(url: str | None) -> dict[str, str]:
    """TileDB's settings for a server that speaks S3, as ``AWS_ENDPOINT_URL`` names it; empty where none is named."""
    if not url:
        return {}
    scheme, _, host = url.rpartition("://")
    settings = {"vfs.s3.endpoint_override": host.rstrip("/"), "vfs.s3.scheme": scheme or "https"}
    return settings if ".amazonaws.com" in host else {**settings, "vfs.s3.use_virtual_addressing": "false"}


def without_secrets(tiledb: Mapping[str, str]) -> dict[str, str]:
    """TileDB's settings as they may be shown."""
    return {
        key: "***" if value and any(word in key for word in _SECRET) else without_login(value)
        for key, value in tiledb.items()
    }


def without_login(url: str) -> str:
    """Drop user, password and signature of an address."""
    return re.sub(r"\?.*", "", re.sub(r"//[^/@]*@", "//", url))


_SECRET = ("secret", "password", "token", "account_key", "access_key", "encryption_key", "service_account")


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
