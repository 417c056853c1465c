"""Graphs that ask for files and memory of the board get nothing, from any runtime.

Every attack is sent to an agent that was started in ``/`` and to one in a folder of its own, to
every target, and, past the check, to the runtimes in their sandbox alone.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")

from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import AgentError, ErrorKind
from hurricane.agents.proto import agent_pb2 as pb
from hurricane.agents.proto import agent_pb2_grpc as pb_grpc
from hurricane.agents.supervisor import discover

from .agents_support import Agent, serving
from .onnx_attacks import (
    Canary,
    endless_graphs,
    external_data_attacks,
    refused_graphs,
    relu_model,
)

pytestmark = pytest.mark.process

UNCHECKED = Path(__file__).with_name("agents_unchecked_backend.py")
# Kept loaded: the tests of one target share a worker.
ONCE = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1, keep_loaded=True)
SIZE = 64
SIMULATED = "hexagon685-dsp"  # one stands for all: they read graphs with the same code
# Their names do not depend on where the canary lies.
ATTACKS = [name for name, _ in external_data_attacks(Canary(SIZE, "/canary"))]
REFUSED = {ErrorKind.BAD_REQUEST, ErrorKind.UNSUPPORTED_OPERATOR}


USABLE = {
    target.name: target.availability
    for target in discover(Context(simulate=(SIMULATED,))).targets
    if target.availability != Availability.UNAVAILABLE and "onnx" in target.formats
}


def once(target: str) -> Protocol:
    """One call; a target without times only loads."""
    timed = USABLE.get(target, Availability.AVAILABLE).timed
    return ONCE if timed else replace(ONCE, rounds=0)


# Of module scope, so that all tests of a target run one after the other.
each_target = pytest.mark.parametrize("target", list(USABLE), scope="module")
each_runtime = pytest.mark.parametrize(
    "target",
    [f"cpu-unchecked-{name.split('-')[1]}-fp32" for name in USABLE if name.startswith("cpu-")],
    scope="module",
)


@dataclass(frozen=True)
class Board:
    """An agent, a client of it, and the secret that lies about."""

    agent: Agent
    client: AgentClient
    secret: bytes
    attacks: dict[str, bytes]
    folder: Path


@pytest.fixture(scope="module", params=["root", "elsewhere"])
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    secret = secrets.token_hex(SIZE // 2).encode()
    folder = tmp_path_factory.mktemp("board")
    store = folder / "store"
    store.mkdir()
    canary = folder / "canary"
    canary.write_bytes(secret * 4)
    plain = secrets.token_hex(32)  # as an artefact of another client is called
    for where in (store, folder):
        (where / "symlink").symlink_to(canary)
        os.link(canary, where / "hard-link")
        (where / plain).write_bytes(secret * 4)
    made = Canary(SIZE, str(canary), parent="../canary", plain=plain)
    environment = {"HURRICANE_BACKENDS": str(UNCHECKED), "CANARY": secret.decode()}
    cwd = "/" if request.param == "root" else folder
    with (
        serving(
            "--simulate", SIMULATED, "--store", str(store), cwd=cwd, environment=environment
        ) as a,
        AgentClient(a.address) as client,
    ):
        yield Board(a, client, secret, dict(external_data_attacks(made)), folder)


def answers(board: Board, target: str, content: bytes) -> tuple[list[AgentError], bytes]:
    """Errors of running and of benchmarking a graph, and all that was told, as bytes."""
    digest = board.client.upload(content)
    errors, told = [], b""
    try:
        inputs = {"x": np.ones((1, 4), np.float32)}
        for name, value in board.client.run(digest, target, inputs, timeout_s=30).items():
            told += name.encode() + value.tobytes()
    except AgentError as error:
        errors.append(error)
    try:
        result = board.client.benchmark([digest], target, protocol=once(target))[digest]
        errors += [result.error] if result.error else []
        told += repr(result).encode()
    except AgentError as error:
        errors.append(error)
    return errors, told + " ".join(map(str, errors)).encode()


@each_target
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_graph_gets_what_is_not_its_own(board: Board, target: str, attack: str) -> None:
    errors, told = answers(board, target, board.attacks[attack])
    assert len(errors) == 2
    for error in errors:
        assert error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.UNSUPPORTED_OPERATOR)
        assert str(board.folder) not in str(error)
    assert board.secret not in told
    assert board.agent.process.poll() is None


@functools.cache
def malformed() -> dict[str, bytes]:
    return dict(refused_graphs())


@each_target
@pytest.mark.parametrize("name", malformed())
def test_a_malformed_graph_is_refused(board: Board, target: str, name: str) -> None:
    errors, _ = answers(board, target, malformed()[name])
    assert {error.kind for error in errors} <= REFUSED
    assert len(errors) == 2
    assert board.agent.peak_bytes() < 300 << 20


@each_target
def test_after_all_that_a_good_graph_is_measured(board: Board, target: str) -> None:
    digest = board.client.upload(relu_model().SerializeToString())
    assert board.client.benchmark([digest], target, protocol=once(target))[digest].error is None
    x = np.array([[-1, 0, 1, 2]], np.float32)
    found = board.client.run(digest, target, {"x": x})["y"]
    assert np.allclose(found, [[0, 0, 1, 2]], atol=2e-3 if target.endswith("fp16") else 0)


@each_runtime
@pytest.mark.parametrize("attack", ATTACKS)
def test_without_the_check_the_sandbox_still_keeps_everything_in(
    board: Board, target: str, attack: str
) -> None:
    isolation = board.client.describe().isolation
    assert isolation is not None
    if isolation.missing:
        pytest.skip(f"this system lacks, as the agent says, {isolation.missing[0]}")
    _, told = answers(board, target, board.attacks[attack])
    assert board.secret not in told
    assert board.agent.process.poll() is None


@each_target
@pytest.mark.parametrize("name", [name for name, _ in endless_graphs()])
def test_a_graph_without_end_is_ended(board: Board, target: str, name: str) -> None:
    limited = Protocol(rounds=1, calls_per_visit=1, warmup_calls=1, artifact_timeout_s=3.0)
    digest = board.client.upload(dict(endless_graphs())[name])
    if once(target).rounds == 0:
        limited = replace(limited, rounds=0, keep_loaded=True)
    error = board.client.benchmark([digest], target, protocol=limited)[digest].error
    if error is None and once(target).rounds == 0:
        with pytest.raises(AgentError) as caught:
            board.client.run(digest, target, {"x": np.ones((1, 4), np.float32)}, timeout_s=3)
        error = caught.value
    if error is None:
        # It computes how long a graph would take, and does not run it.
        assert target.startswith("sim-")
        assert name.startswith("100 GB")
    else:
        assert error.kind != ErrorKind.INTERNAL
        if not target.startswith("dsp-qnn"):  # whose compiler aborts; that costs the graph alone
            assert "process died" not in str(error)
    assert board.agent.peak_bytes() < 300 << 20


def test_a_model_of_two_gigabytes_is_refused_before_it_is_sent(board: Board) -> None:
    first = pb.UploadRequest(sha256="a" * 64, size=2 << 30, chunk=bytes(1 << 20))
    with (
        grpc.insecure_channel(board.agent.address) as channel,
        pytest.raises(grpc.RpcError, match="takes 1 to"),
    ):
        pb_grpc.AgentStub(channel).Upload(iter([first]))
    assert board.agent.peak_bytes() < 300 << 20
