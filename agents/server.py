"""The agent's gRPC server."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from . import wire
from .backends.base import (
    Availability,
    Context,
    TargetInfo,
    check_format,
    check_options,
    check_threads,
)
from .conditions import read_conditions
from .errors import AgentError, BadRequest, Busy, ErrorKind, Internal
from .machine import DeviceInfo, read_device
from .proto import agent_pb2 as pb
from .proto import agent_pb2_grpc as pb_grpc
from .results import ArtifactResult, Protocol
from .store import Store, check_digest
from .supervisor import Lane, Opening, RequestCancelled, activity, benchmark, discover, run
from .version import agent_version
from .worker import Artifact

log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["Agent"].full_name
_HEALTH = "/grpc.health.v1.Health/"
_DEFAULT_FORMAT = "onnx"
_DEFAULT_RUN_TIMEOUT_S = 60.0
_MAX_BATCH = 10_000
_MAX_SAMPLES = 5_000_000
# A request that waits or measures holds a thread; the others have to find one.
_THREADS = 48
_GRACE_S = 2.0
_LEAST_RESIDENT_BYTES = 256 * 1024 * 1024
_STATUS = {
    ErrorKind.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNSUPPORTED_OPERATOR: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNAUTHORISED: grpc.StatusCode.UNAUTHENTICATED,
}


@dataclass(frozen=True)
class Limits:
    """What one agent takes.

    Args:
        max_artifact_bytes: size of one artefact.
        max_resident_bytes: artefacts that one batch may hold loaded; None: a quarter of the
            memory, at least 256 MiB, for a runtime holds its graphs' weights and packed copies
            of them.
        max_store_bytes: size of the store; None: half of the disk's free space.
    """

    max_artifact_bytes: int = 1024 * 1024 * 1024
    max_resident_bytes: Optional[int] = None
    max_store_bytes: Optional[int] = None

    def resident_bytes(self, memory_bytes: int) -> int:
        """`max_resident_bytes` on a machine with so much memory."""
        return self.max_resident_bytes or max(memory_bytes // 4, _LEAST_RESIDENT_BYTES)


@dataclass(frozen=True)
class Security:
    """Who may use the agent.

    Args:
        token: required from every caller; empty: none.
        tls_cert, tls_key: PEM files of the server's certificate chain and key.
        tls_client_ca: PEM file; callers must show a certificate of this authority.
        insecure: listen off loopback with neither TLS nor token.
    """

    token: str = ""
    tls_cert: Optional[Path] = None
    tls_key: Optional[Path] = None
    tls_client_ca: Optional[Path] = None
    insecure: bool = False

    def check(self, host: str) -> None:
        """Refuses to open a machine to a network by accident.

        Raises:
            BadRequest: settings that contradict each other or the address.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise BadRequest("TLS needs both --tls-cert and --tls-key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise BadRequest("--tls-client-ca needs --tls-cert and --tls-key")
        guarded = self.token or self.tls_cert or self.insecure
        if not guarded and not is_loopback(host):
            raise BadRequest(
                f"{host} can be reached from the network: give --token-file or --tls-cert and "
                "--tls-key (or --insecure, to let anyone who reaches it run graphs here)"
            )

    def credentials(self) -> Optional[grpc.ServerCredentials]:
        """TLS credentials, or None.

        Raises:
            BadRequest: a file cannot be read.
        """
        if self.tls_cert is None or self.tls_key is None:
            return None
        key, chain = _read_pem(self.tls_key), _read_pem(self.tls_cert)
        authority = _read_pem(self.tls_client_ca) if self.tls_client_ca else None
        try:
            return grpc.ssl_server_credentials(
                [(key, chain)], authority, require_client_auth=authority is not None
            )
        except Exception as error:
            raise BadRequest(f"{self.tls_cert} and {self.tls_key} make no TLS: {error}") from error


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[V6]:PORT``.

    Raises:
        BadRequest: not an address.
    """
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise BadRequest(f"'{address}' is no address; give HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AgentServer:
    """An agent: its targets, its store, its processors and the gRPC server before them.

    Args:
        listen: ``HOST:PORT``; port 0 takes a free one.
        context: how backends are started.
        store: folder for artefacts; None: a temporary one.

    Raises:
        BadRequest: an address or settings that cannot be.
        AgentError: the address cannot be listened on.
    """

    def __init__(
        self,
        listen: str,
        context: Context,
        security: Optional[Security] = None,
        limits: Optional[Limits] = None,
        store: Optional[Path] = None,
    ) -> None:
        security, limits = security or Security(), limits or Limits()
        host, port = split_address(listen)
        security.check(host)
        credentials = security.credentials()
        _check_free(host, port)
        self.device = read_device(context.device_name)
        context = Context(self.device.name, context.simulate, context.seed, context.pace)
        self._stopping = threading.Event()
        self._store = Store(store, limits.max_artifact_bytes, limits.max_store_bytes)
        try:
            found = discover(context)
            self.targets = tuple(found)
            self._service = AgentService(
                self.device, found, context, self._store, limits, self._stopping
            )
            self._server = _make_server(self._service, security.token)
            self._health = self._server_health()
            self.address = _listen(self._server, host, port, credentials)
        except BaseException:
            self._store.close()
            raise

    def start(self) -> None:
        """Begins to serve."""
        self._server.start()
        for name in ("", _SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Ends running requests, their children and the server. May be called twice."""
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE_S).wait()
        self._service.close()
        self._store.close()

    def _server_health(self) -> health.HealthServicer:
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        return servicer


