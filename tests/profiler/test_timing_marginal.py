"""Marginal latencies: differences of quiet times, with intervals that hold them."""

from __future__ import annotations

import numpy as np
import pytest

from hurricane.profiler.timing.location import quiet_error_ms, quiet_ms
from hurricane.profiler.timing.marginal import BELOW_NOISE, Estimate, combine


def difference(calls: np.ndarray, weights: np.ndarray) -> Estimate:
    """The estimate from calls [series, visits, calls]."""
    return combine(
        weights, quiet_ms(calls.reshape(len(calls), -1), axis=1), quiet_error_ms(calls), calls.size
    )


def test_the_marginal_latency_is_the_mean_difference_and_its_interval_holds_it():
    random = np.random.default_rng(0)
    # Behind two neighbours; the baseline of the second one has two replicas.
    usual = np.array([2.4, 2.0, 3.6, 2.9, 3.1])
    weights = np.array([1 / 2, -1 / 2, 1 / 2, -1 / 4, -1 / 4])
    calls = usual[:, None, None] + random.exponential(0.02, (5, 400, 1))
    found = difference(calls, weights)
    assert found.latency_ms == pytest.approx((0.4 + 0.6) / 2, abs=0.004)
    assert found.ci_low_ms <= found.latency_ms <= found.ci_high_ms
    assert found.ci_high_ms - found.ci_low_ms < 0.02
    assert found.samples == 5 * 400
    assert found.flags == ()


@pytest.mark.parametrize("rounds", [12, 24, 60])
@pytest.mark.parametrize(
    "noise",
    [
        lambda random, size: np.exp(0.05 * random.normal(size=size)),
        lambda random, size: 1 + random.exponential(0.03, size),
    ],
)
def test_intervals_hold_the_difference_in_most_of_all_cases(noise, rounds):
    random = np.random.default_rng(2)
    usual, weights = np.array([2.4, 2.0]), np.array([1.0, -1.0])
    count = 1500
    calls = usual[:, None, None, None] * noise(random, (2, count, rounds, 1))
    quiet = quiet_ms(calls.reshape(2, count, -1), axis=2)
    errors = quiet_error_ms(calls)
    # What so many calls give in the mean is what is estimated.
    truth = float(weights @ quiet.mean(axis=1))
    found = [combine(weights, quiet[:, i], errors[:, i], 2 * rounds) for i in range(count)]
    inside = np.mean([one.ci_low_ms <= truth <= one.ci_high_ms for one in found])
    assert 0.9 <= inside <= 0.985


def test_errors_of_graphs_add_up_by_their_weights():
    found = combine(np.array([0.5, -0.25]), np.array([4.0, 4.0]), np.array([0.03, 0.08]), 9)
    half = 1.96 * np.hypot(0.5 * 0.03, 0.25 * 0.08)
    assert found.latency_ms == pytest.approx(1.0)
    assert (found.ci_low_ms, found.ci_high_ms) == pytest.approx((1 - half, 1 + half))


def test_a_difference_below_the_noise_is_flagged_and_is_the_end_of_its_interval():
    found = combine(np.array([1.0, -1.0]), np.array([1.99, 2.0]), np.array([0.01, 0.01]), 9)
    assert found.flags == (BELOW_NOISE,)
    assert 0 < found.latency_ms == found.ci_high_ms
    assert found.ci_low_ms == 0


def test_a_difference_that_is_surely_negative_stays_so():
    found = combine(np.array([1.0, -1.0]), np.array([1.0, 2.0]), np.array([0.01, 0.01]), 9)
    assert found.latency_ms == pytest.approx(-1.0)
    assert found.flags == ()


def test_what_was_visited_once_has_no_interval():
    found = difference(np.ones((2, 1, 16)) * [[[2.0]], [[1.0]]], np.array([1.0, -1.0]))
    assert found.latency_ms == pytest.approx(1.0)
    assert found.width(0.02, 0.001) == float("inf")


def test_a_narrow_interval_is_a_share_of_the_latency_or_a_floor():
    estimate = Estimate(1.0, 0.98, 1.02, 9)
    assert estimate.width(0.02, 0.0) == pytest.approx(1)
    assert estimate.width(0.01, 0.01) == pytest.approx(2)
    assert estimate.width(0.0, 0.04) == pytest.approx(0.5)


def test_an_interval_of_what_takes_no_time_is_never_narrow():
    assert Estimate(-0.1, -0.3, 0.1, 9).width(0.02, 0.0) == float("inf")
