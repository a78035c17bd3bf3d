"""A picture of one validation volume: image, label and prediction in three planes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["PredictionPreview"]

_PLANES = ("sagittal", "coronal", "axial")  # across x, y and z of a RAS+ volume
_IN_PLANE = ((1, 2), (0, 2), (0, 1))


@dataclass(frozen=True)
class _Plane:
    image: NDArray[Any]
    label: NDArray[Any]
    prediction: NDArray[Any]
    index: int
    aspect: float


class PredictionPreview(Callback):
    """Write ``preview.png`` when training ends: the last validation's prediction for one subject.

    Three planes through the slices with the largest labelled area, in their true proportions, turned as
    radiologists look at them: superior or anterior up; right, or anterior, on the left. Only process 0
    draws, a volume that it validates itself.

    Parameters
    ----------
    folder
        Where the picture goes; default: the trainer's ``default_root_dir``.
    subject
        `obs_subject_id` of the volume; default: the first one validated.
    every_n_epochs
        Also write ``preview_epoch<N>.png`` each that many epochs.

    Attributes
    ----------
    path
        The picture written last, or None.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        subject: str | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.subject = subject
        self.every_n_epochs = every_n_epochs
        self.path: Path | None = None
        self._title = ""
        self._planes: list[_Plane] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the volume of the last validation."""
        self._planes = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep three slices of the volume, where it is the one to show."""
        if self._planes or outputs is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        for row, subject in enumerate(batch["obs_subject_id"]):
            if not bool(batch["is_padding"][row]) and self.subject in (None, subject):
                self._planes = _cut(batch, outputs, row)
                self._title = f"{subject}, epoch {trainer.current_epoch + 1}"
                return

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture of this epoch, where it is due."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and epoch % self.every_n_epochs == 0:
            self._write(trainer, f"preview_epoch{epoch:04d}.png")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the picture of the last validation."""
        self._write(trainer, "preview.png")

    def _write(self, trainer: Trainer, name: str) -> None:
        if not self._planes:
            return
        folder = self.folder or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _draw(self._planes, self._title).savefig(folder / name, dpi=120)
        self.path = folder / name


def _cut(batch: Mapping[str, Any], outputs: Tensor | Mapping[str, Any], row: int) -> list[_Plane]:
    prediction: Any = outputs["prediction"] if isinstance(outputs, dict) else outputs
    label = batch["label"][row, 0]
    spacing = np.linalg.norm(np.asarray(batch["affine"][row].cpu())[:3, :3], axis=0)
    planes = []
    for axis, in_plane in enumerate(_IN_PLANE):
        area = (label > 0).sum(dim=in_plane)
        index = int(area.argmax()) if int(area.max()) else label.shape[axis] // 2
        image, truth, predicted = (
            volume.select(axis, index).cpu().numpy().T[::-1, ::-1]
            for volume in (batch["image"][row, 0].float(), label, prediction[row, 0])
        )
        aspect = float(spacing[in_plane[1]] / spacing[in_plane[0]])
        planes.append(_Plane(image, truth, predicted, index, aspect))
    return planes


def _draw(planes: list[_Plane], title: str) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    classes = max(2, *(int(max(plane.label.max(), plane.prediction.max())) for plane in planes))
    for row, (axes, plane) in enumerate(zip(figure.subplots(3, 3), planes, strict=True)):
        low, high = np.percentile(plane.image, (0.5, 99.5))
        overlays = (("image", None), ("label", plane.label), ("prediction", plane.prediction))
        for axis, (name, overlay) in zip(axes, overlays, strict=True):
            axis.imshow(plane.image, cmap="gray", vmin=low, vmax=high, aspect=plane.aspect)
            if overlay is not None:
                shown = np.where(overlay > 0, overlay, np.nan)
                style = {"cmap": "rainbow", "vmin": 1, "vmax": classes, "alpha": 0.5}
                axis.imshow(shown, aspect=plane.aspect, interpolation="nearest", **style)
            axis.set_title(f"{_PLANES[row]} {plane.index}: {name}", fontsize=8)
            axis.set_axis_off()
    return figure
