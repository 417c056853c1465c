"""Cells and lines of our CSV files: what they may hold, how they are written, read and refused."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from numbers import Integral
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from ..ops.errors import BadRequest
from ..ops.files import MissingFile, read_bytes

SIGNIFICANT_DIGITS = 6
"""Digits kept of every number: a millionth is far below any retest, and diffs stay small."""

MAX_COUNT = 2**63 - 1
"""What pandas and numpy hold as a whole number."""

MAX_CELL = 2_000
"""Characters of a cell; options of a runtime are the longest, with some hundred."""

FALLBACK = "fallback"
"""Kind of the flags that say that a graph, or some of its nodes, ran on another unit."""

INTERFERENCE = "interference"
"""Flag of rows that were measured while the device was much slower than otherwise, or other work
took its processor; the slowdown is divided out like any other."""

UNSTABLE = "unstable"
"""Flag of rows whose interval is still wider than asked for after all the rounds."""

THROTTLED = "throttled"
"""Flag of rows that were measured while the device said that it throttles, or that were slower
after it had."""

DRIFT = "drift"
"""Flag of rows of a device that got steadily slower or faster meanwhile: how fast it was at rest is
not known."""

DOUBTFUL = (INTERFERENCE, UNSTABLE, THROTTLED, DRIFT)
"""Flags of rows that another measurement may do better."""

_WORD = re.compile(r"[a-z][a-z0-9_.]*")
_OPERATOR = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]*")
_FLAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:=/+-]*")
_WHOLE = re.compile(r"-?[0-9]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")

R = TypeVar("R")


class TableError(BadRequest):
    """A table or a row of it is not valid.

    Attributes:
        problems: one text for each line that is wrong.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


def fail(message: str) -> NoReturn:
    """Raises TableError."""
    raise TableError(message)


# Values


def check_text(name: str, value: Any, required: bool = False) -> None:
    """Refuses what is no printable text, or none at all where some is required."""
    if not isinstance(value, str) or not value.isprintable() or value.strip() != value:
        fail(f"{name} is {value!r}; it is printable text without spaces around it")
    if required and not value:
        fail(f"{name} is empty")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses what is not among the allowed ones."""
    if value not in allowed:
        fail(f"{name} is {value!r}; it is one of {', '.join(allowed)}")


def check_word(name: str, value: Any) -> None:
    """Refuses what is no word, such as a runtime's name."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        fail(f"{name} is {value!r}; it is a word of lower-case letters, digits, '_' and '.'")


def check_operator(value: Any) -> None:
    """Refuses what cannot be an operator's name."""
    if not isinstance(value, str) or not _OPERATOR.fullmatch(value):
        fail(f"operator is {value!r}; a name starts with a letter and has no spaces")


def check_flags(text: str) -> None:
    """Refuses flags that are no different words with ``;`` between them."""
    if text:
        words = text.split(";")
        if not all(_FLAG.fullmatch(word) for word in words) or len(set(words)) < len(words):
            fail(f"flags is {text!r}; write different words with ';' between them")


def has_flag(words: Iterable[str], kind: str) -> bool:
    """Whether a flag is among words: ``fallback`` finds ``fallback:cpu`` as well."""
    return any(word.partition(":")[0] == kind or word == kind for word in words)


def check_sha256(name: str, digest: str) -> None:
    """Refuses what is neither empty nor a digest."""
    if digest and not _SHA256.fullmatch(digest):
        fail(f"{name} is {digest!r}; it has 64 hexadecimal digits in lower case")


def check_time(name: str, text: str) -> None:
    """Refuses what is no time with its zone."""
    try:
        known = datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        known = False
    if not known:
        fail(f"{name} is {text!r}; write it as 2026-01-31T12:00:00+00:00, with the zone")


def whole(name: str, value: Any, minimum: int = 1) -> int:
    """The value as a whole number, if it is one."""
    is_whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not is_whole or isinstance(value, bool) or value < minimum:
        fail(f"{name} is {value!r}; it is a whole number of at least {minimum}")
    if int(value) > MAX_COUNT:
        fail(f"{name} is out of range; it is at most {MAX_COUNT}")
    return int(value)


def number(name: str, value: Any) -> float:
    """The value as a number of `SIGNIFICANT_DIGITS`, if it is a finite one."""
    if isinstance(value, bool | str) or not _finite(value):
        fail(f"{name} is {value!r}; it is a finite number, or empty where there is none")
    return float(f"{float(value):.{SIGNIFICANT_DIGITS}g}") + 0.0  # no negative zero


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):  # of another type; a whole number beyond all floats
        return False


# Lines


