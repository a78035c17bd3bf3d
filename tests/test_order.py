"""Voxels turned into C order by the compiled kernel: those of numpy, in every order and of every dtype."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata import geometry
from radiodata.ingest import order


@pytest.fixture(scope="module", autouse=True)
def _used_for_small_ones_too() -> object:
    pytest.importorskip("numba", reason="needs radiodata[fast]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "worthwhile", lambda _: True)
        yield


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 150), st.integers(1, 20), st.integers(1, 90)),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([1, -1, 2])] * 3),
    st.sampled_from(["i1", "u1", "<i2", ">i2", "u2", "f4", "i8", "f8", "c8"]),
    st.booleans(),
)
def test_it_is_a_copy(
    shape: tuple[int, int, int, int], axes: list[int], steps: tuple[int, int, int], dtype: str, last: bool
) -> None:
    """`last`: channels run fastest, as RGB does."""
    flat = np.arange(np.prod(shape), dtype=np.uint32).astype(dtype)
    voxels = np.moveaxis(flat.reshape(*shape[1:], shape[0]), 3, 0) if last else flat.reshape(shape)
    turned = geometry.reorient(voxels, np.array(list(zip(axes, steps, strict=True)), np.int8))
    copy = order.c_order(turned)
    assert copy.flags.c_contiguous
    assert copy.dtype == turned.dtype
    np.testing.assert_array_equal(copy, turned)


def test_when_the_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    good = order._kernels.get
    monkeypatch.setattr(order._kernels, "get", lambda size: used.append(size) or good(size))
    cube = np.arange(2 * 30 * 40 * 50, dtype=np.int16).reshape(2, 30, 40, 50)
    assert order.c_order(cube) is cube
    assert not used
    order.c_order(cube.transpose(0, 3, 2, 1))
    assert used == [2]
    order.c_order(cube[:, :, :, ::-1])  # z is fastest already: rows are copied
    order.c_order(cube[:, :0].transpose(0, 3, 2, 1))
    monkeypatch.setattr(order, "worthwhile", lambda _: False)
    order.c_order(cube.transpose(0, 3, 2, 1))
    assert used == [2]


def test_a_kernel_that_turns_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "load", lambda kernel, *, anew: lambda *_: 0)
    monkeypatch.setattr(order, "_kernels", type(order._kernels)("volumes are turned", order._made))
    cube = np.arange(30 * 40 * 50, dtype=np.int16).reshape(1, 30, 40, 50).transpose(0, 3, 2, 1)
    np.testing.assert_array_equal(order.c_order(cube), cube)
    assert order._kernels._off
