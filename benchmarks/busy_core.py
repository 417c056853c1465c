"""What other work on the machine does to a table: a quiet run against one with bursts of load.

A process of this benchmark computes in seeded bursts on the core that is measured on, or on
another one, while a table is filled; quiet runs come before and after. Rows of the disturbed run
are held against the mean of the quiet ones, and these against each other. `median` tells how much
faster or slower the machine was as a whole.

    python benchmarks/busy_core.py --json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.lookup_tables.table import Row
from hurricane.ops.pool import POOL
from hurricane.profiler.measuring import Bench, MeasuringSettings, connect, parse_target
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.rotation import DISTURBED, THROTTLED, UNSTABLE

FLAGS = {DISTURBED, UNSTABLE, THROTTLED}
BURST_S, PAUSE_S = (0.5, 4.0), (1.0, 8.0)


def compute_in_bursts(core: int, seed: int) -> None:
    """Keeps a core busy, on and off, until this process is ended."""
    os.sched_setaffinity(0, {core})
    draw = random.Random(seed)
    while True:
        until = time.monotonic() + draw.uniform(*BURST_S)
        while time.monotonic() < until:
            sum(range(10_000))
        time.sleep(draw.uniform(*PAUSE_S))


@contextmanager
def bursts(core: int | None, seed: int) -> Iterator[None]:
    """Bursts of load on a core during the block; None: none."""
    if core is None:
        yield
        return
    process = multiprocessing.Process(target=compute_in_bursts, args=(core, seed), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def fill(target: str, layers: str, seed: int, core: int | None) -> tuple[list[Row], dict[str, Any]]:
    """A new table's rows, in the plan's order, and what its making took."""
    request = parse_target(target)
    rows = plan_rows(parse_layers(layers), POOL)
    with tempfile.TemporaryDirectory() as folder, connect([], request) as clients:
        bench = Bench.open(clients[0], request)
        with bursts(core, seed):
            done = profile([bench], rows, Path(folder) / "t.csv", MeasuringSettings(seed=seed))
    found = {(row.operator, row.shape): row for row in done.table.rows}
    ordered = [found[row.name, row.shape] for row in rows]
    flagged = np.mean([not FLAGS.isdisjoint(row.flag_words) for row in ordered])
    return ordered, {"device_s": bench.spent_ms / 1e3, "flagged": float(flagged)}


def agreement(rows: list[Row], reference_ms: np.ndarray) -> dict[str, float]:
    """How the rows that are not flagged agree with a reference."""
    latency_ms = np.array([row.latency_ms or np.nan for row in rows])
    off = latency_ms / reference_ms - 1
    off = off[[FLAGS.isdisjoint(row.flag_words) for row in rows]]
    off = off[np.isfinite(off)]
    if not len(off):
        return {"rows": 0}
    return {
        "rows": len(off),
        "median": float(np.median(off)),
        "within_5_of_the_median": float(
            np.mean(np.abs((1 + off) / (1 + np.median(off)) - 1) <= 0.05)
        ),
        "within_4": float(np.mean(np.abs(off) <= 0.04)),
        "within_5": float(np.mean(np.abs(off) <= 0.05)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    # One thread is pinned to the last core that is allowed.
    runs = [("quiet", None), ("bursts on its core", cores[-1])]
    if len(cores) > 1:
        runs.append(("bursts on another core", cores[0]))
    runs.append(("quiet again", None))
    rows, result = {}, {"target": arguments.target}
    for seed, (name, core) in enumerate(runs):
        rows[name], result[name] = fill(arguments.target, arguments.layers, seed, core)
        if not arguments.json:
            print(name, result[name], flush=True)
    quiet = [np.array([r.latency_ms or np.nan for r in rows[n]]) for n in ("quiet", "quiet again")]
    for name, found in rows.items():
        others = {"quiet": quiet[1], "quiet again": quiet[0]}
        result[name] |= agreement(found, others.get(name, np.mean(quiet, axis=0)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
