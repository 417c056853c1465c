"""Rows in rotation: who leaves when, what is not used, what is divided out, who is left out.

On a stand-in for a bench, whose times are what a test says, and on simulated devices.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hurricane.agents.client import AgentClient, private_agent
from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import AgentError, Busy, DeviceLost, OutOfMemory, UnsupportedOperator
from hurricane.agents.results import ArtifactResult, Protocol
from hurricane.lookup_tables.anchors import anchors_path, load_anchors
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.journal import read_journal
from hurricane.lookup_tables.runs import Run, load_runs, runs_path, save_runs
from hurricane.lookup_tables.table import LookupTable, Target
from hurricane.ops.artifacts import ArtifactInfo
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import select_operators
from hurricane.profiler import kinds as kinds_module
from hurricane.profiler import profile as module
from hurricane.profiler import rotation as rotation_module
from hurricane.profiler.cli import profile_ops
from hurricane.profiler.estimate import Estimate, estimate_row, relative_levels
from hurricane.profiler.measuring import Bench, Machine, MeasuringSettings, parse_target
from hurricane.profiler.plan import (
    Graph,
    PlannedRow,
    anchor_graphs,
    parse_layers,
    plan_rows,
    weight_bytes,
)
from hurricane.profiler.profile import ProfileResult, missing_rows, profile
from hurricane.profiler.rotation import (
    DISTURBED,
    THROTTLED,
    UNSTABLE,
    Found,
    Rotation,
    graph_times,
)

DSP = "sim-hexagon685-dsp"
DEVICES = Path(module.__file__).parents[1] / "agents" / "devices"
COST_MS = {"SEP_3": 1.0, "SEP_5": 2.0, "MB_3_3": 3.0, "Choice_3": 0.5}
POOL_MS, CALL_MS = 0.25, 0.5
CANNOT = UnsupportedOperator("no kernel for it")
SHORT = MeasuringSettings(min_rounds=3, max_rounds=3, warm_rounds=1)
FEWEST, LAP = 12, 3  # rounds of a row and of a lap


def measuring(**changes: Any) -> MeasuringSettings:
    """Settings that do not depend on how many passes are the default."""
    return replace(MeasuringSettings(min_rounds=FEWEST, lap_rounds=LAP), **changes)


def planned(operators: str = "SEP_3,SEP_5,MB_3_3", layers: str = "digits32:1"):
    return plan_rows(parse_layers(layers), select_operators(operators))


def true_ms(graph: Graph) -> float:
    """What the stand-in takes for a graph, without the price of a call."""
    return sum(COST_MS.get(piece.name, POOL_MS) for piece in graph)


@dataclass(eq=False)
class StandIn:
    """Takes the place of a `Bench`: no agent, and the times that a test wants.

    Requests are counted from 0; one for a single graph, which asks how the device is at rest, is
    answered and does not count.

    Attributes:
        level: how slow the device is in the nth request.
        flags: of the nth request.
        noise: sigma of the graphs that hold a piece of that name, as a share.
        refused: names of pieces that it does not run, and what it says then.
        fallen: names of pieces that fall back to another unit.
        no_room: whether there is no memory for a loading of a graph.
        events: throttling events counted up to the end of the nth request; -1 is before all.
        before: called with the number of a request; may raise.
        requests: graphs and protocol of each.
    """

    address: str = "stand-in:1"
    resident: bool = True
    max_bytes: int = 10**9
    device_time: bool = False
    request_ms: float = 1.0
    load_ms: float = 0.0
    no_room: Callable[[Graph, int], bool] = lambda graph, copy: False
    level: Callable[[int], float] = lambda number: 1.0
    flags: Callable[[int], tuple[str, ...]] = lambda number: ()
    noise: dict[str, float] = field(default_factory=dict)
    refused: dict[str, AgentError] = field(default_factory=dict)
    fallen: tuple[str, ...] = ()
    events: Callable[[int], int] = lambda number: 0
    before: Callable[[int], None] = lambda number: None
    requests: list[tuple[list[Graph], Protocol]] = field(default_factory=list)
    agent_version: str = "0"
    spent_ms: float = 0.0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        self.client: Any = SimpleNamespace(address=self.address)
        self.request = parse_target("cpu-standin-fp32")
        self.target = Target("stand-in", "cpu", "standin", "1", origin="simulated")
        self._digests: dict[tuple[Graph, int], str] = {}

    def digest_of(self, graph: Graph, copy: int = 0) -> str:
        return self._digests.setdefault((graph, copy), f"{len(self._digests):064x}")

    def info_of(self, graph: Graph, copy: int = 0) -> ArtifactInfo:
        digest = self.digest_of(graph, copy)
        return ArtifactInfo(digest, digest)

    def prepare(self, graphs: Any, on_progress: Any = None) -> None:
        pass

    def time(self, digests: Sequence[str], protocol: Protocol, on_progress: Any = None):
        number = len(self.requests)
        graphs = {digest: graph for (graph, _), digest in self._digests.items()}
        if len(digests) > 1:
            self.requests.append(([graphs[digest] for digest in digests], protocol))
            self.before(number)
            self.spent_ms += self.request_ms
        results = {
            digest: self._result(digest, graphs[digest], number, protocol) for digest in digests
        }
        for result in [r for r in results.values() if r.error is None][:1]:
            self.machine.note(result, self.request_ms)
        return results

    def _result(self, digest: str, graph: Graph, number: int, protocol: Protocol) -> ArtifactResult:
        for piece in graph:
            if piece.name in self.refused:
                return ArtifactResult(digest, self.refused[piece.name])
        fallen = [f"fallback:{piece.name}" for piece in graph if piece.name in self.fallen]
        copy = next(copy for (_, copy), known in self._digests.items() if known == digest)
        if self.no_room(graph, copy):
            return ArtifactResult(digest, OutOfMemory("no room"))
        random = np.random.default_rng([number, int(digest, 16)])
        size = (protocol.rounds, protocol.calls_per_visit)
        sigma = max(self.noise.get(piece.name, 0.0) for piece in graph)
        device_ms = true_ms(graph) * self.level(number) * np.exp(sigma * random.normal(size=size))
        jitter = random.exponential(CALL_MS, size) if self.device_time else CALL_MS
        return ArtifactResult(
            digest,
            wall_ms=device_ms + jitter * self.level(number),
            device_ms=device_ms if self.device_time else None,
            load_ms=self.load_ms,
            flags=(*fallen, *self.flags(number)),
            compute_unit="STAND-IN",
            before=Conditions(frequency_mhz=1000 + number, throttle_events=self.events(number - 1)),
            after=Conditions(
                frequency_mhz=1001 + number,
                throttle_events=self.events(number),
                steal_share=0.25,
            ),
        )


class Board(StandIn):
    """One of several: a graph has the same digest on all of them."""

    def digest_of(self, graph: Graph, copy: int = 0) -> str:
        content = repr((graph, copy)).encode()
        return self._digests.setdefault((graph, copy), hashlib.sha256(content).hexdigest())


def by_digest(bench: Any, times_ms: dict[Graph, float]) -> dict[str, float]:
    return {bench.digest_of(graph): ms for graph, ms in times_ms.items()}


def rotation_on(
    bench: Any,
    rows: Sequence[PlannedRow],
    settings: MeasuringSettings | None = None,
    reference_ms: dict[Graph, float] | None = None,
    copies: int = 2,
) -> Rotation:
    """A rotation with these rows on."""
    rotation = Rotation(
        bench,
        settings or measuring(),
        anchor_graphs(rows),
        copies,
        by_digest(bench, reference_ms or {}),
    )
    for row in rows:
        rotation.board(row)
    return rotation


def ride(rotation: Rotation, laps: int = 100) -> dict[str, Found]:
    """Laps until no row is on; what was found, by the row's name."""
    found: dict[str, Found] = {}
    while rotation.rows and laps:
        found |= {one.row.name: one for one in rotation.lap()}
        laps -= 1
    assert not rotation.rows, "some rows never leave"
    return found


def estimate_of(found: Found) -> Estimate:
    assert found.estimate is not None
    return found.estimate


def graphs_of(rows: Sequence[PlannedRow]) -> int:
    """How many graphs rows differ by."""
    return len({graph for row in rows for graph in (*row.longer, *row.shorter)})


def in_laps(*numbers: int, value: Any, other: Any) -> Callable[[int], Any]:
    return lambda number: value if number in numbers else other


def test_rows_leave_when_their_interval_is_narrow_and_others_go_on():
    bench = StandIn(noise={"SEP_5": 0.06})
    settings = measuring(max_rounds=200)
    found = ride(rotation_on(bench, planned(), settings))
    assert found["SEP_3"].rounds == found["MB_3_3"].rounds == FEWEST
    assert FEWEST < found["SEP_5"].rounds < 200
    assert len(bench.requests) * LAP == found["SEP_5"].rounds
    for one in found.values():
        assert estimate_of(one).flags == ()
        assert estimate_of(one).width(settings.interval, settings.floor_ms) <= 1
    for name in ("SEP_3", "MB_3_3"):
        assert estimate_of(found[name]).latency_ms == pytest.approx(COST_MS[name])


def copies_in_laps(bench: StandIn, operator: str) -> list[int]:
    """How many loadings of a graph of this operator's rows are in each request."""
    found = []
    for graphs, _ in bench.requests:
        longer = [g for g in graphs if any(piece.name == operator for piece in g)]
        counts = {longer.count(graph) for graph in longer}
        assert len(counts) <= 1
        found += counts
    return found


