"""Runtimes report nothing to their makers, and leave nothing in the user's folders."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEADLINE_S = 120.0
PROGRAM = """
import click
import numpy as np
from onnx import TensorProto, helper

from hurricane.agents.console import run_command


@click.command()
@click.argument("runtime")
def command(runtime):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content, ones = model.SerializeToString(), np.ones(4, np.float32)
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(content)
        found = session.run(None, {"x": ones})[0]
    else:
        import openvino

        core = openvino.Core()
        found = core.compile_model(core.read_model(content), "CPU")({"x": ones})["y"]
    assert (found == ones).all()


run_command(command, "hurricane")
"""


def environment(folder: Path) -> dict[str, str]:
    """Of a user with empty folders, on a machine that is no build server."""
    given = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary")}
    for place in given.values():
        Path(place).mkdir()
    odd = {"CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    return {k: v for k, v in os.environ.items() if k not in odd} | given


@pytest.mark.process
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_in_a_command_of_ours_leaves_no_file(tmp_path: Path, runtime: str):
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    subprocess.run(
        [sys.executable, "-c", PROGRAM, runtime],
        env=environment(tmp_path),
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE_S,
    )
    left = [path for path in tmp_path.rglob("*") if path.parent != tmp_path]
    assert left == []


@pytest.mark.process
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_measuring_on_this_machine_leaves_no_file(tmp_path: Path, runtime: str):
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    words = f"--layers digits32:1 --operators SEP_3 --target cpu-{runtime}-fp32 --rounds 4"
    subprocess.run(
        [sys.executable, "-m", "hurricane.profiler.cli", *words.split(), "-o", "t.csv"],
        env=environment(tmp_path),
        cwd=tmp_path,
        check=True,
        timeout=DEADLINE_S,
    )
    left = [path for path in tmp_path.rglob("*") if path.parent != tmp_path]
    assert left == []
