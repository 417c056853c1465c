"""Checks ONNX files, formats ``onnx`` and ``onnx-qdq``, before a runtime reads them.

What is accepted is one graph of standard operators with all its weights inside, and fixed sizes at
its inputs. Runtimes accept more: files of the board as weights, addresses in memory, operators of
others. Whatever is not known here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from ..errors import BadRequest, UnsupportedOperator
from . import Content
from ._onnx_schema import SCHEMA
from ._protobuf import Limits, Message, Numbers, Span, parse, shown

NAMES = ("onnx", "onnx-qdq")

_LIMITS = Limits(
    fields=1_000_000,  # a network of 2,000 nodes has some 30,000; a million take 2 seconds
    depth=48,  # below the 100 of protobuf itself; bodies in bodies take 3 each
)
_MOST_BYTES = 2**31 - 1  # what protobuf can read
_MOST_NODES = 100_000  # of all graphs together; a network has some hundreds
_MOST_BODIES = 8  # within each other: loops in loops, each of which multiplies the work
_MOST_ATTRIBUTES = 100  # of a node; the richest standard operator has 9
_MOST_DIMENSIONS = 16  # runtimes keep shapes in small arrays; numpy takes 64 at most
_MOST_VALUE_BYTES = 2**30  # all inputs, or all outputs: the agent makes and sends them
_IR_VERSIONS = range(3, 15)  # those of onnx 1.0 to 1.23: before, operators had no versions
_MOST_OPSET = 999  # one or two come a year
_FIRST_BYTE = 0x08  # the tag of ir_version: serialisers write fields in order
_OTHER_FORMATS = {b"ORTM": "ONNX Runtime's own format", b"TFL3": "TFLite"}  # bytes 4 to 8
_DOMAINS = ("", "ai.onnx")  # two names of one thing
# ONNX Runtime, and its quantization, import these into every file they write, used or not.
_IMPORTED_DOMAINS = (
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.dml",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "org.pytorch.aten",
)
_WITH_BODIES = ("If", "Loop", "Scan")


class _ElementType(NamedTuple):
    """How numbers of one type are stored.

    Attributes:
        name: as ONNX names it.
        bits: of one element in `raw_data`, without gaps.
        field: the other field that it may be stored in.
        low, high: range of the numbers there; None where the field itself has that range.
        packed: elements that one number there holds.
    """

    name: str
    bits: int
    field: str
    low: Optional[int] = None
    high: int = 0
    packed: int = 1


_BITS8 = (8, "int32_data", 0, 2**8 - 1)
_BITS16 = (16, "int32_data", 0, 2**16 - 1)
_BITS6 = (6, "int32_data", 0, 2**6 - 1)
_BITS4 = (4, "int32_data", 0, 2**8 - 1, 2)
_BITS2 = (2, "int32_data", 0, 2**8 - 1, 4)
_ELEMENT_TYPES = {
    1: _ElementType("FLOAT", 32, "float_data"),
    2: _ElementType("UINT8", *_BITS8),
    3: _ElementType("INT8", 8, "int32_data", -(2**7), 2**7 - 1),
    4: _ElementType("UINT16", *_BITS16),
    5: _ElementType("INT16", 16, "int32_data", -(2**15), 2**15 - 1),
    6: _ElementType("INT32", 32, "int32_data"),
    7: _ElementType("INT64", 64, "int64_data"),
    9: _ElementType("BOOL", 8, "int32_data", 0, 1),
    10: _ElementType("FLOAT16", *_BITS16),
    11: _ElementType("DOUBLE", 64, "double_data"),
    12: _ElementType("UINT32", 32, "uint64_data", 0, 2**32 - 1),
    13: _ElementType("UINT64", 64, "uint64_data"),
    16: _ElementType("BFLOAT16", *_BITS16),
    17: _ElementType("FLOAT8E4M3FN", *_BITS8),
    18: _ElementType("FLOAT8E4M3FNUZ", *_BITS8),
    19: _ElementType("FLOAT8E5M2", *_BITS8),
    20: _ElementType("FLOAT8E5M2FNUZ", *_BITS8),
    21: _ElementType("UINT4", *_BITS4),
    22: _ElementType("INT4", *_BITS4),
    23: _ElementType("FLOAT4E2M1", *_BITS4),
    24: _ElementType("FLOAT8E8M0", *_BITS8),
    25: _ElementType("UINT2", *_BITS2),
    26: _ElementType("INT2", *_BITS2),
    27: _ElementType("FLOAT6E2M3", *_BITS6),
    28: _ElementType("FLOAT6E3M2", *_BITS6),
}
_NOT_NUMBERS = {8: "strings", 14: "complex numbers", 15: "complex numbers"}
_DATA_FIELDS = (
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
_STRING = 8

# The field that an attribute of each type has its value in.
_ATTRIBUTE_FIELDS = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
_NEEDED_VALUES = ("t", "g")  # other types have a value where nothing is written
_REFUSED_VALUES = {
    "sparse_tensor": "sparse tensors are refused; store it dense",
    "sparse_tensors": "sparse tensors are refused; store them dense",
    "tp": "types other than tensors are refused",
    "type_protos": "types other than tensors are refused",
}


def check(content: Content) -> None:
    """Checks a file.

    Args:
        content: the whole of it.

    Raises:
        BadRequest: it is malformed, ambiguous, incomplete, too large, of another format, or holds
            what is never accepted: external data, sparse tensors, strings, functions.
        UnsupportedOperator: it has operators of other domains than ``ai.onnx``.
    """
    if isinstance(content, memoryview):
        content = content.cast("B")
    if not len(content):
        raise BadRequest("the artefact is empty")
    if len(content) > _MOST_BYTES:
        raise BadRequest(f"the artefact has {len(content)} bytes; ONNX files have less than 2 GiB")
    other = _OTHER_FORMATS.get(bytes(content[4:8]))
    if other is not None:
        raise BadRequest(f"the artefact is marked as {other}, and was sent as ONNX")
    if content[0] != _FIRST_BYTE:
        raise BadRequest("the artefact is no ONNX file: it does not begin with its ir_version")
    checks = {"TensorProto": _refuse_external_data}
    _check_model(parse(content, SCHEMA, "ModelProto", _LIMITS, checks))


def operators_of(content: Content) -> list[str]:
    """Operator of each node of a file's graph, of any domain; the file is not checked."""
    model = parse(content, SCHEMA, "ModelProto", _LIMITS)
    return [node.get("op_type", "") for node in model["graph"].get("node", ())]


