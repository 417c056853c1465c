"""Filling a table: what is missing is measured, at the speed of what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from hurricane.agents.client import AgentClient, private_agent
from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import (
    AgentError,
    BoardNotReady,
    DeviceLost,
    RuntimeCrashed,
    TimedOut,
    UnsupportedOperator,
)
from hurricane.agents.results import ArtifactResult
from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.journal import journal_path, read_journal
from hurricane.lookup_tables.raw import DRIFT
from hurricane.lookup_tables.runs import load_runs, runs_path, save_runs
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.profiler import profile as module
from hurricane.profiler.cli import profile_ops
from hurricane.profiler.coverage import failed_rows, missing_rows
from hurricane.profiler.groups import Outcome
from hurricane.profiler.measurement import THROTTLED
from hurricane.profiler.plan import PlannedRow, baseline_graphs, weight_bytes
from hurricane.profiler.profile import ProfileResult, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.runner import Runner
from hurricane.profiler.session import DeviceLog, TargetSession
from hurricane.profiler.summary import lines_of, summary_of
from hurricane.profiler.target import parse_target
from hurricane.profiler.warnings import warnings_of

from .stand_in import (
    BATCH,
    BATCHES,
    CALL_MS,
    COST_MS,
    StandIn,
    cost_ms,
    digest,
    in_batches,
    limited,
    planned,
    timing,
    true_ms,
)

DSP = "sim-hexagon685-dsp"
CANNOT = UnsupportedOperator("no kernel for it")
SHORT = timing(min_rounds=3, max_rounds=3)


@pytest.fixture(autouse=True)
def _no_graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in is sent no graphs, so that none need be exported."""
    if request.node.get_closest_marker("process") is None:
        monkeypatch.setattr(module, "prepare_templates", lambda pieces, on_progress: None)


def fill(
    sessions: Any, rows: Any, path: Path, protocol: TimingProtocol | None = None, **words: Any
) -> ProfileResult:
    """`profile` on one session or more, with a limit."""
    sessions = sessions if isinstance(sessions, list) else [sessions]
    return limited(lambda: profile(sessions, rows, path, protocol or timing(), **words))


def check_complete(result: ProfileResult, rows: Any) -> None:
    assert not missing_rows(rows, result.table, result.target)
    assert len(result.table) == len(rows)
    assert all(row.cold_ms for row in result.table)


def latencies(result: ProfileResult) -> dict[tuple[str, object], float | None]:
    return {(row.operator, row.shape): row.latency_ms for row in result.table}


def wanted(rows: Any, speed: float = 1.0) -> dict[tuple[str, object], Any]:
    """What the stand-in takes for rows."""
    return {(row.name, row.shape): pytest.approx(speed * cost_ms(row), rel=1e-6) for row in rows}


def slower(factor: float, **words: Any) -> StandIn:
    return StandIn(slowdown=lambda number: factor, **words)


def killed_at(number: int) -> Callable[[int], None]:
    def before(now: int) -> None:
        if now == number:
            raise RuntimeError("killed")

    return before


# What a run measures.


def test_a_second_run_measures_what_is_missing_and_a_third_nothing(tmp_path):
    path, rows = tmp_path / "t.csv", planned()
    first = fill(StandIn(), rows[:2], path)
    assert (first.measured, first.kept) == (2, 0)
    second = fill(StandIn(), rows, path)
    assert (second.measured, second.kept) == (1, 2)
    check_complete(second, rows)
    before, device = path.read_bytes(), StandIn()
    third = fill(device, rows, path)
    assert (third.measured, third.kept, third.runs) == (0, 3, ())
    assert not device.requests
    assert path.read_bytes() == before
    assert not journal_path(path).exists()


def test_retry_measures_again_what_went_wrong_or_is_doubtful(tmp_path):
    path, rows = tmp_path / "t.csv", planned()
    troubled = StandIn(refused={"SEP_5": RuntimeCrashed("it broke")}, noise={"MB_3_3": 0.5})
    result = fill(troubled, rows, path, timing(max_rounds=12))
    flags = {row.operator: row.flags for row in result.table}
    assert flags == {"SEP_3": "", "SEP_5": "runtime-crashed", "MB_3_3": "unstable"}
    assert (result.failed, result.counts) == (1, {"failed": 1, "unstable": 1})
    assert failed_rows(rows, result.table, result.target) == [rows[1]]
    assert fill(StandIn(), rows, path).measured == 0
    again = fill(StandIn(), rows, path, retry=True)
    assert (again.measured, again.kept) == (2, 1)
    assert not any(row.flags for row in again.table)
    assert latencies(again) == wanted(rows)


