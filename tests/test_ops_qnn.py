"""DLC files, and the graphs that QNN makes, have the operators' weights and MACs."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")

from hurricane.ops import qnn
from hurricane.ops.backbone import load_backbone, row_costs
from hurricane.ops.calibration import random_samples
from hurricane.ops.errors import UnsupportedNode
from hurricane.ops.export import export_operator
from hurricane.ops.onnx_qdq import quantise_onnx
from hurricane.ops.pool import POOL
from hurricane.ops.socs import SOCS, soc_of

pytestmark = pytest.mark.process

BACKBONE = load_backbone("digits32")
SAME, HALVED = BACKBONE.layers[1], next(s for s in BACKBONE.layers if s.stride == 2)
PAIRS = [(o.name, s) for s in (SAME, HALVED) for o in POOL[::3] if o.applies_to(s)]
GRAPHS = [*PAIRS[:15], (BACKBONE.head_name, BACKBONE.head_shape)]


@functools.cache
def quantised(name: str, shape) -> bytes:
    samples = random_samples((shape.in_channels, shape.height, shape.width), 2, 0)
    return quantise_onnx(export_operator(name, shape), samples)


def qnn_graph(model: bytes, folder: Path) -> dict[str, Any]:
    """The graph that QNN is given, as it writes it down."""
    settings = {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(folder)}
    qnn._session(model, soc_of("SM8650"), settings)
    (file,) = [path for path in folder.glob("*.json") if "tensor_log" not in path.name]
    return json.loads(file.read_text())["graph"]


@pytest.mark.parametrize(("name", "shape"), GRAPHS, ids=lambda value: str(value))
def test_weights_and_macs_are_the_operators(name: str, shape, tmp_path: Path) -> None:
    graph = qnn_graph(quantised(name, shape), tmp_path)
    tensors, found = graph["tensors"], []
    for node in graph["nodes"].values():
        if node["type"] in ("Conv2d", "DepthWiseConv2d", "FullyConnected", "MatMul"):
            weights = math.prod(tensors[node["input_names"][1]]["dims"])
            out = tensors[node["output_names"][0]]["dims"]
            pixels = math.prod(out[1:3]) if len(out) == 4 else 1
            found.append((weights, weights * pixels))
    expected = sorted((cost.params, cost.macs) for cost in row_costs(name, shape))
    assert sorted(found) == expected


@pytest.mark.parametrize(("name", "shape"), GRAPHS, ids=lambda value: str(value))
def test_a_dlc_holds_every_weight(name: str, shape) -> None:
    model = quantised(name, shape)
    dlc = qnn.write_dlc(model)
    arrays = [numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer]
    weights = [a for a in arrays if a.dtype == np.int8 and a.ndim >= 2]
    assert weights
    for array in weights:
        # QNN's layout is HWIO; a linear's is as it was, or turned.
        layouts = [array.transpose(2, 3, 1, 0)] if array.ndim == 4 else [array, array.T]
        assert any(np.ascontiguousarray(layout).tobytes() in dlc for layout in layouts)


def test_equal_requests_give_equal_files() -> None:
    model = quantised("SEP_3", SAME)
    assert qnn.write_dlc(model) == qnn.write_dlc(model)
    assert b"1980-01-01 00:00:00 UTC" in qnn.write_dlc(model)


def test_processes_for_several_chips_do_not_mix() -> None:
    model = quantised("SEP_3", SAME)
    chosen = [soc for soc in SOCS if soc.name in ("SM8350", "SM8650", "SM8550")]
    made = [qnn.compile_context(model, soc) for soc in (*chosen, *chosen)]  # checks each
    assert len({len(content) for content in made[:3]}) > 1


def test_what_qnn_does_not_take_is_named() -> None:
    from .test_agents_qnn import unknown_operator

    with pytest.raises(UnsupportedNode, match="'the/determinant'"):
        qnn.write_dlc(unknown_operator())
    with pytest.raises(UnsupportedNode, match="'the/determinant'"):
        qnn.compile_context(unknown_operator(), soc_of("SM8650"))
