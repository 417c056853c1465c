"""Does a table stay right where a call costs as much as many operators?

Fills a simulated device's table with calls at no price and at 1 ms, with the device's usual noise
and with none, and compares: sums against whole networks, and the order of the operators at each
layer shape.

    python benchmarks/call_price.py --device hexagon685-dsp --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.pool import POOL
from hurricane.profiler.accuracy import kendall_tau
from hurricane.profiler.draws import random_networks, uniform_networks
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.profiler.verification import verify_table


def fill(device: str, layers: str, options: list[str], path: Path):
    """A table of the device with these options, and its networks against the sums."""
    chosen = parse_layers(layers)
    request = parse_target(f"sim-{device}", options)
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        profile([session], plan_rows(chosen, POOL), path, TimingProtocol())
        model = LatencyModel(LookupTable.load(path), chosen.backbone)
        networks = random_networks(model, 20, 0) + uniform_networks(model)
        return model, verify_table(session, model, networks, TimingProtocol())


def ranking(free: LatencyModel, priced: LatencyModel) -> dict[str, float]:
    """How alike the order of the operators is, over the layers."""
    taus, exact = [], 0
    for a, b in zip(free.latency_ms, priced.latency_ms, strict=True):
        there = np.isfinite(a) & np.isfinite(b)
        taus.append(kendall_tau(a[there], b[there]))
        exact += bool((np.argsort(a[there]) == np.argsort(b[there])).all())
    return {"lowest_tau": min(taus), "layers_equal": exact, "layers": len(taus)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="hexagon685-dsp")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    result: dict = {"device": arguments.device, "origin": "simulated"}
    with tempfile.TemporaryDirectory() as folder:
        for label, noise in (("usual_noise", []), ("no_noise", ["noise=0", "call_jitter=0"])):
            models = {}
            for price in ("0", "1.0"):
                path = Path(folder) / f"{label}-{price}.csv"
                options = [f"call_ms={price}", *noise]
                models[price], found = fill(arguments.device, arguments.layers, options, path)
                result[f"{label}_call_{price}_ms"] = [asdict(g) for g in found.groups]
            result[f"{label}_ranking"] = ranking(models["0"], models["1.0"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
