"""What kernels need and numba does not have. Imports numba, as kernels do: only where one is compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def _call_typed(_: Any, function: Any, arguments: Any) -> Any:
    """Type and emit ``int64 f(int64, ...)``, called at an address."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = ir.FunctionType(_WORD, [_WORD] * len(arguments)).as_pointer()
        return builder.call(
            builder.inttoptr(values[0], pointer), cgutils.unpack_tuple(builder, values[1], len(arguments))
        )

    return types.int64(function, arguments), emit


def _address_typed(_: Any, pointer: Any) -> Any:
    """Type and emit the address that a pointer holds."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.ptrtoint(values[0], _WORD)

    return types.int64(pointer), emit


def _itemsize_typed(_: Any, pointer: Any) -> Any:
    """Type and emit the bytes of what a pointer points to: a constant."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _WORD(context.get_abi_sizeof(context.get_data_type(pointer.dtype)))

    return types.int64(pointer), emit


call, address, itemsize = intrinsic(_call_typed), intrinsic(_address_typed), intrinsic(_itemsize_typed)
