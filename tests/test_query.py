"""Filters of cohorts and collections: both tables, joined by subject, in any order of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import SHAPES, write_subject

from radiodata.errors import ExpressionError
from radiodata.store import Cohort

AGES = [30, 50, None, 70, 41, 20]
SEXES = ["F", "M", "F", None, "F", "M"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("query")
    ids = [f"sub-{n:02d}" for n in range(6)]
    for number, shape in enumerate(SHAPES):
        write_subject(folder / "files", number, shape)
    table = pd.DataFrame({"age": pd.array(AGES, dtype="Int64"), "sex": SEXES, "size_x": range(6)}, index=ids)
    images: dict[str, str | Path] = {n: folder / "files" / n for n in ("CT", "seg")}
    return Cohort.from_niftis(folder / "cohort", images, obs_meta=table, tiling=16)


def test_a_filtered_cohort_holds_its_subjects_volumes_only(cohort: Cohort) -> None:
    view = cohort.filter("age > 25 and sex == 'F'")
    assert view.subjects == ["sub-00", "sub-04"]
    assert [v.obs_subject_id for v in view.CT] == [v.obs_subject_id for v in view.seg] == view.subjects
    assert np.array_equal(view.CT.iloc[1].to_numpy(), cohort.CT.loc["sub-04_CT"].to_numpy())
    assert len(cohort) == 6
    assert view.filter("age > 40").subjects == ["sub-04"]
    assert len(view.filter("age > 99")) == 0
    assert len(view.filter("age > 99").CT) == 0


def test_columns_of_volumes_choose_subjects(cohort: Cohort) -> None:
    wide = [f"sub-{n:02d}" for n, shape in enumerate(SHAPES) if shape[0] >= 38]
    assert cohort.filter("CT.size_x >= 38").subjects == wide
    assert cohort.filter("CT.size_x >= 38 and age < 45").subjects == ["sub-00", "sub-04", "sub-05"]
    assert cohort.filter("seg.obs_id endswith '03_seg' or obs_subject_id == 'sub-01'").subjects == ["sub-01", "sub-03"]


def test_columns_of_subjects_choose_volumes_in_any_order_of_rows(cohort: Cohort) -> None:
    turned = cohort.CT.iloc[::-1]
    found = turned.filter("age >= 41 or obs_id == 'sub-05_CT'")
    assert list(found.obs.index) == ["sub-05_CT", "sub-04_CT", "sub-03_CT", "sub-01_CT"]
    assert list(found.filter("sex is not null and dtype == 'int16'").obs.index) == [
        "sub-05_CT",
        "sub-04_CT",
        "sub-01_CT",
    ]
    assert list(cohort.subset(["sub-03", "sub-01"]).CT.filter("age > 60").obs.index) == ["sub-03_CT"]


def test_a_name_in_both_tables_is_that_of_the_table_filtered(cohort: Cohort) -> None:
    assert cohort.filter("size_x == 5").subjects == ["sub-05"]
    assert len(cohort.CT.filter("size_x == 5")) == 0
    assert len(cohort.CT.filter(f"size_x == {SHAPES[2][0]}")) == 1


def test_errors_name_the_column_and_those_near_it(cohort: Cohort) -> None:
    for refused in ("agee > 4", "CT.age > 4", "PET.size_x > 3"):
        with pytest.raises(ExpressionError, match="that is not there"):
            cohort.filter(refused)
    with pytest.raises(ExpressionError, match="did you mean age"):
        cohort.CT.filter("agee > 4")
    with pytest.raises(ExpressionError, match=r"did you mean CT\.size_x"):
        cohort.filter("CT.sise_x > 4")
