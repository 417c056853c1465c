"""What vela makes of every operator, and whether sums of rows are what it makes of whole networks.

Compiles, in this process, every operator of the pool at every layer shape alone, the graphs whose
differences the rows of a table are, and whole networks. Rows are taken in three ways:

- `alone`: an operator's own graph;
- `pooled`: differences as the profiler takes them on a device, each graph ending in a global pool;
- `unpooled`: differences as it takes them of estimates, without the pool.

A neighbour that vela leaves to the CPU in part is not used. Estimates, no measurements.

    python benchmarks/ethosu_estimates.py --target npu-ethosu65-int8 --networks 12
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sampled_graphs import image_shape

from hurricane.agents.backends.ethosu_vela import SERIES, Compilation, Compiler
from hurricane.agents.errors import UnsupportedOperator
from hurricane.ops.calibration import random_samples
from hurricane.ops.export import export_architecture
from hurricane.ops.pool import POOL
from hurricane.ops.tflite import quantise_tflite, write_tflite
from hurricane.profiler.plan import (
    ESTIMATED,
    Graph,
    PlannedRow,
    graph_bytes,
    parse_layers,
    plan_row,
    plan_rows,
)
from hurricane.profiler.target import parse_target


class Estimates:
    """Compiles graphs once each, and keeps the time that takes."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self.compile_s: list[float] = []
        self.refused: list[str] = []

    def of(self, content: bytes) -> Compilation | None:
        """What vela makes of an ONNX graph, in int8; None: it refuses it."""
        samples = random_samples(image_shape(content), 1, 0)
        tflite = quantise_tflite(write_tflite(content), samples)
        began = time.perf_counter()
        try:
            return self._compiler.compile(tflite)
        except UnsupportedOperator as error:
            self.refused.append(str(error))
            return None
        finally:
            self.compile_s.append(time.perf_counter() - began)

    @functools.cache  # noqa: B019 - one of these a run
    def of_graph(self, graph: Graph) -> Compilation:
        found = self.of(graph_bytes(graph))
        if found is None:
            raise SystemExit(f"{graph}: {self.refused[-1]}")
        return found

    def ms(self, found: Compilation) -> float:
        return 1e3 * found.cycles / self._compiler.clock_hz


def alone_ms(estimates: Estimates, row: PlannedRow) -> float:
    return estimates.ms(estimates.of_graph(row.alone))


def difference_ms(estimates: Estimates, row: PlannedRow) -> float:
    """A row's marginal latency; what the pooled stem leaves out is the price of a call."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for context in row.contexts:
        longer, shorter = map(estimates.of_graph, (context.with_operator, context.baseline))
        found[bool(shorter.on_cpu)].append(estimates.ms(longer) - estimates.ms(shorter))
    return float(np.mean(found[False] or found[True]))


def fidelity(sums_ms: np.ndarray, whole_ms: np.ndarray, random_ones: slice) -> dict[str, Any]:
    """Sums against whole networks, as they are and by a line fitted to the random ones."""
    errors = sums_ms / whole_ms - 1
    x, y = sums_ms[random_ones], whole_ms[random_ones]
    line = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1) / y[:, None], np.ones_like(y))[0]
    fitted = (line[0] * sums_ms + line[1]) / whole_ms - 1
    return {
        "errors": errors.round(4).tolist(),
        "random_bias": float(errors[random_ones].mean()),
        "random_rmspe": float(np.sqrt((errors[random_ones] ** 2).mean())),
        "line": line.round(4).tolist(),
        "fitted_random_rmspe": float(np.sqrt((fitted[random_ones] ** 2).mean())),
        "fitted_random_largest": float(abs(fitted[random_ones]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default=SERIES[0].target, choices=[s.target for s in SERIES])
    parser.add_argument("--option", action="append", default=[], help="key=value")
    parser.add_argument("--layers", default="imagenet224")
    parser.add_argument("--networks", type=int, default=12, help="random ones, beside two uniform")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vela prints what it thinks of operators
    began = time.perf_counter()
    request = parse_target(arguments.target, arguments.option)
    series = next(series for series in SERIES if series.target == request.name)
    estimates = Estimates(Compiler(series, request.options))
    layers = parse_layers(arguments.layers)
    backbone, rows = layers.backbone, plan_rows(layers, POOL)
    fallen = [row for row in rows if estimates.of_graph(row.alone).on_cpu]
    result: dict[str, Any] = {
        "target": request.name,
        "options": {**series.defaults, **request.options},
        "origin": "estimated",
        "rows": len(rows),
        "rows_with_fallback": [f"{row.name} at {row.shape}" for row in fallen],
        "rows_compile_median_ms": 1e3 * float(np.median(estimates.compile_s)),
    }
    draw = random.Random(arguments.seed)
    names = [operator.name for operator in POOL]
    networks = [[name] * len(backbone.layers) for name in ("SEP_3", "MB_5_6_SE")]
    networks += [[draw.choice(names) for _ in backbone.layers] for _ in range(arguments.networks)]
    rows_of: dict[Any, PlannedRow] = {(row.name, row.shape): row for row in rows}
    places = [
        [
            rows_of[backbone.stem_name, backbone.stem_shape],
            *(rows_of[key] for key in zip(network, backbone.layers, strict=True)),
            rows_of[backbone.head_name, backbone.head_shape],
        ]
        for network in networks
    ]
    wholes = [estimates.of(export_architecture(backbone, network)) for network in networks]
    kept = [n for n, whole in enumerate(wholes) if whole is not None]
    whole_ms = np.array([estimates.ms(wholes[n]) for n in kept])
    result["networks"] = {"ms": whole_ms.round(4).tolist(), "refused": estimates.refused}
    ways: dict[str, Callable[[PlannedRow], float]] = {
        "alone": lambda row: alone_ms(estimates, row),
        "pooled": lambda row: difference_ms(estimates, row),
        "unpooled": lambda row: difference_ms(
            estimates, plan_row(row.name, row.shape, origin=ESTIMATED)
        ),
    }
    for way, of_row in ways.items():
        found = {row: of_row(row) for row in rows}
        # The pooled stem is told without what its shorter graph, the call, takes.
        call_ms = estimates.ms(estimates.of_graph(rows[0].baselines[0])) if way == "pooled" else 0.0
        sums_ms = np.array([sum(found[row] for row in places[n]) + call_ms for n in kept])
        result[way] = {
            "not_positive": [f"{r.name} at {r.shape}" for r, ms in found.items() if ms <= 0],
            **fidelity(sums_ms, whole_ms, slice(2, None)),
        }
    result["compiled"] = len(estimates.compile_s)
    result["compile_s"] = sum(estimates.compile_s)
    result["seconds"] = time.perf_counter() - began
    print(json.dumps(result), file=answer)


if __name__ == "__main__":
    main()
