"""ONNX files that nobody should send: for tests of the checks, and of the agent behind them.

`external_data_attacks` asks for files and memory of the board, in every place of a model where a
tensor may stand. `refused_graphs` are malformed or lie about sizes, `endless_graphs` are well
formed and take more time or memory than there is. `mutated` changes a file a little, anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from hurricane.agents.formats._onnx_schema import SCHEMA

MEMORY_MARKER = "*/_ORT_MEM_ADDR_/*"
"""Names memory of the process instead of a file, for ONNX Runtime and OpenVINO alike."""

Entries = dict[str, str]
External = Callable[[str, int, list[int]], TensorProto]
"""Makes a tensor whose data lie elsewhere, from a name, an element type and dimensions."""

_BYTES = {TensorProto.UINT8: 1, TensorProto.INT64: 8}


@dataclass(frozen=True)
class Canary:
    """A file with a secret, by the names that a client could give it.

    Args:
        size: how many bytes of it to ask for.
        absolute: its absolute path.
        parent: its path with ``../`` in it.
        plain: its name in the folder that the runtime looks in.
        symlink: name of a symbolic link to it there.
        hard_link: name of a hard link to it there.
        address: where memory is asked for.
    """

    size: int
    absolute: str
    parent: str = "../canary"
    plain: str = "canary"
    symlink: str = "symlink"
    hard_link: str = "hard-link"
    address: int = 0x400000

    def locations(self) -> dict[str, Entries]:
        """Entries of external data by the name of the trick; a length is added where none is."""
        return {
            "parent": {"location": self.parent},
            "absolute": {"location": self.absolute},
            "slashless": {"location": self.absolute.lstrip("/")},
            "symlink": {"location": self.symlink},
            "hard-link": {"location": self.hard_link},
            "plain": {"location": self.plain},
            "environ": {"location": "/proc/self/environ"},
            "past-the-end": {"location": self.plain, "offset": str(2**40)},
            "huge-length": {"location": self.plain, "length": str(2**62)},
            "memory": {"location": MEMORY_MARKER, "offset": str(self.address)},
        }


def external_data_attacks(canary: Canary) -> Iterator[tuple[str, bytes]]:
    """A model for each place and each trick, named ``place/trick``; its output `leak` is the data.

    Args:
        canary: what is asked for.
    """
    for trick, entries in canary.locations().items():

        def external(
            name: str, element: int, dims: list[int], entries: Entries = entries
        ) -> TensorProto:
            tensor = TensorProto(name=name, data_type=element, dims=dims)
            tensor.data_location = TensorProto.EXTERNAL
            size = int(np.prod(dims)) * _BYTES[element]
            for key, value in {"length": str(size), **entries}.items():
                tensor.external_data.add(key=key, value=value)
            return tensor

        for place, build in PLACES.items():
            yield f"{place}/{trick}", build(external, canary.size).SerializeToString()


def _model(
    nodes: list[NodeProto],
    leak: tuple[int, list[int]],
    functions: list[onnx.FunctionProto] | None = None,
    **parts: list,
) -> ModelProto:
    """A model with a sound node beside the one that leaks."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), *nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("leak", *leak),
        ],
        **parts,
    )
    opsets = [helper.make_opsetid("", 17)]
    if functions:
        opsets.append(helper.make_opsetid("local", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions or [])


def _initializer(external: External, size: int) -> ModelProto:
    return _model(
        [helper.make_node("Identity", ["w"], ["leak"])],
        (TensorProto.UINT8, [size]),
        initializer=[external("w", TensorProto.UINT8, [size])],
    )


def _attribute(external: External, size: int) -> ModelProto:
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [4])
    value = external("value", TensorProto.INT64, [1])
    return _model(
        [helper.make_node("ConstantOfShape", ["shape"], ["leak"], value=value)],
        (TensorProto.INT64, [4]),
        initializer=[shape],
    )


def _attribute_list(external: External, size: int) -> ModelProto:
    node = helper.make_node("Cast", ["x"], ["leak"], to=TensorProto.UINT8)
    node.attribute.append(
        AttributeProto(
            name="values",
            type=AttributeProto.TENSORS,
            tensors=[external("values", TensorProto.UINT8, [size])],
        )
    )
    return _model([node], (TensorProto.UINT8, [1, 4]))


