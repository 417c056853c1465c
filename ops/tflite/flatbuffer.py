"""A `.tflite` model in memory and its bytes, by LiteRT's own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated

from ..errors import BadRequest

schema: Any = schema_py_generated
"""LiteRT's schema. Its type comments do not hold: names are bytes, vectors are arrays."""

SIGNATURE = "serving_default"
"""The name of the model's one signature, as TensorFlow names it."""

BUFFER_ALIGNMENT = 16
"""Bytes; `force_align: 16` of Buffer.data in the schema, which Python's flatbuffers drops."""

_IDENTIFIER = b"TFL3"
_SCHEMA_VERSION = 3
_TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int32): schema.TensorType.INT32,
}
_INT8_VERSIONS = {
    schema.BuiltinOperator.CONV_2D: 3,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D: 3,
    schema.BuiltinOperator.FULLY_CONNECTED: 4,
    schema.BuiltinOperator.ADD: 2,
    schema.BuiltinOperator.CONCATENATION: 2,
    schema.BuiltinOperator.DEQUANTIZE: 2,
    schema.BuiltinOperator.MAX_POOL_2D: 2,
    schema.BuiltinOperator.MEAN: 2,
    schema.BuiltinOperator.MUL: 2,
    schema.BuiltinOperator.PAD: 2,
    schema.BuiltinOperator.RELU: 2,
    schema.BuiltinOperator.RELU6: 2,
    schema.BuiltinOperator.SPLIT: 2,
    schema.BuiltinOperator.TRANSPOSE: 2,
}
"""Of operators on int8 tensors; of those that the writer does not use, the first has to do."""