def opset_of(content: Content) -> int:
    """Version of the standard operators that a file's graph has; the file is not checked."""
    model = parse(content, SCHEMA, "ModelProto", _LIMITS)
    imports = model.get("opset_import", ())
    return next((i.get("version", 0) for i in imports if i.get("domain", "") in _DOMAINS), 0)


def _refuse_external_data(tensor: Message) -> None:
    # As soon as a tensor is read, so that no place where one may stand is forgotten.
    found = [name for name in ("external_data", "segment") if name in tensor]
    if found or tensor.get("data_location", 0):
        raise BadRequest(
            f"tensor {shown(tensor.get('name', ''))} lies outside of the artefact "
            f"({(found or ['data_location'])[0]}): external data is refused; "
            "save the model with its weights inside"
        )


def _check_model(model: Message) -> None:
    _refuse_parts(
        model,
        "the model",
        functions="functions of its own are refused; inline them first",
        training_info="training information is refused; leave it out",
        configuration="configurations of devices are refused; leave them out",
    )
    version = model["ir_version"]
    if version not in _IR_VERSIONS:
        raise BadRequest(
            f"the model has ir_version {version}; {_IR_VERSIONS[0]} to {_IR_VERSIONS[-1]} are known"
        )
    graph = model.get("graph")
    if graph is None or not graph.get("node"):
        raise BadRequest("the artefact holds no ONNX graph; is the file complete?")
    _GraphCheck().check_main(graph)
    _check_opsets(model.get("opset_import", ()))  # last: a node of a domain says more than it


def _check_opsets(imports: Iterable[Message]) -> None:
    seen: set[str] = set()
    for entry in imports:
        domain, version = entry.get("domain", ""), entry.get("version", 0)
        if domain not in _DOMAINS and domain not in _IMPORTED_DOMAINS:
            raise UnsupportedOperator(
                f"the model imports operators of the domain {shown(domain)}; "
                "only those of ai.onnx are accepted"
            )
        if not 1 <= version <= _MOST_OPSET:
            raise BadRequest(f"there is no opset {version}")
        domain = domain or _DOMAINS[1]
        if domain in seen:
            raise BadRequest(f"the model imports the operators of {domain} twice")
        seen.add(domain)
    if _DOMAINS[1] not in seen:
        raise BadRequest("the model does not say its opset (opset_import); is the file complete?")


