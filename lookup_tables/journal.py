"""The journal beside a table: what a run has measured so far, safe from a kill at any moment.

``table.csv.journal`` holds a first line that names the run's target, and one line of JSON for each
entry of `raw`. A line counts when its line end is there; what a kill left of the last one is
dropped. `Journal.finish` merges the rows into the table and removes the journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..ops.atomic import sync_folder
from ..ops.errors import BadRequest, HurricaneError
from ..ops.files import MissingFile, parse_json, read_bytes
from ..ops.shapes import LayerShape
from .baselines import BASELINES
from .raw import DeviceRun, Entry, LoopTimes, RawData, RawRow, Reference
from .sidecar import positive, reason
from .spread import SPREADS, spread_from_json
from .table import LookupTable, Row, TableError, Target

SUFFIX = ".journal"
FORMAT = 3
_EARLIER = (1, 2)


def journal_path(table_path: str | Path) -> Path:
    """Where the journal of a table lies."""
    path = Path(table_path)
    return path.with_name(path.name + SUFFIX)


@dataclass(frozen=True)
class JournalContent:
    """What a journal holds.

    Attributes:
        target: the target of the run; None where there is no journal, or a kill cut it off
            within its first line.
        data: its entries.
        complete_bytes: length of the part that consists of whole lines.
    """

    target: Target | None = None
    data: RawData = field(default_factory=RawData)
    complete_bytes: int = 0

    @property
    def rows(self) -> tuple[Row, ...]:
        """Its rows, as they would stand in a table that holds no others."""
        return tuple(self.data.table_rows())


def read_journal(table_path: str | Path) -> JournalContent:
    """Reads the journal of a table; empty where there is none.

    Raises:
        TableError: a whole line is wrong, so the file was not written by a journal.
    """
    path = journal_path(table_path)
    try:
        return _parse(_read(path), path)
    except MissingFile:
        return JournalContent()


def load_with_journal(path: str | Path) -> LookupTable:
    """What a run that writes to `path` has so far: the table, and the journal beside it.

    A row of the journal replaces that of the table. Empty where there is neither.
    """
    table = LookupTable.load(path) if Path(path).exists() else LookupTable(path=path)
    return _merged(table, read_journal(path).data)


class Journal:
    """An open journal; `open` creates or resumes it.

    It is a context manager. Leaving it keeps the file for the next run; `finish` ends it.
    """

    def __init__(self, table_path: Path, target: Target, descriptor: int) -> None:
        self.table_path = table_path
        self.path = journal_path(table_path)
        self.target = target
        self._descriptor = descriptor
        self._data = RawData()
        self._length = 0
        self._disposable = False
        self._lock = threading.Lock()

    @classmethod
    def open(cls, table_path: str | Path, target: Target) -> Journal:
        """Starts the journal of a run, or goes on with that of a run that was killed.

        Args:
            table_path: the table that the run fills; need not exist.
            target: the run's target; every row recorded has it.

        Raises:
            BadRequest: the journal is of another target, another run has it open, the folder
                does not exist, or a file beside the table that `finish` adds to is broken.
        """
        path = journal_path(table_path)
        journal = cls(Path(table_path), target, _open_locked(path))
        try:
            journal._resume()
            for beside in (BASELINES, SPREADS):  # `finish` adds to these: a broken one shows now
                beside.load(table_path)
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def data(self) -> RawData:
        """The entries recorded so far, those of the killed run included."""
        return self._data

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows recorded so far, as they would stand in a table that holds no others."""
        return tuple(self._data.table_rows())

    def append(self, entries: Iterable[Entry]) -> None:
        """Records entries; when it returns they are on the disk. Threads may call it at once.

        Raises:
            ValueError: a row is of another target.
            HurricaneError: writing failed; what was recorded before is untouched.
        """
        batch = list(entries)
        for entry in batch:
            if isinstance(entry, RawRow) and entry.row.target != self.target:
                raise ValueError(f"row of {entry.row.target} in the journal of {self.target}")
        data = "".join(json.dumps(_to_json(entry)) + "\n" for entry in batch).encode()
        with self._lock:
            self._write(data)
            self._data = self._data.with_entries(batch)

    def finish(self) -> LookupTable:
        """Merges the rows into the table atomically, and removes the journal.

        A row of the journal replaces that of the table. A table that would stay as it is is
        not written. What lies beside the table is written before its rows are. Killed in between,
        the next run finds the same entries again.

        Returns:
            The table as it now is on the disk.
        """
        table = LookupTable.load(self.table_path) if self.table_path.exists() else LookupTable()
        merged = LookupTable(_merged(table, self._data), self.table_path)
        self._save_beside(self.target in table.targets())
        if merged != table:
            merged.save(self.table_path)
        os.unlink(self.path)
        self._disposable = False
        sync_folder(self.path.parent)
        self.close()
        return merged

    def _save_beside(self, has_rows: bool) -> None:
        """Writes what lies beside the table; with what is known of rows that it holds already."""
        known = BASELINES.load(self.table_path).get(self.target, {}) if has_rows else {}
        graphs_ms = {**known, **self._data.graphs_ms()}
        if graphs_ms != known:
            BASELINES.save(self.table_path, self.target, graphs_ms)
        spread = self._data.spread()
        if spread is None:
            return
        if has_rows and not spread.networks:  # a run of some layers times none
            before = SPREADS.load(self.table_path).get(self.target, spread)
            spread = replace(spread, networks=before.networks)
        SPREADS.save(self.table_path, self.target, spread)

    def close(self) -> None:
        """Lets go of the file, which stays for the next run if there is anything in it."""
        if self._descriptor >= 0:
            if self._disposable and not self._data.rows and not self._data.loops:
                self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resume(self) -> None:
        content = _parse(_read(self.path), self.path)
        # What a kill left of a line goes, or the next row would be glued to it.
        os.ftruncate(self._descriptor, content.complete_bytes)
        self._length = content.complete_bytes
        if content.target is None:
            self._write(_first_line(self.target))
            sync_folder(self.path.parent)
        elif content.target != self.target and not content.data.rows:
            # A run that ended before its first row; nothing is lost by starting anew.
            os.ftruncate(self._descriptor, 0)
            self._length = 0
            self._write(_first_line(self.target))
        elif content.target != self.target:
            ours, theirs = asdict(self.target), asdict(content.target)
            differing = [
                f"{n} {theirs[n]!r}, not {ours[n]!r}" for n in ours if ours[n] != theirs[n]
            ]
            raise BadRequest(
                f"{self.path} is of an unfinished run on another target ({'; '.join(differing)}); "
                "finish that run, delete the journal, or write to another file"
            )
        self._data = content.data
        self._disposable = True

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._length)
            raise HurricaneError(
                f"cannot write {self.path}: {error.strerror}; the {len(self._data.rows)} rows in "
                "it are safe, and the same command goes on from there"
            ) from error
        self._length += len(data)


