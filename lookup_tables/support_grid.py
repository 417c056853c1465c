"""How `hurricane table show` shows a support report."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..ops.shapes import LayerShape
from .support import SupportReport, SupportRow, SupportSummary, reason_lines
from .table import count_and_example

if TYPE_CHECKING:
    from rich.console import Console

_GOOD_DB, _FAIR_DB = 30.0, 20.0
"""SQNR from which a cell is green, and yellow: 8 bits give some 35 to 40 dB."""

MARKS = {"unsupported": "unsup.", "failed": "failed", "timeout": "timeout"}
"""What a cell shows of a row that is not ok, by its status; in the grid of latencies as well."""


def show_support(console: Console, report: SupportReport) -> None:
    """Prints a summary and a grid for each target, operators down and layer shapes across."""
    from rich.markup import escape

    for target in report.targets():
        rows = report.of(target).rows
        console.print(f"[bold]{escape(str(target))}[/]: {escape(SupportSummary.of(rows).text())}")
        body = [row for row in rows if not (row.is_stem or row.is_head)]
        if body:
            console.print(_grid(body))
        for row in rows:
            if row.is_stem or row.is_head:
                console.print(f"{row.operator} at {row.shape}: {_cell(row)}")
        for flag in sorted({word for row in rows for word in row.flag_words}):
            flagged = [row for row in rows if flag in row.flag_words]
            mark = "* " if any(row.falls_back for row in flagged) else ""
            console.print(f"{mark}{escape(flag)}: {count_and_example(flagged)}")
        for line in reason_lines(rows):
            console.print(escape(line))


def support_facts(report: SupportReport) -> dict[str, Any]:
    """What ``--json`` prints of a report."""
    return {
        "kind": "support",
        "path": str(report.path) if report.path is not None else None,
        "sha256": report.sha256(),
        "rows_total": len(report),
        "targets": [
            {
                "name": target.name,
                **asdict(target),
                **SupportSummary.of(report.of(target).rows).to_dict(),
            }
            for target in report.targets()
        ],
    }


def _grid(rows: list[SupportRow]) -> Any:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    grid.add_column("SQNR in dB", no_wrap=True)
    shapes = list(dict.fromkeys(row.shape for row in rows))
    for shape in shapes:
        grid.add_column(shape_heading(shape), justify="right", no_wrap=True)
    cells = {(row.operator, row.shape): row for row in rows}
    for name in dict.fromkeys(row.operator for row in rows):
        grid.add_row(name, *(_cell(cells.get((name, shape))) for shape in shapes))
    return grid


def shape_heading(shape: LayerShape) -> str:
    """A layer shape on top of a column, in two lines."""
    return (
        f"{shape.height}x{shape.width}x{shape.in_channels}\n→{shape.out_channels} s{shape.stride}"
    )


def _cell(row: SupportRow | None) -> str:
    """A row's SQNR, or ``ok`` where there is none; a star: it falls back."""
    if row is None:
        return "[dim]·[/]"
    if not row.ok:
        return f"[bold red]{MARKS[row.status]}[/]"
    star = "*" if row.falls_back else ""
    exactness = row.exactness_db
    if exactness is None:
        return f"ok{star}"
    text = "exact" if exactness == math.inf else f"{exactness:.1f}"
    colour = "green" if exactness >= _GOOD_DB else "yellow" if exactness >= _FAIR_DB else "red"
    return f"[{colour}]{text}{star}[/]"
