"""Static int8 of the canonical ONNX graph as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from .calibration import check_samples
from .edges import Edge, Edges
from .errors import BadRequest, HurricaneError
from .graph import serialise

_SMALLEST_RANGE = 1e-4
"""Of a tensor, as onnxruntime chooses for QNN: the range of a ReLU that let nothing through in
calibration is empty, and a step of 0 stands for nothing."""

_LARGEST_BIAS = 1 << 30
"""Of an int32 bias; the other half is for the sum of products that is added to it."""

_WITH_WEIGHTS = ("Conv", "Gemm")


def quantise_onnx(content: bytes, samples: np.ndarray) -> bytes:
    """Quantises a graph to static int8, by onnxruntime's quantizer.

    Activations are uint8 with the range that they have over all samples, weights int8 by output
    channel and symmetric, biases int32; ReLU and ReLU6 go into the range of what they follow.
    Inputs and outputs of the graph are uint8 as well (`edges` has their scales). Every node is
    quantised, as accelerators want it. Safe in several threads.

    Args:
        content: an fp32 ONNX graph with one input and batch 1, as `export` makes them.
        samples: calibration data, float32 [samples, channels, height, width].

    Returns:
        ONNX of the same opset. Equal request, equal bytes with one version of onnxruntime on one
        kind of CPU: ranges come from running the model.

    Raises:
        BadRequest: this is no such graph, or the samples do not fit its input.
        HurricaneError: onnxruntime cannot run or quantise the graph.
    """
    model = _fp32_model(content)
    graph, producer = model.graph, model.producer_name
    check_samples(samples, _shape_of(graph.input[0]))
    _constants_to_initializers(graph)
    _divisions_to_multiplications(graph)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        quantised = _quantise(model, _ranges(model, samples))
    except HurricaneError:
        raise
    except ModuleNotFoundError as error:
        raise HurricaneError(
            f"quantising needs the package '{error.name}', which is not installed here; "
            "run: pip install 'hurricane-nas[host]'"
        ) from error
    except Exception as error:  # a library's, of any kind
        raise HurricaneError(
            f"the graph cannot be quantised: {' '.join(str(error).split())}"
        ) from error
    _strip_edges(quantised.graph)
    quantised.producer_name = producer
    for field in ("producer_version", "metadata_props", "doc_string"):
        quantised.ClearField(field)
    quantised.graph.ClearField("value_info")
    return serialise(quantised)


def edges(content: bytes) -> Edges:
    """Inputs and outputs of a graph that `quantise_onnx` made.

    Raises:
        BadRequest: this is no such graph.
    """
    graph = _parsed(content).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    writers = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}

    def edge(value: onnx.ValueInfoProto, node: onnx.NodeProto | None) -> Edge:
        constants = [stored[name] for name in node.input[1:3] if name in stored] if node else []
        if len(constants) != 2 or any(tensor.dims for tensor in constants):
            raise BadRequest(f"'{value.name}' is no quantised tensor; is this an onnx-qdq file?")
        scale, zero = map(numpy_helper.to_array, constants)
        return Edge(value.name, _shape_of(value), zero.dtype.name, float(scale), int(zero))

    return Edges(
        tuple(edge(value, readers.get(value.name)) for value in graph.input),
        tuple(edge(value, writers.get(value.name)) for value in graph.output),
    )


def _parsed(content: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise BadRequest(f"this is no ONNX model: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise BadRequest("this is no ONNX model: it has no graph")
    return model


def _fp32_model(content: bytes) -> onnx.ModelProto:
    """The model, where it has one fp32 input of fixed shape and fp32 outputs."""
    model = _parsed(content)
    graph = model.graph
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        raise BadRequest("the graph is quantised already; give the fp32 graph that it was made of")
    if len(graph.input) != 1:
        raise BadRequest(f"the graph has {len(graph.input)} inputs; one is needed")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise BadRequest(f"'{value.name}' is not float32; only fp32 graphs are quantised")
    if 0 in _shape_of(graph.input[0]):
        raise BadRequest(f"input '{graph.input[0].name}' has no fixed shape; export it with one")
    return model


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Sizes; 0 where one is open."""
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    # The quantizer looks for constants among initializers only.
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    _replace_nodes(graph, kept)


