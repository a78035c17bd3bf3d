"""A worker process: makes the batches it is sent (epoch, step) for, one after another, and reads ahead for its own."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from radiodata.loading.machine import peak_memory
from radiodata.loading.parcels import Packer, Parcel
from radiodata.loading.readahead import Turn, reading_ahead
from radiodata.loading.watch import Board, end_with_parent

if TYPE_CHECKING:
    from radiodata.loading.channel import Channel
    from radiodata.loading.transport import BatchSource


@dataclass(frozen=True)
class Task:
    """What the loader sends: a batch to make, and sheets of shared memory that it needs no more.

    Attributes
    ----------
    iteration
        Which ``iter()`` wants it; a later one takes back what earlier ones wanted.
    """

    iteration: int
    turn: Turn
    back: tuple[int, ...]


@dataclass(frozen=True)
class Pickled:
    """What the loader sends first where nothing is inherited: the source of batches, in a file.

    Not among the arguments of the process: multiprocessing waits for ever to pass many bytes to a process that
    has ended meanwhile, and would lay tensors in them into ``/dev/shm``.
    """

    nbytes: int


@dataclass(frozen=True)
class Hello:
    """What a worker sends when it is ready, with its board."""


@dataclass(frozen=True)
class Answer:
    """What a worker sends: a batch, or the error that came of it.

    Attributes
    ----------
    iteration, step
        What it answers.
    parcel
        The batch, or a ``Failure``.
    stats
        What was recorded since the last answer.
    peak
        Most memory the worker has had, in bytes.
    dropped
        Sheets that exist no more.
    """

    iteration: int
    step: int
    parcel: Parcel
    stats: dict[str, float]
    peak: int
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Failure:
    """An error and the stack that it was raised from, as text."""

    error: Exception
    stack: str


def work(channel: Channel, source: BatchSource | None, threads: int, keep: int, parent: int) -> None:
    """Answer tasks until the loader, or its process, ends.

    Parameters
    ----------
    channel
        To the loader.
    source
        Makes batches; None where it comes over the channel, pickled.
    threads
        That read ahead; 0 reads when a batch is made.
    keep
        Batches' worth of shared memory to keep for use again, beside those that one unit's crops fill.
    parent
        Process of the loader.
    """
    try:
        _settle(parent)
        board = Board()
        board.show_stacks()
        messages = [] if source else channel.receive(wait=True)
        source = source or _opened(messages.pop(0), channel.next_file())
        packer = Packer(keep + source.crops)
        source.allocate = packer.empty
        channel.send(Hello(), [board.file])
        _answer_all(channel, _Maker(source, threads, board), packer, messages)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        traceback.print_exc()
        _leave(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
    _leave(0)


def _leave(code: int) -> None:
    """End without destructors: a forked child must not run its parent's, and no thread is waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _settle(parent: int) -> None:
    end_with_parent(parent)
    torch.set_num_threads(1)  # also: OpenMP does not survive a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: the loader decides
    signal.set_wakeup_fd(-1)
    for inherited in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(inherited, signal.SIG_DFL)


def _opened(pickled: Pickled, file: int) -> BatchSource:
    try:
        with mmap.mmap(file, pickled.nbytes, access=mmap.ACCESS_READ) as content:
            source: BatchSource = pickle.loads(content)
    finally:
        os.close(file)
    return source


def _answer_all(channel: Channel, maker: _Maker, packer: Packer, new: list[Task]) -> None:
    pending: list[Task] = []
    dropped: list[int] = []
    while True:
        new = new or channel.receive(wait=not pending)
        pending += new
        dropped += packer.take_back(number for task in new for number in task.back)
        new = []
        latest = max(task.iteration for task in pending)
        pending = [task for task in pending if task.iteration == latest]
        task = pending.pop(0)
        parcel = maker.parcel(task.turn, packer)
        for sheet, file in packer.take_new():
            channel.send(sheet, [file])
            os.close(file)
        stats = maker.stats.take()
        channel.send(Answer(task.iteration, task.turn.step, parcel, stats, peak_memory(), tuple(dropped)))
        dropped.clear()


class _Maker:
    """Makes parcels of batches, and says on the board what it is at."""

    def __init__(self, source: BatchSource, threads: int, board: Board) -> None:
        self._source, self._board = source, board
        self.stats = source.stats
        blocks = source.blocks()
        self._ahead = reading_ahead(source, blocks, threads) if blocks and threads else None
        if blocks is not None:
            blocks.watch = board.note_reads

    def parcel(self, turn: Turn, packer: Packer) -> Parcel:
        self._board.note(epoch=turn.epoch, step=turn.step, units=[])
        try:
            if self._ahead:
                self._ahead.advance(turn)
            batch = self._source.batch(turn.at, self._ahead.places if self._ahead else None)
            if self._ahead:
                self._ahead.go_on()
            with self.stats.timed("transfer"):
                return packer.pack(batch)
        except Exception as error:
            return packer.pack(_portable(error))
        finally:
            self._board.note(epoch=None, step=None)


def _portable(error: Exception) -> Failure:
    """The error itself, if it survives pickling; else one that says what it said."""
    stack = "".join(traceback.format_exception(error))
    # tblib, which Dask brings, would pickle the frames of all of them, one within the other
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        back = type(pickle.loads(pickle.dumps(error)))
        why = None if back is type(error) else f"it comes back as another {back}"
    except Exception as unpicklable:
        why = f"{type(unpicklable).__name__}: {unpicklable}"
    if why is None:
        return Failure(error, stack)
    return Failure(
        RuntimeError(f"{type(error).__qualname__}: {error} (the error itself cannot be pickled: {why})"), stack
    )
