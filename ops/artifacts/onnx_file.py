"""The format ``onnx``: the canonical graph as it is; a runtime lowers its precision itself."""

from __future__ import annotations

import numpy as np
import onnx

from ..edges import Edge, Edges
from ..graph import serialise

FORMAT = "onnx"
SUFFIX = ".onnx"
PRECISIONS = None
CALIBRATED = ()
EXTRA = "host"
SOURCES = ()


def packages(precision: str) -> tuple[str, ...]:
    """None: it is the graph itself."""
    return ()


def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes:
    """The graph itself."""
    return model


def fallback(precision: str) -> tuple[str, ...]:
    """Nothing: every graph is one."""
    return ()


def edges(content: bytes) -> Edges:
    """Inputs and outputs of a graph."""
    graph = onnx.load_from_string(content).graph
    weights = {tensor.name for tensor in graph.initializer}

    def edge(value: onnx.ValueInfoProto) -> Edge:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        return Edge(value.name, tuple(d.dim_value for d in tensor.shape.dim), str(dtype))

    return Edges(
        tuple(edge(value) for value in graph.input if value.name not in weights),
        tuple(edge(value) for value in graph.output),
    )


def annotate(content: bytes, key: str, text: str) -> bytes:
    """Adds an entry to the model's ``metadata_props``, in place of one of the same key."""
    model = onnx.load_from_string(content)
    others = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    model.metadata_props.add(key=key, value=text)
    return serialise(model)
