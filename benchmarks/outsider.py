"""Does a table predict what a program outside the project takes?

Draws random networks, spread over their MACs, and writes them to files. Then, several times with
other work before: times them with `outsider_timing.py`, which knows nothing of Hurricane (alone in
a loop, and in shuffled rounds), fills a new table with `profile-ops`, times them again, and puts
the table's predictions beside those times, each statistic beside its own.

    python benchmarks/outsider.py --target cpu-onnxruntime-fp32 --json
    python benchmarks/outsider.py --target cpu-openvino-fp32 --repeats 1 --folder kept

A prediction is as good as asked for if the bias is within 3% and the RMSPE within 4% (median) or
6% (p90). Where the model predicts one figure only, that is `quiet`, and stands beside all three.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from table_retest import work_between

from hurricane.agents.telemetry import turn_off_telemetry
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.export import export_architecture
from hurricane.ops.pool import POOL

RUNTIMES = {"cpu-onnxruntime-fp32": "onnxruntime", "cpu-openvino-fp32": "openvino"}
STOPWATCH = Path(__file__).with_name("outsider_timing.py")

DRAWS = 20_000
"""Random architectures among which the networks are picked."""

WAYS = {"loop": ("loop",), "rounds": ("rounds",), "pooled": ("loop", "rounds")}
"""Ways of timing that are compared, by the stopwatch's ways in them."""

QUIET = 0.25
"""Share of the calls, the fastest ones, whose mean is the quiet time."""

INCONCLUSIVE = 3
"""Exit status of a command that has a result and cannot vouch for it."""

STATISTICS = ("quiet", "median", "p90")

BIAS_LIMIT = 0.03
RMSPE_LIMITS = {"median": 0.04, "p90": 0.06}

ENOUGH = 0.8
"""Share of the repeats that must be within the limits."""


