"""JSON files on disk: written whole or not at all, read with errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic import write_atomically
from .errors import BadRequest
from .files import read_json


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON atomically; makes the folder where there is none.

    Not-a-number is refused, as JSON has no word for it (`without_nan`).
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode(), make_folder=True)


def without_nan(value: Any) -> Any:
    """A value with null for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Fields:
    """A parsed JSON object whose fields are taken with their type checked.

    Args:
        data: the object.
        where: what it is and where it came from, for errors (``space file a/space.json``).
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise BadRequest(f"{where} must hold a JSON object")
        self._data: dict[str, Any] = data
        self.where = where

    @classmethod
    def load(cls, path: str | Path, what: str, format_version: int) -> Fields:
        """Reads a file whose ``format_version`` must be the given one.

        Raises:
            BadRequest: no such file, not JSON (`ops.files.read_json`), or another format version.
        """
        where = f"{what} {path}"
        fields = cls(read_json(path, what), where)
        found = fields.integer("format_version")
        if found != format_version:
            raise BadRequest(
                f"{where} has format version {found}, this version reads {format_version}"
            )
        return fields

    def fail(self, key: str, expected: str) -> BadRequest:
        """The error for a field that is not what it must be."""
        return BadRequest(f"{self.where}: {key} must be {expected}")

    def get(self, key: str) -> Any:
        if key not in self._data:
            raise BadRequest(f"{self.where} lacks the field {key}")
        return self._data[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(key, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self._data.get(key) is None else self.text(key)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(key, f"one of {', '.join(allowed)}")
        return value

    def integer(self, key: str, minimum: int = 0) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.fail(key, f"a whole number of at least {minimum}")
        return value

    def optional_integer(self, key: str) -> int | None:
        return None if self._data.get(key) is None else self.integer(key)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def number(self, key: str, minimum: float | None = 0.0) -> float:
        """A finite number; `minimum` None: of any sign."""
        return self._number(self.get(key), key, minimum)

    def optional_number(self, key: str) -> float | None:
        return None if self._data.get(key) is None else self.number(key)

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.items(key)
        if not all(isinstance(v, str) and v for v in value):
            raise self.fail(key, "a list of texts")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        return tuple(self._number(v, key, 0.0) for v in self.items(key))

    def pair(self, key: str) -> tuple[float, float]:
        value = self.numbers(key)
        if len(value) != 2:
            raise self.fail(key, "two numbers")
        return value[0], value[1]

    def optional_pair(self, key: str) -> tuple[float, float] | None:
        return None if self._data.get(key) is None else self.pair(key)

    def objects(self, key: str) -> list[Fields]:
        return [Fields(v, f"{self.where}: {key}[{i}]") for i, v in enumerate(self.items(key))]

    def object(self, key: str) -> Fields:
        return Fields(self.get(key), f"{self.where}: {key}")

    def optional_object(self, key: str) -> Fields | None:
        return None if self._data.get(key) is None else self.object(key)

    def as_dict(self) -> dict[str, Any]:
        return dict(self._data)

    def _number(self, value: Any, key: str, minimum: float | None) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or (minimum is not None and value < minimum):
            least = "" if minimum is None else f" of at least {minimum:g}"
            raise self.fail(key, f"a number{least}")
        return float(value)
