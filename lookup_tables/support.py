"""The support report: which operators a target takes, where they run, and how exactly.

Every column is explained in `docs/table-format.md`. Like a row of a table, a `SupportRow` that
exists is valid and holds exactly what the file will hold.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..ops.atomic import locked_folder, write_atomically
from ..ops.errors import BadRequest, HurricaneError
from ..ops.shapes import LayerShape
from .cells import (
    FALLBACK,
    FileKind,
    check_choice,
    check_flags,
    check_operator,
    check_sha256,
    check_text,
    check_time,
    fail,
    has_flag,
    header_names,
    header_problem,
    number,
    parse_line,
    to_line,
    whole,
)
from .table import (
    SHAPE_COLUMNS,
    STATUSES,
    Target,
    TargetRow,
    count_and_example,
    identity_of,
    is_support_header,
    matches_patterns,
    matches_target,
    order_of,
)

MAX_REASON = 300
"""Characters of a reason; runtimes say more, and repeat themselves."""

LISTED_REASONS = 20
"""Different reasons that are listed before it is said how many more there are."""

_WHAT = "support report"


class SupportKey(NamedTuple):
    """A row's identity: no report holds two rows with the same."""

    target: Target
    operator: str
    shape: LayerShape


@dataclass(frozen=True)
class SupportRow(TargetRow):
    """One line of a report; the attributes are its columns, in order.

    Attributes:
        status: one of `lookup_tables.table.STATUSES`.
        compute_unit: where the runtime says that it ran.
        flags: of the runtime, such as ``fallback:cpu``.
        relative_error: largest |Δ| over largest |reference|, against fp32; None: not known.
        sqnr_db: signal power over error power, in dB; None: not known, or no error at all.
        reason: why it is not ok, or why there are no numbers.
        checked_at: when, with the zone.

    Raises:
        TableError: a value breaks the format; the message names the column.
    """

    status: str
    compute_unit: str = ""
    flags: str = ""
    relative_error: float | None = None
    sqnr_db: float | None = None
    reason: str = ""

    graph_sha256: str = ""
    artifact_sha256: str = ""
    converter: str = ""
    calibration: str = ""
    agent_version: str = ""
    checked_at: str = ""

    def __post_init__(self) -> None:
        for name in SHAPE_COLUMNS:
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in _NUMBERS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number(name, value))
        object.__setattr__(self, "threads", self.target.threads)
        check_operator(self.operator)
        check_choice("status", self.status, STATUSES)
        check_text("compute_unit", self.compute_unit)
        check_flags(self.flags)
        self._check_numbers()
        for name in ("graph_sha256", "artifact_sha256"):
            check_sha256(name, getattr(self, name))
        for name in ("converter", "calibration", "agent_version"):
            check_text(name, getattr(self, name))
        if self.checked_at:
            check_time("checked_at", self.checked_at)

    @classmethod
    def of(cls, target: Target, operator: str, shape: LayerShape, **values: Any) -> SupportRow:
        """A row from its identity in parts and the remaining columns by name."""
        return cls(**identity_of(target, operator, shape), **values)

    @classmethod
    def from_line(cls, line: str, columns: Sequence[str] | None = None) -> SupportRow:
        """Reads one line of CSV (with or without its line end).

        Raises:
            TableError: too few or too many cells, or a cell breaks the format.
        """
        return cls(**parse_line(line, columns or SUPPORT_COLUMNS, _WHOLES, _NUMBERS))

    @property
    def key(self) -> SupportKey:
        return SupportKey(self.target, self.operator, self.shape)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def flag_words(self) -> tuple[str, ...]:
        return tuple(self.flags.split(";")) if self.flags else ()

    @property
    def falls_back(self) -> bool:
        """Whether some of it ran on another unit than the one that was asked for."""
        return has_flag(self.flag_words, FALLBACK)

    @property
    def exactness_db(self) -> float | None:
        """The SQNR in dB, infinite where there is no error at all; None: not known."""
        return math.inf if self.relative_error == 0 else self.sqnr_db

    def _check_numbers(self) -> None:
        check_text("reason", self.reason)
        if len(self.reason) > MAX_REASON:
            fail(f"reason has {len(self.reason)} characters; it has at most {MAX_REASON}")
        error, sqnr = self.relative_error, self.sqnr_db
        if not self.ok:
            if error is not None or sqnr is not None:
                name = "relative_error" if error is not None else "sqnr_db"
                fail(f"{name} is filled though status is {self.status}; only ok rows have it")
            if not self.reason:
                fail(f"reason is empty though status is {self.status}; say why")
            return
        if error is None:
            if sqnr is not None:
                fail("sqnr_db is filled and relative_error is empty; both are there or none")
            if not self.reason:
                fail("reason is empty though relative_error is; say why there is no number")
            return
        if error < 0:
            fail(f"relative_error is {error:g}; it is a fraction of at least 0")
        if (sqnr is None) != (error == 0):
            fail("sqnr_db is empty where relative_error is 0, and only there")


