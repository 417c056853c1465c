"""The check of TFLite files: what it refuses and accepts, and what LiteRT does with both."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="LiteRT, whose schema makes the files, is missing")

from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.agents.errors import AgentError, BadRequest, UnsupportedOperator
from hurricane.agents.formats import _flatbuffer, onnx_file, tflite_file
from hurricane.agents.formats._flatbuffer import Chosen, Limits, parse, schema_of
from hurricane.agents.formats._tflite_operators import OPERATORS, SIGNATURES
from hurricane.agents.formats._tflite_schema import SCHEMA, TENSOR_TYPES
from hurricane.agents.formats.tflite_file import check
from hurricane.ops.calibration import random_samples
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite import quantise_tflite, write_tflite

from .tflite_attacks import (
    CASES,
    Model,
    changed,
    crashing_models,
    difference,
    external_models,
    int8_model,
    large_models,
    memory_reader,
    mutated,
    one_operator,
    operator_graphs,
    pack,
    quantised,
    scaled,
    schema,
    sound_model,
    unpack,
)

SOUND = sound_model().pack()
GOOD = {"sound": SOUND, "int8": int8_model()}
GOOD.update((f"{i}-{name}", content) for i, (name, content) in enumerate(operator_graphs()))


def outcome(content: bytes) -> AgentError | None:
    """What the check says; any other exception than the typed ones fails the test."""
    try:
        check(content)
    except (BadRequest, UnsupportedOperator) as error:
        refusal = error
    else:
        return None
    assert str(refusal).isprintable(), "one line, nothing that a terminal obeys"
    assert 0 < len(str(refusal)) < 500
    return refusal


def refuses(content: bytes, match: str, error: type = BadRequest) -> None:
    with pytest.raises(error, match=match):
        check(content)


# --- the interpreter, in a process of its own -----------------------------------------------

_INTERPRET = """
import json, os, pathlib, resource, signal, sys
from ai_edge_litert.interpreter import Interpreter
for path in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        signal.alarm(60)
        try:
            interpreter = Interpreter(model_content=pathlib.Path(path).read_bytes(), num_threads=1)
            interpreter.allocate_tensors()
            shapes = {t["index"]: t["shape"].tolist() for t in interpreter.get_tensor_details()}
            os.write(writer, json.dumps(shapes).encode())
            interpreter.invoke()
        except Exception as error:
            os.write(2, str(error).encode())
        os._exit(0)
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 65536), b""))
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.WTERMSIG(status), json.loads(said or b"null")]), flush=True)
"""


def interpret(folder: Path, contents: list[bytes]) -> list[tuple[int, dict[str, list[int]] | None]]:
    """For each file the signal that killed the interpreter, or 0, and the shapes it allocated."""
    paths = []
    for index, content in enumerate(contents):
        paths.append(folder / f"{index}.tflite")
        paths[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRET, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.process
def test_the_interpreter_computes_the_shapes_that_the_check_demands(tmp_path: Path) -> None:
    for (name, content), (signal, shapes) in zip(
        GOOD.items(), interpret(tmp_path, list(GOOD.values())), strict=True
    ):
        assert signal == 0, name
        if shapes is None:
            assert name.endswith("-CONV_2D"), name  # the kernel wants a bias; XNNPACK does not
            continue
        for index, tensor in enumerate(unpack(content).subgraphs[0].tensors):
            assert shapes[str(index)] == list(tensor.shape), (name, tensor.name)


@pytest.mark.process
def test_unchecked_files_kill_the_interpreter(tmp_path: Path) -> None:
    """Else the attacks would show nothing."""
    attacks = dict(crashing_models())
    signals = {
        name: signal
        for name, (signal, _) in zip(
            attacks, interpret(tmp_path, list(attacks.values())), strict=True
        )
    }
    assert all(signals.values()), signals


_READ_MEMORY = """
import ctypes, os, pathlib, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

def address(content):
    return id(content) + bytes.__basicsize__ - 1

secret = os.environ["SECRET"].encode()
content = pathlib.Path(sys.argv[1]).read_bytes()
offset = (address(secret) - address(content)) % 2**64
for old, new in ((2**62, offset), (2**64 - 2**62, 2**64 - offset)):
    place = address(content) + content.index(old.to_bytes(8, "little"))
    ctypes.memmove(place, new.to_bytes(8, "little"), 8)
