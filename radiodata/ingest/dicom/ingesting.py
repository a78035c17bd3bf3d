"""Ingestion of DICOM: series to volumes, segmentations and structure sets to labels, patients to subjects."""

from __future__ import annotations

import json
import logging
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.dicom.privacy import Privacy, burned_in, key_file
from radiodata.ingest.dicom.reading import read_series
from radiodata.ingest.dicom.sources import LabelSource, StackSource
from radiodata.ingest.items import Inputs, Item, Subject
from radiodata.ingest.niftis import subject_table
from radiodata.ingest.pipeline import ingest
from radiodata.store import commits, layout
from radiodata.store.config import ReadConfig
from radiodata.store.context import context
from radiodata.store.obs import OBS_ID
from radiodata.store.segments import read_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    import pydicom

    from radiodata.ingest.dicom.labels import LabelFile
    from radiodata.ingest.dicom.reading import Found, Irregular, Series
    from radiodata.ingest.dicom.stacks import Stack
    from radiodata.ingest.options import Options
    from radiodata.ingest.report import IngestReport

_LOG = logging.getLogger("radiodata")


def ingest_dicom(
    uri: str,
    roots: str | Path | Sequence[str | Path],
    *,
    privacy: Privacy | None = None,
    collections: Mapping[str, str] | None = None,
    label_values: Mapping[str, int] | None = None,
    irregular: Irregular = "refuse",
    obs_meta: pd.DataFrame | None = None,
    **options: Unpack[Options],
) -> IngestReport:
    """Ingest DICOM series, and the segmentations and structure sets drawn on them, into the cohort at `uri`.

    Every stack of a series is a volume of its own, in the collection of its modality (``CT``, ``MR``, ``PT``).
    Segmentations (``SEG``) and structure sets (``RTSTRUCT``) are label volumes on the grid of the series that they
    refer to; the column ``references`` names it, and ``label_names`` gives the value of each name.

    Parameters
    ----------
    uri
        Where the cohort is, or is to be.
    roots
        Folders, files, zip and tar archives.
    privacy
        What becomes of identifying attributes; by default subjects and UIDs are hashed with the key in the file
        ``URI.key``, which is made where there is none and must be kept, for later ingests hash with it.
    collections
        Name to a regular expression, for series whose SeriesDescription or ProtocolName it is found in (whatever the
        case); the first that fits is taken, else the modality.
    label_values
        Name to value of labels to be taken (whatever the case); others are left out, and told of. By default all are,
        with the values that the cohort gave them, and new ones in the order of the alphabet. Ingests into one cohort
        that run at the same time number new names each for itself: say values there.
    irregular
        ``"refuse"`` or ``"keep"`` volumes with gaps or unequal steps; see ``read_series``.
    obs_meta
        One row a subject, indexed by subject id (see ``Privacy.subject``).
    **options
        See ``Options``.

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When arguments are at odds with each other or with the cohort.
    """
    kept = privacy or Privacy(default_key(uri, dry_run=options.get("dry_run", False)))
    if kept.identify or kept.keep:
        _LOG.warning(
            "%s: %s will be stored as they are: whoever reads the store may know who the patients are",
            uri,
            "PatientID, UIDs, dates and paths" if kept.identify else ", ".join(kept.keep),
        )
    paths = [roots] if isinstance(roots, str) or not hasattr(roots, "__iter__") else list(roots)
    executor = options.get("executor")
    found = read_series(*paths, irregular=irregular, executor=None if isinstance(executor, str) else executor)
    gathered = _Gathered(kept, _rules(collections))
    for series in found.series:
        gathered.add_series(series)
    gathered.add_labels(found, _values(uri, found.labels, label_values, options.get("read")), bool(label_values))
    table = subject_table(obs_meta)
    subjects, problems = gathered.subjects(table)
    inputs = Inputs(gathered.kinds, subjects, [*found.problems, *problems], [*found.skipped, *gathered.notes], table)
    if not gathered.kinds and not inputs.problems:
        raise ConfigError(f"no DICOM file lies in {', '.join(str(p) for p in paths)}")
    return ingest(uri, inputs, options)


