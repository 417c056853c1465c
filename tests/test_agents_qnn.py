"""QNN's targets: the real compiler and emulator, and never a latency of an emulator."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")

from hurricane.agents.backends import qnn_htp
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.client import AgentClient, Protocol, private_agent
from hurricane.agents.errors import BadRequest, ErrorKind
from hurricane.agents.server import AgentServer
from hurricane.lookup_tables.journal import journal_path
from hurricane.lookup_tables.support import SupportReport
from hurricane.lookup_tables.table import Row, TableError, Target
from hurricane.ops import errors
from hurricane.ops.artifacts import Recipe, prepare
from hurricane.ops.cached_files import checked, read_checked
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape
from hurricane.ops.socs import SOCS, WITHOUT_HTP, check_binary, soc_of
from hurricane.profiler.cli import profile_ops
from hurricane.profiler.session import TargetSession
from hurricane.profiler.support_cli import support
from hurricane.profiler.target import parse_target

from .board_output import QNN_BASIC

pytestmark = pytest.mark.process

if not qnn_htp._EMULATES:
    pytest.skip("the emulator is for x86-64", allow_module_level=True)

INT8, FP16 = "dsp-qnn-int8", "dsp-qnn-fp16"
SHAPE = LayerShape(8, 8, 32, 32, 1)
OPERATORS = ("SEP_3", "MB_3_3_SE", "Choice_x")
LOAD = Protocol(rounds=0, calls_per_visit=1, keep_loaded=True)
DISTRIBUTION = "onnxruntime-qnn"
SMALLEST_SQNR = {INT8: 30.0, FP16: 55.0}


@functools.cache
def made(target: str, operator: str) -> bytes:
    recipe = Recipe("onnx-qdq", "int8") if target == INT8 else Recipe("onnx", "fp16")
    return prepare(export_operator(operator, SHAPE), recipe).content


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentClient]:
    server = AgentServer("127.0.0.1:0", Context(device_name="this machine"))
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield client
    finally:
        server.stop()


def load(agent: AgentClient, target: str, content: bytes, **settings):
    digest = agent.upload(content)
    return digest, agent.benchmark([digest], target, protocol=LOAD, **settings)[digest]


def opened() -> contextlib.closing[qnn_htp.QnnSession]:
    """A session in this process."""
    return contextlib.closing(qnn_htp.open_target(Context(), INT8, {"soc": "SM8650"}, 1))


@pytest.mark.parametrize("target", [INT8, FP16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_compiles_and_computes(agent: AgentClient, target: str, operator: str) -> None:
    content = made(target, operator)
    digest, result = load(agent, target, content)
    assert result.error is None
    assert (result.compute_unit, result.flags) == ("HTP", ())
    assert result.wall is None
    assert result.first_call_ms == 0.0
    import onnxruntime

    reference = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (entry,) = reference.get_inputs()
    random = np.random.default_rng(0)
    if target == INT8:
        x = random.integers(0, 256, entry.shape, np.uint8)
    else:
        x = random.uniform(-1, 1, entry.shape).astype(np.float32)
    (expected,) = (v.astype(float) for v in reference.run(None, {entry.name: x}))
    (found,) = agent.run(digest, target, {entry.name: x}).values()
    error = ((expected - found.astype(float)) ** 2).sum()
    assert 10 * np.log10((expected**2).sum() / error) > SMALLEST_SQNR[target]


def test_nothing_is_timed(agent: AgentClient) -> None:
    digest = agent.upload(made(INT8, "SEP_3"))
    for rounds in (1, 12):
        with pytest.raises(BadRequest, match="emulated: it has no latency"):
            agent.benchmark([digest], INT8, protocol=Protocol(rounds=rounds))
    with opened() as session:
        graph = session.load(made(INT8, "SEP_3"), "onnx-qdq")
        with pytest.raises(BadRequest, match="an emulator has no latency"):
            graph.timed_calls(1)
        graph.close()


@pytest.mark.parametrize("target", [INT8, FP16])
def test_no_command_makes_a_table(tmp_path: Path, target: str) -> None:
    path = tmp_path / "t.csv"
    words = ["--layers", "digits32:0", "--operators", "SEP_3", "--target", target, "-o", str(path)]
    with pytest.raises(errors.BadRequest, match="an emulator has no latency") as caught:
        CliRunner().invoke(profile_ops, words, catch_exceptions=False, standalone_mode=False)
    assert caught.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []
    assert not journal_path(path).exists()
    with private_agent() as client, pytest.raises(errors.BadRequest, match="no latency"):
        TargetSession.open(client, parse_target(target))


@given(st.data())
def test_no_row_is_emulated(data) -> None:
    target = Target("hexagon-htp", "dsp", "qnn", "2.7.0", precision="int8", origin="emulated")
    values = data.draw(
        st.fixed_dictionaries(
            {"status": st.sampled_from(("ok", "failed", "unsupported"))},
            optional={"latency_ms": st.floats(0.001, 100), "estimator": st.just("loop")},
        )
    )
    with pytest.raises(TableError, match="no table holds"):
        Row.of(target, "SEP_3", SHAPE, **values)


def test_a_table_edited_by_hand_is_refused_with_the_reason(tmp_path: Path) -> None:
    target = Target("hexagon-htp", "dsp", "qnn", "2.7.0", precision="int8")
    row = Row.of(target, "SEP_3", SHAPE, status="ok", latency_ms=1.0, estimator="loop")
    from hurricane.lookup_tables.table import COLUMNS, LookupTable

    path = tmp_path / "t.csv"
    path.write_text(",".join(COLUMNS) + "\n" + row.to_line())
    assert len(LookupTable.load(path)) == 1
    path.write_text(path.read_text().replace(",measured,", ",emulated,"))
    with pytest.raises(TableError, match="an emulator has no latency"):
        LookupTable.load(path)


def test_the_emulators_own_profile_is_never_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with opened() as session:
        graph = session.load(made(INT8, "SEP_3"), "onnx-qdq")
        (entry,) = graph.inputs()
        graph.outputs({entry.name: np.zeros(entry.shape, entry.dtype)})
        graph.close()
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def keeping(cache: Path, soc: str = "SM8650") -> Iterator[qnn_htp.QnnSession]:
    """A session in this process that keeps compiled graphs."""
    context = Context(cache=str(cache))
    with contextlib.closing(qnn_htp.open_target(context, INT8, {"soc": soc}, 1)) as session:
        yield session


def outputs_with(session: qnn_htp.QnnSession, content: bytes) -> tuple[list[np.ndarray], int]:
    """What a graph gives for zeros, and how many graphs were compiled for that."""
    compiled, compile_ = 0, session._compiled

    def counted(content: bytes) -> bytes:
        nonlocal compiled
        compiled += 1
        return compile_(content)

    session._compiled = counted
    graph = session.load(content, "onnx-qdq")
    (entry,) = graph.inputs()
    found = graph.outputs({entry.name: np.zeros(entry.shape, entry.dtype)})
    graph.close()
    return list(found.values()), compiled


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_compiled_graph_is_kept_for_its_chip_and_a_damaged_one_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = made(INT8, "SEP_3")

    def ask(soc: str = "SM8650", content: bytes = content) -> tuple[list[np.ndarray], int]:
        with keeping(tmp_path, soc) as session:
            return outputs_with(session, content)

    first, compiled = ask()
    assert compiled == 1
    (file,) = files_in(tmp_path)
    genuine = file.read_bytes()
    for damaged in (genuine, genuine[:1000], b"", genuine[:-1] + bytes([genuine[-1] ^ 1])):
        file.write_bytes(damaged)
        again, compiled = ask()
        np.testing.assert_array_equal(again, first)
        assert compiled == (damaged != genuine)
        assert read_checked(file) is not None
        assert files_in(tmp_path) == [file]
    assert ask(soc="SM8550")[1] == 1
    assert ask(content=made(INT8, "Choice_x"))[1] == 1
    assert len(files_in(tmp_path)) == 3
    (other,) = (f for f in files_in(tmp_path) if b"soc_type=SM8550" in f.read_bytes())
    file.write_bytes(other.read_bytes())  # whole, and of another chip
    assert ask()[1] == 1
    file.write_bytes(checked(b"no ONNX file"))
    assert ask()[1] == 1
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version(name) + ("+1" * (name == DISTRIBUTION))
    )
    assert ask()[1] == 1
    assert len(files_in(tmp_path)) == 4


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with keeping(tmp_path / "file") as session:
        assert outputs_with(session, made(INT8, "SEP_3"))[1] == 1


def test_an_agent_keeps_compiled_graphs_in_its_sandbox(tmp_path: Path) -> None:
    server = AgentServer("127.0.0.1:0", Context(cache=str(tmp_path)))
    server.start()
    try:
        with AgentClient(server.address) as client:
            for _ in range(2):
                _, result = load(client, INT8, made(INT8, "SEP_3"))
                assert result.error is None
    finally:
        server.stop()
    (file,) = files_in(tmp_path)
    assert b"soc_type=SM8650" in file.read_bytes()


def unknown_operator() -> bytes:
    """A graph with an operator that QNN does not have."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["a"], ["d"], name="the/determinant"),
        helper.make_node("Unsqueeze", ["d", "axes"], ["e"], name="wide"),
        helper.make_node("Add", ["a", "e"], ["y"], name="last"),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "g", [x], [y], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_an_operator_that_qnn_lacks_is_unsupported_by_name(agent: AgentClient) -> None:
    good, broken = agent.upload(made(FP16, "SEP_3")), agent.upload(unknown_operator())
    results = agent.benchmark([broken, good], FP16, protocol=LOAD)
    error = results[broken].error
    assert error is not None
    assert error.kind == ErrorKind.UNSUPPORTED_OPERATOR
    assert str(error) == "QNN does not take 'the/determinant' (Det)"
    assert results[good].error is None