interpreter = Interpreter(model_content=content, num_threads=1)
interpreter.allocate_tensors()
interpreter.set_tensor(0, np.full(8, -(2**31), np.int32))
interpreter.invoke()
output = interpreter.get_output_details()[0]["index"]
sys.stdout.buffer.write(interpreter.get_tensor(output).tobytes())
"""


@pytest.mark.process
def test_unchecked_files_make_the_interpreter_give_memory_away(tmp_path: Path) -> None:
    """Where data lie behind the FlatBuffer: offset and size may overflow."""
    file = tmp_path / "reader.tflite"
    file.write_bytes(memory_reader(8))
    secret = "a secret of the board, 32 bytes!"
    done = subprocess.run(
        [sys.executable, "-c", _READ_MEMORY, str(file)],
        env={**os.environ, "SECRET": secret},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == secret.encode()
    refuses(file.read_bytes(), "buffer 1 lies behind the FlatBuffer")


# --- what is accepted -----------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_good_files_are_accepted_and_read_as_litert_reads_them(name: str) -> None:
    assert outcome(GOOD[name]) is None
    ours = parse(GOOD[name], SCHEMA, "Model", tflite_file._LIMITS)
    assert difference(ours, unpack(GOOD[name]), GOOD[name]) == ""


def test_a_difference_would_be_found() -> None:
    ours = parse(SOUND, SCHEMA, "Model", tflite_file._LIMITS)
    for change in (
        lambda m: setattr(m, "version", 4),
        lambda m: setattr(m.subgraphs[0].tensors[1], "name", b"t9"),
        lambda m: setattr(m.subgraphs[0].operators[0], "inputs", np.array([7, 1, 2], np.int32)),
        lambda m: setattr(m.subgraphs[0].operators[0].builtinOptions, "strideW", 7),
        lambda m: setattr(m.buffers[1], "data", m.buffers[1].data[:-1]),
        lambda m: m.metadata.append(m.metadata[0]),
    ):
        theirs = unpack(SOUND)
        change(theirs)
        assert difference(ours, theirs, SOUND).startswith("Model.")


def test_there_is_a_good_file_for_every_operator_that_is_accepted() -> None:
    assert {case[0] for case in CASES} == set(SIGNATURES)


@pytest.mark.parametrize("name", ["SEP_3", "MB_3_3_SE", "Choice_3_SE", "Choice_x"])
def test_what_the_writer_writes_is_accepted(name: str) -> None:
    graph = export_operator(name, LayerShape(5, 6, 8, 8, 1))
    single = write_tflite(graph)
    check(single)
    check(write_tflite(graph, weights="fp16", metadata={"source": b"tests"}))
    check(quantise_tflite(single, random_samples((8, 5, 6), 2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "signatureDefs", None),
        lambda m: setattr(m, "description", "žluťoučký\nkůň".encode()),
        lambda m: setattr(m, "metadataBuffer", np.array([0, 1], np.int32)),
        lambda m: setattr(m.subgraphs[0], "name", None),
        lambda m: setattr(m.subgraphs[0].tensors[3], "name", None),
        lambda m: setattr(m.subgraphs[0].tensors[3], "shapeSignature", np.array([1, 2, 2, 3])),
        lambda m: setattr(m.subgraphs[0].tensors[3], "shapeSignature", np.array([], np.int32)),
        lambda m: setattr(m.subgraphs[0].tensors[0], "quantization", quantised([])),
        lambda m: setattr(m.subgraphs[0].tensors[0], "hasRank", False),
        lambda m: setattr(m.operatorCodes[0], "builtinCode", 0),  # as before 2020
        lambda m: setattr(m.operatorCodes[0], "deprecatedBuiltinCode", 0),
        lambda m: setattr(m.subgraphs[0].operators[0], "mutatingVariableInputs", np.array([False])),
        lambda m: m.buffers.append(m.buffers[1]),
    ],
)
def test_what_other_converters_write_is_accepted(change: Callable[[Any], Any]) -> None:
    def with_int32(model: Any) -> None:
        change(model)
        tensor = model.subgraphs[0].tensors[3]
        if tensor.shapeSignature is not None:
            tensor.shapeSignature = tensor.shapeSignature.astype(np.int32)

    check(changed(with_int32))


def test_files_packed_behind_the_flatbuffer_are_no_part_of_it() -> None:
    """TFLite's metadata tool appends labels as a zip archive."""
    check(SOUND + b"PK\x03\x04 labels")


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("name", dict(external_models()))
def test_data_elsewhere_are_refused(name: str) -> None:
    refuses(dict(external_models())[name], r"refused|only custom operators have some")


@pytest.mark.parametrize("name", dict(large_models()))
def test_small_files_that_would_take_gigabytes_are_refused(name: str) -> None:
    content = dict(large_models())[name]
    assert len(content) < 5000
    refuses(content, r"makes \[.*\], and declares \[|takes .* bytes; at most 1 GiB")


@pytest.mark.parametrize("name", dict(crashing_models()))
def test_files_that_kill_the_interpreter_are_refused(name: str) -> None:
    refuses(dict(crashing_models())[name], ".")


def tensor(model: Any, index: int = 3) -> Any:
    return model.subgraphs[0].tensors[index]


def operator(model: Any, index: int = 0) -> Any:
    return model.subgraphs[0].operators[index]


