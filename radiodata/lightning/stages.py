"""What a setting is in each stage of a run, and the keys of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = ("train", "val", "test", "predict")


def by_stage(given: Any, name: str) -> dict[str, Any]:
    """Setting of each stage: one that is given alone is that of training.

    Raises
    ------
    ConfigError
        When a stage is none.
    """
    if not isinstance(given, Mapping):
        return {**dict.fromkeys(STAGES), "train": given}
    odd = sorted(set(given) - set(STAGES))
    if odd:
        raise ConfigError(f"{name} names stages {odd}: choose of {', '.join(STAGES)}")
    return {**dict.fromkeys(STAGES), **given}


def named(given: str | Sequence[str] | Mapping[str, Any] | None, key: str) -> dict[str, str | list[str]]:
    """Sample key to collection, or collections that are stacked: `key` where only they are given."""
    if given is None:
        return {}
    held = dict(given) if isinstance(given, Mapping) else {key: given}
    return {str(k): v if isinstance(v, str) else [str(n) for n in v] for k, v in held.items()}


def first_of(keys: Mapping[str, str | list[str]]) -> str:
    """Collection that sets the grid: the first of the first key."""
    first = next(iter(keys.values()))
    return first if isinstance(first, str) else first[0]


def global_batch(batch_size: int | None, per_device: int | None, world: int) -> int:
    """Size of the batch over all devices together."""
    return (batch_size or 4) if per_device is None else per_device * world


def check_batch(batch_size: int | None, per_device: int | None) -> None:
    """Refuse two sizes of a batch at once.

    Raises
    ------
    ConfigError
        When both are given, or one is no number of samples.
    """
    if batch_size is not None and per_device is not None:
        raise ConfigError(
            f"batch_size={batch_size} is of all devices together, batch_size_per_device={per_device} of each: give one"
        )
    for size in (batch_size, per_device):
        if size is not None and size < 1:
            raise ConfigError(f"a batch of {size} samples: give 1 or more")
