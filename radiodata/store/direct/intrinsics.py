"""What kernels need and numba does not have. Imports numba, as kernels do: only where one is compiled."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD, _BYTE, _PIECE = ir.IntType(64), ir.IntType(8), 16


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


def _copy_typed(_: Any, target: Any, source: Any, nbytes: Any) -> Any:
    """Type and emit a copy of bytes from an address to another, past the processor's cache, in pieces.

    What is there need not be fetched first, then, nor what else the cache holds be driven out. An address or a length
    that is no multiple of a piece's is copied as usual. ``settle`` must follow before another thread may look.
    """

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, at, count = values
        piece, text = ir.VectorType(_BYTE, _PIECE).as_pointer(), _BYTE.as_pointer()
        rest = builder.and_(builder.or_(to, count), _WORD(_PIECE - 1))
        with builder.if_else(builder.icmp_signed("==", rest, _WORD(0))) as (in_pieces, otherwise):
            with in_pieces, cgutils.for_range_slice(builder, _WORD(0), count, _WORD(_PIECE)) as (n, _step):
                value = builder.load(builder.inttoptr(builder.add(at, n), piece), align=1)
                store = builder.store(value, builder.inttoptr(builder.add(to, n), piece), align=_PIECE)
                store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
            with otherwise:
                cgutils.raw_memcpy(builder, builder.inttoptr(to, text), builder.inttoptr(at, text), count, 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


def _settle_typed(_: Any) -> Any:
    """Type and emit a fence: what was written is there for other threads."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


call, address, itemsize = intrinsic(_call_typed), intrinsic(_address_typed), intrinsic(_itemsize_typed)
copy, settle = intrinsic(_copy_typed), intrinsic(_settle_typed)
