"""Self-supervision: a network learns to fill in masked blocks of crops, without any label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from radiodata.augment.draws import Draws
from radiodata.errors import ConfigError
from radiodata.lightning.optim import OptimizedModule, Settings, callable_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["MaskedVolumeModule", "block_mask"]


class MaskedVolumeModule(OptimizedModule):
    """A network that is given a crop with most of its blocks masked, and is to give the crop.

    A batch is ``image`` (B, C, x, y, z) float32, ``key`` (B,) and ``is_padding`` (B,). Masked autoencoding as of He et
    al. 2022 (doi:10.1109/CVPR52688.2022.01553), with a convolutional network: masked voxels are 0, the mean of what is
    normalised, and the loss is the mean squared error over them. Which blocks are masked depends on a sample's key
    alone. ``network.state_dict()`` of a checkpoint is where a supervised run begins.

    Parameters
    ----------
    network
        The network; or a callable that is given ``out_channels`` and returns it; or the settings of such a callable.
    channels
        Of the images.
    mask
        Share of the blocks that are masked, above 0 and below 1.
    block
        Side of a block, in voxels.
    optimizer, scheduler
        As of ``SegmentationModule``.

    Raises
    ------
    radiodata.errors.ConfigError
        When `mask` or `block` is out of range.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., nn.Module] | Settings,
        *,
        channels: int = 1,
        mask: float = 0.6,
        block: int = 8,
        optimizer: Callable[..., Optimizer] | Settings | None = None,
        scheduler: Callable[[Optimizer, int], LRScheduler] | Settings | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        if not 0 < mask < 1 or block < 1:
            raise ConfigError(
                f"mask={mask}, block={block}: mask a share of blocks above 0 and below 1, of 1 voxel or more"
            )
        parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self.save_hyperparameters(ignore=[name for name, part in parts.items() if callable(part)])
        self.network: nn.Module = (
            network if isinstance(network, nn.Module) else callable_of(network)(out_channels=channels)
        )
        self.mask, self.block = mask, block

    def forward(self, image: Tensor) -> Tensor:
        """What the network makes of crops, of their shape."""
        out: Tensor = self.network(image)
        return out

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Error on what was masked."""
        loss, rows = self._loss(batch)
        self.log("train/loss", loss.detach(), batch_size=max(rows, 1), on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Error on what was masked, over the crops that are not padding."""
        loss, rows = self._loss(batch)
        self.log("val/loss", loss, batch_size=rows, prog_bar=True, sync_dist=True, on_epoch=True)

    def _loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, int]:
        real = ~batch["is_padding"]
        image, keys = batch["image"][real], batch["key"][real]
        if not len(image):
            return 0.0 * self(batch["image"]).sum(), 0
        masked = block_mask([int(k) for k in keys], image.shape[2:], self.mask, self.block).to(image.device)
        out = self(torch.where(masked, 0.0, image))
        return ((out - image).square() * masked).sum() / (masked.sum() * image.shape[1]), len(image)


def block_mask(keys: Sequence[int], size: Sequence[int], share: float, block: int) -> Tensor:
    """Which voxels are masked: the same share of the blocks of every crop, chosen by its key.

    Returns
    -------
    Tensor of bool, shape ``(B, 1, *size)``
    """
    counts = [-(-n // block) for n in size]
    total = torch.Size(counts).numel()
    masked = max(1, min(total - 1, round(share * total))) if total > 1 else 1
    out = torch.zeros(len(keys), total, dtype=torch.bool)
    for row, rng in enumerate(Draws(keys).of("mask")):
        out[row, torch.from_numpy(rng.permutation(total)[:masked])] = True
    mask = out.view(len(keys), 1, *counts)
    for axis, n in enumerate(size, start=2):
        mask = mask.repeat_interleave(block, dim=axis).narrow(axis, 0, n)
    return mask
