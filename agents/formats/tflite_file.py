"""Checks TFLite files, format ``tflite``, before a runtime reads them.

What is accepted is one graph of builtin operators that are functions of their inputs, with all its
weights inside and every shape known before it runs. Runtimes accept more: data behind the
FlatBuffer or in other files, subgraphs that call each other, state, operators of others; and most
of them believe what a file says of itself. Whatever is not known here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..errors import BadRequest, UnsupportedOperator
from . import Content
from ._flatbuffer import Limits, Table, parse
from ._protobuf import Span, shown
from ._tflite_operators import (
    MOST_OPERANDS,
    MOVES,
    ONE_TYPE,
    OPERATORS,
    SIGNATURES,
    Signature,
    reason_against,
)
from ._tflite_scales import scales_fit
from ._tflite_schema import SCHEMA
from ._tflite_schema import TENSOR_TYPES as TENSOR_TYPES
from ._tflite_shapes import Node, Operand, Shape, shapes_of

NAMES = ("tflite",)

_IDENTIFIER = b"TFL3"
_VERSION = 3
_LIMITS = Limits(
    objects=150_000,  # an int8 network of 2,000 operators has some 40,000
    depth=8,  # the schema's own: no table holds one of its kind
)
_MOST_BYTES = 2**31 - 1  # what FlatBuffers can address
_MOST_DIMENSIONS = 8  # kernels keep shapes in arrays of 4 to 8
_MOST_VALUE_BYTES = 2**30  # of one tensor, and of all inputs, or all outputs
_MOST_OPERANDS_IN_ALL = 200_000  # a network of 2,000 operators has some 6,000
_MOST_METADATA = 1000
_MOST_SIGNATURES = 16
_MOST_SHAPE_VALUES = 64  # of a constant that decides on shapes
_MOST_OPERATOR_VERSION = 1000
_DEPRECATED_LIMIT = 127  # in the old field: "see the new one"
_OPTIONAL = -1  # an input that is left out
_ONNX_FIRST_BYTE = 0x08

_BITS = {
    "FLOAT32": 32,
    "FLOAT16": 16,
    "INT32": 32,
    "UINT8": 8,
    "INT64": 64,
    "BOOL": 8,
    "INT16": 16,
    "INT8": 8,
    "FLOAT64": 64,
    "UINT64": 64,
    "UINT32": 32,
    "UINT16": 16,
    "INT4": 4,
    "BFLOAT16": 16,
    "INT2": 2,
    "UINT4": 4,
    "FLOAT8_E4M3FN": 8,
    "FLOAT8_E5M2": 8,
}
"""Of one element, by the types that are numbers."""

_STORED_TYPES = {"INT32": "<i4", "INT64": "<i8"}
"""What may decide on shapes; for RANGE also FLOAT32."""

_ZERO_POINTS = {
    "INT8": (-(2**7), 2**7 - 1),
    "UINT8": (0, 2**8 - 1),
    "INT16": (-(2**15), 2**15 - 1),
    "INT4": (-8, 7),
    "INT2": (-2, 1),
    "UINT4": (0, 15),
}
"""Range of the zero points by the types that are quantised; 0 for all others."""

_SCALES = (2.0**-60, 2.0**60)  # quotients of two are normal floats: kernels die of others

_LEAST_OPTIONS = {
    "stride_w": 1,
    "stride_h": 1,
    "stride_d": 1,
    "dilation_w_factor": 1,
    "dilation_h_factor": 1,
    "dilation_d_factor": 1,
    "filter_width": 1,
    "filter_height": 1,
    "block_size": 1,
    "depth_multiplier": 1,
    "radius": 0,
}
_MOST_OPTION = 2**15 - 1  # products of two fit into the 32 bits that kernels count with
_OPTIONS_NEEDED_NOT = ("CAST", "RESHAPE")  # though they have fields


def check(content: Content) -> None:
    """Checks a file.

    Args:
        content: the whole of it.

    Raises:
        BadRequest: it is malformed, incomplete, too large, of another format, or holds what is
            never accepted: data elsewhere, subgraphs, sparse or variable tensors, strings.
        UnsupportedOperator: it has custom operators, or builtin ones that are not accepted.
    """
    if isinstance(content, memoryview):
        content = content.cast("B")
    if not len(content):
        raise BadRequest("the artefact is empty")
    if len(content) > _MOST_BYTES:
        raise BadRequest(
            f"the artefact has {len(content)} bytes; TFLite files have less than 2 GiB"
        )
    if bytes(content[4:8]) != _IDENTIFIER:
        guess = "; it may be an ONNX file" if content[0] == _ONNX_FIRST_BYTE else ""
        raise BadRequest(f"the artefact is no TFLite file: it is not marked as TFL3{guess}")
    _check_model(parse(content, SCHEMA, "Model", _LIMITS), content)


def inputs_of(content: Content) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type by numpy's name and shape of each input of a file that passed `check`."""
    graph = parse(content, SCHEMA, "Model", _LIMITS)["subgraphs"][0]
    tensors = [graph["tensors"][int(index)] for index in graph["inputs"]]
    return [
        (str(t["name"]), TENSOR_TYPES[t["type"]].lower(), tuple(int(size) for size in t["shape"]))
        for t in tensors
    ]


