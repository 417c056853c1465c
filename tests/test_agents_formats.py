"""Checks of uploaded artefacts: every format's, and what the one of ONNX refuses and accepts."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, TypeProto, helper
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from hurricane.agents import formats
from hurricane.agents.errors import AgentError, BadRequest, Internal, UnsupportedOperator
from hurricane.agents.formats import _protobuf, checker_of, format_names, onnx_file
from hurricane.agents.formats._onnx_schema import SCHEMA
from hurricane.agents.formats._protobuf import Limits, Numbers, Span, parse, schema_of
from hurricane.ops.artifacts import snpe_file
from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import export_architecture, export_operator
from hurricane.ops.graph import Piece, prepare_templates
from hurricane.ops.pool import POOL

from . import tflite_attacks
from .onnx_attacks import (
    PLACES,
    Canary,
    decode,
    encode,
    endless_graphs,
    external_data_attacks,
    mutated,
    refused_graphs,
    relu_model,
    sound_model,
)


def quantised_model() -> bytes:
    """QuantizeLinear and DequantizeLinear around a Relu."""
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [128])
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("QuantizeLinear", ["b", "scale", "zero"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 4])],
        initializer=[scale, zero],
    )
    opsets = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def snpe_archive() -> bytes:
    edge = {"dtype": "uint8", "shape": [1, 8, 4, 4], "scale": 0.5, "zero_point": 128}
    edges = {"inputs": [{"name": "x", **edge}], "outputs": [{"name": "y", **edge}]}
    dlc = snpe_file._archive({"model": b"model", "model.params": b"parameters"}, b"")
    return snpe_file._archive({"model.dlc": dlc, "edges.json": json.dumps(edges).encode()}, b"")


SAMPLES = {
    "onnx": sound_model().SerializeToString(),
    "onnx-qdq": quantised_model(),
    "snpe": snpe_archive(),
    "tflite": tflite_attacks.sound_model().pack(),
}
"""A small good file of each format, without parts at its end that it could do without."""

OTHER_FILES = {
    "text": b"hello\n",
    "XML": b"<?xml version='1.0'?><net name='n' version='11'><layers/></net>",
    "JSON": b'{"graph": []}',
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "ELF": b"\x7fELF" + bytes(60),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "TFLite": b"\x1c\0\0\0TFL3" + bytes(60),
    "ONNX Runtime's": b"\x20\0\0\0ORTM" + bytes(60),
    "pickle": b"\x80\x04K\x01.",
    "zeros": bytes(100),
}


def check(content: bytes | memoryview) -> None:
    onnx_file.check(content)


def outcome(format: str, content: bytes) -> AgentError | None:
    """What a check says; any other exception than the typed ones fails the test."""
    checker = checker_of(format)
    assert checker is not None
    try:
        checker(content)
    except (BadRequest, UnsupportedOperator) as error:
        refusal = error
    else:
        return None
    assert str(refusal).isprintable(), "one line, nothing that a terminal obeys"
    assert 0 < len(str(refusal)) < 1000
    return refusal


def refuses(model: ModelProto | bytes, match: str, error: type = BadRequest) -> None:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(error, match=match):
        check(content)


def accepts(model: ModelProto | bytes) -> None:
    check(model if isinstance(model, bytes) else model.SerializeToString())


# --- every format ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", format_names())
def test_every_format_has_a_sample_here(format: str) -> None:
    assert format in SAMPLES, f"put a small good {format} file into SAMPLES"


@pytest.mark.parametrize("format", format_names())
def test_a_good_file_is_accepted_as_bytes_and_as_memory(format: str) -> None:
    assert outcome(format, SAMPLES[format]) is None
    checker = checker_of(format)
    assert checker is not None
    checker(memoryview(SAMPLES[format]))
    checker(memoryview(bytearray(SAMPLES[format])).cast("c"))


@pytest.mark.parametrize("format", format_names())
def test_an_empty_file_is_refused(format: str) -> None:
    assert "empty" in str(outcome(format, b""))


@pytest.mark.parametrize("format", format_names())
def test_a_file_cut_short_anywhere_is_refused(format: str) -> None:
    sample = SAMPLES[format]
    for end in range(1, len(sample), max(1, len(sample) // 2000)):
        assert outcome(format, sample[:end]) is not None, end


@pytest.mark.parametrize("format", format_names())
def test_random_bytes_are_refused(format: str) -> None:
    chance = random.Random(1)
    for size in range(1, 300):
        assert outcome(format, chance.randbytes(size)) is not None
        assert outcome(format, SAMPLES[format][:8] + chance.randbytes(size)) is not None


@pytest.mark.parametrize("format", format_names())
@pytest.mark.parametrize("number", [b"\xff" * 4, b"\xff" * 9 + b"\x01", b"\x80" * 20, bytes(8)])
def test_huge_numbers_anywhere_are_no_more_than_wrong(format: str, number: bytes) -> None:
    sample = SAMPLES[format]
    for at in range(0, len(sample), max(1, len(sample) // 500)):
        outcome(format, sample[:at] + number + sample[at:])
        outcome(format, sample[:at] + number + sample[at + len(number) :])


@pytest.mark.parametrize("format", format_names())
def test_a_file_of_another_format_is_refused(format: str) -> None:
    same = checker_of(format)
    others = {name: s for name, s in SAMPLES.items() if checker_of(name) is not same}
    assert others
    for name, content in {**OTHER_FILES, **others}.items():
        assert outcome(format, content) is not None, name


def test_a_format_without_a_check_has_none() -> None:
    assert checker_of("punch-cards") is None
    assert {"onnx", "onnx-qdq", "tflite"} <= set(format_names())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def check(content):\n    pass\n", "lacks NAMES"),
        ("NAMES = ('cards',)\n", r"lacks NAMES or check\(\)"),
        ("NAMES = ('onnx',)\ndef check(content):\n    pass\n", "two modules .* 'onnx'"),
        ("NAMES = ('cards', 'tape')\ndef check(content):\n    pass\n", ""),
    ],
)
def test_a_file_in_the_folder_is_a_format(
    text: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"punched_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "_helper.py").write_text("raise RuntimeError('a helper is no format')\n")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    formats._checkers.cache_clear()
    try:
        if match:
            with pytest.raises(Internal, match=match):
                format_names()
        else:
            assert set(format_names()) == {*SAMPLES, "cards", "tape"}
            assert checker_of("cards") is not None
    finally:
        formats._checkers.cache_clear()
        sys.modules.pop(f"{formats.__name__}.{name}", None)


@pytest.mark.process
@pytest.mark.parametrize("format", format_names())
def test_checking_loads_no_runtime(format: str) -> None:
    code = (
        "import sys; from hurricane.agents.formats import checker_of; "
        f"checker_of('{format}')(bytes(0))"
    )
    script = f"try:\n    exec({code!r})\nexcept Exception as e:\n    print(e)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}"], capture_output=True, text=True, check=True
    )
    assert "empty" in done.stdout
    runtimes = {"onnx", "onnxruntime", "openvino", "google.protobuf"}
    runtimes |= {"ai_edge_litert", "tflite_runtime", "flatbuffers"}
    assert not runtimes & set(done.stdout.split())


# --- protobuf's wire format -----------------------------------------------------------------


def top_level(extra: bytes) -> bytes:
    return relu_model().SerializeToString() + extra


def with_tensor(*fields: list) -> bytes:
    """A model whose initializer `w` has these fields of the wire, and no more than its name."""
    wire = decode(relu_model(initializer=[TensorProto(name="w")]).SerializeToString())
    graph = next(value for number, _, value in wire if number == 7)
    tensor = next(value for number, _, value in graph if number == 5)
    tensor += fields
    return encode(wire)


DIMS, DATA_TYPE, FLOATS, INT32S, INT64S, RAW = 1, 2, 4, 5, 7, 9
PACKED = 2


def varints(*numbers: int) -> bytes:
    """Varints one behind the other."""
    return b"".join(encode([[0, 0, number]])[1:] for number in numbers)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (top_level(b"\x33"), "groups"),
        (top_level(b"\x3b\x3c"), "groups"),
        (top_level(b"\xfb\x06\xfc\x06"), "groups"),
        (top_level(b"\x00\x01"), "field number 0 is unknown"),
        (top_level(b"\xc8\x06\x01"), "field number 105 is unknown"),
        (top_level(b"\x2a\x00"), "model_version has the wrong wire type 2"),
        (top_level(b"\x4e\x00"), "field number 9 is unknown"),
        (top_level(b"\x30\x01"), "doc_string has the wrong wire type 0"),
        (top_level(b"\x2d\0\0\0\0"), "model_version has the wrong wire type 5"),
        (top_level(b"\x2f"), "model_version has the wrong wire type 7"),
        (top_level(b"\x28\x01\x28\x01"), "model_version stands there twice"),
        (top_level(b"\x28"), "ends within a number"),
        (top_level(b"\x28\x80"), "ends within a number"),
        (top_level(b"\x28" + b"\x80" * 9), "ends within a number"),
        (top_level(b"\x28\x81\x00"), "longer than it may be"),
        (top_level(b"\x28" + b"\x80" * 10 + b"\x01"), "longer than it may be"),
        (top_level(b"\x28" + b"\xff" * 9 + b"\x02"), "longer than it may be"),
        (top_level(b"\x32\x05abcd"), "5 bytes do not fit"),
        (top_level(b"\x32\x81\x00a"), "longer than it may be"),
        (top_level(b"\xb2\x00\x00"), "longer than it may be"),
        (top_level(b"\x32\x02\xc3\x28"), "doc_string is not UTF-8"),
        (top_level(b"\x32\x03\xed\xa0\x80"), "doc_string is not UTF-8"),
        (top_level(b"\x32\x01\xc3"), "doc_string is not UTF-8"),
        (top_level(b"\x22\x01\xc3"), "domain is not UTF-8"),
        (top_level(b"\x22\x03a\nb"), "domain 'a\\?b' holds unprintable"),
        (top_level(b"\x22\x81\x08" + b"a" * 1025), "longer than 1024 bytes"),
    ],
)
def test_a_malformed_message_is_refused(content: bytes, match: str) -> None:
    refuses(content, match)


@pytest.mark.parametrize(
    "extra",
    [b"\x28\x01", b"\x28" + b"\xff" * 9 + b"\x01", b"\x32\x03a\nb", b"\x22\x80\x08" + b"a" * 1024],
)
def test_what_is_well_formed_is_accepted(extra: bytes) -> None:
    accepts(top_level(extra))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ([[DATA_TYPE, 0, 2**32 + 1]], "4294967297 does not fit into 32 bits"),
        ([[DATA_TYPE, 0, 2**31]], "2147483648 does not fit into 32 bits"),
        ([[INT32S, PACKED, varints(2**31)]], "does not fit into 32 bits"),
        ([[INT32S, PACKED, varints(*[7] * 300, 2**63)]], "does not fit into 32 bits"),
        ([[INT32S, 0, 2**31]], "does not fit into 32 bits"),
        ([[FLOATS, PACKED, bytes(7)]], "float_data ends within a number"),
        ([[FLOATS, PACKED, bytes(8)], [FLOATS, PACKED, bytes(8)]], "float_data stands there twice"),
        ([[FLOATS, 5, bytes(4)], [FLOATS, PACKED, bytes(8)]], "float_data stands there twice"),
        ([[FLOATS, PACKED, bytes(8)], [FLOATS, 5, bytes(4)]], "float_data stands there twice"),
        ([[INT64S, PACKED, b"\x81"]], "ends within a number"),
        ([[INT64S, PACKED, b"\x81\x00"]], "longer than it may be"),
        ([[INT64S, PACKED, b"\x01" * 300 + b"\x81"]], "ends within a number"),
        ([[INT64S, PACKED, b"\x01" * 300 + b"\x81\x00"]], "longer than it may be"),
        ([[INT64S, PACKED, b"\x80" * 10 + b"\x01" * 300]], "longer than it may be"),
        ([[INT64S, PACKED, b"\xff" * 9 + b"\x02" + b"\x01" * 300]], "longer than it may be"),
        ([[INT64S, PACKED, b"\x80" * 2**20 + b"\x01"]], "ends within a number|longer than it"),
        ([[DATA_TYPE, PACKED, b"\x01"]], "data_type has the wrong wire type"),
        ([[RAW, 0, 0]], "raw_data has the wrong wire type"),
        ([[DIMS, 5, b"\x01\x01\x01\x01"]], "dims has the wrong wire type 5"),
        ([[FLOATS, 0, 1]], "float_data has the wrong wire type 0"),
        ([[FLOATS, 1, bytes(8)]], "float_data has the wrong wire type 1"),
        ([[13, 0, 0]], "external_data has the wrong wire type 0"),
    ],
)
def test_malformed_numbers_are_refused(fields: list[list], match: str) -> None:
    refuses(with_tensor(*fields), match)


def test_a_number_of_32_bits_cut_short_is_refused() -> None:
    model = relu_model()
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 0.5))
    wire = decode(model.SerializeToString())
    graph = next(value for number, _, value in wire if number == 7)
    node = next(value for number, _, value in graph if number == 1)
    attribute = next(value for number, _, value in node if number == 5)
    value = next(field for field in attribute if field[0] == 2)
    attribute.remove(value)
    attribute.append([2, 5, value[2][:3]])
    refuses(encode(wire), "ends within a number")


@given(st.lists(st.integers(0, 2**64 - 1), min_size=60, max_size=400), st.integers(60, 2000))
def test_lists_of_varints_are_read_alike_one_by_one_and_many_at_once(
    numbers: list[int], block: int
) -> None:
    schema = schema_of({"M": {1: "signed int64*", 2: "unsigned uint64*"}})
    content = encode([[1, PACKED, varints(*numbers)], [2, PACKED, varints(*numbers)]])
    alone = [[1, 0, number] for number in numbers] + [[2, 0, number] for number in numbers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_protobuf, "_BLOCK_BYTES", block)
        many = parse(content, schema, "M", Limits(1000, 2))
    one_by_one = parse(encode(alone), schema, "M", Limits(1000, 2))
    for name, signed in (("signed", True), ("unsigned", False)):
        values = [n - 2**64 if signed and n >= 2**63 else n for n in numbers]
        for read in (many[name], one_by_one[name]):
            assert read.count == len(values)
            assert (read.low, read.high) == (min(values), max(values))
            assert read.first == values[:32]


@given(st.text(min_size=10), st.integers(1, 7))
def test_long_texts_are_read_in_blocks(text: str, block: int) -> None:
    schema = schema_of({"M": {1: "words text"}})
    encoded = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_protobuf, "_BLOCK_BYTES", block)
        parse(encode([[1, 2, encoded]]), schema, "M", Limits(1, 1))
        with pytest.raises(BadRequest, match="not UTF-8"):
            parse(encode([[1, 2, encoded + b"\xe2\x82"]]), schema, "M", Limits(1, 1))


def test_fields_and_depth_are_counted() -> None:
    schema = schema_of({"M": {1: "inner M*", 2: "numbers int64*"}})

    def read(content: bytes) -> Any:
        return parse(content, schema, "M", Limits(fields=3, depth=2))

    read(b"\x0a\x00\x0a\x00\x0a\x00")
    read(b"\x12\x04\x01\x02\x03\x04")
    with pytest.raises(BadRequest, match="more than 3 fields"):
        read(b"\x0a\x00\x0a\x00\x0a\x00\x0a\x00")
    with pytest.raises(BadRequest, match="more than 3 fields"):
        read(b"\x10\x01\x10\x01\x10\x01\x10\x01")
    with pytest.raises(BadRequest, match="nested deeper than 2"):
        read(b"\x0a\x02\x0a\x00")


def test_the_table_is_all_of_onnx() -> None:
    """Of the installed onnx: a field that a later one adds is refused until it is looked at."""
    from google.protobuf import descriptor_pb2

    kinds = descriptor_pb2.FieldDescriptorProto
    names = {
        kinds.TYPE_INT32: "int32",
        kinds.TYPE_ENUM: "int32",
        kinds.TYPE_INT64: "int64",
        kinds.TYPE_UINT64: "uint64",
        kinds.TYPE_FLOAT: "float",
        kinds.TYPE_DOUBLE: "double",
        kinds.TYPE_BYTES: "bytes",
        kinds.TYPE_STRING: "string",
    }
    found: dict[str, dict] = {}

    def add(message: Any, prefix: str = "") -> None:
        name = prefix + message.name
        found[name] = {
            field.number: (
                field.name,
                names.get(field.type, field.type_name.replace(".onnx.", "")),
                field.label == kinds.LABEL_REPEATED,
            )
            for field in message.field
        }
        for nested in message.nested_type:
            add(nested, f"{name}.")

    file = descriptor_pb2.FileDescriptorProto()
    onnx.onnx_ml_pb2.DESCRIPTOR.CopyToProto(file)  # type: ignore[attr-defined]
    for message in file.message_type:
        add(message)
    ours = {
        name: {
            number: (
                field.name,
                {"text": "string", "name": "string"}.get(field.kind, field.kind),
                field.repeated,
            )
            for number, field in fields.items()
        }
        for name, fields in SCHEMA.items()
    }
    assert ours == found
    types = dict(TensorProto.DataType.items())
    table = {n: e.name for n, e in onnx_file._ELEMENT_TYPES.items()}
    refused = {"UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128"}
    assert table == {number: name for name, number in types.items() if name not in refused}
    assert set(onnx_file._ATTRIBUTE_FIELDS) == set(AttributeProto.AttributeType.values()) - {0}
    assert onnx_file._IR_VERSIONS[-1] == onnx.IR_VERSION


# --- external data --------------------------------------------------------------------------


def canaries(folder: Path, secret: bytes) -> Canary:
    """A secret outside of a folder, and all ways to it from within."""
    inside = folder / "store"
    inside.mkdir()
    outside = folder / "canary"
    outside.write_bytes(secret)
    (inside / "plain").write_bytes(secret)
    (inside / "symlink").symlink_to(outside)
    os.link(outside, inside / "hard-link")
    return Canary(len(secret), str(outside), plain="plain")


ATTACKS = dict(external_data_attacks(Canary(64, "/no/such/file")))


@pytest.mark.parametrize("name", ATTACKS)
def test_external_data_is_refused_wherever_it_stands(name: str) -> None:
    refuses(ATTACKS[name], r"^tensor '\w+' lies outside .* external data is refused")


def test_the_attacks_are_all_there_and_onnx_finds_external_data_in_them() -> None:
    assert len(ATTACKS) == len(PLACES) * len(Canary(1, "/").locations()) == 100
    for name, content in ATTACKS.items():
        model = onnx.load_from_string(content)
        assert str(model).count("data_location: EXTERNAL") == 1, name


_ASK_A_RUNTIME = """
import base64, json, pathlib, sys
import numpy as np
sys.modules["openvino_telemetry"] = None  # it is made to do without
runtime, *paths = sys.argv[1:]
x = np.ones((1, 4), np.float32)
for path in paths:
    content = pathlib.Path(path).read_bytes()
    try:
        if runtime == "onnxruntime":
            import onnxruntime
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            outputs = session.run(None, {"x": x})
        else:
            import openvino
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(content, b""), "CPU")
            outputs = list(compiled.create_infer_request().infer([x]).values())
    except Exception as error:
        outputs = [np.frombuffer(str(error).encode(), np.uint8)]
    data = b"".join(np.asarray(output).tobytes() for output in outputs)
    print(json.dumps([pathlib.Path(path).stem, base64.b64encode(data).decode()]))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("runtime", "places"),
    [
        (
            "onnxruntime",
            {"initializer", "constant", "attribute", "sparse-values", "function-body",
             "function-default", "if-body", "loop-body"},
        ),
        ("openvino", {"initializer", "constant", "if-body", "loop-body"}),
    ],
)  # fmt: skip
def test_without_the_check_runtimes_give_the_secret_away(
    runtime: str, places: set[str], tmp_path: Path
) -> None:
    """Else the attacks would show nothing; a place that a runtime closes is taken off here."""
    pytest.importorskip(runtime)
    secret = bytes(random.Random(2).choices(range(1, 256), k=96))
    canary = canaries(tmp_path, secret)
    store = tmp_path / "store"
    files = []
    for name, content in external_data_attacks(dataclasses.replace(canary, size=64)):
        place, trick = name.split("/")
        if (trick == "plain" and place in places) or name == "initializer/hard-link":
            file = store / name.replace("/", "_")
            file.write_bytes(content)
            files.append(str(file))
    done = subprocess.run(
        [sys.executable, "-c", _ASK_A_RUNTIME, runtime, *files],
        cwd=store,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = dict(json.loads(line) for line in done.stdout.splitlines())
    leaked = {name for name, data in answers.items() if secret[:8] in base64.b64decode(data)}
    assert leaked == {Path(file).stem for file in files}


@pytest.mark.parametrize(
    ("sign", "change"),
    [
        ("external_data", lambda tensor: tensor.external_data.add(key="location", value="w")),
        ("external_data", lambda tensor: tensor.external_data.add()),
        ("data_location", lambda t: setattr(t, "data_location", TensorProto.EXTERNAL)),
        ("segment", lambda tensor: setattr(tensor.segment, "begin", 0)),
    ],
)
def test_each_sign_of_external_data_is_enough(
    sign: str, change: Callable[[TensorProto], Any]
) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    change(tensor)
    refuses(relu_model(initializer=[tensor]), rf"tensor 'w' .* \({sign}\): external data is")


def test_a_location_that_onnx_does_not_know_is_external_too() -> None:
    refuses(with_tensor([14, 0, 7]), "external data is refused")
    refuses(with_tensor([14, 0, 2**64 - 1]), "external data is refused")


def test_data_that_were_external_once_and_are_inside_now_are_accepted() -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.DEFAULT
    accepts(relu_model(initializer=[tensor]))


# --- files that were made to harm -----------------------------------------------------------


@pytest.mark.process
def test_made_up_graphs_are_refused() -> None:
    for name, content in refused_graphs():
        assert outcome("onnx", content) is not None, name


@pytest.mark.parametrize("mark", ["ORTM", "TFL3"])
def test_an_onnx_file_with_another_formats_mark_is_refused(mark: str) -> None:
    # As good an ONNX file as any: its producer's name stands where others look for the mark.
    content = relu_model().SerializeToString()
    marked = content[:2] + b"\x12\x06" + mark.encode() + b"AB" + content[2:]
    assert onnx.load_from_string(marked).graph.node
    refuses(marked, "the artefact is marked as")


def test_graphs_without_end_are_for_the_limits_to_end() -> None:
    """No check can tell them from others: they must get as far as the limits of the worker."""
    for _, content in endless_graphs():
        assert len(content) < 1000
        accepts(content)


def test_a_file_of_two_gigabytes_is_refused_unread() -> None:
    with (
        mmap.mmap(-1, 2**31) as memory,
        memoryview(memory) as content,
        pytest.raises(BadRequest, match="less than 2 GiB"),
    ):
        check(content)


# --- the model ------------------------------------------------------------------------------


def changed(change: Callable[[ModelProto], Any]) -> ModelProto:
    model = relu_model()
    change(model)
    return model


def opsets(*imports: tuple[str, int]) -> ModelProto:
    model = relu_model()
    del model.opset_import[:]
    for domain, version in imports:
        model.opset_import.add(domain=domain, version=version)
    return model


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.functions.add(), "the model has functions: .*inline them first"),
        (lambda m: m.training_info.add(), "the model has training_info"),
        (lambda m: m.configuration.add(), "the model has configuration"),
        (lambda m: setattr(m, "ir_version", 2), "ir_version 2; 3 to 14"),
        (lambda m: setattr(m, "ir_version", 15), "ir_version 15"),
        (lambda m: setattr(m, "ir_version", 2**62), "ir_version"),
        (lambda m: m.ClearField("ir_version"), "does not begin with its ir_version"),
        (lambda m: m.ClearField("graph"), "no ONNX graph"),
        (lambda m: m.graph.ClearField("node"), "no ONNX graph"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse tensors are refused"),
        (lambda m: m.graph.quantization_annotation.add(), "annotations of quantization"),
        (lambda m: m.graph.node[0].device_configurations.add(), "configurations of devices"),
        (lambda m: setattr(m.graph.node[0], "overload", "o"), "overloads a function"),
        (lambda m: m.graph.node[0].ClearField("op_type"), "node 0 .* has no op_type"),
        (lambda m: m.graph.node[0].ClearField("output"), "node 0 .* has no output"),
        (lambda m: m.graph.node[0].output.__setitem__(0, ""), "has no output"),
        (lambda m: m.graph.ClearField("output"), "the graph has no output"),
        (lambda m: setattr(m.graph.output[0], "name", "z"), "output 'z' is computed by no node"),
        (lambda m: m.graph.output[0].ClearField("name"), "output '' is computed by no node"),
    ],
)
def test_a_model_with_something_wrong_is_refused(
    change: Callable[[ModelProto], Any], match: str
) -> None:
    refuses(changed(change), match)


