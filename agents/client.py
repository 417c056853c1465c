"""The host's side of the wire: `AgentClient`, and private agents started for one job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import queue
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Callable, Optional, TypeVar, Union

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from . import wire
from .backends.base import Availability, TargetInfo
from .conditions import Conditions
from .errors import (
    AgentError,
    BadAnswer,
    BadRequest,
    BoardNotReady,
    Busy,
    Internal,
    TimedOut,
    Unauthorised,
    Unreachable,
    UnsupportedOperator,
)
from .files import read_bytes
from .machine import DeviceInfo
from .processes import python_command
from .proto import agent_pb2 as pb
from .proto import agent_pb2_grpc as pb_grpc
from .results import (
    Activity,
    ArtifactResult,
    BatchConditions,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    Statistics,
)
from .sandbox import Isolation
from .security import is_loopback, split_address

__all__ = [
    "Activity",
    "AgentClient",
    "ArtifactResult",
    "Availability",
    "Description",
    "Event",
    "Finished",
    "Progress",
    "Protocol",
    "Queued",
    "Statistics",
    "TargetInfo",
    "TlsFiles",
    "check_artifact",
    "private_agent",
]

_CONNECT_TIMEOUT_S = 5.0
# Upload, Missing: short work on the agent's side, but boards and networks are slow.
_CALL_TIMEOUT_S = 120.0
# What a board on poor wireless still manages.
_SLOWEST_UPLOAD_BYTES_S = 2 * 1024 * 1024
# A board that is gone while it measures is noticed within the sum of the two. Agents take pings
# every 5 s and no faster.
_KEEPALIVE_S = 10.0
_KEEPALIVE_TIMEOUT_S = 5.0
# An agent tells of every graph that it begins with. Between two of them lie a load and a visit,
# which the protocol limits, and sometimes the opening of another worker, which takes up to 120 s.
_SILENT_STEPS = 3
_SILENCE_S = 300.0
# Waits are looked at anew so often: some systems take no longer ones.
_LONGEST_WAIT_S = 3600.0
# An agent ends the call as soon as it has said that the batch is done.
_LAST_WORD_S = 5.0
_MAX_TARGETS = 1000
# In gRPC's words, where an answer is larger than `wire.MAX_MESSAGE_BYTES`.
_TOO_LARGE = "message larger than max"
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0
_ERROR_OF_STATUS: dict[grpc.StatusCode, type[AgentError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedOperator,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorised,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorised,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.FAILED_PRECONDITION: BoardNotReady,
}


@dataclass(frozen=True)
class TlsFiles:
    """PEM files for TLS.

    Args:
        ca: authority of the agent's certificate; None: those of the system.
        cert, key: the caller's own certificate and key, where the agent wants one.
    """

    ca: Optional[Path] = None
    cert: Optional[Path] = None
    key: Optional[Path] = None


@dataclass(frozen=True)
class Description:
    """What an agent says of itself.

    Args:
        agent_version: version of its distribution.
        protocol_version: of the wire.
        device: facts about the board.
        targets: every target it knows, available or not.
        max_artifact_bytes: size of the largest artefact it takes.
        max_resident_bytes: artefact bytes that one batch may hold loaded.
        chunk_bytes: size of the chunks of an upload.
        activity: what it is busy with at this moment; None: an older agent, which does not tell.
        conditions: of the board at this moment; None: the same.
        isolation: of what runs graphs there; None: the same.
    """

    agent_version: str
    protocol_version: int
    device: DeviceInfo
    targets: tuple[TargetInfo, ...]
    max_artifact_bytes: int
    max_resident_bytes: int
    chunk_bytes: int
    activity: Optional[Activity] = None
    conditions: Optional[Conditions] = None
    isolation: Optional[Isolation] = None

    def target(self, name: str) -> TargetInfo:
        """The target of that name, if it can be used.

        Raises:
            BadRequest: there is none, or it is not available.
        """
        for target in self.targets:
            if target.name == name:
                if target.availability == Availability.UNAVAILABLE:
                    raise BadRequest(f"target '{name}' is not available: {target.reason}")
                return target
        names = ", ".join(target.name for target in self.targets) or "none"
        raise BadRequest(f"the agent has no target '{name}'; it has {names}")


class AgentClient:
    """A connection to one agent; a context manager.

    Usage::

        with AgentClient("board:50051", token=token) as agent:
            digest = agent.upload(Path("model.onnx").read_bytes())
            results = agent.benchmark([digest], "cpu-onnxruntime-fp32")
            print(results[digest].wall)

    Args:
        address: ``HOST:PORT``.
        token: the agent's token, if it has one.
        tls: files for TLS; None: no TLS.
        insecure: the token may go over a network without TLS.

    Attributes:
        address: as given.
        warning: what the caller gives away with `insecure`, in one line; empty: nothing.

    Raises:
        BadRequest: the token would go over a network as plain text, or a file cannot be read.
    """

    def __init__(
        self,
        address: str,
        token: Optional[str] = None,
        tls: Optional[TlsFiles] = None,
        insecure: bool = False,
    ) -> None:
        self.address = address
        self.warning = ""
        if token and tls is None and not is_loopback(split_address(address)[0]):
            self.warning = f"the token for {address} goes over the network as plain text"
            if not insecure:
                raise BadRequest(
                    f"without TLS {self.warning}: give --tls-ca, or reach the agent through an "
                    "SSH tunnel (ssh -L PORT:127.0.0.1:PORT HOST, then --agent 127.0.0.1:PORT), "
                    "or add --insecure, on a network where everyone may know it"
                )
        self._tls = tls
        self._metadata = ((wire.TOKEN_METADATA, f"Bearer {token}"),) if token else ()
        self._availability: dict[str, Availability] = {}
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", int(1e3 * _KEEPALIVE_S)),
            ("grpc.keepalive_timeout_ms", int(1e3 * _KEEPALIVE_TIMEOUT_S)),
            # What keeps a ping waiting is 60 s otherwise, whatever the line above says.
            ("grpc.http2.ping_timeout_ms", int(1e3 * _KEEPALIVE_TIMEOUT_S)),
            # Also where nothing else is sent for long.
            ("grpc.http2.max_pings_without_data", 0),
            # Boards are on the local network, which no web proxy reaches.
            ("grpc.enable_http_proxy", 0),
        ]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(
                _read_pem(tls.ca), _read_pem(tls.key), _read_pem(tls.cert)
            )
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = pb_grpc.AgentStub(_AnswersAsBytes(self._channel))

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; what runs on the agent for this client is cancelled."""
        self._channel.close()

    def describe(self, timeout_s: float = _CONNECT_TIMEOUT_S) -> Description:
        """Facts about the device, its targets, and what it is busy with.

        Raises:
            Unreachable: no agent answers within the time.
            BadAnswer: what it says cannot be right.
        """
        with self._typed_errors(connecting=True):
            answer = self._stub.Describe(
                pb.DescribeRequest(), timeout=timeout_s, metadata=self._metadata
            )
            description = _description(_parsed(pb.DescribeResponse, answer))
        self._availability = {t.name: t.availability for t in description.targets}
        return description

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests that the agent does not hold."""
        asked = list(dict.fromkeys(digests))
        with self._typed_errors():
            answer = self._stub.Missing(
                pb.MissingRequest(sha256=asked), timeout=_CALL_TIMEOUT_S, metadata=self._metadata
            )
            missing = list(_parsed(pb.MissingResponse, answer).sha256)
            if len(missing) != len(set(missing).intersection(asked)):
                raise BadAnswer("digests as missing that it was not asked for, or twice")
        return missing

    def upload(self, content: bytes, format: str = "", digest: str = "") -> str:
        """Sends an artefact, unless the agent holds it; returns its SHA-256.

        Args:
            content: of any format.
            format: which; it is then checked before anything is sent, see `check_artifact`.
            digest: its SHA-256, where it is known; the agent refuses a wrong one.

        Raises:
            BadRequest: it is too large for the agent.
            AgentError: it breaks its format.
        """
        check_artifact(content, format)
        digest = digest or hashlib.sha256(content).hexdigest()
        with self._typed_errors():
            answer = self._stub.Upload(
                _upload_messages(digest, content),
                timeout=_upload_timeout_s(len(content)),
                metadata=self._metadata,
            )
            _parsed(pb.UploadResponse, answer)
        return digest

    def benchmark(
        self,
        digests: Sequence[str],
        target: str,
        *,
        threads: int = 1,
        options: Optional[Mapping[str, str]] = None,
        protocol: Optional[Protocol] = None,
        format: str = "",
        on_event: Optional[Callable[[Event], None]] = None,
    ) -> dict[str, ArtifactResult]:
        """Measures a batch of uploaded artefacts; waits until it is done.

        Args:
            digests: SHA-256 of the artefacts; one given twice is measured once.
            target: a target's name, without ``-tN``.
            format: of the artefacts; empty: the first that the target takes.
            on_event: told of the place in the queue, of progress and of each result.

        Returns:
            One result for each digest, in the order given; a failed one has an `error`.

        Raises:
            AgentError: the batch as a whole failed.
            BadAnswer: the agent sent what cannot be right.
        """
        results: dict[str, ArtifactResult] = {}
        for event in self.benchmark_events(
            digests, target, threads=threads, options=options, protocol=protocol, format=format
        ):
            if isinstance(event, ArtifactResult):
                results[event.sha256] = event
            if on_event is not None:
                on_event(event)
        return {digest: results[digest] for digest in dict.fromkeys(digests)}

    def benchmark_events(
        self,
        digests: Sequence[str],
        target: str,
        *,
        threads: int = 1,
        options: Optional[Mapping[str, str]] = None,
        protocol: Optional[Protocol] = None,
        format: str = "",
    ) -> Iterator[Event]:
        """As `benchmark`, as a stream of events that ends with `Finished`.

        Closing the generator cancels the request on the agent.

        Raises:
            AgentError: the batch as a whole failed.
        """
        protocol = protocol or Protocol()
        unique = list(dict.fromkeys(digests))
        request = pb.BenchmarkRequest(
            sha256=unique,
            target=pb.TargetSpec(name=target, threads=threads, options=dict(options or {})),
            protocol=wire.protocol_to_wire(protocol),
            format=format,
        )
        # Times of what is simulated or computed are not those of this world's clock.
        known = self._availability.get(target, Availability.AVAILABLE)
        virtual = known == Availability.SIMULATED or known.computed
        batch = _Batch(unique, protocol, virtual or target.startswith("sim-"))
        patience_s = _SILENT_STEPS * protocol.artifact_timeout_s + _SILENCE_S
        with self._typed_errors():
            call = self._stub.Benchmark(request, metadata=self._metadata)
            with _Deadline(call, patience_s) as deadline:
                try:
                    for message in call:
                        event = batch.take(_parsed(pb.BenchmarkEvent, message))
                        if batch.finished is not None:
                            if event is not None:
                                deadline.set(_LAST_WORD_S)
                            continue
                        # What the caller does with an event is not the agent's time, nor is
                        # what others measure before it is the request's turn.
                        deadline.set(math.inf)
                        if event is not None:
                            yield event
                        if not isinstance(event, Queued) or not event.ahead:
                            deadline.set(patience_s)
                except grpc.RpcError as error:
                    if deadline.passed and batch.finished is None:
                        raise Unreachable(
                            f"the agent at {self.address} has said nothing for {patience_s:g} s "
                            "while it measured; start it again"
                        ) from error
                    if batch.finished is None:
                        raise
            yield batch.end()

    def run(
        self,
        digest: str,
        target: str,
        inputs: Mapping[str, np.ndarray],
        *,
        threads: int = 1,
        options: Optional[Mapping[str, str]] = None,
        format: str = "",
        timeout_s: float = 60.0,
    ) -> dict[str, np.ndarray]:
        """Outputs of an uploaded artefact for given inputs.

        Raises:
            AgentError: it failed on the agent.
        """
        if not 0 <= timeout_s < math.inf:
            raise BadRequest(f"a time limit of {timeout_s} s is none")
        request = pb.RunRequest(
            sha256=digest,
            target=pb.TargetSpec(name=target, threads=threads, options=dict(options or {})),
            format=format,
            inputs=wire.tensors_to_wire(inputs),
            timeout_s=timeout_s,
        )
        if request.ByteSize() > wire.MAX_MESSAGE_BYTES:
            raise BadRequest(
                f"the inputs take {request.ByteSize()} bytes; at most {wire.MAX_MESSAGE_BYTES}"
            )
        with self._typed_errors():
            # The agent keeps to the time itself, and says what happened; the rest is transfer.
            answer = self._stub.Run(
                request, timeout=timeout_s + _CALL_TIMEOUT_S, metadata=self._metadata
            )
            return wire.outputs_from_wire(_parsed(pb.RunResponse, answer))

    @contextlib.contextmanager
    def _typed_errors(self, connecting: bool = False) -> Iterator[None]:
        try:
            yield
        except BadAnswer as error:
            raise BadAnswer(f"the agent at {self.address} sent {error}") from error
        except grpc.RpcError as error:
            status = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
            details = wire.sentence(details)
            no_answer = connecting and status == grpc.StatusCode.DEADLINE_EXCEEDED
            if status == grpc.StatusCode.UNAVAILABLE or no_answer:
                raise self._unreachable(details) from error
            if status == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
                raise BadAnswer(
                    f"the agent at {self.address} sent a message of more than "
                    f"{wire.MAX_MESSAGE_BYTES} bytes"
                ) from error
            if status == grpc.StatusCode.UNIMPLEMENTED and connecting:
                details = f"what answers at {self.address} is no agent, or of another version"
            if status == grpc.StatusCode.UNAUTHENTICATED:
                details = f"agent at {self.address}: {details}; give the one it was started with"
            kind = _ERROR_OF_STATUS.get(status)
            if kind is None:
                raise Internal(f"agent at {self.address}: {details}") from error
            raise kind(details) from error

    def _unreachable(self, details: str) -> Unreachable:
        if self._tls is not None and ("handshake" in details or "SSL" in details):
            advice = "TLS failed: check its certificate and --tls-ca, or whether it speaks TLS"
        elif self._tls is None and ("reset" in details or "closed" in details):
            advice = "the connection was closed: it may have ended, or speak TLS"
        else:
            advice = "check the address, or start one there with: agent serve --listen HOST:PORT"
        return Unreachable(f"no agent answers at {self.address}; {advice}")


def check_artifact(content: bytes, format: str) -> None:
    """Checks an artefact of a format that the agent's validator knows; others pass.

    Raises:
        AgentError: no agent would load it.
    """
    from .formats import checker_of

    checker = checker_of(format) if format else None
    if checker is not None:
        checker(content)


class _Batch:
    """What has come of one batch so far, and whether it can be right.

    Args:
        digests: asked for.
        protocol: asked for.
        virtual: the target's clock is not that of this world.

    Attributes:
        finished: the agent's last word, once it is there.
    """

    def __init__(self, digests: Sequence[str], protocol: Protocol, virtual: bool) -> None:
        self.finished: Optional[Finished] = None
        self._protocol = protocol
        self._virtual = virtual
        self._began_s = _clock_s()
        self._asked = frozenset(digests)
        self._open = set(digests)
        self._conditions: Optional[BatchConditions] = None
        self._spent_ms = {"wall": 0.0, "device": 0.0}
        # Every graph may cost the batch two beginnings; each tells of all loads and visits.
        count = len(self._asked)
        self._news_left = 2 * (count + 1) * count * (protocol.rounds + 1) + 1000

    def take(self, message: pb.BenchmarkEvent) -> Optional[Event]:
        """Takes in one message; None where it is no event of its own: conditions, which the
        results after it hold, or a kind that this version does not know.

        Raises:
            AgentError: the batch as a whole failed.
            BadAnswer: it cannot be right.
        """
        kind = message.WhichOneof("event")
        if self.finished is not None:
            if kind is not None:
                raise BadAnswer(f"'{kind}' after the end of a batch")
            return None
        if kind == "result":
            self._check_digest(message.result.sha256)
        else:
            self._news_left -= 1
            if self._news_left < 0:
                raise BadAnswer("news without end of one batch")
        event = wire.event_from_wire(message, self._protocol)
        if isinstance(event, BatchConditions):
            self._conditions = event
            return None
        if isinstance(event, ArtifactResult) and event.error is None:
            if self._conditions is None:
                raise BadAnswer("a result without the conditions that it was measured under")
            event = event.under(self._conditions)
            for clock, times_ms in (("wall", event.wall_ms), ("device", event.device_ms)):
                if times_ms is not None:
                    self._spent_ms[clock] += float(times_ms.sum())
                    self._check_clock(f"{clock} times", self._spent_ms[clock])
        if isinstance(event, Finished):
            self._check_clock("an elapsed time", event.elapsed_ms)
            if self._open:
                raise BadAnswer(self._early_end())
            self.finished = event
        return event

    def end(self) -> Finished:
        """The last event, once the agent has ended the call.

        Raises:
            BadAnswer: it has not said that the batch is done.
        """
        if self.finished is None:
            raise BadAnswer(self._early_end())
        return self.finished

    def _early_end(self) -> str:
        return f"the end of a batch without {len(self._open)} of {len(self._asked)} results"

    def _check_digest(self, digest: str) -> None:
        if digest not in self._asked:
            raise BadAnswer(f"a result of '{wire.sentence(digest)}', which was not asked for")
        if digest not in self._open:
            raise BadAnswer(f"a second result of {digest}")
        self._open.remove(digest)

    def _check_clock(self, what: str, ms: float) -> None:
        """What was measured here and now took no longer than this side waited for it."""
        waited_ms = 1e3 * (_clock_s() - self._began_s)
        if not self._virtual and ms > wire.later(waited_ms):
            raise BadAnswer(f"{what} of {ms:g} ms in a batch {waited_ms:g} ms after it was begun")


class _Deadline:
    """Cancels a call at a time that can be put off; a context manager that cancels it at its end.

    Attributes:
        passed: whether the time came.
    """

    def __init__(self, call: Any, seconds: float) -> None:
        self.passed = False
        self._call = call
        self._ended = False
        self._changed = threading.Condition()
        self._until_s = time.monotonic() + seconds
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Deadline:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._call.cancel()

    def set(self, seconds: float) -> None:
        """From now on so much time is left."""
        with self._changed:
            earlier = self._until_s
            self._until_s = time.monotonic() + seconds
            if self._until_s < earlier:  # a later one is seen when the earlier has come
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._ended:
                left_s = self._until_s - time.monotonic()
                if left_s <= 0:
                    self.passed = True
                    break
                self._changed.wait(min(left_s, _LONGEST_WAIT_S))
        if self.passed:
            self._call.cancel()


class _AnswersAsBytes:
    """A channel whose calls give answers as they came: gRPC prints a traceback where it parses
    one that is none, and tells the caller little."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, arity: str) -> Callable[..., Any]:
        make = getattr(self._channel, arity)
        return lambda *words, **more: make(*words, **{**more, "response_deserializer": None})