class AgentService(pb_grpc.AgentServicer):
    """The five calls of the wire."""

    def __init__(
        self,
        device: DeviceInfo,
        targets: Mapping[TargetInfo, str],
        context: Context,
        store: Store,
        limits: Limits,
        stopping: threading.Event,
    ) -> None:
        self._device = device
        self._targets = {target.name: target for target in targets}
        self._backend_of = {target.name: backend for target, backend in targets.items()}
        self._context = context
        self._store = store
        self._max_artifact_bytes = limits.max_artifact_bytes
        self._max_resident_bytes = limits.resident_bytes(device.memory_bytes)
        self._stopping = stopping
        self._lanes: dict[str, Lane] = {}
        self._lanes_mutex = threading.Lock()

    def close(self) -> None:
        """Ends every worker."""
        for lane in list(self._lanes.values()):
            lane.kill_worker()

    def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        with self._lanes_mutex:
            lanes = list(self._lanes.values())
        return pb.DescribeResponse(
            agent_version=agent_version(),
            protocol_version=wire.PROTOCOL_VERSION,
            device=wire.device_to_wire(self._device),
            targets=[wire.target_to_wire(target) for target in self._targets.values()],
            max_artifact_bytes=self._max_artifact_bytes,
            max_resident_bytes=self._max_resident_bytes,
            chunk_bytes=wire.CHUNK_BYTES,
            activity=wire.activity_to_wire(activity(lanes)),
            conditions=wire.conditions_to_wire(read_conditions()),
        )

    def Missing(self, request: pb.MissingRequest, context: Any) -> pb.MissingResponse:  # noqa: N802
        with _errors_as_status(context):
            return pb.MissingResponse(sha256=self._store.missing(request.sha256))

    def Upload(  # noqa: N802
        self, request_iterator: Iterator[pb.UploadRequest], context: Any
    ) -> pb.UploadResponse:
        with _errors_as_status(context):
            first = next(request_iterator, None)
            if first is None:
                raise BadRequest("an upload without a message")
            if not self._store.missing([first.sha256]):
                return pb.UploadResponse(already_there=True)

            def chunks() -> Iterator[bytes]:
                yield first.chunk
                for request in request_iterator:
                    yield request.chunk

            self._store.add(first.sha256, first.size, chunks())
            return pb.UploadResponse()

    def Benchmark(self, request: pb.BenchmarkRequest, context: Any) -> Iterator[pb.BenchmarkEvent]:  # noqa: N802
        try:
            target, opening = self._open(request.target)
            format = request.format or _DEFAULT_FORMAT
            check_format(target.name, target.formats, format)
            protocol = wire.protocol_from_wire(request.protocol)
            digests = _checked_batch(request.sha256)
            _check_samples(len(digests), protocol)
            with self._store.pinned(digests) as paths:
                self._check_size(target, paths)
                artifacts = [Artifact(digest, str(path)) for digest, path in zip(digests, paths)]
                yield from self._benchmark(target, opening, artifacts, format, protocol, context)
        except AgentError as error:
            yield _failed(error)
        except RequestCancelled:
            log.info("%s: cancelled", request.target.name)
            if self._stopping.is_set():
                yield _failed(Busy("the agent is shutting down"))
        except Exception as error:
            log.exception("Benchmark failed")
            yield _failed(Internal(f"{type(error).__name__}: {error}"))

    def Run(self, request: pb.RunRequest, context: Any) -> pb.RunResponse:  # noqa: N802
        try:
            target, opening = self._open(request.target)
            format = request.format or _DEFAULT_FORMAT
            check_format(target.name, target.formats, format)
            inputs = wire.tensors_from_wire(request.inputs)
            check_digest(request.sha256)
            with self._store.pinned([request.sha256]) as (path,):
                outputs, unit = run(
                    self._lane(target),
                    opening,
                    Artifact(request.sha256, str(path)),
                    format,
                    inputs,
                    request.timeout_s or _DEFAULT_RUN_TIMEOUT_S,
                    self._cancelled(context),
                )
            return pb.RunResponse(outputs=wire.tensors_to_wire(outputs), compute_unit=unit)
        except AgentError as error:
            return pb.RunResponse(error=wire.error_to_wire(error))
        except RequestCancelled:
            return pb.RunResponse(error=wire.error_to_wire(Busy("the request was cancelled")))
        except Exception as error:
            log.exception("Run failed")
            internal = Internal(f"{type(error).__name__}: {error}")
            return pb.RunResponse(error=wire.error_to_wire(internal))

    def _benchmark(
        self,
        target: TargetInfo,
        opening: Opening,
        artifacts: Sequence[Artifact],
        format: str,
        protocol: Protocol,
        context: Any,
    ) -> Iterator[pb.BenchmarkEvent]:
        log.info("%s: %d artefacts, %d rounds", opening.name, len(artifacts), protocol.rounds)
        failed = 0
        for event in benchmark(
            self._lane(target),
            opening,
            artifacts,
            format,
            protocol,
            target.resident,
            self._cancelled(context),
        ):
            failed += isinstance(event, ArtifactResult) and event.error is not None
            yield wire.event_to_wire(event)
        log.info("%s: done, %d of %d failed", opening.name, failed, len(artifacts))

    def _open(self, spec: pb.TargetSpec) -> tuple[TargetInfo, Opening]:
        target = self._targets.get(spec.name)
        if target is None:
            raise BadRequest(
                f"this agent has no target '{spec.name}'; it has {', '.join(self._targets)}"
            )
        if target.availability == Availability.UNAVAILABLE:
            raise BadRequest(f"target '{target.name}' is not available: {target.reason}")
        threads = spec.threads or 1
        check_threads(target.name, threads, target.max_threads)
        check_options(target.name, target.options, spec.options)
        options = tuple(sorted(spec.options.items()))
        return target, Opening(self._backend_of[target.name], target.name, options, threads)

    def _check_size(self, target: TargetInfo, paths: Sequence[Path]) -> None:
        size = sum(path.stat().st_size for path in paths)
        if target.resident and size > self._max_resident_bytes:
            raise BadRequest(
                f"a batch of {size} bytes is too much to keep loaded; "
                f"this agent takes {self._max_resident_bytes}: send smaller batches"
            )

    def _lane(self, target: TargetInfo) -> Lane:
        # A simulation on a virtual clock is work for this machine's own processor, and would
        # disturb what is measured there; one that waits as a board would hardly is.
        simulated = target.availability == Availability.SIMULATED
        virtual = simulated and self._context.pace == "virtual"
        emulated = target.availability == Availability.EMULATED
        own = target.name if simulated else target.processor
        key = "cpu" if virtual or emulated else own
        with self._lanes_mutex:
            return self._lanes.setdefault(key, Lane(self._context))

    def _cancelled(self, context: Any) -> Callable[[], bool]:
        return lambda: self._stopping.is_set() or not context.is_active()


