"""How slow a device was in each batch, found from all graphs at once.

The clock of a processor wanders, and slows every graph alike. A graph's time in a batch is modelled
as its usual time times the slowdown of the batch; both are fitted to logarithms by iteratively
reweighted least squares (Holland and Welsch, 1977), so that it does not matter that batches hold
different graphs, and that some graphs have two modes.
"""

from __future__ import annotations

import numpy as np

from .location import quiet_ms

CAUCHY_SCALE = 2.0
"""Deviations, in multiples of their spread, from which on a time counts for little."""

MIN_SPREAD = 1e-5
"""The least spread of times that is assumed, as a share: where there is no noise, what links
batches of different graphs would count for nothing."""

IRLS_ITERATIONS = 10
"""Of each of the two losses; more change none."""

ANCHOR_BATCHES = 4
"""First batches that slowdowns are given against; fewer where a row is known earlier, so that what
it is raw changes no more."""


def fit_slowdown(times_ms: np.ndarray, anchor_batches: int = ANCHOR_BATCHES) -> np.ndarray:
    """How slow the device was in each batch; the first batches' geometric mean is 1.

    Args:
        times_ms: what graphs took, [batches, graphs] ms; NaN, or 0, where one was not timed.
        anchor_batches: how many the first batches are.

    Returns:
        [batches]; 1 where a batch has no graph in common with another.
    """
    positive = np.where(times_ms > 0, times_ms, np.nan)
    # What was timed in one batch only fits whatever that batch's slowdown is.
    times = np.log(positive[:, np.isfinite(positive).sum(axis=0) > 1])
    linked = np.isfinite(times).any(axis=1)
    found = np.ones(len(times_ms))
    if not linked.any():
        return found
    times = times[linked]
    there = np.isfinite(times)
    times = np.where(there, times, 0.0)
    slowdown, residual = np.zeros(len(times)), np.ones_like(times)  # at first all times count alike
    for iteration in range(2 * IRLS_ITERATIONS):
        spread = max(1.4826 * float(np.median(np.abs(residual[there]))), MIN_SPREAD)
        if iteration < IRLS_ITERATIONS:  # absolute deviations: one minimum, whatever the modes
            weights = there / np.maximum(np.abs(residual), MIN_SPREAD)
        else:
            weights = there / (1 + (residual / (CAUCHY_SCALE * spread)) ** 2)
        total = weights.sum(axis=0)
        mean = (weights * times).sum(axis=0) / total
        # What is left once the graphs' own times are eliminated; slowdowns have no zero.
        normal = np.diag(weights.sum(axis=1)) - (weights / total) @ weights.T
        right = (weights * (times - mean)).sum(axis=1)
        slowdown = np.linalg.lstsq(normal, right, rcond=None)[0]
        usual = (weights * (times - slowdown[:, None])).sum(axis=0) / total
        residual = times - slowdown[:, None] - usual
    found[linked] = np.exp(slowdown - slowdown[:anchor_batches].mean())
    return found


MIN_TREND = 0.9
"""Rank correlation of speed and time from which on a drift is steady."""


def steady_change(slowdown: np.ndarray, ended_ms: np.ndarray) -> float:
    """By how much a device got steadily slower, as a share, from its first request to its last.

    What it takes before the first batch, loading for the most part, is part of that: the slope
    over the batches is taken to have been the same. A clock that wanders is no steady change.

    Args:
        slowdown: [batches].
        ended_ms: when each ended, [batches] ms since the first request.

    Returns:
        Negative where it got faster; 0 where there is no steady change, or there are fewer than
        five batches.
    """
    if len(slowdown) < 5 or not ended_ms[-1] > ended_ms[0]:
        return 0.0
    ranks, others = (_standardised_ranks(series) for series in (slowdown, ended_ms))
    if abs(float(np.mean(ranks * others))) < MIN_TREND:
        return 0.0
    slope = np.polyfit(ended_ms, np.log(slowdown), 1)[0]
    return float(np.expm1(slope * ended_ms[-1]))


def _standardised_ranks(series: np.ndarray) -> np.ndarray:
    ranks = np.argsort(np.argsort(series))
    return (ranks - ranks.mean()) / ranks.std()


def quiet_slowdown(slowdown: np.ndarray, quiet: np.ndarray) -> float:
    """The slowdown at which the device was quiet: that of its fastest quarter of batches.

    Args:
        slowdown: [batches].
        quiet: whether a batch was neither contended nor came after a throttling [batches]; where
            none is, all count.
    """
    return float(quiet_ms(slowdown[quiet] if quiet.any() else slowdown))


def relative_speed(times_ms: dict[str, float], reference_ms: dict[str, float]) -> float:
    """How long a device takes for what a reference took 1 for: the median over common graphs.

    Returns:
        NaN where they have no graph in common.
    """
    common = [ms / reference_ms[key] for key, ms in times_ms.items() if key in reference_ms]
    return float(np.median(common)) if common else float("nan")
