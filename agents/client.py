"""The host's side of the wire: `AgentClient`, and private agents started for one job."""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Callable, Optional, Union

import grpc
import numpy as np

from . import wire
from .backends.base import Availability, TargetInfo
from .conditions import Conditions
from .errors import (
    AgentError,
    BadRequest,
    Busy,
    Internal,
    TimedOut,
    Unauthorised,
    Unreachable,
    UnsupportedOperator,
)
from .machine import DeviceInfo
from .proto import agent_pb2 as pb
from .proto import agent_pb2_grpc as pb_grpc
from .results import (
    Activity,
    ArtifactResult,
    Event,
    Finished,
    Progress,
    Protocol,
    Queued,
    Statistics,
)

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
    "private_agent",
]

_CONNECT_TIMEOUT_S = 5.0
# Upload, Missing: short work on the agent's side, but boards and networks are slow.
_CALL_TIMEOUT_S = 120.0
# What a board on poor wireless still manages.
_SLOWEST_UPLOAD_BYTES_S = 2 * 1024 * 1024
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0
_ERROR_OF_STATUS: dict[grpc.StatusCode, type[AgentError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedOperator,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorised,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorised,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
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
    """

    def __init__(
        self, address: str, token: Optional[str] = None, tls: Optional[TlsFiles] = None
    ) -> None:
        self.address = address
        self._tls = tls
        self._metadata = ((wire.TOKEN_METADATA, f"Bearer {token}"),) if token else ()
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            # Notices within half a minute that a board is gone while it measures.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
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
        self._stub = pb_grpc.AgentStub(self._channel)

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
        """
        with self._typed_errors(connecting=True):
            answer = self._stub.Describe(
                pb.DescribeRequest(), timeout=timeout_s, metadata=self._metadata
            )
        told = answer.HasField
        return Description(
            agent_version=answer.agent_version,
            protocol_version=answer.protocol_version,
            device=wire.device_from_wire(answer.device),
            targets=tuple(wire.target_from_wire(target) for target in answer.targets),
            max_artifact_bytes=answer.max_artifact_bytes,
            max_resident_bytes=answer.max_resident_bytes,
            chunk_bytes=answer.chunk_bytes,
            activity=wire.activity_from_wire(answer.activity) if told("activity") else None,
            conditions=wire.conditions_from_wire(answer.conditions) if told("conditions") else None,
        )

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of the digests that the agent does not hold."""
        with self._typed_errors():
            answer = self._stub.Missing(
                pb.MissingRequest(sha256=list(digests)),
                timeout=_CALL_TIMEOUT_S,
                metadata=self._metadata,
            )
        return list(answer.sha256)

    def upload(self, content: bytes) -> str:
        """Sends an artefact, unless the agent holds it; returns its SHA-256.

        Raises:
            BadRequest: it is too large for the agent.
        """
        digest = hashlib.sha256(content).hexdigest()
        with self._typed_errors():
            self._stub.Upload(
                _upload_messages(digest, content),
                timeout=_upload_timeout_s(len(content)),
                metadata=self._metadata,
            )
        return digest

    def benchmark(
        self,
        digests: Sequence[str],
        target: str,
        *,
        threads: int = 1,
        options: Optional[Mapping[str, str]] = None,
        protocol: Optional[Protocol] = None,
        format: str = "onnx",
        on_event: Optional[Callable[[Event], None]] = None,
    ) -> dict[str, ArtifactResult]:
        """Measures a batch of uploaded artefacts; waits until it is done.

        Args:
            digests: SHA-256 of the artefacts; one given twice is measured once.
            target: a target's name, without ``-tN``.
            on_event: told of the place in the queue, of progress and of each result.

        Returns:
            One result for each digest, in the order given; a failed one has an `error`.

        Raises:
            AgentError: the batch as a whole failed.
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
        format: str = "onnx",
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
        unanswered, finished = set(unique), False
        with self._typed_errors():
            call = self._stub.Benchmark(request, metadata=self._metadata)
            try:
                for message in call:
                    event = wire.event_from_wire(message, protocol)
                    if event is None:
                        continue
                    if isinstance(event, ArtifactResult):
                        unanswered.discard(event.sha256)
                    if isinstance(event, Finished) and unanswered:
                        break
                    finished = isinstance(event, Finished)
                    yield event
            finally:
                call.cancel()
        if not finished:
            raise Internal(
                f"the agent at {self.address} ended the batch without {len(unanswered)} of "
                f"{len(unique)} results"
            )

    def run(
        self,
        digest: str,
        target: str,
        inputs: Mapping[str, np.ndarray],
        *,
        threads: int = 1,
        options: Optional[Mapping[str, str]] = None,
        format: str = "onnx",
        timeout_s: float = 60.0,
    ) -> dict[str, np.ndarray]:
        """Outputs of an uploaded artefact for given inputs.

        Raises:
            AgentError: it failed on the agent.
        """
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
        if answer.HasField("error"):
            raise wire.error_from_wire(answer.error)
        return wire.tensors_from_wire(answer.outputs)

    @contextlib.contextmanager
    def _typed_errors(self, connecting: bool = False) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            status = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
            details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
            no_answer = connecting and status == grpc.StatusCode.DEADLINE_EXCEEDED
            if status == grpc.StatusCode.UNAVAILABLE or no_answer:
                raise self._unreachable(details) from error
            if status == grpc.StatusCode.UNIMPLEMENTED and connecting:
                details = f"what answers at {self.address} is no agent, or of another version"
            if status == grpc.StatusCode.UNAUTHENTICATED:
                details = f"agent at {self.address}: {details}; give the one it was started with"
            raise _ERROR_OF_STATUS.get(status, Internal)(" ".join(details.split())) from error

    def _unreachable(self, details: str) -> Unreachable:
        if self._tls is not None and ("handshake" in details or "SSL" in details):
            advice = "TLS failed: check its certificate and --tls-ca, or whether it speaks TLS"
        elif self._tls is None and ("reset" in details or "closed" in details):
            advice = "the connection was closed: it may have ended, or speak TLS"
        else:
            advice = "check the address, or start one there with: agent serve --listen HOST:PORT"
        return Unreachable(f"no agent answers at {self.address}; {advice}")


def _upload_timeout_s(size: int) -> float:
    return _CALL_TIMEOUT_S + size / _SLOWEST_UPLOAD_BYTES_S


def _upload_messages(digest: str, content: bytes) -> Iterator[pb.UploadRequest]:
    size = wire.CHUNK_BYTES
    yield pb.UploadRequest(sha256=digest, size=len(content), chunk=content[:size])
    for start in range(size, len(content), size):
        yield pb.UploadRequest(chunk=content[start : start + size])


def _read_pem(path: Optional[Path]) -> Optional[bytes]:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error


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
    command = [sys.executable, "-m", "hurricane.agents.cli", "serve", "--private"]
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
