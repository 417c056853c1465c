"""The agent's gRPC server."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import grpc
import grpc.aio
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
from .errors import AgentError, BadRequest, Busy, Internal, TimedOut
from .eventloop import call_in_loop, within
from .guard import Guard
from .machine import DeviceInfo, read_device
from .proto import agent_pb2 as pb
from .proto import agent_pb2_grpc as pb_grpc
from .results import ArtifactResult, Event, Protocol
from .security import Security, split_address
from .store import Store, check_digest
from .supervisor import (
    MAX_WAITING,
    Batch,
    Discovery,
    Lane,
    Opening,
    RequestCancelled,
    activity,
    benchmark,
    discover,
    find_user,
    run,
)
from .version import agent_version

try:
    import resource
except ImportError:  # not on Windows
    resource = None

log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["Agent"].full_name
_DEFAULT_RUN_TIMEOUT_S = 60.0
_MAX_BATCH = 10_000
_MAX_SAMPLES = 5_000_000  # of a batch
_MAX_SAMPLES_OF_ONE = 1_000_000  # of an artefact: one message holds them, twice over
_MAX_UPLOADS = 32  # at once
_MAX_CHUNK_BYTES = 4 * 1024 * 1024
# What a caller on a poor network still manages; a slower upload is given up.
_SLOWEST_UPLOAD_BYTES_S = 64 * 1024
_UPLOAD_S = 30.0
_SPARE_FILES = 256  # for workers, artefacts and Python
_MAX_CONNECTIONS = 8192
_GRACE_S = 2.0
_MAX_NAME = 80  # characters of a caller's words in an error
_LEAST_RESIDENT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """What one agent takes.

    Args:
        max_artifact_bytes: size of one artefact.
        max_resident_bytes: artefacts that one batch may hold loaded; None: a quarter of the
            memory, at least 256 MiB, for a runtime holds its graphs' weights and packed copies
            of them.
        max_store_bytes: size of the store; None: half of the disk's free space.
        max_timeout_s: for loading a graph, for a visit to it and for a run, whatever is asked.
        max_batch_s: for a whole batch.
    """

    max_artifact_bytes: int = 1024 * 1024 * 1024
    max_resident_bytes: Optional[int] = None
    max_store_bytes: Optional[int] = None
    max_timeout_s: float = 600.0
    max_batch_s: float = 6 * 3600.0

    def resident_bytes(self, memory_bytes: int) -> int:
        """`max_resident_bytes` on a machine with so much memory."""
        return self.max_resident_bytes or max(memory_bytes // 4, _LEAST_RESIDENT_BYTES)

    def timeout_s(self, asked_s: float, default_s: float) -> float:
        """A time limit that a request asks for, within what this agent allows.

        Raises:
            BadRequest: it is no time.
        """
        if not 0 <= asked_s < math.inf:
            raise BadRequest(f"a time limit of {asked_s} s is none")
        return min(asked_s or default_s, self.max_timeout_s)


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
        if context.user:
            find_user(context.user)
        _check_free(host, port)
        self.device = read_device(context.device_name)
        context = replace(context, device_name=self.device.name)
        self._stopping = threading.Event()
        self._store = Store(store, limits.max_artifact_bytes, limits.max_store_bytes)
        try:
            found = discover(context)
            self.targets = found.targets
            self.isolation = found.isolation
            self._service = AgentService(
                self.device, found, context, self._store, limits, self._stopping
            )
            self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
            self._server, self.address = call_in_loop(
                self._make(security.token, host, port, credentials)
            )
        except BaseException:
            self._store.close()
            raise

    def start(self) -> None:
        """Begins to serve."""
        call_in_loop(self._start())

    def stop(self) -> None:
        """Ends running requests, their children and the server. May be called twice."""
        self._stopping.set()
        call_in_loop(self._stop())
        self._service.close()
        self._store.close()

    async def _make(
        self, token: str, host: str, port: int, credentials: Optional[grpc.ServerCredentials]
    ) -> tuple[grpc.aio.Server, str]:
        server = grpc.aio.server(interceptors=[Guard(token, self._stopping)], options=_options())
        pb_grpc.add_AgentServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server, _listen(server, host, port, credentials)

    async def _start(self) -> None:
        await self._server.start()
        for name in ("", _SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def _stop(self) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_GRACE_S)


class AgentService(pb_grpc.AgentServicer):
    """The five calls of the wire. Their requests have passed the `Guard`."""

    def __init__(
        self,
        device: DeviceInfo,
        found: Discovery,
        context: Context,
        store: Store,
        limits: Limits,
        stopping: threading.Event,
    ) -> None:
        self._device = device
        self._found = found
        self._targets = {target.name: target for target in found.targets}
        self._context = context
        self._store = store
        self._limits = limits
        self._max_resident_bytes = limits.resident_bytes(device.memory_bytes)
        self._stopping = stopping
        self._lanes: dict[str, Lane] = {}
        self._lanes_mutex = threading.Lock()
        self._uploads = 0
        # Requests that measure or wait for their turn have a thread each; files need some, too.
        lines = max(1, len(self._targets)) * (MAX_WAITING + 2)
        self._threads = ThreadPoolExecutor(lines, thread_name_prefix="request")
        self._files = ThreadPoolExecutor(4, thread_name_prefix="files")

    def close(self) -> None:
        """Ends every worker."""
        for lane in list(self._lanes.values()):
            lane.kill_worker()
        for pool in (self._threads, self._files):
            pool.shutdown(wait=False)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        with self._lanes_mutex:
            lanes = list(self._lanes.values())
        return pb.DescribeResponse(
            agent_version=agent_version(),
            protocol_version=wire.PROTOCOL_VERSION,
            device=wire.device_to_wire(self._device),
            targets=[wire.target_to_wire(target) for target in self._found.targets],
            max_artifact_bytes=self._limits.max_artifact_bytes,
            max_resident_bytes=self._max_resident_bytes,
            chunk_bytes=wire.CHUNK_BYTES,
            activity=wire.activity_to_wire(activity(lanes)),
            conditions=wire.conditions_to_wire(read_conditions()),
            isolation=wire.isolation_to_wire(self._found.isolation),
        )

    async def Missing(self, request: pb.MissingRequest, context: Any) -> pb.MissingResponse:  # noqa: N802
        if len(request.sha256) > _MAX_BATCH:
            raise BadRequest(f"{len(request.sha256)} digests at once; at most {_MAX_BATCH}")
        missing = await self._of_files(self._store.missing, list(request.sha256))
        return pb.MissingResponse(sha256=missing)

    async def Upload(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadRequest], context: Any
    ) -> pb.UploadResponse:
        try:
            first = await request_iterator.__anext__()
        except StopAsyncIteration:
            raise BadRequest("an upload without a message") from None
        if not await self._of_files(self._store.missing, [first.sha256]):
            return pb.UploadResponse(already_there=True)
        if self._uploads >= _MAX_UPLOADS:
            raise Busy(f"{self._uploads} uploads go on at this moment; try later")
        self._uploads += 1
        try:
            await within(_upload_limit_s(first.size), self._take(first, request_iterator))
        except asyncio.TimeoutError:
            raise TimedOut(f"artefact {first.sha256[:12]} did not arrive in time") from None
        finally:
            self._uploads -= 1
        return pb.UploadResponse()

    async def Benchmark(  # noqa: N802
        self, request: pb.BenchmarkRequest, context: Any
    ) -> AsyncIterator[pb.BenchmarkEvent]:
        gone = threading.Event()
        events = self._benchmark(request, context.peer(), self._cancelled(gone))
        loop = asyncio.get_running_loop()
        step: Optional[asyncio.Future[Optional[pb.BenchmarkEvent]]] = None
        try:
            while True:
                step = loop.run_in_executor(self._threads, next, events, None)
                event = await asyncio.shield(step)
                if event is None:
                    return
                yield event
        finally:
            gone.set()
            if step is not None:
                await asyncio.wait([step])
            # What it holds is given back now, and not when somebody collects garbage.
            await loop.run_in_executor(self._threads, events.close)

    async def Run(self, request: pb.RunRequest, context: Any) -> pb.RunResponse:  # noqa: N802
        gone = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._run, request, context.peer(), self._cancelled(gone)
        )
        try:
            return await asyncio.shield(work)
        finally:
            gone.set()

    async def _of_files(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Work on the store, which may wait for a disk."""
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)

    async def _take(
        self, first: pb.UploadRequest, requests: AsyncIterator[pb.UploadRequest]
    ) -> None:
        room = self._store.incoming(first.sha256, first.size)
        incoming = await self._of_files(room.__enter__)
        try:
            await self._of_files(incoming.write, _chunk(first))
            async for request in requests:
                await self._of_files(incoming.write, _chunk(request))
            await self._of_files(incoming.finish)
        finally:
            await self._of_files(room.__exit__, *sys.exc_info())

    def _benchmark(
        self, request: pb.BenchmarkRequest, caller: str, cancelled: Callable[[], bool]
    ) -> Generator[pb.BenchmarkEvent, None, None]:
        """Events of a batch, the last one whether it failed."""
        try:
            target, opening = self._open(request.target, caller)
            digests = _checked_batch(request.sha256)
            protocol = self._protocol(request.protocol, len(digests))
            if protocol.rounds and not target.availability.timed:
                what = target.availability.name.lower()
                raise BadRequest(f"{target.name} is {what}: it has no latency; ask for no round")
            if not (protocol.rounds or target.resident):
                raise BadRequest(f"{target.name} keeps nothing loaded: ask for a round at least")
            batch = Batch(
                digests,
                _format_of(target, request.format),
                protocol,
                target.resident,
                self._limits.max_batch_s,
            )
            with self._store.pinned(digests) as paths:
                self._check_size(target, paths)
                yield from self._measured(self._lane(target), opening, batch, cancelled)
        except AgentError as error:
            yield _failed(error)
        except RequestCancelled:
            log.info("%s: cancelled", request.target.name)
            if self._stopping.is_set():
                yield _failed(Busy("the agent is shutting down"))
        except Exception:
            log.exception("Benchmark failed")
            yield _failed(Internal("the agent failed; its log says why"))

    def _measured(
        self, lane: Lane, opening: Opening, batch: Batch, cancelled: Callable[[], bool]
    ) -> Iterator[pb.BenchmarkEvent]:
        size, rounds = len(batch.artifacts), batch.protocol.rounds
        log.info("%s: %d artefacts, %d rounds", opening.name, size, rounds)
        failed = 0
        event: Event
        for event in benchmark(lane, opening, batch, self._store.open, cancelled):
            failed += isinstance(event, ArtifactResult) and event.error is not None
            yield wire.event_to_wire(event)
        log.info("%s: done, %d of %d failed", opening.name, failed, size)

    def _run(
        self, request: pb.RunRequest, caller: str, cancelled: Callable[[], bool]
    ) -> pb.RunResponse:
        try:
            target, opening = self._open(request.target, caller)
            inputs = wire.tensors_from_wire(request.inputs)
            check_digest(request.sha256)
            with self._store.pinned([request.sha256]):
                outputs, unit = run(
                    self._lane(target),
                    opening,
                    request.sha256,
                    _format_of(target, request.format),
                    inputs,
                    self._limits.timeout_s(request.timeout_s, _DEFAULT_RUN_TIMEOUT_S),
                    self._store.open,
                    cancelled,
                )
            return pb.RunResponse(outputs=wire.tensors_to_wire(outputs), compute_unit=unit)
        except AgentError as error:
            return pb.RunResponse(error=wire.error_to_wire(error))
        except RequestCancelled:
            return pb.RunResponse(error=wire.error_to_wire(Busy("the request was cancelled")))
        except Exception:
            log.exception("Run failed")
            internal = Internal("the agent failed; its log says why")
            return pb.RunResponse(error=wire.error_to_wire(internal))

    def _protocol(self, asked: pb.Protocol, artifacts: int) -> Protocol:
        protocol = wire.protocol_from_wire(asked)
        samples = protocol.rounds * protocol.calls_per_visit
        if samples > _MAX_SAMPLES_OF_ONE or samples * artifacts > _MAX_SAMPLES:
            raise BadRequest(
                f"{samples} samples of each of {artifacts} artefacts; at most "
                f"{_MAX_SAMPLES_OF_ONE} of one and {_MAX_SAMPLES} in a batch: take fewer rounds"
            )
        limit_s = min(protocol.artifact_timeout_s, self._limits.max_timeout_s)
        return replace(protocol, artifact_timeout_s=limit_s)

    def _open(self, spec: pb.TargetSpec, caller: str) -> tuple[TargetInfo, Opening]:
        target = self._targets.get(spec.name)
        if target is None:
            raise BadRequest(
                f"this agent has no target '{spec.name[:_MAX_NAME]}'; "
                f"it has {', '.join(self._targets)}"
            )
        if target.availability == Availability.UNAVAILABLE:
            raise BadRequest(f"target '{target.name}' is not available: {target.reason}")
        threads = spec.threads or 1
        check_threads(target.name, threads, target.max_threads)
        check_options(target.name, target.options, spec.options)
        options = tuple(sorted(spec.options.items()))
        backend = self._found.backend_of[target]
        return target, Opening(backend, target.name, options, threads, caller)

    def _check_size(self, target: TargetInfo, paths: Sequence[Path]) -> None:
        size = sum(path.stat().st_size for path in paths)
        if target.resident and size > self._max_resident_bytes:
            raise BadRequest(
                f"a batch of {size} bytes is too much to keep loaded; "
                f"this agent takes {self._max_resident_bytes}: send smaller batches"
            )

    def _lane(self, target: TargetInfo) -> Lane:
        # A simulation on a virtual clock, an emulator, an estimator and a compiler are work for
        # this machine's own processor, and would disturb what is measured there; a simulation that
        # waits as a board would hardly is.
        simulated = target.availability == Availability.SIMULATED
        virtual = simulated and self._context.pace == "virtual"
        own = target.name if simulated else target.processor
        key = "cpu" if virtual or target.availability.computed else own
        with self._lanes_mutex:
            return self._lanes.setdefault(key, Lane(self._context))

    def _cancelled(self, gone: threading.Event) -> Callable[[], bool]:
        return lambda: self._stopping.is_set() or gone.is_set()


