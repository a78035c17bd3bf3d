"""DICOM into cohorts: volumes, labels and columns as they should be, and patients that nobody can tell."""

from __future__ import annotations

import json
import logging
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs radiodata[dicom]")

import dicom_series as dicom
import pydicom
import tiledb
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from radiodata.errors import ConfigError, IngestError
from radiodata.geometry import ras_transform, reorient
from radiodata.ingest.dicom import DicomError, Privacy, ingest_dicom, key_file, read_series
from radiodata.ingest.dicom.privacy import TAGS
from radiodata.ingest.dicom.scan import find, read_dataset
from radiodata.store import Cohort, verify

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*VR")]
KEY = Privacy(bytes(range(32)))


def patients(root: Path, count: int = 2) -> dict[str, dicom.Made]:
    """One CT series each."""
    made = {}
    for number in range(count):
        name = f"P{number + 1}"
        who = {"PatientID": name, "PatientName": f"Doe^{name}", "PatientBirthDate": "19600506", "StudyDate": "20200102"}
        uids = {"series": f"1.2.3.{number}.7", "uid": number + 1, "StudyInstanceUID": f"1.2.9.{number}"}
        more = {
            "PatientSex": "F",
            "StudyID": "ward-seven",
            "SeriesDescription": "Thorax of Doe",
            "Manufacturer": "Acme",
        }
        made[name] = dicom.series(root / name, seed=number, **who, **uids, **more)
    return made


def in_ras(made: dicom.Made) -> np.ndarray:
    """Physical values ``(x, y, z)``, axes turned to the closest RAS+."""
    return np.asarray(reorient(made.values[None], ras_transform(made.affine))[0])


def test_series_become_volumes_of_their_patients(tmp_path: Path) -> None:
    made = patients(tmp_path / "in")
    report = ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    cohort = Cohort(tmp_path / "c")
    assert report.added == cohort.subjects
    assert (cohort.collections, list(verify(cohort).problems)) == (("CT",), [])
    for name, series in made.items():
        header = Dataset()
        header.PatientID = name
        volume = cohort.CT.of_subject(KEY.subject(header))
        np.testing.assert_array_equal(volume.to_numpy(), in_ras(series))
        assert volume.obs["modality"] == "CT"
        assert (volume.obs["manufacturer"], volume.obs["patient_sex"], volume.obs["age"]) == ("Acme", "F", 59)
        assert volume.obs["source_format"] == "dicom"
    rows = cohort.CT.obs
    assert rows["study_instance_uid"].nunique() == 2
    assert "1.2" not in "".join(rows["study_instance_uid"])


def test_a_rerun_adds_what_is_new_and_refuses_what_changed(tmp_path: Path) -> None:
    made = patients(tmp_path / "in", 2)
    uri = str(tmp_path / "c")
    shutil.move(tmp_path / "in" / "P2", tmp_path / "later")
    assert len(ingest_dicom(uri, tmp_path / "in", privacy=KEY, tiling=8).added) == 1
    shutil.move(tmp_path / "later", tmp_path / "in" / "deep")
    again = ingest_dicom(uri, tmp_path / "in", privacy=KEY)
    assert (len(again.added), len(again.present)) == (1, 1)
    assert len(ingest_dicom(uri, tmp_path / "in", privacy=KEY).present) == 2
    made["P1"].files[-1].unlink()
    with pytest.raises(IngestError, match="in the cohort with another file in 'CT'"):
        ingest_dicom(uri, tmp_path / "in", privacy=KEY)


def test_stacks_of_a_series_are_volumes_of_their_own(tmp_path: Path) -> None:
    for number, echo in enumerate((4.5, 9.0)):
        dicom.series(tmp_path / "in" / str(number), seed=1, uid=number + 1, EchoTime=echo, Modality="MR")
    ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    rows = Cohort(tmp_path / "c")["MR"].obs
    assert sorted(rows["echo_time"]) == [4.5, 9.0]
    assert rows.index.nunique() == 2


def test_collections_by_description(tmp_path: Path) -> None:
    for number, text in enumerate(("T1 tra", "t2_tse", "localizer")):
        more = {"SeriesDescription": text, "Modality": "MR", "series": f"1.2.3.{number}", "uid": number + 1}
        dicom.series(tmp_path / "in" / str(number), seed=number, **more)
    rules = {"T1": r"\bt1\b", "T2": "t2"}
    ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, collections=rules, tiling=8)
    assert Cohort(tmp_path / "c").collections == ("MR", "T1", "T2")
    with pytest.raises(ConfigError, match="no regular expression"):
        ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, collections={"T1": "("})


