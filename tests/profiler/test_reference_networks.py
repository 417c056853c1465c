"""Networks that are timed among the rows: which they are, and what is learnt from their calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hurricane.agents.errors import UnsupportedOperator
from hurricane.agents.results import ArtifactResult, Protocol
from hurricane.lookup_tables.journal import journal_path, read_journal
from hurricane.lookup_tables.spread import SPREADS, NetworkTimes, Spread
from hurricane.ops.export import architecture_pieces
from hurricane.ops.pool import GATES
from hurricane.profiler import profile as module
from hurricane.profiler.outcomes import Series
from hurricane.profiler.plan import (
    REFERENCE_NETWORKS,
    Graph,
    PlannedNetwork,
    baseline_graphs,
    parse_layers,
    reference_networks,
    weight_bytes,
)
from hurricane.profiler.profile import ProfileResult, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.recorder import _change
from hurricane.profiler.timing.location import quiet_ms

from .stand_in import BATCH, BATCHES, CALL_MS, StandIn, digest, limited, planned, timing, true_ms
from .test_measurement import Bench

LAYERS = parse_layers("digits32")
ROWS = planned("SEP_3,SEP_5,Choice_3", "digits32")
NETWORKS = reference_networks(LAYERS, ROWS)
GRAPHS = [network.graph for network in NETWORKS]


@pytest.fixture(autouse=True)
def _no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in is sent no graphs, so that none need be exported."""
    monkeypatch.setattr(module, "prepare_templates", lambda pieces, on_progress: None)


def fill(
    sessions: Any,
    path: Path,
    protocol: TimingProtocol | None = None,
    rows: Any = ROWS,
    networks: Sequence[PlannedNetwork] = NETWORKS,
) -> ProfileResult:
    sessions = sessions if isinstance(sessions, list) else [sessions]
    return limited(lambda: profile(sessions, rows, path, protocol or timing(), networks=networks))


def spread_of(result: ProfileResult) -> Spread:
    """What lies beside the table of a run."""
    assert result.table.path is not None
    return SPREADS.load(result.table.path)[result.target]


def by_operators(spread: Spread) -> dict[tuple[str, ...], NetworkTimes]:
    found = {network.operators: network for network in spread.networks}
    assert len(found) == len(spread.networks)
    return found


class SpreadCalls(StandIn):
    """Calls of networks take 1, 1.1 … 1.9 times as long, in turns; those of rows do not."""

    def _result(
        self, graph: Graph, replica: int, number: int, protocol: Protocol
    ) -> ArtifactResult:
        found = super()._result(graph, replica, number, protocol)
        if graph not in GRAPHS or found.error is not None:
            return found
        first = number * protocol.rounds
        turns = np.arange(first, first + protocol.rounds)[:, None] % 10
        return replace(found, wall_ms=found.wall_ms * (1 + turns / 10))


TURNS = 1 + np.arange(10) / 10
TEN_BATCHES = timing(min_rounds=10 * BATCH, network_rounds=10 * BATCH)
"""30 rounds: each of the ten times thrice."""


# Which networks.


def test_six_networks_differ_and_are_the_same_every_time():
    assert len({network.operators for network in NETWORKS}) == REFERENCE_NETWORKS == 6
    assert reference_networks(LAYERS, ROWS) == NETWORKS
    assert {network.backbone for network in NETWORKS} == {"digits32"}


def test_networks_go_from_cheap_to_dear():
    macs = [LAYERS.backbone.macs(network.operators) for network in NETWORKS]
    assert macs == sorted(macs)
    every = [
        LAYERS.backbone.macs((name,) * len(LAYERS.backbone.layers))
        for name in ("SEP_3", "SEP_5", "Choice_3")
    ]
    assert macs[-1] - macs[0] > (max(every) - min(every)) / 2


