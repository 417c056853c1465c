"""Leaves what a target does not take, or not well enough, out of a search space.

A candidate of which the support report says that it is not supported, falls back to another unit
or lies below an SQNR is treated as one without a latency: it is NaN, so that no score has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..lookup_tables.architecture import backbone_reference
from ..lookup_tables.cells import FALLBACK
from ..lookup_tables.model import LatencyModel
from ..lookup_tables.support import SupportReport, SupportRow
from ..lookup_tables.table import WITHOUT_LATENCY, Target
from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from ..ops.jsonfile import Fields
from ..ops.shapes import LayerShape

SAME = ("name", "device", "processor", "runtime", "options", "precision")
"""What a report's target has in common with the table's; versions may differ, and it is said."""

SAME_WITHOUT_DEVICE = ("processor", "precision")
"""What it has in common where it was made without the device, by an emulator or a compiler: these
have names and options of their own. It is said as well."""

_LISTED = 5


@dataclass(frozen=True)
class LeftOut:
    """A candidate that has a latency and is none all the same.

    Attributes:
        operator: its name.
        shape: the layer shape, as text.
        reason: ``unsupported``, ``failed``, ``timeout``, ``fallback:…``, or its SQNR in dB.
    """

    operator: str
    shape: str
    reason: str


@dataclass(frozen=True)
class SupportSource:
    """The support report that candidates were chosen by.

    Attributes:
        path: where it was read.
        sha256: of its canonical bytes.
        min_sqnr_db: SQNR that candidates have at least; None: any.
        left_out: by it, in the order of the layers.
    """

    path: str
    sha256: str
    min_sqnr_db: float | None
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """As a space file holds it."""
        return {**asdict(self), "left_out": [asdict(out) for out in self.left_out]}

    def text(self) -> str:
        """What was left out, in words: one line for each operator."""
        least = "" if self.min_sqnr_db is None else f" with at least {self.min_sqnr_db:g} dB"
        if not self.left_out:
            return f"{self.path}: all candidates are supported{least}"
        count = len(self.left_out)
        noun = "candidate" if count == 1 else "candidates"
        lines = [f"left out by {self.path}: {count} {noun}"]
        for name in dict.fromkeys(out.operator for out in self.left_out):
            places = [f"{o.shape} ({o.reason})" for o in self.left_out if o.operator == name]
            lines.append(f"  {name}: {', '.join(places)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class SupportedLatency:
    """A latency model without the candidates that were left out; a `scoring.LatencySource`.

    Attributes:
        latency_ms: [layers × operators]; NaN where the operator is no candidate.
        operators: names of the columns.
        fixed_ms: latency of everything but the learnable layers.
        source: what left them out.
        notes: what else is to be told.
    """

    latency_ms: NDArray[np.float64]
    operators: Sequence[str]
    fixed_ms: float
    source: SupportSource
    notes: tuple[str, ...]


def keep_supported(
    model: LatencyModel, report: SupportReport, path: str, min_sqnr_db: float | None = None
) -> SupportedLatency:
    """Leaves out what a support report speaks against.

    Args:
        model: the latencies.
        report: of the model's target.
        path: where the report lies.
        min_sqnr_db: the least SQNR; None: any, known or not.

    Raises:
        BadRequest: the SQNR is not finite; the report is of another target (one that was made by a
            compiler or an emulator: of another processor or precision), lacks candidates or
            their SQNR, or leaves a layer without any.
    """
    if min_sqnr_db is not None and not math.isfinite(min_sqnr_db):
        raise BadRequest(f"an SQNR of {min_sqnr_db} dB is no limit; give a finite number")
    target = _matching(report, model.target, path)
    rows = {(row.operator, row.shape): row for row in report.of(target).rows}
    known = np.isfinite(model.latency_ms)
    cells = dict.fromkeys(
        (model.operators[code], model.backbone.layers[layer]) for layer, code in np.argwhere(known)
    )
    _require(path, model, target, [cell for cell in cells if cell not in rows])
    if min_sqnr_db is not None:
        _require_sqnr(path, [rows[cell] for cell in cells])
    reasons = {cell: _reason(rows[cell], min_sqnr_db) for cell in cells}
    latency_ms = model.latency_ms.copy()
    for layer, code in np.argwhere(known):
        if reasons[model.operators[code], model.backbone.layers[layer]]:
            latency_ms[layer, code] = np.nan
    for layer in np.flatnonzero(np.isnan(latency_ms).all(axis=1)):
        raise BadRequest(
            f"{path} leaves no operator for layer {layer} ({model.backbone.layers[layer]}): "
            f"{_causes(reasons, model.backbone.layers[layer])}"
        )
    out = tuple(LeftOut(n, str(shape), why) for (n, shape), why in reasons.items() if why)
    return SupportedLatency(
        latency_ms,
        model.operators,
        model.fixed_ms,
        SupportSource(path, report.sha256(), min_sqnr_db, out),
        tuple(_notes(model, target, rows, path, min_sqnr_db)),
    )


def read_support_source(fields: Fields) -> SupportSource:
    """From a JSON object to the report that it names."""
    return SupportSource(
        fields.text("path"),
        fields.text("sha256"),
        fields.optional_number("min_sqnr_db"),
        tuple(
            LeftOut(out.text("operator"), out.text("shape"), out.text("reason"))
            for out in fields.objects("left_out")
        ),
    )


def _matching(report: SupportReport, target: Target, path: str) -> Target:
    """The report's target that is the table's."""
    found = [one for one in report.targets() if _identity(one) == _identity(target)]
    if target in found:
        return target
    if len(found) == 1:
        return found[0]
    if found:
        versions = ", ".join(one.runtime_version for one in found)
        raise BadRequest(
            f"{path} has {target.name} with several versions ({versions}), none of them the "
            f"table's {target.runtime_version}"
        )
    without = [one for one in report.targets() if _stands_in_for(one, target)]
    if len(without) == 1:
        return without[0]
    have = "; ".join(map(str, report.targets())) or "nothing"
    raise BadRequest(f"{path} is of another target: the table is of {target}, and it has {have}")


def _stands_in_for(one: Target, target: Target) -> bool:
    """Whether a report's target is a compiler or an emulator for a table's kind of processor."""
    same = all(getattr(one, name) == getattr(target, name) for name in SAME_WITHOUT_DEVICE)
    return one.origin in WITHOUT_LATENCY and same


def _identity(target: Target) -> tuple[object, ...]:
    return tuple(getattr(target, name) for name in SAME)


def _require(
    path: str, model: LatencyModel, target: Target, lacking: Sequence[tuple[str, LayerShape]]
) -> None:
    """Raises BadRequest for candidates of which the report says nothing."""
    if not lacking:
        return
    names = ",".join(dict.fromkeys(name for name, _ in lacking))
    raise BadRequest(
        f"{path} lacks {_listed([f'{name} at {shape}' for name, shape in lacking])}; ask for them: "
        f"hurricane support --layers {backbone_reference(model.backbone)} --operators '{names}' "
        f"--target {target.name} -o {path}"
    )


def _require_sqnr(path: str, rows: Sequence[SupportRow]) -> None:
    """Raises BadRequest for candidates that run and whose SQNR is not known."""
    unknown = [row for row in rows if row.ok and row.exactness_db is None]
    if unknown:
        names = _listed([f"{row.operator} at {row.shape}" for row in unknown])
        raise BadRequest(
            f"{path} has no SQNR of {names} ({unknown[0].reason}): leave --min-sqnr out"
        )


def _reason(row: SupportRow, min_sqnr_db: float | None) -> str:
    """Why a row's operator is no candidate; empty: it is one."""
    if not row.ok:
        return row.status
    if row.falls_back:
        return next(word for word in row.flag_words if word.startswith(FALLBACK))
    exactness = row.exactness_db
    if min_sqnr_db is not None and exactness is not None and exactness < min_sqnr_db:
        return f"{exactness:.1f} dB"
    return ""


def _causes(reasons: dict[tuple[str, LayerShape], str], shape: LayerShape) -> str:
    return _listed([f"{name} {why}" for (name, where), why in reasons.items() if where == shape])


def _notes(
    model: LatencyModel,
    target: Target,
    rows: dict[tuple[str, LayerShape], SupportRow],
    path: str,
    min_sqnr_db: float | None,
) -> list[str]:
    """What a report says that leaves out no candidate."""
    notes = []
    if target != model.target:
        notes.append(f"{path} is of {target}, the table of {model.target}")
    for name, shape in _fixed(model.backbone):
        row = rows.get((name, shape))
        if row is not None and (why := _reason(row, min_sqnr_db)):
            notes.append(f"{path}: {name}, which every network has: {why}")
    return notes


def _fixed(backbone: Backbone) -> tuple[tuple[str, LayerShape], ...]:
    return (
        (backbone.stem_name, backbone.stem_shape),
        (backbone.head_name, backbone.head_shape),
    )


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return ", ".join(words[:_LISTED]) + more
