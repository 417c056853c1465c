"""How fast a device was when its table was made: what the graphs of its rows took then.

Kept beside the table as ``table.csv.anchors.json``. Devices get faster and slower by a few percent
within minutes; whoever measures there later times the same graphs and knows by how much.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest
from .files import write_atomically
from .table import LookupTable, TableError, Target

SUFFIX = ".anchors.json"
FORMAT = 1


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
        data: Any = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        found = [
            (Target(**entry["target"]), {str(k): float(v) for k, v in entry["anchors_ms"].items()})
            for entry in data["anchors"]
        ]
        if any(not (math.isfinite(ms) and ms > 0) for _, known in found for ms in known.values()):
            raise ValueError("an anchor's latency is not positive")
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, TableError) as error:
        raise BadRequest(
            f"{path} is not a file of anchors ({error}); delete it, nothing but the comparison "
            "with earlier times is lost"
        ) from error
