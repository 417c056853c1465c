"""Do `.tflite` files of all operators, shapes and whole networks compute what their graphs do?

Writes every operator at every layer shape of a backbone, its stem and head, and random networks as
fp32 and static int8, runs them in LiteRT, and compares with onnxruntime on the ONNX graph: largest
error over the largest output for fp32, signal over quantisation noise (SQNR) for int8. `left` are
graphs with nodes that XNNPACK did not take. CPU times are of one process.

    python benchmarks/tflite_graphs.py --json
    python benchmarks/tflite_graphs.py --backbone cifar32 --gate hard-sigmoid
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import ai_edge_litert
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from sampled_graphs import image_shape, run, sqnr_db

from hurricane.agents.backends._litert_graph import nodes_left, nodes_of
from hurricane.ops.calibration import random_samples
from hurricane.ops.tflite import quantise_tflite, write_tflite


def run_onnx(content: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def run_tflite(content: bytes, x: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The output, as ONNX has it, and the nodes that XNNPACK left."""
    runtime = Interpreter(model_content=content, num_threads=1)
    runtime.allocate_tensors()
    (given,), (returned,) = runtime.get_input_details(), runtime.get_output_details()
    values = np.moveaxis(x, 1, -1)
    if given["dtype"] == np.int8:
        scale, zero = given["quantization"]
        values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
    runtime.set_tensor(given["index"], values)
    runtime.invoke()
    y = runtime.get_tensor(returned["index"])
    if returned["dtype"] == np.int8:
        scale, zero = returned["quantization"]
        y = (y.astype(np.float32) - zero) * scale
    return np.moveaxis(y, -1, 1) if y.ndim == 4 else y, left_by_delegate(runtime)


def left_by_delegate(runtime: Interpreter) -> list[str]:
    """Operators of the graph that no delegate took."""
    nodes = nodes_of(runtime)
    assert nodes is not None
    return [node.operator for node in nodes_left(nodes)]


def figures(name: str, content: bytes) -> dict[str, Any]:
    """What is asked of one graph."""
    shape = image_shape(content)
    x = random_samples(shape, 1, seed=1)
    expected = run_onnx(content, x)
    started = time.process_time()
    fp32 = write_tflite(content)
    written = time.process_time()
    int8 = quantise_tflite(fp32, random_samples(shape))
    quantised = time.process_time()
    y, left = run_tflite(fp32, x)
    z, left_int8 = run_tflite(int8, x)
    return {
        "graph": name,
        "error": float(np.abs(y - expected).max() / np.abs(expected).max()),
        "sqnr_db": sqnr_db(expected, z),
        "left": left,
        "left_int8": left_int8,
        "write_s": written - started,
        "quantise_s": quantised - written,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = max(rows, key=lambda r: r["error"])
    noisiest = min(rows, key=lambda r: r["sqnr_db"])
    return {
        "graphs": len(rows),
        "largest_error": [worst["error"], worst["graph"]],
        "smallest_sqnr_db": [noisiest["sqnr_db"], noisiest["graph"]],
        "median_sqnr_db": statistics.median(r["sqnr_db"] for r in rows),
        "graphs_with_nodes_left": sum(bool(r["left"]) for r in rows),
        "int8_graphs_with_nodes_left": sum(bool(r["left_int8"]) for r in rows),
        "median_write_s": statistics.median(r["write_s"] for r in rows),
        "median_quantise_s": statistics.median(r["quantise_s"] for r in rows),
        "cpu_s": sum(r["write_s"] + r["quantise_s"] for r in rows),
    }


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['graph']:<32} error {row['error']:.1e}  SQNR {row['sqnr_db']:.1f} dB"
        f"  left {len(row['left'])}, {len(row['left_int8'])}"
    )


if __name__ == "__main__":
    run(__doc__, figures, line, summary, {"ai_edge_litert": ai_edge_litert.__version__})
