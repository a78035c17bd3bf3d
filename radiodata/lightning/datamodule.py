"""RadiologyDataModule: a cohort as a LightningDataModule."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule

from radiodata.errors import ConfigError, PlanError, StateMismatchError
from radiodata.lightning.normalize import Normalizer, check_normalization, normalizer_of
from radiodata.lightning.stages import by_stage, check_batch, first_of, global_batch, named
from radiodata.loading import HandleLoader, PatchDataset, PatchLoader, VolumeLoader
from radiodata.sampling import Foreground, Fractions, Frozen, Uniform
from radiodata.store import Cohort, ReadConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from radiodata.lightning.normalize import Normalization
    from radiodata.loading.failures import OnError
    from radiodata.loading.tables import TableTarget
    from radiodata.sampling import Policy, Split
    from radiodata.store import Manifest


class RadiologyDataModule(LightningDataModule):
    """Crops of a cohort for training; whole volumes, or crops, for validation, test and prediction.

    Subjects are split, never volumes. Voxels travel in their stored dtype; ``on_after_batch_transfer`` casts,
    normalises and augments them on the device, from statistics recorded at ingest. The place in the stream is in
    every checkpoint, so that a resumed run goes on with the next batch, on another number of devices too; so are the
    windows of the images, to predict other cohorts as the network was trained:
    ``data.load_state_dict({"normalizer": checkpoint["RadiologyDataModule"]["normalizer"]})``.

    Parameters
    ----------
    uri
        The cohort; None makes and uses the embedded demo cohort.
    where
        Subjects to take of it, as of ``Cohort.filter``: ``"age >= 18 and CT.spacing_z <= 3"``.
    image
        Collection under the key ``"image"``; several, whose channels are stacked; or key to either.
    label
        Collection under the key ``"label"``, or key to collection (labels, masks); None: no labels.
    targets
        Sample key to a column of the tables, for classification and regression: see ``TableTarget``.
    patch_size
        Crop shape in voxels: one int or three (two with ``Slices``).
    batch_size, batch_size_per_device
        Samples of a batch: over all devices together (4 by default), or of each. One of both.
    policy
        Where crops fall in training; by default ``Foreground(0.5)`` with a label, else ``Uniform()``. Or stage
        (``"train"``, ``"val"``, ``"test"``, ``"predict"``) to policy: stages without one get whole volumes.
    split
        ``Fractions``, ``KFold``, ``Column`` or ``Frozen``.
    transforms
        Called on every training sample, in the worker; MONAI dict transforms apply as they are. Or stage to
        transforms.
    augment
        Called on every normalised training batch, on the device: ``radiodata.augment.Augment()``, or a callable that
        takes a batch, and ``images`` and ``labels``, the keys of what it holds.
    normalize
        ``"ct"``: clip to percentiles of the training subjects, then z-score; ``"mr"``: z-score by each volume's own
        statistics (PET too); a ``Window``; None: cast to float32 only. Or collection to one of these.
    crops_per_volume, crops_per_unit, cell_tiles, steps, seed, on_error, cache_bytes
        As for ``PatchDataset``.
    num_workers
        Worker processes for training, on each device; 0 reads ahead in threads.
    prefetch, threads, read_ahead, timeout, multiprocessing_context, pin_memory
        As for ``PatchLoader``; memory is pinned by default where CUDA is there.
    stream
        Predict from volumes that are read window by window (``HandleLoader``), so that no volume is held whole.
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
        where: str | None = None,
        image: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "CT",
        label: str | Mapping[str, str] | None = None,
        targets: Mapping[str, str | Mapping[str, Any] | TableTarget] | None = None,
        patch_size: int | Sequence[int] | None = 96,
        batch_size: int | None = None,
        batch_size_per_device: int | None = None,
        policy: Policy | Mapping[str, Policy | None] | None = None,
        split: Split | None = None,
        transforms: Callable[[dict[str, Any]], Any] | Sequence[Any] | Mapping[str, Any] | None = None,
        augment: Callable[..., Any] | None = None,
        normalize: Normalization | Mapping[str, Normalization] = "ct",
        crops_per_volume: int = 16,
        crops_per_unit: int = 8,
        cell_tiles: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        cache_bytes: int = 1 << 30,
        num_workers: int = 2,
        prefetch: int = 4,
        threads: int | None = None,
        read_ahead: int | None = None,
        timeout: float | None = 300.0,
        multiprocessing_context: Any = None,
        pin_memory: bool | None = None,
        stream: bool = False,
        read: ReadConfig | None = None,
        demand: str | None = None,
    ) -> None:
        super().__init__()
        check_normalization(normalize)
        check_batch(batch_size, batch_size_per_device)
        self._uri, self._where = uri, where
        self.images, self.labels = named(image, "image"), named(label, "label")
        if both := sorted(set(self.images) & set(self.labels)):
            raise ConfigError(f"keys {both} are of images and of labels: give each its own")
        self.keys = {**self.images, **self.labels}
        self.split = split or Fractions()
        self.transforms, self.augment = by_stage(transforms, "transforms"), augment
        self.policies = by_stage(policy, "policy")
        self.policies["train"] = self.policies["train"] or (Foreground(0.5) if self.labels else Uniform())
        self.normalize = normalize
        self.batch_size, self.batch_size_per_device = batch_size, batch_size_per_device
        self.targets, self._steps = targets, steps
        self._sampling: dict[str, Any] = {
            "patch_size": patch_size,
            "crops_per_volume": crops_per_volume,
            "crops_per_unit": crops_per_unit,
            "cell_tiles": cell_tiles,
            "seed": seed,
            "on_error": on_error,
            "cache_bytes": cache_bytes,
        }
        pin = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._loading: dict[str, Any] = {"multiprocessing_context": multiprocessing_context, "pin_memory": pin}
        self._ahead: dict[str, Any] = {
            "num_workers": num_workers,
            "prefetch": prefetch,
            "threads": threads,
            "read_ahead": read_ahead,
            "timeout": timeout,
        }
        self._read, self._demand, self._stream = read, demand, stream
        self.skip_predicted: frozenset[str] = frozenset()
        self._cohort: Cohort | None = None
        self._normalizer: Normalizer | None = None
        self._kept = False  # it is that of a checkpoint
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
        """The cohort, or what `where` takes of it; opened on first use."""
        if self._cohort is None:
            whole = Cohort(self.uri, config=self._read, demand=self._demand)
            self._cohort = whole if self._where is None else whole.filter(self._where)
        return self._cohort

    @property
    def manifest(self) -> Manifest:
        """What the cohort holds, to be logged with a run; its hash changes with any voxel, grid or table value."""
        return self.cohort.freeze()

    @property
    def num_classes(self) -> int:
        """Classes of the first label collection, background included.

        Raises
        ------
        ConfigError
            When there is no label.
        """
        if not self.labels:
            raise ConfigError("num_classes needs a label collection: RadiologyDataModule(label=...)")
        values = self.cohort[first_of(self.labels)].obs["label_values"]
        return 1 + max((int(v.max()) for v in values if len(v)), default=0)

    def freeze_split(self, path: str | Path) -> Frozen:
        """Write the parts, and the manifest, into a file: ``split=Frozen(path)`` is the very same split."""
        self._parts()
        return Frozen.save(path, self.subjects, manifest=asdict(self.manifest))

    def prepare_data(self) -> None:
        """Make the demo cohort if no URI was given; runs in one process only."""
        if self._uri is None:
            from radiodata.demo.cohort import ensure_demo

            self._uri = ensure_demo()

    def setup(self, stage: str | None = None) -> None:
        """Split the subjects, and take what images are normalised by from the training subjects.

        To predict with the windows of a checkpoint no split is needed, and none is made.
        """
        self._train = None
        if stage == "predict" and self._kept:
            return
        self.subjects = self.split.parts(self.cohort.obs_meta)
        train = self.cohort.subset(self.subjects["train"])
        if not self._kept:
            self._normalizer = normalizer_of(train, self.images, self.normalize)

    def train_dataloader(self) -> PatchLoader:
        """Crops of the training subjects."""
        if self._train is None:
            overfit = bool(self.trainer is not None and getattr(self.trainer, "overfit_batches", 0))
            dataset = self._crops("train", steps=self._steps)
            self._train = PatchLoader(
                dataset, self._batch(), repeat_epoch=overfit, **self._ahead, **self._world(), **self._loading
            )
            if self._resume is not None:
                self._train.load_state_dict(self._resume)
                self._resume = None
        return self._train

    def val_dataloader(self) -> PatchLoader:
        """Whole volumes of the validation subjects, or crops where `policy` says so."""
        return self._rest("val")

    def test_dataloader(self) -> PatchLoader:
        """Whole volumes of the test subjects, or crops where `policy` says so."""
        return self._rest("test")

    def predict_dataloader(self) -> PatchLoader | HandleLoader:
        """Images of every subject: whole volumes, handles of them (`stream`), or crops where `policy` says so."""
        cohort = self._unpredicted()
        if self._stream or not len(cohort):  # of nothing there is nothing to plan
            return HandleLoader(cohort, self.images, read=self._read, **self._world())
        return self._rest("predict")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Cast and normalise on the device, images to float32 and labels to int64; augment what trains."""
        if not isinstance(batch, dict) or not any(isinstance(batch.get(k), torch.Tensor) for k in self.images):
            return batch
        if self._normalizer is None:
            self.setup()
        assert self._normalizer is not None
        out: dict[str, Any] = self._normalizer(batch)
        out = {**out, **{key: out[key].long() for key in self.labels if key in out}}
        if self.trainer is not None and self.trainer.training:
            if self._train is not None:
                self._train.stop_after(self.trainer.num_training_batches)
            if self.augment is not None:
                augmented: dict[str, Any] = self.augment(out, images=[*self.images], labels=[*self.labels])
                return augmented
        return out

    def state_dict(self) -> dict[str, Any]:
        """Place in the training stream, and what images are normalised by."""
        state: dict[str, Any] = {} if self._train is None else {"train_loader": self._train.state_dict()}
        return state if self._normalizer is None else {**state, "normalizer": self._normalizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place in the training stream, with the windows of that run.

        Lightning calls this before it asks for the loader, and calls the loader's own ``load_state_dict``
        only sometimes: the state is kept in both.
        """
        if "normalizer" in state_dict:
            if (theirs := set(state_dict["normalizer"])) != set(self.images):
                raise StateMismatchError(
                    f"the checkpoint has images under {sorted(theirs)}, this data module under {sorted(self.images)}: "
                    "give them the same keys"
                )
            self._normalizer, self._kept = Normalizer.from_state(state_dict["normalizer"]), True
        self._resume = state_dict.get("train_loader")
        if self._train is not None and self._resume is not None:
            self._train.load_state_dict(self._resume)
            self._resume = None

    def _parts(self) -> dict[str, list[str]]:
        if not self.subjects:
            self.setup()
        return self.subjects

    def _part(self, stage: str) -> Cohort:
        if stage == "predict":
            return self._unpredicted()
        subjects = self._parts()[stage]
        if not subjects:
            raise PlanError(f"{self.split} leaves no subject for {stage!r}: change the split")
        return self.cohort.subset(subjects)

    def _unpredicted(self) -> Cohort:
        """Cohort without the subjects whose first image is predicted already."""
        if not self.skip_predicted:
            return self.cohort
        obs = self.cohort[first_of(self.images)].obs
        done = set(obs["obs_subject_id"][obs.index.isin(self.skip_predicted)].astype(str))
        return self.cohort.subset([s for s in self.cohort.subjects if s not in done])

    def _given(self, stage: str) -> dict[str, Any]:
        keys = self.images if stage == "predict" else self.keys
        targets = None if stage == "predict" else self.targets
        return {"keys": keys, "targets": targets, "transform": self.transforms[stage], "read": self._read}

    def _crops(self, stage: str, **more: Any) -> PatchDataset:
        given = self._given(stage)
        return PatchDataset(
            self._part(stage), given.pop("keys"), policy=self.policies[stage], **given, **self._sampling, **more
        )

    def _rest(self, stage: str) -> PatchLoader:
        """Loader of a stage that does not train: in the order of the cohort, every sample once."""
        world = self._world()
        if self.policies[stage] is None:
            given = self._given(stage)
            return VolumeLoader(self._part(stage), given.pop("keys"), **given, **world, **self._loading)
        dataset = self._crops(stage, mode="pad", order="sequential")
        return PatchLoader(dataset, self._batch(), **self._ahead, **world, **self._loading)

    def _batch(self) -> int:
        return global_batch(self.batch_size, self.batch_size_per_device, self._world().get("world_size", 1))

    def _world(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
