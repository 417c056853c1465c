"""The rows of one device: what goes into its batches, when rows end, and with what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hurricane.agents.errors import (
    AgentError,
    Busy,
    DeviceLost,
    OutOfMemory,
    Unauthorised,
    UnsupportedOperator,
)
from hurricane.agents.results import ArtifactResult
from hurricane.lookup_tables.cells import INTERFERENCE, UNSTABLE
from hurricane.ops.graph import Piece
from hurricane.profiler.measurement import THROTTLED, DeviceMeasurement
from hurricane.profiler.outcomes import BatchOutcome, RowOutcome, Series, abandoning_error
from hurricane.profiler.plan import Graph, PlannedRow, baseline_graphs, plan_row, weight_bytes
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.timing.marginal import Estimate

from .stand_in import (
    BATCH,
    BATCHES,
    CALL_MS,
    COST_MS,
    MIN_ROUNDS,
    POOL_MS,
    StandIn,
    cost_ms,
    in_batches,
    planned,
    timing,
    true_ms,
)

CANNOT = UnsupportedOperator("no kernel for it")
ENOUGH = 10**9  # bytes: more than all rows hold
FOREVER = timing(precision=1e-9, precision_floor_ms=0.0)
"""Nothing is ever narrow."""


class Bench:
    """A measurement and the stand-in that it is made on."""

    def __init__(
        self,
        device: StandIn,
        rows: Sequence[PlannedRow] = (),
        protocol: TimingProtocol | None = None,
        background: Iterable[PlannedRow] = (),
        plan: Sequence[PlannedRow] = (),
        networks: Sequence[Graph] = (),
    ) -> None:
        self.device = device
        self.protocol = (protocol or timing()).for_target(device.resident)
        background = list(background)
        self.measurement = DeviceMeasurement(
            self.protocol,
            baseline_graphs(plan or rows),
            background,
            device.batch_bytes,
            networks,
        )
        self.active: set[PlannedRow] = set()
        self.found: dict[PlannedRow, RowOutcome] = {}
        self.activate(rows)

    def activate(self, rows: Iterable[PlannedRow]) -> None:
        rows = list(rows)
        self.measurement.activate(rows)
        self.active.update(rows)

    def batch(self, count: int = 1) -> None:
        """Times batches."""
        for _ in range(count):
            series = self.measurement.compose()
            results = self.device.answer(series, self.protocol.batch(self.measurement.batches))
            spent_s = (1 + self.measurement.batches) * self.device.request_ms / 1e3
            ended = self.measurement.take_in(
                BatchOutcome.of(results, self.protocol.batch_rounds, len(self.active)),
                self.device.events(-1),
                spent_s > self.protocol.time_budget_s,
            )
            for one in ended:
                self.active.remove(one.row)
                assert one.row not in self.found, "it ends twice"
                self.found[one.row] = one

    def finish(self) -> dict[str, RowOutcome]:
        """Batches until all rows have ended; what became of them, by name."""
        for _ in range(100):
            if not self.active:
                return {row.name: one for row, one in self.found.items()}
            self.batch()
        raise AssertionError("some rows never end")

    def latency_ms(self, outcome: RowOutcome) -> float:
        """A row's latency when the device was quiet."""
        return estimate_of(outcome).latency_ms * self.measurement.history.quiet_slowdown


def measured(device: StandIn, *words: Any) -> dict[str, RowOutcome]:
    return Bench(device, planned(), *words).finish()


def estimate_of(outcome: RowOutcome) -> Estimate:
    assert outcome.estimate is not None
    return outcome.estimate


def flags_of(outcomes: dict[str, RowOutcome]) -> set[tuple[str, ...]]:
    return {estimate_of(one).flags for one in outcomes.values()}


def graphs(series: Iterable[Series]) -> set[Graph]:
    return {graph for graph, _ in series}


# When rows end.