_Answer = TypeVar("_Answer", bound=Message)


def _parsed(kind: type[_Answer], content: bytes) -> _Answer:
    message = kind()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise BadAnswer(f"bytes that are no {kind.DESCRIPTOR.name}") from error
    return message


def _description(answer: pb.DescribeResponse) -> Description:
    """What an agent says of itself.

    Raises:
        BadAnswer: it cannot be right.
    """
    if len(answer.targets) > _MAX_TARGETS:
        raise BadAnswer(f"{len(answer.targets)} targets")
    names = [target.name for target in answer.targets]
    targets = tuple(wire.target_from_wire(target) for target in answer.targets)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadAnswer(f"two targets of the name '{twice}'")
    sizes = {
        name: wire.in_range(f"a {name}", getattr(answer, name), 1, 2**64)
        for name in ("max_artifact_bytes", "max_resident_bytes", "chunk_bytes")
    }
    told = answer.HasField
    return Description(
        agent_version=wire.word(answer.agent_version),
        protocol_version=answer.protocol_version,
        device=wire.device_from_wire(answer.device),
        targets=targets,
        activity=wire.activity_from_wire(answer.activity) if told("activity") else None,
        conditions=wire.conditions_from_wire(answer.conditions) if told("conditions") else None,
        isolation=wire.isolation_from_wire(answer.isolation) if told("isolation") else None,
        **sizes,
    )


