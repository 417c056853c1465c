"""Random and mutated messages over all calls of an agent: it stays alive, and every answer is
typed.

    python benchmarks/fuzz_wire.py --messages 20000 --json

A message is random bytes, or a sound request with bytes or fields changed, sent as it is in one
or several parts. Every answer has to be sound, or one of the typed errors; a call that the agent
fails itself (INTERNAL, UNKNOWN), that breaks the connection or never ends counts as a failure.
Prints counts by call and answer, and the agent's peak memory.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from hurricane.agents.proto import agent_pb2 as pb

TYPED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.NOT_FOUND,  # a health check of another service
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
TIMEOUT_S = 30.0
TARGET = "sim-hexagon685-dsp"
_ARTIFACT = b"an artefact that is none"
_DIGEST = hashlib.sha256(_ARTIFACT).hexdigest()
_AGENT = "/hurricane.agent.v1.Agent/"
_PROTOCOL = pb.Protocol(rounds=1, calls_per_visit=1, warmup_calls=1, artifact_timeout_s=1.0)
_TARGET = pb.TargetSpec(name=TARGET, threads=1, options={"noise": "0.1"})
SOUND: dict[str, list[list[bytes]]] = {
    f"{_AGENT}Describe": [[b""]],
    f"{_AGENT}Missing": [[pb.MissingRequest(sha256=[_DIGEST, "0" * 64]).SerializeToString()]],
    f"{_AGENT}Upload": [
        [
            pb.UploadRequest(
                sha256=_DIGEST, size=len(_ARTIFACT), chunk=_ARTIFACT[:8]
            ).SerializeToString(),
            pb.UploadRequest(chunk=_ARTIFACT[8:]).SerializeToString(),
        ]
    ],
    f"{_AGENT}Benchmark": [
        [
            pb.BenchmarkRequest(
                sha256=[_DIGEST], target=_TARGET, protocol=_PROTOCOL, format="onnx"
            ).SerializeToString()
        ]
    ],
    f"{_AGENT}Run": [
        [
            pb.RunRequest(
                sha256=_DIGEST,
                target=_TARGET,
                format="onnx",
                inputs=[pb.Tensor(name="x", dtype="float32", shape=[1, 2], data=bytes(8))],
                timeout_s=1.0,
            ).SerializeToString()
        ]
    ],
    "/grpc.health.v1.Health/Check": [[b""], [b"\x0a\x18hurricane.agent.v1.Agent"]],
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
        [b"\x3a\x00"],
        [b"\x22\x18hurricane.agent.v1.Agent"],
    ],
}
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)
_SPLICES = (
    b"\xff" * 10,
    b"\x80" * 12,
    b"\x00" * 5,
    b"\x0b",
    b"\x0c",
    b"../../etc/passwd",
    b"\x1b[2J",
)


def messages(count: int, seed: int) -> Iterator[tuple[str, list[bytes]]]:
    """Calls with what is sent in each of them."""
    chance = random.Random(seed)
    methods = list(SOUND)
    for number in range(count):
        method = methods[number % len(methods)]
        parts = list(chance.choice(SOUND[method]))
        kind = chance.random()
        if kind < 0.2:
            parts = [chance.randbytes(chance.randrange(200)) for _ in range(chance.randrange(3))]
        elif kind < 0.3:
            parts = list(chance.choice(SOUND[chance.choice(methods)]))  # of another call
        else:
            parts = [_changed(part, chance) for part in parts]
        if chance.random() < 0.1:
            parts += parts
        yield method, parts


def _changed(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        way = chance.randrange(5)
        if way == 0 and data:
            data[place % len(data)] = chance.choice((*_NUMBERS, chance.randrange(256)))
        elif way == 1:
            data[place:place] = chance.choice(_SPLICES)
        elif way == 2:
            del data[place : place + chance.randrange(1, 9)]
        elif way == 3:
            data[place:place] = data[: chance.randrange(1, 40)]
        elif data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data)


def send(channel: grpc.Channel, method: str, parts: Sequence[bytes]) -> tuple[str, bool]:
    """How a call ended: its status with the kind of an error in the answer, and whether that is
    as it should be."""
    call = channel.stream_stream(method)(iter(parts), timeout=TIMEOUT_S)
    try:
        answer = [b"", *call][-1]
    except grpc.RpcError:
        return call.code().name, call.code() in TYPED
    kind = 0
    if method == f"{_AGENT}Run":
        kind = pb.RunResponse.FromString(answer).error.kind
    elif method == f"{_AGENT}Benchmark":
        kind = pb.BenchmarkEvent.FromString(answer).finished.error.kind
    name = pb.ErrorKind.Name(kind) if kind else ""
    return f"OK {name}".strip(), kind not in (pb.INTERNAL, pb.RUNTIME_CRASHED)


def fuzz(address: str, count: int, seed: int) -> tuple[collections.Counter, list[dict[str, str]]]:
    """Counts by call and answer, and what was not answered as it should be."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    failures = []
    with grpc.insecure_channel(address) as channel:
        for method, parts in messages(count, seed):
            ended, typed = send(channel, method, parts)
            counts[method.rpartition("/")[2], ended] += 1
            if not typed:
                sent = " ".join(part.hex() for part in parts)
                failures.append({"call": method, "answer": ended, "sent": sent})
        # And it does its work.
        assert send(channel, f"{_AGENT}Describe", [b""]) == ("OK", True)
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "hurricane.agents.cli", "serve", "--listen", "127.0.0.1:0"]
    agent = subprocess.Popen(
        [*command, "--simulate", "hexagon685-dsp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert agent.stdout is not None
    try:
        address = agent.stdout.readline().split()[2].rstrip(":")
        counts, failures = fuzz(address, arguments.messages, arguments.seed)
        alive = agent.poll() is None
        status = Path(f"/proc/{agent.pid}/status").read_text()
    finally:
        agent.terminate()
        agent.wait()
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    result = {
        "messages": sum(counts.values()),
        "alive": alive,
        "failures": len(failures),
        "peak_mib": int(peak_kib) // 1024,
        "answers": {f"{call} {answer}": n for (call, answer), n in sorted(counts.items())},
        "first_failures": failures[:5],
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