def test_rows_end_when_their_interval_is_narrow_and_others_go_on():
    device, protocol = StandIn(noise={"SEP_5": 0.06}), timing(max_rounds=200)
    found = measured(device, protocol)
    assert found["SEP_3"].rounds == found["MB_3_3"].rounds == MIN_ROUNDS
    assert MIN_ROUNDS < found["SEP_5"].rounds < 200
    assert len(device.requests) * BATCH == found["SEP_5"].rounds
    for one in found.values():
        assert estimate_of(one).flags == ()
        assert estimate_of(one).width(protocol.precision, protocol.precision_floor_ms) <= 1
    for name in ("SEP_3", "MB_3_3"):
        assert estimate_of(found[name]).latency_ms == pytest.approx(COST_MS[name])
    assert estimate_of(found["SEP_5"]).latency_ms == pytest.approx(COST_MS["SEP_5"], rel=0.15)


def test_the_samples_of_a_row_are_the_calls_of_its_graphs_and_of_all_replicas():
    found = measured(StandIn(), timing(baseline_replicas=3))
    for row in planned():
        graphs = len(row.contexts) * (1 + 3)
        assert estimate_of(found[row.name]).samples == MIN_ROUNDS * graphs


def test_a_row_is_narrow_enough_where_it_hardly_shows_in_the_fastest_network():
    (row,) = rows = planned("SEP_5")
    device = StandIn(noise={"SEP_5": 0.1})
    exact = timing(precision=1e-9, precision_floor_ms=0.0, max_rounds=30)
    network = (*row.alone, Piece("pool", row.shape))

    def rounds(share: float, networks: Sequence[Graph] = (network,)) -> int:
        protocol = replace(exact, precision_of_network=share)
        return Bench(device, rows, protocol, networks=networks).finish()["SEP_5"].rounds

    assert rounds(0.0) == rounds(0.5, networks=()) == 30
    assert rounds(0.5) == MIN_ROUNDS


def test_batches_of_few_graphs_do_not_say_how_fast_a_device_is():
    """The last row's graphs may run from a cache: all of them are faster by as much."""
    device = StandIn(noise={"SEP_5": 0.2}, slowdown=lambda number: 1.0 if number < 4 else 0.8)
    bench = Bench(device, planned("*"), timing(max_rounds=40))
    found = bench.finish()
    assert bench.measurement.batches > 10
    history = bench.measurement.history
    assert history.slowdown[-1] == pytest.approx(0.8, rel=0.05)
    assert history.quiet_slowdown == pytest.approx(1.0, rel=0.01)
    assert history.drift < 0.01
    assert history.steady_change == 0.0
    assert bench.latency_ms(found["SEP_3"]) == pytest.approx(COST_MS["SEP_3"], rel=0.01)


def test_a_row_that_stays_wide_ends_after_all_the_rounds_and_is_unstable():
    found = measured(StandIn(noise={"SEP_5": 0.3}), timing(max_rounds=24))
    assert found["SEP_5"].rounds == 24
    assert estimate_of(found["SEP_5"]).flags == (UNSTABLE,)
    assert estimate_of(found["SEP_3"]).flags == ()


@pytest.mark.parametrize(
    "trouble",
    [
        {"flags": in_batches(2, 3, value=("busy",), other=())},
        {"flags": in_batches(2, 3, value=("steal",), other=())},
        {"slowdown": in_batches(2, 3, value=1.2, other=1.0)},
    ],
)
def test_a_batch_with_interference_is_not_used_and_is_made_up_for(trouble):
    bench = Bench(StandIn(**trouble), planned())
    found = bench.finish()
    assert bench.measurement.batches == BATCHES + 2
    assert bench.measurement.history.rejected == 2
    assert flags_of(found) == {()}
    for name, one in found.items():
        assert one.rounds == MIN_ROUNDS
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])
        assert [results[0].before.frequency_mhz for results in one.results] == [1000, 1005]
        assert estimate_of(one).samples == MIN_ROUNDS * len(one.row.contexts) * (1 + 2)