def test_a_row_at_which_the_device_was_lost_is_measured_by_the_next_run(tmp_path):
    path, rows = tmp_path / "t.csv", planned()
    losing = StandIn(refused={"SEP_5": DeviceLost("gone")})
    result = fill(losing, rows, path, timing(max_losses_per_graph=1))
    assert {row.operator: row.flags for row in result.table if not row.ok} == {
        "SEP_5": "device-lost"
    }
    assert result.failed == 1
    assert missing_rows(rows, result.table, result.target) == [rows[1]]
    assert failed_rows(rows, result.table, result.target) == []
    again = fill(StandIn(), rows, path)
    assert (again.measured, again.kept, again.failed) == (1, 2, 0)
    assert latencies(again) == wanted(rows)


@pytest.mark.parametrize("flag", [THROTTLED, "interference", "unstable", DRIFT])
def test_retry_counts_rows_that_may_be_better_another_time(tmp_path, flag):
    rows = planned("SEP_3,SEP_5")
    result = fill(StandIn(), rows, tmp_path / "t.csv")
    assert not missing_rows(rows, result.table, result.target, retry=True)
    flagged = replace(result.table.rows[0], flags=flag)
    again = LookupTable([flagged, *result.table.rows[1:]])
    assert len(missing_rows(rows, again, result.target, retry=True)) == 1
    assert not missing_rows(rows, again, result.target)


def test_loops_that_are_missing_are_made_by_the_next_run(tmp_path):
    path, rows, device = tmp_path / "t.csv", planned(), StandIn()
    device.no_room = lambda graph, replica: graph == rows[0].alone
    first = fill(device, rows, path)
    assert [row.operator for row in first.table if row.cold_ms is None] == ["SEP_3"]
    again = StandIn()
    second = fill(again, rows, path)
    assert (second.measured, len(again.requests)) == (0, 1)
    check_complete(second, rows)
    assert latencies(second) == latencies(first)


def test_what_was_thrown_out_is_not_there_and_what_was_kept_is_background(tmp_path):
    path, rows = tmp_path / "t.csv", planned("*")
    fill(StandIn(), rows[1:], path)
    device = StandIn()
    least = sum(row.bytes for row in rows) // 2
    fill(device, rows, path, timing(min_batch_bytes=least))
    for series in device.batches():
        assert sum(weight_bytes(graph) for graph, _ in series) >= least
        assert {graph for graph, _ in series} & set(rows[0].with_operator)


def test_estimates_are_differences_without_a_pool_and_a_call_costs_nothing(tmp_path):
    rows = planned("SEP_5,Choice_3", "digits32")
    table = fill(StandIn(origin="estimated"), rows, tmp_path / "t.csv").table
    assert {row.estimator for row in table} == {"neighbours-unpooled"}
    for row in table:
        assert row.latency_ms == pytest.approx(COST_MS.get(row.operator, 0.25))
        assert row.call_ms == 0.0 if row.is_stem else row.call_ms is not None


@pytest.mark.parametrize(
    ("device_time", "estimator"), [(True, "neighbours-device"), (False, "neighbours")]
)
def test_a_device_that_keeps_one_graph_fills_a_table(tmp_path, device_time, estimator):
    rows = planned()
    device = StandIn(resident=False, device_time=device_time)
    result = fill(device, rows, tmp_path / "t.csv", TimingProtocol())
    check_complete(result, rows)
    assert latencies(result) == wanted(rows)
    contexts = {row.name: row.contexts for row in rows}
    for row in result.table:
        assert row.estimator == estimator
        assert row.rounds == 5
        graphs = 2 * len(contexts[row.operator])
        assert row.samples == row.rounds * 16 * graphs


