"""Quantised ONNX graphs compute what their fp32 graphs compute, in 8 bits from end to end."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from hurricane.agents.formats import checker_of
from hurricane.ops import onnx_qdq
from hurricane.ops.backbone import load_backbone
from hurricane.ops.calibration import random_samples
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.onnx_qdq import edges, quantise_onnx
from hurricane.ops.shapes import LayerShape

SMALLEST_SQNR = 30.0
"""Decibels, int8 against fp32."""

EVEN = LayerShape(8, 10, 8, 12, 2)
SAME_SHAPE = LayerShape(6, 10, 12, 12, 1)
SHAPES = [LayerShape(16, 16, 24, 48, 2), LayerShape(8, 8, 48, 48, 1)]
HEAD = LayerShape(4, 4, 32, 10, 1)
OPERATORS = ["SEP_5", "SEP_3_SE", "MB_3_6_SE", "MB_5_1", "Choice_3_SE", "Choice_x"]


# --- Making, running and reading


@functools.cache
def graph(name: str, shape: LayerShape, gate: str = "h-swish") -> bytes:
    return export_operator(name, shape, gate)


@functools.cache
def network() -> bytes:
    frame = load_backbone("cifar32")
    names = ["MB_3_3_SE", "Choice_3_SE", "SEP_5", "Choice_x"]
    return export_architecture(frame, [names[i % 4] for i in range(len(frame.layers))])


def size_of(content: bytes) -> list[int]:
    dims = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim
    return [d.dim_value for d in dims][1:]


def calibration(content: bytes) -> np.ndarray:
    return random_samples(size_of(content))


@functools.cache
def quantised(content: bytes) -> bytes:
    return quantise_onnx(content, calibration(content))


def in_onnxruntime(content: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Exact on processors without VNNI, too.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def in_openvino(content: bytes, x: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.asarray(core.compile_model(core.read_model(content), "CPU", settings)([x])[0])


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def sqnr(content: bytes, int8: bytes, x: np.ndarray, runtime: str = "onnxruntime") -> float:
    """Signal over quantisation noise of the int8 graph, in decibels."""
    expected = in_onnxruntime(content, x).astype(np.float64)
    sides = edges(int8)
    got = RUNTIMES[runtime](int8, sides.inputs[0].encode(x))
    noise = expected - sides.outputs[0].decode(got)
    return float(10 * np.log10((expected**2).sum() / (noise**2).sum()))


def nodes_of(content: bytes) -> list[onnx.NodeProto]:
    return list(onnx.load_from_string(content).graph.node)


def kinds(content: bytes) -> set[str]:
    return {node.op_type for node in nodes_of(content)}


def constants(content: bytes) -> dict[str, np.ndarray]:
    tensors = onnx.load_from_string(content).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def model_of(
    nodes: list[onnx.NodeProto],
    stored: dict[str, Any],
    shape: tuple[Any, ...] = (1, 4, 6, 6),
    types: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    inputs: str = "x",
    rank: int = 4,
) -> bytes:
    """An ONNX graph from `x` to `y`."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(x, types[0], shape) for x in inputs.split()],
        [helper.make_tensor_value_info("y", types[1], [None] * rank)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items()],
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(made, opset_imports=opsets, ir_version=7).SerializeToString()


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), out.split(), name=f"{kind}_{out}", **attributes)


