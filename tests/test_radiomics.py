"""Radiomic features: of the region that they say, in the table, and a model on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small import small_cohort

from radiodata.errors import ConfigError, PipelineError
from radiodata.radiomics import Radiomics
from radiodata.store import Cohort

pytest.importorskip("mirp")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::FutureWarning")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("radiomics"))


@pytest.mark.parametrize("label", [1, 2])
def test_features_are_those_of_the_region(cohort: Cohort, label: int) -> None:
    view = cohort.subset(cohort.subjects[:2])
    transform = Radiomics(cohort.uri, "seg", label, ("statistics", "morphology"))
    table = view.CT.lazy().map(transform).to_obs()
    for volume in view.CT:
        inside = cohort.seg.of_subject(volume.obs_subject_id).to_numpy() == label
        body, row = volume.to_numpy()[inside].astype(float), table.loc[volume.obs_id]
        assert row["rad_voxels"] == inside.sum()
        assert row["rad_stat_mean"] == pytest.approx(body.mean(), rel=1e-5)
        assert row["rad_stat_var"] == pytest.approx(body.var(), rel=1e-5)
        assert (row["rad_stat_min"], row["rad_stat_max"]) == (body.min(), body.max())
        assert row["rad_morph_vol_approx"] == pytest.approx(inside.sum() * np.prod(volume.spacing), rel=1e-6)


@pytest.mark.slow
def test_texture_and_wavelets_go_into_the_table(tmp_path: Path) -> None:
    cohort = small_cohort(tmp_path, subjects=2)
    table = cohort.CT.lazy().map(Radiomics(cohort.uri, "seg")).to_obs(workers=2)
    made = [c for c in table.columns if c.startswith("rad_")]
    assert len([c for c in made if "_cm_" in c]) >= 25
    assert len([c for c in made if "_rlm_" in c]) >= 16
    waves = Radiomics(cohort.uri, "seg", families=("statistics",), spacing=4, wavelet="coif1")
    table = table.join(cohort.CT.lazy().map(waves).to_obs(workers=2).filter(like="wavelet"))
    made = [c for c in table.columns if c.startswith("rad_")]
    assert len({c.split("_")[3] for c in made if "wavelet" in c}) == 8
    after = cohort.update_obs("CT", table[made])
    pd.testing.assert_frame_equal(Cohort(after.uri).CT.obs[made], table[made], check_names=False)
    assert len(after.filter("CT.rad_voxels > 0")) == 2


def test_a_region_that_is_not_there_has_no_voxels(cohort: Cohort) -> None:
    table = cohort.head(1).CT.lazy().map(Radiomics(cohort.uri, "seg", 7)).to_obs()
    assert [c for c in table.columns if c.startswith("rad_")] == ["rad_voxels"]
    assert table["rad_voxels"].tolist() == [0]
    with pytest.raises(ConfigError, match="2 bins or more"):
        Radiomics(cohort.uri, "seg", bins=1)
    with pytest.raises((PipelineError, ConfigError), match="nothing"):
        cohort.CT.lazy().map(Radiomics(cohort.uri, "nothing")).to_obs()
    with pytest.raises(ConfigError, match=r"need them as long as wide and high: Radiomics\(spacing"):
        cohort.CT.lazy().map(Radiomics(cohort.uri, "seg", wavelet="coif1")).to_obs()


@pytest.mark.slow
def test_the_recipe_scores_a_model(tmp_path: Path) -> None:
    cohort = small_cohort(tmp_path, subjects=6)
    kinds = pd.DataFrame({"kind": ["a", "b"] * 3}, index=cohort.subjects)
    cohort.update_obs_meta(kinds)
    words = [f"uri={cohort.uri}", "target=kind", "features.families=[statistics]", "repeats=2", "hydra.run.dir=out"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "radiomics.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "6 volumes" in done.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["chance"] == 0.5
    assert len(scores["repeats"]) == 2
    table = pd.read_csv(tmp_path / "out" / "features.csv", index_col=0)
    assert len(table) == 6
    assert "rad_stat_mean" in Cohort(cohort.uri).CT.obs.columns
