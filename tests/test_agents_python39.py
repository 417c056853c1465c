"""A board with Python 3.9 and tflite-runtime, and a host that talks to it."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from hurricane.agents.backends.base import Availability
from hurricane.agents.client import AgentClient, Protocol

from . import tflite_graphs as graphs
from .agents_support import serving
from .python39_support import PYTHON, ROOT, Environment, check_installed

pytestmark = pytest.mark.process

QUICK = Protocol(rounds=2, calls_per_visit=2, warmup_calls=1)
FP32, INT8 = "cpu-litert-fp32", "cpu-litert-int8"


@pytest.fixture(scope="module")
def runtime(python39: Environment) -> tuple[str, str]:
    """Folders with the two distributions of the extra: the runtime, and the numpy that it needs."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", "utf-8")
    extra = setup["options.extras_require"]["tflite-runtime"].strip().splitlines()
    numpy, runtime = sorted(extra)
    return python39.fetched("tflite-runtime", runtime), python39.fetched("numpy1", numpy)


@pytest.fixture(scope="module")
def board(python39: Environment, runtime: tuple[str, str]) -> Iterator[AgentClient]:
    path = {"PYTHONPATH": os.pathsep.join(runtime)}
    with (
        serving(command=(python39.agent,), environment=path) as agent,
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


def test_a_copy_of_the_agent_has_no_threads_of_grpc(python39: Environment) -> None:
    # It would close what they work on, and they would end it.
    command = [python39.python, "-u", "-c", _COPIED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1"] * 5


def test_with_numpy_2_the_runtime_is_not_available_and_the_reason_says_what_to_do(
    python39: Environment, runtime: tuple[str, str]
) -> None:
    done = subprocess.run(
        [python39.agent, "info", "--json"],
        env={**os.environ, "PYTHONPATH": runtime[0]},
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


def test_without_an_index_the_tests_are_skipped_and_a_broken_package_fails_them() -> None:
    def install(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pip", "--isolated", "install", "--dry-run", *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)

    nowhere = ("--retries", "1", "--index-url", "http://127.0.0.1:9/simple")
    with pytest.raises(pytest.skip.Exception, match=PYTHON):
        check_installed(install(*nowhere, "hurricane-nas-of-nobody"))
    with pytest.raises(AssertionError, match="No matching distribution found"):
        check_installed(install("--no-index", "hurricane-nas-of-nobody"))
