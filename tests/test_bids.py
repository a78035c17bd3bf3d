"""BIDS datasets and tables of paths into cohorts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ras_affine, save

from radiodata.errors import ConfigError, IngestError
from radiodata.ingest import ingest_bids, ingest_table
from radiodata.store import Cohort

SHAPE = (12, 11, 10)


def voxels(seed: int, high: int = 900) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, SHAPE).astype(np.int16)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two participants, one with two sessions and two runs; sidecars at every level; a lesion mask."""
    pytest.importorskip("bids", reason="needs radiodata[bids]")
    root = tmp_path / "ds"
    write(root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.9.0"})
    write(
        root / "participants.tsv",
        "participant_id\tage\tsex\tscore\tsite\nsub-01\t34\tF\t1.5\tA\nsub-02\tn/a\tM\tn/a\tA\nsub-09\t3\tF\t2\tB\n",
    )
    write(root / "participants.json", {"sex": {"Levels": {"F": "female", "M": "male"}}, "score": {"Units": "mm"}})
    write(root / "T1w.json", {"FlipAngle": 9, "EchoTime": 0.003, "PatientName": "Doe^Jane", "SeriesInstanceUID": "1.2"})
    write(root / "sub-01" / "ses-a" / "sub-01_ses-a_T1w.json", {"EchoTime": 0.004})
    for number, (subject, session, run) in enumerate((("01", "a", 1), ("01", "a", 2), ("01", "b", 1), ("02", "a", 1))):
        folder = root / f"sub-{subject}" / f"ses-{session}" / "anat"
        stem = f"sub-{subject}_ses-{session}_run-{run}"
        save(voxels(number), ras_affine(0), folder / f"{stem}_T1w.nii.gz")
        if number == 1:
            write(folder / f"{stem}_T1w.json", {"EchoTime": 0.005, "SliceTiming": [0, 1]})
    save(voxels(9), ras_affine(0), root / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_FLAIR.nii")
    scans = "filename\tacq_time\tquality\nanat/sub-02_ses-a_run-1_T1w.nii.gz\t2020-01-02T10:10:10\t3\n"
    write(root / "sub-02" / "ses-a" / "sub-02_ses-a_scans.tsv", scans)
    man = root / "derivatives" / "man"
    write(man / "dataset_description.json", {"Name": "man", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "man"}]})
    mask = (voxels(3) > 700).astype(np.uint8)
    save(mask, ras_affine(0), man / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_run-1_desc-lesion_mask.nii.gz")
    save(voxels(3), ras_affine(0), man / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_run-1_desc-preproc_T1w.nii.gz")
    return root


def test_a_dataset_becomes_a_cohort(dataset: Path, tmp_path: Path) -> None:
    report = ingest_bids(str(tmp_path / "c"), dataset, tiling=8)
    cohort = Cohort(tmp_path / "c")
    assert (report.added, cohort.collections) == (["sub-01", "sub-02"], ("FLAIR", "T1w", "lesion_mask"))
    assert [c.kind for c in (cohort["T1w"], cohort["lesion_mask"])] == ["image", "label"]
    rows = cohort["T1w"].obs
    assert set(rows.index) == {
        "sub-01_ses-a_run-1_T1w", "sub-01_ses-a_run-2_T1w", "sub-01_ses-b_run-1_T1w", "sub-02_ses-a_run-1_T1w",
    }  # fmt: skip
    assert rows.loc["sub-01_ses-a_run-2_T1w", ["session", "run", "echo_time", "flip_angle"]].tolist() == [
        "a",
        2,
        0.005,
        9,
    ]
    assert rows["echo_time"].round(3).tolist() == [0.004, 0.005, 0.003, 0.003]
    assert rows.loc["sub-01_ses-a_run-2_T1w", "slice_timing"] == "[0, 1]"
    assert rows["quality"].dropna().tolist() == [3.0]
    assert not {"patient_name", "series_instance_uid", "acq_time"} & set(rows.columns)
    for number, name in enumerate(sorted(rows.index)):
        volume = next(v for v in cohort["T1w"] if v.obs_id == name)
        np.testing.assert_array_equal(volume.to_numpy(), voxels(number))


def test_participants_have_the_types_that_are_told(dataset: Path, tmp_path: Path) -> None:
    report = ingest_bids(str(tmp_path / "c"), dataset, tiling=8)
    meta = Cohort(tmp_path / "c").obs_meta
    assert str(meta["sex"].dtype) == "category"
    assert (meta["age"].dtype.kind, meta["age"].isna().tolist()) == ("i", [False, True])
    assert meta["score"].dtype.kind == "f"
    assert meta.loc["sub-01"].tolist() == [34, "F", 1.5, "A"]
    assert [n.where for n in report.notes] == ["sub-09"]
    assert ingest_bids(str(tmp_path / "c"), dataset).present == ["sub-01", "sub-02"]


def test_chosen_suffixes_only(dataset: Path, tmp_path: Path) -> None:
    ingest_bids(str(tmp_path / "c"), dataset, suffixes=["FLAIR"], tiling=8)
    assert Cohort(tmp_path / "c").collections == ("FLAIR", "lesion_mask")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("participants.tsv", "id\tage\nsub-01\t3\n", "has no column participant_id"),
        ("participants.tsv", "participant_id\tsex\nsub-01\tX\n", "participants.json tells of"),
        ("participants.tsv", "participant_id\tscore\nsub-01\tlots\n", "no numbers of mm"),
        ("participants.json", "{", "cannot be read"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    dataset: Path, tmp_path: Path, name: str, content: str, why: str
) -> None:
    write(dataset / name, content)
    with pytest.raises(ConfigError, match=why):
        ingest_bids(str(tmp_path / "c"), dataset)
    assert not (tmp_path / "c").exists()


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no dataset_description\.json"):
        ingest_bids(str(tmp_path / "c"), tmp_path)


# tables ----------------------------------------------------------------------------------------


def test_a_table_names_the_files(tmp_path: Path) -> None:
    for number in range(3):
        save(voxels(number), ras_affine(0), tmp_path / "in" / f"{number}.nii.gz")
        save((voxels(number) > 500).astype(np.uint8), ras_affine(0), tmp_path / "in" / f"{number}_l.nii.gz")
    rows = [
        "who,CT,liver_mask,age",
        "001,in/0.nii.gz,in/0_l.nii.gz,40",
        "002,in/1.nii.gz,,41",
        "NA,in/2.nii.gz,in/2_l.nii.gz,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    ingest_table(str(tmp_path / "c"), tmp_path / "t.csv", tiling=8)
    cohort = Cohort(tmp_path / "c")
    assert cohort.subjects == ["001", "002", "NA"]
    assert (cohort["liver_mask"].kind, len(cohort["liver_mask"]), len(cohort.CT)) == ("label", 2, 3)
    assert cohort.obs_meta["age"].fillna(-1).tolist() == [40, 41, -1]
    np.testing.assert_array_equal(cohort.CT.of_subject("002").to_numpy(), voxels(1))


def test_a_frame_names_the_files_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    path = str(save(voxels(0), ras_affine(0), tmp_path / "0.nii.gz"))
    frame = pd.DataFrame({"file": [path, None], "age": [1, 2]}, index=["a", "b"])
    with pytest.raises(IngestError, match="b: has no path in"):
        ingest_table(str(tmp_path / "c"), frame, images={"CT": "file"})
    report = ingest_table(str(tmp_path / "c"), frame, images={"CT": "file"}, on_error="skip", tiling=8)
    assert (report.added, len(report.refused)) == (["a"], 1)
    with pytest.raises(ConfigError, match="has no columns"):
        ingest_table(str(tmp_path / "d"), frame, images={"CT": "path"})
    with pytest.raises(ConfigError, match="no column of the table"):
        ingest_table(str(tmp_path / "d"), frame[["age"]])
