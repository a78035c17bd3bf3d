"""From globs, folders and lists of paths to subjects and their files; everything wrong is named at once."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.files import SUFFIXES, halves_of
from radiodata.ingest.items import Item, Subject
from radiodata.ingest.nifti import NiftiFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

Files: TypeAlias = "str | Path | Sequence[str | Path]"
SubjectRule: TypeAlias = "str | Callable[[Path], str] | None"
LABEL_NAMES = re.compile(r"(^|_)(seg|segs|segmentation|label|labels|mask|masks|roi|rois|gt|organs?)(_|\d|$)", re.I)


def is_label_name(name: str) -> bool:
    """Whether a collection of this name holds labels, as ``seg``, ``labels`` or ``liver_mask`` do."""
    return LABEL_NAMES.search(name) is not None


def find_files(files: Files) -> list[Path]:
    """Paths of a glob, of a folder's NIfTI files, or of a list; hidden files left out, and of pairs the .img files."""
    if isinstance(files, str | Path):
        text = str(files)
        if Path(text).is_dir():
            found = [p for p in Path(text).iterdir() if p.name.endswith(SUFFIXES)]
        else:
            found = [Path(p) for p in glob.glob(text, recursive=True)]  # noqa: PTH207 (absolute patterns)
        return sorted({halves_of(p)[0] for p in found if not p.name.startswith(".")})
    return list(dict.fromkeys(halves_of(Path(p))[0] for p in files))


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
    stem = re.sub(r"\.(nii|hdr|img)(\.gz)?$", "", path.name, flags=re.I)
    bids = re.match(r"sub-[A-Za-z0-9]+", stem)
    return bids[0] if bids else re.sub(r"(?<=.)_\d{4}$", "", stem)


def _rule(rule: str) -> re.Pattern[str]:
    try:
        return re.compile(rule)
    except re.error as error:
        raise ConfigError(f"the subject rule {rule!r} is no regular expression: {error}") from error


def group_subjects(
    images: Mapping[str, Files], rule: SubjectRule, obs_meta: pd.DataFrame | None
) -> tuple[list[Subject], list[Problem]]:
    """Subjects that nothing is wrong with, and every reason why others cannot be taken."""
    problems: list[Problem] = []
    by_subject: dict[str, dict[str, Path]] = {}
    refused: set[str] = set()
    for name, files in images.items():
        found = find_files(files)
        if not found:
            problems.append(Problem(f"collection {name!r}", f"no file matches {files}"))
        for path in found:
            refused |= _place(by_subject, problems, name, path, rule)
    rows = None if obs_meta is None else {str(i) for i in obs_meta.index}
    for subject, files_of in by_subject.items():
        missing = [n for n in images if n not in files_of]
        if missing:
            have = ", ".join(str(p) for p in files_of.values())
            why = f"has no file in {', '.join(missing)} (has {have}); see `subject_id` if names differ"
            problems.append(Problem(subject, why))
            refused.add(subject)
        if rows is not None and subject not in rows:
            problems.append(Problem(subject, "has files but no row in obs_meta"))
            refused.add(subject)
    unfiled = sorted((rows or set()) - set(by_subject))
    problems += [Problem(s, "has a row in obs_meta but no file: drop the row, or add its files") for s in unfiled]
    kept = sorted(s for s in by_subject if s not in refused)
    return [Subject(s, _items(s, by_subject[s])) for s in kept], problems


def _items(subject: str, files: Mapping[str, Path]) -> tuple[Item, ...]:
    return tuple(Item(f"{subject}_{name}", name, NiftiFile(path)) for name, path in files.items())


def _place(
    by_subject: dict[str, dict[str, Path]], problems: list[Problem], name: str, path: Path, rule: SubjectRule
) -> set[str]:
    """Give a file to its subject, or say why not; subjects that cannot be taken for it."""
    try:
        subject = subject_of(path, rule)
        f"{path} {subject}".encode()
    except ConfigError as error:
        problems.append(Problem(str(path), str(error)))
        return set()
    except UnicodeEncodeError:
        problems.append(Problem(ascii(str(path)), "its name is not UTF-8: rename the file"))
        return set()
    if not subject:
        problems.append(Problem(str(path), "its subject id is empty: see `subject_id`"))
        return set()
    taken = by_subject.setdefault(subject, {})
    if name in taken:
        why = f"subject id {subject!r} is also that of {taken[name]}: say `subject_id` so that ids are unique"
        problems.append(Problem(str(path), why))
        return {subject}
    taken[name] = path
    return set()