def test_a_device_without_one_neighbour_still_fills_the_rest(tmp_path):
    rows = planned("SEP_3,SEP_5,MB_3_3,Choice_3")
    result = fill(StandIn(refused={"Choice_3": CANNOT}), rows, tmp_path / "t.csv")
    statuses = {row.operator: row.status for row in result.table}
    assert statuses == {"SEP_3": "ok", "SEP_5": "ok", "MB_3_3": "ok", "Choice_3": "unsupported"}
    assert result.counts == {"unsupported": 1}
    assert result.failed == 0


def refusing(*names: str, error: AgentError = CANNOT) -> StandIn:
    """A device that runs no graph with these."""
    return StandIn(refused=dict.fromkeys(names, error))


@pytest.mark.parametrize("error", [CANNOT, RuntimeCrashed("SIGSEGV"), TimedOut("60 s")])
def test_a_board_on_which_no_graph_runs_is_the_boards_fault_and_nothing_is_recorded(
    tmp_path, error
):
    device = refusing("SEP_3", "Choice_3", "pool", error=error)
    with pytest.raises(BoardNotReady, match=rf"none of \d+ graphs runs there.*: {error}") as caught:
        fill(device, planned("SEP_3,SEP_5"), tmp_path / "t.csv")
    assert caught.value.exit_status == 1
    assert len(device.requests) == 1  # nor is it waited for
    assert list(tmp_path.iterdir()) == []


def test_a_board_that_runs_nothing_any_more_ends_the_run_and_what_was_measured_is_safe(tmp_path):
    rows, path = planned("SEP_3,SEP_5,MB_3_3"), tmp_path / "t.csv"

    def lose(number: int) -> None:
        if number == BATCHES:
            device.refused = dict.fromkeys(["SEP_3", "Choice_3", "pool"], CANNOT)

    device = StandIn(before=lose, noise={"SEP_5": 0.5})  # which therefore takes more batches
    with pytest.raises(BoardNotReady, match=r"runs any more.*2 rows are safe"):
        fill(device, rows, path, timing())
    assert {row.operator for row in read_journal(path).data.table_rows()} == {"SEP_3", "MB_3_3"}


def test_what_no_device_runs_at_the_end_is_its_own_fault_where_others_ran(tmp_path):
    device = refusing("MB_7_6", error=CANNOT)
    device.max_bytes = 1  # one row at a time
    result = fill(device, planned("SEP_3,MB_7_6"), tmp_path / "t.csv", timing())
    assert result.counts == {"unsupported": 1}


def test_why_rows_have_no_latency_is_told_once_for_each_kind(tmp_path):
    device = refusing("SEP_5", "MB_7_6")
    device.refused["MB_3_3"] = RuntimeCrashed("SIGSEGV while loading")
    result = fill(device, planned("SEP_3,SEP_5,MB_3_3,MB_7_6"), tmp_path / "t.csv")
    told = {warning.name: warning.cause for warning in warnings_of(result, tmp_path / "t.csv")}
    assert "1 row failed (runtime-crashed), the first MB_3_3 at" in told["runtime-crashed"]
    assert told["runtime-crashed"].endswith(": SIGSEGV while loading")
    assert "2 rows unsupported (unsupported-operator)" in told["unsupported-operator"]
    assert told["unsupported-operator"].endswith(": no kernel for it")
    group: Any = SimpleNamespace(target=result.target)
    outcome = Outcome(group, tmp_path / "t.csv", 1.0, result)
    summary = summary_of(outcome, 4, load_backbone("digits32"))
    assert {(one["status"], one["rows"]): one["reason"] for one in summary["failures"]} == {
        ("failed", 1): "SIGSEGV while loading",
        ("unsupported", 2): "no kernel for it",
    }
    assert any("no kernel for it" in line for line in lines_of(outcome, summary))
    again = fill(device, planned("SEP_3,SEP_5,MB_3_3,MB_7_6"), tmp_path / "t.csv")
    assert again.failures == ()


@pytest.mark.parametrize("fallen", [("Choice_3",), ("SEP_3", "Choice_3")])
def test_a_neighbour_that_falls_back_flags_rows_only_where_there_is_no_other(tmp_path, fallen):
    rows = planned("SEP_5,Choice_3")
    result = fill(StandIn(fallen=fallen), rows, tmp_path / "t.csv")
    flags = {row.operator: row.flags for row in result.table}
    if len(fallen) == 1:
        assert flags == {"SEP_5": "", "Choice_3": "fallback:Choice_3"}
    else:
        assert flags == dict.fromkeys(flags, "fallback:Choice_3;fallback:SEP_3")