class _Gathered:
    """Items of each subject, as they are found."""

    def __init__(self, privacy: Privacy, rules: Sequence[tuple[str, re.Pattern[str]]]) -> None:
        self._privacy, self._rules = privacy, rules
        self._items: dict[str, dict[str, Item]] = {}
        self._stacks: dict[str, list[tuple[str, str, Stack]]] = {}
        self.kinds: dict[str, str] = {}
        self.problems: list[Problem] = []
        self.notes: list[Problem] = []

    def add_series(self, series: Series) -> None:
        """Add the stacks of a series."""
        for stack in series.stacks:
            source = StackSource(stack, self._uri(series.uid, stack.frames[0][0].source))
            try:
                subject = self._privacy.subject(series.header)
                name = self._collection(series.header)
            except ConfigError as error:
                self.problems.append(Problem(source.where, str(error)))
                continue
            obs_id = f"{subject}_{name}_{self._privacy.hashed('stack', _key_of(stack), 8)}"
            columns = {**self._privacy.columns(series.header), **_own(stack)}
            if (why := burned_in(series.header)) is not None:
                self.notes.append(Problem(source.where, why))
            self._put(subject, Item(obs_id, name, source, alone=False, columns=columns), "image")
            self._stacks.setdefault(series.uid, []).append((subject, obs_id, stack))

    def add_labels(self, found: Found, values: Mapping[str, Mapping[str, int]], chosen: bool) -> None:
        """Add segmentations and structure sets, each on the stack that it refers to."""
        for file in found.labels:
            stacks = [stack for uid in file.series for stack in self._stacks.get(uid, [])]
            several = [s for s in stacks if s[2].shape[3] > 1] or stacks
            alone = file.kind == "SEG" and not several
            if len(several) != 1 and not alone:
                self.problems.append(Problem(str(file.source), _astray(file, len(several))))
                continue
            try:
                subject, references, stack = (self._privacy.subject(file.header), None, None) if alone else several[0]
            except ConfigError as error:
                self.problems.append(Problem(str(file.source), str(error)))
                continue
            mine = values[file.kind]
            taken = tuple((number, mine[name.lower()]) for number, name in file.names if name.lower() in mine)
            if left := [name for _, name in file.names if name.lower() not in mine]:
                self.notes.append(Problem(str(file.source), f"labels {left} are left out: no value was given for them"))
            if chosen and not taken:
                continue
            obs_id = f"{subject}_{file.kind}_{self._privacy.hashed('label', file.uid, 8)}"
            names = dict(file.names)
            columns = {
                **self._privacy.columns(file.header),
                "references": references,
                "label_names": json.dumps({names[number]: value for number, value in taken}),
                "overlapping_voxels": 0,
            }
            source = LabelSource(file, stack, taken, self._uri(file.uid, file.source))
            self._put(subject, Item(obs_id, file.kind, source, alone=False, columns=columns), "label")

    def subjects(self, table: pd.DataFrame | None) -> tuple[list[Subject], list[Problem]]:
        """Subjects in the order of their ids, and what is wrong."""
        problems, rows = list(self.problems), None if table is None else set(table.index)
        made = []
        for subject, items in sorted(self._items.items()):
            if rows is not None and subject not in rows:
                problems.append(Problem(subject, "has files but no row in obs_meta"))
            else:
                made.append(Subject(subject, tuple(items[obs_id] for obs_id in sorted(items))))
        return made, problems

    def _put(self, subject: str, item: Item, kind: str) -> None:
        if self.kinds.setdefault(item.collection, kind) != kind:
            why = f"collection {item.collection!r} is to hold images and labels: give `collections` other names"
            self.problems.append(Problem(item.source.where, why))
            return
        held = self._items.setdefault(subject, {}).setdefault(item.obs_id, item)
        if held is item:
            return
        if held.source.digest() == item.source.digest():
            self.notes.append(Problem(item.source.where, f"a copy of {held.source.where} was left out"))
        else:
            why = f"nothing in its header tells it from {held.source.where}, but its pixels do"
            self.problems.append(Problem(item.source.where, why))

    def _collection(self, header: pydicom.Dataset) -> str:
        told = [str(header.get(name) or "") for name in ("SeriesDescription", "ProtocolName")]
        for name, rule in self._rules:
            if any(rule.search(text) for text in told):
                return name
        return layout.check_name(re.sub(r"\W+", "_", str(header.get("Modality") or "OT")))

    def _uri(self, uid: str, source: Any) -> str:
        return str(source) if self._privacy.identify else f"dicom:{self._privacy.uid(uid)}"