@pytest.mark.parametrize("flags", [("busy",), ("steal",)])
def test_rows_take_what_they_have_when_interference_does_not_end(flags):
    device = StandIn(
        flags=lambda n: () if n < 2 else flags, slowdown=lambda n: 1.0 if n < 2 else 1.3
    )
    bench = Bench(device, planned(), timing(max_rounds=30))
    found = bench.finish()
    assert flags_of(found) == {(INTERFERENCE,)}
    for name, one in found.items():
        assert one.rounds == 30
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])
        assert one.slowdown > bench.measurement.history.quiet_slowdown


def test_rows_end_though_every_batch_is_rejected():
    found = measured(StandIn(flags=lambda n: ("busy",)), timing(max_rounds=15))
    assert {one.rounds for one in found.values()} == {15}
    assert flags_of(found) == {(INTERFERENCE,)}
    noisy = StandIn(flags=lambda n: ("busy",), noise={"SEP_5": 0.5})
    both = measured(noisy, timing(max_rounds=15))
    assert estimate_of(both["SEP_5"]).flags == (INTERFERENCE, UNSTABLE)


def test_once_the_time_is_spent_half_of_the_fewest_rounds_do():
    noise = {"SEP_5": 0.5, "MB_3_3": 0.5, "SEP_3": 0.5}
    protocol = timing(time_budget_s=2.0)
    for device, rounds, flags in (
        (StandIn(noise=noise, request_ms=500.0), 5 * BATCH, (UNSTABLE,)),  # 2.5 s
        (StandIn(noise=noise, request_ms=5000.0), MIN_ROUNDS // 2, (UNSTABLE,)),
        (StandIn(request_ms=5000.0), MIN_ROUNDS // 2, ()),
        (StandIn(flags=lambda n: ("busy",), request_ms=5000.0), MIN_ROUNDS // 2, (INTERFERENCE,)),
    ):
        found = measured(device, protocol)
        assert {one.rounds for one in found.values()} == {rounds}
        assert flags_of(found) == {flags}


# What is divided out.


def test_the_clock_of_the_device_is_divided_out():
    slowdown = (1.0, 1.06, 1.0, 1.03)
    bench = Bench(StandIn(slowdown=lambda n: slowdown[n]), planned())
    found = bench.finish()
    assert bench.measurement.history.rejected == 0
    for name, one in found.items():
        assert one.rounds == MIN_ROUNDS
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])  # the fastest quarter is 1
        assert estimate_of(one).width(0.02, 0.0) < 1e-6


@pytest.mark.parametrize("fast", [1, 2])
def test_what_most_batches_have_is_the_clock_and_no_interference(fast):
    device = StandIn(slowdown=lambda n: 1.0 if n < fast else 1.3)
    bench = Bench(device, planned(), FOREVER)
    bench.batch(12)
    accepted = 12 - bench.measurement.history.rejected
    assert accepted >= 10
    bench = Bench(device := StandIn(slowdown=device.slowdown), planned(), timing(min_rounds=24))
    found = bench.finish()
    assert flags_of(found) == {()}
    ratio = bench.latency_ms(found["MB_3_3"]) / bench.latency_ms(found["SEP_3"])
    assert ratio == pytest.approx(3)
    assert {one.slowdown <= bench.measurement.history.quality.limit for one in found.values()} == {
        True
    }


def test_rows_that_end_in_a_slow_time_are_above_the_limit_that_is_known_later():
    device = StandIn(noise={"SEP_5": 0.5}, slowdown=lambda n: 1.5 if n < 4 else 1.0)
    bench = Bench(device, planned(), timing(max_rounds=60))
    found = bench.finish()
    limit = bench.measurement.history.quality.limit
    assert found["SEP_3"].slowdown > limit
    assert found["SEP_5"].slowdown <= limit
    assert bench.latency_ms(found["SEP_3"]) == pytest.approx(1.0, rel=1e-3)


def test_rows_of_a_steady_device_are_never_above_the_limit():
    noise = dict.fromkeys(COST_MS, 0.002)
    bench = Bench(StandIn(noise={**noise, "SEP_5": 0.06}), planned(), timing(max_rounds=200))
    for one in bench.finish().values():
        assert one.slowdown < bench.measurement.history.quality.limit


@pytest.mark.parametrize("spent_s", [0.0, 60.0])
def test_rows_that_end_early_and_late_are_given_at_one_speed(spent_s):
    """Also where rows end before there are as many batches as others need."""
    device = StandIn(slowdown=lambda n: 1.0 if n < 2 else 1.1, request_ms=1e3 * spent_s)
    rows = {row.name: row for row in planned()}
    bench = Bench(device, [rows["SEP_3"]], timing(time_budget_s=1.0), plan=planned())
    bench.finish()
    bench.activate([rows["MB_3_3"]])
    found = bench.finish()
    early, late = estimate_of(found["SEP_3"]).latency_ms, estimate_of(found["MB_3_3"]).latency_ms
    assert late / early == pytest.approx(3, rel=1e-6)


def test_the_slowdown_is_that_of_all_graphs_and_not_of_the_baselines():
    class SlowBaselines(StandIn):
        def answer(self, series, protocol):
            found = super().answer(series, protocol)
            slow = len(self.requests) == 2
            return {
                (g, n): replace(r, wall_ms=r.wall_ms * (1.3 if slow and len(g) == 2 else 1.0))
                for (g, n), r in found.items()
            }

    bench = Bench(SlowBaselines(), planned("*"))
    bench.finish()
    assert bench.measurement.history.rejected == 0
    assert bench.measurement.history.quiet_slowdown == pytest.approx(1.0, abs=0.01)


def test_rows_after_a_throttling_that_shows_are_flagged_and_given_at_the_speed_before_it():
    # The device has throttled before, which is how it is; then once more, in the second batch.
    device = StandIn(events=lambda n: 3 + (n > 0), slowdown=lambda n: 1.4 if n > 0 else 1.0)
    bench = Bench(device, planned(), timing(min_rounds=36))
    found = bench.finish()
    assert flags_of(found) == {(THROTTLED,)}
    for name, one in found.items():
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])
    harmless = StandIn(events=lambda n: 3 + (n > 0))
    assert flags_of(measured(harmless)) == {()}
    silent = StandIn(events=lambda n: 3, slowdown=lambda n: 1.4 if n > 0 else 1.0)
    assert flags_of(measured(silent)) == {()}


