"""Rows in rotation on one agent: they get on, are timed lap by lap, and leave when known.

A lap is one request: a few passes, in shuffled order, over the graphs of all rows that are on and
over the shorter graphs that they share (the *anchors*). After each lap every row's interval is
looked at: a row that is known well enough leaves, and the next one takes its seat. So effort goes
where intervals are wide, and there are always many graphs between two calls of the same one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from ..agents.conditions import Conditions
from ..agents.errors import AgentError, ErrorKind
from ..agents.results import ArtifactResult
from ..lookup_tables.cells import FALLBACK, has_flag
from ..ops.backbone import is_stem
from .estimate import Estimate, estimate_row, location_ms, relative_levels
from .measuring import Bench, MeasuringSettings, clock_ms
from .plan import STEM, Context, Graph, PlannedRow

DRIFT = 0.15
"""A lap that is slower than half of what was timed by more is disturbed. Less than that, and what
most laps have, is the clock of the processor: it slows every graph alike, and is divided out."""

JUMP = 0.5
"""A lap that is slower than the best ones by more is disturbed though most laps are: no clock does
that."""

PATIENCE = 12
"""Rounds lost to disturbed laps after which a row takes what it has, corrected and flagged."""

COMPANY_BYTES = 128 * 2**20
"""Rows that are known stay on as company while those in work hold fewer bytes of weights, so that
caches stay as cold as in a network; several times what the last caches hold."""

COMPANY = 0.5
"""Graphs that stay on as company for each one in work, at most: there are enough of them then."""

CROWD = 32
"""Graphs of a lap up to which there is more company: with few others a graph finds itself in the
caches."""

STEM_CROWD = 128
"""Graphs of a lap down to which a stem stays on; among few its image stays in the caches."""

LOADINGS = 4
"""Loadings of a row's graphs, at most, where its interval is too wide by far: more calls in the
same passes, among the same company."""

LAPS_LEFT = 2
"""So many are made that it takes about as many laps yet."""

LOOK = 6
"""Passes from which on rows get further loadings: soon, while all rows are on. Later there are
few graphs in a lap, which find other things in the caches than all of them do."""

FEW = 6
"""Calls from which on a further loading counts."""

LOSSES = 2
"""Times that a device is lost at a graph until that counts as the graph's fault."""

DISTURBED = "disturbed"
"""Flag of rows that were taken in a very slow time; it is divided out like any other."""

UNSTABLE = "unstable"
"""Flag of rows whose interval is still wider than asked for after all the rounds."""

THROTTLED = "throttled"
"""Flag of rows that were taken after the device had lowered its clock."""

ABANDONS = (ErrorKind.DEVICE_LOST, ErrorKind.BUSY, ErrorKind.UNAUTHORISED)
"""Errors that say nothing of a graph: the row stays open."""

FOREIGN = ("busy", "steal")
"""Flags of a request that other work on the machine disturbed."""


@dataclass(frozen=True)
class Lap:
    """What one request gave.

    Attributes:
        results: by graph; of an anchor one for each copy.
        rounds: passes made.
        rows: that were on.
        foreign: other work took the processor meanwhile.
        throttle_events: of the device, counted up to its end.
    """

    results: Mapping[Graph, Sequence[ArtifactResult]]
    rounds: int
    rows: int
    foreign: bool
    throttle_events: int = 0

    def error(self, graph: Graph) -> AgentError | None:
        """Why a graph could not be timed."""
        return next((r.error for r in self.results[graph] if r.error is not None), None)

    def falls_back(self, graph: Graph) -> bool:
        """Whether a part of a graph runs on another unit than the target's."""
        return any(has_flag(result.flags, FALLBACK) for result in self.results[graph])

    def times(self, graph: Graph) -> list[np.ndarray]:
        """The calls of a graph, for each of its copies [visits, calls] ms."""
        return [clock_ms(result) for result in self.results[graph]]


