"""FrozenCohort: a run knows what it was trained on, and goes on with nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from radiodata.errors import ConfigError, StateMismatchError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["FrozenCohort"]


class FrozenCohort(Callback):
    """Log the hash of the cohort, keep it and the split in checkpoints, and demand both when a run goes on.

    The data module is to have a ``manifest`` and ``subjects``, as ``RadiologyDataModule`` has. Loggers are given
    ``data/hash``, ``data/version`` and ``data/subjects`` as hyperparameters.

    Raises
    ------
    radiodata.errors.ConfigError
        When the run has no such data module.
    radiodata.errors.StateMismatchError
        When a checkpoint was made with other data, or another split.
    """

    def __init__(self) -> None:
        self._now: dict[str, Any] | None = None
        self._then: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hash, compare it with that of the checkpoint, and log it."""
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "manifest"):
            raise ConfigError("FrozenCohort needs a data module with a manifest: Trainer.fit(model, datamodule=...)")
        manifest = data.manifest
        self._now = {"hash": manifest.hash, "version": manifest.version, "subjects": dict(data.subjects)}
        self._compare()
        rank_zero_info(f"trained on {manifest.uri}, version {manifest.version}, hash {manifest.hash}")
        told = {"hash": manifest.hash, "version": manifest.version, "subjects": manifest.subjects}
        for logger in trainer.loggers:
            logger.log_hyperparams({f"data/{name}": value for name, value in told.items()})

    def state_dict(self) -> dict[str, Any]:
        """What was trained on."""
        return dict(self._now or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint was trained on."""
        self._then = state_dict or None
        if self._now is not None:
            self._compare()

    def _compare(self) -> None:
        then, now = self._then, self._now
        if then is None or now is None:
            return
        if then["hash"] != now["hash"]:
            raise StateMismatchError(
                f"the checkpoint was trained on data of hash {then['hash']} (version {then['version']}), and this run "
                f"has {now['hash']} (version {now['version']}): open that version, or begin a run without ckpt_path"
            )
        for part, subjects in then["subjects"].items():
            if list(subjects) != list(now["subjects"].get(part, [])):
                odd = sorted(set(subjects) ^ set(now["subjects"].get(part, [])))
                raise StateMismatchError(
                    f"the checkpoint was trained with other subjects in {part!r} ({len(odd)} differ, such as "
                    f"{', '.join(odd[:3])}): give the same split, or begin a run without ckpt_path"
                )