def test_networks_have_operators_of_the_plan_only_at_each_layer():
    shape = LAYERS.backbone.layers[2]
    rows = [row for row in ROWS if row.name != "SEP_5" or row.shape != shape]
    found = reference_networks(LAYERS, rows)
    there = {(row.name, row.shape) for row in rows}
    for network in found:
        for name, at in zip(network.operators, LAYERS.backbone.layers, strict=True):
            assert (name, at) in there
    assert len(found) == REFERENCE_NETWORKS


@pytest.mark.parametrize("gate", GATES)
def test_the_graph_is_the_whole_network_with_the_gate_of_the_rows(gate):
    rows = planned("SEP_3_SE,Choice_3_SE", "digits32")
    for network in reference_networks(LAYERS, rows, gate):
        pieces = tuple(architecture_pieces(LAYERS.backbone, network.operators, gate))
        assert network.graph == pieces
        assert (pieces[0].name, pieces[-1].name) == (
            LAYERS.backbone.stem_name,
            LAYERS.backbone.head_name,
        )
        assert {piece.gate for piece in pieces if piece.name.endswith("_SE")} == {gate}


def test_one_operator_makes_one_network():
    (network,) = reference_networks(LAYERS, planned("SEP_3", "digits32"))
    assert set(network.operators) == {"SEP_3"}


def test_there_are_none_without_a_whole_backbone_or_an_operator_for_each_layer():
    text = "digits32:0-6"  # all of them, but neither stem nor head
    assert parse_layers(text).shapes == LAYERS.shapes
    assert reference_networks(parse_layers(text), planned("SEP_3", text)) == ()
    shape = LAYERS.backbone.layers[0]
    assert reference_networks(LAYERS, [row for row in ROWS if row.shape != shape]) == ()


# What is learnt from their calls.


def test_calls_of_networks_are_told_beside_their_quiet_times():
    slow = (1.0, 1.05)
    device = SpreadCalls(slowdown=lambda number: slow[number % 2])
    bench = Bench(device, ROWS, TEN_BATCHES, networks=GRAPHS)
    bench.finish()
    assert bench.measurement.batches == 10
    turns = np.tile(TURNS, 3)
    factors = np.repeat([slow[number % 2] for number in range(10)], BATCH)
    raw = np.sqrt(slow[0] * slow[1])  # slowdown 1 is the mean of the first batches
    found = bench.measurement.networks_ms()
    assert set(found) == set(GRAPHS)
    for graph, (quiet, calls) in found.items():
        usual = true_ms(graph) + CALL_MS
        assert calls == pytest.approx(usual * turns * factors)  # as timed
        assert quiet == pytest.approx(usual * raw * float(quiet_ms(turns)), rel=0.01)
    # Calls of the rows' graphs are as fast as the device was.
    ratios = bench.measurement.operator_ratios()
    assert np.unique(ratios.round(6)) == pytest.approx([slow[0] / raw, slow[1] / raw])


def test_networks_are_timed_on_the_wall_clock_also_where_there_is_the_devices_own():
    bench = Bench(StandIn(device_time=True), ROWS, networks=GRAPHS)
    bench.finish()
    for graph, (quiet, calls) in bench.measurement.networks_ms().items():
        assert calls.min() > true_ms(graph)
        assert quiet > true_ms(graph)


def test_a_table_knows_median_and_percentile_of_calls_of_networks(tmp_path):
    spread = spread_of(fill(SpreadCalls(), tmp_path / "t.csv", TEN_BATCHES))
    turns = np.tile(TURNS, 3)
    for network in NETWORKS:
        found = by_operators(spread)[network.operators]
        usual = true_ms(network.graph) + CALL_MS
        assert found.backbone == "digits32"
        assert found.calls == 30
        assert found.quiet_ms == pytest.approx(usual * float(quiet_ms(turns)))
        assert found.median_ms == pytest.approx(usual * 1.45)
        assert found.p90_ms == pytest.approx(usual * float(np.percentile(turns, 90)))
    assert spread.ratio("median") == pytest.approx(1.45 / float(quiet_ms(turns)))
    assert (spread.operator_median, spread.operator_p90) == pytest.approx((1.0, 1.0))
    assert spread.drift == pytest.approx(0.0, abs=1e-9)


