"""From files to volumes: every stack of every series, and what was passed over."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from radiodata.errors import Problem
from radiodata.ingest.dicom.frames import frames_of
from radiodata.ingest.dicom.scan import DicomError, find, parsing, read_headers
from radiodata.ingest.dicom.stacks import stacks_of

if TYPE_CHECKING:
    from pathlib import Path

    import pydicom

    from radiodata.ingest.dicom.frames import Frame
    from radiodata.ingest.dicom.stacks import Stack

Irregular = Literal["refuse", "keep"]


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
    problems
        Files and series that were passed over, and why.
    """

    series: list[Series] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_series(*roots: str | Path, irregular: Irregular = "refuse", workers: int = 8) -> Found:
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
    """
    headers, problems = read_headers(find(roots), workers=workers)
    frames: dict[str, list[Frame]] = defaultdict(list)
    first: dict[str, pydicom.Dataset] = {}
    for header in headers:
        try:
            with parsing("its header makes no sense"):
                uid = str(header.dataset.get("SeriesInstanceUID") or f"none, in {header.source.path.parent}")
                frames[uid].extend(frames_of(header))
            first.setdefault(uid, header.dataset)
        except DicomError as error:
            problems.append(Problem(str(header.source), str(error)))
    found = Found(problems=problems)
    for uid, of_series in frames.items():
        if not of_series:
            continue
        try:
            stacks = stacks_of(uid, of_series)
        except DicomError as error:
            found.problems.append(Problem(f"series {uid}", str(error)))
            continue
        refused = [s for s in stacks if irregular == "refuse" and s.grave]
        where = stacks[0].frames[0][0].source.path.parent
        for stack in refused:
            told = f"{'; '.join(stack.grave)} (irregular='keep' takes it)"
            found.problems.append(Problem(f"series {uid} in {where}", told))
        kept = tuple(stack for stack in stacks if stack not in refused)
        if kept:
            found.series.append(Series(uid, first[uid], kept))
    return found
