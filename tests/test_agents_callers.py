"""Callers who open calls and say nothing, read nothing, or ask for too much: the others do not
notice, and the agent's memory stays small."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")

import onnx

from hurricane.agents import guard, server, wire
from hurricane.agents.channel import Channel, ChannelClosed
from hurricane.agents.client import AgentClient, Progress, Protocol, Queued
from hurricane.agents.errors import AgentError, BadRequest, Busy, ErrorKind
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.proto import agent_pb2_grpc as pb_grpc
from hurricane.agents.server import Limits
from hurricane.agents.store import Store

from .agents_support import AGENT, DEADLINE_S, Agent, serving, wait_until
from .onnx_attacks import relu_model

pytestmark = pytest.mark.process

BACKEND = Path(__file__).with_name("agents_faulty_backend.py")
FUZZ = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz_wire.py"
RESIDENT, ONE_AT_A_TIME = "dsp-faulty-fp32", "npu-faulty-fp32"
TOKEN = "s3cret-s3cret-s3cret"
METHODS = ("Describe", "Missing", "Upload", "Benchmark", "Run")
ONCE = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1)
ANSWER_S = 1.0
MEMORY_BYTES = 300 << 20

_salt = iter(range(10**9))


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    token_file = tmp_path_factory.mktemp("private") / "token"
    token_file.write_text(TOKEN)
    environment = {"HURRICANE_BACKENDS": str(BACKEND)}
    arguments = ("--token-file", str(token_file), "--pace", "real")
    with serving(*arguments, environment=environment) as agent:
        yield agent


@pytest.fixture
def client(agent: Agent) -> Iterator[AgentClient]:
    with AgentClient(agent.address, token=TOKEN) as client:
        client.describe()
        yield client


def put(client: AgentClient, **content: object) -> str:
    return client.upload(json.dumps({**content, "salt": next(_salt)}).encode())


class HalfOpen:
    """Calls that are opened and never say anything, from a few connections of their own."""

    def __init__(self, address: str, count: int, token: str | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._metadata = ((wire.TOKEN_METADATA, f"Bearer {token}"),) if token else ()
        opening = self._open(address, count)
        self._channels, self._calls = asyncio.run_coroutine_threadsafe(opening, self._loop).result(
            DEADLINE_S
        )

    async def _open(self, address: str, count: int) -> tuple[list, list]:
        channels = [
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(4)
        ]
        calls = []
        for number in range(count):
            path = f"/hurricane.agent.v1.Agent/{METHODS[number % len(METHODS)]}"
            call = channels[number % len(channels)].stream_stream(path)(metadata=self._metadata)
            calls.append(call)
        await asyncio.wait_for(
            asyncio.gather(*(channel.channel_ready() for channel in channels)), DEADLINE_S
        )
        return channels, calls

    def codes(self) -> set[grpc.StatusCode]:
        """How all of them ended."""

        async def ended() -> set[grpc.StatusCode]:
            return set(await asyncio.gather(*(call.code() for call in self._calls)))

        return asyncio.run_coroutine_threadsafe(ended(), self._loop).result(ANSWER_S)

    def close(self) -> None:
        async def end() -> None:
            for call in self._calls:
                call.cancel()
            for channel in self._channels:
                await channel.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)


@pytest.mark.parametrize("count", [60, 200, 1000])
@pytest.mark.parametrize(
    "token", [None, "another-token-another", TOKEN], ids=["no", "wrong", "right"]
)
def test_half_open_calls_keep_nobody_waiting(agent: Agent, count: int, token: str | None) -> None:
    calls = HalfOpen(agent.address, count, token)
    try:
        for _ in range(5):
            # Somebody who has not been connected before, and does a whole job.
            with AgentClient(agent.address, token=TOKEN) as client:
                assert client.describe(timeout_s=ANSWER_S).targets
                digest = put(client)
                assert client.benchmark([digest], RESIDENT, protocol=ONCE)[digest].error is None
        if token != TOKEN:  # they are not waited for at all
            refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}
            assert calls.codes() <= refused
    finally:
        calls.close()
    assert agent.peak_bytes() < MEMORY_BYTES


def test_connections_that_say_nothing_keep_nobody_waiting(agent: Agent) -> None:
    host, _, port = agent.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection((host, int(port))))
        with AgentClient(agent.address, token=TOKEN) as client:
            assert client.describe(timeout_s=ANSWER_S).targets


def test_connections_beyond_what_the_agent_can_hold_are_refused() -> None:
    # A board that lets a process open few files: the agent keeps some for its work.
    shell = ("bash", "-c", 'ulimit -n 400; exec "$@"', "bash", *AGENT)
    with serving("--simulate", "hexagon685-dsp", command=shell) as agent, ExitStack() as stack:
        host, _, port = agent.address.rpartition(":")
        client = stack.enter_context(AgentClient(agent.address))
        assert client.describe().targets
        for _ in range(600):
            stack.enter_context(socket.create_connection((host, int(port))))
        digest = client.upload(relu_model().SerializeToString())
        result = client.benchmark([digest], "sim-hexagon685-dsp", protocol=ONCE)[digest]
        assert result.error is None


def test_a_call_without_a_request_ends_by_itself(agent: Agent) -> None:
    with grpc.insecure_channel(agent.address) as channel:
        open_ = channel.stream_stream("/hurricane.agent.v1.Agent/Describe")
        never = threading.Event()
        call = open_(iter(never.wait, True), metadata=bearer(), timeout=DEADLINE_S)
        with pytest.raises(grpc.RpcError, match=f"{guard.FIRST_MESSAGE_S:g} s") as caught:
            next(call)
        never.set()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def bearer() -> tuple[tuple[str, str]]:
    return ((wire.TOKEN_METADATA, f"Bearer {TOKEN}"),)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message_is_a_typed_error(agent: Agent, method: str) -> None:
    with grpc.insecure_channel(agent.address) as channel:
        call = channel.stream_stream(f"/hurricane.agent.v1.Agent/{method}")
        with pytest.raises(grpc.RpcError, match="cannot be read") as caught:
            list(call(iter([b"\xff\xff\xff"]), metadata=bearer()))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError, match="without") as caught:
            list(call(iter([]), metadata=bearer()))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_random_and_mutated_messages_get_typed_errors_only() -> None:
    spec = importlib.util.spec_from_file_location("fuzz_wire", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    fuzz_wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_wire)
    with serving("--simulate", "hexagon685-dsp") as agent:
        counts, failures = fuzz_wire.fuzz(agent.address, 1500, seed=1)
        assert failures == []
        assert sum(counts.values()) == 1500
        assert agent.peak_bytes() < MEMORY_BYTES


def test_whoever_has_no_token_is_told_the_health_and_not_read(agent: Agent) -> None:
    large = bytes(50 << 20)
    for _ in range(10):
        with grpc.insecure_channel(agent.address) as channel:
            check = channel.stream_stream("/grpc.health.v1.Health/Check")
            assert next(check(iter([large]))) == b"\x08\x01"
    assert agent.peak_bytes() < MEMORY_BYTES


def test_errors_stay_typed_where_the_agents_folder_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with serving(cwd=folder) as agent, AgentClient(agent.address) as client:
        folder.rmdir()
        with pytest.raises(BadRequest, match="SHA-256"):
            client.missing(["zz"])
        digest = client.upload(relu_model().SerializeToString())
        with pytest.raises(BadRequest, match="no target"):
            client.benchmark([digest], "cpu-nothing-fp32")


def test_another_caller_gets_a_worker_of_its_own(
    agent: Agent, client: AgentClient, tmp_path: Path
) -> None:
    keep = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1, keep_loaded=True)
    pid_file = tmp_path / "pid"
    options = {"pid_file": str(pid_file)}
    digest = put(client)
    pids = []
    for _ in range(2):
        client.benchmark([digest], RESIDENT, options=options, protocol=keep)
        pids.append(pid_file.read_text())
    request = pb.BenchmarkRequest(
        sha256=[digest],
        target=pb.TargetSpec(name=RESIDENT, options=options),
        protocol=wire.protocol_to_wire(keep),
    )
    # Clients of one process share a connection unless they are told not to.
    own = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(agent.address, options=own) as channel:
        list(pb_grpc.AgentStub(channel).Benchmark(request, metadata=bearer()))
    assert pids[0] == pids[1] != pid_file.read_text()


def test_watching_the_agents_health_takes_a_token_and_asking_for_it_does_not(agent: Agent) -> None:
    with grpc.insecure_channel(agent.address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(b""))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"


def test_a_caller_who_reads_nothing_is_dropped_and_frees_the_device(
    agent: Agent, client: AgentClient
) -> None:
    # A result is more than the two ends keep for each other, so the agent cannot get rid of it.
    large = Protocol(rounds=1000, calls_per_visit=500, warmup_calls=1)
    digests = [put(client) for _ in range(8)]
    request = pb.BenchmarkRequest(
        sha256=digests,
        target=pb.TargetSpec(name=ONE_AT_A_TIME),
        protocol=wire.protocol_to_wire(large),
    )
    started, blocked = threading.Event(), threading.Event()

    async def read_nothing() -> None:
        async with grpc.aio.insecure_channel(agent.address) as channel:
            call = pb_grpc.AgentStub(channel).Benchmark(request, metadata=bearer())
            await call.read()
            started.set()
            await asyncio.to_thread(blocked.wait)

    thread = threading.Thread(target=lambda: asyncio.run(read_nothing()))
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        digest = put(client)
        result = client.benchmark([digest], ONE_AT_A_TIME, protocol=ONCE)[digest]
        assert result.error is None
    finally:
        blocked.set()
        thread.join(DEADLINE_S)
    assert agent.peak_bytes() < MEMORY_BYTES


def test_five_million_samples_pass_through_a_small_agent(agent: Agent, client: AgentClient) -> None:
    protocol = Protocol(rounds=1000, calls_per_visit=1000, warmup_calls=1)
    digests = [put(client, ms=float(1 + n)) for n in range(5)]
    results = client.benchmark(digests, RESIDENT, protocol=protocol)
    for n, digest in enumerate(digests):
        assert results[digest].wall_ms.shape == (1000, 1000)
        assert np.all(results[digest].wall_ms == 1 + n)
    assert agent.peak_bytes() < MEMORY_BYTES


def test_outputs_of_a_gigabyte_stay_with_the_worker(agent: Agent, client: AgentClient) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ConstantOfShape", ["shape"], ["y"])],
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1 << 28])],
        [onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [1 << 28])],
    )
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=7)
    digest = client.upload(model.SerializeToString(), "onnx")
    with pytest.raises(BadRequest, match="outputs take"):
        client.run(digest, "cpu-onnxruntime-fp32", {"x": np.ones(1, np.float32)})
    assert agent.peak_bytes() < MEMORY_BYTES


def test_uploads_beyond_what_goes_on_at_once_are_refused(agent: Agent, client: AgentClient) -> None:
    first = pb.UploadRequest(sha256="", size=1000, chunk=b"begun")

    async def begin(count: int) -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(agent.address) as channel:
            calls = []
            for number in range(count):
                call = pb_grpc.AgentStub(channel).Upload(metadata=bearer())
                request = pb.UploadRequest()
                request.CopyFrom(first)
                request.sha256 = f"{number:064x}"
                await call.write(request)
                calls.append(call)
            # Which of them came too late is for the agent to say: the others are waited for by it.
            codes = asyncio.as_completed([asyncio.ensure_future(call.code()) for call in calls])
            refused = [await code for code in itertools.islice(codes, count - limit)]
            for call in calls:
                call.cancel()
        return refused

    limit = server._MAX_UPLOADS
    wanted = [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert asyncio.run(asyncio.wait_for(begin(limit + 3), DEADLINE_S)) == wanted
    wait_until(lambda: bool(put(client)))


@pytest.mark.parametrize(
    ("artifacts", "rounds", "calls"), [(1, 1001, 1000), (6, 1000, 1000), (1, 2**31, 2**31)]
)
def test_more_samples_are_refused(
    client: AgentClient, artifacts: int, rounds: int, calls: int
) -> None:
    digests = [put(client) for _ in range(artifacts)]
    with pytest.raises(BadRequest, match="samples"):
        client.benchmark(digests, RESIDENT, protocol=Protocol(rounds=rounds, calls_per_visit=calls))


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1.0])
def test_a_limit_that_is_no_time_is_refused(client: AgentClient, limit: float) -> None:
    digest = put(client)
    with pytest.raises(BadRequest, match="time"):
        client.benchmark([digest], RESIDENT, protocol=Protocol(artifact_timeout_s=limit))
    with pytest.raises(BadRequest, match="time"):
        client.run(digest, RESIDENT, {}, timeout_s=limit)
    # Another client may ask for it all the same.
    request = pb.RunRequest(sha256=digest, target=pb.TargetSpec(name=RESIDENT), timeout_s=limit)
    with grpc.insecure_channel(client.address) as channel:
        answer = pb_grpc.AgentStub(channel).Run(request, metadata=bearer())
    assert answer.error.kind == pb.BAD_REQUEST


def test_limits_of_a_request_end_at_the_agents_own() -> None:
    limits = Limits(max_timeout_s=600.0)
    assert limits.timeout_s(1e308, 60.0) == 600.0
    assert limits.timeout_s(0.0, 60.0) == 60.0
    assert limits.timeout_s(5.0, 60.0) == 5.0


def test_a_host_that_is_gone_frees_the_device(
    agent: Agent, client: AgentClient, tmp_path: Path
) -> None:
    # Its kernel still answers, its process does not: as seen from here, a cable that is pulled.
    program = (
        "import sys\n"
        "from hurricane.agents.client import AgentClient, Protocol\n"
        "agent = AgentClient(sys.argv[1], token=sys.argv[2])\n"
        "once = Protocol(1, 1, 1)\n"
        "for event in agent.benchmark_events([sys.argv[3]], sys.argv[4], protocol=once):\n"
        "    print(event, flush=True)\n"
    )
    blocked = put(client, gate=str(tmp_path / "never"))
    host = subprocess.Popen(
        [sys.executable, "-c", program, agent.address, TOKEN, blocked, RESIDENT],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.stdout is not None
        assert host.stdout.readline().startswith("Progress")
        os.kill(host.pid, signal.SIGSTOP)
        wait_until(lambda: not measuring(client), deadline_s=10.0)
    finally:
        host.kill()
        host.communicate()


def measuring(client: AgentClient) -> bool:
    activity = client.describe().activity
    assert activity is not None
    return activity.measuring


def test_uploads_that_are_not_finished_count_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100, max_bytes=250)
    third = store.incoming("c" * 64, 100)
    with store.incoming("a" * 64, 100), store.incoming("b" * 64, 100):  # noqa: SIM117
        with pytest.raises(Busy, match="full"):
            third.__enter__()
    with store.incoming("c" * 64, 100):
        assert store.missing(["c" * 64]) == ["c" * 64]


def test_digests_that_are_not_held_leave_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100)
    with pytest.raises(BadRequest, match="upload them"), store.pinned(["a" * 64, "b" * 64]):
        raise AssertionError
    assert not store._pinned


def test_a_message_that_comes_byte_by_byte_has_a_deadline() -> None:
    ours, theirs = socket.socketpair()
    channel, stopped, sent = Channel(ours, stall_s=0.2), threading.Event(), [0]

    def drip() -> None:
        for byte in struct.pack("=QQ", 4000, 0) + bytes(4000):
            if stopped.wait(0.01):
                return
            theirs.send(bytes([byte]))
            sent[0] += 1

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(ChannelClosed):
            channel.receive(DEADLINE_S)
        assert sent[0] < 1000
    finally:
        stopped.set()
        thread.join(DEADLINE_S)
        theirs.close()
        channel.close()


def test_a_full_disk_is_a_typed_error(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100)
    with pytest.raises(Busy, match="No space left"), store.incoming("a" * 64, 100):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_turn_is_given_back_by_whoever_leaves_while_queued(
    agent: Agent, client: AgentClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    first = client.benchmark_events([put(client, gate=str(gate))], RESIDENT, protocol=ONCE)
    assert isinstance(next(first), Progress)
    for _ in range(20):  # more than may wait
        with AgentClient(agent.address, token=TOKEN) as impatient:
            waiting = impatient.benchmark_events([put(impatient)], RESIDENT, protocol=ONCE)
            assert isinstance(next(waiting), Queued)
    wait_until(lambda: client.describe().activity.waiting == 0)  # type: ignore[union-attr]
    gate.touch()
    list(first)


def test_errors_tell_no_path_of_the_board(agent: Agent, client: AgentClient) -> None:
    digest = put(client, load="exception-with-path")
    result = client.benchmark([digest], RESIDENT, protocol=ONCE)[digest]
    assert isinstance(result.error, AgentError)
    assert result.error.kind == ErrorKind.RUNTIME_CRASHED
    assert "/home/me" not in str(result.error)
    assert "secret.bin" in str(result.error)
