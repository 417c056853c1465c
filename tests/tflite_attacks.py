"""TFLite files by hand: a small one for each operator, and files that nobody should send.

`operator_graphs` are good. `external_models` ask for data that are not in the file, `large_models`
for more memory than there is, `crashing_models` kill LiteRT's interpreter and `memory_reader` gives
its memory away. `mutated` changes fields of a file, anywhere. All are made by LiteRT's own schema,
of which this needs no more than `schema_py_generated` and flatbuffers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated

from hurricane.agents.formats._flatbuffer import Chosen
from hurricane.agents.formats._protobuf import Span

schema: Any = schema_py_generated

_TYPES = {
    np.dtype(np.float32): "FLOAT32",
    np.dtype(np.float16): "FLOAT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.int8): "INT8",
    np.dtype(np.bool_): "BOOL",
}


class Model:
    """A model with one graph, put together by hand."""

    def __init__(self) -> None:
        self.graph = schema.SubGraphT(name=b"main", tensors=[], operators=[], inputs=[], outputs=[])
        self.parts = schema.ModelT(
            version=3,
            operatorCodes=[],
            subgraphs=[self.graph],
            buffers=[schema.BufferT()],
            description=b"by hand",
        )

    def tensor(self, shape: Sequence[int], kind: str = "FLOAT32", **fields: Any) -> int:
        """Adds a tensor; returns its index."""
        index = len(self.graph.tensors)
        fields = {"name": b"t%d" % index, "hasRank": True, **fields}
        kind_number = getattr(schema.TensorType, kind)
        shape_array = np.array(shape, np.int32)
        self.graph.tensors.append(schema.TensorT(shape=shape_array, type=kind_number, **fields))
        return index

    def input(self, shape: Sequence[int], kind: str = "FLOAT32", **fields: Any) -> int:
        """Adds an input of the graph."""
        self.graph.inputs.append(self.tensor(shape, kind, **fields))
        return self.graph.inputs[-1]

    def constant(self, values: Any, **fields: Any) -> int:
        """Adds a constant; numbers of Python become int32 or float32."""
        values = np.asarray(values)
        wide = fields.pop("wide", False)
        if values.dtype == np.int64 and not wide:
            values = values.astype(np.int32)
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        buffer = self.buffer(values.tobytes())
        return self.tensor(values.shape, _TYPES[values.dtype], buffer=buffer, **fields)

    def buffer(self, content: bytes) -> int:
        """Adds a buffer; returns its index."""
        self.parts.buffers.append(schema.BufferT(data=np.frombuffer(content, np.uint8)))
        return len(self.parts.buffers) - 1

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], **o: Any) -> None:
        """Adds an operator, with the fields of its options by name; no options without."""
        code = getattr(schema.BuiltinOperator, name)
        codes = [entry.builtinCode for entry in self.parts.operatorCodes]
        if code not in codes:
            self.parts.operatorCodes.append(
                schema.OperatorCodeT(
                    builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1
                )
            )
            codes.append(code)
        operator = schema.OperatorT(
            opcodeIndex=codes.index(code),
            inputs=np.array(inputs, np.int32),
            outputs=np.array(outputs, np.int32),
        )
        kind = o.pop("options", None)
        if kind:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, f"{kind}T")(**o)
        self.graph.operators.append(operator)

    def returns(self, *indices: int) -> Model:
        """Says what the graph's outputs are."""
        self.graph.outputs = list(indices)
        return self

    def signature(self) -> Model:
        """Names the inputs and outputs."""
        self.parts.signatureDefs = [
            schema.SignatureDefT(
                signatureKey=b"serving_default",
                inputs=[
                    schema.TensorMapT(name=b"x%d" % i, tensorIndex=i) for i in self.graph.inputs
                ],
                outputs=[
                    schema.TensorMapT(name=b"y%d" % i, tensorIndex=i) for i in self.graph.outputs
                ],
            )
        ]
        return self

    def metadata(self, name: bytes, content: bytes) -> Model:
        """Adds a piece of metadata."""
        entry = schema.MetadataT(name=name, buffer=self.buffer(content))
        self.parts.metadata = [*(self.parts.metadata or []), entry]
        return self

    def pack(self) -> bytes:
        """The file."""
        return pack(self.parts)


def pack(model: Any) -> bytes:
    """The file of a `schema.ModelT`."""
    for graph in model.subgraphs or []:
        for name in ("inputs", "outputs"):
            if isinstance(getattr(graph, name), list):
                setattr(graph, name, np.array(getattr(graph, name), np.int32))
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpack(content: bytes) -> Any:
    """The `schema.ModelT` of a file."""
    return schema.ModelT.InitFromPackedBuf(content)