def test_what_needs_many_more_calls_rides_with_more_loadings():
    bench = StandIn(noise={"SEP_5": 0.06})
    found = ride(rotation_on(bench, planned(), measuring(max_rounds=200)))
    copies = copies_in_laps(bench, "SEP_5")
    first = rotation_module.LOOK // LAP
    assert set(copies[:first]) == {1}
    assert copies[first:] == sorted(copies[first:])
    assert 1 < copies[-1] <= rotation_module.LOADINGS
    assert set(copies_in_laps(bench, "MB_3_3")) == {1}
    # All its calls count, and those of what it is compared with, which has as many loadings.
    calls = LAP * 2 * (sum(copies) + sum(max(2, n) for n in copies))
    assert estimate_of(found["SEP_5"]).samples == calls


@pytest.mark.parametrize("why", ["slow loading", "no memory", "one at a time"])
def test_there_is_one_loading_where_more_do_not_pay_or_fit(why):
    rows = planned()
    held = sum(weight_bytes(graph) for row in rows for graph in row.longer)
    bench = StandIn(
        noise={"SEP_3": 0.06, "SEP_5": 0.06, "MB_3_3": 0.06},  # all stay on
        load_ms=1000.0 if why == "slow loading" else 0.0,
        max_bytes=2 * held if why == "no memory" else 10**9,
        resident=why != "one at a time",
    )
    settings = measuring(interval=0.002, max_rounds=24)
    rotation = rotation_on(bench, rows, settings)
    ride(rotation)
    assert len(bench.requests) >= 6  # enough for further loadings to be there
    assert set(copies_in_laps(bench, "SEP_5")) == {1}


def test_what_the_first_loading_took_is_not_saved_by_further_ones(monkeypatch):
    monkeypatch.setattr(rotation_module, "LOOK", LAP)  # after the lap that loads all graphs
    rows = planned()
    graphs = len({g for row in rows for g in row.longer}) + 2 * len(anchor_graphs(rows))
    bench = StandIn(noise={"SEP_5": 0.06}, load_ms=10.0, request_ms=10.0 * graphs)
    ride(rotation_on(bench, rows, measuring(interval=1e-6, max_rounds=18)))
    assert copies_in_laps(bench, "SEP_5") == [1, 1] + [rotation_module.LOADINGS] * 4


@pytest.mark.parametrize("of", ["the row's own graphs", "what it is compared with"])
def test_a_further_loading_that_fails_costs_itself_only(of):
    rows = {row.name: row for row in planned()}
    if of == "the row's own graphs":
        without_room, first = set(rows["SEP_5"].longer), 1
    else:
        without_room, first = set(rows["SEP_5"].shorter), 2
    bench = StandIn(
        noise={"SEP_5": 0.06, "MB_3_3": 0.06},
        no_room=lambda graph, copy: graph in without_room and copy >= first,
    )
    found = ride(rotation_on(bench, list(rows.values()), measuring(interval=1e-6, max_rounds=30)))
    assert {one.error for one in found.values()} == {None}
    copies = copies_in_laps(bench, "SEP_5")
    assert set(copies) == {1, rotation_module.LOADINGS}
    assert copies.count(rotation_module.LOADINGS) == 1  # tried once
    # Others are compared with the same.
    others = rotation_module.LOADINGS if of == "the row's own graphs" else 1
    assert copies_in_laps(bench, "MB_3_3")[-1] == others


def test_a_first_loading_that_fails_is_an_error():
    bench = StandIn(no_room=lambda graph, copy: copy == 1)  # the neighbours have two
    found = ride(rotation_on(bench, planned()))
    assert {type(one.error) for one in found.values()} == {OutOfMemory}


def test_a_further_loading_counts_from_six_calls_on():
    bench = StandIn(noise={"SEP_5": 0.06})
    rotation = rotation_on(bench, planned(), measuring(interval=1e-6, max_rounds=18))
    found = ride(rotation)["SEP_5"]
    copies = copies_in_laps(bench, "SEP_5")
    assert copies == [1] * 2 + [rotation_module.LOADINGS] * 4
    assert estimate_of(found).samples == 2 * (18 + 3 * 12) + 2 * (2 * 18 + 2 * 12)
    short = measuring(interval=1e-6, max_rounds=9)
    found = ride(rotation_on(StandIn(noise={"SEP_5": 0.06}), planned(), short))["SEP_5"]
    assert estimate_of(found).samples == 2 * 9 + 2 * 2 * 9


def test_an_interval_of_what_takes_no_time_is_never_narrow():
    assert Estimate(-0.1, -0.3, 0.1, 9).width(0.02, 0.0) == float("inf")


def test_a_narrow_interval_is_a_share_of_the_latency_or_a_floor():
    estimate = Estimate(1.0, 0.98, 1.02, 9)
    assert estimate.width(0.02, 0.0) == pytest.approx(1)
    assert estimate.width(0.01, 0.01) == pytest.approx(2)
    assert estimate.width(0.0, 0.04) == pytest.approx(0.5)


def test_a_row_that_stays_wide_leaves_after_all_the_rounds_and_is_unstable():
    bench = StandIn(noise={"SEP_5": 0.3})
    found = ride(rotation_on(bench, planned(), measuring(max_rounds=FEWEST)))
    assert found["SEP_5"].rounds == FEWEST
    assert estimate_of(found["SEP_5"]).flags == (UNSTABLE,)
    assert estimate_of(found["SEP_3"]).flags == ()


@pytest.mark.parametrize(
    "trouble",
    [
        {"flags": in_laps(2, 3, value=("busy",), other=())},
        {"flags": in_laps(2, 3, value=("steal",), other=())},
        {"level": in_laps(2, 3, value=1.2, other=1.0)},
    ],
)
def test_a_disturbed_lap_is_not_used_and_is_made_up_for(trouble):
    found = ride(rotation_on(StandIn(**trouble), planned()))
    for name, one in found.items():
        assert one.laps == (0, 1, 4, 5)
        assert one.rounds == FEWEST
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])
        assert estimate_of(one).flags == ()


def test_the_clock_of_the_processor_is_divided_out():
    levels = (1.0, 1.06, 1.0, 1.03)
    rows = planned()
    rotation = rotation_on(StandIn(level=lambda n: levels[n]), rows, SHORT)
    for _ in levels:
        for found in rotation.lap():
            rotation.board(found.row)
    assert rotation.levels() == pytest.approx(np.array(levels))  # the fastest quarter is 1
    settings = measuring(min_rounds=len(levels) * LAP)
    for name, one in ride(rotation_on(StandIn(level=lambda n: levels[n]), rows, settings)).items():
        assert one.laps == (0, 1, 2, 3)
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])


def test_levels_are_found_though_most_graphs_leave_and_some_change():
    random = np.random.default_rng(1)
    levels = np.array([1.0, 1.04, 1.0, 1.08, 1.2, 1.0, 1.1, 1.0, 1.05])
    times = random.uniform(0.1, 9.0, 400) * levels[:, None] * random.normal(1, 0.03, (9, 400))
    times[4:, :240] = np.nan  # these are known by then
    times[:4, 240:300] = np.nan  # and these come
    times[:, 300] *= np.linspace(1, 3, 9)  # this one gets slower by itself
    times[5, random.random(400) < 0.2] *= 1.5  # a burst
    assert relative_levels(times) == pytest.approx(levels, rel=0.01)


def test_levels_are_found_where_there_is_no_noise():
    levels = np.repeat([1.5, 1.0], [4, 6])
    times = np.random.default_rng(2).uniform(0.1, 9.0, 500) * levels[:, None]
    times[4:, :400] = np.nan
    times[:, 499] = 0.0  # a clock that is too coarse
    assert relative_levels(times) == pytest.approx(levels, rel=1e-6)


def test_a_lap_that_shares_no_graph_has_no_level():
    times = np.full((3, 4), np.nan)
    times[:2, :2], times[2, 2:] = [[1.0, 2.0], [2.0, 4.0]], 9.0
    assert (relative_levels(times) == 1.0).all()
    assert (relative_levels(np.empty((3, 0))) == 1.0).all()


@pytest.mark.parametrize("fast", [1, 2])
def test_what_most_laps_have_is_the_clock_and_not_a_disturbance(fast):
    bench = StandIn(level=lambda n: 1.0 if n < fast else 1.3, noise={"SEP_5": 0.06})
    rotation = rotation_on(bench, planned(), measuring(interval=1e-6, max_rounds=30))
    found = ride(rotation)
    latency_ms = {}
    for name in ("SEP_3", "MB_3_3"):
        again, slow = rotation.review(found[name])
        assert not slow
        assert estimate_of(again).flags == ()
        latency_ms[name] = estimate_of(again).latency_ms
    assert 0.999 < latency_ms["SEP_3"] < 1.3  # as in the fastest quarter of the laps
    assert latency_ms["MB_3_3"] / latency_ms["SEP_3"] == pytest.approx(3)
    assert len(bench.requests) * LAP <= 30 + rotation_module.PATIENCE


def test_what_is_much_slower_than_the_best_is_a_disturbance_though_most_is():
    bench = StandIn(level=lambda n: 1.0 if n < 2 else 2.0)
    rotation = rotation_on(bench, planned())
    for one in ride(rotation).values():
        again, slow = rotation.review(one)
        assert slow
        assert DISTURBED in estimate_of(again).flags


