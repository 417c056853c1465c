"""Every tunable of how latencies are measured, with its unit, its default and the reason for it.

`docs/design/protocol.md` is written from this file by ``make protocol-page``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..agents.results import Protocol


def _tunable(default: Any, unit: str, reason: str) -> Any:
    return field(default=default, metadata={"unit": unit, "reason": reason})


@dataclass(frozen=True)
class TimingProtocol:
    """How graphs and networks are timed; `for_target` adapts it to what a target can keep loaded.

    `dataclasses.fields` gives the unit of each field and the reason for its default.
    """

    precision: float = _tunable(
        0.02, "share", "half-width of a row's 95% interval that is aimed at, of its latency"
    )
    precision_floor_ms: float = _tunable(
        0.001, "ms", "half-width that is narrow enough however small the latency is"
    )
    precision_of_network: float = _tunable(
        0.0005, "share", "of the fastest network: 20 such rows change its sum by 0.2%"
    )
    min_rounds: int = _tunable(
        12, "rounds", "fewer let rows stop by luck: 9 disagreed by 5 to 8% with the next table"
    )
    max_rounds: int = _tunable(
        60, "rounds", "after which a row is left as it is, rejected rounds included"
    )
    batch_rounds: int = _tunable(
        3, "rounds", "of one request, after which intervals are looked at and memory is replaced"
    )
    visit_calls: int = _tunable(
        1, "calls", "a graph's weights are as cold as in a network at the first call only"
    )
    warmup_calls: int = _tunable(1, "calls", "untimed, after loading: the first call allocates")
    max_active_rows: int = _tunable(
        512, "rows", "in a batch at once: among few, rows of one table are off together"
    )
    baseline_replicas: int = _tunable(
        6, "replicas", "a baseline serves all rows of a shape; where one lies must not matter"
    )
    min_batch_bytes: int = _tunable(
        128 * 2**20,
        "bytes",
        "of weights in a batch, filled up with known rows: among less a graph stays in the caches",
    )
    max_slowdown: float = _tunable(
        0.15, "share", "above that of half of what was timed; a clock wanders by less"
    )
    time_budget_s: float = _tunable(
        math.inf, "s", "of a device; once it is spent, half of the fewest rounds do"
    )
    timeout_s: float = _tunable(60.0, "s", "for loading a graph, and for one visit")
    seed: int = _tunable(0, "", "of the orders in which graphs are called")
    loop_calls: int = _tunable(
        12, "calls", "of a row's own graph in a loop; the first is the cold one"
    )
    loop_skipped: int = _tunable(
        4, "calls", "not yet warm: from the fifth on they are within 1.5% of later ones"
    )
    loop_retries: int = _tunable(1, "times", "that a contended loop is repeated")
    linking_shapes: int = _tunable(
        4, "shapes", "whose baselines link new layers of a table to those that it holds"
    )
    compare_timeout_s: float = _tunable(
        30.0, "s", "that a device may be later with its baselines than most, at least"
    )
    max_device_spread: float = _tunable(
        0.05, "share", "by which baselines of two devices of one kind may differ"
    )
    rejoin_timeout_s: float = _tunable(
        5.0, "s", "that a run waits for a device when it has no other left"
    )
    max_losses_per_graph: int = _tunable(
        3, "times", "that a device is lost at a graph until that counts as the graph's fault"
    )
    max_reconnects: int = _tunable(
        3, "times", "that a device may be lost without a finished row in between"
    )
    network_rounds: int = _tunable(24, "rounds", "of end-to-end networks")
    network_sweeps: int = _tunable(
        2, "times", "that each batch of networks is timed, so that a slow time is not one batch's"
    )
    control_rows: int = _tunable(
        100, "rows", "timed among networks as drift controls; with 40 they seem 2 to 3% slow"
    )
    control_graphs_per_network: int = _tunable(
        6, "graphs", "so that a control seldom stands behind a network, which sweeps the caches"
    )
    control_row_bytes: int = _tunable(
        8 * 2**20, "bytes", "of weights that a control's graphs hold at most"
    )

    def for_target(self, resident: bool) -> TimingProtocol:
        """The protocol for a target.

        Args:
            resident: whether it keeps many graphs loaded. One that does not loads a graph for
                every visit: a visit is many calls there, a batch one round, and few rounds do.
                Calls of one visit may have their speed in common, so that two visits would not
                do: of a device that is slow in three visits of ten, a graph is met slow twice
                for one in eleven, five times for one in four hundred.
        """
        if resident:
            return replace(self, min_rounds=min(self.min_rounds, self.max_rounds))
        most = max(2, -(-self.max_rounds // 4))  # one round tells no error
        return replace(
            self,
            min_rounds=min(5, self.min_rounds, most),
            max_rounds=most,
            batch_rounds=1,
            visit_calls=16,
            baseline_replicas=1,
            min_batch_bytes=0,
        )

    def batch(self, number: int) -> Protocol:
        """How the agent times a batch of rows; its seed differs from the others'."""
        return Protocol(
            rounds=self.batch_rounds,
            calls_per_visit=self.visit_calls,
            warmup_calls=self.warmup_calls,
            seed=self.seed + number,
            artifact_timeout_s=self.timeout_s,
            keep_loaded=True,
        )

    def loop(self, number: int) -> Protocol:
        """How the agent times rows' own graphs, cold and looped."""
        return Protocol(
            rounds=1,
            calls_per_visit=self.loop_calls,
            warmup_calls=self.warmup_calls,
            seed=self.seed + 1 + number,
            artifact_timeout_s=self.timeout_s,
        )

    def networks(self, rounds: int, number: int, keep_loaded: bool) -> Protocol:
        """How the agent times a batch of end-to-end networks."""
        return Protocol(
            rounds=rounds,
            calls_per_visit=1,
            warmup_calls=self.warmup_calls,
            seed=self.seed + 101 + number,
            artifact_timeout_s=self.timeout_s,
            keep_loaded=keep_loaded,
        )
