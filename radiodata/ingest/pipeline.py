"""The way into a cohort: check all headers, then write subject by subject, rows last."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from radiodata.errors import ConfigError, IngestError, Problem, WorkerDiedError
from radiodata.executors import Submit, of_caller, processes, threads
from radiodata.ingest.checks import check_grids
from radiodata.ingest.job import Job
from radiodata.ingest.options import Options, check_options
from radiodata.ingest.preparing import Preparation
from radiodata.ingest.report import IngestReport, planned
from radiodata.ingest.target import Target, columns_of
from radiodata.store import commits
from radiodata.store.config import ReadConfig, StoreConfig
from radiodata.store.runs import clean_abandoned, mark_of
from radiodata.store.writing import Batches, Writer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from radiodata.ingest.checks import Checked
    from radiodata.ingest.items import Inputs, Subject
    from radiodata.ingest.job import Outcome
    from radiodata.ingest.volume import Written
    from radiodata.store.record import Record

FEW = 16
"""Fewer subjects are written by threads: processes take seconds to begin."""


def ingest(uri: str, inputs: Inputs, options: Options) -> IngestReport:
    """Write volumes into the cohort at `uri`; see ``ingest_niftis``.

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When options are at odds with each other or with the cohort.
    """
    check_options(options)
    target, there = _target(uri, inputs, options)
    workers, skip = options.get("workers", 2), options.get("on_error") == "skip"
    refused = list(inputs.problems)
    if refused and not skip:
        raise IngestError(f"nothing was written to {uri}", refused)
    checked = check_grids(inputs.subjects, aligned=inputs.aligned, workers=workers, orient=target.config.orient)
    refused += [problem for one in checked for problem in one.problems]
    if refused and not skip:
        raise IngestError(f"nothing was written to {uri}", refused)
    good = [one for one in checked if not one.problems]
    notes = [*inputs.notes, *(note for one in good for note in one.notes)]
    dry = options.get("dry_run", False)
    if there and not dry:
        clean_abandoned(uri, target.read)
    todo, present, changed = _lacking(target, good, there, workers)
    if changed and not skip:
        raise IngestError(f"nothing was written to {uri}", [p for problems in changed.values() for p in problems])
    refused += [problem for problems in changed.values() for problem in problems]
    kept = [(one.subject, one.grids) for one in good if one.subject.subject not in changed]
    report = IngestReport([s.subject for s in todo], present, refused, notes, planned(kept, todo, dict(target.kinds)))
    if dry or not todo:
        return report
    target.create()
    return _ingest(target, todo, report, options)


def _target(uri: str, inputs: Inputs, options: Options) -> tuple[Target, Record | None]:
    """The cohort that is written to, and its latest version, if it is there."""
    config, tiling = options.get("config"), options.get("tiling")
    if config is None:
        config = StoreConfig.from_env() if tiling is None else StoreConfig.from_env(tiling=tiling)
    if "orient" in options:
        config = replace(config, orient=options["orient"])
    if "dtype" in options:
        config = replace(config, dtype=options["dtype"])
    read = options.get("read") or ReadConfig.from_env()
    preparation = Preparation(options.get("crop_foreground"), options.get("spacing"), options.get("window"))
    target = Target(uri, inputs.kinds, inputs.table, config, read, preparation, columns_of(inputs.subjects))
    there = target.latest()
    if there and options.get("exist") == "error":
        raise ConfigError(f"a cohort exists at {uri}: choose another URI, or add to it with `radiodata ingest`")
    if there and options.get("config") is None and tiling is None:
        target = replace(target, config=_config_of(there, inputs.kinds, config))
    return target, there


def _config_of(there: Record, kinds: Mapping[str, str], default: StoreConfig) -> StoreConfig:
    """Tiles of the collections that are there, where nothing else was asked for."""
    tiles = {there.collections[name].tile for name in kinds if name in there.collections}
    tiles = tiles or {collection.tile for collection in there.collections.values()}
    return replace(default, tiling=tiles.pop()) if len(tiles) == 1 else default


def _lacking(
    target: Target, good: Sequence[Checked], there: Record | None, workers: int
) -> tuple[list[Subject], list[str], dict[str, list[Problem]]]:
    subjects = [one.subject for one in good]
    if there is None:
        return subjects, [], {}
    found: Any = commits.settled(target.uri, target.read, lambda record: target.check(subjects, record, workers))
    return found or (subjects, [], {})


def _ingest(target: Target, todo: Sequence[Subject], report: IngestReport, options: Options) -> IngestReport:
    atomic = options.get("atomic", False)
    added, problems, notes = _run(target, todo, atomic, options)
    refused = sorted([*report.refused, *problems], key=lambda p: p.where)
    if problems and atomic:
        raise IngestError(f"nothing was written to {target.uri}", problems)
    if problems and options.get("on_error") != "skip":
        summary = f"{len(added)} subjects were ingested into {target.uri}, {len(todo) - len(added)} were refused whole"
        raise IngestError(summary, refused)
    gone = {s.subject for s in todo} - set(added)
    volumes = report.volumes[~report.volumes["subject"].isin(gone)].reset_index(drop=True)
    return replace(report, added=added, refused=refused, notes=[*report.notes, *notes], volumes=volumes)


def _run(
    target: Target, subjects: Sequence[Subject], atomic: bool, options: Options
) -> tuple[list[str], list[Problem], list[Problem]]:
    """Write subjects in a run; what was refused or cut short leaves nothing behind."""
    with Writer(target.uri, target.read) as writer:
        folders = target.folders(writer, begin=not atomic)
        mark = mark_of(target.uri, writer.run, writer.ctx)
        job = Job(target.uri, target.kinds, folders, writer.run, mark, target.config, target.read, target.preparation)
        added, problems, notes = _write_all(target, writer, job, subjects, atomic, options)
        if not (atomic and problems):
            target.optimize(writer)
        writer.clean = bool(problems)
    done = set(added)
    return [s.subject for s in subjects if s.subject in done], sorted(problems, key=lambda p: p.where), notes


def _write_all(
    target: Target, writer: Writer, job: Job, subjects: Sequence[Subject], atomic: bool, options: Options
) -> tuple[list[str], list[Problem], list[Problem]]:
    """Write subjects, and commit those that are whole: as they come, or all at the end."""
    added: list[str] = []
    problems: list[Problem] = []
    notes: list[Problem] = []
    tell = options.get("progress") or _silent

    def commit(ready: list[tuple[str, list[Written]]]) -> None:
        writer.commit(f"ingest {len(ready)} subjects", lambda draft: target.add(draft, job.folders, ready))
        added.extend(subject for subject, _ in ready)
        notes.extend(note for _, written in ready for one in written for note in one.notes)

    batches = Batches(commit)
    whole: list[tuple[str, list[Written]]] = []
    # closing: where this fails, no worker may go on writing while the run is cleaned
    with _submitting(options, len(subjects)) as pool, closing(_written(pool, job, subjects)) as outcomes:
        for done, (subject, outcome) in enumerate(outcomes, 1):
            if isinstance(outcome, Problem):
                problems.append(outcome)
            elif atomic:
                whole.append((subject, outcome))
            else:
                batches.add((subject, outcome))
            if done < len(subjects):
                tell(done, len(subjects))
    if whole and not problems:
        commit(whole)
    batches.flush()
    tell(len(subjects), len(subjects))
    return added, problems, notes


def _silent(done: int, total: int) -> None:
    """Tell nobody."""


def _submitting(options: Options, subjects: int) -> AbstractContextManager[Submit]:
    executor, workers = options.get("executor"), min(options.get("workers", 2), max(subjects, 1))
    if executor is None:
        executor = "threads" if subjects < FEW else "processes"
    if executor == "threads":
        return threads(workers)
    if executor == "processes":
        return processes(workers)
    if isinstance(executor, str):
        raise ConfigError(f"executor={executor!r}: 'processes', 'threads', an executor, or a Dask client")
    return nullcontext(of_caller(executor, workers))


def _written(pool: Submit, job: Job, subjects: Sequence[Subject]) -> Generator[Outcome, None, None]:
    """Have subjects written, at most two waiting a worker, and give them as they are done."""
    waiting = _numbered(subjects)
    running: dict[Future[Outcome], str] = {}
    try:
        while True:
            for subject, places in waiting:
                running[pool.submit(job.write, subject, places)] = subject.subject
                if len(running) >= 2 * pool.workers:
                    break
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                outcome = future.result()
                del running[future]
                yield outcome
    except BrokenExecutor as error:
        raise WorkerDiedError(
            f"a worker of the ingest died ({error}); subjects under way: {sorted(running.values())}. It may have run "
            "out of memory: take fewer workers. What was committed stays; run again to go on"
        ) from error
    finally:
        for future in running:
            future.cancel()
        wait(running)


def _numbered(subjects: Sequence[Subject]) -> Iterator[tuple[Subject, tuple[int, ...]]]:
    """Give each volume its number in its collection."""
    counts: dict[str, int] = {}
    for subject in subjects:
        places = []
        for item in subject.items:
            places.append(counts.setdefault(item.collection, 0))
            counts[item.collection] += 1
        yield subject, tuple(places)
