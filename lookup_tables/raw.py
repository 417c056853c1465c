"""Raw estimates of a run, and how they become rows of a table.

A device's raw times are as on that device at slowdown 1 in that run. The run's drift fit, known
at its end, scales them all at once: to the speed of the device when it was quiet, or to that of a
reference by the graphs that both have timed. So a row is written down once, when it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..ops.shapes import LayerShape
from .cells import DRIFT, INTERFERENCE
from .spread import Spread, joined
from .table import VALUE_COLUMNS, Row, RowKey, TableError, Target, format_flags

MAX_STEADY_CHANGE = 0.1
"""Steady change of a device's speed in a run, as a share, from which on rows are flagged."""

ROWS_FROM_BEFORE = "rows from before"
"""Name of the reference where a table goes on at the speed of the rows that it holds."""

_SCALED = ("latency_ms", "ci_low_ms", "ci_high_ms", "call_ms")


@dataclass(frozen=True)
class RawRow:
    """A row as it was measured.

    Attributes:
        row: its latencies are raw; the timings of its own graph are missing.
        run: the `DeviceRun` that it is of; 0: none, and raw is as it shall be.
        slowdown: of the device meanwhile.
        graphs_ms: what its graphs with the operator take, raw, by digest.
    """

    row: Row
    run: int = 0
    slowdown: float = 1.0
    graphs_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopTimes:
    """Timings of a row's own graph, called alone in a loop, in ms."""

    operator: str
    shape: LayerShape
    cold_ms: float
    warm_ms: float
    p10_ms: float
    p90_ms: float
    device_ms: float | None = None

    def check(self, target: Target) -> None:
        """Raises TableError where no row of the target can hold these timings."""
        values: dict[str, Any] = {"latency_ms": self.cold_ms, "estimator": "loop"}
        self.complete(Row.of(target, self.operator, self.shape, status="ok", **values))

    def complete(self, row: Row) -> Row:
        """The row with these timings.

        Raises:
            TableError: no row can hold them.
        """
        call_ms = row.call_ms
        if not row.is_stem and row.latency_ms is not None:
            call_ms = max(self.cold_ms - row.latency_ms, 0.0)
        return replace(
            row,
            cold_ms=self.cold_ms,
            warm_ms=self.warm_ms,
            p10_ms=self.p10_ms,
            p90_ms=self.p90_ms,
            device_ms=self.device_ms,
            call_ms=call_ms,
        )


@dataclass(frozen=True)
class DeviceRun:
    """The drift fit of one device in a run.

    Attributes:
        run: its number, from 1.
        device: address of the agent.
        quiet_slowdown: that of the device when it was quiet.
        slowest_accepted: the highest slowdown of a batch that is used; None: not known.
        baselines_ms: what baselines take, raw, by digest.
        spread: what calls took beyond quiet times; quiet times in it are raw, too.
        steady_change: by how much the device got steadily slower, as a share.
    """

    run: int
    device: str
    quiet_slowdown: float
    slowest_accepted: float | None
    baselines_ms: Mapping[str, float]
    spread: Spread = field(default_factory=Spread)
    steady_change: float = 0.0


@dataclass(frozen=True)
class Reference:
    """Whose speed rows are given at.

    Attributes:
        name: in words.
        graphs_ms: what graphs took there, by digest.
    """

    name: str
    graphs_ms: Mapping[str, float]


Entry = RawRow | LoopTimes | DeviceRun | Reference


