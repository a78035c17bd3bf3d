"""Samples to a batch: torch's default collation, but for transforms that change a dtype only sometimes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data._utils.collate import collate, collate_tensor_fn, default_collate_fn_map

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from radiodata.loading.memory import Allocate


_NUMPY_DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
}


def collate_samples(samples: Sequence[Any], allocate: Allocate = np.empty) -> Any:
    """Make a batch of samples.

    As ``torch.utils.data.default_collate``, but tensors of one key may differ in dtype (MONAI's random
    transforms turn integers into floats only where they apply) and are promoted; tensor subclasses such as
    ``MetaTensor`` become plain tensors.

    Parameters
    ----------
    samples
        Of one structure.
    allocate
        Gives the memory of each tensor of the batch, by shape and dtype.
    """
    stack: dict[Any, Any] = {torch.Tensor: partial(_stack, allocate=allocate)}
    return collate(list(samples), collate_fn_map={**default_collate_fn_map, **stack})  # type: ignore[no-untyped-call]


def bytes_of(batch: Any) -> int:
    """Bytes of the tensors in a batch, however nested."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        batch = batch.values()
    elif not isinstance(batch, (list, tuple)):
        return 0
    return sum(bytes_of(value) for value in batch if not isinstance(value, str))


def _stack(
    tensors: Sequence[torch.Tensor],
    *,
    collate_fn_map: dict[Any, Callable[..., Any]] | None = None,
    allocate: Allocate,
) -> torch.Tensor:
    plain = [t.as_subclass(torch.Tensor) for t in tensors]
    dtypes = {t.dtype for t in plain}
    if len(dtypes) > 1:
        common = dtypes.pop()
        for other in dtypes:
            common = torch.promote_types(common, other)
        plain = [t.to(common) for t in plain]
    if len({t.shape for t in plain}) == 1 and all(_in_numpy(t) for t in plain):
        arrays = [t.numpy() for t in plain]
        out = allocate((len(arrays), *arrays[0].shape), arrays[0].dtype)
        return torch.from_numpy(np.stack(arrays, out=out))
    stacked: torch.Tensor = collate_tensor_fn(plain, collate_fn_map=collate_fn_map)  # type: ignore[no-untyped-call]
    return stacked


def _in_numpy(tensor: torch.Tensor) -> bool:
    """Whether numpy can copy a tensor: torch would do it in all cores at once, and the idle ones would spin."""
    return (
        tensor.device.type == "cpu"
        and not tensor.requires_grad
        and tensor.layout == torch.strided
        and (tensor.dtype in _NUMPY_DTYPES)
    )
