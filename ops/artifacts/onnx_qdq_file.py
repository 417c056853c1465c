"""The format ``onnx-qdq``, by `ops.onnx_qdq`: static int8 as pairs of quantising nodes."""

from __future__ import annotations

import numpy as np

from .. import onnx_qdq
from ..edges import Edges
from . import onnx_file

FORMAT = "onnx-qdq"
SUFFIX = ".onnx"
PRECISIONS = ("int8",)
CALIBRATED = ("int8",)
EXTRA = "host"
SOURCES = ("onnx_qdq.py",)


def packages(precision: str) -> tuple[str, ...]:
    """onnxruntime's quantizer, and what we do around it."""
    return ("hurricane-nas", "onnxruntime")


def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes:
    """Quantises the graph."""
    assert samples is not None
    return onnx_qdq.quantise_onnx(model, samples)


def fallback(precision: str) -> tuple[str, ...]:
    """Nothing."""
    return ()


def edges(content: bytes) -> Edges:
    """Inputs and outputs of a quantised graph."""
    return onnx_qdq.edges(content)


def annotate(content: bytes, key: str, text: str) -> bytes:
    """Adds an entry to the model's ``metadata_props``."""
    return onnx_file.annotate(content, key, text)