@pytest.mark.parametrize(
    ("imports", "match", "error"),
    [
        ([("org.evil", 1), ("", 17)], "imports .* domain 'org.evil'", UnsupportedOperator),
        ([], "does not say its opset", BadRequest),
        ([("ai.onnx.ml", 3)], "does not say its opset", BadRequest),
        ([("", 17), ("", 17)], "ai.onnx twice", BadRequest),
        ([("", 17), ("ai.onnx", 17)], "ai.onnx twice", BadRequest),
        ([("", 17), ("ai.onnx.ml", 1), ("ai.onnx.ml", 2)], "ai.onnx.ml twice", BadRequest),
        ([("", 0)], "no opset 0", BadRequest),
        ([("", -1)], "no opset -1", BadRequest),
        ([("", 1000)], "no opset 1000", BadRequest),
    ],
)
def test_opsets_are_those_of_onnx_once_each(
    imports: list[tuple[str, int]], match: str, error: type
) -> None:
    refuses(opsets(*imports), match, error)


@pytest.mark.parametrize(
    "imports",
    [
        [("", 1)],
        [("", 999)],
        [("ai.onnx", 13)],
        [("com.microsoft", 1), ("", 21), ("ai.onnx.ml", 5)],
    ],
)
def test_imports_that_nothing_uses_are_harmless(imports: list[tuple[str, int]]) -> None:
    accepts(opsets(*imports))


