"""What a process keeps open is bounded, shared by threads and left alone by children; the kernel is optional."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from direct_store import KERNEL, PLAIN, SHARED, fragment, is_direct, shard, source, voxels_of, whole

from radiodata.store import ReadConfig, VoxelSource, read_box
from radiodata.store.context import context, handles
from radiodata.store.direct import Direct, compiled, files, kernels, native, process
from radiodata.store.direct.files import DataFile, Recent
from radiodata.store.direct.refusal import Damaged
from radiodata.store.remote.client import Remote

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TileDB is a multithreading library:UserWarning"),
]
WAYS = [PLAIN, KERNEL, SHARED]


@pytest.fixture
def cases(tmp_path: Path) -> list[tuple[VoxelSource, np.ndarray]]:
    """Sources of several volumes of two shards, of one snapshot."""
    made = []
    for number, dtype in enumerate(("int16", "uint8")):
        volumes = [voxels_of((1, 30 + n, 33, 40), dtype, n) for n in range(5)]
        uri = shard(tmp_path / str(number), *volumes)
        made += [(source(uri, v, slot), v) for slot, v in enumerate(volumes)]
    return made


def read(direct: Direct, of: VoxelSource, config: ReadConfig) -> np.ndarray:
    out = np.empty(of.shape, of.dtype)
    box = np.array([[0, n] for n in of.size])
    assert direct.read(of, box, (0, of.shape[0]), out, config, context)
    return out


def open_tiles(folder: Path) -> int:
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return sum(str(p.readlink()).startswith(str(folder)) for p in links if p.is_symlink())


# what is kept ----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_open_files_are_bounded_and_closed(
    tmp_path: Path, cases: list[tuple[VoxelSource, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FILES", 3)
    direct = Direct(Remote())
    for _ in range(2):
        for of, voxels in cases:
            np.testing.assert_array_equal(read(direct, of, PLAIN), voxels)
            assert open_tiles(tmp_path) <= 3
    for of, _ in cases:
        direct.forget(of.token)
    assert open_tiles(tmp_path) == 0
    assert direct._shards == {}
    np.testing.assert_array_equal(read(direct, *cases[0][:1], PLAIN), cases[0][1])


def test_what_is_known_of_a_thousand_volumes_is_small(tmp_path: Path) -> None:
    voxels = voxels_of((1, 64, 64, 64), "int16")
    direct, of = Direct(Remote()), source(shard(tmp_path / "a", voxels, tile=16), voxels)
    read(direct, of, PLAIN)
    ((kept, weight),) = direct._fragments._held.values()
    assert kept.offsets.dtype == np.uint32  # type: ignore[union-attr]
    assert weight <= 4 * (64 + 1) + 500
    assert process.FRAGMENT_BYTES <= 1 << 25


def test_a_shard_is_listed_once_for_a_snapshot(
    cases: list[tuple[VoxelSource, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        process, "list_shard", lambda uri, *rest, of=process.list_shard: (asked.append(uri), of(uri, *rest))[1]
    )
    direct, (of, voxels) = Direct(Remote()), cases[0]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: read(direct, of, PLAIN), range(12)):
            np.testing.assert_array_equal(found, voxels)
    assert asked == [of.uri]


def test_the_least_recently_used_goes_first() -> None:
    kept, made = Recent[str](10), []

    def get(key: str, weight: int = 4) -> str:
        return kept.get(key, lambda: (made.append(key), (key.upper(), weight))[1])

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
    assert get("huge", 99) == "HUGE"
    assert len(kept) == 1
    kept.forget(lambda key: key == "huge")
    assert (len(kept), kept._weight) == (0, 0)


def test_a_file_stays_open_while_somebody_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    kept: Recent[DataFile] = Recent(1)
    mine = kept.get("x", lambda: (DataFile(str(tmp_path / "x"), 10), 1))
    (tmp_path / "y").write_bytes(b"y")
    kept.get("y", lambda: (DataFile(str(tmp_path / "y"), 1), 1))
    view = memoryview(bytearray(4))
    mine.read_into(view, 3)
    assert bytes(view) == b"3456"
    with pytest.raises(Damaged, match="end 2 bytes before"):
        mine.read_into(view, 8)
    fd = mine.fd
    del mine
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    for path, size in (("x", 11), ("none", 1)):
        with pytest.raises(Damaged):
            DataFile(str(tmp_path / path), size)


def test_no_file_can_be_opened(cases: list[tuple[VoxelSource, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    of, voxels = cases[0]
    monkeypatch.setattr(files.os, "open", refuse)
    assert not is_direct(of)
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=PLAIN), voxels)


# threads and processes -------------------------------------------------------------------------


@pytest.mark.parametrize("config", WAYS, ids=["plain", "kernel", "shared"])
def test_threads_that_read_at_once(
    cases: list[tuple[VoxelSource, np.ndarray]], config: ReadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FILES", 2)
    monkeypatch.setattr(process, "FRAGMENT_BYTES", 2000)
    monkeypatch.setattr(process, "THREAD_BYTES", 1 << 12)
    direct, rng = Direct(Remote()), np.random.default_rng(0)

    def work(number: int) -> bool:
        of, voxels = cases[number % len(cases)]
        return np.array_equal(read(direct, of, config), voxels)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, rng.integers(0, 99, 200).tolist()))
    assert len(direct._files) <= 2


def in_child(cases: list[tuple[VoxelSource, np.ndarray]], answer: Any) -> None:
    right = all(
        is_direct(of, config, handles().direct) and np.array_equal(read_box(of, whole(v), config=config), v)
        for config in WAYS
        for of, v in cases
    )
    answer.send((right, list(compiled._kernels._ready)))
    answer.close()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_read_after_the_parent(cases: list[tuple[VoxelSource, np.ndarray]], method: str) -> None:
    process.THREAD_BYTES, before = 1 << 12, process.THREAD_BYTES
    try:
        for config in WAYS:  # opens files, starts threads, compiles
            for of, voxels in cases:
                np.testing.assert_array_equal(read_box(of, whole(voxels), config=config), voxels)
        mine, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context(method).Process(target=in_child, args=(cases, theirs))  # type: ignore[attr-defined]
        child.start()
        theirs.close()
        assert mine.poll(120), "the child says nothing"
        right, kernels = mine.recv()
        child.join(60)
        assert child.exitcode == 0
    finally:
        process.THREAD_BYTES = before
    assert right
    assert {(1, "<u4"), (2, "<u4")} <= set(kernels) or compiled._kernels._off


def test_a_fork_while_another_thread_compiles_for_long(
    cases: list[tuple[VoxelSource, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The locks of numba and LLVM are then held for ever in the child: it must not ask for them."""
    of, voxels = cases[0]
    held, done = threading.Event(), threading.Event()

    def compile_for_long() -> None:
        with compiled._kernels._lock:
            held.set()
            done.wait(60)

    monkeypatch.setattr(kernels, "FORK_S", 0.1)
    thread = threading.Thread(target=compile_for_long)
    thread.start()
    held.wait(60)
    pid = os.fork()
    if pid == 0:
        same = np.array_equal(read_box(of, whole(voxels), config=KERNEL), voxels) and compiled._kernels._off
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(read_box(of, whole(voxels), config=KERNEL), voxels)  # without it, meanwhile
    done.set()
    thread.join()
    assert not compiled._kernels._off


