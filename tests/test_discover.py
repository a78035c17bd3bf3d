"""Files become subjects by rules that people know; all that is wrong is said at once."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MakeFiles, ras_affine, save

from radiodata.errors import ConfigError, Problem
from radiodata.ingest.checks import check_grids, misaligned
from radiodata.ingest.discover import find_files, group_subjects, is_label_name, subject_of
from radiodata.ingest.items import Grid, Item, Subject
from radiodata.ingest.nifti import NiftiFile


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.nii.gz", "a.nii", ".hidden.nii.gz", "._a.nii", "notes.txt", "deep/c.nii.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_globs_and_lists(folder: Path) -> None:
    assert [p.name for p in find_files(folder)] == ["a.nii", "b.nii.gz"]
    assert [p.name for p in find_files(str(folder))] == ["a.nii", "b.nii.gz"]
    assert [p.name for p in find_files(f"{folder}/*.nii.gz")] == ["b.nii.gz"]
    assert [p.name for p in find_files(f"{folder}/**/*.nii.gz")] == ["b.nii.gz", "c.nii.gz"]
    assert [p.name for p in find_files(folder / "*.nii*")] == ["a.nii", "b.nii.gz"]
    listed = [folder / "deep" / "c.nii.gz", str(folder / "a.nii")]
    assert find_files(listed) == [Path(p) for p in listed]
    assert find_files(folder / "nothing") == []


def test_a_file_alone_is_found(folder: Path) -> None:
    assert find_files(folder / "a.nii") == [folder / "a.nii"]


@pytest.mark.parametrize(
    ("path", "rule", "subject"),
    [
        ("data/liver_12.nii.gz", None, "liver_12"),
        ("data/liver_12_0000.nii.gz", None, "liver_12"),
        ("data/case_0001_0000.nii.gz", None, "case_0001"),
        ("data/v1.2.nii", None, "v1.2"),
        ("data/_0000.nii", None, "_0000"),
        ("bids/sub-07/ses-1/anat/sub-07_ses-1_T1w.nii.gz", None, "sub-07"),
        ("bids/sub-A3x_ct.nii", None, "sub-A3x"),
        ("data/影像 é.nii.gz", None, "影像 é"),
        ("site/P12/ct.nii.gz", r"(P\d+)/", "P12"),
        ("site/P12/ct.nii.gz", r"P\d+", "P12"),
        ("site/P12/ct.nii.gz", lambda p: p.parent.name.lower(), "p12"),
    ],
)
def test_subject_ids(path: str, rule: object, subject: str) -> None:
    assert subject_of(Path(path), rule) == subject  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "why"),
    [(r"(X\d+)", "finds no id in"), (r"(X)?ct", "finds no id in"), ("()", "finds no id in"), ("(", "no regular expr")],
)
def test_rules_that_find_nothing(rule: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        subject_of(Path("site/P12/ct.nii.gz"), rule)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("seg", True), ("labels", True), ("liver_mask", True), ("seg2", True), ("GT", True), ("organs", True),
        ("CT", False), ("T1w", False), ("segment", False), ("unlabeled", False), ("masked_ct", False), ("gtv", False),
    ],
)  # fmt: skip
def test_collections_that_hold_labels_by_name(name: str, label: bool) -> None:
    assert is_label_name(name) is label


# problems --------------------------------------------------------------------------------------


def why(problems: list, about: str) -> str:
    found = [str(p) for p in problems if about in p.where]
    assert len(found) == 1, (about, [str(p) for p in problems])
    return found[0]


def test_everything_wrong_with_files_and_rows_is_said_at_once(tmp_path: Path) -> None:
    images = {
        "CT": [tmp_path / n for n in ("a.nii", "b.nii", "a.nii.gz", "c.nii")],
        "seg": [tmp_path / n for n in ("a.nii", "d.nii")],
        "dose": str(tmp_path / "*.dose"),
    }
    table = pd.DataFrame({"age": [1, 2]}, index=["a", "ghost"])
    subjects, problems = group_subjects(images, None, table)
    assert subjects == []  # each has a problem
    assert "no file matches" in why(problems, "collection 'dose'")
    assert "subject id 'a' is also that of" in why(problems, "a.nii.gz")
    assert "has a row in obs_meta but no file" in why(problems, "ghost")
    texts = [str(p) for p in problems]
    for subject, missing in (("b", "seg, dose"), ("c", "seg, dose"), ("d", "CT, dose"), ("a", "dose")):
        assert any(t.startswith(f"{subject}: has no file in {missing}") for t in texts)
    assert [t for t in texts if t.endswith("has files but no row in obs_meta")] == [
        f"{s}: has files but no row in obs_meta" for s in ("b", "c", "d")
    ]


def test_ids_that_a_rule_does_not_give_are_problems(tmp_path: Path) -> None:
    files = [tmp_path / "x_1.nii", tmp_path / "y.nii", tmp_path / "z.nii"]
    subjects, problems = group_subjects({"CT": files}, r"x_(\d)", None)
    assert [s.subject for s in subjects] == ["1"]
    assert {p.where for p in problems} == {str(f) for f in files[1:]}
    _, problems = group_subjects({"CT": files[:1]}, lambda _: "", None)
    assert "subject id is empty" in problems[0].why


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold names that are not UTF-8")
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    _, problems = group_subjects({"CT": [tmp_path / os.fsdecode(b"caf\xe9.nii")]}, None, None)
    assert "not UTF-8" in problems[0].why
    str(problems[0]).encode()


def grids(tmp_path: Path) -> dict[str, Subject]:
    shape, affine = (12, 11, 10), ras_affine(2)
    moved, turned = affine.copy(), affine.copy()
    moved[:3, 3] += (0, 3, 0)
    turned[0, 0] *= 1.1
    voxels = np.zeros(shape, np.int16)
    ct = save(voxels, affine, tmp_path / "ct.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no")
    others = {
        "same": save(voxels, affine, tmp_path / "same.nii.gz"),
        "other order": save(voxels, affine, tmp_path / "order.nii.gz", "PIR"),
        "shape": save(voxels[:-1], affine, tmp_path / "shape.nii.gz"),
        "moved": save(voxels, moved, tmp_path / "moved.nii.gz"),
        "stretched": save(voxels, turned, tmp_path / "turned.nii.gz"),
        "unreadable": bad,
        "frames": save(np.zeros((*shape, 3), np.int16), affine, tmp_path / "frames.nii.gz"),
    }
    return {
        name: Subject(name, (Item("c", "CT", NiftiFile(ct)), Item("s", "seg", NiftiFile(path))))
        for name, path in others.items()
    }


def check_headers(subjects: list[Subject], **how: Any) -> list[Problem]:
    return [problem for checked in check_grids(subjects, **how) for problem in checked.problems]


def test_headers_are_checked_against_each_other(tmp_path: Path) -> None:
    subjects = grids(tmp_path)
    problems = check_headers(list(subjects.values()), aligned=True, workers=2)
    assert len(problems) == 4
    assert "shapes differ, (12, 11, 10) and (11, 11, 10)" in why(problems, "shape (CT, seg)")
    assert "up to 3 mm apart" in why(problems, "moved (CT, seg)")
    assert "mm apart" in why(problems, "stretched (CT, seg)")
    assert "bad.nii.gz: is not a NIfTI" in why(problems, "bad.nii.gz")
    for name in ("shape", "moved", "stretched"):
        assert all(i.source.where in why(problems, f"{name} (") for i in subjects[name].items)


def test_alignment_is_that_of_the_axes_that_the_store_will_hold(tmp_path: Path) -> None:
    subjects = grids(tmp_path)
    pair = [subjects["other order"]]
    assert check_headers(pair, aligned=True, workers=1, orient="RAS") == []
    assert "shapes differ" in str(check_headers(pair, aligned=True, workers=1, orient=None)[0])
    assert len(check_headers(list(subjects.values()), aligned=False, workers=1)) == 1


@pytest.mark.parametrize(("shift", "aligned"), [(0.0, True), (0.04, True), (0.06, False), (1e-6, True)])
def test_what_rounding_moves_is_aligned(shift: float, aligned: bool) -> None:
    affine, other = np.diag([1.0, 1, 3, 1]), np.diag([1.0, 1, 3, 1])
    other[0, 3] = shift
    found = misaligned(Grid((9, 9, 9), 1, affine), Grid((9, 9, 9), 1, other))
    assert (found is None) is aligned


def test_a_long_list_is_cut_in_the_message_and_whole_in_the_error(make_files: MakeFiles, tmp_path: Path) -> None:
    from radiodata.errors import IngestError
    from radiodata.ingest import ingest_niftis

    for number in range(30):
        (tmp_path / f"x{number}.nii").write_bytes(b"")
    with pytest.raises(IngestError) as caught:
        ingest_niftis(str(tmp_path / "c"), {"CT": [tmp_path / f"x{n}.nii" for n in range(30)]})
    assert len(caught.value.problems) == 30
    assert re.search(r"nothing was written to .* \(30 problem\(s\)\)", str(caught.value))
    assert str(caught.value).endswith("... and 10 more in `.problems`")
