"""Ranges of objects fetched by threads, many at once: with a deadline, retries, and a second try for what is slow."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from radiodata.errors import UnreachableError
from radiodata.store.direct.files import Recent
from radiodata.store.direct.refusal import Damaged
from radiodata.store.leaving import leave_without_destructors
from radiodata.store.remote.depth import Depth
from radiodata.store.remote.vfs import Object, RemoteError, Vfs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


Span: TypeAlias = tuple[int, int]
_OPEN = 4096
_DENIED = ("403", "Forbidden", "Expired", "InvalidAccessKey", "Access Denied", "AccessDenied", "AuthenticationFailed")
_RENEW = 2.0
_DENIED_FOR = 10.0
"""Seconds for which a store may refuse all credentials that there are."""


class MissingError(Damaged):
    """An object that is not there, though its store answers."""


@dataclass
class _Try:
    """One try at a range."""

    uri: str
    span: Span
    begun: float | None = None
    done: Future[NDArray[Any]] = field(default_factory=Future)


@dataclass
class _Want:
    """A range that a caller waits for, and the tries at it."""

    span: Span
    tries: list[_Try]
    failures: int = 0
    denied: float | None = None
    look: Future[dict[str, int]] | None = None
    looked: int = 0
    again: float | None = None


class Fetcher:
    """Threads of one process that fetch ranges of objects for all who ask.

    Ranges are begun in the order in which they are asked for, so that no lane of the plan is ahead of another one.

    Parameters
    ----------
    connect
        Makes the access to the store, anew when credentials were refused: they may have been renewed meanwhile.
    seconds
        Until a range, with all its retries, must be there.
    most
        Requests under way at once.
    hedge
        Seconds after which a range is asked for a second time, and the quicker answer taken; None: never.
    place
        Names the store in errors.
    """

    def __init__(
        self, connect: Callable[[], Vfs], seconds: float, most: int, hedge: float | None, place: Callable[[str], str]
    ) -> None:
        self._connect, self._seconds, self._hedge, self._place = connect, seconds, hedge, place
        self.depth = Depth(most)
        self._vfs, self._renewed = connect(), time.monotonic()
        self._past = [0, 0]
        self._objects: Recent[Object] = Recent(_OPEN)
        self._opening: dict[str, Future[Object]] = {}
        self._jobs: deque[_Try] = deque()
        self._changed, self._pid = threading.Condition(), os.getpid()
        self._active = self._threads = 0
        self.hedged = self.retried = 0

    @property
    def counts(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        return self._past[0] + self._vfs.requests, self._past[1] + self._vfs.bytes_read

    def get(self, uri: str, spans: Sequence[Span]) -> list[NDArray[np.uint8]]:
        """Bytes of ranges of an object, in the order of `spans`.

        Raises
        ------
        MissingError
            When the object is not there.
        UnreachableError
            When the store did not give them in time.
        """
        begun = time.monotonic()
        wants = [_Want(span, [self._submit(uri, span)]) for span in spans]
        try:
            return self._all(uri, wants, begun)
        finally:
            for want in wants:
                for one in want.tries:
                    one.done.cancel()

    def whole(self, uri: str, size: int) -> bytes:
        """All of an object whose size is known; raises as ``get`` does."""
        return self.get(uri, [(0, size)])[0].tobytes() if size else b""

    def names(self, uri: str) -> dict[str, int]:
        """Names and sizes of the objects below a folder.

        Raises
        ------
        UnreachableError
            When the store did not answer in time.
        """
        found: dict[str, int] = self.within(uri, lambda: self._vfs.list(uri))
        return found

    def within(self, uri: str, act: Callable[[], Any]) -> Any:
        """Do something that libtiledb may wait on for minutes, again where it fails, and no longer than the deadline.

        Raises
        ------
        UnreachableError
            When it was not done in time.
        """
        begun, pause, why = time.monotonic(), 0.05, "no answer"
        while (left := begun + self._seconds - time.monotonic()) > 0:
            try:
                return _begun(act).result(left)
            except TimeoutError:
                break
            except RemoteError as error:
                why = str(error)
            self._renew(why)
            time.sleep(min(pause * random.uniform(0.5, 1.5), max(left, 0)))
            pause = min(2 * pause, 2.0)
        raise self._unreachable(uri, time.monotonic() - begun, why)

    def _all(self, uri: str, wants: list[_Want], begun: float) -> list[NDArray[np.uint8]]:
        end, why = begun + self._seconds, "no answer"
        out: dict[int, NDArray[np.uint8]] = {}
        while len(out) < len(wants):
            now = time.monotonic()
            if now >= end:
                raise self._unreachable(uri, now - begun, why)
            open_wants = [(n, want) for n, want in enumerate(wants) if n not in out]
            for _, want in open_wants:
                self._tried_again(uri, want, now)
            running = [one.done for _, want in open_wants for one in want.tries if not one.done.done()]
            if running:
                wait(running, self._nap(open_wants, now, end), FIRST_COMPLETED)
            else:
                time.sleep(self._nap(open_wants, now, end))
            for n, want in open_wants:
                why = self._looked_at(want, out, n) or why
                if want.denied is not None and time.monotonic() - want.denied > _DENIED_FOR:
                    raise self._unreachable(uri, time.monotonic() - begun, why)
                if want.again is not None or want.look is not None:
                    self._refuse_missing(uri, want)
        return [out[n] for n in range(len(wants))]

    def _nap(self, wants: list[tuple[int, _Want]], now: float, end: float) -> float:
        """Seconds until something is due: a retry, a hedge, the deadline."""
        due = [end]
        for _, want in wants:
            if want.again is not None:
                due.append(want.again)
            elif self._hedge is not None and len(want.tries) == 1:
                begun = want.tries[0].begun
                due.append((now if begun is None else begun) + self._hedge)
        return max(min(due) - now, 0.001)

    def _tried_again(self, uri: str, want: _Want, now: float) -> None:
        if want.again is not None and now >= want.again:
            want.tries, want.again = [self._submit(uri, want.span, first=True)], None
            self.retried += 1
        elif self._hedge is not None and len(want.tries) == 1 and want.again is None:
            begun = want.tries[0].begun
            if begun is not None and now - begun >= self._hedge and not want.tries[0].done.done():
                want.tries.append(self._submit(uri, want.span, first=True))
                self.hedged += 1

    def _looked_at(self, want: _Want, out: dict[int, NDArray[np.uint8]], n: int) -> str | None:
        """Take the answer of a range that is there; give what its tries failed of once all of them have."""
        why = None
        for one in want.tries:
            if one.done.done() and not one.done.cancelled():
                error = one.done.exception()
                if error is None:
                    out[n] = one.done.result()
                    return None
                if not isinstance(error, RemoteError):
                    raise error
                why = str(error)
        if why is None or want.again is not None or not all(one.done.done() for one in want.tries):
            return None
        want.failures += 1
        self._note_denial(want, why)
        pause = min(0.05 * 2**want.failures, 2.0) if want.denied is None else 0.5
        want.again = time.monotonic() + pause * random.uniform(0.5, 1.5)
        return why

    def _refuse_missing(self, uri: str, want: _Want) -> None:
        """An object that cannot be opened may be missing, or its store be down: the folder that it is in tells.

        Nobody waits for that: it may take as long as the rest.
        """
        folder, _, name = uri.rpartition("/")
        if want.look is None and want.failures in (1, 3, 6) and want.looked != want.failures:
            want.looked = want.failures
            want.look = _begun(lambda: self._vfs.list(folder))
        if want.look is None or not want.look.done():
            return
        error, done = want.look.exception(), want.look
        want.look = None
        if isinstance(error, RemoteError):
            self._note_denial(want, str(error))
        elif name not in done.result():
            raise MissingError(f"{uri} is not there")

    def _note_denial(self, want: _Want, why: str) -> None:
        if self._renew(why) and want.denied is None:
            want.denied = time.monotonic()

    def _renew(self, why: str) -> bool:
        """Take new credentials where the old ones were refused; whether they were."""
        if not any(word in why for word in _DENIED):
            return False
        with self._changed:
            if time.monotonic() - self._renewed > _RENEW:
                self._past = list(self.counts)
                self._vfs, self._renewed = self._connect(), time.monotonic()
                self._objects = Recent(_OPEN)
        return True

    def _submit(self, uri: str, span: Span, *, first: bool = False) -> _Try:
        one = _Try(uri, span)
        with self._changed:
            (self._jobs.appendleft if first else self._jobs.append)(one)
            if self._threads < min(self.depth.limit, self._active + len(self._jobs)):
                self._threads += 1
                threading.Thread(target=self._work, name=f"radiodata-fetch-{self._threads}", daemon=True).start()
            self._changed.notify()
        return one

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs or self._active >= self.depth.limit:
                    self._changed.wait()
                one = self._jobs.popleft()
                if not one.done.set_running_or_notify_cancel():
                    continue
                self._active += 1
            begun = one.begun = time.monotonic()
            came = self._fetch(one)
            with self._changed:
                self._active -= 1
                waiting = bool(self._jobs)
                self._changed.notify_all()
            if came:
                self.depth.note(came, time.monotonic() - begun, waiting=waiting)

    def settle(self, seconds: float = 5.0) -> None:
        """Begin nothing any more, and wait for what is under way.

        No thread may be in libtiledb when it is torn down, so where some are for longer, it is not.
        """
        if os.getpid() != self._pid:  # a forked child has none of the threads
            return
        end = time.monotonic() + seconds
        with self._changed:
            self._jobs.clear()
            while self._active and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._active:
                leave_without_destructors()

    def _fetch(self, one: _Try) -> int:
        """Try; give the bytes that came."""
        vfs = self._vfs
        buffer = np.empty(one.span[1] - one.span[0], np.uint8)
        try:
            self._object(one.uri, vfs).read_into(buffer, one.span[0])
        except BaseException as error:  # told to whoever waits
            one.done.set_exception(error)
            return 0
        vfs.count_bytes(buffer.nbytes)
        one.done.set_result(buffer)
        return buffer.nbytes

    def _object(self, uri: str, vfs: Vfs) -> Object:
        """An object, opened once however many threads ask."""
        with self._changed:
            opening, mine = self._opening.get(uri), False
            if opening is None:
                opening, mine = Future[Object](), True
                self._opening[uri] = opening
        if mine:
            try:
                opening.set_result(self._objects.get(uri, lambda: (vfs.open(uri), 1)))
            except BaseException as error:  # told to all who ask
                opening.set_exception(error)
            with self._changed:
                del self._opening[uri]
        return opening.result()

    def _unreachable(self, uri: str, seconds: float, why: str) -> UnreachableError:
        return UnreachableError(
            f"{self._place(uri)} could not be read, tried for {seconds:.1f} s (ReadConfig.deadline={self._seconds:g}): "
            f"{why}. Once the store answers, go on from the last checkpoint"
        )


def _begun(act: Callable[[], Any]) -> Future[Any]:
    """Begin something in a thread of its own."""
    done: Future[Any] = Future()
    threading.Thread(target=_settle, args=(done, act), name="radiodata-ask", daemon=True).start()
    return done


def _settle(done: Future[Any], act: Callable[[], Any]) -> None:
    try:
        done.set_result(act())
    except BaseException as error:  # told to whoever waits
        done.set_exception(error)


def merged(spans: Sequence[Span], gap: int) -> list[Span]:
    """Ranges in ascending order joined where no more than `gap` bytes lie between them."""
    out: list[Span] = []
    for first, last in spans:
        if out and first - out[-1][1] <= gap:
            out[-1] = out[-1][0], max(out[-1][1], last)
        else:
            out.append((first, last))
    return out