def test_what_cannot_be_taken_is_skipped_and_listed(tmp_path: Path) -> None:
    patients(tmp_path / "in", 3)
    damaged = tmp_path / "in" / "P2" / "im002.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    uri = str(tmp_path / "c")
    cut = tmp_path / "in" / "cut.dcm"
    cut.write_bytes(damaged.read_bytes()[:180])
    with pytest.raises(IngestError, match=r"nothing was written.*(?s:.)*cut\.dcm: "):
        ingest_dicom(uri, tmp_path / "in", privacy=KEY, tiling=8)
    assert not Path(uri).exists()
    plan = ingest_dicom(uri, tmp_path / "in", privacy=KEY, on_error="skip", dry_run=True)
    assert (len(plan.volumes), set(plan.volumes["outcome"]), Path(uri).exists()) == (3, {"new"}, False)
    ingest_dicom(uri, tmp_path / "in", on_error="skip", dry_run=True)
    assert not Path(f"{uri}.key").exists()
    report = ingest_dicom(uri, tmp_path / "in", privacy=KEY, tiling=8, on_error="skip")
    assert (len(report.added), len(Cohort(uri).CT), len(report.refused)) == (2, 2, 2)
    report.to_csv(tmp_path / "refused.csv")
    text = (tmp_path / "refused.csv").read_text()
    assert "im002.dcm" in text
    assert "cut.dcm" in text
    assert "where,why" in text
    assert any("notes.txt: is no DICOM file" in str(note) for note in report.notes)


# privacy ---------------------------------------------------------------------------------------


def test_what_was_ingested_comes_out_as_nifti(tmp_path: Path) -> None:
    import nibabel as nib

    from radiodata.export import export

    made = patients(tmp_path / "in", 2)
    ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    done = export(Cohort(tmp_path / "c"), tmp_path / "out")
    truths = [in_ras(series) for series in made.values()]
    for path in (tmp_path / "out" / "CT").glob("*.nii.gz"):
        image = nib.load(path)
        assert any(np.array_equal(np.asanyarray(image.dataobj), truth) for truth in truths)
    assert len([f for f in done.files if f.parent.name == "CT"]) == 2


def test_the_key_is_made_once_and_kept_beside_the_cohort(tmp_path: Path) -> None:
    patients(tmp_path / "in", 1)
    uri = str(tmp_path / "c")
    first = ingest_dicom(uri, tmp_path / "in", tiling=8)
    place = tmp_path / "c.key"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert ingest_dicom(uri, tmp_path / "in").present == first.added
    assert not any(place.read_text().strip().encode() in p.read_bytes() for p in Path(uri).rglob("*") if p.is_file())
    place.write_text("short")
    with pytest.raises(ConfigError, match="holds no key"):
        ingest_dicom(uri, tmp_path / "in")
    with pytest.raises(ConfigError, match="--key-file"):
        ingest_dicom("s3://bucket/c", tmp_path / "in")
    assert key_file(tmp_path / "a" / "other.key") != key_file(tmp_path / "b.key")


def test_days_differ_as_they_did_and_tell_no_date(tmp_path: Path) -> None:
    for number, day in enumerate(("20200228", "20200301")):
        more = {"StudyDate": day, "series": f"1.2.{number}", "uid": number + 1, "StudyInstanceUID": f"1.9.{number}"}
        dicom.series(tmp_path / "in" / str(number), seed=number, **more)
    ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    days = sorted(Cohort(tmp_path / "c").CT.obs["study_day"])
    assert days[1] - days[0] == 2
    other = Privacy(bytes(range(1, 33)))
    header = pydicom.dcmread(next((tmp_path / "in" / "0").iterdir()))
    assert other.columns(header)["study_day"] != KEY.columns(header)["study_day"]


@pytest.mark.parametrize(
    ("told", "age"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "097Y"}, 90),
        ({"PatientAge": "x"}, None),
    ],
)
def test_ages(told: dict[str, str], age: int | None) -> None:
    header = Dataset()
    for name, value in told.items():
        setattr(header, name, value)
    assert KEY.columns(header).get("age") == age


def test_a_table_of_ids_names_the_subjects(tmp_path: Path) -> None:
    patients(tmp_path / "in", 2)
    mapped = Privacy(KEY.key, ids={"P1": "one"})
    with pytest.raises(IngestError, match="PatientID is not in the table of ids"):
        ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=mapped)
    assert ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=mapped, on_error="skip", tiling=8).added == [
        "one"
    ]


