"""`.tflite` artefacts for tests of the backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hurricane.ops.calibration import random_samples
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite import quantise_tflite, write_tflite
from hurricane.ops.tflite.flatbuffer import pack_model, schema, unpack_model

OPERATORS = ("SEP_5", "MB_3_3", "MB_5_6_SE", "Choice_3", "Choice_x_SE")
SHAPE = LayerShape(9, 11, 16, 16, 1)
CONV_2D, DEPTHWISE_CONV_2D = (
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
)


@functools.cache
def onnx_of(operator: str) -> bytes:
    return export_operator(operator, SHAPE)


@functools.cache
def fp32_of(operator: str) -> bytes:
    return write_tflite(onnx_of(operator))


@functools.cache
def int8_of(operator: str) -> bytes:
    samples = random_samples((SHAPE.in_channels, SHAPE.height, SHAPE.width))
    return quantise_tflite(fp32_of(operator), samples)


def convolution() -> bytes:
    """One CONV_2D of 1×1 on [1, 4, 4, 8], and nothing else."""
    weights = np.random.default_rng(0).normal(size=(8, 8, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    return write_tflite(model)


def changed(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The file with its model changed."""
    model = unpack_model(content)
    change(model)
    return pack_model(model)


def node_count(content: bytes) -> int:
    return len(unpack_model(content).subgraphs[0].operators)


def operators_of(content: bytes) -> list[int]:
    model = unpack_model(content)
    return [model.operatorCodes[o.opcodeIndex].builtinCode for o in model.subgraphs[0].operators]


def with_reverse(content: bytes, after: int, readers: int | None = None) -> bytes:
    """The file with a REVERSE_V2 along the channels, which XNNPACK does not take.

    Args:
        after: index of the node whose output is reversed.
        readers: how many of the nodes that read that output read the reversed one; None: all.
    """

    def change(model: Any) -> None:
        graph = model.subgraphs[0]
        code = schema.BuiltinOperator.REVERSE_V2
        model.operatorCodes.append(
            schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1)
        )
        axis = np.array([3], np.int32)
        model.buffers.append(schema.BufferT(data=np.frombuffer(axis.tobytes(), np.uint8)))
        source = int(graph.operators[after].outputs[0])
        like = graph.tensors[source]
        added = len(graph.tensors)
        graph.tensors += [
            schema.TensorT(
                name=b"axis",
                shape=np.array([1], np.int32),
                type=schema.TensorType.INT32,
                buffer=len(model.buffers) - 1,
                hasRank=True,
            ),
            schema.TensorT(
                name=b"reversed",
                shape=like.shape,
                type=like.type,
                quantization=like.quantization,
                buffer=0,
                hasRank=True,
            ),
        ]
        reading = [o for o in graph.operators if source in o.inputs][:readers]
        assert reading
        for operator in reading:
            operator.inputs = np.where(operator.inputs == source, added + 1, operator.inputs)
        graph.operators.insert(
            after + 1,
            schema.OperatorT(
                opcodeIndex=len(model.operatorCodes) - 1,
                inputs=np.array([source, added], np.int32),
                outputs=np.array([added + 1], np.int32),
                builtinOptionsType=schema.BuiltinOptions.ReverseV2Options,
                builtinOptions=schema.ReverseV2OptionsT(),
            ),
        )

    return changed(content, change)
