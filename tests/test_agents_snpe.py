"""SNPE's target over the real adb and on a board itself, with stand-ins for its tools."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hurricane.agents.backends import snpe_dsp
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import (
    AgentError,
    BadRequest,
    BoardNotReady,
    Busy,
    ErrorKind,
    UnsupportedOperator,
)
from hurricane.agents.formats import checker_of, snpe_file
from hurricane.agents.server import AgentServer
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.artifacts import snpe_file as artifacts
from hurricane.ops.export import export_operator
from hurricane.ops.pool import select_operators
from hurricane.ops.shapes import LayerShape
from hurricane.profiler.plan import graph_bytes, parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import parse_target

from .adb_support import adb, connecting, ends
from .board_output import THROUGHPUT_402
from .fake_phone import FakePhone, Programs
from .fake_snpe import CALL_US, FakeSnpe, fake_archive, true_us

pytestmark = pytest.mark.process

TARGET = "dsp-snpe-int8"
SHAPE = LayerShape(8, 8, 32, 32, 1)
ONCE = Protocol(rounds=1, calls_per_visit=4, warmup_calls=1)
PLACE = "/data/local/tmp/snpe/bin"


@dataclass
class Bench:
    """A phone with SNPE, and an agent that serves it."""

    phone: FakePhone
    snpe: FakeSnpe
    client: AgentClient
    left: contextlib.ExitStack

    def measure(self, content: bytes, protocol: Protocol = ONCE):
        digest = self.client.upload(content)
        return self.client.benchmark([digest], TARGET, protocol=protocol)[digest]


@pytest.fixture
def bench(adb_server: None, tmp_path: Path) -> Iterator[Bench]:
    phone = FakePhone(tmp_path.resolve() / "phone")
    snpe = FakeSnpe(root=str(phone.folder))
    with phone, Programs(phone, PLACE, snpe.programs()):
        adb("connect", phone.serial)
        server = AgentServer("127.0.0.1:0", Context(device_name="a phone", adb=phone.serial))
        server.start()
        try:
            with AgentClient(server.address) as client, contextlib.ExitStack() as left:
                yield Bench(phone, snpe, client, left)
        finally:
            server.stop()
            adb("disconnect", phone.serial)


def archive(operator: str = "SEP_3") -> bytes:
    return fake_archive(export_operator(operator, SHAPE), "int8", None)


def test_a_phone_is_a_target_with_the_version_of_its_tools(bench: Bench) -> None:
    (target,) = (t for t in bench.client.describe().targets if t.name == TARGET)
    assert target.availability == Availability.SIMULATED  # the phone says so
    assert (target.runtime_version, target.formats) == ("2.37.0.250724", ("snpe",))
    assert not target.resident
    assert target.device_time


def test_times_are_those_of_the_graph_that_was_brought(bench: Bench) -> None:
    for operator in ("SEP_3", "MB_7_6"):
        result = bench.measure(archive(operator))
        assert result.error is None
        expected = true_us(export_operator(operator, SHAPE)) / 1e3
        assert result.device_ms.tolist() == [[expected] * 4]
        assert result.wall_ms == pytest.approx(expected + CALL_US / 1e3)
        assert (result.compute_unit, result.flags[0]) == ("DSP", "averaged")
        assert "unwatched" in result.flags  # nothing tells what else the phone does
    words = bench.snpe.arguments[-1]
    assert "--use_dsp" in words
    assert not [word for word in words if "fallback" in word or "cpu" in word]


def test_times_of_layers_are_asked_for_once_and_no_latency_is_taken_from_them(bench: Bench) -> None:
    rounds = Protocol(rounds=3, calls_per_visit=4, warmup_calls=1)
    result = bench.measure(archive(), rounds)
    assert set(result.device_ms.ravel()) == {true_us(export_operator("SEP_3", SHAPE)) / 1e3}
    levels = [
        word.partition("=")[2]
        for words in bench.snpe.arguments
        for word in words
        if word.startswith("--profiling_level")
    ]
    assert levels == ["detailed", "basic", "basic", "basic"]
    assert bench.snpe.calls == [1, 4, 4, 4]


def test_the_throughput_tool_times_by_its_own_clock(bench: Bench) -> None:
    digest = bench.client.upload(archive())
    options = {"tool": "snpe-throughput-net-run"}
    result = bench.client.benchmark([digest], TARGET, protocol=ONCE, options=options)[digest]
    assert result.error is None
    assert result.device_ms is None
    expected = (true_us(export_operator("SEP_3", SHAPE)) + CALL_US) / 1e3
    assert result.wall_ms == pytest.approx(expected)
    assert bench.snpe.arguments[-1][0].startswith("--container=")
    bench.snpe.runtime = "cpu_float32"
    error = bench.client.benchmark([digest], TARGET, protocol=ONCE, options=options)[digest].error
    assert error is not None
    assert "ran the graph on cpu_float32" in str(error)
    bench.snpe.fails = THROUGHPUT_402
    digest = bench.client.upload(archive("SEP_5"))
    result = bench.client.benchmark([digest], TARGET, protocol=ONCE, options=options)[digest]
    assert result.error is not None
    assert result.error.kind == ErrorKind.UNSUPPORTED_OPERATOR


def test_a_tool_that_is_asked_for_and_missing_ends_the_request(bench: Bench) -> None:
    (bench.phone.path(PLACE) / "snpe-throughput-net-run").unlink()
    digest = bench.client.upload(archive())
    options = {"tool": "snpe-throughput-net-run"}
    with pytest.raises(BoardNotReady, match="snpe-throughput-net-run is not on the phone"):
        bench.client.benchmark([digest], TARGET, protocol=ONCE, options=options)


def test_a_batch_is_throttled_of_which_any_reading_says_so(bench: Bench) -> None:
    for bad in (1, 2, 3, 0):  # before loading, before and after the calls; never
        readings = 0

        def read(command: str, bad: int = bad) -> None:
            nonlocal readings
            if "dumpsys thermalservice" in command:
                readings += 1
                bench.phone.throttle(2 if readings == bad else 0)

        bench.phone.when = read
        result = bench.measure(archive())
        assert readings == 3
        assert ("throttled" in result.flags) == (bad > 0)


def test_outputs_are_those_of_the_tool(bench: Bench) -> None:
    digest = bench.client.upload(archive())
    x = np.zeros((1, 32, 8, 8), np.uint8)
    (found,) = bench.client.run(digest, TARGET, {"input": x}).values()
    assert found.shape == (1, 32, 8, 8)
    assert found.dtype == np.uint8


FAULTS: dict[str, tuple[Callable[[Bench], None], ErrorKind, str]] = {
    "the runtime is missing": (
        lambda bench: setattr(bench.snpe, "fails", THROUGHPUT_402),
        ErrorKind.UNSUPPORTED_OPERATOR,
        "SNPE 402: Network partition has failed; ",
    ),
    "a layer on the CPU": (
        lambda bench: setattr(
            bench.snpe, "change", lambda text: re.sub(r"2121 cycles : DSP", "21 us : CPU", text)
        ),
        ErrorKind.UNSUPPORTED_OPERATOR,
        "SNPE ran 1 of 2 layers on CPU",
    ),
    "the GPU instead": (
        lambda bench: setattr(bench.snpe, "change", lambda text: text.replace(": DSP", ": GPU")),
        ErrorKind.UNSUPPORTED_OPERATOR,
        "2 of 2 layers on GPU",
    ),
    "no time on the DSP": (
        lambda bench: setattr(
            bench.snpe,
            "change",
            lambda text: (
                text
                if "Per-Layer" in text
                else re.sub(r"(RPC Execute|Accelerator) Time: \d+ us", r"\1 Time: 0 ", text)
            ),
        ),
        ErrorKind.UNSUPPORTED_OPERATOR,
        "SNPE tells of no time on the DSP",
    ),
    "a cut log": (
        lambda bench: setattr(bench.snpe, "change", lambda text: text[:300]),
        ErrorKind.RUNTIME_CRASHED,
        "what snpe-diagview printed ",
    ),
    "a library is missing": (
        lambda bench: setattr(
            bench.snpe,
            "fails",
            'CANNOT LINK EXECUTABLE "snpe-net-run": library "libSNPE.so" not found',
        ),
        ErrorKind.BOARD_NOT_READY,
        "libSNPE.so",
    ),
    "a tool is missing": (
        lambda bench: (bench.phone.path(PLACE) / "snpe-diagview").unlink(),
        ErrorKind.BOARD_NOT_READY,
        "snpe-diagview is not on the phone",
    ),
    "unplugged": (
        lambda bench: (bench.phone.unplug(), adb("disconnect", bench.phone.serial)),
        ErrorKind.DEVICE_LOST,
        "the phone '127.0.0.1:",  # is not there, or offline: it depends on the moment
    ),
    "dropped during a command": (
        lambda bench: setattr(bench.phone, "mode", "drop"),
        ErrorKind.DEVICE_LOST,
        "does not answer",
    ),
    "a program of another processor": (
        lambda bench: (bench.phone.path(PLACE) / "snpe-net-run").write_bytes(
            b"\x7fELF" + bytes(60)
        ),
        ErrorKind.BOARD_NOT_READY,
        "snpe-net-run cannot be run on the phone",
    ),
    "a DLC of a newer SNPE": (
        lambda bench: setattr(
            bench.snpe, "fails", "error_code=804; error_message=Model is not supported; line_no=1\n"
        ),
        ErrorKind.BOARD_NOT_READY,
        "convert it with that of the board",
    ),
    "not allowed any more": (
        lambda bench: comes_back(bench, "unauthorized"),
        ErrorKind.UNAUTHORISED,
        "unlock it and confirm USB debugging",
    ),
    "offline": (
        lambda bench: comes_back(bench, "offline"),
        ErrorKind.DEVICE_LOST,
        "the phone '127.0.0.1:",
    ),
    "adb's server has ended": (
        lambda bench: adb("kill-server"),
        ErrorKind.BOARD_NOT_READY,
        "run: adb start-server",
    ),
}
OF_ONE_GRAPH = (ErrorKind.UNSUPPORTED_OPERATOR, ErrorKind.RUNTIME_CRASHED)
ROWS = plan_rows(parse_layers("digits32:1"), select_operators("SEP_3,MB_3_3"))
ONE_TRY = TimingProtocol(max_rounds=8, max_reconnects=0, rejoin_timeout_s=0.1)


def comes_back(bench: Bench, mode: str) -> None:
    """The phone is unplugged and in again, and in another mode."""
    bench.phone.mode = mode
    bench.phone.unplug()
    adb("disconnect", bench.phone.serial)
    bench.left.enter_context(connecting(bench.phone.serial))


def run_on(phone: FakePhone) -> list[str]:
    """Processes of the phone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd").startswith(str(phone.folder)):
                found.append((entry / "cmdline").read_text())
    return found


