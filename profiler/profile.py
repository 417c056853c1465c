"""Filling a table: what is missing is exported, sent, timed and written down, row by row."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.conditions import Conditions
from ..agents.errors import AgentError, BadAnswer, Busy, ErrorKind
from ..agents.results import ArtifactResult
from ..lookup_tables.anchors import anchors_path, load_anchors, save_anchors
from ..lookup_tables.journal import Journal
from ..lookup_tables.runs import Run, load_runs, save_runs
from ..lookup_tables.table import (
    LookupTable,
    Row,
    RowKey,
    TableError,
    Target,
    format_flags,
)
from ..ops.backbone import is_stem, row_costs
from ..ops.errors import BadRequest, HurricaneError
from ..ops.graph import prepare_templates
from .estimate import location_ms
from .measuring import Bench, Machine, MeasuringSettings, gate_of
from .plan import (
    COPIES,
    NEIGHBOURS,
    Graph,
    PlannedRow,
    anchor_graphs,
    batches,
    graph_bytes,
    plan_row,
)
from .rotation import (
    ABANDONS,
    DISTURBED,
    FOREIGN,
    THROTTLED,
    UNSTABLE,
    Found,
    Rotation,
    is_foreign,
    time_anchors,
)

REPEATS = 1
"""Times that a row is measured again which turns out to have been taken in a slow time."""

BOARD_SPREAD = 0.05
"""Boards of one kind whose anchors differ by more are not of one kind."""

REJOIN_S = 5.0
"""How long a run waits for a board to come back when it has no other left."""

PREPARING = 0.1
"""Share of a run, as its progress is told, that making graphs and artefacts takes."""

LATE_S = 30.0
"""How long a board may be later with its anchors than most, at least; it joins when it is done."""

LINKS = 4
"""Shapes of a table by whose anchors it goes on where the new rows have none in common with it."""

FAILED = ("failed", "timeout")
"""Statuses of rows that went wrong and may go well another time; ``unsupported`` is a fact about
the device."""

RENEWED = 0.01
"""Rows are written down anew when what is taken for the device's speed changes by more."""

STATUS_OF = {
    ErrorKind.UNSUPPORTED_OPERATOR: "unsupported",
    ErrorKind.TIMED_OUT: "timeout",
}
_LOSSES = 3
"""Times that an agent may drop out without a row in between."""

ProfileProgress = Callable[[str, float], None]
"""Called with what is going on and the share of the whole that is done."""


@dataclass(frozen=True)
class ProfileResult:
    """What a run did.

    Attributes:
        table: the finished table.
        target: of its rows.
        measured: rows that this run measured.
        kept: rows of the plan that were there before.
        not_ok: rows of the plan that hold no latency, by status.
        disturbed: rows of the plan that were taken in a slow time.
        unstable: rows of the plan whose intervals stayed wider than asked for.
        throttled: rows of the plan that were taken after the device had lowered its clock.
        lost: agents that dropped out, with the reason; the others did their work.
        left_out: boards that disagree with the others, with by how much.
        device_s: time spent by each agent, on the device's clock.
        referred_to: whose speed the rows are given at: ``rows from before`` where a table goes
            on, ``reference``, or empty: their own.
        level: how slow the device was, as a multiple of that; divided out.
        runs: what each agent did, and what its machine was like.
    """

    table: LookupTable
    target: Target
    measured: int
    kept: int
    not_ok: Mapping[str, int]
    disturbed: int = 0
    unstable: int = 0
    throttled: int = 0
    lost: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    device_s: Mapping[str, float] = field(default_factory=dict)
    referred_to: str = ""
    level: float = 1.0
    runs: tuple[Run, ...] = ()

    @property
    def failed(self) -> int:
        """Rows of the plan that went wrong: their status is in `FAILED`."""
        return sum(self.not_ok.get(status, 0) for status in FAILED)