@pytest.mark.parametrize("soc", [soc.name for soc in SOCS])
def test_binaries_are_for_the_chip_that_was_asked_for(agent: AgentClient, soc: str) -> None:
    # `QnnSession.load` reads it from the binary.
    _, result = load(agent, INT8, made(INT8, "SEP_3"), options={"soc": soc})
    assert result.error is None


@pytest.mark.parametrize(
    ("soc", "target", "words"),
    [
        ("SDM845", INT8, "SDM845 has no HTP, which QNN compiles for; it has a Hexagon 685"),
        ("1", INT8, "SDM845 has no HTP"),
        ("SM8250", INT8, "SM8250 has no HTP"),
        ("21", INT8, "SM8250 has no HTP"),
        ("SM9999", INT8, "'SM9999' is no chip that QNN is known to compile for"),
        ("sm8650", INT8, "did you mean SM8650?"),
        ("", INT8, "'' is no chip"),
        ("SM8350", FP16, r"SM8350 \(HTP v68\) does not compute in fp16"),
    ],
)
def test_chips_that_cannot_be_compiled_for_are_refused_by_name(
    agent: AgentClient, tmp_path: Path, soc: str, target: str, words: str
) -> None:
    digest = agent.upload(made(target, "SEP_3"))
    with pytest.raises(BadRequest, match=words):
        agent.benchmark([digest], target, protocol=LOAD, options={"soc": soc})
    asked = ["--layers", "digits32:1", "--operators", "SEP_3", "--target", target]
    asked += ["--option", f"soc={soc}", "--agent", agent.address, "-o", str(tmp_path / "s.csv")]
    if soc:
        with pytest.raises(errors.BadRequest, match=words) as caught:
            CliRunner().invoke(support, asked, catch_exceptions=False, standalone_mode=False)
        assert caught.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_names_are_one_chip() -> None:
    for soc in SOCS:
        assert soc_of(soc.name) is soc_of(str(soc.number)) is soc
    numbers = [soc.number for soc in SOCS] + [number for number, _ in WITHOUT_HTP.values()]
    assert len(set(numbers)) == len(numbers)
    assert not {soc.name for soc in SOCS} & set(WITHOUT_HTP)


