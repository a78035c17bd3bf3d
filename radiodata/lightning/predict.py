"""PredictToStore: what ``Trainer.predict`` makes of volumes becomes a collection of their cohort."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info

from radiodata.errors import ConfigError
from radiodata.lightning.stages import first_of
from radiodata.pipeline.predictions import PredictionWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer

__all__ = ["PredictToStore"]


class PredictToStore(Callback):
    """Write what ``predict_step`` returns into the store, volume by volume, under any number of processes.

    ``predict_step`` is to return ``(B, 1, x, y, z)``: classes (``kind="label"``) or values (``"image"``, also with more
    channels), for each volume of the batch. ``SegmentationModule`` does. Each process writes the volumes that it is
    given; volumes that are there are not asked for again where the data module is a ``RadiologyDataModule``.

    Parameters
    ----------
    name
        Of the collection.
    uri
        Of another cohort; by default that of the data module.
    kind
        ``"label"`` or ``"image"``.
    how
        What made them, for the provenance: a checkpoint's hash, its settings. The class of the module is added.

    Attributes
    ----------
    written
        Ids of predictions that this process wrote.
    """

    def __init__(
        self, name: str, *, uri: str | None = None, kind: str = "label", how: Mapping[str, Any] | None = None
    ) -> None:
        self.name, self.uri, self.kind, self.how = name, uri, kind, dict(how or {})
        self.written: list[str] = []
        self._writer: PredictionWriter | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the collection, before the loader is asked for."""
        if stage != "predict":
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "cohort") or not hasattr(data, "images"):
            raise ConfigError("PredictToStore needs a RadiologyDataModule: Trainer.predict(model, datamodule=...)")
        source = data.cohort[first_of(data.images)]
        how = {"module": type(pl_module).__name__, **self.how}
        writer = PredictionWriter(source, self.name, uri=self.uri, kind=self.kind, how=how)
        data.skip_predicted = writer.present
        self._writer = writer.__enter__()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the volumes of a batch."""
        assert self._writer is not None
        rows = zip(batch["obs_id"], outputs, batch["is_padding"].tolist(), strict=True)
        for obs_id, prediction, is_padding in rows:
            if is_padding:
                continue
            voxels = prediction.detach().cpu().numpy()
            self._writer.write(obs_id, voxels[0] if len(voxels) == 1 else voxels.transpose(1, 2, 3, 0))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the collection."""
        self._close(None)
        rank_zero_info(f"predictions are in collection {self.name!r}: {len(self.written)} written by process 0")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what is whole, and remove the rest."""
        self._close(exception)

    def _close(self, error: BaseException | None) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.__exit__(None if error is None else type(error), error, None)
            self.written = writer.written
