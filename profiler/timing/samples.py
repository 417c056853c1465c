"""Calls by series and batch, kept as they were timed.

A series is a graph, or one of several replicas of it. All series of a batch have as many visits
and calls, so that they are one array, and statistics are made over many series at once.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from .location import quiet_ms

S = TypeVar("S", bound=Hashable)


class SampleStore(Generic[S]):
    """Calls of series [visits, calls] in ms, batch by batch."""

    def __init__(self) -> None:
        self._rows: list[dict[S, int]] = []  # of each batch: where a series stands in its array
        self._times: list[np.ndarray] = []  # [series, visits, calls]
        self._columns: dict[S, int] = {}
        self._quiet: list[np.ndarray] = []  # of each batch, one for each of its series

    @property
    def batches(self) -> int:
        """How many there were."""
        return len(self._times)

    @property
    def series(self) -> Collection[S]:
        """All that were timed in a batch."""
        return self._columns.keys()

    def add(self, times_ms: Mapping[S, np.ndarray]) -> None:
        """Takes in a batch: [visits, calls] ms of each series, all of one shape."""
        self._rows.append({series: index for index, series in enumerate(times_ms)})
        times = [np.asarray(calls, float) for calls in times_ms.values()]
        stacked = np.stack(times) if times else np.empty((0, 1, 1))
        self._times.append(stacked)
        for one in times_ms:
            self._columns.setdefault(one, len(self._columns))
        series, visits, calls = stacked.shape
        self._quiet.append(quiet_ms(stacked.reshape(series, visits * calls), axis=1))

    def has(self, series: S, batch: int) -> bool:
        """Whether a series was timed in a batch."""
        return series in self._rows[batch]

    def calls(
        self, series: Sequence[S], batches: Sequence[int], slowdown: np.ndarray
    ) -> np.ndarray:
        """Calls of series in some batches, all of which hold all of them.

        Args:
            series: whose.
            batches: in which, at least one.
            slowdown: of every batch [batches]; is divided out.

        Returns:
            [series, visits, calls] in ms.
        """
        parts = [
            self._times[number][[self._rows[number][s] for s in series]] / slowdown[number]
            for number in batches
        ]
        return np.concatenate(parts, axis=1)

    def quiet_by_batch(self) -> np.ndarray:
        """The quiet time of every series in every batch, [batches, series] ms; NaN: not there."""
        times = np.full((len(self._rows), len(self._columns)), np.nan)
        for number, (rows, quiet) in enumerate(zip(self._rows, self._quiet, strict=True)):
            times[number, [self._columns[series] for series in rows]] = quiet
        return times