@dataclass
class _Scope:
    """The values that a node may read: those of its own graph so far, and of the graphs around.

    Attributes:
        place: where the graph is, for messages.
        outer: the scope around it.
        names: its own so far.
        depth: bodies around it.
    """

    place: str = ""
    outer: Optional[_Scope] = None
    names: set[str] = field(default_factory=set)
    depth: int = 0

    def has(self, name: str) -> bool:
        return name in self.names or (self.outer is not None and self.outer.has(name))

    def define(self, name: str, what: str) -> None:
        # A body must not hide a name either: runtimes that inline it would confuse the two.
        if not name:
            raise BadRequest(f"{what} has no name")
        if self.has(name):
            raise BadRequest(f"{what}: the name {shown(name)} is taken already")
        self.names.add(name)


class _GraphCheck:
    """Checks the graphs of one model; counts nodes over all of them."""

    def __init__(self) -> None:
        self._nodes = 0

    def check_main(self, graph: Message) -> None:
        """The model's graph: sizes of inputs are fixed."""
        inside = {tensor.get("name", "") for tensor in graph.get("initializer", ())}
        size = 0
        for value in graph.get("input", ()):
            if value.get("name", "") not in inside:
                what = f"input {shown(value.get('name', ''))}"
                size += _size_of_value(value, what, fixed=True)
        if size > _MOST_VALUE_BYTES:
            raise BadRequest(f"the inputs take {_amount(size)} bytes; at most 1 GiB is accepted")
        self._check_graph(graph, _Scope())

    def _check_graph(self, graph: Message, scope: _Scope) -> None:
        place = scope.place
        _refuse_parts(
            graph,
            f"the graph{place}",
            sparse_initializer="sparse tensors are refused; store them dense",
            quantization_annotation="annotations of quantization are refused; use QuantizeLinear "
            "and DequantizeLinear nodes",
        )
        self._nodes += len(graph.get("node", ()))
        if self._nodes > _MOST_NODES:
            raise BadRequest(f"there are more than {_MOST_NODES} nodes")
        _check_edges(graph, scope)
        for index, node in enumerate(graph.get("node", ())):
            self._check_node(node, index, scope)
        for value in graph["output"]:
            if not scope.has(value.get("name", "")):
                raise BadRequest(
                    f"output {shown(value.get('name', ''))}{place} is computed by no node"
                )

    def _check_node(self, node: Message, index: int, scope: _Scope) -> None:
        op_type, domain = node.get("op_type", ""), node.get("domain", "")
        name = shown(node["name"]) if node.get("name") else str(index)
        short = f"node {name} ({shown(op_type)[1:-1]})"
        what = short + scope.place
        if domain not in _DOMAINS:
            raise UnsupportedOperator(
                f"{what} is of the domain {shown(domain)}; only operators of ai.onnx are accepted"
            )
        if not op_type:
            raise BadRequest(f"{what} has no op_type")
        if node.get("overload"):
            raise BadRequest(f"{what} overloads a function; inline functions first")
        _refuse_parts(
            node,
            what,
            device_configurations="configurations of devices are refused; leave them out",
        )
        for read in node.get("input", ()):
            if read and not scope.has(read):
                raise BadRequest(f"{what} reads {shown(read)}, which nothing before it computes")
        attributes = node.get("attribute", ())
        if len(attributes) > _MOST_ATTRIBUTES:
            raise BadRequest(f"{what} has more than {_MOST_ATTRIBUTES} attributes")
        if op_type == "Constant" and len(attributes) != 1:
            raise BadRequest(f"{what} has {len(attributes)} values")
        seen: set[str] = set()
        for attribute in attributes:
            attribute_name = attribute.get("name", "")
            if not attribute_name:
                raise BadRequest(f"{what} has an attribute without a name")
            if attribute_name in seen:
                raise BadRequest(f"{what} has the attribute {shown(attribute_name)} twice")
            seen.add(attribute_name)
            self._check_attribute(attribute, op_type, short, scope)
        if not any(node.get("output", ())):
            raise BadRequest(f"{what} has no output")
        for written in node["output"]:
            if written:
                scope.define(written, what)

    def _check_attribute(self, attribute: Message, op_type: str, node: str, scope: _Scope) -> None:
        name = attribute["name"]
        what = f"attribute {shown(name)} of {node}{scope.place}"
        if "ref_attr_name" in attribute:
            raise BadRequest(f"{what} refers to a function's; inline functions first")
        kind = attribute.get("type", 0)
        value_field = _ATTRIBUTE_FIELDS.get(kind)
        if value_field is None:
            raise BadRequest(f"{what} has no known type ({kind})")
        for other in _ATTRIBUTE_FIELDS.values():
            if other in attribute and other != value_field:
                raise BadRequest(f"{what} has a value in {other}, and by its type in {value_field}")
        if value_field in _NEEDED_VALUES and value_field not in attribute:
            raise BadRequest(f"{what} has no value")
        if value_field in _REFUSED_VALUES:
            raise BadRequest(f"{what}: {_REFUSED_VALUES[value_field]}")
        if op_type == "Constant" and value_field in ("s", "strings"):
            raise BadRequest(f"{what}: strings are refused; only numbers are accepted")
        if (op_type, name) == ("Cast", "to"):
            _element_type(attribute.get("i", 0), what)
        for tensor in _values(attribute, "t", "tensors"):
            _check_tensor(tensor, what)
        for graph in _values(attribute, "g", "graphs"):
            if op_type not in _WITH_BODIES:
                raise UnsupportedOperator(
                    f"{what} is a graph; only {', '.join(_WITH_BODIES)} have some"
                )
            if scope.depth == _MOST_BODIES:
                raise BadRequest(f"{what}: graphs are nested deeper than {_MOST_BODIES}")
            body = _Scope(f" in the body of {node}", scope, depth=scope.depth + 1)
            self._check_graph(graph, body)


