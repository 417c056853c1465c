"""Which batches are used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hurricane.profiler.timing.interference import BatchFacts, judge_batches, slowest_accepted


def facts(count: int, contended: tuple[int, ...] = (), events: tuple[int, ...] = (), rows: int = 9):
    """Facts of so many batches."""
    return [
        BatchFacts(3, rows, number in contended, events[number] if events else 0)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("slowdown", "weights", "limit"),
    [
        ([1.0, 1.0, 1.2, 1.2], [9, 9, 9, 9], 1.15),  # half of it
        ([1.0, 1.2, 1.2, 1.2], [9, 9, 9, 9], 1.2 * 1.15),
        ([1.2, 1.2, 1.0, 1.0, 1.0, 1.0], [9, 9, 1, 1, 1, 1], 1.2 * 1.15),
        ([3.0], [1], 3.0 * 1.15),
        ([2.0, 1.0], [0, 0], 1.15),
        ([], [], np.inf),
    ],
)
def test_a_batch_is_slow_against_what_half_of_the_rows_were_timed_at(slowdown, weights, limit):
    found = slowest_accepted(np.array(slowdown), np.array(weights, float), 0.15)
    assert found == pytest.approx(limit)


def test_batches_that_are_contended_or_slow_are_not_used():
    slowdown = np.array([1.0, 1.0, 1.2, 1.14, 1.0])
    found = judge_batches(slowdown, facts(5, contended=(4,)), 0, 0.15)
    assert found.accepted.tolist() == [True, True, False, True, False]
    assert not found.throttled.any()
    assert found.quiet.tolist() == [True, True, True, True, False]


def test_half_of_what_was_timed_is_that_of_the_batches_without_contention():
    slowdown = np.array([1.3] * 5 + [1.0, 1.0, 1.2, 1.0, 1.0])
    found = judge_batches(slowdown, facts(10, contended=(0, 1, 2, 3, 4)), 0, 0.15)
    assert np.flatnonzero(found.accepted).tolist() == [5, 6, 8, 9]


def test_batches_after_a_throttling_that_shows_are_throttled():
    slowdown = np.array([1.0, 1.0, 1.1, 1.4, 1.4])
    # Three events were there before anything was timed.
    found = judge_batches(slowdown, facts(5, events=(3, 3, 4, 4, 4)), 3, 0.15)
    assert found.throttled.tolist() == [False, False, False, True, True]
    assert found.quiet.tolist() == [True, True, True, False, False]


def test_a_throttling_that_was_there_from_the_first_batch_on_may_show():
    found = judge_batches(np.ones(3), facts(3, events=(1, 1, 1)), 0, 0.15)
    assert found.throttled.all()


def test_batches_before_a_throttling_that_does_not_show_are_no_quieter_than_those_after_it():
    found = judge_batches(np.array([1.6, 1.0, 1.0]), facts(3, events=(0, 1, 1)), 0, 0.15)
    assert not found.throttled.any()
    assert found.quiet.all()


def test_a_batch_during_which_the_device_says_that_it_throttled_is_throttled_though_none_shows():
    batches = facts(4, events=(0, 0, 1, 1))
    batches[2] = replace(batches[2], throttled=True)
    found = judge_batches(np.ones(4), batches, 0, 0.15)
    assert found.throttled.tolist() == [False, False, True, False]
    assert found.quiet.all()
    assert found.accepted.all()


def test_a_slow_device_is_not_throttled_where_it_says_nothing_of_it():
    found = judge_batches(np.array([1.0, 1.4, 1.4]), facts(3, events=(3, 3, 3)), 3, 0.15)
    assert not found.throttled.any()


def test_where_all_batches_are_contended_none_is_used():
    found = judge_batches(np.ones(3), facts(3, contended=(0, 1, 2)), 0, 0.15)
    assert not found.accepted.any()
    assert not found.quiet.any()
