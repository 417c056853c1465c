"""What a generated space loses: its best network within a budget against the whole pool's best.

By capacity alone, without any training. Two measures: Σ log(F·P) over the layers, given as the
geometric mean of F·P a layer, and F × P, MACs of the whole network times its weights.

Best networks are found by a dynamic programme over a grid of latencies. Latencies are rounded up
for the space and down for the pool, so that a loss is never understated. F × P is no sum: of
networks with the most w·F + P for some w the best is taken in the space, while
(max w·F + P)² / 4w bounds the pool's from above for every w.

*front* is one space for all the budgets of a table, as a search for several budgets has it.

Run: python benchmarks/spaces.py [--tables A,B] [--shares 0.1,0.3,0.5,0.7,0.9] [--cells 20000]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hurricane.lookup_tables import LatencyModel, shipped_tables
from hurricane.ops.backbone import Backbone
from hurricane.ops.pool import parse_operator
from hurricane.search.candidates import DEFAULT_TOPS
from hurricane.search.pipeline import open_latency
from hurricane.search.space import build_space, reachable_ms

SPACES = (*DEFAULT_TOPS, "front")
"""A space for each budget by each method, and one for all budgets."""

MOST_LOST = 0.05
MOST_CANDIDATES = 5.0

WEIGHTS = np.geomspace(1 / 4, 4, 17)
"""w, in multiples of the most weights over the most MACs that a budget allows."""


@dataclass(frozen=True)
class Layers:
    """Candidates of all layers; each array is [layers][candidates]."""

    latency_ms: list[NDArray[np.float64]]
    macs: list[NDArray[np.float64]]
    params: list[NDArray[np.float64]]

    @classmethod
    def of(cls, model: LatencyModel, backbone: Backbone, names: Sequence[Sequence[str]]) -> Layers:
        columns = [[model.operators.index(name) for name in layer] for layer in names]
        pairs = list(zip(names, backbone.layers, strict=True))
        return cls(
            [model.latency_ms[i, chosen] for i, chosen in enumerate(columns)],
            [np.array([parse_operator(n).macs(s) for n in layer], float) for layer, s in pairs],
            [np.array([parse_operator(n).params(s) for n in layer], float) for layer, s in pairs],
        )


@dataclass(frozen=True)
class Best:
    """The best network of some layers: its value, and its MACs and weights."""

    value: float
    macs: float
    params: float


def best_network(
    layers: Layers, values: Sequence[NDArray[np.float64]], budget_ms: float, cells: int, up: bool
) -> Best:
    """The network of the highest sum of values within a budget for the layers alone.

    Args:
        layers: what to choose from.
        values: of every candidate.
        budget_ms: that the fastest network meets.
        cells: of the grid, between the fastest network and the budget.
        up: latencies are rounded up to whole cells, else down.
    """
    cell = (budget_ms - math.fsum(ms.min() for ms in layers.latency_ms)) / cells
    best = np.zeros((3, cells + 1))
    for ms, value, macs, params in zip(
        layers.latency_ms, values, layers.macs, layers.params, strict=True
    ):
        above = (ms - ms.min()) / cell
        steps = np.ceil(above - 1e-9) if up else np.floor(above + 1e-9)
        longer = np.full((3, cells + 1), -np.inf)
        for step, gain in zip(
            steps.astype(int), np.stack([value, macs, params], axis=1), strict=True
        ):
            if step <= cells:
                reached = best[:, : cells + 1 - step] + gain[:, None]
                better = reached[0] > longer[0, step:]
                longer[:, step:][:, better] = reached[:, better]
        best = longer
    return Best(*best[:, -1].tolist())


def capacity(layers: Layers) -> list[NDArray[np.float64]]:
    """log(F·P) of every candidate."""
    return [np.log(f) + np.log(p) for f, p in zip(layers.macs, layers.params, strict=True)]


def weighted(layers: Layers, w: float) -> list[NDArray[np.float64]]:
    return [w * f + p for f, p in zip(layers.macs, layers.params, strict=True)]


def losses(
    pool: Layers, space: Layers, fixed: tuple[int, int], budget_ms: float, cells: int
) -> dict[str, float]:
    """What the space loses at most, as fractions.

    Args:
        fixed: MACs and weights of stem and head.
        budget_ms: for the layers alone.
    """
    best = best_network(pool, capacity(pool), budget_ms, cells, up=False).value
    found = best_network(space, capacity(space), budget_ms, cells, up=True).value
    most_macs = fixed[0] + best_network(pool, pool.macs, budget_ms, cells, up=False).macs
    most_params = fixed[1] + best_network(pool, pool.params, budget_ms, cells, up=False).params
    product, bound = 0.0, math.inf
    for w in WEIGHTS * most_params / most_macs:
        highest = best_network(pool, weighted(pool, w), budget_ms, cells, up=False).value
        bound = min(bound, (highest + w * fixed[0] + fixed[1]) ** 2 / (4 * w))
        ours = best_network(space, weighted(space, w), budget_ms, cells, up=True)
        product = max(product, (ours.macs + fixed[0]) * (ours.params + fixed[1]))
    return {
        "geometric_mean_of_layers_lost": 1 - math.exp((found - best) / len(pool.macs)),
        "macs_times_weights_lost": 1 - product / bound,
    }


def compare(name: str, shares: Sequence[float], cells: int) -> list[dict[str, Any]]:
    """All methods on one table at all budgets."""
    latency = open_latency(name, accept_table=True)
    model, backbone = latency.model, latency.backbone
    low, high = reachable_ms(model)
    everything = [model.candidates(i) for i in range(len(backbone.layers))]
    pool = Layers.of(model, backbone, everything)
    convolutions = backbone.fixed_convolutions()
    fixed = sum(c.macs for c in convolutions), sum(c.params for c in convolutions)
    rows = []
    front = build_space(model, backbone, [low + share * (high - low) for share in shares])
    for share in shares:
        budget = low + share * (high - low)
        row: dict[str, Any] = {"table": name, "share_of_range": share, "budget_ms": budget}
        spaces = {m: build_space(model, backbone, budget, m) for m in DEFAULT_TOPS}
        for method, made in {**spaces, "front": front.within(budget)}.items():
            space = Layers.of(model, backbone, made.candidates)
            row[method] = {
                **losses(pool, space, fixed, budget - model.fixed_ms, cells),
                "candidates_a_layer": sum(map(len, made.candidates)) / made.layers,
                "feasible_share": made.feasible_set.count / made.feasible_set.total,
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = [name for name in shipped_tables() if name.startswith("imagenet224-")]
    parser.add_argument("--tables", default=",".join(shipped))
    parser.add_argument("--shares", default="0.1,0.3,0.5,0.7,0.9", help="budgets, of the range")
    parser.add_argument("--cells", type=int, default=20_000)
    arguments = parser.parse_args()
    shares = [float(share) for share in arguments.shares.split(",")]
    start = time.monotonic()
    rows = []
    for name in arguments.tables.split(","):
        for row in compare(name, shares, arguments.cells):
            rows.append(row)
            print(
                f"{name} {row['share_of_range']:.0%}: at most lost, geometric mean a layer / F×P: "
                + "; ".join(
                    f"{method} {row[method]['geometric_mean_of_layers_lost']:.1%} / "
                    f"{row[method]['macs_times_weights_lost']:.1%} with "
                    f"{row[method]['candidates_a_layer']:.1f} a layer"
                    for method in SPACES
                ),
                flush=True,
            )
    measures = ("geometric_mean_of_layers_lost", "macs_times_weights_lost")
    summary = {
        method: {
            **{f"highest_{m}": max(row[method][m] for row in rows) for m in measures},
            **{f"mean_{m}": sum(row[method][m] for row in rows) / len(rows) for m in measures},
            "most_candidates_a_layer": max(row[method]["candidates_a_layer"] for row in rows),
        }
        for method in SPACES
    }
    ours = summary["pareto"]
    result = {
        "benchmark": "spaces",
        "cells": arguments.cells,
        "summary": summary,
        "rows": rows,
        "pareto_holds": all(ours[f"highest_{m}"] <= MOST_LOST for m in measures)
        and ours["most_candidates_a_layer"] <= MOST_CANDIDATES,
        "seconds": time.monotonic() - start,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
