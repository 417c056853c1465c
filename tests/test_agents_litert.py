"""LiteRT on the CPU: what it computes, where it computed it, and delegates that misbehave."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.agents import supervisor
from hurricane.agents.backends import _litert_graph, _litert_runtime, litert_cpu
from hurricane.agents.backends._litert_graph import Node, nodes_left, placement_of
from hurricane.agents.backends.base import Availability, Context, TensorInfo, random_inputs
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import (
    AgentError,
    BadRequest,
    ErrorKind,
    OutOfMemory,
    RuntimeCrashed,
    TimedOut,
    UnsupportedOperator,
)
from hurricane.agents.server import AgentServer
from hurricane.ops.tflite import write_tflite
from hurricane.ops.tflite.flatbuffer import ModelBuilder, schema

from . import tflite_graphs as graphs
from .tflite_graphs import OPERATORS, changed, fp32_of, int8_of, with_reverse

FP32, INT8 = "cpu-litert-fp32", "cpu-litert-int8"
QUICK = Protocol(rounds=2, calls_per_visit=2, warmup_calls=1)
TOLERANCE = 1e-5
SMALLEST_SQNR_DB = 30.0


@dataclass(frozen=True)
class Board:
    client: AgentClient

    def measure(self, target: str, *contents: bytes, **settings: object) -> list[Any]:
        digests = [self.client.upload(content) for content in contents]
        request: dict[str, Any] = {"protocol": QUICK, "format": "tflite", **settings}
        results = self.client.benchmark(digests, target, **request)
        return [results[digest] for digest in digests]

    def run(self, target: str, content: bytes, x: np.ndarray, **settings: Any) -> np.ndarray:
        """Output for an input as ONNX has them, NCHW."""
        inputs = {"input": np.ascontiguousarray(np.moveaxis(x, 1, -1))}
        outputs = self.client.run(
            self.client.upload(content), target, inputs, format="tflite", **settings
        )
        return np.moveaxis(outputs["output"], -1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delegates")


@pytest.fixture(scope="module")
def board(folder: Path) -> Iterator[Board]:
    """An agent that may read the folder of delegates."""
    server = AgentServer("127.0.0.1:0", Context(device_name="board", read=(str(folder),)))
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield Board(client)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def delegate(folder: Path) -> str:
    """The library of a delegate whose behaviour its options say."""
    source = Path(__file__).with_name("agents_delegate.c")
    return _library(folder / "libstand_in_delegate.so", source.read_text())


def _library(path: Path, source: str) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, which makes the delegate, is installed")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True, timeout=60)
    return str(path)


def sample(dtype: Any = np.float32) -> np.ndarray:
    shape = (1, graphs.SHAPE.in_channels, graphs.SHAPE.height, graphs.SHAPE.width)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(dtype)


def expected(operator: str, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        graphs.onnx_of(operator), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


# --- What it computes


@pytest.mark.process
@pytest.mark.parametrize("options", [{}, {"xnnpack": "0"}], ids=["xnnpack", "own kernels"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_fp32_outputs_are_those_of_the_reference(
    board: Board, operator: str, options: dict[str, str]
) -> None:
    x = sample()
    wanted = expected(operator, x)
    found = board.run(FP32, fp32_of(operator), x, options=options)
    assert found.dtype == np.float32
    assert np.max(np.abs(found - wanted)) <= TOLERANCE * np.max(np.abs(wanted))


@pytest.mark.process
@pytest.mark.parametrize("operator", OPERATORS)
def test_int8_takes_and_gives_int8_and_stays_close(board: Board, operator: str) -> None:
    x = sample()
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_content=int8_of(operator))
    scale, zero = details.get_input_details()[0]["quantization"]
    quantised = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
    found = board.run(INT8, int8_of(operator), quantised)
    assert found.dtype == np.int8
    scale, zero = details.get_output_details()[0]["quantization"]
    wanted = expected(operator, x)
    error = (found.astype(np.float64) - zero) * scale - wanted
    assert 10 * np.log10(np.sum(wanted**2) / np.sum(error**2)) >= SMALLEST_SQNR_DB
    with pytest.raises(BadRequest, match=r"'input' must be int8\[1, 9, 11, 16\]"):
        board.run(INT8, int8_of(operator), x)


def test_presets_of_eight_bits_use_all_of_them_and_others_stay_small() -> None:
    for dtype, low, high in (("int8", -128, 127), ("uint8", 0, 255), ("int32", 0, 99)):
        values = random_inputs([TensorInfo("x", dtype, (10000,))])["x"]
        assert values.dtype == np.dtype(dtype)
        assert (values.min(), values.max()) == (low, high)


# --- Where it computed it


@pytest.mark.process
def test_xnnpack_takes_every_node_of_the_pool(board: Board) -> None:
    for target, file in ((FP32, fp32_of), (INT8, int8_of)):
        for result in board.measure(target, *map(file, OPERATORS)):
            assert result.error is None
            assert result.compute_unit == "XNNPACK"
            assert not any(flag.startswith(("fallback", "precision")) for flag in result.flags)
            assert np.all(result.wall_ms > 0)


@pytest.mark.process
@pytest.mark.parametrize(("target", "file"), [(FP32, fp32_of), (INT8, int8_of)], ids=[FP32, INT8])
def test_a_node_that_xnnpack_does_not_take_is_named_and_flagged(
    board: Board, target: str, file: Any
) -> None:
    operator = file("MB_5_6_SE")
    depthwise = graphs.operators_of(operator).index(graphs.DEPTHWISE_CONV_2D)
    cases = [
        with_reverse(operator, 0),  # between two parts
        # One part's output is read by the next one as well.
        with_reverse(operator, depthwise, readers=1),
        with_reverse(with_reverse(operator, 0), depthwise + 1),  # between three
    ]
    for content, left in zip(cases, (1, 1, 2), strict=True):
        (result,) = board.measure(target, content)
        total = graphs.node_count(content)
        assert result.error is None
        assert result.compute_unit == f"XNNPACK {total - left}/{total}"
        assert "fallback:REVERSE_V2" in result.flags


@pytest.mark.process
def test_without_xnnpack_it_is_the_cpu_and_no_fallback(board: Board) -> None:
    for target, file in ((FP32, fp32_of), (INT8, int8_of)):
        (result,) = board.measure(target, file("MB_3_3"), options={"xnnpack": "0"})
        assert result.compute_unit == "CPU"
        assert not any(flag.startswith("fallback") for flag in result.flags)


def test_a_runtime_that_does_not_tell_its_nodes_has_an_unknown_placement(
    monkeypatch: pytest.MonkeyPatch, session: litert_cpu.LitertSession
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    monkeypatch.delattr(Interpreter, "_get_ops_details")
    loaded = session.load(fp32_of("SEP_5"), "tflite")
    assert (loaded.compute_unit, loaded.flags) == ("unknown", ("placement:unknown",))
    with pytest.raises(BadRequest, match="computes in int8"):
        session.load(int8_of("SEP_5"), "tflite")


@st.composite
def delegated(draw: st.DrawFn) -> tuple[list[Node], list[str]]:
    """A graph as the interpreter lists it once delegates took runs of its nodes, and the names of
    the nodes that were left. Tensor 0 is the input; each node also reads a constant."""
    count = draw(st.integers(1, 12))
    outputs = {
        node: [100 * node + i for i in range(draw(st.integers(1, 2)))]
        for node in range(1, count + 1)
    }
    made = [0]
    own: list[Node] = []
    for index in range(1, count + 1):
        inputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
        own.append(Node(f"N{index}", (*inputs, -1000 - index), tuple(outputs[index])))
        made += outputs[index]
    read = {tensor for node in own for tensor in node.inputs}
    results = {tensor for tensor in made if tensor not in read}
    results.add(draw(st.sampled_from(made)))  # one that is read as well, perhaps
    parts = draw(st.lists(st.sampled_from(["left", "a", "b"]), min_size=count, max_size=count))
    nodes = list(own)
    runs: list[list[Node]] = []
    for index, part in enumerate(parts):
        if part != "left":
            if index and parts[index - 1] == part:
                runs[-1].append(own[index])
            else:
                runs.append([own[index]])
    for run in runs:
        inside = {tensor for node in run for tensor in node.outputs}
        wanted = {t for node in own if node not in run for t in node.inputs} | results
        nodes.append(
            Node(
                "DELEGATE",
                tuple(sorted({t for node in run for t in node.inputs} - inside)),
                tuple(sorted(inside & wanted)),
            )
        )
    return nodes, [node.operator for node, part in zip(own, parts, strict=True) if part == "left"]


@given(delegated())
@settings(max_examples=300)
def test_nodes_left_are_those_of_no_part(case: tuple[list[Node], list[str]]) -> None:
    nodes, left = case
    assert [node.operator for node in nodes_left(nodes)] == left


def test_a_flag_names_a_few_operators_and_fits_a_word() -> None:
    def flag(*operators: str) -> str:
        nodes = [Node(name, (i,), (i + 1,)) for i, name in enumerate(operators)]
        unit, flags = placement_of(nodes, "XNNPACK")
        assert unit == f"CPU 0/{len(operators)}"
        return flags[0]

    assert flag("MUL", "ADD", "MUL") == "fallback:MUL+ADD"
    assert flag(*"ABCDEFG") == "fallback:A+B+C+D+E+F+more"
    assert flag("my op; x") == "fallback:my-op-x"
    long = flag(*(f"UNIDIRECTIONAL_SEQUENCE_LSTM_{i}" for i in range(4)))
    assert long == "fallback:UNIDIRECTIONAL_SEQUENCE_LSTM_0+more"
    assert len(flag("X" * 99)) == 60
    assert placement_of((), "XNNPACK") == ("CPU", ())


def test_names_are_those_of_the_signature_or_else_of_the_tensors(
    session: litert_cpu.LitertSession,
) -> None:
    def rename(model: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.name = b"tensor/" + tensor.name

    def unsigned(model: Any) -> None:
        rename(model)
        model.signatureDefs = []

    for change, name in ((rename, "input"), (unsigned, "tensor/input")):
        graph = session.load(changed(fp32_of("SEP_5"), change), "tflite")
        assert [tensor.name for tensor in graph.inputs()] == [name]
        assert list(graph.outputs(random_inputs(graph.inputs()))) == [name.replace("in", "out")]


# --- Precision


@pytest.mark.process
def test_a_file_of_another_precision_is_refused(board: Board) -> None:
    for target, content, words in (
        (INT8, fp32_of("SEP_5"), f"computes in fp32, not in int8; send it to '{FP32}'"),
        (FP32, int8_of("SEP_5"), f"computes in int8, not in fp32; send it to '{INT8}'"),
    ):
        (result,) = board.measure(target, content)
        assert result.error is not None
        assert result.error.kind == ErrorKind.BAD_REQUEST
        assert words in str(result.error)


def test_what_is_not_of_the_targets_precision_is_flagged(session: litert_cpu.LitertSession) -> None:
    half = write_tflite(graphs.onnx_of("SEP_5"), weights="fp16")
    assert session.load(half, "tflite").flags == ("weights:fp16",)
    flags = _litert_graph.other_precisions
    real = Node("CONV_2D", (), (), ("float32", "float32"), ("float32",))
    hybrid = Node("CONV_2D", (), (), ("float32", "int8"), ("float32",))
    whole = Node("CONV_2D", (), (), ("int8", "int8"), ("int8",))
    back = Node("DEQUANTIZE", (), (), ("int8",), ("float32",))
    assert flags([real, hybrid], "fp32") == ("precision:int8",)
    assert flags([real], "fp32") == ()
    assert flags([whole, back], "int8") == ()
    assert flags([whole, back, real], "int8") == ("precision:fp32",)
    wide, narrow = (Node("ADD", (), (), (kind, kind), (kind,)) for kind in ("int16", "float16"))
    stored = Node("DEQUANTIZE", (), (), ("float16",), ("float32",))
    assert flags([whole, wide, narrow], "int8") == ("precision:fp16", "precision:int16")
    assert flags([real, wide, narrow], "fp32") == ("precision:fp16", "precision:int16")
    assert flags([real, stored], "fp32") == ("weights:fp16",)
    assert flags([real, stored, hybrid], "fp32") == ("precision:int8", "weights:fp16")
    assert _litert_graph.precision_of([back, whole, back, real, whole], []) == "int8"
    steps = [Node(name, (), (), ("float32",), ("float32",)) for name in ("EXP", "ADD", "LOG")]
    assert _litert_graph.precision_of([whole, back, *steps], []) == "int8"
    assert _litert_graph.precision_of([real, *steps], []) == "fp32"
    assert _litert_graph.precision_of(steps, []) == "fp32"


def test_fp16_arithmetic_that_the_file_allows_is_refused(session: litert_cpu.LitertSession) -> None:
    metadata = {"reduced_precision_support": b"fp16accfp32"}
    with pytest.raises(BadRequest, match="allows fp16 arithmetic"):
        session.load(write_tflite(graphs.onnx_of("SEP_5"), metadata=metadata), "tflite")


# --- Errors


@pytest.fixture
def session() -> Iterator[litert_cpu.LitertSession]:
    """A session in this process, for what the check of the format would refuse before it."""
    cores = os.sched_getaffinity(0)
    session = litert_cpu.open_target(Context(), FP32, {}, 1)
    yield session
    session.close()
    os.sched_setaffinity(0, cores)


def _custom(model: Any) -> None:
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"Nonsense"


def _of_the_future(model: Any) -> None:
    model.operatorCodes[0].builtinCode = 9999


def _not_fixed(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shapeSignature = np.array([-1, 9, 11, 16], np.int32)


def _one_name_for_all(model: Any) -> None:
    model.signatureDefs = []
    graph = model.subgraphs[0]
    graph.inputs = np.append(graph.inputs, graph.outputs)
    for tensor in graph.tensors:
        tensor.name = b"same"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (_one_name_for_all, BadRequest, "share a name"),
        (_custom, UnsupportedOperator, "custom op: Nonsense"),
        (_of_the_future, UnsupportedOperator, "9999"),
        (_not_fixed, BadRequest, "no fixed shape"),
    ],
)
def test_errors_are_typed(
    session: litert_cpu.LitertSession, change: Any, kind: type[AgentError], words: str
) -> None:
    with pytest.raises(kind, match=words) as raised:
        session.load(changed(fp32_of("SEP_5"), change), "tflite")
    assert "\n" not in str(raised.value)


MEMORY = """
import json, sys
from hurricane.agents.backends.base import Context
from hurricane.agents.backends.litert_cpu import open_target
from hurricane.agents.errors import AgentError
from hurricane.agents.worker import limit_memory

