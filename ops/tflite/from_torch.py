"""From the torch modules that a graph is made of to `.tflite`, by litert-torch.

For graphs with nodes that the writer does not know. It takes seconds a graph.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from ..errors import HurricaneError
from ..export import CanonicalGraph
from ..graph import INPUT, OUTPUT, fold_batchnorm
from .flatbuffer import pack_model, unpack_model
from .quantisation import held_back

if TYPE_CHECKING:
    from torch import nn


def convert_modules(model: CanonicalGraph) -> bytes:
    """Converts the modules of a graph's pieces, with the weights that are in the graph.

    While it runs, what the process writes to stderr and stdout is held back; call it from one
    thread at a time.

    Args:
        model: the graph.

    Returns:
        An fp32 file with the graph's `input` and `output`, NHWC where they have four dimensions.

    Raises:
        HurricaneError: litert-torch failed, or cannot be imported.
    """
    graph = onnx.load_from_string(model).graph
    shape, out_shape = (
        tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (graph.input[0], graph.output[0])
    )
    module = _module(model, graph)
    with held_back():
        try:
            content = _convert(module, shape, len(out_shape) == 4)
        except Exception as error:  # a library's, of any kind
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            raise HurricaneError(f"litert-torch failed: {said}") from error
    return _renamed(content)


def _module(model: CanonicalGraph, graph: onnx.GraphProto) -> nn.Module:
    """The graph in torch."""
    import torch
    from torch import nn

    from ..blocks import build_row

    stored = {tensor.name: tensor for tensor in graph.initializer}
    modules = []
    for index, piece in enumerate(model.pieces):
        module = fold_batchnorm(build_row(piece.name, piece.shape, piece.gate))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                values = numpy_helper.to_array(stored[f"{index}/{name}"])
                parameter.copy_(torch.tensor(values))
        modules.append(module)
    return nn.Sequential(*modules).eval().requires_grad_(False)


def _convert(module: nn.Module, shape: tuple[int, ...], image_out: bool) -> bytes:
    """The file as litert-torch writes it, NHWC.

    Args:
        shape: of the input, NCHW.
        image_out: whether the output has four dimensions.
    """
    import litert_torch  # pyright: ignore[reportMissingImports] (installed by few)
    import torch

    outputs = [0] if image_out else []
    module = litert_torch.to_channel_last_io(module, args=[0], outputs=outputs).eval()
    batch, channels, height, width = shape
    converted = litert_torch.convert(module, (torch.zeros(batch, height, width, channels),))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        converted.export(str(path))
        return path.read_bytes()


def _renamed(content: bytes) -> bytes:
    """The file with its input and output called as in the graph."""
    model = unpack_model(content)
    (graph,), (signature,) = model.subgraphs, model.signatureDefs
    for entries, name in ((signature.inputs, INPUT), (signature.outputs, OUTPUT)):
        (entry,) = entries
        entry.name = graph.tensors[entry.tensorIndex].name = name.encode()
    return pack_model(model)