@pytest.mark.parametrize("domain", ["com.microsoft", "org.evil", "ai.onnx.ml", "AI.ONNX", " "])
def test_a_node_of_another_domain_is_unsupported(domain: str) -> None:
    model = opsets(("", 17), ("com.microsoft", 1))
    model.graph.node[0].domain = domain
    refuses(model, rf"node 0 \(Relu\) is of the domain '{domain}'", UnsupportedOperator)
    model.graph.node[0].domain = "ai.onnx"
    accepts(model)


# --- names ----------------------------------------------------------------------------------


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def value(name: str, shape: Any = (1, 4), element: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def tensor(name: str = "w", element: int = TensorProto.FLOAT, dims: Any = (1,)) -> TensorProto:
    return helper.make_tensor(name, element, dims, [1] * int(np.prod(dims)))


def graph_of(*nodes: onnx.NodeProto, initializers: Any = (), output: str = "y") -> ModelProto:
    model = relu_model(initializer=list(initializers))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = output
    return model


def body_of(*nodes: onnx.NodeProto, output: str, **parts: Any) -> GraphProto:
    inputs = parts.pop("inputs", [])
    return helper.make_graph(list(nodes), "body", inputs, [value(output, None)], **parts)


YES = helper.make_tensor("yes", TensorProto.BOOL, [], [1])


def with_branch(*nodes: onnx.NodeProto, output: str, after: Any = (), **parts: Any) -> ModelProto:
    """An If whose one branch is these nodes, behind a Relu from x to a."""
    body = body_of(*nodes, output=output, **parts)
    plain = body_of(node("Identity", "x", "else"), output="else")
    branching = node("If", "yes", "y", then_branch=body, else_branch=plain)
    return graph_of(node("Relu", "x", "a"), branching, *after, initializers=[YES, tensor()])


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (graph_of(node("Relu", "z", "y")), r"node 0 \(Relu\) reads 'z'"),
        (graph_of(node("Add", "x y", "y")), "reads 'y', which nothing before"),
        (graph_of(node("Relu", "b", "y"), node("Relu", "x", "b")), "reads 'b', which nothing"),
        (graph_of(node("Relu", "x", "y"), node("Relu", "x", "y")), "the name 'y' is taken"),
        (graph_of(node("Split", "x", "y y")), "the name 'y' is taken"),
        (graph_of(node("Relu", "x", "x"), output="x"), "the name 'x' is taken"),
        (
            graph_of(node("Relu", "x", "w"), initializers=[tensor(dims=[1, 4])], output="w"),
            "'w' is taken",
        ),
        (relu_model(initializer=[tensor(), tensor()]), "initializer 'w': the name 'w' is taken"),
        (relu_model(initializer=[tensor("")]), "initializer '' has no name"),
        (changed(lambda m: m.graph.input.append(value("x"))), "input 'x': the name 'x' is taken"),
        (changed(lambda m: m.graph.input.append(value(""))), "input '' has no name"),
        (changed(lambda m: m.graph.output.append(value("y"))), "output 'y' is declared twice"),
        (
            changed(lambda m: m.graph.value_info.extend([value("v"), value("v")])),
            "value 'v' is declared twice",
        ),
        (with_branch(node("Relu", "x", "a"), output="a"), "in the body of node 1 .* 'a' is taken"),
        (with_branch(node("Relu", "b", "c"), output="c"), "reads 'b', which nothing"),
        (
            with_branch(node("Relu", "b", "c"), output="c", after=[node("Relu", "y", "b")]),
            "reads 'b', which nothing",
        ),
        (with_branch(node("Relu", "y", "c"), output="c"), "reads 'y', which nothing"),
        (with_branch(node("Relu", "x", "c"), output="d"), "output 'd' in the body .* no node"),
        (
            with_branch(node("Relu", "x", "c"), output="c", initializer=[tensor()]),
            "'w' is taken",
        ),
        (with_branch(node("Relu", "x", "c"), output="c", inputs=[value("x")]), "'x' is taken"),
    ],
)
def test_names_are_defined_once_and_before_they_are_read(model: ModelProto, match: str) -> None:
    refuses(model, match)