@dataclass(frozen=True)
class RawData:
    """Everything that a run has written down.

    Attributes:
        rows, loops: by identity.
        runs: by number.
        reference: None: rows are given at the speed of the device that has most of them.
    """

    rows: Mapping[RowKey, RawRow] = field(default_factory=dict)
    loops: Mapping[tuple[str, LayerShape], LoopTimes] = field(default_factory=dict)
    runs: Mapping[int, DeviceRun] = field(default_factory=dict)
    reference: Reference | None = None

    def with_entries(self, entries: Iterable[Entry]) -> RawData:
        """With further entries; later ones replace earlier ones of their identity."""
        rows, loops, runs = dict(self.rows), dict(self.loops), dict(self.runs)
        reference = self.reference
        for entry in entries:
            if isinstance(entry, RawRow):
                rows[entry.row.key] = entry
                loops.pop((entry.row.operator, entry.row.shape), None)  # of the row before it
            elif isinstance(entry, LoopTimes):
                loops[entry.operator, entry.shape] = entry
            elif isinstance(entry, DeviceRun):
                runs[entry.run] = entry
            else:
                reference = entry
        return RawData(rows, loops, runs, reference)

    def scales(self) -> dict[int, float]:
        """What each run's raw times are multiplied by."""
        reference_ms = self.reference.graphs_ms if self.reference else {}
        counts = dict.fromkeys(self.runs, 0)
        for raw in self.rows.values():
            if raw.run in counts and raw.row.ok:
                counts[raw.run] += 1
        if not reference_ms and self.runs:
            first = max(sorted(counts), key=lambda run: counts[run])
            quiet = self.runs[first].quiet_slowdown
            reference_ms = {d: ms * quiet for d, ms in self.runs[first].baselines_ms.items()}
        scales = {}
        for number, run in self.runs.items():
            ratio = _ratio(run.baselines_ms, reference_ms)
            scales[number] = run.quiet_slowdown if ratio is None else 1 / ratio
        return scales

    def table_rows(self, there: Mapping[RowKey, Row] | None = None) -> list[Row]:
        """Rows of a table, at its speed.

        Args:
            there: rows that the table holds, which may lack the timings of their own graphs.
        """
        scales, rows = self.scales(), []
        for raw in self.rows.values():
            row = self._scaled(raw, scales.get(raw.run, 1.0))
            rows.append(self._completed(row))
        for key, row in (there or {}).items():
            if key not in self.rows and (completed := self._completed(row)) != row:
                rows.append(completed)
        return rows

    def graphs_ms(self) -> dict[str, float]:
        """What graphs take at the table's speed, by digest; the first run's count."""
        scales = self.scales()
        found: dict[str, float] = {}
        for number in sorted(self.runs):
            for digest, ms in self.runs[number].baselines_ms.items():
                found.setdefault(digest, ms * scales[number])
        for raw in self.rows.values():
            scale = scales.get(raw.run, 1.0)
            found |= {digest: ms * scale for digest, ms in raw.graphs_ms.items()}
        if self.reference is not None and self.reference.name == ROWS_FROM_BEFORE:
            found |= self.reference.graphs_ms
        return found

    def spread(self) -> Spread | None:
        """What calls took beyond quiet times at the table's speed; None: not known."""
        scales, spreads = self.scales(), []
        for number, run in self.runs.items():
            scale, found = scales[number], run.spread
            networks = tuple(replace(n, quiet_ms=n.quiet_ms * scale) for n in found.networks)
            median, p90 = found.operator_median, found.operator_p90
            spreads.append(
                replace(
                    found,
                    networks=networks,
                    operator_median=None if median is None else median / scale,
                    operator_p90=None if p90 is None else p90 / scale,
                )
            )
        whole = joined(spreads)
        return whole if whole != Spread() else None

    def _scaled(self, raw: RawRow, scale: float) -> Row:
        row, run = raw.row, self.runs.get(raw.run)
        if not row.ok:
            return row
        flags = dict.fromkeys(row.flag_words)
        limit = run.slowest_accepted if run else None
        if limit is not None and raw.slowdown > limit:
            flags[INTERFERENCE] = None
        if run is not None and abs(run.steady_change) > MAX_STEADY_CHANGE:
            flags[DRIFT] = None
        values = {n: v * scale for n in _SCALED if (v := getattr(row, n)) is not None}
        try:
            return replace(row, flags=format_flags(flags), **values)
        except TableError:
            return no_latency(row, "failed", "out-of-range")

    def _completed(self, row: Row) -> Row:
        loop = self.loops.get((row.operator, row.shape))
        return loop.complete(row) if loop is not None and row.ok else row


def no_latency(row: Row, status: str, flag: str) -> Row:
    """The row without its values."""
    empty = {name: "" if name == "estimator" else None for name in VALUE_COLUMNS}
    return replace(row, status=status, flags=flag, compute_unit="", **empty)


def _ratio(times_ms: Mapping[str, float], reference_ms: Mapping[str, float]) -> float | None:
    """How long a device takes for what takes 1 at the reference; the median over common graphs."""
    common = [ms / reference_ms[key] for key, ms in times_ms.items() if key in reference_ms]
    return float(np.median(common)) if common else None
