"""Tables of earlier versions, and what lies beside them, in today's words and formats."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest
from .baselines import BASELINES
from .calibration import Calibration, load_calibrations, replace_calibrations
from .cells import INTERFERENCE, to_line
from .journal import journal_path
from .runs import load_runs, save_runs
from .shipped import open_table
from .sidecar import Sidecar
from .spread import SPREADS
from .table import EARLIER_COLUMNS, LookupTable, Row, Target, format_flags

SIDECARS: tuple[Sidecar[Any], ...] = (BASELINES, SPREADS)
"""What lies beside a table for each of its targets."""

RENAMED_FLAGS = {"disturbed": INTERFERENCE}
"""Flags of earlier tables, and what they are called now. Estimators kept their names."""


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        table: as it now is on the disk.
        renamed: rows of which a flag has another name now.
        beside: names of what lies beside the table.
    """

    table: LookupTable
    renamed: int
    beside: tuple[str, ...]


def convert_table(source: str | Path, output: str | Path) -> Conversion:
    """Writes a table as this version does; its values stay.

    Everything is read before anything is written, and the table is written last.

    Args:
        source: a table of this or an earlier version, by path or name.
        output: may be the same file.

    Raises:
        BadRequest: the table, or a file beside it, breaks its format, or its run is unfinished.
    """
    folder = Path(output).parent
    if not folder.is_dir():
        raise BadRequest(f"cannot write {output}: the folder {folder} does not exist")
    table = open_table(source)
    there = table.path or Path(source)
    for path in (there, output):
        if journal_path(path).exists():
            raise BadRequest(
                f"{journal_path(path)} is of a run that did not finish; finish it with the version "
                "that began it, or delete the journal"
            )
    converted = LookupTable(map(_renamed, table.rows), output)
    entries: dict[Sidecar[Any], dict[Target, Any]] = {s: s.load(there) for s in SIDECARS}
    calibrations = [_moved(c, table, converted) for c in load_calibrations(there)]
    runs = load_runs(there)
    for sidecar, values in entries.items():
        sidecar.replace(output, values)
    replace_calibrations(output, calibrations)
    save_runs(output, runs)
    converted.save(output)
    named = {s.name: bool(values) for s, values in entries.items()}
    named |= {"calibrations": bool(calibrations), "runs": bool(runs)}
    changed = sum(a != b for a, b in zip(table.rows, converted.rows, strict=True))
    return Conversion(converted, changed, tuple(name for name, found in named.items() if found))


def _renamed(row: Row) -> Row:
    if set(RENAMED_FLAGS).isdisjoint(row.flag_words):
        return row
    return replace(
        row, flags=format_flags(RENAMED_FLAGS.get(word, word) for word in row.flag_words)
    )


def _moved(calibration: Calibration, table: LookupTable, converted: LookupTable) -> Calibration:
    """A calibration of rows of the table, as one of the same rows converted."""
    rows = table.select(calibration.target)
    if calibration.rows_sha256 not in (rows.sha256(), _earlier_sha256(rows)):
        return calibration
    return replace(calibration, rows_sha256=converted.select(calibration.target).sha256())


def _earlier_sha256(table: LookupTable) -> str:
    """The digest of the table's bytes as version 0.1.0 wrote them."""
    lines = [to_line([getattr(row, name) for name in EARLIER_COLUMNS]) for row in table.rows]
    header = ",".join(EARLIER_COLUMNS) + "\n"
    return hashlib.sha256((header + "".join(lines)).encode()).hexdigest()