@pytest.fixture
def quick_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "convert", fake_archive)
    monkeypatch.setattr("hurricane.ops.artifacts.cache._write", lambda file, content: None)
    monkeypatch.setattr("hurricane.ops.artifacts.cache._WORTH_A_POOL", 10**9)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_with_a_phone_ends_the_run_and_nothing_is_recorded(
    bench: Bench, quick_artifacts: None, tmp_path: Path, fault: str
) -> None:
    cause, kind, words = FAULTS[fault]
    session = TargetSession.open(bench.client, parse_target(TARGET))
    cause(bench)
    table = tmp_path / "tables" / "t.csv"
    table.parent.mkdir()
    with pytest.raises(AgentError, match=re.escape(words)) as caught:
        profile([session], ROWS, table, ONE_TRY)
    # What is said of every graph is the board's fault.
    assert caught.value.kind == (ErrorKind.BOARD_NOT_READY if kind in OF_ONE_GRAPH else kind)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)
    assert list(table.parent.iterdir()) == []
    assert run_on(bench.phone) == []


def test_a_graph_that_the_dsp_does_not_take_is_unsupported_where_others_run(
    bench: Bench, quick_artifacts: None, tmp_path: Path
) -> None:
    (refused,) = (row for row in ROWS if row.name == "MB_3_3")
    models = {graph_bytes(context.with_operator) for context in refused.contexts}
    bench.snpe.takes = lambda model: model not in models
    session = TargetSession.open(bench.client, parse_target(TARGET))
    made = profile([session], ROWS, tmp_path / "t.csv", ONE_TRY)
    statuses = {row.operator: row.status for row in made.table}
    assert statuses == {"SEP_3": "ok", "MB_3_3": "unsupported"}
    (failure,) = made.failures
    assert failure.reason.startswith("SNPE 402: Network partition has failed; ")


