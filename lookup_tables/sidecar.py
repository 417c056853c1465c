"""Files beside a table that hold one entry for each of its targets.

A row of a table holds what an operator takes; what holds for all rows of a target, such as how fast
the device was, is kept in ``table.csv.NAME.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.files import MissingFile, read_json
from .table import LookupTable, TableError, Target

T = TypeVar("T")


@dataclass(frozen=True)
class Layout(Generic[T]):
    """How a version of a file is laid out.

    Attributes:
        suffix: of the file's name.
        format: number of the layout.
        entries: key of the list of entries.
        value: key of an entry's value, beside its ``target``.
        read: makes the value from JSON; raises ValueError, TypeError or KeyError.
    """

    suffix: str
    format: int
    entries: str
    value: str
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Sidecar(Generic[T]):
    """One kind of such file.

    Attributes:
        name: of its content, for messages.
        layout: that is written.
        write: makes JSON from a value.
        lost: what is lost with the file, for messages.
        earlier: layouts of earlier versions, which are still read.
    """

    name: str
    layout: Layout[T]
    write: Callable[[T], Any]
    lost: str
    earlier: tuple[Layout[T], ...] = ()

    def path(self, table_path: str | Path) -> Path:
        """Where the file of a table lies."""
        return _beside(table_path, self.layout)

    def load(self, table_path: str | Path) -> dict[Target, T]:
        """The entries by target; empty where there is no file.

        Raises:
            BadRequest: the file breaks the format.
        """
        for layout in (self.layout, *self.earlier):
            try:
                return self._read(_beside(table_path, layout), layout)
            except MissingFile:
                continue
        return {}

    def save(self, table_path: str | Path, target: Target, value: T) -> Path:
        """Keeps a target's entry, in place of what was there of it; gives the file's path."""
        self.replace(table_path, {**self.load(table_path), target: value})
        return self.path(table_path)

    def find(self, table: LookupTable, sources: Iterable[LookupTable]) -> dict[Target, T]:
        """The entries of a table that was put together from others.

        Args:
            table: the result.
            sources: tables that its rows come from.

        Returns:
            By target, where one of the sources holds just these rows of it: rows that were taken
            at different times have no such entry in common.
        """
        found = {}
        for source in sources:
            if source.path is None:
                continue
            for target, value in self.load(source.path).items():
                there = target in source.targets() and target in table.targets()
                if there and source.select(target).sha256() == table.select(target).sha256():
                    found[target] = value
        return found

    def replace(self, table_path: str | Path, entries: Mapping[Target, T]) -> None:
        """Keeps these entries beside a table and no others."""
        if entries:
            layout = self.layout
            content = {
                "format": layout.format,
                layout.entries: [
                    {"target": asdict(known), layout.value: self.write(entries[known])}
                    for known in sorted(entries)
                ],
            }
            data = (json.dumps(content, indent=2) + "\n").encode()
            write_atomically(self.path(table_path), data)
        else:
            self.path(table_path).unlink(missing_ok=True)
        for layout in self.earlier:
            _beside(table_path, layout).unlink(missing_ok=True)

    def _read(self, path: Path, layout: Layout[T]) -> dict[Target, T]:
        advice = f"delete it, nothing but {self.lost} is lost"
        try:
            data = read_json(path, self.name)
        except MissingFile:
            raise
        except BadRequest as error:
            raise BadRequest(f"{error}; {advice}") from error
        try:
            if not isinstance(data, dict) or data.get("format") != layout.format:
                raise ValueError(f"format is not {layout.format}")
            return {
                Target(**entry["target"]): layout.read(entry[layout.value])
                for entry in data[layout.entries]
            }
        except (ValueError, TypeError, KeyError, AttributeError, TableError) as error:
            raise BadRequest(
                f"{path} is not a file of {self.name} ({reason(error)}); {advice}"
            ) from error


def positive(value: Any, name: str) -> float:
    """A positive number read from JSON, such that products of a few of them are numbers, too.

    Raises:
        ValueError: it is none.
    """
    low, high = _RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it is a positive number of at most {high:g}")
    return float(value)


def not_negative(value: Any, name: str) -> float:
    """A finite number of at least 0 read from JSON.

    Raises:
        ValueError: it is none.
    """
    _, high = _RANGE
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise ValueError(f"{name} is {value!r}; it is a number from 0 to {high:g}")
    return float(value)


_RANGE = (1e-12, 1e12)


def reason(error: Exception) -> str:
    """Why a value could not be read from JSON, in words."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _beside(table_path: str | Path, layout: Layout[Any]) -> Path:
    path = Path(table_path)
    return path.with_name(path.name + layout.suffix)