def default_key(uri: str, *, dry_run: bool = False) -> bytes:
    """Key in the file beside a cohort on this machine, made where there is none; of a dry run one that is not kept.

    Raises
    ------
    ConfigError
        When the cohort is elsewhere.
    """
    if "://" in uri and not uri.startswith("file://"):
        raise ConfigError(
            f"the key that hides patients is kept beside a cohort on this machine, but {uri} is elsewhere: give "
            "privacy=Privacy(key_file(PATH)), or --key-file PATH"
        )
    place = Path(uri.removeprefix("file://").rstrip("/") + ".key")
    return secrets.token_bytes(32) if dry_run and not place.exists() else key_file(place)


def _rules(collections: Mapping[str, str] | None) -> list[tuple[str, re.Pattern[str]]]:
    made = []
    for name, text in (collections or {}).items():
        try:
            made.append((layout.check_name(name), re.compile(text, re.I)))
        except re.error as error:
            raise ConfigError(f"the rule {text!r} of collection {name!r} is no regular expression: {error}") from error
    return made


def _key_of(stack: Stack) -> str:
    """What tells a stack from others of its series, whatever files are there beside it."""
    first = stack.frames[0][0]
    axes = None if first.axes is None else (first.axes + 0.0).round(3).tolist()
    return repr((stack.series, first.apart, first.shape, tuple(round(s, 4) for s in first.spacing), axes))


def _own(stack: Stack) -> dict[str, Any]:
    """Columns that stacks of one series differ in."""
    kind, component, echo, *_ = stack.frames[0][0].apart
    own = {"echo_time": echo, "component": component or "\\".join(kind) or None}
    own["irregular"] = "; ".join(stack.grave) or None
    return {name: value for name, value in own.items() if value is not None}


def _astray(file: LabelFile, stacks: int) -> str:
    if not file.series:
        return f"is a {file.kind} that does not tell which series it is drawn on"
    if stacks:
        return f"is a {file.kind} drawn on a series that is {stacks} volumes: it does not tell which"
    return f"is a {file.kind} drawn on series {', '.join(file.series)}, which is not among the volumes that are taken"


def _values(
    uri: str, files: Sequence[LabelFile], given: Mapping[str, int] | None, read: ReadConfig | None
) -> dict[str, dict[str, int]]:
    """Value of each name of a label, in lower case, by kind of file: as given, as the cohort has it, or new."""
    if given is not None:
        low = {name.lower(): int(value) for name, value in given.items()}
        if len(low) < len(given) or any(not 0 < value < 65_536 for value in low.values()):
            raise ConfigError(f"label_values={dict(given)}: each name once, with a value from 1 to 65535")
        return {"SEG": low, "RTSTRUCT": low}
    made = {}
    for kind in ("SEG", "RTSTRUCT"):
        names = {name.lower() for file in files for _, name in file.names if file.kind == kind}
        values = _values_there(uri, kind, read or ReadConfig.from_env()) if names else {}
        first = max(values.values(), default=0) + 1
        made[kind] = {**values, **{name: first + n for n, name in enumerate(sorted(names - set(values)))}}
    return made


def _values_there(uri: str, collection: str, read: ReadConfig) -> dict[str, int]:
    """Values that a cohort gives to names of labels, in lower case.

    Raises
    ------
    ConfigError
        When it gives several to one.
    """
    ctx = context(read)
    there = commits.latest(uri, read) if layout.check_root(uri, ctx) else None
    state = there.collections.get(collection) if there else None
    if state is None or "label_names" not in {c.name for c in state.obs.columns}:
        return {}
    values: dict[str, int] = {}
    column = read_state(uri, state.obs, OBS_ID, ctx, ["label_names"])["label_names"].dropna()
    for text in column.unique():
        for label, value in json.loads(str(text)).items():
            if values.setdefault(label.lower(), value) != value:
                raise ConfigError(
                    f"the cohort at {uri} gives label {label!r} the values {values[label.lower()]} and {value}: say "
                    "label_values"
                )
    return values