def test_a_table_has_the_truth_in_it_though_the_phone_restarts_and_is_unplugged_half_way(
    bench: Bench, quick_artifacts: None, tmp_path: Path
) -> None:
    runs = 0

    def sometimes(command: str) -> None:
        nonlocal runs
        if "snpe-net-run --container" not in command:
            return
        runs += 1
        if runs == 9:
            bench.phone.restart()
        elif runs == 25:
            bench.phone.unplug()
            adb("disconnect", bench.phone.serial)
            adb("connect", bench.phone.serial)

    bench.phone.when = sometimes
    session = TargetSession.open(bench.client, parse_target(TARGET))
    made = profile([session], ROWS, tmp_path / "t.csv", TimingProtocol(max_rounds=8))
    assert runs > 25
    by_name = {row.operator: row for row in LookupTable.load(tmp_path / "t.csv")}
    assert {row.target.origin for row in by_name.values()} == {"simulated"}
    assert made.failed == 0
    for planned in ROWS:
        truth = np.mean(
            [
                true_us(graph_bytes(c.with_operator)) - true_us(graph_bytes(c.baseline))
                for c in planned.contexts
            ]
        )
        assert by_name[planned.name].latency_ms == pytest.approx(truth / 1e3, rel=0.03)


def test_a_tool_that_hangs_times_out_and_nothing_of_it_stays(bench: Bench) -> None:
    seconds = f"3{time.time_ns() % 10**6:06}"
    tool = bench.phone.path(PLACE) / "snpe-net-run"
    genuine = tool.read_text()
    tool.write_text(f"#!/bin/sh\nexec sleep {seconds}\n")
    error = bench.measure(archive(), replace(ONCE, artifact_timeout_s=2.0)).error
    assert error is not None
    assert error.kind == ErrorKind.TIMED_OUT
    assert ends(f"adb -s {bench.phone.serial}")
    tool.write_text(genuine)
    assert bench.measure(archive()).error is None
    assert ends(f"sleep {seconds}")


