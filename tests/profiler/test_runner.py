"""Devices at work together: what each does, and what happens when one is lost or differs."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hurricane.agents.errors import (
    AgentError,
    BadAnswer,
    BoardNotReady,
    Busy,
    DeviceLost,
    Unauthorised,
    UnsupportedOperator,
)
from hurricane.lookup_tables.journal import Journal, read_journal
from hurricane.lookup_tables.raw import RawData
from hurricane.ops.errors import HurricaneError
from hurricane.profiler.comparison import DeviceComparison
from hurricane.profiler.plan import PlannedRow, baseline_graphs
from hurricane.profiler.pool import DevicePool
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.recorder import Recorder
from hurricane.profiler.runner import Runner, RunPlan
from hurricane.profiler.scheduler import Finished, RowScheduler, State
from hurricane.profiler.session import TargetSession

from .stand_in import (
    BATCHES,
    CALL_MS,
    COST_MS,
    MIN_ROUNDS,
    StandIn,
    cost_ms,
    in_batches,
    limited,
    planned,
    timing,
)

CANNOT = UnsupportedOperator("no kernel for it")
GONE = DeviceLost("it went away")
COMPARING = 2
"""Requests in which devices are compared before they work."""


def run(
    sessions: Sequence[Any],
    rows: Sequence[PlannedRow],
    path: Path,
    protocol: TimingProtocol | None = None,
    measured: Sequence[PlannedRow] = (),
) -> tuple[Runner, RawData]:
    """Works through rows; what the journal then holds."""
    protocol = protocol or timing()
    with Journal.open(path, sessions[0].target) as journal:
        runner = Runner(
            sessions,
            RunPlan(protocol, baseline_graphs(rows), (), rows, measured),
            Recorder(journal, protocol.loop_skipped),
            lambda what, share: None,
        )
        limited(runner.run)
        return runner, journal.data


def latencies(data: RawData) -> dict[str, float | None]:
    return {row.operator: row.latency_ms for row in data.table_rows()}


def statuses(data: RawData) -> dict[str, tuple[str, str]]:
    return {row.operator: (row.status, row.flags) for row in data.table_rows()}


def check_complete(data: RawData, rows: Sequence[PlannedRow]) -> None:
    """Every row was written down once, with its loops."""
    assert {(r.operator, r.shape) for r in data.table_rows()} == {(r.name, r.shape) for r in rows}
    assert all(row.ok and row.cold_ms for row in data.table_rows())


def reopened(monkeypatch: pytest.MonkeyPatch, *sessions: StandIn) -> None:
    """Devices that are there again when asked; the others are gone."""
    there = {session.address: session for session in sessions}

    def open_again(client: Any, request: Any) -> StandIn:
        if client.address not in there:
            raise DeviceLost("nobody answers")
        return there[client.address]

    monkeypatch.setattr(TargetSession, "open", open_again)


def loses(at: int, error: Exception = GONE) -> Callable[[int], None]:
    """Raises from a request on."""

    def before(number: int) -> None:
        if number >= at:
            raise error

    return before


def rows_in_batches(session: StandIn, rows: Sequence[PlannedRow]) -> list[int]:
    """How many of some rows were in each batch, without those in which devices are compared."""
    counts = []
    for series in session.batches():
        graphs = {graph for graph, _ in series}
        counts.append(sum(not graphs.isdisjoint(row.with_operator) for row in rows))
    return [count for count in counts if count]


# One device.


def test_rows_are_measured_and_looped_and_written_down(tmp_path):
    rows, device = planned(), StandIn()
    runner, data = run([device], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert latencies(data) == pytest.approx({row.name: cost_ms(row) for row in rows})
    (facts,) = runner.runs
    assert (facts.rows, facts.batches, facts.batches_rejected) == (3, BATCHES, 0)
    for row in data.table_rows():
        assert row.cold_ms == pytest.approx(COST_MS[row.operator] + CALL_MS)
        assert row.rounds == MIN_ROUNDS
    # Every row is one line, however often the device's drift is written down.
    entries = read_journal(tmp_path / "t.csv").data
    assert len(entries.rows) == len(entries.loops) == 3
    assert len(device.requests) == BATCHES + 1


def test_rows_whose_loops_alone_are_missing_are_looped(tmp_path):
    rows = planned()
    device = StandIn()
    run([StandIn()], rows, tmp_path / "t.csv")
    _, data = run([device], (), tmp_path / "t.csv", measured=rows)
    assert len(device.requests) == 1
    check_complete(data, rows)


def test_a_row_below_noise_fails_and_does_not_hold_up_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(COST_MS, "SEP_5", -0.1)
    _, data = run([StandIn()], planned("SEP_3,SEP_5"), tmp_path / "t.csv")
    assert statuses(data) == {"SEP_3": ("ok", ""), "SEP_5": ("failed", "below-noise")}


class Blind(StandIn):
    """Its counter sees nothing of a graph that is SEP_5 alone, as of one without a node."""

    def _result(self, graph, replica, number, protocol):
        result = super()._result(graph, replica, number, protocol)
        if [piece.name for piece in graph] == ["SEP_5"]:
            return replace(result, device_ms=np.zeros_like(result.device_ms))
        return result


def test_a_row_that_a_devices_counter_sees_nothing_of_is_kept(tmp_path):
    device = Blind(device_time=True)
    _, data = run([device], planned("SEP_3,SEP_5"), tmp_path / "t.csv")
    check_complete(data, planned("SEP_3,SEP_5"))
    rows = {row.operator: row for row in data.table_rows()}
    assert rows["SEP_3"].device_ms == pytest.approx(COST_MS["SEP_3"])
    assert rows["SEP_5"].device_ms is None
    assert rows["SEP_5"].estimator == rows["SEP_3"].estimator


def test_a_graph_that_the_device_refuses_costs_its_own_row_only(tmp_path):
    device = StandIn(refused={"MB_3_3": CANNOT})
    _, data = run([device], planned(), tmp_path / "t.csv")
    assert statuses(data) == {
        "SEP_3": ("ok", ""),
        "SEP_5": ("ok", ""),
        "MB_3_3": ("unsupported", ""),
    }


def test_what_other_work_did_is_one_word_in_a_row(tmp_path):
    device = StandIn(flags=lambda n: () if n < 2 else ("busy", "steal", "throttled"))
    _, data = run([device], planned(), tmp_path / "t.csv", timing(max_rounds=15))
    flags = {row.flags for row in data.table_rows()}
    assert flags == {"interference;throttled"}


def test_a_loop_is_cold_at_its_first_call_and_warm_after_some(tmp_path):
    calls_ms = [5.0, 3.0, 3.0, *[1.0] * 8, 2.0]

    class Warming(StandIn):
        def _result(self, graph, replica, number, protocol):
            found = super()._result(graph, replica, number, protocol)
            loop = protocol.calls_per_visit > 1
            return replace(found, wall_ms=np.array([calls_ms])) if loop else found

    protocol = timing(loop_calls=12, loop_skipped=3)
    _, data = run([Warming()], planned("SEP_3"), tmp_path / "t.csv", protocol)
    (row,) = data.table_rows()
    assert (row.cold_ms, row.warm_ms, row.p10_ms) == (5.0, 1.0, 1.0)
    assert row.p90_ms == pytest.approx(np.percentile([1.0] * 8 + [2.0], 90))
    assert row.call_ms == pytest.approx(5.0 - COST_MS["SEP_3"])


def test_a_row_that_is_measured_again_is_looped_again(tmp_path):
    _, data = run([StandIn()], planned("SEP_3"), tmp_path / "t.csv")
    (raw,), (loop,) = data.rows.values(), data.loops.values()
    assert data.with_entries([raw]).loops == {}
    assert data.with_entries([raw, loop]).table_rows() == data.table_rows()


def test_loops_that_other_work_disturbed_are_made_again(tmp_path):
    rows, last = planned("SEP_3,SEP_5"), BATCHES  # the request for loops
    device = StandIn(
        flags=in_batches(last, value=("busy",), other=()),
        slowdown=in_batches(last, value=3.0, other=1.0),
    )
    _, data = run([device], rows, tmp_path / "t.csv")
    assert {row.operator: row.warm_ms for row in data.table_rows()} == pytest.approx(
        {name: COST_MS[name] + CALL_MS for name in ("SEP_3", "SEP_5")}
    )
    assert len(device.requests) == last + 2
    troubled = StandIn(flags=lambda n: ("busy",) if n >= last else ())
    _, data = run([troubled], rows, tmp_path / "busy.csv")
    check_complete(data, rows)
    assert len(troubled.requests) == last + 2  # once
    fails = StandIn(flags=in_batches(last, value=("busy",), other=()))
    fails.no_room = lambda graph, replica: len(fails.requests) == last + 2  # when made again
    check_complete(run([fails], rows, tmp_path / "fails.csv")[1], rows)


def test_a_loop_that_fails_leaves_the_row_without_it(tmp_path):
    device = StandIn()
    alone = planned()[0].alone
    device.no_room = lambda graph, replica: graph == alone
    _, data = run([device], planned(), tmp_path / "t.csv")
    assert {row.operator: row.cold_ms is None for row in data.table_rows()} == {
        "SEP_3": True,
        "SEP_5": False,
        "MB_3_3": False,
    }
    assert all(row.ok for row in data.table_rows())


def test_the_budget_of_time_is_that_of_the_device(tmp_path):
    device = StandIn(request_ms=5000.0)
    _, data = run([device], planned(), tmp_path / "t.csv", timing(time_budget_s=2.0))
    assert {row.rounds for row in data.table_rows()} == {MIN_ROUNDS // 2}


def test_throttling_before_the_run_is_how_the_device_is(tmp_path):
    slow = {"slowdown": lambda n: 1.4 if n > 0 else 1.0}
    rows = planned()
    found = {}
    for name, events in (("steady", lambda n: 3), ("throttles", lambda n: 3 + (n > 0))):
        runner, data = run([StandIn(events=events, **slow)], rows, tmp_path / f"{name}.csv")
        (facts,) = runner.runs
        found[name] = (facts.throttle_events, {row.flags for row in data.table_rows()})
    assert found == {"steady": (0, {""}), "throttles": (1, {"throttled"})}


def test_a_row_that_ended_in_a_slow_time_is_flagged_and_given_at_the_quiet_speed(tmp_path):
    device = StandIn(noise={"SEP_5": 0.5}, slowdown=lambda n: 1.5 if n < 4 else 1.0)
    _, data = run([device], planned(), tmp_path / "t.csv", timing(max_rounds=60))
    flags = {row.operator: row.flags for row in data.table_rows()}
    assert flags == {"SEP_3": "interference", "MB_3_3": "interference", "SEP_5": "unstable"}
    found = latencies(data)
    assert found["SEP_3"] == pytest.approx(1.0, rel=1e-3)
    assert found["MB_3_3"] == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("jitter", [0.0, 0.002])
def test_no_row_of_a_steady_device_is_flagged(tmp_path, jitter):
    device = StandIn(noise={**dict.fromkeys(COST_MS, jitter), "SEP_5": 0.06})
    _, data = run([device], planned("*"), tmp_path / "t.csv", timing(max_rounds=300))
    assert {row.flags for row in data.table_rows()} == {""}


# Losing a device.


def test_a_device_that_comes_back_goes_on(tmp_path, monkeypatch):
    rows = planned()
    first, back = StandIn(before=loses(2)), StandIn()
    reopened(monkeypatch, back)
    runner, data = run([first], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert not runner.exclusions.lost
    assert [facts.batches for facts in runner.runs] == [2, BATCHES]  # it began anew


def test_a_device_that_is_lost_while_rows_are_looped_loses_none(tmp_path, monkeypatch):
    rows = planned("SEP_*")
    first, back = StandIn(before=loses(BATCHES)), StandIn()
    reopened(monkeypatch, back)
    runner, data = run([first], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert not runner.exclusions.lost
    assert len(back.requests) == 1  # nothing is measured again


def test_the_last_device_that_does_not_come_back_ends_the_run_and_rows_are_safe(
    tmp_path, monkeypatch
):
    reopened(monkeypatch)
    device = StandIn(noise={"SEP_5": 1.0}, before=loses(5))
    with pytest.raises(DeviceLost, match="stand-in:1: it went away"):
        run([device], planned(), tmp_path / "t.csv", timing(rejoin_timeout_s=0.0))
    assert len(read_journal(tmp_path / "t.csv").rows) == 2


def test_a_device_that_is_lost_again_and_again_is_given_up(tmp_path, monkeypatch):
    device = StandIn(before=loses(0))
    reopened(monkeypatch, device)
    with pytest.raises(DeviceLost):
        run([device], planned(), tmp_path / "t.csv", timing(max_reconnects=3))
    assert len(device.requests) == 1 + 3


def test_losses_count_from_the_last_row_that_ended(tmp_path, monkeypatch):
    rows = planned()
    # It is lost at every fifth batch, when a row has ended.
    losing = StandIn(before=lambda number: loses(0)(0) if number % 6 == 5 else None)
    reopened(monkeypatch, losing)
    protocol = timing(max_active_rows=1, max_reconnects=1)
    _, data = run([losing], rows, tmp_path / "t.csv", protocol)
    check_complete(data, rows)
    assert len(losing.requests) > 2 * 6


def test_a_device_that_comes_back_as_another_target_is_not_taken(tmp_path, monkeypatch):
    other = StandIn(origin="measured")
    reopened(monkeypatch, other)
    with pytest.raises(DeviceLost, match="it went away"):
        run([StandIn(before=loses(2))], planned(), tmp_path / "t.csv")
    assert not other.requests


def test_a_device_that_throttled_before_it_was_lost_is_still_throttled(tmp_path, monkeypatch):
    # There was no event before the run, and there is one in it.
    first = StandIn(events=lambda n: int(n > 0), before=loses(2))
    back = StandIn(events=lambda n: 1, slowdown=lambda n: 1.4)
    reopened(monkeypatch, back)
    _, data = run([first], planned(), tmp_path / "t.csv")
    assert {row.flags for row in data.table_rows()} == {"throttled"}


@pytest.mark.parametrize(
    "error",
    [Unauthorised("who are you"), BadAnswer("that cannot be"), BoardNotReady("no such library")],
)
def test_who_refuses_or_lies_or_lacks_something_is_not_taken_back(tmp_path, monkeypatch, error):
    reopened(monkeypatch, StandIn())
    with pytest.raises(type(error), match="stand-in:1"):
        run([StandIn(before=loses(1, error))], planned(), tmp_path / "t.csv")


def test_times_that_no_table_can_hold_are_an_answer_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setitem(COST_MS, "SEP_5", 1e100)
    reopened(monkeypatch, StandIn())
    with pytest.raises(BadAnswer, match="stand-in:1 sent what no table can hold"):
        run([StandIn()], planned(), tmp_path / "t.csv")


def test_a_device_lost_at_the_same_graph_again_is_that_graphs_fault(tmp_path, monkeypatch):
    device = StandIn(refused={"SEP_5": GONE})
    reopened(monkeypatch, device)
    runner, data = run([device], planned(), tmp_path / "t.csv")
    assert statuses(data) == {
        "SEP_3": ("ok", ""),
        "MB_3_3": ("ok", ""),
        "SEP_5": ("failed", "device-lost"),
    }
    assert not runner.exclusions.lost


def test_several_graphs_that_lose_the_device_do_not_end_the_run(tmp_path, monkeypatch):
    lost = ("SEP_5", "MB_3_3", "Choice_5")
    device = StandIn(refused=dict.fromkeys(lost, GONE))
    reopened(monkeypatch, device)
    _, data = run([device], planned("SEP_3,SEP_5,MB_3_3,Choice_5"), tmp_path / "t.csv")
    found = {name: status for name, (status, _) in statuses(data).items()}
    assert found == {"SEP_3": "ok", **dict.fromkeys(lost, "failed")}


def test_a_loop_that_loses_the_device_again_costs_that_loop_only(tmp_path, monkeypatch):
    alone = planned()[1].alone

    class Fragile(StandIn):
        def _result(self, graph, replica, number, protocol):
            found = super()._result(graph, replica, number, protocol)
            return type(found)(found.sha256, GONE) if graph == alone else found

    device = Fragile()
    reopened(monkeypatch, device)
    runner, data = run([device], planned(), tmp_path / "t.csv")
    assert {r.operator for r in data.table_rows() if r.cold_ms is None} == {"SEP_5"}
    assert all(row.ok for row in data.table_rows())
    assert not runner.exclusions.lost


# Several devices.


def test_devices_share_a_plan_evenly_and_begin_with_half(tmp_path):
    began = threading.Barrier(4)

    def together(number: int) -> None:
        if number == COMPARING:
            began.wait(30)

    devices = [StandIn(f"device:{n}", before=together) for n in range(4)]
    rows = planned("*")
    runner, data = run(devices, rows, tmp_path / "t.csv")
    check_complete(data, rows)
    share = len(rows) // len(devices)
    for device in devices:
        told = rows_in_batches(device, rows)
        assert told[0] == share // 2
        assert max(told) <= share
    assert len(runner.runs) == len(devices)
    assert sum(facts.rows for facts in runner.runs) == len(rows)
    assert len(data.runs) == len(devices)


def test_what_a_lost_device_had_in_work_goes_to_the_others(tmp_path, monkeypatch):
    rows = planned("*")
    good, bad = StandIn("good:1"), StandIn("bad:1", before=loses(COMPARING + 1))
    reopened(monkeypatch, good)
    runner, data = run([bad, good], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert runner.exclusions.lost == {"bad:1": "bad:1: it went away"}
    assert rows_in_batches(bad, rows)


def test_a_slow_device_among_three_is_named_and_left_out(tmp_path):
    rows = planned()
    slow = StandIn("slow:1", slowdown=lambda n: 1.12)
    runner, data = run([StandIn("a:1"), slow, StandIn("b:1")], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert runner.exclusions.left_out == ["slow:1: its baselines are 12% slower than the others'"]
    assert not runner.exclusions.lost
    assert len(slow.requests) == COMPARING
    near = StandIn("near:1", slowdown=lambda n: 1.04)
    runner, _ = run([StandIn("a:1"), near, StandIn("b:1")], rows, tmp_path / "near.csv")
    assert not runner.exclusions.left_out


def test_between_two_halves_that_disagree_the_faster_one_stays(tmp_path):
    rows = planned()
    slow = [StandIn(f"slow:{n}", slowdown=lambda number: 1.2) for n in (1, 2)]
    fast = [StandIn(f"fast:{n}") for n in (1, 2)]
    runner, data = run([*slow, *fast], rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert [words.split(" ")[0] for words in runner.exclusions.left_out] == ["slow:1:", "slow:2:"]
    assert all("20% slower" in words for words in runner.exclusions.left_out)
    assert latencies(data) == pytest.approx({row.name: cost_ms(row) for row in rows})


def test_devices_that_agree_in_nothing_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(DeviceComparison, "_agrees", lambda self, *words: False)
    devices = [StandIn("a:1"), StandIn("b:1")]
    with pytest.raises(HurricaneError, match="no two devices agree"):
        run(devices, planned(), tmp_path / "t.csv")
    assert [len(device.requests) for device in devices] == [COMPARING] * 2


def test_a_device_that_cannot_be_compared_is_compared_before_it_works(tmp_path, monkeypatch):
    rows = planned("*")
    compared = threading.Event()

    def fail_at_first(number: int) -> None:
        if number == 0:
            raise DeviceLost("not yet")
        if number == COMPARING:  # the second one of comparing it again
            compared.set()

    def wait_for_the_other(number: int) -> None:
        if number == COMPARING + 1:
            compared.wait(30)

    slow = StandIn("slow:1", slowdown=lambda number: 1.2, before=fail_at_first)
    devices = [StandIn("good:1", before=wait_for_the_other), slow, StandIn("good:2")]
    reopened(monkeypatch, slow)
    runner, data = run(devices, rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert runner.exclusions.left_out == ["slow:1: its baselines are 20% slower than the others'"]
    assert len(slow.requests) == 1 + COMPARING
    assert not rows_in_batches(slow, rows)


def test_a_device_that_others_use_is_not_waited_for(tmp_path, monkeypatch):
    rows, free = planned("*"), threading.Event()
    waited: list[bool] = []
    busy = StandIn("busy:1", before=lambda number: waited.append(free.wait(30)))
    reopened(monkeypatch, busy)
    devices = [busy, StandIn("good:1"), StandIn("good:2")]
    runner, data = run(devices, rows, tmp_path / "t.csv", timing(compare_timeout_s=0.0))
    assert not waited  # the run is done, and that one still is not
    check_complete(data, rows)
    assert runner.exclusions.lost == {"busy:1": "busy:1: it is busy with other work"}
    assert not runner.exclusions.left_out
    free.set()


def test_a_busy_device_joins_when_it_is_free(tmp_path, monkeypatch):
    rows = planned("*")
    free, joined = threading.Event(), threading.Event()

    def others_work(number: int) -> None:
        if number == COMPARING:  # the first batch: that one is waited for no longer
            free.set()
            joined.wait(30)

    busy = StandIn("busy:1")

    def busy_at_first(number: int) -> None:
        free.wait(30)
        if len(rows_in_batches(busy, rows)):
            joined.set()

    busy.before = busy_at_first
    reopened(monkeypatch, busy)
    good = [StandIn(f"good:{n}", before=others_work) for n in (1, 2)]
    runner, data = run([busy, *good], rows, tmp_path / "t.csv", timing(compare_timeout_s=0.0))
    check_complete(data, rows)
    assert joined.is_set()
    assert not runner.exclusions.lost


def test_a_defect_on_one_device_ends_the_run_though_another_is_busy(tmp_path, monkeypatch):
    free = threading.Event()
    busy = StandIn("busy:1", before=lambda number: free.wait(60) and None)
    broken = StandIn("broken:1", before=loses(COMPARING, ValueError("a defect")))
    reopened(monkeypatch, busy)
    try:
        with pytest.raises(ValueError, match="a defect"):
            run([busy, broken], planned("*"), tmp_path / "t.csv", timing(compare_timeout_s=0.0))
    finally:
        free.set()


def test_rows_of_several_devices_are_given_at_one_speed(tmp_path):
    rows = planned("*")
    devices = [StandIn("a:1"), StandIn("b:1", slowdown=lambda n: 1.04)]
    _, data = run(devices, rows, tmp_path / "t.csv")
    check_complete(data, rows)
    assert len({raw.run for raw in data.rows.values()}) == 2
    ratios = np.array(
        [ms / COST_MS[name] for name, ms in latencies(data).items() if name in COST_MS and ms]
    )
    assert len(ratios) == 4
    assert ratios.max() / ratios.min() == pytest.approx(1, rel=1e-6)
    assert ratios.min() == pytest.approx(1.0) or ratios.min() == pytest.approx(1.04)


def test_rows_are_given_at_the_speed_of_the_device_that_has_most_of_them(tmp_path):
    rows = planned("*")
    few = StandIn("few:1", slowdown=lambda n: 1.04, max_bytes=1)
    for number, devices in enumerate(([StandIn("many:1"), few], [few, StandIn("many:1")])):
        _, data = run(devices, rows, tmp_path / f"{number}.csv")
        counts = Counter(raw.run for raw in data.rows.values())
        assert len(counts) == 2
        assert max(counts.values()) > len(rows) / 2
        for name in COST_MS:
            assert latencies(data)[name] == pytest.approx(COST_MS[name])


def test_rows_are_at_one_speed_from_the_first_on(tmp_path, monkeypatch):
    """As a run that is killed would leave them."""
    rows, path = planned("*"), tmp_path / "t.csv"
    reopened(monkeypatch)
    devices = [
        StandIn("a:1", noise={"MB_3_3": 1.0}, before=loses(9)),
        StandIn("b:1", noise={"MB_3_3": 1.0}, slowdown=lambda n: 1.04, before=loses(9)),
    ]
    with pytest.raises(DeviceLost):
        run(devices, rows, path, timing(rejoin_timeout_s=0.0))
    data = read_journal(path).data
    assert 2 <= len(data.rows) < len(rows)
    assert len({raw.run for raw in data.rows.values()}) == 2
    ratios = [ms / COST_MS[name] for name, ms in latencies(data).items() if ms and name in COST_MS]
    assert len(ratios) >= 2
    assert max(ratios) / min(ratios) < 1.001


def test_what_fails_at_once_does_not_tell_how_fast_a_device_is(tmp_path):
    slow_at_first = in_batches(COMPARING, value=1.4, other=1.0)
    refused: dict[str, AgentError] = {"MB_3_3": CANNOT}
    devices = [StandIn(f"b:{n}", refused=refused, slowdown=slow_at_first) for n in (1, 2)]
    _, data = run(devices, planned(), tmp_path / "t.csv")
    found = latencies(data)
    assert found.pop("MB_3_3") is None
    assert found == pytest.approx({"SEP_3": 1.0, "SEP_5": 2.0})


# What threads share.


def pool(devices: str) -> DevicePool:
    found = DevicePool(RowScheduler(planned("SEP_3"), (), lambda row: 1, 9))
    for device in devices:
        found.scheduler.on_joined(device, 9)
    return found


def test_a_run_is_over_when_every_device_has_left_it():
    """What a device did is written down when its last row has ended."""
    shared = pool("ab")
    row = planned("SEP_3")[0]
    shared.next_work("a")
    shared.scheduler.on_batch("a", [], [row])
    assert isinstance(shared.next_work("b"), Finished)
    assert not shared.is_over()
    shared.leave("a")
    assert not shared.is_over()
    shared.leave("b")
    assert shared.is_over()


def test_a_run_without_devices_is_not_over_while_there_are_rows():
    shared = pool("a")
    shared.next_work("a")
    shared.leave("a")
    assert not shared.is_over()
    assert shared.scheduler.rows(State.PENDING)
    shared.fail(GONE, everybody=False)
    assert shared.failure is GONE
    assert shared.is_over()


def test_an_error_of_one_device_is_the_runs_only_where_no_other_is_left():
    shared = pool("ab")
    shared.leave("a")
    shared.fail(GONE, everybody=False)
    assert shared.failure is None
    shared.fail(GONE, everybody=True)
    assert shared.next_work("b") is None


def test_a_device_that_is_back_when_all_is_done_does_not_join():
    shared, back = pool("a"), StandIn("back:1")
    row = planned("SEP_3")[0]
    assert shared.join("b", 9)
    shared.leave("b")
    shared.next_work("a")
    shared.scheduler.on_batch("a", [], [row])
    shared.leave("a")
    assert not shared.join("b", back.batch_bytes)
    assert shared.is_over()


def test_runs_are_numbered_on_from_those_in_the_journal(tmp_path):
    run([StandIn()], planned("SEP_3"), tmp_path / "t.csv")
    with Journal.open(tmp_path / "t.csv", StandIn().target) as journal:
        recorder = Recorder(journal, 8)
        assert set(journal.data.runs) == {1}
        assert [recorder.begin_run() for _ in range(3)] == [2, 3, 4]


def test_a_busy_device_that_never_gets_free_is_lost_though_it_answers(tmp_path, monkeypatch):
    busy = StandIn("busy:1", before=loses(0, Busy("later")))
    reopened(monkeypatch, busy)
    with pytest.raises(Busy, match="busy:1: later"):
        run([busy], planned(), tmp_path / "t.csv")