def test_the_drift_of_the_device_is_kept_with_it(tmp_path):
    slow = (1.0, 1.06, 1.02, 1.04)
    spread = spread_of(fill(StandIn(slowdown=lambda n: slow[n % 4]), tmp_path / "t.csv"))
    assert spread.drift == pytest.approx(float(np.std(np.log(slow))), rel=1e-3)


def test_a_percentile_that_changes_within_the_run_is_told():
    random = np.random.default_rng(0)
    steady = [20 * (1 + 0.02 * random.random(40)) for _ in range(6)]
    assert _change(steady, 50) < 0.01
    assert _change(steady, 90) < 0.01
    burst = [calls.copy() for calls in steady]
    for calls in burst:
        calls[20:24] *= 1.3  # a fifth of the second half
    assert _change(burst, 50) < 0.01
    assert _change(burst, 90) == pytest.approx(np.log(1.3), abs=0.03)
    assert _change([calls[::-1] for calls in burst], 90) == pytest.approx(_change(burst, 90))
    assert _change([], 90) == _change([np.ones(1)], 90) == 0.0


def test_networks_are_in_the_first_batches():
    device = StandIn(noise={"SEP_5": 0.05})
    bench = Bench(device, ROWS, timing(max_rounds=60, network_rounds=15), networks=GRAPHS)
    bench.finish()
    assert bench.measurement.batches > 5
    for number, series in enumerate(device.batches()):
        there = [(graph, 0) for graph in GRAPHS] if number < 5 else []
        assert [one for one in series if one[0] in GRAPHS] == there


