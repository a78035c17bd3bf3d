"""MONAI's transforms: their random states, and tensors that carry the crop's affine."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from radiodata.geometry import spacing_of
from radiodata.loading.transforms.seeding import random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _loaded() -> Any:
    """MONAI's transforms where somebody has imported them: nothing else can be one of them."""
    return sys.modules.get("monai.transforms")


def is_monai(transform: Any) -> bool:
    """Whether it is one of MONAI's transforms, or derived from one."""
    monai = _loaded()
    return monai is not None and isinstance(transform, monai.Transform)


def is_compose(transform: Any) -> bool:
    """Whether it is MONAI's ``Compose``, ``OneOf``, ``SomeOf`` or ``RandomOrder``."""
    monai = _loaded()
    return monai is not None and isinstance(transform, monai.Compose)


def has_own_seeding(transform: Any) -> bool:
    """Whether its randomness comes from ``set_random_state``."""
    return callable(getattr(transform, "set_random_state", None))


def forwards_its_state(transform: Any) -> bool:
    """Whether ``set_random_state`` was written for its class, so that it sees to what it holds."""
    monai = _loaded()
    return monai is None or type(transform).set_random_state is not monai.Randomizable.set_random_state


@contextmanager
def keyed_default(seed: int) -> Iterator[None]:
    """Key the state that MONAI's ``Randomizable`` objects share until they are given one of their own."""
    monai = _loaded()
    if monai is None:
        yield
        return
    shared, monai.Randomizable.R = monai.Randomizable.R, random_state(seed)
    try:
        yield
    finally:
        monai.Randomizable.R = shared


def with_affine(transform: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a MONAI transform take and give plain samples, seeing the crop's affine between.

    Every 4-D tensor ``(channel, x, y, z)`` of the sample becomes a ``MetaTensor``, so that spatial transforms work
    in mm and say where the voxels went. After it tensors are plain; ``affine`` and ``spacing`` are those of the
    first of them. The record of applied operations is dropped: a batch cannot carry it.
    """

    def transformed(sample: Any) -> Any:
        return _plain(transform(_meta(sample)))

    return transformed


def _meta(sample: Any) -> Any:
    if not isinstance(sample, dict) or "affine" not in sample:
        return [_meta(s) for s in sample] if isinstance(sample, list) else sample
    from monai.data import MetaTensor

    affine = torch.as_tensor(sample["affine"], dtype=torch.float64)
    return {k: MetaTensor(v, affine=affine.clone()) if _is_volume(v) else v for k, v in sample.items()}


def _is_volume(value: Any) -> bool:
    return type(value) is torch.Tensor and value.ndim == 4


def _plain(sample: Any) -> Any:
    if isinstance(sample, list):  # transforms that cut several samples of one
        return [_plain(s) for s in sample]
    if not isinstance(sample, dict):
        return sample
    from monai.data import MetaTensor
    from monai.transforms.lazy.functional import apply_pending_transforms

    done = apply_pending_transforms(dict(sample), None)  # a lazy transform outside of a lazy Compose
    tensors = [v for v in done.values() if isinstance(v, MetaTensor) and v.ndim == 4]
    out = {k: v.as_tensor() if isinstance(v, MetaTensor) else v for k, v in done.items()}
    if tensors and "affine" in out:
        affine = tensors[0].affine.detach().to("cpu", torch.float64)
        out["affine"] = affine
        if "spacing" in out:
            out["spacing"] = torch.from_numpy(spacing_of(affine.numpy()))
    return out
