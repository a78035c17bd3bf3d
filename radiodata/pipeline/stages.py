"""The stages of a pipeline that is planned, and the volumes that go in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from radiodata.pipeline.running import Each, Take, Together
from radiodata.pipeline.steps import Keep, Unread
from radiodata.store.obs import OBS_ID, affine_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from radiodata.pipeline.steps import Step
    from radiodata.store.collection import VolumeCollection


def unread(view: VolumeCollection, skipped: frozenset[str] | set[str] = frozenset()) -> Iterator[Unread]:
    """Volumes of a view, not read."""
    sources, config = view.sources(), replace(view.config, threads=1)
    table = view.joined()
    for at, source in enumerate(sources):
        if source.obs_id in skipped:
            continue
        row = table.iloc[at]
        obs = {str(n): None if _null(v) else v for n, v in row.items()}
        affine = affine_of(row)
        obs |= {OBS_ID: source.obs_id, "affine": affine, "collection_kind": view.kind}
        yield Unread(source, config, view.kind, affine, obs, at)


def _null(value: Any) -> bool:
    return value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def append(stages: list[Each | Together | Take], step: Step) -> None:
    """Add a step: to the last stage, where that is of single volumes."""
    if stages and isinstance(stages[-1], Each):
        stages[-1] = Each((*stages[-1].steps, step))
    else:
        stages.append(Each((step,)))


def ended(stages: Sequence[Each | Together | Take], end: tuple[Step, ...]) -> list[Each | Together | Take]:
    """Stages with the steps that a terminal adds."""
    held = list(stages)
    for step in end:
        append(held, step)
    return held


def settled(stages: Sequence[Each | Together | Take]) -> bool:
    """Whether what comes out is what goes in, one for one and one by one."""
    return all(isinstance(s, Each) and not drops(s) for s in stages)


def drops(stage: Each) -> bool:
    """Whether volumes may be dropped."""
    return any(isinstance(step, Keep) for step in stage.steps)