SUPPORT_COLUMNS = tuple(f.name for f in fields(SupportRow))
"""The header of a report."""

_WHOLES = ("threads", *SHAPE_COLUMNS)
_NUMBERS = ("relative_error", "sqnr_db")


class SupportReport:
    """Rows with different identities, in the one order in which they are written.

    Args:
        rows: in any order; of equal identities the last one stays.
        path: the file they come from, for messages.
    """

    def __init__(self, rows: Iterable[SupportRow] = (), path: str | Path | None = None) -> None:
        known = {row.key: row for row in rows}
        self.rows: tuple[SupportRow, ...] = tuple(sorted(known.values(), key=_order))
        self.path = Path(path) if path is not None else None

    @classmethod
    def load(cls, path: str | Path) -> SupportReport:
        """Reads and validates a report.

        Raises:
            TableError: there is no such file, or it breaks the format; the message names
                the first wrong line, and `problems` all of them.
        """
        return cls(_FILE.read(path), path)

    def save(self, path: str | Path) -> None:
        """Writes the report atomically.

        Raises:
            HurricaneError: the file cannot be written.
        """
        write_atomically(path, self.to_csv().encode())

    @classmethod
    def update(cls, path: str | Path, rows: Iterable[SupportRow]) -> None:
        """Puts rows into a file as it is by now, in place of those of equal identity.

        Others that do so at the same time wait. Without rows nothing is written: it is told
        whether it could be.

        Raises:
            TableError: the file that is there breaks the format.
            HurricaneError: the file cannot be written.
        """
        found = list(rows)
        with locked_folder(path):
            report = cls.load(path) if os.path.lexists(path) else cls()
            if found:
                report.with_rows(found).save(path)
            elif not os.access(os.path.dirname(os.path.realpath(path)), os.W_OK):
                raise HurricaneError(f"cannot write {path}: its folder may not be written to")

    def to_csv(self) -> str:
        """The canonical text of the report."""
        lines = (to_line([getattr(row, name) for name in SUPPORT_COLUMNS]) for row in self.rows)
        return to_line(SUPPORT_COLUMNS) + "".join(lines)

    def sha256(self) -> str:
        """Digest of the canonical bytes: equal reports have equal digests."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def targets(self) -> tuple[Target, ...]:
        """The targets that have rows, sorted."""
        return tuple(dict.fromkeys(row.target for row in self.rows))

    def of(self, target: Target) -> SupportReport:
        """The rows of one target."""
        return SupportReport((row for row in self.rows if row.target == target), self.path)

    def select(self, target: str | None = None, operators: str | None = None) -> SupportReport:
        """The rows that fulfil both conditions.

        Args:
            target: a name as `LookupTable.target` takes it; all targets that match.
            operators: comma-separated names or shell patterns.

        Raises:
            BadRequest: there are none.
        """
        rows = [
            row
            for row in self.rows
            if (target is None or matches_target(row.target, target))
            and matches_patterns(row.operator, operators)
        ]
        if not rows:
            have = ", ".join(one.name for one in self.targets()) or "nothing"
            raise BadRequest(f"{self._name} has no rows that match; it has {have}")
        return SupportReport(rows, self.path)

    def with_rows(self, rows: Iterable[SupportRow]) -> SupportReport:
        """A report with these rows too; they replace those of equal identity."""
        return SupportReport((*self.rows, *rows), self.path)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def _name(self) -> str:
        return str(self.path) if self.path is not None else "the report"


@dataclass(frozen=True)
class SupportSummary:
    """What rows come to.

    Attributes:
        rows: how many.
        statuses: how many of each status that occurs.
        falls_back: how many of the ok ones ran, wholly or in part, on another unit.
        worst: the row of the lowest SQNR; None: no row has one.
        median_db: the median SQNR; infinite where most rows have no error; None: not known.
    """

    rows: int
    statuses: dict[str, int]
    falls_back: int
    worst: SupportRow | None
    median_db: float | None

    @classmethod
    def of(cls, rows: Sequence[SupportRow]) -> SupportSummary:
        """Counts rows."""
        found = [row.status for row in rows]
        known = [(row.exactness_db, row) for row in rows if row.exactness_db is not None]
        known.sort(key=lambda pair: pair[0])
        values = [db for db, _ in known]
        # Of an even number the lower one: a mean with infinity tells nothing.
        median_db = values[(len(values) - 1) // 2] if values else None
        return cls(
            len(rows),
            {status: found.count(status) for status in STATUSES if status in found},
            sum(row.ok and row.falls_back for row in rows),
            known[0][1] if known else None,
            median_db,
        )

    def text(self) -> str:
        """In words, for one target."""
        parts = [f"{self.statuses.get('ok', 0)} of {self.rows} supported"]
        parts += [f"{self.falls_back} of them fall back"] if self.falls_back else []
        parts += [f"{count} {name}" for name, count in self.statuses.items() if name != "ok"]
        words = ", ".join(parts)
        if self.worst is None:
            return f"{words}; no numerical check"
        if self.worst.exactness_db == math.inf:
            return f"{words}; no error at all against fp32"
        worst = f"{decibels(self.worst.exactness_db)} ({self.worst.operator} at {self.worst.shape})"
        return f"{words}; SQNR worst {worst}, median {decibels(self.median_db)}"

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``; without an error at all the SQNR is null, and `relative_error` 0."""
        worst = self.worst
        return {
            "rows": self.rows,
            "statuses": self.statuses,
            "falls_back": self.falls_back,
            "worst_sqnr_db": worst.sqnr_db if worst else None,
            "worst_operator": worst.operator if worst else None,
            "worst_shape": str(worst.shape) if worst else None,
            "median_sqnr_db": None if self.median_db == math.inf else self.median_db,
        }


