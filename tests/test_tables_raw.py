"""Raw estimates become rows: at one speed, whatever the devices' speeds were in the runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.lookup_tables.cells import DRIFT, INTERFERENCE
from hurricane.lookup_tables.raw import (
    MAX_STEADY_CHANGE,
    ROWS_FROM_BEFORE,
    DeviceRun,
    LoopTimes,
    RawData,
    RawRow,
    Reference,
    no_latency,
)
from hurricane.lookup_tables.spread import NetworkTimes, Spread
from hurricane.lookup_tables.table import VALUE_COLUMNS, Row, TableError, Target
from hurricane.ops.shapes import LayerShape

CPU = Target("bench", "cpu", "onnxruntime", "1.32.0")
ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
SHAPE = LayerShape(8, 8, 4, 4, 1)
STEM = LayerShape(32, 32, 3, 16, 1)


def row(operator: str = "SEP_3", latency_ms: float = 1.0, **values) -> Row:
    values = {"estimator": "neighbours", **values}
    return Row.of(CPU, operator, SHAPE, status="ok", latency_ms=latency_ms, **values)


def a_run(
    number: int = 1, quiet: float = 1.0, limit: float | None = None, **graphs_ms
) -> DeviceRun:
    digests = {"one": ONE, "two": TWO, "three": THREE}
    times = {digests[name]: ms for name, ms in graphs_ms.items()}
    return DeviceRun(number, f"board:{number}", quiet, limit, times)


def data(*entries) -> RawData:
    return RawData().with_entries(entries)


def latencies(found: RawData) -> dict[str, float | None]:
    return {row.operator: row.latency_ms for row in found.table_rows() if row.ok}


# Scales


def test_a_row_of_no_run_is_as_it_shall_be():
    assert data(a_run(1, 1.3, one=1.0), RawRow(row())).table_rows() == [row()]


def test_rows_of_one_run_are_given_at_the_speed_of_the_device_when_it_was_quiet():
    found = data(
        a_run(1, 1.25, one=2.0),
        RawRow(row(ci_low_ms=0.9, ci_high_ms=1.2, call_ms=0.1, macs=7), 1),
    )
    assert found.scales() == {1: 1.25}
    wanted = row(latency_ms=1.25, ci_low_ms=1.125, ci_high_ms=1.5, call_ms=0.125, macs=7)
    assert found.table_rows() == [wanted]
    assert found.graphs_ms() == {ONE: 2.5}


def test_several_devices_give_rows_at_the_speed_of_the_one_that_has_most_of_them():
    """The second takes twice as long for the baselines; what it measured, raw, counts half."""
    found = data(
        a_run(1, 1.25, one=2.0, two=4.0),
        a_run(2, 3.0, one=3.0, two=10.0, three=1.0),
        RawRow(row("SEP_3"), 1),
        RawRow(row("SEP_5"), 1),
        RawRow(row("SEP_7", 10.0), 2),
        *(RawRow(no_latency(row(f"MB_{k}_3"), "failed", "internal"), 2) for k in (3, 5, 7)),
    )
    assert found.scales() == pytest.approx({1: 1.25, 2: 0.625})
    assert latencies(found) == {"SEP_3": 1.25, "SEP_5": 1.25, "SEP_7": 6.25}
    # Of a graph that both have timed the first run counts.
    assert found.graphs_ms() == pytest.approx({ONE: 2.5, TWO: 5.0, THREE: 0.625})


def test_a_run_without_a_graph_in_common_is_given_at_its_own_quiet_speed():
    found = data(a_run(1, 1.25, one=2.0), a_run(2, 1.5, two=4.0), RawRow(row(), 2))
    assert found.scales() == pytest.approx({1: 1.25, 2: 1.5})


@given(
    st.lists(st.floats(0.2, 5.0), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3),
    st.integers(0, 3),
)
def test_rows_do_not_depend_on_the_device_that_measured_them(speeds, graphs_ms, count):
    """Devices differ by a factor, and raw times with them; the rows of the table do not."""
    entries = []
    for number, speed in enumerate(speeds, start=1):
        one, two, three = (speed * ms for ms in graphs_ms)
        entries.append(a_run(number, 1.1, one=one, two=two, three=three))
        entries.append(RawRow(row(f"SEP_{number}", speed * 2.0), number))
    entries += [RawRow(row(f"MB_{n}_3", speeds[0]), 1) for n in range(count)]
    found = data(*entries)
    times = {r.operator: r.latency_ms for r in found.table_rows() if r.operator[0] == "S"}
    first = times["SEP_1"]
    assert first is not None
    assert times == pytest.approx(dict.fromkeys(times, first), rel=1e-5)


def test_a_reference_gives_its_speed_by_the_median_of_the_common_graphs():
    """Raw they take 2, 4 and 30 times as long: 4 is divided out, however fast it was quiet."""
    reference = Reference("reference", {ONE: 1.0, TWO: 1.0, THREE: 1.0, "4" * 64: 9.0})
    found = data(reference, a_run(1, 1.7, one=2.0, two=4.0, three=30.0), RawRow(row(), 1))
    assert found.scales() == {1: 0.25}
    assert latencies(found) == {"SEP_3": 0.25}
    assert found.graphs_ms() == {ONE: 0.5, TWO: 1.0, THREE: 7.5}


def test_rows_from_before_keep_their_graphs_and_give_their_speed_to_new_ones():
    before = Reference(ROWS_FROM_BEFORE, {ONE: 1.0, THREE: 1.0})
    found = data(before, a_run(1, 1.7, one=1.5, two=4.0, three=2.5), RawRow(row(), 1))
    assert latencies(found) == {"SEP_3": 0.5}
    assert found.graphs_ms() == {ONE: 1.0, TWO: 2.0, THREE: 1.0}


def test_a_resumed_run_goes_on_at_the_speed_of_the_rows_that_it_had():
    """Killed with a row at slowdown 1.2; the next run, on a device twice as slow, adds another."""
    killed = (a_run(1, 1.2, one=1.0), RawRow(row("SEP_3"), 1))
    found = data(*killed, a_run(2, 1.0, one=2.0), RawRow(row("SEP_5", 2.0), 2))
    assert latencies(found) == {"SEP_3": 1.2, "SEP_5": 1.2}


def test_what_the_drift_fit_says_last_holds_for_all_rows_of_its_run():
    found = data(a_run(1, 1.0, one=1.0), RawRow(row(), 1), a_run(1, 1.5, one=1.0))
    assert latencies(found) == {"SEP_3": 1.5}


def test_the_graphs_of_a_row_are_known_at_the_tables_speed():
    found = data(a_run(1, 1.25, one=2.0), RawRow(row(), 1, 1.0, {TWO: 4.0}), RawRow(row("SEP_5")))
    assert found.graphs_ms() == {ONE: 2.5, TWO: 5.0}


# Flags and statuses


@pytest.mark.parametrize(
    ("limit", "slowdown", "flags"),
    [
        (1.2, 1.2, "simulated"),
        (1.2, 1.21, f"{INTERFERENCE};simulated"),
        (None, 9.0, "simulated"),
    ],
)
def test_a_row_measured_on_a_device_slower_than_accepted_is_flagged(limit, slowdown, flags):
    found = data(a_run(1, 1.0, limit), RawRow(row(flags="simulated"), 1, slowdown))
    assert [r.flags for r in found.table_rows()] == [flags]


def test_whether_a_row_was_measured_on_a_slow_device_is_decided_by_what_is_known_last():
    entries = [a_run(1, 1.0, 1.1), RawRow(row(), 1, 1.15)]
    assert data(*entries).table_rows()[0].flags == INTERFERENCE
    assert data(*entries, a_run(1, 1.0, 1.3)).table_rows()[0].flags == ""


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_a_row_that_no_table_can_hold_at_its_speed_has_no_latency(scale):
    raw = row(latency_ms=1e-6 if scale < 1 else 3.6e6, ci_low_ms=0.0, ci_high_ms=3.6e6, rounds=9)
    (found,) = data(a_run(1, scale), RawRow(raw, 1)).table_rows()
    if scale > 1:
        assert (found.status, found.flags) == ("failed", "out-of-range")
        assert all(getattr(found, name) in (None, "") for name in VALUE_COLUMNS)
    else:
        assert found.latency_ms == pytest.approx(1e-18)
    assert found.key == raw.key


def test_a_row_without_a_latency_stays_as_it_is():
    failed = no_latency(row(flags="simulated"), "timeout", "")
    assert data(a_run(1, 2.0, 1.0), RawRow(failed, 1, 5.0)).table_rows() == [failed]


def test_a_row_measured_again_replaces_the_first_one_and_its_loop():
    loop = LoopTimes("SEP_3", SHAPE, 0.5, 0.4, 0.3, 0.45)
    found = data(RawRow(row(latency_ms=1.0)), loop, RawRow(row(latency_ms=2.0)))
    assert found.table_rows() == [row(latency_ms=2.0)]


# Timings of a row's own graph


LOOP = LoopTimes("SEP_3", SHAPE, cold_ms=1.5, warm_ms=1.2, p10_ms=1.1, p90_ms=1.4, device_ms=1.3)


def test_a_loop_is_kept_as_it_was_timed_and_gives_the_price_of_a_call():
    found = data(a_run(1, 0.5, one=1.0), RawRow(row(latency_ms=2.0), 1), LOOP).table_rows()
    loops = {"cold_ms": 1.5, "warm_ms": 1.2, "p10_ms": 1.1, "p90_ms": 1.4, "device_ms": 1.3}
    assert found == [row(latency_ms=1.0, call_ms=0.5, **loops)]


def test_the_price_of_a_call_is_not_negative_and_a_stems_own_stays():
    (found,) = data(RawRow(row(latency_ms=2.0)), LOOP).table_rows()
    assert found.call_ms == 0.0
    stem = Row.of(CPU, "stem", STEM, status="ok", latency_ms=1.0, call_ms=0.3, estimator="pool")
    (found,) = data(RawRow(stem), replace(LOOP, operator="stem", shape=STEM)).table_rows()
    assert (found.call_ms, found.cold_ms) == (0.3, 1.5)


def test_a_row_that_the_table_holds_already_gets_its_loop_and_others_are_left_alone():
    there = {r.key: r for r in (row("SEP_3"), row("SEP_5"))}
    found = data(LOOP).table_rows(there)
    assert [(r.operator, r.cold_ms) for r in found] == [("SEP_3", 1.5)]
    done = {r.key: r for r in found}
    assert data(LOOP).table_rows(done) == []
    failed = no_latency(row(), "failed", "internal")
    assert data(LOOP).table_rows({failed.key: failed}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"cold_ms": 0.0},
        {"cold_ms": -1.0},
        {"cold_ms": 1e9},
        {"warm_ms": float("nan")},
        {"p90_ms": float("inf")},
        {"p10_ms": 9.0},
        {"device_ms": -1.0},
        {"operator": "no operator"},
        {"shape": replace(SHAPE, width=0)},
    ],
)
def test_timings_that_no_row_can_hold_are_told(change):
    LOOP.check(CPU)
    with pytest.raises(TableError):
        replace(LOOP, **change).check(CPU)


# Steady drift


@pytest.mark.parametrize("change", [0.11, -0.11, 0.5])
def test_rows_of_a_device_that_drifted_steadily_are_flagged(change):
    assert abs(change) > MAX_STEADY_CHANGE
    found = data(
        replace(a_run(1, one=1.0), steady_change=change),
        a_run(2, one=1.0),
        RawRow(row("SEP_3", flags="unstable"), 1),
        RawRow(row("SEP_5"), 2),
        RawRow(no_latency(row("SEP_7"), "failed", "internal"), 1),
    )
    flags = {row.operator: row.flag_words for row in found.table_rows()}
    assert flags == {"SEP_3": (DRIFT, "unstable"), "SEP_5": (), "SEP_7": ("internal",)}


@pytest.mark.parametrize("change", [0.0, 0.09, -0.09, MAX_STEADY_CHANGE])
def test_a_small_change_flags_no_row(change):
    found = data(replace(a_run(1, one=1.0), steady_change=change), RawRow(row(), 1))
    assert found.table_rows() == [row()]


# Spread


def test_the_spread_of_several_runs_is_over_quiet_times_at_the_tables_speed():
    def network(quiet_ms: float) -> NetworkTimes:
        return NetworkTimes("digits32", ("SEP_3",), quiet_ms, 6.0, 8.0, 60)

    runs = [
        replace(a_run(1, 1.25, one=1.0), spread=Spread((network(4.0),), 1.5, 2.5)),
        replace(a_run(2, 1.0, one=2.0), spread=Spread((network(8.0),), 1.25, 1.25)),
        a_run(3, 1.0, one=2.0),
    ]
    found = data(*runs, RawRow(row(), 1)).spread()
    assert found is not None
    assert [n.quiet_ms for n in found.networks] == [5.0, 5.0]
    assert [n.median_ms for n in found.networks] == [6.0, 6.0]  # as timed
    assert found.operator_median == pytest.approx((1.5 / 1.25 + 1.25 / 0.625) / 2)
    assert found.operator_p90 == pytest.approx((2.5 / 1.25 + 1.25 / 0.625) / 2)


def test_where_no_run_tells_the_spread_it_is_not_known():
    assert data().spread() is None
    assert data(a_run(1, one=1.0), RawRow(row(), 1)).spread() is None
