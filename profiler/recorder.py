"""What was measured, as entries of the journal: one line a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np

from ..agents.errors import BadAnswer, ErrorKind
from ..agents.results import ArtifactResult
from ..lookup_tables.journal import Journal
from ..lookup_tables.raw import DeviceRun, LoopTimes, RawRow
from ..lookup_tables.spread import NetworkTimes, Spread
from ..lookup_tables.table import Row, TableError, format_flags
from ..ops.backbone import row_costs
from .failures import Failure, failure_of, word_of
from .measurement import DeviceMeasurement
from .outcomes import CONTENDED, RowOutcome
from .plan import Graph, PlannedNetwork, PlannedRow
from .session import TargetSession
from .timing.location import quiet_ms
from .timing.marginal import BELOW_NOISE

STATUS_OF = {
    ErrorKind.UNSUPPORTED_OPERATOR: "unsupported",
    ErrorKind.TIMED_OUT: "timeout",
}
"""Statuses of rows by what went wrong; of any other error it is ``failed``."""

DEVICE_LOST = "device-lost"
"""Flag of a failed row at whose graph the device was lost, again and again."""


class Recorder:
    """Writes down what devices measure.

    Args:
        journal: of the table.
        loop_skipped: calls of a loop that are not yet warm.
        networks: timed among the rows.

    Attributes:
        failures: rows that ended without a latency, in their order.
    """

    def __init__(
        self, journal: Journal, loop_skipped: int, networks: Sequence[PlannedNetwork] = ()
    ) -> None:
        self._journal = journal
        self._networks = networks
        self._loop_skipped = loop_skipped
        self._runs_before = max(journal.data.runs, default=0)
        self._numbers = count(self._runs_before + 1)
        self.failures: list[Failure] = []

    def begin_run(self) -> int:
        """The number of a device's measurement that begins. Threads may call it at once."""
        return next(self._numbers)

    def slowdown(self) -> float:
        """How slow devices were in these runs, as a multiple of the table's speed; the median."""
        data = self._journal.data
        scales = data.scales()
        found = [
            r.quiet_slowdown / scales[n] for n, r in data.runs.items() if n > self._runs_before
        ]
        return float(np.median(found)) if found else 1.0

    def record(
        self,
        session: TargetSession,
        run: int,
        measurement: DeviceMeasurement,
        outcomes: Iterable[RowOutcome],
    ) -> tuple[list[PlannedRow], list[PlannedRow]]:
        """Records rows that ended, with the drift fit by now.

        Returns:
            Rows with a latency, and rows without.

        Raises:
            BadAnswer: no table can hold what the agent sent.
        """
        entries, measured, failed = [], [], []
        try:
            for outcome in outcomes:
                row = _table_row(session, outcome)
                (measured if row.ok else failed).append(outcome.row)
                if not row.ok:
                    self.failures.append(failure_of(outcome, row.status))
                graphs_ms = _by_digest(session, outcome.graphs_ms if row.ok else {})
                entries.append(RawRow(row, run, outcome.slowdown, graphs_ms))
        except TableError as error:
            raise _no_row(session, error) from error
        if entries:
            self._journal.append([device_run(session, run, measurement, self._networks), *entries])
        return measured, failed

    def record_loops(
        self, session: TargetSession, results: Mapping[PlannedRow, ArtifactResult]
    ) -> None:
        """Writes down the timings of rows' own graphs; those that failed are left out.

        Raises:
            BadAnswer: no table can hold what the agent sent.
        """
        loops = [
            self._loop_times(planned, result)
            for planned, result in results.items()
            if result.error is None
        ]
        try:
            for loop in loops:
                loop.check(session.target)
        except TableError as error:
            raise _no_row(session, error) from error
        self._journal.append(loops)

    def _loop_times(self, planned: PlannedRow, result: ArtifactResult) -> LoopTimes:
        calls = np.asarray(result.wall_ms)
        warm = calls[:, min(self._loop_skipped, calls.shape[1] - 1) :]
        p10, p90 = (float(x) for x in np.percentile(warm, (10, 90)))
        device = result.device_ms
        # A graph without a node takes a counter no time: it has measured nothing.
        device_ms = None if device is None else float(quiet_ms(np.asarray(device)[:, 0])) or None
        return LoopTimes(
            planned.name,
            planned.shape,
            cold_ms=float(quiet_ms(calls[:, 0])),
            warm_ms=float(np.median(warm)),
            p10_ms=p10,
            p90_ms=p90,
            device_ms=device_ms,
        )