def quantised(scale: Sequence[float], zero: Sequence[int] | None = None, axis: int = 0) -> Any:
    """Quantisation of a tensor."""
    return schema.QuantizationParametersT(
        scale=np.array(scale, np.float32),
        zeroPoint=np.array(zero if zero is not None else [0] * len(scale), np.int64),
        quantizedDimension=axis,
    )


def sound_model() -> Model:
    """A convolution, an addition of a constant and a softmax, with signature and metadata."""
    model = Model()
    x = model.input([1, 4, 4, 2])
    weights = model.constant(np.ones((3, 3, 3, 2)))
    bias = model.constant(np.zeros(3))
    wide = model.tensor([1, 2, 2, 3])
    model.operator(
        "CONV_2D", [x, weights, bias], [wide], options="Conv2DOptions", strideW=2, strideH=2,
        fusedActivationFunction=schema.ActivationFunctionType.RELU6,
    )  # fmt: skip
    more = model.tensor([1, 2, 2, 3])
    model.operator("ADD", [wide, model.constant([1.0])], [more], options="AddOptions")
    flat = model.tensor([1, 12])
    model.operator(
        "RESHAPE", [more, model.constant([1, -1])], [flat], options="ReshapeOptions",
        newShape=np.array([1, 12], np.int32),
    )  # fmt: skip
    y = model.tensor([1, 12])
    model.operator("SOFTMAX", [flat], [y], options="SoftmaxOptions", beta=1.0)
    model.returns(y).signature().metadata(b"min_runtime_version", b"1.5.0" + bytes(11))
    return model


def int8_model() -> bytes:
    """QUANTIZE, an int8 convolution with scales by channel, DEQUANTIZE."""
    model = Model()
    x = model.input([1, 4, 4, 2])
    q = model.tensor([1, 4, 4, 2], "INT8", quantization=quantised([0.1], [3]))
    model.operator("QUANTIZE", [x], [q], options="QuantizeOptions")
    weights = model.constant(
        np.ones((3, 1, 1, 2), np.int8), quantization=quantised([0.1, 0.2, 0.3])
    )
    bias = model.constant(np.zeros(3, np.int32), quantization=quantised([0.01, 0.02, 0.03]))
    wide = model.tensor([1, 4, 4, 3], "INT8", quantization=quantised([0.2], [-5]))
    model.operator(
        "CONV_2D", [q, weights, bias], [wide], options="Conv2DOptions", strideW=1, strideH=1
    )
    model.parts.operatorCodes[-1].version = 3
    y = model.tensor([1, 4, 4, 3])
    model.operator("DEQUANTIZE", [wide], [y], options="DequantizeOptions")
    model.parts.operatorCodes[-1].version = 2
    return model.returns(y).pack()


# --- Every operator

Case = tuple[str, list[Any], list[Any], dict[str, Any]]
"""An operator, its inputs (a tuple is a shape, all else a constant), shapes of outputs, options."""


def _unary(names: str, options: str | None = None, **fields: Any) -> list[Case]:
    given = {"options": options, **fields} if options else {}
    return [(name, [(1, 3, 2, 4)], [(1, 3, 2, 4)], given) for name in names.split()]


def _binary(names: str) -> list[Case]:
    cases: list[Case] = []
    for name in names.split():
        words = "".join(part.capitalize() for part in name.split("_"))
        options = {"MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions"}
        kind = options.get(name, f"{words}Options").replace("Atan2", "ATan2")
        cases.append((name, [(1, 3, 2, 4), (4,)], [(1, 3, 2, 4)], {"options": kind}))
    return cases


def _windows(name: str, **fields: Any) -> dict[str, Any]:
    return {"options": f"{name}Options", "strideW": 2, "strideH": 1, **fields}