def put(target: Any, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(target, name, value)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def swap(model: Any) -> None:
    operators = model.subgraphs[0].operators
    operators[1], operators[2] = operators[2], operators[1]


REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: put(m, version=2), "schema version 2"),
    (lambda m: put(m, subgraphs=[*m.subgraphs, m.subgraphs[0]]), "has 2 subgraphs"),
    (lambda m: put(m, subgraphs=None), "has 0 subgraphs"),
    (lambda m: put(m, buffers=None), "buffer 0 is missing"),
    (lambda m: put(m.buffers[0], data=np.zeros(4, np.uint8)), "buffer 0 is missing or not empty"),
    (
        lambda m: put(m.metadata[0], buffer=99),
        "metadata 'min_runtime_version' lie in the buffer 99",
    ),
    (lambda m: put(m, metadataBuffer=ints(99)), "metadata_buffer names"),
    (lambda m: put(m, metadataBuffer=ints(-1)), "metadata_buffer names"),
    (lambda m: put(m, metadata=m.metadata * 1001), "more than 1000 pieces of metadata"),
    (lambda m: put(m.operatorCodes[0], builtinCode=4), "is two operators, 3 and 4"),
    (lambda m: put(m.operatorCodes[0], version=0), "no version 0 of CONV_2D"),
    (lambda m: put(m.operatorCodes[0], customCode=b"x"), "CONV_2D, and has a custom name"),
    # signatures
    (lambda m: put(m.signatureDefs[0], subgraphIndex=1), "is of subgraph 1"),
    (lambda m: put(m, signatureDefs=m.signatureDefs * 2), "'serving_default' stands there twice"),
    (lambda m: put(m, signatureDefs=m.signatureDefs * 17), "more than 16 signatures"),
    (lambda m: put(m.signatureDefs[0].inputs[0], tensorIndex=3), "does not have the inputs"),
    (lambda m: put(m.signatureDefs[0].inputs[0], tensorIndex=2**31), "does not have the inputs"),
    (lambda m: put(m.signatureDefs[0], outputs=None), "does not have the outputs"),
    (lambda m: put(m.signatureDefs[0].inputs[0], name=None), "inputs without a name"),
    (
        lambda m: put(m.signatureDefs[0], outputs=m.signatureDefs[0].outputs * 2),
        "outputs without a name, or two of one name",
    ),
    # tensors
    (lambda m: put(tensor(m), type=5), "of the type STRING; only numbers"),
    (lambda m: put(tensor(m), type=8), "of the type COMPLEX64"),
    (lambda m: put(tensor(m), type=13), "of the type RESOURCE"),
    (lambda m: put(tensor(m), type=14), "of the type VARIANT"),
    (lambda m: put(tensor(m), type=23), "type has the unknown value 23"),
    (lambda m: put(tensor(m), isVariable=True), "has is_variable"),
    (lambda m: put(tensor(m), sparsity=schema.SparsityParametersT()), "has sparsity"),
    (lambda m: put(tensor(m), variantTensors=[schema.VariantSubTypeT()]), "has variant_tensors"),
    (lambda m: put(tensor(m), shape=ints(1, 2, 2, 0)), "a dimension of 0"),
    (lambda m: put(tensor(m), shape=ints(1, 2, -1, 3)), "a dimension of -1"),
    (lambda m: put(tensor(m, 0), shape=ints(0)), "has the input tensor 0 .* is a constant"),
    (lambda m: put(tensor(m), shape=ints(*[1] * 9)), "more than 8 dimensions"),
    (lambda m: put(tensor(m), shapeSignature=ints(-1, 2, 2, 3)), "no fixed shape"),
    (lambda m: put(tensor(m), shapeSignature=ints(1, 2, 2)), "no fixed shape"),
    (lambda m: put(tensor(m), buffer=99), "in buffer 99 of"),
    (lambda m: put(tensor(m, 1), buffer=0), "reads tensor 1 .* which nothing before it computes"),
    (lambda m: put(tensor(m), buffer=1), "tensor 3 .* holds 216 bytes; FLOAT32.* takes 48"),
    (lambda m: put(m.buffers[1], data=m.buffers[1].data[:-1]), "holds 215 bytes"),
    (lambda m: put(tensor(m, 0), shape=ints(1, 2**15, 2**14, 2)), "at most 1 GiB"),
    # quantisation
    (lambda m: put(tensor(m), quantization=quantised([0.1], [])), "1 scales and 0 zero points"),
    (lambda m: put(tensor(m), quantization=quantised([0.1, 0.1])), "2 scales along"),
    (lambda m: put(tensor(m), quantization=quantised([0.1], axis=4)), "along the dimension 4"),
    (lambda m: put(tensor(m), quantization=quantised([0.1], axis=-1)), "along the dimension -1"),
    (lambda m: put(tensor(m), quantization=quantised([1e-30])), "scale that is not within"),
    (lambda m: put(tensor(m), quantization=quantised([1e30])), "scale that is not within"),
    (lambda m: put(tensor(m), quantization=quantised([0.0])), "scale that is not within"),
    (lambda m: put(tensor(m), quantization=quantised([float("nan")])), "scale that is not within"),
    (lambda m: put(tensor(m), quantization=quantised([float("inf")])), "scale that is not within"),
    (lambda m: put(tensor(m), quantization=quantised([0.1], [1])), "no number of FLOAT32"),
    # the graph
    (lambda m: put(m.subgraphs[0], tensors=None), "the graph has no tensors"),
    (lambda m: put(m.subgraphs[0], operators=[]), "the graph has no operators"),
    (lambda m: put(m.subgraphs[0], inputs=None), "the graph has no inputs"),
    (lambda m: put(m.subgraphs[0], outputs=[]), "the graph has no outputs"),
    (lambda m: put(m.subgraphs[0], inputs=[0, 0]), "the graph has an input twice"),
    (lambda m: put(m.subgraphs[0], inputs=[0, 1]), "has the input tensor 1 .* is a constant"),
    (lambda m: put(m.subgraphs[0], inputs=[-1]), "an input that is left out"),
    (lambda m: put(m.subgraphs[0], outputs=[99]), "name a tensor that is none of 9"),
    (lambda m: put(m.subgraphs[0], outputs=[-2]), "name a tensor that is none of 9"),
    (lambda m: put(m.subgraphs[0], outputs=[8] * 1001), "outputs are more than 1000"),
    (lambda m: m.subgraphs[0].operators.pop(), "output tensor 8 .* is computed by no operator"),
    (swap, r"operator 1 \(RESHAPE\) reads tensor 4 .* which nothing before it computes"),
    # operators
    (lambda m: put(operator(m), opcodeIndex=4), "has the code 4; there are 4"),
    (lambda m: put(operator(m), inputs=None), r"\(CONV_2D\) has 0 inputs"),
    (lambda m: put(operator(m), inputs=ints(0, 1, 2, 2)), r"\(CONV_2D\) has 4 inputs"),
    (lambda m: put(operator(m), inputs=ints(0, -1, 2)), "leaves out input 1"),
    (lambda m: put(operator(m), inputs=ints(0, 99, 2)), "name a tensor that is none of 9"),
    (lambda m: put(operator(m), inputs=ints(*[0] * 1001)), "are more than 1000"),
    (lambda m: put(operator(m), outputs=None), r"\(CONV_2D\) has 0 outputs"),
    (lambda m: put(operator(m), outputs=ints(-1)), "an output that is left out"),
    (lambda m: put(operator(m), outputs=ints(3, 3)), r"\(CONV_2D\) has 2 outputs"),
    (lambda m: put(operator(m, 1), outputs=ints(3)), "writes tensor 3 .* computed already"),
    (lambda m: put(operator(m), customOptions=np.zeros(1, np.uint8)), "has custom_options"),
    (lambda m: put(operator(m), largeCustomOptionsSize=1), "has large_custom_options_size"),
    (lambda m: put(operator(m), intermediates=ints(0)), "has intermediates"),
    (lambda m: put(operator(m), mutatingVariableInputs=np.array([True])), "changes its inputs"),
    (
        lambda m: put(
            operator(m),
            builtinOptions2Type=1,
            builtinOptions2=schema.StablehloConcatenateOptionsT(),
        ),
        "has builtin_options_2",
    ),
    (
        lambda m: put(operator(m), builtinOptionsType=5, builtinOptions=schema.Pool2DOptionsT()),
        "has Pool2DOptions, which are those of another operator",
    ),
    (
        lambda m: put(operator(m), builtinOptionsType=0, builtinOptions=None),
        "lacks its options",
    ),
    (lambda m: put(operator(m), builtinOptions=None), "a kind without a value"),
    (lambda m: put(operator(m).builtinOptions, strideW=0), "the stride_w 0"),
    (lambda m: put(operator(m).builtinOptions, strideH=-1), "the stride_h -1"),
    (
        lambda m: put(operator(m).builtinOptions, dilationWFactor=2**15),
        "the dilation_w_factor 32768",
    ),
    (lambda m: put(operator(m).builtinOptions, padding=2), "padding has the unknown value 2"),
    (
        lambda m: put(operator(m).builtinOptions, fusedActivationFunction=6),
        "fused_activation_function has the unknown value 6",
    ),
    (lambda m: put(operator(m).builtinOptions, strideW=1), r"makes \[1, 2, 4, 3\], and declares"),
    (lambda m: put(tensor(m), shape=ints(1, 2, 2, 4)), r"makes \[1, 2, 2, 3\], and declares"),
    (lambda m: put(tensor(m, 7), type=0), "takes no FLOAT32 as tensor 7"),
]


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[match for _, match in REFUSED])
def test_a_model_with_something_wrong_is_refused(index: int) -> None:
    change, match = REFUSED[index]
    refuses(changed(change), match)


