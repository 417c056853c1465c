"""Filling a table: what is missing is exported, sent, timed and written down, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..lookup_tables.journal import Journal, load_with_journal
from ..lookup_tables.runs import Run, load_runs, save_runs
from ..lookup_tables.table import LookupTable, Target
from ..ops.errors import BadRequest, HurricaneError
from ..ops.graph import prepare_templates
from .coverage import FAILED, counts, known_rows, missing_rows
from .failures import Failure
from .plan import (
    ESTIMATED,
    PlannedNetwork,
    PlannedRow,
    baseline_graphs,
    graph_bytes,
    plan_row,
    weight_bytes,
)
from .protocol import TimingProtocol
from .recorder import Recorder
from .reference import Speed, find_reference, speed_of
from .runner import Exclusions, ProfileProgress, Runner, RunPlan
from .session import TargetSession

_PREPARING = 0.1  # share of a run, as its progress is shown, that making artefacts takes


@dataclass(frozen=True)
class ProfileResult:
    """What a run did.

    Attributes:
        table: the finished table.
        target: of its rows.
        measured: rows that this run measured.
        kept: rows of the plan that were there before.
        counts: rows of the plan by status, where they hold no latency, and by flag.
        exclusions: devices that were lost or left out.
        speed: at which rows are given.
        runs: what each device did, and what its machine was like.
        seconds: wall time by what it was spent on, over all devices, see `DeviceLog`.
        failures: rows that ended without a latency in this run.
    """

    table: LookupTable
    target: Target
    measured: int
    kept: int
    counts: Mapping[str, int]
    exclusions: Exclusions
    speed: Speed = field(default_factory=Speed)
    runs: tuple[Run, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    @property
    def failed(self) -> int:
        """Rows of the plan that went wrong: their status is in `FAILED`."""
        return sum(self.counts.get(status, 0) for status in FAILED)

    @property
    def device_s(self) -> float:
        """Time that requests took on all devices, on their clocks."""
        return sum(run.device_s for run in self.runs)


def profile(
    sessions: Sequence[TargetSession],
    rows: Sequence[PlannedRow],
    path: str | Path,
    protocol: TimingProtocol | None = None,
    retry: bool = False,
    on_progress: ProfileProgress | None = None,
    reference: str | Path | None = None,
    networks: Sequence[PlannedNetwork] = (),
) -> ProfileResult:
    """Measures what a table lacks of a plan, and writes it.

    Finished rows go to a journal beside the table; killed at any moment, the next run goes
    on from there. Several agents take rows as they get free; what an agent has in work when it
    drops out goes back to the others, and an agent that comes back joins again.

    Args:
        sessions: one for each agent, all of the same target.
        rows: the plan.
        path: the table; need not exist.
        protocol: how to time.
        retry: measure rows again that hold no latency, or are flagged with one of `DOUBTFUL`.
        on_progress: called with (what, share of the whole), from any thread.
        reference: an earlier table of the same target. Rows are given as on a device as fast
            as it was then. A table that holds rows of the target goes on at their speed.
        networks: timed among the rows (`plan.reference_networks`); what their calls take beyond
            their quiet times is kept beside the table.

    Raises:
        BadRequest: the agents' targets differ, the table or its journal is another's, the
            speed of the target at the reference is not known, or the table holds rows already
            whose speed is not known.
        AgentError: every agent failed; what was measured is in the journal.
    """
    protocol = protocol or TimingProtocol()
    first = sessions[0]
    target = _common_target(sessions)
    rows = [plan_row(r.name, r.shape, r.alone[0].gate, target.origin) for r in rows]
    note = on_progress or (lambda what, share: None)
    reference_ms: Mapping[str, float] = speed_of(reference, target) if reference is not None else {}
    runner, recorder, slowdown, name = None, None, 1.0, ""
    # Opened first: a folder that cannot be written, or another run's journal, shows at once.
    with Journal.open(path, target) as journal:
        table = load_with_journal(path)
        missing = missing_rows(rows, table, target, retry)
        known = known_rows(rows, table, target, missing)
        unlooped = [row for row, found in known.items() if found.cold_ms is None]
        if missing or unlooped:
            timed = _networks(first, networks)
            with first.log.timed("prepare"):
                report = partial(_part_of, note, 0.0, _PREPARING)
                prepare_artifacts(first, missing, protocol, report, timed)
            baselines, own_reference = find_reference(
                first, missing, journal, reference_ms, protocol.linking_shapes
            )
            if own_reference is not None:
                journal.append([own_reference])
                name = own_reference.name
            order = np.random.default_rng(protocol.seed).permutation(len(missing))
            plan = RunPlan(
                protocol,
                baselines,
                tuple(known),
                [missing[i] for i in order],
                unlooped,
                [network.graph for network in timed],
            )
            recorder = Recorder(journal, protocol.loop_skipped, timed)
            report = partial(_part_of, note, _PREPARING, 1.0)
            runner = Runner(sessions, plan, recorder, report)
            _run(runner, journal)
            slowdown = recorder.slowdown()
        if runner or journal.data.rows:
            table = journal.finish()
    return ProfileResult(
        table,
        target,
        len(missing),
        len(rows) - len(missing),
        counts(rows, table, target),
        runner.exclusions if runner else Exclusions(),
        Speed(name, slowdown if name else 1.0),
        tuple(runner.runs) if runner else (),
        dict(runner.seconds) if runner else {},
        tuple(recorder.failures) if recorder else (),
    )


def prepare_artifacts(
    session: TargetSession,
    rows: Sequence[PlannedRow],
    protocol: TimingProtocol,
    on_progress: ProfileProgress | None = None,
    networks: Sequence[PlannedNetwork] = (),
) -> None:
    """Makes what rows need of graphs and artefacts, on all cores, before anything is timed.

    Args:
        session: one of those that will measure them.
        rows: of a plan.
        protocol: has the number of replicas of baselines.
        on_progress: called with (what, share).
        networks: timed among the rows.
    """
    note = on_progress or (lambda what, share: None)
    replicas = protocol.for_target(session.resident).baseline_replicas
    graphs = [(graph, n) for graph in baseline_graphs(rows) for n in range(replicas)]
    graphs += [(graph, 0) for row in rows for graph in row.graphs]
    graphs += [(network.graph, 0) for network in networks]
    pieces = {piece for graph, _ in graphs for piece in graph}
    prepare_templates(
        sorted(pieces, key=lambda p: p.key), lambda done, n: note("export", 0.5 * done / n)
    )
    session.prepare(
        [partial(graph_bytes, *graph) for graph in graphs],
        lambda done, n: note("convert", 0.5 + 0.5 * done / n),
    )


def _common_target(sessions: Sequence[TargetSession]) -> Target:
    first = sessions[0]
    for session in sessions[1:]:
        if session.target != first.target:
            raise BadRequest(
                f"the agents at {first.client.address} and {session.client.address} are not of "
                f"one kind: {first.target} and {session.target}; give each kind its own table"
            )
    return first.target


def _part_of(note: ProfileProgress, start: float, end: float, what: str, share: float) -> None:
    """Progress within a part of the whole."""
    note(what, start + (end - start) * share)


def _networks(
    session: TargetSession, networks: Sequence[PlannedNetwork]
) -> tuple[PlannedNetwork, ...]:
    """Networks that are timed: none where nothing is called, or they would fill the memory."""
    held = sum(weight_bytes(network.graph) for network in networks)
    fits = held <= session.batch_bytes // 4
    return tuple(networks) if session.target.origin != ESTIMATED and fits else ()


def _run(runner: Runner, journal: Journal) -> None:
    """Runs, and keeps the history of the table whatever happens."""
    history = load_runs(journal.table_path)
    try:
        runner.run()
    except HurricaneError as error:
        if not journal.data.rows:
            raise
        count = len(journal.data.rows)
        hint = f"{count} rows are safe, the same command goes on from there"
        raise type(error)(f"{error}; {hint}") from error
    finally:
        if runner.runs:
            with suppress(HurricaneError):  # nothing depends on it
                save_runs(journal.table_path, (*history, *runner.runs))
