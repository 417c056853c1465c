"""How well a share of images is known: its interval, and both in words."""

from __future__ import annotations

import math

NORMAL_95, NORMAL_90 = 1.96, 1.645
"""Standard deviations to each side that hold 95 and 90% of a normal distribution."""


def wilson_interval(right: int, images: int, deviations: float = NORMAL_95) -> tuple[float, float]:
    """Between which shares the true one lies, by the score interval of Wilson (1927).

    It lies within 0 and 1 and has a width also where all or none are right, unlike that of the
    normal approximation (Brown, Cai and DasGupta 2001).

    Args:
        right: images classified rightly.
        images: all of them, at least 1.
        deviations: standard deviations to each side; by default of a 95% interval.

    Returns:
        Low and high end, 0 to 1.
    """
    share, square = right / images, deviations**2
    middle = share + square / (2 * images)
    spread = deviations * math.sqrt(share * (1 - share) / images + square / (4 * images**2))
    scale = 1 + square / images
    # At both ends the true bound is the share itself, which rounding would miss.
    low = 0.0 if right == 0 else (middle - spread) / scale
    high = 1.0 if right == images else (middle + spread) / scale
    return low, high


def interval_of(share: float, images: int) -> tuple[float, float]:
    """The 95% interval of a share of images: `wilson_interval` of as many as it stands for."""
    return wilson_interval(round(share * images), images)


def interval_text(low: float, high: float, images: int) -> str:
    """An interval and the number of images behind it."""
    return f"{100 * low:.1f}–{high:.1%}, {images:,} images"