def test_inputs_are_counted_over_all_operators() -> None:
    model = Model()
    x = model.input([1])
    for _ in range(201):
        y = model.tensor([1])
        model.operator("ADD_N", [x] * 1000, [y], options="AddNOptions")
    refuses(model.returns(y).pack(), "operators have more than 200000 inputs and outputs")


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((1, 8.0, 3), "its numbers are of several types"),
        ((1.0, 8.0, 0.0), "a step is 0"),
        ((1, 8, 0), "a step is 0"),
        ((1.0, float("inf"), 1.0), "endless"),
        ((1.0, float("nan"), 1.0), "endless"),
        ((1.0, 8.0, float("nan")), "endless"),
        ((8, 1, 1), "an output would have no elements"),
        ((1.0, 1e30, 1e-30), "makes|endless|more than"),
        ((np.int64(-(2**63)), np.int64(2**63 - 1), np.int64(1)), r"makes \[more than 2\^63\]"),
        ((np.int64(5), np.int64(-4), np.int64(-3)), r"makes \[3\]"),
    ],
)
def test_a_range_must_have_an_end_and_be_as_declared(numbers: tuple, match: str) -> None:
    model = Model()
    x, y = model.input([1]), model.tensor([2])
    ends = [model.constant(number, wide=isinstance(number, np.int64)) for number in numbers]
    model.operator("RANGE", ends, [y], options="RangeOptions")
    refuses(model.returns(x, y).pack(), match)


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT16", "INT4"])
def test_small_integers_are_calculated_with_only_where_they_have_a_scale(kind: str) -> None:
    """Kernels divide by what is not there, and die."""

    def subtraction(**fields: Any) -> bytes:
        model = Model()
        x, y, z = model.input([4], kind), model.input([4], kind), model.tensor([4], kind)
        for index in (x, y, z):
            put(model.graph.tensors[index], **fields)
        model.operator("SUB", [x, y], [z], options="SubOptions")
        return model.returns(z).pack()

    refuses(subtraction(), r"\(SUB\) calculates with tensor 0 .* which has no scale")
    refuses(subtraction(quantization=quantised([0.1] * 4)), "4 scales; what is computed has one")
    check(subtraction(quantization=quantised([0.1])))
    check(one_operator("SQUEEZE", (4,), kind, options="SqueezeOptions"))


