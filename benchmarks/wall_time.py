"""How long a table takes from nothing, beside a plain script over the same graphs, and on what.

`profile-ops` and `wall_time_plain.py` (exports the operators' graphs, loads each, calls it 10 + 50
times) run in turns, each with an empty cache and in a fresh process, and are timed from start to
end. Then one more table is filled through the Python API, to tell where the time goes.

    python benchmarks/wall_time.py --target cpu-onnxruntime-fp32 --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.agents.telemetry import turn_off_telemetry
from hurricane.ops.cached_files import CACHE_VARIABLE

PLAIN = Path(__file__).with_name("wall_time_plain.py")
LIMIT = 1.5
"""What `profile-ops` may take, as a multiple of the plain script."""

WARM = "import onnx, onnxruntime, torch"
"""Brings from the disk what both read, so that the first turn does not pay for it."""

BEFORE, AFTER = "before the first step", "after the last step"


def main() -> None:
    turn_off_telemetry()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default="imagenet224", metavar="BACKBONE")
    parser.add_argument("--target", default="cpu-onnxruntime-fp32")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--steps", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps:
        print(json.dumps(fill_and_watch(arguments.layers, arguments.target)))
        return
    if arguments.turns < 1:
        parser.error("--turns: one at least")
    result = run(arguments)
    if not arguments.json:
        show(result)
    print(json.dumps(result))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    program = str(Path(sys.executable).with_name("profile-ops"))
    wanted = ["--layers", arguments.layers, "--target", arguments.target]
    subprocess.run([sys.executable, "-c", WARM], check=True)
    turns = []
    for number in range(arguments.turns):
        turn: dict[str, Any] = {}
        for name in ("profile", "plain") if number % 2 == 0 else ("plain", "profile"):
            if name == "profile":
                turn[name] = timed([program, *wanted, "--json", "-o", "table.csv"])
            else:
                turn[name] = timed([sys.executable, str(PLAIN), "--layers", arguments.layers])
        turn["ratio"] = turn["profile"]["wall_s"] / turn["plain"]["wall_s"]
        turns.append(turn)
    steps = timed([sys.executable, str(Path(__file__).resolve()), *wanted, "--steps"])
    ratio = float(np.median([turn["ratio"] for turn in turns]))
    return {
        "target": arguments.target,
        "layers": arguments.layers,
        "ratio": ratio,
        "within": ratio <= LIMIT,
        "turns": turns,
        "steps": steps,
    }


def timed(command: list[str]) -> dict[str, Any]:
    """What a command prints as JSON, with its wall time, in an empty folder with nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, CACHE_VARIABLE: str(Path(folder) / "cache")}
        started = time.perf_counter()
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
        )
        wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": wall_s}


def fill_and_watch(layers: str, target: str) -> dict[str, Any]:
    """Seconds by step of filling a table: as the profiler counts them, else by its progress."""
    started = time.perf_counter()

    from hurricane.ops.pool import POOL
    from hurricane.profiler.plan import parse_layers, plan_rows, reference_networks
    from hurricane.profiler.profile import profile
    from hurricane.profiler.session import TargetSession, connect
    from hurricane.profiler.target import parse_target

    imported = time.perf_counter()
    request = parse_target(target)
    chosen = parse_layers(layers)
    rows = plan_rows(chosen, POOL)
    networks = reference_networks(chosen, rows)
    events: list[tuple[float, str]] = []
    lock = threading.Lock()

    def note(step: str, share: float) -> None:
        with lock:
            events.append((time.perf_counter(), step))

    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        begun = time.perf_counter()
        made = profile([session], rows, "table.csv", on_progress=note, networks=networks)
        ended = time.perf_counter()
    counted = getattr(made, "seconds", None)
    return {
        "rows": len(rows),
        "import_s": imported - started,
        "agent_s": begun - imported,
        "profile_s": ended - begun,
        "device_s": made.device_s,
        "seconds_by": "progress" if counted is None else "profiler",
        "seconds": by_step(events, begun, ended) if counted is None else dict(counted),
    }


def by_step(events: Iterable[tuple[float, str]], begun: float, ended: float) -> dict[str, float]:
    """Wall time by step, in s, from the progress that was told.

    Time between two events of one step is that step's; between events of two steps it is told
    as such, ``load to measure``: it may be the one's, the other's, or neither's.

    Args:
        events: (time, step), in order.
        begun, ended: of all of it.
    """
    found: dict[str, float] = {}
    at, last = begun, BEFORE
    for now, step in events:
        name = last if last in (step, BEFORE) else f"{last} to {step}"
        found[name] = found.get(name, 0.0) + now - at
        at, last = now, step
    found[AFTER] = ended - at
    return found


def show(result: dict[str, Any]) -> None:
    print(f"{result['target']}, {result['layers']}")
    for number, turn in enumerate(result["turns"]):
        plain = turn["plain"]
        steps = ", ".join(f"{step} {s:.1f}" for step, s in plain["seconds"].items())
        print(
            f"turn {number}: profile-ops took {turn['profile']['wall_s']:.1f} s, "
            f"{turn['ratio']:.2f} times as long as the plain script: {plain['wall_s']:.1f} s "
            f"({plain['graphs']} graphs; {steps})"
        )
    print(f"median {result['ratio']:.2f} times, at most {LIMIT} is asked for")
    steps = result["steps"]
    print(
        f"\nonce more by the API: {steps['wall_s']:.1f} s, of these {steps['profile_s']:.1f} s in "
        f"profile(), {steps['device_s']:.1f} s on the device; by {steps['seconds_by']}:"
    )
    parts = {"imports": steps["import_s"], "agent": steps["agent_s"], **steps["seconds"]}
    for step, s in parts.items():
        print(f"  {step:24}{s:8.1f} s {s / steps['wall_s']:6.1%}")


if __name__ == "__main__":
    main()
