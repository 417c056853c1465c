"""What every search strategy promises, and what evolution adds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.search.evolution import (
    STRATEGIES,
    Codes,
    Evaluated,
    EvolutionSearch,
    History,
    RandomSearch,
    Strategy,
    best_first,
    run_strategy,
)
from hurricane.search.feasible import FeasibleSet

LAYERS = [[0.1, 0.2, 0.4, 0.8]] * 10


def fitness(codes: Codes) -> list[float]:
    """Slower operators are better, some layers matter more: the budget is in the way."""
    weights = np.linspace(1, 3, codes.shape[1])
    total = np.sqrt(np.array(LAYERS)[0][codes]) @ weights
    return total.round(9).tolist()  # the last bits depend on the size of the batch


@pytest.fixture
def feasible() -> FeasibleSet:
    return FeasibleSet(LAYERS, 0.0, 3.0)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return STRATEGIES[request.param](20)


def codes_of(history: Sequence[Evaluated]) -> list[tuple[int, ...]]:
    return [e.codes for e in history]


def test_nothing_infeasible_is_evaluated_and_nothing_twice(
    strategy: Strategy, feasible: FeasibleSet
) -> None:
    asked: list[tuple[int, ...]] = []

    def evaluate(codes: Codes) -> list[float]:
        assert feasible.contains(codes).all()
        asked.extend(map(tuple, codes.tolist()))
        return fitness(codes)

    history = run_strategy(strategy, feasible, evaluate, 205, seed=1)
    assert len(asked) == len(set(asked)) == 205
    assert codes_of(history) == asked
    assert [e.latency_ms for e in history] == pytest.approx(feasible.latency_ms(np.array(asked)))


@pytest.mark.parametrize("budget", [1.0, 1.1, 1.35, 1.5])
def test_small_feasible_sets_are_evaluated_completely(strategy: Strategy, budget: float) -> None:
    small = FeasibleSet(LAYERS, 0.0, budget)
    history = run_strategy(strategy, small, fitness, 2000, seed=1)
    assert len(set(codes_of(history))) == small.count
    assert small.count <= 2000


def test_all_but_one_of_a_feasible_set_can_be_evaluated(strategy: Strategy) -> None:
    small = FeasibleSet(LAYERS, 0.0, 1.4)
    history = run_strategy(strategy, small, fitness, small.count - 1, seed=1)
    assert len(set(codes_of(history))) == small.count - 1


def test_a_search_is_a_function_of_its_seed(strategy: Strategy, feasible: FeasibleSet) -> None:
    one, two, other = (
        codes_of(run_strategy(strategy, feasible, fitness, 60, seed=seed)) for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other


@pytest.mark.parametrize("killed_after", [0, 1, 19, 20, 33, 90])
def test_a_search_goes_on_from_its_record_to_the_same_end(
    strategy: Strategy, feasible: FeasibleSet, killed_after: int
) -> None:
    whole = run_strategy(strategy, feasible, fitness, 90, seed=2)
    evaluated: list[tuple[int, ...]] = []

    def evaluate(codes: Codes) -> list[float]:
        evaluated.extend(map(tuple, codes.tolist()))
        return fitness(codes)

    recorded: list[Evaluated] = []
    resumed = run_strategy(
        strategy,
        feasible,
        evaluate,
        90,
        seed=2,
        recorded=whole[:killed_after],
        record=recorded.extend,
    )
    assert resumed == whole
    assert recorded == whole[killed_after:]
    assert evaluated == codes_of(whole[killed_after:])


def test_a_record_of_another_search_is_refused(strategy: Strategy, feasible: FeasibleSet) -> None:
    other = run_strategy(strategy, feasible, fitness, 30, seed=3)
    with pytest.raises(BadRequest, match="from number 0"):
        run_strategy(strategy, feasible, fitness, 30, seed=4, recorded=other)


def test_an_evaluation_that_is_not_a_number_stops_the_search(
    strategy: Strategy, feasible: FeasibleSet
) -> None:
    with pytest.raises(HurricaneError, match="nan"):
        run_strategy(strategy, feasible, lambda codes: [float("nan")] * len(codes), 10, seed=0)


def test_an_impossible_budget_is_refused(strategy: Strategy) -> None:
    with pytest.raises(BadRequest, match="the fastest takes 1 ms"):
        run_strategy(strategy, FeasibleSet(LAYERS, 0.0, 0.9), fitness, 10, seed=0)


def test_given_architectures_are_evaluated_first(strategy: Strategy, feasible: FeasibleSet) -> None:
    start = np.array([[0] * 10, [3] * 10])  # the second is infeasible
    history = run_strategy(strategy, feasible, fitness, 40, seed=0, start=start)
    assert history[0].codes == (0,) * 10
    assert len(history) == len(set(codes_of(history))) == 40


def test_evolution_beats_random_search(feasible: FeasibleSet) -> None:
    def best(strategy: Strategy, seed: int) -> float:
        return best_first(run_strategy(strategy, feasible, fitness, 400, seed=seed))[0].fitness

    evolved = [best(EvolutionSearch(), seed) for seed in range(5)]
    drawn = [best(RandomSearch(), seed) for seed in range(5)]
    assert min(evolved) > np.mean(drawn)
    assert np.mean(evolved) > max(drawn)


def test_a_history_gives_the_best_as_best_first_does() -> None:
    rng = np.random.default_rng(4)
    items = [
        Evaluated((number,), float(rng.integers(4)), float(rng.integers(3)), 0)
        for number in range(60)
    ]
    history = History(items[:20])
    history.extend(items[20:])
    assert list(history) == items
    for count in (1, 7, 10, 59, 60, 90):
        assert history.best(count) == best_first(items)[:count]


def test_a_strategy_takes_any_sequence_as_its_history(
    strategy: Strategy, feasible: FeasibleSet
) -> None:
    items = run_strategy(strategy, feasible, fitness, 60, seed=3)
    plain, kept = (
        strategy.propose(feasible, history, np.random.default_rng(9), 30)
        for history in (items, History(items))
    )
    assert (plain == kept).all()


def test_as_many_fitnesses_as_architectures_are_wanted(
    strategy: Strategy, feasible: FeasibleSet
) -> None:
    with pytest.raises(HurricaneError, match="20 architectures gave 19"):
        run_strategy(strategy, feasible, lambda codes: fitness(codes)[1:], 60, seed=0)


def test_children_come_from_the_best(feasible: FeasibleSet) -> None:
    strategy = EvolutionSearch(population=10, top=1, crossover=0, mutation=10, probability=0.1)
    first = run_strategy(strategy, feasible, fitness, 10, seed=0)
    best = np.array(best_first(first)[0].codes)
    children = np.array(codes_of(run_strategy(strategy, feasible, fitness, 20, seed=0)[10:]))
    assert ((children != best).sum(axis=1) <= 5).all()


def test_children_of_two_parents_have_layers_of_both() -> None:
    free = FeasibleSet([[0.1, 0.1, 0.1]] * 20, 0.0, 3.0)
    strategy = EvolutionSearch(population=10, top=2, crossover=10, mutation=0)
    parents = [Evaluated((code,) * 20, 1.0, 2.0, 0) for code in (0, 1)]
    children = strategy.propose(free, parents, np.random.default_rng(0), 10)
    assert len(children) == 10
    assert ((children == 0).any(axis=1) & (children == 1).any(axis=1)).all()
    assert (children < 2).all()  # no parent's


def test_the_few_that_are_left_are_found(strategy: Strategy) -> None:
    free = FeasibleSet([[0.1, 0.1]] * 12, 0.0, 3.0)
    everything = free.enumerate(2**12)
    assert everything is not None
    known = [Evaluated(tuple(codes), 0.5, 1.2, 0) for codes in everything[:-1].tolist()]
    found = strategy.propose(free, known, np.random.default_rng(0), 10)
    assert found.tolist() == everything[-1:].tolist()


def test_the_last_generation_can_win(feasible: FeasibleSet) -> None:
    order: list[float] = []

    def rising(codes: Codes) -> list[float]:
        order.extend(range(len(order), len(order) + len(codes)))
        return order[-len(codes) :]

    history = run_strategy(EvolutionSearch.of_population(20), feasible, rising, 50, seed=0)
    assert best_first(history)[0] == history[-1]


def test_of_equally_fit_the_faster_wins_then_the_earlier() -> None:
    slow, fast, late = (
        Evaluated((1,), 0.9, 3.0, 0),
        Evaluated((2,), 0.9, 2.0, 0),
        Evaluated((3,), 0.9, 2.0, 1),
    )
    assert best_first([slow, fast, late]) == [fast, late, slow]


@pytest.mark.parametrize("settings", [{"population": 0}, {"probability": 0.0}, {"mutation": -1}])
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(BadRequest):
        EvolutionSearch(**settings)  # pyright: ignore[reportArgumentType]