def missing_rows(
    rows: Iterable[PlannedRow], table: LookupTable, target: Target, retry: bool = False
) -> list[PlannedRow]:
    """Rows of a plan that a table does not hold yet.

    Args:
        rows: the plan.
        table: with its journal.
        target: whose rows count.
        retry: count rows as missing that hold no latency, were taken in a slow or throttled
            time, or did not settle.
    """
    missing = []
    for row in rows:
        found = table.get(RowKey(target, row.name, row.shape))
        again = found is not None and (
            not found.ok or not {DISTURBED, UNSTABLE, THROTTLED}.isdisjoint(found.flag_words)
        )
        if found is None or (retry and again):
            missing.append(row)
    return missing


def failed_rows(rows: Iterable[PlannedRow], table: LookupTable, target: Target) -> list[PlannedRow]:
    """Rows of a plan that a table holds, but that went wrong.

    Args:
        rows: the plan.
        table: with its journal.
        target: whose rows count.
    """
    found = {row: table.get(RowKey(target, row.name, row.shape)) for row in rows}
    return [row for row, there in found.items() if there is not None and there.status in FAILED]


def profile(
    benches: Sequence[Bench],
    rows: Sequence[PlannedRow],
    path: str | Path,
    settings: MeasuringSettings | None = None,
    retry: bool = False,
    on_progress: ProfileProgress | None = None,
    reference: str | Path | None = None,
) -> ProfileResult:
    """Measures what a table lacks of a plan, and writes it.

    Finished rows go to a journal beside the table; killed at any moment, the next run goes
    on from there. Several agents take rows as they get free; what an agent has in work when it
    drops out goes back to the others, and an agent that comes back joins again.

    Args:
        benches: one for each agent, all of the same target.
        rows: the plan.
        path: the table; need not exist.
        settings: how to time.
        retry: measure rows again that hold no latency, were taken in a slow or throttled time,
            or did not settle.
        on_progress: called with (what, share of the whole), from any thread.
        reference: an earlier table of the same target. Rows are given as on a device as fast
            as it was then. A table that holds rows of the target goes on at their speed.

    Raises:
        BadRequest: the agents' targets differ, the table or its journal is another's, the
            reference does not tell how fast the target was, or the table holds rows already
            whose speed is not known.
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
    rows = [plan_row(r.name, r.shape, r.alone[0].gate, target.origin) for r in rows]
    note = on_progress or (lambda what, share: None)
    reference_ms = speed_of(reference, target) if reference is not None else {}
    pool = None
    # Opened first: a folder that cannot be written, or another run's journal, is told at once.
    with Journal.open(path, target) as journal:
        table = LookupTable.load_with_journal(path)
        missing = missing_rows(rows, table, target, retry)
        todo = set(missing)
        kept = {
            row: found
            for row in rows
            if row not in todo
            and (found := table.get(RowKey(target, row.name, row.shape))) is not None
            and found.ok
        }
        if missing or any(found.cold_ms is None for found in kept.values()):
            prepare_artifacts(
                benches[0], missing, lambda what, share: note(what, PREPARING * share)
            )
            pool = _Pool(
                benches,
                missing,
                kept,
                settings,
                journal,
                [row for row in table.rows if row.target == target and row.ok],
                reference_ms,
                lambda what, s: note(what, PREPARING + (1 - PREPARING) * s),
            )
            pool.run()
        if pool or journal.rows:
            table = journal.finish()
    there = [table.get(RowKey(target, row.name, row.shape)) for row in rows]
    not_ok: dict[str, int] = {}
    for found in there:
        if found is not None and not found.ok:
            not_ok[found.status] = not_ok.get(found.status, 0) + 1
    flags = [flag for found in there if found is not None for flag in found.flag_words]
    return ProfileResult(
        table,
        target,
        len(missing),
        len(rows) - len(missing),
        not_ok,
        flags.count(DISTURBED),
        flags.count(UNSTABLE),
        flags.count(THROTTLED),
        tuple(pool.lost.values()) if pool else (),
        tuple(pool.left_out) if pool else (),
        {b.client.address: b.spent_ms / 1e3 for b in (pool.benches if pool else benches)},
        pool.referred_to if pool and pool.levels else "",
        float(np.median(list(pool.levels.values()))) if pool and pool.levels else 1.0,
        pool.runs if pool else (),
    )


def prepare_artifacts(
    bench: Bench, rows: Sequence[PlannedRow], on_progress: ProfileProgress | None = None
) -> None:
    """Makes what rows need of graphs and artefacts, on all cores, before anything is timed.

    Args:
        bench: one of those that will measure them.
        rows: of a plan.
        on_progress: called with (what, share).
    """
    note = on_progress or (lambda what, share: None)
    graphs = [(graph, copy) for graph in anchor_graphs(rows) for copy in range(COPIES)]
    graphs += [(graph, 0) for row in rows for graph in row.graphs]
    pieces = {piece for graph, _ in graphs for piece in graph}
    prepare_templates(
        sorted(pieces, key=lambda p: p.key), lambda done, n: note("export", 0.5 * done / n)
    )
    bench.prepare(
        [partial(graph_bytes, *graph) for graph in graphs],
        lambda done, n: note("convert", 0.5 + 0.5 * done / n),
    )


def speed_of(reference: str | Path, target: Target) -> dict[str, float]:
    """What graphs took for an earlier table, by their digests, in ms.

    Raises:
        BadRequest: there is no such table, or it does not tell.
    """
    if not Path(reference).is_file():
        raise BadRequest(f"{reference}: there is no such table to refer to")
    known = load_anchors(reference, target)
    if not known:
        raise BadRequest(
            f"{anchors_path(reference)} does not tell how fast {target} was; a reference is a "
            "table that profile-ops made of the same target, with that file beside it"
        )
    return known


@dataclass(eq=False)
class _Part:
    """One agent's part in a run; an agent that came back begins another."""

    bench: Bench
    rotation: Rotation
    began_ms: float  # that its requests had taken before
    refers: bool  # to the speed of the table; a single agent says at the end what that is
    rows: set[PlannedRow] = field(default_factory=set)
    works: bool = True

    def run(self) -> Run:
        """What is kept of it beside the table."""
        bench, machine = self.bench, self.bench.machine
        before, after = machine.before or Conditions(), machine.after or Conditions()
        return Run(
            ended_at=_now(),
            target=str(bench.target),
            agent_version=bench.agent_version,
            rows=len(self.rows),
            device_s=(bench.spent_ms - self.began_ms) / 1e3,
            laps=self.rotation.laps,
            laps_repeated=self.rotation.disturbed_laps,
            level=self.rotation.level(),
            governor=before.governor or None,
            frequency_before_mhz=before.frequency_mhz or None,
            frequency_after_mhz=after.frequency_mhz or None,
            temperature_before_c=before.temperature_c or None,
            temperature_after_c=after.temperature_c or None,
            load_before=before.load_1m or None,
            load_after=after.load_1m or None,
            throttle_events=machine.throttle_events,
            steal_share=machine.steal_share,
            busy_share=machine.busy_share,
        )


