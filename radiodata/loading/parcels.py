"""Batches across processes: large arrays through memory that both ends map and use again, the rest by value.

The memory is anonymous (``memfd_create``): it is counted as memory of the process, and ``/dev/shm``, which
containers keep small, is not used. It is used again when nothing of the batch is referred to any more, so
that no page has to be zeroed and mapped for each batch.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from radiodata.loading.mapped import Mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

SMALL = 1 << 14
"""Arrays of fewer bytes travel by value: keeping one of them does not keep shared memory."""

_ROUND = 1 << 16


@dataclass(frozen=True)
class Sheet:
    """A piece of shared memory.

    Attributes
    ----------
    number
        Which, among those of one worker.
    nbytes
        Its size.
    """

    number: int
    nbytes: int


class Parcel:
    """A pickled object and the sheets that its large arrays lie in.

    Parameters
    ----------
    content
        The pickle.
    sheets
        Number of each large array's sheet, and the array's bytes.
    """

    def __init__(self, content: bytes, sheets: Sequence[tuple[int, int]]) -> None:
        self.content, self.sheets = content, tuple(sheets)


class _Loan(NamedTuple):
    """A sheet that is given as memory, and not packed yet."""

    which: int
    number: int
    nbytes: int


class Packer:
    """The worker's end: packs objects, and uses sheets again that came back. Any thread may ask for memory.

    Parameters
    ----------
    keep
        Batches' worth of free sheets to keep.
    """

    def __init__(self, keep: int) -> None:
        self._keep, self._numbers, self._loans = keep, itertools.count(), itertools.count()
        self._maps: dict[int, Mapped] = {}
        self._free: deque[int] = deque()
        self._per_batch = 1
        self._lock = threading.Lock()
        self._lent: dict[int, _Loan] = {}
        self._unused: deque[tuple[int, int]] = deque()
        self._new: list[tuple[Sheet, int]] = []

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give an array in shared memory that holds anything: what is packed with it is not copied."""
        count = int(np.prod(shape, dtype=np.int64))
        nbytes = count * np.dtype(dtype).itemsize
        if nbytes < SMALL or not hasattr(os, "memfd_create"):
            return np.empty(shape, dtype)
        with self._lock:
            number = self._find(nbytes)
            array = self._maps[number].array(dtype, count)
            loan = self._lent[array.ctypes.data] = _Loan(next(self._loans), number, nbytes)
        # an array may die anywhere, under any lock
        weakref.finalize(array, self._unused.append, (array.ctypes.data, loan.which)).atexit = False
        return array.reshape(shape)

    def take_new(self) -> list[tuple[Sheet, int]]:
        """Sheets made since the last time, each with its open file, which is the caller's to close."""
        with self._lock:
            new, self._new = self._new, []
        return new

    def pack(self, content: Any) -> Parcel:
        """Pickle an object, large arrays and tensors beside it; those of ``empty`` are there already."""
        used: list[tuple[int, int]] = []

        def lay_aside(buffer: pickle.PickleBuffer) -> bool:
            with buffer.raw() as raw:
                if raw.nbytes < SMALL or not hasattr(os, "memfd_create"):
                    return True
                used.append(self._there(raw) or (self._copy(raw), raw.nbytes))
            return False

        file = io.BytesIO()
        try:
            _Pickler(file, protocol=5, buffer_callback=lay_aside).dump(content)
        except BaseException:
            with self._lock:
                self._free.extend(number for number, _ in used)
            raise
        self._per_batch = max(1, len(used))
        return Parcel(file.getvalue(), used)

    def take_back(self, numbers: Iterable[int]) -> list[int]:
        """Take sheets back that the other end has no use for; give those that are dropped, as too many."""
        with self._lock:
            self._free.extend(numbers)
            self._reclaim()
            excess = [self._free.popleft() for _ in range(len(self._free) - self._keep * self._per_batch)]
            ended = [self._maps.pop(number) for number in excess]
        for mapped in ended:
            mapped.free()
        return excess

    def _there(self, raw: memoryview) -> tuple[int, int] | None:
        """Sheet that an array lies in already, and its bytes."""
        address = np.frombuffer(raw, np.uint8).ctypes.data
        with self._lock:
            loan = self._lent.get(address)
            if loan is None or loan.nbytes != raw.nbytes:
                return None
            del self._lent[address]
        return loan.number, loan.nbytes

    def _copy(self, raw: memoryview) -> int:
        with self._lock:
            number = self._find(raw.nbytes)
        np.copyto(self._maps[number].array(np.uint8, raw.nbytes), np.frombuffer(raw, np.uint8))
        return number

    def _reclaim(self) -> None:
        """Take back what was given as memory and not packed, of which nothing is left."""
        while self._unused:
            address, which = self._unused.popleft()
            loan = self._lent.get(address)
            if loan is not None and loan.which == which:  # else it was packed, and may have been lent again since
                del self._lent[address]
                self._free.append(loan.number)

    def _find(self, nbytes: int) -> int:
        self._reclaim()
        fitting = [n for n in self._free if len(self._maps[n]) >= nbytes]
        if fitting:
            number = min(fitting, key=lambda n: len(self._maps[n]))
            self._free.remove(number)
            return number
        number, size = next(self._numbers), -(-nbytes // _ROUND) * _ROUND
        file = os.memfd_create(f"radiodata-{number}")
        try:
            os.posix_fallocate(file, 0, size)  # fails here and now, not as a bus error in the middle of a copy
            self._maps[number] = Mapped(file, size)
        except OSError:
            os.close(file)
            raise
        self._new.append((Sheet(number, size), file))
        return number


class Unpacker:
    """The loader's end, one a worker."""

    def __init__(self) -> None:
        self._maps: dict[int, Mapped] = {}
        self._back: deque[int] = deque()

    def add(self, sheet: Sheet, file: int) -> None:
        """Map a sheet that the worker has made."""
        try:
            self._maps[sheet.number] = Mapped(file, sheet.nbytes)
        finally:
            os.close(file)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget sheets that the worker has dropped."""
        for number in numbers:
            del self._maps[number]

    def unpack(self, parcel: Parcel) -> Any:
        """Make the object; its sheets come back when none of its arrays is referred to any more."""
        return pickle.loads(parcel.content, buffers=[self._lend(*sheet) for sheet in parcel.sheets])

    def refuse(self, parcel: Parcel) -> None:
        """Give the sheets of a parcel back unopened."""
        self._back.extend(number for number, _ in parcel.sheets)

    def back(self) -> tuple[int, ...]:
        """Sheets that came back since the last time."""
        return tuple(self._back.popleft() for _ in range(len(self._back)))

    def _lend(self, number: int, nbytes: int) -> NDArray[np.uint8]:
        lease = self._maps[number].array(np.uint8, nbytes)
        weakref.finalize(lease, self._back.append, number).atexit = False
        return lease


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return NotImplemented
        if obj.requires_grad or obj.is_quantized or obj.is_conj() or obj.is_neg() or not obj.numel():
            return NotImplemented
        flat = obj.contiguous().reshape(-1).view(torch.uint8).numpy()
        return _tensor, (
            pickle.PickleBuffer(flat),  # type: ignore[arg-type]
            obj.dtype,
            tuple(obj.shape),
        )


def _tensor(buffer: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    flat = torch.from_numpy(buffer) if isinstance(buffer, np.ndarray) else torch.frombuffer(buffer, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)
