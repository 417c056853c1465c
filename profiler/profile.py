"""Filling a table: what is missing is exported, sent, timed and written down, batch by batch."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.errors import AgentError, ErrorKind
from ..agents.results import ArtifactResult, Protocol
from ..lookup_tables.journal import Journal
from ..lookup_tables.table import LookupTable, Row, RowKey, Target, format_flags
from ..ops.backbone import row_costs
from ..ops.errors import BadRequest, HurricaneError
from ..ops.graph import prepare_templates
from .estimate import estimate_row, location_ms
from .measuring import Bench, MeasuringSettings, cold_calls
from .plan import Graph, PlannedRow, anchor_graphs, weight_bytes

ROWS_IN_A_BATCH = 72
"""A kill costs at most one batch of each agent; a batch must be much larger than the caches."""

DRIFT = 0.03
"""A batch whose anchors are slower than in the agent's best batch by more is timed again."""

REPEATS = 2
"""Times that a disturbed batch is timed again."""

DISTURBED = "disturbed"
"""Flag of rows that were taken in a slow time."""

_STATUS = {
    ErrorKind.UNSUPPORTED_OPERATOR: "unsupported",
    ErrorKind.TIMED_OUT: "timeout",
}
_ABANDONS = (ErrorKind.DEVICE_LOST, ErrorKind.BUSY, ErrorKind.UNAUTHORISED)
"""Errors that say nothing of a graph: the row stays open for the next run."""

ProfileProgress = Callable[[str, float], None]
"""Called with what is going on and the share of the whole that is done."""


@dataclass(frozen=True)
class ProfileResult:
    """What a run did.

    Attributes:
        table: the finished table.
        measured: rows that this run measured.
        kept: rows of the plan that were there before.
        not_ok: rows of the plan that hold no latency, by status.
        disturbed: rows of the plan that were taken in a slow time.
        lost: agents that dropped out, with the reason; the others did their work.
    """

    table: LookupTable
    target: Target
    measured: int
    kept: int
    not_ok: Mapping[str, int]
    disturbed: int = 0
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchResult:
    """One batch's rows, and what its anchors took, in ms."""

    rows: list[Row]
    anchors_ms: Mapping[Graph, float]


def slowdowns(batches: Sequence[Mapping[Graph, float]]) -> list[float]:
    """How much slower each batch's anchors were than in the best batch; fractions.

    Args:
        batches: what the anchors of each batch took, in ms.

    Returns:
        For each batch, the median over its anchors; 0 where there is nothing to compare.
    """
    best: dict[Graph, float] = {}
    for batch in batches:
        for graph, ms in batch.items():
            best[graph] = min(ms, best.get(graph, ms))
    return [
        float(np.median([ms / best[graph] for graph, ms in batch.items()])) - 1 if batch else 0.0
        for batch in batches
    ]


def missing_rows(
    rows: Iterable[PlannedRow], table: LookupTable, target: Target, retry: bool = False
) -> list[PlannedRow]:
    """Rows of a plan that a table does not hold yet.

    Args:
        rows: the plan.
        table: with its journal.
        target: whose rows count.
        retry: count rows as missing that hold no latency or were taken in a slow time.
    """
    missing = []
    for row in rows:
        found = table.get(RowKey(target, row.name, row.shape))
        if found is None or (retry and (not found.ok or DISTURBED in found.flag_words)):
            missing.append(row)
    return missing


