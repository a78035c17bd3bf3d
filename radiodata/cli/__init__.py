"""The command line: ``radiodata demo``, ``ingest``, ``configs``, ``info``, ``verify`` and others.

Exit codes: 0 ok, 1 the work failed, 2 the command makes no sense. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path  # noqa: TC003 (typer reads the annotation)
from typing import Annotated, Any

import typer
from rich.markup import escape

from radiodata.cli.console import Uri, Workers, err, out, progress
from radiodata.cli.ingesting import ingest
from radiodata.errors import ConfigError, RadiodataError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from radiodata import __version__

        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _radiodata(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Training data for radiology: ingest once, then read only the tiles you need.

    Settings are read from the file that RADIODATA_CONFIG names, and from RADIODATA_READ_... and RADIODATA_STORE_...
    """


@app.command()
def demo(
    uri: Uri,
    subjects: Annotated[int, typer.Option(min=1, help="How many phantoms.")] = 24,
    size: Annotated[int, typer.Option(min=24, help="Voxels across the body, about.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the phantoms.")] = 0,
    workers: Workers = 2,
) -> None:
    """Write CT-like phantoms with three labelled organs as NIfTI files, and ingest them."""
    from radiodata.demo.cohort import make_demo

    with progress("ingest") as tell:
        cohort = make_demo(uri, subjects=subjects, size=size, seed=seed, workers=workers, progress=tell)
    out.print(repr(cohort), highlight=False, markup=False)


app.command()(ingest)


@app.command()
def configs(
    group: Annotated[str | None, typer.Argument(help="One group, such as data; by default all.")] = None,
) -> None:
    """List the Hydra configs that any train.py finds where radiodata is installed, with a line each."""
    from rich.table import Table

    from radiodata.hydra import config_dir, options

    table = Table("on the command line", "what it is", box=None, pad_edge=False)
    before = None
    for option in options(group):
        if before not in (None, option.group):
            table.add_section()
        before = option.group
        table.add_row(option.given, escape(option.summary))
    out.print(table)
    out.print(f"\nof {config_dir()}; with groups of your own defaults list, say GROUP=... without +", markup=False)


