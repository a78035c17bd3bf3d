"""How an ingest is done: what every way of ingesting takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from radiodata.store.config import ReadConfig, StoreConfig, TilingLike


class Options(TypedDict, total=False):
    """Keyword arguments of ``ingest_niftis``, ``ingest_dicom``, ``ingest_bids`` and ``ingest_table``.

    Attributes
    ----------
    config, tiling
        See ``StoreConfig``; `config`, where given, says everything about the layout. By default that of a cohort
        that is there, else as the environment says (see ``StoreConfig.from_env``).
    read
        How TileDB writes, and the key of a cohort that is, or is to be, encrypted; by default as the environment says.
    workers
        How many work at once, each on one subject.
    executor
        ``"processes"``, ``"threads"``, any ``concurrent.futures.Executor``, or a Dask client; by default processes,
        and threads where there are fewer than 16 subjects to be written.
    exist
        ``"error"`` refuses a cohort that is there; ``"continue"`` (default) adds to it and passes over volumes that it
        holds already, by the content of their files.
    atomic
        Take all subjects or none, in one commit; by default subjects that could be taken stay.
    on_error
        ``"raise"`` (default) writes nothing where a header is wrong, and tells at the end of files that turned out to
        be damaged; ``"skip"`` takes what can be taken, and lists the rest in ``IngestReport.refused``.
    dry_run
        Write nothing, and tell what would become of what in ``IngestReport.volumes``.
    orient, dtype
        As of ``StoreConfig``, in place of what `config` or the environment says.
    spacing, window, crop_foreground
        What is done to volumes on the way in (see ``Preparation``); it is recorded in the provenance.
    progress
        Called with (subjects done, subjects in all).
    """

    config: StoreConfig | None
    tiling: TilingLike | None
    read: ReadConfig | None
    workers: int
    executor: Any
    exist: Literal["error", "continue"]
    atomic: bool
    on_error: Literal["raise", "skip"]
    dry_run: bool
    orient: str | None
    dtype: str | None
    spacing: float | tuple[float | None, float | None, float | None] | None
    window: tuple[float, float] | None
    crop_foreground: float | None
    progress: Callable[[int, int], None] | None


def check_options(options: Options) -> None:
    """Refuse values that mean nothing.

    Raises
    ------
    ConfigError
        Naming the option and its values.
    """
    choices = {"exist": ("error", "continue"), "on_error": ("raise", "skip")}
    for name, known in choices.items():
        if (value := options.get(name, known[0])) not in known:
            raise ConfigError(f"{name}={value!r}: {' or '.join(map(repr, known))}")
    if options.get("workers", 1) < 1:
        raise ConfigError(f"workers={options['workers']}: must be at least 1")
    if options.get("atomic") and options.get("on_error") == "skip":
        raise ConfigError("atomic=True takes all or none, and on_error='skip' takes some: choose one")
