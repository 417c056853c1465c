"""Whether devices of one kind agree how fast they are, by what their baselines take."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

G = TypeVar("G", bound=Hashable)


def common_times(times_ms: Sequence[Mapping[G, float]]) -> dict[G, float]:
    """What most devices take for each graph, in ms.

    Of two that disagree nobody knows which is right: the first one counts. Of an even number it is
    the lower one of the middle two: between two halves that disagree lies no device.

    Args:
        times_ms: of each device, by graph.
    """
    voters = times_ms if len(times_ms) > 2 else times_ms[:1]
    votes: dict[G, list[float]] = {}
    for device in voters:
        for graph, ms in device.items():
            votes.setdefault(graph, []).append(ms)
    return {g: float(np.percentile(ms, 50, method="lower")) for g, ms in votes.items()}


def disagreement(
    times_ms: Mapping[G, float], common_ms: Mapping[G, float], max_spread: float
) -> float | None:
    """By how much a device is slower than the others, as a share; None where it agrees.

    Args:
        times_ms: of the device, by graph.
        common_ms: of most devices.
        max_spread: that is no disagreement; more is none either where its graphs scatter so.
    """
    ratios = np.array([ms / common_ms[g] for g, ms in times_ms.items() if g in common_ms])
    if not ratios.size:
        return None
    differs = float(np.median(ratios)) - 1
    error = 1.4826 * float(np.median(np.abs(ratios - 1 - differs))) / np.sqrt(ratios.size)
    return None if abs(differs) <= max(max_spread, 3 * error) else differs
