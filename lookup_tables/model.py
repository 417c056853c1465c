"""The latency model: from a table to milliseconds for architectures, by the million.

A network's latency is the sum of its operators' marginal latencies, those of stem and head,
and the price of one call. The array `LatencyModel.latency_ms` and `LatencyModel.fixed_ms`
are all there is to it, so that other code (counting, sampling) can work on them directly.
"""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.backbone import Backbone, load_backbone, shipped_backbones
from ..ops.errors import BadRequest
from ..ops.pool import POOL, applies, parse_operator
from ..ops.shapes import LayerShape, format_ranges
from .calibration import Calibration
from .cells import has_flag
from .proportion import NORMAL_90, NORMAL_95
from .spread import QUIET, SPREADS, STATISTICS, NetworkTimes, Spread
from .table import LookupTable, Row, Target, parse_options

BETWEEN_RUNS = 0.015
"""By how much calls of a network differ from one process and quarter of an hour to the next, as a
share: where memory lies, and what else a shared machine does (`benchmarks/outsider.py`)."""


@dataclass(frozen=True)
class MissingCell:
    """An operator without a latency at a layer shape where it applies.

    Attributes:
        operator: its name.
        shape: the layer shape.
        reason: ``unsupported``, ``failed``, ``timeout``, or ``absent`` (never tried).
    """

    operator: str
    shape: LayerShape
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} at {self.shape}: {self.reason}"