def test_what_a_branch_computes_is_not_seen_outside() -> None:
    model = with_branch(node("Relu", "a", "c"), output="c", after=[node("Relu", "c", "z")])
    refuses(model, r"node 2 \(Relu\) reads 'c'")


@pytest.mark.parametrize(
    "model",
    [
        graph_of(node("Resize", "x  s", "y"), initializers=[tensor("s")]),
        graph_of(helper.make_node("Clip", ["x", "", "w"], ["y"]), initializers=[tensor()]),
        graph_of(helper.make_node("MaxPool", ["x"], ["y", ""], kernel_shape=[1])),
        graph_of(node("Relu", "x", "b"), node("Add", "b w", "y"), initializers=[tensor()]),
        with_branch(node("Add", "a w", "c"), output="c"),
        with_branch(node("Relu", "x", "else-else"), output="else-else"),
        with_branch(output="k", initializer=[tensor("k")]),
        with_branch(node("Relu", "x", "c"), output="a"),
        changed(lambda m: m.graph.value_info.extend([value("gone"), value("y")])),
    ],
)
def test_names_that_are_well_defined_are_accepted(model: ModelProto) -> None:
    accepts(model)


def test_equal_names_in_two_branches_are_no_clash() -> None:
    branches = {
        name: body_of(node("Relu", "x", "same"), output="same")
        for name in ("then_branch", "else_branch")
    }
    accepts(graph_of(node("If", "yes", "y", **branches), initializers=[YES]))