def _check_edges(graph: Message, scope: _Scope) -> None:
    """What a graph has before its nodes, its outputs, and what is declared of values between."""
    tensors: dict[str, Message] = {}
    for tensor in graph.get("initializer", ()):
        what = f"initializer {shown(tensor.get('name', ''))}{scope.place}"
        scope.define(tensor.get("name", ""), what)
        _check_tensor(tensor, what)
        tensors[tensor["name"]] = tensor
    seen: set[str] = set()
    for value in graph.get("input", ()):
        name = value.get("name", "")
        what = f"input {shown(name)}{scope.place}"
        _size_of_value(value, what)
        if name in tensors and name not in seen:
            _check_same_type(value, tensors[name], what)
        else:
            scope.define(name, what)
        seen.add(name)
    if not graph.get("output"):
        raise BadRequest(f"the graph{scope.place} has no output")
    _check_declared(graph["output"], "output", tensors, scope.place)
    _check_declared(graph.get("value_info", ()), "value", tensors, scope.place)


def _check_declared(
    values: Iterable[Message], role: str, tensors: dict[str, Message], place: str
) -> None:
    seen: set[str] = set()
    size = 0
    for value in values:
        name = value.get("name", "")
        what = f"{role} {shown(name)}{place}"
        if name in seen:
            raise BadRequest(f"{what} is declared twice")
        seen.add(name)
        size_of_one = _size_of_value(value, what, empty=role == "value")
        if name in tensors:
            _check_same_type(value, tensors[name], what)
        size = max(size, size_of_one) if role == "value" else size + size_of_one
    if size > _MOST_VALUE_BYTES:
        raise BadRequest(f"{role}s{place} take {_amount(size)} bytes; at most 1 GiB is accepted")