class LatencyModel:
    """Milliseconds for architectures of a backbone on a target.

    Args:
        table: where the latencies come from; only ``ok`` rows are used.
        backbone: gives the layer shapes, stem and head.
        target: as `LookupTable.target` takes it; None where the table holds one.
        operators: names to use; None: every one that has a row at a layer of the backbone.
        calibration: a linear correction; where it is to be applied, it is worked into the array
            and `fixed_ms`. Its figures widen the intervals of `interval`.
        batch: images in one call; rows of this batch are used.
        statistic: what latencies are of, one of `spread.STATISTICS`; None: the median where what
            calls take beyond their quiet times is known, else the quiet time.

    Attributes:
        target: the target that was found.
        table_path: where the table lies; None: nowhere.
        operators: names of the columns; a code is a column index. An operator is a column as
            soon as it has one ``ok`` row at a layer of the backbone.
        latency_ms: float64 [layers × operators], NaN where there is no ``ok`` row or the
            operator does not apply. Read-only.
        fixed_ms: stem, head and the price of one call.
        statistic: what latencies are of.
        call_ms: the price of a call in it, before calibration: that of the stem's row, which
            is taken with a network's input; the median over the operators' rows where the
            stem's has none; 0 where no row has one.

    Raises:
        BadRequest: the table lacks stem or head, or a layer has no operator at all (the
            message says what to run), the target is not clear, or the statistic is not known.
    """

    def __init__(
        self,
        table: LookupTable,
        backbone: Backbone,
        target: Target | str | None = None,
        operators: Iterable[str] | None = None,
        calibration: Calibration | None = None,
        batch: int = 1,
        statistic: str | None = None,
    ) -> None:
        self.backbone = backbone
        self.target = table.target(target)
        self.table_path = table.path
        self.calibration = calibration
        self.spread = _spread(table, self.target)
        known = "median" if self.spread.ratio("median") is not None else QUIET
        self.statistic = statistic or known
        if calibration is not None:
            calibration.require(table, self.target)
        shapes = backbone.distinct_shapes
        rows = {
            (row.operator, row.shape): row
            for row in table.rows
            if row.target == self.target and row.batch == batch
        }
        stem, head = _stem_and_head(table, backbone, self.target, rows)
        names = _names(rows, shapes, operators)
        self._missing = _missing(rows, shapes, names)
        ok = {key: row for key, row in rows.items() if row.ok}
        self.operators = tuple(n for n in names if any((n, shape) in ok for shape in shapes))
        self._code = {name: code for code, name in enumerate(self.operators)}

        cells = np.full((len(backbone.layers), len(self.operators)), np.nan)
        widths = np.full((2, *cells.shape), np.nan)
        for layer, shape in enumerate(backbone.layers):
            for name, code in self._code.items():
                row = ok.get((name, shape))
                if row is not None and applies(name, shape, unknown=True):
                    cells[layer, code] = row.latency_ms
                    widths[:, layer, code] = _half_widths(row)
        self._fixed_rows = (stem, head)
        self._rows = {k: ok[k] for k in ok if k[0] in self._code and k[1] in set(shapes)}
        empty = [layer for layer in range(len(cells)) if np.isnan(cells[layer]).all()]
        if empty:
            layers_without = format_ranges(empty)
            raise BadRequest(
                f"{_name(table)} has no operator for layers {layers_without} of {backbone.name} on "
                f"{self.target.name}; fill them: "
                + fill_command(table.path, backbone, self.target, layers_without)
            )

        prices = [row.call_ms for row in self._rows.values() if row.call_ms is not None]
        self.call_ms = stem.call_ms if stem.call_ms is not None else median(prices or [0.0])
        fixed = _latency_ms(stem) + _latency_ms(head) + self.call_ms
        scale, offset_ms = calibration.line if calibration is not None else (1.0, 0.0)
        ratio = self.ratio(self.statistic)
        scale, offset_ms = scale * ratio, offset_ms * ratio
        cells *= scale
        fixed = scale * fixed + offset_ms
        self._half_widths_ms = scale * widths
        self._fixed_half_widths_ms = scale * np.array([_half_widths(stem), _half_widths(head)]).T
        cells.flags.writeable = False
        self.latency_ms: NDArray[np.float64] = cells
        self.fixed_ms = float(fixed)
        if calibration is not None and self.bounds()[0] <= 0:
            raise BadRequest(
                f"the calibration (scale {scale:g}, offset {offset_ms:g} ms) gives the "
                f"fastest network "
                f"{self.bounds()[0]:.3g} ms; fit it again"
            )

    def __repr__(self) -> str:
        layers, operators = self.latency_ms.shape
        return (
            f"LatencyModel({self.backbone.name} on {self.target.name}, "
            f"{layers} layers, {operators} operators)"
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that latencies come from: stem, head, and the operators at each shape."""
        return (*self._fixed_rows, *self._rows.values())

    def ratio(self, statistic: str) -> float:
        """A statistic of networks over their quiet time.

        Raises:
            BadRequest: it is not known for this table, or there is no such statistic.
        """
        if statistic not in STATISTICS:
            raise BadRequest(f"{statistic!r} is none of {', '.join(STATISTICS)}")
        found = self.spread.ratio(statistic)
        if found is None:
            raise BadRequest(
                f"{self.table_path or 'the table'} does not tell the {statistic} on "
                f"{self.target.name}: profile a whole backbone again, or ask for {QUIET}"
            )
        return found

    def predict(self, codes: ArrayLike, statistic: str | None = None) -> NDArray[np.float64]:
        """Latencies of architectures.

        Args:
            codes: integers [N × layers], columns of `latency_ms`. Small types (int8) are the
                fastest: over 10 million architectures a second.
            statistic: one of `spread.STATISTICS`; None: the model's own.

        Returns:
            float64 [N], in ms; layer by layer summed, as a plain loop would.

        Raises:
            BadRequest: the array's shape is wrong, or a code has no latency at its layer.
        """
        array = self._check_codes(codes)
        total = np.full(len(array), self.fixed_ms)
        for layer, row in enumerate(self.latency_ms):
            total += row.take(array[:, layer])
        if np.isnan(total).any():
            self._refuse(array[int(np.isnan(total).argmax())])
        if statistic not in (None, self.statistic):
            total *= self.ratio(statistic) / self.ratio(self.statistic)
        return total

    def interval(self, codes: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Within which the latencies of architectures lie, with 90% confidence.

        Half-width² = Σ over rows (times used × the row's half-width)² + (1.645 × e × latency)².
        Rows are taken as independent, and layers of one row err together. e² is the sum of the
        squares of `additivity_error`, and, but for the quiet time, of the scatter of networks'
        ratios, of the drift of the device's speed, of half the change of the statistic within the
        run (`Spread`), and on a real device of `BETWEEN_RUNS`.

        Args:
            codes: as `predict` takes them, integers [N × layers].

        Returns:
            Low and high ends, float64 [N] each, in ms; NaN where a row has no interval.
        """
        latency = self.predict(codes)
        array = self._check_codes(codes)
        squares = np.tile((self._fixed_half_widths_ms**2).sum(axis=1)[:, None], len(array))
        shapes = np.array([self.backbone.layers.index(shape) for shape in self.backbone.layers])
        for first in np.unique(shapes):
            layers = np.flatnonzero(shapes == first)
            chosen = array[:, layers]
            same = (chosen[:, :, None] == chosen[:, None, :]).astype(np.float64)
            widths = self._half_widths_ms[:, first, :][:, chosen]  # [2 × N × layers]
            squares += np.einsum("kni,nij,knj->kn", widths, same, widths)
        squares *= (NORMAL_90 / NORMAL_95) ** 2
        error = self.additivity_error**2
        if self.statistic != QUIET:
            error += self.spread.scatter(self.statistic) ** 2 + self.spread.drift**2
            error += (self.spread.change(self.statistic) / 2) ** 2
            if self.target.origin == "measured":
                error += BETWEEN_RUNS**2
        squares += (NORMAL_90 * latency) ** 2 * error
        low, high = np.sqrt(squares)
        return np.maximum(latency - low, 0.0), latency + high

    @property
    def additivity_error(self) -> float:
        """How far sums are from networks, RMSPE as a fraction; 0 where it is not known.

        By the calibration that is in use, else by the networks that were timed among the rows.
        """
        if self.calibration is not None and self.calibration.model_error is not None:
            return self.calibration.model_error
        errors = []
        for network in self.spread.networks:
            if network.backbone != self.backbone.name:
                continue
            with contextlib.suppress(BadRequest):  # an operator that the model has not
                (predicted,) = self.predict(self.encode(network.operators)[None], QUIET)
                errors.append(predicted / network.quiet_ms - 1)
        return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0

    def interval_of(self, names: Sequence[str]) -> tuple[float, float] | None:
        """The interval in ms of one architecture, given by names; None where it is not known."""
        (low,), (high,) = self.interval(self.encode(names)[None])
        return None if np.isnan(low + high) else (float(low), float(high))

    def latency_of(self, names: Sequence[str], statistic: str | None = None) -> float:
        """The latency in ms of one architecture, given by names; see `predict`."""
        return float(self.predict(self.encode(names)[None], statistic)[0])

    def encode(self, names: Sequence[str]) -> NDArray[np.intp]:
        """From an architecture's operator names, one a layer, to codes [layers].

        Raises:
            BadRequest: the number of names is wrong, or one has no latency at its layer.
        """
        if len(names) != len(self.backbone.layers):
            raise BadRequest(
                f"{self.backbone.name} has {len(self.backbone.layers)} layers, "
                f"the architecture names {len(names)}"
            )
        codes = np.array([self._code_of(name) for name in names], dtype=np.intp)
        if np.isnan(self.latency_ms[np.arange(len(codes)), codes]).any():
            self._refuse(codes)
        return codes

    def decode(self, codes: ArrayLike) -> tuple[str, ...]:
        """From codes [layers] to operator names."""
        return tuple(self.operators[code] for code in self._check_codes(np.asarray(codes)[None])[0])

    def candidates(self, layer: int) -> tuple[str, ...]:
        """Names of the operators that have a latency at a layer."""
        return tuple(
            name
            for name, ms in zip(self.operators, self.latency_ms[layer], strict=True)
            if ms == ms
        )

    def bounds(
        self, allowed: Sequence[Iterable[int | str]] | NDArray[np.bool_] | None = None
    ) -> tuple[float, float]:
        """The lowest and the highest latency in ms that any architecture has, exactly.

        Args:
            allowed: for each layer, the operators (names or codes) to choose from, or a mask
                [layers × operators]; None: all that have a latency.

        Raises:
            BadRequest: a layer has nothing to choose from, or a choice has no latency.
        """
        mask = self.mask(allowed)
        fastest = np.where(mask, self.latency_ms, np.inf).argmin(axis=1)
        slowest = np.where(mask, self.latency_ms, -np.inf).argmax(axis=1)
        # By predict, so that no architecture lies outside by a rounding of the sum.
        low, high = self.predict(np.stack([fastest, slowest]))
        return float(low), float(high)

    def mask(
        self, allowed: Sequence[Iterable[int | str]] | NDArray[np.bool_] | None = None
    ) -> NDArray[np.bool_]:
        """What may be chosen, as booleans [layers × operators]; see `bounds`."""
        known = ~np.isnan(self.latency_ms)
        if allowed is None:
            return known
        if isinstance(allowed, np.ndarray) and allowed.dtype == bool:
            mask = allowed
            if mask.shape != known.shape:
                raise BadRequest(f"the mask has shape {mask.shape}, not {known.shape}")
        else:
            if len(allowed) != len(known):
                raise BadRequest(f"choices for {len(allowed)} layers, not {len(known)}")
            mask = np.zeros_like(known)
            for layer, choices in enumerate(allowed):
                for choice in choices:
                    code = self._code_of(choice) if isinstance(choice, str) else choice
                    if not 0 <= code < len(self.operators):
                        raise BadRequest(f"layer {layer}: no operator has code {code}")
                    mask[layer, code] = True
        for layer in range(len(known)):
            if not mask[layer].any():
                raise BadRequest(f"layer {layer} has no operator to choose from")
            if (mask[layer] & ~known[layer]).any():
                code = int((mask[layer] & ~known[layer]).argmax())
                raise BadRequest(self._no_latency(layer, self.operators[code]))
        return mask

    def missing(self) -> tuple[MissingCell, ...]:
        """Where an operator applies and has no ``ok`` row, and why."""
        return self._missing

    def flagged(self, kind: str) -> tuple[Row, ...]:
        """The rows in use, stem and head among them, with a flag: to be reported, never hidden.

        Args:
            kind: the flag, or its part before the colon: ``fallback`` finds ``fallback:cpu``.
        """
        return tuple(row for row in self.rows if has_flag(row.flag_words, kind))

    def _code_of(self, name: str) -> int:
        code = self._code.get(name)
        if code is None:
            near = difflib.get_close_matches(name, self.operators, n=3, cutoff=0.5)
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"it has {', '.join(self.operators)}"
            )
            raise BadRequest(
                f"operator {name!r} has no latency on {self.target.name} at any layer; {hint}"
            )
        return code

    def _check_codes(self, codes: ArrayLike) -> NDArray[np.integer]:
        array = np.asarray(codes)
        layers = len(self.latency_ms)
        if array.ndim != 2 or array.shape[1] != layers or array.dtype.kind not in "iu":
            raise BadRequest(
                f"codes are integers [N × {layers}] for {self.backbone.name}, not "
                f"{array.dtype} {list(array.shape)}"
            )
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < len(self.operators):
            wrong = int(array.min()) if int(array.min()) < 0 else int(array.max())
            raise BadRequest(f"code {wrong} is outside 0 to {len(self.operators) - 1}")
        return array.astype(np.intp) if array.dtype.kind == "u" else array

    def _refuse(self, codes: NDArray[np.integer]) -> None:
        layer = int(np.isnan(self.latency_ms[np.arange(len(codes)), codes]).argmax())
        raise BadRequest(self._no_latency(layer, self.operators[codes[layer]]))

    def _no_latency(self, layer: int, name: str) -> str:
        shape = self.backbone.layers[layer]
        reasons = {(cell.operator, cell.shape): cell.reason for cell in self._missing}
        reason = reasons.get((name, shape), "does not apply there")
        return f"layer {layer} ({shape}): {name} has no latency on {self.target.name} ({reason})"


