"""Do quantised ONNX graphs (QDQ) of all operators, shapes and whole networks compute what their
fp32 graphs do, and do they run in 8 bits?

Quantises every operator at every layer shape of a backbone, its stem and head, and random networks,
runs them in onnxruntime and OpenVINO, and compares with onnxruntime on the fp32 graph: signal over
quantisation noise (SQNR). `left` are nodes that the runtime computes in float. CPU times are of one
process.

    python benchmarks/onnx_qdq_graphs.py --json
    python benchmarks/onnx_qdq_graphs.py --backbone cifar32 --gate hard-sigmoid
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from sampled_graphs import image_shape, run, sqnr_db

from hurricane.ops.calibration import random_samples
from hurricane.ops.onnx_qdq import Edges, edges, quantise_onnx

RUNTIMES = ("onnxruntime", "openvino")
SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
}
CORE = openvino.Core()


def options() -> onnxruntime.SessionOptions:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.log_severity_level = 3
    return chosen


def run_onnxruntime(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def left_by_onnxruntime(content: bytes) -> list[str]:
    """Operators that onnxruntime computes in float."""
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    compiler = onnxruntime.ModelCompiler(options(), content, graph_optimization_level=level)
    graph = onnx.load_from_string(compiler.compile_to_bytes()).graph
    dequantised = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return [node.op_type for node in graph.node if dequantised & set(node.input)]


def run_openvino(content: bytes, x: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The output, and the layers with data of other types than 8 bits (constants aside)."""
    compiled = CORE.compile_model(CORE.read_model(content), "CPU", SETTINGS)
    left = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind, precision = (facts[name].astype(str) for name in ("layerType", "runtimePrecision"))
        constant = all(
            source.get_node().get_rt_info()["layerType"].astype(str) == "Const"
            for source in node.input_values()
        )
        if not constant and precision not in ("u8", "i8"):
            left.append(f"{kind} {precision}")
    return np.asarray(compiled([x])[0]), left


def figures(name: str, content: bytes) -> dict[str, Any]:
    """What is asked of one graph."""
    shape = image_shape(content)
    x = random_samples(shape, 1, seed=1)
    expected = run_onnxruntime(content, x)
    started = time.process_time()
    quantised = quantise_onnx(content, random_samples(shape))
    took_s = time.process_time() - started
    sides: Edges = edges(quantised)
    integers = sides.inputs[0].encode(x)
    y = run_onnxruntime(quantised, integers)
    z, left = run_openvino(quantised, integers)
    outputs = {"onnxruntime": y, "openvino": z}
    return {
        "graph": name,
        "sqnr_db": {n: sqnr_db(expected, sides.outputs[0].decode(v)) for n, v in outputs.items()},
        "left": {"onnxruntime": left_by_onnxruntime(quantised), "openvino": left},
        "largest_step": int(np.abs(y.astype(int) - z.astype(int)).max()),
        "quantise_s": took_s,
        "size": len(quantised) / len(content),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def noise(runtime: str) -> dict[str, Any]:
        worst = min(rows, key=lambda r: r["sqnr_db"][runtime])
        return {
            "smallest_sqnr_db": [worst["sqnr_db"][runtime], worst["graph"]],
            "median_sqnr_db": statistics.median(r["sqnr_db"][runtime] for r in rows),
            "graphs_with_nodes_left": sum(bool(r["left"][runtime]) for r in rows),
        }

    slowest = max(rows, key=lambda r: r["quantise_s"])
    return {
        "graphs": len(rows),
        **{runtime: noise(runtime) for runtime in RUNTIMES},
        "median_quantise_s": statistics.median(r["quantise_s"] for r in rows),
        "longest_quantise_s": [slowest["quantise_s"], slowest["graph"]],
        "cpu_s": sum(r["quantise_s"] for r in rows),
    }


def line(row: dict[str, Any]) -> str:
    noise = ", ".join(f"{row['sqnr_db'][runtime]:.1f}" for runtime in RUNTIMES)
    left = ", ".join(str(len(row["left"][runtime])) for runtime in RUNTIMES)
    return f"{row['graph']:<32} SQNR {noise} dB  left {left}  {row['quantise_s']:.2f} s"


if __name__ == "__main__":
    versions = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}
    run(__doc__, figures, line, summary, versions)
