"""Machine code kept in files: compiled once, loaded without numba, and never trusted when it is damaged."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs radiodata[fast]")

from radiodata.store.direct import native
from radiodata.store.direct.native import Kernel, address_of, load

SOURCE = """
import numpy as np


def total(values, n, factor):
    found = 0
    for i in range(np.uint64(n)):
        found += np.int64(values[i]) * factor
    return found


def chance(values, n, factor):
    return np.int64(np.random.random() * factor)


def fails(values, n, factor):
    if n != 7:
        raise ValueError("not seven")
    return n
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    """Kernels of a module of this test, kept in a folder of this test."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "summing.py").write_text(SOURCE)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "summing", raising=False)
    return lambda name="total", dtype="i2": Kernel("summing", name, (f"{dtype}*", "i8", "i8"), helpers=())


def sum_of(function: Callable[..., int], dtype: str = "i2") -> int:
    values = np.arange(-3, 40).astype(dtype)
    return function(address_of(values), len(values), 3)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", "i8"])
def test_a_function_is_compiled_once(make: Callable[..., Kernel], tmp_path: Path, dtype: str) -> None:
    wanted = 3 * int(np.arange(-3, 40).astype(dtype).sum(dtype=np.int64))
    assert sum_of(load(make(dtype=dtype)), dtype) == wanted
    (file,) = kept(tmp_path)
    before = file.stat().st_mtime_ns
    assert sum_of(load(make(dtype=dtype)), dtype) == wanted
    assert file.stat().st_mtime_ns == before
    load(make(dtype=dtype), anew=True)
    assert kept(tmp_path)[0].stat().st_mtime_ns > before
    assert kept(tmp_path) == [file]


def test_it_is_loaded_without_numba(make: Callable[..., Kernel], tmp_path: Path) -> None:
    load(make())
    script = f"""
        import sys
        import numpy as np
        sys.path.insert(0, {str(tmp_path)!r})
        from radiodata.store.direct.native import Kernel, address_of, load
        values = np.arange(-3, 40).astype("i2")
        print(load(Kernel("summing", "total", ("i2*", "i8", "i8"), helpers=()))(address_of(values), 43, 3))
        print("numba" in sys.modules, "summing" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == [str(3 * sum(range(-3, 40))), "False", "False"], done.stderr


@pytest.mark.parametrize("damage", ["empty", "cut", "a flipped bit", "other code"])
def test_damaged_code_is_not_loaded(make: Callable[..., Kernel], tmp_path: Path, damage: str) -> None:
    load(make())
    (file,) = kept(tmp_path)
    raw = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        raw[len(raw) // 2] ^= 1
    file.write_bytes({"empty": b"", "cut": raw[:-100], "other code": b"x" * 500}.get(damage, raw))
    assert sum_of(load(make())) == 3 * sum(range(-3, 40))
    assert native._read(file.name) is not None  # kept again


@pytest.mark.parametrize("code", ["no object", "another function"])
def test_whole_files_of_other_code_are_errors(make: Callable[..., Kernel], tmp_path: Path, code: str) -> None:
    """Not the end of the process: a kernel is compiled anew then."""
    other = native._compile(make("fails"), *native._llvm()) if code == "another function" else b"no object at all"
    native._keep(f"total-{native._key(make())}.o", other)
    with pytest.raises(RuntimeError):
        load(make())
    assert sum_of(load(make(), anew=True)) == 3 * sum(range(-3, 40))
    assert sum_of(load(make())) == 3 * sum(range(-3, 40))


def test_another_source_is_other_code(make: Callable[..., Kernel], tmp_path: Path) -> None:
    before = native._key(make())
    (tmp_path / "summing.py").write_text(SOURCE + "\n")
    assert native._key(make()) != before
    assert native._key(make(dtype="u2")) != native._key(make())


def test_what_needs_numba_at_hand_is_refused(make: Callable[..., Kernel], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the compiled chance needs numba_"):
        load(make("chance"))
    assert kept(tmp_path) == []


def test_a_function_that_raises(make: Callable[..., Kernel]) -> None:
    function, values = load(make("fails")), np.zeros(7, np.int16)
    assert function(address_of(values), 7, 0) == 7
    with pytest.raises(RuntimeError, match="the compiled fails failed"):
        function(address_of(values), 8, 0)


def test_a_folder_that_cannot_be_written(
    make: Callable[..., Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    caplog.set_level("INFO", "radiodata.store")
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "file", tmp_path / "other" / "place"])
    assert sum_of(load(make())) == 3 * sum(range(-3, 40))
    assert len(list((tmp_path / "other" / "place").iterdir())) == 1
    assert not caplog.records
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "file"])
    assert sum_of(load(make())) == 3 * sum(range(-3, 40))
    assert "cannot be kept" in caplog.text


def test_many_threads_load_at_once(make: Callable[..., Kernel], tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        functions = list(pool.map(lambda _: load(make()), range(8)))
        assert set(pool.map(sum_of, functions)) == {3 * sum(range(-3, 40))}
    assert len(kept(tmp_path)) == 1
