"""The search space: α found exactly, exploring operators, budgets, and the file on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.lookup_tables.architecture import TableSource
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL, parse_operator
from hurricane.search.scoring import score_lines
from hurricane.search.space import SearchSpace, build_space, check_budget, reachable_ms

# MACs and bytes a ms, overhead a node, price of SE for 64 channels, price of a wider kernel.
DEVICES = {
    "cpu": (30e6, 10e6, 0.01, 0.01, 0.02),
    "dsp": (300e6, 20e6, 0.05, 0.05, 0.2),
    "vpu": (100e6, 50e6, 0.01, 2.0, 0.0),
}


@dataclass
class Model:
    latency_ms: np.ndarray
    operators: tuple[str, ...]
    fixed_ms: float = 0.5


@lru_cache(maxsize=64)
def roofline(backbone: str, device: str, seed: int = 0) -> Model:
    """A table's worth of latencies from a roofline with noise, equal for equal shapes."""
    compute, memory, node, se, wide = DEVICES[device]
    rng = np.random.default_rng(seed)
    shapes = load_backbone(backbone).layers
    rows = {}
    for shape in dict.fromkeys(shapes):
        row = []
        for op in POOL:
            if not op.applies_to(shape):
                row.append(np.nan)
                continue
            ms = sum(
                max(c.macs / compute, (4 * c.params + 8 * c.pixels) / memory) + node
                for c in op.convolutions(shape)
            )
            ms += op.se * se * shape.in_channels / 64
            ms *= 1 + wide * max(0, op.kernel - 3)
            row.append(round(ms * rng.lognormal(0, 0.05), 6))
        rows[shape] = row
    return Model(np.array([rows[s] for s in shapes]), tuple(op.name for op in POOL))


def budget_at(model: Model, share: float) -> float:
    low, high = reachable_ms(model)
    return low + share * (high - low)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("device", list(DEVICES))
@pytest.mark.parametrize("backbone", ["imagenet224", "proxyless224", "digits32"])
def test_auto_alpha_puts_the_budget_inside_the_space(
    backbone: str, device: str, share: float
) -> None:
    model = roofline(backbone, device)
    space = build_space(model, load_backbone(backbone), budget_at(model, share))
    assert space.lowest_ms < space.budget_ms < space.highest_ms
    assert space.stage1_set.count > 0
    assert space.alpha_mode == "auto"


@settings(max_examples=40)
@given(
    st.integers(0, 30),
    st.sampled_from(list(DEVICES)),
    st.floats(0.001, 0.85),
    st.integers(2, 6),
    st.sampled_from(["operator", "architecture"]),
)
def test_auto_alpha_finds_a_space_for_any_noise_and_budget(
    seed: int, device: str, share: float, top: int, score_latency: str
) -> None:
    model = roofline("cifar32", device, seed)
    budget = budget_at(model, share)
    backbone = load_backbone("cifar32")
    space = build_space(model, backbone, budget, top=top, score_latency=score_latency)
    assert space.holds_budget
    assert space.stage1_set.count > 0


def test_no_alpha_of_a_fine_grid_has_a_mean_closer_to_the_budget() -> None:
    model, backbone = roofline("digits32", "cpu"), load_backbone("digits32")
    budget = budget_at(model, 0.4)
    best = build_space(model, backbone, budget, exploring_layers=0)
    for alpha in np.linspace(0, 3, 1500):
        try:
            other = build_space(model, backbone, budget, alpha=float(alpha), exploring_layers=0)
        except BadRequest:  # stage 1 cannot meet the budget
            continue
        if other.holds_budget:
            assert abs(best.mean_ms - budget) <= abs(other.mean_ms - budget) + 1e-9


def test_the_alpha_found_can_be_given_as_a_number() -> None:
    model, backbone = roofline("imagenet224", "dsp"), load_backbone("imagenet224")
    auto = build_space(model, backbone, budget_at(model, 0.3))
    fixed = build_space(model, backbone, budget_at(model, 0.3), alpha=auto.alpha)
    assert fixed.alpha_mode == "fixed"
    assert replace(fixed, alpha_mode="auto") == auto
    assert len(str(auto.alpha)) < 10