# Speeds: rows of one table are comparable.


def test_a_resumed_table_goes_on_at_the_speed_of_its_rows(tmp_path):
    path = tmp_path / "t.csv"
    first, more = planned("SEP_*"), planned("SEP_*,MB_*_3", "digits32:1,4")
    fill(StandIn(), first, path)
    target = StandIn().target
    before, content = BASELINES.load(path).get(target), BASELINES.path(path).read_bytes()
    assert before == {
        digest(graph): pytest.approx(true_ms(graph) + CALL_MS)
        for row in first
        for graph in (*row.with_operator, *row.baselines)
    }
    assert fill(slower(1.04), first, path).measured == 0
    assert BASELINES.path(path).read_bytes() == content
    result = fill(slower(1.04), more, path)
    assert result.kept == len(first)
    assert (result.speed.reference, result.speed.slowdown) == (
        "rows from before",
        pytest.approx(1.04),
    )
    assert latencies(result) == wanted(more)
    after = BASELINES.load(path).get(target)
    assert {name: after[name] for name in before} == before
    assert after == pytest.approx(
        {digest(g): true_ms(g) + CALL_MS for r in more for g in (*r.with_operator, *r.baselines)}
    )
    fill(slower(1.1), planned("Choice_3", "digits32:4"), path)
    last = BASELINES.load(path).get(target)
    assert {name: last[name] for name in after} == after  # those of other layers stay
    assert len(last) > len(after)


def test_other_layers_of_a_table_are_linked_to_those_that_are_there(tmp_path):
    path = tmp_path / "t.csv"
    first, other = planned("SEP_*", "digits32:1"), planned("SEP_*", "digits32:4")
    assert not set(baseline_graphs(first)) & set(baseline_graphs(other))
    fill(StandIn(), first, path)
    device = slower(1.04)
    result = fill(device, other, path)
    assert result.speed.reference == "rows from before"
    assert result.speed.slowdown == pytest.approx(1.04)
    assert latencies(result) == wanted([*first, *other])
    timed = {graph for graph, _ in device.batches()[0]}
    assert set(baseline_graphs(first)) <= timed


def test_a_table_is_given_as_fast_as_the_device_was_for_its_reference(tmp_path):
    rows = planned("SEP_*,MB_3_*")
    first, second, own = (tmp_path / f"{name}.csv" for name in ("first", "second", "own"))
    assert fill(StandIn(), rows, first).speed.reference == ""
    known = BASELINES.path(first).read_bytes()
    alone = fill(slower(1.04), rows, own)
    assert (alone.speed.reference, alone.speed.slowdown) == ("", 1.0)
    assert latencies(alone) == wanted(rows, 1.04)
    result = fill(slower(1.04), rows, second, reference=first)
    assert (result.speed.reference, result.speed.slowdown) == ("reference", pytest.approx(1.04))
    assert latencies(result) == wanted(rows)
    # It holds what its own graphs took, at that speed, and the reference stays as it was.
    target = result.target
    assert BASELINES.load(second).get(target) == pytest.approx(BASELINES.load(first).get(target))
    assert BASELINES.path(first).read_bytes() == known


def test_a_reference_of_some_of_the_layers_tells_the_speed_of_all(tmp_path):
    first, both = planned("SEP_*", "digits32:1"), planned("SEP_*", "digits32:1,4")
    fill(StandIn(), first, tmp_path / "first.csv")
    result = fill(slower(1.04), both, tmp_path / "t.csv", reference=tmp_path / "first.csv")
    assert latencies(result) == wanted(both)


