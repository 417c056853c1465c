"""What is asked of one device: replicas of graphs timed, baselines timed, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ..agents.conditions import Conditions
from ..agents.results import ArtifactResult, Protocol
from ..lookup_tables.runs import Run
from .measurement import DeviceMeasurement
from .outcomes import BatchOutcome, Series, abandoning_error
from .plan import Graph
from .protocol import TimingProtocol
from .recorder import now
from .session import TargetSession


def time_series(
    session: TargetSession,
    series: Sequence[Series],
    protocol: Protocol,
    on_progress: Callable[[str, float], None] | None = None,
) -> dict[Series, ArtifactResult]:
    """Times replicas of graphs in one batch."""
    digests = {one: session.digest_of(*one) for one in series}
    timed = session.time(list(digests.values()), protocol, on_progress)
    return {one: timed[digest] for one, digest in digests.items()}


def time_baselines(
    session: TargetSession, baselines: Sequence[Graph], protocol: TimingProtocol
) -> dict[Graph, float]:
    """What a device's baselines take among each other, in ms; without those that failed.

    Args:
        session: of the device.
        baselines: of the plan.
        protocol: as it was asked for.

    Raises:
        AgentError: the device is lost, or busy.
    """
    protocol = protocol.for_target(session.resident)
    # Without rows nothing is active: the batch holds the baselines.
    measurement = DeviceMeasurement(protocol, baselines, (), session.batch_bytes)
    series = measurement.compose()
    for number in range(2):
        results = time_series(session, series, protocol.batch(number))
        error = abandoning_error(results, Counter(), 1)
        if error is not None:
            raise error
        measurement.take_in(BatchOutcome.of(results, protocol.batch_rounds, 0), 0)
    return measurement.baselines_ms()


def run_of(session: TargetSession, measurement: DeviceMeasurement, rows: int) -> Run:
    """What is kept of a device's work beside the table."""
    log = session.log
    before, after = log.before or Conditions(), log.after or Conditions()
    return Run(
        ended_at=now(),
        target=str(session.target),
        agent_version=session.agent_version,
        rows=rows,
        device_s=log.spent_ms / 1e3,
        batches=measurement.batches,
        batches_rejected=measurement.history.rejected,
        slowdown=measurement.history.quiet_slowdown,
        governor=before.governor or None,
        frequency_before_mhz=before.frequency_mhz or None,
        frequency_after_mhz=after.frequency_mhz or None,
        temperature_before_c=before.temperature_c or None,
        temperature_after_c=after.temperature_c or None,
        load_before=before.load_1m or None,
        load_after=after.load_1m or None,
        throttle_events=log.throttle_events,
        steal_share=log.steal_share,
        busy_share=log.busy_share,
    )
