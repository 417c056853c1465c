"""Reading files that people and programs give: whatever is wrong with one is a `BadRequest`.

One function reads JSON and one TOML. What they give holds finite numbers of at most 64 bits, texts
that a terminal can show, no key twice, and little depth, so that code that takes fields out of it
has only their types to check.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from .errors import BadRequest

MAX_BYTES = 256 * 2**20
"""Of any file that is read as a whole: a table of half a million rows."""

MAX_MODEL_BYTES = 2**31
"""More than this no ONNX file without external data has."""

MAX_JSON_BYTES = 16 * 2**20
"""Parsed, JSON takes twenty times its size."""

MAX_TOML_BYTES = 256 * 2**10
"""A thousand boards."""

MAX_TOML_LINE = 2_000
"""Characters of a line: time and memory of Python's parser grow with the square of a dotted key."""

MAX_DEPTH = 32
"""Objects and lists inside each other; nothing of ours has more than six."""

_CHUNK = 2**20
_INT_RANGE = range(-(2**63), 2**63)

# Control characters (line ends and tabulators apart), halves of surrogate pairs, and marks that
# turn the direction of what is printed after them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LINE_CHARACTERS = re.compile("[\t\n\r]")


class MissingFile(BadRequest):
    """There is no such file."""


def read_bytes(path: str | Path, what: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Args:
        path: of a file, or of anything else that can be read to its end.
        what: names the kind of file in errors, such as ``space file``.
        limit: bytes that it may have.

    Raises:
        MissingFile: there is none.
        BadRequest: it cannot be read, or is too large.
    """
    where = f"{what} {path}"
    try:
        with open(path, "rb") as file:
            content = bytearray()
            while len(content) <= limit and (chunk := file.read(_CHUNK)):
                content += chunk
    except FileNotFoundError as error:
        raise MissingFile(f"{where} does not exist") from error
    except OSError as error:
        raise BadRequest(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, MemoryError) as error:  # a path with a NUL byte; no room for the content
        raise BadRequest(f"{where} cannot be read: {error or 'too large'}") from error
    if len(content) > limit:
        raise BadRequest(f"{where} has more than {_size(limit)}, which no {what} has")
    return bytes(content)


def read_text(path: str | Path, what: str, limit: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file; a byte order mark in front is left out.

    Raises:
        MissingFile, BadRequest: as `read_bytes`, and where it is not UTF-8.
    """
    content = read_bytes(path, what, limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{what} {path} is not UTF-8 text ({error.reason})") from error


def read_json(path: str | Path, what: str) -> Any:
    """The value of a JSON file.

    Raises:
        MissingFile: there is none.
        BadRequest: it cannot be read, or `parse_json` refuses it.
    """
    return parse_json(read_bytes(path, what, MAX_JSON_BYTES), f"{what} {path}")


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The top table of a TOML file.

    Raises:
        MissingFile: there is none.
        BadRequest: it cannot be read, or `parse_toml` refuses it.
    """
    return parse_toml(read_bytes(path, what, MAX_TOML_BYTES), f"{what} {path}")


def parse_json(content: str | bytes, where: str) -> Any:
    """From JSON to its value; `where` names the file in errors.

    Raises:
        BadRequest: it is not JSON, or holds a key twice, NaN, a number or text that is out of
            range, or too much depth.
    """
    try:
        data = json.loads(_decode(content), object_pairs_hook=_object)
    except _FAILURES as error:
        raise BadRequest(f"{where} is not JSON: {_reason(error)}") from error
    _check_values(data, where)
    return data


def parse_toml(content: str | bytes, where: str) -> dict[str, Any]:
    """From TOML to its top table; `where` names the file in errors.

    Raises:
        BadRequest: it is not TOML, or holds a number or text that is out of range, or too much
            depth.
    """
    # Python 3.11; boards, which import this package for its names only, may have an older one.
    import tomllib

    try:
        text = _decode(content)
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > MAX_TOML_LINE:
                raise ValueError(f"line {number} has more than {MAX_TOML_LINE:,} characters")
        data = tomllib.loads(text)
    except _FAILURES as error:
        raise BadRequest(f"{where} is not TOML: {_reason(error)}") from error
    _check_values(data, where)
    return data


_FAILURES = (ValueError, RecursionError, MemoryError)


def _decode(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode("utf-8-sig")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, MemoryError):
        return "it is too large"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text ({error.reason})"
    words = str(error)
    return "a whole number has too many digits" if "set_int_max_str_digits" in words else words


def _check_values(data: Any, where: str) -> None:
    """Raises BadRequest for what no file of ours holds, at whatever depth."""
    waiting: list[tuple[Any, _Place]] = [(data, _Place())]
    while waiting:
        value, place = waiting.pop()
        problem = _problem(value)
        if isinstance(value, dict | list) and place.depth >= MAX_DEPTH:
            problem = "is nested too deeply"
        if problem:
            raise BadRequest(f"{where}: {place or 'the value'} {problem}")
        if isinstance(value, dict):
            for key in value:
                if _UNPRINTABLE.search(key) or _LINE_CHARACTERS.search(key):
                    raise BadRequest(f"{where}: the key {key!r} has characters that no name has")
            waiting += ((item, _Place(key, place)) for key, item in value.items())
        elif isinstance(value, list):
            waiting += ((item, _Place(i, place)) for i, item in enumerate(value))


def _problem(value: Any) -> str:
    """What is wrong with a value by itself; empty: nothing."""
    if isinstance(value, str) and (found := _UNPRINTABLE.search(value)):
        return f"has the character U+{ord(found[0]):04X}, which no text has"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a number that is finite, not {value}"
    if isinstance(value, int) and value not in _INT_RANGE:
        return "must be a number of at most 64 bits"
    return ""


class _Place:
    """Where in a file a value stands; put into words only when it is needed."""

    __slots__ = ("depth", "key", "outer")

    def __init__(self, key: str | int | None = None, outer: _Place | None = None) -> None:
        self.key = key
        self.outer = outer
        self.depth: int = 0 if outer is None else outer.depth + 1

    def __str__(self) -> str:
        if self.outer is None:
            return ""
        if isinstance(self.key, int):
            return f"{self.outer}[{self.key}]"
        return f"{self.outer}.{self.key}".lstrip(".")

    def __bool__(self) -> bool:
        return self.outer is not None


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
