"""Marginal latencies: differences of graphs' quiet times, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Z_95 = 1.96
"""Half-width of a 95% interval in standard errors."""

BELOW_NOISE = "below-noise"
"""Flag of a row whose difference is not positive; its latency is the upper end of its interval."""


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

    def width(self, precision: float, floor_ms: float) -> float:
        """Half-width of the interval, in multiples of what is aimed at.

        Args:
            precision: aimed at, as a share of the latency.
            floor_ms: half-width that is narrow enough however small the latency is.
        """
        half_ms = (self.ci_high_ms - self.ci_low_ms) / 2
        aim_ms = max(precision * self.latency_ms, floor_ms)
        return half_ms / aim_ms if aim_ms > 0 else float("inf")


def combine(
    weights: np.ndarray, quiet_ms: np.ndarray, error_ms: np.ndarray, samples: int
) -> Estimate:
    """A weighted sum of quiet times whose errors are independent.

    Args:
        weights: [series]; positive for graphs with the operator, negative for their baselines.
        quiet_ms, error_ms: quiet times and their standard errors [series].
        samples: calls that these rest on.

    Returns:
        The estimate, flagged ``below-noise`` where it is not positive; its latency is then the
        upper end of the interval, which may not be positive either.
    """
    latency = float(weights @ quiet_ms)
    half = Z_95 * float(np.sqrt((weights**2) @ (error_ms**2)))
    low, high = latency - half, latency + half
    flags: tuple[str, ...] = ()
    if latency <= 0 < high:
        latency, flags = high, (BELOW_NOISE,)
    return Estimate(latency, max(low, 0.0), high, samples, flags)
