"""Do graphs that QNN compiles for a Snapdragon compute what the CPU computes of the same graph?

Quantises every operator at every layer shape of a backbone, its stem and head, and random networks
(or converts them to 16 bits: --precision fp16), compiles each for a chip with no fallback, runs it
in the emulator, and compares with onnxruntime's CPU provider on the same quantised graph and on the
fp32 graph: signal over quantisation noise (SQNR). It shares no code with the agent. The emulator
says nothing of latencies; `compile_s` is what the compiler takes here.

    python benchmarks/qnn_graphs.py --json
    python benchmarks/qnn_graphs.py --soc SM8550 --precision fp16 --networks 0
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_qnn
from sampled_graphs import image_shape, run, sqnr_db

from hurricane.ops.calibration import random_samples
from hurricane.ops.onnx_qdq import edges, quantise_onnx

_COMPILED_FOR = re.compile(rb"soc_type=(\w+);arch=(\d+);")


_OWN = argparse.ArgumentParser(add_help=False)
_OWN.add_argument("--soc", default="SM8650")
_OWN.add_argument("--precision", choices=("int8", "fp16"), default="int8")
OWN, _ = _OWN.parse_known_args()
onnxruntime.register_execution_provider_library(
    onnxruntime_qnn.get_ep_name(), onnxruntime_qnn.get_library_path()
)
DEVICES = [d for d in onnxruntime.get_ep_devices() if d.ep_name == onnxruntime_qnn.get_ep_name()]


def options() -> onnxruntime.SessionOptions:
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    chosen.log_severity_level = 3
    return chosen


def on_cpu(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, options(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def on_htp(content: bytes, x: np.ndarray) -> tuple[np.ndarray, float, str]:
    """The emulator's output, seconds to compile, and what the binary says that it is for."""
    chosen = options()
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "context.onnx"
        for key, value in {
            "session.disable_cpu_ep_fallback": "1",
            "ep.context_enable": "1",
            "ep.context_embed_mode": "1",
            "ep.context_file_path": str(binary),
        }.items():
            chosen.add_session_config_entry(key, value)
        provider = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": OWN.soc}
        chosen.add_provider_for_devices(DEVICES[:1], provider)
        started = time.perf_counter()
        session = onnxruntime.InferenceSession(content, sess_options=chosen)
        compile_s = time.perf_counter() - started
        found = _COMPILED_FOR.search(binary.read_bytes())
    y = np.asarray(session.run(None, {"input": x})[0])
    chip = b"v".join(found.groups()).decode() if found else "nothing"
    if not chip.startswith(f"{OWN.soc}v"):
        raise SystemExit(f"compiled for {chip} instead of {OWN.soc}")
    return y, compile_s, chip


def figures(name: str, content: bytes) -> dict[str, Any]:
    """What is asked of one graph."""
    shape = image_shape(content)
    x = random_samples(shape, 1, seed=1)
    expected = on_cpu(content, x)
    if OWN.precision == "int8":
        quantised = quantise_onnx(content, random_samples(shape))
        sides = edges(quantised)
        integers = sides.inputs[0].encode(x)
        y, compile_s, chip = on_htp(quantised, integers)
        same, y = (sides.outputs[0].decode(v) for v in (on_cpu(quantised, integers), y))
    else:
        (y, compile_s, chip), same = on_htp(content, x), expected
    return {
        "graph": name,
        "sqnr_db": sqnr_db(expected, y),
        "sqnr_to_cpu_db": sqnr_db(same, y),
        "compiled_for": chip,
        "compile_s": compile_s,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def noise(key: str) -> dict[str, Any]:
        worst = min(rows, key=lambda r: r[key])
        return {
            "smallest": [worst[key], worst["graph"]],
            "median": statistics.median(r[key] for r in rows),
        }

    return {
        "graphs": len(rows),
        "sqnr_db": noise("sqnr_db"),
        "sqnr_to_cpu_db": noise("sqnr_to_cpu_db"),
        "compiled_for": sorted({r["compiled_for"] for r in rows}),
        "median_compile_s": statistics.median(r["compile_s"] for r in rows),
        "longest_compile_s": max(r["compile_s"] for r in rows),
    }


def line(row: dict[str, Any]) -> str:
    noise = f"SQNR {row['sqnr_db']:.1f}, to the CPU {row['sqnr_to_cpu_db']:.1f} dB"
    return f"{row['graph']:<32} {noise}  {row['compiled_for']}  {row['compile_s']:.2f} s"


if __name__ == "__main__":
    versions = {
        "onnxruntime": onnxruntime.__version__,
        "onnxruntime_qnn": onnxruntime_qnn.__version__,
        "soc": OWN.soc,
        "precision": OWN.precision,
    }
    run(__doc__, figures, line, summary, versions, _OWN)
