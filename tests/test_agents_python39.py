"""A board with Python 3.9 and tflite-runtime, and a host that talks to it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from hurricane.agents.backends.base import Availability
from hurricane.agents.client import AgentClient, Protocol

from . import tflite_graphs as graphs
from .agents_support import serving
from .python39_support import INSTALL_S, PYTHON, Environment, copy_of_the_code, find_python

pytestmark = pytest.mark.process

# What the mirror has to bring; the tree itself is then installed without it.
PACKAGES = (
    "click",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "numpy<2",
    "onnxruntime",
    "protobuf",
    "setuptools>=68",
    "tflite-runtime==2.14.0",
    "wheel",
)
QUICK = Protocol(rounds=2, calls_per_visit=2, warmup_calls=1)
FP32, INT8 = "cpu-litert-fp32", "cpu-litert-int8"


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Environment:
    """The agent of this tree in an environment of its age, installed as a user would.

    What comes from the index is kept in pytest's cache.
    """
    python = find_python()
    if python is None:
        pytest.skip(f"no {PYTHON} that starts is on PATH or among pyenv's versions")
    kept = Environment(request.config.cache.mkdir("python39"))
    ready = kept.folder / "ready"
    content = "\n".join([os.path.realpath(python), *PACKAGES])
    if not ready.exists() or ready.read_text() != content:
        ready.unlink(missing_ok=True)
        command = [python, "-m", "venv", "--clear", str(kept.folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
        kept.fetch(*PACKAGES)
        ready.write_text(content)
    tree = copy_of_the_code(tmp_path_factory.mktemp("tree"))
    extras = f"{tree}[onnxruntime,tflite-runtime]"
    kept.pip("uninstall", "--yes", "hurricane-nas")
    done = kept.pip("install", "--no-index", "--no-build-isolation", extras)
    assert done.returncode == 0, done.stderr
    return kept


@pytest.fixture(scope="session")
def board(environment: Environment) -> Iterator[AgentClient]:
    with (
        serving(command=(environment.agent,)) as agent,
        AgentClient(agent.address) as client,
    ):
        yield client


def measure(board: AgentClient, target: str, *contents: bytes, **request: Any) -> list[Any]:
    digests = [board.upload(content) for content in contents]
    results = board.benchmark(digests, target, protocol=QUICK, **request)
    return [results[digest] for digest in digests]


def test_an_old_board_says_which_runtimes_it_has(board: AgentClient) -> None:
    description = board.describe()
    assert "3.9" in description.device.python
    targets = {target.name: target for target in description.targets}
    for name in (FP32, INT8):
        assert targets[name].availability == Availability.AVAILABLE, targets[name].reason
        assert targets[name].runtime_version == "tflite-runtime 2.14.0"
        assert targets[name].formats == ("tflite",)
    assert targets["cpu-onnxruntime-fp32"].availability == Availability.AVAILABLE
    assert "openvino" in targets["cpu-openvino-fp32"].reason


def test_it_times_what_the_host_writes_today(board: AgentClient) -> None:
    for result in measure(board, FP32, *map(graphs.fp32_of, graphs.OPERATORS), format="tflite"):
        assert result.error is None
        assert result.compute_unit == "XNNPACK"
        assert not any(flag.startswith("fallback") for flag in result.flags)
        assert np.all(result.wall_ms > 0)
    (result,) = measure(board, "cpu-onnxruntime-fp32", graphs.onnx_of("SEP_5"))
    assert result.error is None


@pytest.mark.parametrize("operator", graphs.OPERATORS)
def test_its_fp32_outputs_are_those_of_the_newest_runtime(
    board: AgentClient, operator: str
) -> None:
    content = graphs.fp32_of(operator)
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    x = np.random.default_rng(2).uniform(-1, 1, given["shape"]).astype(np.float32)
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    wanted = interpreter.get_tensor(returned["index"])
    found = board.run(board.upload(content), FP32, {"input": x}, format="tflite")["output"]
    assert np.max(np.abs(found - wanted)) <= 1e-6 * np.max(np.abs(wanted))


def test_its_int8_does_not_run_in_xnnpack_and_says_so(board: AgentClient) -> None:
    contents = [graphs.int8_of(operator) for operator in graphs.OPERATORS]
    for content, result in zip(
        contents, measure(board, INT8, *contents, format="tflite"), strict=True
    ):
        assert result.error is None
        assert result.compute_unit == f"CPU 0/{graphs.node_count(content)}"
        (fallback,) = [flag for flag in result.flags if flag.startswith("fallback:")]
        assert "CONV_2D" in fallback


_COPIED = """\
import os, time
from hurricane.agents.backends.base import Context
from hurricane.agents.client import AgentClient
from hurricane.agents.server import AgentServer
server = AgentServer("127.0.0.1:0", Context())
server.start()
with AgentClient(server.address) as client:
    client.describe()
    for _ in range(5):  # gRPC restarts its threads where it can, which is not every time
        child = os.fork()
        if not child:
            time.sleep(0.2)  # for threads that it restarts
            os._exit(len(os.listdir("/proc/self/task")))
        print(os.waitpid(child, 0)[1] >> 8)
os._exit(0)
"""


def test_a_copy_of_the_agent_has_no_threads_of_grpc(environment: Environment) -> None:
    # It would close what they work on, and they would end it.
    command = [str(environment.folder / "bin" / "python"), "-u", "-c", _COPIED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1"] * 5


def test_with_numpy_2_the_runtime_is_not_available_and_the_reason_says_what_to_do(
    environment: Environment,
) -> None:
    newer = environment.folder / "numpy2"
    if not newer.exists():
        environment.fetch("--no-deps", "--target", str(newer), "numpy>=2")
    done = subprocess.run(
        [environment.agent, "info", "--json"],
        env={**os.environ, "PYTHONPATH": str(newer)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    targets = {target["name"]: target for target in json.loads(done.stdout)["targets"]}
    for name in (FP32, INT8):
        assert targets[name]["availability"] == "unavailable"
        assert "numpy 2." in targets[name]["reason"]
        assert "pip install 'numpy<2'" in targets[name]["reason"]