session = open_target(Context(), "cpu-litert-fp32", {"xnnpack": sys.argv[2]}, 1)
limit_memory(1 << 30)
try:
    session.load(open(sys.argv[1], "rb").read(), "tflite")
except AgentError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.process
@pytest.mark.parametrize("xnnpack", ["1", "0"])
def test_tensors_that_memory_does_not_hold_are_out_of_memory(tmp_path: Path, xnnpack: str) -> None:
    kind, message = _in_a_process(MEMORY, changed(fp32_of("SEP_5"), _enormous), tmp_path, xnnpack)
    assert kind == OutOfMemory.__name__, message
    assert message.startswith("litert: ")


def _enormous(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if len(tensor.shape) == 4 and tensor.shape[1] == 9:
            tensor.shape = np.array([1, 1 << 14, 1 << 14, 16], np.int32)


def test_a_file_that_cannot_be_read_is_a_bad_request(session: litert_cpu.LitertSession) -> None:
    for content in (b"\x08\x07garbage" * 9, fp32_of("SEP_5")[:-40]):
        with pytest.raises(BadRequest, match="cannot read the graph"):
            session.load(content, "tflite")
    with pytest.raises(BadRequest, match="takes tflite, not 'onnx'"):
        session.load(graphs.onnx_of("SEP_5"), "onnx")


def test_a_call_that_fails_is_a_crash(session: litert_cpu.LitertSession) -> None:
    graph = session.load(fp32_of("SEP_5"), "tflite")

    def invoke() -> None:
        raise RuntimeError("Node number 3\nfailed to invoke")

    graph._interpreter = SimpleNamespace(invoke=invoke)
    with pytest.raises(RuntimeCrashed, match="Node number 3 failed to invoke"):
        graph.timed_calls(1)


# --- Options and external delegates


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"xnnpack": "yes"}, "'xnnpack' is one of 1, 0, not 'yes'"),
        ({"delegate": "lib/here.so"}, "'delegate' is the absolute path"),
        ({"delegate": ""}, "'delegate' is the absolute path"),
        ({"delegate_options": "backend_type:htp"}, "needs option 'delegate'"),
        ({"delegate_options": "no such value"}, "'delegate_options' is key:value"),
        ({"delegate_options": "a:1,a:2"}, "each key once; 'a:2'"),
        ({"delegate": "/x.so", "xnnpack": "1"}, "'xnnpack' cannot be 1 with option 'delegate'"),
        ({"flux": "1"}, "no option 'flux'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(options: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        litert_cpu.open_target(Context(), FP32, options, 1)


def test_options_of_a_delegate_are_keys_and_values() -> None:
    delegate = _litert_runtime.delegate_of(
        {"delegate": "/x/libQnn.v2.so", "delegate_options": "backend_type:htp,dir:/a:b,level:2"}
    )
    assert delegate is not None
    assert delegate.name == "libQnn"
    assert delegate.options == {"backend_type": "htp", "dir": "/a:b", "level": "2"}


@pytest.mark.process
def test_a_delegate_that_takes_nothing_leaves_all_to_the_cpu(board: Board, delegate: str) -> None:
    for target, file in ((FP32, fp32_of), (INT8, int8_of)):
        content = file("MB_3_3")
        (result,) = board.measure(target, content, options={"delegate": delegate})
        assert result.error is None
        assert result.compute_unit == f"CPU 0/{graphs.node_count(content)}"
        (fallback,) = [flag for flag in result.flags if flag.startswith("fallback:")]
        assert "CONV_2D" in fallback
        assert "DEPTHWISE_CONV_2D" in fallback


@pytest.mark.process
def test_a_delegate_is_named_with_what_it_took(board: Board, delegate: str) -> None:
    options = {"delegate": delegate, "delegate_options": f"take:{graphs.CONV_2D}"}
    some, all_of_it = fp32_of("MB_3_3"), graphs.convolution()
    partial, whole = board.measure(FP32, some, all_of_it, options=options)
    total = graphs.node_count(some)
    taken = graphs.operators_of(some).count(graphs.CONV_2D)
    assert 1 < taken < total  # in parts, with nodes between them
    assert partial.compute_unit == f"libstand_in_delegate {taken}/{total}"
    (fallback,) = [flag for flag in partial.flags if flag.startswith("fallback:")]
    assert "DEPTHWISE_CONV_2D" in fallback
    assert whole.compute_unit == "libstand_in_delegate"
    assert not any(flag.startswith("fallback") for flag in whole.flags)


@pytest.mark.process
def test_a_delegate_that_cannot_be_had_says_why_and_what_to_do(
    board: Board, delegate: str, folder: Path, tmp_path: Path
) -> None:
    empty = _library(folder / "libempty.so", "int nothing;")
    closed = shutil.copy(delegate, f"{tmp_path}/libclosed.so")
    (folder / "libtext.so").write_text("no library" * 99)
    messages = []
    for options, words in (
        ({"delegate": delegate, "delegate_options": "a:1"}, "unknown option.*manual"),
        ({"delegate": delegate, "delegate_options": "mode:error"}, "no DSP on this device"),
        ({"delegate": f"{folder}/libnone.so"}, "the board has no library .*libnone.so"),
        ({"delegate": empty}, "libempty is a library without a TFLite delegate"),
        ({"delegate": closed}, "sandbox.*libclosed.*agent serve --allow-read PATH"),
        ({"delegate": f"{folder}/libtext.so"}, "libtext cannot be loaded .*invalid ELF"),
    ):
        with pytest.raises(BadRequest, match=words) as raised:
            board.measure(FP32, fp32_of("SEP_5"), options=options)
        messages.append(str(raised.value))
        assert "\n" not in messages[-1]
        assert "option 'delegate" in messages[-1]
    assert len(set(messages)) == len(messages)


@pytest.mark.process
def test_a_delegate_that_aborts_or_hangs_costs_only_its_request(
    board: Board, delegate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "OPEN_TIMEOUT_S", 5.0)
    content = fp32_of("SEP_5")

    def fails(mode: str) -> Any:
        options = {
            "delegate": delegate,
            "delegate_options": f"take:{graphs.CONV_2D},mode:{mode}",
        }
        protocol = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1, artifact_timeout_s=1.0)
        return board.measure(FP32, content, options=options, protocol=protocol)

    def works() -> bool:
        (result,) = board.measure(FP32, content)
        return result.error is None and result.compute_unit == "XNNPACK"

    for mode, kind in (("abort", RuntimeCrashed), ("hang", TimedOut)):
        with pytest.raises(kind):
            fails(mode)
        assert works()
        for moment in ("later", "call"):
            (result,) = fails(f"{mode}-{moment}")
            assert isinstance(result.error, kind)
            assert "INFO" not in str(result.error)
            assert works()
        with pytest.raises(kind):
            fails(f"{mode}-end")
        assert works()


