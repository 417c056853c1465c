"""`.tflite` files compute what their ONNX graphs compute, with the nodes that they should have."""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hurricane.ops.backbone import POOL_NAME, load_backbone, shipped_backbones
from hurricane.ops.calibration import random_samples
from hurricane.ops.errors import BadRequest, HurricaneError, UnsupportedNode
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.pool import POOL, Operator
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite import quantise_tflite, write_tflite
from hurricane.ops.tflite import writer as writer_module
from hurricane.ops.tflite.flatbuffer import pack_model, schema, unpack_model

TOLERANCE = 1e-5
"""Largest error of an output over the largest output."""

SMALLEST_SQNR = 30.0
"""Decibels, int8 against fp32."""

EVEN = LayerShape(8, 10, 8, 12, 2)
ODD = LayerShape(9, 7, 8, 12, 2)
SAME_SHAPE = LayerShape(6, 10, 12, 12, 1)
WIDER = LayerShape(5, 5, 8, 20, 1)
TWICE_AS_WIDE = LayerShape(5, 5, 8, 16, 1)  # the branches of Choice have equal shapes

KINDS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}


# --- Running and reading


def run_onnx(content: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def interpreter(content: bytes) -> Interpreter:
    opened = Interpreter(model_content=content, num_threads=1)
    opened.allocate_tensors()
    return opened


def run_tflite(content: bytes, x: np.ndarray) -> np.ndarray:
    """Output for an input as ONNX has them (NCHW, float32), whatever the file takes."""
    opened = interpreter(content)
    (given,), (returned,) = opened.get_input_details(), opened.get_output_details()
    values = np.moveaxis(x, 1, -1)
    if given["dtype"] == np.int8:
        scale, zero = given["quantization"]
        values = np.clip(np.round(values / scale) + zero, -128, 127).astype(np.int8)
    opened.set_tensor(given["index"], values)
    opened.invoke()
    y = opened.get_tensor(returned["index"])
    if returned["dtype"] == np.int8:
        scale, zero = returned["quantization"]
        y = (y.astype(np.float32) - zero) * scale
    return np.moveaxis(y, -1, 1) if y.ndim == 4 else y


def image_of(content: bytes, seed: int = 100) -> np.ndarray:
    """A random input that fits an ONNX graph."""
    dims = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim
    return random_samples([d.dim_value for d in dims][1:], 1, seed)


def assert_computes_the_same(onnx_content: bytes, tflite: bytes, label: object = "") -> None:
    x = image_of(onnx_content)
    expected, got = run_onnx(onnx_content, x), run_tflite(tflite, x)
    assert got.shape == expected.shape, label
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max(), label


def sqnr(expected: np.ndarray, got: np.ndarray) -> float:
    """Signal over quantisation noise, in decibels."""
    expected = expected.astype(np.float64)
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


def operators(tflite: bytes) -> list[tuple[str, Any]]:
    """Kind and options of each operator, in order."""
    model = unpack_model(tflite)
    kinds = [KINDS[code.builtinCode] for code in model.operatorCodes]
    return [(kinds[o.opcodeIndex], o.builtinOptions) for o in model.subgraphs[0].operators]


def counts(tflite: bytes) -> dict[str, int]:
    """How often each kind occurs, and how many operators have an activation fused in."""
    found = collections.Counter(kind for kind, _ in operators(tflite))
    fused = [o for _, o in operators(tflite) if getattr(o, "fusedActivationFunction", 0)]
    return {**found, "fused": len(fused)}


def expected_counts(op: Operator, shape: LayerShape) -> dict[str, int]:
    """What a graph of the pool should consist of, by its definition in docs/operators.md."""
    even = shape.height % 2 == 0 or shape.width % 2 == 0
    keeps, choice = shape.keeps_shape, op.family == "Choice"
    split = choice and keeps
    branches = 2 if choice and not split else 1
    return {
        "PAD": branches if shape.stride == 2 and even else 0,
        "TRANSPOSE": int(choice),
        "RESHAPE": 2 * choice,
        "SPLIT": int(split),
        "CONCATENATION": int(choice),
        "MEAN": int(op.se),
        "ADD": int(op.se) + (op.family == "MB" and keeps),
        "MUL": 3 * op.se,
        "fused": 2 * op.se
        + {"SEP": 2, "MB": 2, "Choice": (3 if op.kernel == 0 else 2) + branches - 1}[op.family],
        "RELU": 0,
        "RELU6": 0,
    }


@functools.cache
def graph(name: str, shape: LayerShape, gate: str = "h-swish") -> bytes:
    return export_operator(name, shape, gate)


@functools.cache
def written(name: str, shape: LayerShape) -> bytes:
    return write_tflite(graph(name, shape))


@functools.cache
def network() -> bytes:
    operators = ["SEP_7_SE", "Choice_x", "MB_3_6_SE", "Choice_5_SE", "MB_5_3", "SEP_3", "MB_7_1"]
    return export_architecture(load_backbone("digits32"), operators)


# --- fp32


@pytest.mark.parametrize("shape", [EVEN, ODD, SAME_SHAPE, WIDER], ids=str)
def test_every_operator_computes_what_onnxruntime_computes_with_the_expected_nodes(shape):
    for op in POOL:
        tflite = written(op.name, shape)
        assert_computes_the_same(graph(op.name, shape), tflite, op)
        found, expected = counts(tflite), expected_counts(op, shape)
        assert {kind: found.get(kind, 0) for kind in expected} == expected, op


def test_operators_with_the_hard_sigmoid_gate_do_too():
    for op in POOL:
        if op.se:
            content = graph(op.name, SAME_SHAPE, "hard-sigmoid")
            tflite = write_tflite(content)
            assert_computes_the_same(content, tflite, op)
            found = counts(tflite)
            expected = {**expected_counts(op, SAME_SHAPE), "MUL": 2}
            assert {kind: found.get(kind, 0) for kind in expected} == expected, op


@pytest.mark.parametrize("name", shipped_backbones())
def test_stems_heads_and_pools_do_too(name):
    backbone = load_backbone(name)
    stem, head = backbone.stem_shape, backbone.head_shape
    pieces = [(backbone.stem_name, stem), (backbone.head_name, head), (POOL_NAME, SAME_SHAPE)]
    for piece, shape in pieces:
        assert_computes_the_same(graph(piece, shape), written(piece, shape), piece)
    assert counts(written(backbone.head_name, head)) == {
        "CONV_2D": 1,
        "MEAN": 1,
        "RESHAPE": 1,
        "FULLY_CONNECTED": 1,
        "fused": 1,
    }


def test_whole_networks_do_too():
    assert_computes_the_same(network(), write_tflite(network()))
    content = export_architecture(load_backbone("cifar32"), ["Choice_3", "MB_3_3_SE", "SEP_5"] * 4)
    assert_computes_the_same(content, write_tflite(content))


def assert_xnnpack_takes_all(tflite: bytes) -> None:
    """One delegated partition from the input to the output, so nothing is left between."""
    delegates = [n for n in interpreter(tflite)._get_ops_details() if n["op_name"] == "DELEGATE"]
    assert len(delegates) == 1
    graph = unpack_model(tflite).subgraphs[0]
    assert list(delegates[0]["outputs"]) == list(graph.outputs)
    assert set(graph.inputs) <= set(delegates[0]["inputs"])


@pytest.mark.parametrize("name", ["MB_5_3_SE", "Choice_x_SE", "Choice_7"])
@pytest.mark.parametrize("shape", [EVEN, SAME_SHAPE], ids=str)
def test_xnnpack_takes_every_node_in_fp32_fp16_and_int8(name, shape):
    samples = random_samples((shape.in_channels, shape.height, shape.width))
    assert_xnnpack_takes_all(written(name, shape))
    assert_xnnpack_takes_all(write_tflite(graph(name, shape), weights="fp16"))
    assert_xnnpack_takes_all(quantise_tflite(written(name, shape), samples))


# --- The file


def vectors_of_buffers(tflite: bytes) -> list[tuple[int, int]]:
    """Offset and length of each buffer's data in the file."""
    model = schema.Model.GetRootAs(tflite)
    found = []
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        assert buffer.Offset() == buffer.Size() == 0, "data lies outside the flatbuffer"
        if not buffer.DataIsNone():
            field = buffer._tab.Offset(4)
            found.append((buffer._tab.Vector(field), buffer.DataLength()))
    return found


@pytest.mark.parametrize(
    ("name", "shape"),
    [("Choice_x_SE", SAME_SHAPE), ("SEP_3", LayerShape(2, 2, 512, 1024, 1))],
    ids=str,
)
def test_every_buffer_is_aligned_and_inside_the_flatbuffer(name, shape):
    """litert-quantizer puts large buffers behind it, where older readers do not look."""
    samples = random_samples((shape.in_channels, shape.height, shape.width), 1)
    files = [write_tflite(graph(name, shape), metadata={"odd": b"123"}), written(name, shape)]
    files += [write_tflite(graph(name, shape), weights="fp16"), quantise_tflite(files[0], samples)]
    for content in files:
        vectors = vectors_of_buffers(content)
        assert vectors
        assert all(offset % 16 == 0 for offset, _ in vectors)


def test_names_are_unique_and_the_signature_names_input_and_output():
    for content in (write_tflite(network()), write_tflite(network(), weights="fp16")):
        names = [tensor.name for tensor in unpack_model(content).subgraphs[0].tensors]
        assert len(set(names)) == len(names)
        signature = interpreter(content).get_signature_list()
        assert signature == {"serving_default": {"inputs": ["input"], "outputs": ["output"]}}


def test_operators_have_the_versions_that_tensorflow_gives_them():
    shape = EVEN
    samples = random_samples((shape.in_channels, shape.height, shape.width), 1)
    fp32 = written("Choice_3_SE", shape)
    fp16 = write_tflite(graph("Choice_3_SE", shape), weights="fp16")
    head = LayerShape(2, 2, 8, 4, 1)
    int8_head = quantise_tflite(written("head:16", head), random_samples((8, 2, 2), 1))

    def versions(content: bytes) -> dict[str, int]:
        codes = unpack_model(content).operatorCodes
        return {KINDS[code.builtinCode]: code.version for code in codes}

    assert versions(fp32) == {**dict.fromkeys(versions(fp32), 1), "TRANSPOSE": 4}
    assert versions(fp16)["DEQUANTIZE"] == 3
    int8 = versions(quantise_tflite(fp32, samples))
    assert int8 == {
        "PAD": 2,
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "MEAN": 2,
        "ADD": 2,
        "MUL": int8["MUL"],  # 3 where its product can be larger than its output's scale
        "CONCATENATION": 2,
        "RESHAPE": 1,
        "TRANSPOSE": 4,
    }
    assert int8["MUL"] in (2, 3)
    assert versions(int8_head)["FULLY_CONNECTED"] == 4


def test_metadata_travels_inside_in_int8_too():
    pieces = {"preprocessing.json": b'{"mean": [0.5]}', "labels.txt": b"zero\none\n"}
    content = write_tflite(graph("SEP_3", SAME_SHAPE), metadata=pieces)
    turned = write_tflite(graph("SEP_3", SAME_SHAPE), metadata=dict(reversed(list(pieces.items()))))
    assert content == turned
    int8 = quantise_tflite(content, random_samples((12, 6, 10), 1))
    for file in (content, int8):
        model = unpack_model(file)
        found = {m.name.decode(): bytes(model.buffers[m.buffer].data) for m in model.metadata}
        assert found == pieces


@pytest.mark.process
def test_writing_twice_gives_equal_bytes_in_another_process_too(tmp_path):
    graphs = [graph("Choice_x_SE", EVEN), network()]
    code = (
        "import hashlib, sys\n"
        "from pathlib import Path\n"
        "from hurricane.ops.calibration import random_samples\n"
        "from hurricane.ops.tflite import quantise_tflite, write_tflite\n"
        "for file in sys.argv[1:]:\n"
        "    content = Path(file).read_bytes()\n"
        "    fp32 = write_tflite(content, metadata={'b': b'2', 'a': b'1'})\n"
        "    size = (8, 8, 10) if '0' in Path(file).name else (1, 32, 32)\n"
        "    for made in (fp32, write_tflite(content, weights='fp16'),\n"
        "                 quantise_tflite(fp32, random_samples(size, 2))):\n"
        "        print(hashlib.sha256(made).hexdigest())\n"
    )
    files = [tmp_path / f"{index}.onnx" for index in range(len(graphs))]
    for file, content in zip(files, graphs, strict=True):
        file.write_bytes(content)
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, *map(str, files)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert [run.stderr for run in runs] == ["", ""]  # not even the runtime's first words
    seen = [run.stdout for run in runs]
    assert seen[0] == seen[1]
    here = hashlib.sha256(write_tflite(graphs[0], metadata={"a": b"1", "b": b"2"})).hexdigest()
    assert seen[0].splitlines()[0] == here


# --- fp16 weights


def with_weights(
    content: bytes, change: Callable[[np.ndarray], np.ndarray], ending: str = ""
) -> bytes:
    """An ONNX graph with weights and biases changed, all or those whose names end so."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(ending):
            values = np.asarray(change(numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def test_fp16_weights_compute_what_rounded_weights_compute_in_half_the_size():
    shape = LayerShape(6, 6, 64, 64, 1)
    content = graph("MB_3_6_SE", shape)
    rounded = with_weights(content, lambda values: values.astype(np.float16))
    half = write_tflite(content, weights="fp16")
    assert_computes_the_same(rounded, half)
    assert len(half) < 0.55 * len(written("MB_3_6_SE", shape))
    assert counts(half)["DEQUANTIZE"] == 2 * 5  # weights and bias of five convolutions


def test_weights_beyond_fp16_are_refused_by_name():
    content = with_weights(graph("SEP_3", SAME_SHAPE), lambda values: values * 1e7)
    assert write_tflite(content)
    with pytest.raises(UnsupportedNode, match="beyond fp16's range"):
        write_tflite(content, weights="fp16")
    with pytest.raises(BadRequest, match="choose fp32 or fp16"):
        write_tflite(content, weights="bf16")  # pyright: ignore[reportArgumentType]


# --- int8


@pytest.mark.parametrize("name", ["SEP_5", "MB_3_6_SE", "Choice_3_SE", "Choice_x"])
@pytest.mark.parametrize(
    "shape", [LayerShape(16, 16, 24, 48, 2), LayerShape(8, 8, 48, 48, 1)], ids=str
)
def test_int8_stays_near_fp32(name, shape):
    samples = random_samples((shape.in_channels, shape.height, shape.width))
    int8 = quantise_tflite(written(name, shape), samples)
    x = image_of(graph(name, shape))
    assert sqnr(run_onnx(graph(name, shape), x), run_tflite(int8, x)) >= SMALLEST_SQNR


def test_a_network_in_int8_stays_near_fp32_and_keeps_its_nodes():
    fp32 = write_tflite(network())
    int8 = quantise_tflite(fp32, random_samples((1, 32, 32)))
    x = image_of(network())
    assert sqnr(run_onnx(network(), x), run_tflite(int8, x)) >= SMALLEST_SQNR
    kinds = [[kind for kind, _ in operators(content)] for content in (fp32, int8)]
    # the half that passes a Choice may have to be given the other half's step
    assert [kind for kind in kinds[1] if kind != "QUANTIZE"] == kinds[0]


def test_int8_has_int8_inputs_and_outputs_and_weights_by_channel():
    int8 = quantise_tflite(written("Choice_3", EVEN), random_samples((8, 8, 10)))
    opened = interpreter(int8)
    details = [opened.get_input_details()[0], opened.get_output_details()[0]]
    assert [d["dtype"] for d in details] == [np.int8, np.int8]
    model = unpack_model(int8)
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        kind = KINDS[model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            kernel = tensors[operator.inputs[1]]
            channels = kernel.shape[0 if kind == "CONV_2D" else 3]
            assert kernel.type == schema.TensorType.INT8
            assert len(kernel.quantization.scale) == channels > 1


def scale_ratios(int8: bytes) -> list[float]:
    """For each channel of a convolution, (step of the input) × (of the weights) / (of the output);
    ai-edge-litert 2.3.0 aborts while loading where one is 256 or more."""
    model = unpack_model(int8)
    tensors = model.subgraphs[0].tensors
    ratios = []
    for operator in model.subgraphs[0].operators:
        kind = KINDS[model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            scales = [
                tensors[i].quantization.scale for i in (*operator.inputs[:2], *operator.outputs)
            ]
            ratios += list(scales[0] * scales[1] / scales[2])
    return ratios


@pytest.mark.parametrize(
    ("bias", "value"),
    [("reduce.bias", -100.0), ("expand.bias", -100.0), ("expand.bias", 0.0), ("0.0.bias", -100.0)],
)
def test_what_lets_nothing_through_in_calibration_can_be_loaded_and_is_right(bias, value):
    content = graph("MB_3_3_SE", SAME_SHAPE)
    content = with_weights(content, lambda values: np.full_like(values, value), bias)
    int8 = quantise_tflite(write_tflite(content), random_samples((12, 6, 10), 16))
    assert max(scale_ratios(int8)) < 256
    x = image_of(content)
    assert sqnr(run_onnx(content, x), run_tflite(int8, x)) >= SMALLEST_SQNR


def test_biases_of_channels_with_almost_no_weights_are_kept_in_int8():
    def fade(values: np.ndarray) -> np.ndarray:
        faded = values.copy()
        faded[::3] = 0.5 if values.ndim == 1 else 1e-9 * faded[::3]  # as weight decay leaves them
        return faded

    content = with_weights(graph("SEP_3", SAME_SHAPE), fade)
    int8 = quantise_tflite(write_tflite(content), random_samples((12, 6, 10), 16))
    x = image_of(content)
    assert sqnr(run_onnx(content, x), run_tflite(int8, x)) >= SMALLEST_SQNR


def test_xnnpack_takes_a_shortcut_that_adds_next_to_nothing():
    content = with_weights(
        graph("MB_3_3", SAME_SHAPE), lambda values: 1e-5 * values, "body.2.0.weight"
    )
    content = with_weights(content, lambda values: 1e-5 * values, "body.2.0.bias")
    assert_xnnpack_takes_all(quantise_tflite(write_tflite(content), random_samples((12, 6, 10))))


def test_samples_are_turned_to_the_files_layout():
    """One loud channel, which the weights take out again."""
    weights = np.ones((4, 1, 1, 1), np.float32)
    weights[0] = 0
    content = model_of([node("Conv", "x", "w", group=4)], {"w": weights}, (1, 4, 5, 6))
    samples = random_samples((4, 5, 6))
    samples[:, 0] *= 100
    scale, _ = interpreter(quantise_tflite(write_tflite(content), samples)).get_output_details()[0][
        "quantization"
    ]
    assert scale == pytest.approx(2 / 255, rel=0.02)


def test_ranges_come_from_all_samples():
    quiet, loud = random_samples((8, 8, 10), 2), 4 * random_samples((8, 8, 10), 1)
    fp32 = written("SEP_3", EVEN)
    scales = [
        interpreter(quantise_tflite(fp32, samples)).get_input_details()[0]["quantization"][0]
        for samples in (loud, np.concatenate([loud, quiet]), np.concatenate([quiet, loud]))
    ]
    assert scales[0] == scales[1] == scales[2] == pytest.approx(8 / 255, rel=0.02)


def test_quantising_writes_nothing_to_the_console(capfd):
    quantise_tflite(write_tflite(network()), random_samples((1, 32, 32), 4))
    assert capfd.readouterr() == ("", "")


def test_random_samples_are_seeded_and_fill_their_range():
    samples = random_samples((3, 8, 9), 5, seed=1)
    assert samples.shape == (5, 3, 8, 9)
    assert samples.dtype == np.float32
    assert np.array_equal(samples, random_samples((3, 8, 9), 5, seed=1))
    assert not np.array_equal(samples, random_samples((3, 8, 9), 5, seed=2))
    assert samples.min() == pytest.approx(-1, abs=0.01)
    assert samples.max() == pytest.approx(1, abs=0.01)


def other_version(content: bytes) -> bytes:
    model = unpack_model(content)
    model.version = 4
    return pack_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "no .tflite file"),
        (lambda content: b"PK\x03\x04" + content[4:8][::-1] + content, "no .tflite file"),
        (lambda content: content[: len(content) // 2], "broken or cut short"),
        (lambda content: content[:12], "broken or cut short"),
        (other_version, "schema version 4"),
        (lambda content: quantise_tflite(content, random_samples((12, 6, 10), 1)), "no fp32 one"),
    ],
)
def test_what_is_no_fp32_tflite_is_refused(change, message):
    with pytest.raises(BadRequest, match=message):
        quantise_tflite(change(written("SEP_3", SAME_SHAPE)), random_samples((12, 6, 10), 1))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_samples_without_a_range_are_refused(value):
    samples = np.full((1, 12, 6, 10), value, np.float32)
    with pytest.raises(BadRequest, match="not finite, or nothing but zeros"):
        quantise_tflite(written("SEP_3", SAME_SHAPE), samples)


@pytest.mark.parametrize("shape", [(0, 12, 6, 10), (2, 6, 10, 12), (12, 6, 10), (1, 12, 10, 6)])
def test_samples_that_do_not_fit_are_refused_with_the_shape_that_does(shape):
    with pytest.raises(BadRequest, match=r"takes \[samples, 12, 6, 10\]"):
        quantise_tflite(written("SEP_3", SAME_SHAPE), np.zeros(shape, np.float32))


def test_what_litert_quantizer_cannot_do_is_an_error_with_its_words():
    broken = unpack_model(written("SEP_3", SAME_SHAPE))
    broken.subgraphs[0].operators[0].inputs = np.array([0, 0, 0], np.int32)
    with pytest.raises(HurricaneError, match="litert-quantizer failed: "):
        quantise_tflite(pack_model(broken), random_samples((12, 6, 10), 1))


# --- Nodes outside the pool


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...] = (1, 4, 6, 6),
    opset: int = 13,
    rank: int = 4,
    outputs: str = "y",
) -> bytes:
    """An ONNX graph from `x` to `y`, or to several."""
    tensors = [numpy_helper.from_array(v, name) for name, v in constants.items()]
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * rank)
            for y in outputs.split()
        ],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=7).SerializeToString()


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), out.split(), name=f"the {kind}", **attributes)


def array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


CONV = {"w": array(4, 4, 3, 3)}
SIX = {"zero": np.float32(0), "six": np.float32(6)}
LONG = np.array([1, 4, 36], np.int64)

UNKNOWN = {
    "constant": ([node("Constant", value_float=1.0)], {}, "attribute value_float"),
    "softmax": ([node("Softmax", "x")], {}, "known operators are Add, Clip"),
    "own domain": ([node("Relu", "x", domain="own")], {}, "domain 'own'"),
    "dilations": ([node("Conv", "x", "w", dilations=[2, 2])], CONV, r"dilations = \[2, 2\]"),
    "auto_pad": ([node("Conv", "x", "w", auto_pad="SAME_LOWER")], CONV, "auto_pad = b'SAME_LOWER'"),
    "groups": ([node("Conv", "x", "w", group=2)], {"w": array(4, 2, 3, 3)}, "2 groups of 2"),
    "channels": ([node("Conv", "x", "w")], {"w": array(4, 3, 3, 3)}, "1 groups of 3 channels"),
    "computed weights": ([node("Conv", "x", "x")], {}, "weights are no constant"),
    "clip": ([node("Clip", "x", "low", "six")], {**SIX, "low": np.float32(-1)}, "0 and 6"),
    "clip without a bound": ([node("Clip", "x", "zero")], SIX, "0 and 6"),
    "pool of dilations": (
        [node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])],
        {},
        r"dilations = \[2, 2\]",
    ),
    "concat of rows": ([node("Concat", "x", "x", axis=2)], {}, "axis = 2"),
    "concat with a constant": ([node("Concat", "x", "w", axis=1)], {"w": array(1, 4, 6, 6)}, "'w'"),
    "uneven split": (
        [node("Split", "x", "sizes", out="y z", axis=1)],
        {"sizes": np.array([1, 3], np.int64)},
        "equal parts",
    ),
    "split of rows": (
        [node("Split", "x", "sizes", out="y z", axis=2)],
        {"sizes": np.array([3, 3], np.int64)},
        "axis = 2",
    ),
    "reshape": ([node("Reshape", "x", "to")], {"to": LONG}, "channel shuffle"),
    "transpose": ([node("Transpose", "x", perm=[0, 1, 3, 2])], {}, "known operators are"),
    "flatten of pixels": ([node("Flatten", "x")], {}, "one pixel"),
    "flatten at 2": ([node("Flatten", "x", axis=2)], {}, "axis = 2"),
    "div by a value": ([node("Div", "x", "x")], {}, "no constant scalar"),
    "div by zero": ([node("Div", "x", "zero")], SIX, "other than zero"),
    "add by channel": ([node("Add", "x", "w")], {"w": array(1, 4, 1, 1)}, "'w'"),
    "mul of other rank": ([node("Mul", "x", "s")], {"s": np.ones((1,) * 5, "f4")}, "dimensions"),
}


RANKS = {
    "constant": 0,
    "reshape": 3,
    "flatten of pixels": 2,
    "flatten at 2": 2,
    "mul of other rank": 5,
}
"""Dimensions of the output, where they are not four."""


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_node_that_is_not_understood_is_named(case):
    nodes, constants, reason = UNKNOWN[case]
    with pytest.raises(UnsupportedNode, match=reason) as caught:
        write_tflite(model_of(nodes, constants, rank=RANKS.get(case, 4)))
    kind = nodes[0].op_type
    assert (caught.value.op_type, caught.value.node) == (kind, f"the {kind}")
    assert str(caught.value).startswith(f"{kind} node 'the {kind}' cannot be converted: ")
    again = pickle.loads(pickle.dumps(caught.value))  # as from a process of a pool
    assert (str(again), again.exit_status) == (str(caught.value), 2)


@pytest.mark.parametrize("attribute", [{"alpha": 2.0}, {"beta": 0.5}, {"transB": 0}])
def test_a_linear_with_other_attributes_is_named(attribute):
    attributes = {"transB": 1, **attribute}
    gemm = node("Gemm", "x", "w", "b", **attributes)
    constants = {"w": array(4, 4), "b": array(4)}
    with pytest.raises(UnsupportedNode, match=f"attribute {next(iter(attribute))} ="):
        write_tflite(model_of([gemm], constants, (1, 4), rank=2))


def test_a_shuffle_by_another_permutation_is_named():
    nodes = [
        node("Reshape", "x", "grouped", out="a"),
        node("Transpose", "a", out="b", perm=[0, 2, 1, 4, 3]),
        node("Reshape", "b", "flat"),
    ]
    shapes = {"grouped": [1, 2, 2, 6, 6], "flat": [1, 4, 6, 6]}
    constants = {name: np.array(v, np.int64) for name, v in shapes.items()}
    with pytest.raises(UnsupportedNode, match="perm") as caught:
        write_tflite(model_of(nodes, constants))
    assert caught.value.node == "the Transpose"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no ONNX model"),
        (b"no model at all", "no ONNX model"),
        (graph("SEP_3", SAME_SHAPE)[:200], "no ONNX model"),
        (model_of([node("Relu", "x")], {}, opset=14), "opset 13"),
        (model_of([node("Relu", "x")], {}, shape=(0, 4), rank=2), "fixed shape"),
        (model_of([node("Concat", "x", "w", axis=1)], {"w": array(1, 4, 5, 6)}), "do not fit"),
        (model_of([node("Relu", "x", out="z")], {"y": array(1, 4, 6, 6)}), "output 'y'"),
    ],
    ids=["empty", "text", "cut short", "opset", "open shape", "shapes", "constant output"],
)
def test_what_is_no_canonical_graph_is_refused(content, message):
    with pytest.raises(BadRequest, match=message):
        write_tflite(content)


@settings(max_examples=60, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    groups=st.sampled_from([1, 4]),
)
def test_convolutions_of_any_geometry_are_equal_with_one_pad_at_most(
    size, kernel, strides, pads, groups
):
    # a depthwise one has two outputs for each input
    weights = array(8, 4 // groups, *kernel)
    conv = node("Conv", "x", "w", strides=strides, pads=pads, group=groups)
    content = model_of([conv], {"w": weights}, (1, 4, *size))
    tflite = write_tflite(content)
    assert_computes_the_same(content, tflite)
    assert counts(tflite).get("PAD", 0) <= any(pads)


@settings(max_examples=40, derandomize=True)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(2, 3), st.integers(2, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    negative=st.booleans(),
)
def test_max_pools_of_any_geometry_are_equal_or_refused_where_zeros_would_win(
    size, kernel, strides, pads, negative
):
    pool = node("MaxPool", "a", kernel_shape=kernel, strides=strides, pads=pads)
    before = node("Add", "x", "low", out="a") if negative else node("Relu", "x", out="a")
    content = model_of([before, pool], {"low": np.float32(-9)}, (1, 4, *size))
    refused = False
    try:
        tflite = write_tflite(content)
    except UnsupportedNode as error:
        refused = "its padding is understood behind a Relu" in str(error)
        tflite = b""
    if not tflite:
        assert refused
        assert negative
        assert any(pads)
        return
    assert_computes_the_same(content, tflite)
    found = counts(tflite)
    assert found["MAX_POOL_2D"] == 1
    assert found.get("PAD", 0) <= (any(pads) and not negative)


def test_a_max_pool_in_int8_stays_near_fp32():
    nodes = [
        node("Relu", "x", out="a"),
        node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    content = model_of(nodes, {})
    int8 = quantise_tflite(write_tflite(content), random_samples((4, 6, 6), 4))
    codes = {KINDS[c.builtinCode]: c.version for c in unpack_model(int8).operatorCodes}
    assert codes["MAX_POOL_2D"] == 2
    x = image_of(content)
    assert sqnr(run_onnx(content, x), run_tflite(int8, x)) > 25


def test_activations_that_cannot_be_fused_stay_operators():
    nodes = [
        node("Conv", "x", "w", out="a"),
        node("Relu", "a", out="b"),
        node("Clip", "a", "zero", "six", out="c"),
        node("Add", "b", "c"),
    ]
    content = model_of(nodes, {"w": 5 * CONV["w"], **SIX})
    tflite = write_tflite(content)
    assert_computes_the_same(content, tflite)
    found = counts(tflite)
    assert (found["RELU"], found["RELU6"], found["fused"]) == (1, 1, 0)


def test_an_activation_is_not_fused_into_an_output_of_the_graph():
    nodes = [node("Conv", "x", "w", out="a"), node("Relu", "a")]
    tflite = write_tflite(model_of(nodes, CONV, outputs="a y"))
    found = counts(tflite)
    assert (found["CONV_2D"], found["RELU"], found["fused"]) == (1, 1, 0)
    signature = interpreter(tflite).get_signature_list()["serving_default"]
    assert signature["outputs"] == ["a", "y"]


def test_weights_of_two_convolutions_that_are_one_constant_get_two_names():
    nodes = [node("Conv", "x", "w", out="a"), node("Conv", "a", "w")]
    nodes[1].name = "another"
    content = model_of(nodes, CONV)
    tflite = write_tflite(content)
    assert_computes_the_same(content, tflite)
    names = [tensor.name for tensor in unpack_model(tflite).subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    int8 = quantise_tflite(tflite, random_samples((4, 6, 6)))
    x = image_of(content)
    assert sqnr(run_onnx(content, x), run_tflite(int8, x)) >= SMALLEST_SQNR


def test_a_clip_whose_bound_is_computed_is_not_taken_for_an_activation():
    nodes = [node("Add", "x", "six", out="a"), node("Clip", "six", "a", "six")]
    with pytest.raises(UnsupportedNode, match="0 and 6"):
        write_tflite(model_of(nodes, SIX, (), rank=0))


# --- These checks find what they are there for


def exchanged_weights(content: bytes) -> bytes:
    """The kernels of two convolutions of equal shape exchanged."""
    model = unpack_model(content)
    by_shape: dict[tuple[int, ...], Any] = {}
    for tensor in model.subgraphs[0].tensors:
        shape = tuple(tensor.shape)
        if len(shape) == 4 and model.buffers[tensor.buffer].data is not None:
            if shape in by_shape:
                first = by_shape[shape]
                first.buffer, tensor.buffer = tensor.buffer, first.buffer
                return pack_model(model)
            by_shape[shape] = tensor
    raise AssertionError("no two kernels of equal shape")


def swapped_shuffle(content: bytes) -> bytes:
    """The channel shuffle with groups and channels of its groups exchanged."""
    model = unpack_model(content)
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        if KINDS[model.operatorCodes[operator.opcodeIndex].builtinCode] == "TRANSPOSE":
            for index in (operator.inputs[0], operator.outputs[0]):
                tensors[index].shape = tensors[index].shape[[0, 1, 2, 4, 3]]
            first = model.subgraphs[0].operators[-3]
            shape = tensors[operator.inputs[0]].shape.astype(np.int32)
            first.builtinOptions.newShape = shape
            model.buffers[tensors[first.inputs[1]].buffer].data = shape.view(np.uint8)
            return pack_model(model)
    raise AssertionError("no channel shuffle")


def without_activation(content: bytes) -> bytes:
    """The first fused activation left out."""
    model = unpack_model(content)
    for operator in model.subgraphs[0].operators:
        if getattr(operator.builtinOptions, "fusedActivationFunction", 0):
            operator.builtinOptions.fusedActivationFunction = 0
            return pack_model(model)
    raise AssertionError("no fused activation")


@pytest.mark.parametrize(
    ("name", "shape", "mutate"),
    [
        ("Choice_3", TWICE_AS_WIDE, exchanged_weights),
        ("Choice_x", EVEN, exchanged_weights),
        ("Choice_3", SAME_SHAPE, swapped_shuffle),
        ("Choice_5_SE", EVEN, swapped_shuffle),
        ("MB_3_3", SAME_SHAPE, without_activation),
        ("SEP_3", EVEN, without_activation),
    ],
)
def test_a_mutated_file_is_found_by_its_outputs(name, shape, mutate):
    content = written(name, shape)
    mutated = mutate(pack_model(unpack_model(content)))
    assert mutated != content
    assert_computes_the_same(graph(name, shape), content)
    with pytest.raises(AssertionError):
        assert_computes_the_same(graph(name, shape), mutated)


@pytest.mark.parametrize("name", ["SEP_3", "SEP_7", "MB_5_3_SE", "Choice_3", "Choice_x_SE"])
def test_same_in_place_of_a_pad_is_found_by_outputs_and_by_counts(name, monkeypatch):
    monkeypatch.setattr(writer_module, "same_is_equal", lambda *axis: True)
    mutated = write_tflite(graph(name, EVEN))
    assert counts(mutated).get("PAD", 0) == 0
    assert expected_counts({op.name: op for op in POOL}[name], EVEN)["PAD"] > 0
    with pytest.raises(AssertionError):
        assert_computes_the_same(graph(name, EVEN), mutated)


def test_a_pad_in_place_of_same_is_found_by_counts(monkeypatch):
    monkeypatch.setattr(writer_module, "same_is_equal", lambda *axis: False)
    assert counts(write_tflite(graph("SEP_3", ODD)))["PAD"] == 1
    assert expected_counts({op.name: op for op in POOL}["SEP_3"], ODD)["PAD"] == 0


def test_unaligned_buffers_are_found(monkeypatch):
    monkeypatch.setattr("hurricane.ops.tflite.flatbuffer.BUFFER_ALIGNMENT", 1)
    vectors = vectors_of_buffers(write_tflite(graph("Choice_x_SE", EVEN), metadata={"a": b"123"}))
    assert any(offset % 16 for offset, _ in vectors)
