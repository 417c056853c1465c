"""Rows that ended without a latency, and why: a table holds no more than their status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..agents.errors import ErrorKind
from .outcomes import RowOutcome
from .plan import PlannedRow
from .timing.marginal import BELOW_NOISE


@dataclass(frozen=True)
class Failure:
    """A row that ended without a latency.

    Attributes:
        row: the plan's.
        status: in the table.
        kind: of what went wrong, as a flag has it.
        reason: what the device said.
    """

    row: PlannedRow
    status: str
    kind: str
    reason: str


def failure_of(outcome: RowOutcome, status: str) -> Failure:
    """What is told of a row that ended so."""
    if outcome.error is None:
        reason = "what it adds to the time of a graph is lost in the noise"
        return Failure(outcome.row, status, BELOW_NOISE, reason)
    return Failure(outcome.row, status, word_of(outcome.error.kind), str(outcome.error))


def word_of(kind: ErrorKind) -> str:
    """A kind of error as a flag."""
    return kind.name.lower().replace("_", "-")


def first_of_each_kind(failures: Iterable[Failure]) -> list[tuple[Failure, int]]:
    """The first failure of each kind, with how many there are."""
    found: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        found.setdefault((failure.status, failure.kind), []).append(failure)
    return [(same[0], len(same)) for same in found.values()]
