"""What other work on the machine does to a table: a quiet run against one with bursts of load.

A process of this benchmark computes in seeded bursts on the core that is measured on, or on
another one, while a table is filled; quiet runs come before and after. All refer to the first quiet
one (`profile-ops --reference`), and their rows are held against it: `within_5` as the tables say,
`within_5_as_timed` without the correction for the machine's speed (`slowdown`). `median` is by how
much a table is slower as a whole.

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

from hurricane.lookup_tables.diff import compare
from hurricane.ops.pool import POOL
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import DOUBTFUL, ProfileResult, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target

FLAGS = set(DOUBTFUL)
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


def fill(
    target: str, layers: str, path: Path, core: int | None, seed: int, reference: Path | None
) -> tuple[ProfileResult, dict[str, Any]]:
    """A new table, and what its making took."""
    request = parse_target(target)
    rows = plan_rows(parse_layers(layers), POOL)
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        with bursts(core, seed):
            done = profile([session], rows, path, TimingProtocol(), reference=reference)
    flagged = np.mean([not FLAGS.isdisjoint(row.flag_words) for row in done.table.rows])
    told = {
        "device_s": session.log.spent_ms / 1e3,
        "batches": sum(run.batches for run in done.runs),
        "batches_rejected": sum(run.batches_rejected for run in done.runs),
        "busy_share": max(run.busy_share for run in done.runs),
        "flagged": float(flagged),
        "slowdown": done.speed.slowdown,
    }
    return done, told


def agreement(quiet: ProfileResult, other: ProfileResult) -> dict[str, float]:
    """How the rows of a table that are not flagged agree with those of the quiet one."""
    pairs = compare(quiet.table, other.table).compared
    ratios = np.array([pair.ratio for pair in pairs if FLAGS.isdisjoint(pair.second.flag_words)])
    if not len(ratios):
        return {"rows": 0}
    as_timed = ratios * other.speed.slowdown / quiet.speed.slowdown
    return {
        "rows": len(ratios),
        "median": float(np.median(ratios) - 1),
        "within_4": float(np.mean(np.abs(ratios - 1) <= 0.04)),
        "within_5": float(np.mean(np.abs(ratios - 1) <= 0.05)),
        "within_5_as_timed": float(np.mean(np.abs(as_timed - 1) <= 0.05)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--seed", type=int, default=0, help="of the bursts")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    # One thread is pinned to the last core that is allowed.
    runs = [("quiet", None), ("bursts on its core", cores[-1])]
    if len(cores) > 1:
        runs.append(("bursts on another core", cores[0]))
    runs.append(("quiet again", None))
    result: dict[str, Any] = {"target": arguments.target}
    quiet: ProfileResult | None = None
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "0.csv"
        for number, (name, core) in enumerate(runs):
            done, result[name] = fill(
                arguments.target,
                arguments.layers,
                Path(folder) / f"{number}.csv",
                core,
                arguments.seed + number,
                first if quiet else None,
            )
            quiet = quiet or done
            if done is not quiet:
                result[name] |= agreement(quiet, done)
            if not arguments.json:
                print(name, result[name], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