def _sparse(external: External, size: int, outside: str) -> ModelProto:
    parts = {
        "values": helper.make_tensor("w", TensorProto.UINT8, [1], [7]),
        "indices": helper.make_tensor("indices", TensorProto.INT64, [1], [0]),
    }
    if outside == "values":
        parts["values"] = external("w", TensorProto.UINT8, [size])
        parts["indices"] = helper.make_tensor("i", TensorProto.INT64, [size], list(range(size)))
    else:
        parts["indices"] = external("indices", TensorProto.INT64, [1])
    sparse = helper.make_sparse_tensor(parts["values"], parts["indices"], [size])
    return _model(
        [helper.make_node("Identity", ["w"], ["leak"])],
        (TensorProto.UINT8, [size]),
        sparse_initializer=[sparse],
    )


def _sparse_values(external: External, size: int) -> ModelProto:
    return _sparse(external, size, "values")


def _sparse_indices(external: External, size: int) -> ModelProto:
    return _sparse(external, size, "indices")


def _constant(external: External, size: int) -> ModelProto:
    value = external("value", TensorProto.UINT8, [size])
    return _model(
        [helper.make_node("Constant", [], ["leak"], value=value)], (TensorProto.UINT8, [size])
    )


def _function(body: list[NodeProto], size: int, default: AttributeProto | None) -> ModelProto:
    function = helper.make_function(
        "local",
        "Leak",
        ["unused"],
        ["out"],
        body,
        [helper.make_opsetid("", 17)],
        attribute_protos=[default] if default else [],
    )
    call = helper.make_node("Leak", ["x"], ["leak"], domain="local")
    return _model([call], (TensorProto.UINT8, [size]), [function])


def _function_body(external: External, size: int) -> ModelProto:
    value = external("value", TensorProto.UINT8, [size])
    return _function([helper.make_node("Constant", [], ["out"], value=value)], size, None)


def _function_default(external: External, size: int) -> ModelProto:
    constant = helper.make_node("Constant", [], ["out"])
    constant.attribute.append(
        AttributeProto(name="value", type=AttributeProto.TENSOR, ref_attr_name="value")
    )
    default = helper.make_attribute("value", external("value", TensorProto.UINT8, [size]))
    return _function([constant], size, default)


def _branch(tensor: TensorProto, size: int) -> GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", [tensor.name], [f"{tensor.name}-out"])],
        "branch",
        [],
        [helper.make_tensor_value_info(f"{tensor.name}-out", TensorProto.UINT8, [size])],
        [tensor],
    )


def _if_body(external: External, size: int) -> ModelProto:
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [1])
    node = helper.make_node(
        "If",
        ["condition"],
        ["leak"],
        then_branch=_branch(external("then", TensorProto.UINT8, [size]), size),
        else_branch=_branch(
            helper.make_tensor("else", TensorProto.UINT8, [size], bytes(size), raw=True), size
        ),
    )
    return _model([node], (TensorProto.UINT8, [size]), initializer=[condition])


def _loop_body(external: External, size: int) -> ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go-in"], ["go-out"]),
            helper.make_node(
                "Constant", [], ["row"], value=external("value", TensorProto.UINT8, [size])
            ),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go-in", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("go-out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", TensorProto.UINT8, [size]),
        ],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [1])
    return _model(
        [helper.make_node("Loop", ["turns", ""], ["leak"], body=body)],
        (TensorProto.UINT8, [1, size]),
        initializer=[turns],
    )


PLACES: dict[str, Callable[[External, int], ModelProto]] = {
    "initializer": _initializer,
    "attribute": _attribute,
    "attribute-list": _attribute_list,
    "sparse-values": _sparse_values,
    "sparse-indices": _sparse_indices,
    "constant": _constant,
    "function-body": _function_body,
    "function-default": _function_default,
    "if-body": _if_body,
    "loop-body": _loop_body,
}


# --- graphs that are malformed, or lie ------------------------------------------------------


