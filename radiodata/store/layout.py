"""What lies where in a cohort, and the schemas of its voxel arrays.

::

    URI/                        TileDB group, metadata: format version
      __commits/00...07.json    record of version 7: which segments are its tables; the highest is the cohort
      __runs/                   marks of runs that are going on: empty files
      __lock                    of the writer that commits
      obs_meta/RUN-000001       segment of the table of subjects
      CT/
        obs/RUN-000002          segment of the table of volumes
        tiles                   table: statistics per tile, histogram, header of the file
        voxels/RUN-0000-int16   packed shard: dense (volume, channel, x, y, z)
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tiledb

from radiodata.errors import CohortNotFoundError, ConfigError, FormatVersionError, StoreError
from radiodata.store.context import patiently
from radiodata.store.sealing import refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.store.config import StoreConfig

FORMAT_VERSION = 3
VERSION_KEY = "radiodata.format_version"
OBS_META = "obs_meta"
VOXELS = "voxels"
RUNS = "__runs"
COMMITS = "__commits"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

_CHANNELS = 65_536
_SIDE = 1 << 24


def join(uri: str, *parts: str) -> str:
    """Join a URI of any scheme and names below it."""
    return "/".join([uri.rstrip("/"), *parts])


def check_name(name: str) -> str:
    """Refuse a collection name that cannot be an attribute of a cohort."""
    if not NAME.fullmatch(name) or name == OBS_META:
        raise ConfigError(f"collection name {name!r} must be letters, digits and _, and not {OBS_META!r}")
    return name


def shard_name(run: str, index: int, dtype: str) -> str:
    """Name of the packed shard that holds volumes of `dtype` written by one run."""
    return f"{run}-{index:04d}-{dtype}"


def shard_uri(collection_uri: str, shard: str) -> str:
    """Where a packed shard is."""
    return join(collection_uri, VOXELS, shard)


def filter_list(specs: Sequence[str], ctx: tiledb.Ctx) -> tiledb.FilterList:
    """TileDB filters of ``("byteshuffle", "zstd:3")``."""
    made = []
    for spec in specs:
        name, _, level = spec.partition(":")
        kind = {
            "byteshuffle": tiledb.ByteShuffleFilter,
            "bitshuffle": tiledb.BitShuffleFilter,
            "zstd": tiledb.ZstdFilter,
            "lz4": tiledb.LZ4Filter,
            "gzip": tiledb.GzipFilter,
            "md5": tiledb.ChecksumMD5Filter,
            "sha256": tiledb.ChecksumSHA256Filter,
        }[name]
        made.append(kind(level=int(level), ctx=ctx) if level else kind(ctx=ctx))
    return tiledb.FilterList(made, ctx=ctx)


def voxel_schema(dtype: str, kind: str, config: StoreConfig, ctx: tiledb.Ctx) -> tiledb.ArraySchema:
    """Schema of a packed shard: dense ``(volume, channel, x, y, z)``; volume and channel extent 1.

    The domain is wide and only what is written takes space, so shapes differ freely.
    """
    sizes = {"volume": config.slots, "channel": _CHANNELS, "x": _SIDE, "y": _SIDE, "z": _SIDE}
    extents = {"volume": 1, "channel": 1, **dict(zip("xyz", config.tile, strict=True))}
    dims = [
        tiledb.Dim(name=n, domain=(0, size - 1), tile=extents[n], dtype=np.uint32, ctx=ctx) for n, size in sizes.items()
    ]
    filters = filter_list(config.pipeline(dtype, kind), ctx)
    voxels = tiledb.Attr("voxels", dtype=np.dtype(dtype), filters=filters, ctx=ctx)
    return tiledb.ArraySchema(tiledb.Domain(*dims, ctx=ctx), attrs=[voxels], ctx=ctx)


def group_exists(uri: str, ctx: tiledb.Ctx) -> bool:
    """Whether a TileDB group is at `uri`."""
    return bool(tiledb.object_type(uri, ctx=ctx) == "group")


def create_group(uri: str, metadata: dict[str, str | int], ctx: tiledb.Ctx) -> None:
    """Create a group, and give it the metadata that it lacks: whoever made it may have died, or run beside us."""
    try:
        if not group_exists(uri, ctx):
            tiledb.Group.create(uri, ctx=ctx)
    except tiledb.TileDBError as error:
        if not group_exists(uri, ctx):
            raise StoreError(f"cannot create a group at {uri}: {error}") from error
    with tiledb.Group(uri, "r", ctx=ctx) as group:
        lacking = {key: value for key, value in metadata.items() if key not in group.meta}
    if lacking:
        with tiledb.Group(uri, "w", ctx=ctx) as group:
            group.meta.update(lacking)


def create_whole(uri: str, make: Callable[[str], None], ctx: tiledb.Ctx) -> None:
    """Make a folder of groups and arrays beside its place, and move it there: nobody sees half of it.

    Object stores show an object when it is whole, so there it is made in its place.

    Raises
    ------
    StoreError
        When the place is taken by something that is no group.
    """
    if "://" in uri and not uri.startswith("file://"):
        make(uri)
        return
    place = Path(uri.removeprefix("file://"))
    scratch = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        make(str(scratch))
        scratch.rename(place)
    except OSError as error:
        if not group_exists(uri, ctx):  # else a process beside us made it
            raise StoreError(f"cannot create {uri}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def create_root(uri: str, ctx: tiledb.Ctx) -> None:
    """Create the root group of a cohort, with its format version."""
    create_group(uri, {VERSION_KEY: FORMAT_VERSION}, ctx)


def _root(uri: str, ctx: tiledb.Ctx) -> tuple[object, list[str]]:
    if not group_exists(uri, ctx):
        return None, []
    return patiently(lambda: _read_group(uri, ctx))


def _read_group(uri: str, ctx: tiledb.Ctx) -> tuple[object, list[str]]:
    try:
        with tiledb.Group(uri, "r", ctx=ctx) as group:
            return group.meta.get(VERSION_KEY), [str(m.name) for m in group]
    except tiledb.TileDBError as error:
        raise refused(error, uri) or error from error


def check_root(uri: str, ctx: tiledb.Ctx) -> bool:
    """Whether the root group of a cohort is at `uri`, or the beginning of one.

    Raises
    ------
    FormatVersionError
        When what is there was written in a format that this version does not know.
    EncryptionError
        When it is encrypted with another key, or a key was given or not given against what it is.
    """
    version, members = _root(uri, ctx)
    empty = not members and not tiledb.VFS(ctx=ctx).is_dir(join(uri, COMMITS))
    if version == FORMAT_VERSION or (version is None and empty):
        return version is not None
    found = "no format version" if version is None else f"format version {version}"
    raise FormatVersionError(
        f"the store at {uri} has {found}; this radiodata reads version {FORMAT_VERSION}. "
        "Install the radiodata release that wrote it, or ingest again."
    )


def no_cohort(uri: str) -> CohortNotFoundError:
    """Error that says what to do."""
    return CohortNotFoundError(f"no cohort at {uri}: make one with `radiodata ingest {uri} ...` or Cohort.from_niftis")