@pytest.mark.parametrize(
    ("levels", "weights", "limit"),
    [
        ([1.0, 1.0, 1.2, 1.2], [9, 9, 9, 9], 1.15),  # half of it
        ([1.0, 1.2, 1.2, 1.2], [9, 9, 9, 9], 1.2 * 1.15),
        ([1.2, 1.2, 1.0, 1.0, 1.0, 1.0], [9, 9, 1, 1, 1, 1], 1.2 * 1.15),
        ([2.0, 1.0, 1.01, 2.0, 2.0], [1, 1, 1, 1, 1], 1.01 * 1.5),
        ([3.0], [1], 3.0 * 1.15),
        ([], [], np.inf),
    ],
)
def test_a_level_is_slow_against_what_most_was_timed_at(levels, weights, limit):
    found = rotation_module.slowest_quiet(np.array(levels), weights)
    assert found == pytest.approx(limit)


def test_a_row_that_seemed_disturbed_is_not_once_most_laps_are_like_its_own():
    # The first laps are of many rows, and fast; then one row stays on in laps that are slow.
    levels = np.array([1.0] * 4 + [1.3] * 12)
    bench = StandIn(level=lambda n: levels[min(n, 15)], noise={"SEP_5": 1.0})
    rotation = rotation_on(bench, planned(), measuring(interval=1e-6, max_rounds=12))
    ride(rotation)
    late = planned("SEP_7")[0]
    for _ in range(12):
        if not rotation.rows:
            rotation.board(late)
        found = rotation.lap()
        if found:
            break
    assert estimate_of(found[0]).flags[-1:] == (DISTURBED,)
    assert found[0].rounds >= FEWEST
    for _ in range(12):
        rotation.board(late)
        rotation.lap()
    again, slow = rotation.review(found[0])
    assert not slow
    assert DISTURBED not in estimate_of(again).flags


def test_what_rests_on_laps_that_others_disturbed_stays_flagged():
    bench = StandIn(flags=in_laps(1, value=("busy",), other=()), request_ms=2000.0)
    rotation = rotation_on(bench, planned(), measuring(time_budget_s=1.0))
    for one in ride(rotation).values():
        assert one.laps == (0, 1)
        again, slow = rotation.review(one)
        assert slow
        assert estimate_of(again).flags == (DISTURBED,)


def test_a_row_that_boards_in_a_slow_time_has_the_fewest_rounds_too():
    settings = measuring(min_rounds=18)
    bench = StandIn(level=lambda n: 1.0 if n < 6 else 1.4)
    rotation = rotation_on(bench, planned(), settings)
    ride(rotation)
    rotation.board(planned("SEP_7")[0])
    (found,) = ride(rotation).values()
    assert found.rounds >= 18


def test_a_time_that_stays_slow_is_divided_out_by_the_reference():
    rows = planned()
    reference = {graph: true_ms(graph) + CALL_MS for graph in anchor_graphs(rows)}
    bench = StandIn(level=lambda n: 1.5)
    rotation = rotation_on(bench, rows, reference_ms=reference)
    found = ride(rotation)
    assert rotation.levels() == pytest.approx(1.5)
    for name, one in found.items():
        assert one.rounds == FEWEST
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])
        assert estimate_of(one).flags == ()
    assert rotation.level() == pytest.approx(1.5)
    assert rotation.times_ms() == pytest.approx(by_digest(bench, reference))


def test_a_row_takes_what_it_has_when_the_disturbance_does_not_end():
    bench = StandIn(
        flags=lambda n: () if n < 2 else ("busy",), level=lambda n: 1.0 if n < 2 else 1.3
    )
    rows = planned()
    reference = {graph: true_ms(graph) + CALL_MS for graph in anchor_graphs(rows)}
    for name, one in ride(rotation_on(bench, rows, reference_ms=reference)).items():
        good = 2 * LAP
        assert one.rounds == good + rotation_module.PATIENCE + good
        assert estimate_of(one).flags == (DISTURBED,)
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])


@pytest.mark.parametrize(("operators", "near"), [("SEP_3,SEP_5,MB_3_3", 1e-6), ("*", 1e-3)])
def test_a_row_that_left_in_a_slow_time_is_found_out_later(operators, near):
    rows = planned(operators)
    bench = StandIn(noise={"SEP_5": 0.5}, level=lambda n: 1.5 if n < 4 else 1.0)
    rotation = rotation_on(bench, rows)
    found = ride(rotation)
    assert estimate_of(found["SEP_3"]).latency_ms == pytest.approx(1.5)  # all that was known then
    again, slow = rotation.review(found["SEP_3"])
    assert slow
    assert estimate_of(again).flags == (DISTURBED,)
    assert estimate_of(again).latency_ms == pytest.approx(1.0, rel=near)
    assert not rotation.review(found["SEP_5"])[1]


def test_half_of_what_was_timed_is_that_of_the_quiet_laps(monkeypatch):
    monkeypatch.setattr(rotation_module, "PATIENCE", 100)
    foreign = (0, 1, 2, 3, 4)
    bench = StandIn(
        level=lambda n: 1.3 if n in foreign else 1.2 if n == 7 else 1.0,
        flags=in_laps(*foreign, value=("busy",), other=()),
    )
    found = ride(rotation_on(bench, planned()))
    assert {one.laps for one in found.values()} == {(5, 6, 8, 9)}


def test_rows_that_are_known_keep_the_others_company(monkeypatch):
    rows = {row.name: row for row in planned("SEP_3,SEP_5,MB_3_3,Choice_3")}
    noisy = rows["SEP_5"]

    def held(graphs: Sequence[Graph]) -> int:
        own = {graph for row in rows.values() for graph in row.longer}
        return sum(weight_bytes(graph) for graph in graphs if graph in own)

    company = [sum(map(weight_bytes, row.longer)) for row in rows.values() if row is not noisy]
    wanted = sum(map(weight_bytes, noisy.longer)) + 1  # whichever comes first is enough
    everything = held([graph for row in rows.values() for graph in row.longer])
    assert wanted < everything
    monkeypatch.setattr(rotation_module, "COMPANY_BYTES", wanted)
    monkeypatch.setattr(rotation_module, "LOADINGS", 1)
    bench = StandIn(noise={"SEP_5": 0.5})
    rotation = rotation_on(bench, list(rows.values()))
    ride(rotation)
    first, later = bench.requests[0][0], bench.requests[-1][0]
    assert held(first) == everything
    assert set(noisy.longer) <= set(later)
    assert wanted <= held(later)
    assert held(later) - sum(map(weight_bytes, noisy.longer)) in company
    monkeypatch.setattr(rotation_module, "COMPANY_BYTES", 0)
    alone = StandIn(noise={"SEP_5": 0.5})
    ride(rotation_on(alone, list(rows.values())))
    assert held(alone.requests[-1][0]) == sum(map(weight_bytes, noisy.longer))


def test_company_is_at_most_so_many_graphs_for_each_in_work(monkeypatch):
    monkeypatch.setattr(rotation_module, "LOADINGS", 1)
    monkeypatch.setattr(rotation_module, "CROWD", 0)
    rows = planned("*")
    bench = StandIn(noise={"SEP_5": 0.5})
    ride(rotation_on(bench, rows))
    anchors = 2 * len(anchor_graphs(rows))  # loadings
    graphs = [len(set(graphs)) for graphs, _ in bench.requests]
    copies = anchors - len(anchor_graphs(rows))
    in_work = 2 + anchors  # SEP_5 behind both neighbours
    assert graphs[0] + copies == 2 * len(rows) + anchors
    # Drawn by lot, and not the lightest.
    drawn = sorted((row for row in rows if row.name != "SEP_5"), key=rotation_module._lot)
    there = [set(row.longer) <= set(bench.requests[-1][0]) for row in drawn]
    assert there == sorted(there, reverse=True)
    assert 0 < sum(there) < len(drawn)
    company = graphs[-1] + copies - in_work
    assert 0 <= in_work * rotation_module.COMPANY - company < 2
    assert graphs[-1] < graphs[0]


def test_there_is_more_company_where_few_graphs_are_in_work(monkeypatch):
    monkeypatch.setattr(rotation_module, "CROWD", 24)
    rows = planned("*")
    bench = StandIn(noise={"SEP_5": 0.5})
    ride(rotation_on(bench, rows))
    assert 24 - 2 < len(bench.requests[-1][0]) <= 24  # a row has two graphs
    assert len(bench.requests[0][0]) > 24


def test_rows_of_the_table_are_company_where_few_are_measured(tmp_path):
    rows = planned("*")
    path = tmp_path / "t.csv"
    fill([StandIn()], rows[1:], path)
    bench = StandIn()
    fill([bench], rows, path)
    assert len(bench.requests) >= 2
    own = graphs_of(rows[:1])
    for graphs, protocol in bench.requests:
        if protocol.keep_loaded:
            assert rotation_module.CROWD - 2 < len(graphs) <= rotation_module.CROWD
            assert len(set(graphs)) > 4 * own


def test_company_that_has_left_does_not_come_back(monkeypatch):
    monkeypatch.setattr(rotation_module, "CROWD", 16)
    noisy = planned("SEP_5", "digits32:4")
    bench = StandIn(noise={"SEP_5": 0.5})
    settings = measuring(interval=1e-9)
    rotation = Rotation(bench, settings, anchor_graphs(noisy), 2, {}, planned("*"))  # type: ignore
    for row in noisy:
        rotation.board(row)
    laps = []
    for _ in range(6):
        rotation.lap()
        laps.append(set(bench.requests[-1][0]))
    assert len(laps[-1]) < len(laps[0])  # further loadings take its seats
    for earlier, later in itertools.pairwise(laps):
        assert later <= earlier


def test_a_stem_leaves_before_the_laps_of_few_graphs():
    stem = plan_rows(parse_layers("digits32"), select_operators("SEP_3"))[0]
    bench = StandIn(noise={stem.name: 0.5, "SEP_3": 0.5})
    settings = measuring(interval=1e-6, max_rounds=30)
    found = ride(rotation_on(bench, [stem, *planned("SEP_3")], settings))
    assert found[stem.name].rounds == FEWEST
    assert UNSTABLE in estimate_of(found[stem.name]).flags
    assert found["SEP_3"].rounds == 30