def to_line(cells: Sequence[Any]) -> str:
    """Values as one line of CSV, with its line end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in cells])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else str(value)


def parse_line(
    line: str,
    columns: Sequence[str],
    wholes: Sequence[str],
    numbers: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Reads one line of CSV (with or without its line end).

    Args:
        line: of the file.
        columns: the file's header.
        wholes, numbers: the columns with whole numbers, and with numbers; the others hold text.
        optional: whole numbers that may be empty; other numbers always may.

    Returns:
        The values by column; None for an empty number.

    Raises:
        TableError: too few or too many cells, or a cell is not what it is to be.
    """
    cells = _split(line.rstrip("\r\n"))
    if cells == [""]:
        fail("is an empty line; take it out")
    if len(cells) != len(columns):
        problem = "cut off?" if len(cells) < len(columns) else "a comma too many?"
        fail(f"has {len(cells)} cells where the header has {len(columns)} ({problem})")
    values: dict[str, Any] = dict(zip(columns, cells, strict=True))
    for name, cell in values.items():
        if len(cell) > MAX_CELL:
            fail(f"{name} has {len(cell):,} characters; a cell has at most {MAX_CELL:,}")
    for name in wholes:
        values[name] = _parse_whole(name, values[name], name in optional)
    for name in numbers:
        values[name] = _parse_number(name, values[name])
    return values


def _parse_whole(name: str, cell: str, optional: bool) -> int | None:
    if cell == "":
        if optional:
            return None
        fail(f"{name} is empty")
    if not _WHOLE.fullmatch(cell):
        fail(f"{name} is {cell!r}; it is a whole number")
    return int(cell)


def _parse_number(name: str, cell: str) -> float | None:
    if cell == "":
        return None
    try:
        if "_" in cell or cell.strip() != cell:
            raise ValueError(cell)
        return float(cell)
    except ValueError:
        fail(f"{name} is {cell!r}; it is a number with a decimal point, without its unit")


def _split(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        fail(f"its quotes do not match ({error})")


# Files


@dataclass(frozen=True)
class FileKind(Generic[R]):
    """One kind of our CSV files.

    Attributes:
        what: its name in messages.
        filled_by: the command that makes one, for a file that is not there.
        header_problem: what is wrong with a header; None: nothing.
        parse: from a line and the header to a row; raises TableError.
        key: a row's identity, which no file holds twice.
        describe: a row's identity in words.
    """

    what: str
    filled_by: str
    header_problem: Callable[[tuple[str, ...]], str | None]
    parse: Callable[[str, tuple[str, ...]], R]
    key: Callable[[R], Hashable]
    describe: Callable[[R], str]

    def read(self, path: str | Path) -> list[R]:
        """The rows of a file.

        Raises:
            TableError: there is no such file, or it breaks the format; the message names
                the first wrong line, and `problems` all of them.
        """
        rows, problems = self._read(path)
        if problems:
            more = len(problems) - 1
            hint = f" (and {more} more; `hurricane table validate {path}` lists them)"
            raise TableError(problems[0] + (hint if more else ""), problems)
        return rows

    def _read(self, path: str | Path) -> tuple[list[R], list[str]]:
        """Rows of a file, and its problems, each beginning with file and line."""
        try:
            data = read_bytes(path, self.what)
        except MissingFile as error:
            raise TableError(f"{error}; {self.filled_by} -o {path} fills one") from error
        except BadRequest as error:
            raise TableError(str(error)) from error
        try:
            text = data.decode("utf-8-sig")  # Excel puts a byte order mark in front.
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            return [], [f"{path}:{line}: is not UTF-8 text; save the {self.what} as UTF-8 CSV"]
        if not text:
            return [], [f"{path}:1: the file is empty; a {self.what} begins with its header"]
        lines = text.split("\n")
        names = header_names(lines[0])
        if problem := self.header_problem(names):
            return [], [f"{path}:1: {problem}"]
        rows: list[R] = []
        problems: list[str] = []
        line_of: dict[Hashable, int] = {}
        rest = lines.pop()
        for place, line in enumerate(lines[1:], start=2):
            try:
                row = self.parse(line, names)
            except TableError as error:
                problems.append(f"{path}:{place}: {error}")
                continue
            first = line_of.setdefault(self.key(row), place)
            if first != place:
                problems.append(f"{path}:{place}: {self.describe(row)} is on line {first} already")
                continue
            rows.append(row)
        if rest:
            problems.append(
                f"{path}:{len(lines) + 1}: the last line has no end, so the file was cut off; "
                "take the line out or copy the file again"
            )
        return rows, problems


def header_names(line: str) -> tuple[str, ...]:
    """The columns that a file's first line names."""
    return tuple(cell.strip("\r") for cell in line.split(","))


def header_problem(names: Sequence[str], columns: Sequence[str], what: str) -> str | None:
    """What is wrong with a header; None: nothing.

    Args:
        names: the file's.
        columns: as they are to be.
        what: the kind of file, in words.
    """
    if tuple(names) == tuple(columns):
        return None
    lacking = [name for name in columns if name not in names]
    extra = [name for name in names if name not in columns]
    if len(lacking) > len(columns) // 2:
        begin = ",".join(columns[:3])
        return f"this is not the header of a {what}; it begins with {begin}"
    if lacking or extra:
        parts = [f"lacks {', '.join(lacking)}"] if lacking else []
        parts += [f"has {', '.join(map(repr, extra))}"] if extra else []
        return f"the header {' and '.join(parts)}; docs/table-format.md lists the columns"
    if len(names) > len(columns):
        repeated = next(name for name in names if names.count(name) > 1)
        return f"the header has {repeated} twice"
    moved = next(i for i, (a, b) in enumerate(zip(names, columns, strict=True)) if a != b)
    return f"column {moved + 1} is {names[moved]} and should be {columns[moved]}"