def test_rows_are_flagged_whose_batches_hold_the_moment_at_which_the_device_began_to_throttle():
    # In the second batch of four, and over by the third: nothing of it shows in the times.
    device = StandIn(events=lambda n: int(n > 0), flags=in_batches(1, value=(THROTTLED,), other=()))
    assert flags_of(measured(device)) == {(THROTTLED,)}
    late = StandIn(events=lambda n: int(n > 8), flags=in_batches(9, value=(THROTTLED,), other=()))
    assert flags_of(measured(late)) == {()}  # no row rests on that batch


def test_a_slow_batch_before_a_harmless_throttling_is_not_how_fast_the_device_is():
    device = StandIn(events=lambda n: int(n > 0), slowdown=in_batches(0, value=1.6, other=1.0))
    bench = Bench(device, planned())
    for name, one in bench.finish().items():
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])


# What goes into a batch.


def test_baselines_have_replicas_where_they_have_weights():
    stem = planned("SEP_3", "digits32")[0]
    rows = [stem, *planned()]
    device = StandIn()
    Bench(device, rows, timing(baseline_replicas=5)).batch()
    (series,) = device.batches()
    counts = Counter(graph for graph, _ in series)
    for graph in baseline_graphs(rows):
        assert counts.pop(graph) == (5 if weight_bytes(graph) else 1)
    assert weight_bytes(stem.baselines[0]) == 0
    assert set(counts.values()) == {1}
    assert len(series) == len(set(series))


def test_baselines_go_along_at_first_and_then_where_a_row_needs_them():
    noisy = planned("SEP_5", "digits32:1")
    rows = [*planned("SEP_3,MB_3_3", "digits32:1,4"), *noisy]
    device = StandIn(noise={"SEP_5": 0.5})
    Bench(device, rows).finish()
    baselines, needed = set(baseline_graphs(rows)), set(noisy[0].baselines)
    assert needed < baselines
    there = [baselines & graphs(series) for series in device.batches()]
    assert there[:BATCHES] == [baselines] * BATCHES
    assert there[BATCHES:] == [needed] * (len(there) - BATCHES)
    assert len(there) > BATCHES