@pytest.mark.process
def test_a_delegate_that_reports_an_error_is_no_fault_of_the_file(
    board: Board, delegate: str
) -> None:
    content = fp32_of("SEP_5")
    for moment, kind in (("later", UnsupportedOperator), ("call", RuntimeCrashed)):
        options = {
            "delegate": delegate,
            "delegate_options": f"take:{graphs.CONV_2D},mode:error-{moment}",
        }
        (result,) = board.measure(FP32, content, options=options)
        assert isinstance(result.error, kind)


@pytest.mark.process
def test_a_delegate_has_a_name_whatever_its_file_is_called(
    board: Board, delegate: str, folder: Path
) -> None:
    hidden = shutil.copy(delegate, folder / ".so")
    content = fp32_of("SEP_5")
    total = graphs.node_count(content)
    (result,) = board.measure(FP32, content, options={"delegate": str(hidden)})
    assert result.compute_unit == f"CPU 0/{total}"
    assert any(flag.startswith("fallback:") for flag in result.flags)


# --- Threads and memory, in a process of its own: a session pins the process

THREADS = """
import json, os, sys
from hurricane.agents.backends.base import Context
from hurricane.agents.backends.litert_cpu import open_target

def cores():
    return {int(t): sorted(os.sched_getaffinity(int(t))) for t in os.listdir("/proc/self/task")}

options = {"xnnpack": sys.argv[2]}
session = open_target(Context(), "cpu-litert-fp32", options, 2)
before = cores()
graphs = [session.load(open(sys.argv[1], "rb").read(), "tflite") for _ in range(2)]
for graph in graphs:
    graph.timed_calls(1)
called = cores()
session.renew()
print(json.dumps([[seen[os.getpid()], [seen[thread] for thread in seen if thread not in before]]
                  for seen in (called, cores())]))
"""


