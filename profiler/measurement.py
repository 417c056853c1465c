"""The active rows of one device: the graphs of its next batch, and the estimates from its times.

Takes and gives values; `runner` sends the batch to the agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..lookup_tables.cells import FALLBACK, INTERFERENCE, THROTTLED, UNSTABLE, has_flag
from ..ops.backbone import is_stem
from .history import BatchHistory
from .outcomes import BatchOutcome, RowOutcome, Series
from .plan import STEM, Context, Graph, PlannedRow, weight_bytes
from .protocol import TimingProtocol
from .timing.batch import choose_background
from .timing.location import quiet_error_ms, quiet_ms
from .timing.marginal import Estimate, combine
from .timing.stopping import Accept, Evidence, PrecisionRule

RATIO_GRAPHS = 64
"""Graphs of rows that are looked at for what their calls take beyond quiet times."""


class DeviceMeasurement:
    """Rows that are measured on one device, batch by batch.

    Args:
        protocol: for the target.
        baselines: of the whole plan.
        background: known rows that may fill a batch up.
        max_bytes: of weights that a batch may hold.
        networks: timed in the first batches unless they fail; they show what calls of networks
            take.
    """

    def __init__(
        self,
        protocol: TimingProtocol,
        baselines: Sequence[Graph],
        background: Iterable[PlannedRow],
        max_bytes: int,
        networks: Sequence[Graph] = (),
    ) -> None:
        self._protocol = protocol
        # Replicas of a baseline without weights would be one and the same.
        self._replicas = {
            graph: protocol.baseline_replicas if weight_bytes(graph) else 1 for graph in baselines
        }
        self._background = {_shuffle_key(row): row for row in background}
        self._max_bytes = max_bytes
        self._networks = tuple(networks)
        self._active: dict[PlannedRow, int] = {}  # with the first batch of each
        self.history = BatchHistory(protocol.max_slowdown)

    @property
    def batches(self) -> int:
        """How many there were."""
        return len(self.history)

    def activate(self, rows: Iterable[PlannedRow]) -> None:
        """Rows are in the batches from now on."""
        for row in rows:
            self._active[row] = len(self.history)
            self._background.pop(_shuffle_key(row), None)

    def compose(self) -> list[Series]:
        """The graphs of the next batch, in an order that depends on the plan alone."""
        baselines = self._baselines_in_work()
        series = [one for graph in baselines for one in self._series(graph)]
        held = sum(weight_bytes(graph) for graph, _ in series)
        networks = self._networks if self._rounds < self._protocol.network_rounds else ()
        held += sum(row.bytes for row in self._active) + sum(map(weight_bytes, networks))
        chosen = choose_background(
            sorted(((k, r.bytes) for k, r in self._background.items()), key=lambda one: -one[1]),
            held,
            self._protocol.min_batch_bytes,
            self._max_bytes,
        )
        graphs = [
            context.with_operator
            for row in self._active
            for context in dict.fromkeys((*row.contexts, *self._contexts(row)))
        ]
        graphs += [graph for key in chosen for graph in self._background[key].with_operator]
        return [*series, *((graph, 0) for graph in (*graphs, *networks))]

    def take_in(
        self, outcome: BatchOutcome, events_at_rest: int, is_over_budget: bool = False
    ) -> list[RowOutcome]:
        """Takes in a batch.

        Args:
            outcome: of the batch that `compose` gave.
            events_at_rest: throttling events counted before anything was timed.
            is_over_budget: the device's time is spent.

        Returns:
            What became of the rows that end with it: they are known, or cannot be.
        """
        self.history.add(outcome, events_at_rest)
        self._networks = tuple(g for g in self._networks if g not in outcome.errors)
        floor_ms = self._floor_ms()
        judged = (self._judge(row, floor_ms, is_over_budget) for row in self._active)
        ended = [outcome for outcome in judged if outcome is not None]
        if ended:
            self.history.keep_scale()
        for one in ended:
            del self._active[one.row]
            if one.estimate is not None:
                self._background[_shuffle_key(one.row)] = one.row
        return ended

    def baselines_ms(self) -> dict[Graph, float]:
        """What baselines take, raw; without those that failed."""
        return self._graphs_ms(self._replicas)

    def networks_ms(self) -> dict[Graph, tuple[float, np.ndarray]]:
        """The raw quiet time of each network, and all its calls as timed; without failed ones.

        On the wall clock, which a user's program runs on.
        """
        return {
            graph: times for graph in self._networks if (times := self.history.wall_of((graph, 0)))
        }

    def operator_ratios(self) -> np.ndarray:
        """Calls of graphs of rows over their raw quiet times, of some graphs."""
        known = [row for _, row in sorted(self._background.items())]
        graphs = [graph for row in known for graph in row.with_operator][:RATIO_GRAPHS]
        timed = [times for graph in graphs if (times := self.history.wall_of((graph, 0)))]
        return np.concatenate([calls / quiet for quiet, calls in timed] or [np.empty(0)])

    def _judge(self, row: PlannedRow, floor_ms: float, is_over_budget: bool) -> RowOutcome | None:
        """The outcome of an active row; None: it goes on."""
        last, contexts = self.history.outcomes[-1], self._contexts(row)
        # A device that refuses the neighbour itself is no evidence about the row.
        error = next((e for c in contexts if (e := last.errors.get(c.with_operator))), None)
        if not contexts:
            error = last.errors.get(row.baselines[0])
        if error is not None:
            return RowOutcome(row, error=error)
        every = self.history.batches_with(list(self._weights(contexts)), self._active[row])
        accepted = [number for number in every if self.history.quality.accepted[number]]
        rounds, of_all = self.history.rounds(accepted), self.history.rounds(every)
        rule = PrecisionRule(self._protocol.min_rounds, self._protocol.max_rounds)
        if of_all < rule.fewest_rounds(is_over_budget):
            return None
        found = self._estimate(contexts, accepted) if accepted else None
        found_of_all = found if rounds == of_all else self._estimate(contexts, every)
        decision = rule.decide(
            Evidence(
                rounds,
                of_all - rounds,
                self._width(found, floor_ms),
                self._width(found_of_all, floor_ms),
                is_over_budget,
            )
        )
        if decision is None:
            return None
        numbers = every if decision.of_all else accepted
        estimate = found_of_all if decision.of_all else found
        assert estimate is not None
        return self._outcome(row, contexts, numbers, estimate, decision)

    def _outcome(
        self,
        row: PlannedRow,
        contexts: Sequence[Context],
        numbers: Sequence[int],
        estimate: Estimate,
        decision: Accept,
    ) -> RowOutcome:
        history = self.history
        flags = {
            INTERFERENCE: decision.of_all,
            UNSTABLE: not decision.narrow,
            THROTTLED: history.quality.throttled[list(numbers)].any(),
        }
        first, last = history.outcomes[numbers[0]], history.outcomes[numbers[-1]]
        return RowOutcome(
            row,
            replace(
                estimate, flags=(*estimate.flags, *(flag for flag, holds in flags.items() if holds))
            ),
            rounds=history.rounds(numbers),
            slowdown=float(np.median(history.slowdown[list(numbers)])),
            results=(
                tuple(first.results[(c.with_operator, 0)] for c in contexts),
                tuple(last.results[(c.with_operator, 0)] for c in contexts),
            ),
            call_ms=self._call_ms(row, numbers),
            graphs_ms=self._graphs_ms([c.with_operator for c in contexts]),
        )

    def _estimate(self, contexts: Sequence[Context], numbers: Sequence[int]) -> Estimate:
        """The marginal latency from some batches, raw."""
        weights = self._weights(contexts)
        calls = self.history.calls(list(weights), numbers)
        return combine(
            np.array(list(weights.values())),
            quiet_ms(calls.reshape(len(calls), -1), axis=1),
            quiet_error_ms(calls),
            calls.size,
        )

    def _weights(self, contexts: Sequence[Context]) -> dict[Series, float]:
        """What each series counts in a row's difference: the mean over contexts and replicas."""
        weights: dict[Series, float] = {}
        for context in contexts:
            weights[(context.with_operator, 0)] = 1 / len(contexts)
            replicas = self._series(context.baseline)
            for one in replicas:
                weights[one] = -1 / len(contexts) / len(replicas)
        return weights

    def _width(self, estimate: Estimate | None, floor_ms: float) -> float:
        if estimate is None:
            return float("inf")
        return estimate.width(self._protocol.precision, floor_ms)

    def _floor_ms(self) -> float:
        """The error that matters in no network: a share of the fastest one, or a constant."""
        networks_ms = [ms for g in self._networks if (ms := self.history.quiet_of([(g, 0)]))]
        floor_ms = self._protocol.precision_of_network * min(networks_ms, default=0.0)
        return max(floor_ms, self._protocol.precision_floor_ms)

    def _graphs_ms(self, graphs: Iterable[Graph]) -> dict[Graph, float]:
        """What graphs take, raw: the mean over their replicas."""
        found = {}
        for graph in graphs:
            if (ms := self.history.quiet_of(self._series(graph))) is not None:
                found[graph] = ms
        return found

    def _call_ms(self, row: PlannedRow, numbers: Sequence[int]) -> float | None:
        """What an empty call takes: the baseline of a stem is one. None for other rows."""
        if not is_stem(row.name):
            return None
        if row.estimator != STEM:
            return 0.0
        times = self.history.wall_of((row.baselines[0], 0), numbers)
        return None if times is None else times[0]

    @property
    def _rounds(self) -> int:
        return self.history.rounds(range(self.batches))

    def _contexts(self, row: PlannedRow) -> tuple[Context, ...]:
        """The contexts of a row whose neighbour the device runs, as far as that is known.

        A neighbour that falls back to another unit is used only where all of them do: it would
        flag every row of its shape, and a seam between two units is not that of a network.
        """

        def run(contexts: Iterable[Context], whole: bool) -> tuple[Context, ...]:
            return tuple(c for c in contexts if self._may_stand_on(c.baseline, whole))

        choices = (
            (row.contexts, True),
            (row.spare, True),
            (row.contexts, False),
            (row.spare, False),
        )
        return next((found for choice in choices if (found := run(*choice))), ())

    def _may_stand_on(self, baseline: Graph, whole: bool) -> bool:
        """Whether a baseline ran when it was last timed; whole: on the target's unit alone."""
        results = [self.history.latest(one) for one in self._series(baseline)]
        return not any(
            result.error or (whole and has_flag(result.flags, FALLBACK))
            for result in results
            if result is not None
        )

    def _baselines_in_work(self) -> tuple[Graph, ...]:
        """Those of active rows; at first all of them, which all devices then know."""
        if self._rounds < self._protocol.min_rounds:
            return tuple(self._replicas)
        needed = {graph for row in self._active for graph in row.baselines}
        return tuple(graph for graph in self._replicas if graph in needed)

    def _series(self, graph: Graph) -> list[Series]:
        """A graph with all its replicas."""
        return [(graph, number) for number in range(self._replicas.get(graph, 1))]


def _shuffle_key(row: PlannedRow) -> str:
    """Puts rows in an order that has nothing to do with what they are."""
    return hashlib.sha256(repr((row.name, row.shape)).encode()).hexdigest()