@pytest.mark.parametrize(
    ("name", "fits", "not_fits"),
    [
        ("ADD", (0.1, 1.0, 7e-5), (0.1, 1.0, 6e-5)),
        ("SUB", (1.0, 0.1, 7e-5), (1.0, 0.1, 6e-5)),
        ("SQUARED_DIFFERENCE", (1.0, 10.0, 0.1), (1.0, 10.0, 0.01)),
        ("GREATER", (0.9, 0.1, 0), (0.1, 1.0, 0)),
        ("EQUAL", (0.9, 0.1, 0), (1.0, 0.1, 0)),
    ],
)
def test_scales_that_kernels_cannot_calculate_with_are_refused(
    name: str, fits: tuple, not_fits: tuple
) -> None:
    result = "INT8" if fits[2] else "BOOL"
    check(scaled(name, fits, result))
    refuses(scaled(name, not_fits, result), "cannot calculate with the scales")


@pytest.mark.parametrize("kind", ["FLOAT16", "UINT8", "INT16"])
def test_arithmetic_has_one_type(kind: str) -> None:
    model = unpack(scaled("SQUARED_DIFFERENCE", (0.1, 0.1, 0.1)))
    put(tensor(model, 2), type=getattr(schema.TensorType, kind))
    refuses(pack(model), r"\(SQUARED_DIFFERENCE\) has inputs and outputs of several types")


def test_scales_by_channel_are_for_convolutions() -> None:
    model = Model()
    x, y = (model.input([3], "INT8", quantization=quantised([0.1])), model.tensor([3], "INT8"))
    put(model.graph.tensors[y], quantization=quantised([0.1]))
    by_channel = model.constant(np.ones(3, np.int8), quantization=quantised([0.1, 0.2, 0.3]))
    model.operator("MUL", [x, by_channel], [y], options="MulOptions")
    refuses(model.returns(y).pack(), r"\(MUL\) cannot calculate with the scales")


def test_all_inputs_together_have_a_limit() -> None:
    model = Model()
    sizes = [1, 2**27 + 1]
    x, y, z = model.input(sizes), model.input(sizes), model.tensor(sizes)
    model.operator("ADD", [x, y], [z], options="AddOptions")
    refuses(model.returns(z).pack(), "the inputs take 1073741832 bytes; at most 1 GiB")


def test_a_shape_that_is_computed_is_refused() -> None:
    model = Model()
    x, y = model.input([2, 6]), model.tensor([3, 4])
    model.operator("RESHAPE", [x, model.input([2], "INT32")], [y])
    refuses(model.returns(y).pack(), "needs tensor 2 .* before it runs; it must be a constant")


def test_blockwise_quantisation_is_refused() -> None:
    def change(model: Any) -> None:
        quantisation = quantised([])
        put(quantisation, detailsType=2, details=schema.BlockwiseQuantizationT(scales=2**31 - 1))
        put(tensor(model), quantization=quantisation)

    refuses(changed(change), "has BlockwiseQuantization; only scales are accepted")


def test_shuffled_weights_are_refused() -> None:
    model = Model()
    x, weights, y = model.input([1, 4]), model.constant(np.ones((4, 4))), model.tensor([1, 4])
    options = {"options": "FullyConnectedOptions", "weightsFormat": 1}
    model.operator("FULLY_CONNECTED", [x, weights], [y], **options)
    refuses(model.returns(y).pack(), "weights in an order of its own")


def test_a_custom_operator_is_unsupported() -> None:
    def change(model: Any) -> None:
        put(model.operatorCodes[0], builtinCode=32, deprecatedBuiltinCode=32, customCode=b"My\nOp")

    with pytest.raises(BadRequest, match="custom_code 'My\\?Op' holds unprintable"):
        check(changed(change))

    def plain(model: Any) -> None:
        change(model)
        model.operatorCodes[0].customCode = b"TFLite_Detection_PostProcess"

    refuses(
        changed(plain), "the custom operator 'TFLite_Detection_PostProcess'", UnsupportedOperator
    )


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - set(SIGNATURES) - {"CUSTOM"}))
def test_operators_that_are_not_accepted_are_unsupported_and_it_says_why(name: str) -> None:
    refuses(one_operator(name), f"^the operator {name} is not accepted: .+", UnsupportedOperator)


def test_an_operator_of_a_later_schema_is_unsupported() -> None:
    def change(model: Any) -> None:
        model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = 999, 127

    refuses(
        changed(change), "no builtin operator 999; is the file a newer one", UnsupportedOperator
    )


def test_formats_are_not_mistaken_for_each_other() -> None:
    refuses(b"\x08\x08" + bytes(40), "not marked as TFL3; it may be an ONNX file")
    with pytest.raises(BadRequest, match="marked as TFLite, and was sent as ONNX"):
        onnx_file.check(SOUND)