def guess_backbone(table: LookupTable) -> Backbone:
    """The shipped backbone whose stem, head and layers the table covers.

    Raises:
        BadRequest: the table covers none or several.
    """
    cells = {(row.operator, row.shape) for row in table.rows if row.ok}
    shapes = {row.shape for row in table.rows if row.ok and not (row.is_stem or row.is_head)}
    covered = [
        backbone
        for backbone in map(load_backbone, shipped_backbones())
        if shapes.issuperset(backbone.layers)
        and {
            (backbone.stem_name, backbone.stem_shape),
            (backbone.head_name, backbone.head_shape),
        }
        <= cells
    ]
    if len(covered) == 1:
        return covered[0]
    if covered:
        names = ", ".join(backbone.name for backbone in covered)
        raise BadRequest(
            f"{_name(table)} covers several backbones; name one with --backbone: {names}"
        )
    raise BadRequest(
        f"{_name(table)} covers all layers of no shipped backbone "
        f"({', '.join(shipped_backbones())}); name the backbone with --backbone"
    )


def fill_command(
    table_path: str | Path | None, backbone: Backbone, target: Target, layers: str = ""
) -> str:
    """The profile-ops command that measures what a table lacks.

    Args:
        table_path: the table; None: a name is made up.
        layers: which of the backbone's layers, such as ``0-7,12``; empty: all.
    """
    shipped = backbone.name in shipped_backbones()
    where = backbone.name if shipped else backbone.source or backbone.name
    words = ["profile-ops", "--layers", where + (f":{layers}" if layers else "")]
    words += ["--target", target.name]
    options = parse_options(target.options)
    if "gate" in options:  # is of the graphs, and no option of the runtime
        words += ["--gate", options.pop("gate")]
    for key, value in options.items():
        words += ["--option", f"{key}={value}"]
    return shlex.join([*words, "-o", str(table_path or "table.csv")])