def test_a_binary_for_another_chip_is_refused() -> None:
    soc = soc_of("SM8650")
    check_binary(b"..soc_type=SM8650;arch=75;..", soc)
    for content, words in (
        (b"soc_type=UNKNOWN_SDM;arch=68;", "UNKNOWN_SDM"),
        (b"soc_type=SM8650;arch=73;", "v73"),
        (b"soc_type=SM8650;arch=75;soc_type=SM8550;arch=73;", "SM8550"),
        (b"nothing", "no chip"),
    ):
        with pytest.raises(errors.BadRequest, match=words):
            check_binary(content, soc)


def test_support_tells_what_a_chip_takes(tmp_path: Path) -> None:
    path = tmp_path / "support.csv"
    words = ["--layers", "digits32:1", "--operators", "SEP_3,MB_3_3_SE", "--target", INT8]
    words += ["--option", "soc=SM8550", "-o", str(path)]
    result = CliRunner().invoke(support, words, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    rows = list(SupportReport.load(path).rows)
    assert {row.operator for row in rows} == {"SEP_3", "MB_3_3_SE"}
    for row in rows:
        assert (row.status, row.compute_unit, row.origin) == ("ok", "HTP", "emulated")
        assert row.options == "soc=SM8550"
        assert row.sqnr_db is not None
        assert row.sqnr_db > 30


# The board's part, with the provider's own form of a profile and a stand-in for its session.


class Session:
    """Appends a profile as the provider does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = QNN_BASIC.splitlines(keepends=True)
        self.head, self.calls = "".join(lines[:2]), ["".join(lines[2:5]), "".join(lines[5:8])]
        path.write_text(self.head)
        self.count = 0

    def io_binding(self):
        return self

    def bind_cpu_input(self, name, array) -> None:
        pass

    def get_outputs(self):
        return []

    def run_with_iobinding(self, binding) -> None:
        with self.path.open("a") as file:
            file.write(self.calls[self.count % 2])
        self.count += 1


def test_on_a_board_calls_have_the_processors_own_time(tmp_path: Path) -> None:
    graph = qnn_htp.QnnGraph(Session(tmp_path / "p.csv"), (), str(tmp_path / "p.csv"))
    for _ in range(3):
        samples = graph.timed_calls(2)
        assert [sample.device_ms for sample in samples] == [1.301, 1.307]
        assert all(sample.wall_ms > 0 for sample in samples)
    graph.close()
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_lacks_a_call_is_no_time(tmp_path: Path) -> None:
    session = Session(tmp_path / "p.csv")
    session.calls[1] = ""
    graph = qnn_htp.QnnGraph(session, (), str(tmp_path / "p.csv"))
    with pytest.raises(Exception, match="1 inferences of 2"):
        graph.timed_calls(2)


def test_a_board_is_available_where_its_processor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn_htp, "_EMULATES", False)
    monkeypatch.setattr(qnn_htp.os.path, "exists", lambda path: path == "/dev/fastrpc-cdsp")
    for target in qnn_htp.targets(Context(device_name="RB5")):
        assert target.availability == Availability.AVAILABLE
        assert (target.device, target.device_time) == ("RB5", True)
        assert target.defaults == ("htp_performance_mode=burst",)
    monkeypatch.setattr(qnn_htp.os.path, "exists", lambda path: False)
    for target in qnn_htp.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert "has no HTP" in target.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"soc": "SM8650"}, "no option 'soc'"),
        ({"htp_performance_mode": "fast"}, "is one of burst"),
        ({"vtcm_mb": "0"}, "1 to 99"),
        ({"vtcm_mb": "8;x"}, "1 to 99"),
    ],
)
def test_options_of_a_board_are_checked(monkeypatch, options, words) -> None:
    monkeypatch.setattr(qnn_htp, "_EMULATES", False)
    with pytest.raises(BadRequest, match=words):
        qnn_htp.open_target(Context(), INT8, options, 1)


def test_an_older_provider_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, words in (("2.6.1", "is not 2.7"), (None, "is not installed")):

        def installed(name: str, version=version) -> str:
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", installed)
        (first, second) = qnn_htp.targets(Context())
        assert first.availability == second.availability == Availability.UNAVAILABLE
        assert words in first.reason


def test_targets_say_what_they_are() -> None:
    for target in qnn_htp.targets(Context()):
        assert target.availability == Availability.EMULATED
        assert not target.device_time
        assert dataclasses.replace(target, name="x").resident
