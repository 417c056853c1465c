"""MYRIAD's compiler without a stick: sessions over a stand-in, and the real one, on Python 3.9."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")

from hurricane.agents.backends import _myriad_plugin, myriad_compiler
from hurricane.agents.backends.base import Availability, Context, Session, TensorInfo
from hurricane.agents.backends.myriad_compiler import TARGET, CompilerSession
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import (
    AgentError,
    BadRequest,
    ErrorKind,
    RuntimeCrashed,
    UnsupportedOperator,
)
from hurricane.agents.worker import Bench, Heartbeat
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape

from .agents_artifacts import BROKEN, convolutions
from .myriad_dumps import example
from .python39_support import Environment

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler is for Linux"),
]

LOAD = Protocol(rounds=0, calls_per_visit=1, keep_loaded=True)
INPUT = TensorInfo("input", "float32", (1, 8, 12, 12))
Compile = Callable[[str, str], "tuple[TensorInfo, ...]"]


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Opens sessions whose processes call a test's own function in place of the plugin."""
    monkeypatch.chdir(tmp_path)
    opened: list[CompilerSession] = []

    def open_session(compile: Compile) -> CompilerSession:
        monkeypatch.setattr(myriad_compiler, "_compiled", compile)
        opened.append(myriad_compiler.open_target(Context(), TARGET, {}, 1))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()
    assert list(tmp_path.iterdir()) == []


def dumping(graph: str, dump: str) -> tuple[TensorInfo, ...]:
    """Compiles every graph to the same stages."""
    Path(dump).write_text(example())
    return (INPUT,)


def test_a_graph_has_its_stages_and_no_times_and_no_outputs(compiling: Any) -> None:
    session = compiling(dumping)
    graph = session.load(convolutions(), "onnx")
    assert graph.compute_unit == "MYRIAD"
    assert graph.flags == (
        "hardware:2",
        "shave:3",
        "dma:2",
        "cycles:7182",
        f"shave-bytes:{(4 + 2) * 14 * 12 * 16 + 3 * 2 * 7 * 6 * 64 + (2 + 4) * 7 * 6 * 64}",
        f"dma-bytes:{2 * 2 * 14 * 12 * 8 + 2 * 2 * 7 * 6 * 64}",
        "cmx-bytes:407552",
        "shave-Convert:2",
        "shave-Prod:1",
    )
    assert graph.inputs() == (INPUT,)
    assert not session.timed
    with pytest.raises(BadRequest, match="no latency"):
        graph.timed_calls(1)
    with pytest.raises(BadRequest, match="no outputs"):
        graph.outputs({"input": np.zeros(INPUT.shape, np.float32)})


def refusing(error: Exception) -> Compile:
    def refuse(graph: str, dump: str) -> tuple[TensorInfo, ...]:
        raise error

    return refuse


def ending(how: Callable[[], object]) -> Compile:
    def end(graph: str, dump: str) -> tuple[TensorInfo, ...]:
        how()
        raise AssertionError("it lives")

    return end


def cut(graph: str, dump: str) -> tuple[TensorInfo, ...]:
    Path(dump).write_text(example()[:-40])
    return (INPUT,)


@pytest.mark.parametrize(
    ("compile", "kind", "words"),
    [
        (refusing(UnsupportedOperator("no 'Sin'")), UnsupportedOperator, "no 'Sin'"),
        (refusing(BadRequest("no fixed shape")), BadRequest, "no fixed shape"),
        (refusing(ValueError("odd")), RuntimeCrashed, "MYRIAD's compiler: odd"),
        (ending(lambda: os.kill(os.getpid(), signal.SIGKILL)), RuntimeCrashed, r"died \(SIGKILL\)"),
        (ending(lambda: os._exit(1)), RuntimeCrashed, r"died \(status 1\)"),
        (cut, RuntimeCrashed, "is cut off"),
    ],
)
def test_what_goes_wrong_costs_the_graph_and_is_typed(
    compiling: Any, compile: Compile, kind: type[AgentError], words: str
) -> None:
    session = compiling(compile)
    with pytest.raises(kind, match=words):
        session.load(convolutions(), "onnx")


