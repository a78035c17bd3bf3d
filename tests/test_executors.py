"""Who does the work, and what its libraries warn of meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from radiodata.errors import ConfigError
from radiodata.executors import of_caller, without_warnings


def warn_inside(pause: float) -> None:
    with without_warnings():
        for _ in range(5):
            warnings.warn("of a library", UserWarning, stacklevel=1)
            time.sleep(pause)


def test_filters_are_as_before_once_all_threads_are_out() -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(warn_inside, [0.0003 * (n % 7) for n in range(200)]))  # would raise: warnings are errors here
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_filters_come_back_after_an_error_and_when_the_first_in_is_the_first_out() -> None:
    before = list(warnings.filters)
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first() -> None:
        with contextlib.suppress(KeyError), without_warnings():
            first_is_in.set()
            assert second_is_in.wait(10)
            raise KeyError

    thread = threading.Thread(target=first)
    thread.start()
    assert first_is_in.wait(10)
    with without_warnings():
        second_is_in.set()
        thread.join()
        warnings.warn("of a library", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before


def test_what_cannot_be_submitted_to_is_no_executor() -> None:
    with pytest.raises(ConfigError, match="it has no submit"):
        of_caller(object())
