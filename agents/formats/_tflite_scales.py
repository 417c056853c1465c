"""Which scales TFLite's operators can calculate with: kernels end the process at others.

A kernel turns quotients of scales into integer multipliers, and its checks on them are assertions.
"""

from __future__ import annotations

from collections.abc import Sequence

_BY_CHANNEL = (
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "DEQUANTIZE",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
)
"""Those that take constants with a scale for each channel."""

_COMPARISONS = ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
_SUM_SHIFT = 15  # bits by which kernels of sums shift their inputs up: int16; int8 takes 20
_SQUARE_SHIFT = 7  # the same of squared differences


def scales_fit(
    name: str, inputs: Sequence[Sequence[float]], outputs: Sequence[Sequence[float]]
) -> bool:
    """Whether an operator can calculate with the scales of what it reads and writes.

    Args:
        name: of the operator.
        inputs, outputs: scales of those that are quantised.
    """
    if name not in _BY_CHANNEL and any(len(scales) > 1 for scales in (*inputs, *outputs)):
        return False
    if not inputs:
        return True
    most = 2 * max(max(scales) for scales in inputs)
    if name in _COMPARISONS:
        return most < 2
    for (output,) in outputs if name in ("ADD", "SUB", "SQUARED_DIFFERENCE") else ():
        if name == "SQUARED_DIFFERENCE":
            fits = most * most < 2 ** (2 * _SQUARE_SHIFT) * output
        else:
            fits = most < 2**_SUM_SHIFT * output
        if not fits:
            return False
    return True
