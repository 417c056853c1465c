"""Artefacts for tests of backends: tiny graphs in every format, sound and broken.

A format that a target takes and that is not in `BROKEN` makes the conformance suite fail, so that
no target is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hurricane.agents.backends.base import TargetInfo
from hurricane.ops.artifacts import Recipe, choose_recipe, prepare, snpe_file

SHAPE = (1, 8, 12, 12)
UNKNOWN = "Nonsense"


def recipe_of(target: TargetInfo) -> Recipe:
    """How artefacts for a target are made."""
    return choose_recipe(target.formats, target.precision)


def convolutions(seed: int = 0, copies: int = 1, shape: tuple = SHAPE) -> bytes:
    """ONNX: convolutions 3×3 that keep the channels, each followed by a ReLU."""
    channels = shape[1]
    weights = np.random.default_rng(seed).normal(0, 0.1, (channels, channels, 3, 3))
    nodes, last = [], "input"
    for index in range(copies):
        output = "output" if index == copies - 1 else f"r{index}"
        conv = helper.make_node("Conv", [last, "w"], [f"c{index}"], f"conv{index}", pads=[1] * 4)
        nodes += [conv, helper.make_node("Relu", [f"c{index}"], [output], f"relu{index}")]
        last = output
    return onnx_of(nodes, [numpy_helper.from_array(weights.astype(np.float32), "w")], shape)


def onnx_of(nodes: list, initializers: list, shape: tuple, out_shape: tuple = ()) -> bytes:
    """An ONNX graph from `input` to `output`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(out_shape or shape))],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    return model.SerializeToString()


def made(target: TargetInfo, model: bytes) -> bytes:
    """A graph as the target takes it."""
    return prepare(model, recipe_of(target)).content


class Broken(NamedTuple):
    """Ways to break an artefact of a format; each takes a sound one.

    Attributes:
        unknown_operator: an operator becomes one that no runtime has.
        open_shape: the input's batch is not fixed.
        huge: a tensor between its operators takes more memory than the machine has.
    """

    unknown_operator: Callable[[bytes], bytes]
    open_shape: Callable[[bytes], bytes]
    huge: Callable[[bytes], bytes]


def _unknown_onnx_operator(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    node.op_type = UNKNOWN
    return model.SerializeToString()


def _open_onnx_shape(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model.SerializeToString()


def _huge_onnx(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    conv.attribute[0].ints[:] = [60_000] * 4  # pads: 120,012 pixels wide and high
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.dim_value = 120_010
    return model.SerializeToString()


def _tflite(change: Callable[[object], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        from hurricane.ops.tflite.flatbuffer import pack_model, unpack_model

        model = unpack_model(content)
        change(model)
        return pack_model(model)

    return changed


def _unknown_tflite_operator(model) -> None:
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = 10_000, 127


def _open_tflite_shape(model) -> None:
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)


def _huge_tflite(model) -> None:
    graph = model.subgraphs[0]
    for index in {*graph.inputs, *graph.outputs, *(i for o in graph.operators for i in o.outputs)}:
        tensor = graph.tensors[index]
        tensor.shape = np.array([1, 120_010, 120_010, tensor.shape[3]], np.int32)


def _snpe(change: Callable[[dict[str, bytes]], None]) -> Callable[[bytes], bytes]:
    """A change of an archive's members."""

    def changed(content: bytes) -> bytes:
        members = snpe_file._members(content)
        change(members)
        return snpe_file._archive(members, b"")

    return changed


def _snpe_size(size: bytes) -> Callable[[dict[str, bytes]], None]:
    """The first size of the input's shape becomes another."""

    def change(members: dict[str, bytes]) -> None:
        edges = members["edges.json"]
        members["edges.json"] = re.sub(rb'("shape": \[)\d+', rb"\g<1>" + size, edges)

    return change


_ONNX = Broken(_unknown_onnx_operator, _open_onnx_shape, _huge_onnx)
BROKEN = {
    "onnx": _ONNX,
    "onnx-qdq": _ONNX,
    "snpe": Broken(
        _snpe(lambda members: members.update({"model.dlc": b"PK"})),
        _snpe(_snpe_size(b"-1")),
        _snpe(_snpe_size(b"99999999")),
    ),
    "tflite": Broken(
        _tflite(_unknown_tflite_operator), _tflite(_open_tflite_shape), _tflite(_huge_tflite)
    ),
}