def test_a_stem_stays_on_among_many_graphs_and_is_loaded_once(monkeypatch):
    monkeypatch.setattr(rotation_module, "STEM_CROWD", 5)
    stem = plan_rows(parse_layers("digits32"), select_operators("SEP_3"))[0]
    bench = StandIn(noise={stem.name: 0.06})
    found = ride(rotation_on(bench, [stem, *planned("SEP_3")], measuring(max_rounds=200)))
    assert FEWEST < found[stem.name].rounds < 200
    assert estimate_of(found[stem.name]).flags == ()
    assert set(copies_in_laps(bench, stem.name)) == {1}


def test_anchors_go_along_at_first_and_then_where_a_row_needs_them():
    noisy = planned("SEP_5", "digits32:1")
    rows = [*planned("SEP_3,MB_3_3", "digits32:1,4"), *noisy]
    bench = StandIn(noise={"SEP_5": 0.5})
    ride(rotation_on(bench, rows))
    anchors, needed = set(anchor_graphs(rows)), set(noisy[0].shorter)
    assert needed < anchors
    there = [anchors & set(graphs) for graphs, _ in bench.requests]
    assert there[: FEWEST // LAP] == [anchors] * (FEWEST // LAP)
    assert there[FEWEST // LAP :] == [needed] * (len(there) - FEWEST // LAP)
    assert len(there) > FEWEST // LAP


def test_a_lap_has_the_level_of_all_its_graphs_and_not_of_the_anchors():
    class SlowAnchors(StandIn):
        def _result(self, digest, graph, number, protocol):
            found = super()._result(digest, graph, number, protocol)
            slow = 1.3 if len(graph) == 2 and number == 1 else 1.0
            return replace(found, wall_ms=found.wall_ms * slow)

    rotation = rotation_on(SlowAnchors(), planned("*"), SHORT)
    for _ in range(3):
        for found in rotation.lap():
            rotation.board(found.row)
    assert rotation.levels() == pytest.approx(1.0, abs=0.01)


def test_seats_and_memory_limit_the_rows_on():
    rows = planned("*", "imagenet224:18")
    sizes = [sum(map(weight_bytes, row.longer)) for row in rows]
    roomy = StandIn()
    rotation = Rotation(roomy, measuring(seats=2), anchor_graphs(rows), 1, {})  # type: ignore[arg-type]
    rotation.board(rows[0])
    assert rotation.takes(rows[1])
    rotation.board(rows[1])
    assert not rotation.takes(rows[2])
    tight = StandIn(max_bytes=2 * (sizes[0] + sizes[1]))
    rotation = Rotation(tight, measuring(), anchor_graphs(rows), 1, {})  # type: ignore[arg-type]
    large = rows[int(np.argmax(sizes))]
    assert rotation.takes(large)  # the first one always has a seat
    rotation.board(rows[0])
    assert rotation.takes(rows[1])
    rotation.board(rows[1])
    assert not any(rotation.takes(row) for row in rows[2:])


def test_once_the_time_is_spent_rows_leave_with_the_fewest_rounds():
    noise, rows = {"SEP_5": 0.5, "MB_3_3": 0.5}, planned("SEP_5,MB_3_3")
    settings = measuring(time_budget_s=2.0)
    bench = StandIn(noise=noise, request_ms=500.0)
    for one in ride(rotation_on(bench, rows, settings)).values():
        assert one.rounds == 5 * LAP  # the fifth request is the first beyond the budget
        assert UNSTABLE in estimate_of(one).flags
    hasty = StandIn(noise=noise, request_ms=5000.0)
    for one in ride(rotation_on(hasty, rows, settings)).values():
        assert one.rounds == -(-FEWEST // 3 // LAP) * LAP
        assert UNSTABLE in estimate_of(one).flags
    troubled = StandIn(flags=lambda n: ("busy",), request_ms=5000.0)
    for one in ride(rotation_on(troubled, rows, settings)).values():
        assert one.rounds == -(-FEWEST // 3 // LAP) * LAP
        assert estimate_of(one).flags == (DISTURBED,)
    both = StandIn(flags=lambda n: ("busy",), request_ms=5000.0, noise=noise)
    for one in ride(rotation_on(both, rows, settings)).values():
        assert estimate_of(one).flags == (DISTURBED, UNSTABLE)


def test_a_target_that_keeps_one_graph_makes_many_calls_in_a_visit():
    bench = StandIn(resident=False)
    found = ride(rotation_on(bench, planned(), measuring(visit_calls=20), copies=8))
    for graphs, protocol in bench.requests:
        assert (protocol.rounds, protocol.calls_per_visit) == (1, 20)
        assert len(set(graphs)) == len(graphs)  # no copies: each would be loaded anew
    for name, one in found.items():
        assert one.rounds == MeasuringSettings().min_visits
        assert estimate_of(one).samples == one.rounds * 20 * 4
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])
    resident = StandIn()
    ride(rotation_on(resident, planned(), copies=8))
    graphs, protocol = resident.requests[0]
    assert (protocol.rounds, protocol.calls_per_visit) == (3, 1)
    assert all(graphs.count(anchor) == 8 for anchor in anchor_graphs(planned()))
    assert protocol.keep_loaded


def test_differences_are_taken_on_the_devices_own_clock():
    found = ride(rotation_on(StandIn(device_time=True), planned()))
    for name, one in found.items():
        assert one.rounds == FEWEST  # a price of a call that jumps does not matter
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])


def test_a_context_whose_neighbour_the_device_refuses_is_left_out():
    bench = StandIn(refused={"Choice_3": CANNOT})
    rotation = rotation_on(bench, rows := planned("*"))
    found = ride(rotation)
    assert isinstance(found["Choice_3"].error, UnsupportedOperator)
    assert found["SEP_5"].error is None
    assert estimate_of(found["SEP_5"]).latency_ms == pytest.approx(COST_MS["SEP_5"])
    assert estimate_of(found["SEP_5"]).samples == (2 + 1) * FEWEST  # the anchor's copies, and one
    assert len(found["SEP_5"].results) == 1
    assert set(rotation.times_ms()) == {
        bench.digest_of(graph) for graph in anchor_graphs(rows) if graph[0].name != "Choice_3"
    }
    neither: dict[str, AgentError] = {"Choice_3": CANNOT, "SEP_3": CANNOT}
    for one in ride(rotation_on(StandIn(refused=neither), rows)).values():
        assert isinstance(one.error, UnsupportedOperator)


def test_a_context_whose_neighbour_falls_back_is_left_out_where_there_is_another(tmp_path):
    def flags_where(*fallen: str) -> dict[str, str]:
        result = fill([StandIn(fallen=fallen)], rows, tmp_path / f"{len(fallen)}.csv")
        return {row.operator: row.flags for row in result.table}

    rows = planned("SEP_5,Choice_3")
    assert flags_where("Choice_3") == {"SEP_5": "", "Choice_3": "fallback:Choice_3"}
    both = "fallback:Choice_3;fallback:SEP_3"
    assert flags_where("SEP_3", "Choice_3") == {"SEP_5": both, "Choice_3": both}


def test_estimates_are_differences_without_a_pool_and_a_call_costs_nothing(tmp_path):
    bench = StandIn()
    bench.target = replace(bench.target, origin="estimated")
    rows = planned("SEP_5,Choice_3", layers="digits32")
    table = fill([bench], rows, tmp_path / "t.csv").table
    assert {row.estimator for row in table} == {"neighbours-unpooled"}
    for row in table:
        # The stand-in takes as long for a stem, or a head, as for a pool.
        assert row.latency_ms == pytest.approx(COST_MS.get(row.operator, POOL_MS))
        assert row.call_ms == 0.0 if row.is_stem else row.call_ms is not None
    timed = {piece.name for graphs, _ in bench.requests for graph in graphs for piece in graph}
    assert "pool" not in timed


def test_a_lost_device_says_nothing_of_a_row():
    def lose(number: int) -> None:
        if number == 1:
            raise DeviceLost("it went away")

    rotation = rotation_on(StandIn(before=lose), planned())
    assert rotation.lap() == []
    with pytest.raises(DeviceLost):
        rotation.lap()
    assert len(rotation.rows) == 3
    assert all(one.error is None for one in ride(rotation).values())
    for error in (DeviceLost("it went away"), Busy("later")):
        rotation = rotation_on(StandIn(refused={"SEP_5": error}), planned())
        with pytest.raises(type(error)):
            rotation.lap()
        assert len(rotation.rows) == 3


def test_a_device_lost_at_the_same_graph_again_is_that_graphs_fault(tmp_path, monkeypatch):
    rows = planned("SEP_3,SEP_5,MB_3_3")
    bench = StandIn(refused={"SEP_5": DeviceLost("it went away")})
    reopened(monkeypatch, bench)
    result = fill([bench], rows, tmp_path / "t.csv")
    statuses = {row.operator: (row.status, row.flags) for row in result.table}
    assert statuses.pop("SEP_5") == ("failed", "device-lost")
    assert set(statuses.values()) == {("ok", "")}
    assert not result.lost


def test_several_graphs_that_lose_the_device_do_not_end_the_run(tmp_path, monkeypatch):
    rows = planned("SEP_3,SEP_5,MB_3_3,Choice_5")
    lost = ("SEP_5", "MB_3_3", "Choice_5")
    bench = StandIn(refused={name: DeviceLost("it went away") for name in lost})
    reopened(monkeypatch, bench)
    result = fill([bench], rows, tmp_path / "t.csv")
    statuses = {row.operator: row.status for row in result.table}
    assert statuses == {"SEP_3": "ok", **dict.fromkeys(lost, "failed")}


