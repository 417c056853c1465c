"""The quiet time of a graph, the mean of the fastest quarter of its calls, and its error.

Noise on a shared machine mostly adds time and comes in bursts, so that the fast calls are those
that repeat from one run to the next. What a user sees on top of that is `spread`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FAST_FRACTION = 1 / 4
"""Share of the calls whose mean is the quiet time."""

_SMALL_SAMPLE = 0.5
"""By how many calls fewer: the fastest quarter of few calls is slower than that of many."""


def quiet_ms(samples_ms: np.ndarray, axis: int | None = None) -> Any:
    """The mean of the fastest quarter of the calls, in ms.

    That is half a call fewer than a quarter, one at least; where it is no whole number, a part of
    the last one counts. So it does not depend on how many calls there are.

    Args:
        samples_ms: of any shape.
        axis: the axis of the calls; None: all of them.
    """
    samples = np.asarray(samples_ms, float)
    if axis is None:
        samples, axis = samples.reshape(-1), 0
    count = samples.shape[axis]
    share = _share(count)
    weights = np.clip(share - np.arange(count), 0, 1) / share
    return np.moveaxis(np.sort(samples, axis=axis), axis, -1) @ weights


def quiet_error_ms(samples_ms: np.ndarray) -> np.ndarray:
    """The standard error of the quiet time of each series, in ms.

    That of a trimmed mean, from the Winsorised deviation (Tukey and McLaughlin, 1963): every call
    beyond the fastest quarter is taken as the slowest within it. Calls of one visit may have their
    time in common (a clock, a place in memory), so visits count, not calls.

    Args:
        samples_ms: [..., visits, calls].

    Returns:
        [...]; infinite where there is a single visit.
    """
    samples = np.asarray(samples_ms, float)
    *series, visits, calls = samples.shape
    if visits < 2:
        return np.full(series, np.inf)
    count = visits * calls
    share = _share(count)
    ordered = np.sort(samples.reshape(*series, count), axis=-1)
    low = min(int(share), count - 1)
    high, part = min(low + 1, count - 1), share - int(share)
    bound = (1 - part) * ordered[..., low] + part * ordered[..., high]
    winsorised = np.minimum(samples, bound[..., None, None]).mean(axis=-1)
    return winsorised.std(axis=-1, ddof=1) / np.sqrt(visits) * (count / share)


def _share(count: int) -> float:
    """Calls of so many that make up the fastest quarter."""
    return max(1.0, count * FAST_FRACTION - _SMALL_SAMPLE)