def test_names_in_messages_are_cut_and_printable() -> None:
    name = "n" * 900
    with pytest.raises(BadRequest) as caught:
        check(graph_of(node("Relu", name, "y")).SerializeToString())
    assert len(str(caught.value)) < 200
    assert "nnn…'" in str(caught.value)
    body = body_of(node("Relu", "z", "b"), output="b")
    for level in range(8):
        branching = node("If", "yes", f"{name}{level}", then_branch=body, name=name)
        body = body_of(branching, output=f"{name}{level}")
    with pytest.raises(BadRequest, match="reads 'z'") as caught:
        check(graph_of(branching, initializers=[YES]).SerializeToString())
    assert len(str(caught.value)) < 300
    assert _protobuf.shown("n" * 80) == f"'{'n' * 80}'"
    assert _protobuf.shown("n" * 81) == f"'{'n' * 79}…'"
    assert _protobuf.shown("a\x1b[31m\nb\u202e") == "'a?[31m?b?'"


# --- attributes and bodies ------------------------------------------------------------------


def with_attribute(attribute: AttributeProto, op: str = "Relu") -> ModelProto:
    model = relu_model()
    model.graph.node[0].op_type = op
    model.graph.node[0].attribute.append(attribute)
    return model


def attribute(**fields: Any) -> AttributeProto:
    return AttributeProto(name="a", **fields)


A = AttributeProto
SPARSE = helper.make_sparse_tensor(
    tensor(), helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4]
)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            with_attribute(attribute(i=1)),
            r"attribute 'a' of node 0 \(Relu\) has no known type \(0\)",
        ),
        (with_attribute(attribute(type=A.INT, f=1.0)), "has a value in f, and by its type in i"),
        (with_attribute(attribute(type=A.INT, i=1, ints=[1])), "has a value in ints"),
        (with_attribute(attribute(type=A.TENSOR)), "has no value"),
        (with_attribute(attribute(type=A.GRAPH), "If"), "has no value"),
        (with_attribute(attribute(type=A.INT, ref_attr_name="b")), "inline functions first"),
        (with_attribute(attribute(type=A.SPARSE_TENSOR, sparse_tensor=SPARSE)), "sparse tensors"),
        (with_attribute(attribute(type=A.SPARSE_TENSORS, sparse_tensors=[SPARSE])), "sparse"),
        (with_attribute(attribute(type=A.TYPE_PROTO, tp=TypeProto())), "types other than tensors"),
        (with_attribute(attribute(type=A.TYPE_PROTOS)), "types other than tensors"),
        (with_attribute(AttributeProto(type=A.INT, i=1)), "an attribute without a name"),
        (with_attribute(attribute(type=A.STRING, s=b"text"), "Constant"), "strings are refused"),
        (with_attribute(attribute(type=A.STRINGS, strings=[b"t"]), "Constant"), "strings are"),
        (with_attribute(AttributeProto(name="to", type=A.INT, i=8), "Cast"), "strings are refused"),
        (with_attribute(AttributeProto(name="to", type=A.INT, i=99), "Cast"), "element type .99"),
        (graph_of(node("Constant", "", "y")), "has 0 values"),
        (graph_of(node("Constant", "", "y", value_float=1.0, value_int=1)), "has 2 values"),
    ],
)
def test_an_attribute_that_is_not_what_it_says_is_refused(model: ModelProto, match: str) -> None:
    refuses(model, match)


def test_an_unknown_type_of_attribute_is_refused() -> None:
    # Proto2's parsers leave an unknown number of an enumeration out, and go on without.
    wire = decode(with_attribute(attribute(type=A.INT, i=1)).SerializeToString())
    graph = next(field[2] for field in wire if field[0] == 7)
    relu = next(field[2] for field in graph if field[0] == 1)
    fields = next(field[2] for field in relu if field[0] == 5)
    next(field for field in fields if field[0] == 20)[2] = 99
    refuses(encode(wire), r"no known type \(99\)")


def test_attributes_are_named_once_and_not_too_many() -> None:
    twice = with_attribute(attribute(type=A.INT, i=1))
    twice.graph.node[0].attribute.append(attribute(type=A.INT, i=2))
    refuses(twice, "attribute 'a' twice")
    many = relu_model()
    for index in range(100):
        many.graph.node[0].attribute.add(name=f"a{index}", type=A.INT, i=1)
    accepts(many)
    many.graph.node[0].attribute.add(name="one more", type=A.INT, i=1)
    refuses(many, "more than 100 attributes")


