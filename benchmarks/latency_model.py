"""How many architectures a second the latency model answers for, against a plain Python loop.

Run: python benchmarks/latency_model.py [--table TABLE] [--batch 100000] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hurricane.lookup_tables import LatencyModel, LookupTable, Row, Target, open_table
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.pool import POOL

LOOP_SHARE = 10
"""The plain loop is timed on a tenth of the batch, or it would take most of the run."""


def random_table(backbone: Backbone, seed: int) -> LookupTable:
    """A full table with latencies drawn at random: speed does not depend on their values."""
    random = np.random.default_rng(seed)
    target = Target("benchmark", "cpu", "none", origin="estimated")
    cells = [(backbone.stem_name, backbone.stem_shape), (backbone.head_name, backbone.head_shape)]
    cells += [
        (operator.name, shape)
        for shape in backbone.distinct_shapes
        for operator in POOL
        if operator.applies_to(shape)
    ]
    return LookupTable(
        Row.of(
            target,
            name,
            shape,
            status="ok",
            latency_ms=random.lognormal(),
            call_ms=0.05,
            estimator="random",
        )
        for name, shape in cells
    )


def draw(model: LatencyModel, count: int, dtype: type, seed: int) -> np.ndarray:
    """Architectures [count × layers], each operator drawn from those with a latency."""
    random = np.random.default_rng(seed)
    layers = [np.flatnonzero(~np.isnan(row)) for row in model.latency_ms]
    return np.stack([random.choice(codes, count) for codes in layers], axis=1).astype(dtype)


def plain_loop(
    cells: Sequence[Sequence[float]], fixed_ms: float, codes: Sequence[Sequence[int]]
) -> list[float]:
    """The same sums in plain Python."""
    results = []
    for architecture in codes:
        total = fixed_ms
        for layer, code in enumerate(architecture):
            total += cells[layer][code]
        results.append(total)
    return results


def best_time_s(function: Callable[[], Any], repeats: int) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", help="file or shipped name; random latencies if left out")
    parser.add_argument("--target", help="one target of the table")
    parser.add_argument("--backbone", default="imagenet224")
    parser.add_argument("--batch", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    arguments = parser.parse_args()

    backbone = load_backbone(arguments.backbone)
    table = (
        open_table(arguments.table) if arguments.table else random_table(backbone, arguments.seed)
    )
    start = time.perf_counter()
    model = LatencyModel(table, backbone, arguments.target)
    build_s = time.perf_counter() - start

    rates = {}
    for dtype in (np.int8, np.int32, np.int64):
        codes = draw(model, arguments.batch, dtype, arguments.seed)
        seconds = best_time_s(lambda codes=codes: model.predict(codes), arguments.repeats)
        rates[dtype.__name__] = arguments.batch / seconds

    codes = draw(model, arguments.batch, np.int64, arguments.seed)
    cells, some = model.latency_ms.tolist(), codes[: -(-arguments.batch // LOOP_SHARE)].tolist()
    loop_s = best_time_s(lambda: plain_loop(cells, model.fixed_ms, some), 3)
    expected = np.array(plain_loop(cells, model.fixed_ms, codes.tolist()))
    difference = float(np.abs(model.predict(codes) - expected).max())

    result = {
        "benchmark": "latency_model",
        "table": arguments.table or "random",
        "batch": arguments.batch,
        "layers": len(backbone.layers),
        "operators": len(model.operators),
        "architectures_per_second": rates["int64"],
        "architectures_per_second_by_dtype": rates,
        "loop_architectures_per_second": len(some) / loop_s,
        "speedup": rates["int64"] / (len(some) / loop_s),
        "max_abs_difference_ms": difference,
        "build_s": build_s,
        "numpy": np.__version__,
    }
    if not arguments.json:
        for name, rate in rates.items():
            print(f"{name:<6} {rate:>14,.0f} architectures/s")
        print(f"loop   {len(some) / loop_s:>14,.0f} architectures/s")
        print(f"largest difference {difference:.1e} ms; model built in {build_s * 1000:.1f} ms")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
