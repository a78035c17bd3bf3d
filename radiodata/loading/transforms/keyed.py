"""KeyedTransform: whatever a transform is made of, its draws depend on the sample's key and nothing else."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from radiodata.loading.transforms.monai import has_own_seeding, is_monai, keyed_default, with_affine
from radiodata.loading.transforms.randomizable import Randomizables, find_randomizables
from radiodata.loading.transforms.seeding import (
    isolated,
    numpy_generator,
    op_seed,
    seed_globals,
    torch_generator,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Transform: TypeAlias = Callable[..., Any] | Sequence["Transform"]


class KeyedTransform:
    """A transform, or several in turn, that gives a sample the same draws wherever and whenever it is made.

    Each op has streams of its own, seeded by the sample's key (which stands for seed, epoch and sample) and by the
    op's place in the list: an op added at the end leaves the draws of the others as they were. An op may be

    * a function that takes ``rng`` or ``generator``: it is given a ``numpy.random.Generator`` or a
      ``torch.Generator`` (by annotation, else by that name) and should draw from it alone;
    * a MONAI dict transform, ``Compose``, ``OneOf``, ``SomeOf`` or ``RandomOrder``, nested or lazy: every
      ``Randomizable`` in it gets a random state by its place. It is given ``MetaTensor`` with the crop's affine and
      gives plain tensors back, with ``affine`` and ``spacing`` as they have become;
    * TorchIO, in the adapter ``TorchIO``, which does the same;
    * any other callable: the global generators of torch, NumPy and Python are seeded for it, and restored after;
      ``Randomizable`` objects that it holds or closes over are found and seeded too.

    Samples are made in one thread of a process at a time (the loader's other threads only read): transform objects
    and the global generators are not safe to share. Torch computes with one thread, as in a worker process: sums
    depend on how many there are. ``box`` and ``valid`` keep telling of the crop as it was read.

    Parameters
    ----------
    transform
        A callable that takes a sample and returns it, or a list of them, nested as you like; a list is taken as it
        is now.

    Examples
    --------
    >>> import torch
    >>> def noise(sample, *, rng):
    ...     return {**sample, "image": sample["image"] + rng.normal()}
    >>> keyed = KeyedTransform([noise])
    >>> sample = {"image": torch.zeros(1, 2, 2, 2)}
    >>> torch.equal(keyed(sample, 7)["image"], keyed(sample, 7)["image"])
    True
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self._ops = tuple(_ops(transform))
        self._numpy = any(op.generators.get("rng") is None for op in self._ops)

    def __call__(self, sample: Any, key: int) -> Any:
        """Transform a sample with all draws keyed by `key`."""
        if not self._ops:
            return sample
        with isolated(numpy=self._numpy):
            for op in self._ops:
                sample = op(sample, key, numpy=self._numpy)
        return sample

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyedTransform, (self.transform,)  # what a function's globals hold is found anew in another process


def apply(transform: Transform | KeyedTransform, sample: Any, key: int) -> Any:
    """Apply a transform with every source of randomness keyed by `key`; see ``KeyedTransform``."""
    keyed = transform if isinstance(transform, KeyedTransform) else KeyedTransform(transform)
    return keyed(sample, key)


@dataclass(frozen=True)
class Op:
    """One step, its place, and what has to be seeded for it."""

    call: Callable[..., Any]
    path: tuple[int, ...]
    generators: Mapping[str, Callable[[int], Any]]
    held: Randomizables

    def __call__(self, sample: Any, key: int, *, numpy: bool) -> Any:
        """Seed, then call."""
        seed = op_seed(key, *self.path)
        seed_globals(seed, numpy=numpy)
        self.held.seed(key, self.path)
        drawn = {name: make(seed) for name, make in self.generators.items()}
        with keyed_default(seed):
            return self.call(sample, **drawn)


def _ops(transform: Transform, path: tuple[int, ...] = ()) -> Iterator[Op]:
    if isinstance(transform, list | tuple):
        for place, part in enumerate(transform):
            yield from _ops(part, (*path, place))
        return
    if not callable(transform):
        raise TypeError(f"a transform is a callable or a list of them, not {type(transform).__name__}: {transform!r}")
    call = with_affine(transform) if is_monai(transform) else transform
    yield Op(call, path or (0,), _generators(transform), find_randomizables(transform))


def _generators(transform: Callable[..., Any]) -> dict[str, Callable[[int], Any]]:
    """Generators that a callable asks for by the names of its arguments."""
    if has_own_seeding(transform):
        return {}
    try:
        asked = inspect.signature(transform).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return {}
    given = set(transform.keywords) if isinstance(transform, functools.partial) else set()
    return {name: _maker(asked[name]) for name in ("rng", "generator") if name in asked and name not in given}


def _maker(parameter: inspect.Parameter) -> Callable[[int], Any]:
    said = str(parameter.annotation)
    if "torch" in said or ("random" not in said and parameter.name == "generator"):
        return torch_generator
    return numpy_generator
