"""The journal beside a table: what a run has measured so far, safe from a kill at any moment.

``table.csv.journal`` holds a first line that names the run's target, and whole rows of the
table after it. A line counts when its line end is there; what a kill left of the last one is
dropped. `Journal.finish` merges the rows into the table and takes the journal away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest, HurricaneError
from ..ops.files import MissingFile, parse_json, read_bytes
from .files import sync_folder
from .table import LookupTable, Row, RowKey, TableError, Target

SUFFIX = ".journal"
FORMAT = 2


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
        rows: in the order of measuring; a later row replaces an earlier one of its identity.
        complete_bytes: length of the part that consists of whole lines.
    """

    target: Target | None = None
    rows: tuple[Row, ...] = ()
    complete_bytes: int = 0


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


class Journal:
    """An open journal; `open` creates or resumes it.

    It is a context manager. Leaving it keeps the file for the next run; `finish` ends it.
    """

    def __init__(self, table_path: Path, target: Target, descriptor: int) -> None:
        self.table_path = table_path
        self.path = journal_path(table_path)
        self.target = target
        self._descriptor = descriptor
        self._rows: dict[RowKey, Row] = {}
        self._length = 0
        self._disposable = False
        self._lock = threading.Lock()

    @classmethod
    def open(cls, table_path: str | Path, target: Target) -> Journal:
        """Starts the journal of a run, or goes on with that of a run that was killed.

        Args:
            table_path: the table that the run fills; need not exist.
            target: the run's target; every row appended has it.

        Raises:
            BadRequest: the journal is of another target, another run has it open, or the
                folder does not exist.
        """
        path = journal_path(table_path)
        journal = cls(Path(table_path), target, _open_locked(path))
        try:
            journal._resume()
        except BaseException:
            journal.close()
            raise
        return journal

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows recorded so far, those of the killed run included."""
        return tuple(self._rows.values())

    def append(self, rows: Iterable[Row]) -> None:
        """Records rows; when it returns they are on the disk. Threads may call it at once.

        Raises:
            ValueError: a row is of another target.
            HurricaneError: writing failed; what was recorded before is untouched.
        """
        batch = list(rows)
        for row in batch:
            if row.target != self.target:
                raise ValueError(f"row of {row.target} in the journal of {self.target}")
        data = "".join(row.to_line() for row in batch).encode()
        with self._lock:
            self._write(data)
            self._rows.update((row.key, row) for row in batch)

    def finish(self) -> LookupTable:
        """Merges the rows into the table atomically, and removes the journal.

        A row of the journal replaces that of the table. A table that would stay as it is is
        not written. Killed in between, the next run finds the same rows again.

        Returns:
            The table as it now is on the disk.
        """
        table = LookupTable.load(self.table_path) if self.table_path.exists() else LookupTable()
        merged = LookupTable(table.merged(self.rows, prefer="last"), self.table_path)
        if merged != table:
            merged.save(self.table_path)
        os.unlink(self.path)
        self._disposable = False
        sync_folder(self.path.parent)
        self.close()
        return merged

    def close(self) -> None:
        """Lets go of the file, which stays for the next run if there is anything in it."""
        if self._descriptor >= 0:
            if self._disposable and not self._rows:
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
        elif content.target != self.target and not content.rows:
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
        self._rows = {row.key: row for row in content.rows}
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
                f"cannot write {self.path}: {error.strerror}; the {len(self._rows)} rows in it are "
                "safe, and the same command goes on from there"
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


def _first_line(target: Target) -> bytes:
    return (json.dumps({"hurricane_journal": FORMAT, "target": asdict(target)}) + "\n").encode()


def _parse(data: bytes, path: Path) -> JournalContent:
    complete = data.rfind(b"\n") + 1
    lines = data[:complete].split(b"\n")[:-1]
    if not lines:
        return JournalContent()
    target = _parse_first_line(lines[0], path)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = Row.from_line(line.decode())
            if row.target != target:
                raise TableError(f"is a row of {row.target}, not of {target}")
        except (TableError, UnicodeDecodeError) as error:
            raise TableError(f"{path}:{number}: {error}; delete the line or the journal") from error
        rows.append(row)
    return JournalContent(target, tuple(rows), complete)


def _parse_first_line(line: bytes, path: Path) -> Target:
    try:
        head: Any = parse_json(line, "it")
        known = isinstance(head, dict) and head.get("hurricane_journal") == FORMAT
        if not known:
            raise ValueError(f"it names no journal of format {FORMAT}")
        return Target(**head["target"])
    except (ValueError, TypeError, KeyError, BadRequest) as error:
        raise TableError(
            f"{path}:1: is not the first line of a journal ({error}); delete or move the file"
        ) from error