def _size_of_value(value: Message, what: str, fixed: bool = False, empty: bool = False) -> int:
    """Checks the type of a value at a graph's edges or within.

    Args:
        value: a ValueInfoProto.
        what: it, for messages.
        fixed: type and shape must be known; else they may be left out.
        empty: it may be a list without elements.

    Returns:
        Its size in bytes; 0 where it is not known.
    """
    kinds = value.get("type", {})
    for kind in kinds:
        if kind not in ("tensor_type", "denotation"):
            raise BadRequest(f"{what} has a {kind}; only tensors are accepted")
    tensor_type = kinds.get("tensor_type", {})
    number = tensor_type.get("elem_type", 0)
    element_bits = _element_type(number, what).bits if number or fixed else 0
    dimensions = tensor_type.get("shape", {}).get("dim", ())
    if len(dimensions) > _MOST_DIMENSIONS:
        raise BadRequest(f"{what} has more than {_MOST_DIMENSIONS} dimensions")
    sizes: list[int] = []
    for dimension in dimensions:
        if "dim_value" in dimension and "dim_param" in dimension:
            raise BadRequest(f"{what} has a dimension with a size and a name")
        if "dim_value" in dimension:
            sizes.append(dimension["dim_value"])
    if min(sizes, default=1) < 1 and not (empty and sizes == [0] and len(dimensions) == 1):
        raise BadRequest(f"{what} has a dimension of {min(sizes)}")
    if "shape" not in tensor_type or len(sizes) < len(dimensions):
        if fixed:
            raise BadRequest(f"{what} has no fixed shape; export it with fixed sizes")
        return 0
    return _bytes_of(math.prod(sizes), element_bits)


def _check_same_type(value: Message, tensor: Message, what: str) -> None:
    """Checks that the name of an initializer is declared as what it is, or without a type."""
    tensor_type = value.get("type", {}).get("tensor_type", {})
    dims = tensor.get("dims", Numbers()).first
    declared = [d.get("dim_value") for d in tensor_type.get("shape", {}).get("dim", ())]
    if ("shape" in tensor_type and declared != dims) or tensor_type.get(
        "elem_type", tensor.get("data_type")
    ) != tensor.get("data_type"):
        raise BadRequest(f"{what} is declared otherwise than the initializer of its name")


def _check_tensor(tensor: Message, what: str) -> None:
    """Checks that a tensor holds as many numbers as its dimensions say, and how."""
    element = _element_type(tensor.get("data_type", 0), what)
    dims: Numbers = tensor.get("dims", Numbers())
    if dims.count > _MOST_DIMENSIONS:
        raise BadRequest(f"{what} has more than {_MOST_DIMENSIONS} dimensions")
    if dims.low < 0:
        raise BadRequest(f"{what} has a dimension of {dims.low}")
    elements = math.prod(dims.first)
    if elements == 0 and dims.count != 1:
        raise BadRequest(f"{what} has a dimension of 0")
    used = [name for name in _DATA_FIELDS if name in tensor]
    if "raw_data" in tensor:
        raw: Span = tensor["raw_data"]
        size = _bytes_of(elements, element.bits)
        if used:
            raise BadRequest(f"{what} has its data twice, in raw_data and in {used[0]}")
        if raw.size != size:
            raise BadRequest(
                f"{what} holds {raw.size} bytes; {element.name}{dims.first} takes {_amount(size)}"
            )
        return
    for name in used:
        if name != element.field:
            raise BadRequest(f"{what} has data in {name}; {element.name} lies in {element.field}")
    numbers: Numbers = tensor.get(element.field, Numbers())
    count = -(-elements // element.packed)
    if numbers.count != count:
        raise BadRequest(
            f"{what} holds {numbers.count} numbers; "
            f"{element.name}{dims.first} takes {_amount(count)}"
        )
    if element.low is not None and not element.low <= numbers.low <= numbers.high <= element.high:
        raise BadRequest(
            f"{what} holds numbers of {numbers.low} to {numbers.high}; {element.name} takes "
            f"{element.low} to {element.high}"
        )


def _element_type(number: int, what: str) -> _ElementType:
    if number in _NOT_NUMBERS:
        raise BadRequest(f"{what}: {_NOT_NUMBERS[number]} are refused; only numbers are accepted")
    found = _ELEMENT_TYPES.get(number)
    if found is None:
        raise BadRequest(f"{what} has no known element type ({number})")
    return found


def _bytes_of(elements: int, bits: int) -> int:
    return -(-elements * bits // 8)


def _amount(number: int) -> str:
    return str(number) if number < 2**63 else "more than 2^63"


def _values(message: Message, one: str, many: str) -> list[Message]:
    return ([message[one]] if one in message else []) + message.get(many, [])


def _refuse_parts(message: Message, what: str, **parts: str) -> None:
    for name, advice in parts.items():
        if name in message:
            raise BadRequest(f"{what} has {name}: {advice}")
