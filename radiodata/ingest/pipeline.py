"""Ingestion of NIfTI files: check all headers, then write subject by subject, rows last."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from radiodata.errors import ConfigError, IngestError, Problem, RadiodataError
from radiodata.ingest.discover import SubjectFiles, check_headers, group_subjects, is_label_name
from radiodata.ingest.runs import begin_run, clean_abandoned, clean_run, end_run
from radiodata.ingest.target import Target
from radiodata.ingest.volume import Slot, Written, write_file
from radiodata.store import layout
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.obs import RUN, SUBJECT
from radiodata.store.table import infer_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    import pandas as pd

    from radiodata.ingest.discover import Files, SubjectRule
    from radiodata.store.config import TilingLike

_BATCH = 16


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did: subjects added, and those that were there already."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)


def ingest_niftis(
    uri: str,
    images: Mapping[str, Files],
    *,
    obs_meta: pd.DataFrame | None = None,
    validate_alignment: bool = True,
    subject_id: SubjectRule = None,
    tiling: TilingLike = "isotropic",
    config: StoreConfig | None = None,
    labels: Collection[str] | None = None,
    workers: int = 2,
    exist: Literal["error", "continue"] = "continue",
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Ingest NIfTI files into the cohort at `uri`.

    Every header is read before anything is written: files that are not NIfTI, volumes that do not align,
    ids that occur twice and subjects that lack a file are refused together. A file that turns out damaged
    when it is read whole is refused with its subject; the other subjects are kept, whole, and a rerun goes
    on from there.

    Parameters
    ----------
    uri
        Where the cohort is, or is to be.
    images
        Collection name to a glob, a folder, or a list of paths: ``{"CT": "imagesTr/*.nii.gz", "seg": "labelsTr"}``.
    obs_meta
        One row a subject, indexed by subject id (or with a column ``obs_subject_id``).
    validate_alignment
        Demand that all volumes of a subject have one shape and one affine (0.05 mm at the corners).
    subject_id
        How a path gives its subject id: a regular expression or a callable; see ``subject_of``.
    tiling
        See ``StoreConfig``; `config`, where given, says everything about the layout.
    labels
        Collections that hold labels; by default those named as labels are (``seg``, ``label``, ``mask``).
    workers
        Threads that read, compress and write.
    exist
        ``"error"`` refuses a cohort that is there; ``"continue"`` adds to it and passes over files that it
        holds already, by content.
    progress
        Called with (subjects done, subjects in all).

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When arguments are at odds with each other or with the cohort.
    """
    config = replace(config or StoreConfig(), tiling=config.tiling if config else tiling)
    table = _table(obs_meta)
    target = Target(uri, _kinds(images, labels), table, config, ReadConfig())
    there = layout.cohort_exists(uri, target.ctx)
    if there and exist == "error":
        raise ConfigError(f"a cohort exists at {uri}: choose another URI, or add to it with `radiodata ingest`")
    subjects, problems = group_subjects(images, subject_id, table)
    if not problems:
        problems = check_headers(subjects, aligned=validate_alignment, workers=workers, orient=config.orient)
    if problems:
        raise IngestError(f"nothing was written to {uri}", problems)
    if there:
        clean_abandoned(uri, target.ctx)
    todo, present = target.check(subjects) if there else (subjects, [])
    if not todo:
        return IngestReport([], present)
    target.create()
    target.disown(todo)
    added, problems = _run(target, todo, workers, progress)
    if problems:
        raise IngestError(
            f"{len(added)} subjects were ingested into {uri}, {len(todo) - len(added)} were refused whole",
            problems,
        )
    return IngestReport(added, present)


def _kinds(images: Mapping[str, Files], labels: Collection[str] | None) -> dict[str, str]:
    unknown = sorted(set(labels or ()) - set(images))
    if unknown or not images:
        raise ConfigError(f"labels {unknown} are no collections" if unknown else "no collection was given")
    chosen = labels if labels is not None else [n for n in images if is_label_name(n)]
    return {layout.check_name(n): "label" if n in chosen else "image" for n in images}


def _table(obs_meta: pd.DataFrame | None) -> pd.DataFrame | None:
    if obs_meta is None:
        return None
    frame = obs_meta.set_index(SUBJECT) if SUBJECT in obs_meta.columns else obs_meta.copy()
    frame.index = frame.index.astype(str)
    twice = sorted(set(frame.index[frame.index.duplicated()]))
    if twice:
        raise ConfigError(f"obs_meta has more than one row for {', '.join(twice[:10])}: one row a subject")
    if RUN in frame.columns:
        raise ConfigError(f"obs_meta has a column {RUN!r}, which the store keeps for itself: rename it")
    infer_columns(frame)
    return frame


def _run(
    target: Target, subjects: Sequence[SubjectFiles], workers: int, progress: Callable[[int, int], None] | None
) -> tuple[list[str], list[Problem]]:
    """Write subjects under the mark of a run; what was refused or cut short leaves nothing behind."""
    run, problems = begin_run(target.uri, target.ctx), None
    try:
        added, problems = _write_all(target, run, subjects, workers, progress)
        target.optimize(run)
    finally:
        if problems is None or problems:
            clean_run(target.uri, run, target.ctx)
        end_run(target.uri, run, target.ctx)
    done = set(added)
    return [s.subject for s in subjects if s.subject in done], sorted(problems, key=lambda p: p.where)


def _write_all(
    target: Target,
    run: str,
    subjects: Sequence[SubjectFiles],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[str], list[Problem]]:
    added: list[str] = []
    problems: list[Problem] = []
    batch: list[tuple[str, list[Written]]] = []
    # closing: where this fails, no thread may go on writing while the run is cleaned
    with closing(_written(target, run, subjects, workers)) as outcomes:
        for done, (subject, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                batch.append((subject, outcome))
            if batch and (len(batch) >= _BATCH or done == len(subjects)):
                target.commit(batch, run)
                added += [s for s, _ in batch]
                batch = []
            if progress is not None:
                progress(done, len(subjects))
    return added, problems


def _written(
    target: Target, run: str, subjects: Sequence[SubjectFiles], workers: int
) -> Generator[tuple[str, list[Written] | Problem], None, None]:
    """Write subjects in threads, at most two waiting a worker, and give them as they are done."""
    waiting = iter(enumerate(subjects))
    running: set[Future[tuple[str, list[Written] | Problem]]] = set()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        while True:
            for index, subject in waiting:
                running.add(pool.submit(_write_subject, target, run, index, subject))
                if len(running) >= 2 * workers:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_subject(target: Target, run: str, index: int, subject: SubjectFiles) -> tuple[str, list[Written] | Problem]:
    written = []
    for name, path in subject.files.items():
        slot = Slot(name, target.collection(name), target.kinds[name], run, index)
        try:
            written.append(write_file(path, subject.subject, slot, target.config, target.read))
        except RadiodataError as error:
            return subject.subject, Problem(str(path), str(error))
    return subject.subject, written
