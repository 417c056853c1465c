"""The search space: for each layer, the operators that may be chosen.

Source: HURRICANE, hardware-aware search space: operators are sorted by score at each layer
and the first p (4) kept; exploring operators are added near the output for accuracy.

The paper has no value for the score's α, and spaces change fast with it. ``auto`` finds it:
the order of two operators at a layer changes at one α, (log τ₁ − log τ₂) / (log FP₁ − log FP₂),
so between neighbouring such points nothing changes, and evaluating one α in each interval
covers every space that any α can give. Of those whose range holds the budget and in which
stage 1 can meet it, the one with the mean latency closest to the budget is taken.

One exists for every budget above the lowest latency and below the highest of any scored space,
as long as p ≥ 2: at α = 0 a layer holds its fastest operators, so that stage 1 fits; from one
interval to the next a layer changes one operator or their order, so neighbouring spaces overlap
in latency; and in the first space that reaches above the budget stage 1 costs no more than the
slowest network of the space before, which was within the budget.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..lookup_tables.architecture import TableSource, backbone_reference, read_table_source
from ..lookup_tables.table import MAX_LATENCY_MS
from ..ops.backbone import Backbone, load_backbone
from ..ops.errors import BadRequest
from ..ops.jsonfile import Fields, write_json
from ..ops.pool import GATES
from .feasible import TOLERANCE_MS, FeasibleSet
from .scoring import SCORE_LATENCIES, LatencySource, ScoreLines, rank, score_lines
from .supported import SupportSource, read_support_source

FORMAT_VERSION = 1
DEFAULT_TOP = 4
"""p, operators kept at each layer (paper)."""

_SAME_ALPHA = 1e-12  # crossings closer than this are one


@dataclass(frozen=True)
class SearchSpace:
    """Candidates for each layer of a backbone under a latency budget.

    Attributes:
        backbone: name of a shipped backbone, or path of a backbone file.
        budget_ms: the latency that a network may take.
        fixed_ms: latency of everything but the learnable layers; a calibration's offset can
            bring it below 0.
        candidates: for each layer, operator names by non-increasing score; an exploring
            operator comes last.
        latency_ms: the candidates' latencies, in the same places.
        exploring: for each layer its exploring operator, or None.
        alpha: the score's exponent.
        alpha_mode: ``auto`` or ``fixed``.
        score_latency: what τ is in the score, see `scoring.score_lines`.
        reference: the reference architecture of ``architecture`` latencies, else None.
        top: p, scored operators kept at each layer.
        split: t, the first layers, which stage 2 searches.
        reachable_ms: lowest and highest latency with all of the table's operators that were not
            left out.
        gate: of squeeze-and-excitation, that the latencies were taken with.
        table: where the latencies came from.
        support: the report that left candidates out; None: all that have a latency are there.
    """

    backbone: str
    budget_ms: float
    fixed_ms: float
    candidates: tuple[tuple[str, ...], ...]
    latency_ms: tuple[tuple[float, ...], ...]
    exploring: tuple[str | None, ...]
    alpha: float
    alpha_mode: str
    score_latency: str
    reference: tuple[str, ...] | None
    top: int
    split: int
    reachable_ms: tuple[float, float]
    gate: str = GATES[0]
    table: TableSource | None = None
    support: SupportSource | None = None

    @property
    def layers(self) -> int:
        return len(self.candidates)

    @property
    def a_win0(self) -> tuple[str, ...]:
        """The top-scored operator in every layer."""
        return tuple(names[0] for names in self.candidates)

    @cached_property
    def feasible_set(self) -> FeasibleSet:
        """The space's architectures that meet the budget; codes index `candidates`."""
        return FeasibleSet(self.latency_ms, self.fixed_ms, self.budget_ms)

    @cached_property
    def stage1_set(self) -> FeasibleSet:
        """What stage 1 chooses from: the first `split` layers fixed to a_win0."""
        return self.feasible_set.restrict(dict.fromkeys(range(self.split), 0))

    @property
    def lowest_ms(self) -> float:
        return self.feasible_set.lowest_ms

    @property
    def highest_ms(self) -> float:
        return self.feasible_set.highest_ms

    @property
    def mean_ms(self) -> float:
        """Mean latency over all architectures of the space."""
        return self.fixed_ms + math.fsum(math.fsum(ms) / len(ms) for ms in self.latency_ms)

    @property
    def holds_budget(self) -> bool:
        """Whether the budget lies inside the space's range."""
        return self.lowest_ms < self.budget_ms < self.highest_ms

    def to_dict(self) -> dict[str, Any]:
        """The content of `space.json`; figures that follow from the rest are there to be read."""
        shapes = load_backbone(self.backbone).layers
        return {
            "format_version": FORMAT_VERSION,
            "backbone": self.backbone,
            "table": asdict(self.table) if self.table else None,
            "support": self.support.to_dict() if self.support else None,
            "budget_ms": self.budget_ms,
            "fixed_ms": self.fixed_ms,
            "reachable_ms": list(self.reachable_ms),
            "alpha": self.alpha,
            "alpha_mode": self.alpha_mode,
            "score_latency": self.score_latency,
            "reference": list(self.reference) if self.reference else None,
            "top": self.top,
            "split": self.split,
            "gate": self.gate,
            "layers": [
                {
                    "layer": i,
                    "shape": str(shapes[i]),
                    "operators": list(self.candidates[i]),
                    "latency_ms": list(self.latency_ms[i]),
                    "exploring": self.exploring[i],
                }
                for i in range(self.layers)
            ],
            "a_win0": list(self.a_win0),
            "lowest_ms": self.lowest_ms,
            "highest_ms": self.highest_ms,
            "mean_ms": self.mean_ms,
            "stage1_lowest_ms": self.stage1_set.lowest_ms,
            "architectures": self.feasible_set.total,
            "feasible": self.feasible_set.count,
            "feasible_exact": self.feasible_set.exact,
            "stage1_feasible": self.stage1_set.count,
        }

    def save(self, path: str | Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SearchSpace:
        """Reads and validates a space file.

        Raises:
            BadRequest: a missing or wrong field, an operator that cannot stand at its layer,
                or a budget that stage 1 cannot meet. The message names file and field.
        """
        fields = Fields.load(path, "space file", FORMAT_VERSION)
        layers = fields.objects("layers")
        table = fields.optional_object("table")
        support = fields.optional_object("support")
        space = cls(
            backbone=fields.text("backbone"),
            budget_ms=fields.number("budget_ms"),
            fixed_ms=fields.number("fixed_ms", minimum=None),
            candidates=tuple(layer.texts("operators") for layer in layers),
            latency_ms=tuple(layer.numbers("latency_ms") for layer in layers),
            exploring=tuple(layer.optional_text("exploring") for layer in layers),
            alpha=fields.number("alpha"),
            alpha_mode=fields.choice("alpha_mode", ("auto", "fixed")),
            score_latency=fields.choice("score_latency", SCORE_LATENCIES),
            reference=None if fields.get("reference") is None else fields.texts("reference"),
            top=fields.integer("top", 1),
            split=fields.integer("split", 1),
            reachable_ms=fields.pair("reachable_ms"),
            gate=fields.choice("gate", GATES),
            table=read_table_source(table) if table else None,
            support=read_support_source(support) if support else None,
        )
        space._check(fields)
        return space

    def _check(self, fields: Fields) -> None:
        try:
            backbone = load_backbone(self.backbone)
        except BadRequest as error:
            raise BadRequest(f"{fields.where}: {error}") from error
        if len(backbone.layers) != self.layers:
            raise fields.fail("layers", f"{len(backbone.layers)} layers, as in {backbone.name}")
        low, high = self.reachable_ms
        if not 0 < low <= high <= MAX_LATENCY_MS:
            raise fields.fail("reachable_ms", "two latencies above 0, the lower one first")
        if not 0 < self.split < self.layers:
            raise fields.fail("split", f"between 1 and {self.layers - 1}")
        for i, (names, latencies) in enumerate(zip(self.candidates, self.latency_ms, strict=True)):
            key = f"layers[{i}]"
            if not names or len(set(names)) != len(names):
                raise fields.fail(f"{key}.operators", "one or more different operators")
            if len(latencies) != len(names):
                raise fields.fail(f"{key}.latency_ms", "one number for each operator")
            if self.exploring[i] is not None and self.exploring[i] != names[-1]:
                raise fields.fail(f"{key}.exploring", "the last of the layer's operators")
        for place in range(max(map(len, self.candidates))):
            column = [names[min(place, len(names) - 1)] for names in self.candidates]
            try:
                backbone.check(column)
            except BadRequest as error:
                raise BadRequest(f"{fields.where}: {error}") from error
        if self.stage1_set.count == 0:
            raise BadRequest(
                f"{fields.where}: no network of stage 1 meets {self.budget_ms:g} ms; "
                f"the fastest takes {self.stage1_set.lowest_ms:.4g} ms"
            )


def reachable_ms(model: LatencySource) -> tuple[float, float]:
    """Lowest and highest latency of all architectures of a model's operators."""
    layers = np.asarray(model.latency_ms)
    low, high = np.nanmin(layers, axis=1), np.nanmax(layers, axis=1)
    return model.fixed_ms + math.fsum(low), model.fixed_ms + math.fsum(high)


def check_budget(model: LatencySource, budget_ms: float) -> None:
    """Raises BadRequest, with what is possible, for a budget that nothing can meet."""
    low, high = reachable_ms(model)
    if not budget_ms > low:
        raise BadRequest(
            f"a budget of {budget_ms:g} ms cannot be met: the fastest network takes {low:.4g} ms "
            f"by this table (reachable: {low:.4g} to {high:.4g} ms); raise --latency"
        )


def build_space(
    model: LatencySource,
    backbone: Backbone,
    latency_ms: float,
    top: int = DEFAULT_TOP,
    alpha: float | str = "auto",
    exploring_layers: int | None = None,
    split: int | None = None,
    score_latency: str = "operator",
    gate: str = GATES[0],
    table: TableSource | None = None,
    support: SupportSource | None = None,
) -> SearchSpace:
    """Builds the search space for a target and a latency budget.

    Args:
        model: latencies of the operators at the backbone's layers.
        backbone: where the operators stand.
        latency_ms: the budget.
        top: p, scored operators kept at each layer.
        alpha: the score's exponent, or ``auto`` for the one whose space sits on the budget.
        exploring_layers: last layers that get one more candidate; None: the backbone's.
        split: t, the first layers, fixed in stage 1; None: the backbone's.
        score_latency: what τ is in the score, see `scoring.score_lines`.
        gate: of squeeze-and-excitation, that the latencies were taken with; recorded.
        table: where the model's latencies came from; recorded.
        support: what left candidates out of the model; recorded.

    Raises:
        BadRequest: an impossible budget or option; the message says what is possible.
    """
    n = len(backbone.layers)
    split = backbone.split if split is None else split
    exploring_layers = backbone.exploring_layers if exploring_layers is None else exploring_layers
    if not 0 < split < n:
        raise BadRequest(f"split must lie between 1 and {n - 1}, got {split}")
    if not 0 <= exploring_layers <= n:
        raise BadRequest(f"exploring layers must lie between 0 and {n}, got {exploring_layers}")
    if top < (2 if alpha == "auto" else 1):
        raise BadRequest(f"top must be at least 2 (1 with a fixed alpha), got {top}")
    lines = score_lines(model, backbone, score_latency)
    check_budget(model, latency_ms)
    scored = _Scored(model, backbone, lines, top, split, latency_ms)
    if alpha == "auto":
        exponent = scored.find_alpha()
    elif isinstance(alpha, str) or not (math.isfinite(alpha) and alpha >= 0):
        raise BadRequest(f"alpha must be auto or a number of at least 0, got {alpha}")
    else:
        exponent = float(alpha)
        scored.require_stage1(exponent)
    ranked = scored.columns(exponent).tolist()
    columns: list[list[int]] = [row[:kept] for row, kept in zip(ranked, scored.kept, strict=True)]
    exploring: list[str | None] = [None] * n
    for layer in range(n - exploring_layers, n):
        column = scored.exploring_column(columns, layer)
        if column is not None:
            exploring[layer] = model.operators[column]
    for layer, name in enumerate(exploring):
        if name is not None:
            columns[layer].append(list(model.operators).index(name))
    tau = np.asarray(model.latency_ms)
    return SearchSpace(
        backbone=backbone_reference(backbone),
        budget_ms=float(latency_ms),
        fixed_ms=float(model.fixed_ms),
        candidates=tuple(tuple(model.operators[c] for c in layer) for layer in columns),
        latency_ms=tuple(tuple(float(tau[i, c]) for c in cs) for i, cs in enumerate(columns)),
        exploring=tuple(exploring),
        alpha=exponent,
        alpha_mode="auto" if alpha == "auto" else "fixed",
        score_latency=score_latency,
        reference=lines.reference,
        top=top,
        split=split,
        reachable_ms=reachable_ms(model),
        gate=gate,
        table=table,
        support=support,
    )


class _Scored:
    """The spaces that scores give, for any α."""

    def __init__(
        self,
        model: LatencySource,
        backbone: Backbone,
        lines: ScoreLines,
        top: int,
        split: int,
        budget_ms: float,
    ) -> None:
        self.model = model
        self.lines = lines
        self.tau = np.asarray(model.latency_ms, dtype=np.float64)
        self.kept = np.minimum(np.isfinite(self.tau).sum(axis=1), top)
        self.top = int(self.kept.max())
        self.split = split
        self.budget_ms = budget_ms
        shapes = [str(shape) for shape in backbone.layers]
        # Layers of one shape have equal rows: they are ranked once.
        self._first = np.array([shapes.index(s) for s in dict.fromkeys(shapes)])
        self._row = np.array([list(dict.fromkeys(shapes)).index(s) for s in shapes])

    def columns(self, alpha: float) -> NDArray[np.int64]:
        """The scored operators of every layer, best first [layers × top]."""
        return self.lines.ranking(alpha)[:, : self.top]

    def find_alpha(self) -> float:
        """The α whose space holds the budget, lets stage 1 meet it, and has its mean nearest."""
        edges = self._breakpoints()
        alphas = (edges[:-1] + edges[1:]) / 2
        capacity, latency = self.lines.capacity[self._first], self.lines.latency[self._first]
        scores = alphas[:, None, None] * capacity - latency
        order = rank(scores)[:, :, : self.top]
        rows = np.broadcast_to(self.tau[self._first], scores.shape)
        tau = np.take_along_axis(rows, order, axis=2)
        fixed = self.model.fixed_ms
        layer_low = np.nanmin(tau, axis=2)[:, self._row]
        low = fixed + layer_low.sum(axis=1)
        high = fixed + np.nanmax(tau, axis=2)[:, self._row].sum(axis=1)
        mean = fixed + np.nanmean(tau, axis=2)[:, self._row].sum(axis=1)
        winner = tau[:, :, 0][:, self._row]
        t = self.split
        stage1 = fixed + winner[:, :t].sum(axis=1) + layer_low[:, t:].sum(axis=1)
        good = (low < self.budget_ms) & (self.budget_ms < high) & (stage1 <= self.budget_ms)
        if not good.any():
            raise BadRequest(
                f"{self.budget_ms:g} ms is no constraint: whatever alpha, the {self.top} best "
                f"operators make spaces between {low.min():.4g} and {high.max():.4g} ms; "
                "choose --latency between them, or fix --alpha"
            )
        distance = np.where(good, np.abs(mean - self.budget_ms), np.inf)
        best = int(np.argmin(distance))
        return _short_number_between(float(edges[best]), float(edges[best + 1]))

    def require_stage1(self, alpha: float) -> None:
        """Raises BadRequest unless stage 1 can meet the budget in the space of a given α."""
        tau = np.take_along_axis(self.tau, self.columns(alpha), axis=1)
        rest = float(np.nanmin(tau, axis=1)[self.split :].sum())
        lowest = self.model.fixed_ms + float(tau[: self.split, 0].sum()) + rest
        if lowest > self.budget_ms + TOLERANCE_MS:
            raise BadRequest(
                f"alpha {alpha:g} is too high for {self.budget_ms:g} ms: with the first "
                f"{self.split} layers at their top-scored operators the fastest network takes "
                f"{lowest:.4g} ms; lower --alpha or leave it at auto"
            )

    def exploring_column(self, columns: list[list[int]], layer: int) -> int | None:
        """The largest F·P not yet in the layer whose use leaves both stages feasible.

        Stage 1 fixes the first layers to the top-scored operators; stage 2 leaves them free
        and fixes the later ones to stage 1's winner, of which the fastest network is taken.
        The fastest scored operators stand in all other free layers. None where nothing fits.
        """
        fastest = [float(self.tau[i, cs].min()) for i, cs in enumerate(columns)]
        winners = [float(self.tau[i, cs[0]]) for i, cs in enumerate(columns)]
        first = fastest if layer < self.split else winners
        others = [*first[: self.split], *fastest[self.split :]]
        others[layer] = 0.0
        room = self.budget_ms - self.model.fixed_ms - math.fsum(others)
        capacity = self.lines.capacity[layer]
        for column in np.argsort(-capacity, kind="stable"):
            own = self.tau[layer, column]
            if column not in columns[layer] and own <= room:  # NaN is no candidate
                return int(column)
        return None

    def _breakpoints(self) -> NDArray[np.float64]:
        """0, every α at which two operators of one shape change places, and one beyond."""
        found = [np.zeros(1)]
        for layer in self._first:
            known = np.isfinite(self.lines.latency[layer])
            capacity, latency = self.lines.capacity[layer, known], self.lines.latency[layer, known]
            i, j = np.triu_indices(capacity.size, k=1)
            rise = capacity[i] - capacity[j]
            crossing = (latency[i] - latency[j])[rise != 0] / rise[rise != 0]
            found.append(crossing[crossing > 0])
        edges = np.unique(np.concatenate(found))
        edges = edges[np.diff(edges, prepend=-1.0) > _SAME_ALPHA]
        return np.append(edges, edges[-1] + 1.0)


def _short_number_between(low: float, high: float) -> float:
    """A decimal with few digits strictly inside an interval, so that it can be typed."""
    middle = (low + high) / 2
    for digits in range(1, 16):
        value = round(middle, digits)
        if low < value < high:
            return value
    return middle
