"""From timed calls to the numbers of a row: marginal latency, its interval, the price of a call.

Noise on a shared machine only ever adds, and comes in bursts; the lower quartile over rounds
spread through the batch is the location used for rows and for whole networks alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ops.backbone import is_stem
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


def estimate_row(row: PlannedRow, cold_ms: Mapping[Graph, np.ndarray]) -> Estimate:
    """The row's figures from the cold calls of its graphs, all taken in the same rounds.

    Args:
        row: what was planned.
        cold_ms: [rounds] wall times by graph, in ms; the row's graphs are there.

    Returns:
        The estimate; `flags` holds ``below-noise`` where the difference is not positive, and
        the latency is then the upper end of its interval. `call_ms` is what the operator's
        own graph costs beyond its latency; for the stem, the price of a network's call.
    """
    longer, shorter = np.asarray(cold_ms[row.longer]), np.asarray(cold_ms[row.shorter])
    alone = np.asarray(cold_ms[row.alone])
    latency = location_ms(longer) - location_ms(shorter)

    random = np.random.default_rng(0)
    picked = random.integers(0, len(longer), (BOOTSTRAPS, len(longer)))
    draws = np.percentile(longer[picked], QUARTILE, axis=1) - np.percentile(
        shorter[picked], QUARTILE, axis=1
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
        call_ms=location_ms(shorter) if is_stem(row.name) else max(cold - latency, 0.0),
        cold_ms=cold,
        p10_ms=float(p10),
        p90_ms=float(p90),
        samples=int(longer.size + shorter.size),
        rounds=len(longer),
        flags=flags,
    )