def _spread(table: LookupTable, target: Target) -> Spread:
    """What calls take beyond their quiet times; nothing where times are calculated."""
    if target.origin == "estimated":
        return Spread((NetworkTimes("", (), 1.0, 1.0, 1.0, 1),))
    if table.path is None:
        return Spread()
    return SPREADS.load(table.path).get(target, Spread())


def _stem_and_head(
    table: LookupTable,
    backbone: Backbone,
    target: Target,
    rows: dict[tuple[str, LayerShape], Row],
) -> tuple[Row, Row]:
    found = []
    lacking = []
    for name, shape in (
        (backbone.stem_name, backbone.stem_shape),
        (backbone.head_name, backbone.head_shape),
    ):
        row = rows.get((name, shape))
        if row is not None and row.ok:
            found.append(row)
        else:
            lacking.append(f"{name} at {shape}" + (f" ({row.status})" if row else ""))
    if lacking:
        raise BadRequest(
            f"{_name(table)} lacks {' and '.join(lacking)} of {backbone.name} on {target.name}; "
            f"fill it: {fill_command(table.path, backbone, target)}"
        )
    return found[0], found[1]


def _latency_ms(row: Row) -> float:
    """The latency of a row that is ok; what has none is never counted as 0."""
    assert row.latency_ms is not None
    return row.latency_ms


