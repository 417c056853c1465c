"""What evolution costs beside the evaluations: proposals of `EvolutionSearch` against a plain loop.

The plain loop is that of Once-for-all's evolutionary search, written from its description (Cai et
al., ICLR 2020): a population of 100, the best quarter are parents, half of the children are
mutated (0.1 a layer), half crossed, a child that the latency predictor refuses is drawn again,
and the predictor is a sum over lists. It asks for a network as often as it meets it; ours
evaluates each once.

Both search the same space for the same budget with an analytic fitness, in turns in one process.
The space is by the paper's method, in which a good share of all networks is within the budget:
where next to none is, the plain loop's first draws take for ever.

Run: python benchmarks/evolution_speed.py [--table TABLE] [--shares 0.02,0.3,0.5] [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from hurricane.ops.backbone import load_backbone
from hurricane.search.evolution import Codes, EvolutionSearch, run_strategy
from hurricane.search.feasible import FeasibleSet
from hurricane.search.pipeline import open_latency
from hurricane.search.space import SearchSpace, build_space, reachable_ms

POPULATION = 100
PARENTS = 25
MUTATION = 0.1

Fitness = Callable[[Sequence[Sequence[int]]], list[float]]


def plain_loop(
    latency_ms: Sequence[Sequence[float]],
    fixed_ms: float,
    budget_ms: float,
    fitness: Fitness,
    calls: int,
    seed: int,
) -> tuple[int, float]:
    """Once-for-all's loop.

    Returns:
        How many of the calls were for different networks, and the best fitness.
    """
    rng = random.Random(seed)
    layers = range(len(latency_ms))

    def predicted_ms(network: Sequence[int]) -> float:
        return fixed_ms + sum(latency_ms[i][network[i]] for i in layers)

    def accepted(make: Callable[[], list[int]]) -> list[int]:
        while True:
            network = make()
            if predicted_ms(network) <= budget_ms:
                return network

    def drawn() -> list[int]:
        return [rng.randrange(len(latency_ms[i])) for i in layers]

    def mutated() -> list[int]:
        child = list(rng.choice(parents)[1])
        for i in layers:
            if rng.random() < MUTATION:
                child[i] = rng.randrange(len(latency_ms[i]))
        return child

    def crossed() -> list[int]:
        one, two = rng.choice(parents)[1], rng.choice(parents)[1]
        return [rng.choice(pair) for pair in zip(one, two, strict=True)]

    children = [accepted(drawn) for _ in range(POPULATION)]
    population: list[tuple[float, list[int]]] = []
    seen = set()
    asked = 0
    while True:
        children = children[: calls - asked]
        population += zip(fitness(children), children, strict=True)
        asked += len(children)
        seen.update(map(tuple, children))
        if asked == calls:
            return len(seen), max(population)[0]
        population = parents = sorted(population, reverse=True)[:PARENTS]
        half = POPULATION // 2
        children = [accepted(mutated) for _ in range(half)]
        children += [accepted(crossed) for _ in range(POPULATION - half)]


def analytic_fitness(space: SearchSpace, seed: int) -> Callable[[Codes], list[float]]:
    """An additive fitness with random weights, the same for both, cheap on arrays and lists."""
    rng = np.random.default_rng(seed)
    width = max(map(len, space.candidates))
    weights = rng.random((space.layers, width))
    layers = np.arange(space.layers)
    return lambda codes: weights[layers, np.asarray(codes)].sum(axis=1).tolist()


def compare(space: SearchSpace, evaluations: int, repeats: int) -> dict[str, float | int]:
    """Both on one space, in turns; CPU seconds, medians of the repeats."""
    feasible = FeasibleSet(space.latency_ms, space.fixed_ms, space.budget_ms)
    ours_s, plain_s = [], []
    distinct = loop_distinct = 0
    for seed in range(repeats):
        fitness = analytic_fitness(space, seed)
        start = time.process_time()
        history = run_strategy(EvolutionSearch(), feasible, fitness, evaluations, seed)
        middle = time.process_time()
        loop_distinct, _ = plain_loop(
            space.latency_ms, space.fixed_ms, space.budget_ms, fitness, evaluations, seed
        )
        end = time.process_time()
        distinct = len({e.codes for e in history})
        ours_s.append(middle - start)
        plain_s.append(end - middle)
    ratios = [b / a for a, b in zip(ours_s, plain_s, strict=True)]
    return {
        "feasible": space.feasible_set.count,
        "ours_s": statistics.median(ours_s),
        "ours_distinct": distinct,
        "plain_loop_s": statistics.median(plain_s),
        "plain_loop_distinct": loop_distinct,
        "plain_loop_time_over_ours": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", default="imagenet224-cpu-onnxruntime-fp32")
    parser.add_argument("--backbone", default="imagenet224")
    parser.add_argument("--shares", default="0.02,0.3,0.5", help="budgets, of the range")
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    latency = open_latency(arguments.table, arguments.backbone, accept_table=True)
    low, high = reachable_ms(latency.model)
    budgets = {}
    for share in map(float, arguments.shares.split(",")):
        budget = low + share * (high - low)
        space = build_space(latency.model, load_backbone(arguments.backbone), budget, "hurricane")
        budgets[f"{share:g}"] = compare(space, arguments.evaluations, arguments.repeats)
        found = budgets[f"{share:g}"]
        print(
            f"{share:.0%} of the range: {found['ours_s'] * 1e3:.1f} ms for "
            f"{found['ours_distinct']:,} different networks, plain loop "
            f"{found['plain_loop_s'] * 1e3:.1f} ms for {found['plain_loop_distinct']:,}; "
            f"{found['plain_loop_time_over_ours']:.2f} times ours"
        )
    ratios = [b["plain_loop_time_over_ours"] for b in budgets.values()]
    print(
        json.dumps(
            {
                "benchmark": "evolution_speed",
                "table": arguments.table,
                "evaluations": arguments.evaluations,
                "budgets_by_share_of_range": budgets,
                "least_plain_loop_time_over_ours": min(ratios),
                "numpy": np.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
