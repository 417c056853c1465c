"""The format ``snpe``: a DLC for SNPE, and how its inputs and outputs are encoded.

The DLC is what onnxruntime's QNN provider writes of the graph in static int8 (`ops.qnn`). A ZIP
archive holds it beside ``edges.json``; what is pushed to a board is the DLC alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence

import numpy as np

from .. import onnx_qdq, qnn
from ..edges import Edge, Edges

FORMAT = "snpe"
SUFFIX = ".snpe"
PRECISIONS = ("int8",)
CALIBRATED = ("int8",)
EXTRA = "qnn"
SOURCES = ("onnx_qdq.py", "qnn.py", "socs.py")

MODEL, EDGES = "model.dlc", "edges.json"
_WHEN = (1980, 1, 1, 0, 0, 0)


def packages(precision: str) -> tuple[str, ...]:
    """onnxruntime's quantizer and QNN provider, and what we do around them."""
    return ("hurricane-nas", *qnn.PACKAGES)


def convert(model: bytes, precision: str, samples: np.ndarray | None) -> bytes:
    """Quantises the graph and writes the archive."""
    assert samples is not None
    quantised = onnx_qdq.quantise_onnx(model, samples)
    known = onnx_qdq.edges(quantised)
    members = {
        MODEL: qnn.write_dlc(quantised),
        EDGES: json.dumps(
            {"inputs": _entries(known.inputs), "outputs": _entries(known.outputs)}, sort_keys=True
        ).encode(),
    }
    return _archive(members, b"")


def fallback(precision: str) -> tuple[str, ...]:
    """Nothing."""
    return ()


def edges(content: bytes) -> Edges:
    """Inputs and outputs, as the archive tells them."""
    found = json.loads(_members(content)[EDGES])
    inputs, outputs = (
        tuple(Edge(**{**entry, "shape": tuple(entry["shape"])}) for entry in found[kind])
        for kind in ("inputs", "outputs")
    )
    return Edges(inputs, outputs)


def annotate(content: bytes, key: str, text: str) -> bytes:
    """Puts the text into the archive's comment."""
    return _archive(_members(content), f"{key}={text}".encode())


def dlc_of(content: bytes) -> bytes:
    """The DLC alone."""
    return _members(content)[MODEL]


def _entries(known: Sequence[Edge]) -> list[dict[str, object]]:
    return [
        {
            "name": edge.name,
            "shape": list(edge.shape),
            "dtype": edge.dtype,
            "scale": edge.scale,
            "zero_point": edge.zero_point,
        }
        for edge in known
    ]


def _members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members: dict[str, bytes], comment: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _WHEN), content)
    return file.getvalue()