def test_all_baselines_of_the_plan_are_timed_though_few_rows_are_in_work():
    device = StandIn()
    Bench(device, planned(), plan=[*planned(), *planned("SEP_3", "digits32:4")]).finish()
    for series in device.batches():
        assert set(planned("SEP_3", "digits32:4")[0].baselines) < graphs(series)


def background_of(device: StandIn, of: Iterable[PlannedRow]) -> list[set[PlannedRow]]:
    """Which rows had graphs in each batch."""
    rows = list(of)
    return [
        {r for r in rows if graphs(series) & set(r.with_operator)} for series in device.batches()
    ]


def weights(series: Iterable[Series]) -> int:
    """Bytes of weights that a batch holds."""
    return sum(weight_bytes(graph) for graph, _ in series)


def test_rows_that_are_known_fill_a_batch_up_to_so_many_bytes():
    rows = planned("*")
    others = [row for row in rows if row.name != "SEP_5"]
    heaviest = max(row.bytes for row in rows)
    device, least = StandIn(noise={"SEP_5": 0.5}), sum(row.bytes for row in others) // 2
    bench = Bench(device, rows, timing(min_batch_bytes=least))
    bench.finish()
    first, *_, last = device.batches()
    assert weights(first) > least
    assert least <= weights(last) < least + heaviest
    assert len(set(last)) == len(last)
    assert 0 < len(background_of(device, others)[-1]) < len(others)


def test_rows_from_before_are_background_from_the_first_batch_on():
    known, device = planned("*", "digits32:4"), StandIn()
    heaviest = max(row.bytes for row in known)
    Bench(device, planned("SEP_5"), timing(min_batch_bytes=8 * heaviest), known).finish()
    there = background_of(device, known)
    assert there[0]
    assert there.count(there[0]) == len(there)  # one and the same throughout


def test_networks_count_as_what_fills_a_batch():
    known, device = planned("*", "digits32:4"), StandIn()
    network = tuple(piece for row in planned("*", "digits32:1") for piece in row.alone)
    protocol = timing(min_batch_bytes=weight_bytes(network))
    Bench(device, planned("SEP_5"), protocol, known, networks=[network]).batch()
    assert background_of(device, known) == [set()]


def test_the_largest_rows_are_the_background():
    known = planned("*", "digits32:4")
    half = sum(row.bytes for row in known) // 2
    drawn = []
    for order in (known, known[::-1]):
        device = StandIn()
        Bench(device, planned("SEP_5"), timing(min_batch_bytes=half), order).batch()
        drawn.append(background_of(device, known)[0])
    assert drawn[0] == drawn[1]  # the plan alone says which
    sizes = sorted((row.bytes for row in known), reverse=True)
    count = len(drawn[0])
    assert 0 < count < len(known) / 2
    assert sorted((row.bytes for row in drawn[0]), reverse=True) == sizes[:count]


def test_background_is_left_out_where_there_is_no_memory_for_it():
    known, rows = planned("*", "digits32:4"), planned("SEP_5")
    held = sum(row.bytes for row in rows)
    held += sum(2 * weight_bytes(graph) for graph in baseline_graphs(rows))
    lightest = min(row.bytes for row in known)
    device = StandIn(max_bytes=2 * (held + lightest))
    Bench(device, rows, timing(min_batch_bytes=ENOUGH), known).batch()
    (there,) = background_of(device, known)
    assert sum(row.bytes for row in there) <= lightest
    assert there


def test_a_row_that_failed_is_no_background():
    device = StandIn(noise={"SEP_5": 0.5}, refused={"MB_3_3": CANNOT})
    Bench(device, planned(), timing(min_batch_bytes=ENOUGH)).finish()
    first, *_, last = background_of(device, planned())
    assert first - last == {row for row in planned() if row.name == "MB_3_3"}