def test_an_operator_set_that_is_too_new_is_refused(compiling: Any) -> None:
    import onnx

    model = onnx.load_from_string(convolutions())
    model.opset_import[0].version = 14
    with pytest.raises(UnsupportedOperator, match="opset 14, and OpenVINO"):
        compiling(dumping).load(model.SerializeToString(), "onnx")
    session = compiling(dumping)
    session.expect(model.SerializeToString(), "onnx")
    assert not session._work  # nothing is begun that nobody waits for


def test_graphs_are_compiled_side_by_side_and_once(compiling: Any, tmp_path: Path) -> None:
    gates = [tmp_path / f"gate{index}" for index in range(2)]
    for gate in gates:
        os.mkfifo(gate)

    def meet(graph: str, dump: str) -> tuple[TensorInfo, ...]:
        """Ends when the other one is there as well: opening a pipe waits for its other end."""
        first = "conv0" in Path(graph).read_bytes().decode("latin-1")
        for gate in gates:
            mode = os.O_RDONLY if first == (gate is gates[0]) else os.O_WRONLY
            os.close(os.open(gate, mode))
        return dumping(graph, dump)

    session = compiling(meet)
    one = convolutions()
    other = convolutions().replace(b"conv0", b"convX")
    for content in (one, other, one):
        session.expect(content, "onnx")
    assert session.load(one, "onnx").flags == session.load(other, "onnx").flags
    for gate in gates:
        gate.unlink()


def test_what_is_in_work_ends_with_the_session(compiling: Any) -> None:
    session = compiling(ending(signal.pause))
    session.expect(convolutions(), "onnx")
    session.expect(b"no graph", "punch-cards")
    (work,) = session._work.values()
    session.close()
    assert work._process.exitcode == -signal.SIGKILL


def test_a_batch_is_told_ahead_as_far_as_a_session_looks(tmp_path: Path) -> None:
    events: list[tuple[str, bytes]] = []

    class Ahead(Session):
        timed = False
        ahead = 2

        def expect(self, content: bytes, format: str) -> None:
            events.append(("expect", content))

        def load(self, content: bytes, format: str) -> Any:
            events.append(("load", content))
            return SimpleNamespace(compute_unit="", flags=(), close=lambda: None)

    def check(content: bytes) -> None:
        if content == b"2":
            raise BadRequest("is broken")

    with (tmp_path / "heartbeat").open("w+b") as file:
        file.truncate(Heartbeat.SIZE)
        bench = Bench(Ahead(), Heartbeat(file.fileno()), str.encode, {"text": check})
        bench.measure(["0", "1", "2", "3"], "text", LOAD, resident=True)
        assert [f"{what} {content.decode()}" for what, content in events] == [
            "expect 0", "expect 1", "load 0", "load 1", "expect 3", "load 3",
        ]  # fmt: skip
        events.clear()
        bench.measure(["1", "0", "4"], "text", LOAD, resident=True)
        assert events == [("expect", b"4"), ("load", b"4")]


def test_reasons_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        (target,) = myriad_compiler.targets(Context())
        assert target.availability == Availability.UNAVAILABLE
        return target.reason

    assert "and this target takes 2021.4; it is for Python up to 3.9" in reason()
    monkeypatch.setattr(myriad_compiler, "wheel_version", lambda: ("2021.4.2", ""))
    with monkeypatch.context() as without:
        without.setattr(_myriad_plugin.ctypes, "CDLL", _without_libusb)
        assert "pip install libusb-package" in reason()
    old = SimpleNamespace(libusb_set_option=lambda *_: -12)
    monkeypatch.setattr(myriad_compiler, "load_libusb", lambda: old)
    assert "libusb is too old" in reason()
    monkeypatch.setattr(myriad_compiler, "hide_devices", lambda libusb: None)
    assert "MYRIAD plugin" in reason()  # of today's OpenVINO, which has none
    other = SimpleNamespace(plugin=lambda device: "myriadPlugin 2021.4.1-3926-14e67d86634")
    monkeypatch.setattr(_myriad_plugin, "open_engine", lambda: other)
    assert "is myriadPlugin 2021.4.1-3926-14e67d86634; dumps are known of 2021.4.2" in reason()


