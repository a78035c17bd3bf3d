"""From files to volumes: every stack of every series, the labels drawn on them, and what was passed over."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from radiodata.errors import Problem
from radiodata.executors import of_caller, threads
from radiodata.ingest.dicom.frames import frames_of
from radiodata.ingest.dicom.labels import LabelFile, is_label, label_file
from radiodata.ingest.dicom.scan import DicomError, Header, NoImageError, find, parsing, read_dataset
from radiodata.ingest.dicom.stacks import stacks_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pydicom

    from radiodata.ingest.dicom.frames import Frame
    from radiodata.ingest.dicom.scan import Source
    from radiodata.ingest.dicom.stacks import Stack

Irregular = Literal["refuse", "keep"]
_CHUNK = 64


@dataclass(frozen=True)
class Series:
    """A series: the header of its first file, and its volumes.

    Attributes
    ----------
    header
        Attributes of one file, identifying ones among them: what reaches a store is for others to choose.
    """

    uid: str
    header: pydicom.Dataset
    stacks: tuple[Stack, ...]


@dataclass(frozen=True)
class Found:
    """What is in some folders.

    Attributes
    ----------
    labels
        Segmentations and structure sets.
    problems
        Damaged files, and series that cannot be taken, and why.
    skipped
        Files that are no DICOM images: other files, directories of DICOM files, reports, plans.
    """

    series: list[Series] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)


@dataclass
class _Read:
    """What some files hold; of each series one header goes along."""

    frames: dict[str, list[Frame]] = field(default_factory=lambda: defaultdict(list))
    headers: dict[str, pydicom.Dataset] = field(default_factory=dict)
    labels: list[LabelFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def add(self, other: _Read) -> None:
        """Take what other files hold."""
        for uid, frames in other.frames.items():
            self.frames[uid].extend(frames)
            self.headers.setdefault(uid, other.headers[uid])
        self.labels.extend(other.labels)
        self.problems.extend(other.problems)
        self.skipped.extend(other.skipped)


def read_series(*roots: str | Path, irregular: Irregular = "refuse", workers: int = 8, executor: Any = None) -> Found:
    """Find DICOM series and put their frames in order; headers are read, no pixels (see ``voxels.load``).

    Parameters
    ----------
    roots
        Folders, files, zip and tar archives.
    irregular
        What becomes of volumes with gaps, unequal steps or planes without a place: ``"refuse"`` passes over them, and
        tells; ``"keep"`` takes them, and ``stack.irregular`` tells. Copies of a file are left out in both cases.
    workers
        Threads that read headers.
    executor
        Any ``concurrent.futures.Executor``, or a Dask client, that reads them in their place.
    """
    read = _Read()
    sources = find(roots)
    chunks = [sources[at : at + _CHUNK] for at in range(0, len(sources), _CHUNK)]
    with threads(workers) if executor is None else nullcontext(of_caller(executor)) as pool:
        for future in [pool.submit(_read_chunk, chunk) for chunk in chunks]:
            read.add(future.result())
    found = Found(labels=read.labels, problems=read.problems, skipped=read.skipped)
    for uid, frames in read.frames.items():
        found.series.extend(_series(uid, read.headers[uid], frames, irregular, found.problems))
    return found


def _series(
    uid: str, header: pydicom.Dataset, frames: Sequence[Frame], irregular: Irregular, problems: list[Problem]
) -> Iterator[Series]:
    try:
        stacks = stacks_of(uid, frames)
    except DicomError as error:
        problems.append(Problem(f"series {uid}", str(error)))
        return
    where = frames[0].source.path.parent
    refused = [s for s in stacks if irregular == "refuse" and s.grave]
    for stack in refused:
        told = f"{'; '.join(stack.grave)} (irregular='keep' takes it)"
        problems.append(Problem(f"series {uid} in {where}", told))
    kept = tuple(stack for stack in stacks if stack not in refused)
    if kept:
        yield Series(uid, header, kept)


def _read_chunk(sources: Sequence[Source]) -> _Read:
    read = _Read()
    for source in sources:
        try:
            _read(read, source)
        except NoImageError as error:
            read.skipped.append(Problem(str(source), str(error)))
        except DicomError as error:
            read.problems.append(Problem(str(source), str(error)))
    return read


def _read(read: _Read, source: Source) -> None:
    dataset = read_dataset(source)
    with parsing("its header makes no sense"):
        if is_label(dataset):
            read.labels.append(label_file(source, dataset))
            return
        uid = str(dataset.get("SeriesInstanceUID") or f"none, in {source.path.parent}")
        frames = frames_of(Header(source, dataset))
        if frames:
            read.frames[uid].extend(frames)
            read.headers.setdefault(uid, dataset)