def test_a_row_that_is_measured_again_is_in_a_batch_once():
    device, rows = StandIn(), planned()
    bench = Bench(device, rows, timing(min_batch_bytes=ENOUGH), rows)
    bench.finish()
    for series in device.batches():
        assert len(series) == len(set(series))


def test_a_target_that_keeps_one_graph_makes_many_calls_in_a_visit():
    device = StandIn(resident=False)
    bench = Bench(device, planned(), TimingProtocol())
    found = bench.finish()
    for series, protocol in device.requests:
        assert (protocol.rounds, protocol.calls_per_visit) == (1, 16)
        assert len(graphs(series)) == len(series)  # no replicas: each would be loaded anew
    for name, one in found.items():
        assert one.rounds == 5
        assert estimate_of(one).samples == one.rounds * 16 * len(one.row.contexts) * 2
        assert bench.latency_ms(one) == pytest.approx(COST_MS[name])


def test_the_fewest_visits_are_never_more_than_the_most():
    short = replace(TimingProtocol(), max_rounds=12).for_target(resident=False)
    assert (short.min_rounds, short.max_rounds) == (3, 3)
    usual = TimingProtocol().for_target(resident=False)
    assert (usual.min_rounds, usual.max_rounds) == (5, 15)
    few = replace(TimingProtocol(), max_rounds=6).for_target(resident=True)
    assert (few.min_rounds, few.max_rounds) == (6, 6)


# What is measured.


def test_differences_are_taken_on_the_devices_own_clock():
    found = measured(StandIn(device_time=True))
    for name, one in found.items():
        assert one.rounds == MIN_ROUNDS  # a price of a call that jumps does not matter
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])


def test_a_stem_tells_what_an_empty_call_takes():
    stem = planned("SEP_3", "digits32")[0]
    slowdown = (1.1, 1.0, 1.1, 1.1)
    bench = Bench(StandIn(slowdown=lambda n: slowdown[n]), [stem, *planned()])
    found = bench.finish()
    call_ms = found[stem.name].call_ms
    assert call_ms is not None  # an empty call is one of a pool
    assert call_ms * bench.measurement.history.quiet_slowdown == pytest.approx(POOL_MS + CALL_MS)
    assert found["SEP_3"].call_ms is None


def test_estimates_are_differences_without_a_pool_and_a_call_costs_nothing():
    rows = [
        plan_row(row.name, row.shape, origin="estimated")
        for row in planned("SEP_5,Choice_3", "digits32")
    ]
    device = StandIn()
    bench = Bench(device, rows)
    bench.finish()
    for row, one in bench.found.items():
        # The stand-in takes as long for a stem, or a head, as for a pool.
        assert estimate_of(one).latency_ms == pytest.approx(cost_ms(row))
    assert bench.found[rows[0]].call_ms == 0.0
    timed = {piece.name for series in device.batches() for graph, _ in series for piece in graph}
    assert "pool" not in timed


def test_what_graphs_and_baselines_take_is_told():
    bench = Bench(StandIn(slowdown=lambda n: 1.1), planned())
    found = bench.finish()
    wanted = {graph: 1.1 * (true_ms(graph) + CALL_MS) for graph in baseline_graphs(planned())}
    assert bench.measurement.baselines_ms() == pytest.approx(wanted)
    for row, one in bench.found.items():
        assert one.graphs_ms == pytest.approx(
            {graph: 1.1 * (true_ms(graph) + CALL_MS) for graph in row.with_operator}
        )
    assert found["SEP_3"].slowdown == pytest.approx(1)


def test_a_time_of_zero_is_not_kept():
    (row,) = planned("SEP_5")

    class Coarse(StandIn):
        def _result(self, graph, replica, number, protocol):
            found = super()._result(graph, replica, number, protocol)
            none = graph == row.baselines[0]
            return replace(found, wall_ms=np.zeros_like(found.wall_ms)) if none else found

    bench = Bench(Coarse(), [row])
    bench.finish()
    assert set(bench.measurement.baselines_ms()) == {row.baselines[1]}


