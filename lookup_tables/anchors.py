"""How fast a device was when its table was made: what the graphs of its rows took then.

Kept beside the table as ``table.csv.anchors.json``. Devices get faster and slower by a few percent
within minutes; whoever measures there later times the same graphs and knows by how much.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest
from ..ops.files import MissingFile, read_json
from .files import write_atomically
from .table import LookupTable, TableError, Target

SUFFIX = ".anchors.json"
FORMAT = 1
_ADVICE = "delete it, nothing but the comparison with earlier times is lost"


def anchors_path(table_path: str | Path) -> Path:
    """Where the anchors of a table lie."""
    path = Path(table_path)
    return path.with_name(path.name + SUFFIX)


def load_anchors(table_path: str | Path, target: Target) -> dict[str, float]:
    """What a target's graphs took when the table was made, by digest of the graph, in ms.

    Returns:
        Empty where nothing is known.

    Raises:
        BadRequest: the file breaks the format.
    """
    return next((ms for known, ms in _load(anchors_path(table_path)) if known == target), {})


def save_anchors(table_path: str | Path, target: Target, anchors_ms: Mapping[str, float]) -> Path:
    """Keeps what a target's graphs took beside a table, in place of those that were there.

    Returns:
        The file's path.
    """
    entries = {known: ms for known, ms in _load(anchors_path(table_path)) if known != target}
    return _write(table_path, entries | {target: dict(anchors_ms)})


def find_anchors(
    table: LookupTable, sources: Iterable[LookupTable]
) -> dict[Target, dict[str, float]]:
    """The anchors of a table that was put together from others.

    Args:
        table: the result.
        sources: tables that its rows come from.

    Returns:
        By target, where one of the sources holds just these rows of it: rows that were taken at
        different times have no speed of the device in common.
    """
    found = {}
    for source in sources:
        if source.path is None:
            continue
        for target, ms in _load(anchors_path(source.path)):
            there = target in source.targets() and target in table.targets()
            if there and source.select(target).sha256() == table.select(target).sha256():
                found[target] = ms
    return found


def replace_anchors(
    table_path: str | Path, anchors_ms: Mapping[Target, Mapping[str, float]]
) -> None:
    """Keeps these anchors beside a table and no others."""
    if anchors_ms:
        _write(table_path, anchors_ms)
    else:
        anchors_path(table_path).unlink(missing_ok=True)


def _write(table_path: str | Path, entries: Mapping[Target, Mapping[str, float]]) -> Path:
    path = anchors_path(table_path)
    content = {
        "format": FORMAT,
        "anchors": [
            {"target": asdict(known), "anchors_ms": dict(sorted(entries[known].items()))}
            for known in sorted(entries)
        ],
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def _load(path: Path) -> list[tuple[Target, dict[str, float]]]:
    try:
        data = read_json(path, "anchors")
    except MissingFile:
        return []
    except BadRequest as error:
        raise BadRequest(f"{error}; {_ADVICE}") from error
    try:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        return [
            (Target(**entry["target"]), {k: _ms(v) for k, v in entry["anchors_ms"].items()})
            for entry in data["anchors"]
        ]
    except (ValueError, TypeError, KeyError, AttributeError, TableError) as error:
        raise BadRequest(f"{path} is not a file of anchors ({error}); {_ADVICE}") from error


def _ms(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError("an anchor's latency is not a positive number")
    return float(value)
