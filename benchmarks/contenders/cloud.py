"""Contenders that read crops from an S3 server: what is written to a folder is a bucket of it."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cloud import KEY, SECRET, tiledb_settings
from benchmarks.contenders.base import Contender, CropDataset, LoaderSpec, torch_loader
from benchmarks.contenders.radiobject import RadiObject
from benchmarks.contenders.radiodata import Radiodata
from benchmarks.contenders.zarr import Zarr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.phantom import Phantoms


class Remote(Contender):
    """A contender that reads a bucket on a port of this machine."""

    def publish(self, bucket: str, port: int) -> None:
        """Do once what it does to data that were copied to a bucket."""

    def remote(self, phantoms: Phantoms, bucket: str, port: int, spec: LoaderSpec) -> Iterable[Any]:
        """Return an iterable of batches, iterated again for the next epoch."""
        raise NotImplementedError(f"{type(self).__name__} is in the s3 benchmark; it must implement remote()")


class RemoteRadiodata(Radiodata, Remote):
    """``cache``: tiles are kept on the local disk. ``local``: the same cohort is read from the local disk."""

    def __init__(self, tile: int = 32, unit: int = 8, *, cache: bool = False, local: bool = False) -> None:
        super().__init__(tile, unit)
        self.cache, self.local = cache, local
        self._scratch = tempfile.TemporaryDirectory()

    def publish(self, bucket: str, port: int) -> None:
        from radiodata import Cohort

        cohort = Cohort(f"s3://{bucket}/cohort", config=self._config(port))
        if next(iter(cohort.CT)).source.index is None:
            cohort.optimize()

    def _config(self, port: int) -> Any:
        from radiodata import ReadConfig

        cache = str(Path(self._scratch.name, "tiles")) if self.cache else None
        return ReadConfig(threads=1, tiledb=tiledb_settings(port), cache=cache)

    def remote(self, phantoms: Phantoms, bucket: str, port: int, spec: LoaderSpec) -> Iterable[Any]:
        from radiodata import Cohort

        return self.over(Cohort(f"s3://{bucket}/cohort", config=self._config(port)), spec)


class RemoteRadiObject(RadiObject, Remote):
    """As its documents say: its S3 settings, and its own loader."""

    def remote(self, phantoms: Phantoms, bucket: str, port: int, spec: LoaderSpec) -> Iterable[Any]:
        import sys

        import radiobject
        import tiledb
        from radiobject import VolumeCollection

        settings = radiobject.get_config().to_tiledb_ctx().config().dict()
        # its S3Config names no endpoint
        sys.modules["radiobject.ctx"]._ctx = tiledb.Ctx({**settings, **tiledb_settings(port)})  # type: ignore[attr-defined]
        return self.over(VolumeCollection(f"s3://{bucket}/CT"), spec)


class RemoteZarr(Zarr, Remote):
    """zarr 3 on obstore; ``threads`` read the crops of coming batches, which zarr itself does not."""

    requires = ("zarr", "obstore")

    def __init__(self, chunk: int = 64, level: int = 3, threads: int = 16) -> None:
        super().__init__(chunk, level)
        self.threads = threads

    def remote(self, phantoms: Phantoms, bucket: str, port: int, spec: LoaderSpec) -> Iterable[Any]:
        import zarr
        from zarr.storage import ObjectStore

        def opened(volume: int) -> Any:
            store = _store(bucket, port, f"{volume}.zarr")
            return zarr.open_array(store=ObjectStore(store, read_only=True), mode="r")

        return _Threads(CropDataset(opened, phantoms, spec), spec.batch, self.threads)


class WholeFiles(Remote):
    """Each .nii.gz is downloaded whole, by a thread that is one file ahead, and crops are cut out of it.

    The way of loaders that stream files or shards: crops of a volume follow each other.
    """

    requires = ("nibabel", "obstore")

    def store(self, crop: int) -> str:
        return "niftis"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        for path in phantoms.niftis:
            (folder / path.name).write_bytes(path.read_bytes())

    def remote(self, phantoms: Phantoms, bucket: str, port: int, spec: LoaderSpec) -> Iterable[Any]:
        return torch_loader(_Whole([path.name for path in phantoms.niftis], bucket, port, spec), spec)


class _Threads:
    """Batches of a map-style dataset, read by threads four batches ahead."""

    def __init__(self, dataset: CropDataset, batch: int, threads: int) -> None:
        self._dataset, self._batch, self._threads = dataset, batch, threads

    def __iter__(self) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        import torch

        with ThreadPoolExecutor(self._threads) as pool:
            count, ahead = len(self._dataset), 4 * self._batch + self._threads
            jobs = [pool.submit(self._dataset.__getitem__, n) for n in range(min(ahead, count))]
            for first in range(0, count, self._batch):
                yield torch.stack([job.result() for job in jobs[first : first + self._batch]])
                more = range(len(jobs), min(first + self._batch + ahead, count))
                jobs.extend(pool.submit(self._dataset.__getitem__, n) for n in more)


class _Whole:
    """Map-style dataset: crops of a volume follow each other; the next volume is downloaded meanwhile."""

    def __init__(self, names: list[str], bucket: str, port: int, spec: LoaderSpec) -> None:
        self._names, self._bucket, self._port, self._spec = names, bucket, port, spec
        self._held: tuple[int, Any] | None = None
        self._next: tuple[int, threading.Thread, dict[str, bytes]] | None = None
        self._rng = np.random.default_rng(spec.seed)

    def __len__(self) -> int:
        return len(self._names) * self._spec.crops_per_volume

    def __getitem__(self, index: int) -> Any:
        import torch

        volume = index // self._spec.crops_per_volume
        if self._held is None or self._held[0] != volume:
            self._held = volume, self._voxels(volume)
        voxels, crop = self._held[1], self._spec.crop
        at = self._rng.integers(0, np.array(voxels.shape) - crop + 1)
        return torch.from_numpy(np.array(voxels[tuple(slice(a, a + crop) for a in at)], order="C")).unsqueeze(0)

    def _voxels(self, volume: int) -> Any:
        import nibabel as nib

        job = self._next if self._next is not None and self._next[0] == volume else self._begin(volume)
        job[1].join()
        self._next = self._begin((volume + 1) % len(self._names))
        with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
            file.write(job[2]["raw"])
            file.flush()
            return np.asanyarray(nib.load(file.name).dataobj)

    def _begin(self, volume: int) -> tuple[int, threading.Thread, dict[str, bytes]]:
        held: dict[str, bytes] = {}
        thread = threading.Thread(target=self._download, args=(volume, held), daemon=True)
        thread.start()
        return volume, thread, held

    def _download(self, volume: int, held: dict[str, bytes]) -> None:
        import obstore

        held["raw"] = bytes(obstore.get(_store(self._bucket, self._port), self._names[volume]).bytes())


def _store(bucket: str, port: int, prefix: str | None = None) -> Any:
    from obstore.store import S3Store

    config = {
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
    }
    return S3Store(bucket, prefix=prefix, config=config, client_options={"allow_http": True})
