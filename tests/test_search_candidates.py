"""Candidates chosen at a price of a millisecond, and α where scores tie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hurricane.lookup_tables.shipped import shipped_tables
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL
from hurricane.search.candidates import PRICE_RANGE, budget_price, covering
from hurricane.search.pipeline import open_latency
from hurricane.search.scoring import score_lines
from hurricane.search.space import SearchSpace, build_space, reachable_ms

BACKBONE = load_backbone("digits32")
NAMES = tuple(op.name for op in POOL)


@dataclass(frozen=True)
class Model:
    latency_ms: NDArray[np.float64]
    operators: tuple[str, ...] = NAMES
    fixed_ms: float = 0.2


def random_model(seed: int, operators: tuple[str, ...] = NAMES) -> Model:
    """Latencies about as capacity is, to a power, with much noise; equal for equal shapes."""
    rng = np.random.default_rng(seed)
    power, columns = rng.uniform(0.2, 0.8), [NAMES.index(name) for name in operators]
    rows = {
        shape: [
            (op.macs(shape) * op.params(shape)) ** (power / 2) * rng.lognormal(0, 0.5) / 1e3
            for op in POOL
        ]
        for shape in BACKBONE.distinct_shapes
    }
    return Model(np.array([rows[s] for s in BACKBONE.layers])[:, columns], operators)


def budget_at(model: Model, share: float) -> float:
    low, high = reachable_ms(model)
    return low + share * (high - low)


def best_capacity(capacity: list[list[float]], ms: list[list[float]], budget_ms: float) -> float:
    """The highest sum of capacities within a budget, by keeping what nothing dominates."""
    kept = [(0.0, 0.0)]
    for values, times in zip(capacity, ms, strict=True):
        longer = sorted(
            (used + t, -(total + v))
            for used, total in kept
            for v, t in zip(values, times, strict=True)
            if used + t <= budget_ms + 1e-9
        )
        kept, best = [], -np.inf
        for used, negative in longer:
            if -negative > best:
                best = -negative
                kept.append((used, best))
        kept = kept[:: max(1, len(kept) // 4000)] + kept[-1:]
    return max((total for _, total in kept), default=-np.inf)


def best_in(space: SearchSpace, model: Model) -> tuple[float, float]:
    """The highest capacity in a space and in the whole pool, within the budget."""
    lines = score_lines(model, BACKBONE).capacity
    columns = [[model.operators.index(n) for n in names] for names in space.candidates]
    budget = space.budget_ms - space.fixed_ms
    here = best_capacity(
        [lines[i, c].tolist() for i, c in enumerate(columns)],
        [model.latency_ms[i, c].tolist() for i, c in enumerate(columns)],
        budget,
    )
    return here, best_capacity(lines.tolist(), model.latency_ms.tolist(), budget)


def test_the_best_network_of_a_space_is_near_the_pools_best() -> None:
    """As a geometric mean of F·P over the layers, with 5 of 32 operators. It is no theorem: where
    a layer's steps are large, what the budget leaves unused may be worth a tenth and more."""
    kept = []
    for seed, share in enumerate(np.linspace(0.02, 0.95, 40)):
        model = random_model(seed)
        space = build_space(model, BACKBONE, budget_at(model, share))
        found, best = best_in(space, model)
        kept.append(np.exp((found - best) / len(BACKBONE.layers)))
    assert np.mean(kept) > 0.99
    assert np.min(kept) > 0.8


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.02, 0.95), st.floats(1e-3, 1e3))
def test_candidates_do_not_depend_on_the_unit_of_latency(
    seed: int, share: float, factor: float
) -> None:
    model = random_model(seed)
    budget = budget_at(model, share)
    one = build_space(model, BACKBONE, budget)
    scaled = replace(model, latency_ms=model.latency_ms * factor, fixed_ms=model.fixed_ms * factor)
    other = build_space(scaled, BACKBONE, budget * factor)
    assert other.candidates == one.candidates
    assert other.price_per_ms == pytest.approx((one.price_per_ms or 0) / factor)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.001, 0.999), st.integers(2, 8))
