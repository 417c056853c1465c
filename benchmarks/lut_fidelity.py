"""How near a table's sums come to whole networks, with the networks' own retest beside it.

Builds the table through a private agent (or takes one that is there), then times three groups of
networks that played no part in it, interleaved: random ones stratified over latency, the uniform
ones, and the winners of two searches. The searches' fitness is capacity, log(MACs x params): what
is checked is latency, so nothing is trained.

    python benchmarks/lut_fidelity.py --target cpu-onnxruntime-fp32 --random 20 --json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.pool import POOL, parse_operator
from hurricane.profiler.measuring import Bench, MeasuringSettings, connect, parse_target
from hurricane.profiler.networks import (
    WholeNetwork,
    compare,
    fit_line,
    random_networks,
    uniform_networks,
)
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.verification import verify_table
from hurricane.search.space import build_space
from hurricane.search.two_stage import two_stage_search

WINNERS_AT = (0.2, 0.5)
"""Budgets of the two searches, as parts of the reachable range."""


class CapacityEvaluator:
    """Scores architectures by log(MACs x params) instead of by training."""

    def __init__(self, backbone) -> None:
        self._backbone = backbone
        self._candidates = ()

    def prepare(self, stage, candidates, sampler, previous=None) -> None:
        self._candidates = candidates

    def evaluate(self, codes: np.ndarray) -> list[float]:
        found = []
        for row in codes:
            total = 0.0
            for code, names, shape in zip(
                row, self._candidates, self._backbone.layers, strict=True
            ):
                op = parse_operator(names[code])
                total += math.log(op.macs(shape)) + math.log(op.params(shape))
            found.append(total)
        return found


def winners(model: LatencyModel, backbone, evaluations: int) -> list[WholeNetwork]:
    low, high = model.bounds()
    found = []
    for part in WINNERS_AT:
        budget = low + part * (high - low)
        space = build_space(model, backbone, budget)
        result = two_stage_search(space, CapacityEvaluator(backbone), evaluations=evaluations)
        for stage in result.stages:
            label = f"winner-{part}-stage-{stage.stage}"
            found.append(WholeNetwork("winners", label, stage.operators))
    return found


def run(arguments: argparse.Namespace, seed: int) -> dict:
    layers = parse_layers(arguments.layers)
    backbone = layers.backbone
    request = parse_target(arguments.target, arguments.option)
    rows = plan_rows(layers, POOL)
    with tempfile.TemporaryDirectory() as folder, connect([], request) as clients:
        bench = Bench.open(clients[0], request)
        path = Path(arguments.table or Path(folder) / "table.csv")
        started = time.perf_counter()
        profile([bench], rows, path, MeasuringSettings(seed=seed))
        profile_s = time.perf_counter() - started
        model = LatencyModel(LookupTable.load(path), backbone)
        networks = random_networks(model, arguments.random, seed + 1)
        networks += uniform_networks(model) + winners(model, backbone, 200)
        found = verify_table(bench, model, networks, MeasuringSettings(seed=seed + 2))
    drawn = [c for c in found.networks if c.group == "random"]
    result = {
        "target": str(found.measured_on),
        "profile_s": profile_s,
        "groups": [asdict(group) for group in found.groups],
    }
    if len(drawn) > 2 * arguments.fit:
        order = np.random.default_rng(seed).permutation(len(drawn))
        fit = [drawn[i] for i in order[: arguments.fit]]
        held = [drawn[i] for i in order[arguments.fit :]]
        scale, offset = fit_line([c.predicted_ms for c in fit], [c.measured_ms for c in fit])
        corrected = [scale * c.predicted_ms + offset for c in held]
        result["calibrated"] = {
            "fitted_on": len(fit),
            "scale": scale,
            "offset_ms": offset,
            "prediction": asdict(compare(corrected, [c.measured_ms for c in held])),
            "retest": asdict(compare([c.first_ms for c in held], [c.second_ms for c in held])),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", help="a table that is kept, and taken where it is complete")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--fit", type=int, default=10, help="networks a calibration is fitted on")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    runs = []
    for number in range(arguments.runs):
        runs.append(run(arguments, 1000 * number))
        if not arguments.json:
            for group in runs[-1]["groups"]:
                print(group["group"], group["prediction"], "retest", group["retest"])
    print(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()
