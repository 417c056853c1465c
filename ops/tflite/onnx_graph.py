"""An ONNX graph with fixed shapes, as the writer walks over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from ..errors import BadRequest, UnsupportedNode
from ..graph import OPSET


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node; compared by identity.

    Attributes:
        op_type: its ONNX operator.
        name: its name, or its first output where it has none.
        inputs, outputs: names of values; an optional input that is absent is "".
        attributes: by name, as Python values.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """The first output, for most operators the only one."""
        return self.outputs[0]

    def unsupported(self, reason: str) -> UnsupportedNode:
        """The error that refuses this node."""
        return UnsupportedNode(self.op_type, self.name, reason)

    def attributes_over(self, **defaults: Any) -> dict[str, Any]:
        """The attributes over their defaults.

        Raises:
            UnsupportedNode: the node has an attribute that `defaults` does not name.
        """
        for name, value in self.attributes.items():
            if name not in defaults:
                raise self.unsupported(f"attribute {name} = {value!r} is not understood")
        return {**defaults, **self.attributes}

    def require(self, attributes: dict[str, Any], **accepted: Any) -> None:
        """Refuses attributes that have another value than the accepted one."""
        for name, value in accepted.items():
            if attributes[name] != value:
                raise self.unsupported(f"attribute {name} = {attributes[name]!r} is not understood")


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in order, constants and shapes.

    Attributes:
        nodes: all but `Constant`, in topological order.
        constants: initializers and `Constant` nodes, by value name.
        shapes: of float32 values with fixed dimensions, as ONNX has them (NCHW).
        readers: for each value, the nodes that read it, once for each time.
        inputs, outputs: of the graph, constants left out.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    readers: dict[str, list[Node]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def shape(self, node: Node, name: str) -> tuple[int, ...]:
        """The shape of a value that a node reads or writes.

        Raises:
            UnsupportedNode: the value is not float32, or its shape is not fixed.
        """
        if name not in self.shapes:
            raise node.unsupported(f"{name!r} is not a float32 value of fixed shape")
        return self.shapes[name]

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element; None for anything else."""
        constant = self.constants.get(name)
        return None if constant is None or constant.size != 1 else float(constant.reshape(()))

    def is_never_negative(self, name: str) -> bool:
        """Whether a value comes out of a Relu, or of a Clip to 0 and 6."""
        writer = next((node for node in self.nodes if name in node.outputs), None)
        return writer is not None and (writer.op_type == "Relu" or is_relu6(self, writer))

    def sole_reader(self, name: str, *op_types: str) -> Node | None:
        """The node that alone reads a value; None where there is none.

        Args:
            name: of a value; nothing reads an output of the graph alone.
            op_types: the operators that count.
        """
        readers = self.readers.get(name, [])
        if name in self.outputs or len(readers) != 1:
            return None
        return readers[0] if readers[0].op_type in op_types else None


def read_graph(model: onnx.ModelProto | bytes) -> OnnxGraph:
    """The graph of an ONNX model.

    Args:
        model: the model or its bytes, in the opset of `ops.graph`.

    Raises:
        BadRequest: no valid ONNX model, or one of another opset.
        UnsupportedNode: a node of another domain, or a constant that is no tensor.
    """
    model = _checked(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        node = _node(proto)
        if node.op_type == "Constant":
            constants[node.output] = _constant(node)
        else:
            nodes.append(node)
    shapes = _shapes(model)
    inputs = tuple(v.name for v in model.graph.input if v.name not in constants)
    for name in inputs:
        if name not in shapes:
            raise BadRequest(f"input {name!r} of the ONNX model is not float32 of fixed shape")
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return OnnxGraph(
        nodes=tuple(nodes),
        constants=constants,
        shapes=shapes,
        readers=readers,
        inputs=inputs,
        outputs=tuple(v.name for v in model.graph.output),
    )


def _checked(model: onnx.ModelProto | bytes) -> onnx.ModelProto:
    try:
        if isinstance(model, bytes):
            model = onnx.load_from_string(model)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise BadRequest(f"this is no ONNX model, or a broken one: {first_line}") from error
    opsets = {o.domain: o.version for o in model.opset_import}
    if opsets.get("", opsets.get("ai.onnx")) != OPSET:
        raise BadRequest(f"the ONNX model is not of opset {OPSET}; export it with ops.export")
    return model


def _node(proto: onnx.NodeProto) -> Node:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    name = proto.name or next(iter(proto.output), "")
    node = Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes)
    if proto.domain not in ("", "ai.onnx"):
        raise node.unsupported(f"domain {proto.domain!r} is not understood")
    return node


def _constant(node: Node) -> np.ndarray:
    value = node.attributes_over(value=None)["value"]
    if not isinstance(value, onnx.TensorProto):
        raise node.unsupported("its value is no tensor")
    return numpy_helper.to_array(value)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise BadRequest(f"shapes of the ONNX model do not fit: {first_line}") from error
    shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value for d in tensor.shape.dim)  # 0 where symbolic
        if tensor.elem_type == onnx.TensorProto.FLOAT and tensor.HasField("shape") and all(dims):
            shapes[value.name] = dims
    return shapes


def is_relu6(graph: OnnxGraph, node: Node) -> bool:
    """Whether a node clips to 0 and 6."""
    bounds = [graph.scalar(name) for name in node.inputs[1:3]]
    return node.op_type == "Clip" and bounds == [0.0, 6.0]
