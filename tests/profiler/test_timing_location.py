"""The quiet time of a graph, and its error."""

from __future__ import annotations

import numpy as np
import pytest

from hurricane.profiler.timing.location import quiet_error_ms, quiet_ms


def test_bursts_of_other_work_do_not_move_the_quiet_time():
    quiet = np.full(24, 1.0)
    disturbed = quiet.copy()
    disturbed[:14] = 5.0
    assert quiet_ms(disturbed) == quiet_ms(quiet)


def test_the_quiet_time_is_the_mean_of_the_fastest_quarter_less_half_a_call():
    calls = np.random.default_rng(0).permutation([1.0, 2.0, 3.0, *[9.0] * 7])
    assert quiet_ms(calls) == pytest.approx((1.0 + 2.0) / 2)  # 10 / 4 - 1/2: two calls
    twelve = [1.0, 2.0, 4.0, *[9.0] * 9]
    assert quiet_ms(np.array(twelve)) == pytest.approx((1.0 + 2.0 + 0.5 * 4.0) / 2.5)
    assert quiet_ms(np.array([2.0, 3.0])) == 2.0


def test_the_calls_of_every_series_are_along_the_axis_named():
    first, second = np.random.default_rng(0).uniform(1, 2, (2, 12))
    wanted = [quiet_ms(first), quiet_ms(second)]
    np.testing.assert_allclose(quiet_ms(np.stack([first, second]), axis=1), wanted)
    np.testing.assert_allclose(quiet_ms(np.stack([first, second], axis=1), axis=0), wanted)
    assert quiet_ms(np.stack([first, second])) == quiet_ms(np.concatenate([first, second]))


def test_the_quiet_time_does_not_depend_on_how_often_a_graph_was_called():
    random = np.random.default_rng(0)
    means = [
        np.mean(quiet_ms(1 + 0.1 * random.normal(size=(20_000, count)), axis=1))
        for count in (6, 9, 12, 18, 24, 60)
    ]
    assert max(means) - min(means) < 0.005  # without the half call: 0.02


@pytest.mark.parametrize(
    "noise",
    [
        lambda random, size: 0.05 * random.normal(size=size),
        lambda random, size: random.exponential(0.05, size),
    ],
)
def test_the_error_is_that_by_which_quiet_times_scatter(noise):
    random = np.random.default_rng(1)
    samples = 1 + noise(random, (4000, 24, 1))
    scatter = np.std(quiet_ms(samples.reshape(4000, -1), axis=1))
    assert np.sqrt(np.mean(quiet_error_ms(samples) ** 2)) == pytest.approx(scatter, rel=0.2)


def test_calls_of_one_visit_count_for_one():
    samples = np.ones((6, 16))
    samples[1:] *= 2  # one visit of six was fast
    apart = samples.reshape(-1, 1)
    assert quiet_error_ms(samples) > 2 * quiet_error_ms(apart) > 0


def test_what_is_slower_than_the_fastest_quarter_is_no_error():
    samples = np.ones((24, 1))
    assert quiet_error_ms(samples) == 0
    samples[:14] = 5.0
    assert quiet_error_ms(samples) == 0
    samples[:20] = 5.0
    assert quiet_error_ms(samples) > 0


def test_a_single_visit_tells_nothing_of_its_error():
    assert np.isinf(quiet_error_ms(np.ones((3, 1, 16)))).all()
    assert np.isfinite(quiet_error_ms(np.ones((3, 2, 16)))).all()


def test_errors_are_those_of_each_series():
    samples = np.random.default_rng(2).uniform(1, 2, (2, 3, 8, 2))
    found = quiet_error_ms(samples)
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(float(quiet_error_ms(samples[1, 2])))
