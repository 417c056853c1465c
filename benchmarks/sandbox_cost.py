"""What the sandbox adds to the start of a worker: processes with and without it, in turns.

    python benchmarks/sandbox_cost.py --json

Each process imports what a worker imports, and closes the sandbox or does not; what closing it
takes is timed inside too. That calls take no longer in it is told by `reference_timings.py`, which
compares an agent with a plain loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from hurricane.agents.processes import worker_environment

_PROGRAM = (
    "import sys, time; import hurricane.agents.worker as w; started = time.perf_counter(); "
    "{enter}; sys.stdout.write(str(time.perf_counter() - started))"
)
_WITH, _WITHOUT = _PROGRAM.format(enter="w.enter(w.Needs())"), _PROGRAM.format(enter="pass")


def started_s(program: str) -> tuple[float, float]:
    """Seconds that a process takes, and those that it spent on the sandbox."""
    began = time.perf_counter()
    # Its answer goes into a pipe: inside, no file can be written.
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=worker_environment("/nonexistent"),
        check=True,
    )
    return time.perf_counter() - began, float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    started_s(_WITH)
    pairs = [(started_s(_WITH), started_s(_WITHOUT)) for _ in range(arguments.starts)]
    inside_ms = [1e3 * inside for (_, inside), _ in pairs]
    result = {
        "starts": arguments.starts,
        "sandbox_median_ms": round(statistics.median(inside_ms), 2),
        "sandbox_highest_ms": round(max(inside_ms), 2),
        "process_with_median_ms": round(1e3 * statistics.median(w for (w, _), _ in pairs), 1),
        "process_without_median_ms": round(1e3 * statistics.median(w for _, (w, _) in pairs), 1),
        "ratio": round(statistics.median(w / o for (w, _), (o, _) in pairs), 3),
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
