"""What several agents are worth, and what they stand up to, on simulated devices.

- Speed-up: device time of one agent that fills a table, over that of the slowest of several, by
  their virtual clocks. All wait as long as their clocks say (`--pace real`): at once they would
  take turns on this machine's cores, and the one that is free first would be another one. Beside
  it, the same of the time from start to end, in which boards wait for each other, and what this
  machine computes for all of them counts.
- Kills: of several agents some are killed (SIGKILL) at seeded moments; the table must hold every
  row of the plan, once, with its plain timings.
- A slow board: one of them takes 12% longer for everything; it must be left out by name, alone.

    python benchmarks/pools.py --json
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.agents.client import AgentClient
from hurricane.ops.graph import prepare_templates
from hurricane.ops.pool import POOL, select_operators
from hurricane.profiler.plan import PlannedRow, parse_layers, plan_rows
from hurricane.profiler.profile import ProfileResult, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import parse_target

SLOWER = 1.12
SMALL = "SEP_3,SEP_5,MB_3_3,Choice_3"


@dataclass(frozen=True)
class Agent:
    """An agent process of this benchmark, and a client of it."""

    process: subprocess.Popen[str]
    client: AgentClient


@contextmanager
def serving(devices: Sequence[str], pace: str = "virtual") -> Iterator[list[Agent]]:
    """An agent for each device file or name, seeded by its place; they end with the block."""
    token = secrets.token_urlsafe(16)
    command = [sys.executable, "-m", "hurricane.agents.cli", "serve", "--private", "--pace", pace]
    with ExitStack() as stack:
        processes = []
        for seed, device in enumerate(devices):
            words = ["--listen", "127.0.0.1:0", "--seed", str(seed), "--simulate", device]
            process = subprocess.Popen(
                [*command, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        agents = []
        for process in processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(token + "\n")
            process.stdin.flush()
            address = json.loads(process.stdout.readline())["address"]
            agents.append(Agent(process, stack.enter_context(AgentClient(address, token=token))))
        yield agents


def fill(
    agents: Sequence[Agent],
    device: str,
    rows: Sequence[PlannedRow],
    on_progress: Any = None,
) -> ProfileResult:
    """A new table of the plan, filled by these agents."""
    request = parse_target(f"sim-{device}")
    sessions = [TargetSession.open(agent.client, request) for agent in agents]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        return profile(sessions, rows, path, TimingProtocol(), on_progress=on_progress)


def speed_up(device: str, layers: str, count: int) -> dict[str, Any]:
    """How many times sooner several agents are done than one."""
    rows = plan_rows(parse_layers(layers), POOL)
    prepare_templates([piece for row in rows for graph in row.graphs for piece in graph])

    def timed(agents: Sequence[Agent]) -> tuple[ProfileResult, float]:
        started = time.perf_counter()
        return fill(agents, device, rows), time.perf_counter() - started

    with serving([device], pace="real") as agents:
        alone, alone_s = timed(agents)
    single = alone.device_s
    with serving([device] * count, pace="real") as agents:
        shared, shared_s = timed(agents)
    seconds = [run.device_s for run in shared.runs]
    return {
        "layers": layers,
        "agents": count,
        "single_device_s": single,
        "slowest_device_s": max(seconds),
        "mean_device_s": float(np.mean(seconds)),
        "speed_up": single / max(seconds),
        "single_wall_s": alone_s,
        "shared_wall_s": shared_s,
        "speed_up_wall": alone_s / shared_s,
        "left_out": len(shared.exclusions.left_out),
    }


def kill_some(device: str, layers: str, count: int, victims: int, seed: int) -> dict[str, Any]:
    """Fills a table while agents are killed, and tells what became of its rows."""
    rows = plan_rows(parse_layers(layers), select_operators(SMALL))
    random = np.random.default_rng(seed)
    moments = np.sort(random.uniform(0.05, 0.95, victims)).tolist()
    killed: list[Agent] = []
    with serving([device] * count) as agents:
        order = [agents[i] for i in random.permutation(count)[:victims]]

        def watch(what: str, share: float) -> None:
            while len(killed) < victims and share >= moments[len(killed)]:
                killed.append(order[len(killed)])
                killed[-1].process.kill()

        result = fill(agents, device, rows, watch)
    found = Counter((row.operator, row.shape) for row in result.table.rows)
    wanted = {(row.name, row.shape) for row in rows}
    return {
        "killed": len(killed),
        "lost": len(wanted - set(found)),
        "twice": sum(n > 1 for n in found.values()),
        "beyond_the_plan": len(set(found) - wanted),
        "incomplete": sum(not row.ok or row.cold_ms is None for row in result.table.rows),
    }


def slow_board(device: str, layers: str, count: int) -> dict[str, Any]:
    """Whether one slow board among good ones is named, and no other."""
    rows = plan_rows(parse_layers(layers), select_operators(SMALL))
    text = (resources.files("hurricane.agents.devices") / f"{device}.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{device}.toml"
        file.write_text(text.replace("[disturbances]", f"[disturbances]\nslower = {SLOWER}"))
        with serving([*[device] * (count - 1), str(file)]) as agents:
            left_out = fill(agents, device, rows).exclusions.left_out
            slow = agents[-1].client.address
    named = len(left_out) == 1 and left_out[0].startswith(f"{slow}:")
    return {"slower": SLOWER, "named_alone": named, "left_out": list(left_out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="hexagon685-dsp")
    parser.add_argument("--layers", default="imagenet224", help="of the speed-up")
    parser.add_argument("--small-layers", default="digits32", help="of kills and slow board")
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--kills", type=int, default=3, help="agents killed in a trial")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()

    def say(words: Any) -> None:
        if not arguments.json:
            print(words, flush=True)

    device, count = arguments.device, arguments.agents
    result: dict[str, Any] = {"device": device, "origin": "simulated"}
    result["slow_board"] = slow_board(device, arguments.small_layers, count)
    say(f"slow board: {result['slow_board']}")
    result["speed_up"] = speed_up(device, arguments.layers, count)
    say(f"speed-up: {result['speed_up']}")
    totals: Counter[str] = Counter()
    for seed in range(arguments.trials):
        found = kill_some(device, arguments.small_layers, count, arguments.kills, seed)
        totals.update(found)
        say(f"trial {seed}: {found}")
    result["kills"] = {"trials": arguments.trials, "agents": count, **totals}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