def _checked_batch(digests: Sequence[str]) -> list[str]:
    if not digests:
        raise BadRequest("a batch without artefacts")
    if len(digests) > _MAX_BATCH:
        raise BadRequest(f"a batch of {len(digests)} artefacts; at most {_MAX_BATCH}")
    for digest in digests:
        check_digest(digest)
    if len(set(digests)) != len(digests):
        raise BadRequest("an artefact is twice in the batch")
    return list(digests)


def _check_samples(artifacts: int, protocol: Protocol) -> None:
    samples = artifacts * protocol.rounds * protocol.calls_per_visit
    if samples > _MAX_SAMPLES:
        raise BadRequest(
            f"{samples} samples in one batch; at most {_MAX_SAMPLES}: take fewer rounds"
        )


def _failed(error: AgentError) -> pb.BenchmarkEvent:
    return pb.BenchmarkEvent(finished=pb.Finished(error=wire.error_to_wire(error)))


@contextlib.contextmanager
def _errors_as_status(context: Any) -> Iterator[None]:
    try:
        yield
    except AgentError as error:
        context.abort(_STATUS.get(error.kind, grpc.StatusCode.INTERNAL), str(error))


class _TokenInterceptor(grpc.ServerInterceptor):
    """Lets only callers with the token through; health checks need none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        def refuse(request: Any, context: Any) -> None:
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "the agent wants a token, and another one than this",
            )

        self._refuse = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(_HEALTH):
            return continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata).get(wire.TOKEN_METADATA, "")
        if hmac.compare_digest(given.encode(), self._expected):
            return continuation(handler_call_details)
        return self._refuse


def _make_server(service: AgentService, token: str) -> grpc.Server:
    server = grpc.server(
        ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="rpc"),
        interceptors=[_TokenInterceptor(token)] if token else [],
        options=[
            # Two agents on one port would share its requests without either knowing.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
            # Callers ping while a long batch is measured; do not take that for an attack.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A caller whose cable is pulled frees the processor.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
    pb_grpc.add_AgentServicer_to_server(service, server)
    return server


def _check_free(host: str, port: int) -> None:
    # gRPC does not say why an address cannot be had.
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _cannot_listen(host, port, error.strerror or str(error)) from error


def _cannot_listen(host: str, port: int, reason: str) -> AgentError:
    return AgentError(
        f"cannot listen on {_join(host, port)}: {reason}; choose another with --listen HOST:PORT"
    )


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(
    server: grpc.Server, host: str, port: int, credentials: Optional[grpc.ServerCredentials]
) -> str:
    try:
        if credentials is None:
            bound = server.add_insecure_port(_join(host, port))
        else:
            bound = server.add_secure_port(_join(host, port), credentials)
    except RuntimeError as error:
        raise _cannot_listen(host, port, "address in use, or bad TLS files") from error
    if bound == 0:
        raise _cannot_listen(host, port, "address in use, or bad TLS files")
    return _join(host, bound)


def _read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path} cannot be read: {error.strerror}") from error
