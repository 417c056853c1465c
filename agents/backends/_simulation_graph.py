"""From an ONNX graph to the work of each of its nodes, for simulated devices.

Nothing here knows a device: what is read is how much there is to compute and to move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadRequest, UnsupportedOperator
from .base import TensorInfo

COMPUTE_KINDS = ("dense", "pointwise", "depthwise", "linear")
TRAFFIC_KINDS = ("elementwise", "broadcast", "gate", "pool", "global_pool", "copy", "transpose")
KINDS = (*COMPUTE_KINDS, *TRAFFIC_KINDS, "view", "unknown")
"""What a node may be. `broadcast` is elementwise with an input that is one number a channel (the
multiply of squeeze-and-excitation), `gate` is elementwise on such channel vectors alone, `view`
changes no data, `unknown` is any op type that is not listed below."""

_VIEWS = {"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"}
_COPIES = {"Concat", "Expand", "Gather", "Pad", "Resize", "Slice", "Split", "Tile", "Upsample"}
_TRANSPOSES = {"DepthToSpace", "SpaceToDepth", "Transpose"}
_POOLS = {"AveragePool", "LpPool", "MaxPool"}
_GLOBAL_POOLS = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean", "ReduceSum"}
_ELEMENTWISE = {
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "HardSigmoid", "HardSwish",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "Log", "LogSoftmax",
    "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu",
    "Round", "Selu", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh",
    "ThresholdedRelu", "Where",
}  # fmt: skip
_STRIPPED_BYTES = 1024
"""Larger initialisers are weights; smaller ones may be shapes, which inference must read."""


@dataclass(frozen=True)
class Work:
    """What one node has to do.

    Attributes:
        op_type: of ONNX.
        kind: one of `KINDS`.
        kernel: sides of the window, (height, width); (1, 1) where there is none.
        in_channels: channels that each group reads.
        out_channels: channels that each group writes.
        groups: of a convolution; a depthwise one counts as one group of its channels.
        height, width: of the output in pixels (of the input for a transposed convolution).
        reads: elements of each activation that is read.
        writes: elements of each activation that is written.
        weights: elements of parameters.
        follows: it is elementwise, and its input is a convolution's, a linear's or an addition's
            result that nothing else reads, so that a runtime can compute it on the way out.
    """

    op_type: str
    kind: str
    kernel: tuple[int, int] = (1, 1)
    in_channels: int = 1
    out_channels: int = 1
    groups: int = 1
    height: int = 1
    width: int = 1
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    weights: int = 0
    follows: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates; 0 for kinds that only move data."""
        if self.kind not in COMPUTE_KINDS:
            return 0
        taps = self.kernel[0] * self.kernel[1] * self.in_channels
        return self.groups * taps * self.out_channels * self.height * self.width


@dataclass(frozen=True)
class Node:
    """One node of a graph: its work, and the activations that it joins."""

    name: str
    work: Work
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class WorkGraph:
    """A graph as the simulated devices see it.

    Attributes:
        nodes: in topological order.
        elements: size of each activation by its name.
        inputs, outputs: tensors at the graph's edges.
    """

    nodes: tuple[Node, ...]
    elements: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def op_types(self) -> frozenset[str]:
        return frozenset(node.work.op_type for node in self.nodes)


