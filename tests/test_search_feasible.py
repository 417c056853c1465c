"""Counting, listing and sampling the architectures that meet a budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.ops.errors import BadRequest
from hurricane.search.feasible import TOLERANCE_MS, FeasibleSet

# Few different values in hundredths, so that sums often fall together and onto the budget.
hundredths = st.integers(1, 40).map(lambda n: n / 100)
spaces = st.lists(st.lists(hundredths, min_size=1, max_size=4), min_size=1, max_size=5)


def brute_force(layers: list[list[float]], fixed: float, budget: float) -> list[tuple[int, ...]]:
    """Every feasible architecture, summed exactly in hundredths."""
    limit = round(budget * 100)
    found = []
    for codes in itertools.product(*(range(len(layer)) for layer in layers)):
        cost = sum(round(layer[c] * 100) for layer, c in zip(layers, codes, strict=True))
        if round(fixed * 100) + cost <= limit:
            found.append(codes)
    return found


@given(spaces, hundredths, st.integers(1, 250).map(lambda n: n / 100))
def test_counts_and_lists_what_brute_force_finds(
    layers: list[list[float]], fixed: float, budget: float
) -> None:
    feasible = FeasibleSet(layers, fixed, budget)
    expected = brute_force(layers, fixed, budget)
    listed = feasible.enumerate(10_000)
    assert feasible.count == len(expected)
    assert feasible.exact
    assert listed is not None
    assert [tuple(c) for c in listed.tolist()] == expected
    everything = np.array(list(itertools.product(*(range(len(x)) for x in layers))))
    assert feasible.contains(everything).sum() == len(expected)
    sums = [fixed + sum(x[c] for x, c in zip(layers, codes, strict=True)) for codes in everything]
    assert feasible.latency_ms(everything) == pytest.approx(sums)
    assert feasible.lowest_ms == pytest.approx(fixed + sum(map(min, layers)))
    assert feasible.highest_ms == pytest.approx(fixed + sum(map(max, layers)))


@given(spaces, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_samples_are_feasible_and_in_the_grid_too(
    layers: list[list[float]], seed: int, share: float
) -> None:
    low, high = sum(map(min, layers)), sum(map(max, layers))
    budget = low + share * (high - low)
    for max_sums in (4_000_000, 1):  # 1: no half fits, the grid is used
        feasible = FeasibleSet(layers, 0.0, budget, max_sums=max_sums)
        codes = feasible.sample(np.random.default_rng(seed), 20)
        assert feasible.contains(codes).all()
        assert (feasible.latency_ms(codes) <= budget + TOLERANCE_MS).all()


@pytest.mark.parametrize("max_sums", [4_000_000, 1])
@pytest.mark.parametrize(
    "layers",
    [
        [[0.1, 0.2, 0.3], [0.1, 0.2, 0.4], [0.2, 0.3], [0.1, 0.5]],
        [[0.1, 0.2]] * 6,  # many ways to the same sum
    ],
)
def test_sampling_is_uniform(layers: list[list[float]], max_sums: int) -> None:
    feasible = FeasibleSet(layers, 0.05, 0.96, max_sums=max_sums)
    members = brute_force(layers, 0.05, 0.96)
    draws = 400 * len(members)
    codes = feasible.sample(np.random.default_rng(7), draws)
    seen, counts = np.unique(codes, axis=0, return_counts=True)
    assert [tuple(c) for c in seen.tolist()] == members
    chi_square = ((counts - 400) ** 2 / 400).sum()
    freedom = len(members) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_a_sum_that_equals_the_budget_meets_it() -> None:
    assert FeasibleSet([[0.1], [0.2]], 0.0, 0.3).count == 1  # 0.1 + 0.2 > 0.3 in floats
    assert FeasibleSet([[0.1], [0.2]], 0.0, 0.3 - 1e-9).count == 0


def test_large_spaces_without_shared_latencies_are_counted_exactly() -> None:
    rng = np.random.default_rng(3)
    layers = [rng.uniform(0.1, 2.0, 4) for _ in range(10)]
    sums = np.zeros(1)
    for layer in layers:
        sums = (sums[:, None] + layer).ravel()
    for budget in (4.0, 8.0, 12.0, 25.0):
        assert FeasibleSet(layers, 0.0, budget).count == (sums <= budget).sum()


def test_the_grid_undercounts_slightly_and_never_overshoots() -> None:
    rng = np.random.default_rng(4)
    layers = [rng.uniform(0.1, 2.0, 4) for _ in range(12)]
    exact = FeasibleSet(layers, 0.0, 12.0)
    grid = FeasibleSet(layers, 0.0, 12.0, max_sums=1)
    assert not grid.exact
    assert 0.99 * exact.count < grid.count <= exact.count
    assert grid.contains(grid.sample(rng, 5000)).all()


def test_more_architectures_than_an_integer_holds_are_sampled_by_the_grid() -> None:
    rng = np.random.default_rng(5)
    layers = [rng.uniform(0.1, 2.0, 32) for _ in range(20)]
    feasible = FeasibleSet(layers, 0.5, 15.0)
    assert not feasible.exact
    assert 0 < feasible.count < feasible.total == 32**20
    assert feasible.contains(feasible.sample(rng, 200)).all()


def test_few_sums_of_more_architectures_than_an_integer_holds_are_not_counted_exactly() -> None:
    feasible = FeasibleSet([[0.1, 0.2]] * 70, 0.0, 14.0)
    assert not feasible.exact
    assert feasible.count == pytest.approx(2**70)
    half = FeasibleSet([[0.1, 0.2]] * 70, 0.0, 10.55)
    assert half.count == pytest.approx(2**69 + math.comb(70, 35) / 2, rel=1e-3)
    slow = half.sample(np.random.default_rng(1), 2000).sum(axis=1)
    assert slow.max() <= 35
    assert slow.mean() == pytest.approx(35 - 0.8 * math.sqrt(70 / 4), abs=1)


def test_restricting_fixes_layers_and_keeps_the_budget() -> None:
    layers = [[0.1, 0.5], [0.2, 0.3], [0.1, 0.4]]
    inner = FeasibleSet(layers, 0.0, 0.9).restrict({0: 1})
    assert inner.sizes == (1, 2, 2)
    expected = [c for c in brute_force(layers, 0.0, 0.9) if c[0] == 1]
    assert inner.count == len(expected)
    listed = inner.enumerate(10)
    assert listed is not None
    assert [(1, b, c) for _, b, c in listed.tolist()] == expected


def test_listing_more_than_the_limit_gives_none() -> None:
    feasible = FeasibleSet([[0.1, 0.2]] * 4, 0.0, 1.0)
    assert feasible.enumerate(15) is None
    listed = feasible.enumerate(16)
    assert listed is not None
    assert len(listed) == 16


def test_an_impossible_budget_holds_nothing_and_says_what_is_possible() -> None:
    feasible = FeasibleSet([[0.5, 0.7], [0.3]], 0.2, 0.99)
    assert (feasible.count, feasible.exact) == (0, True)
    listed = feasible.enumerate(5)
    assert listed is not None
    assert len(listed) == 0
    with pytest.raises(BadRequest, match="the fastest takes 1 ms"):
        feasible.sample(np.random.default_rng(0), 1)


def test_a_fixed_latency_may_be_negative_but_must_be_finite() -> None:
    layers = [[0.1, 0.5], [0.2, 0.3]]
    below = FeasibleSet(layers, -0.2, 0.2)
    assert below.count == len(brute_force(layers, -0.2, 0.2)) == 2
    assert below.lowest_ms == pytest.approx(0.1)
    for fixed in (math.nan, math.inf, -math.inf):
        with pytest.raises(BadRequest, match="the fixed latency must be a number of ms"):
            FeasibleSet(layers, fixed, 1.0)
    with pytest.raises(BadRequest, match="the budget must be a finite number of ms, not nan"):
        FeasibleSet(layers, 0.0, math.nan)


@pytest.mark.parametrize("layer", [[], [math.nan], [math.inf], [-1.0]])
def test_unusable_latencies_are_refused(layer: list[float]) -> None:
    with pytest.raises(BadRequest, match="layer 1"):
        FeasibleSet([[1.0], layer], 0.0, 3.0)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_sampling_depends_on_the_generator_alone(seed: int) -> None:
    layers = [[0.1, 0.2, 0.35]] * 6
    one = FeasibleSet(layers, 0.0, 1.2).sample(np.random.default_rng(seed), 30)
    two = FeasibleSet(layers, 0.0, 1.2).sample(np.random.default_rng(seed), 30)
    assert (one == two).all()