def test_networks_leave_less_room_for_background_graphs():
    held = sum(map(weight_bytes, GRAPHS))
    known, rows = planned("*", "digits32:4"), planned("SEP_5", "digits32:4")
    needed = sum(row.bytes for row in (*known, *rows))
    needed += sum(2 * weight_bytes(graph) for graph in baseline_graphs(rows))  # replicas

    def background(networks: Sequence[Graph]) -> int:
        device = StandIn(max_bytes=2 * (needed + held // 2))
        Bench(device, rows, timing(min_batch_bytes=10**9), known, networks=networks).batch()
        (series,) = device.batches()
        there = {graph for graph, _ in series}
        return sum(bool(there & set(row.with_operator)) for row in known)

    assert background(()) == len(known)
    assert 0 < background(GRAPHS) < len(known)


def refusing(graph: Graph, since: int = 0) -> StandIn:
    """A device that cannot time one network from some request on."""

    class Refusing(SpreadCalls):
        def _result(
            self, asked: Graph, replica: int, number: int, protocol: Protocol
        ) -> ArtifactResult:
            if asked == graph and number >= since:
                return ArtifactResult(digest(asked), UnsupportedOperator("too deep"))
            return super()._result(asked, replica, number, protocol)

    return Refusing()


@pytest.mark.parametrize("since", [0, 2])
def test_a_network_that_fails_leaves_the_others_and_is_not_timed_again(tmp_path, since):
    device = refusing(GRAPHS[2], since)
    result = fill(device, tmp_path / "t.csv")
    assert set(by_operators(spread_of(result))) == {
        network.operators for network in NETWORKS if network.graph != GRAPHS[2]
    }
    assert not result.failed
    assert {row.status for row in result.table} == {"ok"}
    there = [(GRAPHS[2], 0) in series for series in device.batches()]
    assert there == [True] * (since + 1) + [False] * (len(there) - since - 1)
    assert all((GRAPHS[1], 0) in series for series in device.batches())


def test_where_all_networks_fail_only_calls_of_operators_are_known(tmp_path):
    device = StandIn(no_room=lambda graph, replica: graph in GRAPHS)
    spread = spread_of(fill(device, tmp_path / "t.csv"))
    assert spread.networks == ()
    assert spread.ratio("median") is None
    assert spread.operator_median == pytest.approx(1.0)


# Where there are none.


def timed(device: StandIn) -> set[Series]:
    return {one for series, _ in device.requests for one in series}


def test_networks_that_would_fill_the_memory_are_left_out(tmp_path):
    held = sum(map(weight_bytes, GRAPHS))
    for max_bytes, count in ((8 * held, 6), (8 * held - 16, 0)):
        device = StandIn(max_bytes=max_bytes)
        path = tmp_path / f"{count}.csv"
        spread = spread_of(fill(device, path))
        assert len(spread.networks) == count
        assert bool({one[0] for one in timed(device)} & set(GRAPHS)) == bool(count)


def test_times_that_are_calculated_have_no_spread_of_networks(tmp_path):
    device = StandIn(origin="estimated")
    spread = spread_of(fill(device, tmp_path / "t.csv"))
    assert spread.networks == ()
    assert not {one[0] for one in timed(device)} & set(GRAPHS)


def test_a_run_that_misses_nothing_times_no_networks(tmp_path):
    path, first = tmp_path / "t.csv", StandIn()
    first.no_room = lambda graph, replica: graph == ROWS[1].alone
    before = spread_of(fill(first, path))
    again = StandIn()
    assert fill(again, path).measured == 0
    assert timed(again) == {(ROWS[1].alone, 0)}
    assert SPREADS.load(path)[again.target] == before


# Runs that are killed, parts of a table, and several devices.


def test_what_networks_took_comes_through_a_kill(tmp_path):
    path, protocol = tmp_path / "t.csv", timing(max_active_rows=len(ROWS) // 2)

    def before(number: int) -> None:
        if number == BATCHES + 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fill(SpreadCalls(before=before), path, protocol)
    assert SPREADS.load(path) == {}
    kept = read_journal(path).data.spread()
    assert kept is not None
    assert set(by_operators(kept)) == {network.operators for network in NETWORKS}
    assert {network.calls for network in kept.networks} == {BATCHES * BATCH}
    whole = spread_of(fill(SpreadCalls(slowdown=lambda number: 1.1), path, protocol))
    assert not journal_path(path).exists()
    assert len(whole.networks) == 2 * REFERENCE_NETWORKS
    for first, second in zip(
        whole.networks[:REFERENCE_NETWORKS], whole.networks[REFERENCE_NETWORKS:], strict=True
    ):
        assert first == kept.networks[whole.networks.index(first)]
        assert first.operators == second.operators
        assert second.quiet_ms == pytest.approx(first.quiet_ms, rel=0.05)  # at one speed
        assert second.ratio("median") > first.ratio("median")  # and as timed


def test_a_run_of_some_layers_keeps_what_is_known_of_networks(tmp_path):
    path = tmp_path / "t.csv"
    before = spread_of(fill(SpreadCalls(), path))
    more = [*ROWS, *planned("MB_3_3", "digits32:1")]
    after = spread_of(fill(StandIn(), path, rows=more, networks=()))
    assert after.networks == before.networks


def test_networks_of_two_devices_are_given_at_one_speed(tmp_path):
    devices = [
        StandIn(address="a:1", slowdown=lambda number: 1.02),
        StandIn(address="b:1", slowdown=lambda number: 1.06),
    ]
    spread = spread_of(fill(devices, tmp_path / "t.csv"))
    assert len(spread.networks) == 2 * REFERENCE_NETWORKS
    for network in NETWORKS:
        found = [one for one in spread.networks if one.operators == network.operators]
        usual = true_ms(network.graph) + CALL_MS
        assert found[0].quiet_ms == pytest.approx(found[1].quiet_ms)
        medians = sorted(one.median_ms for one in found)
        assert medians == pytest.approx([1.02 * usual, 1.06 * usual])