def _half_widths(row: Row) -> tuple[float, float]:
    """How far a row's interval reaches below and above its latency, in ms; NaN: not known."""
    if row.latency_ms is None or row.ci_low_ms is None or row.ci_high_ms is None:
        return float("nan"), float("nan")
    return row.latency_ms - row.ci_low_ms, row.ci_high_ms - row.latency_ms


def _names(
    rows: dict[tuple[str, LayerShape], Row],
    shapes: Sequence[LayerShape],
    wanted: Iterable[str] | None,
) -> tuple[str, ...]:
    """Operators in question: in the order of the pool, then users' own by name."""
    places = set(shapes)
    there = {
        name
        for (name, shape), row in rows.items()
        if shape in places and not (row.is_stem or row.is_head)
    }
    if wanted is not None:
        chosen = set(wanted)
        for name in chosen - there:
            parse_operator(name)  # Neither in the table nor registered: a slip of the pen.
        there = chosen
    order = {operator.name: index for index, operator in enumerate(POOL)}
    return tuple(sorted(there, key=lambda name: (order.get(name, len(order)), name)))


def _missing(
    rows: dict[tuple[str, LayerShape], Row], shapes: Sequence[LayerShape], names: Sequence[str]
) -> tuple[MissingCell, ...]:
    cells = []
    for name in names:
        for shape in shapes:
            row = rows.get((name, shape))
            if row is None and applies(name, shape, unknown=False):
                cells.append(MissingCell(name, shape, "absent"))
            elif row is not None and not row.ok:
                cells.append(MissingCell(name, shape, row.status))
    return tuple(cells)


def _name(table: LookupTable) -> str:
    return str(table.path) if table.path is not None else "the table"