@pytest.mark.parametrize(
    "accepted",
    [
        attribute(type=A.INT),
        attribute(type=A.INTS),
        attribute(type=A.INTS, ints=[-1, 2**62] * 200),
        attribute(type=A.FLOATS, floats=[0.5, float("nan")]),
        attribute(type=A.STRING, s=b"SAME_UPPER"),
        attribute(type=A.STRINGS, strings=[b"a", b"b"]),
        attribute(type=A.TENSOR, t=tensor()),
        attribute(type=A.TENSORS, tensors=[tensor(), tensor()]),
    ],
)
def test_every_other_attribute_is_accepted(accepted: AttributeProto) -> None:
    accepts(with_attribute(accepted))


def test_tensors_in_attributes_are_checked_too() -> None:
    wrong = helper.make_tensor("w", TensorProto.FLOAT, [1], bytes(4), raw=True)
    wrong.dims[0] = 2
    for found in (attribute(type=A.TENSOR, t=wrong), attribute(type=A.TENSORS, tensors=[wrong])):
        refuses(with_attribute(found), "attribute 'a' of node 0 .* holds 4 bytes")


def test_bodies_are_checked_at_any_depth_and_nested_no_deeper_than_eight() -> None:
    def nested(depth: int, innermost: onnx.NodeProto) -> ModelProto:
        body = body_of(innermost, output=innermost.output[0])
        for level in range(depth - 1):
            other = body_of(node("Relu", "x", f"o{level}"), output=f"o{level}")
            branching = node("If", "yes", f"i{level}", then_branch=body, else_branch=other)
            body = body_of(branching, output=f"i{level}")
        other = body_of(node("Relu", "x", "o"), output="o")
        outermost = node("If", "yes", "y", then_branch=body, else_branch=other)
        return graph_of(outermost, initializers=[YES])

    accepts(nested(8, node("Relu", "x", "in")))
    refuses(nested(8, node("Relu", "z", "in")), "reads 'z'")
    refuses(nested(9, node("Relu", "x", "in")), "nested deeper than 8")
    refuses(nested(16, node("Relu", "x", "in")), "nested deeper than 48")


def test_bodies_belong_to_operators_that_have_some() -> None:
    body = body_of(node("Relu", "x", "b"), output="b")
    refuses(graph_of(node("Conv", "x", "y", hidden=body)), "only If, Loop", UnsupportedOperator)
    refuses(graph_of(node("Relu", "x", "y", hidden=[body])), "only If, Loop", UnsupportedOperator)
    for broken in (body_of(output="b"), body_of(node("Relu", "z", "b"), output="b")):
        refuses(graph_of(node("If", "yes", "y", hidden=[broken]), initializers=[YES]), "'[bz]'")
    empty = GraphProto()
    refuses(graph_of(node("Scan", "x", "y", body=empty)), "graph in the body .* has no output")


def test_nodes_are_counted_over_all_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_branch(node("Relu", "x", "c"), output="c")
    monkeypatch.setattr(onnx_file, "_MOST_NODES", 4)
    accepts(model)
    monkeypatch.setattr(onnx_file, "_MOST_NODES", 3)
    refuses(model, "more than 3 nodes")


def test_a_scan_and_a_loop_are_accepted() -> None:
    body = helper.make_graph(
        [node("Add", "sum row", "next"), node("Identity", "next", "out")],
        "body",
        [value("sum", None), helper.make_value_info("row", TypeProto())],
        [value("next", [4]), value("out", ["n"])],
    )
    accepts(
        graph_of(
            node("Scan", "start x", "y rows", body=body, num_scan_inputs=1),
            initializers=[tensor("start", dims=[4])],
        )
    )


# --- types, shapes and sizes ----------------------------------------------------------------


def with_type(role: str, type_proto: TypeProto) -> ModelProto:
    model = relu_model()
    if role == "value_info":
        model.graph.value_info.append(helper.make_value_info("v", type_proto))
    else:
        getattr(model.graph, role)[0].type.CopyFrom(type_proto)
    return model


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 4])
ROLES = ("input", "output", "value_info")


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("type_proto", "match"),
    [
        (helper.make_sequence_type_proto(FLOAT), "has a sequence_type; only tensors"),
        (helper.make_optional_type_proto(FLOAT), "has a optional_type; only tensors"),
        (helper.make_map_type_proto(TensorProto.INT64, FLOAT), "has a map_type; only tensors"),
        (helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [4]), "has a sparse_tensor_type"),
        (TypeProto(opaque_type=TypeProto.Opaque(domain="d", name="n")), "has a opaque_type"),
        (helper.make_tensor_type_proto(TensorProto.STRING, [4]), "strings are refused"),
        (helper.make_tensor_type_proto(TensorProto.COMPLEX64, [4]), "complex numbers are refused"),
        (helper.make_tensor_type_proto(TensorProto.COMPLEX128, [4]), "complex numbers are"),
        (helper.make_tensor_type_proto(99, [4]), r"no known element type \(99\)"),
        (helper.make_tensor_type_proto(-1, [4]), r"no known element type \(-1\)"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [0, 4]), "a dimension of 0"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [4, -1]), "a dimension of -1"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [-(2**63), "n"]), "a dimension of -9"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [1] * 17), "more than 16 dimensions"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [2**28, 2]), "at most 1 GiB"),
        (helper.make_tensor_type_proto(TensorProto.FLOAT, [2**32, 2**32]), "more than 2.63 bytes"),
    ],
)
def test_values_are_tensors_of_numbers_of_a_size(
    role: str, type_proto: TypeProto, match: str
) -> None:
    refuses(with_type(role, type_proto), match)


@pytest.mark.parametrize(
    "type_proto",
    [
        helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 4]),
        helper.make_tensor_type_proto(0, [1, 4]),
        TypeProto(),
    ],
)
def test_sizes_and_type_are_known_of_inputs_and_need_not_be_of_others(
    type_proto: TypeProto,
) -> None:
    unknown_type = not type_proto.tensor_type.elem_type
    refuses(with_type("input", type_proto), "element type" if unknown_type else "no fixed shape")
    accepts(with_type("output", type_proto))
    accepts(with_type("value_info", type_proto))


@pytest.mark.parametrize("role", ROLES)
def test_large_and_odd_values_are_accepted(role: str) -> None:
    for element, shape in (
        (TensorProto.FLOAT, [2**28]),
        (TensorProto.INT4, [2**31]),
        (TensorProto.BOOL, []),
        (TensorProto.FLOAT, [1] * 16),
    ):
        accepts(with_type(role, helper.make_tensor_type_proto(element, shape)))


def test_sizes_of_inputs_and_of_outputs_add_up() -> None:
    half = helper.make_tensor_type_proto(TensorProto.FLOAT, [2**27 + 1])
    inputs = with_type("input", half)
    accepts(inputs)
    inputs.graph.input.append(helper.make_value_info("x2", half))
    refuses(inputs, "the inputs take")
    outputs = with_type("output", half)
    accepts(outputs)
    outputs.graph.output.append(helper.make_value_info("x", half))
    refuses(outputs, "outputs take")
    values = with_type("value_info", half)
    values.graph.value_info.append(helper.make_value_info("v2", half))
    accepts(values)


def test_a_value_between_may_be_empty_as_a_tensor_may() -> None:
    empty = helper.make_tensor_type_proto(TensorProto.FLOAT, [0])
    accepts(with_type("value_info", empty))
    for shape in ([-1], [0, "n"], ["n", 0], [0, 0], [0, 1]):
        lying = helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
        refuses(with_type("value_info", lying), "a dimension of")
    refuses(with_type("output", empty), "a dimension of 0")
    refuses(with_type("input", empty), "a dimension of 0")


