"""Whether latencies add up: sums of a table beside measured networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..lookup_tables.model import LatencyModel
from ..lookup_tables.spread import QUIET, STATISTICS
from ..lookup_tables.verdict import ErrorFigures, GroupCheck
from .accuracy import compare
from .networks import NetworkTime


@dataclass(frozen=True)
class NetworkCheck:
    """One network: predicted, measured, and measured again; see `NetworkTime`."""

    group: str
    label: str
    operators: tuple[str, ...]
    predicted_ms: float
    measured_ms: float
    first_ms: float
    second_ms: float
    as_timed_ms: float
    flags: tuple[str, ...] = ()
    error: str = ""


def check_networks(
    model: LatencyModel, times: Sequence[NetworkTime]
) -> tuple[list[GroupCheck], list[NetworkCheck]]:
    """Puts the sums of a table beside measured networks, by group."""
    checks = [
        NetworkCheck(
            t.network.group,
            t.network.label,
            t.network.operators,
            model.latency_of(t.network.operators, QUIET),
            t.measured_ms,
            t.first_ms,
            t.second_ms,
            t.as_timed_ms,
            t.flags,
            t.error,
        )
        for t in times
    ]
    groups = []
    for group in dict.fromkeys(c.group for c in checks):
        members = [c for c in checks if c.group == group]
        good = [c for c in members if not c.error]
        if good:
            groups.append(
                GroupCheck(
                    group,
                    compare([c.predicted_ms for c in good], [c.measured_ms for c in good]),
                    compare([c.first_ms for c in good], [c.second_ms for c in good]),
                    len(members) - len(good),
                )
            )
    return groups, checks


def check_statistics(model: LatencyModel, times: Sequence[NetworkTime]) -> dict[str, ErrorFigures]:
    """Predicted medians and percentiles beside those of random networks, as timed.

    Returns:
        By statistic; empty where the table does not know what calls take beyond quiet times.
    """
    good = [t for t in times if t.network.group == "random" and not t.error]
    known = [s for s in STATISTICS if s != QUIET and model.spread.ratio(s) is not None]
    return {
        statistic: compare(
            [model.latency_of(t.network.operators, statistic) for t in good],
            [t.of(statistic)[0] for t in good],
        )
        for statistic in known
        if good
    }
