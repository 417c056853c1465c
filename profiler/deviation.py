"""How far outputs are from those of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Deviation:
    """How far outputs are from the reference.

    Attributes:
        relative_error: largest |Δ| over largest |reference|.
        sqnr_db: signal power over error power, in dB; None: there is no error.
    """

    relative_error: float
    sqnr_db: float | None


class NotComparable(Exception):
    """Outputs that cannot be compared with the reference; the message says why."""


def deviation(reference: np.ndarray, values: np.ndarray) -> Deviation:
    """Compares outputs, of any shape, with the reference.

    Raises:
        ValueError: the reference is zero everywhere.
    """
    wanted = np.asarray(reference, np.float64)
    error = np.asarray(values, np.float64) - wanted
    largest = float(np.abs(wanted).max())
    if largest == 0:
        raise ValueError("the reference is zero everywhere: no error is relative to it")
    if not error.any():
        return Deviation(0.0, None)
    sqnr_db = 10 * np.log10(np.square(wanted).sum() / np.square(error).sum())
    return Deviation(float(np.abs(error).max()) / largest, float(sqnr_db))


def compare_outputs(
    reference: Sequence[Sequence[np.ndarray]], values: Sequence[Sequence[np.ndarray]]
) -> Deviation:
    """Compares the outputs for several inputs, all of them together.

    Raises:
        NotComparable: they have other shapes, or are not finite.
        ValueError: the reference is zero everywhere.
    """
    pairs = [
        pair
        for wanted, given in zip(reference, values, strict=True)
        for pair in zip(wanted, given, strict=True)
    ]
    for wanted, given in pairs:
        if wanted.shape != given.shape:
            raise NotComparable(
                f"its output has the shape {list(given.shape)}, not {list(wanted.shape)}"
            )
        if not np.isfinite(given).all():
            raise NotComparable("its output has values that are not finite")
    return deviation(
        np.concatenate([wanted.ravel() for wanted, _ in pairs]),
        np.concatenate([given.ravel() for _, given in pairs]),
    )