def _check_model(model: Table, content: Content) -> None:
    if model["version"] != _VERSION:
        raise BadRequest(f"the model has the schema version {model['version']}; only 3 is known")
    operators = [_operator_of(code, i) for i, code in enumerate(model["operator_codes"] or ())]
    _refuse_parts(
        model,
        "the model",
        external_buffers="data in other files are refused; save it with its weights inside",
        external_buffer_groups="data in other files are refused; save it with its weights inside",
    )
    graphs = model["subgraphs"] or ()
    if len(graphs) != 1:
        raise BadRequest(f"the model has {len(graphs)} subgraphs; only one is accepted")
    buffers = _buffers(model)
    _check_metadata(model, len(buffers))
    _GraphCheck(graphs[0], operators, buffers, content).check()
    _check_signatures(model["signature_defs"] or (), graphs[0])


def _operator_of(code: Table, index: int) -> str:
    """The name of an operator that is accepted."""
    old, new = code["deprecated_builtin_code"], code["builtin_code"]
    if new not in (0, old) and old not in (0, min(new, _DEPRECATED_LIMIT)):
        raise BadRequest(f"operator code {index} is two operators, {old} and {new}")
    number: int = max(old, new)
    if not 0 <= number < len(OPERATORS):
        raise UnsupportedOperator(
            f"there is no builtin operator {number}; is the file a newer one?"
        )
    name = OPERATORS[number]
    if name == "CUSTOM":
        raise UnsupportedOperator(
            f"the model has the custom operator {shown(code['custom_code'] or '')}; "
            "only builtin ones are accepted"
        )
    if name not in SIGNATURES:
        raise UnsupportedOperator(f"the operator {name} is not accepted: {reason_against(name)}")
    if code["custom_code"]:
        raise BadRequest(f"operator code {index} is {name}, and has a custom name")
    if not 1 <= code["version"] <= _MOST_OPERATOR_VERSION:
        raise BadRequest(f"there is no version {code['version']} of {name}")
    return name


def _buffers(model: Table) -> list[Optional[Span]]:
    """Where the data of each buffer lie, None for one without."""
    buffers: list[Optional[Span]] = []
    for index, buffer in enumerate(model["buffers"] or ()):
        if buffer["offset"] or buffer["size"]:
            raise BadRequest(
                f"buffer {index} lies behind the FlatBuffer (offset, size): this is refused; "
                "save the model with its weights inside"
            )
        data: Optional[Span] = buffer["data"]
        buffers.append(data if data is not None and data.size else None)
    if not buffers or buffers[0] is not None:
        raise BadRequest("buffer 0 is missing or not empty; it stands for no data")
    return buffers


def _check_metadata(model: Table, buffers: int) -> None:
    entries = model["metadata"] or ()
    if len(entries) > _MOST_METADATA:
        raise BadRequest(f"there are more than {_MOST_METADATA} pieces of metadata")
    for entry in entries:
        if entry["buffer"] >= buffers:
            raise BadRequest(
                f"metadata {shown(entry['name'] or '')} lie in the buffer {entry['buffer']}, "
                f"and there are {buffers}"
            )
    numbers = model["metadata_buffer"]
    if numbers is not None and len(numbers) and not _within(numbers, 0, buffers - 1):
        raise BadRequest(f"metadata_buffer names a buffer that is none of {buffers}")


def _check_signatures(signatures: Sequence[Table], graph: Table) -> None:
    if len(signatures) > _MOST_SIGNATURES:
        raise BadRequest(f"there are more than {_MOST_SIGNATURES} signatures")
    keys: set[str] = set()
    for signature in signatures:
        key = signature["signature_key"] or ""
        what = f"signature {shown(key)}"
        if key in keys:
            raise BadRequest(f"{what} stands there twice")
        keys.add(key)
        if signature["subgraph_index"]:
            raise BadRequest(f"{what} is of subgraph {signature['subgraph_index']}, which is none")
        for role in ("inputs", "outputs"):
            entries = signature[role] or ()
            of_graph = set(graph[role].tolist())
            if len(entries) > MOST_OPERANDS:
                raise BadRequest(f"{what} has more than {MOST_OPERANDS} {role}")
            names = {entry["name"] for entry in entries}
            if None in names or len(names) != len(entries):
                raise BadRequest(f"{what} has {role} without a name, or two of one name")
            if {entry["tensor_index"] for entry in entries} != of_graph:
                raise BadRequest(f"{what} does not have the {role} of its graph")


