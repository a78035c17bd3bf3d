"""The data module in real training runs: no warning, exact resumption after a kill, DDP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from effort import tries
from small import small_cohort

from radiodata.errors import ConfigError, PlanError, StateMismatchError
from radiodata.lightning import RadiologyDataModule, window_of
from radiodata.sampling import Column, Fractions, KFold
from radiodata.store import Cohort

ROUNDS = tries(2, 2, 20)
SCRIPT = Path(__file__).with_name("fit_script.py")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return small_cohort(tmp_path_factory.mktemp("datamodule"))


def module(cohort: Cohort, **settings: Any) -> RadiologyDataModule:
    return RadiologyDataModule(cohort.uri, **{"label": "seg", "patch_size": 12, "num_workers": 0, **settings})


def launch(told: dict[str, Any]) -> subprocess.Popen[bytes]:
    out = Path(told["out"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stderr").open("w") as errors:
        return subprocess.Popen([sys.executable, str(SCRIPT), json.dumps(told)], stderr=errors)


def fit(told: dict[str, Any]) -> list[list[int]]:
    """Train in a process of its own; give the keys of each global batch, in order."""
    process = launch(told)
    assert process.wait(timeout=300) == 0, (Path(told["out"]) / "stderr").read_text()
    return keys(Path(told["out"]))


def keys(out: Path) -> list[list[int]]:
    ranks = [[json.loads(line)["keys"] for line in path.read_text().splitlines()] for path in sorted(out.glob("rank*"))]
    return [[k for part in parts for k in part] for parts in zip(*ranks, strict=True)]


def told(cohort: Cohort, out: Path, **more: Any) -> dict[str, Any]:
    return {"uri": cohort.uri, "out": str(out), "devices": 1, "workers": 0, **more}


def weight(out: Path) -> list[float]:
    return json.loads((out / "weight.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    found = fit(told(cohort, tmp_path_factory.mktemp("reference")))
    assert len(found) == 2 * 20  # 5 subjects x 16 crops in batches of 4, two epochs
    assert len({k for batch in found for k in batch}) == 160
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"workers": 2}, {"estimate": True}),
        pytest.param({"estimate": True}, {"workers": 2, "sanity": 0}, marks=pytest.mark.slow),
        pytest.param({"devices": 2, "workers": 2}, {}, marks=pytest.mark.slow),
        pytest.param({}, {"devices": 2, "workers": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_with_the_next_batch(
    cohort: Cohort, uninterrupted: list[list[int]], tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    first = launch(told(cohort, tmp_path / "a", pause=0.1, **before))
    written = tmp_path / "a" / "rank0.jsonl"
    deadline = time.monotonic() + 240
    while not written.exists() or len(written.read_text().splitlines()) < 27:  # in the middle of epoch 1
        assert first.poll() is None, (tmp_path / "a" / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_tree(first)
    checkpoint = tmp_path / "a" / "last.ckpt"
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 20 < step < 40
    resumed = fit(told(cohort, tmp_path / "b", resume=str(checkpoint), **after))
    assert resumed == uninterrupted[step:]


@pytest.mark.slow
@pytest.mark.timeout(tries(600, 600, 5400))
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_random_steps_it_ends_with_the_same_weights(cohort: Cohort, tmp_path: Path, devices: int) -> None:
    """The stream and the final weights are those of the run that nobody killed; by either way that state is kept."""
    whole = fit(told(cohort, tmp_path / "whole", devices=devices))
    rng = np.random.default_rng(devices)
    for number, step in enumerate(rng.choice(np.arange(4, 38), ROUNDS, replace=False).tolist()):
        out, after = tmp_path / f"killed {number}", tmp_path / f"resumed {number}"
        first = launch(told(cohort, out, devices=devices, pause=0.02, estimate=bool(number % 2)))
        written, deadline = out / "rank0.jsonl", time.monotonic() + 240
        while not written.exists() or len(written.read_text().splitlines()) < step:
            assert first.poll() is None, (out / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        kill_tree(first)
        done = torch.load(out / "last.ckpt", weights_only=True)["global_step"]
        resumed = fit(
            told(cohort, after, devices=devices, resume=str(out / "last.ckpt"), estimate=bool(number // 2 % 2))
        )
        assert resumed == whole[done:], step
        assert weight(after) == weight(tmp_path / "whole"), step


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    for pid in [process.pid, *map(int, children.stdout.split())]:
        os.kill(pid, signal.SIGKILL)
    process.wait(30)


@pytest.mark.slow
def test_two_devices_see_the_same_global_batches(
    cohort: Cohort, uninterrupted: list[list[int]], tmp_path: Path
) -> None:
    assert fit(told(cohort, tmp_path, devices=2, workers=2)) == uninterrupted


def test_state_is_in_the_module_too(cohort: Cohort) -> None:
    first = module(cohort)
    stream = iter(first.train_dataloader())
    for _ in range(3):
        next(stream)
    state = first.state_dict()
    rest = [b["key"].tolist() for b in stream]
    before, after = module(cohort), module(cohort)
    before.load_state_dict(state)  # before the loader is made, as Lightning does
    after.train_dataloader()
    after.load_state_dict(state)
    for resumed in (before, after):
        assert [b["key"].tolist() for b in resumed.train_dataloader()] == rest


def test_images_are_normalised_by_training_subjects_only(cohort: Cohort) -> None:
    data = module(cohort)
    data.setup()
    train = cohort.subset(data.subjects["train"])
    pairs = zip(train.CT, train["seg"], strict=True)
    body = np.concatenate([ct.to_numpy()[seg.to_numpy() > 0] for ct, seg in pairs]).astype(np.float64)
    low, high = np.percentile(body, [0.5, 99.5], method="inverted_cdf")
    clipped = np.clip(body, low, high)
    batch = next(iter(data.val_dataloader()))
    done = data.on_after_batch_transfer(batch, 0)
    expected = (np.clip(batch["image"].numpy(), low, high) - clipped.mean()) / clipped.std()
    assert np.allclose(done["image"].numpy(), expected, atol=1e-4)
    assert done["label"].dtype == torch.int64


def test_mr_is_normalised_by_its_own_volume(cohort: Cohort) -> None:
    data = module(cohort, normalize="mr")
    for batch in data.predict_dataloader():
        done = data.on_after_batch_transfer(batch, 0)
        volume = cohort.CT.of_subject(batch["obs_subject_id"][0]).to_numpy()
        body = volume[volume > -900].astype(np.float64)
        assert np.allclose(done["image"].numpy()[0, 0], (volume - body.mean()) / body.std(), atol=1e-4)
        assert "label" not in batch


def test_the_window_of_nothing_but_air_is_harmless(tmp_path: Path) -> None:
    import nibabel as nib

    path = tmp_path / "a.nii"
    nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_filename(path)
    window = window_of(Cohort.from_niftis(tmp_path / "c", {"CT": [path]}).CT)
    assert torch.equal(window(torch.zeros(2)), torch.zeros(2))


@pytest.mark.parametrize("split", [Fractions(0.3), KFold(3, 1)])
def test_parts_do_not_share_subjects(cohort: Cohort, split: Any) -> None:
    data = module(cohort, split=split)
    train = {s for b in data.train_dataloader() for s in b["obs_subject_id"]}
    val = {b["obs_subject_id"][0] for b in data.val_dataloader()}
    assert train
    assert val == set(data.subjects["val"])
    assert not train & val
    assert train | val == set(cohort.subjects)


def test_classes_are_counted_from_metadata(cohort: Cohort) -> None:
    assert module(cohort).num_classes == 3
    with pytest.raises(ConfigError, match="needs a label"):
        _ = module(cohort, label=None).num_classes


def test_refusals(cohort: Cohort) -> None:
    with pytest.raises(ConfigError, match="normalize"):
        module(cohort, normalize="pet")
    with pytest.raises(PlanError, match="leaves no subject for 'test'"):
        module(cohort).test_dataloader()
    with pytest.raises(PlanError, match="no column 'fold'"):
        module(cohort, split=Column("fold")).setup()


def test_other_data_than_were_demanded_are_refused(cohort: Cohort) -> None:
    held = module(cohort).manifest
    assert (held.hash, held.subjects) == (cohort.freeze().hash, len(cohort))
    module(cohort, demand=held.hash).setup()
    with pytest.raises(StateMismatchError, match="not the one that was demanded"):
        module(cohort, demand="0" * 32).setup()