class ModelBuilder:
    """A model with one subgraph, put together tensor by tensor and operator by operator."""

    def __init__(self, description: str) -> None:
        self._graph = schema.SubGraphT(name=b"main", tensors=[], operators=[])
        self._model = schema.ModelT(
            version=_SCHEMA_VERSION,
            description=description.encode(),
            buffers=[schema.BufferT()],  # buffer 0 is the empty one, by convention
            operatorCodes=[],
            subgraphs=[self._graph],
            metadata=[],
        )
        self._codes: dict[int, int] = {}
        self._names: set[str] = set()

    def tensor(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> int:
        """Adds a tensor that is computed; returns its index. Its name is made unique."""
        return self._tensor(name, shape, dtype, buffer=0)

    def constant(self, name: str, values: np.ndarray) -> int:
        """Adds a float32, float16 or int32 tensor that is stored; returns its index."""
        return self._tensor(name, values.shape, values.dtype, self._buffer(values.tobytes()))

    def operator(
        self, code: int, inputs: Sequence[int], outputs: Sequence[int], options: Any = None
    ) -> None:
        """Adds an operator.

        Args:
            code: a `schema.BuiltinOperator`.
            inputs, outputs: indices of tensors.
            options: the schema's `…OptionsT` object of this operator.
        """
        if code not in self._codes:
            self._codes[code] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(
                schema.OperatorCodeT(
                    builtinCode=code,
                    # what readers from before 2020 look at; 127 is its "see builtinCode"
                    deprecatedBuiltinCode=min(code, 127),
                )
            )
        operator = schema.OperatorT(
            opcodeIndex=self._codes[code],
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
        )
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._graph.operators.append(operator)

    def signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Names the tensors that go in and come out."""
        self._graph.inputs = np.array(list(inputs.values()), np.int32)
        self._graph.outputs = np.array(list(outputs.values()), np.int32)
        self._model.signatureDefs = [
            schema.SignatureDefT(
                signatureKey=SIGNATURE.encode(),
                subgraphIndex=0,
                inputs=_tensor_maps(inputs),
                outputs=_tensor_maps(outputs),
            )
        ]

    def metadata(self, name: str, content: bytes) -> None:
        """Adds a named piece of metadata, which runtimes carry and do not read."""
        add_metadata(self._model, name, content)

    def pack(self) -> bytes:
        """The bytes of the `.tflite` file."""
        return pack_model(self._model)

    def _tensor(self, name: str, shape: Sequence[int], dtype: Any, buffer: int) -> int:
        self._graph.tensors.append(
            schema.TensorT(
                name=self._unique(name).encode(),
                shape=np.array(shape, np.int32),
                type=_TENSOR_TYPES[np.dtype(dtype)],
                buffer=buffer,
                hasRank=True,
            )
        )
        return len(self._graph.tensors) - 1

    def _buffer(self, content: bytes) -> int:
        self._model.buffers.append(schema.BufferT(data=np.frombuffer(content, np.uint8)))
        return len(self._model.buffers) - 1

    def _unique(self, name: str) -> str:
        """The name, with a number behind it where it is taken: litert-quantizer goes by names."""
        unique, number = name, 1
        while unique in self._names:
            unique, number = f"{name}_{number}", number + 1
        self._names.add(unique)
        return unique


def tensor_type(code: int) -> str:
    """numpy's name of a `schema.TensorType`.

    Raises:
        BadRequest: it is none of ours.
    """
    for dtype, known in {**_TENSOR_TYPES, np.dtype(np.int8): schema.TensorType.INT8}.items():
        if known == code:
            return dtype.name
    raise BadRequest(f"this .tflite file has tensors of the unknown type {code}")


def add_metadata(model: Any, name: str, content: bytes) -> None:
    """Adds a named piece of metadata, which runtimes carry and do not read, to a `ModelT`."""
    model.buffers.append(schema.BufferT(data=np.frombuffer(content, np.uint8)))
    entry = schema.MetadataT(name=name.encode(), buffer=len(model.buffers) - 1)
    model.metadata = [*(model.metadata or []), entry]


def pack_model(model: Any) -> bytes:
    """The bytes of a `schema.ModelT`: operator versions set, buffers inside and aligned."""
    _set_versions(model)
    size = sum(len(b.data) + 64 for b in model.buffers if b.data is not None)
    builder = _AlignedBuilder(size + (1 << 16))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def unpack_model(content: bytes) -> Any:
    """The `schema.ModelT` of a `.tflite` file; buffers behind the flatbuffer are taken in.

    Raises:
        BadRequest: no `.tflite` file, one that is cut short, or one of another schema version.
    """
    if content[4:8] != _IDENTIFIER:
        raise BadRequest("this is no .tflite file (its identifier TFL3 is missing)")
    try:
        model = schema.ModelT.InitFromPackedBuf(content)
        for buffer in model.buffers:
            if buffer.offset:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
    except Exception as error:  # whatever a generated parser raises on a broken file
        raise BadRequest(f"this .tflite file is broken or cut short ({error})") from error
    if model.version != _SCHEMA_VERSION:
        raise BadRequest(f"this .tflite file has schema version {model.version}, not 3")
    return model


class _AlignedBuilder(flatbuffers.Builder):
    """Keeps the alignment of buffers; nothing but buffers is a vector of bytes in this schema."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 (flatbuffers' name)
        if x.dtype != np.uint8:
            return super().CreateNumpyVector(x)
        self.StartVector(1, x.size, BUFFER_ALIGNMENT)
        self.head = self.head - x.size
        self.Bytes[self.head : self.head + x.size] = x.tobytes()
        self.vectorNumElems = x.size
        return self.EndVector()


def _tensor_maps(tensors: Mapping[str, int]) -> list[Any]:
    return [schema.TensorMapT(name=n.encode(), tensorIndex=i) for n, i in tensors.items()]


def _set_versions(model: Any) -> None:
    """Gives each operator code the highest version that one of its operators needs.

    A runtime that is too old for a version refuses the file instead of misreading it.
    litert-quantizer leaves the versions of the fp32 model. None is lowered: operators that only
    litert-torch writes have theirs from it.
    """
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            inputs = [graph.tensors[i] for i in operator.inputs]
            outputs = [graph.tensors[i] for i in operator.outputs]
            code.version = max(code.version, _version(code.builtinCode, inputs, outputs))


def _version(code: int, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """The version of an operator by TensorFlow's tools/versioning/op_version.cc."""
    kinds, types = schema.BuiltinOperator, schema.TensorType
    if code == kinds.TRANSPOSE and len(inputs[0].shape) > 4:
        return 4
    if code == kinds.DEQUANTIZE and inputs[0].type == types.FLOAT16:
        return 3
    if types.INT8 not in (inputs[0].type, inputs[-1].type):
        return 1
    if code == kinds.MUL and _scale(inputs[0]) * _scale(inputs[1]) >= _scale(outputs[0]):
        return 3
    return _INT8_VERSIONS.get(code, 1)


def _scale(tensor: Any) -> float:
    return float(tensor.quantization.scale[0])
