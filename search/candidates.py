"""Which operators may stand at a layer: the paper's choice, and one made for the budget.

**hurricane**: the p operators with the best score (F·P)^α / τ, and exploring operators near the
output (source: HURRICANE, hardware-aware search space). The paper has no value for the score's
α, and spaces change fast with it. ``auto`` finds it: the order of two operators at a layer
changes at one α, (log τ₁ − log τ₂) / (log FP₁ − log FP₂), so between neighbouring such points
nothing changes, and evaluating one α in each interval covers every space that any α can give. Of
those whose range holds the budget and in which stage 1 can meet it, the one with the mean latency
closest to the budget is taken; of equal means, the one whose best-scored network is closest to
it, and of equals the smallest α.

One exists for every budget above the lowest latency and below the highest of any scored space,
as long as p ≥ 2: at α = 0 a layer holds its fastest operators, so that stage 1 fits; from one
interval to the next a layer changes one operator or their order, so neighbouring spaces overlap
in latency; and in the first space that reaches above the budget stage 1 costs no more than the
slowest network of the space before, which was within the budget.

**pareto**: the network of the most capacity Σ log(F·P) within a latency budget is, but for one
layer, the one that maximises Σ (log(F·P) − λτ) for some price λ of a millisecond (Lagrangian
relaxation; Everett, *Operations Research* 11(3), 1963). At the price that belongs to the budget
an operator's *gap* is what it lacks to the best of its layer; a network's capacity is less than
the highest possible by no more than the sum of its operators' gaps and λ times the latency that
it leaves unused. Kept are, at each layer, the operator that is best at that price, and those that
together have the smallest gap over a range of prices around it: small, middle and large ones,
each the best of its size. Latencies and budget multiplied by one number give the same choice.
For several budgets the range is all of theirs together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from .feasible import TOLERANCE_MS
from .scoring import LatencySource, ScoreLines, rank, score_lines

DEFAULT_TOPS = {"pareto": 5, "hurricane": 4}
"""Operators kept at each layer, by method; the paper's p is 4, and has 4 or 5 with those that
explore."""

FRONT_TOP = 7
"""Operators kept at each layer for several budgets: with 7, one space for 10 to 90% of a table's
range loses no more than spaces of 5 that are made for each budget (`benchmarks/spaces.py`)."""

METHODS = tuple(DEFAULT_TOPS)
DEFAULT_METHOD = METHODS[0]

PRICE_RANGE = 8.0
"""Prices up to this factor below and above the budget's are looked at. At an eighth of the price
a layer takes its largest operators, at eight times its smallest."""

PRICES = 33
"""Prices in that range, evenly spaced in logarithms: an eighth of an octave or so apart."""

_SAME_ALPHA = 1e-12  # crossings closer than this are one
_SAME_SHARE = 1e-9  # of the budget: latencies closer than this are equal
_SAME_CAPACITY = 1e-9  # gaps in log(F·P) closer than this are equal


@dataclass(frozen=True)
class Choice:
    """The candidates of every layer, as columns of a latency model.

    Attributes:
        columns: for each layer, the best first; an exploring operator comes last.
        exploring: for each layer its exploring operator, or None.
        alpha: the score's exponent; None where there is no score.
        price_per_ms: capacity log(F·P) that a millisecond is worth; None where it has no price.
        reference: the reference architecture of ``architecture`` latencies.
    """

    columns: tuple[tuple[int, ...], ...]
    exploring: tuple[int | None, ...]
    alpha: float | None = None
    price_per_ms: float | None = None
    reference: tuple[str, ...] | None = None


class CandidateMethod(Protocol):
    """Chooses candidates; its options are its fields."""

    def choose(
        self, model: LatencySource, backbone: Backbone, budgets_ms: Sequence[float], split: int
    ) -> Choice:
        """The candidates for budgets that something meets.

        Args:
            model: latencies of the operators at the backbone's layers.
            backbone: where the operators stand.
            budgets_ms: that networks are to meet, the lowest first.
            split: t, the first layers, which a first stage fixes to their best candidates; the
                fastest network of that stage meets the budget. 0: no layer is fixed.

        Raises:
            BadRequest: an impossible option or budget; the message says what is possible.
        """
        ...


# --- The budget's price ------------------------------------------------------------------------


@dataclass(frozen=True)
class ParetoCandidates:
    """Operators that are best at some price of a millisecond around the budget's.

    Attributes:
        top: operators kept at each layer, where so many fit into the budget at all.
    """

    top: int

    def choose(
        self, model: LatencySource, backbone: Backbone, budgets_ms: Sequence[float], split: int
    ) -> Choice:
        if self.top < 2:
            raise BadRequest(f"top must be at least 2, got {self.top}")
        lines = score_lines(model, backbone)
        tau = np.asarray(model.latency_ms, dtype=np.float64)
        fastest = np.nanmin(tau, axis=1)
        highest = model.fixed_ms + math.fsum(np.nanmax(tau, axis=1))
        if budgets_ms[-1] >= highest:
            raise BadRequest(
                f"{budgets_ms[-1]:g} ms is no constraint: the slowest network takes "
                f"{highest:.4g} ms; choose --latency below that"
            )
        # What does not fit beside the fastest operators of all other layers can never be chosen.
        room = budgets_ms[-1] - model.fixed_ms - math.fsum(fastest)
        tau = np.where(tau - fastest[:, None] <= room + TOLERANCE_MS, tau, np.nan)
        priced = [budget_price(lines.capacity, tau, ms - model.fixed_ms) for ms in budgets_ms]
        around = np.geomspace(1 / PRICE_RANGE, PRICE_RANGE, PRICES)
        prices = np.concatenate([price * around for price, _ in priced])
        columns = []
        known: dict[bytes, tuple[int, ...]] = {}  # layers of one shape have equal rows
        # The first candidates make a network that meets every budget.
        for capacity, ms, column in zip(lines.capacity, tau, priced[0][1].tolist(), strict=True):
            row = capacity.tobytes() + ms.tobytes()
            if row not in known:
                known[row] = covering(_gaps(capacity, ms, prices), column, self.top)
            columns.append(known[row])
        return Choice(tuple(columns), (None,) * len(columns), price_per_ms=priced[-1][0])


def budget_price(
    capacity: NDArray[np.float64], latency_ms: NDArray[np.float64], budget_ms: float
) -> tuple[float, NDArray[np.int64]]:
    """The price of a millisecond under a budget, and the best network at a little more.

    A layer's operators that are best at some price are the corners of the upper concave hull of
    (latency, capacity). From the fastest network on, the layers' steps from corner to corner
    are taken in order of capacity gained per ms; the price is that of the first steps that do not
    fit any more, or of the last ones where all fit.

    Args:
        capacity: [layers × operators]
        latency_ms: the same; NaN where an operator is no candidate.
        budget_ms: for these layers alone; the fastest network meets it.

    Returns:
        The price in capacity per ms, above 0, and for each layer the column of its operator in
        the network after the steps before [layers].
    """
    corners = [_hull(c, t) for c, t in zip(capacity, latency_ms, strict=True)]
    steps = sorted(
        (
            -(capacity[i, b] - capacity[i, a]) / (latency_ms[i, b] - latency_ms[i, a]),
            latency_ms[i, b] - latency_ms[i, a],
            i,
            b,
        )
        for i, hull in enumerate(corners)
        for a, b in pairwise(hull)
    )
    base = np.array([hull[0] for hull in corners])
    if not steps:  # one operator is the fastest and the largest everywhere
        return 1.0 / budget_ms if budget_ms > 0 else 1.0, base
    used = math.fsum(latency_ms[i, column] for i, column in enumerate(base))
    price = -steps[-1][0]
    start = 0
    while start < len(steps):
        end = start
        while end < len(steps) and steps[end][0] == steps[start][0]:
            end += 1  # layers of one shape have the same steps
        used += math.fsum(ms for _, ms, _, _ in steps[start:end])
        if used > budget_ms + TOLERANCE_MS:
            price = -steps[start][0]
            break
        for _, _, layer, column in steps[start:end]:
            base[layer] = column
        start = end
    return float(price), base


def covering(gaps: NDArray[np.float64], base: int, count: int) -> tuple[int, ...]:
    """Operators that together have the smallest gaps over all prices.

    One after the other: which lowers the mean over the prices of the smallest gap the most; when
    none lowers it any more, those with the smallest mean gap of their own. Ties go to the
    earlier column.

    Args:
        gaps: [operators × prices], at least 0; NaN where an operator is no candidate.
        base: the first to be taken.
        count: operators to take, at most.
    """
    known = np.asarray(np.isfinite(gaps).all(axis=1))
    chosen = [base]
    while len(chosen) < min(count, int(known.sum())):
        left = known & ~np.isin(np.arange(len(gaps)), chosen)
        covered = gaps[chosen].min(axis=0)
        worth = np.maximum(covered - gaps, 0).mean(axis=1)
        if worth[left].max() <= _SAME_CAPACITY:
            worth = -gaps.mean(axis=1)
        worth = np.where(left, worth, -np.inf)
        chosen.append(int(np.argmax(worth >= worth.max() - _SAME_CAPACITY)))
    return tuple(chosen)


def _gaps(
    capacity: NDArray[np.float64], latency_ms: NDArray[np.float64], prices: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What each operator lacks to the best of its layer at each price [operators × prices]."""
    value = capacity[:, None] - latency_ms[:, None] * prices
    return np.nanmax(value, axis=0) - value


