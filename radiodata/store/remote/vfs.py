"""Objects of a store as libtiledb reaches them, through its C API.

TileDB-Py's own ``VFS`` holds the GIL while it opens or lists something, so no other thread runs for a round trip;
calls through ctypes hold it never. Schemes, endpoints and credentials are those of the TileDB context.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from ctypes import POINTER, byref, c_char, c_char_p, c_int32, c_size_t, c_uint64, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

import tiledb.libtiledb as lt

if TYPE_CHECKING:
    import tiledb
    from numpy.typing import NDArray

_READ = 0
_OnEntry = ctypes.CFUNCTYPE(c_int32, POINTER(c_char), c_size_t, c_uint64, c_void_p)


class RemoteError(Exception):
    """What libtiledb says of a request that failed; none of these reaches a user."""


@cache
def _library() -> Any:
    """libtiledb, which TileDB-Py's extension is linked to: a symbol is looked up in what a library needs, too."""
    library = ctypes.CDLL(lt.__file__)
    for name, arguments in {
        "tiledb_vfs_alloc": [c_void_p, c_void_p, POINTER(c_void_p)],
        "tiledb_vfs_open": [c_void_p, c_void_p, c_char_p, c_int32, POINTER(c_void_p)],
        "tiledb_vfs_read": [c_void_p, c_void_p, c_uint64, c_void_p, c_uint64],
        "tiledb_vfs_close": [c_void_p, c_void_p],
        "tiledb_vfs_ls_recursive": [c_void_p, c_void_p, c_char_p, _OnEntry, c_void_p],
        "tiledb_ctx_get_last_error": [c_void_p, POINTER(c_void_p)],
        "tiledb_error_message": [c_void_p, POINTER(c_char_p)],
    }.items():
        getattr(library, name).argtypes = arguments
        getattr(library, name).restype = c_int32
    for name in ("tiledb_vfs_free", "tiledb_vfs_fh_free", "tiledb_error_free"):
        getattr(library, name).argtypes, getattr(library, name).restype = [POINTER(c_void_p)], None
    return library


class Object:
    """An object open for reading; any number of threads may read at once."""

    def __init__(self, vfs: Vfs, uri: str) -> None:
        self.uri, self._vfs, self._handle = uri, vfs, c_void_p()
        vfs.call("tiledb_vfs_open", vfs.pointer, uri.encode(), _READ, byref(self._handle))
        self._end = weakref.finalize(self, _close, vfs, self._handle)
        self._end.atexit = False

    def read_into(self, buffer: NDArray[Any], at: int) -> None:
        """Fill a contiguous array of bytes with those from `at` on.

        Raises
        ------
        RemoteError
            When they cannot be had, after libtiledb's own retries.
        """
        self._vfs.call("tiledb_vfs_read", self._handle, at, buffer.ctypes.data, buffer.nbytes)


class Vfs:
    """Access to objects by a TileDB context, for any number of threads.

    Attributes
    ----------
    requests, bytes_read
        What was asked for so far; retries of libtiledb's own are not counted.
    """

    def __init__(self, ctx: tiledb.Ctx) -> None:
        self._ctx, self._lib, self._lock = ctx, _library(), threading.Lock()
        capsule = ctx.__capsule__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = c_void_p, [ctypes.py_object, c_char_p]
        self._pointer, self.pointer = get(capsule, b"ctx"), c_void_p()
        self.requests = self.bytes_read = 0
        self.call("tiledb_vfs_alloc", None, byref(self.pointer), counted=False)

    def call(self, name: str, *arguments: Any, counted: bool = True) -> None:
        """Call a function of libtiledb that takes the context first.

        Raises
        ------
        RemoteError
            When it fails.
        """
        if counted:
            with self._lock:
                self.requests += 1
        if getattr(self._lib, name)(self._pointer, *arguments) != 0:
            raise RemoteError(self._last_error())

    def count_bytes(self, nbytes: int) -> None:
        """Count bytes that came."""
        with self._lock:
            self.bytes_read += nbytes

    def open(self, uri: str) -> Object:
        """Open an object: one request, which says whether it is there."""
        return Object(self, uri)

    def list(self, uri: str) -> dict[str, int]:
        """Names of the objects below a folder, of all depths, relative to it, and their sizes in bytes.

        Raises
        ------
        RemoteError
            When it cannot be listed.
        """
        found: dict[str, int] = {}
        folder = uri.rstrip("/") + "/"

        def note(path: Any, length: int, size: int, _: Any) -> int:
            name = ctypes.string_at(path, length).decode()
            found[name.partition(folder)[2] or name] = size
            return 1

        self.call("tiledb_vfs_ls_recursive", self.pointer, folder.encode(), _OnEntry(note), None)
        return found

    def _last_error(self) -> str:
        error, message = c_void_p(), c_char_p()
        self._lib.tiledb_ctx_get_last_error(self._pointer, byref(error))
        if not error:
            return "no reason was given"
        self._lib.tiledb_error_message(error, byref(message))
        text = (message.value or b"").decode(errors="replace")
        self._lib.tiledb_error_free(byref(error))
        return text


def _close(vfs: Vfs, handle: c_void_p) -> None:
    library = _library()
    library.tiledb_vfs_close(vfs._pointer, handle)
    library.tiledb_vfs_fh_free(byref(handle))
