"""A cohort as a folder of NIfTI files and a table, as it can be ingested again."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from radiodata.errors import ConfigError, ExportError, Problem, RadiodataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.store.cohort import Cohort
    from radiodata.store.volume import Volume

TABLE = "participants.tsv"


@dataclass(frozen=True)
class Exported:
    """What an export did: files written, and volumes that could not be."""

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def export(
    cohort: Cohort,
    folder: str | Path,
    *,
    collections: Sequence[str] | None = None,
    suffix: str = ".nii.gz",
    overwrite: bool = False,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Write ``FOLDER/COLLECTION/SUBJECT.nii.gz`` of every volume of a cohort or view, and ``participants.tsv``.

    Volumes that were ingested from NIfTI come back as they were (see ``Volume.to_nifti``). Where a subject has several
    volumes in a collection, files are named by ``obs_id``. What a file name cannot hold is percent-encoded.

    Parameters
    ----------
    collections
        Which; by default all.
    suffix
        ``".nii.gz"`` or ``".nii"``.
    overwrite
        Replace files that are there; by default they are refused before anything is written.
    workers
        Threads; each holds one volume in memory.
    progress
        Called with (volumes done, volumes in all).

    Raises
    ------
    ConfigError
        When files are there.
    ObsNotFoundError
        When there is no such collection.
    """
    root = Path(folder)
    jobs: list[tuple[Volume, Path]] = []
    for name in cohort.collections if collections is None else collections:
        collection = cohort[name]
        several = Counter(collection.obs["obs_subject_id"])
        for volume in collection:
            stem = volume.obs_subject_id if several[volume.obs_subject_id] == 1 else volume.obs_id
            jobs.append((volume, root / name / f"{_file_name(stem)}{suffix}"))
    there = [path for path in (root / TABLE, *(path for _, path in jobs)) if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{len(there)} files are there, the first {there[0]}: choose another folder, or overwrite")
    done = Exported()
    with ThreadPoolExecutor(workers, thread_name_prefix="radiodata-export") as pool:
        for number, (path, problem) in enumerate(pool.map(_write, jobs), 1):
            if problem is None:
                done.files.append(path)
            else:
                done.problems.append(problem)
            if progress is not None:
                progress(number, len(jobs))
    root.mkdir(parents=True, exist_ok=True)
    cohort.obs_meta.to_csv(root / TABLE, sep="\t", index_label="obs_subject_id", na_rep="n/a")
    done.files.append(root / TABLE)
    return done


def _write(job: tuple[Volume, Path]) -> tuple[Path, Problem | None]:
    volume, path = job
    try:
        return volume.to_nifti(path), None
    except (RadiodataError, OSError) as error:
        return path, Problem(volume.obs_id, str(error))


def _file_name(stem: str) -> str:
    name = quote(stem, safe=" !#$&'()+,;=@[]{}^`~")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name.encode()) > 240:
        raise ExportError(f"the id {stem!r} is too long for a file name")
    return name