def array(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONV = node("Conv", "x", "w")
PLAIN = model_of([CONV], {"w": array(4, 4, 3, 3)})


# --- Values


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_int8_stays_near_fp32(name, shape, runtime):
    content = graph(name, shape)
    x = random_samples(size_of(content), 1, seed=100)
    assert sqnr(content, quantised(content), x, runtime) >= SMALLEST_SQNR


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_stems_heads_hard_sigmoids_and_whole_networks_stay_near_fp32(runtime):
    stem = graph("stem", LayerShape(16, 16, 3, 16, 2))
    gate = graph("SEP_3_SE", SHAPES[0], "hard-sigmoid")
    for content in (stem, graph("head:64", HEAD), gate, network()):
        x = random_samples(size_of(content), 1, seed=100)
        assert sqnr(content, quantised(content), x, runtime) >= SMALLEST_SQNR


def test_runtimes_differ_by_little_from_the_operators_definition():
    from onnx.reference import ReferenceEvaluator

    content = quantised(graph("SEP_3", SAME_SHAPE))
    x = np.random.default_rng(5).integers(0, 256, (1, 12, 6, 10), dtype=np.uint8)
    model = onnx.load_from_string(content)
    model.opset_import[0].version = 19  # the oldest that the evaluator has DequantizeLinear of
    (expected,) = ReferenceEvaluator(model).run(None, {"input": x})
    for run in RUNTIMES.values():
        got = run(content, x)
        assert got.dtype == np.uint8
        assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
        assert np.mean(got != expected) < 0.02


# --- What the file consists of


@pytest.mark.parametrize("name", OPERATORS)
def test_every_node_reads_and_writes_8_bits_by_pairs(name):
    content = quantised(graph(name, SHAPES[1]))
    nodes = nodes_of(content)
    made_by = {out: n.op_type for n in nodes for out in n.output}
    read_by: dict[str, set[str]] = {}
    for each in nodes:
        for given in each.input:
            read_by.setdefault(given, set()).add(each.op_type)
    stored = constants(content)
    computing = [n for n in nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert "Conv" in {n.op_type for n in computing}
    for each in computing:
        values = [i for i in each.input if i not in stored]
        assert {made_by[i] for i in values} == {"DequantizeLinear"}, each.name
        assert set.union(*(read_by[o] for o in each.output)) == {"QuantizeLinear"}, each.name
    # those that are no computing in 8 bits, or that a range takes in
    assert not {"Relu", "Clip", "Div", "Constant"} & {n.op_type for n in computing}


def test_weights_are_int8_by_channel_and_symmetric_and_activations_uint8():
    content = quantised(graph("MB_3_6_SE", SHAPES[1]))
    stored = constants(content)
    dequantise = {n.output[0]: n for n in nodes_of(content) if n.op_type == "DequantizeLinear"}
    for each in nodes_of(content):
        if each.op_type == "Conv":
            source, kernel, bias = (dequantise[name].input for name in each.input)
            channels = stored[kernel[0]].shape[0]
            assert stored[source[2]].dtype == np.uint8
            assert (stored[kernel[0]].dtype, stored[kernel[1]].shape) == (np.int8, (channels,))
            assert not stored[kernel[2]].any()
            assert np.abs(stored[kernel[0]]).reshape(channels, -1).max(axis=1).min() == 127
            assert stored[bias[0]].dtype == np.int32


@pytest.mark.parametrize("content", [graph("Choice_3_SE", EVEN), network()], ids=["block", "whole"])
def test_the_file_is_sound_and_of_the_same_opset(content):
    int8 = quantised(content)
    check = checker_of("onnx")
    assert check is not None
    check(int8)
    model = onnx.load_from_string(int8)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
    assert (model.producer_name, model.producer_version) == ("hurricane", "")
    assert not model.metadata_props


def test_weights_take_a_quarter_of_the_room():
    content = graph("MB_3_6_SE", LayerShape(4, 4, 96, 96, 1))
    assert len(quantised(content)) < 0.3 * len(content)


def test_edges_are_the_8_bit_inputs_and_outputs_with_their_steps():
    samples = random_samples((3, 16, 16)) * np.float32(2) + np.float32(1)  # in [-1, 3)
    int8 = quantise_onnx(graph("stem", LayerShape(16, 16, 3, 16, 2)), samples)
    (given,), (returned,) = edges(int8).inputs, edges(int8).outputs
    assert (given.name, given.shape, given.dtype) == ("input", (1, 3, 16, 16), "uint8")
    assert given.scale == pytest.approx(4 / 255, rel=0.01)
    assert given.zero_point == 64
    assert (returned.name, returned.shape, returned.dtype) == ("output", (1, 16, 8, 8), "uint8")
    session = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"])
    for edge, seen in ((given, session.get_inputs()[0]), (returned, session.get_outputs()[0])):
        assert (edge.name, list(edge.shape), seen.type) == (seen.name, seen.shape, "tensor(uint8)")


def test_an_edge_turns_values_into_the_nearest_integers_and_back():
    edge = onnx_qdq.Edge("x", (1, 5), "uint8", 0.5, 10)
    values = np.array([-5.0, -0.26, 0.0, 1.6, 1000.0], np.float32)
    integers = edge.encode(values)
    assert integers.dtype == np.uint8
    assert integers.tolist() == [0, 9, 10, 13, 255]
    assert edge.decode(integers).dtype == np.float32
    assert edge.decode(integers).tolist() == [-5.0, -0.5, 0.0, 1.5, 122.5]


@pytest.mark.parametrize("content", [PLAIN, b"", b"no model"])
def test_what_is_not_quantised_has_no_edges(content):
    with pytest.raises(BadRequest, match=r"quantised|no ONNX model"):
        edges(content)


# --- Ranges


def test_the_range_is_that_of_all_samples_in_any_order():
    quiet, loud = random_samples((4, 6, 6), 3), 4 * random_samples((4, 6, 6), 1, seed=2)
    first, last = (
        edges(quantise_onnx(PLAIN, np.concatenate(both))).inputs[0].scale
        for both in ([quiet, loud], [loud, quiet])
    )
    assert first == last == pytest.approx((loud.max() - loud.min()) / 255)


def test_an_activation_that_lets_nothing_through_in_calibration_does_no_harm():
    bias = np.full(4, -1000, np.float32)
    nodes = [
        node("Conv", "x", "w", "b", out="a"),
        node("Relu", "a", out="r"),
        node("Add", "r", "x"),
    ]
    content = model_of(nodes, {"w": array(4, 4, 1, 1), "b": bias})
    x = random_samples((4, 6, 6), 1)
    for runtime in RUNTIMES:
        assert sqnr(content, quantised(content), x, runtime) >= SMALLEST_SQNR


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_bias_far_larger_than_its_weights_does_not_overflow(runtime):
    weights = np.full((8, 64, 3, 3), 1e-4, np.float32)
    bias = np.full(8, 27, np.float32)
    content = model_of([node("Conv", "x", "w", "b")], {"w": weights, "b": bias}, (1, 64, 6, 6))
    samples = np.abs(random_samples((64, 6, 6), 4))
    int8 = quantise_onnx(content, samples)
    assert sqnr(content, int8, samples[:1], runtime) >= SMALLEST_SQNR


def test_graphs_may_begin_with_an_activation_or_a_reshape():
    flat = np.array([1, 2, 2, 36], np.int64)
    for first in (node("Relu", "x", out="a"), node("Reshape", "x", "s", out="a")):
        content = model_of([first, node("Mul", "a", "k")], {"s": flat, "k": np.float32(3)})
        int8 = quantised(content)
        x = random_samples((4, 6, 6), 1, seed=9)
        assert sqnr(content, int8, x) >= SMALLEST_SQNR
        assert first.op_type in kinds(int8)


def test_a_division_by_a_constant_becomes_a_multiplication():
    content = model_of([node("Div", "x", "six")], {"six": np.float32(6)})
    assert kinds(quantised(content)) == {"Mul", "QuantizeLinear", "DequantizeLinear"}
    assert sqnr(content, quantised(content), random_samples((4, 6, 6), 1)) >= SMALLEST_SQNR


# --- Equal bytes


@pytest.mark.process
def test_quantising_twice_gives_equal_bytes_in_another_process_too(tmp_path):
    file = tmp_path / "graph.onnx"
    file.write_bytes(network())
    code = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from hurricane.ops.calibration import random_samples\n"
        "from hurricane.ops.onnx_qdq import quantise_onnx\n"
        "made = quantise_onnx(Path(sys.argv[1]).read_bytes(), random_samples((3, 32, 32), 2))\n"
        "print(hashlib.sha256(made).hexdigest())\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(file)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    here = hashlib.sha256(quantise_onnx(network(), random_samples((3, 32, 32), 2))).hexdigest()
    assert [run.stdout for run in runs] == [f"{here}\n"] * 2
    assert [run.stderr for run in runs] == ["", ""]


def test_quantising_in_threads_gives_the_same_and_writes_nothing(capfd):
    content = graph("Choice_3_SE", SHAPES[1])
    samples = calibration(content)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: quantise_onnx(content, samples), range(8)))
    assert set(made) == {quantised(content)}
    assert capfd.readouterr() == ("", "")


