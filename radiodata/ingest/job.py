"""The work of one subject: load, prepare and write its volumes; done in threads, processes or a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from radiodata.errors import Problem, RadiodataError, StoreError
from radiodata.ingest.checks import misaligned
from radiodata.ingest.preparing import Preparation, grid_of
from radiodata.ingest.volume import Slot, Written, load_item, write_item
from radiodata.store import layout
from radiodata.store.context import context
from radiodata.store.runs import may_write

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from radiodata.ingest.items import Grid, Item, Loaded, Subject
    from radiodata.ingest.transforms import Crop
    from radiodata.store.config import ReadConfig, StoreConfig

Outcome: TypeAlias = "tuple[str, list[Written] | Problem]"


@dataclass(frozen=True)
class Job:
    """What every worker is told; small, and can be pickled.

    Attributes
    ----------
    folders
        Of each collection, below `uri`.
    mark
        Of the run: without it, what is written is nobody's.
    """

    uri: str
    kinds: dict[str, str]
    folders: dict[str, str]
    run: str
    mark: str
    config: StoreConfig
    read: ReadConfig
    preparation: Preparation

    def write(self, subject: Subject, places: Sequence[int]) -> Outcome:
        """Write the volumes of a subject, or none.

        Parameters
        ----------
        places
            Number of each volume in its collection, in this run.
        """
        order = sorted(range(len(subject.items)), key=lambda n: self.kinds[subject.items[n].collection] != "label")
        work = _Work(self, subject)
        written: dict[int, Written] = {}
        for number in order:  # labels first: images are described inside them, too
            item = subject.items[number]
            try:
                written[number] = work.write(item, places[number])
            except RadiodataError as error:
                return subject.subject, Problem(item.source.where, str(error))
        return subject.subject, [written[number] for number in range(len(subject.items))]


class _Work:
    """Volumes of one subject, one in memory at a time, but for the image that tells where all are cut."""

    def __init__(self, job: Job, subject: Subject) -> None:
        self._job, self._subject = job, subject
        self._foreground: list[tuple[Grid, NDArray[np.bool_]]] = []
        self._first: tuple[Item, Loaded] | None = None
        self._cut: tuple[Grid, Crop] | None = None
        if job.preparation.crop_foreground is not None:
            self._find_cut()

    def _find_cut(self) -> None:
        for item in self._subject.items:
            if self._job.kinds[item.collection] == "image":
                try:
                    image = load_item(item, "image", self._job.config)
                    cut = self._job.preparation.cut_of(image)
                except RadiodataError:
                    return  # it is told when its turn comes
                self._first = item, image
                self._cut = (grid_of(image), cut) if cut is not None else None
                return

    def write(self, item: Item, place: int) -> Written:
        job, kind = self._job, self._job.kinds[item.collection]
        loaded = self._loaded(item, kind)
        if job.preparation:
            loaded = job.preparation.prepare(loaded, kind, self._cut_for(loaded, kind))
        if kind == "label":
            self._remember(loaded)
        if not may_write(job.mark, context(job.read)):
            raise StoreError(f"the run {job.run} that ingests into {job.uri} has ended: nothing more is written for it")
        slot = Slot(item.collection, layout.join(job.uri, job.folders[item.collection]), kind, job.run, place)
        inside = self._on(grid_of(loaded)) if kind == "image" else None
        return write_item(item, self._subject.subject, loaded, slot, job.config, job.read, inside)

    def _loaded(self, item: Item, kind: str) -> Loaded:
        if self._first is not None and item is self._first[0]:
            _, loaded = self._first
            self._first = None
            return loaded
        return load_item(item, kind, self._job.config)

    def _cut_for(self, loaded: Loaded, kind: str) -> Crop | None:
        if self._cut is not None and misaligned(self._cut[0], grid_of(loaded)) is None:
            return self._cut[1]
        return self._job.preparation.cut_of(loaded) if kind == "image" else None

    def _remember(self, label: Loaded) -> None:
        """Add the voxels of a label volume to the foreground of its grid."""
        grid, inside = grid_of(label), label.voxels[0] > 0
        if (before := self._on(grid)) is None:
            self._foreground.append((grid, inside))
        else:
            before[inside] = True

    def _on(self, grid: Grid) -> NDArray[np.bool_] | None:
        """Foreground on a grid, where there is some."""
        return next((inside for other, inside in self._foreground if misaligned(other, grid) is None), None)
