"""Ingestion of NIfTI files: check all headers, then write subject by subject, rows last."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from radiodata.errors import ConfigError, IngestError, Problem, RadiodataError
from radiodata.ingest.discover import SubjectFiles, check_headers, group_subjects, is_label_name
from radiodata.ingest.target import Target
from radiodata.ingest.volume import Slot, Written, write_file
from radiodata.store import commits, layout
from radiodata.store.columns import infer_columns
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.obs import SUBJECT
from radiodata.store.runs import clean_abandoned
from radiodata.store.writing import Batches, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping, Sequence

    import pandas as pd

    from radiodata.ingest.discover import Files, SubjectRule
    from radiodata.store.config import TilingLike
    from radiodata.store.record import Record


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
    tiling: TilingLike | None = None,
    config: StoreConfig | None = None,
    read: ReadConfig | None = None,
    labels: Collection[str] | None = None,
    workers: int = 2,
    exist: Literal["error", "continue"] = "continue",
    atomic: bool = False,
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
        See ``StoreConfig``; `config`, where given, says everything about the layout. By default that of a cohort
        that is there, else as the environment says (see ``StoreConfig.from_env``).
    read
        How TileDB writes, and the key of a cohort that is, or is to be, encrypted; by default as the environment says.
    labels
        Collections that hold labels; by default those named as labels are (``seg``, ``label``, ``mask``).
    workers
        Threads that read, compress and write.
    atomic
        Take all subjects or none, in one commit; by default subjects that could be taken stay.
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
    table = _table(obs_meta)
    kinds = _kinds(images, labels)
    target = Target(uri, kinds, table, _config(config, tiling), read or ReadConfig.from_env())
    there = target.latest()
    if there and exist == "error":
        raise ConfigError(f"a cohort exists at {uri}: choose another URI, or add to it with `radiodata ingest`")
    if there and config is None and tiling is None:
        target = replace(target, config=_config_of(there, kinds, target.config))
    subjects, problems = group_subjects(images, subject_id, table)
    if not problems:
        aligned = validate_alignment
        problems = check_headers(subjects, aligned=aligned, workers=workers, orient=target.config.orient)
    if problems:
        raise IngestError(f"nothing was written to {uri}", problems)
    if there:
        clean_abandoned(uri, target.read)
    checked = commits.settled(uri, target.read, lambda record: target.check(subjects, record)) if there else None
    todo, present = checked or (subjects, [])
    if not todo:
        return IngestReport([], present)
    target.create()
    added, problems = _run(target, todo, workers, atomic, progress)
    if problems and atomic:
        raise IngestError(f"nothing was written to {uri}", problems)
    if problems:
        raise IngestError(
            f"{len(added)} subjects were ingested into {uri}, {len(todo) - len(added)} were refused whole",
            problems,
        )
    return IngestReport(added, present)


def _config(config: StoreConfig | None, tiling: TilingLike | None) -> StoreConfig:
    if config is not None:
        return config
    return StoreConfig.from_env() if tiling is None else StoreConfig.from_env(tiling=tiling)


def _config_of(there: Record, kinds: Mapping[str, str], default: StoreConfig) -> StoreConfig:
    """Tiles of the collections that are there, where nothing else was asked for."""
    tiles = {there.collections[name].tile for name in kinds if name in there.collections}
    tiles = tiles or {collection.tile for collection in there.collections.values()}
    return replace(default, tiling=tiles.pop()) if len(tiles) == 1 else default


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
    infer_columns(frame)
    return frame


def _run(
    target: Target,
    subjects: Sequence[SubjectFiles],
    workers: int,
    atomic: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[str], list[Problem]]:
    """Write subjects in a run; what was refused or cut short leaves nothing behind."""
    with Writer(target.uri, target.read) as writer:
        folders = target.folders(writer, begin=not atomic)
        added, problems = _write_all(target, writer, folders, subjects, workers, atomic, progress)
        if not (atomic and problems):
            target.optimize(writer)
        writer.clean = bool(problems)
    done = set(added)
    return [s.subject for s in subjects if s.subject in done], sorted(problems, key=lambda p: p.where)


def _write_all(
    target: Target,
    writer: Writer,
    folders: dict[str, str],
    subjects: Sequence[SubjectFiles],
    workers: int,
    atomic: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[str], list[Problem]]:
    """Write subjects, and commit those that are whole: as they come, or all at the end."""
    added: list[str] = []
    problems: list[Problem] = []

    def commit(ready: list[tuple[str, list[Written]]]) -> None:
        writer.commit(f"ingest {len(ready)} subjects", lambda draft: target.add(draft, folders, ready))
        added.extend(subject for subject, _ in ready)

    batches = Batches(commit)
    whole: list[tuple[str, list[Written]]] = []
    # closing: where this fails, no thread may go on writing while the run is cleaned
    with closing(_written(target, writer.run, folders, subjects, workers)) as outcomes:
        for done, (subject, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            elif atomic:
                whole.append((subject, outcome))
            else:
                batches.add((subject, outcome))
            if progress is not None and done < len(subjects):
                progress(done, len(subjects))
    if whole and not problems:
        commit(whole)
    batches.flush()
    if progress is not None:
        progress(len(subjects), len(subjects))
    return added, problems


def _written(
    target: Target, run: str, folders: dict[str, str], subjects: Sequence[SubjectFiles], workers: int
) -> Generator[tuple[str, list[Written] | Problem], None, None]:
    """Write subjects in threads, at most two waiting a worker, and give them as they are done."""
    waiting = iter(enumerate(subjects))
    running: set[Future[tuple[str, list[Written] | Problem]]] = set()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        while True:
            for index, subject in waiting:
                running.add(pool.submit(_write_subject, target, run, folders, index, subject))
                if len(running) >= 2 * workers:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_subject(
    target: Target, run: str, folders: dict[str, str], index: int, subject: SubjectFiles
) -> tuple[str, list[Written] | Problem]:
    written = []
    for name, path in subject.files.items():
        slot = Slot(name, layout.join(target.uri, folders[name]), target.kinds[name], run, index)
        try:
            written.append(write_file(path, subject.subject, slot, target.config, target.read))
        except RadiodataError as error:
            return subject.subject, Problem(str(path), str(error))
    return subject.subject, written
