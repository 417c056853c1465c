"""From timed calls to the numbers of a row: marginal latency, its interval, the price of a call.

Noise on a shared machine only ever adds, and comes in bursts; the lower quartile over rounds
spread through the batch is the location used for rows and for whole networks alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .plan import Graph, PlannedRow

QUARTILE = 25.0
"""Percentile taken as *the* time of a graph over its rounds."""

BOOTSTRAPS = 200
CONFIDENCE = 0.95


def location_ms(samples_ms: np.ndarray) -> float:
    """The time of a graph: the lower quartile over its calls, in ms."""
    return float(np.percentile(samples_ms, QUARTILE))


@dataclass(frozen=True)
class Estimate:
    """What was found of one row; names and units are the table's columns."""

    latency_ms: float
    ci_low_ms: float
    ci_high_ms: float
    call_ms: float
    cold_ms: float
    p10_ms: float
    p90_ms: float
    samples: int
    rounds: int
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class EdgePrices:
    """The price of a call by tensor, from the fixed neighbour: 2·T(one) - T(two).

    Attributes:
        by_tensor: price in ms by (height, width, channels).
    """

    by_tensor: Mapping[tuple[int, int, int], float]

    def step_ms(self, row: PlannedRow) -> float:
        """What a difference of graphs with unlike last tensors holds beside the operator.

        A context ends in the operator's output, its shorter twin in the operator's input; half
        of a call's price is taken for each edge. Summed over a network these steps cancel, but
        for the first and the last, which the price of the network's own call takes up.
        """
        s = row.shape
        before = self.by_tensor.get((s.height, s.width, s.in_channels))
        after = self.by_tensor.get((s.out_height, s.out_width, s.out_channels))
        return 0.0 if before is None or after is None else (after - before) / 2


def edge_prices(
    cold_ms: Mapping[Graph, np.ndarray], anchors: Mapping[tuple[int, int, int], PlannedRow]
) -> EdgePrices:
    """Prices of a call at each tensor whose anchor was measured."""
    return EdgePrices(
        {
            tensor: 2 * location_ms(cold_ms[row.shorter]) - location_ms(cold_ms[row.longer])
            for tensor, row in anchors.items()
            if row.shorter in cold_ms and row.longer in cold_ms
        }
    )


def estimate_row(
    row: PlannedRow, cold_ms: Mapping[Graph, np.ndarray], prices: EdgePrices
) -> Estimate:
    """The row's figures from the cold calls of its graphs, all taken in the same rounds.

    Args:
        row: what was planned.
        cold_ms: [rounds] wall times by graph, in ms; the row's three graphs are there.
        prices: the price of a call by tensor.

    Returns:
        The estimate; `flags` holds ``below-noise`` where the difference is not positive, and
        the latency is then the upper end of its interval.
    """
    longer, shorter = np.asarray(cold_ms[row.longer]), np.asarray(cold_ms[row.shorter])
    alone = np.asarray(cold_ms[row.alone])
    shift = prices.step_ms(row) if row.ends_elsewhere else 0.0
    latency = location_ms(longer) - location_ms(shorter) - shift

    random = np.random.default_rng(0)
    picked = random.integers(0, len(longer), (BOOTSTRAPS, len(longer)))
    draws = (
        np.percentile(longer[picked], QUARTILE, axis=1)
        - np.percentile(shorter[picked], QUARTILE, axis=1)
        - shift
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, (tail, 100 - tail))
    low, high = min(low, latency), max(high, latency)
    flags: tuple[str, ...] = ()
    if latency <= 0 < high:
        latency, flags = float(high), ("below-noise",)
    cold = location_ms(alone)
    p10, p90 = np.percentile(alone, (10, 90))
    return Estimate(
        latency_ms=latency,
        ci_low_ms=max(float(low), 0.0),
        ci_high_ms=float(high),
        call_ms=max(cold - latency, 0.0),
        cold_ms=cold,
        p10_ms=float(p10),
        p90_ms=float(p90),
        samples=int(longer.size + shorter.size),
        rounds=len(longer),
        flags=flags,
    )
