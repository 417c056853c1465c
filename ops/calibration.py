"""Calibration data for static quantisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import BadRequest

CALIBRATION_SAMPLES = 16
"""Random samples where no images are given. With fewer, ranges of small outputs (ten logits) miss
values; with more, those of large ones grow by outliers, and calibration takes longer."""


def random_samples(
    shape: Sequence[int], count: int = CALIBRATION_SAMPLES, seed: int = 0
) -> np.ndarray:
    """Calibration data where no images are given: uniform in [-1, 1).

    Args:
        shape: of one sample, (channels, height, width).
        count: how many.
        seed: equal seeds, equal values.

    Returns:
        float32 [count, channels, height, width].
    """
    random = np.random.Generator(np.random.PCG64(seed))
    return random.random((count, *shape), dtype=np.float32) * np.float32(2) - np.float32(1)


def check_samples(samples: np.ndarray, shape: Sequence[int]) -> None:
    """Refuses samples that a model cannot be calibrated with.

    Args:
        samples: calibration data, [samples, channels, height, width].
        shape: of the model's input, [1, channels, height, width].

    Raises:
        BadRequest: another shape, none at all, not finite, or nothing but zeros.
    """
    if len(samples) == 0 or samples.shape[1:] != tuple(shape[1:]) or shape[0] != 1:
        raise BadRequest(
            f"calibration data of shape {list(samples.shape)} does not fit the model's input; "
            f"it takes [samples, {', '.join(map(str, shape[1:]))}] and at least one sample"
        )
    if not np.isfinite(samples).all() or not samples.any():
        raise BadRequest("calibration data has values that are not finite, or nothing but zeros")
