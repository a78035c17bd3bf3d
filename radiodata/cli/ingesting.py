"""``radiodata ingest``: NIfTI files, DICOM folders, BIDS datasets and tables of paths."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from radiodata.cli.console import Uri, Workers, err, out, progress
from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from radiodata.ingest import IngestReport

_source = partial(typer.Option, rich_help_panel="Where volumes come from")
_how = partial(typer.Option, rich_help_panel="How")
_step = partial(typer.Option, rich_help_panel="What is done to them")
_dicom_option = partial(typer.Option, rich_help_panel="DICOM")
_SHOWN = 20


def ingest(
    uri: Uri,
    nifti: Annotated[
        list[str] | None,
        _source(metavar="NAME=GLOB", help="A collection and its files, repeatable."),
    ] = None,
    dicom: Annotated[
        list[Path] | None,
        _source(help="Folder, file or archive of DICOM files; repeatable."),
    ] = None,
    bids: Annotated[Path | None, _source(help="BIDS dataset.")] = None,
    csv: Annotated[Path | None, _source(help="CSV or TSV: a row a subject, paths in columns.")] = None,
    column: Annotated[
        list[str] | None,
        _source(metavar="NAME=COLUMN", help="Of --csv: a collection and the column of its paths."),
    ] = None,
    suffix: Annotated[
        list[str] | None,
        _source(help="Of --bids: a suffix to be taken, such as T1w; repeatable."),
    ] = None,
    obs_meta: Annotated[
        Path | None,
        _source(help="CSV or TSV, a row a subject; column obs_subject_id, or the first.", exists=True),
    ] = None,
    label: Annotated[
        list[str] | None,
        _source(help="A collection that holds labels; by default those with seg, label or mask in the name."),
    ] = None,
    subject_id: Annotated[
        str | None,
        _source(help="Regular expression whose first group in a path is the subject id."),
    ] = None,
    align: Annotated[
        bool,
        _source("--align/--no-align", help="Demand one grid for all volumes of a subject."),
    ] = True,
    tiling: Annotated[
        str | None,
        _how(help="isotropic, axial, sagittal, coronal, or extents: 64,64,64; by default as is there."),
    ] = None,
    workers: Workers = 2,
    executor: Annotated[
        Literal["processes", "threads"] | None,
        _how(help="Who works; by default threads for less than 16 subjects."),
    ] = None,
    dask: Annotated[
        str | None,
        _how(metavar="ADDRESS", help="Dask scheduler that does the work: tcp://..."),
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        _how(help="raise: nothing is written where a header is wrong; skip: take the rest."),
    ] = "raise",
    report: Annotated[
        Path | None,
        _how(help="CSV of what was refused; with --on-error skip by default ingest-refused.csv."),
    ] = None,
    dry_run: Annotated[bool, _how("--dry-run", help="Show what would become of what; write nothing.")] = False,
    orient: Annotated[
        Literal["RAS", "source"] | None,
        _step(help="Turn axes to the closest RAS+ (default), or leave them."),
    ] = None,
    spacing: Annotated[str | None, _step(help="Resample to this spacing in mm: 1, or 1,1,3.")] = None,
    window: Annotated[str | None, _step(metavar="LOW,HIGH", help="Clip images to these values.")] = None,
    crop_foreground: Annotated[
        float | None,
        _step(metavar="VALUE", help="Cut off what lies beyond the voxels above this."),
    ] = None,
    dtype: Annotated[str | None, _step(help="Of images; values that it cannot hold are refused.")] = None,
    collection: Annotated[
        list[str] | None,
        _dicom_option(metavar="NAME=REGEX", help="Collection of series whose description fits; else the modality."),
    ] = None,
    label_value: Annotated[
        list[str] | None,
        _dicom_option(metavar="NAME=N", help="A segment or region to be taken, and its value."),
    ] = None,
    irregular: Annotated[
        Literal["refuse", "keep"],
        _dicom_option(help="Volumes with gaps or unequal steps."),
    ] = "refuse",
    key_file: Annotated[
        Path | None,
        _dicom_option(help="Key of the hashes of patients; by default URI.key, made if need be."),
    ] = None,
    ids: Annotated[
        Path | None,
        _dicom_option(help="CSV or TSV: PatientID, subject id; in place of hashes.", exists=True),
    ] = None,
    keep_tag: Annotated[
        list[str] | None,
        _dicom_option(metavar="KEYWORD", help="A DICOM attribute to be stored as it is; repeatable."),
    ] = None,
    identify: Annotated[
        bool,
        _dicom_option("--identify", help="Store PatientID, UIDs, dates and paths as they are."),
    ] = False,
) -> None:
    """Ingest scans into a cohort; a rerun goes on with what is missing.

    One of --nifti, --dicom, --bids and --csv says where they come from.
    """
    options: dict[str, Any] = {
        "tiling": tiling,
        "workers": workers,
        "on_error": on_error,
        "dry_run": dry_run,
        "spacing": _spacing(spacing),
        "window": _window(window),
        "crop_foreground": crop_foreground,
        **({} if orient is None else {"orient": None if orient == "source" else orient}),
        **({} if dtype is None else {"dtype": dtype}),
    }
    source = _source_of({"--nifti": nifti, "--dicom": dicom, "--bids": bids, "--csv": csv})
    _refuse_strangers(
        source,
        {
            "--nifti": {"--subject-id": subject_id, "--obs-meta": obs_meta, "--label": label},
            "--dicom": {
                "--obs-meta": obs_meta,
                "--collection": collection,
                "--label-value": label_value,
                "--key-file": key_file,
                "--ids": ids,
                "--keep-tag": keep_tag,
                "--identify": identify,
            },
            "--bids": {"--suffix": suffix},
            "--csv": {"--column": column, "--label": label},
        },
    )
    with _executor(executor, dask) as pool, progress("ingest") as tell:
        options |= {"executor": pool, "progress": tell}
        if nifti:
            options |= {"obs_meta": _rows(obs_meta), "validate_alignment": align, "labels": label}
            done = _niftis(uri, nifti, subject_id, options)
        elif dicom:
            options |= {"obs_meta": _rows(obs_meta), "irregular": irregular, "label_values": _values(label_value)}
            options |= {"collections": _pairs("--collection", collection) or None}
            done = _dicom(uri, dicom, (key_file, ids, keep_tag, identify), options)
        elif bids:
            done = _bids(uri, bids, suffix, options)
        else:
            assert csv is not None
            options |= {"validate_alignment": align, "labels": label}
            done = _table(uri, csv, _pairs("--column", column) or None, options)
    _tell(uri, done, report, dry_run=dry_run, skip=on_error == "skip")


def _source_of(given: dict[str, Any]) -> str:
    """Name the one option that says where volumes come from."""
    said = [name for name, value in given.items() if value]
    if len(said) != 1:
        told = " and ".join(said) or "none"
        raise ConfigError(f"one of {', '.join(given)} says where volumes come from; {told} was given")
    return said[0]


def _refuse_strangers(source: str, known: dict[str, dict[str, Any]]) -> None:
    """Refuse options that mean nothing for a source: they would be passed over in silence."""
    for options in known.values():
        for name, value in options.items():
            if value and name not in known[source]:
                of = " and ".join(other for other, theirs in known.items() if name in theirs)
                raise ConfigError(f"{name} is for {of}, not for {source}")


def _niftis(uri: str, nifti: list[str], subject_id: str | None, more: dict[str, Any]) -> IngestReport:
    from radiodata.ingest import ingest_niftis

    return ingest_niftis(uri, _pairs("--nifti", nifti), subject_id=subject_id, **more)


def _dicom(uri: str, roots: list[Path], hiding: tuple[Any, ...], more: dict[str, Any]) -> IngestReport:
    try:
        from radiodata.ingest.dicom import ingest_dicom
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'radiodata[dicom]'") from error
    return ingest_dicom(uri, roots, privacy=_privacy(uri, *hiding, dry_run=more["dry_run"]), **more)


def _bids(uri: str, root: Path, suffixes: list[str] | None, more: dict[str, Any]) -> IngestReport:
    from radiodata.ingest import ingest_bids

    return ingest_bids(uri, root, suffixes=suffixes, **more)


def _table(uri: str, table: Path, images: dict[str, str] | None, more: dict[str, Any]) -> IngestReport:
    from radiodata.ingest import ingest_table

    return ingest_table(uri, table, images=images, **more)


def _rows(path: Path | None) -> Any:
    from radiodata.ingest.tables import read_rows

    return None if path is None else read_rows(path)


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    made: dict[str, str] = {}
    for entry in given or ():
        name, separator, value = entry.partition("=")
        if not (name and separator and value):
            raise ConfigError(f"{option} {entry!r}: write NAME=VALUE, such as {_EXAMPLES[option]}")
        if name in made:
            raise ConfigError(f"{option} names {name!r} twice")
        made[name] = value
    return made


_EXAMPLES = {
    "--nifti": "--nifti CT='imagesTr/*.nii.gz'",
    "--column": "--column CT=ct_path",
    "--collection": "--collection T1='t1.*mprage'",
    "--label-value": "--label-value liver=1",
}


def _values(given: list[str] | None) -> dict[str, int] | None:
    pairs = _pairs("--label-value", given)
    if odd := [f"{n}={v}" for n, v in pairs.items() if not v.isdigit()]:
        raise ConfigError(f"--label-value {odd[0]!r}: a value is a whole number")
    return {name: int(value) for name, value in pairs.items()} or None


def _numbers(option: str, text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise ConfigError(f"{option} {text!r}: {' or '.join(map(str, counts))} numbers with commas between them")
    return numbers


def _spacing(text: str | None) -> Any:
    if text is None:
        return None
    numbers = _numbers("--spacing", text, (1, 3))
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _window(text: str | None) -> Any:
    return None if text is None else tuple(_numbers("--window", text, (2,)))


def _privacy(
    uri: str, key: Path | None, ids: Path | None, keep: list[str] | None, identify: bool, *, dry_run: bool
) -> Any:
    """How patients are hidden."""
    from radiodata.ingest.dicom.ingesting import default_key
    from radiodata.ingest.dicom.privacy import Privacy, key_file

    rows = _rows(ids)
    mapped = None if rows is None else dict(zip(rows.index.astype(str), rows.iloc[:, 0].astype(str), strict=True))
    return Privacy(key_file(key) if key else default_key(uri, dry_run=dry_run), mapped, tuple(keep or ()), identify)


@contextmanager
def _executor(executor: str | None, dask: str | None) -> Iterator[Any]:
    if dask is None:
        yield executor
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("--dask needs Dask: pip install distributed") from error
    try:
        client = Client(dask, timeout=10)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dask {dask}: no scheduler answers there ({error})") from error
    with client:
        yield client


def _tell(uri: str, done: IngestReport, report: Path | None, *, dry_run: bool, skip: bool) -> None:
    for note in done.notes[:_SHOWN]:
        err.print(f"[yellow]note:[/yellow] {escape(str(note))}", highlight=False, soft_wrap=True)
    if len(done.notes) > _SHOWN:
        err.print(f"... and {len(done.notes) - _SHOWN} notes more", highlight=False)
    if dry_run:
        out.print(
            done.volumes.drop(columns="source").to_string(index=False), highlight=False, markup=False, soft_wrap=True
        )
    place = report or (Path("ingest-refused.csv") if done.refused and skip else None)
    if place is not None:
        done.to_csv(place)
    for problem in done.refused[:_SHOWN]:
        err.print(f"[red]refused:[/red] {escape(str(problem))}", highlight=False, soft_wrap=True)
    if done.refused:
        err.print(f"{len(done.refused)} refused; all of them are listed in {place}", highlight=False, markup=False)
    would = "would be " if dry_run else ""
    out.print(
        f"{len(done.added)} subjects {would}added, {len(done.present)} were there: {uri}", highlight=False, markup=False
    )