# Graphs that fail.


def test_a_context_whose_neighbour_the_device_refuses_is_left_out():
    bench = Bench(StandIn(refused={"Choice_3": CANNOT}), rows := planned("*"))
    found = bench.finish()
    assert isinstance(found["Choice_3"].error, UnsupportedOperator)
    assert found["SEP_5"].error is None
    assert bench.latency_ms(found["SEP_5"]) == pytest.approx(COST_MS["SEP_5"])
    assert estimate_of(found["SEP_5"]).samples == (2 + 1) * MIN_ROUNDS  # replicas, and one
    assert [len(results) for results in found["SEP_5"].results] == [1, 1]
    assert set(bench.measurement.baselines_ms()) == {
        graph for graph in baseline_graphs(rows) if graph[0].name != "Choice_3"
    }
    neither: dict[str, AgentError] = {"Choice_3": CANNOT, "SEP_3": CANNOT}
    for one in Bench(StandIn(refused=neither), rows).finish().values():
        assert isinstance(one.error, UnsupportedOperator)


@pytest.mark.parametrize("how", ["refused", "fallen"])
def test_a_heavy_row_takes_the_other_neighbour_where_a_device_does_not_run_its_own(how):
    (row,) = rows = planned("MB_7_6", "digits32:1")
    assert len(row.contexts) == len(row.spare) == 1
    own, other = (contexts[0].baseline[0].name for contexts in (row.contexts, row.spare))
    device = StandIn(refused={own: CANNOT}) if how == "refused" else StandIn(fallen=(own,))
    bench = Bench(device, rows)
    one = bench.finish()["MB_7_6"]
    assert one.error is None
    assert bench.latency_ms(one) == pytest.approx(cost_ms(row))
    assert estimate_of(one).flags == ()
    assert [graph[0].name for graph in one.graphs_ms or ()] == [other]
    assert one.rounds == MIN_ROUNDS
    neither = StandIn(refused={own: CANNOT, other: CANNOT})
    assert Bench(neither, rows).finish()["MB_7_6"].error is CANNOT


def test_a_target_that_takes_no_graph_at_all_says_so_of_every_row():
    everything: dict[str, AgentError] = dict.fromkeys(["SEP_3", "Choice_3", "pool"], CANNOT)
    bench = Bench(StandIn(refused=everything), planned())
    for one in bench.finish().values():
        assert one.error is CANNOT
    assert bench.measurement.batches == 1


@pytest.mark.parametrize(
    ("fallen", "used"),
    [(("Choice_3",), ["SEP_3"]), (("SEP_3", "Choice_3"), ["SEP_3", "Choice_3"])],
)
def test_a_context_whose_neighbour_falls_back_is_left_out_where_there_is_another(fallen, used):
    bench = Bench(StandIn(fallen=fallen), planned("SEP_5,MB_3_3"))
    bench.finish()
    for row, one in bench.found.items():
        choices = (*row.contexts, *row.spare)
        contexts = [c.with_operator for c in choices if c.baseline[0].name in used]
        if row.spare:
            contexts = contexts[:1]
        assert one.graphs_ms is not None
        assert list(one.graphs_ms) == contexts
        assert len(one.results[0]) == len(one.results[1]) == len(contexts)


def test_a_row_that_another_device_lost_may_need_a_baseline_that_is_out_of_work():
    plan = planned("SEP_5,MB_3_3", "digits32:1,3")
    assert len({row.shape for row in plan}) == 2
    first = [row for row in plan if row.shape == plan[0].shape]
    late = [row for row in plan if row not in first]
    bench = Bench(StandIn(), first, plan=plan, protocol=FOREVER)
    bench.batch(BATCHES + 2)
    assert not {graph for row in late for graph in row.baselines} & {
        graph for graph, _ in bench.device.requests[-1][0]
    }
    bench.activate(late)
    bench.batch()
    timed = {graph for graph, _ in bench.device.requests[-1][0]}
    for row in late:
        assert {context.baseline for context in row.contexts} <= timed


