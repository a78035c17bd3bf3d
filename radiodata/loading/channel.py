"""Messages between a loader and its workers: a socket each, that is never waited for in the middle of a message."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH = struct.Struct("<Q")
_CHUNK = 1 << 18
_MANY = 16
"""Files that are open here until somebody takes them, at which no more messages are taken: a process may have few."""
_FILES_SPACE = socket.CMSG_SPACE(_MANY * array("i").itemsize)
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel:
    """One end of a pair of sockets; carries pickled messages, and open files with them.

    A process that is stopped or killed while it sends leaves part of a message: it stays in the buffer of the
    other end, which goes on. So nothing here takes a lock that another process may hold.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._buffer, self._files = end, bytearray(), deque[int]()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends."""
        mine, theirs = socket.socketpair()
        return cls(mine), cls(theirs)

    def fileno(self) -> int:
        """File number to wait for."""
        return self._socket.fileno()

    def send(self, message: Any, files: Sequence[int] = ()) -> None:
        """Send a message, and open files that go with it; waits for room in the socket."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        frame = memoryview(_LENGTH.pack(len(body)) + body)
        sent = socket.send_fds(self._socket, [frame], list(files)) if files else 0
        self._socket.sendall(frame[sent:])

    def receive(self, *, wait: bool = False) -> list[Any]:
        """Take the messages that are here whole, or some of them; wait for at least one if told to.

        Raises
        ------
        EOFError
            When the other end is closed.
        """
        messages = self._whole()
        how = _CLOSE_ON_EXEC | (0 if wait else socket.MSG_DONTWAIT)
        while not (messages and (wait or len(self._files) >= _MANY)):
            try:
                data, beside, _, _ = self._socket.recvmsg(_CHUNK, _FILES_SPACE, how)  # recv_fds ignores flags
            except BlockingIOError:
                break
            except ConnectionError:
                data, beside = b"", []
            if not data:
                if messages:
                    break
                raise EOFError("the other end is closed")
            self._buffer += data
            for level, kind, numbers in beside:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._files.extend(array("i", numbers))
            messages += self._whole()
        return messages

    def next_file(self) -> int:
        """Next open file that came; the receiver closes it."""
        return self._files.popleft()

    def close(self) -> None:
        """End the connection, for every process that holds a copy of this end too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def forget(self) -> None:
        """Close this process's copy of an end that another process has."""
        self._socket.close()

    def _whole(self) -> list[Any]:
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(memoryview(self._buffer)[_LENGTH.size : end].tobytes()))
            del self._buffer[:end]
        return messages

    def __getstate__(self) -> dict[str, Any]:
        return {"end": self._socket}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["end"])  # type: ignore[misc]
