"""The lookup table: tidy CSV rows of operators at layer shapes on targets.

Every column is explained in `docs/table-format.md`. A `Row` that exists is valid, wherever it
comes from (a file, a journal, a measurement), and holds exactly what the file will hold.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.pool import POOL
from ..ops.shapes import LayerShape
from .cells import (
    FileKind,
    TableError,
    check_choice,
    check_flags,
    check_operator,
    check_sha256,
    check_text,
    check_time,
    check_word,
    fail,
    header_problem,
    number,
    parse_line,
    to_line,
    whole,
)

if TYPE_CHECKING:
    import pandas

PROCESSORS = ("cpu", "dsp", "vpu", "npu", "gpu")
EMULATED, COMPILED = "emulated", "compiled"
"""Origin of what a vendor's emulator tells: outputs, and never a latency."""

ORIGINS = ("measured", "simulated", EMULATED, "estimated", "imported", COMPILED)
WITHOUT_LATENCY = {
    EMULATED: "an emulator has no latency",
    COMPILED: "where a graph is only compiled there is no latency",
}
"""Origins that stand in support reports alone, and why."""

COMPUTING = ("measured", EMULATED)
"""Origins whose targets run graphs; others say how long, and compute nothing."""

STATUSES = ("ok", "unsupported", "failed", "timeout")

MAX_LATENCY_MS = 3_600_000.0
"""An hour: more than this is a wrong unit."""

MAX_FREQUENCY_MHZ = 20_000.0
"""More than this is Hz or kHz."""

TEMPERATURE_RANGE_C = (-90.0, 200.0)
"""Outside of this it is Kelvin, Fahrenheit or thousandths of a degree."""

LISTED = 6
"""Targets that a message lists before it says how many more there are."""

_OPTION_KEY = re.compile(r"[A-Za-z0-9_.-]+")


_SIMULATED = "simulated"  # what the runtimes of simulated devices begin with


@dataclass(frozen=True, order=True)
class Target:
    """Where latencies were taken; the same fields as the first columns of a table.

    Attributes:
        device: the device's name; for a simulated one, its device file's name.
        processor: one of `PROCESSORS`.
        runtime: e.g. ``onnxruntime``.
        runtime_version: as the runtime tells it; empty where unknown.
        options: canonical ``key=value;…`` of everything else that changes the result.
        precision: e.g. ``fp32``, ``int8``.
        threads: at least 1.
        origin: one of `ORIGINS`.
    """

    device: str
    processor: str
    runtime: str
    runtime_version: str = ""
    options: str = ""
    precision: str = "fp32"
    threads: int = 1
    origin: str = "measured"

    def __post_init__(self) -> None:
        check_text("device", self.device, required=True)
        check_choice("processor", self.processor, PROCESSORS)
        check_word("runtime", self.runtime)
        check_text("runtime_version", self.runtime_version)
        parse_options(self.options)
        check_word("precision", self.precision)
        object.__setattr__(self, "threads", whole("threads", self.threads))
        check_choice("origin", self.origin, ORIGINS)

    @property
    def name(self) -> str:
        """The target's name on the command line, e.g. ``cpu-onnxruntime-fp32-t2``.

        A simulated device's is ``sim-`` and its own name.
        """
        threads = f"-t{self.threads}" if self.threads > 1 else ""
        if self.runtime.startswith(_SIMULATED):
            return f"sim-{self.device}{threads}"
        return f"{self.processor}-{self.runtime}-{self.precision}{threads}"

    def __str__(self) -> str:
        facts = [self.device, f"{self.runtime} {self.runtime_version}".strip(), self.options]
        facts.append("" if self.origin == "measured" else self.origin)
        return f"{self.name} ({', '.join(filter(None, facts))})"


@dataclass(frozen=True)
class TargetRow:
    """What rows of all our files begin with: a target, an operator, and its layer shape."""

    device: str
    processor: str
    runtime: str
    runtime_version: str
    options: str
    precision: str
    threads: int
    origin: str
    operator: str
    height: int
    width: int
    in_channels: int
    out_channels: int
    stride: int

    @cached_property
    def target(self) -> Target:
        return _target(*(getattr(self, name) for name in TARGET_COLUMNS))

    @property
    def shape(self) -> LayerShape:
        return LayerShape(*(getattr(self, name) for name in SHAPE_COLUMNS))

    @property
    def is_stem(self) -> bool:
        return part_of(self.operator) == "stem"

    @property
    def is_head(self) -> bool:
        return part_of(self.operator) == "head"