I32, I64, BOOL = "INT32", "INT64", "BOOL"
_SAME, _VALID = 0, 1
IMAGE = (1, 6, 5, 4)
CASES: list[Case] = [
    *_unary("FLOOR LOGISTIC RELU RELU_N1_TO_1 RELU6 TANH SIN LOG SQRT RSQRT CEIL ELU ROUND"),
    *_unary("RELU_0_TO_1"),
    *_unary("L2_NORMALIZATION", "L2NormOptions"),
    *_unary(
        "LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalizationOptions",
        radius=1, bias=1.0, alpha=1.0, beta=0.5,
    ),
    *_unary("SOFTMAX", "SoftmaxOptions", beta=1.0),
    *_unary("LOG_SOFTMAX", "LogSoftmaxOptions"),
    *_unary("EXP", "ExpOptions"),
    *_unary("NEG", "NegOptions"),
    *_unary("SQUARE", "SquareOptions"),
    *_unary("ZEROS_LIKE", "ZerosLikeOptions"),
    *_unary("LEAKY_RELU", "LeakyReluOptions", alpha=0.1),
    *_unary("ABS", "AbsOptions"),
    *_unary("COS", "CosOptions"),
    *_unary("HARD_SWISH", "HardSwishOptions"),
    *_unary("GELU", "GeluOptions"),
    *_unary("SIGN", "SignOptions"),
    *_unary("FAKE_QUANT", "FakeQuantOptions", min=-1.0, max=1.0, numBits=8),
    *_binary("ADD SUB MUL DIV MAXIMUM MINIMUM POW SQUARED_DIFFERENCE FLOOR_DIV FLOOR_MOD"),
    ("ATAN2", [(2, 3), (2, 3)], [(2, 3)], {"options": "ATan2Options"}),
    *(
        (name, inputs, [(BOOL, *shape)], given)
        for name, inputs, (shape,), given in _binary(
            "LESS LESS_EQUAL GREATER GREATER_EQUAL EQUAL NOT_EQUAL"
        )
    ),
    *(
        (name, [(BOOL, 2, 3), (BOOL, 2, 3)], [(BOOL, 2, 3)], given)
        for name, _, _, given in _binary("LOGICAL_AND LOGICAL_OR")
    ),
    ("LOGICAL_NOT", [(BOOL, 3)], [(BOOL, 3)], {"options": "LogicalNotOptions"}),
    ("DEQUANTIZE", [("INT8", 2, 3)], [(2, 3)], {"options": "DequantizeOptions"}),
    ("CAST", [(2, 3)], [(I32, 2, 3)], {}),
    ("CAST", [(2, 3)], [(I32, 2, 3)], {"options": "CastOptions", "outDataType": 2}),
    ("AVERAGE_POOL_2D", [IMAGE], [(1, 6, 3, 4)],
     _windows("Pool2D", filterWidth=3, filterHeight=2, padding=_SAME)),
    ("MAX_POOL_2D", [IMAGE], [(1, 5, 2, 4)],
     _windows("Pool2D", filterWidth=3, filterHeight=2, padding=_VALID)),
    ("L2_POOL_2D", [IMAGE], [(1, 6, 3, 4)],
     _windows("Pool2D", filterWidth=3, filterHeight=2, padding=_SAME)),
    ("CONV_2D", [IMAGE, np.ones((8, 3, 2, 4))], [(1, 4, 2, 8)],
     _windows("Conv2D", padding=_VALID)),
    ("CONV_2D", [IMAGE, np.ones((8, 3, 2, 2)), np.ones(8)], [(1, 6, 3, 8)],
     _windows("Conv2D", padding=_SAME)),
    ("CONV_2D", [IMAGE, np.ones((8, 3, 2, 4)), np.ones(8)], [(1, 2, 4, 8)],
     _windows("Conv2D", padding=_VALID, strideW=1, dilationHFactor=2, dilationWFactor=1)),
    ("DEPTHWISE_CONV_2D", [IMAGE, np.ones((1, 3, 3, 8)), np.ones(8)], [(1, 6, 5, 8)],
     _windows("DepthwiseConv2D", padding=_SAME, depthMultiplier=2, strideW=1)),
    ("TRANSPOSE_CONV", [[1, 12, 10, 3], np.ones((3, 2, 2, 4)), IMAGE], [(1, 12, 10, 3)],
     _windows("TransposeConv", padding=_VALID, strideH=2)),
    ("TRANSPOSE_CONV", [[1, 6, 10, 3], np.ones((3, 3, 3, 4)), IMAGE, np.ones(3)], [(1, 6, 10, 3)],
     _windows("TransposeConv", padding=_SAME)),
    ("CONV_3D", [(1, 4, 6, 5, 4), np.ones((2, 3, 2, 4, 8)), np.ones(8)], [(1, 2, 4, 2, 8)],
     _windows("Conv3D", strideD=2, padding=_VALID)),
    ("FULLY_CONNECTED", [(2, 3, 4), np.ones((5, 4)), np.ones(5)], [(6, 5)],
     {"options": "FullyConnectedOptions"}),
    ("FULLY_CONNECTED", [(2, 3, 4), np.ones((5, 4)), -1], [(2, 3, 5)],
     {"options": "FullyConnectedOptions", "keepNumDims": True}),
    ("BATCH_MATMUL", [(3, 2, 4), (3, 4, 5)], [(3, 2, 5)], {"options": "BatchMatMulOptions"}),
    ("BATCH_MATMUL", [(3, 4, 2), (1, 5, 4)], [(3, 2, 5)],
     {"options": "BatchMatMulOptions", "adjX": True, "adjY": True}),
    ("CONCATENATION", [(1, 3, 2), (1, 3, 5)], [(1, 3, 7)],
     {"options": "ConcatenationOptions", "axis": -1}),
    ("PACK", [(2, 3), (2, 3)], [(2, 2, 3)],
     {"options": "PackOptions", "valuesCount": 2, "axis": 1}),
    ("UNPACK", [(2, 3)], [(2,), (2,), (2,)], {"options": "UnpackOptions", "num": 3, "axis": 1}),
    ("SPLIT", [3, (1, 2, 2, 6)], [(1, 2, 2, 3)] * 2, {"options": "SplitOptions", "numSplits": 2}),
    ("SPLIT_V", [(1, 6), [2, -1, 1], 1], [(1, 2), (1, 3), (1, 1)],
     {"options": "SplitVOptions", "numSplits": 3}),
    ("GATHER", [(2, 5, 3), [0, 4, 4, 1]], [(2, 4, 3)], {"options": "GatherOptions", "axis": 1}),
    ("GATHER", [(2, 5, 3), [[0, 4], [4, 1]]], [(2, 2, 3)],
     {"options": "GatherOptions", "axis": 1, "batchDims": 1}),
    ("GATHER_ND", [(2, 5, 3), [[0, 4], [1, 1]]], [(2, 3)], {"options": "GatherNdOptions"}),
    ("EMBEDDING_LOOKUP", [[1, 0, 2], np.ones((4, 3))], [(3, 3)], {}),
    ("SCATTER_ND", [[[4], [1]], np.ones((2, 3)), [6, 3]], [(6, 3)],
     {"options": "ScatterNdOptions"}),
    ("DYNAMIC_UPDATE_SLICE", [(5, 4), (2, 2), [1, 1]], [(5, 4)],
     {"options": "DynamicUpdateSliceOptions"}),
    ("ONE_HOT", [[0, 2], 3, 1.0, 0.0], [(2, 3)], {"options": "OneHotOptions", "axis": -1}),
    ("TOPK_V2", [(2, 5), 3], [(2, 3), (I32, 2, 3)], {"options": "TopKV2Options"}),
    ("SLICE", [(4, 5), [1, 2], [2, -1]], [(2, 3)], {"options": "SliceOptions"}),
    ("STRIDED_SLICE", [(4, 5, 6), [1, 4, 0], [3, 0, 9], [1, -2, 2]], [(2, 2, 3)],
     {"options": "StridedSliceOptions"}),
    ("STRIDED_SLICE", [(4, 5, 6), [1, 2, 0], [0, 3, 0], [1, 1, 1]], [(3, 6)],
     {"options": "StridedSliceOptions", "endMask": 5, "beginMask": 4, "shrinkAxisMask": 2}),
    ("STRIDED_SLICE", [(4, 5), [-3, 0], [-1, 0], [1, 1]], [(2, 1, 5)],
     {"options": "StridedSliceOptions", "newAxisMask": 2}),
    ("RESHAPE", [(2, 6), [3, -1]], [(3, 4)], {}),
    ("RESHAPE", [(2, 6)], [(3, 4)],
     {"options": "ReshapeOptions", "newShape": np.array([3, 4], np.int32)}),
    ("RESHAPE", [(1, 1), np.zeros(0, np.int32)], [()], {}),
    ("SQUEEZE", [(1, 3, 1)], [(3,)], {"options": "SqueezeOptions"}),
    ("SQUEEZE", [(1, 3, 1)], [(1, 3)],
     {"options": "SqueezeOptions", "squeezeDims": np.array([-1], np.int32)}),
    ("EXPAND_DIMS", [(2, 3), -1], [(2, 3, 1)], {"options": "ExpandDimsOptions"}),
    ("TRANSPOSE", [(2, 3, 4), [2, 0, 1]], [(4, 2, 3)], {"options": "TransposeOptions"}),
    *(
        (name, [(1, 3, 2, 4), [1, -2]], [(1, 4)], {"options": "ReducerOptions"})
        for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")
    ),
    ("MEAN", [(1, 3, 2, 4), [1, 2]], [(1, 1, 1, 4)],
     {"options": "ReducerOptions", "keepDims": True}),
    *(
        (name, [(BOOL, 3, 4), [0]], [(BOOL, 4)], {"options": "ReducerOptions"})
        for name in ("REDUCE_ANY", "REDUCE_ALL")
    ),
    ("ARG_MAX", [(2, 5), 1], [(I32, 2)], {"options": "ArgMaxOptions", "outputType": 2}),
    ("ARG_MIN", [(2, 5), -1], [(I32, 2)], {"options": "ArgMinOptions", "outputType": 2}),
    ("CUMSUM", [(2, 5), 1], [(2, 5)], {"options": "CumsumOptions"}),
    ("REVERSE_V2", [(2, 5), [1]], [(2, 5)], {"options": "ReverseV2Options"}),
    ("REVERSE_SEQUENCE", [(2, 5, 3), [4, 2]], [(2, 5, 3)],
     {"options": "ReverseSequenceOptions", "seqDim": 1}),
    ("SHAPE", [(2, 5, 3)], [(I32, 3)], {"options": "ShapeOptions", "outType": 2}),
    ("RANK", [(2, 5, 3)], [(I32,)], {"options": "RankOptions"}),
    ("ADD_N", [(2, 3), (2, 3), (2, 3)], [(2, 3)], {"options": "AddNOptions"}),
    ("PRELU", [(1, 3, 2, 4), np.ones((1, 1, 4))], [(1, 3, 2, 4)], {}),
    ("SELECT", [(BOOL, 2, 3), (2, 3), (2, 3)], [(2, 3)], {"options": "SelectOptions"}),
    ("SELECT_V2", [(BOOL, 3), (2, 1), (2, 3)], [(2, 3)], {"options": "SelectV2Options"}),
    ("PAD", [IMAGE, [[0, 0], [1, 2], [0, 3], [0, 0]]], [(1, 9, 8, 4)], {"options": "PadOptions"}),
    ("PADV2", [(2, 3), [[0, 1], [2, 0]], -1.0], [(3, 5)], {"options": "PadV2Options"}),
    ("MIRROR_PAD", [(3, 3), [[0, 2], [2, 0]]], [(5, 5)], {"options": "MirrorPadOptions"}),
    ("RESIZE_BILINEAR", [IMAGE, [9, 3]], [(1, 9, 3, 4)], {"options": "ResizeBilinearOptions"}),
    ("RESIZE_NEAREST_NEIGHBOR", [IMAGE, [9, 3]], [(1, 9, 3, 4)],
     {"options": "ResizeNearestNeighborOptions"}),
    ("TILE", [(2, 3), [2, 1]], [(4, 3)], {"options": "TileOptions"}),
    ("BROADCAST_TO", [(2, 1), [4, 2, 3]], [(4, 2, 3)], {"options": "BroadcastToOptions"}),
    ("FILL", [[2, 3], ()], [(2, 3)], {"options": "FillOptions"}),
    ("RANGE", [1, 8, 3], [(I32, 3)], {"options": "RangeOptions"}),
    ("RANGE", [1.0, 2.1, 0.25], [(5,)], {"options": "RangeOptions"}),
    ("SPACE_TO_DEPTH", [(1, 4, 6, 2)], [(1, 2, 3, 8)],
     {"options": "SpaceToDepthOptions", "blockSize": 2}),
    ("DEPTH_TO_SPACE", [(1, 2, 3, 8)], [(1, 4, 6, 2)],
     {"options": "DepthToSpaceOptions", "blockSize": 2}),
    ("SPACE_TO_BATCH_ND", [(1, 4, 5, 2), [2, 2], [[0, 0], [0, 1]]], [(4, 2, 3, 2)],
     {"options": "SpaceToBatchNDOptions"}),
    ("BATCH_TO_SPACE_ND", [(4, 2, 3, 2), [2, 2], [[0, 0], [0, 1]]], [(1, 4, 5, 2)],
     {"options": "BatchToSpaceNDOptions"}),
    ("QUANTIZE", [(2, 3)], [("INT8", 2, 3)], {"options": "QuantizeOptions"}),
]  # fmt: skip


