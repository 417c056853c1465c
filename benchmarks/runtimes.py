"""Tables of one machine by several runtimes and precisions, side by side.

For each target in turn: `profile-ops` fills a table, `hurricane verify` times random networks
and judges its sums. Then the operators are compared: how far their order differs between two
targets (Kendall's tau over all operators at all shapes), and which pairs of operators change places
furthest.

    python benchmarks/runtimes.py --folder tables --json
    python benchmarks/runtimes.py --targets cpu-litert-fp32,cpu-litert-int8 --layers digits32
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.lookup_tables.table import LookupTable
from hurricane.profiler.accuracy import kendall_tau

TARGETS = ",".join(
    f"cpu-{runtime}-{precision}"
    for runtime in ("litert", "onnxruntime", "openvino")
    for precision in ("fp32", "int8")
)
SWAPS = 5
"""Pairs of operators that are shown for each pair of targets."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=TARGETS, metavar="NAMES")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--random", type=int, default=20, help="networks that verify a table")
    parser.add_argument("--folder", help="where tables are kept; complete ones are not made anew")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        names = arguments.targets.split(",")
        found = {name: fill_and_verify(name, folder, arguments) for name in names}
        tables = {name: latencies(folder / f"{name}.csv") for name in names}
    compared = {
        f"{one}/{other}": compare_orders(tables[one], tables[other])
        for one, other in itertools.combinations(names, 2)
    }
    result = {"layers": arguments.layers, "targets": found, "orders": compared}
    if not arguments.json:
        show(result)
    print(json.dumps(result))


def fill_and_verify(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a user's two commands say of one target."""
    path, frame = folder / f"{name}.csv", arguments.layers.partition(":")[0]
    started = time.perf_counter()
    made = command("profile-ops", "--layers", arguments.layers, "--target", name, "-o", str(path))
    filled = time.perf_counter()
    check = ("verify", "--table", str(path), "--backbone", frame, "--random", str(arguments.random))
    verified = command("hurricane", *check)
    (group,) = (g for g in verified["groups"] if g["group"] == "random")
    run = made["runs"][-1] if made["runs"] else {}
    return {
        "profile_s": filled - started,
        "device_s": run.get("device_s"),
        "verify_s": time.perf_counter() - filled,
        "rows": made["rows"],
        "counts": made["counts"],
        "flagged": sum("fallback" in row.flags for row in LookupTable.load(path)),
        "verdict": verified["verdict"],
        "slowdown": verified["slowdown"],
        "bias": group["prediction"]["bias"],
        "rmspe": group["prediction"]["rmspe"],
        "kendall_tau": group["prediction"]["kendall_tau"],
        "calibrated_rmspe": (group["calibrated"] or {}).get("rmspe"),
        "noise_floor": group["noise_floor"],
        "networks_ms": [c["measured_ms"] for c in verified["networks"]],
    }


def command(name: str, *words: str) -> dict[str, Any]:
    """What a command prints with ``--json``."""
    program = str(Path(sys.executable).with_name(name))
    done = subprocess.run([program, *words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode not in ((0, 1, 3) if words[0] == "verify" else (0,)) or not done.stdout:
        sys.exit(f"{name} {' '.join(words)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def latencies(path: Path) -> dict[tuple[str, str], float]:
    """Latency of each operator at each shape, in ms."""
    table = LookupTable.load(path)
    return {
        (row.operator, str(row.shape)): row.latency_ms
        for row in table
        if row.latency_ms is not None and not (row.is_stem or row.is_head)
    }


def compare_orders(
    one: dict[tuple[str, str], float], other: dict[tuple[str, str], float]
) -> dict[str, Any]:
    """How differently two targets order the operators of a shape."""
    taus, swaps = [], []
    for shape in dict.fromkeys(shape for _, shape in one):
        names = [name for name, at in one if at == shape and (name, shape) in other]
        a, b = (np.array([table[name, shape] for name in names]) for table in (one, other))
        taus.append(kendall_tau(a, b))
        for i, j in itertools.combinations(range(len(names)), 2):
            first, second = (i, j) if a[i] < a[j] else (j, i)
            ratios = a[second] / a[first], b[first] / b[second]
            if min(ratios) > 1:  # the faster one here is the slower one there
                swaps.append((min(ratios), shape, names[first], names[second], *ratios))
    swaps.sort(reverse=True)
    return {
        "kendall_tau": float(np.mean(taus)),
        "kendall_tau_lowest": float(np.min(taus)),
        "swapped_pairs_beyond_10_percent": sum(swap[0] > 1.1 for swap in swaps),
        "furthest": [
            {
                "shape": shape,
                "operators": [first, second],
                "second_over_first": float(here),
                "first_over_second_there": float(there),
            }
            for _, shape, first, second, here, there in swaps[:SWAPS]
        ],
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{'':24}{'profile':>9}{'verify':>8}  {'verdict':18}{'bias':>7}{'RMSPE':>7}{'tau':>7}"
        f"{'floor':>8}{'fallback':>9}"
    )
    for name, f in result["targets"].items():
        print(
            f"{name:24}{f['profile_s']:7.0f} s{f['verify_s']:6.0f} s  {f['verdict'] or '-':18}"
            f"{f['bias']:+7.1%}{f['rmspe']:7.1%}{f['kendall_tau']:7.3f}{f['noise_floor']:8.1%}"
            f"{f['flagged']:9}"
        )
    for pair, f in result["orders"].items():
        print(
            f"{pair}: tau {f['kendall_tau']:.3f} (lowest {f['kendall_tau_lowest']:.3f}), "
            f"{f['swapped_pairs_beyond_10_percent']} pairs of operators swapped beyond 10%"
        )
        for swap in f["furthest"][:2]:
            first, second = swap["operators"]
            print(
                f"    at {swap['shape']} {second} takes {swap['second_over_first']:.2f} of {first}"
                f", there {first} takes {swap['first_over_second_there']:.2f} of {second}"
            )


if __name__ == "__main__":
    main()
