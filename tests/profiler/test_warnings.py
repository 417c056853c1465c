"""What a run warns of: every warning with its cause, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hurricane.lookup_tables.runs import Run
from hurricane.lookup_tables.table import LookupTable
from hurricane.profiler.comparison import Exclusions
from hurricane.profiler.profile import ProfileResult
from hurricane.profiler.reference import Speed
from hurricane.profiler.warnings import ProfileWarning, warnings_of

from .stand_in import StandIn

PATH = Path("t.csv")


def result(
    reference: str = "",
    slowdown: float = 1.0,
    lost: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    batches: tuple[tuple[int, int], ...] = (),
    **counts: int,
) -> ProfileResult:
    """A result with so many rows of a status or flag, and devices' batches made and rejected."""
    return ProfileResult(
        LookupTable(),
        StandIn().target,
        measured=30,
        kept=2,
        counts=counts,
        exclusions=Exclusions(dict.fromkeys(lost, lost[0]) if lost else {}, list(left_out)),
        speed=Speed(reference, slowdown),
        runs=tuple(Run("2026-01-01T00:00:00Z", "t", "1", 30, 1.0, n, r, 1.0) for n, r in batches),
    )


def warned(**words) -> dict[str, ProfileWarning]:
    return {warning.name: warning for warning in warnings_of(result(**words), PATH)}


def test_a_run_without_trouble_warns_of_nothing():
    assert warned(batches=((9, 0),)) == {}


@pytest.mark.parametrize("flag", ["interference", "unstable", "throttled", "drift"])
def test_rows_that_are_flagged_are_counted_and_can_be_measured_again(flag):
    (warning,) = warned(**{flag: 3}).values()
    assert warning.name == flag
    assert f"3 rows flagged {flag}" in warning.text()
    assert "--retry" in warning.remedy


def test_rows_without_a_latency_are_counted_by_status():
    (warning,) = warned(failed=2, unsupported=5).values()
    assert warning.text() == (
        "rows without a latency: 2 failed, 5 unsupported; hurricane table show t.csv"
    )


def test_rejected_batches_are_counted_over_all_devices():
    (warning,) = warned(batches=((9, 2), (6, 1), (5, 0))).values()
    assert "3 of 20 batches rejected" in warning.cause


@pytest.mark.parametrize(
    ("slowdown", "words", "names"),
    [
        (1.04, "4.0% slower", {"speed"}),
        (0.96, "4.0% faster", {"speed"}),
        (1.25, "25.0% slower", {"speed", "speed-change"}),
        (0.75, "25.0% faster", {"speed", "speed-change"}),
    ],
)
def test_a_speed_is_told_and_warned_of_where_it_is_more_than_a_clocks(slowdown, words, names):
    found = warned(reference="rows from before", slowdown=slowdown)
    assert set(found) == names
    assert words in found["speed"].cause
    assert "rows from before" in found["speed"].cause
    assert not found["speed"].remedy
    assert all(found[name].remedy for name in names - {"speed"})
    assert warned(slowdown=slowdown) == {}  # there is nothing to compare with


def test_devices_that_were_lost_or_differ_are_named():
    found = warned(lost=("a:1: it is gone",), left_out=("b:1: its baselines",))
    assert "a:1: it is gone" in found["lost-agent"].text()
    assert found["left-out"].text() == "left out, b:1: its baselines; give it a table of its own"