def _open_locked(path: Path) -> int:
    """The journal's descriptor, locked for this process until it is closed."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except FileNotFoundError as error:
            raise BadRequest(
                f"cannot write {path}: the folder {path.parent} does not exist"
            ) from error
        except OSError as error:
            raise HurricaneError(f"cannot write {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise BadRequest(
                f"another run is writing {path}; wait for it or write to another file"
            ) from error
        # A run that finished between open and lock has removed the file that we now hold.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, "journal")
    except MissingFile:
        raise
    except BadRequest as error:
        raise TableError(f"{error}; delete or move it") from error


def _merged(table: LookupTable, data: RawData) -> LookupTable:
    return table.merged(data.table_rows({row.key: row for row in table.rows}), prefer="last")


def _first_line(target: Target) -> bytes:
    return (json.dumps({"hurricane_journal": FORMAT, "target": asdict(target)}) + "\n").encode()


def _to_json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, RawRow):
        facts = {"run": entry.run, "slowdown": entry.slowdown, "graphs_ms": dict(entry.graphs_ms)}
        return {"entry": "row", **facts, "row": entry.row.to_line().rstrip("\n")}
    kinds = {LoopTimes: "loop", DeviceRun: "run", Reference: "reference"}
    return {"entry": kinds[type(entry)], **asdict(entry)}


def _from_json(item: Any) -> Entry:
    if not isinstance(item, dict):
        raise ValueError("it is no object")
    values = dict(item)
    kind = values.pop("entry", None)
    if kind == "row":
        return RawRow(
            Row.from_line(_of_type(values, "row", str)),
            _of_type(values, "run", int),
            _positive(values, "slowdown"),
            _times(values, "graphs_ms"),
        )
    if kind == "loop":
        device_ms = values.get("device_ms")
        return LoopTimes(
            _of_type(values, "operator", str),
            LayerShape(**values["shape"]),
            *(_positive(values, key) for key in ("cold_ms", "warm_ms", "p10_ms", "p90_ms")),
            device_ms=None if device_ms is None else _positive(values, "device_ms"),
        )
    if kind == "run":
        limit = values.get("slowest_accepted")
        return DeviceRun(
            _of_type(values, "run", int),
            _of_type(values, "device", str),
            _positive(values, "quiet_slowdown"),
            None if limit is None else _positive(values, "slowest_accepted"),
            _times(values, "baselines_ms"),
            spread_from_json(values["spread"]),
            _share(values, "steady_change"),
        )
    if kind == "reference":
        return Reference(_of_type(values, "name", str), _times(values, "graphs_ms"))
    raise ValueError(f"{kind!r} is no kind of entry")


def _of_type(values: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(values[key], kind) or isinstance(values[key], bool):
        raise ValueError(f"{key} is {values[key]!r}")
    return values[key]


def _share(values: Mapping[str, Any], key: str) -> float:
    """How much something changed, as a share: more than -1."""
    return positive(1 + values[key], f"1 + {key}") - 1


def _positive(values: Mapping[str, Any], key: str) -> float:
    return positive(values[key], key)


def _times(values: Mapping[str, Any], key: str) -> dict[str, float]:
    times = _of_type(values, key, dict)
    return {digest: _positive(times, digest) for digest in times}


def _parse(data: bytes, path: Path) -> JournalContent:
    complete = data.rfind(b"\n") + 1
    lines = data[:complete].split(b"\n")[:-1]
    if not lines:
        return JournalContent()
    target = _parse_first_line(lines[0], path)
    entries = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            entry = _from_json(parse_json(line, "it"))
            if isinstance(entry, RawRow) and entry.row.target != target:
                raise TableError(f"is a row of {entry.row.target}, not of {target}")
            if isinstance(entry, LoopTimes):
                entry.check(target)
        except (BadRequest, ValueError, TypeError, KeyError) as error:
            words = f"{reason(error)}; delete the line or the journal"
            raise TableError(f"{path}:{number}: {words}") from error
        entries.append(entry)
    return JournalContent(target, RawData().with_entries(entries), complete)


def _parse_first_line(line: bytes, path: Path) -> Target:
    try:
        head: Any = parse_json(line, "it")
        found = head.get("hurricane_journal") if isinstance(head, dict) else None
        if found in _EARLIER:
            raise ValueError("an earlier version began it; finish it with that version")
        if found != FORMAT:
            raise ValueError(f"it names no journal of format {FORMAT}")
        return Target(**head["target"])
    except (ValueError, TypeError, KeyError, BadRequest) as error:
        raise TableError(
            f"{path}:1: is not the first line of a journal ({reason(error)}); delete or move the "
            "file"
        ) from error
