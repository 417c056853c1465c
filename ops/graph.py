"""Canonical ONNX graphs: one traced template for each operator and shape, joined into chains.

A template is traced once by torch and holds no weights. Weights are put in when a graph is
made: seeded ones for measuring (equal request, equal bytes), trained ones for delivery. A
context of operators or a whole network is its templates joined end to end, so that what is
measured alone and what runs in a network are the same nodes.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
import itertools
import math
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from .backbone import POOL_NAME, is_head, is_stem
from .cached_files import CACHE_VARIABLE, cache_folder, write_file
from .counting import ConvolutionCost
from .errors import HurricaneError
from .pool import (
    ENTRY_POINT_GROUP,
    GATES,
    PLUGIN_VARIABLE,
    code_of,
    parse_operator,
)
from .processes import on_all_cores
from .shapes import LayerShape

OPSET = 13
"""OpenVINO 2021.4 (MYRIAD) reads no newer one."""

IR_VERSION = 7
PRODUCER = "hurricane"
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Piece:
    """One part of a graph, by what a table's row says of it.

    Attributes:
        name: an operator's, a stem's or a head's name.
        shape: where it stands.
        gate: of squeeze-and-excitation.
    """

    name: str
    shape: LayerShape
    gate: str = GATES[0]

    def __hash__(self) -> int:
        return self._hash  # pieces are keys wherever graphs are compared

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.shape, self.gate))

    def __reduce__(self) -> tuple[type[Piece], tuple[str, LayerShape, str]]:
        return Piece, (self.name, self.shape, self.gate)  # hashes differ between processes

    @property
    def key(self) -> str:
        s = self.shape
        size = f"{s.height}x{s.width}x{s.in_channels}x{s.out_channels}s{s.stride}"
        return f"{self.name}|{size}|{self.gate}"


@dataclass(frozen=True)
class Part:
    """A piece in a graph with its own weights.

    Attributes:
        piece: what stands here.
        instance: number of the seeded weights; equal pieces in one graph differ in it.
        weights: trained arrays by parameter name; None for seeded ones.
    """

    piece: Piece
    instance: int = 0
    weights: Mapping[str, np.ndarray] | None = None


def write_cached(file: Path, content: bytes, of: str) -> None:
    """Writes a file of the cache; `of` names what it keeps, in errors.

    Raises:
        HurricaneError: it cannot be written.
    """
    try:
        write_file(file, content)
    except OSError as error:
        raise HurricaneError(
            f"the cache of {of} in {cache_folder()} cannot be written: "
            f"{error.strerror or error}; set {CACHE_VARIABLE} to a folder that can"
        ) from error


@lru_cache(maxsize=1)
def _generation() -> str:
    """Changes whenever a template could: torch, onnx, the blocks, this file, users' plugins."""
    digest = hashlib.sha256()
    for package in ("torch", "onnx"):
        digest.update(f"{package} {importlib.metadata.version(package)} ".encode())
    here = Path(__file__).parent
    plugins = filter(None, os.environ.get(PLUGIN_VARIABLE, "").split(os.pathsep))
    for file in (here / "blocks.py", here / "graph.py", *map(Path, plugins)):
        digest.update(file.read_bytes() if file.is_file() else b"")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        digest.update(f"{entry.value} {entry.dist.version if entry.dist else ''} ".encode())
    return digest.hexdigest()[:16]


def _source(name: str) -> bytes:
    """The file that builds a user's operator, of whatever package; nothing for our own pieces."""
    if is_stem(name) or is_head(name) or name == POOL_NAME:
        return b""
    custom = parse_operator(name).custom
    if custom is None:
        return b""
    code = code_of(custom.build)
    file = Path(code.co_filename) if code else None
    if file is not None and file.is_file():
        return file.read_bytes()
    return f"{custom.build.__module__}.{getattr(custom.build, '__qualname__', '')}".encode()


def _template_file(piece: Piece) -> Path:
    digest = hashlib.sha256(piece.key.encode() + _source(piece.name)).hexdigest()
    return cache_folder() / "templates" / _generation() / f"{digest}.onnx"


def fold_batchnorm(module):
    """A copy of a module in eval mode, each BatchNorm folded into the convolution before it.

    A linear without bias gets one of zeros: its weights then stay as they are in ONNX (Gemm)
    and are not replaced by a transposed constant.
    """
    import torch
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        children = list(parent.named_children())
        for (name, first), (after, second) in itertools.pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(first, second))
                setattr(parent, after, nn.Identity())
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    return module