def _chunk(request: pb.UploadRequest) -> bytes:
    if len(request.chunk) > _MAX_CHUNK_BYTES:
        raise BadRequest(f"a chunk of {len(request.chunk)} bytes; at most {_MAX_CHUNK_BYTES}")
    return request.chunk


def _upload_limit_s(size: int) -> float:
    return _UPLOAD_S + size / _SLOWEST_UPLOAD_BYTES_S


def _format_of(target: TargetInfo, asked: str) -> str:
    """The format of a request's artefacts: what is asked for, or the target's first."""
    format = asked or target.formats[0]
    check_format(target.name, target.formats, format)
    return format


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


def _failed(error: AgentError) -> pb.BenchmarkEvent:
    return pb.BenchmarkEvent(finished=pb.Finished(error=wire.error_to_wire(error)))


def _options() -> list[tuple[str, int]]:
    return [
        # Two agents on one port would share its requests without either knowing.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", 100),  # of a connection; a client has one or two
        # Beyond so many connections new ones are refused, before files for workers run out.
        ("grpc.max_allowed_incoming_connections", _max_connections()),
        ("grpc.server_handshake_timeout_ms", 10_000),
        # Callers ping while a long batch is measured; do not take that for an attack.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A caller who is gone frees the processor within ten seconds: the first timeout is that
        # of the connection, the second that of an answer to a ping.
        ("grpc.keepalive_time_ms", 4_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.http2.ping_timeout_ms", 3_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _max_connections() -> int:
    """As many as leave files for the rest, once this process may open all that it can."""
    if resource is None:
        return _MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_CONNECTIONS + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(16, min(_MAX_CONNECTIONS, soft - _SPARE_FILES))


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
    server: grpc.aio.Server, host: str, port: int, credentials: Optional[grpc.ServerCredentials]
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
