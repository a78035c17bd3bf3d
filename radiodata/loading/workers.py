"""Worker processes, seen from the loader: started, fed, watched, and ended."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import time
import warnings
import weakref
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from radiodata.errors import WorkerDiedError, WorkerHungError
from radiodata.loading.channel import Channel
from radiodata.loading.machine import OomKills, oom_kills
from radiodata.loading.parcels import Sheet, Unpacker
from radiodata.loading.watch import Board, Settings, ask_for_stacks, explain_exit, nameless_file, state_of
from radiodata.loading.worker import Answer, Failure, Hello, Pickled, Task, work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

    from radiodata.loading.readahead import Turn
    from radiodata.loading.stats import Stats
    from radiodata.loading.transport import BatchSource

_GRACE = 2.0
"""Seconds that workers have to end by themselves."""


class _WorkerStack(Exception):
    """Cause of an error that came from a worker: shows where it was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0].rstrip()}"


class Worker:
    """One worker process.

    Parameters
    ----------
    number
        Which of its team.
    process
        The process, started.
    channel
        To it.
    """

    def __init__(self, number: int, process: BaseProcess, channel: Channel) -> None:
        self.number, self.process, self.channel = number, process, channel
        self.inbox, self.peak, self.ready_at = Unpacker(), 0, 0.0
        self.board: Board | None = None

    def send(self, iteration: int, turn: Turn) -> None:
        """Ask for a batch."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended: said when its answer is awaited
            self.channel.send(Task(iteration, turn, self.inbox.back()))

    def receive(self) -> list[Answer]:
        """Take the answers that are here."""
        answers: list[Answer] = []
        with contextlib.suppress(EOFError):
            while messages := self.channel.receive():
                for message in messages:
                    self._take(message, answers)
        return answers

    def _take(self, message: Any, answers: list[Answer]) -> None:
        if isinstance(message, Hello):
            self.board, self.ready_at = Board(self.channel.next_file()), time.monotonic()
        elif isinstance(message, Sheet):
            self.inbox.add(message, self.channel.next_file())
        else:
            self.inbox.drop(message.dropped)
            self.peak = message.peak
            answers.append(message)

    def open(self, answer: Answer) -> Any:
        """Give the batch of an answer, or raise the error that came of it: the same, with the worker's stack."""
        content = self.inbox.unpack(answer.parcel)
        if isinstance(content, Failure):
            error = content.error
            error.add_note(f"(in worker {self.number}, process {self.process.pid}, making step {answer.step})")
            raise error from _WorkerStack(content.stack)
        return content


