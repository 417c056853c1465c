"""The whole chain on a phone over adb: agent, table, verification, space, search.

The commands are the real ones, each a process of its own, and so is adb. The phone speaks adb's
wire protocol and is a stand-in, and so are SNPE's tools on it: they answer in the genuine form,
with what the simulated Hexagon 685 takes for the very graph that was brought there
(tests/fake_snpe.py). In place of the converter the canonical graph goes into the DLC, so that the
stand-in can read it. Every number here is simulated; shown is that none is lost or changed.

    python benchmarks/phone_chain.py --json
    python benchmarks/phone_chain.py --layers digits32 --search --json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hurricane.lookup_tables.model import LatencyModel  # noqa: E402
from hurricane.lookup_tables.table import LookupTable  # noqa: E402
from hurricane.ops.pool import POOL  # noqa: E402
from hurricane.profiler.plan import graph_bytes, parse_layers, plan_rows  # noqa: E402
from tests.fake_phone import FakePhone, Programs  # noqa: E402
from tests.fake_snpe import FakeSnpe, true_us  # noqa: E402

TARGET = "dsp-snpe-int8"
PLACE = "/data/local/tmp/snpe/bin"
PLUGIN = f"""\
import sys
sys.path.insert(0, {str(ROOT)!r})
from hurricane.ops.artifacts import cache, snpe_file
from tests.fake_snpe import fake_archive
snpe_file.convert = fake_archive
cache._WORTH_A_POOL = 10**9  # processes of a pool would have the converter itself
"""


def command(*words: str) -> list[str]:
    """A command of this environment."""
    return [str(Path(sys.executable).parent / words[0]), *words[1:]]


def run(*words: str, allowed: tuple[int, ...] = (0,)) -> tuple[float, dict]:
    """Seconds that a command took, and the JSON object that it printed last."""
    start = time.perf_counter()
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    lines = done.stdout.strip().splitlines()
    return time.perf_counter() - start, json.loads(lines[-1]) if lines else {}


@contextmanager
def phone(folder: Path) -> Iterator[tuple[FakePhone, FakeSnpe]]:
    """A phone that adb of this process reaches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["ANDROID_ADB_SERVER_PORT"] = str(free.getsockname()[1])
    os.environ["HOME"] = str(folder)
    there = FakePhone(folder / "phone")
    tools = FakeSnpe(root=str(there.folder))
    with there, Programs(there, PLACE, tools.programs()):
        subprocess.run(["adb", "connect", there.serial], capture_output=True, check=True)
        try:
            yield there, tools
        finally:
            subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


@contextmanager
def agent(serial: str) -> Iterator[str]:
    """The address of an agent that serves the phone."""
    words = command("agent", "serve", "--listen", "127.0.0.1:0", "--adb", serial)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split("agent on ")[1].split(": ")[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def against_truth(table: Path, layers: str) -> dict[str, float]:
    """Rows against what the stand-in takes for their graphs."""
    found = {(row.operator, row.shape): row for row in LookupTable.load(table)}
    errors = []
    for planned in plan_rows(parse_layers(layers), POOL):
        differences = [
            true_us(graph_bytes(context.with_operator)) - true_us(graph_bytes(context.baseline))
            for context in planned.contexts
        ]
        latency_ms = found[planned.name, planned.shape].latency_ms
        errors.append(latency_ms / (np.mean(differences) / 1e3) - 1)
    errors = np.abs(errors)
    return {
        "rows": len(errors),
        "rows_within_3_percent": float(np.mean(errors <= 0.03)),
        "worst_error": float(errors.max()),
        "median_error": float(np.median(errors)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--search", action="store_true", help="search on digits as well")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    backbone = parse_layers(arguments.layers).backbone
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["HURRICANE_CACHE"] = str(folder / "cache")
        plugin, table, space = folder / "plugin.py", folder / "t.csv", folder / "space.json"
        plugin.write_text(PLUGIN)
        with phone(folder) as (there, tools), agent(there.serial) as address:
            result: dict = {"layers": arguments.layers, "target": TARGET, "origin": "simulated"}
            seconds, _ = run(
                "profile-ops", "--plugin", str(plugin), "--layers", arguments.layers,
                "--target", TARGET, "--agent", address, "-o", str(table), "--json",
            )  # fmt: skip
            result["profile_s"], result["runs_of_the_tool"] = seconds, tools.runs
            print(json.dumps(result), file=sys.stderr)
            result["origins"] = sorted({row.target.origin for row in LookupTable.load(table)})
            result.update(against_truth(table, arguments.layers))
            seconds, verdict = run(
                "hurricane", "--plugin", str(plugin), "verify", "--table", str(table),
                "--backbone", backbone.name, "--random", "12", "--agent", address, "--json",
                allowed=(0, 1, 3),
            )  # fmt: skip
            result["verify_s"], result["verify"] = seconds, verdict
            print(json.dumps(result), file=sys.stderr)
            lowest_ms, highest_ms = LatencyModel(LookupTable.load(table), backbone).bounds()
            budget = f"{lowest_ms + 0.3 * (highest_ms - lowest_ms):.4g}"
            common = ("--table", str(table), "--backbone", backbone.name, "--latency", budget)
            _, made = run("hurricane", "space", *common, "-o", str(space), "--json")
            result["budget_ms"], result["space"] = float(budget), made
            if arguments.search:
                seconds, searched = run(
                    "hurricane", "--plugin", str(plugin), "search", "--space", str(space),
                    "--data", "digits", "--evaluations", "20", "--training", "0.02",
                    "--agent", address, "-o", str(folder / "run"), "--json",
                )  # fmt: skip
                result["search_s"], result["search"] = seconds, searched
            left = there.path("/data/local/tmp/hurricane")
            result["runs_left_on_the_phone"] = len(list(left.rglob("run-*")))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
