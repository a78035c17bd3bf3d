"""The index of a version: its tables, and where the tiles of its volumes lie, in one object.

Tables in TileDB take a file for each column; to open a cohort on an object store by them takes hundreds of requests.
So whoever commits to one leaves, beside the record of the last version, an object that holds the same once more. It
is written after the record, and never changed: where it is missing, the tables are read.

::

    __commits/000000000007.json    record
    __commits/000000000007.index   zstd of an .npz: header.json, and the arrays that it names
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tiledb
import zstandard

from radiodata.errors import StoreError
from radiodata.store.context import context, handles
from radiodata.store.direct.listing import Shard
from radiodata.store.direct.refusal import Refused
from radiodata.store.direct.schema import Layout
from radiodata.store.layout import COMMITS, join, shard_uri
from radiodata.store.obs import OBS_ID, SUBJECT
from radiodata.store.sealing import seal, unseal
from radiodata.store.table import Buffers, Raw, create_table, read_raw, write_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from radiodata.store.columns import Column
    from radiodata.store.config import ReadConfig
    from radiodata.store.record import Record

_FORMAT = 1
_MOST_VOLUMES = 20_000
"""Of a cohort whose index says where tiles lie: it is read whole, some kilobytes a volume."""
_log = logging.getLogger("radiodata.store")


@dataclass(frozen=True)
class Index:
    """What an index holds.

    Attributes
    ----------
    tables
        Segments by their path below the cohort's URI.
    shards
        By their path.
    tiles
        By the path of a fragment: where its tiles begin, and the end of the last.
    """

    tables: dict[str, Raw] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    tiles: dict[str, NDArray[Any]] = field(default_factory=dict)


def index_uri(uri: str, version: int) -> str:
    """Where the index of a version is."""
    return join(uri, COMMITS, f"{version:012d}.index")


def raw_of(index: str, frame: pd.DataFrame, columns: Sequence[Column]) -> Raw:
    """Rows as TileDB gives them once they are written, without asking the store for them."""
    ctx = tiledb.Ctx({"sm.compute_concurrency_level": "1", "sm.io_concurrency_level": "1"})
    create_table("mem://table", index, columns, ctx)
    write_rows("mem://table", frame, columns, ctx)
    return read_raw("mem://table", index, ctx)


def write_index(uri: str, record: Record, known: Mapping[str, Raw], config: ReadConfig) -> None:
    """Write the index of a version; what the one before holds is taken from there.

    Parameters
    ----------
    known
        Segments that need not be read: by their path.
    """
    ctx, before = context(config), _before(uri, record, config)
    known = {**before.tables, **known}
    subjects = {s.path for s in record.obs_meta.segments}
    tables = {
        path: known[path] if path in known else read_raw(join(uri, path), SUBJECT if path in subjects else OBS_ID, ctx)
        for path in record.segments()
    }
    shards, tiles = _places(uri, record, tables, before.tiles, config)
    raw = encode(Index(tables, shards, tiles))
    name = f"{record.version:012d}.index"
    if config.encryption_key is not None:
        raw = seal(raw, config.encryption_key, name)
    with tiledb.VFS(ctx=ctx).open(join(uri, COMMITS, name), "wb") as file:
        file.write(raw)


def _before(uri: str, record: Record, config: ReadConfig) -> Index:
    """Index of an earlier version; an empty one where there is none, or it cannot be read."""
    names = handles().remote.fetcher(config).names(join(uri, COMMITS))
    earlier = [name for name in names if name.endswith(".index") and name < f"{record.version:012d}.index"]
    if not earlier:
        return Index()
    last = max(earlier)
    try:
        return read_index(join(uri, COMMITS, last), names[last], config)
    except StoreError as error:
        _log.warning("%s, and is not used for the next one", error)
        return Index()


def read_index(where: str, size: int, config: ReadConfig) -> Index:
    """Read an index.

    Raises
    ------
    StoreError
        When it is damaged, or of another format.
    """
    try:
        raw = handles().remote.fetcher(config).whole(where, size)
    except Refused as error:  # forgotten meanwhile
        raise StoreError(f"the index {where} cannot be read: {error}") from error
    return decode(unseal(raw, config.encryption_key, where.rsplit("/", 1)[-1], where), where)


def _places(
    uri: str, record: Record, tables: Mapping[str, Raw], known: Mapping[str, NDArray[Any]], config: ReadConfig
) -> tuple[dict[str, Shard], dict[str, NDArray[Any]]]:
    """Shards that rows point to, and where the tiles of each volume lie, as far as the direct reader can tell."""
    wanted: dict[str, set[int]] = {}
    shapes: dict[tuple[str, int], tuple[int, int, int, int]] = {}
    for collection in record.collections.values():
        for segment in collection.obs.segments:
            if segment.kind == "rows":
                _note_rows(collection.folder, tables[segment.path], wanted, shapes)
    direct = handles().direct
    shards: dict[str, Shard] = {}
    tiles: dict[str, NDArray[Any]] = {}
    for path, slots in wanted.items():
        try:
            shards[path] = shard = direct.listed(join(uri, path), config, context)
        except Refused as why:
            _log.debug("%s is not in the index: %s", path, why)
            continue
        if len(shapes) <= _MOST_VOLUMES:
            folders = {slot: shard.fragments.get(slot) for slot in slots}
            tiles.update({folder: known[folder] for folder in folders.values() if folder and folder in known})
            new = {slot: shapes[path, slot] for slot, folder in folders.items() if folder not in tiles}
            if new:
                tiles.update(direct.offsets(join(uri, path), shard, new, config))
    below = len(uri.rstrip("/")) + 1
    return shards, {folder[below:]: offsets for folder, offsets in tiles.items()}


def _note_rows(
    folder: str,
    raw: Raw,
    wanted: dict[str, set[int]],
    shapes: dict[tuple[str, int], tuple[int, int, int, int]],
) -> None:
    rows = np.arange(len(raw.ids))
    names = ("shard", "slot", "channels", "size_x", "size_y", "size_z")
    for shard, slot, *shape in zip(*(raw.take(name, rows).tolist() for name in names), strict=True):
        path = shard_uri(folder, shard)
        wanted.setdefault(path, set()).add(slot)
        shapes[path, slot] = tuple(shape)  # type: ignore[assignment]


def encode(index: Index) -> bytes:
    """An index as bytes."""
    arrays: dict[str, NDArray[Any]] = {}

    def put(array: NDArray[Any]) -> str:
        arrays[f"a{len(arrays)}"] = array
        return f"a{len(arrays) - 1}"

    tables = {}
    for path, raw in index.tables.items():
        texts = [str(i).encode() for i in raw.ids.to_numpy(object)]
        columns = {
            name: [kind, *(None if b is None else put(b) for b in raw.buffers[name])]
            for name, kind in raw.kinds.items()
        }
        ends = np.cumsum([len(t) for t in texts], dtype=np.int64)
        ids = [put(np.frombuffer(b"".join(texts), np.uint8)), put(ends)]
        tables[path] = {"index": str(raw.ids.name), "ids": ids, "columns": columns}
    shards = {}
    for path, shard in index.shards.items():
        layout = shard.layout
        shards[path] = {
            "schema": shard.schema_name,
            "layout": [layout.dtype.str, list(layout.tile), layout.shuffle, layout.zstd],
            "fragments": [[slot, folder and folder.rsplit("/", 1)[-1]] for slot, folder in shard.fragments.items()],
        }
    counts = [len(offsets) for offsets in index.tiles.values()]
    sizes = [np.diff(offsets.astype(np.uint64)) for offsets in index.tiles.values()]  # compress where offsets do not
    tiles = [list(index.tiles), counts, put(np.concatenate([np.empty(0, np.uint64), *sizes]))]
    header = {"format": _FORMAT, "tables": tables, "shards": shards, "tiles": tiles}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return zstandard.ZstdCompressor(level=3).compress(out.getvalue())


def decode(raw: bytes, where: str) -> Index:
    """Undo ``encode``; shards and fragments are named by URI then, as at `where`.

    Raises
    ------
    StoreError
        When it is damaged, or of another format.
    """
    uri = where.rsplit(f"/{COMMITS}/", 1)[0]
    try:
        with np.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(raw)), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        header = json.loads(arrays["header"].tobytes())
        if header["format"] != _FORMAT:
            raise StoreError(f"the index {where} has format {header['format']}, not {_FORMAT}")
        tables = {path: _table(table, arrays) for path, table in header["tables"].items()}
        shards = {join(uri, path): _shard(join(uri, path), shard) for path, shard in header["shards"].items()}
        return Index(tables, shards, _tiles(uri, header["tiles"], arrays))
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(f"the index {where} is damaged: {error}") from error


def _table(table: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Raw:
    text, ends = (arrays[name] for name in table["ids"])
    whole, at = text.tobytes(), [0, *ends.tolist()]
    ids = pd.Index([whole[a:b].decode() for a, b in pairwise(at)], name=table["index"])
    if not len(ids):
        ids = ids.astype("str")
    buffers = {
        name: Buffers(*(None if n is None else arrays[n] for n in names))  # type: ignore[arg-type]
        for name, (_, *names) in table["columns"].items()
    }
    return Raw(ids, {name: kind for name, (kind, *_) in table["columns"].items()}, buffers)


def _shard(uri: str, shard: dict[str, Any]) -> Shard:
    dtype, tile, shuffle, zstd = shard["layout"]
    layout = Layout(np.dtype(dtype), tuple(tile), shuffle, zstd)
    fragments = {slot: name and join(uri, "__fragments", name) for slot, name in shard["fragments"]}
    return Shard(layout, shard["schema"], fragments)


def _tiles(uri: str, tiles: list[Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    folders, counts, name = tiles
    sizes, out, at = arrays[name], {}, 0
    for folder, count in zip(folders, counts, strict=True):
        offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes[at : at + count - 1], dtype=np.uint64)])
        out[join(uri, folder)] = offsets.astype(np.uint32 if offsets[-1] < 1 << 32 else np.uint64)
        at += count - 1
    return out
