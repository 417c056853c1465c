"""What a run warns of: every warning with its cause and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .failures import first_of_each_kind

if TYPE_CHECKING:
    from ..lookup_tables.spread import Spread
    from .profile import ProfileResult

MAX_CLOCK_CHANGE = 0.15
"""By how much, as a share, a device may be slower or faster than its reference by its clock."""


MAX_SPREAD = 0.05
"""Standard deviation, as a share, of a device's speed over the batches, or of networks' ratios of
median to quiet time, beyond which predicted medians are in doubt."""


@dataclass(frozen=True)
class ProfileWarning:
    """Something that the reader of a table must know.

    Attributes:
        name: of the kind, for programs.
        cause: what was seen.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    cause: str
    remedy: str = ""

    def text(self) -> str:
        """Cause and remedy in one line."""
        return f"{self.cause}; {self.remedy}" if self.remedy else self.cause


def warnings_of(result: ProfileResult, path: Path) -> list[ProfileWarning]:
    """Warnings about a finished table.

    Args:
        result: of the run.
        path: the table.
    """
    return [*_of_speed(result), *_of_rows(result, path), *_of_devices(result)]


def doubts_of_predictions(result: ProfileResult, spread: Spread) -> list[str]:
    """Why medians and percentiles that are predicted from a table may not hold; empty: they may.

    Args:
        result: of the run.
        spread: what calls took beyond quiet times.
    """
    doubts = []
    if result.counts.get("drift"):
        doubts.append("the device got steadily slower or faster")
    batches = sum(run.batches for run in result.runs)
    rejected = sum(run.batches_rejected for run in result.runs)
    if 2 * rejected > batches:
        doubts.append(f"{rejected} of {batches} batches were rejected")
    if spread.drift > MAX_SPREAD:
        doubts.append(f"the device's speed varied by {spread.drift:.1%}")
    if (scatter := spread.scatter("median")) > MAX_SPREAD:
        doubts.append(f"medians over quiet times differ by {scatter:.1%} between networks")
    for name, change in (("medians", spread.median_change), ("percentiles", spread.p90_change)):
        if change > MAX_SPREAD:
            doubts.append(f"{name} of networks changed by {change:.1%} while they were timed")
    return doubts


def _of_speed(result: ProfileResult) -> Iterator[ProfileWarning]:
    if not result.speed.reference:
        return
    change = result.speed.slowdown - 1
    words = f"device {abs(change):.1%} {'slower' if change > 0 else 'faster'}"
    yield ProfileWarning(
        "speed", f"{words} than for the {result.speed.reference} (drift-corrected)"
    )
    if abs(change) > MAX_CLOCK_CHANGE:
        yield ProfileWarning(
            "speed-change",
            f"{words}: more than a clock wanders",
            "look at load, cooling and governor, or make a table without the reference",
        )


def _of_rows(result: ProfileResult, path: Path) -> Iterator[ProfileWarning]:
    counts = result.counts
    statuses = [s for s in ("failed", "timeout", "unsupported") if counts.get(s)]
    if statuses:
        words = ", ".join(f"{counts[status]} {status}" for status in statuses)
        yield ProfileWarning(
            "no-latency", f"rows without a latency: {words}", f"hurricane table show {path}"
        )
    for first, count in first_of_each_kind(result.failures):
        row = first.row
        rows = "1 row" if count == 1 else f"{count} rows"
        cause = f"{rows} {first.status} ({first.kind}), the first {row.name} at {row.shape}"
        yield ProfileWarning(first.kind, f"{cause}: {first.reason}")
    for flag, cause, remedy in _FLAGS:
        if count := counts.get(flag):
            yield ProfileWarning(flag, f"{count} rows flagged {flag}: {cause}", remedy)
    rejected = sum(run.batches_rejected for run in result.runs)
    if rejected:
        batches = sum(run.batches for run in result.runs)
        yield ProfileWarning(
            "rejected-batches",
            f"{rejected} of {batches} batches rejected for interference, and repeated",
            "a quiet device takes less time",
        )


def _of_devices(result: ProfileResult) -> Iterator[ProfileWarning]:
    for words in result.exclusions.lost.values():
        yield ProfileWarning("lost-agent", f"an agent was lost, the others did its work: {words}")
    for words in result.exclusions.left_out:
        yield ProfileWarning("left-out", f"left out, {words}", "give it a table of its own")


_FLAGS = (
    (
        "interference",
        "measured while the device was much slower than otherwise",
        "end what else runs there, and --retry",
    ),
    ("unstable", "intervals wider than --precision asks for", "--retry, or more --rounds"),
    (
        "drift",
        "measured while the device got steadily slower or faster",
        "wait until its clock and heat are steady, and --retry",
    ),
    (
        "throttled",
        "measured while the device said that it throttles, or slower after it had",
        "cool it and --retry",
    ),
)
"""Flags of rows that are counted, with cause and remedy."""
