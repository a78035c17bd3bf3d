"""Predict the volumes of a cohort into a collection of it: copy this file, and change it as you like.

    python recipes/predict.py +data=ct_isotropic ckpt_path=runs/default/<date>_<time>/checkpoints/best.ckpt
    python recipes/predict.py +data=ct_isotropic ckpt_path=... name=organs flips=[0,1,2] export=predictions
    python recipes/predict.py +data=ct_isotropic ckpt_path=... +trainer=ddp       each process its volumes

From an installed radiodata: ``python -m radiodata.recipes.predict``. A run that was stopped goes on with the volumes
that lack.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra

from radiodata.errors import RadiodataError
from radiodata.hydra import config_dir, require_group, require_values

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="predict")  # type: ignore[untyped-decorator]
def main(cfg: DictConfig) -> None:
    """Predict, and say where the predictions are."""
    try:
        require_group(cfg, "data", "ct_isotropic")
        require_values(cfg)
        written, uri = predict(cfg)
    except RadiodataError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if written is not None:
        print(f"{len(written)} volumes predicted by this process: collection {cfg.name!r} of {uri}", flush=True)


def predict(cfg: DictConfig) -> tuple[list[str] | None, str]:
    """Predict with the checkpoint in `cfg`; ids written by this process (None but in the first), and where to."""
    import lightning
    import torch
    from hydra.utils import instantiate

    from radiodata.lightning import PredictToStore, SegmentationModule, quiet

    quiet()
    lightning.seed_everything(cfg.seed, workers=True)
    data: Any = instantiate(cfg.data, _convert_="all")
    how = {"overlap": cfg.overlap, "flips": list(cfg.flips), "sw_batch_size": cfg.sw_batch_size, "memory": cfg.memory}
    model = SegmentationModule.load_from_checkpoint(cfg.ckpt_path, map_location="cpu", **how)
    held = torch.load(cfg.ckpt_path, map_location="cpu", weights_only=True).get("RadiologyDataModule", {})
    data.load_state_dict({name: held[name] for name in ("normalizer",) if name in held})  # as it was trained
    told = {"checkpoint": digest(Path(cfg.ckpt_path)), "overlap": cfg.overlap, "flips": list(cfg.flips)}
    writer = PredictToStore(cfg.name, uri=cfg.uri, how=told)
    trainer = instantiate(cfg.trainer, _partial_=True, _convert_="all")(
        logger=False, callbacks=[writer], enable_checkpointing=False, enable_progress_bar=sys.stdout.isatty()
    )
    trainer.predict(model, datamodule=data, return_predictions=False)
    uri = cfg.uri or data.uri
    if not trainer.is_global_zero:
        return None, uri
    if cfg.export:
        export(uri, cfg.name, Path(cfg.export))
    return writer.written, uri


def digest(path: Path) -> str:
    """Hash of a checkpoint: what made a prediction is known later."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def export(uri: str, name: str, folder: Path) -> None:
    """Write a collection as NIfTI files, each on the grid of the file that its source came from."""
    from radiodata import Cohort

    for volume in Cohort(uri)[name]:
        volume.to_nifti(folder / f"{volume.obs_id}.nii.gz")


if __name__ == "__main__":
    main()
