"""Exports every graph of a table, and loops over each as a peer does: 10 + 50 calls, one core.

The least that anybody does who wants a table. Prints seconds by step as JSON.

    HURRICANE_CACHE=$(mktemp -d) python benchmarks/wall_time_plain.py --layers imagenet224
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

WARM_UP, CALLS = 10, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="imagenet224", metavar="BACKBONE")
    arguments = parser.parse_args()
    started = time.perf_counter()

    import onnxruntime
    from sampled_graphs import graphs

    from hurricane.ops.pool import GATES

    imported = time.perf_counter()
    exported = [content for _, content in graphs(arguments.layers, GATES[0], networks=0)]
    seconds = {"import": imported - started, "export": time.perf_counter() - imported}
    seconds |= {"load": 0.0, "time": 0.0}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # exporting had all cores
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    table = []
    for content in exported:
        start = time.perf_counter()
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        feed = {
            node.name: np.random.default_rng(0).standard_normal(node.shape, dtype=np.float32)
            for node in session.get_inputs()
        }
        loaded = time.perf_counter()
        seconds["load"] += loaded - start
        times = []
        for _ in range(WARM_UP + CALLS):
            start = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - start)
        table.append(float(np.median(times[WARM_UP:])))
        seconds["time"] += time.perf_counter() - loaded
    print(json.dumps({"graphs": len(table), "seconds": seconds}))


if __name__ == "__main__":
    main()