def operator_graph(case: Case) -> bytes:
    """A file of one operator; inputs that are constants are wrapped so that one input is left."""
    name, inputs, outputs, options = case
    model = Model()
    indices = []
    for given in inputs:
        if isinstance(given, tuple):
            kind, shape = _typed(given)
            indices.append(model.input(shape, kind, quantization=_scale_of(kind)))
        elif isinstance(given, int) and given == -1 and name == "FULLY_CONNECTED":
            indices.append(-1)
        else:
            indices.append(model.constant(given))
    results = []
    for given in outputs:
        kind, shape = _typed(given)
        results.append(model.tensor(shape, kind, quantization=_scale_of(kind)))
    model.operator(name, indices, results, **dict(options))
    model.parts.operatorCodes[0].version = {"BROADCAST_TO": 2, "DEQUANTIZE": 2}.get(name, 1)
    if not model.graph.inputs:  # beside it, something that is computed
        x, y = model.input([2]), model.tensor([2])
        model.operator("RELU", [x], [y])
        results.append(y)
    return model.returns(*results).pack()


def _scale_of(kind: str) -> Any:
    return quantised([0.1]) if kind == "INT8" else None


def _typed(given: Sequence[Any]) -> tuple[str, Sequence[int]]:
    if given and isinstance(given[0], str):
        return given[0], given[1:]
    return "FLOAT32", given