def test_the_given_graph_is_not_changed():
    content = graph("SEP_3", SAME_SHAPE)
    before = bytes(content)
    assert quantised(content) != before
    assert content == before


# --- What is refused


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_samples_without_a_range_are_refused(value):
    with pytest.raises(BadRequest, match="not finite, or nothing but zeros"):
        quantise_onnx(PLAIN, np.full((1, 4, 6, 6), value, np.float32))


@pytest.mark.parametrize("shape", [(0, 4, 6, 6), (2, 6, 6, 4), (4, 6, 6), (1, 4, 6, 5)])
def test_samples_that_do_not_fit_are_refused_with_the_shape_that_does(shape):
    with pytest.raises(BadRequest, match=r"takes \[samples, 4, 6, 6\]"):
        quantise_onnx(PLAIN, np.ones(shape, np.float32))


def test_samples_that_lead_beyond_float32_are_refused_with_the_tensor():
    with pytest.raises(BadRequest, match="'y' has values that are not finite"):
        quantise_onnx(PLAIN, np.full((1, 4, 6, 6), 3e38, np.float32))


RELU = [node("Relu", "x")]
REFUSED = {
    "empty": (b"", "no ONNX model"),
    "text": (b"no model at all", "no ONNX model"),
    "cut short": (PLAIN[:100], "no ONNX model"),
    "quantised": (quantise_onnx(PLAIN, random_samples((4, 6, 6), 1)), "quantised already"),
    "fp16": (model_of(RELU, {}, types=(TensorProto.FLOAT16,) * 2), "'x' is not float32"),
    "integers out": (
        model_of([node("ArgMax", "x")], {}, types=(TensorProto.FLOAT, TensorProto.INT64)),
        "'y' is not float32",
    ),
    "two inputs": (model_of([node("Add", "x", "z")], {}, inputs="x z"), "has 2 inputs"),
    "open shape": (model_of(RELU, {}, shape=("n", 4, 6, 6)), "no fixed shape"),
    "batches": (model_of(RELU, {}, shape=(2, 4, 6, 6)), "does not fit the model's input"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_fp32_graph_with_one_image_is_refused(case):
    content, message = REFUSED[case]
    with pytest.raises(BadRequest, match=message):
        quantise_onnx(content, random_samples((4, 6, 6), 1))


@pytest.mark.parametrize(
    "nodes",
    [[node("NoSuchOperator", "x")], [node("Conv", "x", "nothing")], [node("Conv", "x", "wrong")]],
)
def test_what_the_library_cannot_do_is_one_line(nodes):
    content = model_of(nodes, {"wrong": array(4, 3, 3, 3)})
    with pytest.raises(HurricaneError, match="the graph cannot be quantised: ") as caught:
        quantise_onnx(content, random_samples((4, 6, 6), 1))
    assert "\n" not in str(caught.value)


def test_a_missing_onnxruntime_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(HurricaneError, match=r"'onnxruntime'.*hurricane-nas\[host\]"):
        quantise_onnx(PLAIN, random_samples((4, 6, 6), 1))
