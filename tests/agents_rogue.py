"""An agent for tests that answers as it likes: a gRPC server of its own that shares no code with
the real one. What it answers is a function of the request; an answer may be bytes as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.proto import agent_pb2_grpc as pb_grpc

TARGET = "cpu-rogue-fp32"
SIMULATED = "sim-rogue"
MAX_BYTES = 128 * 1024 * 1024
Answer = Any  # a message, or bytes


def description() -> pb.DescribeResponse:
    """What an honest agent of this kind says of itself."""
    common = {"device": "rogue", "processor": "cpu", "runtime": "rogue", "precision": "fp32"}
    return pb.DescribeResponse(
        agent_version="1.0",
        protocol_version=1,
        device=pb.Device(name="rogue", model="R1", system="Linux", cores=4, memory_bytes=2**32),
        targets=[
            pb.Target(
                name=name,
                availability=availability,
                formats=["onnx"],
                resident=True,
                max_threads=4,
                **common,
            )
            for name, availability in ((TARGET, pb.AVAILABLE), (SIMULATED, pb.SIMULATED))
        ],
        max_artifact_bytes=2**30,
        max_resident_bytes=2**30,
        chunk_bytes=2**20,
        activity=pb.Activity(waiting=1),
        conditions=pb.Conditions(temperature_c=40, frequency_mhz=1500, load_1m=0.5),
    )


def events(request: pb.BenchmarkRequest) -> list[pb.BenchmarkEvent]:
    """What an honest agent answers to a batch; every call takes 10 µs."""
    calls = request.protocol.rounds * request.protocol.calls_per_visit
    conditions = pb.Conditions(temperature_c=40, frequency_mhz=1500, governor="performance")
    around = pb.BatchConditions(before=conditions, after=conditions)
    told = [
        pb.BenchmarkEvent(progress=pb.Progress(step="measure", done=1, total=2)),
        pb.BenchmarkEvent(conditions=around),
    ]
    for digest in request.sha256:
        result = pb.ArtifactResult(
            sha256=digest,
            wall_ms=[0.01] * calls,
            device_ms=[0.005] * calls,
            load_ms=1,
            first_call_ms=0.02,
            compute_unit="CPU",
            flags=["fallback:cpu"],
        )
        told.append(pb.BenchmarkEvent(result=result))
    return [*told, pb.BenchmarkEvent(finished=pb.Finished(elapsed_ms=1))]


@dataclass(eq=False)
class Rogue:
    """What an agent answers; anything may be replaced. An exception ends the call.

    Attributes:
        describe, missing, upload, run: give one answer.
        benchmark: gives the answers to a batch.
    """

    describe: Callable[[Any], Answer] = lambda request: description()
    missing: Callable[[Any], Answer] = lambda request: pb.MissingResponse(sha256=request.sha256)
    upload: Callable[[Any], Answer] = lambda requests: [*requests] and pb.UploadResponse()
    benchmark: Callable[[Any], Any] = events
    run: Callable[[Any], Answer] = lambda request: pb.RunResponse()

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        def streamed(request: Any, context: grpc.ServicerContext) -> Iterator[Answer]:
            yield from self.benchmark(request)

        def handler(make: Any, answer: Any, request: Any) -> grpc.RpcMethodHandler:
            return make(answer, request.FromString, _as_bytes)

        single = grpc.unary_unary_rpc_method_handler
        return {
            "Describe": handler(single, lambda r, c: self.describe(r), pb.DescribeRequest),
            "Missing": handler(single, lambda r, c: self.missing(r), pb.MissingRequest),
            "Upload": handler(
                grpc.stream_unary_rpc_method_handler, lambda r, c: self.upload(r), pb.UploadRequest
            ),
            "Benchmark": handler(
                grpc.unary_stream_rpc_method_handler, streamed, pb.BenchmarkRequest
            ),
            "Run": handler(single, lambda r, c: self.run(r), pb.RunRequest),
        }

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serves on loopback; gives the address."""
        server = grpc.server(
            ThreadPoolExecutor(max_workers=8),
            options=[
                ("grpc.max_send_message_length", MAX_BYTES),
                ("grpc.max_receive_message_length", MAX_BYTES),
            ],
        )
        name = pb.DESCRIPTOR.services_by_name["Agent"].full_name
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, self._handlers())]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


class Meddler(Rogue):
    """Passes everything on to an honest agent, and meddles with what that answers.

    Args:
        address: of the honest one.
        metadata: its token, as gRPC takes it.
        meddle: takes the number of a batch, from 0, its request and the honest answers, and gives
            others.
    """

    def __init__(
        self,
        address: str,
        metadata: Any,
        meddle: Callable[[int, pb.BenchmarkRequest, list[pb.BenchmarkEvent]], Any],
    ) -> None:
        channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", MAX_BYTES)])
        honest = pb_grpc.AgentStub(channel)
        self.batches = 0

        def benchmark(request: pb.BenchmarkRequest) -> Any:
            answers = list(honest.Benchmark(request, metadata=metadata))
            number, self.batches = self.batches, self.batches + 1
            return meddle(number, request, answers)

        super().__init__(
            describe=lambda request: honest.Describe(request, metadata=metadata),
            missing=lambda request: honest.Missing(request, metadata=metadata),
            upload=lambda requests: honest.Upload(requests, metadata=metadata),
            benchmark=benchmark,
            run=lambda request: honest.Run(request, metadata=metadata),
        )


def _as_bytes(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
