"""Fits a one-weight model to a cohort and writes down the keys of every batch; run as a process by tests.

python fit_script.py '{"uri": ..., "out": ..., "devices": 2, "workers": 2, ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from radiodata import Foreground
from radiodata.lightning import RadiologyDataModule


class Model(lightning.LightningModule):
    def __init__(self, out: Path, pause: float, estimate: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.out, self.pause, self.estimate = out, pause, estimate

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        line = {"step": self.global_step, "keys": batch["key"].tolist()}
        with (self.out / f"rank{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(self.pause)
        image = batch["image"]
        return ((self.weight * image).mean() - image.mean()) ** 2

    def validation_step(self, batch: dict[str, Any], _: int) -> None:
        assert batch["image"].dtype == torch.float32
        assert batch["image"].shape[0] == 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.estimate:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(told: dict[str, Any]) -> None:
    out = Path(told["out"])
    data = RadiologyDataModule(
        told["uri"],
        label="seg",
        patch_size=12,
        batch_size=4,
        policy=Foreground(0.5),
        crops_per_volume=16,
        num_workers=told["workers"],
        normalize=told.get("normalize", "ct"),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=told["devices"],
        strategy="ddp" if told["devices"] > 1 else "auto",
        max_epochs=told.get("epochs", 2),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=told.get("sanity", 1),
        callbacks=[ModelCheckpoint(out, filename="last", every_n_train_steps=3, enable_version_counter=False)],
    )
    model = Model(out, told.get("pause", 0.0), told.get("estimate", False))
    trainer.fit(model, datamodule=data, ckpt_path=told.get("resume"))
    if trainer.is_global_zero:
        (out / "weight.json").write_text(json.dumps(model.weight.tolist()))


if __name__ == "__main__":
    warnings.simplefilter("error")
    # torch 2.9 and later deprecate what Lightning 2.6 calls; the resumed run writes into a folder of its own
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(json.loads(sys.argv[1]))