def test_what_identifies_is_kept_only_loudly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    patients(tmp_path / "in", 1)
    told = Privacy(KEY.key, keep=("SeriesDescription",))
    with caplog.at_level(logging.WARNING, logger="radiodata"):
        ingest_dicom(str(tmp_path / "a"), tmp_path / "in", privacy=told, tiling=8)
        ingest_dicom(str(tmp_path / "b"), tmp_path / "in", privacy=Privacy(KEY.key, identify=True), tiling=8)
    assert "SeriesDescription will be stored as they are" in caplog.text
    assert "PatientID, UIDs, dates and paths will be stored" in caplog.text
    assert Cohort(tmp_path / "a").CT.obs["series_description"].tolist() == ["Thorax of Doe"]
    row = Cohort(tmp_path / "b").CT.obs.iloc[0]
    assert (row["patient_id"], row["study_date"], row["series_instance_uid"]) == ("P1", "2020-01-02", "1.2.3.0.7")
    with pytest.raises(ConfigError, match="no DICOM attributes"):
        Privacy(KEY.key, keep=("SeriesDescriptio",))
    with pytest.raises(ConfigError, match="at least 16"):
        Privacy(b"short")


def test_pixels_that_may_show_the_patient_are_told_of(tmp_path: Path) -> None:
    dicom.series(tmp_path / "in", BurnedInAnnotation="YES")
    report = ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    assert "BurnedInAnnotation is YES" in str(report.notes[0])
    assert Cohort(tmp_path / "c").CT.obs["burned_in_annotation"].tolist() == ["YES"]


ALLOWED_VR = {"PN", "DA", "DT", "TM", "UI", "LO", "SH", "ST", "LT", "UT", "AE"}


CLASSES = {"ROIName", "SegmentLabel", "CodeMeaning"}
"""What labels are called is stored: it is what a network learns."""


def identifying(dataset: Any, allowed: set[str]) -> set[str]:
    """Texts of a data set that may tell a patient, at any depth: all names, days, times, identifiers and free texts."""
    found: set[str] = set()
    for element in elements(dataset):
        if element.VR == "SQ":
            for inside in element.value:
                found |= identifying(inside, allowed)
        elif element.VR in ALLOWED_VR and element.keyword not in allowed | CLASSES:
            value = element.value
            several = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]
            found |= {str(v) for v in several if v}
    return {
        t for t in found if len(t) >= (8 if t.replace(".", "").isdigit() else 6) and not t.startswith("1.2.840.10008.")
    }


def elements(dataset: Any) -> list[Any]:
    """Elements of a data set; those that pydicom cannot make sense of are left out, and there are few."""
    made, odd = [], []
    for tag in dataset.keys():  # noqa: SIM118 (a Dataset iterates over its elements)
        try:
            made.append(dataset[tag])
        except Exception:
            odd.append(tag)
    assert len(odd) <= 2, odd
    return made


def classes(dataset: Any) -> set[str]:
    inside = [classes(item) for e in elements(dataset) if e.VR == "SQ" for item in e.value]
    return {str(e.value) for e in elements(dataset) if e.keyword in CLASSES}.union(*inside)


def decoded(uri: Path) -> bytes:
    """All cells of all tables of a store, beside its files as they are, and their names."""
    parts = [path.read_bytes() for path in uri.rglob("*") if path.is_file()]
    for schema in uri.rglob("__schema"):
        if "voxels" in schema.parts:
            continue
        with tiledb.open(str(schema.parent)) as array:
            cells = [np.ma.getdata(cell) for column in array[:].values() for cell in np.ma.getdata(column).ravel()]
            parts += [c.tobytes() if c.dtype != object else as_bytes(c.item()) for c in cells]
    parts += [str(path).encode() for path in uri.rglob("*")]
    return b"\n".join(parts)


def as_bytes(cell: Any) -> bytes:
    return cell if isinstance(cell, bytes) else str(cell).encode()


def leaked(uri: Path, roots: list[Path]) -> tuple[set[str], int]:
    """Identifying values of DICOM files that are in some byte of a store, and how many were looked for."""
    values, known = set[str](), {"0" * 64}
    for source in find(roots):
        try:
            header = read_dataset(source)
        except DicomError:
            continue
        values |= identifying(header, set(TAGS))
        known |= {str(e.value) for e in elements(header) if e.keyword in TAGS} | classes(header)
    held, told = decoded(uri), "\n".join(known).lower()
    there = {v for v in values if v.encode("utf-8", "replace") in held and v.lower() not in told}
    return there, len(values)