def test_numbers_of_operators_that_decide_on_shapes_must_fit() -> None:
    bad = [
        ("SLICE", [2, 3], [[0, 0], [3, 1]], [3, 1]),
        ("SLICE", [2, 3], [[-1, 0], [1, 1]], [1, 1]),
        ("TRANSPOSE", [2, 3], [[0, 0]], [2, 2]),
        ("TRANSPOSE", [2, 3], [[0, 2]], [2, 3]),
        ("EXPAND_DIMS", [2, 3], [3], [2, 3, 1]),
        ("PAD", [2, 3], [[[0, -1], [0, 0]]], [1, 3]),
        ("TILE", [2, 3], [[2]], [4, 3]),
        ("TILE", [2, 3], [[0, 1]], [1, 3]),
        ("BROADCAST_TO", [2, 3], [[2, 4]], [2, 4]),
        ("REVERSE_V2", [2, 3], [[2]], [2, 3]),
        ("STRIDED_SLICE", [4], [[0], [4], [0]], [4]),
        ("RESHAPE", [2, 3], [[-1, -1]], [2, 3]),
        ("RESHAPE", [2, 3], [[-1, 4]], [1, 4]),
        ("RESHAPE", [2, 3], [[7]], [7]),
        ("SPACE_TO_BATCH_ND", [1, 4, 4, 1], [[0, 2], [[0, 0], [0, 0]]], [1, 4, 4, 1]),
        ("TOPK_V2", [2, 3], [4], [2, 4]),
        ("DYNAMIC_UPDATE_SLICE", [2, 3], [np.ones((3, 1)), [0, 0]], [2, 3]),
        ("DYNAMIC_UPDATE_SLICE", [2, 3], [np.ones((1, 1)), [0]], [2, 3]),
        ("SCATTER_ND", [2, 3], [np.ones(2), [4]], [4]),
        ("GATHER_ND", [2, 3], [[[0, 0, 0]]], [1]),
        ("CONCATENATION", [2, 3], [np.ones((3, 3))], [5, 2]),
    ]
    for name, shape, numbers, result in bad:
        model = Model()
        x = model.input(shape)
        ys = [model.tensor(result) for _ in range(SIGNATURES[name].fewest_outputs)]
        kind = SIGNATURES[name].options
        fields = {"axis": 1} if name == "CONCATENATION" else {}
        model.operator(name, [x, *map(model.constant, numbers)], ys, options=kind, **fields)
        refuses(model.returns(*ys).pack(), r"cannot run: \w+")


# --- FlatBuffers ----------------------------------------------------------------------------

TINY = schema_of(
    {
        "M": "number int32=7, inner M, many M*, numbers int32*, name name, words text, data bytes, "
        "flag bool, kind Kind, choice Choice, long int64, longs int64*",
    },
    {"Kind": ("int8", 2)},
    {"Choice": ("M",)},
)
NUMBER, INNER, MANY, NUMBERS, NAME, WORDS, DATA, FLAG, KIND, CHOICE_TYPE, CHOICE, LONG, LONGS = (
    range(13)
)
END = 100


def tiny(
    slot: int | None = None,
    stored: bytes = b"",
    behind: bytes = b"",
    *,
    vtable: bytes | None = None,
    at: int = 4,
) -> bytes:
    """A file of one table with one field; what it refers to lies at byte `END`.

    Args:
        slot: of the field.
        stored: the field.
        behind: what lies at `END`.
        vtable: in place of the right one.
        at: offset of the field in its table.
    """
    if vtable is None:
        offsets = [0] * (0 if slot is None else slot + 1)
        if slot is not None:
            offsets[slot] = at
        size = at + len(stored)
        vtable = struct.pack(f"<{2 + len(offsets)}H", 4 + 2 * len(offsets), size, *offsets)
    start = 44
    content = struct.pack("<I", start) + b"TINY" + vtable
    content = content.ljust(start, b"\0") + struct.pack("<i", start - 8).ljust(at, b"\0") + stored
    return content.ljust(END, b"\0") + behind


def to_end(more: int = 0) -> bytes:
    """The offset that leads from the field to `END`, or to some bytes more."""
    return struct.pack("<I", END + more - 48)


def vector(count: int, elements: bytes) -> bytes:
    return struct.pack("<I", count) + elements


def read(content: bytes, **limits: int) -> dict[str, Any]:
    return parse(content, TINY, "M", Limits(**{"objects": 100, "depth": 5, **limits}))