@dataclass(frozen=True)
class Found:
    """What became of a row.

    Attributes:
        row: the plan's.
        estimate: None where `error` is set.
        error: why there is no estimate.
        laps: numbers of the laps that it rests on.
        before: what the device was like before the first of them.
        results: of its longer graph, from the last lap.
        call_ms: of the stem, what an empty call takes.
        attempts: times that it was measured.
    """

    row: PlannedRow
    estimate: Estimate | None = None
    error: AgentError | None = None
    laps: tuple[int, ...] = ()
    rounds: int = 0
    before: Conditions | None = None
    results: tuple[ArtifactResult, ...] = ()
    call_ms: float | None = None
    attempts: int = 1


class Rotation:
    """The rows in work on one agent.

    Args:
        bench: target and agent.
        settings: how to time, and when a row is known well enough.
        anchors: the shorter graphs of the whole plan.
        copies: loadings of each anchor, where the target keeps many graphs.
        reference_ms: what graphs take on a device as fast as the table is to tell, by their
            digests; empty: what they take here in the fastest laps.
        company: rows that are known from before.
        losses: times that the device was lost at a graph, over all agents; is added to.
    """

    def __init__(
        self,
        bench: Bench,
        settings: MeasuringSettings,
        anchors: Sequence[Graph],
        copies: int,
        reference_ms: Mapping[str, float],
        company: Iterable[PlannedRow] = (),
        losses: Counter[Graph] | None = None,
    ) -> None:
        self._losses = Counter() if losses is None else losses
        self.bench = bench
        self._settings = settings
        self._anchors = tuple(anchors)
        self._copies = copies if bench.resident else 1
        self._reference_ms = dict(reference_ms)
        self._on: dict[PlannedRow, int] = {}
        self._loadings: dict[PlannedRow, int] = {}
        self._single: set[Graph] = set()  # further loadings of these failed
        self._attempts: dict[PlannedRow, int] = {}
        self._company = set(company)
        self._laps: list[Lap] = []
        self._columns: dict[Graph, int] = {}
        self._graph_ms: list[dict[int, float]] = []
        self._lap_ms = 0.0  # what the last one took, less what loading took in it
        self._loaded: frozenset[str] = frozenset()  # in the last one
        self._levels = np.ones(0)
        self._cool = np.ones(0, bool)  # whether a lap came before any throttling
        self._limit = np.inf  # a lap with a higher level is disturbed

    @property
    def rows(self) -> tuple[PlannedRow, ...]:
        """The rows that are on."""
        return tuple(self._on)

    @property
    def laps(self) -> int:
        """How many there were."""
        return len(self._laps)

    @property
    def disturbed_laps(self) -> int:
        """How many of them were too slow, or disturbed by other work, and made up for."""
        # While a lap is taken in, its level is not there yet.
        told = zip(self._laps, self._levels, strict=False)
        return sum(lap.foreign or bool(level > self._limit) for lap, level in told)

    def refer_to(self, reference_ms: Mapping[str, float]) -> None:
        """From now on levels are against what graphs took elsewhere, by their digests."""
        self._reference_ms = dict(reference_ms)
        self._compare_laps()

    def takes(self, row: PlannedRow) -> bool:
        """Whether there is a seat for a row, and memory for its graphs."""
        if not self._on:
            return True
        held = self._held() + row.bytes
        return len(self._on) < self._settings.seats and held <= self.bench.max_bytes // 2

    def board(self, row: PlannedRow) -> None:
        """A row gets on."""
        self._on[row] = len(self._laps)
        self._loadings[row] = 1
        self._attempts[row] = self._attempts.get(row, 0) + 1
        self._company.discard(row)

    def lap(self, on_progress: Callable[[str, float], None] | None = None) -> list[Found]:
        """Times every row that is on, and returns those that get off.

        Raises:
            AgentError: the request as a whole failed.
        """
        settings, bench = self._settings, self.bench
        protocol = settings.lap(bench.resident, seed=settings.seed + len(self._laps))
        digests: dict[Graph, list[str]] = {}
        for anchor in self._anchors_in_work():
            digests |= copies_of(bench, (anchor,), self._copies_in_work(anchor))
        companions = self._companions()
        self._company = set(companions)  # to load others later would take longer than it is worth
        for row in (*self._on, *companions):
            digests |= copies_of(bench, row.longer, self._loadings.get(row, 1))
        spent_ms = bench.spent_ms
        timed = bench.time([d for group in digests.values() for d in group], protocol, on_progress)
        new = [result for d, result in timed.items() if d not in self._loaded]
        loading_ms = sum(r.load_ms + r.first_call_ms for r in new if r.error is None)
        self._loaded = frozenset(timed)
        self._lap_ms = max(0.0, bench.spent_ms - spent_ms - loading_ms)
        results = {graph: [timed[d] for d in group] for graph, group in digests.items()}
        self._drop_failed_loadings(results)
        self._look_for_losses(results)
        foreign = any(is_foreign(group[0]) for group in results.values())
        answers = [r for group in results.values() for r in group if r.error is None]
        events = max((r.after.throttle_events for r in answers), default=0)
        self._laps.append(Lap(results, protocol.rounds, len(self._on), foreign, events))
        self._graph_ms.append(
            {
                self._columns.setdefault(graph, len(self._columns)): ms
                for graph, ms in graph_times(digests, timed).items()
            }
        )
        self._compare_laps()
        found = [f for row in self._on if (f := self._judge(row)) is not None]
        for one in found:
            del self._on[one.row]
            del self._loadings[one.row]
            if one.estimate is not None:
                self._company.add(one.row)
        return found

    def levels(self) -> np.ndarray:
        """How slow the device was in each lap, as a multiple of the reference, [laps]."""
        return self._levels

    def level(self) -> float:
        """The same of all laps: how slow the device was in the fastest quarter of them."""
        return float(location_ms(self._levels))

    def times_ms(self, rows: Iterable[PlannedRow] = ()) -> dict[str, float]:
        """What graphs take on a device as fast as the rows tell, by their digests.

        Args:
            rows: whose longer graphs are told besides the anchors.
        """
        graphs = (*self._anchors, *(graph for row in rows for graph in row.longer))
        times = self._times_at(graphs, self.levels())
        return {self.bench.digest_of(graph): ms for graph, ms in times.items()}

    def review(self, found: Found) -> tuple[Found, bool]:
        """Looks again at a row, now that more laps are known.

        Returns:
            The row by the levels as they are known now, and whether it was taken in a slow
            time: it is then flagged.
        """
        if found.estimate is None:
            return found, False
        good = sum(self._laps[n].rounds for n in found.laps if self._is_good(n))
        # Laps that others disturbed are among those of a row only where there were too few.
        slow = 2 * good < found.rounds or any(self._laps[n].foreign for n in found.laps)
        flags = [UNSTABLE] if UNSTABLE in found.estimate.flags else []
        flags += [DISTURBED] if slow else []
        again = self._found(found.row, found.laps, tuple(flags))
        return replace(again, attempts=found.attempts), slow

    def _find_levels(self) -> np.ndarray:
        times = np.full((len(self._graph_ms), len(self._columns)), np.nan)
        for lap, graph_ms in enumerate(self._graph_ms):
            times[lap, list(graph_ms)] = list(graph_ms.values())
        levels = relative_levels(times)
        quiet = self._cool & ~np.array([lap.foreign for lap in self._laps])
        if quiet.any():  # what came before a throttling tells how fast the device is
            levels = levels / min(1.0, location_ms(levels[quiet]))
        if not self._reference_ms:
            return levels
        # What all laps give is compared: a single one has too few calls for a fastest quarter.
        digests = {graph: self.bench.digest_of(graph) for graph in self._columns}
        known = {g: ms for g, d in digests.items() if (ms := self._reference_ms.get(d))}
        ratios = [ms / known[g] for g, ms in self._times_at(tuple(known), levels).items()]
        return levels * np.median(ratios) if ratios else levels

    def _times_at(self, graphs: Sequence[Graph], levels: np.ndarray) -> dict[Graph, float]:
        """What graphs take once these levels are divided out, by graph; without failed ones."""
        found = {}
        for graph in graphs:
            with_it = [n for n, lap in enumerate(self._laps) if graph in lap.results]
            if not with_it or any(self._laps[n].error(graph) for n in with_it):
                continue
            ms = _level_ms(self._samples(graph, with_it, levels))
            if ms > 0:  # a coarse counter of the device's may tell 0
                found[graph] = ms
        return found

    def _samples(
        self, graph: Graph, numbers: Sequence[int], levels: np.ndarray
    ) -> list[np.ndarray]:
        """The calls of a graph in some laps, for each of its copies [visits, calls] ms.

        Levels are divided out.
        """
        timed = [n for n in numbers if self._laps[n].error(graph) is None]
        laps = [[t / levels[n] for t in self._laps[n].times(graph)] for n in timed]
        none = np.empty((0, laps[0][0].shape[1]))
        copies = zip_longest(*laps, fillvalue=none)  # some came later than others
        calls = [np.concatenate(copy) for copy in copies]
        # The fastest of very few calls are not yet as fast as those of many.
        return [calls[0], *(copy for copy in calls[1:] if len(copy) >= min(FEW, len(calls[0])))]

    def _compare_laps(self) -> None:
        """Finds how slow the device was in each lap, and from when on that is a disturbance."""
        events = np.array([lap.throttle_events for lap in self._laps])
        self._cool = events <= (self.bench.machine.at_rest or 0)
        self._levels = self._find_levels()
        quiet = [n for n, lap in enumerate(self._laps) if not lap.foreign]
        self._limit = slowest_quiet(self._levels[quiet], [self._laps[n].rows for n in quiet])

    def _is_good(self, number: int) -> bool:
        return not self._laps[number].foreign and bool(self._levels[number] <= self._limit)

    def _is_throttled(self, number: int) -> bool:
        """Whether a lap came after a throttling that still shows, or may for all that is known."""
        if self._cool[number]:
            return False
        before = self._levels[self._cool]
        return not before.size or bool(self._levels[number] > np.median(before) * (1 + DRIFT))

    def _anchors_in_work(self) -> tuple[Graph, ...]:
        """The anchors of rows that are on; at first all of them, which all boards then know."""
        least, _ = self._settings.rounds_of_a_row(self.bench.resident)
        if sum(lap.rounds for lap in self._laps) < least:
            return self._anchors
        needed = {graph for row in self._on for graph in row.shorter}
        return tuple(graph for graph in self._anchors if graph in needed)

    def _copies_in_work(self, anchor: Graph) -> int:
        """Loadings of an anchor: no fewer than of the graphs that it is compared with."""
        several = [n for row, n in self._loadings.items() if anchor in row.shorter]
        return max([self._copies, *several])

    def _companions(self) -> list[PlannedRow]:
        """Rows that are known and stay on to keep the caches as cold as they were.

        They are drawn at random: light ones alone would leave the others' buffers in the caches.
        """
        if not self.bench.resident:
            return []
        held = self._held()
        in_work = sum(len(row.longer) * copies for row, copies in self._loadings.items())
        in_work += sum(self._copies_in_work(graph) for graph in self._anchors_in_work())
        seats = max(COMPANY * in_work, CROWD - in_work)
        chosen: list[PlannedRow] = []
        for row in sorted(self._company, key=_lot):
            if seats < len(row.longer) or held >= COMPANY_BYTES:
                break
            if held + row.bytes > self.bench.max_bytes // 2:
                continue
            chosen.append(row)
            held += row.bytes
            seats -= len(row.longer)
        return chosen

    def _judge(self, row: PlannedRow) -> Found | None:
        """What is known of a row, or None where it should stay on."""
        settings = self._settings
        numbers = tuple(range(self._on[row], len(self._laps)))
        last = self._laps[-1]
        # Where the device refuses the neighbour itself, that says nothing of the row.
        error = next((e for c in _usable(row, last) if (e := last.error(c.longer))), None)
        if not _usable(row, last):
            error = last.error(row.shorter[0])
        if error is not None:
            return Found(row, error=error, attempts=self._attempts[row])
        good = tuple(n for n in numbers if self._is_good(n))
        rounds = sum(self._laps[n].rounds for n in good)
        lost = sum(self._laps[n].rounds for n in numbers) - rounds
        least, most = settings.rounds_of_a_row(self.bench.resident)
        over = self.bench.spent_ms > 1e3 * settings.time_budget_s
        least = -(-least // 2) if over else least
        if rounds >= min(least, LOOK):
            found = self._found(row, good)
            assert found.estimate is not None
            width = found.estimate.width(settings.interval, settings.floor_ms)
            if rounds >= least:
                if width <= 1:
                    return found
                if rounds >= most or over or self._is_warm(row):
                    return self._found(row, good, (UNSTABLE,))
            times = [t for n in good for g in row.longer for t in self._laps[n].times(g)]
            self._load_again(row, sum(len(t) for t in times) * (width**2 - 1))
        if rounds + lost >= least and (over or lost >= PATIENCE + rounds):
            found = self._found(row, numbers, (DISTURBED,))
            assert found.estimate is not None
            narrow = found.estimate.width(settings.interval, settings.floor_ms) <= 1
            return found if narrow else self._found(row, numbers, (DISTURBED, UNSTABLE))
        return None

    def _is_warm(self, row: PlannedRow) -> bool:
        """Whether a row is a stem that now finds its image in the caches."""
        few = len(self._loaded) < STEM_CROWD
        return is_stem(row.name) and self.bench.resident and few

    def _load_again(self, row: PlannedRow, calls: float) -> None:
        """Further loadings of a row's graphs, if they take less time than the laps that they save.

        Args:
            row: that stays on.
            calls: of its graphs that are wanted yet, for all that is known.
        """
        if not self.bench.resident or self._single.intersection((*row.longer, *row.shorter)):
            return
        if is_stem(row.name):  # the others would read the same image
            return
        now = self._loadings[row]
        a_lap = self._settings.lap_rounds * len(row.longer)
        free = self.bench.max_bytes // 2 - self._held()
        wanted = min(LOADINGS, int(calls / (LAPS_LEFT * a_lap)))
        wanted = min(wanted, now + max(0, free) // max(1, row.bytes))
        if wanted <= now:
            return
        there = dict.fromkeys(row.longer, now)
        there |= {graph: self._copies_in_work(graph) for graph in row.shorter}
        last = self._laps[-1].results
        loading_ms = sum(max(0, wanted - n) * last[graph][0].load_ms for graph, n in there.items())
        laps_less = calls / (a_lap * now) - calls / (a_lap * wanted)
        if loading_ms <= laps_less * self._lap_ms / len(self._on):
            self._loadings[row] = wanted

    def _drop_failed_loadings(self, results: dict[Graph, list[ArtifactResult]]) -> None:
        """Where a further loading failed, for memory say, its rows go on without any."""
        for row in [row for row, copies in self._loadings.items() if copies > 1]:
            for graph in (*row.longer, *row.shorter):
                first = self._copies if graph in row.shorter else 1
                failed = [r.error for r in results[graph][first:] if r.error is not None]
                if failed and not any(error.kind in ABANDONS for error in failed):
                    results[graph] = results[graph][:first]
                    self._single.add(graph)
        for row in self._on:
            if self._single.intersection((*row.longer, *row.shorter)):
                self._loadings[row] = 1

    def _look_for_losses(self, results: Mapping[Graph, Sequence[ArtifactResult]]) -> None:
        """Raises what says nothing of a graph.

        That a device was lost does say something of the graph that was on it then, if the others
        could be timed, and it happened before: the row is failed, and does not stop the others.
        """
        failed = {
            graph: error
            for graph, group in results.items()
            for error in (result.error for result in group)
            if error is not None and error.kind in ABANDONS
        }
        if any(result.error is None for group in results.values() for result in group):
            lost = [g for g, error in failed.items() if error.kind is ErrorKind.DEVICE_LOST]
            self._losses.update(lost)
            for graph in lost:
                if self._losses[graph] >= LOSSES:
                    del failed[graph]
        for error in failed.values():
            raise error

    def _held(self) -> int:
        """Bytes of the graphs that are in work."""
        return sum(row.bytes * copies for row, copies in self._loadings.items())

    def _found(
        self,
        row: PlannedRow,
        numbers: Sequence[int],
        flags: tuple[str, ...] = (),
    ) -> Found:
        """The estimate from some laps, as on a device that is as fast as the reference."""
        levels = self._levels
        contexts = _usable(row, self._laps[numbers[-1]])
        graphs = {g for c in contexts for g in (c.longer, c.shorter)}
        samples = {graph: self._samples(graph, numbers, levels) for graph in graphs}
        estimate = estimate_row(replace(row, contexts=contexts), samples)
        if any(self._is_throttled(n) for n in numbers):
            flags = (*flags, THROTTLED)
        results = [(self._laps[n].results[row.shorter[0]][0].wall_ms, levels[n]) for n in numbers]
        called = [wall_ms.reshape(-1) / level for wall_ms, level in results]
        return Found(
            row,
            replace(estimate, flags=(*estimate.flags, *flags)),
            laps=tuple(numbers),
            rounds=sum(self._laps[n].rounds for n in numbers),
            before=self._laps[numbers[0]].results[contexts[0].longer][0].before,
            results=tuple(self._laps[numbers[-1]].results[c.longer][0] for c in contexts),
            call_ms=_call_ms(row, np.concatenate(called)),
            attempts=self._attempts[row],
        )


def time_anchors(
    bench: Bench, anchors: Sequence[Graph], settings: MeasuringSettings, copies: int
) -> dict[Graph, float]:
    """What a board's anchors take, by graph in ms, to be compared with another board's.

    Raises:
        AgentError: the request as a whole failed.
    """
    digests = copies_of(bench, anchors, copies if bench.resident else 1)
    protocol = settings.lap(bench.resident, seed=settings.seed)
    results = bench.time(
        [digest for group in digests.values() for digest in group],
        replace(protocol, rounds=2 * protocol.rounds),
    )
    return graph_times(digests, results)


def graph_times(
    digests: Mapping[Graph, Sequence[str]], timed: Mapping[str, ArtifactResult]
) -> dict[Graph, float]:
    """What graphs take in one request, the mean over their copies, in ms; without failed ones."""
    found = {}
    for graph, group in digests.items():
        results = [timed[digest] for digest in group]
        if all(result.error is None for result in results):
            ms = _level_ms([clock_ms(result) for result in results])
            if ms > 0:  # a coarse counter of the device's may tell 0
                found[graph] = ms
    return found


def copies_of(bench: Bench, graphs: Sequence[Graph], copies: int) -> dict[Graph, list[str]]:
    """Digests of copies of graphs, sent; copies without weights are one and the same."""
    return {
        graph: list(dict.fromkeys(bench.digest_of(graph, copy) for copy in range(copies)))
        for graph in graphs
    }


def is_foreign(result: ArtifactResult) -> bool:
    """Whether other work on the machine disturbed the request that a result is of."""
    return not set(FOREIGN).isdisjoint(result.flags)


def _usable(row: PlannedRow, lap: Lap) -> tuple[Context, ...]:
    """The contexts of a row whose neighbour the device runs.

    A neighbour that falls back to another unit is used only where all of them do: it would flag
    every row of its shape, and a seam between two units is not that of a network.
    """
    run = tuple(c for c in row.contexts if lap.error(c.shorter) is None)
    return tuple(c for c in run if not lap.falls_back(c.shorter)) or run


def _call_ms(row: PlannedRow, shorter_ms: np.ndarray) -> float | None:
    """What an empty call takes, where a row tells: a stem whose shorter graph is one."""
    if not is_stem(row.name):
        return None
    return float(location_ms(shorter_ms)) if row.estimator == STEM else 0.0


def _level_ms(copies: Sequence[np.ndarray]) -> float:
    calls = [np.size(copy) for copy in copies]
    return float(np.average([location_ms(copy) for copy in copies], weights=calls))


def _lot(row: PlannedRow) -> bytes:
    """Puts rows in an order that has nothing to do with what they are."""
    return hashlib.sha256(repr((row.name, row.shape)).encode()).digest()


def slowest_quiet(levels: np.ndarray, weights: Sequence[float]) -> float:
    """The highest level that is no disturbance, by `DRIFT` and `JUMP`.

    Args:
        levels: how slow the device was, each time.
        weights: what was timed then.
    """
    if not len(levels):
        return np.inf
    order = np.argsort(levels)
    share = np.cumsum(np.asarray(weights, float)[order])
    half = levels[order][int(np.searchsorted(share, share[-1] / 2))]
    best = levels[order][min(1, len(levels) - 1)]  # the very best may be luck
    return float(min(half * (1 + DRIFT), best * (1 + JUMP)))