def operator_graphs() -> Iterator[tuple[str, bytes]]:
    """A good file for each way to use an operator."""
    for case in CASES:
        yield case[0], operator_graph(case)


# --- What nobody should send


def changed(change: Callable[[Any], Any], base: Callable[[], Model] = sound_model) -> bytes:
    """A sound file with a change to its `schema.ModelT`."""
    model = base().parts
    change(model)
    return pack(model)


def one_operator(
    name: str, shape: Sequence[int] = (1, 4), kind: str = "FLOAT32", **options: Any
) -> bytes:
    """An operator from one input to one output of the same shape."""
    model = Model()
    x, y = model.input(shape, kind), model.tensor(shape, kind)
    model.operator(name, [x], [y], **options)
    return model.returns(y).pack()


def sized(
    name: str, shape: Sequence[int], numbers: Any, result: Sequence[int], **options: Any
) -> bytes:
    """An operator whose output is as large as numbers of the file say."""
    model = Model()
    x, y = model.input(shape), model.tensor(result)
    model.operator(name, [x, model.constant(numbers)], [y], **options)
    return model.returns(y).pack()


def external_models() -> Iterator[tuple[str, bytes]]:
    """Files whose weights are said to lie elsewhere: behind the FlatBuffer, or in other files."""

    def behind(model: Any) -> None:
        model.buffers[1] = schema.BufferT(offset=16, size=216)

    def far(model: Any) -> None:
        model.buffers[1] = schema.BufferT(offset=2**63, size=2**63)

    def offset_only(model: Any) -> None:
        model.buffers[1].offset = 16

    def size_only(model: Any) -> None:
        model.buffers[1].size = 216

    def elsewhere(model: Any) -> None:
        model.externalBufferGroups = [schema.ExternalBufferGroupT(name=b"/etc/passwd")]
        model.externalBuffers = [schema.ExternalBufferT(id=1, group=0, offset=0, length=216)]
        model.subgraphs[0].tensors[1].buffer = 0
        model.subgraphs[0].tensors[1].externalBuffer = 1

    def group_only(model: Any) -> None:
        model.externalBufferGroups = [schema.ExternalBufferGroupT(name=b"/etc/passwd")]

    def tensor_only(model: Any) -> None:
        model.subgraphs[0].tensors[1].externalBuffer = 1

    def options(model: Any) -> None:
        model.subgraphs[0].operators[0].largeCustomOptionsOffset = 16

    for change in (
        behind,
        far,
        offset_only,
        size_only,
        elsewhere,
        group_only,
        tensor_only,
        options,
    ):
        yield change.__name__, changed(change)