def test_a_graph_that_fails_ends_its_row_only():
    found = measured(StandIn(refused={"SEP_5": CANNOT}))
    assert found["SEP_5"].error is CANNOT
    assert found["SEP_5"].estimate is None
    assert {found[name].error for name in ("SEP_3", "MB_3_3")} == {None}


def test_a_replica_that_fails_is_an_error():
    found = measured(StandIn(no_room=lambda graph, replica: replica == 1))
    assert {type(one.error) for one in found.values()} == {OutOfMemory}


def test_a_baseline_that_fails_once_costs_that_batch():
    rows = planned("SEP_5")
    device = StandIn()
    device.no_room = lambda graph, _: graph == rows[0].baselines[0] and len(device.requests) == 2
    found = Bench(device, rows).finish()["SEP_5"]
    assert estimate_of(found).latency_ms == pytest.approx(COST_MS["SEP_5"])
    assert estimate_of(found).flags == ()
    assert found.rounds == MIN_ROUNDS
    assert len(device.requests) == BATCHES + 1


def test_rows_go_on_though_every_graph_of_one_batch_failed():
    device = StandIn(slowdown=lambda n: 1.0 if n < 2 else 1.1)
    bench = Bench(device, planned("SEP_3"), plan=planned())
    bench.batch()
    device.no_room = lambda graph, replica: True
    bench.batch()
    device.no_room = lambda graph, replica: False
    bench.activate(planned("MB_3_3"))
    found = bench.finish()
    assert isinstance(found["SEP_3"].error, OutOfMemory)
    assert bench.latency_ms(found["MB_3_3"]) == pytest.approx(COST_MS["MB_3_3"])


# Errors that say nothing of a graph.


def results(**errors: AgentError | None) -> dict[Series, ArtifactResult]:
    """Results of graphs of the plan, some of them errors, by operator."""
    graphs = {row.name: row.with_operator[0] for row in planned()}
    return {(graphs[name], 0): ArtifactResult(name, error) for name, error in errors.items()}


@pytest.mark.parametrize("error", [Busy("later"), Unauthorised("who are you"), DeviceLost("gone")])
def test_a_batch_in_which_a_device_gave_up_is_void(error):
    losses: Counter[Graph] = Counter()
    assert abandoning_error(results(SEP_3=None, SEP_5=error), losses, 2) is error
    assert abandoning_error(results(SEP_5=error), losses, 2) is error


def test_a_graph_that_fails_voids_no_batch():
    losses: Counter[Graph] = Counter()
    assert abandoning_error(results(SEP_3=None, SEP_5=CANNOT), losses, 2) is None
    assert abandoning_error(results(SEP_5=CANNOT), losses, 2) is None
    assert not losses


def test_a_device_that_is_lost_at_the_same_graph_again_is_that_graphs_fault():
    gone, losses = DeviceLost("gone"), Counter[Graph]()
    both = results(SEP_3=None, SEP_5=gone, MB_3_3=gone)
    first = results(SEP_3=None, SEP_5=gone, MB_3_3=None)
    assert abandoning_error(first, losses, 2) is gone
    assert abandoning_error(both, losses, 2) is gone  # MB_3_3 for the first time
    assert abandoning_error(both, losses, 2) is None


def test_a_device_that_is_gone_is_no_graphs_fault():
    gone, losses = DeviceLost("gone"), Counter[Graph]()
    for _ in range(9):
        assert abandoning_error(results(SEP_3=gone, SEP_5=gone), losses, 2) is gone
    assert not losses


def test_a_busy_device_is_no_graphs_fault_though_it_is_so_again():
    busy, losses = Busy("later"), Counter[Graph]()
    for _ in range(9):
        assert abandoning_error(results(SEP_3=None, SEP_5=busy), losses, 2) is busy


def test_a_row_whose_graph_loses_the_device_fails_where_the_batch_counts():
    found = measured(StandIn(refused={"SEP_5": DeviceLost("gone")}))
    assert isinstance(found["SEP_5"].error, DeviceLost)
    assert found["SEP_3"].error is None
