"""Objects with a random state of their own (MONAI's ``Randomizable``), found wherever a transform keeps them."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radiodata.loading.transforms.monai import forwards_its_state, is_compose
from radiodata.loading.transforms.seeding import op_seed, random_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEPTH = 5  # a transform in a list in a dict of an object in a closure; a Compose in a Compose counts anew
LONGEST = 100
OPAQUE = (str, bytes, int, float, type, ModuleType, BuiltinFunctionType, torch.Tensor, np.ndarray, type(None))


@dataclass(frozen=True)
class Randomizable:
    """An object with ``set_random_state``, its place inside an op, and how it is seeded."""

    place: tuple[int, ...]
    thing: Any
    is_compose: bool
    takes_state: bool


@dataclass(frozen=True)
class Randomizables:
    """What has to be seeded for an op."""

    found: tuple[Randomizable, ...]

    def seed(self, key: int, path: tuple[int, ...]) -> None:
        """Give each a state of its own, keyed by the sample and by its place."""
        for one in self.found:
            seed = op_seed(key, *path, -1, *one.place)
            if one.is_compose:
                one.thing.R = random_state(seed)  # its own method would reseed what it holds, which was found too
            elif one.takes_state:
                one.thing.set_random_state(state=random_state(seed))
            else:
                one.thing.set_random_state(seed=seed % 2**32)


def find_randomizables(transform: Any) -> Randomizables:
    """Find what has a random state in a transform: itself, its attributes, closures, lists of them."""
    found = _walk(transform, (), set())
    return Randomizables(tuple(Randomizable(p, t, is_compose(t), _takes_state(type(t))) for p, t in found))


def _takes_state(kind: type[Any]) -> bool:
    return "state" in inspect.signature(kind.set_random_state).parameters


def _walk(thing: Any, place: tuple[int, ...], seen: set[int], depth: int = 0) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(thing, OPAQUE) or id(thing) in seen or depth > DEPTH:
        return
    seen.add(id(thing))
    if not callable(getattr(thing, "set_random_state", None)):
        parts = _parts(thing)
    else:
        yield place, thing
        depth = -1
        parts = thing.transforms if is_compose(thing) else () if forwards_its_state(thing) else _parts(thing)
    for number, part in enumerate(parts):
        yield from _walk(part, (*place, number), seen, depth + 1)


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, list | tuple | dict):
        return list(thing.values() if isinstance(thing, dict) else thing)[:LONGEST]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        cells = [c.cell_contents for c in thing.__closure__ or () if not _is_empty(c)]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        return [*cells, *(thing.__defaults__ or ()), *named]
    return list(getattr(thing, "__dict__", {}).values())


def _is_empty(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False