class _Pool:
    """Agents of one kind that share a plan, one thread for each.

    Attributes:
        benches: of the agents.
        lost: agents that are out, by address, with the reason.
        left_out: boards that disagree with the others, with by how much.
        referred_to: whose speed rows are given at; empty: that of the first board.
        levels: how slow each board was against that, by address.
        runs: what each board did.

    Args:
        benches: of the agents.
        rows: to be measured.
        kept: rows of the plan that are there already.
        settings: how to time.
        journal: of the table.
        there: rows of the target that the table holds.
        reference_ms: what graphs took for an earlier table, by their digests.
        note: takes what is going on.
    """

    def __init__(
        self,
        benches: Sequence[Bench],
        rows: Sequence[PlannedRow],
        kept: Mapping[PlannedRow, Row],
        settings: MeasuringSettings,
        journal: Journal,
        there: Sequence[Row],
        reference_ms: Mapping[str, float],
        note: ProfileProgress,
    ) -> None:
        self.benches = list(benches)
        self.lost: dict[str, str] = {}
        self.left_out: list[str] = []
        self.levels: dict[str, float] = {}
        self.runs: tuple[Run, ...] = ()
        self._absent: dict[str, AgentError] = {}
        self._settings = settings
        self._journal = journal
        self._note = note
        self._anchors = anchor_graphs(rows)
        self._copies = max(1, COPIES // len(benches))  # loading them costs every board anew
        order = np.random.default_rng(settings.seed).permutation(len(rows))
        self._waiting = deque(rows[i] for i in order)
        self._kept = tuple(kept)
        plain = {row: found for row, found in kept.items() if found.cold_ms is None}
        self._plain = deque(plain.items())
        self._left = len(rows) + len(plain)
        self._steps = max(1, 2 * len(rows) + len(plain))
        self._done = 0
        self._changed = threading.Condition()
        self._working = len(benches)
        self._parts: list[_Part] = []
        self._losses: Counter[Graph] = Counter()
        self._history = load_runs(journal.table_path)
        self._failure: Exception | None = None
        # A resumed run goes on at the level of the one before it.
        self._known = load_anchors(journal.table_path, self.benches[0].target) if there else {}
        own = _digests(self.benches[0], self._anchors)
        if rows and self._known and own.isdisjoint(self._known):
            # Other layers than those that are there: some of their anchors ride along.
            self._anchors = tuple(dict.fromkeys((*self._anchors, *_links(there))))
            own = _digests(self.benches[0], self._anchors)
        before = {digest: ms for digest, ms in self._known.items() if digest in own}
        self._reference: Mapping[str, float] = before
        self.referred_to = "rows from before" if before else ""
        if rows and reference_ms and not before:
            if there:
                raise BadRequest(
                    f"{journal.table_path} holds rows whose speed is not known; a reference is "
                    "for a new table: give another name, or leave it out"
                )
            if own.isdisjoint(reference_ms):
                raise BadRequest("the reference has no layer shape in common with these layers")
            self._reference, self.referred_to = reference_ms, "reference"
        # Anchors of other tables are no part of what lies beside this one.
        self._stays = before
        self._common: dict[Graph, float] = {}

    def run(self) -> None:
        """Works until every row is done, or no agent is left.

        Raises:
            AgentError: no agent is left.
        """
        if len(self.benches) > 1 and self._waiting:
            self._compare_boards()
        self._working = len(self.benches)
        try:
            # A board that waits for others' work on it is not waited for.
            self._on_every_board(self._work, self._is_over)
        finally:
            with self._changed:
                parts = [part for part in self._parts if part.rotation.laps]
            self.runs = tuple(part.run() for part in parts)
            if self.runs:
                with suppress(HurricaneError):  # nothing depends on it
                    save_runs(self._journal.table_path, (*self._history, *self.runs))
        if self._failure is None:
            return
        if isinstance(self._failure, AgentError | HurricaneError) and self._journal.rows:
            hint = f"{len(self._journal.rows)} rows are safe, the same command goes on from there"
            raise type(self._failure)(f"{self._failure}; {hint}") from self._failure
        raise self._failure

    def _is_over(self) -> bool:
        """Whether no board has work, or would get any."""
        with self._changed:
            ended = not self._left or self._failure is not None
            return ended and not any(part.works for part in self._parts)

    def _on_every_board(
        self, work: Callable[[int], None], late: Callable[[], bool] = lambda: False
    ) -> None:
        """Does this for the index of every board at the same time.

        Waits for all of them, or until those that are not done are too late.
        """
        threads = [
            threading.Thread(target=work, args=(index,), daemon=True)
            for index in range(len(self.benches))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not late():
                thread.join(0.2)

    def _compare_boards(self) -> None:
        """Times the anchors on every board, and leaves out those that disagree.

        A board on which others measure meanwhile is not waited for: it is compared when it is
        free, as one that comes back is.
        """
        answers: dict[int, dict[Graph, float] | Exception] = {}
        started = time.monotonic()
        deadline = math.inf

        def time_one(index: int) -> None:
            bench = self.benches[index]
            try:
                answer = time_anchors(bench, self._anchors, self._settings, self._copies)
            except Exception as error:
                answer = error
            answers[index] = answer

        def late() -> bool:
            nonlocal deadline
            now = time.monotonic()
            some = any(isinstance(answer, dict) for answer in list(answers.values()))
            if some and 2 * len(answers) >= len(self.benches):
                deadline = min(deadline, now + max(LATE_S, now - started))
            return now > deadline

        self._note("compare", 0.0)
        self._on_every_board(time_one, late)
        found: dict[int, dict[Graph, float]] = {}
        for index, bench in enumerate(self.benches):
            answer = answers.get(index, Busy("it is busy with other work"))
            if isinstance(answer, AgentError):
                self._absent[bench.client.address] = answer
            elif isinstance(answer, Exception):
                raise answer
            else:
                found[index] = answer
        # Of two that disagree nobody knows which is right: the first one given stays.
        names = sorted(found)
        voters = names if len(names) > 2 else names[:1]
        votes = {g: [found[i][g] for i in voters if g in found[i]] for g in self._anchors}
        # The lower one of the middle two: between two halves that disagree lies no board.
        common = {g: float(np.percentile(ms, 50, method="lower")) for g, ms in votes.items() if ms}
        self.benches = [
            bench
            for index, bench in enumerate(self.benches)
            if index not in found or self._agrees(bench, found[index], common)
        ]
        if not self.benches:
            raise HurricaneError(
                f"no two boards agree how fast they are ({'; '.join(self.left_out)}); "
                "name one with --agent"
            )
        # Only to compare boards by: alone, anchors take less than among rows.
        self._common = common

    def _agrees(
        self, bench: Bench, anchors_ms: Mapping[Graph, float], common_ms: Mapping[Graph, float]
    ) -> bool:
        """Whether a board's anchors are those of its kind; if not, it is named."""
        ratios = np.array([ms / common_ms[g] for g, ms in anchors_ms.items() if g in common_ms])
        if not ratios.size:
            return True
        differs = float(np.median(ratios)) - 1
        spread = 1.4826 * float(np.median(np.abs(ratios - 1 - differs))) / np.sqrt(ratios.size)
        if abs(differs) <= max(BOARD_SPREAD, 3 * spread):
            return True
        words = f"{abs(differs):.0%} {'slower' if differs > 0 else 'faster'}"
        self.left_out.append(f"{bench.client.address}: its anchors are {words} than the others'")
        return False

    def _work(self, index: int) -> None:
        losses = 0
        try:
            while True:
                before = self._done
                address = self.benches[index].client.address
                try:
                    if address in self._absent:
                        raise self._absent.pop(address)
                    self._serve(self.benches[index])
                    return
                except AgentError as error:
                    losses = 1 if self._done > before else losses + 1
                    with self._changed:
                        self.lost[address] = _said(address, error)
                        self._working -= 1
                        self._changed.notify_all()
                    if losses > _LOSSES or not self._rejoins(index, error):
                        named = type(error)(_said(address, error))
                        named.__cause__ = error
                        self._fail(named)
                        return
        except Exception as error:
            self._fail(error, everybody=True)

    def _fail(self, error: Exception, everybody: bool = False) -> None:
        with self._changed:
            if everybody or (self._working == 0 and self._left and self._failure is None):
                self._failure = error
            self._changed.notify_all()

    def _rejoins(self, index: int, error: AgentError) -> bool:
        """Waits for a lost agent; False where it does not come back while there is work.

        One that sent what cannot be right is not taken back: it may lie better the next time.
        """
        if error.kind == ErrorKind.UNAUTHORISED or isinstance(error, BadAnswer):
            return False
        bench, alone_since = self.benches[index], math.inf
        while True:
            with self._changed:
                if not self._left or self._failure is not None:
                    return False
                now = time.monotonic()
                alone_since = min(alone_since, now) if self._working == 0 else math.inf
                if now - alone_since >= REJOIN_S:
                    return False
                self._changed.wait(0.5)
            try:
                again = Bench.open(bench.client, bench.request)
                again.spent_ms = bench.spent_ms
                again.machine = Machine(at_rest=bench.machine.at_rest)
                if again.target != bench.target:
                    return False
                several = self._anchors and self._copies < COPIES
                if several and not self._agrees(
                    again,
                    time_anchors(again, self._anchors, self._settings, self._copies),
                    self._common,
                ):
                    return False
            except BadAnswer as wrong:
                with self._changed:
                    self.lost[bench.client.address] = _said(bench.client.address, wrong)
                return False
            except (AgentError, BadRequest):
                continue
            with self._changed:
                self.benches[index] = again
                self.lost.pop(bench.client.address, None)
                self._working += 1
            return True

    def _serve(self, bench: Bench) -> None:
        """One agent's work, until nothing is left to do."""
        rotation = Rotation(
            bench,
            self._settings,
            self._anchors,
            self._copies,
            self._reference,
            self._kept,
            self._losses,
        )
        mine: dict[PlannedRow, Found] = {}
        known_as: float | None = None
        share: dict[PlannedRow, Row] = {}
        off: list[Found] = []
        with self._changed:
            before = [part for part in self._parts if part.bench.client is bench.client]
            began_ms = before[-1].bench.spent_ms if before else 0.0
            refers = bool(self._reference) or len(self.benches) == 1
            part = _Part(bench, rotation, began_ms, refers)
            self._parts.append(part)
        try:
            while (taken := self._next(bench, rotation, mine)) is not None:
                share = taken
                if share:
                    self._time_plain(bench, share)
                    share = {}
                else:
                    off = rotation.lap(self._progress("measure", len(rotation.rows)))
                    if not part.refers and any(found.error is None for found in off):
                        self._refer(part)
                        off = [rotation.review(found)[0] for found in off]
                    if off or mine:
                        # Before the rows: those that are there are of a speed that is known.
                        self._keep_anchors(bench, rotation.times_ms(found.row for found in off))
                    while off:
                        self._keep(bench, off[-1], mine)
                        part.rows.add(off.pop().row)
                    if mine:
                        first = float(rotation.levels()[0])
                        known_as = known_as or first
                        if abs(first / known_as - 1) > RENEWED:
                            # What was written down holds for another speed of the device.
                            self._journal.append(_reviewed(bench, rotation, mine).values())
                            known_as = first
        except BaseException:
            with self._changed:
                # A row that was being measured again keeps its first figures.
                on = (*rotation.rows, *(found.row for found in off))
                self._waiting.extendleft(row for row in on if row not in mine)
                self._plain.extendleft(share.items())
                self._release(bench, rotation, mine)
                self._changed.notify_all()
            raise
        finally:
            with self._changed:
                part.works = False

    def _next(
        self, bench: Bench, rotation: Rotation, mine: dict[PlannedRow, Found]
    ) -> dict[PlannedRow, Row] | None:
        """Finds work: rows to ride, or else some whose own graphs are to be timed.

        Waits where there is nothing to do but others may give rows back.

        Returns:
            Rows for plain timings; empty: those in the rotation; None: nothing is left.
        """
        with self._changed:
            while True:
                if self._failure is not None:
                    return None
                seats = self._share_of(rotation)
                while self._waiting and len(rotation.rows) < seats:
                    if not rotation.takes(self._waiting[0]):
                        break
                    rotation.board(self._waiting.popleft())
                if not rotation.rows:
                    for found in list(mine.values()):
                        slow = found.attempts <= REPEATS and rotation.review(found)[1]
                        if slow and rotation.takes(found.row):
                            rotation.board(found.row)
                if rotation.rows:
                    return {}
                self._release(bench, rotation, mine)
                if self._plain:
                    size = min(self._settings.seats, -(-len(self._plain) // max(1, self._working)))
                    return dict(self._plain.popleft() for _ in range(size))
                if not self._left:
                    return None
                self._changed.wait(0.5)

    def _share_of(self, rotation: Rotation) -> int:
        """How many rows an agent may have in work.

        As many as the others; half of that for a start, so that there are some left for those
        that are done with a lap first.
        """
        in_work = sum(len(part.rotation.rows) for part in self._parts if part.works)
        open_rows = len(self._waiting) + in_work
        share = -(-open_rows // max(1, self._working))
        return share if self._working == 1 or rotation.laps else -(-share // 2)

    def _keep(self, bench: Bench, found: Found, mine: dict[PlannedRow, Found]) -> None:
        """Writes a row down, and counts it."""
        try:
            row = _table_row(bench, found)
        except TableError as error:
            raise _no_row(bench, error) from error
        self._journal.append([row])
        with self._changed:
            if found.row not in mine:
                self._done += 1
            if row.ok:
                mine[found.row] = found
            else:
                mine.pop(found.row, None)
                self._left -= 1
                self._done += 1
            self._changed.notify_all()

    def _release(self, bench: Bench, rotation: Rotation, mine: dict[PlannedRow, Found]) -> None:
        """Hands an agent's rows on to plain timing, by the levels that are known in the end.

        A single agent's laps say, all of them, how fast the device is; see `_refer` for several.

        Raises:
            BadAnswer: some were rows only by levels of before; they are open again.
        """
        if mine:
            if not self._reference:
                self._reference = self._stays = rotation.times_ms()
            rotation.refer_to(self._reference)
            if self.referred_to:
                self.levels[bench.client.address] = rotation.level()
            self._keep_anchors(bench, rotation.times_ms(mine))
        rows = _reviewed(bench, rotation, mine)
        if rows:
            self._journal.append(rows.values())
            self._plain.extend((planned, row) for planned, row in rows.items() if row.ok)
            lost = sum(not row.ok for row in rows.values())  # below noise by the levels of now
            self._left -= lost
            self._done += lost
        again = [planned for planned in mine if planned not in rows]
        self._waiting.extend(again)
        self._done -= len(again)
        mine.clear()
        if again:
            raise _no_row(bench, f"{again[0].name} at {again[0].shape}")

    def _refer(self, part: _Part) -> None:
        """Of a pool, the first board that knows a row says how fast the device is, for all."""
        with self._changed:
            if not self._reference:
                self._reference = self._stays = part.rotation.times_ms()
        part.rotation.refer_to(self._reference)
        part.refers = True

    def _keep_anchors(self, bench: Bench, times_ms: Mapping[str, float]) -> None:
        """Keeps what graphs took beside the table; anchors that were there stay as they are."""
        with self._changed:
            before, self._known = self._known, {**self._known, **times_ms, **self._stays}
            if self._known != before:
                save_anchors(self._journal.table_path, bench.target, self._known)

    def _time_plain(self, bench: Bench, share: Mapping[PlannedRow, Row]) -> None:
        """Times rows' own graphs, cold and looped, and completes the rows with that."""
        settings = self._settings
        digests = {row: bench.digest_of(row.alone) for row in share}
        timed: dict[str, ArtifactResult] = {}
        for part in batches(list(share), bench.max_bytes // 2):
            for number in range(1 + REPEATS):
                results = bench.time(
                    [digests[row] for row in part],
                    settings.plain(seed=settings.seed + 1 + number),
                    self._progress("loop", len(share)),
                )
                for error in (result.error for result in results.values()):
                    if error is not None and error.kind in ABANDONS:
                        raise error
                timed |= {d: r for d, r in results.items() if d not in timed or r.error is None}
                if not any(is_foreign(result) for result in results.values()):
                    break
        done = []
        for planned, row in share.items():
            result = timed[digests[planned]]
            try:
                plain = None if result.error else _with_plain(row, result, settings.warm_skipped)
            except TableError as error:
                raise _no_row(bench, error) from error
            done.append(plain or row)
        self._journal.append(done)
        with self._changed:
            self._done += len(done)
            self._left -= len(done)
            self._changed.notify_all()

    def _progress(self, what: str, rows: int) -> ProfileProgress:
        def report(step: str, share: float) -> None:
            within = 0.3 * rows * share if what == "measure" else rows * share
            self._note(
                step if step == "load" else what, min(1.0, (self._done + within) / self._steps)
            )

        return report


def _said(address: str, error: AgentError) -> str:
    """What went wrong with an agent, and with which."""
    return str(error) if address in str(error) else f"{address}: {error}"


def _no_row(bench: Bench, why: object) -> BadAnswer:
    return BadAnswer(f"the agent at {bench.client.address} sent what no table can hold: {why}")


def _reviewed(
    bench: Bench, rotation: Rotation, mine: Mapping[PlannedRow, Found]
) -> dict[PlannedRow, Row]:
    """Rows by the levels as they are known now, without those that are none by these."""
    rows = {}
    for row, found in mine.items():
        with suppress(TableError):
            rows[row] = _table_row(bench, rotation.review(found)[0])
    return rows


def _table_row(bench: Bench, found: Found) -> Row:
    """The row of the table, without the plain timings."""
    planned = found.row
    artifact = bench.info_of(planned.alone)
    costs = row_costs(planned.name, planned.shape)
    values: dict[str, Any] = {
        "macs": sum(c.macs for c in costs),
        "params": sum(c.params for c in costs),
        "graph_sha256": artifact.graph_sha256,
        "artifact_sha256": artifact.artifact_sha256,
        "converter": artifact.converter,
        "calibration": artifact.calibration,
        "agent_version": bench.agent_version,
        "measured_at": _now(),
    }
    if found.error is not None:
        status = STATUS_OF.get(found.error.kind, "failed")
        flags = () if status != "failed" else (found.error.kind.name.lower().replace("_", "-"),)
        return Row.of(
            bench.target,
            planned.name,
            planned.shape,
            status=status,
            flags=format_flags(flags),
            **values,
        )
    estimate = found.estimate
    assert estimate is not None
    if estimate.latency_ms <= 0:
        return Row.of(
            bench.target,
            planned.name,
            planned.shape,
            status="failed",
            flags="below-noise",
            **values,
        )
    own = found.results[0]
    before = found.before or own.before
    # What other work did is told by `disturbed`: its laps are not among those of the row.
    flags = dict.fromkeys(f for r in found.results for f in r.flags if f not in FOREIGN)
    if len({r.compute_unit for r in found.results}) > 1:
        flags["mixed-unit"] = None
    return Row.of(
        bench.target,
        planned.name,
        planned.shape,
        status="ok",
        latency_ms=estimate.latency_ms,
        ci_low_ms=estimate.ci_low_ms,
        ci_high_ms=estimate.ci_high_ms,
        call_ms=found.call_ms,
        samples=estimate.samples,
        rounds=found.rounds,
        estimator=planned.estimator if own.device_ms is None else f"{planned.estimator}-device",
        flags=format_flags(dict.fromkeys((*flags, *estimate.flags))),
        compute_unit=own.compute_unit,
        temperature_before_c=before.temperature_c or None,
        temperature_after_c=own.after.temperature_c or None,
        frequency_before_mhz=before.frequency_mhz or None,
        frequency_after_mhz=own.after.frequency_mhz or None,
        **values,
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _links(rows: Sequence[Row]) -> tuple[Graph, ...]:
    """Anchors of a few of the shapes that a table holds; what they took is known."""
    shapes = {row.shape: row for row in rows if not (row.is_stem or row.is_head)}
    some = list(shapes.values())[:: -(-len(shapes) // LINKS) or 1]
    return anchor_graphs(
        [plan_row(NEIGHBOURS[0], row.shape, gate_of(row.target), row.target.origin) for row in some]
    )


def _digests(bench: Bench, graphs: Sequence[Graph]) -> set[str]:
    """Digests of the graphs' artefacts."""
    return {bench.info_of(graph).artifact_sha256 for graph in graphs}


def _with_plain(row: Row, result: ArtifactResult, skipped: int) -> Row:
    """A row completed with the plain timings of its own graph."""
    calls = np.asarray(result.wall_ms)
    cold_ms = float(location_ms(calls[:, 0]))
    warm = calls[:, min(skipped, calls.shape[1] - 1) :]
    p10, p90 = (float(x) for x in np.percentile(warm, (10, 90)))
    device = result.device_ms
    assert row.latency_ms is not None
    return replace(
        row,
        cold_ms=cold_ms,
        p10_ms=p10,
        p90_ms=p90,
        warm_ms=float(np.median(warm)),
        device_ms=None if device is None else float(location_ms(np.asarray(device)[:, 0])),
        call_ms=row.call_ms if is_stem(row.operator) else max(cold_ms - row.latency_ms, 0.0),
    )