def _clock_s() -> float:
    """A clock that nobody sets, and that goes on while this machine sleeps, where there is one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def _upload_timeout_s(size: int) -> float:
    return _CALL_TIMEOUT_S + size / _SLOWEST_UPLOAD_BYTES_S


def _upload_messages(digest: str, content: bytes) -> Iterator[pb.UploadRequest]:
    size = wire.CHUNK_BYTES
    yield pb.UploadRequest(sha256=digest, size=len(content), chunk=content[:size])
    for start in range(size, len(content), size):
        yield pb.UploadRequest(chunk=content[start : start + size])


def _read_pem(path: Optional[Path]) -> Optional[bytes]:
    return None if path is None else read_bytes(path, "PEM file")


@contextlib.contextmanager
def private_agent(
    simulate: Sequence[str] = (),
    *,
    seed: int = 0,
    pace: str = "virtual",
    device_name: str = "",
    store: Optional[Union[str, Path]] = None,
) -> Iterator[AgentClient]:
    """Starts an agent on loopback for one job, and ends it afterwards.

    It has a random token, so that no other user of this machine can use it, and it ends with
    this process, even if that is killed.

    Args:
        simulate: names of simulated devices to serve (``("all",)``: every one).
        seed: of simulated devices.
        pace: ``virtual`` or ``real``.
        device_name: name of the device that real targets run on; empty: its model.
        store: folder that keeps artefacts between jobs; None: a temporary one.

    Yields:
        A client connected to it.

    Raises:
        AgentError: it does not start.
    """
    token = secrets.token_urlsafe(32)
    command = python_command("hurricane.agents.cli", "serve", "--private")
    command += ["--listen", "127.0.0.1:0", "--seed", str(seed), "--pace", pace]
    for name in simulate:
        command += ["--simulate", name]
    if device_name:
        command += ["--device-name", device_name]
    if store is not None:
        command += ["--store", str(store)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            # Ctrl-C is for the command, which ends the agent itself.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = _start(process.stdin, process.stdout, token)
            if address is None:
                raise AgentError(f"the private agent did not start: {_last_line(complaints)}")
            with AgentClient(address, token=token) as client:
                yield client
        finally:
            _end(process)


def _start(stdin: IO[str], stdout: IO[str], token: str) -> Optional[str]:
    """Hands over the token and waits for the address; None if the agent ends or is silent."""
    answers: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: answers.put(stdout.readline()), daemon=True).start()
    with contextlib.suppress(BrokenPipeError, queue.Empty, ValueError, KeyError):
        stdin.write(token + "\n")
        stdin.flush()
        return str(json.loads(answers.get(timeout=_START_TIMEOUT_S))["address"])
    return None


def _end(process: subprocess.Popen[str]) -> None:
    # The end of its stdin tells a private agent to stop.
    with contextlib.suppress(BrokenPipeError):
        assert process.stdin is not None
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_TIMEOUT_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _last_line(file: IO[Any]) -> str:
    file.seek(0)
    lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "it said nothing"
