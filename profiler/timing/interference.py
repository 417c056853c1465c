"""Which batches are accepted: those without interference, on a device that was not slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BatchFacts:
    """What is known of a batch besides its times.

    Attributes:
        rounds: made.
        rows: that were active.
        contended: other processes, or a hypervisor, took the processor meanwhile.
        throttle_events: of the device, counted up to its end.
        ended_ms: on the device's clock, since its first request; loading is part of that.
        throttled: the device says that it was, at its beginning, at its end or in between.
    """

    rounds: int
    rows: int
    contended: bool = False
    throttle_events: int = 0
    ended_ms: float = 0.0
    throttled: bool = False


@dataclass(frozen=True)
class BatchQuality:
    """Quality of all batches so far.

    Attributes:
        slowdown: how slow the device was [batches].
        accepted: neither contended nor much slower than most [batches].
        throttled: after a throttling that shows, or may for all that is known; or during one by the
            device's own account, which does not say for how much of the batch, so that it need not
            show [batches].
        quiet: neither contended nor after a throttling that shows [batches].
        limit: the highest slowdown of an accepted batch; infinite where all are contended.
    """

    slowdown: np.ndarray
    accepted: np.ndarray
    throttled: np.ndarray
    quiet: np.ndarray
    limit: float


def judge_batches(
    slowdown: np.ndarray, facts: Sequence[BatchFacts], events_at_rest: int, max_slowdown: float
) -> BatchQuality:
    """Sorts batches.

    Args:
        slowdown: [batches].
        facts: of each batch.
        events_at_rest: throttling events counted before anything was timed.
        max_slowdown: by how much, as a share, an accepted batch may be slower than half of what
            was timed: less than that, and what most batches have, is the device's clock, and
            divided out.
    """
    contended = np.array([batch.contended for batch in facts], bool)
    cool = np.array([batch.throttle_events <= events_at_rest for batch in facts], bool)
    rows = np.array([batch.rows for batch in facts], float)
    limit = slowest_accepted(slowdown[~contended], rows[~contended], max_slowdown)
    before = slowdown[cool]
    shows = slowdown > np.median(before) * (1 + max_slowdown) if before.size else True
    slowed = ~cool & shows
    throttled = slowed | np.array([batch.throttled for batch in facts], bool)
    accepted = ~contended & (slowdown <= limit)
    return BatchQuality(slowdown, accepted, throttled, ~contended & ~slowed, limit)


def slowest_accepted(slowdown: np.ndarray, weights: np.ndarray, max_slowdown: float) -> float:
    """The highest slowdown that is no interference; infinite where there is nothing.

    Args:
        slowdown: each time.
        weights: how much was timed then.
        max_slowdown: above that of half of what was timed, as a share.
    """
    if not len(slowdown):
        return float("inf")
    order = np.argsort(slowdown)
    share = np.cumsum(np.asarray(weights, float)[order])
    half = slowdown[order][int(np.searchsorted(share, share[-1] / 2))]
    return float(half * (1 + max_slowdown))