def _divisions_to_multiplications(graph: onnx.GraphProto) -> None:
    # x / 6 as x * (1 / 6): few runtimes divide in 8 bits.
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Div" or node.input[1] not in stored:
            continue
        divisor = numpy_helper.to_array(stored[node.input[1]])
        if divisor.dtype != np.float32 or not divisor.all():
            continue
        reciprocal = numpy_helper.from_array(np.float32(1) / divisor, f"{node.input[1]}/reciprocal")
        if reciprocal.name not in stored:
            stored[reciprocal.name] = reciprocal
            graph.initializer.append(reciprocal)
        node.op_type = "Mul"
        node.input[1] = reciprocal.name


def _ranges(model: onnx.ModelProto, samples: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """Smallest and largest value of the input and of each computed tensor, over all samples."""
    import onnxruntime

    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    computed = [
        name
        for node in model.graph.node
        for name in node.output
        if name in known and known[name].type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(known[name] for name in computed)
    options = onnxruntime.SessionOptions()
    # One thread: sums in another order could give other ranges.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [model.graph.input[0].name, *computed]
    lowest = np.full(len(names), np.inf, np.float32)
    highest = np.full(len(names), -np.inf, np.float32)
    for sample in np.ascontiguousarray(samples, np.float32):
        image = sample[np.newaxis]
        values = [image, *map(np.asarray, session.run(computed, {names[0]: image}))]
        lowest = np.minimum(lowest, [array.min() for array in values])
        highest = np.maximum(highest, [array.max() for array in values])
    for name, low, high in zip(names, lowest, highest, strict=True):
        if not np.isfinite([low, high]).all():
            raise BadRequest(f"'{name}' has values that are not finite with these calibration data")
    return dict(zip(names, zip(lowest, highest, strict=True), strict=True))


def _quantise(model: onnx.ModelProto, ranges: dict[str, tuple[Any, Any]]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.quant_utils import add_infer_metadata

    add_infer_metadata(model)  # else it infers shapes again, by way of a file
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in model.graph.node}),
        extra_options={
            "MinimumRealRange": _SMALLEST_RANGE,
            "TensorQuantOverrides": dict(_coarser_weights(model.graph, ranges)),
        },
    )
    # Else a graph that begins with an activation or a reshape begins in float.
    quantizer.quantize_activation_tensor(model.graph.input[0].name)
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _coarser_weights(
    graph: onnx.GraphProto, ranges: dict[str, tuple[Any, Any]]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Ranges for weights with channels whose bias would be too large for int32.

    The step of a bias is that of the input times that of its channel's weights: too small where
    training has driven a channel's weights to almost nothing. onnxruntime widens it until the bias
    fits, which leaves no room for the products that are added to it.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in _WITH_WEIGHTS or len(node.input) < 3 or node.input[2] not in stored:
            continue
        if node.input[1] not in stored or node.input[0] not in ranges:
            continue
        weights = numpy_helper.to_array(stored[node.input[1]])
        bias = numpy_helper.to_array(stored[node.input[2]])
        lowest, highest = ranges[node.input[0]]
        step = max(max(highest, 0) - min(lowest, 0), _SMALLEST_RANGE) / 255
        largest = np.abs(weights.reshape(len(weights), -1)).max(axis=1)
        needed = np.abs(bias) / (step * _LARGEST_BIAS) * 127
        if (needed > largest).any():
            limits = np.maximum(needed, largest).astype(np.float32)
            yield (
                node.input[1],
                [{"axis": 0, "rmin": -limit, "rmax": limit} for limit in limits],
            )


def _strip_edges(graph: onnx.GraphProto) -> None:
    """Makes inputs and outputs 8-bit: drops the first QuantizeLinear, the last DequantizeLinear."""
    outside = {value.name: value for value in (*graph.input, *graph.output)}
    renamed = {}
    kept = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in outside:
            renamed[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.output[0] in outside:
            renamed[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for name, value in outside.items():
        if name not in renamed.values():
            raise BadRequest(f"'{name}' cannot be quantised: no node of a known kind is next to it")
        value.type.tensor_type.elem_type = TensorProto.UINT8
    _replace_nodes(graph, kept)


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
