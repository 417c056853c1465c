"""An agent on Python 3.9 with OpenVINO 2021.4.2, installed by the documented script, and a host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from hurricane.agents.backends import (
    _openvino_release,
    myriad_compiler,
    myriad_vpu,
    openvino2021_cpu,
)
from hurricane.agents.backends.base import Availability, Context, TargetInfo
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import ErrorKind
from hurricane.lookup_tables.table import LookupTable
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape

from .agents_artifacts import SHAPE, onnx_of
from .agents_support import Agent
from .python39_support import ROOT, SCRIPT, Environment

pytestmark = pytest.mark.process

TARGET = "cpu-openvino2021-fp32"
QUICK = Protocol(rounds=2, calls_per_visit=2, warmup_calls=1)
SHAPES = (LayerShape(28, 28, 64, 64, 1), LayerShape(28, 28, 64, 128, 2))
OPERATORS = ("SEP_3", "MB_3_3_SE", "MB_7_6", "Choice_3_SE", "Choice_x")
CLOSE = 1e-5
"""Largest difference between two runtimes in fp32, as a share of the largest value."""


def targets_of(python39: Environment, **variables: str) -> dict[str, dict[str, Any]]:
    """Targets by name, as ``agent info --json`` tells them."""
    done = subprocess.run(
        [python39.agent, "info", "--json"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {target["name"]: target for target in json.loads(done.stdout)["targets"]}


def test_it_says_which_openvino_is_there(board39: AgentClient) -> None:
    targets: dict[str, TargetInfo] = {t.name: t for t in board39.describe().targets}
    found = targets[TARGET]
    assert (found.availability, found.runtime_version) == (Availability.AVAILABLE, "2021.4.2")
    for name in ("cpu-openvino-fp32", "cpu-openvino-int8"):
        assert targets[name].availability == Availability.UNAVAILABLE
        assert "openvino 2021.4.2 is installed, and this target takes 2024.0 or newer" in (
            targets[name].reason
        )


def test_todays_openvino_is_not_taken_for_the_old_one_nor_imported_to_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_openvino_release.importlib, "import_module", _not_imported)
    for backend in (openvino2021_cpu, myriad_vpu, myriad_compiler):
        (found,) = backend.targets(Context())
        assert found.availability == Availability.UNAVAILABLE
        assert re.search(
            "openvino [0-9.]+ is installed, and this target takes 2021.4", found.reason
        )


def _not_imported(name: str) -> None:
    raise AssertionError(f"{name} is imported")


def difference(board39: AgentClient, content: bytes) -> float:
    """From onnxruntime, as a share of the largest value."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    x = np.random.default_rng(4).uniform(-1, 1, given.shape).astype(np.float32)
    (wanted,) = session.run(None, {given.name: x})
    (found,) = board39.run(board39.upload(content), TARGET, {given.name: x}).values()
    return float(np.max(np.abs(found - wanted)) / np.max(np.abs(wanted)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_outputs_are_those_of_onnxruntime(
    board39: AgentClient, operator: str, shape: LayerShape
) -> None:
    content = export_operator(operator, shape)
    assert difference(board39, content) <= CLOSE
    digest = board39.upload(content)
    result = board39.benchmark([digest], TARGET, protocol=QUICK)[digest]
    assert result.error is None
    assert not [flag for flag in result.flags if flag.startswith("precision")]


def test_with_bf16_left_on_they_would_not_be(python39: Environment, tmp_path: Path) -> None:
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no avx512_bf16, so that OpenVINO cannot take bf16")
    graph, script = tmp_path / "g.onnx", tmp_path / "with_bf16.py"
    graph.write_bytes(export_operator("SEP_3", SHAPES[0]))
    script.write_text(
        "import sys, numpy, onnxruntime\n"
        "from hurricane.agents.backends import openvino2021_cpu as backend\n"
        "from hurricane.agents.backends.base import Context\n"
        "backend._BF16_OFF.clear()\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "graph = backend.open_target(Context(), backend.TARGET, {}, 1).load(content, 'onnx')\n"
        "(given,) = graph.inputs()\n"
        "x = numpy.random.default_rng(4).uniform(-1, 1, given.shape).astype('float32')\n"
        "(found,) = graph.outputs({given.name: x}).values()\n"
        "session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])\n"
        "(wanted,) = session.run(None, {given.name: x})\n"
        "print(abs(found - wanted).max() / abs(wanted).max(), *graph.flags)\n"
    )
    done = subprocess.run(
        [python39.python, str(script), str(graph)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
    )
    error, *flags = done.stdout.split()
    assert float(error) > 100 * CLOSE
    assert flags == ["precision:bf16-2/2"]


def test_a_newer_opset_is_refused(board39: AgentClient) -> None:
    model = onnx.load_from_string(export_operator("SEP_3", SHAPES[0]))
    model.opset_import[0].version = 14
    digest = board39.upload(model.SerializeToString())
    error = board39.benchmark([digest], TARGET, protocol=QUICK)[digest].error
    assert error is not None
    assert error.kind == ErrorKind.UNSUPPORTED_OPERATOR
    assert "opset 14" in str(error)


def test_a_host_makes_a_complete_table_and_verifies_it(agent39: Agent, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    words = ["--agent", agent39.address, "--json"]
    target = ["--layers", "digits32", "--target", TARGET, "--rounds", "8", "--precision", "0.1"]
    made = _host("hurricane.profiler.cli", *target, "-o", str(table), *words)
    assert made["rows"] == made["measured"]
    rows = list(LookupTable.load(table))
    assert len(rows) == made["rows"]
    assert {row.status for row in rows} == {"ok"}
    assert {row.target.name for row in rows} == {TARGET}
    assert {row.origin for row in rows} == {"measured"}
    found = _host("hurricane.search.cli", "verify", "--table", str(table), "--random", "20", *words)
    assert len([n for n in found["networks"] if n["group"] == "random" and not n["error"]]) == 20
    assert found["verdict"] in ("additive", "additive-calibrated", "inconclusive")
    # With other work on the machine it may be inconclusive, but not for want of networks.
    assert found["cause"] in (None, "drift", "interference", "noise", "wide-interval")


def _host(module: str, *arguments: str) -> dict[str, Any]:
    """A command of the host, and the JSON object that it printed."""
    code = f"from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr  # 3: inconclusive
    return json.loads(done.stdout)


def test_the_conformance_suite_runs_over_it(agent39: Agent) -> None:
    suite = Path(__file__).with_name("test_agents_conformance.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", str(suite), "-k", TARGET],
        env={**os.environ, "HURRICANE_TEST_AGENT": agent39.address},
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") > 10
    assert "SKIPPED" not in done.stdout


def test_the_script_says_how_it_is_used() -> None:
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "FOLDER" in done.stderr
    rule = subprocess.run(["sh", str(SCRIPT), "--rule"], capture_output=True, text=True, check=True)
    assert rule.stdout.count('ATTRS{idVendor}=="03e7"') == 2


def test_the_script_refuses_another_python(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", str(SCRIPT), str(tmp_path / "venv")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "is no Python 3.9" in done.stderr
    assert not (tmp_path / "venv").exists()


# The genuine MYRIAD plugin, without a stick.


def script(python39: Environment, tmp_path: Path, code: str, **variables: str) -> list[str]:
    """Lines that a script prints in that environment."""
    file = tmp_path / "script.py"
    file.write_text(code)
    done = subprocess.run(
        [python39.python, str(file)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_a_stick_the_reason_is_that(python39: Environment) -> None:
    found = targets_of(python39)["vpu-myriad-fp16"]
    if found["availability"] != "unavailable":
        pytest.skip("a stick is plugged in")
    assert found["runtime_version"] == "2021.4.2"
    assert "stick" in found["reason"]


def test_without_libusb_the_reason_is_that(python39: Environment, tmp_path: Path) -> None:
    # In place of the distribution's, and of the package.
    (tmp_path / "libusb-1.0.so.0").write_bytes(b"")
    (tmp_path / "libusb_package.py").write_text("raise ImportError('it is hidden')\n")
    here = str(tmp_path)
    found = targets_of(python39, LD_LIBRARY_PATH=here, PYTHONPATH=here)
    install = "run: pip install libusb-package"
    assert found["vpu-myriad-fp16"]["reason"] == (
        f"the MYRIAD plugin needs libusb, which is not there; {install}"
    )
    assert found[myriad_compiler.TARGET]["reason"] == (
        f"libusb is not there, which OpenVINO's MYRIAD plugin needs; {install}"
    )


ALONE = {"OPENBLAS_NUM_THREADS": "1"}  # as a worker has it: no threads before the sandbox
_LIBUSB = """\
import dataclasses, socket
from hurricane.agents.backends import myriad_vpu as backend
from hurricane.agents.backends._myriad_plugin import load_libusb
from hurricane.agents.backends.base import Context
from hurricane.agents.sandbox import enter
enter(dataclasses.replace(backend.needs(Context()), {change}))
print(load_libusb().libusb_init(None))
try:
    socket.socket()
    print("opened")
except PermissionError:
    print("refused")
"""


def test_libusb_starts_in_the_sandbox_that_the_backend_asks_for(
    python39: Environment, tmp_path: Path
) -> None:
    started, inet = script(python39, tmp_path, _LIBUSB.format(change=""), **ALONE)
    assert (started, inet) == ("0", "refused")
    # It hears of devices from the kernel by a socket: else it would find none, without a word.
    started, _ = script(python39, tmp_path, _LIBUSB.format(change="netlink=False"), **ALONE)
    assert started != "0"


_TAKEN = """\
from hurricane.agents.backends import myriad_vpu as backend
engine = backend._open()
for path in {paths!r}:
    # Named as if it were there: then the graph is compiled before a stick is looked for.
    settings = {{**backend._SETTINGS, "VPU_MYRIAD_PLATFORM": "VPU_MYRIAD_2480"}}
    try:
        engine.load(engine.read(path), "MYRIAD", settings)
    except Exception as error:
        found = backend._typed(error)
        print(type(found).__name__, found)
"""


def test_the_genuine_plugin_names_the_layer_that_it_does_not_take(
    python39: Environment, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], "relu"),
        helper.make_node("Acosh", ["r"], ["output"], "acosh"),
    ]
    paths = [str(tmp_path / "0.onnx"), str(tmp_path / "1.onnx")]
    Path(paths[0]).write_bytes(onnx_of(nodes, [], SHAPE))
    Path(paths[1]).write_bytes(export_operator("Choice_3_SE", SHAPES[0]))
    lines = script(python39, tmp_path, _TAKEN.format(paths=paths))
    named, taken = (line for line in lines if "Warning" not in line)
    assert named == "UnsupportedOperator MYRIAD does not take Acosh 'output'"
    assert taken.startswith("DeviceLost there is no such stick: ")


# 2022.3, of which the wheel has no MYRIAD plugin.


@pytest.fixture(scope="session")
def openvino2022(python39: Environment) -> str:
    """A folder with it, for PYTHONPATH."""
    return python39.fetched("openvino2022", "openvino==2022.3.2")


def test_a_wheel_without_the_plugin_says_so(python39: Environment, openvino2022: str) -> None:
    targets = targets_of(python39, PYTHONPATH=openvino2022)
    assert targets["vpu-myriad-fp16"]["reason"] == (
        "OpenVINO as it is installed here has no MYRIAD plugin; see docs/ncs2.md"
    )
    for name in (TARGET, myriad_compiler.TARGET, "cpu-openvino-fp32"):
        assert "openvino 2022.3.2 is installed, and this target takes" in targets[name]["reason"]


_OTHER_INTERFACE = """\
import numpy, onnxruntime
from hurricane.agents.backends._openvino_legacy import open_engine
engine = open_engine()
print(type(engine).__name__, engine.plugin("CPU").split()[0])
graph = engine.read({path!r})
compiled = engine.load(graph, "CPU", {{"ENFORCE_BF16": "NO", "PERF_COUNT": "YES"}})
(given,) = compiled.inputs()
print(given)
x = numpy.random.default_rng(4).uniform(-1, 1, given.shape).astype("float32")
compiled.preset({{given.name: x}})
print(compiled.call() > 0)
(found,) = compiled.outputs().values()
session = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
(wanted,) = session.run(None, {{given.name: x}})
print(abs(found - wanted).max() / abs(wanted).max())
print(sum(c.real_ms for c in compiled.counters() if c.kind == "Convolution") > 0)
"""


def test_the_newer_interface_computes_the_same(
    python39: Environment, openvino2022: str, tmp_path: Path
) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(export_operator("MB_3_3_SE", SHAPES[0]))
    code = _OTHER_INTERFACE.format(path=str(path))
    engine, given, called, error, counted = script(
        python39, tmp_path, code, PYTHONPATH=openvino2022
    )
    assert engine == "_Runtime openvino_intel_cpu_plugin"
    assert given == "TensorInfo(name='input', dtype='float32', shape=(1, 64, 28, 28))"
    assert float(error) <= CLOSE
    assert (called, counted) == ("True", "True")