def large_models() -> Iterator[tuple[str, bytes]]:
    """Small files that, if nobody looked, would ask for many gigabytes."""
    image, wide = [1, 8, 8, 3], {"options": "ResizeBilinearOptions"}
    yield "resize", sized("RESIZE_BILINEAR", image, [100_000, 100_000], [1, 9, 9, 3], **wide)
    pads = [[0, 0], [2**30, 2**30], [0, 0], [0, 0]]
    yield "pad", sized("PAD", image, pads, image, options="PadOptions")
    yield "tile", sized("TILE", [4], [2**31 - 1], [4], options="TileOptions")
    yield "broadcast", sized("BROADCAST_TO", [1], [2**15] * 3, [1], options="BroadcastToOptions")
    model = Model()
    x, y = model.input([]), model.tensor([2])
    model.operator("FILL", [model.constant([2**31 - 1, 2**31 - 1]), x], [y], options="FillOptions")
    yield "fill", model.returns(y).pack()
    model = Model()
    x, y = model.input([2]), model.tensor([2], "INT32")
    numbers = [model.constant(n) for n in (0, 2**31 - 1, 1)]
    model.operator("RANGE", numbers, [y], options="RangeOptions")
    yield "range", model.returns(x, y).pack()
    model = Model()
    x, y = model.input([60_000, 1]), model.input([1, 60_000])
    z = model.tensor([1, 1])
    model.operator("ADD", [x, y], [z], options="AddOptions")
    yield "outer-sum", model.returns(z).pack()
    model = Model()
    last = model.input([1, 1024])
    for _ in range(40):
        twice = model.tensor([1, 1024])
        model.operator(
            "CONCATENATION", [last, last], [twice], options="ConcatenationOptions", axis=1
        )
        last = twice
    yield "doubling", model.returns(last).pack()
    yield "declared", changed(lambda m: _shape(m, 3, [2**20, 2**20, 1, 1]))
    yield "wrapping", changed(lambda m: _shape(m, 3, [2**16, 2**16, 2**16, 2**16]))