def test_candidates_are_the_best_by_score_and_a_win0_the_very_best() -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    space = build_space(model, backbone, budget_at(model, 0.3), exploring_layers=0)
    ranking = score_lines(model, backbone).ranking(space.alpha)
    for layer, names in enumerate(space.candidates):
        assert names == tuple(model.operators[c] for c in ranking[layer, :4])
        expected = [model.latency_ms[layer, c] for c in ranking[layer, :4]]
        assert list(space.latency_ms[layer]) == expected
    assert space.a_win0 == tuple(names[0] for names in space.candidates)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_exploring_operators_are_the_largest_that_leave_stage_1_feasible(share: float) -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    budget = budget_at(model, share)
    space = build_space(model, backbone, budget)
    plain = build_space(model, backbone, budget, alpha=space.alpha, exploring_layers=0)
    assert [e is not None for e in space.exploring] == [False] * 16 + [True] * 4
    for layer in range(16, 20):
        shape = backbone.layers[layer]
        fits = []
        for name in set(model.operators) - set(plain.candidates[layer]):
            op = parse_operator(name)
            own = model.latency_ms[layer, model.operators.index(name)]
            names = [(n,) for n in plain.a_win0[:8]] + list(plain.candidates[8:])
            rest = sum(
                min(plain.latency_ms[i][plain.candidates[i].index(n)] for n in names[i])
                for i in range(20)
                if i != layer
            )
            if model.fixed_ms + rest + own <= budget:
                fits.append((op.macs(shape) * op.params(shape), name))
        assert space.exploring[layer] == max(fits)[1]
        assert space.candidates[layer] == (*plain.candidates[layer], max(fits)[1])


def test_where_no_further_operator_fits_there_is_no_exploring_operator() -> None:
    model, backbone = roofline("digits32", "cpu"), load_backbone("digits32")
    low, _ = reachable_ms(model)
    space = build_space(model, backbone, low + 1e-6)
    assert space.exploring == (None,) * 7
    assert space.feasible_set.count == 1


def test_a_budget_below_the_lowest_latency_says_what_is_possible() -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    low, _ = reachable_ms(model)
    for budget in (0.01, low):
        with pytest.raises(BadRequest, match=f"{low:.4g}"):
            build_space(model, backbone, budget)
    check_budget(model, low + 0.001)


def test_a_budget_above_every_space_says_that_it_is_no_constraint() -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    with pytest.raises(BadRequest, match="no constraint"):
        build_space(model, backbone, 10_000)
    assert build_space(model, backbone, 10_000, alpha=0.4).feasible_set.count == 4**16 * 5**4


def test_an_alpha_too_high_for_stage_1_is_refused_with_the_reason() -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    with pytest.raises(BadRequest, match=r"alpha 3 is too high .* first 8 layers"):
        build_space(model, backbone, budget_at(model, 0.1), alpha=3.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 1}, "top"),
        ({"split": 0}, "split"),
        ({"split": 20}, "split"),
        ({"exploring_layers": 21}, "exploring"),
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "best"}, "alpha"),
        ({"score_latency": "network"}, "score latency"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    model, backbone = roofline("imagenet224", "cpu"), load_backbone("imagenet224")
    with pytest.raises(BadRequest, match=words):
        build_space(model, backbone, budget_at(model, 0.3), **options)


@pytest.fixture
def space() -> SearchSpace:
    model = roofline("digits32", "cpu")
    source = TableSource("cpu.csv", "ab" * 32, "cpu-onnxruntime-fp32")
    return build_space(model, load_backbone("digits32"), budget_at(model, 0.4), table=source)


def test_a_space_file_gives_the_same_space_back(space: SearchSpace, tmp_path: Path) -> None:
    space.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == space
    content = json.loads((tmp_path / "space.json").read_text())
    assert content["feasible"] == space.feasible_set.count
    assert content["lowest_ms"] < content["budget_ms"] < content["highest_ms"]


def test_a_fixed_latency_below_zero_is_searched_saved_and_loaded(tmp_path: Path) -> None:
    model = replace(roofline("digits32", "cpu"), fixed_ms=-0.01)
    made = build_space(model, load_backbone("digits32"), budget_at(model, 0.4))
    made.save(tmp_path / "space.json")
    loaded = SearchSpace.load(tmp_path / "space.json")
    assert loaded == made
    assert loaded.fixed_ms == -0.01
    assert loaded.stage1_set.count > 0


def _set(*path: Any) -> Any:
    *keys, value = path

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("budget_ms"), "lacks the field budget_ms"),
        (_set("format_version", 9), "format version 9"),
        (_set("alpha", "auto"), "alpha must be a number"),
        (_set("fixed_ms", float("nan")), "fixed_ms must be a number"),
        (_set("layers", 2, "operators", 1, "Chioce_3"), "did you mean Choice_3"),
        (_set("layers", 2, "latency_ms", [1.0]), r"layers\[2\].latency_ms"),
        (_set("layers", 2, "latency_ms", 1, -1.0), "latency_ms must be a number"),
        (lambda c: c["layers"].pop(), "7 layers"),
        (_set("budget_ms", 0.1), "no network of stage 1 meets 0.1 ms"),
        (_set("split", 7), "split"),
        (_set("backbone", "resnet"), "backbone 'resnet'"),
        (_set("gate", "sigmoid"), "gate must be one of"),
    ],
)
def test_a_broken_space_file_is_refused_by_name_of_the_field(
    change: Any, words: str, space: SearchSpace, tmp_path: Path
) -> None:
    path = tmp_path / "space.json"
    space.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadRequest, match=words) as caught:
        SearchSpace.load(path)
    assert str(path) in str(caught.value)
