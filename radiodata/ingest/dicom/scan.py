"""Finding DICOM files: any tree, file names of any kind, zip and tar archives; headers only."""

from __future__ import annotations

import io
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from radiodata.errors import ConfigError, RadiodataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pydicom

_LEAST = 64 << 20
_RATIO = 200
_MOST_MEMBER = 8 << 30


class DicomError(RadiodataError, ValueError):
    """A file that is no whole DICOM image, or a series that is no volume."""


class NoImageError(DicomError):
    """A file that is no DICOM image, and does not claim to be one."""


@dataclass(frozen=True, order=True)
class Source:
    """A file, or a member of an archive."""

    path: Path
    member: str = ""

    def open(self) -> BinaryIO:
        """Open it for reading; a member of an archive is inflated whole.

        Raises
        ------
        DicomError
            When a member of an archive inflates beyond all reason.
        """
        if not self.member:
            return self.path.open("rb")
        if zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                told = archive.getinfo(self.member)
                if told.file_size > min(max(_LEAST, _RATIO * told.compress_size), _MOST_MEMBER):
                    raise DicomError(f"inflates from {told.compress_size} to {told.file_size} bytes: not a scan")
                return io.BytesIO(archive.read(told))
        with tarfile.open(self.path) as archive:
            member = archive.extractfile(self.member)
            if member is None:
                raise DicomError("is no file of the archive")
            return io.BytesIO(member.read())

    def __str__(self) -> str:
        return f"{self.path}!{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class Header:
    """A file's attributes, without pixels."""

    source: Source
    dataset: pydicom.Dataset


def find(roots: Iterable[str | Path]) -> list[Source]:
    """Files below folders, members of zip and tar archives; hidden ones left out.

    Raises
    ------
    ConfigError
        When a root is not there.
    """
    found: list[Source] = []
    for root in map(Path, roots):
        if not root.exists():
            raise ConfigError(f"there is nothing at {root}")
        paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in paths:
            if not any(part.startswith(".") for part in path.relative_to(root).parts):
                found.extend(_members(path))
    return found


def _members(path: Path) -> Iterator[Source]:
    try:
        if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (Source(path, m.filename) for m in archive.infolist() if not m.is_dir())
            return
        if path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.xz")) and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                yield from (Source(path, m.name) for m in archive if m.isfile())
            return
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError):
        pass  # it is told of as a file that cannot be read
    yield Source(path)


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """Tell what went wrong with a damaged file in an error of ours: parsers and decoders raise all kinds.

    Raises
    ------
    DicomError
        For every exception, with it as the cause.
    """
    try:
        yield
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"{what} ({type(error).__name__}: {error})") from error


def read_dataset(source: Source, *, pixels: bool = False, data: bytes | None = None) -> pydicom.Dataset:
    """Read a file, without its pixels unless asked for.

    Parameters
    ----------
    data
        Its bytes, where they are read already.

    Raises
    ------
    DicomError
        When it is no DICOM file, or a damaged one.
    """
    import pydicom

    with parsing("cannot be read as DICOM"), source.open() if data is None else io.BytesIO(data) as file:
        head = file.read(132)
        file.seek(0)
        bare = head[128:132] != b"DICM"
        dataset = pydicom.dcmread(file, force=bare, stop_before_pixels=not pixels) if _plausible(head) else None
    if dataset is None:
        raise NoImageError("is no DICOM file")
    if dataset.get("SOPClassUID") == "1.2.840.10008.1.3.10":
        raise NoImageError("is a DICOMDIR: the files that it lists are read where they lie")
    return dataset


def read_bytes(source: Source) -> bytes:
    """Read a file whole.

    Raises
    ------
    DicomError
        When it cannot be read.
    """
    with parsing(f"{source}: cannot be read"), source.open() as file:
        return file.read()


def _plausible(head: bytes) -> bool:
    """Whether a file begins with the preamble, or as a data set does: a small group, in either byte order."""
    return head[128:132] == b"DICM" or head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
