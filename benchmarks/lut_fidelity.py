"""How near a table's sums come to end-to-end networks, with their split-half difference beside it.

Builds the table through a private agent (or takes one that is there), then times three groups of
networks that played no part in it, interleaved: random ones stratified over latency, the uniform
ones, and the winners of two searches. The searches' fitness is capacity, log(MACs x params): what
is checked is latency, so nothing is trained.

    python benchmarks/lut_fidelity.py --target cpu-onnxruntime-fp32 --random 60 --looping --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hurricane.agents.results import Protocol
from hurricane.lookup_tables.cells import INTERFERENCE, UNSTABLE
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.cached_files import CACHE_VARIABLE
from hurricane.ops.graph import prepare_templates
from hurricane.ops.pool import POOL, parse_operator
from hurricane.profiler.accuracy import compare, fit_line, stratified
from hurricane.profiler.draws import random_networks, uniform_networks
from hurricane.profiler.networks import WholeNetwork
from hurricane.profiler.plan import baseline_graphs, graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import DeviceLog, TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.profiler.verification import verify_table
from hurricane.search.space import build_space
from hurricane.search.two_stage import two_stage_search

WINNERS_AT = (0.2, 0.5)
"""Budgets of the two searches, as parts of the reachable range."""


PICKS = 100
"""Times that the networks for a calibration are picked anew."""


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


def looped(session: TargetSession, rows, seed: int, done: set) -> tuple[dict, dict]:
    """What a peer does: each graph called 10 + 50 times on end, the median taken.

    Args:
        session: what to time them on.
        rows: whose graphs are looped.
        seed: of the order.
        done: graphs that were looped before and are not again; is added to.

    Returns:
        Latency of each row's own graph looped, in ms, by (name, shape); and device time, in s,
        that looping the rows' own graphs, and all their graphs, takes.
    """

    def loop(graphs) -> tuple[dict, float]:
        spent, found = session.log.spent_ms, {}
        for start in range(0, len(graphs), 64):
            part = {graph: session.digest_of(graph) for graph in graphs[start : start + 64]}
            protocol = Protocol(rounds=1, calls_per_visit=50, warmup_calls=10, seed=seed)
            timed = session.time(list(part.values()), protocol)
            found |= {g: float(np.median(timed[d].wall_ms)) for g, d in part.items()}
        return found, (session.log.spent_ms - spent) / 1e3

    own, own_s = loop([row.alone for row in rows])
    others = {
        g: None for row in rows for g in (*row.with_operator, *row.baselines) if g not in done
    }
    done.update(others)
    _, others_s = loop(list(others))
    latency_ms = {(row.name, row.shape): own[row.alone] for row in rows}
    return latency_ms, {"own_graphs_s": own_s, "all_graphs_s": own_s + others_s}


def export_graphs(layers: str) -> float:
    """Seconds that exporting every graph of a plan takes, in a process that has traced nothing.

    In a process of its own: those that trace know the cache that they were started with.
    """
    rows = plan_rows(parse_layers(layers), POOL)
    baselines = baseline_graphs(rows)
    graphs = list(dict.fromkeys(g for row in rows for g in (row.alone, *row.with_operator)))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder
        started = time.perf_counter()
        prepare_templates([piece for graph in (*graphs, *baselines) for piece in graph])
        for graph, copies in [
            *((g, 1) for g in graphs),
            *((g, TimingProtocol().baseline_replicas) for g in baselines),
        ]:
            for copy in range(copies):
                graph_bytes(graph, copy)
        return time.perf_counter() - started


def held_out(predicted, drawn, fit: int, seed: int) -> dict:
    """Error on the random networks that a scale and an offset were not fitted to.

    Means over `PICKS` picks of the networks that they are fitted to, each picked as `verify`
    picks them: which ones these are matters as much as what is compared here.
    """
    random = np.random.default_rng(seed)
    measured = np.array([c.measured_ms for c in drawn])
    first, second = (np.array([getattr(c, n) for c in drawn]) for n in ("first_ms", "second_ms"))
    predicted = np.asarray(predicted)
    found: dict[str, list[dict]] = {"prediction": [], "split_half": []}
    for _ in range(PICKS):
        some = stratified(predicted, fit, random)
        rest = ~some
        scale, offset = fit_line(predicted[some], measured[some])
        figures = compare(scale * predicted[rest] + offset, measured[rest])
        found["prediction"].append(asdict(figures))
        found["split_half"].append(asdict(compare(first[rest], second[rest])))
    means = {
        name: {k: float(np.mean([f[k] for f in all_])) for k in all_[0]}
        for name, all_ in found.items()
    }
    return {"fitted_on": fit, "picks": PICKS, **means}


def run(arguments: argparse.Namespace, seed: int) -> dict:
    layers = parse_layers(arguments.layers)
    backbone = layers.backbone
    request = parse_target(arguments.target, arguments.option)
    rows = plan_rows(layers, POOL)
    with tempfile.TemporaryDirectory() as folder, connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        path = Path(arguments.table or Path(folder) / "table.csv")
        done: set = set()
        loops = [looped(session, rows[::2], seed, done)] if arguments.looping else []
        session.log = DeviceLog()
        started = time.perf_counter()
        made = profile([session], rows, path, TimingProtocol(seed=seed))
        result = {
            "target": str(session.target),
            "profile": {
                "wall_s": time.perf_counter() - started,
                "device_s": session.log.spent_ms / 1e3,
                "rows": len(rows),
                "interference": made.counts.get(INTERFERENCE, 0),
                "unstable": made.counts.get(UNSTABLE, 0),
            },
        }
        model = LatencyModel(LookupTable.load(path), backbone)
        networks = random_networks(model, arguments.random, seed + 1)
        networks += uniform_networks(model) + winners(model, backbone, 200)
        found = verify_table(session, model, networks, TimingProtocol(seed=seed + 2))
        drawn = [c for c in found.networks if c.group == "random" and not c.error]
        result["slowdown"] = found.slowdown
        result["random_as_timed"] = asdict(
            compare([c.predicted_ms for c in drawn], [c.as_timed_ms for c in drawn])
        )
        result["groups"] = {
            g.group: {
                "prediction": asdict(g.prediction),
                "split_half": asdict(g.split_half),
                "noise_floor": g.noise_floor,
            }
            for g in found.groups
        }
        enough = len(drawn) >= 2 * arguments.fit
        if enough:
            predicted = [c.predicted_ms for c in drawn]
            result["calibrated"] = held_out(predicted, drawn, arguments.fit, seed)
        if arguments.looping:
            loops.append(looped(session, rows[1::2], seed, done))  # one half before, one after
            loop_ms = {pair: ms for found_ms, _ in loops for pair, ms in found_ms.items()}
            seconds = {key: sum(spent[key] for _, spent in loops) for key in loops[0][1]}
            ends = loop_ms[backbone.stem_name, backbone.stem_shape]
            ends += loop_ms[backbone.head_name, backbone.head_shape]
            sums = [
                ends + sum(loop_ms[pair] for pair in zip(c.operators, backbone.layers, strict=True))
                for c in drawn
            ]
            result["looping"] = {
                **seconds,
                "device_time_ours_over_all_graphs": result["profile"]["device_s"]
                / seconds["all_graphs_s"],
                "device_time_ours_over_own_graphs": result["profile"]["device_s"]
                / seconds["own_graphs_s"],
                "random": asdict(compare(sums, [c.as_timed_ms for c in drawn])),
            }
            if enough:
                fitted = held_out(sums, drawn, arguments.fit, seed)
                result["looping"]["calibrated"] = fitted["prediction"]
    return result


def middle(runs: list) -> object:
    """The median over runs of every number in equally built results."""
    if isinstance(runs[0], dict):
        return {key: middle([r[key] for r in runs]) for key in runs[0]}
    return runs[0] if isinstance(runs[0], str) else float(np.median(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", help="a table that is kept, and taken where it is complete")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--fit", type=int, default=10, help="networks a calibration is fitted on")
    parser.add_argument("--looping", action="store_true", help="also loop graphs, as peers do")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--export", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        print(export_graphs(arguments.layers))
        return
    command = [sys.executable, __file__, "--export", "--layers", arguments.layers]
    export_s = float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    runs = []
    for number in range(arguments.runs):
        runs.append(run(arguments, 1000 * number))
        if not arguments.json:
            for name, group in runs[-1]["groups"].items():
                print(name, group["prediction"], "noise floor", group["noise_floor"])
    print(json.dumps({"export_s": export_s, "median": middle(runs), "runs": runs}))


if __name__ == "__main__":
    main()
