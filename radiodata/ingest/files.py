"""The bytes of NIfTI files: compressed or not, single or in pairs, inflated no further than their header tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from isal import igzip, igzip_lib

from radiodata.errors import RadiodataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz")
"""Of files that a folder is searched for; an .img file comes with its .hdr file."""
_GZIP_MAGIC = b"\x1f\x8b"
_UNREADABLE = (OSError, EOFError, cast("type[Exception]", igzip_lib.IsalError))
_HEAD = 1024
_FEED, _PART = 1 << 18, 1 << 18
_MOST_RATIO = 1032
"""Deflate makes at most so many bytes of one."""
_SPARE = 64 << 20
"""A stream may go on so far beyond the voxels; more is no padding."""


class NiftiError(RadiodataError, ValueError):
    """A file that is not a whole NIfTI volume."""


def halves_of(path: Path) -> tuple[Path, ...]:
    """Files of a volume: itself, or header and voxels of a pair, the second compressed or not as is there."""
    name = path.name.lower()
    gz = ".gz" if name.endswith(".gz") else ""
    bare = path.name[: len(path.name) - len(gz)]
    if not bare.lower().endswith((".hdr", ".img")):
        return (path,)
    stem, end = bare[:-4], bare[-4:]
    other = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}.get(end, ".img")
    twins = [path.with_name(stem + other + z) for z in (gz, "" if gz else ".gz")]
    twin = next((t for t in twins if t.is_file()), twins[0])
    return (path, twin) if end.lower() == ".hdr" else (twin, path)


def beginning(path: Path) -> bytes:
    """First bytes of a file, inflated.

    Raises
    ------
    NiftiError
        When it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if head[:2] != _GZIP_MAGIC:
                return head
            file.seek(0)
            with igzip.open(file) as stream:
                return bytes(stream.read(_HEAD))
    except _UNREADABLE as error:
        raise NiftiError(f"cannot be read ({type(error).__name__}: {error})") from error


def content(path: Path) -> bytes:
    """Bytes of a file as they are on the disk.

    Raises
    ------
    NiftiError
        When it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise NiftiError(f"cannot be read whole ({type(error).__name__}: {error})") from error


def inflated(data: bytes, size: int) -> bytes | NDArray[np.uint8]:
    """First `size` bytes of what a file holds, or as many as there are; its CRC and length are verified.

    Raises
    ------
    NiftiError
        When it is damaged, or goes on for far longer than `size`.
    """
    if data[:2] != _GZIP_MAGIC:
        return data
    out, filled, beyond = np.empty(min(size, len(data) * _MOST_RATIO), np.uint8), 0, 0
    try:
        for part in _parts(memoryview(data)):
            kept = np.frombuffer(part, np.uint8)[: len(out) - filled]
            out[filled : filled + len(kept)] = kept
            filled += len(kept)
            beyond += len(part) - len(kept)
            if beyond > _SPARE:
                raise NiftiError(f"inflates to far more than the {size} bytes that its header tells of")
    except _UNREADABLE as error:
        raise NiftiError(f"cannot be read whole ({type(error).__name__}: {error}): the file is damaged") from error
    return out[:filled]


def _parts(data: memoryview) -> Iterator[bytes]:
    """What the members of a gzip file hold, in parts that stay in the cache until they are copied."""
    at = 0
    while at < len(data):
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        while not member.eof:
            feed = data[at : at + _FEED] if member.needs_input else b""
            if member.needs_input and not feed:
                raise EOFError("it ends in the middle of its gzip stream")
            at += len(feed)
            yield member.decompress(feed, _PART)
        at -= len(member.unused_data)
        while at < len(data) and data[at] == 0:  # some programs fill the last block
            at += 1
