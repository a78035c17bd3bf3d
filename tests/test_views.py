"""Views: by id, by position, by mask; of views too; with the set algebra of their ids; and what they look like."""

from __future__ import annotations

import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.errors import ConfigError, ObsNotFoundError, RadiodataError
from radiodata.store import Cohort, Volume

IDS = [f"sub-{n:02d}" for n in range(6)]


def test_subjects_by_id_position_and_mask(tiny: Tiny) -> None:
    cohort = tiny.cohort
    assert cohort.loc[["sub-04", "sub-01"]].subjects == ["sub-04", "sub-01"]
    assert cohort.loc["sub-03"].subjects == ["sub-03"] == cohort.iloc[3].subjects
    assert cohort.iloc[-2:].subjects == IDS[-2:] == cohort.tail(2).subjects
    assert cohort.iloc[[5, 0]].subjects == [IDS[5], IDS[0]]
    assert cohort.iloc[::-1].head(1).subjects == ["sub-05"]
    mask = cohort.obs_meta.index.isin(IDS[2:4])
    assert cohort.loc[mask].subjects == cohort.iloc[mask].subjects == IDS[2:4]
    series = pd.Series(mask, cohort.obs_meta.index)
    assert cohort.loc[series.iloc[::-1]].subjects == IDS[2:4], "a mask is matched by id, not by position"
    assert cohort.loc[[]].subjects == []
    assert len(cohort.head(0)) == 0
    assert len(cohort.tail(99)) == 6


def test_a_volume_by_id_or_position_is_a_volume_and_many_are_a_view(tiny: Tiny) -> None:
    ct = tiny.cohort.CT
    assert isinstance(ct.loc["sub-02_CT"], Volume)
    assert isinstance(ct.iloc[2], Volume)
    assert ct.loc["sub-02_CT"].obs_id == ct.iloc[2].obs_id == ct.iloc[-4].obs_id == "sub-02_CT"
    assert ct.loc[["sub-02_CT"]].ids == ["sub-02_CT"]
    chosen = tiny.cohort.loc[["sub-04", "sub-01"]].CT
    assert [v.obs_subject_id for v in chosen] == ["sub-04", "sub-01"]
    np.testing.assert_array_equal(chosen.iloc[0].to_numpy(), tiny.arrays["sub-04_CT"])
    assert list(chosen.tile_statistics().index) == ["sub-04_CT", "sub-01_CT"] == list(chosen.histograms().index)


def test_what_is_not_there_is_named_with_what_is_near(tiny: Tiny) -> None:
    cohort = tiny.cohort
    with pytest.raises(ObsNotFoundError, match=r"no subject \['sub-0'\]; did you mean 'sub-0\d'"):
        cohort.loc["sub-0"]
    with pytest.raises(ObsNotFoundError, match="sub-03"):
        cohort.head(2).loc[["sub-00", "sub-03"]]
    with pytest.raises(IndexError, match="position 2 is out of range"):
        cohort.head(2).iloc[2]
    with pytest.raises(IndexError, match="mask of 6 booleans"):
        cohort.loc[[True, False]]
    with pytest.raises(ObsNotFoundError, match="mask says nothing of"):
        cohort.loc[pd.Series([True], ["sub-00"])]
    with pytest.raises(ObsNotFoundError, match="no collection 'PT'; it has: CT, seg"):
        cohort["PT"]
    with pytest.raises(ConfigError, match="sample"):
        cohort.sample(7)
    with pytest.raises(ConfigError, match="-1 rows"):
        cohort.head(-1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_set_algebra_is_that_of_the_ids(tiny: Tiny, data: st.DataObject) -> None:
    chosen = st.lists(st.sampled_from(IDS), unique=True)
    a, b = data.draw(chosen), data.draw(chosen)
    one, other = tiny.cohort.loc[a], tiny.cohort.loc[b]
    assert (one & other).subjects == [s for s in a if s in b]
    assert (one | other).subjects == a + [s for s in b if s not in a]
    assert (one - other).subjects == [s for s in a if s not in b]
    assert set((one ^ other).subjects) == set(a) ^ set(b)
    assert (one.CT & other.CT).ids == [f"{s}_CT" for s in a if s in b]


def test_views_of_different_cohorts_do_not_mix(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="take both from one Cohort"):
        tiny.cohort.head(1) | Cohort(tiny.cohort.uri)
    with pytest.raises(ConfigError, match="views of itself"):
        tiny.cohort.CT | tiny.cohort.seg


def test_a_sample_is_the_same_for_the_same_seed(tiny: Tiny) -> None:
    draws = {tuple(tiny.cohort.sample(3, seed=s).subjects) for s in range(40)}
    assert tiny.cohort.sample(3, seed=4).subjects == tiny.cohort.sample(3, seed=4).subjects
    assert len(draws) > 5
    assert all(len(set(d)) == 3 and list(d) == sorted(d) for d in draws)


def test_views_do_not_change_what_they_are_views_of(tiny: Tiny) -> None:
    view = tiny.cohort.filter("age > 40")
    table = view.obs_meta
    table["age"] = 0
    table.loc[table.index[0], "sex"] = "nowhere"
    assert (view.obs_meta["age"] > 40).all()
    assert "nowhere" not in set(view.obs_meta["sex"])
    assert (tiny.cohort.obs_meta["age"] != 0).all()
    rows = tiny.cohort.CT.obs
    rows["slot"] = -1
    assert (tiny.cohort.CT.obs["slot"] >= 0).all()


def test_a_view_is_pickled_with_its_rows(tiny: Tiny) -> None:
    view = pickle.loads(pickle.dumps(tiny.cohort.loc[["sub-05", "sub-02"]]))
    assert view.subjects == ["sub-05", "sub-02"]
    np.testing.assert_array_equal(view.CT.iloc[1].to_numpy(), tiny.arrays["sub-02_CT"])


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> _Tags:
    tags = _Tags()
    tags.feed(html)
    assert tags.open == [], "tags are left open"
    return tags


def test_notebooks_show_what_is_there(tiny: Tiny) -> None:
    shown = parsed(tiny.cohort._repr_html_())
    text = " ".join(shown.text)
    for word in ("6 subjects", "CT", "seg", "sub-00", "age"):
        assert word in text
    shown = parsed(tiny.cohort.CT.head(2)._repr_html_())
    assert "sub-01_CT" in " ".join(shown.text)
    assert repr(tiny.cohort.head(2)).endswith("2 subjects, CT (2 images), seg (2 labels))")


def test_notebooks_are_shown_no_script_of_a_table(tmp_path: Path, make_files) -> None:
    images = make_files(1)
    meta = pd.DataFrame({"note": ["<script>alert(1)</script>"]}, index=["s000"])
    cohort = Cohort.from_niftis(tmp_path / "cohort", images, obs_meta=meta, tiling=8)
    shown = parsed(cohort._repr_html_())
    assert "script" not in shown.seen
    assert "<script>alert(1)</script>" in shown.text


@pytest.mark.parametrize("at", ["yesterday", 99, "1999-01-01"])
def test_versions_that_are_not_there(tiny: Tiny, at: object) -> None:
    with pytest.raises(RadiodataError, match=r"no version|neither a version nor a time"):
        Cohort(tiny.cohort.uri, at=at)  # type: ignore[arg-type]