def test_fields_are_read() -> None:
    assert read(tiny())["number"] == 7
    assert read(tiny(NUMBER, b"\x05\0\0\0"))["number"] == 5
    assert read(tiny(NUMBER, b"\xff\xff\xff\xff"))["number"] == -1
    assert read(tiny(FLAG, b"\x01"))["flag"] == 1
    assert read(tiny(LONG, b"\x01" + bytes(7)))["long"] == 1
    assert read(tiny(NAME, to_end(), vector(2, b"ab\0")))["name"] == "ab"
    assert read(tiny(NUMBERS, to_end(), vector(2, bytes(8))))["numbers"].tolist() == [0, 0]
    data = read(tiny(DATA, to_end(), vector(3, b"abc")))["data"]
    assert (data.start, data.end) == (END + 4, END + 7)
    assert read(tiny())["choice"] is None
    inner = tiny(INNER, to_end(more=4), struct.pack("<HHi", 4, 4, 4))
    assert read(inner)["inner"]["number"] == 7


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "ends within a number"),
        (struct.pack("<I", 0) + bytes(40), "an offset leads nowhere"),
        (struct.pack("<I", 9) + bytes(40), "an offset leads nowhere"),
        (struct.pack("<I", 2**32 - 4) + bytes(40), "an offset leads out of it"),
        (struct.pack("<I", 44) + bytes(40), "an offset leads out of it"),
        (struct.pack("<Iii", 8, 0, 0).ljust(8 + 4, b"\0")[:8] + struct.pack("<i", 9), "outside"),
        (struct.pack("<Iii", 8, 0, -(2**31)), "list of fields lies outside"),
        (tiny(vtable=struct.pack("<HH", 3, 4)), "list of fields is cut short"),
        (tiny(vtable=struct.pack("<HH", 2, 4)), "list of fields is cut short"),
        (tiny(vtable=struct.pack("<HH", 65534, 4)), "list of fields is cut short"),
        (tiny(vtable=struct.pack("<HH", 4, 3)), "a table has 3 bytes"),
        (tiny(vtable=struct.pack("<HH", 4, 65535)), "ends within a table"),
        (tiny(vtable=struct.pack("<HHH", 6, 8, 3)), "number lies outside of its table"),
        (tiny(vtable=struct.pack("<HHH", 6, 8, 5)), "number lies outside of its table"),
        (tiny(vtable=struct.pack("<HHH", 6, 8, 65535)), "number lies outside of its table"),
        (tiny(13, bytes(4)), "the field number 13 is unknown"),
        (tiny(NUMBER, bytes(4), at=6), "number is not aligned"),
        (tiny(LONG, bytes(8), at=8), "long is not aligned"),
        (tiny(FLAG, b"\x02"), "flag has the unknown value 2"),
        (tiny(KIND, b"\x02"), "kind has the unknown value 2"),
        (tiny(KIND, b"\xff"), "kind has the unknown value -1"),
        (tiny(CHOICE_TYPE, b"\x02"), "choice is of the unknown kind 2"),
        (tiny(CHOICE_TYPE, b"\x01"), "choice has a kind without a value"),
        (tiny(CHOICE, to_end(), bytes(8)), "choice has a kind without a value, or the reverse"),
        (tiny(INNER, bytes(4)), "an offset leads nowhere"),
        (tiny(INNER, struct.pack("<I", 2)), "an offset leads nowhere"),
        (tiny(INNER, to_end()), "an offset leads out of it"),
        (tiny(NUMBERS, to_end(), vector(3, bytes(8))), "3 elements do not fit"),
        (tiny(NUMBERS, to_end(), vector(2**30, bytes(8))), "1073741824 elements do not fit"),
        (tiny(NUMBERS, to_end(), vector(2**32 - 1, bytes(8))), "elements do not fit"),
        (tiny(LONGS, to_end(more=4), bytes(4) + vector(1, bytes(8))), "list longs is not aligned"),
        (tiny(DATA, to_end(), vector(4, b"abc")), "4 elements do not fit"),
        (tiny(MANY, to_end(), vector(1, bytes(4))), "an offset leads nowhere"),
        (tiny(MANY, to_end(), vector(2, bytes(4))), "2 elements do not fit"),
        (tiny(NAME, to_end(), vector(2, b"ab")), "name does not end with a zero"),
        (tiny(NAME, to_end(), vector(2, b"abc")), "name does not end with a zero"),
        (tiny(NAME, to_end(), vector(2, b"\xc3\x28\0")), "name is not UTF-8"),
        (tiny(NAME, to_end(), vector(2, b"a\n\0")), r"name 'a\?' holds unprintable"),
        (tiny(WORDS, to_end(), vector(2, b"\xc3\x28\0")), "words is not UTF-8"),
        (tiny(WORDS, to_end(), vector(65537, b"a" * 65537 + b"\0")), "longer than 65536"),
    ],
)
def test_a_malformed_flatbuffer_is_refused(content: bytes, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        read(content)


def test_a_text_may_have_lines() -> None:
    assert read(tiny(WORDS, to_end(), vector(2, b"a\n\0")))["words"].size == 2


def chain(length: int) -> bytes:
    """Tables in tables, each the `inner` of the one before."""
    vtable = struct.pack("<HHHHHH", 12, 8, 0, 4, 0, 0)
    content = struct.pack("<I", 20) + vtable
    content = content.ljust(20, b"\0")
    for index in range(length):
        at = 20 + 8 * index
        content += struct.pack("<iI", at - 4, 4)
    return content + struct.pack("<HHi", 4, 4, 0)[:4] + bytes(8)


def test_depth_objects_and_sharing_are_counted() -> None:
    with pytest.raises(BadRequest, match="nested deeper than 5"):
        read(chain(20))
    # One vector of many tables, all of which are one: each counts.
    one = struct.pack("<HHi", 4, 4, 4)
    count = 50
    places = b"".join(struct.pack("<I", 4 * (count - i) + 4) for i in range(count))
    shared = tiny(MANY, to_end(), vector(count, places) + one)
    assert len(read(shared)["many"]) == count
    with pytest.raises(BadRequest, match="more than 30 objects"):
        read(shared, objects=30)
    # Each of them has a name, which is one too, and long.
    one = struct.pack("<HHHHHHH", 14, 8, 0, 0, 0, 0, 4) + bytes(2) + struct.pack("<iI", 16, 4)
    places = b"".join(struct.pack("<I", 4 * (count - i) + 16) for i in range(count))
    named = tiny(MANY, to_end(), vector(count, places) + one + vector(600, b"a" * 600 + b"\0"))
    with pytest.raises(BadRequest, match="its parts are used too often"):
        read(named, objects=10**6)


def test_a_list_of_fields_is_read_once_however_many_tables_have_it() -> None:
    """Else 65,000 entries for each of 100,000 tables would take minutes."""
    reader = _flatbuffer._Reader(SOUND, SCHEMA, tflite_file._LIMITS)
    table = reader.table("Model", reader.follow(0, "Model"), 1)
    tables = 3 * len(table["subgraphs"][0]["tensors"])
    assert 0 < sum(name == "Tensor" for name, _ in reader._layouts) < tables


def test_the_schema_nests_no_deeper_than_the_limit() -> None:
    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, "a table within itself"
        inner = [
            depth(kind, (*above, name))
            for field in SCHEMA.tables[name]
            for kind in SCHEMA.unions.get(field.kind, (field.kind,))
            if kind in SCHEMA.tables
        ]
        return 1 + max(inner, default=0)

    assert depth("Model") <= tflite_file._LIMITS.depth


# --- the table ------------------------------------------------------------------------------


class Recorder:
    """Stands for a flatbuffers builder; keeps what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append((name, arguments))

    def of(self, function: Callable[..., Any], *arguments: Any) -> tuple[str, tuple]:
        function(self, *arguments)
        return self.calls[-1]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_SIZES = {"bool": 1, "int8": 1, "uint8": 1, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8}
_SIZES |= {"float32": 4, "uint64": 8}


def test_the_table_is_all_of_litert() -> None:
    """Of the installed one: a field that a later one adds is refused until it is looked at."""
    module = vars(schema)
    recorder = Recorder()
    tables = {
        name.removesuffix("Start") for name in module if name.endswith("Start") and name != "Start"
    }
    assert set(SCHEMA.tables) == tables
    for table, fields in SCHEMA.tables.items():
        assert recorder.of(module[f"{table}Start"]) == ("StartObject", (len(fields),)), table
        found = {}
        for name, function in module.items():
            if match := re.fullmatch(rf"{table}Add([A-Z]\w*)", name):
                if table == "Tensor" and match[1].startswith("Map"):
                    continue
                call, (slot, _, default) = recorder.of(function, 0)
                found[slot] = (match[1], call, default)
        for slot, field in enumerate(fields):
            what = f"{table}.{field.name}"
            if slot not in found:
                assert field.name.startswith("deprecated_"), what
                continue
            name, call, default = found[slot]
            assert snake(name).replace("_", "") == field.name.replace("_", ""), what
            kind = SCHEMA.enumerations.get(field.kind, (field.kind,))[0]
            if field.vector or kind not in _SIZES:
                assert call == "PrependUOffsetTRelativeSlot", what
                size = _SIZES.get(kind, 4) if field.vector else 1
                if start := module.get(f"{table}Start{name}Vector"):
                    assert recorder.of(start, 0)[1][0] == size, what
                    assert field.vector or field.kind == "bytes", what
                else:
                    assert not field.vector, what
                    assert field.kind != "bytes", what
            else:
                assert call == f"Prepend{kind.capitalize()}Slot", what
                assert default == field.default, what


def numbers_of(name: str) -> dict[str, int]:
    return {k: v for k, v in vars(getattr(schema, name)).items() if not k.startswith("_")}


def test_enumerations_and_unions_are_all_of_litert() -> None:
    assert numbers_of("BuiltinOperator") == {name: i for i, name in enumerate(OPERATORS)}
    assert numbers_of("TensorType") == {name: i for i, name in enumerate(TENSOR_TYPES)}
    for name, (_, count) in SCHEMA.enumerations.items():
        assert sorted(numbers_of(name).values()) == list(range(count)), name
    for name, kinds in SCHEMA.unions.items():
        assert numbers_of(name) == {"NONE": 0, **{kind: i + 1 for i, kind in enumerate(kinds)}}
    for name, signature in SIGNATURES.items():
        assert not signature.options or signature.options in SCHEMA.unions["BuiltinOptions"], name


# --- files that were changed by chance ------------------------------------------------------


def assert_read_alike(content: bytes) -> None:
    if outcome(content) is None:
        ours = parse(content, SCHEMA, "Model", tflite_file._LIMITS)
        assert difference(ours, unpack(content), content) == ""


@pytest.mark.parametrize("name", ["sound", "int8"])
def test_a_file_with_any_bit_flipped_is_refused_in_words_or_read_as_litert_reads_it(
    name: str,
) -> None:
    for at in range(len(GOOD[name])):
        changed_file = bytearray(GOOD[name])
        changed_file[at] ^= 1 << (at * 5 + at // 8) % 8
        assert_read_alike(bytes(changed_file))


@settings(max_examples=300)
@given(seed=st.integers(0, 2**64))
def test_a_mutated_file_is_refused_in_words_or_read_as_litert_reads_it(seed: int) -> None:
    chance = random.Random(seed)
    try:
        content = mutated(GOOD[chance.choice(list(GOOD))], chance)
    except Exception:
        return  # it could not be put together again
    assert_read_alike(content)


@given(st.binary(max_size=400))
def test_no_bytes_behind_a_good_beginning_raise_anything_else(content: bytes) -> None:
    outcome(b"\x10\0\0\0TFL3" + content)


def test_mutations_change_files_and_some_remain_good() -> None:
    results = []
    for seed in range(300):
        try:
            results.append(outcome(mutated(SOUND, random.Random(seed))))
        except (BadRequest, UnsupportedOperator):
            raise
        except Exception:
            results.append(BadRequest("it could not be put together again"))
    assert 20 < results.count(None) < 200


def test_packing_is_what_litert_unpacks() -> None:
    assert pack(unpack(SOUND)) == SOUND
    assert isinstance(
        parse(SOUND, SCHEMA, "Model", tflite_file._LIMITS)["subgraphs"][0]["operators"][0][
            "builtin_options"
        ],
        Chosen,
    )