def _hull(capacity: NDArray[np.float64], latency_ms: NDArray[np.float64]) -> list[int]:
    """The columns that are best at some price of at least 0, from fast to slow."""
    order = [int(c) for c in np.lexsort((-capacity, latency_ms)) if np.isfinite(latency_ms[c])]
    hull: list[int] = []
    for column in order:
        if hull and capacity[column] <= capacity[hull[-1]]:
            continue
        while len(hull) > 1 and _rise(capacity, latency_ms, hull[-1], column) >= _rise(
            capacity, latency_ms, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(column)
    return hull


def _rise(capacity: NDArray[np.float64], latency_ms: NDArray[np.float64], a: int, b: int) -> float:
    """Capacity gained per ms from one operator to another."""
    return float((capacity[b] - capacity[a]) / (latency_ms[b] - latency_ms[a]))


# --- The paper's score -------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredCandidates:
    """The paper's: the best by score, and exploring operators near the output.

    Attributes:
        top: p, scored operators kept at each layer.
        alpha: the score's exponent, or ``auto`` for the one whose space sits on the budget.
        exploring_layers: last layers that get one more candidate.
        score_latency: what τ is in the score, see `scoring.score_lines`.
    """

    top: int
    alpha: float | str
    exploring_layers: int
    score_latency: str

    def choose(
        self, model: LatencySource, backbone: Backbone, budgets_ms: Sequence[float], split: int
    ) -> Choice:
        if len(budgets_ms) > 1:
            raise BadRequest("the score of the method hurricane is for one budget; give one")
        (budget_ms,) = budgets_ms
        n, alpha = len(backbone.layers), self.alpha
        if not 0 <= self.exploring_layers <= n:
            raise BadRequest(
                f"exploring layers must lie between 0 and {n}, got {self.exploring_layers}"
            )
        if self.top < (2 if alpha == "auto" else 1):
            raise BadRequest(f"top must be at least 2 (1 with a fixed alpha), got {self.top}")
        lines = score_lines(model, backbone, self.score_latency)
        scored = _Scored(model, backbone, lines, self.top, split, budget_ms)
        if alpha == "auto":
            exponent = scored.find_alpha()
        elif isinstance(alpha, str) or not (math.isfinite(alpha) and alpha >= 0):
            raise BadRequest(f"alpha must be auto or a number of at least 0, got {alpha}")
        else:
            exponent = float(alpha)
            scored.require_stage1(exponent)
        ranked = scored.columns(exponent).tolist()
        columns: list[list[int]] = [
            row[:kept] for row, kept in zip(ranked, scored.kept, strict=True)
        ]
        exploring: list[int | None] = [None] * n
        for layer in range(n - self.exploring_layers, n):
            exploring[layer] = scored.exploring_column(columns, layer)
        for layer, column in enumerate(exploring):
            if column is not None:
                columns[layer].append(column)
        return Choice(
            tuple(map(tuple, columns)), tuple(exploring), exponent, reference=lines.reference
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
        good = (low < self.budget_ms) & (self.budget_ms < high)
        good &= stage1 <= self.budget_ms + TOLERANCE_MS
        if not good.any():
            raise BadRequest(
                f"{self.budget_ms:g} ms is no constraint: whatever alpha, the {self.top} best "
                f"operators make spaces between {low.min():.4g} and {high.max():.4g} ms; "
                "choose --latency between them, or fix --alpha"
            )
        # Where a layer has no more than p operators, all α give the same space and the same mean:
        # what is left of the difference is rounding, and decides nothing.
        best = _nearest(mean, self.budget_ms, good)
        a_win0 = fixed + winner.sum(axis=1)
        place = int(np.argmax(_nearest(a_win0, self.budget_ms, best)))
        return _short_number_between(float(edges[place]), float(edges[place + 1]))

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


def _nearest(
    latency_ms: NDArray[np.float64], budget_ms: float, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of some latencies are nearest to the budget; those that tie are all taken."""
    distance = np.where(among, np.abs(latency_ms - budget_ms), np.inf)
    return distance <= distance.min() + _SAME_SHARE * budget_ms


def _short_number_between(low: float, high: float) -> float:
    """A decimal with few digits strictly inside an interval, so that it can be typed."""
    middle = (low + high) / 2
    for digits in range(1, 16):
        value = round(middle, digits)
        if low < value < high:
            return value
    return middle
