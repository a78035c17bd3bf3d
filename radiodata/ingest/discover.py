"""From globs, folders and lists of paths to subjects and their files; everything wrong is named at once."""

from __future__ import annotations

import glob
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from radiodata.errors import ConfigError, Problem
from radiodata.geometry import spacing_of
from radiodata.ingest.nifti import SUFFIXES, NiftiError, NiftiHeader, read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

Files: TypeAlias = "str | Path | Sequence[str | Path]"
SubjectRule: TypeAlias = "str | Callable[[Path], str] | None"
LABEL_NAMES = re.compile(r"(^|_)(seg|segs|segmentation|label|labels|mask|masks|roi|rois|gt|organs?)(_|\d|$)", re.I)
ALIGNED_MM = 0.05
"""Corners of aligned volumes are at most this far apart, or 1 % of the smallest voxel side if that is more."""


@dataclass(frozen=True)
class SubjectFiles:
    """One subject and its file in each collection."""

    subject: str
    files: dict[str, Path]


def is_label_name(name: str) -> bool:
    """Whether a collection of this name holds labels, as ``seg``, ``labels`` or ``liver_mask`` do."""
    return LABEL_NAMES.search(name) is not None


def find_files(files: Files) -> list[Path]:
    """Paths of a glob, of a folder's ``.nii`` and ``.nii.gz`` files, or of a list; hidden files left out."""
    if isinstance(files, str | Path):
        text = str(files)
        if Path(text).is_dir():
            found = [p for p in Path(text).iterdir() if p.name.endswith(SUFFIXES)]
        else:
            found = [Path(p) for p in glob.glob(text, recursive=True)]  # noqa: PTH207 (absolute patterns)
        return sorted(p for p in found if not p.name.startswith("."))
    return [Path(p) for p in files]


def subject_of(path: Path, rule: SubjectRule) -> str:
    """Subject id of a file.

    By default the BIDS entity ``sub-XX``, else the file name without extension and without nnU-Net's
    channel suffix ``_0000``. A string is a regular expression searched in the path, whose first group (or
    whole match) is the id; a callable is given the path.

    Raises
    ------
    ConfigError
        When the rule finds nothing in this path.
    """
    if callable(rule):
        return str(rule(path))
    if rule is not None:
        match = _rule(rule).search(path.as_posix())
        found = match and (match[1] if match.re.groups else match[0])
        if not found:
            raise ConfigError(f"the subject rule {rule!r} finds no id in {path}")
        return found
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name)
    bids = re.match(r"sub-[A-Za-z0-9]+", stem)
    return bids[0] if bids else re.sub(r"(?<=.)_\d{4}$", "", stem)


def _rule(rule: str) -> re.Pattern[str]:
    try:
        return re.compile(rule)
    except re.error as error:
        raise ConfigError(f"the subject rule {rule!r} is no regular expression: {error}") from error


def group_subjects(
    images: Mapping[str, Files], rule: SubjectRule, obs_meta: pd.DataFrame | None
) -> tuple[list[SubjectFiles], list[Problem]]:
    """Files of each subject, and every reason why a subject cannot be taken."""
    problems: list[Problem] = []
    by_subject: dict[str, dict[str, Path]] = {}
    for name, files in images.items():
        found = find_files(files)
        if not found:
            problems.append(Problem(f"collection {name!r}", f"no file matches {files}"))
        for path in found:
            _place(by_subject, problems, name, path, rule)
    rows = None if obs_meta is None else {str(i) for i in obs_meta.index}
    for subject, files_of in by_subject.items():
        missing = [n for n in images if n not in files_of]
        if missing:
            have = ", ".join(str(p) for p in files_of.values())
            problems.append(
                Problem(
                    subject,
                    f"has no file in {', '.join(missing)} (has {have}); see `subject_id` if names differ",
                )
            )
        if rows is not None and subject not in rows:
            problems.append(Problem(subject, "has files but no row in obs_meta"))
    unfiled = sorted((rows or set()) - set(by_subject))
    problems += [Problem(s, "has a row in obs_meta but no file: drop the row, or add its files") for s in unfiled]
    return [SubjectFiles(s, f) for s, f in sorted(by_subject.items())], problems


def _place(
    by_subject: dict[str, dict[str, Path]], problems: list[Problem], name: str, path: Path, rule: SubjectRule
) -> None:
    try:
        subject = subject_of(path, rule)
        f"{path} {subject}".encode()
    except ConfigError as error:
        problems.append(Problem(str(path), str(error)))
        return
    except UnicodeEncodeError:
        problems.append(Problem(ascii(str(path)), "its name is not UTF-8: rename the file"))
        return
    if not subject:
        problems.append(Problem(str(path), "its subject id is empty: see `subject_id`"))
        return
    taken = by_subject.setdefault(subject, {})
    if name in taken:
        why = f"subject id {subject!r} is also that of {taken[name]}: say `subject_id` so that ids are unique"
        problems.append(Problem(str(path), why))
        return
    taken[name] = path


def check_headers(
    subjects: Sequence[SubjectFiles], *, aligned: bool, workers: int, orient: str | None = "RAS"
) -> list[Problem]:
    """Read every header; name files that cannot be taken and subjects whose volumes will not align in the store."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        found = pool.map(lambda s: _check_subject(s, aligned, orient), subjects)
        return [problem for problems in found for problem in problems]


def _check_subject(subject: SubjectFiles, aligned: bool, orient: str | None) -> list[Problem]:
    problems: list[Problem] = []
    headers: dict[str, NiftiHeader] = {}
    for name, path in subject.files.items():
        try:
            headers[name] = read_header(path, orient=orient)
        except NiftiError as error:
            problems.append(Problem(str(path), str(error)))
    names = list(headers)
    for name in names[1:] if aligned else []:
        why = misaligned(headers[names[0]], headers[name])
        if why:
            pair = f"{subject.files[names[0]]} and {subject.files[name]}"
            problems.append(Problem(f"{subject.subject} ({names[0]}, {name})", f"{why}: {pair}"))
    return problems


def misaligned(a: NiftiHeader, b: NiftiHeader) -> str | None:
    """Say why two grids are not the same, or None."""
    if a.shape != b.shape:
        return f"shapes differ, {a.shape} and {b.shape}"
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    corners[:, :3] *= np.asarray(a.shape, np.float64) - 1
    apart = float(np.linalg.norm(corners @ (a.affine - b.affine).T, axis=1).max())
    if apart > max(ALIGNED_MM, 0.01 * float(spacing_of(a.affine).min())):
        return f"affines place the same voxel up to {apart:.3g} mm apart"
    return None
