"""Train a network: copy this file, and change it as you like.

    python recipes/train.py +data=ct_isotropic
    python recipes/train.py experiment=hippocampus data.uri=cohort
    python recipes/train.py experiment=classification       (slices, multimodal, ssl: see `radiodata configs`)
    python recipes/train.py +data=ct_isotropic +sampler=uniform +augment=nnunet model=unet_large
    python recipes/train.py +data=ct_isotropic +trainer=ddp_cpu trainer.max_epochs=5
    python recipes/train.py +data=ct_isotropic ckpt_path=runs/default/<date>_<time>/checkpoints/last.ckpt

From an installed radiodata: ``python -m radiodata.recipes.train +data=ct_isotropic``. Everything of a run
lies in ``runs/<name>/<date>_<time>``. Ctrl-C and SIGTERM end a run after its current step.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig

from radiodata.errors import ConfigError
from radiodata.hydra import config_dir, require_group, require_values

if TYPE_CHECKING:
    from lightning import Callback, Trainer
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig

SHOWN = 12  # classes told in a line; the logs hold all


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")  # type: ignore[untyped-decorator]
def main(cfg: DictConfig) -> float:
    """Train, and return the best validation score."""
    try:
        require_group(cfg, "data", "ct_isotropic")
        require_values(cfg)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    trainer = train(cfg, run_dir)
    score = getattr(trainer.checkpoint_callback, "best_model_score", None)
    best = float("nan") if score is None else float(score)
    if trainer.is_global_zero:
        picture = run_dir / "preview.png"
        print(
            f"{scores(trainer)}, best {best:.3f} | checkpoints {run_dir / 'checkpoints'} | "
            f"picture {picture if picture.exists() else 'none'} | logs {run_dir / 'logs'}",
            flush=True,
        )
    return best


def train(cfg: DictConfig, run_dir: Path) -> Trainer:
    """Fit the model in `cfg` to the data in `cfg`."""
    import lightning
    from hydra.utils import instantiate

    from radiodata.lightning import StopOnSignal, quiet

    quiet()
    lightning.seed_everything(cfg.seed, workers=True)
    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    log_data(data, run_dir)
    classes = {"num_classes": data.num_classes} if has_classes(data) else {}
    model = instantiate(cfg.model, **classes, _convert_="all")
    if cfg.init_from:
        begin_with(model, cfg.init_from)
    stop = StopOnSignal()
    trainer: Trainer = instantiate(cfg.trainer, _partial_=True, _convert_="all")(
        logger=loggers(run_dir),
        callbacks=[stop, *callbacks(cfg, run_dir, data)],
        default_root_dir=run_dir,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    except (SystemExit, RuntimeError):  # RuntimeError: the signal reached loader workers too
        if not stop.asked:
            raise
        if trainer.is_global_zero:
            print(f"stopped; go on with ckpt_path={run_dir}/checkpoints/last.ckpt", flush=True)
        sys.exit(1)
    return trainer


def has_classes(data: Any) -> bool:
    """Whether classes are those of a label collection."""
    return bool(getattr(data, "labels", True))


def begin_with(model: Any, path: str) -> None:
    """Take the weights of another run's network, such as a self-supervised one: those of the same name and shape."""
    import torch
    from lightning.pytorch.utilities import rank_zero_info

    held = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    mine = model.state_dict()
    same = {name: value for name, value in held.items() if name in mine and mine[name].shape == value.shape}
    if not same:
        raise ConfigError(f"init_from={path}: no weight of it has the name and shape of one of this model")
    model.load_state_dict(same, strict=False)
    left = sorted(set(mine) - set(same))
    rank_zero_info(f"began with {len(same)} of {len(mine)} weights of {path}; anew: {', '.join(left) or 'none'}")


def log_data(data: Any, run_dir: Path) -> None:
    """Write down what is trained on: ``data.demand=HASH`` refuses anything else; split.json has the parts."""
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank == 0 and hasattr(data, "manifest"):
        (run_dir / "data.json").write_text(json.dumps(data.manifest.to_dict(), indent=2) + "\n")
        data.freeze_split(run_dir / "split.json")


def loggers(run_dir: Path) -> list[Logger]:
    """CSV always, TensorBoard where it is installed."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    made: list[Logger] = [CSVLogger(run_dir, name="logs", version="csv")]
    if find_spec("tensorboard"):
        made.append(TensorBoardLogger(run_dir, name="logs", version="tensorboard"))
    return made


def callbacks(cfg: DictConfig, run_dir: Path, data: Any) -> list[Callback]:
    """Checkpoints (best and last), pictures, throughput, what was trained on, the learning rate, progress."""
    import lightning.pytorch.callbacks as of
    from lightning.pytorch.utilities import rank_zero_info

    from radiodata.lightning import DataThroughput, FrozenCohort, PredictionPreview, SamplePreview

    shared: dict[str, Any] = {"dirpath": run_dir / "checkpoints", "enable_version_counter": False}
    made: list[Callback] = [
        of.LearningRateMonitor(logging_interval="step"),
        of.ModelCheckpoint(filename="best", monitor=cfg.monitor, mode=cfg.monitor_mode, **shared),
        of.ModelCheckpoint(filename="last", every_n_epochs=1, save_on_exception=True, **shared),
        DataThroughput(),
    ]
    if hasattr(data, "manifest"):
        made.append(FrozenCohort())
    if every := cfg.checkpoint_every_n_steps:
        made.append(of.ModelCheckpoint(filename="last", every_n_train_steps=every, **shared))
    if find_spec("matplotlib"):
        made.append(SamplePreview(run_dir))
        if cfg.monitor == "val/dice":
            made.append(PredictionPreview(run_dir, every_n_epochs=cfg.preview_every_n_epochs))
    if sys.stdout.isatty():
        return [*made, of.RichProgressBar()]

    def say(trainer: Trainer, _: Any) -> None:
        rank_zero_info(f"epoch {trainer.current_epoch + 1}: {scores(trainer)}")

    return [*made, of.LambdaCallback(on_train_epoch_end=say)]


def scores(trainer: Trainer) -> str:
    """Scores of the last validation, as text."""
    found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    if not found:
        return "not validated"
    if "val/dice" not in found:
        return ", ".join(f"{key} {value:.3f}" for key, value in sorted(found.items()))
    classes = [f"class {key[14:]} {value:.3f}" for key, value in found.items() if key.startswith("val/dice_class")]
    shown = ", ".join(classes[:SHOWN]) + (f", and {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")
    return f"val Dice {found['val/dice']:.3f} ({shown})"


if __name__ == "__main__":
    main()