def _trace(piece: Piece) -> bytes:
    """Traces a piece with torch and strips the weights."""
    from .blocks import build_row

    shape = piece.shape
    module = build_row(piece.name, shape, piece.gate)
    image = (shape.in_channels, shape.height, shape.width)
    return _trace_module(module, image, f"{piece.name} at {shape}")


def _trace_module(module, image: tuple[int, int, int], label: str) -> bytes:
    """Traces a module on an image [C, H, W] and strips the weights; errors name the label."""
    import torch

    module = fold_batchnorm(module)
    with torch.no_grad():  # torch.onnx merges parameters of equal value, such as zero biases
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1.0)
    example = torch.zeros(1, *image)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            file,  # pyright: ignore[reportArgumentType] (the TorchScript exporter takes it)
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    model = onnx.load_from_string(file.getvalue())
    parameters = {name for name, _ in module.named_parameters()}
    for tensor in model.graph.initializer:
        if tensor.name in parameters:
            parameters.discard(tensor.name)
            tensor.ClearField("raw_data")
    if parameters:
        raise HurricaneError(
            f"{label}: the exported graph lacks {sorted(parameters)[0]}; "
            "put each BatchNorm2d right behind its Conv2d in an nn.Sequential, so that it can be "
            "folded, and leave out what the output does not need"
        )
    return model.SerializeToString(deterministic=True)


def _trace_to_cache(piece: Piece) -> bytes:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        content = _trace(piece)
    finally:
        torch.set_num_threads(threads)  # a training's last bits depend on it
    write_cached(_template_file(piece), content, "traced graphs")
    return content


def _cached(piece: Piece) -> onnx.ModelProto | None:
    """The template as the cache has it; None where it is absent, cut short or unreadable."""
    try:
        model = onnx.load_from_string(_template_file(piece).read_bytes())
    except (OSError, DecodeError):
        return None
    return model if model.graph.node and model.graph.output else None


_MEMORY: dict[Piece, onnx.ModelProto] = {}
_TRACING = threading.Lock()  # in one process, torch traces one graph at a time
_WORTH_A_POOL = 16
"""Below this many traces, starting processes costs more than it saves."""


def prepare_templates(pieces: Sequence[Piece], progress=None) -> None:
    """Makes sure that templates exist, tracing missing ones on all cores.

    Args:
        pieces: what will be exported.
        progress: called with (done, total) as templates get ready.
    """
    wanted = list(dict.fromkeys(p for p in pieces if p not in _MEMORY))
    missing = [p for p in wanted if not _template_file(p).is_file()]
    done = len(wanted) - len(missing)
    workers = os.cpu_count() or 1
    if len(missing) < _WORTH_A_POOL or workers == 1:
        for piece in missing:
            _trace_to_cache(piece)
            done += 1
            if progress:
                progress(done, len(wanted))
    else:
        preload = ["torch.onnx", "hurricane.ops.blocks", "hurricane.ops.graph"]
        for _ in on_all_cores(_trace_to_cache, missing, workers, preload, "exports graphs", 4):
            done += 1
            if progress:
                progress(done, len(wanted))


def template(piece: Piece) -> onnx.ModelProto:
    """The piece's traced graph without weights; do not change it."""
    found = _MEMORY.get(piece)
    if found is None:
        with _TRACING:
            found = _cached(piece)
            if found is None:
                found = onnx.load_from_string(_trace_to_cache(piece))
        _MEMORY[piece] = found
    return found


def seeded_weights(piece: Piece, instance: int = 0) -> dict[str, np.ndarray]:
    """The weights a piece is measured with: equal request, equal values, on every machine.

    Uniform, He-scaled (a little less, so that twenty layers neither blow up nor die out);
    the squeeze-and-excitation gate is held near one.

    Args:
        piece: whose parameters.
        instance: tells equal pieces of one graph apart.

    Returns:
        float32 arrays by parameter name.
    """
    return _random_weights(template(piece).graph, f"{piece.key}|{instance}")


def _random_weights(graph: onnx.GraphProto, key: str) -> dict[str, np.ndarray]:
    """Weights for what a traced graph has none of, seeded by a text."""
    seed = hashlib.sha256(key.encode()).digest()[:8]
    random = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
    weights = {}
    for tensor in graph.initializer:
        if tensor.raw_data or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        shape = tuple(tensor.dims)
        values = random.random(shape, dtype=np.float32)
        values -= np.float32(0.5)
        excite = ".expand." in f".{tensor.name}"
        if len(shape) > 1:
            spread = (0.1 if excite else 0.85) * 2.0 * math.sqrt(6.0 / math.prod(shape[1:]))
            values *= np.float32(spread)
        else:
            values *= np.float32(0.2)
            if excite:
                values += np.float32(1.2)
        weights[tensor.name] = values
    return weights


