"""A computed permutation is a bijection, keyed, and looks shuffled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radiodata.sampling.permutation import Permutation, hash_ints


@settings(max_examples=300, deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_every_item_comes_once(size: int, seed: int, epoch: int) -> None:
    items = Permutation(size, seed, epoch)(np.arange(size))
    assert sorted(items.tolist()) == list(range(size))


def test_position_alone_decides() -> None:
    order = Permutation(1000, 7)
    whole = order(np.arange(1000))
    assert [int(order(np.array([i]))[0]) for i in (0, 17, 999)] == [whole[0], whole[17], whole[999]]


def test_keys_choose_the_order() -> None:
    orders = {tuple(Permutation(50, seed, epoch)(np.arange(50)).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_known_order_never_changes() -> None:
    """Checkpoints of one release must mean the same batches in the next."""
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [5, 0, 7, 3, 4, 6, 9, 8, 2, 1]
    assert hash_ints(1, 2, 3) == 7510213797696614745


def test_each_item_is_as_likely_anywhere() -> None:
    size, draws = 12, 6000
    table = np.zeros((size, size))
    for key in range(draws):
        table[np.arange(size), Permutation(size, key)(np.arange(size))] += 1
    expected = draws / size
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_large_sizes_take_no_memory() -> None:
    order = Permutation(10**12, 3)
    first = order(np.arange(1000))
    assert len(set(first.tolist())) == 1000
    assert first.min() >= 0
    assert first.max() < 10**12


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17])
def test_small_sizes(size: int) -> None:
    assert sorted(Permutation(size, 1)(np.arange(size)).tolist()) == list(range(size))