def test_a_space_has_so_many_operators_and_networks_within_the_budget(
    seed: int, share: float, top: int
) -> None:
    model = random_model(seed)
    space = build_space(model, BACKBONE, budget_at(model, share), top=top)
    fastest = model.latency_ms.min(1)
    for layer, names in enumerate(space.candidates):
        others = model.fixed_ms + fastest.sum() - fastest[layer]
        fitting = int((others + model.latency_ms[layer] <= space.budget_ms + 1e-9).sum())
        assert len(set(names)) == len(names) == min(top, fitting)
        # Each stands in some network within the budget.
        assert others + max(space.latency_ms[layer]) <= space.budget_ms + 1e-9
    assert space.split == 0
    assert space.stages == 1
    assert space.stage1_set.count == space.feasible_set.count > 0
    a_win0 = space.fixed_ms + sum(ms[0] for ms in space.latency_ms)
    assert a_win0 <= space.budget_ms + 1e-9
    alike: dict[object, tuple[str, ...]] = {}
    for shape, names in zip(BACKBONE.layers, space.candidates, strict=True):
        assert alike.setdefault(shape, names) == names


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_the_price_is_that_of_the_first_step_that_does_not_fit(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    latency, capacity = rng.uniform(0.1, 2, (4, 5)), rng.uniform(0, 10, (4, 5))
    low, high = latency.min(1).sum(), latency.max(1).sum()
    budget = low + share * (high - low)
    price, base = budget_price(capacity, latency, budget)
    rows = np.arange(4)
    assert latency[rows, base].sum() <= budget + 1e-6
    # At the price the base is a best network: nothing gains more than it costs.
    value = capacity - price * latency
    assert value[rows, base] == pytest.approx(value.max(1))
    # No network within the budget has more capacity than the relaxation allows.
    bound = value.max(1).sum() + price * budget
    for columns in itertools.product(range(5), repeat=4):
        if latency[rows, columns].sum() <= budget:
            assert capacity[rows, columns].sum() <= bound + 1e-9


def test_a_layer_without_a_choice_has_a_price_all_the_same() -> None:
    price, base = budget_price(np.array([[3.0, 1.0]]), np.array([[0.5, 0.7]]), 0.6)
    assert base.tolist() == [0]
    assert price > 0


def test_operators_that_cannot_stand_at_a_layer_are_no_candidates() -> None:
    model = random_model(3)
    for gone in (0, 7, 20):
        model.latency_ms[:, gone] = np.nan
    model.latency_ms[2, 3:] = np.nan
    space = build_space(model, BACKBONE, budget_at(model, 0.5))
    assert {NAMES[0], NAMES[7], NAMES[20]}.isdisjoint(itertools.chain(*space.candidates))
    assert set(space.candidates[2]) <= set(NAMES[:3])


def test_covering_takes_what_lowers_the_gap_most_then_the_nearest() -> None:
    gaps = np.array(
        [
            [0.0, 1.0, 9.0],
            [5.0, 0.0, 2.0],
            [8.0, 3.0, 0.0],
            [0.5, 1.5, 9.5],
            [np.nan, np.nan, np.nan],
        ]
    )
    assert covering(gaps, 0, 5) == (0, 2, 1, 3)
    assert covering(gaps, 0, 2) == (0, 2)


def test_of_equal_operators_the_earlier_is_taken() -> None:
    model = random_model(5)
    column = NAMES.index("MB_5_3")
    everything = build_space(model, BACKBONE, budget_at(model, 0.4))
    twice = Model(
        np.concatenate([model.latency_ms, model.latency_ms[:, [column]]], axis=1),
        (*NAMES, "MB_5_3"),
    )
    assert build_space(twice, BACKBONE, budget_at(model, 0.4)).candidates == everything.candidates


def test_candidates_reach_from_small_to_large_operators() -> None:
    latency = open_latency("imagenet224-cpu-onnxruntime-fp32", accept_table=True)
    low, high = reachable_ms(latency.model)
    space = build_space(latency.model, latency.backbone, low + 0.3 * (high - low))
    for ms in space.latency_ms:
        assert max(ms) > PRICE_RANGE * min(ms)
        between = [m for m in ms if 1.5 * min(ms) < m < max(ms) / 1.5]
        assert between


def test_auto_alpha_leaves_stage_1_a_network_where_the_nearest_mean_would_not() -> None:
    latency = open_latency("imagenet224-sim-hexagon685-dsp", accept_table=True)
    low, high = reachable_ms(latency.model)
    budget = low + 0.7 * (high - low)
    space = build_space(latency.model, latency.backbone, budget, "hurricane")
    assert space.stage1_set.count > 0
    with pytest.raises(BadRequest, match="too high"):
        build_space(latency.model, latency.backbone, budget, "hurricane", alpha=6.57)


@pytest.mark.parametrize("table", [t for t in shipped_tables() if t.startswith("imagenet224-")])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_there_is_a_space_for_every_shipped_table(table: str, share: float) -> None:
    latency = open_latency(table, accept_table=True)
    low, high = reachable_ms(latency.model)
    space = build_space(latency.model, latency.backbone, low + share * (high - low))
    assert space.stage1_set.count > 0
    assert 1 <= min(map(len, space.candidates)) <= max(map(len, space.candidates)) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 1}, "top must be at least 2"),
        ({"alpha": 0.4}, "alpha: of the method hurricane"),
        ({"exploring_layers": 0}, "exploring layers: of the method hurricane"),
        ({"score_latency": "operator"}, "score latency: of the method hurricane"),
        ({"split": 7}, "split must lie between 0 and 6"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], words: str) -> None:
    model = random_model(1)
    with pytest.raises(BadRequest, match=words):
        build_space(model, BACKBONE, budget_at(model, 0.4), **options)  # pyright: ignore


