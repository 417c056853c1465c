"""The score of an operator at a layer: capacity against latency, (F·P)^α / τ.

Source: HURRICANE, section on the hardware-aware search space; F is MACs, P parameters,
τ latency. Scores are compared as logarithms, α·log(F·P) − log τ, which are straight lines
of α: nothing overflows, and where two operators change places can be computed exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ops.backbone import Backbone
from ..ops.errors import BadRequest
from ..ops.pool import Operator, parse_operator
from ..ops.shapes import LayerShape

SCORE_LATENCIES = ("operator", "architecture")
"""What τ is: the operator's own latency, or that of a reference architecture holding it."""


class LatencySource(Protocol):
    """What the search needs of a latency model."""

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """[layers × operators]; NaN where the operator is no candidate."""
        ...

    @property
    def operators(self) -> Sequence[str]:
        """Names of the columns."""
        ...

    @property
    def fixed_ms(self) -> float:
        """Latency of everything but the learnable layers."""
        ...


@dataclass(frozen=True)
class ScoreLines:
    """Logarithms of capacity and latency; a log score is ``α · capacity − latency``.

    Attributes:
        capacity: log(F·P), [layers × operators].
        latency: log(τ / ms), [layers × operators]; NaN where the operator is no candidate.
        reference: with ``architecture`` latencies, the reference architecture's operators.
    """

    capacity: NDArray[np.float64]
    latency: NDArray[np.float64]
    reference: tuple[str, ...] | None = None

    def log_scores(self, alpha: float) -> NDArray[np.float64]:
        """Log scores [layers × operators]; NaN where the operator is no candidate."""
        return alpha * self.capacity - self.latency

    def ranking(self, alpha: float) -> NDArray[np.int64]:
        """Columns by non-increasing score [layers × operators].

        Ties go to the earlier column; operators that are no candidates come last.
        """
        return rank(self.log_scores(alpha))


def rank(log_scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns by non-increasing score along the last axis, NaN last, ties in column order."""
    return np.argsort(-log_scores, axis=-1, kind="stable")


def score_lines(
    model: LatencySource, backbone: Backbone, score_latency: str = "operator"
) -> ScoreLines:
    """What the scores of all operators at all layers are made of.

    Args:
        model: the latency model of the target.
        backbone: its layers give MACs and parameters.
        score_latency: ``operator``: τ is the operator's own latency. ``architecture``: τ is
            the latency of the fastest architecture with this layer replaced by the operator.

    Raises:
        BadRequest: unknown `score_latency`, a model of another backbone, or a layer for
            which the table has no operator.
    """
    if score_latency not in SCORE_LATENCIES:
        raise BadRequest(f"score latency must be one of {', '.join(SCORE_LATENCIES)}")
    tau = np.asarray(model.latency_ms, dtype=np.float64)
    if tau.shape != (len(backbone.layers), len(model.operators)):
        raise BadRequest(
            f"the latency model has {tau.shape[0]} layers, {backbone.name} has "
            f"{len(backbone.layers)}: use the table's own backbone"
        )
    known = np.isfinite(tau)
    for index in np.flatnonzero(~known.any(axis=1)):
        raise BadRequest(
            f"no operator of the table can stand at layer {index} ({backbone.layers[index]}) "
            f"of {backbone.name}: profile more operators"
        )
    reference = None
    if score_latency == "architecture":
        fastest = np.nanargmin(tau, axis=1)
        own = np.nanmin(tau, axis=1)
        tau = tau + (model.fixed_ms + own.sum() - own)[:, None]
        reference = tuple(model.operators[int(c)] for c in fastest)
    return ScoreLines(_log_capacity(model, backbone, known), np.log(tau), reference)


def operator_scores(
    model: LatencySource, backbone: Backbone, alpha: float, score_latency: str = "operator"
) -> NDArray[np.float64]:
    """Scores (F·P)^α / τ, [layers × operators]; NaN where the operator is no candidate.

    For a very large α scores exceed what a float holds (inf); rank by
    ``score_lines(...).ranking(alpha)``, which does not.
    """
    if alpha < 0:
        raise BadRequest(f"alpha must not be negative, got {alpha:g}")
    with np.errstate(over="ignore"):
        return np.exp(score_lines(model, backbone, score_latency).log_scores(alpha))


def _log_capacity(
    model: LatencySource, backbone: Backbone, known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    operators = [parse_operator(name) for name in model.operators]
    capacity = np.full(known.shape, np.nan)
    first_layer: dict[object, int] = {}
    for layer, shape in enumerate(backbone.layers):
        twin = first_layer.setdefault(shape, layer)
        if twin != layer and (known[twin] == known[layer]).all():
            capacity[layer] = capacity[twin]
            continue
        for column in np.flatnonzero(known[layer]):
            capacity[layer, column] = log_capacity(operators[column], shape)
    return capacity


def log_capacity(operator: Operator, shape: LayerShape) -> float:
    """log(F·P); one without weights (a user's) counts as one multiplication by one weight."""
    product = max(1, operator.macs(shape)) * max(1, operator.params(shape))
    return float(np.log(float(product)))