def join(parts: Sequence[Part]) -> onnx.ModelProto:
    """Joins pieces end to end into one canonical graph with weights.

    Args:
        parts: in order; each one's output is the next one's input.

    Returns:
        A model with one input and one output, opset 13, batch 1.

    Raises:
        HurricaneError: neighbouring shapes do not fit.
    """
    joined = onnx.ModelProto(ir_version=IR_VERSION, producer_name=PRODUCER)
    joined.opset_import.add(domain="", version=OPSET)
    graph = joined.graph
    graph.name = "hurricane"
    incoming = INPUT
    for index, part in enumerate(parts):
        source = template(part.piece).graph
        if index:
            before = graph.output[0].type.tensor_type.shape
            now = source.input[0].type.tensor_type.shape
            if [d.dim_value for d in before.dim] != [d.dim_value for d in now.dim]:
                raise HurricaneError(
                    f"{part.piece.name} at {part.piece.shape} does not follow "
                    f"{parts[index - 1].piece.name} at {parts[index - 1].piece.shape}"
                )
            del graph.output[:]
        else:
            graph.input.append(source.input[0])
        graph.output.append(source.output[0])
        last = index == len(parts) - 1
        prefix = f"{index}"
        outgoing = OUTPUT if last else f"{prefix}/{OUTPUT}"

        def rename(name: str, prefix=prefix, incoming=incoming, outgoing=outgoing) -> str:
            if name in ("", INPUT, OUTPUT):
                return {"": "", INPUT: incoming, OUTPUT: outgoing}[name]
            return f"{prefix}/{name.lstrip('/')}"

        weights = part.weights
        if weights is None:
            weights = seeded_weights(part.piece, part.instance)
        for tensor in source.initializer:
            added = graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = rename(tensor.name)
            if tensor.name in weights:
                values = np.ascontiguousarray(weights[tensor.name], dtype="<f4")
                if values.shape != tuple(tensor.dims):
                    raise HurricaneError(
                        f"{part.piece.name} at {part.piece.shape}: {tensor.name} has the shape "
                        f"{values.shape}, the graph needs {tuple(tensor.dims)}"
                    )
                added.raw_data = values.tobytes()
        for node in source.node:
            added = graph.node.add()
            added.CopyFrom(node)
            added.name = rename(node.name)
            added.input[:] = [rename(n) for n in node.input]
            added.output[:] = [rename(n) for n in node.output]
        incoming = outgoing
    return joined


def seeded_graph(label: str, build: Callable[[], Any], image: tuple[int, int, int]) -> bytes:
    """The graph of a module that is no chain of pieces, with weights as `seeded_weights` has them.

    Args:
        label: says what is built and seeds the weights: equal labels stand for equal modules.
        build: gives the torch module, from [N, C, H, W].
        image: C, H and W.

    Returns:
        ONNX with `input` [1, C, H, W] and `output`, opset 13; equal request, equal bytes.
    """
    model = onnx.load_from_string(_trace_module(build(), image, label))
    model.ir_version, model.producer_name = IR_VERSION, PRODUCER
    model.ClearField("producer_version")
    weights = _random_weights(model.graph, label)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.raw_data = np.ascontiguousarray(weights[tensor.name], dtype="<f4").tobytes()
    return serialise(model)


def serialise(model: onnx.ModelProto) -> bytes:
    """Deterministic bytes of a model."""
    return model.SerializeToString(deterministic=True)


def module_weights(module) -> dict[str, np.ndarray]:
    """A trained module's parameters after folding BatchNorm, by the template's names."""
    folded = fold_batchnorm(module)
    return {name: p.detach().cpu().numpy() for name, p in folded.named_parameters()}


def count_graph(model: onnx.ModelProto) -> list[ConvolutionCost]:
    """Convolutions and linears of an ONNX graph: weights, and the pixels they are applied to."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    dims = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        dims[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    costs = []
    for node in inferred.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        weights = math.prod(dims[node.input[1]])
        out = dims[node.output[0]]
        costs.append(ConvolutionCost(weights, math.prod(out[2:]) if node.op_type == "Conv" else 1))
    return costs