def test_an_anchor_that_fails_once_costs_that_lap():
    rows = planned("SEP_5")
    bench = StandIn()
    bench.no_room = lambda graph, copy: graph == rows[0].shorter[0] and len(bench.requests) == 1
    (found,) = ride(rotation_on(bench, rows)).values()
    assert estimate_of(found).latency_ms == pytest.approx(COST_MS["SEP_5"])
    assert estimate_of(found).flags == ()


def test_a_slow_lap_before_a_harmless_throttling_is_not_how_fast_the_device_is():
    slow_once = in_laps(0, value=1.6, other=1.0)
    bench = StandIn(events=lambda n: int(n > 0), level=slow_once)
    for name, one in ride(rotation_on(bench, planned())).items():
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])


def test_a_device_that_is_gone_is_no_graphs_fault():
    gone = {"SEP_3": DeviceLost("it is gone"), "Choice_3": DeviceLost("it is gone")}
    gone |= {"pool": DeviceLost("it is gone")}
    rotation = rotation_on(StandIn(refused=gone), planned())
    for _ in range(100):
        with pytest.raises(DeviceLost):
            rotation.lap()


def test_rows_taken_after_a_throttling_that_shows_are_flagged_and_counted(tmp_path):
    rows = planned("SEP_3,SEP_5,MB_3_3")
    # The device has throttled before, which is how it is; then once more, in the second lap.
    bench = StandIn(events=lambda n: 3 + (n > 0), level=lambda n: 1.4 if n > 0 else 1.0)
    result = fill([bench], rows, tmp_path / "t.csv", measuring())
    assert all(row.flag_words == ("throttled",) for row in result.table)
    assert result.throttled == len(rows)
    assert result.runs[0].throttle_events == 1
    harmless = StandIn(events=lambda n: 3 + (n > 0))
    result = fill([harmless], rows, tmp_path / "other.csv", measuring())
    assert not any(row.flags for row in result.table)
    steady = StandIn(events=lambda n: 3, level=lambda n: 1.4 if n > 0 else 1.0)
    assert fill([steady], rows, tmp_path / "steady.csv", measuring()).throttled == 0


def test_rows_taken_after_a_throttling_are_given_at_the_speed_before_it():
    bench = StandIn(events=lambda n: int(n > 0), level=lambda n: 1.4 if n > 0 else 1.0)
    for name, one in ride(rotation_on(bench, planned(), measuring(min_rounds=36))).items():
        assert one.laps == tuple(range(12))
        assert estimate_of(one).latency_ms == pytest.approx(COST_MS[name])
        assert estimate_of(one).flags == (THROTTLED,)


def test_a_machine_is_known_over_all_requests():
    def result(events: tuple[int, int], steal: float) -> ArtifactResult:
        before, after = (Conditions(throttle_events=n, governor=f"after {n}") for n in events)
        return ArtifactResult("0", before=before, after=replace(after, steal_share=steal))

    machine = Machine()
    assert (machine.steal_share, machine.before) == (0.0, None)
    machine.note(result((4, 5), 0.1), 100.0)
    machine.note(result((5, 6), 0.5), 300.0)
    assert machine.before is not None
    assert machine.after is not None
    assert (machine.before.governor, machine.after.governor) == ("after 4", "after 6")
    assert machine.steal_share == pytest.approx(0.4)
    assert (machine.at_rest, machine.throttle_events) == (4, 2)
    machine.note(result((0, 1), 0.0), 1.0)  # it booted
    assert (machine.at_rest, machine.throttle_events) == (0, 3)


def test_levels_are_found_where_graphs_have_two_modes():
    random = np.random.default_rng(0)
    level = np.exp(random.normal(0, 0.02, 8))
    for laps in (3, 5, 8):
        times = np.exp(0.003 * random.normal(size=(laps, 140))) * level[:laps, None]
        times *= random.uniform(0.1, 2.0, 140)
        times[random.random(times.shape) < 0.3] *= 1.7
        found = relative_levels(times)
        assert found / found[0] == pytest.approx(level[:laps] / level[0], rel=0.003)


def test_the_fewest_visits_are_never_more_than_the_most():
    assert MeasuringSettings(max_rounds=12).rounds_of_a_row(resident=False) == (3, 3)
    assert MeasuringSettings().rounds_of_a_row(resident=False) == (5, 15)


def test_calls_of_one_visit_count_for_one():
    (row,) = planned("SEP_5")
    calls = {g: [np.full((6, 16), true_ms(g))] for g in (*row.longer, *row.shorter)}
    slow = calls[row.longer[0]][0]
    slow[1:] *= 2  # one visit of six was fast
    wide = estimate_row(row, calls)
    apart = {g: [copy.reshape(-1, 1) for copy in copies] for g, copies in calls.items()}
    narrow = estimate_row(row, apart)
    assert wide.latency_ms == narrow.latency_ms
    assert wide.width(0.02, 0.0) > 10
    assert narrow.width(0.02, 0.0) < wide.width(0.02, 0.0)


def test_a_time_of_zero_is_not_kept():
    (row,) = planned("SEP_5")
    bench = StandIn()
    none = {row.shorter[0]: np.zeros((3, 1)), row.shorter[1]: np.ones((3, 1))}
    digests = {graph: [bench.digest_of(graph)] for graph in none}
    timed = {
        bench.digest_of(graph): ArtifactResult(bench.digest_of(graph), wall_ms=ms)
        for graph, ms in none.items()
    }
    assert graph_times(digests, timed) == {row.shorter[1]: 1.0}
    real = StandIn.time

    class Coarse(StandIn):
        def time(self, digests: Sequence[str], protocol: Protocol, on_progress: Any = None):
            results = real(self, digests, protocol, on_progress)
            shorter = self.digest_of(row.shorter[0])
            if shorter in results:
                results[shorter] = replace(results[shorter], wall_ms=np.zeros((3, 1)))
            return results

    rotation = rotation_on(coarse := Coarse(), [row], copies=1)
    ride(rotation)
    assert set(rotation.times_ms()) == {coarse.digest_of(row.shorter[1])}


# What is written down besides rows.


def test_what_each_agent_did_is_kept_beside_the_table(tmp_path):
    path, rows = tmp_path / "t.csv", planned("SEP_3,SEP_5,MB_3_3")
    first = StandIn(request_ms=500.0, level=in_laps(1, value=1.6, other=1.0))
    result = fill([first], rows[:2], path, measuring())
    (run,) = result.runs
    laps = FEWEST // LAP + 1
    assert (run.rows, run.laps, run.laps_repeated) == (2, laps, 1)
    assert (run.device_s, run.target) == (first.spent_ms / 1e3, str(result.target))
    assert run.frequency_before_mhz == 1000
    assert run.frequency_after_mhz == 1001 + laps  # the plain timings came last
    assert run.governor is None
    assert run.steal_share == 0.25
    assert "1000 to 1006 MHz, 25.0% stolen by other machines" in run.text()
    row = result.table.rows[0]
    assert row.frequency_before_mhz == 1000
    assert row.frequency_after_mhz == 1000 + laps
    assert load_runs(path) == [run]
    again = fill([StandIn()], rows, path, measuring())
    assert load_runs(path) == [run, *again.runs]
    assert fill([StandIn()], rows, path).runs == ()
    assert len(load_runs(path)) == 2
    shown = CliRunner().invoke(table_group, ["show", str(path)])
    assert f"2 rows in {laps} laps (1 made up for)" in shown.output
    shown = CliRunner().invoke(table_group, ["show", str(path), "--json"])
    assert [r["rows"] for r in json.loads(shown.output)["runs"]] == [2, 1]


def test_runs_go_along_when_tables_are_merged(tmp_path):
    one, other, both = (tmp_path / f"{name}.csv" for name in ("one", "other", "both"))
    rows = planned("SEP_3,SEP_5")
    fill([StandIn()], rows[:1], one)
    fill([StandIn(request_ms=2.0)], rows[1:], other)
    words = ["merge", str(one), str(other), "-o", str(both)]
    assert CliRunner().invoke(table_group, words).exit_code == 0
    assert set(load_runs(both)) == {*load_runs(one), *load_runs(other)}
    older = [replace(run, ended_at="2020-01-01T00:00:00Z") for run in load_runs(other)]
    save_runs(other, older)
    assert CliRunner().invoke(table_group, words).exit_code == 0
    assert load_runs(both) == older + load_runs(one)


@pytest.mark.parametrize("line", ["{", "[]", '{"rows": 1}', '{"surprise": 1}'])
def test_a_broken_history_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "t.csv"
    fill([StandIn()], planned("SEP_3"), path)
    runs_path(path).write_text(runs_path(path).read_text() + line + "\n")
    with pytest.raises(BadRequest, match=r"line 2: .*nothing but the history"):
        load_runs(path)


def test_a_row_that_is_below_noise_in_the_end_does_not_hold_up_the_run(tmp_path, monkeypatch):
    rows = planned("SEP_3,SEP_5")
    real = Rotation.review

    def review(rotation: Rotation, found: Found) -> tuple[Found, bool]:
        found, slow = real(rotation, found)
        if found.row.name == "SEP_5":
            found = replace(found, estimate=replace(estimate_of(found), latency_ms=-1.0))
        return found, slow

    monkeypatch.setattr(Rotation, "review", review)
    result = fill([StandIn()], rows, tmp_path / "t.csv")
    assert {row.operator: row.status for row in result.table} == {"SEP_3": "ok", "SEP_5": "failed"}
    assert result.not_ok == {"failed": 1}


