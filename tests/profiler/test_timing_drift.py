"""How slow a device was in each batch, found from all graphs at once."""

from __future__ import annotations

import numpy as np
import pytest

from hurricane.profiler.timing.drift import (
    fit_slowdown,
    quiet_slowdown,
    relative_speed,
    steady_change,
)


def against_first(slowdown: np.ndarray) -> np.ndarray:
    return slowdown / slowdown[0]


def test_slowdowns_are_found_though_most_graphs_leave_and_some_change():
    random = np.random.default_rng(1)
    slowdown = np.array([1.0, 1.04, 1.0, 1.08, 1.2, 1.0, 1.1, 1.0, 1.05])
    times = random.uniform(0.1, 9.0, 400) * slowdown[:, None] * random.normal(1, 0.03, (9, 400))
    times[4:, :240] = np.nan  # these are known by then
    times[:4, 240:300] = np.nan  # and these come
    times[:, 300] *= np.linspace(1, 3, 9)  # this one gets slower by itself
    times[5, random.random(400) < 0.2] *= 1.5  # a burst
    assert against_first(fit_slowdown(times)) == pytest.approx(slowdown, rel=0.01)


def test_slowdowns_are_found_where_there_is_no_noise():
    slowdown = np.repeat([1.5, 1.0], [4, 6])
    times = np.random.default_rng(2).uniform(0.1, 9.0, 500) * slowdown[:, None]
    times[4:, :400] = np.nan
    times[:, 499] = 0.0  # a clock that is too coarse
    assert against_first(fit_slowdown(times)) * 1.5 == pytest.approx(slowdown, rel=1e-6)


def test_slowdowns_are_found_where_graphs_have_two_modes():
    random = np.random.default_rng(0)
    slowdown = np.exp(random.normal(0, 0.02, 8))
    for batches in (3, 5, 8):
        times = np.exp(0.003 * random.normal(size=(batches, 140))) * slowdown[:batches, None]
        times *= random.uniform(0.1, 2.0, 140)
        times[random.random(times.shape) < 0.3] *= 1.7
        found = against_first(fit_slowdown(times))
        assert found == pytest.approx(slowdown[:batches] / slowdown[0], rel=0.003)


def test_a_batch_that_shares_no_graph_has_no_slowdown_and_takes_none_from_others():
    times = np.full((4, 4), np.nan)
    times[:2, :2], times[3, :2], times[2, 2:] = [[1.0, 2.0], [1.0, 2.0]], [2.0, 4.0], 9.0
    found = fit_slowdown(times)
    assert found[2] == 1
    assert against_first(found)[[0, 1, 3]] == pytest.approx([1, 1, 2])
    assert (fit_slowdown(np.empty((3, 0))) == 1.0).all()
    assert (fit_slowdown(np.full((3, 2), np.nan)) == 1.0).all()


def test_the_first_batches_are_what_others_are_compared_with():
    slowdown = np.array([1.0, 1.2, 1.0, 1.2, 3.0, 0.5])
    times = np.random.default_rng(3).uniform(0.1, 9.0, 50) * slowdown[:, None]
    found = fit_slowdown(times)
    assert np.exp(np.log(found[:4]).mean()) == pytest.approx(1)
    # Further batches do not change what is known of them.
    assert fit_slowdown(times[:4]) == pytest.approx(found[:4], rel=1e-6)


def test_a_device_was_quiet_in_the_fastest_quarter_of_its_undisturbed_batches():
    slowdown = np.array([0.5, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    quiet = slowdown > 0.5
    assert quiet_slowdown(slowdown, quiet) == pytest.approx(1.0)  # 6 / 4 - 1/2: one
    assert quiet_slowdown(slowdown, np.zeros(7, bool)) == pytest.approx((0.5 + 0.25 * 1.0) / 1.25)


def test_a_speed_is_the_median_over_common_graphs():
    reference = {"a": 1.0, "b": 2.0, "c": 4.0, "other": 9.0}
    times = {"a": 1.5, "b": 2.2, "c": 99.0, "mine": 7.0}
    assert relative_speed(times, reference) == pytest.approx(1.5)
    assert np.isnan(relative_speed({"mine": 7.0}, reference))


ENDED_MS = 40_000 + 5_000 * np.arange(12.0)
"""When batches of 5 s ended, of which the first was loaded for 35 s."""


@pytest.mark.parametrize("per_minute", [0.2, 0.05, -0.1])
def test_a_steady_drift_is_found_with_the_time_before_the_first_batch(per_minute):
    slowdown = (1 + per_minute) ** (ENDED_MS / 60e3)
    expected = (1 + per_minute) ** (ENDED_MS[-1] / 60e3) - 1
    assert steady_change(slowdown / slowdown[0], ENDED_MS) == pytest.approx(expected)
    assert abs(expected) > abs(slowdown[-1] / slowdown[0] - 1)  # than over the batches alone


def test_a_steady_drift_is_found_among_noise():
    random = np.random.default_rng(0)
    for _ in range(20):
        slowdown = 1.2 ** (ENDED_MS / 60e3) * random.normal(1, 0.01, len(ENDED_MS))
        assert steady_change(slowdown, ENDED_MS) == pytest.approx(1.2 ** (95 / 60) - 1, abs=0.1)


@pytest.mark.parametrize(
    "slowdown",
    [
        np.ones(12),
        1 + 0.1 * np.sin(np.arange(12)),
        np.where(np.arange(12) < 6, 1 + 0.02 * np.arange(12), 1.22 - 0.02 * np.arange(12)),
        np.where(np.arange(12) % 2, 1.2, 1.0),
        np.random.default_rng(0).normal(1, 0.1, 12),
    ],
    ids=["constant", "waves", "up-and-down", "in-turns", "noise"],
)
def test_a_constant_clock_and_one_that_wanders_change_nothing_steadily(slowdown):
    assert steady_change(slowdown, ENDED_MS) == pytest.approx(0.0, abs=1e-9)


def test_few_batches_tell_no_steady_change():
    slowdown = 1.2 ** (ENDED_MS / 60e3)
    assert steady_change(slowdown[:4], ENDED_MS[:4]) == 0
    assert steady_change(slowdown[:5], ENDED_MS[:5]) == pytest.approx(1.2 - 1)
    assert steady_change(np.ones(0), np.ones(0)) == 0
    assert steady_change(slowdown, np.zeros(12)) == 0  # no clock
