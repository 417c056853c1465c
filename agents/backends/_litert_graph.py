"""What LiteRT made of a graph: which nodes a delegate took, and what they compute in.

The interpreter lists a graph's own nodes, whoever runs them, and behind them a ``DELEGATE`` node
for each part of the graph that a delegate took.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

_DELEGATE = "DELEGATE"
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
_PRECISIONS = {
    "float32": "fp32",
    "float16": "fp16",
    "int8": "int8",
    "uint8": "int8",
    "int16": "int16",
}
_UNIT_CHARACTERS = 40
_FLAG_CHARACTERS = 60  # what the host keeps of a flag
_NAMES_IN_FLAG = 6
_NOT_IN_FLAGS = re.compile(r"[^A-Za-z0-9_.]+")
_MISSING = -1  # the index of an optional tensor that is not there


@dataclass(frozen=True)
class Node:
    """A node: its operator, its tensors by index, and their numpy dtype names."""

    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_types: tuple[str, ...] = ()
    output_types: tuple[str, ...] = ()


def nodes_of(interpreter: Any) -> Optional[tuple[Node, ...]]:
    """The nodes of an interpreter; None where it does not tell them."""
    try:
        details = interpreter._get_ops_details()
    except (AttributeError, ValueError):  # not offered; a tensor of no type
        return None
    types = {
        int(tensor["index"]): np.dtype(tensor["dtype"]).name
        for tensor in interpreter.get_tensor_details()
    }

    def node_of(operator: str, inputs: Sequence[int], outputs: Sequence[int]) -> Node:
        read, written = (tuple(types[t] for t in ts if t in types) for ts in (inputs, outputs))
        return Node(operator, tuple(inputs), tuple(outputs), read, written)

    return tuple(
        node_of(str(node["op_name"]), _indices(node["inputs"]), _indices(node["outputs"]))
        for node in details
    )


def own_nodes(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that stand in the file."""
    return tuple(node for node in nodes if node.operator != _DELEGATE)


def nodes_left(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The graph's own nodes that no delegate took.

    A part that was taken is what lies between the outputs and the inputs of its ``DELEGATE``.
    A node whose outputs nothing reads counts as left, whoever runs it.
    """
    own = own_nodes(nodes)
    makers = {tensor: index for index, node in enumerate(own) for tensor in node.outputs}
    taken: set[int] = set()
    for delegate in nodes:
        if delegate.operator != _DELEGATE:
            continue
        given = set(delegate.inputs)
        wanted = list(delegate.outputs)
        while wanted:
            tensor = wanted.pop()
            maker = makers.get(tensor)
            if tensor in given or maker is None or maker in taken:
                continue
            taken.add(maker)
            wanted += own[maker].inputs
    return tuple(node for index, node in enumerate(own) if index not in taken)


def placement_of(nodes: Sequence[Node], delegate: str) -> tuple[str, tuple[str, ...]]:
    """Where a graph runs.

    Args:
        nodes: of the graph.
        delegate: name of the one delegate that could take them; empty: none was asked for.

    Returns:
        The compute unit: the delegate, ``XNNPACK 11/12`` where it took 11 of 12 nodes, ``CPU 0/12``
        where it took none, ``CPU`` where none was asked for; and ``fallback:…`` with the operators
        that a delegate left.
    """
    left, total = nodes_left(nodes), len(own_nodes(nodes))
    taken = total - len(left)
    if not taken and (not delegate or not total):
        return "CPU", ()
    unit = (delegate or "a delegate")[:_UNIT_CHARACTERS] if taken else "CPU"
    if not left:
        return unit, ()
    return f"{unit} {taken}/{total}", (_fallback_flag(left),)


def _fallback_flag(left: Sequence[Node]) -> str:
    """The operators of nodes as one word: ``fallback:REVERSE_V2+GATHER``."""
    names = list(dict.fromkeys(_NOT_IN_FLAGS.sub("-", node.operator) for node in left))
    flag = ""
    for count in range(min(len(names), _NAMES_IN_FLAG), 0, -1):
        more = ["more"] if count < len(names) else []
        flag = "fallback:" + "+".join(names[:count] + more)
        if len(flag) <= _FLAG_CHARACTERS:
            break
    return flag[:_FLAG_CHARACTERS]


def precision_of(nodes: Sequence[Node], input_types: Iterable[str]) -> str:
    """What a graph computes in: ``fp32``, ``int8`` or another precision.

    That is what most convolutions and matrix products do, or most nodes where there are none:
    an activation that is many nodes, and has no int8, does not make it another graph.

    Args:
        nodes: of the graph.
        input_types: numpy dtype names of its inputs, which tell where no node does.
    """
    computing = _computing(nodes)
    products = [node for node in computing if node.operator in _PRODUCTS]
    computed = [node.output_types[0] for node in products or computing if node.output_types]
    known = [_PRECISIONS[dtype] for dtype in computed if dtype in _PRECISIONS]
    known = known or [_PRECISIONS.get(dtype, dtype) for dtype in input_types] or ["unknown"]
    return Counter(known).most_common(1)[0][0]


def other_precisions(nodes: Sequence[Node], precision: str) -> tuple[str, ...]:
    """Flags for what a graph of ``fp32`` or ``int8`` holds of other precisions."""
    computed = _precisions(dtype for node in _computing(nodes) for dtype in node.output_types)
    if precision == "int8":
        return _flags(computed - {precision})
    held = _precisions(
        dtype for node in own_nodes(nodes) for dtype in node.input_types + node.output_types
    )
    # 8 bits of weights, too: XNNPACK then quantises the values as well, and says nothing.
    flags = _flags((held - {precision, "fp16"}) | (computed & {"fp16"}))
    return (*flags, "weights:fp16") if "fp16" in held - computed else flags


def _precisions(dtypes: Iterable[str]) -> set[str]:
    return {_PRECISIONS[dtype] for dtype in dtypes if dtype in _PRECISIONS}


def _flags(precisions: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"precision:{precision}" for precision in sorted(precisions))


def _computing(nodes: Sequence[Node]) -> tuple[Node, ...]:
    return tuple(node for node in own_nodes(nodes) if node.operator not in _CONVERSIONS)


def _indices(tensors: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(tensor) for tensor in tensors if tensor != _MISSING)
