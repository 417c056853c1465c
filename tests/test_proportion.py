"""Intervals of shares of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hurricane.lookup_tables.proportion import interval_text, wilson_interval

counts = st.integers(1, 100_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_an_interval_is_wilsons(found: tuple[int, int]) -> None:
    right, images = found
    expected = stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(right, images)
    assert low == pytest.approx(expected.low, abs=1e-4)
    assert high == pytest.approx(expected.high, abs=1e-4)


@given(counts)
def test_an_interval_holds_its_share_and_stays_within_0_and_1(found: tuple[int, int]) -> None:
    right, images = found
    low, high = wilson_interval(right, images)
    assert 0 <= low <= right / images <= high <= 1
    assert low < high
    # More images, with the same share right, tell more.
    closer = wilson_interval(4 * right, 4 * images)
    assert closer[1] - closer[0] < high - low
    # What is wrong is the mirror image of what is right.
    assert wilson_interval(images - right, images) == pytest.approx((1 - high, 1 - low))


def test_an_interval_in_words() -> None:
    assert interval_text(*wilson_interval(2721, 3000), 3000) == "89.6–91.7%, 3,000 images"