@pytest.mark.slow
def test_nothing_identifying_of_real_scans_is_in_any_byte(shared_data: Path, tmp_path: Path) -> None:
    names = ("dicom_ref", "dicom_odd", "dicom_seg", "dicom_hard", "multimodal", "corrupt")
    roots = [shared_data / name for name in names]
    report = ingest_dicom(str(tmp_path / "c"), roots, privacy=KEY, on_error="skip", tiling=64)
    assert len(report.added) > 15
    found, looked_for = leaked(tmp_path / "c", roots)
    assert looked_for > 500
    assert found == set()


def test_what_identifies_would_be_found(tmp_path: Path) -> None:
    who = {"PatientID": "Zebedee-77", "StudyInstanceUID": "1.2.3.4.5.6.7", "InstitutionName": "Saint Elsewhere"}
    dicom.series(tmp_path / "in", **who)
    kept = Privacy(KEY.key, keep=("InstitutionName",), identify=True)
    ingest_dicom(str(tmp_path / "told"), tmp_path / "in", privacy=kept, tiling=8)
    ingest_dicom(str(tmp_path / "hidden"), tmp_path / "in", privacy=KEY, tiling=8)
    assert set(who.values()) <= leaked(tmp_path / "told", [tmp_path / "in"])[0]
    assert leaked(tmp_path / "hidden", [tmp_path / "in"])[0] == set()


def test_volumes_that_no_header_tells_apart_are_not_lost_in_silence(tmp_path: Path) -> None:
    made = dicom.series(tmp_path / "in", shape=(5, 12, 12))
    structures(made, {"Body": [square(0.5, 9.5, 1)]}, tmp_path / "in" / "a.dcm")
    shutil.copy(tmp_path / "in" / "a.dcm", tmp_path / "in" / "b.dcm")
    report = ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    assert any("a copy of" in str(note) for note in report.notes)
    structures(made, {"Body": [square(2.5, 9.5, 1)]}, tmp_path / "in" / "b.dcm")  # of the same UID
    with pytest.raises(IngestError, match="nothing in its header tells it from"):
        ingest_dicom(str(tmp_path / "d"), tmp_path / "in", privacy=KEY)


def test_all_that_begin_at_once_find_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: key_file(tmp_path / "deep" / "c.key"), range(64)))
    assert len(keys) == 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["c.key"]


# labels ----------------------------------------------------------------------------------------


