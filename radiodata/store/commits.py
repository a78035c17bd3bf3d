"""The commits of a cohort: numbered records, each put in place at once; the highest number is the cohort."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tiledb

from radiodata.errors import StoreError
from radiodata.store.context import context, handles, patiently
from radiodata.store.direct.listing import local_path
from radiodata.store.durable import durable, sync
from radiodata.store.layout import COMMITS, join
from radiodata.store.record import Record
from radiodata.store.sealing import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from radiodata.store.config import ReadConfig

T = TypeVar("T")
_NAME = re.compile(r"(\d{12})\.json")


def versions(uri: str, config: ReadConfig) -> list[int]:
    """Versions that are there, ascending; empty where nothing was ever committed."""
    return _versions(_sizes(uri, config))


def _versions(names: Iterable[str]) -> list[int]:
    found = [_NAME.fullmatch(name) for name in names]
    return sorted(int(one[1]) for one in found if one)


def _sizes(uri: str, config: ReadConfig) -> Mapping[str, int]:
    """Names of what was committed, with its bytes where an object store tells them."""
    folder = join(uri, COMMITS)
    if local_path(uri) is None:
        return handles().remote.fetcher(config).names(folder)
    vfs = tiledb.VFS(ctx=context(config))
    entries = vfs.ls(folder) if vfs.is_dir(folder) else []
    return dict.fromkeys((entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries), 0)


def index_size(uri: str, version: int, config: ReadConfig) -> int | None:
    """Bytes of the index of a version on an object store; None where there is none."""
    return _sizes(uri, config).get(f"{version:012d}.index")


def latest(uri: str, config: ReadConfig) -> Record | None:
    """The record with the highest number; None where nothing was ever committed."""

    def newest() -> Record | None:
        sizes = _sizes(uri, config)
        held = _versions(sizes)
        return _read(uri, held[-1], config, sizes) if held else None

    return patiently(newest)


def settled(uri: str, config: ReadConfig, act: Callable[[Record], T]) -> T | None:
    """Read what the latest version points to; again where it was forgotten meanwhile for a later one.

    Returns
    -------
    T
        What `act` gave; None where nothing was ever committed.

    Raises
    ------
    StoreError
        What `act` raised of a version that is there.
    """
    record = latest(uri, config)
    while record is not None:
        try:
            return act(record)
        except StoreError:
            newer = latest(uri, config)
            if newer is None or newer.version == record.version:
                raise
            record = newer
    return None


def read(uri: str, version: int, config: ReadConfig) -> Record:
    """Record of a version.

    Raises
    ------
    StoreError
        When it is damaged.
    EncryptionError
        When the key of `config` is not that of the cohort.
    """
    return _read(uri, version, config, {} if local_path(uri) is not None else _sizes(uri, config))


def _read(uri: str, version: int, config: ReadConfig, sizes: Mapping[str, int]) -> Record:
    where = join(uri, COMMITS, f"{version:012d}.json")
    if local_path(uri) is None:
        size = sizes.get(f"{version:012d}.json")
        if size is None:
            raise tiledb.TileDBError(f"{where} is not there")
        raw = handles().remote.fetcher(config).whole(where, size)
    else:
        with tiledb.VFS(ctx=context(config)).open(where, "rb") as file:
            raw = bytes(file.read())
    return Record.from_json(unseal(raw, config.encryption_key, f"{version:012d}", where), where)


def at(uri: str, moment: int | str | datetime, config: ReadConfig) -> Record:
    """Record of a version, or the last one that was committed by a moment.

    Parameters
    ----------
    moment
        A version; or a datetime or ISO 8601 text, local time where it names no zone.

    Raises
    ------
    StoreError
        When there is none: names those that are there.
    """
    held = versions(uri, config)
    if isinstance(moment, int):
        if moment in held:
            return read(uri, moment, config)
        raise StoreError(f"the cohort at {uri} has no version {moment}; it has: {_spans(held)}")
    until = _utc(moment)
    for version in reversed(held):
        record = read(uri, version, config)
        if datetime.fromisoformat(record.time) <= until:
            return record
    first = read(uri, held[0], config).time if held else "none"
    raise StoreError(f"the cohort at {uri} has no version of {until.isoformat()} or before; the first is of {first}")


def _utc(moment: str | datetime) -> datetime:
    try:
        found = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    except ValueError as error:
        raise StoreError(f"at={moment!r} is neither a version nor a time such as 2026-01-31T12:00") from error
    return found.astimezone(UTC)


def _spans(held: list[int]) -> str:
    return ", ".join(map(str, held)) if len(held) <= 10 else f"{held[0]} ... {held[-1]} ({len(held)} of them)"


def create(uri: str, record: Record, config: ReadConfig) -> None:
    """Put a record in place, whole or not at all; the caller holds the lock.

    Raises
    ------
    StoreError
        When one of its number is there.
    """
    where, raw = join(uri, COMMITS, f"{record.version:012d}.json"), record.to_json()
    if config.encryption_key is not None:
        raw = seal(raw, config.encryption_key, f"{record.version:012d}")
    path = local_path(uri)
    if path is None:
        vfs = tiledb.VFS(ctx=context(config))
        if vfs.is_file(where):
            raise StoreError(f"version {record.version} of the cohort at {uri} was committed by another process")
        with vfs.open(where, "wb") as file:
            file.write(raw)
        return
    _create_local(Path(path, COMMITS), Path(path, COMMITS, f"{record.version:012d}.json"), raw)


def _create_local(folder: Path, place: Path, raw: bytes) -> None:
    folder.mkdir(exist_ok=True)
    scratch = folder / f"{uuid.uuid4().hex}.tmp"
    try:
        with durable(scratch) as file:
            file.write(raw)
        os.link(scratch, place)  # fails where it is taken, which a rename would not
    except FileExistsError as error:
        raise StoreError(f"{place} was committed by another process") from error
    except OSError as error:
        raise StoreError(f"cannot commit {place}: {error}") from error
    finally:
        with suppress(FileNotFoundError):
            scratch.unlink()
    sync(folder)


def forget(uri: str, gone: list[int], config: ReadConfig) -> None:
    """Remove records; the caller holds the lock, and keeps the latest."""
    vfs = tiledb.VFS(ctx=context(config))
    for version in gone:
        vfs.remove_file(join(uri, COMMITS, f"{version:012d}.json"))
        if local_path(uri) is None and vfs.is_file(index := join(uri, COMMITS, f"{version:012d}.index")):
            vfs.remove_file(index)
