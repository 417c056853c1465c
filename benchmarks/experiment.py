"""The experiment: what does a search find, against what one would have had without it?

On each table, with each seed: one search by each method, to the same budget with the same data and
lengths, the network found timed on the device and trained from scratch; and beside the default
method's network the baselines of `hurricane search --baselines all --train-baselines`: random
search at equal cost, search by MACs, uniform networks, and published networks scaled to the budget
by their width, timed in the same rounds and trained in the same way.

Printed are test accuracies of trained networks, and for each rival the difference to the default
method's network, paired by seed, with its 95% interval (Student's t over seeds); where that holds
0, the answer is *inconclusive*. Then each device's networks are timed on the other devices. All is
done by the commands that a user has, and a run that was stopped goes on by the same command.

Run: python benchmarks/experiment.py --tables cpu.csv,dsp.csv --share 0.3 --data SPEC --training F
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from hurricane.lookup_tables.architecture import Architecture
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import HurricaneError
from hurricane.search.measuring import TargetMeasurer
from hurricane.search.pipeline import open_latency

METHODS = ("pareto", "hurricane")
"""The default first, with which all others are compared."""

FEWEST_SEEDS = 2


def search(words: Sequence[str], run: Path) -> dict[str, Any]:
    """Runs ``hurricane search``; its JSON."""
    command = [str(Path(sys.executable).parent / "hurricane"), "search", *words, "-o", str(run)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def trained_test(accuracy: Sequence[dict[str, Any]]) -> float | None:
    """Accuracy on the test split of a network trained from scratch."""
    found = [a["value"] for a in accuracy if a["split"] == "test" and "from scratch" in a["how"]]
    return found[-1] if found else None


def networks_of(result: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """The networks of one run, by who found them: accuracy, latency and size."""
    winner = result["architecture"]
    found = {
        method: {
            "test_accuracy": trained_test(winner["accuracy"]),
            "predicted_ms": winner["predicted_ms"],
            "measured_ms": winner["measured_ms"],
        }
    }
    comparison = result["comparison"]
    for one in comparison["baselines"] if comparison else ():
        measured = one["measured"]
        found[one["name"]] = {
            "test_accuracy": trained_test(one["accuracy"]),
            "predicted_ms": one["predicted_ms"],
            "measured_ms": measured["ms"] if measured else None,
            "macs": one["macs"],
            "params": one["params"],
            "multiplier": one["multiplier"],
            "problem": one["problem"],
        }
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Our accuracy less theirs, in points, seed by seed, with its 95% interval."""
    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    result: dict[str, Any] = {"points": differences, "mean_points": mean(differences)}
    if len(differences) < FEWEST_SEEDS:
        return {**result, "answer": "inconclusive: one seed"}
    quantile = float(student.ppf(0.975, len(differences) - 1))
    half = quantile * stdev(differences) / math.sqrt(len(differences))
    low, high = result["mean_points"] - half, result["mean_points"] + half
    answer = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    return {**result, "interval_points": [low, high], "answer": answer}


def elsewhere(networks: dict[str, Path], tables: Sequence[Path]) -> list[dict[str, Any]]:
    """Every table's network of the default method, timed on the targets of all tables."""
    rows = []
    for name, file in networks.items():
        found = Architecture.load(file)
        for table in tables:
            source = open_latency(table, found.backbone, accept_table=True).source
            row: dict[str, Any] = {"searched_for": name, "timed_on": table.stem}
            try:
                backbone = load_backbone(found.backbone)
                row["ms"] = TargetMeasurer.of_table(source)(
                    backbone, found.operators, found.gate
                ).ms
            except HurricaneError as error:
                row["problem"] = str(error)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, help="of one backbone, with commas between")
    parser.add_argument("--backbone", help="[the one that the tables cover]")
    parser.add_argument("--share", type=float, default=0.3, help="budget, of the reachable range")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--training", default="1")
    parser.add_argument("--evaluations", type=int, default=300, help="in all, for each method")
    parser.add_argument("--baselines", default="all")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/experiment"))
    arguments = parser.parse_args()
    tables = [Path(name) for name in arguments.tables.split(",")]
    start = time.monotonic()
    results: dict[str, Any] = {}
    winners: dict[str, Path] = {}
    for table in tables:
        latency = open_latency(table, arguments.backbone, accept_table=True)
        low, high = latency.model.bounds()
        budget = low + arguments.share * (high - low)
        networks: dict[str, list[dict[str, Any]]] = {}
        for seed in range(arguments.seeds):
            for method in METHODS:
                run = arguments.output / table.stem / f"{method}-{seed}"
                stages = 1 if method == METHODS[0] else 2
                words = ["--table", str(table), "--latency", f"{budget:.6g}", "--method", method]
                words += ["--backbone", arguments.backbone] if arguments.backbone else []
                words += ["--evaluations", str(arguments.evaluations // stages)]
                words += ["--data", arguments.data, "--training", arguments.training]
                words += ["--seed", str(seed)]
                first = method == METHODS[0]
                words += ["--baselines", arguments.baselines if first else "none"]
                words += ["--train-baselines"] if first else []
                for name, one in networks_of(search(words, run), method).items():
                    networks.setdefault(name, []).append({"seed": seed, **one})
                if first:
                    winners.setdefault(table.stem, run / "architecture.json")
                print(f"{table.stem}, seed {seed}: {method} done", file=sys.stderr, flush=True)
        ours = {n["seed"]: n["test_accuracy"] for n in networks[METHODS[0]]}
        differences = {}
        for name, rows in networks.items():
            known = [r for r in rows if r["test_accuracy"] is not None and r["seed"] in ours]
            if name != METHODS[0] and known:
                pairs = [(ours[r["seed"]], r["test_accuracy"]) for r in known]
                differences[name] = paired(*zip(*pairs, strict=True))
                print(f"{table.stem}: {METHODS[0]} against {name}: {differences[name]['answer']}")
        results[table.stem] = {
            "budget_ms": budget,
            "networks": networks,
            "default_less_rival": differences,
        }
    result = {
        "benchmark": "experiment",
        "data": arguments.data,
        "training": arguments.training,
        "evaluations": arguments.evaluations,
        "tables": results,
        "elsewhere": elsewhere(winners, tables) if len(tables) > 1 else [],
        "seconds": time.monotonic() - start,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
