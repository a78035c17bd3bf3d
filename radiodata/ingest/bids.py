"""Ingestion of BIDS datasets: participants, sessions, runs, sidecars, and the masks of derivatives; on pybids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.files import SUFFIXES
from radiodata.ingest.items import Inputs, Item, Subject, snake_case
from radiodata.ingest.nifti import NiftiFile
from radiodata.ingest.niftis import subject_table
from radiodata.ingest.pipeline import ingest
from radiodata.store import layout

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from radiodata.ingest.options import Options
    from radiodata.ingest.report import IngestReport

LABELS = ("dseg", "mask")
"""Suffixes of label volumes: discrete segmentations and binary masks."""
_PRIVATE = re.compile(
    r"^(Patient(Name|ID|BirthDate|Address|Comments)|Accession|Institution|Station|DeviceSerial|StudyID$|Operator|"
    r"Referring|Performing|Physician)|(UID|Date|DateTime)$|^(Acquisition|Content|Series|Study)Time$|^acq_time$"
)
"""Keys of sidecars and scans tables that may tell who a patient is."""


def ingest_bids(
    uri: str, root: str | Path, *, suffixes: Collection[str] | None = None, **options: Unpack[Options]
) -> IngestReport:
    """Ingest a BIDS dataset into the cohort at `uri`; needs ``radiodata[bids]``.

    Every image is a volume in the collection of its suffix (``T1w``, ``bold``, ``CT``), with its entities (session,
    run, ...), its sidecar by the inheritance principle, and its row of the scans table as columns of `obs`. Masks and
    discrete segmentations of derivatives are label volumes, in collections named after description, label and suffix
    (``lesion_mask``). Participants are the rows of `obs_meta`, with types as participants.json tells.

    Parameters
    ----------
    uri
        Where the cohort is, or is to be.
    root
        Of the dataset, with its ``dataset_description.json``.
    suffixes
        Of images to be taken; by default all. Labels are always taken.
    **options
        See ``Options``.

    Raises
    ------
    IngestError
        With every refusal in ``.problems``.
    ConfigError
        When there is no BIDS dataset, or arguments are at odds with the cohort.

    Notes
    -----
    The principles are those of the BIDS specification 1.9. Keys of sidecars that may tell a patient (names, UIDs,
    dates, places) are not stored; lists and objects are stored as JSON text.
    """
    import bids

    place = Path(root)
    if not (place / "dataset_description.json").is_file():
        raise ConfigError(f"{place} is no BIDS dataset: it has no dataset_description.json")
    try:
        found = bids.BIDSLayout(place, validate=False, derivatives=(place / "derivatives").is_dir())
    except Exception as error:  # pybids raises many kinds
        raise ConfigError(f"{place} cannot be read as a BIDS dataset ({type(error).__name__}: {error})") from error
    kinds: dict[str, str] = {}
    items: dict[str, dict[str, Item]] = {}
    problems: list[Problem] = []
    for file in found.get(extension=list(SUFFIXES), scope="all"):
        entities = file.get_entities()
        if "subject" not in entities or not _wanted(file, entities, place, suffixes):
            continue
        name = layout.check_name(_collection(entities))
        kinds.setdefault(name, "label" if entities["suffix"] in LABELS else "image")
        item = Item(_id_of(Path(file.path), place), name, NiftiFile(Path(file.path)), False, _columns(file, entities))
        held = items.setdefault(f"sub-{entities['subject']}", {})
        if item.obs_id in held:
            problems.append(Problem(file.path, f"has the name of {held[item.obs_id].source.where}"))
        held.setdefault(item.obs_id, item)
    if not kinds:
        raise ConfigError(f"{place} holds no image of the suffixes {sorted(suffixes or ())}")
    table, notes = participants(place, sorted(items))
    subjects = [Subject(subject, tuple(held[i] for i in sorted(held))) for subject, held in sorted(items.items())]
    return ingest(uri, Inputs(kinds, subjects, problems, notes, table), options)


def participants(root: Path, subjects: list[str]) -> tuple[pd.DataFrame | None, list[Problem]]:
    """Give the table of participants, for these subjects, and tell of rows that it lacks or has beside them.

    Raises
    ------
    ConfigError
        When the table cannot be read, or its columns do not fit what participants.json tells of them.
    """
    place = root / "participants.tsv"
    if not place.is_file():
        return None, []
    table = _read_tsv(place)
    if "participant_id" not in table:
        raise ConfigError(f"{place} has no column participant_id")
    told = _json(root / "participants.json")
    for name in table.columns.drop("participant_id"):
        table[name] = _typed(table[name], told.get(name), place)
    frame = subject_table(table.set_index("participant_id"))
    assert frame is not None
    notes = [Problem(s, f"has no row in {place}: its columns are null") for s in subjects if s not in frame.index]
    notes += [Problem(str(s), f"has a row in {place} and no image") for s in frame.index if s not in subjects]
    return frame.reindex(subjects), notes


def _read_tsv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _typed(column: pd.Series[Any], told: Any, path: Path) -> pd.Series[Any]:
    """Categories where its levels are told, numbers where a unit is told or all values are, else text."""
    levels = list(told.get("Levels") or ()) if isinstance(told, dict) else []
    if levels:
        if odd := sorted(set(column.dropna()) - set(levels)):
            raise ConfigError(
                f"column {column.name!r} of {path} holds {odd[:5]}, and participants.json tells of {levels}"
            )
        return column.astype(pd.CategoricalDtype(levels))
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().sum() == column.notna().sum() and column.notna().any():
        whole = (numbers.dropna() % 1 == 0).all() and not column.dropna().str.contains(r"[.eE]").any()
        return numbers.astype("Int64") if whole else numbers.astype("float64")
    if isinstance(told, dict) and told.get("Units"):
        odd = column[numbers.isna() & column.notna()].unique().tolist()
        raise ConfigError(f"column {column.name!r} of {path} holds {odd[:5]}, which are no numbers of {told['Units']}")
    return column.astype("string")


def _json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _wanted(file: Any, entities: Mapping[str, Any], root: Path, suffixes: Collection[str] | None) -> bool:
    derived = "derivatives" in Path(file.path).relative_to(root.absolute()).parts
    suffix = entities.get("suffix")
    return suffix in LABELS or (not derived and suffix is not None and (suffixes is None or suffix in suffixes))


def _collection(entities: Mapping[str, Any]) -> str:
    suffix = str(entities["suffix"])
    if suffix not in LABELS:
        return suffix
    parts = (entities.get(n) for n in ("desc", "label", "atlas"))
    return "_".join([*(str(p) for p in parts if p), suffix])


def _id_of(path: Path, root: Path) -> str:
    """Name of the file; of a derivative, with that of its pipeline before it."""
    stem = re.sub(r"\.(nii|hdr)(\.gz)?$", "", path.name)
    parts = path.relative_to(root.absolute()).parts
    return f"{parts[1]}_{stem}" if parts[0] == "derivatives" else stem


def _columns(file: Any, entities: Mapping[str, Any]) -> dict[str, Any]:
    """Entities, sidecar, and row of the scans table of a file."""
    left = ("subject", "suffix", "extension", "datatype")
    columns: dict[str, Any] = {name: str(value) for name, value in entities.items() if name not in left}
    if "run" in entities:
        columns["run"] = int(entities["run"])
    columns["datatype"] = str(entities.get("datatype") or "")
    told = {**file.get_metadata(), **_scan(Path(file.path))}
    for key, value in told.items():
        if not _PRIVATE.search(key) and (plain := _plain(value)) is not None:
            columns[snake_case(key)] = plain
    return columns


def _scan(path: Path) -> dict[str, Any]:
    """Row of a file in the scans table of its subject, or session."""
    for folder in path.parents[1:3]:
        for table in folder.glob("sub-*_scans.tsv"):
            rows = _read_tsv(table)
            mine = rows[rows.get("filename", pd.Series(dtype=str)) == path.relative_to(folder).as_posix()]
            if len(mine):
                return _numbers(mine.iloc[0].drop("filename").dropna().to_dict().items())
    return {}


def _numbers(cells: Iterable[tuple[Any, str]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, text in cells:
        try:
            made[str(name)] = float(text)
        except ValueError:
            made[str(name)] = text
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value)
    return json.dumps(value) if isinstance(value, list | dict) else None