TARGET_COLUMNS = tuple(f.name for f in fields(Target))
SHAPE_COLUMNS = tuple(f.name for f in fields(LayerShape))


def identity_of(target: Target, operator: str, shape: LayerShape) -> dict[str, Any]:
    """The columns of a `TargetRow`, by name."""
    places = {name: getattr(target, name) for name in TARGET_COLUMNS}
    places |= {name: getattr(shape, name) for name in SHAPE_COLUMNS}
    return {**places, "operator": operator}


@dataclass(frozen=True)
class RowKey:
    """A row's identity: no table holds two rows with the same."""

    target: Target
    operator: str
    shape: LayerShape
    batch: int = 1


@dataclass(frozen=True)
class Row(TargetRow):
    """One line of a table; the attributes are its columns, in order.

    Numbers are rounded to `SIGNIFICANT_DIGITS` on creation, so that a row in memory equals
    the one read back. ``None`` and ``""`` are empty cells; a missing number is never 0.

    Raises:
        TableError: a value breaks the format; the message names the column.
    """

    batch: int

    status: str
    latency_ms: float | None = None
    ci_low_ms: float | None = None
    ci_high_ms: float | None = None
    call_ms: float | None = None
    warm_ms: float | None = None
    cold_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    device_ms: float | None = None
    samples: int | None = None
    rounds: int | None = None
    estimator: str = ""

    flags: str = ""
    compute_unit: str = ""

    macs: int | None = None
    params: int | None = None
    graph_sha256: str = ""
    artifact_sha256: str = ""
    converter: str = ""
    calibration: str = ""
    agent_version: str = ""
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    frequency_before_mhz: float | None = None
    frequency_after_mhz: float | None = None
    measured_at: str = ""

    def __post_init__(self) -> None:
        for name in _SIZES:
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in _OPTIONAL_COUNTS:
            value = getattr(self, name)
            if value is not None:
                minimum = 0 if name in ("macs", "params") else 1
                object.__setattr__(self, name, whole(name, value, minimum))
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, number(name, value))
        object.__setattr__(self, "threads", self.target.threads)
        if why := WITHOUT_LATENCY.get(self.origin):
            fail(
                f"origin is {self.origin}; {why}, so that no table holds it: see hurricane support"
            )
        self._check_values()
        self._check_provenance()

    @classmethod
    def of(
        cls, target: Target, operator: str, shape: LayerShape, *, batch: int = 1, **values: Any
    ) -> Row:
        """A row from its identity in parts and the remaining columns by name."""
        return cls(**identity_of(target, operator, shape), batch=batch, **values)

    @cached_property
    def key(self) -> RowKey:
        return RowKey(self.target, self.operator, self.shape, self.batch)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def flag_words(self) -> tuple[str, ...]:
        return tuple(self.flags.split(";")) if self.flags else ()

    def to_line(self) -> str:
        """The row as one line of CSV, with its line end."""
        return to_line([getattr(self, name) for name in COLUMNS])

    @classmethod
    def from_line(cls, line: str, columns: Sequence[str] | None = None) -> Row:
        """Reads one line of CSV (with or without its line end).

        Args:
            line: of the file.
            columns: the file's header; None: `COLUMNS`.

        Raises:
            TableError: too few or too many cells, or a cell breaks the format.
        """
        return cls(**parse_line(line, columns or COLUMNS, _WHOLES, _NUMBERS, _OPTIONAL_COUNTS))

    def _check_values(self) -> None:
        check_operator(self.operator)
        check_choice("status", self.status, STATUSES)
        if self.status != "ok":
            filled = [name for name in VALUE_COLUMNS if getattr(self, name) not in (None, "")]
            if filled:
                fail(f"{filled[0]} is filled though status is {self.status}; only ok rows have it")
            return
        if self.latency_ms is None:
            fail("latency_ms is empty though status is ok")
        for name in _LATENCIES:
            value = getattr(self, name)
            if value is None:
                continue
            if value <= 0:
                fail(f"{name} is {value:g}; a latency is a positive number of milliseconds")
            if value > MAX_LATENCY_MS:
                fail(f"{name} is {value:g}, over an hour; the unit is milliseconds")
        if self.call_ms is not None and not 0 <= self.call_ms <= MAX_LATENCY_MS:
            fail(f"call_ms is {self.call_ms:g}; it is a number of milliseconds of at least 0")
        low, high = self.ci_low_ms, self.ci_high_ms
        if (low is None) != (high is None):
            fail("ci_low_ms and ci_high_ms must both be there or both be empty")
        if low is not None and high is not None and not low <= self.latency_ms <= high:
            fail(f"latency_ms {self.latency_ms:g} lies outside its interval {low:g} to {high:g}")
        if self.p10_ms is not None and self.p90_ms is not None and self.p10_ms > self.p90_ms:
            fail(f"p10_ms {self.p10_ms:g} exceeds p90_ms {self.p90_ms:g}")
        check_text("estimator", self.estimator)
        if not self.estimator:
            fail("estimator is empty though status is ok; name how latency_ms was obtained")

    def _check_provenance(self) -> None:
        check_flags(self.flags)
        check_text("compute_unit", self.compute_unit)
        for name in ("graph_sha256", "artifact_sha256"):
            check_sha256(name, getattr(self, name))
        for name in ("converter", "calibration", "agent_version"):
            check_text(name, getattr(self, name))
        for name in ("temperature_before_c", "temperature_after_c"):
            value = getattr(self, name)
            if value is not None:
                coldest, hottest = TEMPERATURE_RANGE_C
                if not coldest <= value <= hottest:
                    fail(f"{name} is {value:g}; the unit is degrees Celsius")
        for name in ("frequency_before_mhz", "frequency_after_mhz"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MAX_FREQUENCY_MHZ:
                fail(f"{name} is {value:g}; the unit is MHz, and unknown is an empty cell")
        if self.measured_at:
            check_time("measured_at", self.measured_at)


COLUMNS = tuple(f.name for f in fields(Row))
"""The header of a table."""

EARLIER_COLUMNS = tuple(name for name in COLUMNS if name not in ("converter", "calibration"))
"""The header of tables by version 0.1.0, which are still read."""

IDENTITY_COLUMNS = COLUMNS[: COLUMNS.index("batch") + 1]
VALUE_COLUMNS = COLUMNS[COLUMNS.index("latency_ms") : COLUMNS.index("estimator") + 1]
"""Empty unless the status is ok."""

_SIZES = (*SHAPE_COLUMNS, "batch")
_OPTIONAL_COUNTS = ("samples", "rounds", "macs", "params")
_WHOLES = ("threads", *_SIZES, *_OPTIONAL_COUNTS)
_NUMBERS = tuple(name for name in COLUMNS if name.endswith(("_ms", "_c", "_mhz")))
_LATENCIES = ("latency_ms", "warm_ms", "cold_ms", "p10_ms", "p90_ms", "device_ms")
_HEADER = ",".join(COLUMNS)
_POOL_ORDER = {operator.name: index for index, operator in enumerate(POOL)}


class LookupTable:
    """Rows with different identities, in the one order in which they are written.

    A table never changes: methods that add rows return another table.

    Args:
        rows: in any order.
        path: the file they come from, for messages.

    Raises:
        TableError: two rows have the same identity.
    """

    def __init__(self, rows: Iterable[Row] = (), path: str | Path | None = None) -> None:
        self.rows: tuple[Row, ...] = tuple(sorted(rows, key=_order))
        self.path = Path(path) if path is not None else None
        self._by_key = {row.key: row for row in self.rows}
        if len(self._by_key) < len(self.rows):
            twice = next(
                a for a, b in zip(self.rows, self.rows[1:], strict=False) if a.key == b.key
            )
            raise TableError(f"{self._name}: two rows for {describe(twice)}")

    @classmethod
    def load(cls, path: str | Path) -> LookupTable:
        """Reads and validates a table.

        Raises:
            TableError: there is no such file, or it breaks the format; the message names
                the first wrong line, and `problems` all of them.
        """
        return cls(_FILE.read(path), path)

    def save(self, path: str | Path) -> None:
        """Writes the table atomically.

        Raises:
            HurricaneError: the file cannot be written.
        """
        write_atomically(path, self.to_csv().encode())

    def to_csv(self) -> str:
        """The canonical text of the table."""
        return _HEADER + "\n" + "".join(row.to_line() for row in self.rows)

    def sha256(self) -> str:
        """Digest of the canonical bytes: equal tables have equal digests."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def targets(self) -> tuple[Target, ...]:
        """The targets that have rows, sorted."""
        return tuple(dict.fromkeys(row.target for row in self.rows))

    def target(self, wanted: Target | str | None = None) -> Target:
        """The one target that is meant.

        Args:
            wanted: a target; or its name, with ``,field=value`` appended where several share
                the name (``cpu-onnxruntime-fp32,runtime_version=1.20``); None where the
                table holds one target only.

        Raises:
            BadRequest: none or several match; the message lists them.
        """
        targets = self.targets()
        found = [t for t in targets if wanted is None or matches_target(t, wanted)]
        if len(found) == 1:
            return found[0]
        if not targets:
            raise BadRequest(f"{self._name} has no rows; fill it with profile-ops")
        if not found:
            raise BadRequest(f"{self._name} has no target {wanted}; it has {_list(targets)}")
        differing = [n for n in TARGET_COLUMNS if len({getattr(t, n) for t in found}) > 1]
        hint = "name one with --target"
        if len({t.name for t in found}) < len(found):
            facts = "".join(f",{n}={getattr(found[0], n)}" for n in differing)
            hint += f", adding what differs, as in {shlex.quote(found[0].name + facts)}"
        raise BadRequest(f"{self._name} holds {len(found)} targets: {_list(found)}; {hint}")

    def select(
        self,
        target: Target | str | None = None,
        operators: str | None = None,
        status: str | None = None,
    ) -> LookupTable:
        """The rows that fulfil all conditions.

        Args:
            target: a target, or a name as `target` takes it (all that match).
            operators: comma-separated names or shell patterns, ``MB_*,head:*``.
            status: one of `STATUSES`.
        """
        wanted = {t for t in self.targets() if target is None or matches_target(t, target)}
        return LookupTable(
            (
                row
                for row in self.rows
                if row.target in wanted
                and status in (None, row.status)
                and matches_patterns(row.operator, operators)
            ),
            self.path,
        )

    def get(self, key: RowKey) -> Row | None:
        """The row with this identity, or None."""
        return self._by_key.get(key)

    def add(self, rows: Iterable[Row]) -> LookupTable:
        """A table with these rows too.

        Raises:
            TableError: a row with the same identity is there already.
        """
        return LookupTable((*self.rows, *rows), self.path)

    def merged(self, other: LookupTable | Iterable[Row], prefer: str | None = None) -> LookupTable:
        """A table with the rows of both; equal rows are taken once.

        Args:
            other: a table, or rows of which each identity may occur repeatedly.
            prefer: which row stays where two differ: ``first`` (ours) or ``last``.

        Raises:
            TableError: rows differ and `prefer` is None.
        """
        if prefer not in (None, "first", "last"):
            raise ValueError(f"prefer is {prefer!r}")
        merged = dict(self._by_key)
        conflicts = []
        for row in other.rows if isinstance(other, LookupTable) else other:
            there = merged.get(row.key)
            if there is not None and there != row and prefer is None:
                conflicts.append(row)
            if there is None or prefer == "last":
                merged[row.key] = row
        if conflicts:
            raise TableError(
                f"the tables differ in {len(conflicts)} of their rows, the first for "
                f"{describe(conflicts[0])}; choose with --prefer first or --prefer last"
            )
        return LookupTable(merged.values(), self.path)

    def to_frame(self) -> pandas.DataFrame:
        """A pandas DataFrame with the columns of the file (empty numbers are NA)."""
        import pandas

        cells = [[getattr(row, name) for name in COLUMNS] for row in self.rows]
        frame = pandas.DataFrame(cells, columns=pandas.Index(COLUMNS))
        kinds = {n: "Int64" if n in _OPTIONAL_COUNTS else "int64" for n in _WHOLES}
        kinds |= dict.fromkeys(_NUMBERS, "float64")
        return frame.astype(kinds)

    @classmethod
    def from_frame(cls, frame: pandas.DataFrame) -> LookupTable:
        """A table from a DataFrame with the columns of the file, NaN for empty.

        Raises:
            TableError: the columns are not those of a table, or a row breaks the format.
        """
        problem = _header_problem(tuple(str(name) for name in frame.columns))
        if problem:
            raise TableError(f"data frame: {problem}")
        texts = set(COLUMNS) - set(_WHOLES) - set(_NUMBERS)
        rows = []
        for place, cells in enumerate(frame.astype(object).itertuples(index=False)):
            values: dict[str, Any] = {
                name: ("" if name in texts else None) if _is_missing(cell) else cell
                for name, cell in zip(COLUMNS, cells, strict=True)
            }
            try:
                rows.append(Row(**values))
            except TableError as error:
                raise TableError(f"data frame, row {place}: {error}") from error
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LookupTable) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"LookupTable({len(self.rows)} rows, {', '.join(t.name for t in self.targets())})"

    @property
    def _name(self) -> str:
        return str(self.path) if self.path is not None else "the table"


def format_options(options: Mapping[str, Any]) -> str:
    """The canonical text of options: ``key=value`` sorted by key, ``;`` between them.

    Raises:
        TableError: a key or value has characters that the text cannot hold.
    """
    return ";".join(f"{key}={_option(key, options[key])}" for key in sorted(options))


def parse_options(text: str) -> dict[str, str]:
    """Reads a canonical options text.

    Raises:
        TableError: it is not canonical; the message shows how it would be.
    """
    if not isinstance(text, str):
        fail(f"options is {text!r}; write key=value;key=value")
    if not text:
        return {}
    options: dict[str, str] = {}
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if not equals or key in options:
            fail(f"options is {text!r}; write key=value;key=value, each key once")
        options[key] = value
    canonical = format_options(options)
    if canonical != text:
        fail(f"options is {text!r}; sort it: {canonical!r}")
    return options


def format_flags(words: Iterable[str]) -> str:
    """The text of the flags column: different words, sorted, ``;`` between them."""
    return ";".join(sorted(set(words)))


def matches_target(target: Target, wanted: Target | str) -> bool:
    """Whether a target is meant by another one or by a text such as `LookupTable.target` takes."""
    if isinstance(wanted, Target):
        return target == wanted
    # Split only before a field's name: device names and options may hold commas and '='.
    name, *conditions = re.split(rf",(?=(?:{'|'.join(TARGET_COLUMNS)})=)", wanted)
    pairs = [condition.partition("=") for condition in conditions]
    return name == target.name and all(str(getattr(target, k)) == v for k, _, v in pairs)


def matches_patterns(operator: str, patterns: str | None) -> bool:
    """Whether a name is among comma-separated names or shell patterns; None: all are."""
    wanted = (p.strip() for p in (patterns or "*").split(","))
    return any(fnmatch.fnmatchcase(operator, p) for p in wanted if p)


def describe(row: Row | RowKey) -> str:
    """A row's identity in words, for messages."""
    batch = f", batch {row.batch}" if row.batch != 1 else ""
    return f"{row.operator} at {row.shape}{batch} on {row.target}"


def count_and_example(rows: Sequence[Any]) -> str:
    """How many rows there are, and the first of them, in words.

    Args:
        rows: at least one, of a table or a support report.
    """
    first = f"{rows[0].operator} at {rows[0].shape}"
    return first if len(rows) == 1 else f"{len(rows)} rows, such as {first}"


def is_support_header(names: Sequence[str]) -> bool:
    """Whether a header is, or was to be, that of a support report (`lookup_tables.support`)."""
    return "sqnr_db" in names and "latency_ms" not in names


def _header_problem(names: tuple[str, ...]) -> str | None:
    if names == EARLIER_COLUMNS:
        return None
    if is_support_header(names):
        return "this is a support report; a lookup table is written by profile-ops"
    return header_problem(names, COLUMNS, "lookup table")


_FILE = FileKind(
    "table", "profile-ops", _header_problem, Row.from_line, lambda row: row.key, describe
)


def part_of(operator: str) -> str:
    """``stem``, ``head``, or the name of an operator at a layer."""
    return operator.split(":", 1)[0]


def order_of(target: Target, operator: str, shape: LayerShape) -> tuple[Any, ...]:
    """Sorts rows: target, stem, layers from large to small in the order of the pool, head."""
    return (
        target,
        {"stem": 0, "head": 2}.get(part_of(operator), 1),
        (-shape.height, -shape.width, shape.in_channels, shape.out_channels, shape.stride),
        _POOL_ORDER.get(operator, len(_POOL_ORDER)),
        operator,
    )


def _order(row: Row) -> tuple[Any, ...]:
    return (*order_of(row.target, row.operator, row.shape), row.batch)


@lru_cache(maxsize=256)
def _target(*values: Any) -> Target:
    """One object for all rows of a target: checked once, and quick to compare."""
    return Target(*values)


def _is_missing(cell: Any) -> bool:
    import pandas

    return cell is None or cell is pandas.NA or (isinstance(cell, float) and math.isnan(cell))


def _option(key: Any, value: Any) -> str:
    text = str(value)
    if not isinstance(key, str) or not _OPTION_KEY.fullmatch(key):
        fail(f"option {key!r}: a key has letters, digits and _ . -")
    if not text or not text.isprintable() or text.strip() != text or set(text) & set(";="):
        fail(f"option {key} is {value!r}; a value is printable text without ';' and '='")
    return text


def _list(targets: Iterable[Target]) -> str:
    names = [str(target) for target in targets]
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join(names[:LISTED] + more)
