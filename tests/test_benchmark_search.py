"""The pure parts of the benchmarks of the search, and the example space that one of them uses."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hurricane.ops import pool
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import load_plugin
from hurricane.search.space import build_space

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "nas_bench_macro"
DATA = (
    Path(os.environ.get("HURRICANE_DATA", "absent")) / "accuracy" / "nas-bench-macro_cifar10.json"
)
OPERATORS = ("Identity", "MB3_K3", "MB6_K5")


def load(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The example's backbone, with its operators registered."""
    monkeypatch.setattr(pool, "_CUSTOM", {})
    load_plugin(EXAMPLE / "operators.py")
    return load_backbone(EXAMPLE / "backbone.toml")


@pytest.mark.parametrize(
    ("key", "macs"), [("00000000", 7713280), ("01201201", 46109184), ("22222222", 105660928)]
)
def test_the_example_has_the_macs_of_the_benchmarks_networks(
    backbone: Backbone, key: str, macs: int
) -> None:
    assert backbone.macs([OPERATORS[int(digit)] for digit in key]) == macs


def test_all_networks_of_the_benchmark_are_those_of_the_example(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not DATA.is_file():
        pytest.skip(f"{DATA} is not there (HURRICANE_DATA)")
    oracle = load("nas_bench_macro", monkeypatch).Oracle.load(DATA, backbone)
    assert np.isfinite(oracle.accuracy).all()
    assert oracle.accuracy.size == len(json.loads(DATA.read_text()))


def random_oracle(module: ModuleType, layers: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    costs = module.Costs(np.sort(rng.uniform(0.1, 2, (layers, 3)), axis=1), 0.3)
    return module.Oracle(rng.uniform(50, 90, (3,) * layers)), costs


def test_regrets_are_those_of_trying_everything(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("nas_bench_macro", monkeypatch)
    oracle, costs = random_oracle(module, len(backbone.layers), 3)
    budget = costs.budget_ms(0.4)
    layers = np.arange(len(backbone.layers))
    within = [
        codes
        for codes in itertools.product(range(3), repeat=len(layers))
        if costs.fixed_ms + costs.latency_ms[layers, codes].sum() <= budget
    ]
    best = max(oracle.accuracy[codes] for codes in within)
    assert module.best_within(oracle, costs, budget) == best
    kinds = {"all": {"method": "pareto"}, "two": {"method": "hurricane"}}
    found = module.exhaustive(oracle, {"m": costs}, backbone, [40], kinds)
    assert found["all"]["m"] == [0.0]

    space = build_space(costs, backbone, budget, "hurricane")
    digit = [{n: OPERATORS.index(n) for n in names} for names in space.candidates]
    first = tuple(d[n] for d, n in zip(digit, space.a_win0, strict=True))[: space.split]
    one = max((c for c in within if c[: space.split] == first), key=lambda c: oracle.accuracy[c])
    two = max(
        (c for c in within if c[space.split :] == one[space.split :]),
        key=lambda c: oracle.accuracy[c],
    )
    assert found["two"]["m"] == [best - oracle.accuracy[two]]


def test_a_search_is_given_so_many_evaluations_in_all(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("nas_bench_macro", monkeypatch)
    oracle, costs = random_oracle(module, len(backbone.layers), 4)
    case = module.Case(oracle, backbone, costs, costs.budget_ms(0.7), 60, 0)
    assert module.searched(case, "pareto")[1] == 60
    for method in ("pareto", "hurricane"):
        accuracy, used = module.searched(case, method)
        assert 30 < used <= 60  # a second stage has but 27 networks
        assert accuracy <= module.best_within(oracle, costs, case.budget_ms) + 1e-9


def test_the_dynamic_programme_finds_the_best_network(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("spaces", monkeypatch)
    rng = np.random.default_rng(6)
    # Latencies of whole cells: rounding changes nothing.
    ms = [rng.integers(1, 30, 4).astype(float) for _ in range(5)]
    macs = [rng.uniform(1, 9, 4) for _ in range(5)]
    params = [rng.uniform(1, 9, 4) for _ in range(5)]
    layers = module.Layers(ms, macs, params)
    budget = sum(m.min() for m in ms) + 30
    networks = [
        (sum(v[c] for v, c in zip(module.capacity(layers), codes, strict=True)), codes)
        for codes in itertools.product(range(4), repeat=5)
        if sum(m[c] for m, c in zip(ms, codes, strict=True)) <= budget
    ]
    value, codes = max(networks)
    for up in (False, True):
        best = module.best_network(layers, module.capacity(layers), budget, 30, up)
        assert best.value == pytest.approx(value)
        assert best.macs == pytest.approx(sum(v[c] for v, c in zip(macs, codes, strict=True)))
        assert best.params == pytest.approx(sum(v[c] for v, c in zip(params, codes, strict=True)))
    whole = module.losses(layers, layers, (2, 3), budget, 30)
    assert whole["geometric_mean_of_layers_lost"] == pytest.approx(0)
    assert 0 <= whole["macs_times_weights_lost"] < 0.2  # the bound is not always reached


def test_the_plain_loop_keeps_to_the_budget_and_to_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = load("evolution_speed", monkeypatch)
    ms = [[0.1, 0.2, 0.4]] * 6
    asked: list[list[int]] = []

    def fitness(codes: list[list[int]]) -> list[float]:
        asked.extend(codes)
        return [float(sum(code)) for code in codes]

    distinct, best = module.plain_loop(ms, 0.1, 1.5, fitness, 330, 0)
    assert len(asked) == 330
    assert distinct == len(set(map(tuple, asked)))
    assert best == max(map(sum, asked))
    assert all(0.1 + sum(ms[i][c] for i, c in enumerate(code)) <= 1.5 + 1e-9 for code in asked)


def test_variants_of_a_supernet_ranking_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = load("supernet_ranking", monkeypatch)
    costs = set()
    for variant in ranking.VARIANTS.values():
        settings = variant.settings(40.0, 3, "cpu", "fp32")
        assert settings.seed == 3
        costs.add(round(settings.epochs * variant.paths, 6))
        assert variant.paths == {"single-path": 1, "fair": 3, "sandwich": 4}[settings.strategy]
    assert costs == {40.0}


def test_a_ranking_is_judged_by_the_true_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = load("supernet_ranking", monkeypatch)
    truth = np.linspace(80, 90, 40)
    trainings = np.stack([truth, truth, truth], axis=1)
    networks = ranking.Networks(np.zeros((40, 8), dtype=np.int64), trainings, truth * 1e6)
    right = networks.figures(truth)
    assert right == {"tau": 1, "tau_best_half": 1, "tau_best_tenth": 1, "regret_points": 0}
    assert networks.figures(-truth)["tau"] == -1
    assert networks.figures(-truth)["regret_points"] == pytest.approx(10)
    best_swapped = truth.copy()
    best_swapped[-2:] = best_swapped[-2:][::-1]
    swapped = networks.figures(best_swapped)
    assert swapped["tau_best_tenth"] == pytest.approx(1 - 2 / 6)  # one of six pairs
    assert swapped["regret_points"] == pytest.approx(truth[-1] - truth[-2])
    assert networks.ceiling() == right


@pytest.mark.process
def test_the_gpu_benchmark_runs_in_small_on_any_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    module = load("gpu_training", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu_training.py", "--tiny", "--device", "cpu"])
    module.main()
    found = json.loads(capsys.readouterr().out)
    speeds = {name: figures["images_per_s"] for name, figures in found["training"].items()}
    assert set(speeds) == {"defaults", "small", "network"}
    assert found["defaults_over_small"] == speeds["defaults"] / speeds["small"]
    assert found["supernet_over_network"] == speeds["defaults"] / speeds["network"]
    assert found["scoring"]["candidates_per_s"] > 0


def test_the_plain_way_of_scoring_gives_the_accuracies_of_ours(monkeypatch: pytest.MonkeyPatch):
    module = load("gpu_training", monkeypatch)
    backbone = module.parse_backbone(module.TINY, "tiny", "tiny.toml")
    data = module.random_data(backbone, 180)
    supernet = module.build_supernet(backbone, [module.OPERATORS] * 2, module.GATE, 0)
    codes = np.array([[0, 1], [0, 4], [3, 2]])
    device = module.choose_device("cpu")
    ours = module.PathScorer(supernet, data, 64, 128, "cpu").score(codes)
    assert module.score_plainly(supernet, data, codes, 64, device) == ours


def test_the_fixed_network_has_the_mean_macs_of_the_space(monkeypatch: pytest.MonkeyPatch):
    module = load("gpu_training", monkeypatch)
    backbone = load_backbone("cifar32")
    names = module.mean_network(backbone, [module.OPERATORS] * len(backbone.layers))

    def macs(operators: list[str] | tuple[str, ...], layer: int) -> list[int]:
        shape = backbone.layers[layer]
        return [pool.parse_operator(name).macs(shape) for name in operators]

    layers = range(len(backbone.layers))
    mean = sum(np.mean(macs(module.OPERATORS, layer)) for layer in layers)
    assert sum(macs([names[i]], i)[0] for i in layers) == pytest.approx(mean, rel=0.01)