def test_a_reference_without_the_targets_speed_is_refused(tmp_path):
    rows, path = planned("SEP_3"), tmp_path / "t.csv"
    missing, other = tmp_path / "missing.csv", tmp_path / "other.csv"
    elsewhere, begun = tmp_path / "elsewhere.csv", tmp_path / "begun.csv"
    fill(StandIn(origin="measured"), rows, other)
    fill(StandIn(), planned("SEP_3", "digits32:4"), elsewhere)
    begun.write_bytes(elsewhere.read_bytes())
    device = StandIn()
    for at, reference, words in (
        (path, elsewhere, "no layer shape in common"),
        (begun, elsewhere, r"begun\.csv holds rows whose speed is not known"),
        (path, missing, r"missing\.csv: there is no such table"),
        (path, other, r"other\.csv\.baselines\.json does not tell how fast"),
    ):
        with pytest.raises(BadRequest, match=words):
            fill(device, rows, at, reference=reference)
    assert not device.requests
    assert not path.exists()


def test_all_devices_are_brought_to_the_reference(tmp_path):
    rows = planned("SEP_*,MB_*")
    first = tmp_path / "first.csv"
    fill(StandIn(), rows, first)
    devices = [slower(1.02, address="a:1"), slower(1.06, address="b:1")]
    result = fill(devices, rows, tmp_path / "t.csv", reference=first)
    check_complete(result, rows)
    assert not result.exclusions.left_out
    assert result.speed.slowdown == pytest.approx(1.04)
    assert latencies(result) == wanted(rows)
    assert {facts.batches > 0 for facts in result.runs} == {True}


