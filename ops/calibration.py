"""Calibration data for static quantisation where nobody gives images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLES = 16
"""Random samples. With fewer, ranges of small outputs (ten logits) miss values; with more, those
of large ones grow by outliers, and calibration takes longer."""


def random_samples(shape: Sequence[int], count: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Seeded random samples, uniform in [-1, 1).

    Args:
        shape: of one sample, (channels, height, width).
        count: how many.
        seed: equal seeds, equal values.

    Returns:
        float32 [count, channels, height, width].
    """
    random = np.random.Generator(np.random.PCG64(seed))
    return random.random((count, *shape), dtype=np.float32) * np.float32(2) - np.float32(1)
