"""The command line: what it prints, and the code it leaves with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeFiles, Tiny
from rich.console import Console

from radiodata import __version__, cli
from radiodata.store import Cohort


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process; give code, stdout and stderr without line breaks of the terminal."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["radiodata", *map(str, arguments)])
        for module in (cli, cli.ingesting, cli.console):
            monkeypatch.setattr(module, "out", Console(width=200), raising=False)
            monkeypatch.setattr(module, "err", Console(width=200, stderr=True), raising=False)
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def given(images: dict[str, list[Path]]) -> list[str]:
    return [word for name, files in images.items() for word in ("--nifti", f"{name}={files[0].parent}")]


def test_ingest_then_info(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(2), tmp_path / "cohort"
    code, out, err = run("ingest", uri, *given(images), "--tiling", "8")
    assert (code, out.strip()) == (0, f"2 subjects added, 0 were there: {uri}"), err
    assert run("ingest", uri, *given(images), "--tiling", "8")[:2] == (0, f"0 subjects added, 2 were there: {uri}\n")
    code, out, _ = run("info", uri)
    assert code == 0
    for word in (f"{uri}: 2 subjects, format 3", "CT", "seg", "int16", "uint8", "0, 1", "8, 8, 8", "20 x 22 x 17"):
        assert word in out


def test_info_as_json(run, tiny: Tiny) -> None:
    code, out, err = run("info", tiny.cohort.uri, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {"uri", "format", "version", "subjects", "obs_meta", "collections"}
    assert (found["uri"], found["format"], found["version"]) == (tiny.cohort.uri, 3, tiny.cohort.version)
    assert found["subjects"] == 6
    assert found["obs_meta"] == {n: str(t) for n, t in tiny.cohort.obs_meta.dtypes.items()}
    assert set(found["collections"]) == {"CT", "seg"}
    ct, seg = found["collections"]["CT"], found["collections"]["seg"]
    bytes_on_disk = {n: c.pop("voxel_bytes") for n, c in found["collections"].items()}
    shapes = [tiny.arrays[f"sub-{n:02d}_CT"].shape for n in range(6)]
    assert ct["size"] == [np.min(shapes, axis=0).tolist(), np.max(shapes, axis=0).tolist()]
    np.testing.assert_allclose(ct["spacing"], [[0.75, 1.0, 2.5], [0.75, 1.625, 2.5]], rtol=1e-6)
    assert {k: ct[k] for k in ("kind", "volumes", "dtypes", "tile", "classes")} == {
        "kind": "image", "volumes": 6, "dtypes": ["int16"], "tile": [16, 16, 16], "classes": [],
    }  # fmt: skip
    assert {k: seg[k] for k in ("kind", "volumes", "dtypes", "tile", "classes")} == {
        "kind": "label", "volumes": 6, "dtypes": ["uint8"], "tile": [16, 16, 16], "classes": [0, 1, 2],
    }  # fmt: skip
    assert bytes_on_disk["CT"] > bytes_on_disk["seg"] > 0


def test_subject_ids_of_a_table_stay_as_written(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(2)
    for files in images.values():
        for path, name in zip(files, ("001", "NA"), strict=True):
            path.rename(path.with_name(f"{name}.nii.gz"))
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        table = tmp_path / f"participants{suffix}"
        rows = [["age", "obs_subject_id", "score"], ["61", "001", "1.5"], ["33", "NA", ""]]
        table.write_text("\n".join(separator.join(r) for r in rows))
        uri = tmp_path / f"cohort{suffix}"
        code, _, err = run("ingest", uri, *given(images), "--tiling", "8", "--obs-meta", table)
        assert code == 0, err
        meta = Cohort(uri).obs_meta
        assert meta.index.tolist() == ["001", "NA"]
        assert meta["age"].tolist() == [61, 33]
        assert pd.isna(meta["score"].iloc[1])


def test_the_first_column_is_the_id_where_none_is_named_so(run, make_files: MakeFiles, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("case,age\ns000,5\n")
    code, _, err = run("ingest", tmp_path / "c", *given(make_files(1)), "--obs-meta", table)
    assert code == 0, err
    assert Cohort(tmp_path / "c").obs_meta.to_dict() == {"age": {"s000": 5}}


def test_options_reach_the_ingest(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(2)
    words = ["--nifti", f"organ_map={images['seg'][0].parent}", "--label", "organ_map", "--subject-id", r"s(\d+)"]
    assert run("ingest", tmp_path / "c", *words, "--tiling", "axial", "--workers", "1")[0] == 0
    cohort = Cohort(tmp_path / "c")
    assert (cohort["organ_map"].kind, cohort["organ_map"].tile) == ("label", (256, 256, 1))
    assert cohort.subjects == ["000", "001"]


def test_work_that_fails_leaves_with_1_and_names_the_files(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(3)
    images["CT"][1].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    code, out, err = run("ingest", tmp_path / "c", *given(images))
    assert (code, out) == (1, "")
    assert f"error: nothing was written to {tmp_path / 'c'} (1 problem(s))" in err
    assert f"{images['CT'][1]}: is a git-lfs pointer" in err
    code, _, err = run("info", tmp_path / "c")
    assert (code, "no cohort at" in err) == (1, True)


def test_alignment_can_be_left_unchecked(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images = make_files(1)
    shutil.copy(make_files(1, size=24, folder=tmp_path / "big")["seg"][0], images["seg"][0])
    assert run("ingest", tmp_path / "c", *given(images))[0] == 1
    assert run("ingest", tmp_path / "c", *given(images), "--no-align")[0] == 0


def test_a_dry_run_shows_and_a_skip_lists(
    run, make_files: MakeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = make_files(3)
    images["CT"][1].write_bytes(b"nothing")
    code, out, err = run("ingest", tmp_path / "c", *given(images), "--dry-run", "--on-error", "skip")
    assert (code, "s000_CT" in out, "2 subjects would be added" in out, "s001" in out) == (0, True, True, False), err
    assert not (tmp_path / "c").exists()
    code, out, err = run("ingest", tmp_path / "c", *given(images), "--on-error", "skip", "--executor", "threads")
    assert (code, "2 subjects added" in out, "1 refused" in err) == (0, True, True)
    assert "is not a NIfTI" in (tmp_path / "ingest-refused.csv").read_text()


def test_volumes_are_prepared_on_the_way_in(run, make_files: MakeFiles, tmp_path: Path) -> None:
    words = ["--spacing", "2,2,5", "--window", "-100,300", "--dtype", "int16", "--orient", "RAS"]
    assert run("ingest", tmp_path / "c", *given(make_files(2)), *words)[0] == 0
    cohort = Cohort(tmp_path / "c")
    assert cohort.CT.obs[["spacing_x", "spacing_y", "spacing_z"]].to_numpy().round(6).tolist() == [[2.0, 2.0, 5.0]] * 2
    assert cohort.CT.obs["value_min"].min() >= -100
    assert cohort.CT.provenance is not None
    assert cohort.CT.provenance["steps"] == ["spacing=(2.0, 2.0, 5.0)", "window=(-100.0, 300.0)"]
    code, _, err = run("ingest", tmp_path / "c", *given(make_files(3)))
    assert (code, "prepared otherwise" in err) == (2, True)


def test_dicom_bids_and_tables(run, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs radiodata[dicom]")
    import dicom_series

    dicom_series.series(tmp_path / "in", SeriesDescription="Thorax")
    words = ["--dicom", tmp_path / "in", "--collection", "chest=thorax", "--keep-tag", "SeriesDescription"]
    code, out, err = run("ingest", tmp_path / "c", *words)
    assert (code, "1 subjects added" in out) == (0, True), err
    assert Cohort(tmp_path / "c")["chest"].obs["series_description"].tolist() == ["Thorax"]
    (tmp_path / "ids.csv").write_text("PatientID,subject\nP1,first\n")
    assert run("ingest", tmp_path / "d", "--dicom", tmp_path / "in", "--ids", tmp_path / "ids.csv")[0] == 0
    assert Cohort(tmp_path / "d").subjects == ["first"]
    code, _, err = run("ingest", tmp_path / "e", "--bids", tmp_path / "in")
    assert (code, "is no BIDS dataset" in err) == (2, True)
    code, _, err = run("ingest", tmp_path / "e", "--csv", tmp_path / "ids.csv")
    assert (code, "no column of the table holds paths" in err) == (2, True)
    assert "says where volumes come from" in run("ingest", tmp_path / "e")[2]
    assert "no scheduler answers" in run("ingest", tmp_path / "e", *words, "--dask", "tcp://127.0.0.1:9")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nifti", "CT={ct}", "--keep-tag", "StudyID"], "--keep-tag is for --dicom, not for --nifti"),
        (["--csv", "{ct}", "--obs-meta", "{ct}"], "--obs-meta is for --nifti and --dicom, not for --csv"),
        (["--spacing", "a"], "1 or 3 numbers"),
        (["--window", "1"], "2 numbers"),
        (["--nifti", "CT={ct}", "--window", "5,1"], "low must be below high"),
        (["--nifti", "CT"], "write NAME=VALUE"),
        (["--nifti", "=x"], "write NAME=VALUE"),
        (["--nifti", "CT=a", "--nifti", "CT=b"], "--nifti names 'CT' twice"),
        (["--nifti", "a-b=x"], "must be letters, digits"),
        (["--nifti", "CT={ct}", "--tiling", "cubic"], "tiling 'cubic' is not known"),
        (["--nifti", "CT={ct}", "--label", "seg"], "['seg'] are no collections"),
        (["--nifti", "CT={ct}", "--subject-id", "[b"], "'[b' is no regular expression"),
    ],
)
def test_commands_that_make_no_sense_leave_with_2(
    run, make_files: MakeFiles, tmp_path: Path, words: list[str], said: str
) -> None:
    folder = make_files(1)["CT"][0].parent
    code, out, err = run("ingest", tmp_path / "c", *(w.replace("{ct}", str(folder)) for w in words))
    if said.endswith("expression"):  # a rule is tried on files, so it is a refusal of theirs
        code += 1
    assert (code, out) == (2, "")
    assert said in err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "words",
    [["ingest"], ["ingest", "x", "--no"], ["info"], ["fly"], ["demo", "x", "--size", "5"], ["info", "x", "--what"]],
)
def test_usage_is_explained_with_2(run, words: list[str]) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert "Usage" in err


def test_version_and_help(run) -> None:
    assert run("--version")[:2] == (0, f"{__version__}\n")
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "ingest", "info"))


def test_demo(run, tmp_path: Path) -> None:
    uri = tmp_path / "demo"
    code, out, err = run("demo", uri, "--subjects", "3", "--size", "24", "--seed", "2")
    assert code == 0, err
    assert "3 subjects, CT (3 images), seg (3 labels)" in out
    cohort = Cohort(uri)
    assert list(cohort.obs_meta.columns) == ["age", "sex", "diagnosis"]
    assert {v for volume in cohort.seg for v in np.unique(volume.to_numpy())} == {0, 1, 2, 3}
    before = cohort.CT.obs["content_hash"].tolist()
    assert run("demo", uri, "--subjects", "3", "--size", "24", "--seed", "2")[0] == 0
    assert Cohort(uri).CT.obs["content_hash"].tolist() == before


def test_the_installed_command_runs_and_imports_nothing_heavy_to_explain_itself() -> None:
    script = (
        "import sys; sys.argv = ['radiodata', '--help']\n"
        "from radiodata.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'tiledb', 'pandas', 'nibabel'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert "Usage" in done.stdout


def test_verify_names_what_differs_and_fails(run, make_files: MakeFiles, tmp_path: Path) -> None:
    images, uri = make_files(2), tmp_path / "cohort"
    assert run("ingest", uri, *given(images))[0] == 0
    assert run("verify", uri)[:2] == (0, f"4 volumes checked, 0 differ: {uri}\n")
    assert run("verify", uri, "--collection", "CT", "--sample", "1")[1] == f"1 volumes checked, 0 differ: {uri}\n"
    shutil.rmtree(uri / "CT" / "voxels")
    code, out, err = run("verify", uri)
    assert (code, out) == (1, f"4 volumes checked, 2 differ: {uri}\n")
    assert all(f"{subject}_CT" in err for subject in Cohort(uri).subjects)