@pytest.mark.process
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a second thread needs a second core")
@pytest.mark.parametrize("xnnpack", ["1", "0"])
def test_each_thread_has_a_core_of_its_own(tmp_path: Path, xnnpack: str) -> None:
    seen = _in_a_process(THREADS, fp32_of("MB_5_6_SE"), tmp_path, xnnpack)
    *first, last = sorted(os.sched_getaffinity(0))[-2:]
    for own, others in seen:  # when all were called; when memory was renewed
        assert own == [last]
        assert len(others) >= 2  # one for each graph
        assert all(cores == first for cores in others)


RENEWAL = """
import json, sys
import numpy as np
from hurricane.agents.backends.base import Context, random_inputs
from hurricane.agents.backends.litert_cpu import open_target

session = open_target(Context(), "cpu-litert-fp32", {"xnnpack": sys.argv[2]}, 1)
graph = session.load(open(sys.argv[1], "rb").read(), "tflite")
index = graph._interpreter.get_input_details()[0]["index"]
preset = random_inputs(graph.inputs())["input"]
other = {"input": -preset}

def place():
    return graph._interpreter.tensor(index)().ctypes.data

def kept():
    return bool(np.array_equal(graph._interpreter.get_tensor(index), preset))

found = {"kept": [kept()], "places": [place()]}
before = graph.outputs(other)["output"]
found["kept"].append(kept())
for _ in range(8):
    session.renew()
    graph.timed_calls(2)
    found["kept"].append(kept())
    found["places"].append(place())
found["equal"] = bool(np.array_equal(before, graph.outputs(other)["output"]))
working = graph._interpreter
graph._content = b"broken"
session.renew()
graph.timed_calls(1)
found["survives"] = graph._interpreter is working
graph._content = open(sys.argv[1], "rb").read()
graph.close()
session.renew()
found["closed"] = not hasattr(graph, "_interpreter")
print(json.dumps(found))
"""