def _without_libusb(*_: object, **__: object) -> None:
    raise OSError("no")


def test_options_and_threads_are_refused() -> None:
    with pytest.raises(BadRequest, match="it takes none"):
        myriad_compiler.open_target(Context(), TARGET, {"platform": "2450"}, 1)
    with pytest.raises(BadRequest, match="1 to 1 threads"):
        myriad_compiler.open_target(Context(), TARGET, {}, 2)


# The real compiler, on Python 3.9

SHAPE = LayerShape(28, 28, 32, 32, 1)
EIGHT = (
    "SEP_3", "SEP_3_SE", "SEP_7", "MB_3_3", "MB_3_3_SE", "MB_7_3", "Choice_3", "Choice_3_SE",
)  # fmt: skip
GATE = Counter({"Power": 2, "Clamp": 1, "Prod": 2})
"""SHAVE stages of a gate, h-swish written out and a multiplication."""


def ask(board39: AgentClient, *contents: bytes) -> list[Any]:
    digests = [board39.upload(content) for content in contents]
    results = board39.benchmark(digests, TARGET, protocol=LOAD)
    return [results[digest] for digest in digests]


DUMPING = """
import ctypes, sys, libusb_package
from hurricane.agents.sandbox import Needs, seccomp
# The plugin holds a lock of the whole machine while it looks for a stick, for five seconds.
seccomp.restrict(Needs(processes=True, network=True, no_locks=True))
libusb = ctypes.CDLL(str(libusb_package.get_library_path()), mode=ctypes.RTLD_GLOBAL)
libusb.libusb_set_option(None, ctypes.c_int(2))
from openvino.inference_engine import IECore
core, path = IECore(), sys.argv[1]
try:
    core.load_network(core.read_network(path), "MYRIAD", {
        "VPU_MYRIAD_PLATFORM": "VPU_MYRIAD_2480",
        "MYRIAD_DUMP_INTERNAL_GRAPH_FILE_NAME": path + ".dot",
    })
except RuntimeError as error:
    print(error)
"""


@functools.cache
def graph_of(operator: str) -> bytes:
    return export_operator(operator, SHAPE)


