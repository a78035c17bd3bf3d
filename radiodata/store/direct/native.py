"""Functions that numba compiles once for a machine, and that LLVM loads again without numba.

Importing numba takes a second of every process, and of every worker of a loader; LLVM alone loads machine code in
hundredths of one. So the code is kept in a file, where numba keeps its own: in ``$NUMBA_CACHE_DIR``, beside this
module, or in the user's cache. A kernel takes int64s and addresses, calls what it is given the addresses of, and
nothing else: what numba adds for Python is cut off.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import os
import sys
import uuid
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_DIGEST = hashlib.sha256().digest_size
_FROM_LIBC = {"memcpy", "memmove", "memset"}  # what LLVM makes of loops
_log = logging.getLogger("radiodata.store")
_kept: list[Any] = []  # LLVM frees the code of what nothing holds


class Kernel(NamedTuple):
    """A function to be compiled.

    Attributes
    ----------
    module, name
        Where it is defined; the module imports numba, and is imported only to compile it.
    arguments
        Types of numpy, ``"i8"`` or, for an address, ``"u2*"``. It returns int64.
    helpers
        Modules of functions that it calls.
    """

    module: str
    name: str
    arguments: tuple[str, ...]
    helpers: tuple[str, ...] = ("radiodata.store.direct.intrinsics",)


def load(kernel: Kernel, *, anew: bool = False) -> Callable[..., int]:
    """Give a function, from where its machine code is kept unless it is to be compiled `anew`.

    It holds no GIL. Addresses are those of ``address_of``; what they point to must outlive the call.

    Raises
    ------
    ImportError
        Where there is no numba.
    """
    llvm, machine = _llvm()
    place = f"{kernel.name}-{_key(kernel)}.o"
    code = None if anew else _read(place)
    if code is None:
        code = _compile(kernel, llvm, machine)
        _keep(place, code)
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(kernel.name)
    compiler = _compiler()
    linked = library.link(compiler, f"{kernel.name}-{uuid.uuid4().hex}")
    _kept.append((compiler, linked))
    kinds = [ctypes.c_void_p if a.endswith("*") else ctypes.c_int64 for a in kernel.arguments]
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(linked[kernel.name])

    def called(*arguments: int) -> int:
        result, error = ctypes.c_int64(), ctypes.c_void_p()
        if function(ctypes.addressof(result), ctypes.addressof(error), *arguments):
            raise RuntimeError(f"the compiled {kernel.name} failed")
        return result.value

    return called


def address_of(array: NDArray[Any]) -> int:
    """Address of the first item of an array; a kernel that is not told its steps takes it for contiguous."""
    return int(array.ctypes.data)


@cache
def _llvm() -> tuple[Any, Any]:
    """LLVM, and how it makes code for this machine."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return llvm, target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=_features(), opt=3, reloc="pic")


@cache
def _compiler() -> Any:
    import llvmlite.binding as llvm

    return llvm.create_lljit_compiler(_llvm()[1])


def _features() -> str:
    import llvmlite.binding as llvm

    try:
        return str(llvm.get_host_cpu_features().flatten())
    except RuntimeError:  # of a processor that LLVM does not ask
        return ""


def _key(kernel: Kernel) -> str:
    """What the machine code depends on: the sources, the libraries that compile them, the types, and the machine."""
    from importlib.metadata import version  # for what no kernel is needed, these are not imported

    import llvmlite.binding as llvm

    sources = [Path(str(find_spec(module).origin)).read_bytes() for module in (kernel.module, *kernel.helpers)]  # type: ignore[union-attr]
    told = (kernel, version("numba"), version("llvmlite"), sys.version)
    machine = (llvm.get_process_triple(), llvm.get_host_cpu_name(), _features())
    return hashlib.sha256(repr((sources, told, machine)).encode()).hexdigest()[:32]


def _compile(kernel: Kernel, llvm: Any, machine: Any) -> bytes:
    """Compile to an object file that has one symbol, and needs none that are not of the C library."""
    import numba
    import numpy as np

    types = {a: numba.from_dtype(np.dtype(a.removesuffix("*"))) for a in kernel.arguments}
    pointed = [numba.types.CPointer(types[a]) if a.endswith("*") else types[a] for a in kernel.arguments]
    function = getattr(importlib.import_module(kernel.module), kernel.name)
    made = numba.cfunc(numba.types.int64(*pointed), _nrt=False, error_model="numpy")(function)
    module = llvm.parse_assembly(made.inspect_llvm())
    inner = module.get_function(made.native_name.removeprefix("cfunc."))  # what it returns comes by an address
    for other in (*module.functions, *module.global_variables):
        if not other.is_declaration and other.name != inner.name:
            other.linkage = "internal"  # the doors for Python
    inner.name = kernel.name
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    needed = {f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")}
    if needed - _FROM_LIBC:
        raise RuntimeError(f"the compiled {kernel.name} needs {', '.join(sorted(needed))}")
    return bytes(machine.emit_object(module))


def _folders() -> Iterator[Path]:
    told = os.environ.get("NUMBA_CACHE_DIR")
    if told:
        yield Path(told)
    yield Path(__file__).parent / "__pycache__"
    with suppress(RuntimeError):  # nobody's home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "radiodata"


def _read(name: str) -> bytes | None:
    """Read what is kept, if it is whole."""
    for folder in _folders():
        try:
            raw = (folder / name).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(raw[_DIGEST:]).digest() == raw[:_DIGEST]:
            return raw[_DIGEST:]
    return None


def _keep(name: str, code: bytes) -> None:
    """Keep it in the first folder that can be written; in a file of its own until it is whole."""
    why: OSError | None = None
    for folder in _folders():
        part = folder / f".{name}.{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(hashlib.sha256(code).digest() + code)
            part.replace(folder / name)
        except OSError as error:
            why = error
            with suppress(OSError):
                part.unlink()
        else:
            return
    _log.info("compiled code cannot be kept (%s): each process compiles its own, for seconds", why)
