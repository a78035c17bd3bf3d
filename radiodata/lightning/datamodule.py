"""RadiologyDataModule: a cohort as a LightningDataModule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule

from radiodata.errors import ConfigError, PlanError
from radiodata.lightning.normalize import Normalization, Window, check_normalization, standardize, window_of
from radiodata.loading import PatchDataset, PatchLoader, VolumeLoader
from radiodata.sampling import Foreground, Fractions, Uniform
from radiodata.store import Cohort, ReadConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from radiodata.sampling import Policy, Split
    from radiodata.store import Manifest


class RadiologyDataModule(LightningDataModule):
    """Crops of a cohort for training; whole volumes for validation, test and prediction.

    Subjects are split, never volumes. Voxels travel in their stored dtype; ``on_after_batch_transfer`` casts
    and normalises the image on the device, from statistics recorded at ingest. The place in the stream is in
    every checkpoint, so that a resumed run goes on with the next batch, on another number of devices too.

    Parameters
    ----------
    uri
        The cohort; None makes and uses the embedded demo cohort.
    image
        Collection under the key ``"image"``.
    label
        Collection under the key ``"label"``, or None.
    patch_size
        Crop shape in voxels: one int or three.
    batch_size
        Global batch: over all devices together.
    policy
        Where crops fall; by default ``Foreground(0.5)`` with a label, else ``Uniform()``.
    split
        ``Fractions``, ``KFold`` or ``Column``.
    transforms
        Called on every training sample, in the worker; MONAI dict transforms apply as they are.
    normalize
        ``"ct"``: clip to percentiles of the training subjects, then z-score; ``"mr"``: z-score by each
        volume's own statistics; None: cast to float32 only.
    crops_per_volume, crops_per_unit, cell_tiles, seed
        As for ``PatchDataset``.
    num_workers
        Worker processes for training, on each device; 0 reads ahead in threads.
    multiprocessing_context, pin_memory
        As for ``PatchLoader``; memory is pinned by default where CUDA is there.
    read
        How TileDB reads; by default as the environment says (see ``ReadConfig``).
    demand
        Hash of a manifest (``manifest.hash``): train on what had it, or not at all.

    Raises
    ------
    ConfigError, PlanError
        When a setting cannot be used or the cohort cannot give what is asked.
    StateMismatchError
        When the cohort is not what `demand` says.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        image: str = "CT",
        label: str | None = None,
        patch_size: int | Sequence[int] = 96,
        batch_size: int = 4,
        policy: Policy | None = None,
        split: Split | None = None,
        transforms: Callable[[dict[str, Any]], Any] | None = None,
        normalize: Normalization = "ct",
        crops_per_volume: int = 16,
        crops_per_unit: int = 8,
        cell_tiles: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        multiprocessing_context: Any = None,
        pin_memory: bool | None = None,
        read: ReadConfig | None = None,
        demand: str | None = None,
    ) -> None:
        super().__init__()
        check_normalization(normalize)
        self._uri = uri
        self.keys = {"image": image, **({"label": label} if label else {})}
        self.split = split or Fractions()
        self.transforms = transforms
        self.normalize = normalize
        self.batch_size, self.num_workers = batch_size, num_workers
        self._sampling: dict[str, Any] = {
            "patch_size": patch_size,
            "policy": policy or (Foreground(0.5) if label else Uniform()),
            "crops_per_volume": crops_per_volume,
            "crops_per_unit": crops_per_unit,
            "cell_tiles": cell_tiles,
            "seed": seed,
        }
        pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._loading: dict[str, Any] = {"multiprocessing_context": multiprocessing_context, "pin_memory": pin}
        self._read, self._demand = read, demand
        self._cohort: Cohort | None = None
        self._window: Window | None = None
        self._train: PatchLoader | None = None
        self._resume: Mapping[str, Any] | None = None
        self.subjects: dict[str, list[str]] = {}

    @property
    def uri(self) -> str:
        """The cohort's URI."""
        if self._uri is None:
            from radiodata.demo.cohort import demo_uri

            self._uri = demo_uri()
        return self._uri

    @property
    def cohort(self) -> Cohort:
        """The whole cohort, opened on first use."""
        if self._cohort is None:
            self._cohort = Cohort(self.uri, config=self._read, demand=self._demand)
        return self._cohort

    @property
    def manifest(self) -> Manifest:
        """What the cohort holds, to be logged with a run; its hash changes with any voxel, grid or table value."""
        return self.cohort.freeze()

    @property
    def num_classes(self) -> int:
        """Classes of the label collection, background included.

        Raises
        ------
        ConfigError
            When there is no label.
        """
        if "label" not in self.keys:
            raise ConfigError("num_classes needs a label collection: RadiologyDataModule(label=...)")
        values = self.cohort[self.keys["label"]].obs["label_values"]
        return 1 + max((int(v.max()) for v in values if len(v)), default=0)

    def prepare_data(self) -> None:
        """Make the demo cohort if no URI was given; runs in one process only."""
        if self._uri is None:
            from radiodata.demo.cohort import ensure_demo

            self._uri = ensure_demo()

    def setup(self, stage: str | None = None) -> None:
        """Split the subjects and, for training, take the intensity window of the training subjects."""
        self.subjects = self.split.parts(self.cohort.obs_meta)
        self._train = None
        if self.normalize == "ct":
            train = self.cohort.subset(self.subjects["train"])
            self._window = window_of(train[self.keys["image"]])

    def train_dataloader(self) -> PatchLoader:
        """Crops of the training subjects."""
        if self._train is None:
            dataset = PatchDataset(
                self._part("train"), self.keys, transform=self.transforms, read=self._read, **self._sampling
            )
            self._train = PatchLoader(
                dataset, self.batch_size, num_workers=self.num_workers, **self._world(), **self._loading
            )
            if self._resume is not None:
                self._train.load_state_dict(self._resume)
                self._resume = None
        return self._train

    def val_dataloader(self) -> VolumeLoader:
        """Whole volumes of the validation subjects."""
        return self._volumes("val", self.keys)

    def test_dataloader(self) -> VolumeLoader:
        """Whole volumes of the test subjects."""
        return self._volumes("test", self.keys)

    def predict_dataloader(self) -> VolumeLoader:
        """Whole volumes of every subject, images only."""
        loader: dict[str, Any] = {**self._world(), **self._loading}
        return VolumeLoader(self.cohort, {"image": self.keys["image"]}, read=self._read, **loader)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Cast and normalise on the device: image to float32, label to int64."""
        if not isinstance(batch, dict) or "image" not in batch:
            return batch
        image = batch["image"]
        if self._window is not None:
            image = self._window(image)
        elif self.normalize == "mr":
            image = standardize(image, batch["image_stats"])
        out = {**batch, "image": image.float()}
        if "label" in batch:
            out["label"] = batch["label"].long()
        return out

    def state_dict(self) -> dict[str, Any]:
        """Place in the training stream."""
        return {} if self._train is None else {"train_loader": self._train.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place in the training stream.

        Lightning calls this before it asks for the loader, and calls the loader's own ``load_state_dict``
        only sometimes: the state is kept in both.
        """
        self._resume = state_dict.get("train_loader")
        if self._train is not None and self._resume is not None:
            self._train.load_state_dict(self._resume)
            self._resume = None

    def _part(self, part: str) -> Cohort:
        if not self.subjects:
            self.setup()
        if not self.subjects[part]:
            raise PlanError(f"{self.split} leaves no subject for {part!r}: change the split")
        return self.cohort.subset(self.subjects[part])

    def _volumes(self, part: str, keys: dict[str, str]) -> VolumeLoader:
        return VolumeLoader(self._part(part), keys, read=self._read, **self._world(), **self._loading)

    def _world(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