def test_a_budget_that_every_network_meets_is_no_constraint() -> None:
    model = random_model(1)
    with pytest.raises(BadRequest, match="no constraint"):
        build_space(model, BACKBONE, budget_at(model, 1.0))


# --- The paper's α -----------------------------------------------------------------------------

FEW = ("SEP_3", "MB_3_1", "MB_5_3")
"""No more than p: every α gives the same space."""


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.floats(0.5, 2.0))
def test_alpha_is_not_decided_by_rounding(seed: int, share: float, factor: float) -> None:
    model = random_model(seed, FEW)
    budget = budget_at(model, share)
    one = build_space(model, BACKBONE, budget, "hurricane")
    scaled = replace(model, latency_ms=model.latency_ms * factor, fixed_ms=model.fixed_ms * factor)
    other = build_space(scaled, BACKBONE, budget * factor, "hurricane")
    assert other.a_win0 == one.a_win0
    assert other.stage1_set.count == one.stage1_set.count


def test_of_equal_means_the_alpha_is_taken_whose_best_network_is_nearest_the_budget() -> None:
    model = random_model(8, FEW)
    budget = budget_at(model, 0.4)
    lines = score_lines(model, BACKBONE)
    space = build_space(model, BACKBONE, budget, "hurricane")
    columns = [model.operators.index(name) for name in space.a_win0]
    rows = np.arange(len(BACKBONE.layers))
    found = abs(model.fixed_ms + model.latency_ms[rows, columns].sum() - budget)
    for alpha in np.linspace(0, 4, 400):
        first = lines.ranking(float(alpha))[:, 0]
        ms = model.latency_ms[rows, first]
        fastest = model.latency_ms.min(1)[BACKBONE.split :].sum()
        if model.fixed_ms + ms[: BACKBONE.split].sum() + fastest <= budget:
            assert found <= abs(model.fixed_ms + ms.sum() - budget) + 1e-9


# --- What is said of a space -------------------------------------------------------------------


def test_next_to_no_choice_is_said() -> None:
    model = random_model(2)
    low, _ = reachable_ms(model)
    tight = build_space(model, BACKBONE, low * 1.0001)
    assert tight.feasible_set.count <= 50
    (note,) = tight.notes()
    assert note.startswith("next to nothing to choose from: the search has")
    assert build_space(model, BACKBONE, budget_at(model, 0.4)).notes() == []


def test_a_stage_with_next_to_no_choice_is_named() -> None:
    model = random_model(2)
    budget = budget_at(model, 0.4)
    made = build_space(model, BACKBONE, budget, "hurricane")
    fastest = made.fixed_ms + sum(ms[0] for ms in made.latency_ms[: made.split])
    fastest += sum(min(ms) for ms in made.latency_ms[made.split :])
    (note,) = replace(made, budget_ms=fastest + 1e-9).notes()
    assert "stage 1 has 1 within the budget" in note


def test_a_budget_that_hardly_constrains_is_said() -> None:
    model = random_model(2)
    space = build_space(model, BACKBONE, budget_at(model, 0.4))
    (note,) = replace(space, budget_ms=space.highest_ms).notes()
    assert note.startswith("hardly a constraint")