def test_plain_timings_that_other_work_disturbed_are_made_again(tmp_path):
    rows = planned("SEP_3,SEP_5")
    last = FEWEST // LAP  # the request for plain timings
    bench = StandIn(
        flags=in_laps(last, value=("busy",), other=()), level=in_laps(last, value=3.0, other=1.0)
    )
    result = fill([bench], rows, tmp_path / "t.csv", measuring())
    assert {row.operator: row.warm_ms for row in result.table} == pytest.approx(
        {name: COST_MS[name] + CALL_MS for name in ("SEP_3", "SEP_5")}
    )
    troubled = StandIn(flags=lambda n: ("busy",))
    check_complete(fill([troubled], rows, tmp_path / "busy.csv", measuring()), rows)
    bench = StandIn(flags=in_laps(last, value=("busy",), other=()))
    bench.no_room = lambda graph, copy: len(bench.requests) == last + 2  # when it is made again
    check_complete(fill([bench], rows, tmp_path / "fails.csv", measuring()), rows)


def test_a_slow_row_is_measured_again_only_where_there_is_room(tmp_path):
    rows = planned("MB_3_3,MB_5_3,MB_7_3")
    room = 2 * max(row.bytes for row in rows)  # one at a time
    laps = FEWEST // LAP
    bench = StandIn(max_bytes=room, level=lambda n: 1.6 if n < 2 * laps else 1.0)
    check_complete(fill([bench], rows, tmp_path / "t.csv", measuring()), rows)
    assert len([1 for _, protocol in bench.requests if protocol.keep_loaded]) == 5 * laps
    for graphs, _ in bench.requests:
        own = {graph for graph in graphs for row in rows if graph in row.longer}
        held = [row for row in rows if own.intersection(row.longer)]
        assert len(held) == 1 or sum(row.bytes for row in held) <= room // 2


# Several boards, and boards that go away.


def fill(benches: Sequence[Any], rows: Sequence[PlannedRow], path: Path, *words: Any) -> Any:
    """`profile` with a limit, as what is tried here could wait for ever."""
    told: list[Any] = []

    def work() -> None:
        try:
            told.append(profile(benches, rows, path, *words))
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert told, "it does not end"
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


def reopened(monkeypatch, *benches: StandIn) -> None:
    """Boards that are there again when asked; the others are gone."""
    there = {bench.address: bench for bench in benches}

    def open_again(client: Any, request: Any) -> StandIn:
        if client.address not in there:
            raise DeviceLost("nobody answers")
        return there[client.address]

    monkeypatch.setattr(module.Bench, "open", open_again)


def loses(at: int) -> Callable[[int], None]:
    def before(number: int) -> None:
        if number >= at:
            raise DeviceLost("the plug was pulled")

    return before


def check_complete(result: ProfileResult, rows: Sequence[PlannedRow]) -> None:
    assert not missing_rows(rows, result.table, result.target)
    assert len(result.table) == len(rows)
    assert all(row.cold_ms for row in result.table)


def test_boards_share_a_plan_evenly_and_begin_with_half(tmp_path, monkeypatch):
    boards = [StandIn(address=f"board:{n}") for n in range(4)]
    began = threading.Barrier(len(boards))
    in_work: dict[str, list[int]] = {board.address: [] for board in boards}
    lap = Rotation.lap

    def watched(self: Rotation, *words: Any) -> list[Found]:
        told = in_work[self.bench.client.address]
        told.append(len(self.rows))
        if len(told) == 1:
            began.wait(30)
        return lap(self, *words)

    monkeypatch.setattr(Rotation, "lap", watched)
    rows = planned("*")
    assert fill(boards, rows, tmp_path / "t.csv").table.rows
    share = len(rows) // len(boards)
    for told in in_work.values():
        assert told[0] == share // 2
        assert max(told) <= share
    alone = StandIn(address="board:0")
    in_work["board:0"] = [0]  # nobody else begins
    fill([alone], rows, tmp_path / "alone.csv")
    assert in_work["board:0"][1] == len(rows)


def test_what_a_board_had_in_work_goes_to_the_others(tmp_path, monkeypatch):
    rows = planned("*")
    good, bad = StandIn("good:1"), StandIn("bad:1", before=loses(2))
    reopened(monkeypatch, good)
    result = fill([bad, good], rows, tmp_path / "t.csv")
    check_complete(result, rows)
    assert result.lost == ("bad:1: the plug was pulled",)
    assert bad.requests
    assert len(good.requests) > 3


def test_a_board_that_is_lost_while_its_rows_are_written_loses_none(tmp_path, monkeypatch):
    rows = planned("SEP_*")
    bench, back = StandIn("one:1"), StandIn("one:1")
    real, alone = bench.digest_of, {row.alone for row in rows}

    def digest_of(graph: Graph, copy: int = 0) -> str:
        if graph in alone:
            raise DeviceLost("the plug was pulled")
        return real(graph, copy)

    monkeypatch.setattr(bench, "digest_of", digest_of)
    reopened(monkeypatch, back)
    result = fill([bench], rows, tmp_path / "t.csv")
    check_complete(result, rows)
    assert not result.lost  # it came back


def test_a_board_that_is_lost_while_a_row_is_measured_again_loses_none(tmp_path, monkeypatch):
    rows = planned("SEP_3,SEP_5,MB_3_3")
    settings = measuring(max_rounds=21)
    # The noisy row leaves after seven laps that are not slow; the others then get on again.
    bench = StandIn(
        noise={"SEP_5": 1.0}, level=lambda n: 1.6 if n < 3 else 1.0, before=loses(3 + 7)
    )
    reopened(monkeypatch, StandIn())
    result = fill([bench], rows, tmp_path / "t.csv", settings)
    check_complete(result, rows)
    assert (result.disturbed, result.unstable) == (2, 1)
    found = {row.operator: row.latency_ms for row in result.table}
    assert found["SEP_3"] == pytest.approx(1.0)
    assert found["MB_3_3"] == pytest.approx(3.0)


def test_a_row_that_left_in_a_slow_time_is_measured_again(tmp_path):
    rows = planned("SEP_3,SEP_5,MB_3_3")
    settings = measuring(max_rounds=21)
    bench = StandIn(noise={"SEP_5": 1.0}, level=lambda n: 1.6 if n < 4 else 1.0)
    result = fill([bench], rows, tmp_path / "t.csv", settings)
    check_complete(result, rows)
    assert (result.disturbed, result.unstable) == (0, 1)
    found = {row.operator: row.latency_ms for row in result.table}
    assert found["SEP_3"] == pytest.approx(1.0)
    assert found["MB_3_3"] == pytest.approx(3.0)


def test_the_last_board_that_does_not_come_back_ends_the_run_and_rows_are_safe(
    tmp_path, monkeypatch
):
    rows = planned("SEP_3,SEP_5,MB_3_3")
    monkeypatch.setattr(module, "REJOIN_S", 0.0)
    reopened(monkeypatch)
    bench = StandIn(noise={"SEP_5": 1.0}, before=loses(5))
    with pytest.raises(DeviceLost, match="2 rows are safe, the same command goes on from there"):
        fill([bench], rows, tmp_path / "t.csv", measuring())
    result = fill([StandIn()], rows, tmp_path / "t.csv")
    assert (result.measured, result.kept) == (1, 2)
    check_complete(result, rows)


def test_between_two_halves_that_disagree_the_faster_one_stays(tmp_path):
    rows = planned()
    slow = [StandIn(f"slow:{n}", level=lambda number: 1.2) for n in (1, 2)]
    fast = [StandIn(f"fast:{n}") for n in (1, 2)]
    result = fill([*slow, *fast], rows, tmp_path / "t.csv")
    check_complete(result, rows)
    assert [words.split(" ")[0] for words in result.left_out] == ["slow:1:", "slow:2:"]
    assert all("20% slower" in words for words in result.left_out)
    assert {row.operator: row.latency_ms for row in result.table} == pytest.approx(
        {name: COST_MS[name] for name in ("SEP_3", "SEP_5", "MB_3_3")}
    )


