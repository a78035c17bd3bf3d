"""SamplePreview: a picture of what a network is trained on, and of where crops fell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["SamplePreview"]

_PLANES = (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2))


class SamplePreview(Callback):
    """Write ``samples.png`` in the first epoch: crops as the network gets them, and where they fell.

    Of each crop of the first batch the slice with the largest labelled area, or the middle one, with its label; and
    the outlines of the crops of the first batches in their volumes, whose sides are drawn from 0 to 1.

    Parameters
    ----------
    folder
        Where the picture goes.
    samples
        Crops that are shown, at most.
    batches
        Batches whose crops are outlined.
    image, label
        Keys.

    Raises
    ------
    radiodata.errors.ConfigError
        When a number is below 1.
    """

    def __init__(
        self, folder: str | Path, *, samples: int = 8, batches: int = 16, image: str = "image", label: str = "label"
    ) -> None:
        if samples < 1 or batches < 1:
            raise ConfigError(f"SamplePreview(samples={samples}, batches={batches}): 1 or more of both")
        self.folder, self.samples, self.batches = Path(folder), samples, batches
        self.image, self.label = image, label
        self._shown: list[tuple[NDArray[Any], NDArray[Any] | None, str]] = []
        self._boxes: list[NDArray[np.float64]] = []
        self._seen, self._written = 0, False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take note of a batch."""
        if self._written or not trainer.is_global_zero or not isinstance(batch, dict) or self.image not in batch:
            return
        if not self._shown:
            count = min(self.samples, len(batch[self.image]))
            self._shown = [_slice(batch, row, self.image, self.label) for row in range(count)]
        if "box" in batch and "shape" in batch:
            self._boxes += [_relative(b, s) for b, s in zip(batch["box"].cpu(), batch["shape"].cpu(), strict=True)]
        self._seen += 1
        if self._seen >= self.batches:
            self._write()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is, where an epoch is short."""
        if self._shown and not self._written:
            self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _draw(self._shown, self._boxes).savefig(self.folder / "samples.png", dpi=100)
        self._written, self._boxes = True, []


def _slice(batch: Mapping[str, Any], row: int, image: str, label: str) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    voxels = batch[image][row].detach().float().cpu()
    plane = voxels[len(voxels) // 2]  # the middle of neighbours; of modalities, one
    mask = batch[label][row, 0].detach().cpu() if label in batch else None
    if plane.ndim == 3:
        area = torch.zeros(plane.shape[2]) if mask is None else (mask > 0).sum(dim=(0, 1))
        at = int(area.argmax()) if int(area.max()) else plane.shape[2] // 2
        plane, mask = plane[..., at], None if mask is None else mask[..., at]
    names = batch.get("obs_subject_id")
    return plane.numpy(), None if mask is None else mask.numpy(), "" if names is None else str(names[row])


def _relative(box: torch.Tensor, shape: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(box.double().numpy() / shape.double().numpy()[:, None])


def _draw(shown: list[tuple[NDArray[Any], NDArray[Any] | None, str]], boxes: list[NDArray[np.float64]]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = 4
    rows = -(-len(shown) // columns) + bool(boxes)
    figure = Figure(figsize=(3 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    classes = max([1, *(int(mask.max()) for _, mask, _ in shown if mask is not None)])
    for place, (plane, mask, name) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(plane.T[::-1, ::-1], cmap="gray")
        if mask is not None and mask.max() > 0:
            seen = np.where(mask > 0, mask, np.nan).T[::-1, ::-1]
            axes.imshow(seen, cmap="rainbow", vmin=1, vmax=max(classes, 2), alpha=0.5, interpolation="nearest")
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    for place, (plane_name, a, b) in enumerate(_PLANES if boxes else (), start=(rows - 1) * columns + 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, color="black"))
        for box in boxes:
            corner, size = (box[a, 0], box[b, 0]), (box[a, 1] - box[a, 0], box[b, 1] - box[b, 0])
            axes.add_patch(Rectangle(corner, *size, fill=False, color="tab:blue", alpha=0.3))
        axes.set_xlim(-0.1, 1.1)
        axes.set_ylim(-0.1, 1.1)
        axes.set_title(f"{len(boxes)} crops, {plane_name}: {'xyz'[a]}, {'xyz'[b]}", fontsize=8)
    return figure
