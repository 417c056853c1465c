"""Reading files that whoever starts an agent gives: whatever is wrong with one is a `BadRequest`.

The host has `ops.files` for the same, which this package does not import: it is Python 3.11.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Union

from .errors import BadRequest
from .text import printable

MAX_BYTES = 1024 * 1024
"""Of a file of settings, a token or certificates."""

MAX_TOML_BYTES = 256 * 1024
MAX_TOML_LINE = 2_000
"""Characters of a line: time and memory of the parser grow with the square of a dotted key."""

MAX_DEPTH = 32
"""Tables and lists inside each other; a device file has three."""

_SHOWN = 300
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LINE_CHARACTERS = re.compile("[\t\n\r]")


def read_bytes(path: Union[str, Path], what: str, limit: int = MAX_BYTES) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        what: names the kind of file in errors, such as ``device file``.
        limit: bytes that it may have.

    Raises:
        BadRequest: there is none, it cannot be read, or is too large.
    """
    where = f"{what} {path}"
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise BadRequest(f"{where} does not exist") from error
    except OSError as error:
        raise BadRequest(f"{where} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL byte
        raise BadRequest(f"{printable(where, _SHOWN)} cannot be read: {error}") from error
    if len(content) > limit:
        raise BadRequest(f"{where} has more than {limit // 1024} KiB, which no {what} has")
    return content


def parse_toml(content: Union[str, bytes], where: str) -> dict[str, Any]:
    """From TOML to its top table: finite numbers of at most 64 bits, and printable texts.

    Args:
        content: of the file; a byte order mark in front is left out.
        where: names the file in errors.

    Raises:
        BadRequest: it is not TOML, holds something else, or Python is older than 3.11 and tomli
            is not installed.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python < 3.11
        try:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise BadRequest(
                "simulated devices need tomli: pip install 'hurricane-nas[simulated]'"
            ) from error
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > MAX_TOML_LINE:
                raise ValueError(f"line {number} has more than {MAX_TOML_LINE:,} characters")
        data = tomllib.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadRequest(f"{where} is not TOML: {_reason(error)}") from error
    _check_values(data, where)
    return data


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text ({error.reason})"
    words = printable(str(error) or "it is too large", _SHOWN)
    return "a whole number has too many digits" if "set_int_max_str_digits" in words else words


def _check_values(data: Any, where: str) -> None:
    """Raises BadRequest for what no file of settings holds, at whatever depth."""
    waiting: list[tuple[Any, str, int]] = [(data, "", 0)]
    while waiting:
        value, place, depth = waiting.pop()
        problem = ""
        if isinstance(value, (dict, list)) and depth >= MAX_DEPTH:
            problem = "is nested too deeply"
        elif isinstance(value, dict):
            for key, item in value.items():
                if _UNPRINTABLE.search(key) or _LINE_CHARACTERS.search(key):
                    raise BadRequest(f"{where}: the key {key!r} has characters that no name has")
                waiting.append((item, f"{place}.{key}".lstrip("."), depth + 1))
        elif isinstance(value, list):
            waiting += ((item, f"{place}[{i}]", depth + 1) for i, item in enumerate(value))
        elif isinstance(value, str) and _UNPRINTABLE.search(value):
            problem = "has characters that no text has"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = f"must be a number that is finite, not {value}"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problem = "must be a number of at most 64 bits"
        if problem:
            raise BadRequest(f"{where}: {printable(place, _SHOWN)} {problem}")