def _shape(model: Any, tensor: int, shape: Sequence[int]) -> None:
    model.subgraphs[0].tensors[tensor].shape = np.array(shape, np.int32)


def scaled(name: str, scales: Sequence[float], result: str = "INT8") -> bytes:
    """An operator of two int8 tensors, with the scales of both and of its output."""
    words = "".join(part.capitalize() for part in name.split("_"))
    model = Model()
    x, y = (model.input([4], "INT8", quantization=quantised([scale])) for scale in scales[:2])
    last = quantised([scales[2]]) if result == "INT8" else None
    z = model.tensor([4], result, quantization=last)
    model.operator(name, [x, y], [z], options=f"{words}Options")
    return model.returns(z).pack()


def crashing_models() -> Iterator[tuple[str, bytes]]:
    """Files that kill LiteRT's interpreter if nobody looks (a test holds that)."""

    def far_away(model: Any) -> None:
        # Offset and size together are 0 in 64 bits, which is within the file.
        model.buffers[1] = schema.BufferT(offset=2**63, size=2**63)

    yield "data_far_away", changed(far_away)

    def split(**options: Any) -> Model:
        model = Model()
        x, parts = model.input([1, 6]), [model.tensor([1, 3]), model.tensor([1, 3])]
        model.operator("SPLIT", [model.constant(1), x], parts, **options)
        return model.returns(*parts)

    yield "options_left_out", split().pack()
    yield "more_parts_than_outputs", split(options="SplitOptions", numSplits=4).pack()
    model = Model()
    x, y, z = (model.input([4], "INT8"), model.input([4], "INT8"), model.tensor([4], "INT8"))
    model.operator("SUB", [x, y], [z], options="SubOptions")
    yield "no_scale", model.returns(z).pack()
    for name, scales, result in (
        ("ADD", (1.0, 1.0, 1e-6), "INT8"),
        ("SQUARED_DIFFERENCE", (100.0, 100.0, 1.0), "INT8"),
        ("LESS_EQUAL", (1.0, 1.0, 1.0), "BOOL"),
    ):
        yield f"scales_of_{name}", scaled(name, scales, result)
    model = unpack(scaled("SQUARED_DIFFERENCE", (100.0, 100.0, 1.0)))
    model.subgraphs[0].tensors[2].type = schema.TensorType.FLOAT16
    yield "several_types", pack(model)
    radius = {"options": "LocalResponseNormalizationOptions", "radius": 2**31 - 1, "bias": 1.0}
    yield "endless_radius", one_operator("LOCAL_RESPONSE_NORMALIZATION", (1, 3, 2, 4), **radius)
    model = Model()
    x, y = model.input([4]), model.tensor([4], "INT8", quantization=quantised([-1.0]))
    model.operator("QUANTIZE", [x], [y], options="QuantizeOptions")
    yield "negative_scale", model.returns(y).pack()
    model = Model()
    x = model.input([4], "INT8", quantization=quantised([1e-40]))
    y = model.tensor([4], "INT8", quantization=quantised([1.0]))
    model.operator("QUANTIZE", [x], [y], options="QuantizeOptions")
    yield "tiny_scale", model.returns(y).pack()


MEMORY_READER_OFFSET = 2**62


def memory_reader(numbers: int) -> bytes:
    """A file that gives away memory at an offset from its own beginning, as int32 numbers.

    The offset stands there as `MEMORY_READER_OFFSET`, and, so that the sum with the size overflows
    to 0, the size as 2^64 less it; both are to be replaced.
    """
    model = Model()
    x, y = model.input([numbers], "INT32"), model.tensor([numbers], "INT32")
    constant = model.constant(np.zeros(numbers, np.int32))
    size = 2**64 - MEMORY_READER_OFFSET
    model.parts.buffers[-1] = schema.BufferT(offset=MEMORY_READER_OFFSET, size=size)
    model.operator("MAXIMUM", [x, constant], [y], options="MaximumMinimumOptions")
    return model.returns(y).pack()


def difference(ours: Any, theirs: Any, content: bytes, place: str = "Model") -> str:
    """Where a table that the check has read differs from an object of LiteRT's schema; or "".

    Args:
        ours: a `Table` of `_flatbuffer`.
        theirs: the object, such as a `ModelT`.
        content: the file.
    """
    for name, value in ours.items():
        if name.startswith("deprecated_") and name != "deprecated_builtin_code":
            continue  # their schema passes it over
        words = name.split("_")
        other = getattr(theirs, words[0] + "".join(word.capitalize() for word in words[1:]))
        found = _differs(value, other, content, f"{place}.{name}")
        if found:
            return found
    return ""


