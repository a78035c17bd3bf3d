"""Train a segmentation network: copy this file, and change it as you like.

    python recipes/train.py +data=ct_isotropic
    python recipes/train.py +data=ct_isotropic +sampler=uniform +transforms=light model=unet_large
    python recipes/train.py +data=ct_isotropic +trainer=ddp_cpu trainer.max_epochs=5
    python recipes/train.py +data=ct_isotropic ckpt_path=runs/default/<date>_<time>/checkpoints/last.ckpt

From an installed radiodata: ``python -m radiodata.recipes.train +data=ct_isotropic``. Everything of a run
lies in ``runs/<name>/<date>_<time>``. Ctrl-C and SIGTERM end a run after its current step.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from radiodata.errors import ConfigError
from radiodata.hydra import config_dir, require_group

if TYPE_CHECKING:
    from lightning import Callback, Trainer
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig

log = logging.getLogger("radiodata.train")


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")  # type: ignore[untyped-decorator]
def main(cfg: DictConfig) -> float:
    """Train, and return the best validation Dice."""
    try:
        require_group(cfg, "data", "ct_isotropic")
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    trainer = train(cfg, run_dir)
    if trainer.is_global_zero:
        print(summary(trainer, run_dir), flush=True)
    return best_score(trainer)


def train(cfg: DictConfig, run_dir: Path) -> Trainer:
    """Fit the model in `cfg` to the data in `cfg`."""
    import lightning
    from hydra.utils import instantiate

    quiet()
    lightning.seed_everything(cfg.seed, workers=True)
    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    model = instantiate(cfg.model, num_classes=data.num_classes, _convert_="all")
    trainer: Trainer = instantiate(
        cfg.trainer,
        logger=loggers(run_dir),
        callbacks=callbacks(cfg, run_dir),
        default_root_dir=str(run_dir),
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        _convert_="all",
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    except SystemExit:
        if trainer.is_global_zero:
            print(f"stopped; go on with ckpt_path={run_dir}/checkpoints/last.ckpt", flush=True)
        raise
    return trainer


def quiet() -> None:
    """Drop what Lightning says twice, or without need."""
    logging.getLogger("lightning").handlers.clear()  # Hydra's handlers write the same lines
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())
    # a run that goes on from another one's checkpoint keeps its own list of the best
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    # torch 2.9 and later deprecate what Lightning 2.6 calls
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)


def loggers(run_dir: Path) -> list[Logger]:
    """CSV always, TensorBoard where it is installed."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    made: list[Logger] = [CSVLogger(run_dir, name="logs", version="csv")]
    if find_spec("tensorboard"):
        made.append(TensorBoardLogger(run_dir, name="logs", version="tensorboard"))
    return made


def callbacks(cfg: DictConfig, run_dir: Path) -> list[Callback]:
    """Checkpoints (best and last), a clean stop, the preview picture, the learning rate, progress."""
    from lightning.pytorch.callbacks import (
        LambdaCallback,
        LearningRateMonitor,
        ModelCheckpoint,
        RichProgressBar,
    )

    from radiodata.lightning.preview import PredictionPreview
    from radiodata.lightning.stop import StopOnSignal

    shared: dict[str, Any] = {"dirpath": run_dir / "checkpoints", "enable_version_counter": False}
    made: list[Callback] = [
        StopOnSignal(),
        LearningRateMonitor(logging_interval="step"),
        ModelCheckpoint(filename="best", monitor="val/dice", mode="max", **shared),
        ModelCheckpoint(filename="last", every_n_epochs=1, save_on_exception=True, **shared),
    ]
    if cfg.checkpoint_every_n_steps:
        made.append(ModelCheckpoint(filename="last", every_n_train_steps=cfg.checkpoint_every_n_steps, **shared))
    if find_spec("matplotlib"):
        made.append(PredictionPreview(run_dir, every_n_epochs=cfg.preview_every_n_epochs))
    if sys.stdout.isatty():
        made.append(RichProgressBar())
    else:
        made.append(LambdaCallback(on_train_epoch_end=lambda trainer, _: tell_epoch(trainer)))
    return made


def tell_epoch(trainer: Trainer) -> None:
    """Write one line about the epoch that ends; for runs without a terminal."""
    if trainer.is_global_zero:
        log.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, dice(trainer))


def dice(trainer: Trainer) -> str:
    """Dice of the last validation, as text."""
    scores = {key: float(value) for key, value in trainer.callback_metrics.items() if "val/dice" in key}
    classes = ", ".join(f"class {key[14:]} {value:.3f}" for key, value in scores.items() if key != "val/dice")
    return f"val Dice {scores['val/dice']:.3f} ({classes})" if scores else "not validated"


def best_score(trainer: Trainer) -> float:
    """Best validation Dice of this run; NaN where there was no validation."""
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    return float("nan") if score is None else float(score)


def summary(trainer: Trainer, run_dir: Path) -> str:
    """Dice per class, and where everything lies, in one line."""
    picture = run_dir / "preview.png"
    return (
        f"{dice(trainer)}, best {best_score(trainer):.3f} | checkpoints {run_dir / 'checkpoints'} | "
        f"picture {picture if picture.exists() else 'none'} | logs {run_dir / 'logs'}"
    )


if __name__ == "__main__":
    main()