def main() -> None:
    turn_off_telemetry()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cpu-onnxruntime-fp32", choices=RUNTIMES)
    parser.add_argument("--layers", default="imagenet224", metavar="BACKBONE")
    parser.add_argument("--networks", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--loop", type=float, default=1.0, help="seconds of each network's loop")
    parser.add_argument("--between", type=float, default=10.0, help="seconds of other work")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of networks")
    parser.add_argument("--folder", help="where networks, tables and times of calls are kept")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    if min(arguments.networks, arguments.repeats, arguments.rounds) < 1:
        parser.error("--networks, --repeats and --rounds: one at least")
    if arguments.loop <= 0:
        parser.error("--loop: more than 0 s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if list(folder.glob("table-*")):
            parser.error(f"--folder {folder}: holds tables already; every repeat fills a new one")
        result = run(arguments, folder)
    if not arguments.json:
        show(result)
    print(json.dumps(result))


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    backbone = load_backbone(arguments.layers)
    networks = draw_networks(backbone, arguments.networks, arguments.seed)
    files = [folder / f"network-{number}.onnx" for number in range(len(networks))]
    for file, operators in zip(files, networks, strict=True):
        file.write_bytes(export_architecture(backbone, operators))
    core = max(os.sched_getaffinity(0))  # the one that a private agent takes
    repeats = []
    for number in range(arguments.repeats):
        work_between(arguments.between)
        before = time_outside(arguments, files, core)
        path = folder / f"table-{number}.csv"
        said = fill_table(arguments, path)
        after = time_outside(arguments, files, core)
        (folder / f"calls-{number}.json").write_text(json.dumps([before, after]))
        measured = measured_ms([before, after])
        filled = said["exit_status"] in (0, INCONCLUSIVE)
        predicted = predicted_ms(path, backbone, networks) if filled else {}
        repeats.append(
            {
                "profile": said,
                "after_over_before": slowdown(before, after),
                "figures": compare_all(predicted, measured),
                "intervals": covered(path, backbone, networks, measured) if filled else {},
                "networks": [
                    {
                        "predicted_ms": {s: ms[index] for s, ms in predicted.items()},
                        "measured_ms": {
                            way: {s: ms[index] for s, ms in found.items()}
                            for way, found in measured.items()
                        },
                    }
                    for index in range(len(networks))
                ],
            }
        )
    return {
        "target": arguments.target,
        "layers": arguments.layers,
        "core": core,
        "predicted": list(predicted_statistics()),
        "networks": [
            {"operators": list(operators), "macs": backbone.macs(operators)}
            for operators in networks
        ],
        "repeats": repeats,
        "summary": summarise(repeats),
    }


def draw_networks(backbone: Backbone, count: int, seed: int) -> list[tuple[str, ...]]:
    """Random architectures, one from each of `count` equal steps of the MACs drawn.

    Where nothing was drawn in a step, any other one stands for it.
    """
    random = np.random.default_rng(seed)
    operators = {s: [op for op in POOL if op.applies_to(s)] for s in backbone.distinct_shapes}
    macs_of = {s: np.array([op.macs(s) for op in there]) for s, there in operators.items()}
    codes = np.stack([random.integers(len(operators[s]), size=DRAWS) for s in backbone.layers], 1)
    macs = np.sum([macs_of[s][codes[:, n]] for n, s in enumerate(backbone.layers)], axis=0)
    edges = np.linspace(macs.min(), macs.max(), count + 1)
    step = np.clip(np.searchsorted(edges, macs, side="right") - 1, 0, count - 1)
    chosen = list({number: i for i, number in enumerate(step.tolist())}.values())
    chosen += np.setdiff1d(np.arange(DRAWS), chosen)[: count - len(chosen)].tolist()
    return [
        tuple(operators[s][code].name for s, code in zip(backbone.layers, codes[i], strict=True))
        for i in sorted(chosen, key=macs.__getitem__)
    ]


def time_outside(
    arguments: argparse.Namespace, files: Sequence[Path], core: int
) -> dict[str, list[list[float]]]:
    """Times of calls in ms, for each way and network, by a process of its own."""
    options = {
        "--runtime": RUNTIMES[arguments.target],
        "--core": core,
        "--loop": arguments.loop,
        "--rounds": arguments.rounds,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, str(STOPWATCH), *words, *map(str, files)], stdout=subprocess.PIPE
    )
    if done.returncode:
        sys.exit(f"{STOPWATCH.name} ended with status {done.returncode}")
    return json.loads(done.stdout)


def fill_table(arguments: argparse.Namespace, path: Path) -> dict[str, Any]:
    """What `profile-ops` says to a user, and how long it takes."""
    program = str(Path(sys.executable).with_name("profile-ops"))
    command = [program, "--layers", arguments.layers, "--target", arguments.target, "-o", str(path)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall_s = time.perf_counter() - started
    return {
        "exit_status": done.returncode,
        "wall_s": wall_s,
        "printed": done.stdout.replace(str(path), path.name).splitlines(),
        "inconclusive": done.returncode == INCONCLUSIVE or "inconclusive" in done.stdout.lower(),
    }


def predicted_statistics() -> tuple[str, ...]:
    """Statistics that the latency model predicts."""
    known = "statistic" in inspect.signature(LatencyModel.predict).parameters
    return STATISTICS if known else STATISTICS[:1]


def predicted_ms(
    path: Path, backbone: Backbone, networks: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """By statistic, of each network."""
    model = LatencyModel(LookupTable.load(path), backbone)
    codes = np.stack([model.encode(operators) for operators in networks])
    predict: Any = model.predict
    statistics = predicted_statistics()
    if len(statistics) == 1:
        return {statistics[0]: predict(codes).tolist()}
    return {name: predict(codes, statistic=name).tolist() for name in statistics}


def covered(
    path: Path,
    backbone: Backbone,
    networks: Sequence[Sequence[str]],
    measured: dict[str, dict[str, list[float]]],
) -> dict[str, float]:
    """Share of measured medians within the 90% intervals of their predictions, by way."""
    model = LatencyModel(LookupTable.load(path), backbone)
    low, high = model.interval(np.stack([model.encode(operators) for operators in networks]))
    width = float(np.median((high - low) / (high + low)))
    within = {
        way: float(np.mean((low <= found["median"]) & (np.asarray(found["median"]) <= high)))
        for way, found in measured.items()
    }
    return {**within, "half_width": width}


def measured_ms(
    passes: Sequence[dict[str, list[list[float]]]],
) -> dict[str, dict[str, list[float]]]:
    """By way and statistic, of each network; every pass and way of timing counts for as much.

    Args:
        passes: times of calls in ms, by the stopwatch's way, for each network.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for way, parts in WAYS.items():
        count = len(passes[0][parts[0]])
        by_network = [
            statistics_ms([calls[part][index] for calls in passes for part in parts])
            for index in range(count)
        ]
        found[way] = {name: [one[name] for one in by_network] for name in STATISTICS}
    return found


def statistics_ms(parts: Sequence[Sequence[float]]) -> dict[str, float]:
    """Statistics of calls in several parts that count for as much, however many calls they hold.

    Args:
        parts: times of calls in ms.
    """
    calls = np.concatenate([np.asarray(part, float) for part in parts])
    weights = np.concatenate([np.full(len(part), 1 / len(part) / len(parts)) for part in parts])
    order = np.argsort(calls)
    calls, weights = calls[order], weights[order]
    below = np.cumsum(weights) - weights
    fastest = np.clip(QUIET - below, 0, weights)
    median, p90 = np.interp([0.5, 0.9], below + weights / 2, calls)
    return {
        "quiet": float(calls @ fastest / fastest.sum()),
        "median": float(median),
        "p90": float(p90),
    }


def slowdown(
    before: dict[str, list[list[float]]], after: dict[str, list[list[float]]]
) -> dict[str, float]:
    """What calls took after, over what they took before, by way: the median over networks."""
    return {
        way: float(
            np.median(
                [
                    np.median(late) / np.median(early)
                    for early, late in zip(before[way], after[way], strict=True)
                ]
            )
        )
        for way in before
    }


def compare_all(
    predicted: dict[str, list[float]], measured: dict[str, dict[str, list[float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Error figures by ``predicted/measured`` statistic and way.

    Each statistic stands beside its own; the quiet one, where it is all there is, beside all.
    """
    pairs = [(name, name) for name in predicted]
    if list(predicted) == ["quiet"]:
        pairs = [("quiet", name) for name in STATISTICS]
    return {
        f"{one}/{other}": {
            way: figures(predicted[one], found[other]) for way, found in measured.items()
        }
        for one, other in pairs
    }


def figures(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Errors of predictions, as fractions of what was measured, both [N] ms."""
    ratios = np.asarray(predicted, float) / np.asarray(measured, float)
    scaled = ratios * ratios.sum() / (ratios**2).sum()
    tau: Any = kendalltau(predicted, measured)
    return {
        "bias": float(ratios.mean() - 1),
        "rmspe": math.sqrt(float(np.mean((ratios - 1) ** 2))),
        "rmspe_after_one_factor": math.sqrt(float(np.mean((scaled - 1) ** 2))),
        "kendall_tau": float(tau.statistic),
    }


def is_within(found: dict[str, float], measured: str) -> bool:
    """Whether error figures are as good as asked for, beside this measured statistic."""
    return abs(found["bias"]) <= BIAS_LIMIT and found["rmspe"] <= RMSPE_LIMITS[measured]


def summarise(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By ``predicted/measured`` statistic and way: figures of all repeats, and what of them holds.

    A repeat whose table was not finished is within nothing.
    """
    finished = [repeat for repeat in repeats if repeat["figures"]]
    summary: dict[str, Any] = {}
    for pair, by_way in finished[0]["figures"].items() if finished else ():
        measured = pair.partition("/")[2]
        summary[pair] = {}
        for way in by_way:
            found = [repeat["figures"][pair][way] for repeat in finished]
            entry: dict[str, Any] = {key: [f[key] for f in found] for key in found[0]}
            if measured in RMSPE_LIMITS:
                within = [
                    bool(r["figures"]) and is_within(r["figures"][pair][way], measured)
                    for r in repeats
                ]
                told = [r["profile"]["inconclusive"] for r in repeats]
                entry["repeats"] = len(repeats)
                entry["within"] = sum(within)
                entry["off_but_said_inconclusive"] = sum(
                    t and not w for w, t in zip(within, told, strict=True)
                )
                entry["shown"] = sum(within) >= ENOUGH * len(repeats) and all(
                    w or t for w, t in zip(within, told, strict=True)
                )
            summary[pair][way] = entry
    return summary


def show(result: dict[str, Any]) -> None:
    print(f"{result['target']}, {len(result['networks'])} networks of {result['layers']}")
    print(f"the model predicts: {', '.join(result['predicted'])}")
    for number, repeat in enumerate(result["repeats"]):
        said = repeat["profile"]
        changed = ", ".join(f"{r:.3f} ({way})" for way, r in repeat["after_over_before"].items())
        print(
            f"\nrepeat {number}: profile-ops took {said['wall_s']:.0f} s, exit status "
            f"{said['exit_status']}; calls took {changed} of what they took before it"
        )
        print(*(f"  | {line}" for line in said["printed"]), sep="\n")
        for pair, by_way in repeat["figures"].items():
            for way, f in by_way.items():
                print(
                    f"  {pair:14}{way:8}bias {f['bias']:+7.1%}  RMSPE {f['rmspe']:6.1%}  after one "
                    f"factor {f['rmspe_after_one_factor']:6.1%}  tau {f['kendall_tau']:.3f}"
                )
    print()
    for pair, by_way in result["summary"].items():
        for way, entry in by_way.items():
            if "within" in entry:
                print(
                    f"{pair} {way}: {entry['within']} of {entry['repeats']} within the limits, "
                    f"{entry['off_but_said_inconclusive']} others said to be inconclusive"
                )


if __name__ == "__main__":
    main()
