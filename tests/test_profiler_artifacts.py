"""Tables of targets that take other formats than ONNX: the host makes what they run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.supervisor import discover
from hurricane.lookup_tables.table import LookupTable, Row
from hurricane.ops.artifacts import Recipe, prepare
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.export import export_operator, sha256
from hurricane.ops.pool import select_operators
from hurricane.profiler.measuring import Bench, MeasuringSettings, connect, parse_target
from hurricane.profiler.networks import WholeNetwork, time_networks
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import missing_rows, profile

SHORT = MeasuringSettings(min_rounds=3, max_rounds=3, rounds=4)
BACKBONE = load_backbone("digits32")
ROWS = plan_rows(parse_layers("digits32:1"), select_operators("SEP_3,Choice_3"))
TARGETS = {
    "cpu-onnxruntime-fp32": Recipe("onnx", "fp32"),
    "cpu-onnxruntime-int8": Recipe("onnx-qdq", "int8"),
    "cpu-openvino-int8": Recipe("onnx-qdq", "int8"),
    "cpu-litert-fp32": Recipe("tflite", "fp32"),
    "cpu-litert-int8": Recipe("tflite", "int8"),
}
KNOWN = {target.name: target for target in discover(Context()).targets}

STRANGE = """
from torch import nn
from hurricane.ops.pool import register_operator

def build(shape, gate):
    return nn.Sequential(
        nn.Conv2d(shape.in_channels, shape.out_channels, 3, shape.stride, 1, bias=False),
        nn.BatchNorm2d(shape.out_channels),
        nn.Softplus(),
    )

register_operator("Strange_3", build)
"""


def usable(name: str) -> None:
    if KNOWN[name].availability == Availability.UNAVAILABLE:
        pytest.skip(KNOWN[name].reason)


@pytest.mark.parametrize("name", TARGETS)
def test_a_row_names_the_graph_and_what_ran(name: str, tmp_path: Path) -> None:
    usable(name)
    recipe, request = TARGETS[name], parse_target(name)
    with connect([], request) as clients:
        bench = Bench.open(clients[0], request)
        assert bench.recipe == recipe
        result = profile([bench], ROWS, tmp_path / "t.csv", SHORT)
        networks = [WholeNetwork("given", "a", ("SEP_3",) * len(BACKBONE.layers))]
        (time,) = time_networks(bench, BACKBONE, networks, SHORT)
    assert time.error == ""
    assert time.measured_ms > 0
    assert missing_rows(ROWS, result.table, result.target) == []
    for row in result.table:
        graph = export_operator(row.operator, row.shape)
        artifact = prepare(graph, recipe)
        assert row.ok
        assert row.precision == recipe.precision
        assert row.graph_sha256 == sha256(graph)
        assert row.artifact_sha256 == sha256(artifact.content)
        assert row.converter == artifact.info.converter
        assert row.calibration == ("16 random samples" if recipe.precision == "int8" else "")
        if name.startswith("cpu-litert"):
            assert row.compute_unit.startswith("XNNPACK")


def test_a_run_goes_on_with_artefacts_that_another_made(tmp_path: Path) -> None:
    usable("cpu-onnxruntime-int8")
    path, request = tmp_path / "t.csv", parse_target("cpu-onnxruntime-int8")
    for rows, measured in ((ROWS[:1], 1), (ROWS, 1), (ROWS, 0)):
        with connect([], request) as clients:
            result = profile([Bench.open(clients[0], request)], rows, path, SHORT)
        assert result.measured == measured
        assert result.referred_to == ("rows from before" if rows is ROWS and measured else "")


def test_what_a_format_cannot_express_is_unsupported_and_the_rest_is_measured(
    tmp_path: Path,
) -> None:
    usable("cpu-litert-fp32")
    (tmp_path / "mine.py").write_text(STRANGE)
    words = ["--layers", "digits32:1", "--operators", "SEP_3,Strange_3", "--rounds", "3"]
    words += ["--plugin", str(tmp_path / "mine.py"), "-o", str(tmp_path / "t.csv"), "--json"]
    found = subprocess.run(
        [sys.executable, "-m", "hurricane.profiler.cli", "--target", "cpu-litert-fp32", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1])["not_ok"] == {"unsupported": 1}
    rows: dict[str, Row] = {row.operator: row for row in LookupTable.load(tmp_path / "t.csv")}
    assert rows["SEP_3"].ok
    assert rows["Strange_3"].status == "unsupported"


def test_a_target_that_nothing_can_be_made_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with connect([], parse_target("cpu-onnxruntime-fp32")) as (client,):
        description = client.describe()
    (target,) = (t for t in description.targets if t.name == "cpu-onnxruntime-fp32")
    other = replace(target, formats=("dlc",))
    told = replace(description, targets=(other,))
    client: Any = SimpleNamespace(address="board:1", describe=lambda: told)
    with pytest.raises(BadRequest, match=r"cpu-onnxruntime-fp32 cannot be measured.*as dlc"):
        Bench.open(client, parse_target("cpu-onnxruntime-fp32"))
