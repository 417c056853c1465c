"""Search methods against an oracle: NAS-Bench-Macro, 6,561 networks with known accuracies.

Nothing is trained: an evaluation looks up the mean test accuracy of three trainings on CIFAR-10.
The space is a user's own, the plugin and the backbone of `examples/nas_bench_macro`; MACs are
checked against the benchmark's. Six latency models: this CPU (measured) and the three simulated
devices, by tables that are made once and kept in the output folder; exact MACs; exact weights.

*Regret* is the best accuracy within the budget less that of the network found, in percentage
points. First exhaustively, with nothing left to luck: what the generated space loses, and what
the two stages lose. Then searches with a number of evaluations in all (the two-stage method has
half in each stage), and Optuna's samplers where Optuna is installed.

Run: python benchmarks/nas_bench_macro.py [-o FOLDER]   (HURRICANE_DATA names the data's folder)
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import load_plugin, parse_operator
from hurricane.profiler.cli import profile_ops
from hurricane.search.candidates import METHODS
from hurricane.search.evolution import STRATEGIES
from hurricane.search.feasible import FeasibleSet
from hurricane.search.pipeline import open_latency
from hurricane.search.space import SearchSpace, build_space, reachable_ms
from hurricane.search.two_stage import Candidates, Sampler, two_stage_search

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "nas_bench_macro"
OPERATORS = ("Identity", "MB3_K3", "MB6_K5")
"""The digits 0, 1, 2 of the benchmark's keys."""

TARGETS = (
    "cpu-onnxruntime-fp32",
    "sim-snapdragon845-cpu",
    "sim-hexagon685-dsp",
    "sim-myriadx-vpu",
)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Budgets of the searches, of the reachable range."""

TRIALS_PER_EVALUATION = 3
"""An infeasible trial of Optuna's costs no evaluation; there are at most so many for each."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Oracle:
    """Accuracies in percent [3 × 3 × … × 3]."""

    accuracy: NDArray[np.float64]

    @classmethod
    def load(cls, path: Path, backbone: Backbone) -> Oracle:
        """Reads the benchmark and checks its MACs against ours."""
        found = json.loads(path.read_text())
        accuracy = np.full((len(OPERATORS),) * len(backbone.layers), np.nan)
        macs = [[parse_operator(n).macs(s) for n in OPERATORS] for s in backbone.layers]
        fixed = sum(c.macs for c in backbone.fixed_convolutions())
        for key, facts in found.items():
            codes = tuple(map(int, key))
            total = fixed + sum(row[code] for row, code in zip(macs, codes, strict=True))
            if total != facts["flops"]:
                raise SystemExit(f"{key}: {total} MACs, the benchmark has {facts['flops']}")
            accuracy[codes] = facts["mean_acc"]
        return cls(accuracy)

    def of(self, names: Candidates, codes: Codes) -> NDArray[np.float64]:
        """Accuracies of codes [N × layers] that index each layer's names."""
        digits = [
            np.array([OPERATORS.index(name) for name in layer])[codes[:, i]]
            for i, layer in enumerate(names)
        ]
        return self.accuracy[tuple(digits)]


@dataclass(frozen=True)
class Costs:
    """A latency model: what an operator costs at a layer."""

    latency_ms: NDArray[np.float64]
    fixed_ms: float
    operators: tuple[str, ...] = OPERATORS

    @property
    def everything(self) -> Candidates:
        return (self.operators,) * len(self.latency_ms)

    def without(self, operator: str) -> Costs:
        """The same without an operator."""
        kept = [i for i, name in enumerate(self.operators) if name != operator]
        names = tuple(self.operators[i] for i in kept)
        return Costs(self.latency_ms[:, kept], self.fixed_ms, names)

    def budget_ms(self, share: float) -> float:
        low, high = reachable_ms(self)
        return low + share * (high - low)

    def feasible(self, budget_ms: float) -> FeasibleSet:
        return FeasibleSet(list(self.latency_ms), self.fixed_ms, budget_ms)