def sound_model() -> ModelProto:
    """A small model that every check accepts, with most of what a model may have."""
    weights = np.linspace(-1, 1, 4 * 4 * 9, dtype=np.float32).reshape(4, 4, 3, 3)
    body = helper.make_graph(
        [helper.make_node("Add", ["conv", "bias"], ["then"])],
        "then",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, [1, 4, 8, 8])],
    )
    other = helper.make_graph(
        [helper.make_node("Mul", ["conv", "scale"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [2.0])],
    )
    one = helper.make_tensor("value", TensorProto.INT64, [2], [-1, 256])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["conv"], "conv", pads=[1, 1, 1, 1], group=1),
            helper.make_node("If", ["yes"], ["chosen"], "if", then_branch=body, else_branch=other),
            helper.make_node("Constant", [], ["shape"], value=one),
            helper.make_node("Reshape", ["chosen", "shape"], ["flat"], allowzero=0),
            helper.make_node("LeakyRelu", ["flat"], ["y"], alpha=0.5),
        ],
        "sound",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True),
            helper.make_tensor("bias", TensorProto.FLOAT, [4, 1, 1], [0.0, 1.0, 2.0, 3.0]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [1]),
            helper.make_tensor("small", TensorProto.INT8, [3], [-1, 0, 1]),
        ],
        value_info=[helper.make_tensor_value_info("conv", TensorProto.FLOAT, [1, 4, 8, 8])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu_model(**parts: list) -> ModelProto:
    """The smallest model, for parts to be added to."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        **parts,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def refused_graphs() -> Iterator[tuple[str, bytes]]:
    """Named files that a check refuses and no runtime should see."""
    for name, dims in {
        "dimension of 2^62": [2**62],
        "dimensions that multiply to 0 in 64 bits": [2**32, 2**32],
        "dimensions that multiply to 1 in 64 bits": [2**32 + 1, 2**32 - 1, 2**64 // 2 - 1, 3],
        "negative dimension": [-1],
        "two negative dimensions": [-2, -2],
        "dimension of zero": [0, 4],
    }.items():
        # Four bytes each: what a parser that computes in 64 bits may find right.
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4))
        yield name, relu_model(initializer=[tensor]).SerializeToString()
    for name, shape in {
        "input without elements": [1, 0],
        "input of 2^62": [2**62],
        "input that multiplies to 0 in 64 bits": [2**32, 2**32],
        "negative input": [-1, 4],
        "input of 4 GiB": [2**30],
        "input without sizes": ["n", 4],
    }.items():
        model = relu_model()
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
        yield name, model.SerializeToString()
    missing = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    missing.data_location = TensorProto.EXTERNAL
    yield "missing external data", relu_model(initializer=[missing]).SerializeToString()
    yield "custom domain", _with_node("Evil", ["x"], ["z"], domain="org.evil").SerializeToString()
    yield "cycle", _cycle().SerializeToString()
    yield "name defined twice", _with_node("Relu", ["x"], ["y"]).SerializeToString()
    words = helper.make_tensor("w", TensorProto.STRING, [2], [b"one", b"two"])
    yield "strings", relu_model(initializer=[words]).SerializeToString()
    yield "100,000 nested graphs", nested_graphs(100_000)
    yield "million nodes", many_nodes(1_000_000)
    sound = relu_model().SerializeToString()
    yield "ONNX Runtime's format", b"\x20\x00\x00\x00ORTM" + sound
    yield "TFLite", b"\x1c\x00\x00\x00TFL3" + sound
    # The same field numbers as an ONNX file that begins with a model_version of eleven bytes.
    yield "ONNX with TFLite's mark", b"\x08\x08\x12\x06TFL3AB" + sound[2:]
    yield "groups", sound + b"\x7b\x7c"
    yield "number of eleven bytes", b"\x08" + b"\x88" + b"\x80" * 9 + b"\x00" + sound[2:]
    yield "number of 70 bits", b"\x08" + b"\xff" * 9 + b"\x7f" + sound[2:]
    yield "number longer than it need be", b"\x08\x88\x00" + sound[2:]
    yield "length past the end", sound + b"\x72\xff\xff\xff\xff\x07"
    yield "two graphs", sound + sound


def _with_node(*node: object, **attributes: object) -> ModelProto:
    model = relu_model()
    model.graph.node.append(helper.make_node(*node, **attributes))  # type: ignore[arg-type]
    return model


def _cycle() -> ModelProto:
    model = relu_model()
    model.graph.node.insert(0, helper.make_node("Add", ["x", "b"], ["a"]))
    model.graph.node.insert(1, helper.make_node("Relu", ["a"], ["b"]))
    return model


def nested_graphs(depth: int) -> bytes:
    """Branches within branches, so deep that a parser that calls itself runs out of stack."""
    # Inside out, as front and back: each layer's length is known only once it is wrapped.
    fronts: list[bytes] = []
    size = 0
    for _ in range(depth):
        for key in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            fronts.append(bytes([key]) + _varint(size))
            size += len(fronts[-1])
    header = relu_model()
    header.ClearField("graph")
    return header.SerializeToString() + b"\x3a" + _varint(size) + b"".join(reversed(fronts))


def many_nodes(count: int) -> bytes:
    """A chain of nodes."""
    model = relu_model()
    node = helper.make_node("Relu", ["x"], [""]).SerializeToString()
    del model.graph.node[:]
    graph = model.graph.SerializeToString() + (b"\x0a" + _varint(len(node)) + node) * count
    model.ClearField("graph")
    return model.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# --- graphs without end ---------------------------------------------------------------------


def endless_graphs() -> Iterator[tuple[str, bytes]]:
    """Named files that are well formed, and take more time or memory than there is."""
    yield "loop without end", _endless_loop().SerializeToString()
    elements = 25_000_000_000  # of four bytes each
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [elements])
    yield "100 GB by ConstantOfShape", _sum_of(["ConstantOfShape", ["shape"]], shape)
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [elements // 4, 1, 4])
    yield "100 GB by Expand", _sum_of(["Expand", ["x", "shape"]], shape)
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [elements // 4, 1])
    yield "100 GB by Tile", _sum_of(["Tile", ["x", "shape"]], shape)


def _sum_of(node: list, shape: TensorProto) -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node(*node, ["large"]),
            helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _endless_loop() -> ModelProto:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go-in"], ["go-out"]),
            helper.make_node("Relu", ["v-in"], ["v-out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go-in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v-in", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("go-out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v-out", TensorProto.FLOAT, [1, 4]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("go", TensorProto.BOOL, [], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- changing a file a little ---------------------------------------------------------------

Wire = list[list]
"""A message as a list of [field number, wire type, value]; a value is an int, bytes, or a `Wire`
where the field is a message."""

_NUMBERS = (
    0,
    1,
    2,
    3,
    8,
    20,
    127,
    128,
    2**31 - 1,
    2**31,
    2**32,
    2**32 + 1,
    2**62,
    2**63,
    2**64 - 1,
)
_TEXTS = (b"", b"x", b"y", b"conv", b"../canary", MEMORY_MARKER.encode(), b"com.microsoft",
          b"\xff", b"a\nb", b"Constant", b"Loop", bytes(2000))  # fmt: skip


def decode(content: bytes, message: str = "ModelProto") -> Wire:
    """Takes a well-formed file apart."""
    wire: Wire = []
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(content):
        tag = varint()
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            wire.append([number, wire_type, varint()])
            continue
        size = {1: 8, 5: 4}.get(wire_type) or varint()
        value = content[position : position + size]
        position += size
        kind = SCHEMA[message][number].kind
        wire.append([number, wire_type, decode(value, kind) if kind in SCHEMA else value])
    return wire


def encode(wire: Wire) -> bytes:
    """The inverse of `decode`; what does not fit together is written all the same."""
    parts = []
    for number, wire_type, value in wire:
        parts.append(_varint(number << 3 | wire_type))
        if isinstance(value, int):
            parts.append(_varint(value))
            continue
        value = encode(value) if isinstance(value, list) else value
        if wire_type not in (1, 5):
            parts.append(_varint(len(value)))
        parts.append(value)
    return b"".join(parts)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A copy of a well-formed file with up to three changes of its fields, or of its bytes."""
    wire = decode(content)
    for _ in range(chance.randint(1, 3)):
        _change(wire, chance)
    changed = bytearray(encode(wire))
    if changed and chance.random() < 0.1:
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    if changed and chance.random() < 0.05:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


def _change(wire: Wire, chance: random.Random) -> None:
    places = list(_places(wire))
    if not places:
        return
    fields, index = chance.choice(places)
    field = fields[index]
    action = chance.choice(
        ("remove", "double", "graft", "swap", "number", "wire", "value", "value")
    )
    if action == "remove":
        del fields[index]
    elif action == "double":
        fields.insert(index, field)
    elif action == "graft":
        others, other = chance.choice(places)
        # A copy: a message within itself could not be written.
        fields.insert(index, _copy(others[other]))
    elif action == "swap":
        other = chance.randrange(len(fields))
        fields[index], fields[other] = fields[other], field
    elif action == "number":
        field[0] = chance.randint(0, 30)
    elif action == "wire":
        field[1] = chance.randrange(8)
    elif isinstance(field[2], int):
        near = chance.choice((field[2] + 1, max(0, field[2] - 1)))
        field[2] = chance.choice((*_NUMBERS, near, near))
    elif isinstance(field[2], bytes):
        value = bytearray(field[2])
        if value and chance.random() < 0.5:
            value[chance.randrange(len(value))] = chance.randrange(256)
            field[2] = bytes(value)
        else:
            field[2] = chance.choice((*_TEXTS, bytes(value) + b"\x00", bytes(value)[:-1]))


def _places(wire: Wire) -> Iterator[tuple[Wire, int]]:
    for index, field in enumerate(wire):
        yield wire, index
        if isinstance(field[2], list):
            yield from _places(field[2])


def _copy(field: list) -> list:
    number, wire_type, value = field
    return [number, wire_type, [_copy(f) for f in value] if isinstance(value, list) else value]