def test_a_dimension_with_a_size_and_a_name_is_refused() -> None:
    wire = decode(relu_model().SerializeToString())
    fields = next(field[2] for field in wire if field[0] == 7)
    for number in (11, 2, 1, 2, 1):  # input, its type, of a tensor, with a shape, a dimension
        fields = [field for field in fields if field[0] == number][-1][2]
    fields.append([2, 2, b"n"])
    refuses(encode(wire), "a dimension with a size and a name")


def test_a_type_of_two_kinds_is_refused() -> None:
    # Of a oneof parsers take the last one; others may look for the first that is there.
    wire = decode(relu_model().SerializeToString())
    graph = next(field[2] for field in wire if field[0] == 7)
    declared = next(field[2] for field in graph if field[0] == 11)
    kinds = next(field[2] for field in declared if field[0] == 2)
    kinds.insert(0, [4, 2, []])
    refuses(encode(wire), "has a sequence_type")


def test_an_input_with_a_default_is_declared_as_its_initializer() -> None:
    def declared(type_proto: TypeProto) -> ModelProto:
        model = relu_model(initializer=[tensor(dims=[2, 3])])
        model.graph.input.append(helper.make_value_info("w", type_proto))
        return model

    accepts(declared(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3])))
    accepts(declared(helper.make_tensor_type_proto(TensorProto.FLOAT, None)))
    accepts(declared(TypeProto()))
    for element, shape in (
        (TensorProto.FLOAT, [3, 2]),
        (TensorProto.FLOAT, ["n", 3]),
        (TensorProto.INT32, [2, 3]),
        (TensorProto.INT32, None),
    ):
        refuses(declared(helper.make_tensor_type_proto(element, shape)), "declared otherwise")
    twice = declared(TypeProto())
    twice.graph.input.append(helper.make_value_info("w", TypeProto()))
    refuses(twice, "'w' is taken")


@pytest.mark.parametrize("role", ["output", "value_info"])
def test_an_initializer_is_declared_as_what_it_is(role: str) -> None:
    model = relu_model(initializer=[tensor(dims=[2, 3])])
    getattr(model.graph, role).append(value("w", [2, 3]))
    accepts(model)
    getattr(model.graph, role)[-1].CopyFrom(value("w", [3, 2]))
    refuses(model, "'w' is declared otherwise")


# --- tensors --------------------------------------------------------------------------------

ELEMENTS = {
    name: number
    for name, number in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128")
}
SHAPES = ((), (1,), (3,), (5,), (2, 3), (7, 1, 3), (0,))


@pytest.mark.parametrize("element", ELEMENTS)
def test_every_numeric_type_is_accepted_as_onnx_stores_it(element: str) -> None:
    for shape in SHAPES:
        values = np.ones(shape)
        typed = helper.make_tensor("w", ELEMENTS[element], shape, values.flatten().tolist())
        accepts(relu_model(initializer=[typed]))
        dtype = helper.tensor_dtype_to_np_dtype(ELEMENTS[element])
        raw = onnx.numpy_helper.from_array(values.astype(dtype), "w")
        assert raw.data_type == ELEMENTS[element]
        accepts(relu_model(initializer=[raw]))


@pytest.mark.parametrize("element", ELEMENTS)
def test_data_that_do_not_fit_their_dimensions_are_refused(element: str) -> None:
    for shape in SHAPES:
        values = np.ones(shape)
        dtype = helper.tensor_dtype_to_np_dtype(ELEMENTS[element])
        raw = onnx.numpy_helper.from_array(values.astype(dtype), "w")
        for data in (raw.raw_data + b"\0", raw.raw_data[:-1] if raw.raw_data else b"\0"):
            wrong = TensorProto()
            wrong.CopyFrom(raw)
            wrong.raw_data = data
            refuses(relu_model(initializer=[wrong]), f"bytes; {element}")
        typed = helper.make_tensor("w", ELEMENTS[element], shape, values.flatten().tolist())
        name = onnx_file._ELEMENT_TYPES[ELEMENTS[element]].field
        getattr(typed, name).append(1)
        refuses(relu_model(initializer=[typed]), f"numbers; {element}")
        del getattr(typed, name)[:2]
        if values.size:
            refuses(relu_model(initializer=[typed]), f"numbers; {element}")


@pytest.mark.parametrize(
    ("element", "numbers"),
    [
        ("UINT8", (0, 255)), ("INT8", (-128, 127)), ("UINT16", (0, 65535)),
        ("INT16", (-32768, 32767)), ("INT32", (-(2**31), 2**31 - 1)), ("BOOL", (0, 1)),
        ("FLOAT16", (0, 65535)), ("BFLOAT16", (0, 65535)), ("FLOAT8E4M3FN", (0, 255)),
        ("UINT32", (0, 2**32 - 1)), ("UINT64", (0, 2**64 - 1)), ("INT64", (-(2**63), 2**63 - 1)),
        ("FLOAT6E2M3", (0, 63)), ("UINT4", (0, 255)), ("INT2", (0, 255)),
    ],
)  # fmt: skip
def test_numbers_lie_in_the_range_of_their_type(element: str, numbers: tuple[int, int]) -> None:
    kind = onnx_file._ELEMENT_TYPES[ELEMENTS[element]]
    for number in numbers:
        found = TensorProto(name="w", data_type=ELEMENTS[element], dims=[2 * kind.packed])
        getattr(found, kind.field).extend([0, number])
        accepts(relu_model(initializer=[found]))
        beyond = number + (1 if number == numbers[1] else -1)
        if kind.low is not None:
            getattr(found, kind.field)[1] = beyond if kind.field == "int32_data" else 2**32
            refuses(relu_model(initializer=[found]), "holds numbers of")


FLOATS_OF_TWO = [1, 0, 2], [2, 0, TensorProto.FLOAT]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ([[1, 0, 1]], r"no known element type \(0\)"),
        ([[2, 0, 99], [1, 0, 1]], r"no known element type \(99\)"),
        ([[2, 0, TensorProto.STRING], [1, 0, 0]], "strings are refused"),
        ([[2, 0, TensorProto.COMPLEX64], [1, 0, 1], [9, 2, bytes(8)]], "complex numbers"),
        ([*FLOATS_OF_TWO], "holds 0 numbers; FLOAT\\[2\\] takes 2"),
        ([*FLOATS_OF_TWO, [9, 2, b""]], "holds 0 bytes"),
        ([*FLOATS_OF_TWO, [9, 2, bytes(8)], [4, 2, bytes(8)]], "twice, in raw_data and in float"),
        ([*FLOATS_OF_TWO, [9, 2, bytes(8)], [4, 2, b""]], "twice, in raw_data and in float_data"),
        ([*FLOATS_OF_TWO, [10, 2, bytes(16)]], "data in double_data; FLOAT lies in float_data"),
        ([*FLOATS_OF_TWO, [5, 2, b"\x01\x01"]], "data in int32_data"),
        ([*FLOATS_OF_TWO, [4, 2, bytes(8)], [6, 2, b"x"]], "data in string_data"),
        ([*FLOATS_OF_TWO, [4, 2, bytes(8)], [11, 2, b"\x01"]], "data in uint64_data"),
        ([*FLOATS_OF_TWO, [4, 2, bytes(8)], [7, 2, b"\x01"]], "data in int64_data"),
        ([*FLOATS_OF_TWO, [9, 2, bytes(8)], [9, 2, bytes(8)]], "raw_data stands there twice"),
        ([[2, 0, 1], [1, 0, 2**64 - 2], [9, 2, b""]], "a dimension of -2"),
        ([[2, 0, 1], [1, 0, 0], [1, 0, 2], [9, 2, b""]], "a dimension of 0"),
        ([[2, 0, 1], [1, 0, 2], [1, 0, 0]], "a dimension of 0"),
        ([[2, 0, 1], [1, 2, b"\x01" * 17], [9, 2, bytes(4)]], "more than 16 dimensions"),
        ([[2, 0, 1], [1, 2, b"\x01" * 999], [9, 2, bytes(4)]], "more than 16 dimensions"),
        ([[2, 0, 1], *[[1, 0, 2**63 - 1]] * 16, [9, 2, bytes(4)]], "more than 2.63"),
    ],
)
def test_a_tensor_that_lies_is_refused(fields: list[list], match: str) -> None:
    refuses(with_tensor(*fields), match)


