"""Comparing two tables row by row: what changed, by how much, and beyond which interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from ..ops.errors import BadRequest
from .table import LookupTable, Row, Target, describe

MATCHES = ("version", "exact", "shape")
"""How rows of two tables find each other: on target, operator, shape and batch, where the
target counts without the runtime's version, with it, or not at all."""


@dataclass(frozen=True)
class RowPair:
    """The same cell in two tables.

    Attributes:
        first: the row in the first table.
        second: the row in the second.
    """

    first: Row
    second: Row

    @property
    def ratio(self) -> float | None:
        """Second latency over the first; None unless both are ok."""
        if self.first.latency_ms is None or self.second.latency_ms is None:
            return None
        return self.second.latency_ms / self.first.latency_ms

    @property
    def apart(self) -> bool:
        """Whether both have confidence intervals and these do not meet."""
        a, b = self.first, self.second
        if a.ci_low_ms is None or a.ci_high_ms is None:
            return False
        if b.ci_low_ms is None or b.ci_high_ms is None:
            return False
        return a.ci_high_ms < b.ci_low_ms or b.ci_high_ms < a.ci_low_ms


@dataclass(frozen=True)
class TableDiff:
    """How a second table differs from a first.

    Attributes:
        pairs: cells that both have, in the first table's order.
        only_first: rows that the second table lacks.
        only_second: rows that the first table lacks.
    """

    pairs: tuple[RowPair, ...]
    only_first: tuple[Row, ...]
    only_second: tuple[Row, ...]

    @property
    def compared(self) -> tuple[RowPair, ...]:
        """Pairs that are ok in both tables."""
        return tuple(pair for pair in self.pairs if pair.ratio is not None)

    @property
    def status_changes(self) -> tuple[RowPair, ...]:
        return tuple(pair for pair in self.pairs if pair.first.status != pair.second.status)

    @property
    def median_ratio(self) -> float | None:
        """Median of second over first; None where nothing is compared."""
        ratios = self._ratios()
        return median(ratios) if ratios else None

    @property
    def within_95(self) -> float | None:
        """95% of the rows differ by at most this fraction, in either direction (0.04: by 4%)."""
        return _within_95(self._ratios())

    @property
    def within_95_of_median(self) -> float | None:
        """The same once the median ratio is divided out: a device that is slower as a whole."""
        ratios = self._ratios()
        middle = median(ratios) if ratios else 1.0
        return _within_95([ratio / middle for ratio in ratios])

    @property
    def apart(self) -> int:
        """Number of rows whose confidence intervals do not meet."""
        return sum(pair.apart for pair in self.pairs)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "compared": len(self.compared),
            "median_ratio": self.median_ratio,
            "within_95": self.within_95,
            "within_95_of_median": self.within_95_of_median,
            "intervals_apart": self.apart,
            "status_changes": len(self.status_changes),
            "only_first": len(self.only_first),
            "only_second": len(self.only_second),
        }

    def _ratios(self) -> list[float]:
        return [ratio for pair in self.pairs if (ratio := pair.ratio) is not None]


def _within_95(ratios: Sequence[float]) -> float | None:
    if not ratios:
        return None
    return float(np.quantile([max(ratio, 1 / ratio) - 1 for ratio in ratios], 0.95))


def compare(first: LookupTable, second: LookupTable, match: str = "version") -> TableDiff:
    """Compares two tables.

    Args:
        first: the table that ratios are over.
        second: the other.
        match: one of `MATCHES`.

    Raises:
        BadRequest: with this match, a table has two rows that would be the same.
    """
    a, b = _by_cell(first, match), _by_cell(second, match)
    return TableDiff(
        pairs=tuple(RowPair(row, b[cell]) for cell, row in a.items() if cell in b),
        only_first=tuple(row for cell, row in a.items() if cell not in b),
        only_second=tuple(row for cell, row in b.items() if cell not in a),
    )


def _by_cell(table: Iterable[Row], match: str) -> dict[tuple[Any, ...], Row]:
    cells: dict[tuple[Any, ...], Row] = {}
    for row in table:
        cell = (_matched(row.target, match), row.operator, row.shape, row.batch)
        if cell in cells:
            raise BadRequest(
                f"matched by {match}, {describe(row)} meets {describe(cells[cell])} of the same "
                "table; use --match exact, or --target to take one target"
            )
        cells[cell] = row
    return cells


def _matched(target: Target, match: str) -> Target | None:
    if match not in MATCHES:
        raise BadRequest(f"match {match!r} is not one of {', '.join(MATCHES)}")
    if match == "shape":
        return None
    return replace(target, runtime_version="") if match == "version" else target
