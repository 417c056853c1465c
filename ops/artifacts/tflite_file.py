"""The format ``tflite``, by `ops.tflite`: fp32, fp16 weights, or static int8."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..edges import Edge, Edges
from ..export import CanonicalGraph

FORMAT = "tflite"
SUFFIX = ".tflite"
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATED = ("int8",)
EXTRA = "tflite"
SOURCES = ("tflite",)


def packages(precision: str) -> tuple[str, ...]:
    """Our writer, and the quantiser."""
    writers = ("hurricane-nas", "ai-edge-litert")
    return (*writers, "litert-quantizer") if precision in CALIBRATED else writers


def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes:
    """Writes the file, and quantises it for int8."""
    from ..tflite import quantise_tflite, write_tflite

    content = write_tflite(model, weights="fp16" if precision == "fp16" else "fp32")
    return content if samples is None else quantise_tflite(content, samples)


def fallback(precision: str) -> tuple[str, ...]:
    """litert-torch, and what it is made of; it writes fp32, which can be quantised."""
    return () if precision == "fp16" else ("litert-torch", "litert-converter", "torch")


def convert_otherwise(model: CanonicalGraph, samples: np.ndarray | None) -> bytes:
    """The file by litert-torch, quantised where there are samples."""
    from ..tflite import convert_modules, quantise_tflite

    content = convert_modules(model)
    return content if samples is None else quantise_tflite(content, samples)


def edges(content: bytes) -> Edges:
    """Inputs and outputs of the file's one subgraph, by the names of its signature."""
    from ..tflite.flatbuffer import tensor_type, unpack_model

    model = unpack_model(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]

    def edge(entry: Any) -> Edge:
        tensor = graph.tensors[entry.tensorIndex]
        scale = zero_point = 0
        quantization = tensor.quantization
        if quantization is not None and quantization.scale is not None:
            (scale,), (zero_point,) = quantization.scale, quantization.zeroPoint
        return Edge(
            entry.name.decode(),
            tuple(int(size) for size in tensor.shape),
            tensor_type(tensor.type),
            float(scale),
            int(zero_point),
            channels_last=True,
        )

    return Edges(
        tuple(edge(entry) for entry in signature.inputs),
        tuple(edge(entry) for entry in signature.outputs),
    )


def annotate(content: bytes, key: str, text: str) -> bytes:
    """Adds an entry to the model's metadata."""
    from ..tflite.flatbuffer import add_metadata, pack_model, unpack_model

    model = unpack_model(content)
    add_metadata(model, key, text.encode())
    return pack_model(model)