class OracleEvaluator:
    """Takes the place of a supernet."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._candidates: Candidates = ()

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        self._candidates = candidates

    def evaluate(self, codes: Codes) -> list[float]:
        return (self._oracle.of(self._candidates, codes) / 100).tolist()


def latency_models(folder: Path, backbone: Backbone, backbone_file: Path) -> dict[str, Costs]:
    """The six; tables that the folder has not are measured or simulated into it."""
    models = {}
    for target in TARGETS:
        table = folder / f"{target}.csv"
        if not table.exists():
            words = ["--layers", str(backbone_file), "--operators", ",".join(OPERATORS)]
            words += ["--target", target, "-o", str(table)]
            profile_ops.main(
                [*words, "--plugin", str(EXAMPLE / "operators.py")], "profile", **_CALL
            )
        model = open_latency(table, backbone_file, accept_table=True).model
        columns = [model.operators.index(name) for name in OPERATORS]
        models[target] = Costs(model.latency_ms[:, columns], model.fixed_ms)
    fixed = backbone.fixed_convolutions()
    # As in the score, an operator without any counts as one MAC and one weight.
    for name, count, rest in (
        ("millions of MACs", lambda o, s: o.macs(s), sum(c.macs for c in fixed)),
        ("millions of weights", lambda o, s: o.params(s), sum(c.params for c in fixed)),
    ):
        rows = [[max(1, count(parse_operator(o), s)) for o in OPERATORS] for s in backbone.layers]
        models[name] = Costs(np.array(rows, dtype=np.float64) / 1e6, rest / 1e6)
    return models


_CALL: dict[str, Any] = {"standalone_mode": False}


# --- Exhaustive --------------------------------------------------------------------------------


def best_within(oracle: Oracle, costs: Costs, budget_ms: float) -> float:
    """The highest accuracy of all networks within a budget."""
    codes = costs.feasible(budget_ms).enumerate(oracle.accuracy.size)
    assert codes is not None
    return float(oracle.of(costs.everything, codes).max())


def best_codes(oracle: Oracle, names: Candidates, feasible: FeasibleSet) -> tuple[Codes, float]:
    """The most accurate network of a set, the fastest of equals, and its accuracy."""
    codes = feasible.enumerate(oracle.accuracy.size)
    assert codes is not None
    accuracy = oracle.of(names, codes)
    first = np.lexsort((feasible.latency_ms(codes), -accuracy))[0]
    return codes[first], float(accuracy[first])


def stages_exhausted(oracle: Oracle, space: SearchSpace) -> float:
    """Accuracy of the network found when every network of each stage is evaluated."""
    if not space.split:
        return best_codes(oracle, space.candidates, space.feasible_set)[1]
    t = space.split
    fixed = tuple((c[0],) if i < t else c for i, c in enumerate(space.candidates))
    later, _ = best_codes(oracle, fixed, space.stage1_set)
    rest = {i: int(later[i]) for i in range(t, space.layers)}
    names = tuple((c[rest[i]],) if i in rest else c for i, c in enumerate(space.candidates))
    return best_codes(oracle, names, space.feasible_set.restrict(rest))[1]


EXHAUSTIVE: dict[str, dict[str, Any]] = {
    "pareto": {"method": "pareto"},
    "hurricane": {"method": "hurricane"},
    "hurricane, all layers in one stage": {"method": "hurricane", "split": 0},
    "pareto, 2 operators a layer": {"method": "pareto", "top": 2},
    "hurricane, 2 operators a layer, one stage": {"method": "hurricane", "split": 0, "top": 2},
    "hurricane, 2 operators a layer": {"method": "hurricane", "top": 2},
}
"""Options of spaces; the first two are the two methods as they are by default."""


def exhaustive(
    oracle: Oracle,
    models: dict[str, Costs],
    backbone: Backbone,
    percents: Sequence[int],
    kinds: Mapping[str, dict[str, Any]] = EXHAUSTIVE,
) -> dict[str, dict[str, list[float]]]:
    """Regrets in points of every kind of space, by latency model."""
    found: dict[str, dict[str, list[float]]] = {}
    for (name, costs), percent in itertools.product(models.items(), percents):
        budget = costs.budget_ms(percent / 100)
        best = best_within(oracle, costs, budget)
        for kind, options in kinds.items():
            space = build_space(costs, backbone, budget, **options)
            regrets = found.setdefault(kind, {}).setdefault(name, [])
            regrets.append(best - stages_exhausted(oracle, space))
    return found


# --- Searches ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One search to be made."""

    oracle: Oracle
    backbone: Backbone
    costs: Costs
    budget_ms: float
    evaluations: int
    seed: int


def searched(case: Case, method: str, strategy: str = "evolution") -> tuple[float, int]:
    """The product's own search: accuracy of the winner, and evaluations."""
    space = build_space(case.costs, case.backbone, case.budget_ms, method)
    result = two_stage_search(
        space,
        OracleEvaluator(case.oracle),
        strategy=STRATEGIES[strategy](50),
        evaluations=case.evaluations // space.stages,
        seed=case.seed,
    )
    return 100 * result.winner.fitness, sum(len(s.evaluated) for s in result.stages)


