"""What end-to-end networks showed of a table, kept beside it as ``table.csv.calibration.json``.

A linear correction of the table's sums, how good it is on networks that it was not fitted to,
and the answer of the additivity check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.files import MissingFile, read_json
from ..ops.jsonfile import without_nan
from .table import LookupTable, TableError, Target
from .verdict import (
    AdditivityCheck,
    Cause,
    ErrorFigures,
    GroupCheck,
    Verdict,
    error_beyond_noise,
)

SUFFIX = ".calibration.json"
FORMAT = 3
READABLE = (1, 2, FORMAT)

_FORMER_CAUSES = {Verdict.NOT_ADDITIVE: Cause.ERROR, Verdict.INCONCLUSIVE: Cause.NOISE}
"""Causes of the verdicts of format 2, which had one each."""


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
        backbone: name of the networks' backbone; empty: any.
        held_out: networks that `rmspe` is of, none of which the line was fitted to; 0: each of
            `networks` was left out in turn.
        applied: whether it is to be used; else sums are better as they are.
        check: the answer of the additivity check; None: there was none.
        groups: the error figures by group of networks; may be empty.
    """

    target: Target
    scale: float = 1.0
    offset_ms: float = 0.0
    rows_sha256: str = ""
    networks: int = 0
    rmspe: float | None = None
    fitted_at: str = ""
    backbone: str = ""
    held_out: int = 0
    applied: bool = True
    check: AdditivityCheck | None = None
    groups: tuple[GroupCheck, ...] = ()

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
        for name in ("networks", "held_out"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise BadRequest(f"calibration: {name} is {value!r}; it counts networks")
        if not isinstance(self.applied, bool):
            raise BadRequest(f"calibration: applied is {self.applied!r}; it is true or false")
        for name in ("rows_sha256", "fitted_at", "backbone"):
            if not isinstance(getattr(self, name), str):
                raise BadRequest(f"calibration: {name} is {getattr(self, name)!r}; it is a text")
        if self.fitted_at:
            datetime.fromisoformat(self.fitted_at)

    @property
    def verdict(self) -> Verdict | None:
        """The additivity check's; None: there was none."""
        return None if self.check is None else self.check.verdict

    @property
    def line(self) -> tuple[float, float]:
        """Scale and offset in ms that predictions are made with."""
        return (self.scale, self.offset_ms) if self.applied else (1.0, 0.0)

    @property
    def model_error(self) -> float | None:
        """Error of predictions beyond the noise of the networks' times, a fraction.

        Of random networks, held out where the calibration is applied; None: not known.
        """
        random = next((g for g in self.groups if g.group == "random"), None)
        if random is None:
            return self.rmspe if self.applied else None
        figures = random.calibrated if self.applied else random.prediction
        return None if figures is None else error_beyond_noise(figures, random.noise_floor)

    def fits(self, table: LookupTable) -> bool:
        """Whether the target's rows are those that it was fitted to."""
        return not self.rows_sha256 or self.rows_sha256 == table.select(self.target).sha256()

    def require(self, table: LookupTable, target: Target) -> None:
        """Raises BadRequest unless it was fitted to these rows of this target."""
        if self.target != target:
            raise BadRequest(f"the calibration is of {self.target}, not of {target}")
        if not self.fits(table):
            raise BadRequest(
                f"the table's rows for {target} have changed since they were calibrated; "
                "fit the calibration again with hurricane verify, or delete it"
            )

    def text(self) -> str:
        """The line and how good it is, in words."""
        if not self.networks:
            return "none fits"
        others = f"{self.held_out} networks held out" if self.held_out else "those left out in turn"
        error = f", RMSPE {self.rmspe:.1%} on {others}" if self.rmspe is not None else ""
        unused = "" if self.applied else "; not applied"
        return (
            f"{self.scale:.4g} × sum {self.offset_ms:+.3g} ms, fitted to {self.networks} "
            f"networks{error}{unused}"
        )


def calibration_path(table_path: str | Path) -> Path:
    """Where the calibrations of a table lie."""
    path = Path(table_path)
    return path.with_name(path.name + SUFFIX)


def load_calibrations(table_path: str | Path) -> tuple[Calibration, ...]:
    """The calibrations beside a table, one for each target and backbone; empty without a file.

    Raises:
        BadRequest: the file breaks the format; the message names it and what is wrong.
    """
    path = calibration_path(table_path)
    try:
        data = read_json(path, "calibration")
    except MissingFile:
        return ()
    except BadRequest as error:
        raise BadRequest(f"{error}; delete it or fit it again") from error
    try:
        if not isinstance(data, dict) or data.get("format") not in READABLE:
            raise ValueError(f"format is none of {', '.join(map(str, READABLE))}")
        former = data["format"] < FORMAT
        found = tuple(_read(_renamed(i) if former else i) for i in data["calibrations"])
        if len({_key(c) for c in found}) < len(found):
            raise ValueError("a target is there twice")
        return found
    except (BadRequest, ValueError, TypeError, KeyError) as error:
        words = f"lacks the key {error}" if isinstance(error, KeyError) else str(error)
        raise BadRequest(f"{path}: {words}; delete the file or fit it again") from error


def find_calibration(
    table_path: str | Path, target: Target, backbone: str | None = None
) -> Calibration | None:
    """The calibration of one target, or None.

    Args:
        table_path: the table.
        target: one of its targets.
        backbone: name of the networks' backbone; None: any.
    """
    found = [c for c in load_calibrations(table_path) if c.target == target]
    if backbone is not None:
        found = [c for c in found if c.backbone in (backbone, "")]
    return max(found, key=lambda c: c.backbone, default=None)  # a backbone's own comes first


def save_calibration(table_path: str | Path, calibration: Calibration) -> Path:
    """Adds a calibration to the file beside a table, in place of that of the same target.

    Returns:
        The file's path.
    """
    others = (c for c in load_calibrations(table_path) if _key(c) != _key(calibration))
    replace_calibrations(table_path, (*others, calibration))
    return calibration_path(table_path)


def replace_calibrations(table_path: str | Path, calibrations: Iterable[Calibration]) -> None:
    """Keeps these calibrations beside a table and no others; none: no file."""
    kept = [without_nan(asdict(c)) for c in sorted(calibrations, key=_key)]
    path = calibration_path(table_path)
    if kept:
        content = {"format": FORMAT, "calibrations": kept}
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    else:
        path.unlink(missing_ok=True)


def _key(calibration: Calibration) -> tuple[Target, str]:
    return calibration.target, calibration.backbone


def _read(item: Any) -> Calibration:
    if not isinstance(item, dict):
        raise ValueError("calibrations must be objects")
    _check_keys(item, Calibration)
    for key in ("scale", "offset_ms"):
        if key not in item:
            raise KeyError(key)
    check = item.get("check")
    read = {
        "check": None if check is None else _read_check(check),
        "groups": tuple(_read_group(group) for group in item.get("groups", ())),
    }
    try:
        return Calibration(**{**item, **read, "target": Target(**item["target"])})
    except TableError as error:
        raise ValueError(f"target: {error}") from error


def _renamed(item: Any) -> Any:
    """An item of format 1 or 2 with the keys of this one."""
    if not isinstance(item, dict):
        return item
    known = {key: value for key, value in item.items() if key not in ("verdict", "reason")}
    if item.get("verdict") is not None:
        verdict = Verdict(item["verdict"])
        cause = _FORMER_CAUSES.get(verdict)
        known["check"] = {"verdict": verdict, "cause": cause, "reason": item.get("reason", "")}
    if isinstance(groups := item.get("groups"), list):
        known["groups"] = [
            {"split_half" if key == "retest" else key: value for key, value in group.items()}
            if isinstance(group, dict)
            else group
            for group in groups
        ]
    return known


def _read_check(item: Any) -> AdditivityCheck:
    if not isinstance(item, dict):
        raise ValueError("check must be an object")
    _check_keys(item, AdditivityCheck)
    if not isinstance(reason := item.get("reason", ""), str):
        raise ValueError(f"reason is {reason!r}; it is a text")
    cause = item.get("cause")
    return AdditivityCheck(
        Verdict(item["verdict"]), reason, None if cause is None else Cause(cause)
    )


def _read_group(item: Any) -> GroupCheck:
    if not isinstance(item, dict):
        raise ValueError("groups must be objects")
    _check_keys(item, GroupCheck)
    if not isinstance(item["group"], str):
        raise ValueError(f"group is {item['group']!r}; it is a text")
    calibrated = item.get("calibrated")
    return GroupCheck(
        item["group"],
        _read_figures(item["prediction"]),
        _read_figures(item["split_half"]),
        _count("failed", item["failed"]),
        None if calibrated is None else _read_figures(calibrated),
    )


def _read_figures(item: Mapping[str, Any]) -> ErrorFigures:
    _check_keys(item, ErrorFigures)
    values = {
        f.name: item[f.name] if f.default is MISSING else item.get(f.name)
        for f in fields(ErrorFigures)
    }
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} is {value!r}; it is a number or null")
    count = _count("count", values.pop("count") or 0)
    figures = {key: math.nan if value is None else float(value) for key, value in values.items()}
    return ErrorFigures(count, **figures)


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r}; it counts networks")
    return value


def _check_keys(item: Mapping[str, Any], kind: Any) -> None:
    unknown = set(item) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(f"unknown key {min(unknown)!r}")
