"""A linear correction of a table's sums, kept beside it as ``table.csv.calibration.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from ..ops.errors import BadRequest
from .files import write_atomically
from .table import LookupTable, TableError, Target

SUFFIX = ".calibration.json"
FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """network_ms = scale × (sum of the table's rows, call included) + offset_ms.

    Attributes:
        target: what it holds for.
        scale: positive.
        offset_ms: may be negative.
        rows_sha256: digest of the target's rows that it was fitted to
            (``table.select(target).sha256()``); empty: any.
        networks: measured networks that it was fitted on.
        rmspe: error left on networks that were held out, a fraction; None: not known.
        fitted_at: ISO 8601 with the zone; may be empty.
    """

    target: Target
    scale: float = 1.0
    offset_ms: float = 0.0
    rows_sha256: str = ""
    networks: int = 0
    rmspe: float | None = None
    fitted_at: str = ""

    def __post_init__(self) -> None:
        for name in ("scale", "offset_ms", *(() if self.rmspe is None else ("rmspe",))):
            value = getattr(self, name)
            if isinstance(value, bool | str) or not math.isfinite(value):
                raise BadRequest(f"calibration: {name} is {value!r}; it is a finite number")
        if self.scale <= 0:
            raise BadRequest(f"calibration: scale is {self.scale:g}; it is positive")
        if self.rmspe is not None and self.rmspe < 0:
            raise BadRequest(
                f"calibration: rmspe is {self.rmspe:g}; it is a fraction of at least 0"
            )
        if not isinstance(self.networks, int) or self.networks < 0:
            raise BadRequest(f"calibration: networks is {self.networks!r}; it counts networks")
        if self.fitted_at:
            datetime.fromisoformat(self.fitted_at)

    def check(self, table: LookupTable, target: Target) -> None:
        """Raises BadRequest unless it was fitted to these rows of this target."""
        if self.target != target:
            raise BadRequest(f"the calibration is of {self.target}, not of {target}")
        if self.rows_sha256 and self.rows_sha256 != table.select(target).sha256():
            raise BadRequest(
                f"the table's rows for {target} have changed since they were calibrated; "
                "fit the calibration again with hurricane verify, or delete it"
            )


def calibration_path(table_path: str | Path) -> Path:
    """Where the calibrations of a table lie."""
    path = Path(table_path)
    return path.with_name(path.name + SUFFIX)


def load_calibrations(table_path: str | Path) -> tuple[Calibration, ...]:
    """The calibrations beside a table, one a target; empty where there is no file.

    Raises:
        BadRequest: the file breaks the format; the message names it and what is wrong.
    """
    path = calibration_path(table_path)
    try:
        data: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} is not JSON ({error}); delete it or fit it again") from error
    try:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        found = tuple(_read(item) for item in data["calibrations"])
        if len({c.target for c in found}) < len(found):
            raise ValueError("a target is there twice")
        return found
    except (BadRequest, ValueError, TypeError, KeyError) as error:
        words = f"lacks the key {error}" if isinstance(error, KeyError) else str(error)
        raise BadRequest(f"{path}: {words}; delete the file or fit it again") from error


def find_calibration(table_path: str | Path, target: Target) -> Calibration | None:
    """The calibration of one target, or None."""
    return next((c for c in load_calibrations(table_path) if c.target == target), None)


def save_calibration(table_path: str | Path, calibration: Calibration) -> Path:
    """Adds a calibration to the file beside a table, in place of that of the same target.

    Returns:
        The file's path.
    """
    others = (c for c in load_calibrations(table_path) if c.target != calibration.target)
    kept = sorted((*others, calibration), key=lambda c: c.target)
    path = calibration_path(table_path)
    content = {"format": FORMAT, "calibrations": [asdict(c) for c in kept]}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def _read(item: Any) -> Calibration:
    if not isinstance(item, dict):
        raise ValueError("calibrations must be objects")
    unknown = set(item) - {f.name for f in fields(Calibration)}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
    for key in ("scale", "offset_ms"):
        if key not in item:
            raise KeyError(key)
    try:
        return Calibration(**{**item, "target": Target(**item["target"])})
    except TableError as error:
        raise ValueError(f"target: {error}") from error