def structures(made: dicom.Made, regions: dict[str, list[np.ndarray]], path: Path, series: str = "1.2.3.4") -> Path:
    """Write a structure set: of each region contours ``(points, 3)`` in voxels (column, row, slice)."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", "1.2.3.99"
    data.Modality, data.PatientID = "RTSTRUCT", "P1"
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = series
    study.RTReferencedSeriesSequence = Sequence([referenced])
    frame.RTReferencedStudySequence = Sequence([study])
    data.ReferencedFrameOfReferenceSequence = Sequence([frame])
    data.StructureSetROISequence, data.ROIContourSequence = Sequence(), Sequence()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ made.affine
    for number, (name, contours) in enumerate(regions.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, Sequence()
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.ContourData = [f"{v:.9g}" for v in (points @ lps[:3, :3].T + lps[:3, 3]).ravel()]
            contour.NumberOfContourPoints = len(points)
            drawn.ContourSequence.append(contour)
        data.StructureSetROISequence.append(roi)
        data.ROIContourSequence.append(drawn)
    return dicom.save(data, np.zeros((0,), np.int16), path)


def square(low: float, high: float, plane: int) -> np.ndarray:
    return np.array([[low, low, plane], [high, low, plane], [high, high, plane], [low, high, plane]], np.float64)


def test_regions_with_holes_and_overlaps(tmp_path: Path) -> None:
    made = dicom.series(tmp_path / "in", shape=(5, 12, 12))
    regions = {"Body": [square(0.5, 9.5, 1), square(3.5, 5.5, 1)], "Liver": [square(6.5, 8.5, 1)]}
    structures(made, regions, tmp_path / "in" / "rs.dcm")
    report = ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    cohort = Cohort(tmp_path / "c")
    volume = cohort["RTSTRUCT"].iloc[0]
    truth = np.zeros((12, 12, 5), np.uint8)
    truth[1:10, 1:10, 1] = 1
    truth[4:6, 4:6, 1] = 0
    truth[7:9, 7:9, 1] = 2
    np.testing.assert_array_equal(volume.to_numpy(), reorient(truth[None], ras_transform(made.affine))[0])
    assert json.loads(volume.obs["label_names"]) == {"Body": 1, "Liver": 2}
    assert volume.obs["references"] == cohort.CT.ids[0]
    assert volume.obs["overlapping_voxels"] == 4
    assert "labels overlap in 4 voxels" in str(report.notes[0])
    np.testing.assert_allclose(volume.affine, cohort.CT.iloc[0].affine)
    assert cohort.CT.iloc[0].obs["foreground_voxels"] == (truth > 0).sum()


def test_chosen_labels_have_the_values_that_are_given(tmp_path: Path) -> None:
    made = dicom.series(tmp_path / "in", shape=(5, 12, 12))
    structures(made, {"Body": [square(0.5, 9.5, 1)], "LIVER": [square(6.5, 8.5, 1)]}, tmp_path / "in" / "rs.dcm")
    report = ingest_dicom(
        str(tmp_path / "c"), tmp_path / "in", privacy=KEY, label_values={"liver": 7, "spleen": 8}, tiling=8
    )
    assert Cohort(tmp_path / "c")["RTSTRUCT"].obs["label_values"].tolist()[0].tolist() == [0, 7]
    assert "labels ['Body'] are left out" in str(report.notes[0])


def test_later_structure_sets_use_the_values_of_the_cohort(tmp_path: Path) -> None:
    for number, names in enumerate((("Liver",), ("Aorta", "liver"))):
        folder = tmp_path / str(number)
        uid = {"series": f"1.2.3.{number}", "uid": number + 1, "PatientID": f"P{number}"}
        made = dicom.series(folder, shape=(5, 12, 12), seed=number, **uid)
        regions = {name: [square(0.5 + 3 * n, 2.5 + 3 * n, 1)] for n, name in enumerate(names)}
        structures(made, regions, folder / "rs.dcm", f"1.2.3.{number}")
        ingest_dicom(str(tmp_path / "c"), folder, privacy=KEY, tiling=8)
    told = [json.loads(text) for text in Cohort(tmp_path / "c")["RTSTRUCT"].obs["label_names"]]
    assert {"Liver": 1} in told
    assert {"Aorta": 2, "liver": 1} in told


def test_labels_that_lie_nowhere_are_refused(tmp_path: Path) -> None:
    made = dicom.series(tmp_path / "in", shape=(5, 12, 12))
    structures(made, {"Body": [square(0.5, 9.5, 1)]}, tmp_path / "in" / "rs.dcm", "9.9.9")
    with pytest.raises(IngestError, match=r"RTSTRUCT drawn on series 9\.9\.9, which is not among"):
        ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY)
    skewed = [*square(0.5, 9.5, 1), [0, 0, 0.4], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    structures(made, {"Body": [skewed]}, tmp_path / "in" / "rs.dcm")
    with pytest.raises(IngestError, match="does not lie in a plane"):
        ingest_dicom(str(tmp_path / "c"), tmp_path / "in", privacy=KEY, tiling=8)
    assert len(Cohort(tmp_path / "c")) == 0


def test_structure_sets_equal_the_masks_that_others_made(shared_data: Path, tmp_path: Path) -> None:
    import nibabel as nib

    root = shared_data / "multimodal" / "sts"
    ingest_dicom(str(tmp_path / "c"), root, privacy=KEY, on_error="skip", tiling=64)
    drawn, compared = list(Cohort(tmp_path / "c")["RTSTRUCT"]), 0
    for path in sorted(root.glob("*/nifti/*_mask.nii.gz")):
        image = nib.as_closest_canonical(nib.load(path))
        truth = np.asanyarray(image.dataobj) > 0
        same = [v for v in drawn if v.shape == truth.shape and np.allclose(v.affine, image.affine, atol=1e-2)]
        assert any(np.array_equal(v.to_numpy() > 0, truth) for v in same), path
        compared += 1
    assert compared == 6


def test_segmentations_equal_the_masks_that_others_made(shared_data: Path, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="needs radiodata[sitk]")
    root = shared_data / "dicom_seg" / "dcmqi_ct3"
    ingest_dicom(str(tmp_path / "c"), root, privacy=KEY, on_error="skip", tiling=64)
    cohort = Cohort(tmp_path / "c")
    (volume,) = list(cohort["SEG"])
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "ref" / "liver_seg.nrrd"))).transpose(2, 1, 0)
    turned = reorient(truth[None], ras_transform(read_series(root / "ct").series[0].stacks[0].affine))[0]
    np.testing.assert_array_equal(volume.to_numpy(), turned)
    np.testing.assert_allclose(volume.affine, cohort.CT.iloc[0].affine)
    assert volume.obs["references"] == cohort.CT.ids[0]