def test_devices_of_two_kinds_have_two_tables(tmp_path):
    devices = [StandIn("a:1"), StandIn("b:1", origin="measured")]
    with pytest.raises(BadRequest, match="a:1 and b:1 are not of one kind"):
        fill(devices, planned(), tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


# Runs that end before their time.


def test_a_killed_run_loses_no_row_and_the_next_goes_on_at_its_speed(tmp_path):
    rows, path = planned("*"), tmp_path / "t.csv"
    protocol = timing(max_active_rows=6)
    with pytest.raises(RuntimeError, match="killed"):
        fill(StandIn(before=killed_at(2 * BATCHES + 1)), rows, path, protocol)
    assert not path.exists()
    known = {row.operator: row for row in read_journal(path).rows}
    assert 0 < len(known) < len(rows)
    result = fill(slower(1.1), rows, path, protocol)
    assert (result.kept, result.measured) == (len(known), len(rows) - len(known))
    assert latencies(result) == wanted(rows)
    for row in result.table:
        if row.operator in known:
            assert row.latency_ms == pytest.approx(known[row.operator].latency_ms)
            assert row.measured_at == known[row.operator].measured_at
    check_complete(result, rows)
    assert not journal_path(path).exists()


def test_a_run_that_is_killed_again_and_again_has_one_speed(tmp_path):
    rows, path = planned("*"), tmp_path / "t.csv"
    protocol = timing(max_active_rows=6)
    for speed in (1.0, 1.1, 0.9):
        device = slower(speed, before=killed_at(BATCHES + 1))
        with pytest.raises(RuntimeError, match="killed"):
            fill(device, rows, path, protocol)
    result = fill(slower(1.05), rows, path, protocol)
    assert latencies(result) == wanted(rows)


def test_a_table_that_refers_to_another_goes_on_at_its_speed_after_a_kill(tmp_path):
    rows, first, path = planned("SEP_*,MB_*"), tmp_path / "first.csv", tmp_path / "t.csv"
    fill(StandIn(), rows, first)
    protocol = timing(max_active_rows=4)
    with pytest.raises(RuntimeError, match="killed"):
        fill(slower(1.04, before=killed_at(BATCHES + 1)), rows, path, protocol, reference=first)
    result = fill(slower(1.08), rows, path, protocol, reference=first)
    assert 0 < result.kept < len(rows)
    assert result.speed.slowdown == pytest.approx(1.08)
    assert latencies(result) == wanted(rows)


def order(rows: Any) -> list[PlannedRow]:
    """Rows in the order in which a run gives them out."""
    import numpy as np

    return [rows[i] for i in np.random.default_rng(timing().seed).permutation(len(rows))]


@pytest.mark.parametrize("referring", [False, True])
def test_a_killed_run_goes_on_though_what_is_left_is_of_other_layers(tmp_path, referring):
    """What is left shares no graph with the reference, nor with the rows that are known."""
    path, first = tmp_path / "t.csv", tmp_path / "first.csv"
    one, other = planned("SEP_*", "digits32:1"), planned("SEP_*", "digits32:4")
    fill(StandIn(), one, first)
    words = {"reference": first} if referring else {}
    with pytest.raises(RuntimeError, match="killed"):
        fill(slower(1.04, before=killed_at(BATCHES)), [*one], path, **words)
    assert len(read_journal(path).rows) == len(one)
    result = fill(slower(1.1), [*one, *other], path, **words)
    speed = 1.0 if referring else 1.04
    assert latencies(result) == wanted([*one, *other], speed)


def test_rows_of_a_killed_run_keep_their_speed_though_those_left_are_of_other_layers(tmp_path):
    path, protocol = tmp_path / "t.csv", timing(linking_shapes=1)
    there = [*planned("SEP_3", "digits32:0"), *planned("SEP_3", "digits32:1")]
    more, other = planned("SEP_5,MB_3_3", "digits32:1"), planned("MB_3_3", "digits32:4")
    fill(StandIn(), there, path, protocol)
    with pytest.raises(RuntimeError, match="killed"):
        fill(slower(1.1, before=killed_at(BATCHES)), [*there, *more], path, protocol)
    assert len(read_journal(path).rows) == len(more)
    # The one shape that links other layers is another than that of the rows in the journal.
    result = fill(slower(1.2), [*there, *more, *other], path, protocol)
    assert latencies(result) == wanted([*there, *more, *other])


def test_the_last_device_that_is_gone_leaves_its_rows_and_says_how_to_go_on(tmp_path, monkeypatch):
    def nobody(client: Any, request: Any) -> None:
        raise DeviceLost("nobody answers")

    monkeypatch.setattr(TargetSession, "open", nobody)

    def before(number: int) -> None:
        if number >= 5:
            raise DeviceLost("the plug was pulled")

    rows, path = planned(), tmp_path / "t.csv"
    device = StandIn(noise={"SEP_5": 1.0}, before=before)
    with pytest.raises(DeviceLost) as told:
        fill(device, rows, path, timing(rejoin_timeout_s=0.0))
    assert str(told.value) == (
        "stand-in:1: the plug was pulled; 2 rows are safe, the same command goes on from there"
    )
    assert len(load_runs(path)) == 1
    result = fill(StandIn(), rows, path)
    assert (result.measured, result.kept) == (1, 2)
    check_complete(result, rows)


# What is written down besides rows.


def test_what_each_device_did_is_kept_beside_the_table(tmp_path):
    path, rows = tmp_path / "t.csv", planned()
    first = StandIn(request_ms=500.0, slowdown=in_batches(1, value=1.6, other=1.0))
    result = fill(first, rows[:2], path)
    (run,) = result.runs
    batches = BATCHES + 1
    assert (run.rows, run.batches, run.batches_rejected) == (2, batches, 1)
    assert (run.device_s, run.target) == (first.log.spent_ms / 1e3, str(result.target))
    assert result.device_s == run.device_s
    assert run.frequency_before_mhz == 1000
    assert run.frequency_after_mhz == 1001 + batches  # the loops came last
    assert run.governor is None
    assert run.steal_share == 0.25
    assert "1000 to 1006 MHz, 25.0% stolen by other machines" in run.text()
    row = result.table.rows[0]
    assert row.frequency_before_mhz == 1000
    assert row.frequency_after_mhz == 1000 + batches
    assert load_runs(path) == [run]
    again = fill(StandIn(), rows, path)
    assert load_runs(path) == [run, *again.runs]
    assert fill(StandIn(), rows, path).runs == ()
    assert len(load_runs(path)) == 2
    shown = CliRunner().invoke(table_group, ["show", str(path)])
    assert f"2 rows in {batches} batches (1 rejected)" in shown.output
    shown = CliRunner().invoke(table_group, ["show", str(path), "--json"])
    assert [r["rows"] for r in json.loads(shown.output)["runs"]] == [2, 1]


def test_runs_go_along_when_tables_are_merged(tmp_path):
    one, other, both = (tmp_path / f"{name}.csv" for name in ("one", "other", "both"))
    rows = planned("SEP_3,SEP_5")
    fill(StandIn(), rows[:1], one)
    fill(StandIn(request_ms=2.0), rows[1:], other)
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
    fill(StandIn(), planned("SEP_3"), path)
    runs_path(path).write_text(runs_path(path).read_text() + line + "\n")
    with pytest.raises(BadRequest, match=r"line 2: .*nothing but the history"):
        load_runs(path)


def test_a_device_is_known_over_all_requests():
    def result(events: tuple[int, int], steal: float) -> ArtifactResult:
        before, after = (Conditions(throttle_events=n, governor=f"after {n}") for n in events)
        return ArtifactResult("0", before=before, after=replace(after, steal_share=steal))

    log = DeviceLog()
    assert (log.steal_share, log.before) == (0.0, None)

    def note(events: tuple[int, int], steal: float, elapsed_ms: float) -> None:
        log.spent_ms += elapsed_ms
        log.note(result(events, steal), elapsed_ms)

    note((4, 5), 0.1, 100.0)
    note((5, 6), 0.5, 300.0)
    assert log.before is not None
    assert log.after is not None
    assert (log.before.governor, log.after.governor) == ("after 4", "after 6")
    assert log.steal_share == pytest.approx(0.4)
    assert (log.events_at_rest, log.throttle_events) == (4, 2)
    note((0, 1), 0.0, 1.0)  # it booted
    assert (log.events_at_rest, log.throttle_events) == (0, 3)


# Steady drift.

TEN_BATCHES = timing(min_rounds=10 * BATCH)


def drifting(share: float, **words: Any) -> StandIn:
    """A device that gets slower by this share with each request of a second."""
    return StandIn(slowdown=lambda number: (1 + share) ** number, request_ms=1e3, **words)


def flags_of(result: ProfileResult) -> set[str]:
    return {flag for row in result.table for flag in row.flag_words}


def test_rows_of_a_device_that_drifts_are_flagged_and_measured_again_where_it_is_steady(tmp_path):
    rows, path = planned(), tmp_path / "t.csv"
    result = fill(drifting(0.012), rows, path, TEN_BATCHES)
    assert {row.flags for row in result.table} == {DRIFT}
    assert result.counts == {DRIFT: len(rows)}
    (warning,) = warnings_of(result, path)
    assert warning.name == DRIFT
    assert "steadily slower or faster" in warning.cause
    assert warning.remedy == "wait until its clock and heat are steady, and --retry"
    assert fill(StandIn(), rows, path).measured == 0
    again = fill(StandIn(), rows, path, retry=True)
    assert again.measured == len(rows)
    assert flags_of(again) == set()


def test_a_small_drift_flags_nothing_unless_much_time_was_spent_before_the_first_batch(tmp_path):
    rows = planned()
    assert flags_of(fill(drifting(0.005), rows, tmp_path / "a.csv", TEN_BATCHES)) == set()
    loaded = drifting(0.005)
    loaded.log.spent_ms = 20e3
    assert flags_of(fill(loaded, rows, tmp_path / "b.csv", TEN_BATCHES)) == {DRIFT}


def test_a_clock_that_wanders_flags_nothing(tmp_path):
    device = StandIn(slowdown=lambda number: 1.12 if number % 3 else 1.0, request_ms=1e3)
    assert flags_of(fill(device, planned(), tmp_path / "t.csv", TEN_BATCHES)) == set()


def test_rows_of_a_killed_run_that_drifted_stay_flagged(tmp_path):
    rows, path = planned("SEP_*,MB_*"), tmp_path / "t.csv"
    protocol = replace(TEN_BATCHES, max_active_rows=3)
    with pytest.raises(RuntimeError, match="killed"):
        fill(drifting(0.012, before=killed_at(12)), rows, path, protocol)
    first = {row.operator for row in read_journal(path).rows}
    assert len(first) == 3
    result = fill(StandIn(), rows, path, protocol)
    assert {row.operator for row in result.table if DRIFT in row.flag_words} == first


# Where the time goes.


def test_the_time_of_a_run_that_times_loops_alone_is_known(tmp_path):
    path, rows, device = tmp_path / "t.csv", planned(), StandIn()
    device.no_room = lambda graph, replica: graph == rows[0].alone
    assert {"prepare", "statistics"} <= set(fill(device, rows, path).seconds)
    again = fill(StandIn(), rows, path)
    assert (again.measured, again.runs) == (0, ())
    assert set(again.seconds) == {"prepare"}


@pytest.mark.process
def test_the_wall_time_of_a_run_is_known_by_what_it_was_spent_on(tmp_path):
    rows = planned("SEP_3", "digits32:1")
    with private_agent(("hexagon685-dsp",)) as client:
        session = TargetSession.open(client, parse_target(DSP))
        result = fill(session, rows, tmp_path / "t.csv", SHORT)
    whole = {"prepare", "make", "upload", "load", "measure", "statistics"}
    assert set(result.seconds) - {"overlap"} == whole
    assert all(result.seconds[what] >= 0 for what in whole)
    assert result.seconds == session.log.seconds


@pytest.mark.process
@pytest.mark.parametrize(("per_minute", "flags"), [(0.2, {DRIFT}), (0.02, set())])
def test_a_simulated_device_that_drifts_is_found_out(tmp_path, per_minute, flags):
    """It works for over a minute, on its own clock."""
    request = parse_target(DSP, (f"drift_per_minute={per_minute}", "call_ms=200"))
    with private_agent(("hexagon685-dsp",)) as client:
        session = TargetSession.open(client, request)
        result = fill(session, planned(), tmp_path / "t.csv", TEN_BATCHES)
        assert session.log.spent_ms > 60e3
    assert {f for row in result.table for f in row.flag_words} == flags | {"simulated"}
    assert (DRIFT in {w.name for w in warnings_of(result, tmp_path / "t.csv")}) == bool(flags)


# Agents.


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


@pytest.mark.process
def test_an_agent_that_comes_back_on_its_port_joins_again(tmp_path, monkeypatch):
    rows = planned("SEP_3,SEP_5")
    processes: list[subprocess.Popen[bytes]] = []
    process, address = start_agent(tmp_path, "127.0.0.1:0", "first.log")
    processes.append(process)
    real = Runner._measure_batch

    def measure_batch(runner: Runner, device: str, session: TargetSession, *words: Any) -> int:
        if len(processes) == 1 and session.log.spent_ms:  # after its first batch
            processes[0].kill()
            processes[0].wait()
            processes.append(start_agent(tmp_path, address, "second.log")[0])
        return real(runner, device, session, *words)

    monkeypatch.setattr(Runner, "_measure_batch", measure_batch)
    try:
        with AgentClient(address) as client:
            session = TargetSession.open(client, parse_target(DSP))
            result = fill(
                session, rows, tmp_path / "t.csv", replace(SHORT, max_rounds=6, min_rounds=6)
            )
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(processes) == 2
    check_complete(result, rows)
    assert not result.exclusions.lost


@pytest.mark.process
def test_two_agents_share_one_plan_and_lose_or_double_no_row(tmp_path):
    rows = planned("SEP_*", "digits32:1")
    simulate, request = ("hexagon685-dsp",), parse_target(DSP)
    with private_agent(simulate) as a, private_agent(simulate) as b:
        sessions = [TargetSession.open(client, request) for client in (a, b)]
        result = fill(sessions, rows, tmp_path / "t.csv", SHORT)
    check_complete(result, rows)
    assert not result.exclusions.lost
    assert not result.exclusions.left_out
    assert all(row.cold_ms and row.warm_ms for row in result.table)


@pytest.mark.process
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

    end = "/" if folder else ".csv"
    first, second = (str(tmp_path / n) + end for n in ("first", "second"))
    with private_agent(("hexagon685-dsp",)) as client:
        found = invoke(client, first)
        assert (found["reference"], found["slowdown"]) == (None, None)
    with private_agent((slow_device(tmp_path / "slow", 1.2),)) as client:
        found = invoke(client, second, "--reference", first)
    assert (found["measured"], found["reference"]) == (1, "reference")
    assert found["slowdown"] == pytest.approx(1.2, rel=0.02)


def slow_device(folder: Path, factor: float) -> str:
    folder.mkdir()
    devices = Path(module.__file__).parents[1] / "agents" / "devices"
    text = (devices / "hexagon685-dsp.toml").read_text()
    path = folder / "hexagon685-dsp.toml"
    path.write_text(text.replace("[disturbances]", f"[disturbances]\nslower = {factor}"))
    return str(path)


@pytest.mark.process
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
