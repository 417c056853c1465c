"""The agent over real sockets with real child processes: measuring, failing, queueing, limits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hurricane.agents import server as server_module
from hurricane.agents import supervisor, wire
from hurricane.agents.backends import ENVIRONMENT_VARIABLE
from hurricane.agents.backends.base import Context
from hurricane.agents.client import (
    Activity,
    AgentClient,
    ArtifactResult,
    Availability,
    Finished,
    Progress,
    Protocol,
    Queued,
)
from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import (
    AgentError,
    BadRequest,
    Busy,
    DeviceLost,
    ErrorKind,
    TimedOut,
    Unauthorised,
    Unreachable,
)
from hurricane.agents.eventloop import within
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.proto import agent_pb2_grpc as pb_grpc
from hurricane.agents.server import AgentServer, Limits, Security

from .agents_support import process_gone, wait_until

pytestmark = pytest.mark.process

BACKEND = Path(__file__).with_name("agents_faulty_backend.py")
RESIDENT = "dsp-faulty-fp32"
ONE_AT_A_TIME = "npu-faulty-fp32"
UNAVAILABLE = "vpu-faulty-fp32"
DEADLINE_S = 20.0
QUICK = Protocol(rounds=3, calls_per_visit=2, warmup_calls=1)


@contextmanager
def serving(
    security: Security | None = None,
    limits: Limits | None = None,
    store: Path | None = None,
) -> Iterator[AgentServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(BACKEND))
        # Only the backend of this file: the others have their own tests, and take a while.
        patch.setattr("hurricane.agents.supervisor.backend_names", lambda: [str(BACKEND)])
        server = AgentServer("127.0.0.1:0", Context("board", pace="real"), security, limits, store)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[AgentServer]:
    with serving() as server:
        yield server


@pytest.fixture
def agent(server: AgentServer) -> Iterator[AgentClient]:
    with AgentClient(server.address) as client:
        client.describe()  # which targets have a clock of their own
        yield client


_salt = iter(range(10**9))


def put(agent: AgentClient, **content: object) -> str:
    """Uploads an artefact of its own that behaves as told."""
    return agent.upload(json.dumps({**content, "salt": next(_salt)}).encode())


def test_a_batch_may_hold_a_quarter_of_a_small_boards_memory() -> None:
    assert Limits().resident_bytes(2 << 30) == 512 << 20
    assert Limits().resident_bytes(512 << 20) == 256 << 20
    assert Limits(max_resident_bytes=150).resident_bytes(2 << 30) == 150


def test_describe_tells_device_limits_and_why_a_target_is_not_available(agent: AgentClient) -> None:
    description = agent.describe()
    assert description.device.name == "board"
    assert description.device.cores == os.cpu_count()
    assert description.device.memory_bytes > 0
    assert description.chunk_bytes <= 1024 * 1024
    assert description.max_artifact_bytes == 1024**3
    assert description.max_resident_bytes == max(description.device.memory_bytes // 4, 256 << 20)
    resident = description.target(RESIDENT)
    assert (resident.processor, resident.resident, resident.device_time) == ("dsp", True, True)
    assert resident.formats == ("faulty",)
    assert not description.target(ONE_AT_A_TIME).resident
    broken = next(target for target in description.targets if target.name == UNAVAILABLE)
    assert broken.availability == Availability.UNAVAILABLE
    assert "plug one in" in broken.reason
    with pytest.raises(BadRequest, match="plug one in"):
        description.target(UNAVAILABLE)
    with pytest.raises(BadRequest, match=RESIDENT):
        description.target("cpu-nothing-fp32")


@pytest.mark.parametrize("target", [RESIDENT, ONE_AT_A_TIME])
def test_a_batch_gives_every_artefact_all_its_samples(agent: AgentClient, target: str) -> None:
    digests = [put(agent, ms=ms) for ms in (1.0, 2.0, 5.0)]
    results = agent.benchmark(digests, target, protocol=QUICK)
    assert list(results) == digests
    for digest, ms in zip(digests, (1.0, 2.0, 5.0), strict=True):
        result = results[digest]
        assert result.error is None
        assert result.wall is not None
        assert result.wall_ms.shape == (3, 2)
        assert np.all(result.wall_ms == ms)
        assert (result.wall.median_ms, result.wall.samples) == (ms, 6)
        assert (result.load_ms, result.first_call_ms) == (7.0, ms)
        assert result.compute_unit == "FAULTY"
        assert "fallback:cpu" in result.flags
        if target == RESIDENT:
            assert result.device_ms is not None
            assert np.all(result.device_ms == ms / 2)
        else:
            assert result.device_ms is None


def test_events_end_with_the_elapsed_time_on_the_devices_clock(agent: AgentClient) -> None:
    digest = put(agent, ms=4.0)
    events = list(agent.benchmark_events([digest], RESIDENT, protocol=QUICK))
    assert isinstance(events[-1], Finished)
    # 7 ms of loading, the first call, and three visits of two calls.
    assert events[-1].elapsed_ms == pytest.approx(7.0 + 4.0 + 3 * 2 * 4.0)
    assert sum(isinstance(event, ArtifactResult) for event in events) == 1


def test_a_graph_given_twice_is_measured_once(agent: AgentClient) -> None:
    digest = put(agent)
    assert list(agent.benchmark([digest, digest], RESIDENT, protocol=QUICK)) == [digest]


FAULTS: list[tuple[dict[str, str], ErrorKind]] = [
    ({"load": "crash"}, ErrorKind.RUNTIME_CRASHED),
    ({"visit": "crash"}, ErrorKind.RUNTIME_CRASHED),
    ({"visit": "lost"}, ErrorKind.DEVICE_LOST),
    ({"load": "kill"}, ErrorKind.RUNTIME_CRASHED),
    ({"load": "unsupported"}, ErrorKind.UNSUPPORTED_OPERATOR),
    ({"load": "oom"}, ErrorKind.OUT_OF_MEMORY),
    ({"load": "lost"}, ErrorKind.DEVICE_LOST),
    ({"load": "exception"}, ErrorKind.RUNTIME_CRASHED),
    ({"load": "virtual-hang"}, ErrorKind.TIMED_OUT),
    ({"visit": "virtual-hang"}, ErrorKind.TIMED_OUT),
    ({"visit": "nan"}, ErrorKind.INTERNAL),
]


@pytest.mark.parametrize(
    ("target", "fault", "kind"),
    [
        # Where graphs come and go, a few stand for all: what differs is how they are visited.
        *((RESIDENT, fault, kind) for fault, kind in FAULTS),
        *((ONE_AT_A_TIME, fault, kind) for fault, kind in FAULTS[:3]),
    ],
    ids=lambda value: "-".join(*value.items()) if isinstance(value, dict) else str(value),
)
def test_a_failure_costs_the_artefact_in_work_only(
    agent: AgentClient, target: str, fault: dict[str, str], kind: ErrorKind
) -> None:
    good, bad, other = put(agent, ms=2.0), put(agent, **fault), put(agent, ms=3.0)
    results = agent.benchmark([good, bad, other], target, protocol=QUICK)
    error = results[bad].error
    assert error is not None
    assert error.kind == kind
    assert "\n" not in str(error)
    assert results[bad].wall_ms.size == 0
    for digest, ms in ((good, 2.0), (other, 3.0)):
        assert results[digest].error is None
        assert np.array_equal(results[digest].wall_ms, np.full((3, 2), ms))


def test_a_crash_in_a_late_round_leaves_no_half_measurement(agent: AgentClient) -> None:
    good, bad = put(agent, ms=2.0), put(agent, visit="crash", at_visit=2)
    results = agent.benchmark([good, bad], RESIDENT, protocol=QUICK)
    assert isinstance(results[bad].error, AgentError)
    assert "(SIGSEGV) while measuring" in str(results[bad].error)
    assert np.array_equal(results[good].wall_ms, np.full((3, 2), 2.0))


def test_a_hang_is_ended_after_the_protocols_time(agent: AgentClient) -> None:
    protocol = Protocol(rounds=2, calls_per_visit=1, warmup_calls=1, artifact_timeout_s=1.0)
    good, loading, calling = put(agent), put(agent, load="hang"), put(agent, visit="hang")
    results = agent.benchmark([loading, good, calling], RESIDENT, protocol=protocol)
    assert isinstance(results[loading].error, TimedOut)
    assert "loading" in str(results[loading].error)
    assert isinstance(results[calling].error, TimedOut)
    assert "measuring" in str(results[calling].error)
    assert results[good].error is None


def test_a_batch_in_which_everything_fails_ends(agent: AgentClient) -> None:
    digests = [put(agent, load="crash") for _ in range(3)]
    results = agent.benchmark(digests, RESIDENT, protocol=QUICK)
    assert all(result.error is not None for result in results.values())


@pytest.mark.parametrize(("gate_at", "step"), [(-1, "load"), (1, "measure")])
def test_a_worker_that_is_killed_says_nothing_of_its_artefact_the_first_time(
    agent: AgentClient, tmp_path: Path, gate_at: int, step: str
) -> None:
    pid_file, gate = tmp_path / "pid", tmp_path / "never"
    good, blocked = put(agent, ms=3.0), put(agent, gate=str(gate), gate_at=gate_at)
    events = agent.benchmark_events(
        [good, blocked], RESIDENT, options={"pid_file": str(pid_file)}, protocol=QUICK
    )
    kill_at(events, step, pid_file)
    # Work begins anew, with another worker.
    assert wait_for(events, Progress("load", 0, 2))
    gate.touch()
    results = {event.sha256: event for event in events if isinstance(event, ArtifactResult)}
    assert np.array_equal(results[blocked].wall_ms, np.full((3, 2), 1.0))
    assert np.array_equal(results[good].wall_ms, np.full((3, 2), 3.0))


@pytest.mark.parametrize(("gate_at", "step"), [(-1, "load"), (1, "measure")])
def test_killing_the_worker_twice_at_one_artefact_costs_it(
    agent: AgentClient, tmp_path: Path, gate_at: int, step: str
) -> None:
    pid_file, gate = tmp_path / "pid", tmp_path / "never"
    good, blocked = put(agent, ms=3.0), put(agent, gate=str(gate), gate_at=gate_at)
    events = agent.benchmark_events(
        [good, blocked], RESIDENT, options={"pid_file": str(pid_file)}, protocol=QUICK
    )
    for _ in range(2):
        kill_at(events, step, pid_file)
    results = {event.sha256: event for event in events if isinstance(event, ArtifactResult)}
    error = results[blocked].error
    assert error is not None
    assert error.kind == ErrorKind.RUNTIME_CRASHED
    assert "SIGKILL" in str(error)
    assert np.array_equal(results[good].wall_ms, np.full((3, 2), 3.0))


@pytest.mark.parametrize(("kills", "opens"), [(1, True), (2, True), (3, False)])
def test_a_worker_that_is_killed_while_it_opens_its_target_is_started_again(
    agent: AgentClient, tmp_path: Path, kills: int, opens: bool
) -> None:
    left = tmp_path / "left"
    left.write_text(str(kills))
    options = {"killed_at_open": str(left)}
    digest = put(agent)
    if opens:
        result = agent.benchmark([digest], RESIDENT, options=options, protocol=QUICK)[digest]
        assert result.error is None
    else:
        with pytest.raises(AgentError, match="SIGKILL"):
            agent.benchmark([digest], RESIDENT, options=options, protocol=QUICK)


def test_results_are_taken_in_a_bounded_time(
    agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_DELIVERY_S", 0.0)
    monkeypatch.setattr(supervisor, "_SLOWEST_DELIVERY_BYTES_S", 1e15)
    digests = [put(agent) for _ in range(3)]
    with pytest.raises(TimedOut, match="took longer"):
        agent.benchmark(digests, RESIDENT, protocol=QUICK)
    monkeypatch.undo()
    assert agent.benchmark(digests, RESIDENT, protocol=QUICK)[digests[2]].error is None


def wait_for(events: Iterator[object], progress: Progress) -> bool:
    """Takes events up to this one; whether there was one."""
    return any(event == progress for event in events)


def kill_at(events: Iterator[object], step: str, pid_file: Path) -> None:
    """Kills the worker when work stands still at the blocked artefact."""
    assert any(
        isinstance(event, Progress) and event.step == step and event.done >= 1 for event in events
    )
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_the_whole_batch_fails_where_the_target_cannot_be_opened(agent: AgentClient) -> None:
    with pytest.raises(DeviceLost, match="does not answer"):
        agent.benchmark([put(agent)], RESIDENT, options={"refuse": "1"}, protocol=QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "cpu-nothing-fp32"}, RESIDENT),
        ({"target": UNAVAILABLE}, "plug one in"),
        ({"options": {"xnnpack": "0"}}, "no option 'xnnpack'"),
        ({"threads": 3}, "1 to 2 threads"),
        ({"format": "tflite"}, "not 'tflite'"),
        ({"protocol": Protocol(rounds=0)}, "at least one round"),
        ({"protocol": Protocol(rounds=10**9)}, "samples"),
        ({"digests": []}, "without artefacts"),
        ({"digests": ["0" * 64]}, "upload"),
        ({"digests": ["../../etc/passwd"]}, "SHA-256"),
    ],
)
def test_a_bad_request_is_refused_in_words(
    agent: AgentClient, change: dict[str, object], words: str
) -> None:
    request: dict = {"digests": [put(agent)], "target": RESIDENT, "protocol": QUICK, **change}
    with pytest.raises(BadRequest, match=words) as caught:
        agent.benchmark(request.pop("digests"), request.pop("target"), **request)
    assert caught.value.exit_status == 2


def test_kept_graphs_are_not_loaded_again(agent: AgentClient, tmp_path: Path) -> None:
    log = tmp_path / "log"
    digests = [put(agent, log=str(log)) for _ in range(2)]
    keep = Protocol(rounds=1, calls_per_visit=1, keep_loaded=True)
    first = agent.benchmark(digests, RESIDENT, protocol=keep)
    second = agent.benchmark(digests, RESIDENT, protocol=QUICK)
    assert log.read_text().count("load") == 2
    for digest in digests:
        assert second[digest].load_ms == first[digest].load_ms == 7.0
        assert second[digest].wall_ms.shape == (3, 2)
    agent.benchmark(digests, RESIDENT, protocol=QUICK)
    assert log.read_text().count("load") == 4


def test_graphs_are_loaded_ahead_without_a_round(agent: AgentClient, tmp_path: Path) -> None:
    log = tmp_path / "log"
    digests = [put(agent, log=str(log)) for _ in range(3)]
    only_load = Protocol(rounds=0, calls_per_visit=2, keep_loaded=True)
    for there in (digests[:1], digests):
        loaded = agent.benchmark(there, RESIDENT, protocol=only_load)
        assert list(loaded) == there
        for result in loaded.values():
            assert result.error is None
            assert result.wall is None
            assert result.wall_ms.shape == (0, 2)
            assert result.load_ms == 7.0
    assert log.read_text().count("load") == 3
    agent.benchmark(digests, RESIDENT, protocol=QUICK)
    assert log.read_text().count("load") == 3
    for target, protocol, words in (
        (RESIDENT, replace(only_load, keep_loaded=False), "is for keep_loaded"),
        (ONE_AT_A_TIME, only_load, "keeps nothing loaded"),
    ):
        with pytest.raises(BadRequest, match=words):
            agent.benchmark(digests, target, protocol=protocol)


def test_other_options_or_threads_get_a_worker_of_their_own(
    agent: AgentClient, tmp_path: Path
) -> None:
    keep = Protocol(rounds=1, calls_per_visit=1, keep_loaded=True)
    digest = put(agent)
    pids = []
    for index, threads in enumerate((1, 1, 2)):
        pid_file = tmp_path / "pid"
        options = {"pid_file": str(pid_file)}
        agent.benchmark([digest], RESIDENT, threads=threads, options=options, protocol=keep)
        pids.append(pid_file.read_text())
        assert len(pids) == index + 1
    assert pids[0] == pids[1] != pids[2]
    wait_until(lambda: process_gone(int(pids[0])), DEADLINE_S)


def test_a_kept_worker_that_dies_is_replaced(agent: AgentClient, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    keep = Protocol(rounds=1, calls_per_visit=1, keep_loaded=True)
    options = {"pid_file": str(pid_file)}
    digest = put(agent)
    agent.benchmark([digest], RESIDENT, options=options, protocol=keep)
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert agent.benchmark([digest], RESIDENT, options=options, protocol=keep)[digest].error is None


def test_an_idle_worker_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server_module.Lane.__init__, "__defaults__", (0.1,))
    pid_file = tmp_path / "pid"
    with serving() as server, AgentClient(server.address) as agent:
        keep = Protocol(rounds=1, calls_per_visit=1, keep_loaded=True)
        agent.benchmark([put(agent)], RESIDENT, options={"pid_file": str(pid_file)}, protocol=keep)
        wait_until(lambda: process_gone(int(pid_file.read_text())), DEADLINE_S)


def test_requests_for_one_processor_queue_and_are_told_their_place(
    server: AgentServer, agent: AgentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = agent.benchmark_events([put(agent, gate=str(gate))], RESIDENT, protocol=QUICK)
    assert isinstance(next(first), Progress)

    places: list[Queued] = []
    finished: list[str] = []

    def second() -> None:
        with AgentClient(server.address) as other:
            for event in other.benchmark_events([put(other)], RESIDENT, protocol=QUICK):
                if isinstance(event, Queued):
                    places.append(event)
            finished.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    wait_until(lambda: bool(places), DEADLINE_S)
    assert places[0] == Queued(1)
    # Another processor is free meanwhile.
    assert agent.benchmark([digest := put(agent)], ONE_AT_A_TIME, protocol=QUICK)[digest].wall
    assert not finished
    gate.touch()
    assert isinstance(list(first)[-1], Finished)
    thread.join(DEADLINE_S)
    assert finished == ["second"]


def test_describe_tells_what_runs_and_how_many_wait(
    server: AgentServer, agent: AgentClient, tmp_path: Path
) -> None:
    wait_until(lambda: agent.describe().activity == Activity(), DEADLINE_S)
    gate = tmp_path / "gate"
    blocked = put(agent, gate=str(gate), gate_at=1)  # in its second visit of three
    first = agent.benchmark_events([blocked], RESIDENT, threads=2, protocol=QUICK)
    seen = next(first)
    while seen != Progress("measure", 1, 3):
        seen = next(first)
    with AgentClient(server.address) as other:
        waiting = other.benchmark_events([put(other)], RESIDENT, protocol=QUICK)
        assert next(waiting) == Queued(1)
        activity = agent.describe().activity
        assert activity is not None
        assert (activity.measuring, activity.waiting) == (True, 1)
        assert activity.target == f"{RESIDENT}-t2"
        assert (activity.step, activity.done, activity.total) == ("measure", 1, 3)
        assert 0 < activity.elapsed_s < DEADLINE_S
        gate.touch()
        assert isinstance(list(first)[-1], Finished)
        assert isinstance(list(waiting)[-1], Finished)
    assert agent.describe().activity == Activity()


def test_describe_tells_the_boards_conditions(
    agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Conditions(temperature_c=61.5, frequency_mhz=1800.0, load_1m=0.25)
    monkeypatch.setattr(server_module, "read_conditions", lambda: now)
    assert agent.describe().conditions == now


def test_a_caller_that_goes_as_its_answer_is_written_is_not_forgotten() -> None:
    """asyncio.wait_for takes no notice, before Python 3.12: it gives the result instead."""

    async def cancelled_as_it_ends() -> bool:
        written = asyncio.get_running_loop().create_future()

        async def write() -> None:
            await written

        caller = asyncio.ensure_future(within(DEADLINE_S, write()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        written.set_result(None)
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        return caller.cancelled()

    assert asyncio.run(cancelled_as_it_ends())


def test_what_takes_too_long_is_cancelled_and_its_end_waited_for() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def failing() -> None:
        raise ValueError("its own")

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(within(0.01, work()))
    assert ended == [True]
    with pytest.raises(ValueError, match="its own"):
        asyncio.run(within(1.0, failing()))


def test_cancelling_frees_the_processor_and_kills_the_worker(
    agent: AgentClient, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    blocked = agent.benchmark_events(
        [put(agent, gate=str(tmp_path / "never"))],
        RESIDENT,
        options={"pid_file": str(pid_file)},
        protocol=QUICK,
    )
    assert isinstance(next(blocked), Progress)
    blocked.close()
    wait_until(lambda: process_gone(int(pid_file.read_text())), DEADLINE_S)
    digest = put(agent)
    assert agent.benchmark([digest], RESIDENT, protocol=QUICK)[digest].error is None


def test_a_client_that_leaves_the_queue_gives_up_its_place(
    server: AgentServer, agent: AgentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = agent.benchmark_events([put(agent, gate=str(gate))], RESIDENT, protocol=QUICK)
    assert isinstance(next(first), Progress)
    with AgentClient(server.address) as impatient:
        waiting = impatient.benchmark_events([put(impatient)], RESIDENT, protocol=QUICK)
        assert next(waiting) == Queued(1)
    with AgentClient(server.address) as patient:
        waiting = patient.benchmark_events([put(patient)], RESIDENT, protocol=QUICK)
        queued = next(waiting)
        assert isinstance(queued, Queued)
        while queued != Queued(1):
            queued = next(waiting)
        gate.touch()
        assert isinstance(list(first)[-1], Finished)
        assert isinstance(list(waiting)[-1], Finished)


def test_run_gives_outputs_and_typed_errors(agent: AgentClient) -> None:
    digest = put(agent)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    outputs = agent.run(digest, RESIDENT, {"x": x})
    assert np.array_equal(outputs["y"], x * 2)
    assert outputs["y"].dtype == np.float32
    with pytest.raises(BadRequest, match="no input 'z'"):
        agent.run(digest, RESIDENT, {"z": x})
    with pytest.raises(BadRequest, match="float32"):
        agent.run(digest, RESIDENT, {"x": x.astype(np.int64)})
    with pytest.raises(AgentError, match="SIGSEGV"):
        agent.run(put(agent, run="crash"), RESIDENT, {"x": x})
    with pytest.raises(TimedOut, match=r"within 0\.5 s"):
        agent.run(put(agent, run="hang"), RESIDENT, {"x": x}, timeout_s=0.5)
    assert np.array_equal(agent.run(digest, RESIDENT, {"x": x})["y"], x * 2)


def test_run_does_not_disturb_a_benchmark(
    server: AgentServer, agent: AgentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = agent.benchmark_events([put(agent, gate=str(gate))], RESIDENT, protocol=QUICK)
    assert isinstance(next(first), Progress)
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(Busy):
        agent.run(put(agent), RESIDENT, {"x": x}, timeout_s=0.3)
    gate.touch()
    assert isinstance(list(first)[-1], Finished)


def test_only_missing_artefacts_are_sent(agent: AgentClient) -> None:
    held = put(agent)
    absent = hashlib.sha256(b"never sent").hexdigest()
    assert agent.missing([held, absent]) == [absent]
    assert agent.missing([]) == []


def test_an_upload_of_many_chunks_arrives_whole(agent: AgentClient) -> None:
    content = json.dumps({"ms": 2.0, "padding": "x" * (3 * wire.CHUNK_BYTES)}).encode()
    digest = agent.upload(content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert agent.upload(content) == digest
    assert agent.benchmark([digest], RESIDENT, protocol=QUICK)[digest].error is None


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([pb.UploadRequest(sha256="a" * 64, size=3, chunk=b"abc")], "arrived with digest"),
        ([pb.UploadRequest(sha256="b" * 64, size=9, chunk=b"abc")], "ended after 3 of 9"),
        ([pb.UploadRequest(sha256="c" * 64, size=2, chunk=b"abc")], "longer than"),
        ([pb.UploadRequest(sha256="../x", size=3, chunk=b"abc")], "SHA-256"),
        ([pb.UploadRequest(sha256="d" * 64, size=0)], "0 bytes"),
        ([pb.UploadRequest(sha256="e" * 64, size=2**40, chunk=b"abc")], "this agent takes"),
        ([], "without a message"),
    ],
)
def test_a_corrupt_upload_is_refused_and_leaves_nothing(
    server: AgentServer, agent: AgentClient, messages: list[pb.UploadRequest], words: str
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.RpcError, match=words) as caught:
            pb_grpc.AgentStub(channel).Upload(iter(messages))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    digests = [message.sha256 for message in messages if len(message.sha256) == 64]
    assert agent.missing(digests) == digests


def test_limits_are_told_and_kept(tmp_path: Path) -> None:
    limits = Limits(max_artifact_bytes=100, max_resident_bytes=150, max_store_bytes=1000)
    with serving(limits=limits) as server, AgentClient(server.address) as agent:
        description = agent.describe()
        assert (description.max_artifact_bytes, description.max_resident_bytes) == (100, 150)
        with pytest.raises(BadRequest, match="takes 1 to 100"):
            agent.upload(b"x" * 101)
        digests = [agent.upload(json.dumps({"padding": c * 80}).encode()) for c in "ab"]
        with pytest.raises(BadRequest, match="smaller batches"):
            agent.benchmark(digests, RESIDENT, protocol=QUICK)
        # A target that holds one graph at a time does not mind.
        agent.benchmark(digests, ONE_AT_A_TIME, protocol=QUICK)


def test_health_and_reflection_are_on(server: AgentServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "hurricane.agent.v1.Agent"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]))
        names = {service.name for service in answer.list_services_response.service}
        assert {"hurricane.agent.v1.Agent", "grpc.health.v1.Health"} <= names


def test_a_token_is_demanded_of_everything_but_health(tmp_path: Path) -> None:
    token = "s3cret-s3cret-s3cret"
    with serving(Security(token=token)) as server:
        for wrong in (None, "s3cret-s3cret-s3creT"):
            with AgentClient(server.address, token=wrong) as agent:
                with pytest.raises(Unauthorised, match=r"token"):
                    agent.describe()
                with pytest.raises(Unauthorised):
                    agent.upload(b"{}")
                with pytest.raises(Unauthorised):
                    agent.benchmark(["0" * 64], RESIDENT)
                with pytest.raises(Unauthorised):
                    agent.run("0" * 64, RESIDENT, {})
        with AgentClient(server.address, token=token) as agent:
            digest = put(agent)
            assert agent.benchmark([digest], RESIDENT, protocol=QUICK)[digest].error is None
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            health.Check(health_pb2.HealthCheckRequest())


def test_shutting_down_ends_running_requests_and_their_workers(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with serving() as server, AgentClient(server.address) as agent:
        events = agent.benchmark_events(
            [put(agent, gate=str(tmp_path / "never"))],
            RESIDENT,
            options={"pid_file": str(pid_file)},
            protocol=QUICK,
        )
        assert isinstance(next(events), Progress)
        server.stop()
        with pytest.raises((Busy, Unreachable)):
            list(events)
        assert process_gone(int(pid_file.read_text()))
        with pytest.raises(Unreachable):
            agent.describe()


def test_an_agent_that_is_not_there_is_told_in_one_line() -> None:
    with AgentClient("127.0.0.1:1") as agent, pytest.raises(Unreachable) as caught:
        agent.describe()
    assert "127.0.0.1:1" in str(caught.value)
    assert "agent serve" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
