"""Whether a table comes out the same again: several of one machine, with other work between them.

Every table but the first refers to the first (`profile-ops --reference`). Before each of them all
cores multiply matrices for a while. Prints, for every pair of tables, the share of rows within 4%
of each other, as the tables say and as timed: with the machine's speed that was divided out put
back.

    python benchmarks/table_retest.py --tables 3 --json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.lookup_tables.cells import INTERFERENCE, UNSTABLE
from hurricane.lookup_tables.diff import compare
from hurricane.ops.pool import POOL
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import ProfileResult, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target

NEAR = 0.04


def multiply(seconds: float) -> None:
    """Keeps a core busy with matrices that the caches do not hold."""
    matrix = np.random.default_rng(0).random((1024, 1024))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        matrix = matrix @ matrix
        matrix /= np.abs(matrix).max()


def work_between(seconds: float) -> None:
    """Other work on every core."""
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(multiply, [seconds] * cores))


def agreement(ratios: np.ndarray) -> dict[str, float]:
    """How near rows of two tables are, from the ratios of their latencies [N]."""
    return {
        "median": float(np.median(ratios) - 1),
        "within_4": float(np.mean(np.abs(ratios - 1) <= NEAR)),
        "within_4_of_the_median": float(np.mean(np.abs(ratios / np.median(ratios) - 1) <= NEAR)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--tables", type=int, default=3)
    parser.add_argument("--between", type=float, default=20.0, help="seconds of other work")
    parser.add_argument(
        "--vary-seed",
        action="store_true",
        help="load and call the graphs in another order for each table",
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    if arguments.tables < 2:
        parser.error("--tables: two at least")
    request = parse_target(arguments.target)
    rows = plan_rows(parse_layers(arguments.layers), POOL)
    tables: list[dict[str, Any]] = []
    made: list[ProfileResult] = []
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "0.csv"
        for number in range(arguments.tables):
            if number:
                work_between(arguments.between)
            with connect([], request) as clients:
                session = TargetSession.open(clients[0], request)
                done = profile(
                    [session],
                    rows,
                    Path(folder) / f"{number}.csv",
                    TimingProtocol(seed=number if arguments.vary_seed else 0),
                    reference=first if number else None,
                )
            made.append(done)
            tables.append(
                {
                    "slowdown": done.speed.slowdown,
                    "device_s": session.log.spent_ms / 1e3,
                    "interference": done.counts.get(INTERFERENCE, 0),
                    "unstable": done.counts.get(UNSTABLE, 0),
                }
            )
            if not arguments.json:
                print(number, tables[-1], flush=True)
    pairs = []
    for one, other in itertools.combinations(range(arguments.tables), 2):
        compared = compare(made[one].table, made[other].table).compared
        ratios = np.array([pair.ratio for pair in compared])
        pairs.append(
            {
                "tables": [one, other],
                "referred": agreement(ratios),
                "as_timed": agreement(
                    ratios * made[other].speed.slowdown / made[one].speed.slowdown
                ),
            }
        )
    result = {
        "target": arguments.target,
        "tables": tables,
        "pairs": pairs,
        "median_within_4": {
            name: float(np.median([pair[name]["within_4"] for pair in pairs]))
            for name in ("referred", "as_timed")
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