def read_graph(content: bytes) -> WorkGraph:
    """Reads an ONNX file's graph, without its weights.

    Args:
        content: the file.

    Raises:
        BadRequest: it is no ONNX graph.
        UnsupportedOperator: the shape of a tensor cannot be told.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(content)
    except (DecodeError, ValueError) as error:
        raise BadRequest(f"the artefact cannot be read as ONNX: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise BadRequest("the artefact holds no ONNX graph; is the file complete?")
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _STRIPPED_BYTES:
            tensor.ClearField("raw_data")
        elif len(tensor.float_data) * 4 > _STRIPPED_BYTES:
            tensor.ClearField("float_data")
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise UnsupportedOperator(f"the shapes of the graph cannot be told: {error}") from error
    return _Reader(model.graph).read()


class _Reader:
    """Walks one inferred graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.parameters = {t.name for t in graph.initializer}
        self.shapes: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.name not in self.shapes and value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = tuple(d.dim_value for d in dims)
        for node in graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                name = node.name or node.op_type
                raise UnsupportedOperator(
                    f"node {name} ({node.op_type}) has a sub-graph: its time depends on its data"
                )
        # What is computed from constants alone is a parameter too.
        for node in graph.node:
            if all(name in self.parameters for name in node.input if name):
                self.parameters.update(node.output)
        self.readers: dict[str, int] = {}
        for node in graph.node:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1
        for value in graph.output:
            self.readers[value.name] = self.readers.get(value.name, 0) + 1

    def read(self) -> WorkGraph:
        inputs = tuple(self._info(v) for v in self.graph.input if v.name not in self.parameters)
        outputs = tuple(self._info(value) for value in self.graph.output)
        elements = {t.name: math.prod(t.shape) for t in inputs}
        producers: dict[str, str] = {}
        nodes = []
        for proto in self.graph.node:
            if proto.output[0] in self.parameters:
                continue
            work = self._work(proto, producers)
            written = [name for name in proto.output if name]
            for name in written:
                elements[name] = math.prod(self._shape(name, proto))
                producers[name] = "Add" if work.op_type == "Add" else work.kind
            read = tuple(n for n in proto.input if n and n not in self.parameters)
            name = proto.name or proto.output[0]
            nodes.append(Node(name, work, read, tuple(written)))
        return WorkGraph(tuple(nodes), elements, inputs, outputs)

    def _info(self, value: Any) -> TensorInfo:
        import onnx

        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        return TensorInfo(value.name, str(dtype), self._shape(value.name, None))

    def _shape(self, name: str, node: Any) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or any(d <= 0 for d in shape):
            at = f" of node {node.name or node.op_type} ({node.op_type})" if node else ""
            raise UnsupportedOperator(
                f"tensor {name}{at} has no fixed shape; export the graph for a fixed input size"
            )
        return shape

    def _work(self, node: Any, producers: dict[str, str]) -> Work:
        out = self._shape(node.output[0], node)
        activations = [n for n in node.input if n and n not in self.parameters]
        parameters = [n for n in node.input if n and n in self.parameters]
        reads = tuple(math.prod(self._shape(n, node)) for n in dict.fromkeys(activations))
        writes = tuple(math.prod(self._shape(n, node)) for n in node.output if n)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            weights = sum(math.prod(self._shape(n, node)) for n in parameters)
            product = self._linear if node.op_type in ("Gemm", "MatMul") else self._convolution
            return replace(product(node, out), reads=reads, writes=writes, weights=weights)
        kind = self._kind(node, activations, out)
        kernel = _integers(node, "kernel_shape") if kind == "pool" else [1]
        follows = (
            kind in ("elementwise", "broadcast", "gate")
            and len(activations) == 1
            and self.readers[activations[0]] == 1
            and producers.get(activations[0]) in (*COMPUTE_KINDS, "Add")
        )
        return Work(
            node.op_type,
            kind,
            kernel=(kernel[0], kernel[-1]),
            reads=reads,
            writes=writes,
            follows=follows,
        )

    def _linear(self, node: Any, out: tuple[int, ...]) -> Work:
        inner = self._shape(node.input[0], node)
        transposed = node.op_type == "Gemm" and _integer(node, "transA", 0)
        return Work(
            node.op_type,
            "linear",
            in_channels=inner[0] if transposed else inner[-1],
            out_channels=out[-1],
            width=math.prod(out[:-1]),
        )

    def _convolution(self, node: Any, out: tuple[int, ...]) -> Work:
        groups = _integer(node, "group", 1)
        source = self._shape(node.input[0], node)
        kernel = self._shape(node.input[1], node)[2:]
        grid = source if node.op_type == "ConvTranspose" else out
        height, width = math.prod(grid[2:-1]) * grid[0], grid[-1]
        per_in, per_out = source[1] // groups, out[1] // groups
        kind = "dense" if max(kernel) > 1 else "pointwise"
        if groups > 1 and per_in == 1:
            kind, per_out, groups = "depthwise", out[1], 1
        elif kind == "pointwise" and height * width == 1:
            kind = "linear"
        return Work(
            node.op_type,
            kind,
            kernel=(math.prod(kernel[:-1]), kernel[-1]),
            in_channels=per_in,
            out_channels=per_out,
            groups=groups,
            height=height,
            width=width,
        )

    def _kind(self, node: Any, activations: list[str], out: tuple[int, ...]) -> str:
        op = node.op_type
        if op in _VIEWS:
            return "view"
        if op in _COPIES:
            return "copy"
        if op in _TRANSPOSES:
            return "transpose"
        if op in _POOLS:
            return "pool"
        if op in _GLOBAL_POOLS:
            return "global_pool"
        if op not in _ELEMENTWISE:
            return "unknown"
        if all(d == 1 for d in out[2:]):
            return "gate"
        shapes = [self._shape(name, node) for name in activations]
        vectors = [s for s in shapes if len(s) > 2 and all(d == 1 for d in s[2:])]
        return "broadcast" if len(out) > 2 and vectors else "elementwise"


def _integer(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _integers(node: Any, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [1])
