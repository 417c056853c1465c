"""Devices at work: one thread for each, which asks the scheduler, times, and records."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..agents.errors import AgentError, BadAnswer
from ..agents.results import ArtifactResult
from ..lookup_tables.runs import Run
from ..ops.errors import BadRequest
from .comparison import DeviceComparison, Exclusions
from .delivery import deliver
from .device_log import DeviceLog
from .devices import run_of, time_series
from .measurement import DeviceMeasurement
from .outcomes import BatchOutcome, Series, abandoning_error, board_error, is_contended
from .plan import Graph, PlannedRow, batches
from .pool import DevicePool, on_every
from .protocol import TimingProtocol
from .recorder import Recorder
from .scheduler import Finished, RowScheduler, State, TimeLoops
from .session import TargetSession

ProfileProgress = Callable[[str, float], None]
"""Called with what is going on and the share of the whole that is done."""

_BATCH_SHARE = 0.3  # of a row's measuring that one batch is taken for, in the progress shown


@dataclass(frozen=True)
class RunPlan:
    """What a run is to measure.

    Attributes:
        protocol: as it was asked for; adapted to the target for measuring.
        baselines: of all rows, and those that link them to rows from before.
        background: known rows that may fill batches up.
        rows: to be measured, in the order in which they are given out.
        measured: rows of which only the timing of their own graphs is missing.
        networks: timed among them.
    """

    protocol: TimingProtocol
    baselines: Sequence[Graph]
    background: Sequence[PlannedRow]
    rows: Sequence[PlannedRow]
    measured: Sequence[PlannedRow] = ()
    networks: Sequence[Graph] = ()


class Runner:
    """Works through a plan on devices of one kind.

    Attributes:
        runs: what each device did.
        seconds: wall time by what it was spent on, see `DeviceLog`, over all devices.

    Args:
        sessions: one for each device.
        plan: what to measure.
        recorder: writes down what was measured.
        on_progress: called with (what, share), from any thread.
    """

    def __init__(
        self,
        sessions: Sequence[TargetSession],
        plan: RunPlan,
        recorder: Recorder,
        on_progress: ProfileProgress,
    ) -> None:
        self.runs: list[Run] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._sessions = list(sessions)
        self._plan = plan
        self._recorder = recorder
        self._note = on_progress
        self._comparison = DeviceComparison(plan.baselines, plan.protocol)
        self._pool = DevicePool(
            RowScheduler(
                plan.rows, plan.measured, lambda row: row.bytes, plan.protocol.max_active_rows
            )
        )

    @property
    def exclusions(self) -> Exclusions:
        """Devices that were lost or left out."""
        return self._comparison.exclusions

    def run(self) -> None:
        """Works until every row has ended, or no device is left.

        Raises:
            AgentError: no device is left.
        """
        if len(self._sessions) > 1 and self._plan.rows:
            self._note("compare", 0.0)
            self._sessions = self._comparison.compare(self._sessions)
        pool = self._pool
        for index, session in enumerate(self._sessions):
            pool.scheduler.on_joined(str(index), session.batch_bytes)
        # A device that waits for others' work on it is not waited for.
        on_every(len(self._sessions), self._work, pool.is_over)
        if pool.failure is not None:
            raise pool.failure

    def _work(self, index: int) -> None:
        """One device's work, however often it is lost and comes back."""
        losses, pool = 0, self._pool
        try:
            while True:
                before = pool.progress
                session = self._sessions[index]
                address = session.client.address
                try:
                    if address in self.exclusions.absent:
                        raise self.exclusions.absent.pop(address)
                    self._serve(str(index), session)
                    return
                except AgentError as error:
                    losses = 1 if pool.progress > before else losses + 1
                    with pool.changed:
                        self.exclusions.lost[address] = _named(address, error)
                        pool.scheduler.on_lost(str(index))
                        pool.changed.notify_all()
                    patient = losses <= self._plan.protocol.max_reconnects
                    if not patient or not self._rejoins(index, error):
                        named = type(error)(_named(address, error))
                        named.__cause__ = error
                        pool.fail(named, everybody=False)
                        return
        except Exception as error:
            pool.fail(error, everybody=True)
        finally:
            pool.leave(str(index))

    def _rejoins(self, index: int, error: AgentError) -> bool:
        """Waits for a lost device; False where it does not come back while there is work.

        One that sent what cannot be right is not taken back: it may lie better the next time. Nor
        is one that lacks something: waiting does not bring it.
        """
        if error.kind.lasts or isinstance(error, BadAnswer):
            return False
        session, alone_since = self._sessions[index], math.inf
        while (alone := self._pool.wait_for_change()) is not None:
            now_s = time.monotonic()
            alone_since = min(alone_since, now_s) if alone else math.inf
            if now_s - alone_since >= self._plan.protocol.rejoin_timeout_s:
                return False
            try:
                again = TargetSession.open(session.client, session.request)
                again.log = DeviceLog(events_at_rest=session.log.events_at_rest)
                if again.target != session.target:
                    return False
                if not self._comparison.admits(again):
                    return False
            except BadAnswer as wrong:
                self.exclusions.lost[session.client.address] = _named(session.client.address, wrong)
                return False
            except (AgentError, BadRequest):
                continue
            with self._pool.changed:
                if not self._pool.join(str(index), again.batch_bytes):
                    return False
                self._sessions[index] = again
                self.exclusions.lost.pop(session.client.address, None)
            return True
        return False

    def _serve(self, device: str, session: TargetSession) -> None:
        """One device's work, until nothing is left to do or it is lost."""
        protocol = self._plan.protocol.for_target(session.resident)
        measurement = DeviceMeasurement(
            protocol,
            self._plan.baselines,
            self._plan.background,
            session.batch_bytes,
            self._plan.networks,
        )
        run, rows, pool = self._recorder.begin_run(), 0, self._pool
        try:
            while True:
                work = pool.next_work(device)
                if work is None or isinstance(work, Finished):
                    return
                if isinstance(work, TimeLoops):
                    self._time_loops(device, session, work.rows)
                    continue
                if work.activated:
                    measurement.activate(work.activated)
                    alone = [(row.alone, 0) for row in work.activated]
                    deliver(session, measurement.compose(), alone, protocol.batch(0))
                rows += self._measure_batch(device, session, run, protocol, measurement)
        finally:
            with pool.changed:
                if measurement.batches:
                    self.runs.append(run_of(session, measurement, rows))
                for what, spent_s in session.log.seconds.items():
                    self.seconds[what] += spent_s

    def _measure_batch(
        self,
        device: str,
        session: TargetSession,
        run: int,
        protocol: TimingProtocol,
        measurement: DeviceMeasurement,
    ) -> int:
        """Times a batch and records the rows that end with it; how many these are."""
        pool = self._pool
        with pool.changed:
            active = len(pool.scheduler.rows(State.ACTIVE, device))
        report = self._reporter("measure", _BATCH_SHARE * active)
        results = time_series(
            session, measurement.compose(), protocol.batch(measurement.batches), report
        )
        with pool.changed:
            error = abandoning_error(results, pool.losses, protocol.max_losses_per_graph)
        error = error or board_error(results, measurement.history.has_run)
        if error is not None:
            raise error
        outcome = BatchOutcome.of(results, protocol.batch_rounds, active, session.log.spent_ms)
        is_over_budget = session.log.spent_ms > 1e3 * protocol.time_budget_s
        with session.log.timed("statistics"):
            ended = measurement.take_in(outcome, session.log.events_at_rest or 0, is_over_budget)
        measured, failed = self._recorder.record(session, run, measurement, ended)
        with pool.changed:
            pool.scheduler.on_batch(device, measured, failed)
            pool.changed.notify_all()
        return len(ended)

    def _time_loops(self, device: str, session: TargetSession, rows: Sequence[PlannedRow]) -> None:
        """Times rows' own graphs, cold and looped."""
        protocol = self._plan.protocol
        timed: dict[Series, ArtifactResult] = {}
        for part in batches(list(rows), session.batch_bytes):
            series: list[Series] = [(row.alone, 0) for row in part]
            for number in range(1 + protocol.loop_retries):
                report = self._reporter("loop", len(rows))
                results = time_series(session, series, protocol.loop(number), report)
                with self._pool.changed:
                    error = abandoning_error(
                        results, self._pool.losses, protocol.max_losses_per_graph
                    )
                if error is not None:
                    raise error
                timed |= {s: r for s, r in results.items() if s not in timed or r.error is None}
                if not any(is_contended(result) for result in results.values()):
                    break
        self._recorder.record_loops(session, {row: timed[row.alone, 0] for row in rows})
        with self._pool.changed:
            self._pool.scheduler.on_loops(device, rows)
            self._pool.changed.notify_all()

    def _reporter(self, what: str, rows: float) -> ProfileProgress:
        """Progress within a request that is worth so many rows."""
        steps = 2 * max(1, len(self._plan.rows) + len(self._plan.measured))

        def report(step: str, share: float) -> None:
            done = self._pool.progress + rows * share / steps
            self._note(step if step == "load" else what, min(1.0, done))

        return report


def _named(address: str, error: AgentError) -> str:
    """What went wrong with an agent, and with which."""
    return str(error) if address in str(error) else f"{address}: {error}"