def by_optuna(case: Case, make_sampler: Callable[..., Any]) -> tuple[float, int]:
    """Optuna with the budget as a constraint: accuracy of the winner, and evaluations."""
    import optuna

    # The successor of constraints_func is not in versions before 5.
    warnings.simplefilter("ignore", FutureWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    feasible = case.costs.feasible(case.budget_ms)
    layers = range(len(case.costs.latency_ms))
    seen: dict[tuple[int, ...], float] = {}
    sampler = make_sampler(
        seed=case.seed, constraints_func=lambda trial: trial.user_attrs["constraint"]
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    calls = 0
    for _ in range(TRIALS_PER_EVALUATION * case.evaluations):
        trial = study.ask()
        codes = tuple(trial.suggest_categorical(str(i), [0, 1, 2]) for i in layers)
        row = np.array([codes])
        over = float(feasible.latency_ms(row)[0] - case.budget_ms)
        trial.set_user_attr("constraint", [over])
        if not feasible.contains(row)[0]:
            study.tell(trial, 0.0)
            continue
        calls += 1
        if codes not in seen:
            seen[codes] = float(case.oracle.of(case.costs.everything, row)[0])
        study.tell(trial, seen[codes])
        if calls == case.evaluations:
            break
    return max(seen.values(), default=float(case.oracle.accuracy.min())), calls


def searchers(optuna_seeds: int) -> Iterator[tuple[str, Callable[[Case], Any], int | None]]:
    """Name, search, and how many seeds it is given, None for all."""
    yield "pareto (default)", partial(searched, method="pareto"), None
    yield "hurricane", partial(searched, method="hurricane"), None
    yield "random", partial(searched, method="pareto", strategy="random"), None
    if not optuna_seeds:
        return
    try:
        from optuna.samplers import NSGAIISampler, TPESampler
    except ImportError:
        print("Optuna is left out: it is not installed (pip install optuna)", file=sys.stderr)
        return
    yield "Optuna TPE", partial(by_optuna, make_sampler=TPESampler), optuna_seeds
    yield "Optuna NSGA-II", partial(by_optuna, make_sampler=NSGAIISampler), optuna_seeds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Of regrets in points."""
    return {
        "mean_regret_points": float(np.mean(values)),
        "p90_regret_points": float(np.percentile(values, 90)),
        "highest_regret_points": float(np.max(values)),
        "share_without_regret": float(np.mean(np.array(values) < 1e-9)),
        "cases": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/nas-bench-macro"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", default="100,300,1000", help="in all")
    parser.add_argument("--budgets", type=int, default=99, help="exhaustive ones, of 1 to 99%%")
    parser.add_argument(
        "--optuna-seeds", type=int, default=1, help="on the measured table; 0: none"
    )
    parser.add_argument("--optuna-evaluations", default="100,300")
    arguments = parser.parse_args()
    data = os.environ.get("HURRICANE_DATA")
    path = Path(data or ".") / "accuracy" / "nas-bench-macro_cifar10.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: name the folder of the data by HURRICANE_DATA")
    start = time.monotonic()
    load_plugin(EXAMPLE / "operators.py")
    backbone_file = EXAMPLE / "backbone.toml"
    backbone = load_backbone(backbone_file)
    oracle = Oracle.load(path, backbone)
    arguments.output.mkdir(parents=True, exist_ok=True)
    models = latency_models(arguments.output, backbone, backbone_file)

    percents = np.unique(np.linspace(1, 99, arguments.budgets).round().astype(int)).tolist()
    regrets = exhaustive(oracle, models, backbone, percents)
    fewer = {name: costs.without(OPERATORS[0]) for name, costs in models.items()}
    kinds = {f"{m}, without the identity": {"method": m} for m in METHODS}
    regrets |= exhaustive(oracle, fewer, backbone, percents, kinds)
    everything = {}
    for kind, by_model in regrets.items():
        flat = list(itertools.chain(*by_model.values()))
        everything[kind] = {
            **summary(flat),
            "mean_regret_points_by_latency": {n: float(np.mean(v)) for n, v in by_model.items()},
        }
        print(
            f"exhaustive, {kind}: regret {np.mean(flat):.3f} points on average, "
            f"at most {np.max(flat):.2f} ({len(flat)} cases)"
        )

    rows: dict[str, dict[str, Any]] = {}
    for name, search, seeds in searchers(arguments.optuna_seeds):
        numbers = arguments.evaluations if seeds is None else arguments.optuna_evaluations
        chosen = models if seeds is None else {TARGETS[0]: models[TARGETS[0]]}
        for evaluations in map(int, numbers.split(",")):
            values, calls = [], []
            by_model = {}
            begun = time.process_time()
            for model, costs in chosen.items():
                for share in SHARES:
                    budget = costs.budget_ms(share)
                    best = best_within(oracle, costs, budget)
                    for seed in range(arguments.seeds if seeds is None else seeds):
                        accuracy, used = search(
                            Case(oracle, backbone, costs, budget, evaluations, seed)
                        )
                        values.append(best - accuracy)
                        by_model.setdefault(model, []).append(best - accuracy)
                        calls.append(used)
            rows.setdefault(name, {})[str(evaluations)] = {
                **summary(values),
                "mean_evaluations": float(np.mean(calls)),
                "mean_regret_points_by_latency": {
                    n: float(np.mean(v)) for n, v in by_model.items()
                },
                "cpu_s_a_search": (time.process_time() - begun) / len(values),
            }
            print(
                f"{name}, {evaluations} evaluations in all: regret {np.mean(values):.4f} points on "
                f"average, at most {np.max(values):.2f}; optimum in "
                f"{np.mean(np.array(values) < 1e-9):.0%} of {len(values)} searches",
                flush=True,
            )
    print(
        json.dumps(
            {
                "benchmark": "nas_bench_macro",
                "machine": platform.processor() or platform.machine(),
                "unit": "regret in percentage points of accuracy, shares as fractions",
                "exhaustive": everything,
                "searches": rows,
                "seconds": time.monotonic() - start,
            }
        )
    )


if __name__ == "__main__":
    main()