def test_boards_that_agree_in_nothing_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module._Pool, "_agrees", lambda pool, *words: False)
    with pytest.raises(HurricaneError, match="no two boards agree"):
        fill([StandIn("a:1"), StandIn("b:1")], planned(), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


def test_a_board_that_cannot_be_compared_is_compared_before_it_works(tmp_path, monkeypatch):
    rows = planned("*")
    compared = threading.Event()

    def fail_at_first(number: int) -> None:
        if number == 0:
            raise DeviceLost("not yet")

    def wait_for_the_other(number: int) -> None:
        if number == 1:
            compared.wait(30)

    slow = StandIn("slow:1", level=lambda number: 1.2, before=fail_at_first)
    boards = [StandIn("good:1", before=wait_for_the_other), slow, StandIn("good:2")]
    reopened(monkeypatch, slow)
    real = module._Pool._agrees

    def agrees(pool, bench, *words):
        if bench is slow:
            compared.set()
        return real(pool, bench, *words)

    monkeypatch.setattr(module._Pool, "_agrees", agrees)
    result = fill(boards, rows, tmp_path / "t.csv")
    check_complete(result, rows)
    assert result.left_out == ("slow:1: its anchors are 20% slower than the others'",)
    assert len(slow.requests) == 2  # both to compare it


def test_a_board_that_others_use_is_not_waited_for(tmp_path, monkeypatch):
    rows = planned("*")
    monkeypatch.setattr(module, "LATE_S", 0.0)
    free = threading.Event()
    waited: list[bool] = []
    busy = StandIn("busy:1", before=lambda number: waited.append(free.wait(30)))
    reopened(monkeypatch, busy)
    result = fill([busy, StandIn("good:1"), StandIn("good:2")], rows, tmp_path / "t.csv")
    assert not waited  # it is done, and that one still is not
    free.set()
    check_complete(result, rows)
    assert result.lost == ("busy:1: it is busy with other work",)
    assert not result.left_out


def test_a_busy_board_joins_when_it_is_free(tmp_path, monkeypatch):
    rows = planned("*")
    monkeypatch.setattr(module, "LATE_S", 0.0)
    free, joined = threading.Event(), threading.Event()

    def others_work(number: int) -> None:
        if number == 1:  # so that one is waited for no longer
            free.set()
        if number == 2:
            joined.wait(30)

    def busy_at_first(number: int) -> None:
        free.wait(30)
        if number > 1:  # it was compared, and works
            joined.set()

    busy = StandIn("busy:1", before=busy_at_first)
    reopened(monkeypatch, busy)
    good = [StandIn("good:1", before=others_work), StandIn("good:2")]
    result = fill([busy, *good], rows, tmp_path / "t.csv")
    check_complete(result, rows)
    assert joined.is_set()
    assert not result.lost


def test_what_fails_at_once_does_not_tell_how_fast_a_pool_is(tmp_path):
    refused: dict[str, AgentError] = {"MB_3_3": CANNOT}
    slow_at_first = in_laps(1, value=1.4, other=1.0)  # the request before compares boards
    boards = [Board(f"b:{n}", refused=refused, level=slow_at_first) for n in (1, 2)]
    result = fill(boards, planned("SEP_3,SEP_5,MB_3_3"), tmp_path / "t.csv", measuring())
    assert {row.operator: row.latency_ms for row in result.table} == {
        "SEP_3": pytest.approx(1.0),
        "SEP_5": pytest.approx(2.0),
        "MB_3_3": None,
    }


def test_boards_write_rows_at_one_speed_from_the_first_on(tmp_path, monkeypatch):
    rows = planned("*")
    reopened(monkeypatch)
    monkeypatch.setattr(module, "REJOIN_S", 0.0)
    noisy = {"MB_3_3": 1.0}

    path = tmp_path / "t.csv"
    there: list[dict[str, float | None]] = []

    def look(number: int) -> None:
        if number == 8:  # as a run that is killed then would leave it
            there.append({row.operator: row.latency_ms for row in read_journal(path).rows})
        loses(9)(number)

    boards = [
        Board("a:1", noise=noisy, before=look),
        Board("b:1", noise=noisy, level=lambda n: 1.04, before=look),
    ]
    with pytest.raises(DeviceLost):
        fill(boards, rows, path, measuring())
    assert there
    for known in there:
        ratios = [ms / COST_MS[name] for name, ms in known.items() if ms and name in COST_MS]
        assert len(ratios) >= 2
        assert max(ratios) / min(ratios) < 1.005


def test_other_layers_of_a_table_are_given_at_its_speed(tmp_path):
    path, request = tmp_path / "t.csv", parse_target(DSP, ["noise=0", "call_jitter=0"])
    first, other = planned("SEP_*", "digits32:1"), planned("SEP_*", "digits32:4")
    assert not set(anchor_graphs(first)) & set(anchor_graphs(other))
    with private_agent(("hexagon685-dsp",)) as client:
        bench = Bench.open(client, request)
        profile([bench], first, path, SHORT)
        truth = profile([bench], other, tmp_path / "truth.csv", SHORT).table
    with private_agent((slower(tmp_path / "slow", 1.04),)) as client:
        result = profile([Bench.open(client, request)], other, path, SHORT)
    assert result.referred_to == "rows from before"
    assert result.level == pytest.approx(1.04)
    for row in truth:
        found = result.table.get(row.key)
        assert found is not None
        assert found.latency_ms == pytest.approx(row.latency_ms)


def slower(folder: Path, factor: float) -> str:
    folder.mkdir()
    text = (DEVICES / "hexagon685-dsp.toml").read_text()
    path = folder / "hexagon685-dsp.toml"
    path.write_text(text.replace("[disturbances]", f"[disturbances]\nslower = {factor}"))
    return str(path)


def test_a_slow_board_among_three_is_named_and_left_out(tmp_path):
    rows = planned("SEP_*")
    request = parse_target(DSP)
    devices = ("hexagon685-dsp", slower(tmp_path / "slow", 1.12), "hexagon685-dsp")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(private_agent((device,), seed=seed))
            for seed, device in enumerate(devices)
        ]
        benches = [Bench.open(client, request) for client in clients]
        result = fill(benches, rows, tmp_path / "t.csv", SHORT)
    check_complete(result, rows)
    assert not result.lost
    (words,) = result.left_out
    assert words == f"{clients[1].address}: its anchors are 12% slower than the others'"
    assert set(result.device_s) == {clients[0].address, clients[2].address}


def start_agent(folder: Path, address: str, log: str) -> tuple[subprocess.Popen[bytes], str]:
    """An agent as a process of its own, once it listens, and its address."""
    path = folder / log
    command = [sys.executable, "-m", "hurricane.agents.cli", "serve", "--listen", address]
    with path.open("w") as output:
        process = subprocess.Popen(
            [*command, "--simulate", "hexagon685-dsp"], stdout=output, stderr=subprocess.STDOUT
        )
    while process.poll() is None:
        for line in path.read_text().splitlines():
            if line.startswith("agent on "):
                return process, line.split()[2].rstrip(":")
    raise AssertionError(path.read_text())


def test_an_agent_that_comes_back_on_its_port_joins_again(tmp_path, monkeypatch):
    rows = planned("SEP_*")
    processes: list[subprocess.Popen[bytes]] = []
    process, address = start_agent(tmp_path, "127.0.0.1:0", "first.log")
    processes.append(process)
    real = Rotation.lap

    def lap(rotation: Rotation, on_progress: Any = None) -> list[Found]:
        if len(processes) == 1 and rotation.bench.spent_ms:  # after its first lap
            processes[0].kill()
            processes[0].wait()
            processes.append(start_agent(tmp_path, address, "second.log")[0])
            raise DeviceLost("the agent was killed")
        return real(rotation, on_progress)

    monkeypatch.setattr(Rotation, "lap", lap)
    try:
        with AgentClient(address) as client:
            bench = Bench.open(client, parse_target(DSP))
            result = fill(
                [bench], rows, tmp_path / "t.csv", replace(SHORT, min_rounds=6, max_rounds=6)
            )
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(processes) == 2
    check_complete(result, rows)
    assert not result.lost


def test_a_resumed_run_goes_on_at_the_level_of_the_first(tmp_path):
    path, request = tmp_path / "t.csv", parse_target(DSP, ["noise=0", "call_jitter=0"])
    first, more = planned("SEP_*"), planned("SEP_*,MB_*_3", "digits32:1,4")
    with private_agent(("hexagon685-dsp",)) as client:
        bench = Bench.open(client, request)
        target = profile([bench], first, path, SHORT).target
        truth = profile([bench], more, tmp_path / "truth.csv", SHORT).table
    before, content = load_anchors(path, target), anchors_path(path).read_bytes()
    assert len(before) == graphs_of(first)
    with private_agent((slower(tmp_path / "slow", 1.04),)) as client:
        bench = Bench.open(client, request)
        assert profile([bench], first, path, SHORT).measured == 0
        assert anchors_path(path).read_bytes() == content
        result = profile([bench], more, path, SHORT)
        after = load_anchors(path, target)
        profile([bench], planned("Choice_3", "digits32:4"), path, SHORT)
    assert result.kept == len(first)
    check_complete(result, more)
    for row in result.table:
        known = truth.get(row.key)
        assert known is not None
        assert row.latency_ms == pytest.approx(known.latency_ms, rel=1e-6)
    assert len(after) == graphs_of(more) > len(before)
    assert {digest: after[digest] for digest in before} == before
    assert after == pytest.approx(load_anchors(tmp_path / "truth.csv", target))
    last = load_anchors(path, target)
    assert {digest: last[digest] for digest in after} == after  # those of other layers stay
    assert len(last) > len(after)


def test_a_table_is_given_as_fast_as_the_device_was_for_its_reference(tmp_path):
    request, rows = parse_target(DSP, ["noise=0", "call_jitter=0"]), planned("SEP_*,MB_3_*")
    paths = {name: tmp_path / f"{name}.csv" for name in ("first", "second", "own")}
    with private_agent(("hexagon685-dsp",)) as client:
        first = profile([Bench.open(client, request)], rows, paths["first"], SHORT)
    known = anchors_path(paths["first"]).read_bytes()
    with private_agent((slower(tmp_path / "slow", 1.04),)) as client:
        bench = Bench.open(client, request)
        own = profile([bench], rows, paths["own"], SHORT)
        second = profile([bench], rows, paths["second"], SHORT, reference=paths["first"])
    assert (first.referred_to, own.referred_to, second.referred_to) == ("", "", "reference")
    assert second.level == pytest.approx(1.04)
    for row in first.table:
        for table, level in ((own.table, 1.04), (second.table, 1.0)):
            again = table.get(row.key)
            assert again is not None
            assert again.latency_ms == pytest.approx(level * row.latency_ms, rel=1e-4)
    # It holds what its own graphs took, at that speed, and the reference stays as it was.
    mine = load_anchors(paths["second"], second.target)
    assert mine == pytest.approx(load_anchors(paths["first"], first.target))
    assert len(mine) == graphs_of(rows)
    assert anchors_path(paths["first"]).read_bytes() == known


