"""Zarr format 3, zstd, cubic chunks, one array per volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contenders.base import ArrayContender

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.phantom import Phantoms


class Zarr(ArrayContender):
    requires = ("zarr",)

    def __init__(self, chunk: int = 64, level: int = 3) -> None:
        self.chunk, self.level = chunk, level

    def store(self, crop: int) -> str:
        return f"zarr-{self.chunk}"

    def prepare(self, phantoms: Phantoms, folder: Path, crop: int) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        for index in range(phantoms.count):
            zarr.create_array(
                store=folder / f"{index}.zarr",
                data=phantoms.truth(index)[:],
                chunks=(self.chunk,) * 3,
                compressors=ZstdCodec(level=self.level),
                zarr_format=3,
            )

    def block(self, shape: tuple[int, int, int], crop: int) -> tuple[int, int, int]:
        return (self.chunk, self.chunk, self.chunk)

    def open(self, folder: Path, volume: int) -> Any:
        import zarr

        return zarr.open_array(store=folder / f"{volume}.zarr", mode="r")
