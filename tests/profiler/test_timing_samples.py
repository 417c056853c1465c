"""Calls by series and batch."""

from __future__ import annotations

import numpy as np
import pytest

from hurricane.profiler.timing.samples import SampleStore

ONE = np.array([[1.0], [2.0], [3.0]])


def store() -> SampleStore[str]:
    """Three batches; `b` is not in the second, `c` only there."""
    found: SampleStore[str] = SampleStore()
    found.add({"a": ONE, "b": 10 * ONE})
    found.add({"c": 100 * ONE, "a": 2 * ONE})
    found.add({"b": 30 * ONE, "a": 3 * ONE})
    return found


def test_a_store_knows_what_was_timed_when():
    found = store()
    assert found.batches == 3
    assert [found.has("a", n) for n in range(3)] == [True, True, True]
    assert [found.has("b", n) for n in range(3)] == [True, False, True]
    assert not found.has("nonesuch", 0)


def test_calls_are_those_of_the_series_in_the_batches_without_their_slowdown():
    slowdown = np.array([1.0, 2.0, 3.0])
    calls = store().calls(["b", "a"], [0, 2], slowdown)
    np.testing.assert_allclose(calls[0], np.concatenate([10 * ONE, 10 * ONE]))
    np.testing.assert_allclose(calls[1], np.concatenate([ONE, ONE]))
    assert store().calls(["a"], [1, 2, 0], np.ones(3))[0].ravel().tolist() == [
        *(2, 4, 6),
        *(3, 6, 9),
        *(1, 2, 3),
    ]


def test_batches_may_have_other_numbers_of_visits():
    found: SampleStore[str] = SampleStore()
    found.add({"a": np.ones((3, 2))})
    found.add({"a": np.ones((1, 2))})
    assert found.calls(["a"], [0, 1], np.ones(2)).shape == (1, 4, 2)


def test_quiet_times_stand_by_batch_and_series_where_it_was_timed():
    np.testing.assert_allclose(
        store().quiet_by_batch(), [[1, 10, np.nan], [2, np.nan, 100], [3, 30, np.nan]]
    )


def test_a_batch_in_which_all_failed_is_a_batch():
    found: SampleStore[str] = SampleStore()
    found.add({"a": ONE})
    found.add({})
    found.add({"a": ONE})
    assert found.batches == 3
    np.testing.assert_allclose(found.quiet_by_batch(), [[1], [np.nan], [1]])


def test_series_of_one_batch_have_as_many_calls():
    with pytest.raises(ValueError, match="shape"):
        SampleStore[str]().add({"a": np.ones((3, 1)), "b": np.ones((2, 1))})