@app.command()
def info(uri: Uri, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what a cohort holds; reads tables, no voxel."""
    from radiodata.store import Cohort
    from radiodata.store.summary import summarize

    summary = summarize(Cohort(uri))
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    else:
        _print_summary(summary)


@app.command()
def verify(
    uri: Uri,
    collection: Annotated[
        list[str] | None, typer.Option(help="A collection to be checked; repeatable; by default all.")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Check so many volumes, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the sample.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads; each holds one volume in memory.")] = 2,
) -> None:
    """Read volumes whole and compare them with the hashes recorded at ingest; names what differs."""
    from radiodata.store import Cohort
    from radiodata.store import verify as check

    cohort = Cohort(uri)
    with progress("verify") as tell:
        found = check(cohort, collections=collection, sample=sample, seed=seed, workers=workers, progress=tell)
    for problem in found.problems:
        err.print(f"[red]differs:[/red] {escape(str(problem))}", highlight=False, soft_wrap=True)
    out.print(f"{found.checked} volumes checked, {len(found.problems)} differ: {uri}", highlight=False, markup=False)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def export(
    uri: Uri,
    folder: Annotated[Path, typer.Argument(help="Where files are written: FOLDER/COLLECTION/SUBJECT.nii.gz.")],
    collection: Annotated[
        list[str] | None, typer.Option(help="A collection to be written; repeatable; by default all.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Subjects to be written: \"age > 40 and sex == 'F'\".")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads; each holds one volume in memory.")] = 2,
) -> None:
    """Write volumes as NIfTI files: those that were ingested come back as they were."""
    from radiodata.export import export as write
    from radiodata.store import Cohort

    cohort = Cohort(uri) if where is None else Cohort(uri).filter(where)
    with progress("export") as tell:
        done = write(cohort, folder, collections=collection, overwrite=overwrite, workers=workers, progress=tell)
    for problem in done.problems:
        err.print(f"[red]refused:[/red] {escape(str(problem))}", highlight=False, soft_wrap=True)
    out.print(f"{len(done.files)} files written: {folder}", highlight=False, markup=False, soft_wrap=True)
    if done.problems:
        raise typer.Exit(1)


@app.command()
def optimize(uri: Uri) -> None:
    """Merge the tables, forget earlier versions, and free the disk of what only they held."""
    from radiodata.store import Cohort

    done = Cohort(uri).optimize()
    out.print(f"{uri} is at version {done.version}, alone", highlight=False, markup=False, soft_wrap=True)


@app.command()
def advise(
    patch: Annotated[str, typer.Option(help="Crop shape in voxels: 96, or 128,128,48.")],
    uri: Annotated[str | None, typer.Argument(help="A cohort, for its shapes, dtypes and tiles.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(metavar="COLLECTION", help="A collection to be read; by default all.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Global batch.")] = 4,
    storage: Annotated[str, typer.Option(help="disk or s3.")] = "disk",
    cores: Annotated[int, typer.Option(min=1, help="Cores that the loader may use.")] = 2,
    memory: Annotated[int, typer.Option(min=1, help="MiB of crops that may wait.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend tiles, crops a read, and workers for a patch; reads tables, no voxel."""
    from radiodata.sampling import advise as recommend

    if storage not in ("disk", "s3"):
        raise ConfigError(f"--storage {storage!r}: disk or s3")
    given: dict[str, Any] = {} if uri is None else _typical(uri, key)
    advice = recommend(
        _sizes(patch),
        batch_size=batch,
        storage="s3" if storage == "s3" else "disk",
        cores=cores,
        memory=memory << 20,
        **given,
    )
    if as_json:
        sys.stdout.write(json.dumps(advice.to_dict(), indent=2) + "\n")
    else:
        out.print(str(advice), highlight=False, markup=False, soft_wrap=True)


def _sizes(text: str) -> list[int] | int:
    parts = text.split(",")
    if not all(p.strip().isdigit() for p in parts):
        raise ConfigError(f"--patch {text!r}: write 96, or 128,128,48")
    return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts]


def _typical(uri: str, names: list[str] | None) -> dict[str, Any]:
    """Median shape, bytes of a voxel and tile of a cohort, as ``advise`` takes them."""
    import numpy as np

    from radiodata.store import Cohort
    from radiodata.store.fingerprint import typical_shape

    cohort = Cohort(uri)
    held = [cohort[name] for name in names or cohort.collections]
    if not held or not len(held[0]):
        raise ConfigError(f"the cohort at {uri} holds no volume to advise on")
    shape = typical_shape(held[0])
    voxel = sum(int(c.obs["channels"].max()) * max(np.dtype(d).itemsize for d in set(c.obs["dtype"])) for c in held)
    tile = {"tile": held[0].tile[0]} if len(set(held[0].tile)) == 1 else {}
    return {"shape": [int(n) for n in shape], "voxel_bytes": voxel, **tile}


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.table import Table

    columns = ", ".join(f"{n} ({t})" for n, t in summary["obs_meta"].items()) or "none"
    out.print(f"[bold]{escape(summary['uri'])}[/bold]: {summary['subjects']} subjects, format {summary['format']}")
    out.print(f"subject columns: {escape(columns)}")
    held = summary["collections"]
    table = Table("collection", *held)
    for what in ("kind", "volumes", "dtypes", "classes", "tile"):
        table.add_row(what, *(_cell(c[what]) for c in held.values()))
    for what, ends in (("size", "voxels"), ("spacing", "mm")):
        for end, word in enumerate(("least", "most")):
            table.add_row(
                f"{what}, {word} ({ends})", *(" x ".join(f"{n:.4g}" for n in c[what][end]) for c in held.values())
            )
    table.add_row("on disk (MB)", *(f"{c['voxel_bytes'] / 1e6:.1f}" for c in held.values()))
    out.print(table)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Run the command line; errors of ours are told in a line, others keep their traceback."""
    try:
        app()
    except ConfigError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except RadiodataError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