def _differs(value: Any, other: Any, content: bytes, place: str) -> str:
    if isinstance(value, dict):
        return difference(value, other, content, place)
    if isinstance(value, Chosen):
        if type(other).__name__ != f"{value.kind}T":
            return place
        return difference(value.table, other, content, place)
    if isinstance(value, list):
        if len(value) != len(other):
            return place
        pairs = enumerate(zip(value, other, strict=True))
        return next(filter(None, (_differs(*p, content, f"{place}[{i}]") for i, p in pairs)), "")
    if isinstance(value, Span):
        same = content[value.start : value.end] == bytes(other)
    elif isinstance(value, str):
        same = value.encode() == other
    elif isinstance(value, np.ndarray):
        # numpy's arrays of theirs are [] where there is nothing
        same = np.asarray(other, value.dtype).tobytes() == value.tobytes()
    elif value is None:
        same = other is None
    else:
        same = value == other or (value != value and other != other)
    return "" if same else place


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with one field changed, anywhere.

    Raises:
        Exception: the file cannot be taken apart, or not be put together again.
    """
    model = unpack(content)
    if chance.random() < 0.3:
        _retype(model, chance)
        if chance.random() < 0.5:
            return pack(model)
    places = list(_places(model))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        owner, name = chance.choice(places)
        value = getattr(owner, name)
        setattr(owner, name, _other(value, chance))
    return pack(model)


_BITS = {"INT64": 64, "FLOAT64": 64, "FLOAT32": 32, "INT32": 32, "FLOAT16": 16, "INT16": 16}
_BITS |= {"BOOL": 8, "UINT8": 8, "INT8": 8, "INT4": 4, "INT2": 2}


def _retype(model: Any, chance: random.Random) -> None:
    """Gives tensors another type, with data and scales that fit."""
    one = chance.choice(list(_BITS)) if chance.random() < 0.5 else None
    for tensor in model.subgraphs[0].tensors:
        if chance.random() < 0.4:
            continue
        kind = one or chance.choice(list(_BITS))
        tensor.type = getattr(schema.TensorType, kind)
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data) and tensor.shape is not None:
            bits = math.prod(tensor.shape.tolist()) * _BITS[kind]
            size = max(0, min(-(-bits // 8), 8 * len(data)))  # what it declares may be gigabytes
            model.buffers.append(schema.BufferT(data=np.resize(data, size)))
            tensor.buffer = len(model.buffers) - 1
        scale = chance.choice((None, 0.1, 1.0, 1e-30, 3e38))
        tensor.quantization = None if scale is None else quantised([scale])


def _places(value: Any) -> Iterator[tuple[Any, str]]:
    if isinstance(value, list):
        for entry in value:
            yield from _places(entry)
    elif hasattr(value, "Pack"):
        for name, part in vars(value).items():
            yield value, name
            yield from _places(part)


_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 127, 128, 255, 256, 2**15, 2**16, 2**30, 2**31 - 1)


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, np.integer)):
        number = int(value)
        return chance.choice((number + 1, number - 1, -number, -1, *_NUMBERS))
    if isinstance(value, float):
        return chance.choice((0.0, -value, 1e38, float("inf"), float("nan")))
    if isinstance(value, bytes):
        return chance.choice((b"", value + b"x", b"\0", b"\xff", value[:-1]))
    if isinstance(value, np.ndarray):
        return _other_numbers(value, chance)
    if isinstance(value, list):
        return _other_list(value, chance)
    return None


def _other_numbers(value: np.ndarray, chance: random.Random) -> np.ndarray | None:
    kind = chance.randrange(6)
    if kind == 0 or not len(value):
        return None if chance.random() < 0.5 else np.append(value, value.dtype.type(1))
    if kind == 1:
        return value[:-1]
    if kind == 2:
        return np.append(value, value[-1])
    at = chance.randrange(len(value))
    value = value.copy()
    if value.dtype.kind == "f":
        value[at] = chance.choice((0, -1, np.inf, np.nan, 1e38))
        return value
    information = np.iinfo(value.dtype) if value.dtype != np.bool_ else np.iinfo(np.uint8)
    number = chance.choice((int(value[at]) + 1, int(value[at]) - 1, -1, *_NUMBERS))
    value[at] = min(max(number, int(information.min)), int(information.max))
    return value


def _other_list(value: list, chance: random.Random) -> list | None:
    kind = chance.randrange(5)
    if kind == 0 or not value:
        return None
    at = chance.randrange(len(value))
    if kind == 1:
        return value[:at] + value[at + 1 :]
    if kind == 2:
        return [*value, value[at]]
    swapped = list(value)
    other = chance.randrange(len(value))
    swapped[at], swapped[other] = swapped[other], swapped[at]
    return swapped
