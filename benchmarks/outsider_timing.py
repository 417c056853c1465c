"""Times ONNX files as anybody would who has never heard of Hurricane.

Each file alone in a loop, then all of them in shuffled rounds, one call each: one thread on one
core, the runtime's own Python API. Prints the times of all calls, in ms, as JSON.
"""

import argparse
import json
import os
import random
import sys
import time

import numpy as np

WARM_UP, WARM_UP_ROUNDS = 10, 3


def open_onnxruntime(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {node.name: image_of(node.shape) for node in session.get_inputs()}
    return lambda: session.run(None, feed)


def open_openvino(path):
    # Would report, and start a process for it.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1, **hints})
    request = compiled.create_infer_request()
    feed = {0: image_of(request.model_inputs[0].shape)}
    return lambda: request.infer(feed)


def image_of(shape):
    return np.random.default_rng(0).standard_normal(tuple(shape), dtype=np.float32)


def time_ms(call):
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), required=True)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--loop", type=float, default=0.5, help="seconds of each file's loop")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    open_file = open_openvino if arguments.runtime == "openvino" else open_onnxruntime
    order = list(range(len(arguments.files)))
    loop, rounds = [[] for _ in order], [[] for _ in order]
    random.shuffle(order)
    for i in order:
        call = open_file(arguments.files[i])
        for _ in range(WARM_UP):
            call()
        until = time.perf_counter() + arguments.loop
        while time.perf_counter() < until:
            loop[i].append(time_ms(call))
    calls = [open_file(file) for file in arguments.files]
    for _ in range(WARM_UP_ROUNDS + arguments.rounds):
        random.shuffle(order)
        for i in order:
            rounds[i].append(time_ms(calls[i]))
    print(json.dumps({"loop": loop, "rounds": [ms[WARM_UP_ROUNDS:] for ms in rounds]}))


if __name__ == "__main__":
    main()