def test_a_reference_without_the_targets_speed_is_refused(tmp_path):
    rows, path = planned("SEP_3"), tmp_path / "t.csv"
    missing, other = tmp_path / "missing.csv", tmp_path / "other.csv"
    elsewhere, begun = tmp_path / "elsewhere.csv", tmp_path / "begun.csv"
    with private_agent(("hexagon685-dsp", "myriadx-vpu")) as client:
        profile([Bench.open(client, parse_target("sim-myriadx-vpu"))], rows, other, SHORT)
        bench = Bench.open(client, parse_target(DSP))
        profile([bench], planned("SEP_3", "digits32:4"), elsewhere, SHORT)
        begun.write_bytes(elsewhere.read_bytes())
        bench.spent_ms = 0.0
        with pytest.raises(BadRequest, match="no layer shape in common"):
            profile([bench], rows, path, SHORT, reference=elsewhere)
        with pytest.raises(BadRequest, match=r"begun\.csv holds rows whose speed is not known"):
            profile([bench], rows, begun, SHORT, reference=elsewhere)
        with pytest.raises(BadRequest, match=r"missing\.csv: there is no such table"):
            profile([bench], rows, path, SHORT, reference=missing)
        with pytest.raises(BadRequest, match=r"other\.csv\.anchors\.json does not tell how fast"):
            profile([bench], rows, path, SHORT, reference=other)
        assert not bench.spent_ms
    assert not path.exists()


def test_all_boards_of_a_pool_are_brought_to_the_reference(tmp_path):
    request, rows = parse_target(DSP, ["noise=0", "call_jitter=0"]), planned("SEP_*,MB_*")
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    with private_agent(("hexagon685-dsp",)) as client:
        truth = profile([Bench.open(client, request)], rows, first, SHORT).table
    boards = (slower(tmp_path / "one", 1.02), slower(tmp_path / "two", 1.06))
    with ExitStack() as stack:
        clients = [stack.enter_context(private_agent((board,))) for board in boards]
        benches = [Bench.open(client, request) for client in clients]
        result = profile(benches, rows, second, SHORT, reference=first)
    check_complete(result, rows)
    assert not result.left_out
    assert 1.02 - 1e-6 <= result.level <= 1.06 + 1e-6
    for row in truth:
        again = result.table.get(row.key)
        assert again is not None
        assert again.latency_ms == pytest.approx(row.latency_ms, rel=1e-4)


def test_a_table_that_refers_to_another_goes_on_at_its_speed_after_a_kill(tmp_path, monkeypatch):
    request, rows = parse_target(DSP, ["noise=0", "call_jitter=0"]), planned("SEP_*,MB_*")
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    with private_agent(("hexagon685-dsp",)) as client:
        truth = profile([Bench.open(client, request)], rows, first, SHORT).table
    settings, real = replace(SHORT, seats=4), Rotation.lap

    def lap(rotation: Rotation, on_progress: Any = None) -> list[Found]:
        if len(load_anchors(second, rotation.bench.target)) > 8:
            raise RuntimeError("killed")
        return real(rotation, on_progress)

    with private_agent((slower(tmp_path / "slow", 1.04),)) as client:
        bench = Bench.open(client, request)
        monkeypatch.setattr(Rotation, "lap", lap)
        with pytest.raises(RuntimeError, match="killed"):
            profile([bench], rows, second, settings, reference=first)
        monkeypatch.setattr(Rotation, "lap", real)
        result = profile([bench], rows, second, settings, reference=first)
    assert 0 < result.kept < len(rows)
    assert result.referred_to == "rows from before"
    for row in truth:
        again = result.table.get(row.key)
        assert again is not None
        assert again.latency_ms == pytest.approx(row.latency_ms, rel=1e-4)


@pytest.mark.parametrize("folder", [False, True])
def test_profile_ops_takes_a_reference(tmp_path, folder):
    token = tmp_path / "token"

    def invoke(client: AgentClient, output: str, *words: str) -> Any:
        token.write_text(client._metadata[0][1].removeprefix("Bearer "))
        token.chmod(0o600)
        command = ["--layers", "digits32:1", "--operators", "SEP_3", "--target", DSP, "--json"]
        command += ["--agent", client.address, "--token-file", str(token)]
        told = CliRunner().invoke(
            profile_ops,
            [*command, "-o", output, *words],
            catch_exceptions=False,
            standalone_mode=False,
        )
        return json.loads(told.stdout)

    name = "" if folder else ".csv"
    end = "/" if folder else ""
    first, second = (str(tmp_path / f"{n}{name}") + end for n in ("first", "second"))
    with private_agent(("hexagon685-dsp",)) as client:
        found = invoke(client, first)
        assert (found["referred_to"], found["level"]) == (None, None)
    with private_agent((slower(tmp_path / "slow", 1.2),)) as client:
        found = invoke(client, second, "--reference", first)
    assert (found["measured"], found["referred_to"]) == (1, "reference")
    assert found["level"] == pytest.approx(1.2, rel=0.02)


def test_references_are_looked_at_before_anything_is_measured(tmp_path):
    words = ["--layers", "digits32:1", "--operators", "SEP_3", "--target", DSP]
    (tmp_path / "old.csv").touch()
    with pytest.raises(BadRequest, match="does not tell how fast"):
        CliRunner().invoke(
            profile_ops,
            [*words, "-o", str(tmp_path / "t.csv"), "--reference", str(tmp_path / "old.csv")],
            catch_exceptions=False,
            standalone_mode=False,
        )
    assert not (tmp_path / "t.csv").exists()


# Simulated devices, as a whole.


@pytest.mark.parametrize(
    ("device_time", "estimator"), [(True, "neighbours-device"), (False, "neighbours")]
)
def test_a_device_that_keeps_one_graph_fills_a_table(tmp_path, device_time, estimator):
    folder = tmp_path / "device"
    folder.mkdir()
    text = (DEVICES / "hexagon685-dsp.toml").read_text()
    text = text.replace("resident = true", "resident = false")
    if not device_time:
        text = text.replace("device_time = true", "device_time = false")
    (folder / "stick.toml").write_text(text)
    rows = planned("SEP_*")
    with private_agent((str(folder / "stick.toml"),)) as client:
        bench = Bench.open(client, parse_target("sim-stick"))
        assert not bench.resident
        result = fill([bench], rows, tmp_path / "t.csv")
    check_complete(result, rows)
    for row in result.table:
        assert row.estimator == estimator
        assert row.rounds is not None
        assert row.rounds >= 2
        assert row.samples == row.rounds * MeasuringSettings().visit_calls * 4


def test_a_simulated_device_without_one_neighbour_still_fills_the_rest(tmp_path):
    rows = planned("SEP_3,SEP_5,MB_3_3,Choice_3")
    request = parse_target(DSP, ["unsupported_ops=Concat"])
    with private_agent(("hexagon685-dsp",)) as client:
        bench = Bench.open(client, request)
        result = profile([bench], rows, tmp_path / "t.csv", SHORT)
    statuses = {row.operator: row.status for row in result.table}
    assert statuses == {"SEP_3": "ok", "SEP_5": "ok", "MB_3_3": "ok", "Choice_3": "unsupported"}
    assert result.not_ok == {"unsupported": 1}


def test_the_summary_tells_what_is_unstable_lost_and_left_out(tmp_path, monkeypatch):
    def done(benches, rows, path, settings, *, retry, on_progress, reference):
        table, target = LookupTable(path=path), benches[0].target
        lost, left_out = ("a:1: it is gone",), ("b:1: its anchors",)
        words = {"governor": "powersave", "load_before": 0.5, "load_after": 1.5}
        runs = (Run("2026-01-01T00:00:00Z", str(target), "1", 30, 1.0, 9, 2, 1.0, **words),)
        return ProfileResult(
            table, target, 30, 2, {}, 3, 4, 5, lost, left_out, {}, "rows from before", 1.25, runs
        )

    monkeypatch.setattr(kinds_module, "profile", done)
    words = ["--layers", "digits32:1", "--target", DSP, "-o", str(tmp_path / "t.csv")]
    told = CliRunner().invoke(profile_ops, words, catch_exceptions=False, standalone_mode=False)
    assert "3 rows were taken in a slow time" in told.output
    assert "4 rows kept wide intervals and are flagged unstable" in told.output
    assert "5 rows were taken after the device had lowered its clock" in told.output
    assert "2 of 9 laps were disturbed and made up for" in told.output
    assert "the machine meanwhile: governor powersave, load 0.50 to 1.50" in told.output
    assert "the device took 1.250 times as long as for the rows from before" in told.output
    assert "that is more than a clock wanders" in told.output
    assert "a:1: it is gone" in told.output
    assert "left out, b:1: its anchors" in told.output
    told = CliRunner().invoke(
        profile_ops, [*words, "--json"], catch_exceptions=False, standalone_mode=False
    )
    summary = json.loads(told.output)
    assert [summary[name] for name in ("disturbed", "unstable", "throttled")] == [3, 4, 5]
    assert summary["runs"][0]["governor"] == "powersave"
    assert summary["lost_agents"] == ["a:1: it is gone"]
    assert summary["left_out"] == ["b:1: its anchors"]


def test_retry_counts_what_was_taken_after_a_throttling(tmp_path):
    rows = planned("SEP_3,SEP_5")
    path = tmp_path / "t.csv"
    result = fill([StandIn()], rows, path)
    flagged = [replace(row, flags=THROTTLED) for row in result.table]
    assert not missing_rows(rows, result.table, result.target, retry=True)
    again = LookupTable([flagged[0], *list(result.table)[1:]])
    assert len(missing_rows(rows, again, result.target, retry=True)) == 1