class Team:
    """The worker processes of a loader.

    Parameters
    ----------
    source, threads
        What each makes batches of, and with how many reading threads.
    settings
        Their number, and the rest of what an error may tell to change.
    start_method
        ``"fork"``, ``"forkserver"`` or ``"spawn"``; None for Python's default.
    stats
        Where they add what they record.
    """

    def __init__(
        self, source: BatchSource, threads: int, settings: Settings, start_method: str | None, stats: Stats
    ) -> None:
        self._source, self._settings, self._stats = source, settings, stats
        self._before: OomKills = oom_kills()
        self.workers: list[Worker] = []
        self._end = weakref.finalize(self, _end, self.workers, os.getpid())
        self._end.atexit = False
        atexit.register(self._end)  # after, so run before, multiprocessing's own, which waits for its children
        context = multiprocessing.get_context(start_method)
        self._file = None if context.get_start_method() == "fork" else _pickled(source)
        with warnings.catch_warnings():
            # a child of ours never touches the parent's contexts (see store.context), nor its threads
            warnings.filterwarnings("ignore", "TileDB is a multithreading library", UserWarning)
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            for number in range(settings.workers):
                self._start(context, number, threads)
        if self._file is not None:
            os.close(self._file)

    def _start(self, context: Any, number: int, threads: int) -> None:
        mine, theirs = Channel.pair()
        told = (theirs, self._source if self._file is None else None, threads, self._settings.prefetch + 1, os.getpid())
        process = context.Process(target=work, args=told, daemon=True, name=f"radiodata-worker-{number}")
        try:
            process.start()
        except BaseException:
            mine.close()
            self.end()
            raise
        finally:
            theirs.forget()
        self.workers.append(Worker(number, process, mine))
        if self._file is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                mine.send(Pickled(os.fstat(self._file).st_size), [self._file])

    def receive(self, seconds: float | None) -> list[tuple[Worker, Answer]]:
        """Wait until there are answers, or a worker has ended.

        Raises
        ------
        WorkerDiedError
            When one has ended, and all that it sent was taken.
        WorkerHungError
            When nothing came in that time.
        """
        ends = [n for w in self.workers for n in (w.channel.fileno(), w.process.sentinel)]
        ready = wait(ends, seconds)
        found = [(w, answer) for w in self.workers for answer in w.receive()]
        dead = [] if found else [w for w in self.workers if w.process.sentinel in ready or not w.process.is_alive()]
        for worker in found:
            self._stats.merge(worker[1].stats)
        if dead:
            raise self._died(dead[0])
        return found

    def end(self) -> None:
        """End all workers: those that do not end by themselves soon are killed."""
        atexit.unregister(self._end)
        self._end()

    def hung(self, step: int, epoch: int, seconds: float) -> WorkerHungError:
        """Make the error that says what the worker of a step is doing instead of it."""
        worker = self.workers[step % len(self.workers)]
        pid = worker.process.pid or 0
        state = state_of(pid)
        stacks = ask_for_stacks(pid, worker.board) if worker.board and not state.startswith("it is stopped") else ""
        where = f", and {state}" if state else ""
        return WorkerHungError(
            f"worker {worker.number} (process {pid}) has not made the batch of epoch {epoch}, step {step} within "
            f"{seconds:g} s{self._doing(worker)}{where}. If a batch may take so long, raise `timeout` (None waits for "
            "ever); else look at the storage, or at the transform that it is in."
            + (f"\nThe worker's stacks:\n{stacks}" if stacks else ""),
            worker=worker.number,
            pid=pid,
            epoch=epoch,
            step=step,
        )

    def _died(self, worker: Worker) -> WorkerDiedError:
        worker.process.join(1.0)
        exitcode = worker.process.exitcode
        if worker.board is None:
            why = (
                f"It ended before it was ready (exit code {exitcode}); what it wrote to the standard error is above. "
                "With spawn and forkserver, a script must start under `if __name__ == '__main__':`."
            )
            if exitcode is not None and exitcode < 0:
                why = explain_exit(exitcode, self._before, worker.peak, self._settings)
        else:
            why = explain_exit(exitcode, self._before, worker.peak, self._settings)
        doing = worker.board.doing() if worker.board else {}
        stacks = worker.board.stacks() if worker.board else ""
        return WorkerDiedError(
            f"worker {worker.number} of {len(self.workers)} (process {worker.process.pid}) has ended"
            f"{self._doing(worker)}. {why}" + (f"\nIts stacks then:\n{stacks}" if stacks else ""),
            worker=worker.number,
            pid=worker.process.pid,
            exitcode=exitcode,
            epoch=doing.get("epoch"),
            step=doing.get("step"),
        )

    def _doing(self, worker: Worker) -> str:
        doing = worker.board.doing() if worker.board else {}
        if doing.get("step") is None:
            return " (it was waiting)" if worker.board else " (it was starting)"
        units = [self._source.describe(tuple(map(int, key))) for key in doing.get("units", ())]
        reading = f", reading {'; '.join(units)}" if units else ""
        return f" (it was at epoch {doing['epoch']}, step {doing['step']}{reading})"


def _pickled(source: BatchSource) -> int | None:
    """A file with the source; None where it holds what only multiprocessing can pass on (a shared lock, say)."""
    try:
        content = pickle.dumps(source, pickle.HIGHEST_PROTOCOL)
    except Exception:  # if multiprocessing cannot either, it will say why
        return None
    file = nameless_file("radiodata-source")
    with open(file, "wb", closefd=False) as out:
        out.write(content)
    return file


def _end(workers: Sequence[Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the loader's process has copies of its sockets
        return
    for worker in workers:
        worker.channel.close()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(_GRACE)
        if worker.board is not None:
            worker.board.close()
            worker.board = None