@pytest.mark.process
@pytest.mark.parametrize("xnnpack", ["1", "0"])
def test_renewed_memory_lies_elsewhere_and_holds_the_same(tmp_path: Path, xnnpack: str) -> None:
    found = _in_a_process(RENEWAL, fp32_of("MB_5_6_SE"), tmp_path, xnnpack)
    assert all(found["kept"])
    assert len(set(found["places"])) > 1
    assert found["equal"]
    assert found["survives"]
    assert found["closed"]


RENEWAL_WITH_A_DELEGATE = """
import json, sys
from hurricane.agents.backends.base import Context
from hurricane.agents.backends.litert_cpu import open_target

session = open_target(Context(), "cpu-litert-fp32", {"delegate": sys.argv[2]}, 1)
graph = session.load(open(sys.argv[1], "rb").read(), "tflite")
before = graph._interpreter
session.renew()
print(json.dumps(graph._interpreter is before))
"""


@pytest.mark.process
def test_what_a_delegate_compiled_is_kept(tmp_path: Path, delegate: str) -> None:
    assert _in_a_process(RENEWAL_WITH_A_DELEGATE, fp32_of("SEP_5"), tmp_path, delegate)


def _in_a_process(script: str, content: bytes, folder: Path, *arguments: str) -> Any:
    path = folder / "graph.tflite"
    path.write_bytes(content)
    command = [sys.executable, "-c", script, str(path), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


# --- Whether there is a runtime


def test_the_file_of_the_probe_is_one_relu() -> None:
    builder = ModelBuilder("")
    source, target = builder.tensor("x", (1,)), builder.tensor("y", (1,))
    builder.operator(schema.BuiltinOperator.RELU, [source], [target])
    graph, model = builder._graph, builder._model
    graph.inputs, graph.outputs = np.array([source], np.int32), np.array([target], np.int32)
    graph.name = model.metadata = model.description = None
    assert base64.b64encode(_litert_runtime._SMALLEST) == base64.b64encode(builder.pack())


def test_without_a_runtime_the_targets_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    for target in litert_cpu.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert "pip install 'hurricane-nas[litert]'" in target.reason
    with pytest.raises(BadRequest, match="neither ai-edge-litert nor tflite-runtime"):
        litert_cpu.open_target(Context(), FP32, {}, 1)


def test_packages_that_do_not_import_say_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One lacks what it needs, the other is built for another machine."""
    for package, program in (
        ("ai_edge_litert", "import flatbuffers_of_old"),
        ("tflite_runtime", "raise OSError('GLIBC_2.99 not found')"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(program)
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    for target in litert_cpu.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert "ai_edge_litert does not import" in target.reason
        assert "flatbuffers_of_old" in target.reason
        assert "tflite_runtime does not import: GLIBC_2.99 not found" in target.reason


def test_a_runtime_that_makes_no_interpreter_is_not_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ai_edge_litert import interpreter

    def broken(**arguments: object) -> None:
        raise ValueError("of no use")

    monkeypatch.setattr(interpreter, "Interpreter", broken)
    monkeypatch.setitem(sys.modules, "tflite_runtime", None)
    for target in litert_cpu.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert "ai_edge_litert 2" in target.reason
        assert "of no use" in target.reason