def test_outputs_of_a_graph_that_runs_elsewhere_are_refused(bench: Bench) -> None:
    bench.snpe.change = lambda text: text.replace(": DSP", ": CPU")
    digest = bench.client.upload(archive())
    with pytest.raises(UnsupportedOperator, match="layers on CPU"):
        bench.client.run(digest, TARGET, {"input": np.zeros((1, 32, 8, 8), np.uint8)})


def test_a_low_battery_is_refused_and_leaves_nothing_on_the_phone(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench.phone.charge(9)
    place = bench.phone.path("/data/local/tmp/hurricane")
    before = sorted(place.iterdir()) if place.is_dir() else []
    with pytest.raises(Busy, match="at 9%"):
        snpe_dsp.open_target(Context(adb=bench.phone.serial), TARGET, {}, 1)
    assert sorted(place.iterdir()) == before


def test_what_runs_leave_on_the_phone_does_not_pile_up(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = snpe_dsp.open_target(Context(adb=bench.phone.serial), TARGET, {}, 1)
    graph = session.load(archive(), "snpe")
    place = bench.phone.path("/data/local/tmp/hurricane")
    left = []
    for _ in range(20):
        graph.timed_calls(1)
        left.append(sum(1 for _ in place.glob("*/run-*")))
    assert max(left) == 15
    assert min(left) == 0
    session.close()
    assert not list(place.glob("*/*"))


# On the board itself: programs on PATH.

_PROGRAM = """\
#!{python}
import sys
sys.path[:] = {path!r}
from tests.fake_snpe import FakeSnpe
status, text = FakeSnpe().programs()[{name!r}](sys.argv[1:])
sys.stdout.write(text)
sys.exit(status)
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentClient]:
    folder = tmp_path / "bin"
    folder.mkdir()
    here = str(Path(__file__).parent.parent)
    for name in ("snpe-net-run", "snpe-diagview"):
        program = folder / name
        path = [here, *sys.path]
        program.write_text(_PROGRAM.format(python=sys.executable, path=path, name=name))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    read = (str(folder), here, sys.prefix, sys.base_prefix)
    server = AgentServer("127.0.0.1:0", Context(device_name="RB3", read=read))
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield client
    finally:
        server.stop()


def test_on_the_board_itself_the_tools_on_its_path_are_used(board: AgentClient) -> None:
    (target,) = (t for t in board.describe().targets if t.name == TARGET)
    assert (target.availability, target.reason) == (Availability.AVAILABLE, "")
    assert target.device == "RB3"
    digest = board.upload(archive())
    result = board.benchmark([digest], TARGET, protocol=ONCE)[digest]
    assert result.error is None
    assert result.device_ms[0, 0] == true_us(export_operator("SEP_3", SHAPE)) / 1e3


@pytest.mark.parametrize("hangs", [False, True])
def test_nothing_that_a_tool_starts_outlives_its_worker(
    board: AgentClient, tmp_path: Path, hangs: bool
) -> None:
    seconds = f"3{time.time_ns() % 10**6:06}"
    tool = tmp_path / "bin" / "snpe-net-run"
    tool.rename(tool.with_name("genuine"))
    then = "sleep" if hangs else "genuine"
    words = seconds if hangs else '"$@"'
    tool.write_text(f"#!/bin/sh\nsetsid sleep {seconds} >/dev/null 2>&1 &\nexec {then} {words}\n")
    tool.chmod(0o755)
    digest = board.upload(archive())
    protocol = replace(ONCE, artifact_timeout_s=3.0 if hangs else 60.0)
    error = board.benchmark([digest], TARGET, protocol=protocol)[digest].error
    assert (error.kind if error else None) == (ErrorKind.TIMED_OUT if hangs else None)
    assert ends(f"sleep {seconds}")


def test_without_tools_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (target,) = snpe_dsp.targets(Context())
    assert target.availability == Availability.UNAVAILABLE
    assert "snpe-net-run is not on this board's PATH" in target.reason
    assert "--adb SERIAL" in target.reason


# The artefact.


def test_an_archive_is_read_as_it_was_written() -> None:
    content = archive()
    checker_of("snpe")(content)
    found = snpe_file.read(content)
    assert found.inputs == (snpe_file.SnpeEdge("input", "uint8", (1, 32, 8, 8)),)
    assert artifacts.dlc_of(content) == found.dlc
    assert artifacts.edges(content).inputs[0].scale == 0.0078125
    noted = artifacts.annotate(content, "key", "text")
    checker_of("snpe")(noted)
    assert artifacts.dlc_of(noted) == found.dlc


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("edges.json"),
        lambda m: m.update({"../x": b""}),
        lambda m: m.update({"model.dlc": b"no archive"}),
        lambda m: m.update({"edges.json": b"{}"}),
        lambda m: m.update({"edges.json": b"[" * 10_000}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b'"input"', b'"a;rm"')}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b'"input"', b'"../a"')}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b"uint8", b"object")}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b"[1, 32", b"[-1, 32")}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b"[1, 32", b"[9999999999, 32")}),
        lambda m: m.update({"edges.json": m["edges.json"].replace(b"[1, 32", b"[true, 32")}),
    ],
)
def test_an_archive_that_is_not_as_it_should_be_is_refused(change) -> None:
    members = artifacts._members(archive())
    change(members)
    content = artifacts._archive(members, b"")
    with pytest.raises(BadRequest):
        checker_of("snpe")(content)


def test_cut_archives_are_refused() -> None:
    content = archive()
    for size in (0, 1, 10, len(content) // 2, len(content) - 1):
        with pytest.raises(AgentError):
            checker_of("snpe")(content[:size])
