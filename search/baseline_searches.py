"""Baselines that choose among the operators of a search: by chance, by MACs, and one for all.

Random and MACs-constrained search have the supernet, the candidates and the number of evaluations
of the stage that found the winner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ops.backbone import Backbone
from ..ops.pool import parse_operator
from .confirm import Candidate, ranked
from .evolution import Codes, Evaluated, EvolutionSearch, RandomSearch, Strategy, best_first
from .feasible import FeasibleSet
from .scoring import log_capacity
from .two_stage import StageResult

MILLION = 1e6
NEAREST = 200
"""Of those, the ones whose latency is nearest to the budget."""


@dataclass(frozen=True)
class Contest:
    """What search baselines have to do with.

    Attributes:
        backbone: of all networks.
        budget_ms: that networks are to meet.
        stage: that found the winner; baselines have its candidates.
        feasible: its architectures within the budget.
        uniform: operators that can stand at every layer, with the predicted latency of the network
            that has one of them everywhere.
        population: of evolutions.
        seed: of draws.
        search: runs a strategy under a name over a set, with as many evaluations as the stage had,
            and gives all that it evaluated, with predicted latencies whatever the set is of.
        score: accuracies of codes [N × layers] into the stage's candidates, with its supernet.
    """

    backbone: Backbone
    budget_ms: float
    stage: StageResult
    feasible: FeasibleSet
    uniform: tuple[tuple[str, float], ...]
    population: int
    seed: int
    search: Callable[[str, Strategy, FeasibleSet], Sequence[Evaluated]]
    score: Callable[[Codes], Sequence[float]]


@dataclass(frozen=True)
class Ranking:
    """Networks of a baseline.

    Attributes:
        detail: how they were come by, in words.
        candidates: best first; their predicted latency is what the baseline goes by.
        evaluated: with the stage's supernet, in order; networks that are not there have no
            accuracy.
        by_accuracy: whether it was these accuracies that ranked them.
    """

    detail: str
    candidates: tuple[Candidate, ...]
    evaluated: tuple[Evaluated, ...] = ()
    by_accuracy: bool = True


def random_search(contest: Contest) -> Ranking:
    """Networks drawn uniformly from those within the budget."""
    found = contest.search("random", RandomSearch(contest.population), contest.feasible)
    best = tuple(ranked(contest.stage, found))
    return Ranking(f"best of {len(found):,} drawn within the budget", best, tuple(found))


def macs_search(contest: Contest) -> Ranking:
    """The same evolution under a budget of MACs, for one who knows no latencies of operators.

    The budget is what networks have that take the latency budget (`macs_budget`). Latency is taken
    to be in proportion to MACs, so one that misses the latency when it is timed gives way to one
    with fewer MACs.
    """
    shapes = contest.backbone.layers
    layers = [
        np.array([parse_operator(name).macs(shape) / MILLION for name in names])
        for names, shape in zip(contest.stage.candidates, shapes, strict=True)
    ]
    fixed = sum(cost.macs for cost in contest.backbone.fixed_convolutions()) / MILLION
    limit = macs_budget(layers, fixed, contest.feasible, contest.seed)
    within = FeasibleSet(layers, fixed, limit)
    strategy = EvolutionSearch.of_population(contest.population)
    found = contest.search("macs", strategy, within)
    best = best_first(found)
    costs = within.latency_ms(np.array([e.codes for e in best], dtype=np.int64)).tolist()
    candidates = tuple(
        Candidate(contest.stage.names(e.codes), e.fitness, contest.budget_ms * cost / limit)
        for e, cost in zip(best, costs, strict=True)
    )
    detail = f"best of {len(found):,} by evolution within {limit:.3g} M MACs"
    return Ranking(detail, candidates, tuple(found))


def macs_budget(
    macs: Sequence[NDArray[np.float64]], fixed: float, latencies: FeasibleSet, seed: int
) -> float:
    """The MACs of networks that take about the latency budget.

    Networks are drawn with a leaning towards many or few MACs that differs from draw to draw; of
    those whose latency is nearest to the budget the median counts.

    Args:
        macs: for each layer, those of its candidates.
        fixed: of stem and head, in the same unit.
        latencies: of the same candidates, with the budget.
        seed: of the draws.

    Returns:
        In the unit of `macs`; at least what the smallest network has.
    """
    from ..profiler.draws import leaning_draws

    codes = leaning_draws(macs, np.random.default_rng(seed))
    totals = fixed + np.sum([costs[codes[:, i]] for i, costs in enumerate(macs)], axis=0)
    away = np.abs(latencies.latency_ms(codes) - latencies.budget_ms)
    near = np.argsort(away, kind="stable")[:NEAREST]
    least = fixed + math.fsum(float(costs.min()) for costs in macs)
    return max(float(np.median(totals[near])), least)


def uniform_network(contest: Contest) -> Ranking:
    """One operator in all layers, the one of the most capacity that fits.

    Capacity is Σ log(F·P), as where candidates are chosen (`candidates`). There is an accuracy only
    where the operator is a candidate of every layer.
    """
    shapes = contest.backbone.layers

    def capacity(name: str) -> float:
        operator = parse_operator(name)
        return math.fsum(log_capacity(operator, shape) for shape in shapes)

    largest = sorted(
        (Candidate((name,) * len(shapes), capacity(name), ms) for name, ms in contest.uniform),
        key=lambda candidate: (-candidate.fitness, candidate.predicted_ms),
    )
    evaluated = []
    for name, ms in contest.uniform:
        if ms <= contest.budget_ms and all(name in names for names in contest.stage.candidates):
            codes = [names.index(name) for names in contest.stage.candidates]
            (fitness,) = contest.score(np.array([codes], dtype=np.int64))
            evaluated.append(Evaluated(tuple(codes), fitness, ms, 0))
    detail = f"the largest of {len(largest)} that fits"
    return Ranking(detail, tuple(largest), tuple(evaluated), by_accuracy=False)


SEARCHES: dict[str, Callable[[Contest], Ranking]] = {
    "random": random_search,
    "macs": macs_search,
    "uniform": uniform_network,
}
"""From a baseline's name to what finds its networks."""