def decibels(value: float | None) -> str:
    """An SQNR in words."""
    if value is None:
        return "unknown"
    return "exact" if value == math.inf else f"{value:.1f} dB"


def reason_lines(rows: Sequence[SupportRow]) -> list[str]:
    """Why rows are not ok or have no numbers: each reason once, the commonest first."""
    groups: dict[tuple[str, str], list[SupportRow]] = {}
    for row in rows:
        if row.reason:
            groups.setdefault((row.status, row.reason), []).append(row)
    ranked = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = []
    for (status, reason), group in ranked[:LISTED_REASONS]:
        said = reason if status == "ok" else f"{status}: {reason}"
        lines.append(f"{count_and_example(group)}: {said}")
    if len(ranked) > LISTED_REASONS:
        lines.append(f"and {len(ranked) - LISTED_REASONS} other reasons")
    return lines


def describe_support(row: SupportRow) -> str:
    """A row's identity in words, for messages."""
    return f"{row.operator} at {row.shape} on {row.target}"


def is_support_report(path: str | Path) -> bool:
    """Whether a file is one by its header; what cannot be read is none."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            line = file.readline(_LONGEST_HEADER).decode("utf-8-sig")
    except (OSError, ValueError):
        return False
    return is_support_header(header_names(line.rstrip("\n")))


def _header_problem(names: tuple[str, ...]) -> str | None:
    if "latency_ms" in names and "sqnr_db" not in names:
        return "this is a lookup table; a support report is written by hurricane support"
    return header_problem(names, SUPPORT_COLUMNS, _WHAT)


def _order(row: SupportRow) -> tuple[Any, ...]:
    return order_of(row.target, row.operator, row.shape)


_LONGEST_HEADER = 10_000
_FILE = FileKind(
    _WHAT,
    "hurricane support",
    _header_problem,
    SupportRow.from_line,
    lambda row: row.key,
    describe_support,
)
