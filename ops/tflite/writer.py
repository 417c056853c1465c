"""Writes a `.tflite` from the canonical ONNX graph.

Values are NHWC throughout, where ONNX has NCHW. The nodes that the writer knows are those of
`_HANDLERS`; anything about a node that is not exactly understood is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx

from ..errors import BadRequest
from .flatbuffer import ModelBuilder, schema
from .onnx_graph import Node, OnnxGraph, is_relu6, read_graph

Weights = Literal["fp32", "fp16"]

_Kind = schema.BuiltinOperator
_Activation = schema.ActivationFunctionType
_Padding = schema.Padding

_NHWC = (0, 2, 3, 1)
_CHANNELS_LAST = 3
"""The axis of the channels in NHWC."""


def write_tflite(
    model: onnx.ModelProto | bytes,
    *,
    weights: Weights = "fp32",
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """Writes an ONNX graph as `.tflite`.

    Args:
        model: a canonical graph (`ops.export`) or its bytes, fixed shapes, values NCHW.
        weights: how weights and biases of convolutions and linears are stored; fp16 ones are
            turned back to fp32 by a DEQUANTIZE each when the model is loaded.
        metadata: pieces that travel inside the file, by name.

    Returns:
        The file's bytes. Inputs and outputs keep their names and are NHWC where they have
        four dimensions. Equal request, equal bytes.

    Raises:
        BadRequest: no ONNX model of the canonical opset, or unknown weights.
        UnsupportedNode: a node that the writer does not know, or not with these attributes.
    """
    if weights not in get_args(Weights):
        raise BadRequest(
            f"weights {weights!r} are unknown; choose {' or '.join(get_args(Weights))}"
        )
    graph = read_graph(model)
    conversion = _Conversion(graph, weights)
    for node in graph.nodes:
        conversion.convert(node)
    return conversion.finish(metadata or {})


class _Conversion:
    """What has been written so far of one graph."""

    def __init__(self, graph: OnnxGraph, weights: Weights) -> None:
        self.graph = graph
        self.builder = ModelBuilder("hurricane")
        self._half = weights == "fp16"
        self._tensors: dict[str, int] = {}  # the tensor that holds an ONNX value
        self._merged: set[Node] = set()  # nodes that an earlier one has taken in
        self._inputs = {name: self._add_tensor(name, graph.shapes[name]) for name in graph.inputs}

    def convert(self, node: Node) -> None:
        """Writes a node with those behind it that it takes in."""
        if node in self._merged:
            return
        handler = _HANDLERS.get(node.op_type)
        if handler is None:
            raise node.unsupported(f"known operators are {', '.join(sorted(_HANDLERS))}")
        handler(self, node)

    def finish(self, metadata: Mapping[str, bytes]) -> bytes:
        """The file, once all nodes are written."""
        for name in self.graph.outputs:
            if name not in self._tensors:
                raise BadRequest(f"output {name!r} of the ONNX model is a constant")
        outputs = {name: self._tensors[name] for name in self.graph.outputs}
        self.builder.signature(self._inputs, outputs)
        for name in sorted(metadata):
            self.builder.metadata(name, metadata[name])
        return self.builder.pack()

    def operator(self, code: int, inputs: list[int], output: int, options: object = None) -> None:
        """Adds an operator with one output."""
        self.builder.operator(code, inputs, [output], options)

    def source(self, node: Node, name: str) -> int:
        """The tensor of a value that a node reads."""
        if name not in self._tensors:
            raise node.unsupported(f"its input {name!r} is not a computed value")
        return self._tensors[name]

    def target(self, node: Node, name: str) -> int:
        """A new tensor for a value that a node writes."""
        return self._add_tensor(name, self.graph.shape(node, name))

    def activated_target(self, node: Node) -> tuple[int, int]:
        """The activation to fuse into a node, and a new tensor for the value behind it."""
        reader = self.graph.sole_reader(node.output, "Relu", "Clip")
        if reader is not None and reader.op_type == "Relu":
            self.merge(reader)
            return _Activation.RELU, self.target(reader, reader.output)
        if reader is not None and is_relu6(self.graph, reader):
            self.merge(reader)
            return _Activation.RELU6, self.target(reader, reader.output)
        return _Activation.NONE, self.target(node, node.output)

    def merge(self, *nodes: Node) -> None:
        """Marks nodes as taken in by an earlier one."""
        self._merged.update(nodes)

    def parameter(self, node: Node, name: str, values: np.ndarray) -> int:
        """A tensor of weights or biases, float32 when it is read."""
        values = np.ascontiguousarray(values, np.float32)
        if not self._half:
            return self.builder.constant(name, values)
        if np.any(np.abs(values) > np.finfo(np.float16).max):
            raise node.unsupported(f"{name!r} has values beyond fp16's range")
        stored = self.builder.constant(f"{name}/fp16", values.astype(np.float16))
        restored = self.builder.tensor(name, values.shape)
        self.operator(_Kind.DEQUANTIZE, [stored], restored, schema.DequantizeOptionsT())
        return restored

    def integers(self, node: Node, label: str, values: object) -> int:
        """A tensor of int32, such as axes or a shape."""
        return self.builder.constant(f"{node.name}/{label}", np.asarray(values, np.int32))

    def reshape(self, node: Node, source: int, target: int, shape: tuple[int, ...]) -> None:
        """A RESHAPE with its shape both as an input and as an option, for all readers."""
        options = schema.ReshapeOptionsT(newShape=np.array(shape, np.int32))
        self.operator(_Kind.RESHAPE, [source, self.integers(node, "shape", shape)], target, options)

    def _add_tensor(self, name: str, shape: tuple[int, ...]) -> int:
        nhwc = tuple(shape[axis] for axis in _NHWC) if len(shape) == 4 else shape
        self._tensors[name] = self.builder.tensor(name, nhwc)
        return self._tensors[name]


# --- Convolutions and linears


def _conv(conversion: _Conversion, node: Node) -> None:
    """Conv, [N, C, H, W] to [N, O, H', W']: CONV_2D or DEPTHWISE_CONV_2D, with a PAD if needed."""
    kernel = conversion.graph.constants.get(node.inputs[1])
    if kernel is None or kernel.ndim != 4:
        raise node.unsupported("its weights are no constant of four dimensions")
    size = list(kernel.shape[2:])
    attributes = node.attributes_over(
        auto_pad=b"NOTSET",
        dilations=[1, 1],
        group=1,
        kernel_shape=size,
        pads=[0, 0, 0, 0],
        strides=[1, 1],
    )
    node.require(attributes, auto_pad=b"NOTSET", dilations=[1, 1], kernel_shape=size)
    depthwise = _is_depthwise(conversion, node, attributes["group"], kernel)
    strides, pads = attributes["strides"], attributes["pads"]
    source, padding = _padded(conversion, node, size, strides, pads)
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = strides
    options.dilationHFactor = options.dilationWFactor = 1
    axes = _NHWC  # [O, C, kh, kw] becomes [O, kh, kw, C]
    if depthwise:  # [C·m, 1, kh, kw] becomes [1, kh, kw, C·m]; channel c·m + i reads c in both
        axes = (1, 2, 3, 0)
        options.depthMultiplier = kernel.shape[0] // attributes["group"]
    weights = conversion.parameter(node, node.inputs[1], kernel.transpose(axes))
    bias = _bias(conversion, node, kernel.shape[0])
    options.fusedActivationFunction, target = conversion.activated_target(node)
    code = _Kind.DEPTHWISE_CONV_2D if depthwise else _Kind.CONV_2D
    conversion.operator(code, [source, weights, bias], target, options)


def _is_depthwise(conversion: _Conversion, node: Node, groups: int, kernel: np.ndarray) -> bool:
    """Whether a Conv has a group for each channel, and more than one; refuses other groups."""
    channels = conversion.graph.shape(node, node.inputs[0])[1]
    if groups not in (1, channels) or groups * kernel.shape[1] != channels:
        raise node.unsupported(f"{groups} groups of {kernel.shape[1]} channels are not understood")
    return groups > 1


def _padded(
    conversion: _Conversion, node: Node, kernel: list[int], strides: list[int], pads: list[int]
) -> tuple[int, int]:
    """What a convolution or pool reads, and its padding: VALID, SAME, or VALID behind a PAD."""
    batch, channels, *size = conversion.graph.shape(node, node.inputs[0])
    out_size = conversion.graph.shape(node, node.output)[2:]
    source = conversion.source(node, node.inputs[0])
    axes = list(zip(size, out_size, kernel, strides, pads[:2], strict=True))
    read = [read_padding(*axis) for axis in axes]
    if not any(map(any, read)):
        return source, _Padding.VALID
    if all(same_is_equal(*axis) for axis in axes):
        return source, _Padding.SAME
    (top, bottom), (left, right) = read
    name = f"{node.name}/padded"
    padded = conversion.builder.tensor(
        name, (batch, size[0] + top + bottom, size[1] + left + right, channels)
    )
    paddings = conversion.integers(node, "paddings", [[0, 0], *read, [0, 0]])
    conversion.operator(_Kind.PAD, [source, paddings], padded, schema.PadOptionsT())
    return padded, _Padding.VALID


def read_padding(
    size: int, out_size: int, kernel: int, stride: int, before: int
) -> tuple[int, int]:
    """Pixels of padding along one axis that some output reads, before and after the input."""
    return before, max(0, (out_size - 1) * stride + kernel - size - before)


def same_is_equal(size: int, out_size: int, kernel: int, stride: int, before: int) -> bool:
    """Whether TFLite's SAME pads one axis as ONNX does: half before, rounded down, rest after."""
    read = read_padding(size, out_size, kernel, stride, before)
    return out_size == -(-size // stride) and read[0] == sum(read) // 2


def _bias(conversion: _Conversion, node: Node, channels: int) -> int:
    """The bias [channels] of a Conv or Gemm; zeros where it has none."""
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return conversion.parameter(node, f"{node.name}/bias", np.zeros(channels))
    bias = conversion.graph.constants.get(name)
    if bias is None or bias.shape != (channels,):
        raise node.unsupported("its bias is no constant with one value for each output channel")
    return conversion.parameter(node, name, bias)


def _gemm(conversion: _Conversion, node: Node) -> None:
    """Gemm, [N, K] to [N, O] with weights [O, K]: FULLY_CONNECTED."""
    attributes = node.attributes_over(alpha=1.0, beta=1.0, transA=0, transB=0)
    node.require(attributes, alpha=1.0, beta=1.0, transA=0, transB=1)
    kernel = conversion.graph.constants.get(node.inputs[1])
    if kernel is None or kernel.ndim != 2:
        raise node.unsupported("its weights are no constant of two dimensions")
    source = conversion.source(node, node.inputs[0])
    weights = conversion.parameter(node, node.inputs[1], kernel)
    bias = _bias(conversion, node, kernel.shape[0])
    inputs = [source, weights, bias]
    _activated(conversion, node, _Kind.FULLY_CONNECTED, inputs, schema.FullyConnectedOptionsT)


# --- Element by element


def _add(conversion: _Conversion, node: Node) -> None:
    _binary(conversion, node, _Kind.ADD, schema.AddOptionsT)


def _mul(conversion: _Conversion, node: Node) -> None:
    _binary(conversion, node, _Kind.MUL, schema.MulOptionsT)


def _binary(conversion: _Conversion, node: Node, code: int, options: Any) -> None:
    """Add or Mul of two values of equal rank, or of a value and a constant scalar."""
    node.attributes_over()
    ranks = {
        len(conversion.graph.shape(node, name))
        for name in (*node.inputs, node.output)
        if conversion.graph.scalar(name) is None
    }
    if len(ranks) != 1:
        raise node.unsupported("its inputs differ in their number of dimensions")
    inputs = [_operand(conversion, node, name) for name in node.inputs]
    _activated(conversion, node, code, inputs, options)


def _operand(conversion: _Conversion, node: Node, name: str) -> int:
    scalar = conversion.graph.scalar(name)
    if scalar is None:
        return conversion.source(node, name)
    return conversion.builder.constant(name, np.array([scalar], np.float32))


def _div(conversion: _Conversion, node: Node) -> None:
    """Div by a constant scalar: MUL by its reciprocal, because int8 has no DIV."""
    node.attributes_over()
    divisor = conversion.graph.scalar(node.inputs[1])
    if not divisor:
        raise node.unsupported("its divisor is no constant scalar other than zero")
    reciprocal = np.array([1.0 / divisor], np.float32)
    inputs = [
        conversion.source(node, node.inputs[0]),
        conversion.builder.constant(f"{node.name}/reciprocal", reciprocal),
    ]
    _activated(conversion, node, _Kind.MUL, inputs, schema.MulOptionsT)


def _activated(
    conversion: _Conversion, node: Node, code: int, inputs: list[int], options: Any
) -> None:
    """Adds an operator with the activation behind it; `options` is the class of its options."""
    activation, target = conversion.activated_target(node)
    conversion.operator(code, inputs, target, options(fusedActivationFunction=activation))


def _relu(conversion: _Conversion, node: Node) -> None:
    """Relu that could not be fused."""
    node.attributes_over()
    source = conversion.source(node, node.inputs[0])
    conversion.operator(_Kind.RELU, [source], conversion.target(node, node.output))


def _clip(conversion: _Conversion, node: Node) -> None:
    """Clip to 0 and 6 that could not be fused."""
    node.attributes_over()
    if not is_relu6(conversion.graph, node):
        raise node.unsupported("only a Clip to the constants 0 and 6 is known")
    source = conversion.source(node, node.inputs[0])
    conversion.operator(_Kind.RELU6, [source], conversion.target(node, node.output))


# --- Pooling and shapes


def _global_average_pool(conversion: _Conversion, node: Node) -> None:
    """GlobalAveragePool, [N, C, H, W] to [N, C, 1, 1]: MEAN over height and width."""
    node.attributes_over()
    if len(conversion.graph.shape(node, node.inputs[0])) != 4:
        raise node.unsupported("only inputs of four dimensions are known")
    inputs = [conversion.source(node, node.inputs[0]), conversion.integers(node, "axes", [1, 2])]
    options = schema.ReducerOptionsT(keepDims=True)
    conversion.operator(_Kind.MEAN, inputs, conversion.target(node, node.output), options)


def _max_pool(conversion: _Conversion, node: Node) -> None:
    """MaxPool, [N, C, H, W] to [N, C, H', W']: MAX_POOL_2D.

    ONNX pads with less than any value, a PAD with zeros: the same where no value is negative.
    """
    if len(conversion.graph.shape(node, node.inputs[0])) != 4 or len(node.outputs) != 1:
        raise node.unsupported("only one output, of an input of four dimensions, is known")
    attributes = node.attributes_over(
        auto_pad=b"NOTSET",
        ceil_mode=0,
        dilations=[1, 1],
        kernel_shape=None,
        pads=[0, 0, 0, 0],
        storage_order=0,
        strides=[1, 1],
    )
    node.require(attributes, auto_pad=b"NOTSET", ceil_mode=0, dilations=[1, 1], storage_order=0)
    size, strides, pads = (attributes[key] for key in ("kernel_shape", "strides", "pads"))
    source, padding = _padded(conversion, node, size, strides, pads)
    explicit = source != conversion.source(node, node.inputs[0])
    if explicit and not conversion.graph.is_never_negative(node.inputs[0]):
        raise node.unsupported("its padding is understood behind a Relu or a Clip to 0 and 6 only")
    options = schema.Pool2DOptionsT(padding=padding)
    options.strideH, options.strideW = strides
    options.filterHeight, options.filterWidth = size
    target = conversion.target(node, node.output)
    conversion.operator(_Kind.MAX_POOL_2D, [source], target, options)


def _split(conversion: _Conversion, node: Node) -> None:
    """Split of the channels into equal parts: SPLIT."""
    node.require(node.attributes_over(axis=0), axis=1)
    shapes = [conversion.graph.shape(node, name) for name in node.outputs]
    if len(shapes[0]) != 4 or len(set(shapes)) != 1:
        raise node.unsupported("only equal parts of the channels are known")
    axis = conversion.integers(node, "axis", _CHANNELS_LAST)
    source = conversion.source(node, node.inputs[0])
    targets = [conversion.target(node, name) for name in node.outputs]
    conversion.builder.operator(
        _Kind.SPLIT, [axis, source], targets, schema.SplitOptionsT(numSplits=len(targets))
    )


def _concat(conversion: _Conversion, node: Node) -> None:
    """Concat of channels: CONCATENATION."""
    node.require(node.attributes_over(axis=None), axis=1)
    if len(conversion.graph.shape(node, node.output)) != 4:
        raise node.unsupported("only values of four dimensions are known")
    inputs = [conversion.source(node, name) for name in node.inputs]
    options = schema.ConcatenationOptionsT(axis=_CHANNELS_LAST)
    conversion.operator(_Kind.CONCATENATION, inputs, conversion.target(node, node.output), options)


def _channel_shuffle(conversion: _Conversion, node: Node) -> None:
    """Channel shuffle: RESHAPE, one TRANSPOSE of five dimensions, RESHAPE.

    In ONNX it is [N, g·c, H, W] → Reshape [N, g, c, H, W] → Transpose [N, c, g, H, W]
    → Reshape [N, c·g, H, W]; here [N, H, W, g, c] becomes [N, H, W, c, g].
    """
    transpose = conversion.graph.sole_reader(node.output, "Transpose")
    last = conversion.graph.sole_reader(transpose.output, "Reshape") if transpose else None
    grouped = conversion.graph.shape(node, node.output)
    if transpose is None or last is None or len(grouped) != 5:
        raise node.unsupported("only the Reshape of a channel shuffle is known")
    for reshape in (node, last):
        reshape.attributes_over()
    transpose.require(transpose.attributes_over(perm=None), perm=[0, 2, 1, 3, 4])
    batch, groups, channels, height, width = grouped
    flat = (batch, groups * channels, height, width)
    if (
        conversion.graph.shape(node, node.inputs[0]) != flat
        or conversion.graph.shape(last, last.output) != flat
    ):
        raise node.unsupported("only the Reshape of a channel shuffle is known")
    conversion.merge(transpose, last)
    before = (batch, height, width, groups, channels)
    after = (batch, height, width, channels, groups)
    split = conversion.builder.tensor(node.output, before)
    shuffled = conversion.builder.tensor(transpose.output, after)
    conversion.reshape(node, conversion.source(node, node.inputs[0]), split, before)
    permutation = conversion.integers(transpose, "permutation", [0, 1, 2, 4, 3])
    conversion.operator(_Kind.TRANSPOSE, [split, permutation], shuffled, schema.TransposeOptionsT())
    conversion.reshape(
        last, shuffled, conversion.target(last, last.output), tuple(flat[a] for a in _NHWC)
    )


def _flatten(conversion: _Conversion, node: Node) -> None:
    """Flatten, [N, C, 1, 1] to [N, C]: RESHAPE. With more pixels NHWC's order would differ."""
    node.require(node.attributes_over(axis=1), axis=1)
    if conversion.graph.shape(node, node.inputs[0])[2:] != (1, 1):
        raise node.unsupported("only a Flatten of one pixel, [N, C, 1, 1], is known")
    source = conversion.source(node, node.inputs[0])
    shape = conversion.graph.shape(node, node.output)
    conversion.reshape(node, source, conversion.target(node, node.output), shape)


_HANDLERS: dict[str, Callable[[_Conversion, Node], None]] = {
    "Add": _add,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "MaxPool": _max_pool,
    "Mul": _mul,
    "Relu": _relu,
    "Reshape": _channel_shuffle,
    "Split": _split,
}
