"""Which rows of a plan a table holds, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..lookup_tables.cells import DOUBTFUL
from ..lookup_tables.table import LookupTable, Row, RowKey, Target
from .plan import PlannedRow
from .recorder import DEVICE_LOST

FAILED = ("failed", "timeout")
"""Statuses of rows that went wrong and may go well another time; ``unsupported`` is a fact about
the device."""


def missing_rows(
    rows: Sequence[PlannedRow], table: LookupTable, target: Target, retry: bool = False
) -> list[PlannedRow]:
    """Rows of a plan that a table does not hold yet, and those at which the device was lost.

    Args:
        rows: the plan.
        table: with its journal.
        target: whose rows count.
        retry: count rows as missing that hold no latency, or are flagged with one of `DOUBTFUL`.
    """
    there = _rows_there(rows, table, target)

    def is_doubtful(row: Row) -> bool:
        return not row.ok or not set(DOUBTFUL).isdisjoint(row.flag_words)

    return [
        row
        for row in rows
        if row not in there or _is_open(there[row]) or (retry and is_doubtful(there[row]))
    ]


def failed_rows(rows: Iterable[PlannedRow], table: LookupTable, target: Target) -> list[PlannedRow]:
    """Rows of a plan that a table holds, but that went wrong and stay so without `retry`.

    Args:
        rows: the plan.
        table: with its journal.
        target: whose rows count.
    """
    there = _rows_there(rows, table, target)
    return [r for r, found in there.items() if found.status in FAILED and not _is_open(found)]


def _is_open(row: Row) -> bool:
    """Whether the device was lost at a row, so often that one run gave it up.

    That may have been the port, the cable or heat: the next run finds out.
    """
    return row.status == "failed" and DEVICE_LOST in row.flag_words


def _rows_there(
    rows: Iterable[PlannedRow], table: LookupTable, target: Target
) -> dict[PlannedRow, Row]:
    """Rows of a plan that a table holds, in the order of the plan."""
    found = {row: table.get(RowKey(target, row.name, row.shape)) for row in rows}
    return {row: there for row, there in found.items() if there is not None}


def known_rows(
    rows: Sequence[PlannedRow], table: LookupTable, target: Target, missing: Sequence[PlannedRow]
) -> dict[PlannedRow, Row]:
    """Rows of the plan that are there with a latency, and stay."""
    todo = set(missing)
    there = _rows_there(rows, table, target)
    return {row: found for row, found in there.items() if row not in todo and found.ok}


def counts(rows: Sequence[PlannedRow], table: LookupTable, target: Target) -> Counter[str]:
    """How many rows of the plan hold no latency, by status, and are flagged, by flag."""
    found: Counter[str] = Counter()
    for row in _rows_there(rows, table, target).values():
        found.update(row.flag_words if row.ok else (row.status,))
    return found
