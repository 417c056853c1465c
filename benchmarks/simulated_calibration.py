"""Fits the model of simulated devices to published measurements of their neighbours.

Reads from the folder $HURRICANE_DATA/latency:

- ``nasbench201_devices_ms.csv``: whole NAS-Bench-201 networks on a Pixel 3 (Snapdragon 845) CPU
  and a Cortex-A76 (both TFLite), a Hexagon 690 (int8) and a Myriad VPU (OpenVINO);
- ``pixel1_proxyless.yaml``: single MBConv blocks of kernel 3, 5, 7 on a Pixel 1 CPU.

For each, parameters are fitted on half of the rows and the error is told on the other half,
beside the error of the shipped device as it is, after one scale factor. What the device files
took from here, and what not, is in `docs/simulated-devices.md`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper
from scipy.optimize import least_squares
from scipy.stats import kendalltau

from hurricane.agents.backends._simulation_device import Device, load_device
from hurricane.agents.backends._simulation_graph import Work, read_graph


class Builder:
    """Puts a small CNN together, node by node."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"input": channels}
        self.size = (height, width)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        self.channels[name] = self.channels[inputs[0]]
        return name

    def conv(self, x: str, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        weight = onnx.TensorProto(
            name=f"w{len(self.nodes)}",
            data_type=TensorProto.FLOAT,
            dims=(channels, self.channels[x] // groups, kernel, kernel),
        )
        self.weights.append(weight)
        pads = [kernel // 2] * 4
        sides = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        out = self.add("Conv", x, weight.name, group=groups, **sides)
        self.channels[out] = channels
        return out

    def linear(self, x: str, classes: int) -> str:
        flat = self.add("Flatten", x)
        dims = (self.channels[x], classes)
        self.weights.append(onnx.TensorProto(name="fc", data_type=TensorProto.FLOAT, dims=dims))
        return self.add("Gemm", flat, "fc")

    def works(self, output: str) -> Counter[Work]:
        """How often each piece of work occurs."""
        shape = [1, self.channels["input"], *self.size]
        graph = helper.make_graph(
            self.nodes,
            "calibration",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model = onnx.shape_inference.infer_shapes(model)
        return Counter(node.work for node in read_graph(model.SerializeToString()).nodes)


_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def nasbench_network(operations: Sequence[int]) -> Counter[Work]:
    """A NAS-Bench-201 network; operations by edge: none, skip, conv 1x1, conv 3x3, pool 3x3."""
    net = Builder(3, 32, 32)
    x = net.conv("input", 16, 3)
    for stage, channels in enumerate((16, 32, 64)):
        if stage:
            left = net.conv(net.add("Relu", net.conv(x, channels, 3, 2)), channels, 3)
            pooled = net.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            x = net.add("Add", left, net.conv(pooled, channels, 1))
        for _ in range(5):
            x = _cell(net, x, channels, operations) or x
    x = net.linear(net.add("GlobalAveragePool", net.add("Relu", x)), 10)
    return net.works(x)


def _cell(net: Builder, x: str, channels: int, operations: Sequence[int]) -> str:
    needed = {3}
    for (start, end), operation in reversed(list(zip(_EDGES, operations, strict=True))):
        if end in needed and operation:
            needed.add(start)
    states = {0: x}
    for (start, end), operation in zip(_EDGES, operations, strict=True):
        if not operation or end not in needed or start not in states:
            continue
        y = states[start]
        if operation in (2, 3):
            y = net.conv(net.add("Relu", y), channels, 1 if operation == 2 else 3)
        elif operation == 4:
            y = net.add("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        states[end] = net.add("Add", states[end], y) if end in states else y
    return states.get(3, "")


def mbconv(
    side: int, c_in: int, c_out: int, expand: int, kernel: int, stride: int, skip: bool
) -> Counter[Work]:
    """One MBConv block as ProxylessNAS measured it."""
    net = Builder(c_in, side, side)
    middle = c_in * expand
    x = net.add("Clip", net.conv("input", middle, 1))
    x = net.add("Clip", net.conv(x, middle, kernel, stride, middle))
    x = net.conv(x, c_out, 1)
    return net.works(net.add("Add", x, "input") if skip else x)


@dataclass(frozen=True)
class Problem:
    """Measured times of graphs, as counts of distinct work.

    Attributes:
        works: distinct work.
        counts: [graphs x works] how often.
        measured_ms: [graphs].
        calls: whether a measured time holds the price of a call.
    """

    works: tuple[Work, ...]
    counts: np.ndarray
    measured_ms: np.ndarray
    calls: bool

    def predict(self, device: Device) -> np.ndarray:
        times = np.array([device.node_ms(work) for work in self.works])
        return self.counts @ times + (device.call.call_ms if self.calls else 0.0)


def problem(graphs: Sequence[Counter[Work]], measured_ms: Sequence[float], calls: bool) -> Problem:
    works = tuple(dict.fromkeys(work for graph in graphs for work in graph))
    counts = np.array([[graph[work] for work in works] for graph in graphs], float)
    return Problem(works, counts, np.array(measured_ms), calls)


Free = dict[str, float]
"""Parameters to fit, with where to start: `call_ms`, `memory.KEY`, `KIND.KEY`, `kernel.SIDE`."""


def with_parameters(device: Device, values: Free) -> Device:
    """The device with some parameters replaced."""
    kinds = dict(device.kinds)
    for name, value in values.items():
        section, _, key = name.partition(".")
        if name == "call_ms":
            device = replace(device, call=replace(device.call, call_ms=value))
        elif section == "memory":
            device = replace(device, memory=replace(device.memory, **{key: value}))
        elif section == "kernel":
            costs = dict(kinds["depthwise"].kernel_cost) | {float(key): value}
            pairs = tuple(sorted(costs.items()))
            kinds["depthwise"] = replace(kinds["depthwise"], kernel_cost=pairs)
        else:
            kinds[section] = replace(kinds[section], **{key: value})
    return replace(device, kinds=kinds)


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    relative = predicted / measured - 1
    return {
        "rmspe": float(np.sqrt(np.mean(relative**2))),
        "bias": float(np.mean(relative)),
        "kendall_tau": float(kendalltau(predicted, measured)[0]),
    }


def calibrate(data: Problem, device: Device, start: Free) -> dict[str, object]:
    """Fits on the even rows, tells errors on the odd ones."""
    names = list(start)

    def device_of(logs: np.ndarray) -> Device:
        return with_parameters(device, dict(zip(names, np.exp(logs).tolist(), strict=True)))

    def residual(logs: np.ndarray) -> np.ndarray:
        # A weak pull to the start: what the data do not tell stays where it was.
        pull = 0.02 * (logs - first)
        fitted = np.log(data.predict(device_of(logs))[::2] / data.measured_ms[::2])
        return np.concatenate([fitted, pull])

    first = np.log(list(start.values()))
    solution = least_squares(residual, first, loss="soft_l1", f_scale=0.1)
    fitted = dict(zip(names, np.exp(solution.x).tolist(), strict=True))
    shipped = data.predict(device)
    scale = float(np.exp(np.median(np.log(data.measured_ms / shipped))))
    return {
        "rows": len(data.measured_ms),
        "fitted": fitted,
        "held_out": errors(data.predict(device_of(solution.x))[1::2], data.measured_ms[1::2]),
        "shipped_scale": scale,
        "shipped_scaled": errors(shipped * scale, data.measured_ms),
    }


_NASBENCH = {
    "pixel3_cpu": ("cpu_pixel3(HW-NAS-Bench)", "snapdragon845-cpu"),
    "cortex_a76_cpu": ("cpu_cortexA76_tflite(nn-Meter)", "snapdragon845-cpu"),
    "hexagon690_dsp": ("dsp_sd855_hexagon690(Eagle)", "hexagon685-dsp"),
    "myriad_vpu": ("vpu_myriad_openvino(nn-Meter)", "myriadx-vpu"),
}


def nasbench_problems(
    file: Path, names: Sequence[str] = tuple(_NASBENCH), every: int = 1
) -> dict[str, Problem]:
    """Measured NAS-Bench-201 networks by device; `every`-th row of the file."""
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))[::every]
    graphs = [nasbench_network([int(o) for o in r["edges_op_idx"].split("-")]) for r in rows]
    problems = {}
    for name in names:
        column = _NASBENCH[name][0]
        kept = [(g, float(r[column])) for g, r in zip(graphs, rows, strict=True)]
        kept = [(graph, value) for graph, value in kept if value > 0]
        problems[name] = problem([g for g, _ in kept], [v for _, v in kept], calls=True)
    return problems


_BLOCK = re.compile(
    r"expanded_conv-input:(\d+)x\d+x(\d+)-output:\d+x\d+x(\d+)-expand:(\d+)-kernel:(\d+)-"
    r"stride:(\d+)-idskip:(\d):\s+count: \d+\s+mean: ([\d.]+)"
)


def pixel1_problem(file: Path) -> Problem:
    """Measured MBConv blocks; a table of a phone's operators, without the price of a call."""
    blocks = [
        (mbconv(*map(int, m.groups()[:6]), skip=m[7] == "1"), float(m[8]))
        for m in _BLOCK.finditer(file.read_text())
    ]
    return problem([graph for graph, _ in blocks], [value for _, value in blocks], calls=False)


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
def main(as_json: bool) -> None:
    folder = os.environ.get("HURRICANE_DATA")
    if not folder:
        click.echo("skipped: HURRICANE_DATA does not name the folder of measurements", err=True)
        if as_json:
            click.echo(json.dumps({"skipped": "HURRICANE_DATA is not set"}))
        return
    latency = Path(folder) / "latency"
    for name in ("nasbench201_devices_ms.csv", "pixel1_proxyless.yaml"):
        if not (latency / name).is_file():
            click.echo(f"error: {latency / name} does not exist", err=True)
            sys.exit(1)
    results: dict[str, object] = {}
    for name, data in nasbench_problems(latency / "nasbench201_devices_ms.csv").items():
        device = load_device(_NASBENCH[name][1])
        start = {
            "call_ms": max(device.call.call_ms, 0.1),
            "memory.node_ms": device.memory.node_ms,
            "memory.on_chip_gbs": device.memory.on_chip_gbs,
            "dense.gmacs": device.kinds["dense"].gmacs,
            "pointwise.gmacs": device.kinds["pointwise"].gmacs,
            "pool.traffic": device.kinds["pool"].traffic,
        }
        results[name] = calibrate(data, device, start)
    cpu = load_device("snapdragon845-cpu")
    start = {
        "memory.node_ms": cpu.memory.node_ms,
        "pointwise.gmacs": cpu.kinds["pointwise"].gmacs,
        "depthwise.gmacs": cpu.kinds["depthwise"].gmacs,
        "kernel.5": dict(cpu.kinds["depthwise"].kernel_cost)[5.0],
        "kernel.7": dict(cpu.kinds["depthwise"].kernel_cost)[7.0],
    }
    results["pixel1_cpu"] = calibrate(pixel1_problem(latency / "pixel1_proxyless.yaml"), cpu, start)
    for name, result in results.items():
        click.echo(f"{name}: {json.dumps(result, indent=1)}")
    if as_json:
        click.echo(json.dumps(results))


if __name__ == "__main__":
    main()
