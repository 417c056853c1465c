"""What calls take beyond their quiet time, on the device as it was while a table was made.

Kept beside the table as ``table.csv.spread.json``. A table holds quiet times, which repeat from one
day to the next. A program that runs a network meets the device's clock, other processes and the
noise of its own calls as well: how much that adds is found from end-to-end networks timed in the
same batches as the rows, over all batches, those that rows are not taken from among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .cells import whole
from .sidecar import Layout, Sidecar, not_negative, positive

QUIET = "quiet"
STATISTICS = ("median", "p90", QUIET)
"""What a latency may be asked for as: of all calls, or the quiet time."""


@dataclass(frozen=True)
class NetworkTimes:
    """An end-to-end network timed among the rows.

    Attributes:
        backbone: its name.
        operators: one name for each layer.
        quiet_ms: its quiet time, at the speed of the table.
        median_ms, p90_ms: of its calls, as timed.
        calls: how many there were.
    """

    backbone: str
    operators: tuple[str, ...]
    quiet_ms: float
    median_ms: float
    p90_ms: float
    calls: int

    def ratio(self, statistic: str) -> float:
        """A statistic over the quiet time."""
        times = {"median": self.median_ms, "p90": self.p90_ms, QUIET: self.quiet_ms}
        return times[statistic] / self.quiet_ms


@dataclass(frozen=True)
class Spread:
    """What calls of networks and of operators take, as multiples of their quiet times.

    Attributes:
        networks: timed among the rows.
        operator_median, operator_p90: of calls of the rows' graphs; None: not known.
        drift: standard deviation of the device's speed over the batches, as a share.
        median_change, p90_change: by how much the networks' median and percentile differ between
            the first and the second half of the rounds that they were timed in, as a share. Other
            work comes in bursts, and a percentile of a run with one is not that of one without.
    """

    networks: tuple[NetworkTimes, ...] = ()
    operator_median: float | None = None
    operator_p90: float | None = None
    drift: float = 0.0
    median_change: float = 0.0
    p90_change: float = 0.0

    def change(self, statistic: str) -> float:
        """By how much a statistic of networks changed within the run, as a share."""
        return {"median": self.median_change, "p90": self.p90_change, QUIET: 0.0}[statistic]

    def ratio(self, statistic: str) -> float | None:
        """A statistic of networks over their quiet time, the median over networks.

        Args:
            statistic: one of `STATISTICS`.

        Returns:
            None where it is not known.
        """
        if statistic == QUIET:
            return 1.0
        ratios = [network.ratio(statistic) for network in self.networks]
        return float(np.median(ratios)) if ratios else None

    def scatter(self, statistic: str) -> float:
        """How much that ratio differs between networks: standard deviation of its logarithm."""
        ratios = [network.ratio(statistic) for network in self.networks]
        return float(np.std(np.log(ratios), ddof=1)) if len(ratios) > 1 else 0.0


def joined(spreads: Sequence[Spread]) -> Spread:
    """The spread of several devices of one kind, or of several runs."""
    medians = [s.operator_median for s in spreads if s.operator_median is not None]
    p90s = [s.operator_p90 for s in spreads if s.operator_p90 is not None]
    return Spread(
        tuple(network for spread in spreads for network in spread.networks),
        float(np.median(medians)) if medians else None,
        float(np.median(p90s)) if p90s else None,
        *(
            max((getattr(spread, name) for spread in spreads), default=0.0)
            for name in ("drift", "median_change", "p90_change")
        ),
    )


def spread_to_json(spread: Spread) -> dict[str, Any]:
    """The spread as JSON holds it."""
    return asdict(spread)


def spread_from_json(item: Any) -> Spread:
    """The spread from JSON.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    networks = tuple(_network(network) for network in item["networks"])
    median, p90 = item["operator_median"], item["operator_p90"]
    return Spread(
        networks,
        None if median is None else positive(median, "operator_median"),
        None if p90 is None else positive(p90, "operator_p90"),
        not_negative(item["drift"], "drift"),
        *(not_negative(item.get(name, 0.0), name) for name in ("median_change", "p90_change")),
    )


def _network(item: Any) -> NetworkTimes:
    operators = item["operators"]
    if not isinstance(operators, list) or not all(isinstance(name, str) for name in operators):
        raise ValueError("operators is no list of names")
    if not isinstance(item["backbone"], str):
        raise ValueError("backbone is no name")
    return NetworkTimes(
        item["backbone"],
        tuple(operators),
        positive(item["quiet_ms"], "quiet_ms"),
        positive(item["median_ms"], "median_ms"),
        positive(item["p90_ms"], "p90_ms"),
        whole("calls", item["calls"]),
    )


SPREADS: Sidecar[Spread] = Sidecar(
    "spreads",
    Layout(".spread.json", 1, "spreads", "spread", spread_from_json),
    spread_to_json,
    "what calls take beyond their quiet time",
)