@pytest.fixture(scope="session")
def dumps(python39: Environment, tmp_path_factory: Any) -> dict[str, str]:
    """What the plugin itself dumps of the eight graphs."""
    folder = tmp_path_factory.mktemp("dumps")
    paths = {operator: folder / f"{operator}.onnx" for operator in EIGHT}
    for operator, path in paths.items():
        path.write_bytes(graph_of(operator))
    words = [python39.python, "-c", DUMPING]
    running = [
        subprocess.Popen([*words, path], stdout=subprocess.DEVNULL) for path in paths.values()
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * len(EIGHT)
    return {o: Path(f"{path}.dot").read_text() for o, path in paths.items()}


@pytest.fixture(scope="session")
def eight(board39: AgentClient) -> dict[str, dict[str, str]]:
    """Flags of the eight graphs, by their names."""
    results = ask(board39, *map(graph_of, EIGHT))
    for result in results:
        assert result.error is None
        assert result.compute_unit == "MYRIAD"
        assert result.wall is None
    return {
        operator: dict(flag.split(":") for flag in result.flags)
        for operator, result in zip(EIGHT, results, strict=True)
    }


def counted(dump: str) -> dict[str, str]:
    """Flags of a graph by searching its dump, without the reader."""
    labels = re.findall(r'label="\[(-?\d+) / \d+\] Stage (.*?)"\n', dump)
    types = Counter(
        re.findall(r"\\ltype = (\w+)", label)[0] for number, label in labels if number != "-1"
    )
    cycles = 0
    for key, label in re.findall(
        r'(stage_0x\w+) \[[^\]]*?label="\[\d+ / \d+\] (.*?)"\n', dump, re.S
    ):
        cost = re.search(r"\\l +cost = ([\d.]+)\\l", label)
        if cost:
            end = re.search(rf'{key} -> (data_\w+) \[\n +label="StageOutput\\lportInd = 0', dump)
            assert end is not None
            sizes = re.search(rf"    {end[1]} \[.*?dims = \[W : (\d+), H : (\d+),", dump, re.S)
            assert sizes is not None
            cycles += round(float(cost[1]) * int(sizes[1]) * int(sizes[2]))
    shave = {t: n for t, n in types.items() if t not in ("MyriadXHwOp", "Copy")}
    found = re.search(r"\bCMX = (\d+)", dump)
    return {
        "hardware": str(types["MyriadXHwOp"]),
        "dma": str(types["Copy"]),
        "shave": str(sum(shave.values())),
        **{f"shave-{kind}": str(count) for kind, count in shave.items()},
        "cycles": str(cycles),
        "cmx-bytes": found[1] if found else "0",
    }


def shave_stages(flags: dict[str, str]) -> Counter[str]:
    kinds = {name.partition("-")[2]: int(count) for name, count in flags.items() if "-" in name}
    return Counter({kind: count for kind, count in kinds.items() if kind != "bytes"})


def test_the_target_is_compiled_for_only(board39: AgentClient) -> None:
    targets = {target.name: target for target in board39.describe().targets}
    assert targets[TARGET].availability == Availability.COMPILED
    assert targets[TARGET].runtime_version == "2021.4.2"
    with pytest.raises(BadRequest, match="is compiled: it has no latency"):
        board39.benchmark([board39.upload(graph_of("SEP_3"))], TARGET, protocol=Protocol(rounds=1))
    digest, zeros = board39.upload(graph_of("SEP_3")), np.zeros((1, 32, 28, 28), np.float32)
    with pytest.raises(BadRequest, match="no outputs"):
        board39.run(digest, TARGET, {"input": zeros})


def test_counts_are_those_of_the_dumps(
    eight: dict[str, dict[str, str]], dumps: dict[str, str]
) -> None:
    for operator in EIGHT:
        wanted = counted(dumps[operator])
        assert {name: eight[operator][name] for name in wanted} == wanted, operator


def test_a_gate_is_five_stages_on_shaves_beside_its_pool(eight: dict[str, dict[str, str]]) -> None:
    for operator in ("SEP_3", "MB_3_3", "Choice_3"):
        plain, gated = eight[operator], eight[f"{operator}_SE"]
        added = shave_stages(gated) - shave_stages(plain)
        pools = added.pop("ReduceMean", 0)  # in hardware where the map is small
        assert added == GATE
        assert int(gated["hardware"]) - int(plain["hardware"]) == 3 - pools
        assert not (GATE.keys() & shave_stages(plain).keys())


def test_a_shuffle_is_one_permute(eight: dict[str, dict[str, str]]) -> None:
    for operator in EIGHT:
        assert shave_stages(eight[operator])["Permute"] == operator.startswith("Choice")


def test_a_larger_kernel_takes_no_less_hardware(eight: dict[str, dict[str, str]]) -> None:
    for small, large in (("SEP_3", "SEP_7"), ("MB_3_3", "MB_7_3")):
        for name in ("hardware", "cycles"):
            assert int(eight[large][name]) >= int(eight[small][name])


def test_what_it_does_not_take_is_told_by_name(board39: AgentClient) -> None:
    import onnx
    from onnx import helper

    from .agents_artifacts import onnx_of

    sound = convolutions()
    newer = onnx.load_from_string(sound)
    newer.opset_import[0].version = 14
    broken = BROKEN["onnx"]
    sine = onnx_of([helper.make_node("Sin", ["input"], ["output"], "wave")], [], (1, 4, 8, 8))
    found = ask(
        board39,
        sine,
        broken.unknown_operator(sound),
        newer.SerializeToString(),
        broken.open_shape(sound),
        sound[:-40],
        sound,
    )
    *errors, good = [result.error for result in found]
    assert good is None
    kinds = [error.kind for error in errors]
    unsupported, bad = ErrorKind.UNSUPPORTED_OPERATOR, ErrorKind.BAD_REQUEST
    assert kinds == [unsupported, unsupported, unsupported, bad, bad]
    for error, words in zip(errors, ('"Sin"', "Nonsense", "opset 14", "shape", ""), strict=True):
        assert words.strip('"') in str(error)
        assert "\n" not in str(error)
