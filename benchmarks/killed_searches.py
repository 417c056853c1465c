"""Searches killed at random moments and started again: is the end the same, byte for byte?

One search runs to its end and is the reference: a supernet, an evolution, two finalists trained
from scratch. Then others of the same settings are killed (SIGKILL) at moments drawn evenly over the
time that the fastest took, some of them again after that, and each is carried on by the same
command. Compared are the files that a run ends with; its supernet by the accuracies of networks.

Run: python benchmarks/killed_searches.py [--kills 10] [--training 0.1] [-o FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMPARED = (
    "space.json",
    "evaluated-*.csv",
    "winner-*.json",
    "finalist-*/architecture.json",
    "architecture.json",
    "model.onnx",
    "baselines.json",
)
AGAIN_SHARE = 0.3
"""Part of the searches that are killed a second time."""


def command(name: str, *words: str) -> list[str]:
    """A command of this installation."""
    return [str(Path(sys.executable).parent / name), *words]


def make_table(folder: Path) -> Path:
    """A table of the small backbone on a simulated device; it takes seconds."""
    table = folder / "table.csv"
    if not table.exists():
        words = ["--layers", "digits32", "--target", "sim-hexagon685-dsp", "-o", str(table)]
        subprocess.run(command("profile-ops", *words), check=True, capture_output=True)
    return table


def contents(run: Path) -> dict[str, bytes]:
    """The files that count, by their names."""
    return {
        str(file.relative_to(run)): file.read_bytes()
        for pattern in COMPARED
        for file in sorted(run.glob(pattern))
    }


def step_of(run: Path) -> str:
    """How far a run has come, by its files."""
    if (run / "training.pt").exists() or any(run.glob("finalist-*/training.pt")):
        return "training from scratch"
    if any(run.glob("evaluated-*.csv")):
        return "evolution"
    return "supernet" if (run / "config.json").exists() else "start"


def killed_after(words: list[str], seconds: float, environment: dict[str, str]) -> bool:
    """Starts a command and kills it after some seconds; False: it had ended before."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--training", default="0.1")
    parser.add_argument("--evaluations", default="100")
    parser.add_argument("--latency", default="2.6")
    parser.add_argument("--baselines", default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/killed"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = make_table(arguments.output)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}

    def search(run: Path) -> list[str]:
        words = ["--table", str(table), "--latency", arguments.latency, "--no-measure"]
        words += ["--training", arguments.training, "--evaluations", arguments.evaluations]
        words += ["--finalists", "2", "--device", "cpu", "--baselines", arguments.baselines]
        words += ["-o", str(run)]
        return command("hurricane", "search", *words)

    reference = arguments.output / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    start = time.monotonic()
    subprocess.run(search(reference), check=True, capture_output=True, env=environment)
    whole_s = time.monotonic() - start
    wanted = contents(reference)
    draw = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    while sum(row["kills"] for row in rows) < arguments.kills:
        run = arguments.output / "killed"
        shutil.rmtree(run, ignore_errors=True)
        steps = []
        for again in (False, True):
            if again and draw.random() > AGAIN_SHARE:
                break
            begun = time.monotonic()
            if not killed_after(search(run), draw.uniform(0, whole_s), environment):
                whole_s = min(whole_s, time.monotonic() - begun)  # the first had caches to fill
                break
            steps.append(step_of(run))
        subprocess.run(search(run), check=True, capture_output=True, env=environment)
        found = contents(run)
        differ = sorted(n for n in wanted | found if wanted.get(n) != found.get(n))
        rows.append({"kills": len(steps), "killed_in": steps, "differing_files": differ})
        print(f"killed in {', '.join(steps) or 'nothing'}: {differ or 'the same'}", flush=True)
    result = {
        "benchmark": "killed_searches",
        "seconds_of_a_search": whole_s,
        "files_compared": sorted(wanted),
        "kills": sum(row["kills"] for row in rows),
        "searches": rows,
        "all_the_same": not any(row["differing_files"] for row in rows),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
