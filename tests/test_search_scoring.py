"""The score (F·P)^α / τ and the order that it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL, parse_operator
from hurricane.search.scoring import operator_scores, score_lines


@dataclass
class Model:
    latency_ms: np.ndarray
    operators: tuple[str, ...]
    fixed_ms: float = 0.5


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("digits32")


@pytest.fixture
def model(backbone: Backbone) -> Model:
    latency = np.random.default_rng(0).uniform(0.1, 2.0, (len(backbone.layers), len(POOL)))
    latency[:, 5] = np.nan
    return Model(latency, tuple(op.name for op in POOL))


def test_score_is_capacity_to_the_alpha_over_latency(model: Model, backbone: Backbone) -> None:
    scores = operator_scores(model, backbone, 0.4)
    for layer, column in ((0, 0), (3, 17), (6, 31)):
        operator, shape = parse_operator(model.operators[column]), backbone.layers[layer]
        product = operator.macs(shape) * operator.params(shape)
        expected = product**0.4 / model.latency_ms[layer, column]
        assert scores[layer, column] == pytest.approx(expected, rel=1e-9)


def test_alpha_zero_ranks_by_speed(model: Model, backbone: Backbone) -> None:
    ranking = score_lines(model, backbone).ranking(0.0)
    assert (ranking == np.argsort(model.latency_ms, axis=1, kind="stable")).all()


def test_what_is_no_candidate_has_no_score_and_ranks_last(model: Model, backbone: Backbone) -> None:
    assert np.isnan(operator_scores(model, backbone, 0.4)[:, 5]).all()
    assert (score_lines(model, backbone).ranking(0.4)[:, -1] == 5).all()


def test_ranking_is_non_increasing_and_ties_keep_the_columns_order(
    model: Model, backbone: Backbone
) -> None:
    model.latency_ms[:, 9] = model.latency_ms[:, 2]
    lines = score_lines(model, backbone)
    lines.capacity[:, 9] = lines.capacity[:, 2]
    scores, ranking = lines.log_scores(0.3), lines.ranking(0.3)
    ordered = np.take_along_axis(scores, ranking, axis=1)[:, :-1]
    assert (np.diff(ordered, axis=1) <= 0).all()
    for row in ranking.tolist():
        assert row.index(9) == row.index(2) + 1


def test_a_huge_alpha_ranks_by_capacity_without_overflow(model: Model, backbone: Backbone) -> None:
    lines = score_lines(model, backbone)
    best = lines.ranking(1e6)[:, 0]
    assert (
        best == np.nanargmax(np.where(np.isnan(lines.latency), np.nan, lines.capacity), 1)
    ).all()


def test_architecture_latency_adds_the_rest_of_the_fastest_network(
    model: Model, backbone: Backbone
) -> None:
    lines = score_lines(model, backbone, "architecture")
    fastest = np.nanmin(model.latency_ms, axis=1)
    rest = model.fixed_ms + fastest.sum() - fastest[4]
    assert np.exp(lines.latency[4, 7]) == pytest.approx(rest + model.latency_ms[4, 7])
    names = [model.operators[int(c)] for c in np.nanargmin(model.latency_ms, axis=1)]
    assert lines.reference == tuple(names)


def test_a_layer_without_operators_is_named(model: Model, backbone: Backbone) -> None:
    model.latency_ms[2] = np.nan
    with pytest.raises(BadRequest, match="layer 2"):
        operator_scores(model, backbone, 0.4)


def test_a_model_of_another_backbone_is_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="7 layers"):
        operator_scores(model, load_backbone("cifar32"), 0.4)


def test_a_negative_alpha_is_refused(model: Model, backbone: Backbone) -> None:
    with pytest.raises(BadRequest, match="negative"):
        operator_scores(model, backbone, -0.1)