def device_run(
    session: TargetSession,
    run: int,
    measurement: DeviceMeasurement,
    networks: Sequence[PlannedNetwork],
) -> DeviceRun:
    """The drift fit of a measurement by now, as an entry of the journal."""
    limit = measurement.history.quality.limit
    return DeviceRun(
        run,
        session.client.address,
        measurement.history.quiet_slowdown,
        limit if np.isfinite(limit) else None,
        _by_digest(session, measurement.baselines_ms()),
        _spread(measurement, networks),
        measurement.history.steady_change,
    )


def _spread(measurement: DeviceMeasurement, networks: Sequence[PlannedNetwork]) -> Spread:
    """What calls took beyond raw quiet times."""
    known, timed = {network.graph: network for network in networks}, []
    times = measurement.networks_ms()
    for graph, (quiet, calls) in times.items():
        median, p90 = (float(ms) for ms in np.percentile(calls, (50, 90)))
        network = known[graph]
        timed.append(
            NetworkTimes(network.backbone, network.operators, quiet, median, p90, calls.size)
        )
    found = Spread(
        tuple(timed),
        drift=measurement.history.drift,
        median_change=_change([calls for _, calls in times.values()], 50),
        p90_change=_change([calls for _, calls in times.values()], 90),
    )
    ratios = measurement.operator_ratios()
    if not ratios.size:
        return found
    median, p90 = (float(ratio) for ratio in np.percentile(ratios, (50, 90)))
    return replace(found, operator_median=median, operator_p90=p90)


def _change(calls_ms: Sequence[np.ndarray], percentile: float) -> float:
    """By how much a percentile differs between the halves of graphs' calls, as a share.

    Args:
        calls_ms: of each graph, as they followed each other; all graphs were called in turns.
        percentile: of the calls of all graphs, each over its own median.
    """
    if not calls_ms or min(map(len, calls_ms)) < 2:
        return 0.0
    halves: list[list[np.ndarray]] = [[], []]
    for calls in calls_ms:
        for half, part in zip(halves, np.array_split(calls / np.median(calls), 2), strict=True):
            half.append(part)
    first, second = (float(np.percentile(np.concatenate(half), percentile)) for half in halves)
    return abs(float(np.log(second / first)))


def _by_digest(session: TargetSession, graphs_ms: Mapping[Graph, float] | None) -> dict[str, float]:
    return {session.info_of(g).artifact_sha256: ms for g, ms in (graphs_ms or {}).items()}


def _no_row(session: TargetSession, why: object) -> BadAnswer:
    return BadAnswer(f"the agent at {session.client.address} sent what no table can hold: {why}")


def _table_row(session: TargetSession, outcome: RowOutcome) -> Row:
    """The raw row, without the timings of its own graph."""
    planned, estimate = outcome.row, outcome.estimate
    artifact = session.info_of(planned.alone)
    costs = row_costs(planned.name, planned.shape)
    values: dict[str, Any] = {
        "macs": sum(c.macs for c in costs),
        "params": sum(c.params for c in costs),
        "graph_sha256": artifact.graph_sha256,
        "artifact_sha256": artifact.artifact_sha256,
        "converter": artifact.converter,
        "calibration": artifact.calibration,
        "agent_version": session.agent_version,
        "measured_at": now(),
    }

    def row(status: str, flags: Iterable[str], **more: Any) -> Row:
        words = format_flags(dict.fromkeys(flags))
        return Row.of(
            session.target,
            planned.name,
            planned.shape,
            status=status,
            flags=words,
            **values,
            **more,
        )

    if outcome.error is not None:
        status = STATUS_OF.get(outcome.error.kind, "failed")
        return row(status, (word_of(outcome.error.kind),) if status == "failed" else ())
    assert estimate is not None
    if estimate.latency_ms <= 0:
        return row("failed", (BELOW_NOISE,))
    _, last = outcome.results
    own, before = last[0], outcome.before
    # What other work did is in `interference`: its batches are not among those of the row.
    flags = [flag for result in last for flag in result.flags if flag not in CONTENDED]
    if len({result.compute_unit for result in last}) > 1:
        flags.append("mixed-unit")
    return row(
        "ok",
        (*flags, *estimate.flags),
        latency_ms=estimate.latency_ms,
        ci_low_ms=estimate.ci_low_ms,
        ci_high_ms=estimate.ci_high_ms,
        call_ms=outcome.call_ms,
        samples=estimate.samples,
        rounds=outcome.rounds,
        estimator=planned.estimator if own.device_ms is None else f"{planned.estimator}-device",
        compute_unit=own.compute_unit,
        temperature_before_c=before.temperature_c or None,
        temperature_after_c=own.after.temperature_c or None,
        frequency_before_mhz=before.frequency_mhz or None,
        frequency_after_mhz=own.after.frequency_mhz or None,
    )


def now() -> str:
    """The time, as tables and histories hold it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