@dataclass(frozen=True)
class _Tensor:
    """A tensor as its graph declares it.

    Args:
        what: it, for messages.
        type: as the schema names it.
        shape: its dimensions.
        data: where they lie, for a constant.
        size: in bytes.
        scales: how many scales it has; 0 where it is not quantised.
    """

    what: str
    type: str
    shape: Shape
    data: Optional[Span]
    size: int
    scales: Sequence[float]


class _GraphCheck:
    """Checks the graph of one model."""

    def __init__(
        self,
        graph: Table,
        operators: Sequence[str],
        buffers: Sequence[Optional[Span]],
        content: Content,
    ) -> None:
        self._graph = graph
        self._operators = operators
        self._buffers = buffers
        self._content = content
        self._tensors: list[_Tensor] = []
        self._known: list[bool] = []
        self._operands = 0

    def check(self) -> None:
        """The graph: tensors, then operators in their order, then outputs."""
        for name in ("tensors", "operators", "inputs", "outputs"):
            if self._graph[name] is None or not len(self._graph[name]):
                raise BadRequest(f"the graph has no {name}; is the file complete?")
        tensors = enumerate(self._graph["tensors"])
        self._tensors = [self._tensor(tensor, index) for index, tensor in tensors]
        self._known = [tensor.data is not None or not tensor.size for tensor in self._tensors]
        for index in self._edge("input"):
            self._define(index, "the graph has the input")
        for index, operator in enumerate(self._graph["operators"]):
            self._check_operator(operator, index)
        for index in self._edge("output"):
            if not self._known[index]:
                raise BadRequest(f"output {self._tensors[index].what} is computed by no operator")

    def _edge(self, role: str) -> list[int]:
        """The indices of the graph's inputs or outputs."""
        indices = self._indices(self._graph[f"{role}s"], f"the graph's {role}s")
        if len(set(indices)) != len(indices):
            raise BadRequest(f"the graph has an {role} twice")
        if min(indices) < 0:
            raise BadRequest(f"the graph has an {role} that is left out")
        size = sum(self._tensors[index].size for index in indices)
        if size > _MOST_VALUE_BYTES:
            raise BadRequest(f"the {role}s take {size} bytes; at most 1 GiB is accepted")
        return indices

    def _indices(self, numbers: Any, what: str) -> list[int]:
        """Indices of tensors, or -1."""
        if numbers is None or not len(numbers):
            return []
        if len(numbers) > MOST_OPERANDS:
            raise BadRequest(f"{what} are more than {MOST_OPERANDS}")
        self._operands += len(numbers)
        if self._operands > _MOST_OPERANDS_IN_ALL:
            raise BadRequest(f"operators have more than {_MOST_OPERANDS_IN_ALL} inputs and outputs")
        if not _within(numbers, _OPTIONAL, len(self._tensors) - 1):
            raise BadRequest(f"{what} name a tensor that is none of {len(self._tensors)}")
        return numbers.tolist()

    def _define(self, index: int, what: str) -> None:
        if self._known[index]:
            raise BadRequest(
                f"{what} {self._tensors[index].what}, which is a constant or computed already"
            )
        self._known[index] = True

    def _tensor(self, tensor: Table, index: int) -> _Tensor:
        what = f"tensor {index} ({shown(tensor['name'] or '')})"
        _refuse_parts(
            tensor,
            what,
            is_variable="it keeps a state from one call to the next; make it an input and output",
            sparsity="sparse tensors are refused; store it dense",
            variant_tensors="only numbers are accepted",
            external_buffer="data in other files are refused; save it with its weights inside",
        )
        name = TENSOR_TYPES[tensor["type"]]
        if name not in _BITS:
            raise BadRequest(f"{what} is of the type {name}; only numbers are accepted")
        shape = _shape_of(tensor, what)
        size = -(-math.prod(shape) * _BITS[name] // 8)
        if size > _MOST_VALUE_BYTES:
            amount = str(size) if size < 2**63 else "more than 2^63"
            raise BadRequest(f"{what} takes {amount} bytes; at most 1 GiB is accepted")
        if tensor["buffer"] >= len(self._buffers):
            raise BadRequest(f"{what} is in buffer {tensor['buffer']} of {len(self._buffers)}")
        data = self._buffers[tensor["buffer"]]
        if data is not None and data.size != size:
            raise BadRequest(f"{what} holds {data.size} bytes; {name}{list(shape)} takes {size}")
        scales: Any = ()
        if tensor["quantization"] is not None:
            scales = _scales_of(tensor["quantization"], name, shape, what)
        if len(scales) > 1 and data is None:
            raise BadRequest(f"{what} has {len(scales)} scales; what is computed has one")
        return _Tensor(what, name, shape, data, size, scales)

    def _check_operator(self, operator: Table, index: int) -> None:
        code: int = operator["opcode_index"]
        if code >= len(self._operators):
            raise BadRequest(
                f"operator {index} has the code {code}; there are {len(self._operators)}"
            )
        name = self._operators[code]
        what = f"operator {index} ({name})"
        signature = SIGNATURES[name]
        _refuse_parts(
            operator,
            what,
            custom_options="only custom operators have some",
            large_custom_options_offset="only custom operators have some",
            large_custom_options_size="only custom operators have some",
            builtin_options_2="only operators of StableHLO have some",
            intermediates="only operators with a state have some",
        )
        mutating = operator["mutating_variable_inputs"]
        if mutating is not None and mutating.any():
            raise BadRequest(f"{what} changes its inputs; only functions of them are accepted")
        options = _options_of(operator, name, signature, what)
        inputs = self._inputs(operator, signature, what)
        outputs = self._indices(operator["outputs"], f"the outputs of {what}")
        if not signature.fewest_outputs <= len(outputs) <= signature.most_outputs:
            raise BadRequest(f"{what} has {len(outputs)} outputs")
        if min(outputs) < 0:
            raise BadRequest(f"{what} has an output that is left out")
        if name in ONE_TYPE and len({self._tensors[i].type for i in (*inputs, *outputs)}) > 1:
            raise BadRequest(f"{what} has inputs and outputs of several types")
        if name not in MOVES:
            self._check_scales(name, inputs, outputs, what)
        operands = [
            None
            if i < 0
            else Operand(self._tensors[i].shape, self._values(i, name, what))
            if position in signature.stored
            else Operand(self._tensors[i].shape)
            for position, i in enumerate(inputs)
        ]
        try:
            shapes = shapes_of(name, Node(options, operands, len(outputs)))
        except ValueError as error:
            raise BadRequest(f"{what} cannot run: {error}") from None
        for output, shape in zip(outputs, shapes):
            if self._tensors[output].shape != shape:
                raise BadRequest(
                    f"{what} makes {_shown_shape(shape)}, and declares "
                    f"{_shown_shape(self._tensors[output].shape)}"
                )
            self._define(output, f"{what} writes")

    def _check_scales(
        self, name: str, inputs: Iterable[int], outputs: Iterable[int], what: str
    ) -> None:
        """Small integers stand for other numbers; kernels divide by scales that are not there."""
        scales: tuple[list[Sequence[float]], list[Sequence[float]]] = ([], [])
        for found, indices in zip(scales, (inputs, outputs)):
            for index in indices:
                tensor = self._tensors[index]
                if index < 0 or tensor.type not in _ZERO_POINTS:
                    continue
                if not len(tensor.scales):
                    raise BadRequest(f"{what} calculates with {tensor.what}, which has no scale")
                found.append(tensor.scales)
        if not scales_fit(name, *scales):
            raise BadRequest(f"{what} cannot calculate with the scales of its inputs and outputs")

    def _inputs(self, operator: Table, signature: Signature, what: str) -> list[int]:
        inputs = self._indices(operator["inputs"], f"the inputs of {what}")
        if not signature.fewest_inputs <= len(inputs) <= signature.most_inputs:
            raise BadRequest(f"{what} has {len(inputs)} inputs")
        for position, index in enumerate(inputs):
            if index == _OPTIONAL:
                if position < signature.fewest_inputs or signature.most_inputs == MOST_OPERANDS:
                    raise BadRequest(f"{what} leaves out input {position}, which it needs")
            elif not self._known[index]:
                raise BadRequest(
                    f"{what} reads {self._tensors[index].what}, which nothing before it computes"
                )
        return inputs

    def _values(self, index: int, operator: str, what: str) -> list[Any]:
        """The numbers of a constant that decides on shapes."""
        tensor = self._tensors[index]
        if not tensor.size:
            return []
        if tensor.data is None:
            raise BadRequest(
                f"{what} needs {tensor.what} before it runs; it must be a constant, so that "
                "shapes are fixed"
            )
        kind = _STORED_TYPES.get(tensor.type)
        if operator == "RANGE" and tensor.type == "FLOAT32":
            kind = "<f4"
        if kind is None:
            raise BadRequest(f"{what} takes no {tensor.type} as {tensor.what}")
        count = math.prod(tensor.shape)
        if count > _MOST_SHAPE_VALUES and operator not in ("SPLIT_V",):
            raise BadRequest(f"{what} needs {tensor.what}, which has {count} numbers")
        return np.frombuffer(self._content, kind, count, tensor.data.start).tolist()


def _shape_of(tensor: Table, what: str) -> Shape:
    """The dimensions of a tensor; it may have no elements where it has one dimension."""
    shape = tensor["shape"] if tensor["shape"] is not None else np.zeros(0, np.int32)
    if len(shape) > _MOST_DIMENSIONS:
        raise BadRequest(f"{what} has more than {_MOST_DIMENSIONS} dimensions")
    sizes = tuple(shape.tolist())
    if min(sizes, default=1) < 1 and sizes != (0,):
        raise BadRequest(f"{what} has a dimension of {min(sizes)}")
    signature = tensor["shape_signature"]
    if signature is not None and len(signature) and not np.array_equal(signature, shape):
        raise BadRequest(f"{what} has no fixed shape (shape_signature); save it with fixed sizes")
    return sizes


def _scales_of(parameters: Table, kind: str, shape: Shape, what: str) -> Any:
    """Checks how a tensor is quantised; its scales."""
    if parameters["details"] is not None:
        raise BadRequest(f"{what} has {parameters['details'].kind}; only scales are accepted")
    scales, zeros = (
        np.zeros(0) if parameters[name] is None else parameters[name]
        for name in ("scale", "zero_point")
    )
    if len(scales) != len(zeros):
        raise BadRequest(f"{what} has {len(scales)} scales and {len(zeros)} zero points")
    axis = parameters["quantized_dimension"]
    if axis < 0 or axis >= max(1, len(shape)):
        raise BadRequest(f"{what} is quantised along the dimension {axis}, which it lacks")
    if not len(scales):
        return scales
    if len(scales) > 1 and (not shape or len(scales) != shape[axis]):
        raise BadRequest(f"{what} has {len(scales)} scales along a dimension of another size")
    if not _within(scales, *_SCALES):
        raise BadRequest(f"{what} has a scale that is not within 2^-60 to 2^60")
    if not _within(zeros, *_ZERO_POINTS.get(kind, (0, 0))):
        raise BadRequest(f"{what} has a zero point that is no number of {kind}")
    return scales


def _options_of(operator: Table, name: str, signature: Signature, what: str) -> dict[str, Any]:
    """The fields of an operator's options."""
    chosen = operator["builtin_options"]
    if chosen is None:
        fields = SCHEMA.tables[signature.options] if signature.options else ()
        if fields and name not in _OPTIONS_NEEDED_NOT:
            raise BadRequest(f"{what} lacks its options ({signature.options})")
        return {field.name: None for field in fields}
    if chosen.kind != signature.options:
        raise BadRequest(f"{what} has {chosen.kind}, which are those of another operator")
    options: dict[str, Any] = {}
    for field, value in chosen.table.items():
        least = _LEAST_OPTIONS.get(field)
        if least is not None and not least <= value <= _MOST_OPTION:
            raise BadRequest(f"{what} has the {field} {value}; it takes {least} to {_MOST_OPTION}")
        if isinstance(value, np.ndarray):
            if len(value) > _MOST_DIMENSIONS:
                raise BadRequest(f"{what} has a {field} of {len(value)} numbers")
            value = value.tolist()
        options[field] = value
    if options.get("weights_format") or options.get("quant_spec"):
        raise BadRequest(f"{what} has weights in an order of its own; only the plain one is known")
    return options


def _within(numbers: Any, low: float, high: float) -> bool:
    return bool(numbers.min() >= low and numbers.max() <= high)


def _shown_shape(shape: Iterable[int]) -> str:
    sizes = (str(size) if abs(size) < 2**63 else "more than 2^63" for size in shape)
    return f"[{', '.join(sizes)}]"


def _refuse_parts(table: Table, what: str, **parts: str) -> None:
    for name, advice in parts.items():
        found = table[name]
        size = found.size if isinstance(found, (Span, np.ndarray)) else found
        if size:
            raise BadRequest(f"{what} has {name}: {advice}")
