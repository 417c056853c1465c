"""What the measuring protocol stands up to, on simulated devices of imagenet224.

- Additivity: with `fusion` pairs of convolutions hide time, which the rows' contexts see; with
  `fusion_growth` deep graphs hide more than shallow ones, which no row can see: the check must
  say so, and `hurricane space` must refuse the table.
- One graph at a time, 5 ms ± 20% a call, with and without device time: sums, and the order of the
  operators at each layer shape against the noise-free model.
- Disturbances: rows within 3% of the noise-free device, or flagged; throttling after 20 s, which
  may be while graphs are loaded, and midway through what the table takes otherwise. Bimodal calls
  also on the device if it kept one graph at a time: there all calls of a visit are slow.
- Cache: a graph called again before 32 MiB of others takes up to 20% less; with background graphs
  and without. Drift: calls get slower by 20% a minute, without end and up to 10%. Rows, and the
  sums of random networks, against the noise-free device: its caches cold, its speed that of the
  beginning. Where a table has one factor for all, the error is given without it, too.

    python benchmarks/disturbed_devices.py --json
    python benchmarks/disturbed_devices.py --part disturbances --device myriadx-vpu
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.agents.backends._simulation_device import (
    Device,
    load_device,
    price,
    with_options,
)
from hurricane.agents.backends._simulation_graph import WorkGraph, read_graph
from hurricane.agents.client import private_agent
from hurricane.lookup_tables.calibration import save_calibration
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable, Row, RowKey
from hurricane.ops.export import export_architecture
from hurricane.ops.pool import POOL
from hurricane.profiler.accuracy import kendall_tau
from hurricane.profiler.draws import random_networks, uniform_networks
from hurricane.profiler.plan import Graph, PlannedRow, graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import DOUBTFUL, profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import parse_target
from hurricane.profiler.verification import verify_table

DEVICES = ("snapdragon845-cpu", "hexagon685-dsp", "myriadx-vpu")
LAYERS = parse_layers("imagenet224")
ROWS = plan_rows(LAYERS, POOL)
FLAGS = set(DOUBTFUL)
NEAR = 0.03
"""How far a row may be from the truth without a flag, a fraction."""

ADDITIVITY = ("fusion=0.9", "fusion_growth=0.005")
BIMODAL = ("bimodal_probability=0.3", "bimodal_factor=1.7")
PRICED = ("call_ms=5", "call_jitter=0.2")
DISTURBANCES = {
    "undisturbed": (),
    "throttling": ("throttle_after_s=20",),
    "bimodal": BIMODAL,
    "outliers": ("outlier_probability=0.02", "outlier_factor=10"),
}
CACHE = ("warm_gain=0.2", "cache_mib=32")
BATCH_MIB = (0, 32, 64, 128)
"""Values of `TimingProtocol.min_batch_bytes` for the disturbance ``cache``."""
DRIFTS = {
    "20% a minute": ("drift_per_minute=0.2",),
    "20% a minute to 10%": ("drift_per_minute=0.2", "drift_most=0.1"),
}
NETWORKS = 40
"""Random networks whose sums are compared."""
PARTS = ("additivity", "one-at-a-time", "disturbances", "cache", "drift")


@functools.cache
def _networks() -> dict[tuple[str, ...], WorkGraph]:
    """Random networks, the same for all tables: an operator drawn for each layer."""
    random = np.random.default_rng(0)
    fitting = [[o.name for o in POOL if o.applies_to(s)] for s in LAYERS.backbone.layers]
    drawn = [tuple(str(random.choice(names)) for names in fitting) for _ in range(NETWORKS)]
    return {names: read_graph(export_architecture(LAYERS.backbone, names)) for names in drawn}


def sums(path: Path, quiet: Device) -> dict[str, float]:
    """Sums of a table against the noise-free times of random networks."""
    model = LatencyModel(LookupTable.load(path), LAYERS.backbone, statistic="quiet")
    ratios = np.array(
        [
            model.latency_of(names) / price(graph, quiet).total_ms
            for names, graph in _networks().items()
        ]
    )
    return {
        "bias": float(np.mean(ratios) - 1),
        "rmspe": float(np.sqrt(np.mean((ratios - 1) ** 2))),
        "rmspe_after_one_factor": float(np.std(ratios) / np.mean(ratios)),
        "near": float(np.mean(np.abs(ratios - 1) <= NEAR)),
    }


@functools.cache
def _work(graph: Graph) -> WorkGraph:
    return read_graph(graph_bytes(graph))


def marginal_ms(row: PlannedRow, device: Device) -> float:
    """The noise-free marginal latency of a row, as it is planned."""
    contexts = (
        (price(_work(c.with_operator), device), price(_work(c.baseline), device))
        for c in row.contexts
    )
    return float(np.mean([longer.total_ms - shorter.total_ms for longer, shorter in contexts]))


def measure(
    file: str,
    options: Sequence[str],
    path: Path,
    verify: bool,
    protocol: TimingProtocol | None = None,
) -> tuple[dict[PlannedRow, Row], dict[str, Any]]:
    """Fills a table on a device, and checks it on end-to-end networks where asked.

    Args:
        file: the device's name, or its TOML file.
        options: of the target.
        path: the table; its verdict is kept beside it.
        verify: whether to check it.

    Returns:
        The rows, and device time, verdict and error figures.
    """
    request = parse_target(f"sim-{Path(file).stem}", options)
    with private_agent(simulate=(file,)) as client:
        session = TargetSession.open(client, request)
        done = profile([session], ROWS, path, protocol or TimingProtocol())
        told: dict[str, Any] = {"device_s": done.device_s, "counts": dict(done.counts)}
        if verify:
            model = LatencyModel(done.table, LAYERS.backbone)
            networks = random_networks(model, 20, 0) + uniform_networks(model)
            found = verify_table(session, model, networks, TimingProtocol())
            known = found.calibration(done.table)
            save_calibration(path, known)
            told |= {} if known.check is None else asdict(known.check)
            told["groups"] = [asdict(group) for group in found.groups]
            told["budget_ms"] = float(np.mean(model.bounds()))
    keys = {row: RowKey(done.target, row.name, row.shape) for row in ROWS}
    return {row: found for row, key in keys.items() if (found := done.table.get(key))}, told


def additivity(device: str, option: str, folder: Path) -> dict[str, Any]:
    """The verdict on a device whose graphs hide time, and what `hurricane space` says to it."""
    path = folder / f"{device}-{option}.csv"
    _, told = measure(device, [option], path, verify=True)
    words = ["space", "--table", str(path), "--backbone", LAYERS.backbone.name]
    words += ["--latency", f"{told['budget_ms']:.3f}"]
    command = [sys.executable, "-c", "from hurricane.search.cli import main; main()", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    complaint = (ended.stderr.strip().splitlines() or [""])[0].replace(f"{folder}/", "")
    return {**told, "space_exit_status": ended.returncode, "space_says": complaint}


def one_at_a_time(device: str, device_time: bool, folder: Path) -> dict[str, Any]:
    """A device that keeps one graph and whose calls are dear: sums, and operators in order."""
    file = changed(device, folder, resident=False, device_time=device_time)
    path = folder / f"one-{device}-{device_time}.csv"
    rows, told = measure(file, PRICED, path, verify=True)
    quiet = _quiet(device, PRICED)
    taus = []
    for shape in dict.fromkeys(LAYERS.backbone.layers):
        here = [row for row in ROWS if row.shape == shape and rows[row].ok]
        truth = [price(_work(row.alone), quiet).device_ms for row in here]
        taus.append(kendall_tau(np.array(truth), np.array([rows[r].latency_ms for r in here])))
    return {"device_time": device_time, "lowest_tau": min(taus), **told}


def changed(device: str, folder: Path, **facts: bool) -> str:
    """A file of a shipped device with some facts changed; its path."""
    text = (resources.files("hurricane.agents.devices") / f"{device}.toml").read_text("utf-8")
    for key, value in facts.items():
        lines = [
            f"{key} = {value}".lower() if li.startswith(key) else li for li in text.split("\n")
        ]
        text = "\n".join(lines)
    file = folder / f"{device}.toml"
    file.write_text(text)
    return str(file)


def disturbed(
    device: str,
    name: str,
    options: Sequence[str],
    folder: Path,
    file: str = "",
    protocol: TimingProtocol | None = None,
) -> dict[str, Any]:
    """How many rows and sums are near the truth, or say that they may not be."""
    path = folder / f"{device}-{name.replace(' ', '-')}.csv"
    rows, told = measure(file or device, options, path, verify=False, protocol=protocol)
    quiet = _quiet(device, ())
    near = [
        found.latency_ms is not None and abs(found.latency_ms / marginal_ms(row, quiet) - 1) <= NEAR
        for row, found in rows.items()
    ]
    flagged = [not FLAGS.isdisjoint(found.flag_words) for found in rows.values()]
    return {
        "rows": len(rows),
        "near": float(np.mean(near)),
        "flagged": float(np.mean(flagged)),
        "near_or_flagged": float(np.mean(np.logical_or(near, flagged))),
        "sums": sums(path, quiet),
        **told,
    }


def _quiet(device: str, options: Sequence[str]) -> Device:
    """A shipped device with options and without noise."""
    given = dict(option.split("=") for option in options)
    return with_options(load_device(device), device, {**given, "noise": "0", "call_jitter": "0"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", action="append", choices=DEVICES, help="[all]")
    parser.add_argument("--part", action="append", choices=PARTS, help="[all]")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    parts = arguments.part or PARTS
    result: dict[str, Any] = {"layers": LAYERS.backbone.name, "origin": "simulated"}

    def keep(part: str, device: str, name: str, found: dict[str, Any]) -> None:
        result.setdefault(part, {}).setdefault(device, {})[name] = found
        if not arguments.json:
            print(f"{part}, {device}, {name}: {json.dumps(found)}", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for device in arguments.device or DEVICES:
            if "additivity" in parts:
                for option in ADDITIVITY:
                    keep("additivity", device, option, additivity(device, option, folder))
            if "one-at-a-time" in parts:
                for timed in (True, False):
                    name = "device time" if timed else "wall time"
                    keep("one-at-a-time", device, name, one_at_a_time(device, timed, folder))
            if "disturbances" in parts:
                took_s = 0.0
                for name, options in DISTURBANCES.items():
                    found = disturbed(device, name, options, folder)
                    took_s = took_s or found["device_s"]
                    keep("disturbances", device, name, found)
                name, options = "throttling midway", (f"throttle_after_s={took_s / 2:.1f}",)
                keep("disturbances", device, name, disturbed(device, name, options, folder))
                name, file = "bimodal one at a time", changed(device, folder, resident=False)
                keep("disturbances", device, name, disturbed(device, name, BIMODAL, folder, file))
            if "cache" in parts:
                for size in BATCH_MIB:
                    protocol = TimingProtocol(min_batch_bytes=size * 2**20)
                    name = f"cache {size}"
                    found = disturbed(device, name, CACHE, folder, protocol=protocol)
                    keep("cache", device, f"at least {size} MiB of weights in a batch", found)
            if "drift" in parts:
                for name, options in DRIFTS.items():
                    keep("drift", device, name, disturbed(device, name, options, folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