def test_a_read_while_the_interpreter_ends(tmp_path: Path) -> None:
    voxels = voxels_of((1, 100, 100, 100), "int16")
    uri = shard(tmp_path / "a", voxels)
    script = (
        "import atexit, numpy as np, radiodata.store as s\n"
        f"of = s.VoxelSource({uri!r}, 0, (1, 100, 100, 100), 'int16', 1.0, 0.0, 'v', 's', 't')\n"
        "read = lambda: print(s.read_box(of, np.array([[0, 100]] * 3), config=s.ReadConfig(threads=4)).sum())\n"
        "atexit.register(read)\n"
        "read()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == [str(voxels.sum())] * 2, done.stderr


# the compiled kernel ---------------------------------------------------------------------------


def test_the_kernel_is_used_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    pytest.importorskip("cffi")
    voxels = voxels_of((1, 20, 20, 20), "int16")
    assert is_direct(source(shard(tmp_path / "a", voxels), voxels), KERNEL)
    assert (2, "<u4") in compiled._kernels._ready


SOON = """
import os, sys, threading
import numpy as np
from radiodata.store import ReadConfig, VoxelSource, read_box
from radiodata.store.direct import compiled
of = VoxelSource({uri!r}, 0, (1, 20, 20, 20), "int16", 1.0, 0.0, "v", "s", "t")
read = lambda: int(read_box(of, np.array([[0, 20]] * 3), config=ReadConfig()).sum(dtype=np.int64))
before = read()
ready = list(compiled._kernels._ready)
{then}
"""
THREADS = """
for thread in threading.enumerate():
    if thread.name == "radiodata-kernel":
        thread.join()
print(before, ready, read(), list(compiled._kernels._ready))
"""
FORKED = """
pid = os.fork()
if pid == 0:
    print(before, ready, read(), list(compiled._kernels._ready), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("then", [THREADS, FORKED, ""], ids=["a thread loads it", "a fork waits for it", "the end"])
def test_the_first_read_does_not_wait_for_the_kernel(tmp_path: Path, then: str) -> None:
    pytest.importorskip("numba")
    voxels = voxels_of((1, 20, 20, 20), "int16")
    script = SOON.format(uri=shard(tmp_path / "a", voxels), then=then)
    env = {**os.environ, kernels.VARIABLE: "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env=env
    )
    total = voxels.sum(dtype=np.int64)
    assert done.stdout.strip() == (f"{total} [] {total} [(2, '<u4')]" if then else ""), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "trouble",
    [
        "switched off",
        "not installed",
        "wrong voxels",
        "wrong voxels of the kept code",
        "code of another library",
        "crash",
    ],
)
def test_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    pytest.importorskip("numba")
    asked: list[bool] = []

    def bad(*_: object) -> int:
        return 0  # all is well, and nothing was read

    def load(kernel: native.Kernel, *, anew: bool) -> Any:
        asked.append(anew)
        if trouble == "code of another library" and not anew:
            raise RuntimeError("not an object file")
        if trouble == "crash":
            raise KeyError("of the kind that libraries raise")
        if trouble == "not installed":
            raise ImportError("No module named 'llvmlite'")
        wrong = trouble == "wrong voxels" or (trouble == "wrong voxels of the kept code" and not anew)
        return bad if wrong else native.load(kernel)

    compiled._made((2, "<u4"), False)  # leaves its voxels in memory that the next proof may get
    monkeypatch.setattr(compiled, "load", load)
    if trouble == "switched off":
        monkeypatch.setenv(kernels.VARIABLE, "0")
    caplog.set_level(logging.INFO, "radiodata.store")
    fresh = kernels.Kernels("tiles are decoded", compiled._made)
    monkeypatch.setattr(compiled, "_kernels", fresh)
    voxels = voxels_of((1, 40, 40, 40), "int16")
    of = source(shard(tmp_path / "a", voxels), voxels)
    for _ in range(2):
        np.testing.assert_array_equal(read_box(of, whole(voxels), config=KERNEL), voxels)
    told = "\n".join(r.getMessage() for r in caplog.records)
    survives = trouble in ("code of another library", "wrong voxels of the kept code")
    assert compiled._kernels._off != survives
    assert asked == {"switched off": [], "not installed": [False], "crash": [False]}.get(trouble, [False, True])
    assert ("without the compiled kernel" in told) == (not survives and trouble != "switched off")
    assert ("compiled anew" in told) == (survives or trouble == "wrong voxels")


def test_llvm_is_imported_by_a_read_and_not_before(tmp_path: Path) -> None:
    voxels = voxels_of((1, 20, 20, 20), "int16")
    uri = shard(tmp_path / "a", voxels)
    script = (
        "import sys, radiodata, radiodata.store as s, numpy as np\n"
        f"of = s.VoxelSource({uri!r}, 0, (1, 20, 20, 20), 'int16', 1.0, 0.0, 'v', 's', 't')\n"
        "box = np.array([[0, 20]] * 3)\n"
        "s.read_box(of, box, config=s.ReadConfig(compiled=False))\n"
        "assert 'llvmlite' not in sys.modules\n"
        "print(s.read_box(of, box).tobytes() == s.read_box(of, box, config=s.ReadConfig(direct=False)).tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_breaks_nothing(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    voxels = voxels_of((1, 20, 20, 20), "uint8")
    uri = shard(tmp_path / "a", voxels)
    (tmp_path / "file").write_text("")
    script = (
        "import logging, numpy as np, pathlib, radiodata.store as s, radiodata.store.direct.native as n\n"
        "logging.basicConfig(level=20)\n"
        f"n._folders = lambda: [pathlib.Path({str(tmp_path / 'file')!r})]\n"
        f"of = s.VoxelSource({uri!r}, 0, (1, 20, 20, 20), 'uint8', 1.0, 0.0, 'v', 's', 't')\n"
        "box = np.array([[0, 20]] * 3)\n"
        "print(s.read_box(of, box).tobytes() == s.read_box(of, box, config=s.ReadConfig(direct=False)).tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True", done.stderr
    assert "cannot be kept" in done.stderr
    assert fragment(uri).is_dir()
