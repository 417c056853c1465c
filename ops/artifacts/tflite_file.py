"""The format ``tflite``, by `ops.tflite`: fp32, fp16 weights, or static int8."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np

from ..errors import HurricaneError
from . import Edge, Edges

FORMAT = "tflite"
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATED = ("int8",)
SOURCES = ("tflite",)


def converter(precision: str) -> str:
    """Our own writer, and the quantiser."""
    names = ["hurricane-nas", *(["litert-quantizer"] if precision in CALIBRATED else [])]
    try:
        return " + ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        raise _not_installed(error) from error


def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes:
    """Writes the file, and quantises it for int8."""
    try:
        from ..tflite import quantise_tflite, write_tflite

        content = write_tflite(model, weights="fp16" if precision == "fp16" else "fp32")
        return content if samples is None else quantise_tflite(content, samples)
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error


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
            tensor.name.decode(),
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


def _not_installed(error: Exception) -> HurricaneError:
    return HurricaneError(
        f"writing .tflite needs more packages ({error}); run: pip install 'hurricane-nas[tflite]'"
    )