def split_batches(rows: Sequence[PlannedRow], max_bytes: int) -> list[list[PlannedRow]]:
    """Batches that mix all layer shapes, so that graphs push each other out of the caches.

    Rows are dealt out like cards, largest first, so that batches take about equal memory.
    """
    sizes = {row: sum(weight_bytes(graph) for graph in row.graphs) for row in rows}
    total = sum(sizes.values())
    count = max(1, -(-len(rows) // ROWS_IN_A_BATCH), -(-total // max(1, max_bytes)))
    count = min(count, len(rows))
    batches: list[list[PlannedRow]] = [[] for _ in range(count)]
    for index, row in enumerate(sorted(rows, key=lambda r: (-sizes[r], r.name, r.shape))):
        turn, seat = divmod(index, count)
        batches[seat if turn % 2 == 0 else count - 1 - seat].append(row)
    return batches


def measure_batch(
    bench: Bench,
    rows: Sequence[PlannedRow],
    settings: MeasuringSettings,
    anchors: Sequence[Graph] = (),
    on_progress: ProfileProgress | None = None,
) -> BatchResult:
    """Times one batch on one agent.

    Args:
        bench: target and agent.
        rows: at most as many as the agent can hold.
        settings: how.
        anchors: graphs that every batch times, so that batches can be compared.
        on_progress: called with (step, share of this batch).

    Returns:
        One row of the table for each planned row, and the anchors' times.

    Raises:
        AgentError: the batch as a whole failed; nothing of it is to be kept.
    """
    note = on_progress or (lambda step, share: None)
    graphs = list(dict.fromkeys([*anchors, *(graph for row in rows for graph in row.graphs)]))
    digests: dict[Graph, str] = {}
    for index, graph in enumerate(graphs):
        digests[graph] = bench.digest_of(graph)
        note("send", 0.15 * (index + 1) / len(graphs))
    cold = bench.time(
        list(digests.values()),
        Protocol(
            rounds=settings.rounds,
            calls_per_visit=1,
            warmup_calls=settings.warmup_calls,
            seed=settings.seed,
            artifact_timeout_s=settings.timeout_s,
            keep_loaded=True,
        ),
        lambda step, share: note(
            step, 0.15 + (0.3 * share if step == "load" else 0.3 + 0.4 * share)
        ),
    )
    usable = [digests[row.alone] for row in rows if cold[digests[row.alone]].error is None]
    warm: Mapping[str, ArtifactResult] = {}
    if usable:
        warm = bench.time(
            usable,
            Protocol(
                rounds=settings.warm_rounds,
                calls_per_visit=settings.warm_calls,
                warmup_calls=settings.warmup_calls,
                seed=settings.seed + 1,
                artifact_timeout_s=settings.timeout_s,
                keep_loaded=False,
            ),
            lambda step, share: note("loop", 0.85 + 0.15 * share),
        )
    times = {g: cold_calls(cold[d]) for g, d in digests.items() if cold[d].error is None}
    batch = _Batch(bench, settings, digests, cold, warm, times)
    levels = {g: location_ms(times[g]) for g in anchors if g in times}
    return BatchResult([_table_row(batch, row) for row in rows], levels)


@dataclass(frozen=True)
class _Batch:
    """What was timed in one batch."""

    bench: Bench
    settings: MeasuringSettings
    digests: Mapping[Graph, str]
    cold: Mapping[str, ArtifactResult]
    warm: Mapping[str, ArtifactResult]
    times: Mapping[Graph, np.ndarray]


def _table_row(batch: _Batch, row: PlannedRow) -> Row:
    bench, digests, cold, warm = batch.bench, batch.digests, batch.cold, batch.warm
    results = [cold[digests[graph]] for graph in row.graphs]
    own = cold[digests[row.alone]]
    costs = row_costs(row.name, row.shape)
    values: dict[str, Any] = {
        "macs": sum(c.macs for c in costs),
        "params": sum(c.params for c in costs),
        "graph_sha256": digests[row.alone],
        "artifact_sha256": digests[row.alone],
        "agent_version": bench.agent_version,
        "measured_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    failed = next((r.error for r in results if r.error is not None), None)
    if failed is not None:
        if failed.kind in _ABANDONS:
            raise failed
        status = _STATUS.get(failed.kind, "failed")
        flags = () if status != "failed" else (failed.kind.name.lower().replace("_", "-"),)
        return Row.of(
            bench.target, row.name, row.shape, status=status, flags=format_flags(flags), **values
        )
    found = estimate_row(row, batch.times)
    if found.latency_ms <= 0:
        return Row.of(
            bench.target, row.name, row.shape, status="failed", flags="below-noise", **values
        )
    looped = warm.get(digests[row.alone])
    warm_ms = None
    if looped is not None and looped.error is None:
        warm_ms = location_ms(np.asarray(looped.wall_ms)[:, batch.settings.warm_skipped :])
    device = own.device_ms
    flags = dict.fromkeys((*(f for r in results for f in r.flags), *found.flags))
    if len({r.compute_unit for r in results}) > 1:
        flags["mixed-unit"] = None
    return Row.of(
        bench.target,
        row.name,
        row.shape,
        status="ok",
        latency_ms=found.latency_ms,
        ci_low_ms=found.ci_low_ms,
        ci_high_ms=found.ci_high_ms,
        call_ms=found.call_ms,
        warm_ms=warm_ms,
        cold_ms=found.cold_ms,
        p10_ms=found.p10_ms,
        p90_ms=found.p90_ms,
        device_ms=location_ms(device[:, 0]) if device is not None and device.size else None,
        samples=found.samples,
        rounds=found.rounds,
        estimator=row.estimator,
        flags=format_flags(flags),
        compute_unit=own.compute_unit,
        temperature_before_c=own.before.temperature_c or None,
        temperature_after_c=own.after.temperature_c or None,
        frequency_before_mhz=own.before.frequency_mhz or None,
        frequency_after_mhz=own.after.frequency_mhz or None,
        **values,
    )


def profile(
    benches: Sequence[Bench],
    rows: Sequence[PlannedRow],
    path: str | Path,
    settings: MeasuringSettings | None = None,
    retry: bool = False,
    on_progress: ProfileProgress | None = None,
) -> ProfileResult:
    """Measures what a table lacks of a plan, and writes it.

    Finished batches go to a journal beside the table; killed at any moment, the next run goes
    on from there. Several agents take batches as they get free; the batch of an agent that
    fails goes back to the others.

    Args:
        benches: one for each agent, all of the same target.
        rows: the plan.
        path: the table; need not exist.
        settings: how to time.
        retry: measure rows again that hold no latency or were taken in a slow time.
        on_progress: called with (what, share of the whole), from any thread.

    Raises:
        BadRequest: the agents' targets differ, or the table or its journal is another's.
        AgentError: every agent failed; what was measured is in the journal.
    """
    settings = settings or MeasuringSettings()
    target = benches[0].target
    for bench in benches[1:]:
        if bench.target != target:
            raise BadRequest(
                f"the agents at {benches[0].client.address} and {bench.client.address} are not "
                f"of one kind: {target} and {bench.target}; give each kind its own table"
            )
    note = on_progress or (lambda what, share: None)
    lost: tuple[str, ...] = ()
    # Opened first: a folder that cannot be written, or another run's journal, is told at once.
    with Journal.open(path, target) as journal:
        table = LookupTable.load_with_journal(path)
        missing = missing_rows(rows, table, target, retry)
        if missing:
            graphs = [*anchor_graphs(missing), *(g for row in missing for g in row.graphs)]
            pieces = {piece for graph in graphs for piece in graph}
            prepare_templates(
                sorted(pieces, key=lambda p: p.key), lambda done, n: note("export", 0.1 * done / n)
            )
            lost = _run_batches(benches, missing, settings, journal, note)
        if missing or journal.rows:
            table = journal.finish()
    not_ok: dict[str, int] = {}
    disturbed = 0
    for row in rows:
        found = table.get(RowKey(target, row.name, row.shape))
        if found is not None and not found.ok:
            not_ok[found.status] = not_ok.get(found.status, 0) + 1
        disturbed += found is not None and DISTURBED in found.flag_words
    kept = len(rows) - len(missing)
    return ProfileResult(table, target, len(missing), kept, not_ok, disturbed, lost)


def _run_batches(
    benches: Sequence[Bench],
    rows: Sequence[PlannedRow],
    settings: MeasuringSettings,
    journal: Journal,
    note: ProfileProgress,
) -> tuple[str, ...]:
    """Shares batches out to agents, and times those again that fell into a slow time.

    Returns:
        Agents that dropped out while others went on, with the reason.
    """
    batches = split_batches(rows, min(b.max_bytes for b in benches) // 2)
    anchors = anchor_graphs(rows) if len(batches) > 1 else ()
    waiting: queue.Queue[int] = queue.Queue()
    for index in range(len(batches)):
        waiting.put(index)
    shares = [0.0] * len(batches)
    lock = threading.Lock()
    failures: list[Exception] = []
    lost: list[str] = []
    left = [len(batches)]
    stopped = threading.Event()

    def time_one(bench: Bench, index: int, turn: int) -> BatchResult:
        def report(step: str, share: float) -> None:
            shares[index] = max(shares[index], share)
            what = f"{step} again" if turn else step
            note(what, 0.1 + 0.9 * sum(shares) / len(shares))

        seed = settings.seed + 2 * (index + turn * len(batches))
        return measure_batch(bench, batches[index], replace(settings, seed=seed), anchors, report)

    def keep(done: Mapping[int, BatchResult], known: dict[int, bool], fresh: int) -> list[int]:
        """Writes down a fresh batch, and again those that now turn out disturbed.

        Whatever happens next, the journal holds no disturbed row without its flag.
        """
        slow = dict(zip(done, slowdowns([r.anchors_ms for r in done.values()]), strict=True))
        for index, slowdown in slow.items():
            disturbed = slowdown > DRIFT
            if index == fresh or known.get(index) != disturbed:
                rows = done[index].rows
                with lock:
                    journal.append([_flagged(r) for r in rows] if disturbed else rows)
                known[index] = disturbed
        return [index for index, disturbed in known.items() if disturbed]

    def work(bench: Bench) -> None:
        done: dict[int, BatchResult] = {}
        known: dict[int, bool] = {}
        disturbed: list[int] = []
        index = -1
        try:
            while left[0] > 0 and not stopped.is_set():
                index = -1
                with contextlib.suppress(queue.Empty):
                    index = waiting.get(timeout=0.2)
                if index < 0:
                    continue
                done[index] = time_one(bench, index, 0)
                disturbed = keep(done, known, index)
                with lock:
                    left[0] -= 1
            index = -1
            for turn in range(1, REPEATS + 1):
                for slow in disturbed:
                    if stopped.is_set():
                        return
                    again = time_one(bench, slow, turn)
                    before, now = slowdowns([done[slow].anchors_ms, again.anchors_ms])
                    if now < before:
                        done[slow] = again
                    disturbed = keep(done, known, slow)
        except AgentError as error:  # this agent is out; others may take its batch
            failures.append(error)
            lost.append(f"{bench.client.address}: {error}")
            if index >= 0:
                waiting.put(index)
        except Exception as error:
            failures.append(error)
            stopped.set()

    threads = [threading.Thread(target=work, args=(bench,), daemon=True) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
    broken = next((f for f in failures if not isinstance(f, AgentError)), None)
    if broken is None and failures and left[0]:
        broken = failures[-1]
    if isinstance(broken, AgentError | HurricaneError):
        if not journal.rows:
            raise broken
        hint = f"{len(journal.rows)} rows are safe, the same command goes on from there"
        raise type(broken)(f"{broken}; {hint}") from broken
    if broken is not None:
        raise broken
    return tuple(lost)


def _flagged(row: Row) -> Row:
    """The row with the flag `DISTURBED`, where it holds a latency."""
    if not row.ok:
        return row
    return replace(row, flags=format_flags(dict.fromkeys((*row.flag_words, DISTURBED))))
