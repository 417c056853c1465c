"""The search space: for each layer, the operators that may be chosen.

`candidates` chooses them, by one of two methods; here is what comes of it, and its file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from .candidates import (
    DEFAULT_METHOD,
    DEFAULT_TOPS,
    FRONT_TOP,
    METHODS,
    CandidateMethod,
    ParetoCandidates,
    ScoredCandidates,
    budget_price,
)
from .feasible import FeasibleSet
from .scoring import SCORE_LATENCIES, LatencySource, score_lines
from .supported import SupportSource, read_support_source

FORMAT_VERSION = 1

FEW_NETWORKS = 50
"""With no more networks than a generation has, a stage has next to nothing to choose from."""

_HARDLY_ANY = 0.01  # share of a stage's networks within the budget
_NEARLY_ALL = 0.99


@dataclass(frozen=True)
class SearchSpace:
    """Candidates for each layer of a backbone under a latency budget, or under several.

    Attributes:
        backbone: name of a shipped backbone, or path of a backbone file.
        budget_ms: the latency that a network may take; the highest of several.
        fixed_ms: latency of everything but the learnable layers; a calibration's offset can
            bring it below 0.
        candidates: for each layer, operator names, the best by the method first; an exploring
            operator comes last.
        latency_ms: the candidates' latencies, in the same places.
        exploring: for each layer its exploring operator, or None.
        method: that chose them, one of `METHODS`, see `candidates`.
        alpha: the score's exponent; None where the method has no score.
        alpha_mode: ``auto`` or ``fixed``; None likewise.
        score_latency: what τ is in the score, see `scoring.score_lines`; None likewise.
        reference: the reference architecture of ``architecture`` latencies, else None.
        price_per_ms: capacity log(F·P) that a millisecond is worth at the budget; None where the
            method has no price.
        top: operators kept at each layer, exploring ones not counted.
        split: t, the first layers, which stage 2 searches; 0: all are searched in one stage.
        reachable_ms: lowest and highest latency with all of the table's operators that were not
            left out.
        gate: of squeeze-and-excitation, that the latencies were taken with.
        table: where the latencies came from.
        support: the report that left candidates out; None: all that have a latency are there.
        lower_ms: the other budgets, the lowest first, that the space was made for as well.
    """

    backbone: str
    budget_ms: float
    fixed_ms: float
    candidates: tuple[tuple[str, ...], ...]
    latency_ms: tuple[tuple[float, ...], ...]
    exploring: tuple[str | None, ...]
    method: str
    alpha: float | None
    alpha_mode: str | None
    score_latency: str | None
    reference: tuple[str, ...] | None
    price_per_ms: float | None
    top: int
    split: int
    reachable_ms: tuple[float, float]
    gate: str = GATES[0]
    table: TableSource | None = None
    support: SupportSource | None = None
    lower_ms: tuple[float, ...] = ()

    @property
    def layers(self) -> int:
        return len(self.candidates)

    @property
    def budgets_ms(self) -> tuple[float, ...]:
        """All budgets, the lowest first."""
        return (*self.lower_ms, self.budget_ms)

    def within(self, budget_ms: float) -> SearchSpace:
        """The same candidates under one budget."""
        return replace(self, budget_ms=budget_ms, lower_ms=())

    @property
    def a_win0(self) -> tuple[str, ...]:
        """The first candidate of every layer: that of the top score, or best at the price."""
        return tuple(names[0] for names in self.candidates)

    @cached_property
    def feasible_set(self) -> FeasibleSet:
        """The space's architectures that meet the budget; codes index `candidates`."""
        return FeasibleSet(self.latency_ms, self.fixed_ms, self.budget_ms)

    @cached_property
    def stage1_set(self) -> FeasibleSet:
        """What stage 1 chooses from: the first `split` layers fixed to a_win0, if there are any."""
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

    @property
    def stages(self) -> int:
        """Stages that a search of the space has."""
        return 2 if self.split else 1

    def notes(self) -> list[str]:
        """What a user should know of the choice that the space leaves, one sentence each."""
        if self.lower_ms:
            each = {ms: self.within(ms).notes() for ms in self.budgets_ms}
            return [f"{ms:g} ms: {note}" for ms, notes in each.items() for note in notes]
        first = self.stage1_set
        place = "stage 1" if self.split else "the search"
        share = first.count / first.total
        if first.count <= FEW_NETWORKS:
            words = f"{place} has {first.count} within the budget"
            return [f"next to nothing to choose from: {words}; raise --latency"]
        if self.split and share < _HARDLY_ANY:
            return [
                f"hardly any choice: {share:.2g} of the networks of stage 1 are within the budget, "
                f"those with nearly the fastest operators behind layer {self.split - 1}; "
                "try --split 0, or --method pareto"
            ]
        if share >= (_NEARLY_ALL if self.split else 1):
            return [f"hardly a constraint: {share:.4%} of the networks are within the budget"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """The content of `space.json`; figures that follow from the rest are there to be read."""
        shapes = load_backbone(self.backbone).layers
        return {
            "format_version": FORMAT_VERSION,
            "backbone": self.backbone,
            "table": asdict(self.table) if self.table else None,
            "support": self.support.to_dict() if self.support else None,
            "budget_ms": self.budget_ms,
            **({"lower_ms": list(self.lower_ms)} if self.lower_ms else {}),
            "fixed_ms": self.fixed_ms,
            "reachable_ms": list(self.reachable_ms),
            "method": self.method,
            "alpha": self.alpha,
            "alpha_mode": self.alpha_mode,
            "score_latency": self.score_latency,
            "reference": list(self.reference) if self.reference else None,
            "price_per_ms": self.price_per_ms,
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
        # Spaces of before there was a choice are the paper's.
        method = fields.choice("method", METHODS) if "method" in fields.as_dict() else "hurricane"
        scored = method == "hurricane"
        support = fields.optional_object("support")
        space = cls(
            backbone=fields.text("backbone"),
            budget_ms=fields.number("budget_ms"),
            fixed_ms=fields.number("fixed_ms", minimum=None),
            candidates=tuple(layer.texts("operators") for layer in layers),
            latency_ms=tuple(layer.numbers("latency_ms") for layer in layers),
            exploring=tuple(layer.optional_text("exploring") for layer in layers),
            method=method,
            alpha=fields.number("alpha") if scored else None,
            alpha_mode=fields.choice("alpha_mode", ("auto", "fixed")) if scored else None,
            score_latency=fields.choice("score_latency", SCORE_LATENCIES) if scored else None,
            reference=None if fields.get("reference") is None else fields.texts("reference"),
            price_per_ms=None if scored else fields.number("price_per_ms"),
            top=fields.integer("top", 1),
            split=fields.integer("split", 0),
            reachable_ms=fields.pair("reachable_ms"),
            gate=fields.choice("gate", GATES),
            table=read_table_source(table) if table else None,
            support=read_support_source(support) if support else None,
            lower_ms=fields.numbers("lower_ms") if "lower_ms" in fields.as_dict() else (),
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
        if not 0 <= self.split < self.layers:
            raise fields.fail("split", f"between 0 and {self.layers - 1}")
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
        if list(self.budgets_ms) != sorted(set(self.budgets_ms)):
            raise fields.fail("lower_ms", "different budgets below budget_ms, the lowest first")
        if self.lower_ms and self.split:
            raise fields.fail("split", "0 where there are several budgets")
        first = self.within(self.budgets_ms[0]).stage1_set
        if first.count == 0:
            raise BadRequest(
                f"{fields.where}: no network of stage 1 meets {first.budget_ms:g} ms; "
                f"the fastest takes {first.lowest_ms:.4g} ms"
            )


def reachable_ms(model: LatencySource) -> tuple[float, float]:
    """Lowest and highest latency of all architectures of a model's operators."""
    layers = np.asarray(model.latency_ms)
    low, high = np.nanmin(layers, axis=1), np.nanmax(layers, axis=1)
    return model.fixed_ms + math.fsum(low), model.fixed_ms + math.fsum(high)


def ordered_budgets(latency_ms: float | Sequence[float]) -> list[float]:
    """One budget, or several different ones, the lowest first."""
    given = latency_ms if isinstance(latency_ms, Sequence) else [latency_ms]
    budgets = sorted({float(ms) for ms in given})
    if not budgets or not all(math.isfinite(ms) for ms in budgets):
        raise BadRequest("a budget must be a finite number of ms, and there must be one")
    return budgets


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
    latency_ms: float | Sequence[float],
    method: str = DEFAULT_METHOD,
    top: int | None = None,
    alpha: float | str | None = None,
    exploring_layers: int | None = None,
    split: int | None = None,
    score_latency: str | None = None,
    gate: str = GATES[0],
    table: TableSource | None = None,
    support: SupportSource | None = None,
) -> SearchSpace:
    """Builds the search space for a target and a latency budget.

    Args:
        model: latencies of the operators at the backbone's layers.
        backbone: where the operators stand.
        latency_ms: the budget, or several that are to be searched with one supernet.
        method: ``pareto`` or the paper's, ``hurricane`` (`candidates`).
        top: operators kept at each layer; None: the method's, see `DEFAULT_TOPS`, or `FRONT_TOP`
            for several budgets.
        alpha: of ``hurricane``, the score's exponent; None or ``auto``: the one whose space sits
            on the budget.
        exploring_layers: of ``hurricane``, last layers that get one more candidate; None: the
            backbone's.
        split: t, the first layers, fixed in stage 1; 0 has all layers searched in one stage;
            None: the backbone's with ``hurricane``, else 0.
        score_latency: of ``hurricane``, what τ is in the score, see `scoring.score_lines`; None:
            the operator's.
        gate: of squeeze-and-excitation, that the latencies were taken with; recorded.
        table: where the model's latencies came from; recorded.
        support: what left candidates out of the model; recorded.

    Raises:
        BadRequest: an impossible budget or option; the message says what is possible.
    """
    if method not in METHODS:
        raise BadRequest(f"method must be one of {', '.join(METHODS)}, got {method}")
    n = len(backbone.layers)
    budgets = ordered_budgets(latency_ms)
    if top is None:
        top = FRONT_TOP if len(budgets) > 1 else DEFAULT_TOPS[method]
    chooser: CandidateMethod
    if method == "hurricane":
        split = backbone.split if split is None else split
        alpha = "auto" if alpha is None else alpha
        score_latency = score_latency or SCORE_LATENCIES[0]
        explored = backbone.exploring_layers if exploring_layers is None else exploring_layers
        chooser = ScoredCandidates(top, alpha, explored, score_latency)
    else:
        for name, value in (
            ("alpha", alpha),
            ("exploring layers", exploring_layers),
            ("score latency", score_latency),
        ):
            if value is not None:
                raise BadRequest(
                    f"{name}: of the method hurricane, not {method}; choose it with --method "
                    "hurricane, or leave this out"
                )
        split = split or 0
        chooser = ParetoCandidates(top)
    if not 0 <= split < n:
        raise BadRequest(f"split must lie between 0 and {n - 1}, got {split}")
    if split and len(budgets) > 1:
        raise BadRequest(
            "several budgets are searched in one stage; leave out --split and --method hurricane"
        )
    check_budget(model, budgets[0])
    choice = chooser.choose(model, backbone, budgets, split)
    names, tau = model.operators, np.asarray(model.latency_ms)
    return SearchSpace(
        backbone=backbone_reference(backbone),
        budget_ms=budgets[-1],
        lower_ms=tuple(budgets[:-1]),
        fixed_ms=float(model.fixed_ms),
        candidates=tuple(tuple(names[c] for c in columns) for columns in choice.columns),
        latency_ms=tuple(
            tuple(float(tau[i, c]) for c in columns) for i, columns in enumerate(choice.columns)
        ),
        exploring=tuple(None if c is None else names[c] for c in choice.exploring),
        method=method,
        alpha=choice.alpha,
        alpha_mode=None if choice.alpha is None else "auto" if alpha == "auto" else "fixed",
        score_latency=score_latency,
        reference=choice.reference,
        price_per_ms=choice.price_per_ms,
        top=top,
        split=split,
        reachable_ms=reachable_ms(model),
        gate=gate,
        table=table,
        support=support,
    )


def retime(
    space: SearchSpace,
    model: LatencySource,
    backbone: Backbone,
    latency_ms: float | Sequence[float],
    gate: str = GATES[0],
    table: TableSource | None = None,
    support: SupportSource | None = None,
) -> SearchSpace:
    """The candidates of a space for another target, or for other budgets.

    Args:
        space: gives the candidates; those without a latency in the model are left out.
        model: latencies of the operators at the backbone's layers.
        backbone: the space's.
        latency_ms: one or several budgets.
        gate: of squeeze-and-excitation, that the latencies were taken with; the space's.
        table: where the model's latencies came from; recorded.
        support: what left candidates out of the model; recorded.

    Raises:
        BadRequest: another backbone or gate, a layer without any latency, an impossible budget.
    """
    if load_backbone(space.backbone) != backbone:
        raise BadRequest(f"the space is of {space.backbone}, not of {backbone.name}")
    if space.gate != gate:
        raise BadRequest(f"the space's operators have the gate {space.gate}, the table's {gate}")
    columns = [
        [model.operators.index(name) for name in names if name in model.operators]
        for names in space.candidates
    ]
    tau = np.full(np.shape(model.latency_ms), np.nan)
    for i, chosen in enumerate(columns):
        tau[i, chosen] = np.asarray(model.latency_ms)[i, chosen]
        columns[i] = [c for c in chosen if np.isfinite(tau[i, c])]
        if not columns[i]:
            raise BadRequest(f"layer {i}: the table has none of {', '.join(space.candidates[i])}")
    left = _Latencies(tau, model.operators, model.fixed_ms)
    budgets = ordered_budgets(latency_ms)
    check_budget(left, budgets[0])
    names = tuple(tuple(model.operators[c] for c in chosen) for chosen in columns)
    capacity = score_lines(model, backbone).capacity
    price, _ = budget_price(capacity, tau, budgets[-1] - model.fixed_ms)
    return replace(
        space,
        budget_ms=budgets[-1],
        lower_ms=tuple(budgets[:-1]),
        fixed_ms=float(model.fixed_ms),
        candidates=names,
        latency_ms=tuple(tuple(tau[i, c].tolist() for c in cs) for i, cs in enumerate(columns)),
        exploring=tuple(
            e if e in kept else None for e, kept in zip(space.exploring, names, strict=True)
        ),
        price_per_ms=None if space.price_per_ms is None else price,
        split=0,
        reachable_ms=reachable_ms(left),
        table=table,
        support=support,
    )


@dataclass(frozen=True)
class _Latencies:
    """A `LatencySource` of a part of another's operators."""

    latency_ms: NDArray[np.float64]
    operators: Sequence[str]
    fixed_ms: float
