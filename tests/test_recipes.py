"""Every experiment and recipe runs, small, as a user would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from radiodata.demo.cohort import make_demo
from radiodata.store import Cohort

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.slow
pytest.importorskip("monai")
ROOT = Path(__file__).parents[1]
SMALL = ["trainer.max_epochs=1", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1", "data.num_workers=0"]
TINY = ["model.network.channels=[4,8]", "model.network.strides=[2]"]


def recipe(name: str, *words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recipes")
    return make_demo(str(folder / "cohort"), subjects=8, size=48).uri


def scaled(volume: NDArray[np.int16], row: object) -> NDArray[np.int16]:
    return (volume // 2).astype(np.int16)


EXPERIMENTS = {
    "slices": ["data.patch_size=[32,32]", *TINY],
    "classification": ["data.patch_size=32", "trainer.max_epochs=2"],
    "ssl": ["data.patch_size=16", *TINY],
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_trains(uri: str, tmp_path: Path, experiment: str) -> None:
    words = [f"experiment={experiment}", f"data.uri={uri}", *SMALL, *EXPERIMENTS[experiment]]
    said = recipe("train", *words, cwd=tmp_path)
    (folder,) = (tmp_path / "runs" / experiment).iterdir()
    assert (folder / "checkpoints" / "best.ckpt").exists(), said
    assert (folder / "samples.png").exists()
    assert (folder / "split.json").exists()
    header = (folder / "logs" / "csv" / "metrics.csv").read_text().splitlines()[0]
    score = {"slices": "val/dice", "classification": "val/accuracy", "ssl": "val/loss"}[experiment]
    assert score in header


def test_modalities_train_together(uri: str, tmp_path: Path) -> None:
    cohort = Cohort(uri)
    names = ["T1w", "T1ce", "T2w", "FLAIR"]
    for name in names:
        if name not in Cohort(uri):
            cohort.CT.lazy().map(scaled).write(name=name)
    said = recipe(
        "train", "experiment=multimodal", f"data.uri={uri}", "data.patch_size=32", *SMALL, *TINY, cwd=tmp_path
    )
    assert "val Dice" in said


def test_a_network_goes_from_self_supervision_to_predictions_in_the_store(uri: str, tmp_path: Path) -> None:
    recipe("train", "experiment=ssl", f"data.uri={uri}", "data.patch_size=32", "hydra.run.dir=ssl", *SMALL, *TINY,
           cwd=tmp_path)  # fmt: skip
    said = recipe("train", "+data=ct_isotropic", f"data.uri={uri}", "data.patch_size=32", "hydra.run.dir=run", *SMALL,
                  *TINY, "init_from=ssl/checkpoints/best.ckpt", cwd=tmp_path)  # fmt: skip
    assert "began with" in said
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    said = recipe("predict", "+data=ct_isotropic", f"data.uri={uri}", f"ckpt_path={best}", "name=organs", "flips=[0]",
                  "export=out", "overlap=0.25", cwd=tmp_path)  # fmt: skip
    assert "8 volumes predicted" in said
    cohort = Cohort(uri)
    assert len(cohort.organs) == 8
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 8
    again = recipe("predict", "+data=ct_isotropic", f"data.uri={uri}", f"ckpt_path={best}", "name=organs", "flips=[0]",
                   "overlap=0.25", cwd=tmp_path)  # fmt: skip
    assert "0 volumes predicted" in again
