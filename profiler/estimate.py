"""From timed calls to the numbers of a row: its marginal latency, the interval, a device's level.

Noise on a shared machine adds far more than it takes, and comes in bursts. The time of a graph is
therefore the mean of the fastest quarter of its calls: it stands up to bursts over up to three
quarters of them, and has less spread than a single low quantile. Rows and whole networks are
treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .plan import Graph, PlannedRow

FASTEST = 1 / 4
"""Share of the calls whose mean is taken as *the* time of a graph."""

FEWER = 0.5
"""By how many calls fewer: the fastest quarter of few calls is slower than that of many."""

ODD = 2.0
"""Deviations, in multiples of their spread, from which on a time counts for little."""

SPREAD = 1e-5
"""The least spread of times that is assumed, as a share: where there is no noise, what links laps
of different graphs would count for nothing."""

TURNS = 10
"""Times that graphs are weighted anew to find levels, for each of two losses; more change none."""

BOOTSTRAPS = 200
CONFIDENCE = 0.95


def location_ms(samples_ms: np.ndarray, axis: int | None = None) -> Any:
    """The time of a graph: the mean of the fastest quarter of its calls, in ms.

    That is half a call fewer than a quarter, one at least; where it is no whole number, a part of
    the last one counts. So the time does not depend on how many calls there are.

    Args:
        samples_ms: of any shape.
        axis: the axis of the calls; None: all of them.
    """
    samples = np.asarray(samples_ms, float)
    if axis is None:
        samples, axis = samples.reshape(-1), 0
    count = samples.shape[axis]
    share = max(1.0, count * FASTEST - FEWER)
    weights = np.clip(share - np.arange(count), 0, 1) / share
    return np.moveaxis(np.sort(samples, axis=axis), axis, -1) @ weights


@dataclass(frozen=True)
class Estimate:
    """What was found of one row.

    Attributes:
        latency_ms: marginal latency.
        ci_low_ms, ci_high_ms: its 95% interval.
        samples: calls that it rests on.
        flags: what its reader must know.
    """

    latency_ms: float
    ci_low_ms: float
    ci_high_ms: float
    samples: int
    flags: tuple[str, ...] = ()

    def width(self, share: float, floor_ms: float) -> float:
        """Half-width of the interval, as a multiple of `share` of the latency, or of a floor."""
        half_ms = (self.ci_high_ms - self.ci_low_ms) / 2
        narrow_ms = max(share * self.latency_ms, floor_ms)
        return half_ms / narrow_ms if narrow_ms > 0 else float("inf")


def estimate_row(row: PlannedRow, samples_ms: Mapping[Graph, Sequence[np.ndarray]]) -> Estimate:
    """The row's marginal latency from calls of its graphs, all taken in the same rounds.

    Args:
        row: what was planned.
        samples_ms: times of calls by graph, for each of its copies [visits, calls] in ms; the
            longer and shorter graphs of the row are there. A graph's time is the mean over its
            copies, each as often as it was called: the fastest calls of all would be those of
            the copy that lies best.

    Returns:
        The estimate, its interval by bootstrap over visits: calls of one visit may have their
        time in common (a clock, a way that memory lies), and say less than as many visits.
        `flags` holds ``below-noise`` where the difference is not positive, and the latency is then
        the upper end of its interval.
    """
    random = np.random.default_rng(0)
    latency, draws, count = 0.0, np.zeros(BOOTSTRAPS), 0
    for context in row.contexts:
        for graph, sign in ((context.longer, 1), (context.shorter, -1)):
            copies = [np.asarray(copy, float) for copy in samples_ms[graph]]
            calls = sum(copy.size for copy in copies)
            for samples in copies:
                weight = sign / len(row.contexts) * samples.size / calls
                picked = random.integers(0, len(samples), (BOOTSTRAPS, len(samples)))
                latency += weight * float(location_ms(samples))
                draws += weight * location_ms(samples[picked].reshape(BOOTSTRAPS, -1), axis=1)
                count += samples.size
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(x) for x in np.percentile(draws, (tail, 100 - tail)))
    low, high = min(low, latency), max(high, latency)
    flags: tuple[str, ...] = ()
    if latency <= 0 < high:
        latency, flags = high, ("below-noise",)
    return Estimate(latency, max(low, 0.0), high, count, flags)


def relative_levels(times_ms: np.ndarray) -> np.ndarray:
    """How slow a device was in each lap, against the fastest quarter of them, [laps].

    A graph's time in a lap is taken as what the graph usually takes times the lap's level. Both
    are fitted at once, by least squares on logarithms, so that it does not matter that laps are
    of different graphs; times that fit badly count for little (iteratively reweighted, Cauchy).
    That tells a slow device from a slow graph.

    Args:
        times_ms: what graphs took, [laps, graphs] ms; NaN, or 0, where a graph was not timed.

    Returns:
        All 1 where there is a lap that has no graph in common with another.
    """
    # What was timed in one lap only fits whatever that lap's level is.
    positive = np.where(times_ms > 0, times_ms, np.nan)
    times = np.log(positive[:, np.isfinite(positive).sum(axis=0) > 1])
    there = np.isfinite(times)
    if not there.any(axis=1).all():
        return np.ones(len(times_ms))
    times = np.where(there, times, 0.0)
    levels, off = np.zeros(len(times)), np.ones_like(times)  # at first all times count alike
    for turn in range(2 * TURNS):
        spread = max(1.4826 * float(np.median(np.abs(off[there]))), SPREAD)
        if turn < TURNS:  # absolute deviations have one minimum, though graphs may have two modes
            weights = there / np.maximum(np.abs(off), SPREAD)
        else:
            weights = there / (1 + (off / (ODD * spread)) ** 2)
        total = weights.sum(axis=0)
        mean = (weights * times).sum(axis=0) / total
        # What is left once the graphs' own times are eliminated; levels have no zero.
        normal = np.diag(weights.sum(axis=1)) - (weights / total) @ weights.T
        right = (weights * (times - mean)).sum(axis=1)
        levels = np.linalg.lstsq(normal, right, rcond=None)[0]
        usual = (weights * (times - levels[:, None])).sum(axis=0) / total
        off = times - levels[:, None] - usual
    found = np.exp(levels)
    return found / location_ms(found)