@pytest.mark.parametrize(
    "fields",
    [
        [*FLOATS_OF_TWO, [9, 2, bytes(8)]],
        [*FLOATS_OF_TWO, [4, 2, bytes(8)]],
        [*FLOATS_OF_TWO, [4, 5, bytes(4)], [4, 5, bytes(4)]],
        [[2, 0, 1], [1, 2, b"\x01\x02"], [9, 2, bytes(8)]],
        [[2, 0, 1], [1, 2, b"\x01" * 16], [9, 2, bytes(4)]],
        [[2, 0, 7], [1, 0, 400], [7, 2, varints(*[2**64 - 1, 1] * 200)]],
        [[2, 0, 1], [1, 0, 0], [9, 2, b""]],
        [[2, 0, 1], [1, 0, 0]],
    ],
)
def test_a_tensor_may_be_written_as_serialisers_do(fields: list[list]) -> None:
    accepts(with_tensor(*fields))


# --- what must be accepted ------------------------------------------------------------------


@pytest.mark.process
def test_every_operator_and_every_network_of_ours_is_accepted() -> None:
    backbone = load_backbone("digits32")
    pieces = [
        Piece(operator.name, shape)
        for shape in backbone.distinct_shapes[:2]
        for operator in POOL
        if operator.applies_to(shape)
    ]
    pieces += [
        Piece(backbone.stem_name, backbone.stem_shape),
        Piece(backbone.head_name, backbone.head_shape),
    ]
    prepare_templates(pieces)
    for piece in pieces:
        accepts(export_operator(piece.name, piece.shape))
    accepts(export_architecture(backbone, ["SEP_7_SE", "Choice_x"] + ["MB_3_6_SE"] * 5))


def exported(module: Any, shape: tuple[int, ...], opset: int, **settings: Any) -> bytes:
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(*shape),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            **settings,
        )
    return file.getvalue()


def ordinary_network() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Hardswish(),
        nn.ZeroPad2d((1, 2, 1, 0)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
        nn.LayerNorm(10),
        nn.Softmax(-1),
    )


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_what_torch_exports_of_an_ordinary_network_is_accepted(opset: int) -> None:
    import torch

    network = ordinary_network()
    accepts(exported(network, (1, 3, 32, 32), opset))
    accepts(exported(network, (1, 3, 32, 32), opset, keep_initializers_as_inputs=True))
    training = torch.onnx.TrainingMode.PRESERVE
    accepts(exported(network, (1, 3, 32, 32), opset, training=training))
    model = onnx.load_from_string(exported(network, (1, 3, 32, 32), opset))
    accepts(onnx.shape_inference.infer_shapes(model, data_prop=True))


def test_what_onnxruntime_quantizes_is_accepted(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Inputs(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([{"x": np.ones((1, 3, 32, 32), np.float32)}])

        def get_next(self) -> dict:
            return next(self._left, {})

    plain, prepared, quantized = (tmp_path / f"{n}.onnx" for n in ("plain", "prepared", "int8"))
    plain.write_bytes(exported(ordinary_network(), (1, 3, 32, 32), 17))
    quant_pre_process(plain, prepared)
    accepts(prepared.read_bytes())
    for source in (plain, prepared):
        quantization.quantize_static(
            source,
            quantized,
            Inputs(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
        )
        kinds = {n.op_type for n in onnx.load(quantized).graph.node}
        assert "DequantizeLinear" in kinds
        accepts(quantized.read_bytes())


# --- mutations, and onnx's own reading ------------------------------------------------------


def agree(read: Any, proto: Any, content: bytes, message: str) -> None:
    """Asserts that our reading of a message is protobuf's, field by field."""
    assert set(read) == {field.name for field, _ in proto.ListFields()} | {
        # A list without elements is not there for protobuf.
        name
        for name, found in read.items()
        if isinstance(found, Numbers) and not found.count
    }
    for field in SCHEMA[message].values():
        if field.name not in read:
            continue
        ours, theirs = read[field.name], getattr(proto, field.name)
        if isinstance(ours, Numbers):
            assert ours.count == len(theirs)
            if field.wire_type == _protobuf.VARINT and ours.count:
                assert (ours.low, ours.high) == (min(theirs), max(theirs))
                assert ours.first == list(theirs[:32])
            continue
        if not field.repeated:
            ours, theirs = [ours], [theirs]
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            if field.kind in SCHEMA:
                agree(one, other, content, field.kind)
            elif field.kind == "float":
                assert content[one.start : one.end] == struct.pack("<f", other)
            elif isinstance(one, Span):
                encoded = other.encode() if isinstance(other, str) else other
                assert content[one.start : one.end] == encoded
            else:
                assert one == other


def assert_accepted_for_good(content: bytes) -> None:
    """Asserts that onnx reads what we accepted, and reads it as we do."""
    model = onnx.load_from_string(content)
    assert not any(uses_external_data(tensor) for tensor in _get_all_tensors(model))
    assert "EXTERNAL" not in str(model)
    assert not model.functions
    agree(parse(content, SCHEMA, "ModelProto", onnx_file._LIMITS), model, content, "ModelProto")


MUTATED = {
    "sound": sound_model().SerializeToString(),
    "relu": relu_model(initializer=[tensor(dims=[2, 2])]).SerializeToString(),
    "loop": dict(endless_graphs())["loop without end"],
    "attack": ATTACKS["if-body/plain"],
}


@pytest.mark.parametrize("name", MUTATED)
@settings(max_examples=300)
@given(seed=st.integers(0, 2**64))
def test_a_mutated_file_is_refused_in_words_or_read_by_onnx_as_we_read_it(
    name: str, seed: int
) -> None:
    content = mutated(MUTATED[name], random.Random(seed))
    if outcome("onnx", content) is None:
        assert_accepted_for_good(content)


def test_what_is_accepted_is_read_by_onnx_as_we_read_it() -> None:
    for name in ("sound", "relu", "loop"):
        assert_accepted_for_good(MUTATED[name])


@given(st.binary(max_size=400))
def test_no_bytes_behind_a_good_beginning_raise_anything_else(content: bytes) -> None:
    outcome("onnx", b"\x08\x08" + content)


def test_mutations_change_files_and_some_remain_good() -> None:
    results = [outcome("onnx", mutated(MUTATED["sound"], random.Random(s))) for s in range(300)]
    assert 20 < results.count(None) < 200
