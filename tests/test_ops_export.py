"""Torch modules, ONNX graphs and formulas are one and the same thing."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from hurricane.ops import graph, pool
from hurricane.ops.backbone import load_backbone, shipped_backbones
from hurricane.ops.blocks import Network, build_operator, build_row
from hurricane.ops.cached_files import CACHE_VARIABLE
from hurricane.ops.counting import count_module
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.export import export_architecture, export_context, export_operator
from hurricane.ops.graph import (
    Part,
    Piece,
    count_graph,
    fold_batchnorm,
    join,
    module_weights,
    prepare_templates,
    seeded_weights,
    serialise,
)
from hurricane.ops.pool import GATES, POOL, parse_operator
from hurricane.ops.shapes import LayerShape

BACKBONES = [load_backbone(name) for name in shipped_backbones()]
SHAPES = list(dict.fromkeys(s for b in BACKBONES for s in b.distinct_shapes))
SMALL = [LayerShape(9, 7, 8, 12, 2), LayerShape(6, 10, 12, 12, 1), LayerShape(5, 5, 8, 20, 1)]


def run_onnx(content: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def relative_error(got: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(got - reference).max() / np.abs(reference).max())


def settled(module: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Gives BatchNorm statistics and weights that folding cannot get right by accident."""
    random = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
            if layer.affine:
                layer.weight.data.uniform_(0.5, 1.5, generator=random)
                layer.bias.data.uniform_(-0.5, 0.5, generator=random)
    module.train()
    with torch.no_grad():
        module(torch.cat([x, x.flip(3) * 0.7]))
    return module.eval()


@pytest.mark.process
@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: b.name)
def test_formula_torch_and_onnx_agree_on_macs_and_params_everywhere(backbone):
    pieces = [
        Piece(op.name, shape)
        for op in POOL
        for shape in backbone.distinct_shapes
        if op.applies_to(shape)
    ]
    prepare_templates(pieces)
    for piece in pieces:
        op = parse_operator(piece.name)
        with torch.device("meta"):
            module = build_operator(op, piece.shape)
        weights = [
            p.numel() for n, p in module.named_parameters() if n.endswith("weight") and p.ndim > 1
        ]
        graph = count_graph(join([Part(piece)]))
        assert sum(weights) == op.params(piece.shape) == sum(c.params for c in graph), piece
        assert op.macs(piece.shape) == sum(c.macs for c in graph), piece


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_macs_counted_while_the_torch_module_runs_equal_the_formula(shape):
    for op in POOL:
        if op.applies_to(shape):
            counted = count_module(build_operator(op, shape), shape)
            assert sum(c.macs for c in counted) == op.macs(shape), op
            assert sum(c.params for c in counted) == op.params(shape), op


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_every_operator_gives_torchs_outputs_in_onnxruntime(shape, gate):
    x = torch.randn(1, shape.in_channels, shape.height, shape.width)
    for op in POOL:
        if not op.applies_to(shape):
            continue
        module = settled(build_operator(op, shape, gate), x)
        content = serialise(
            join([Part(Piece(op.name, shape, gate), weights=module_weights(module))])
        )
        with torch.no_grad():
            expected = module(x).numpy()
        assert relative_error(run_onnx(content, x.numpy()), expected) <= 1e-5, op


@pytest.mark.process
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_seeded_graphs_at_shipped_shapes_give_torchs_outputs(shape):
    random = np.random.default_rng(0)
    x = random.standard_normal((1, shape.in_channels, shape.height, shape.width), dtype=np.float32)
    wide = shape.in_channels * shape.out_channels > 200_000  # the largest: one of each kind
    for op in POOL:
        if not op.applies_to(shape) or (wide and op.kernel not in (0, 3)):
            continue
        piece = Piece(op.name, shape)
        module = fold_batchnorm(build_row(op.name, shape))
        module.load_state_dict({k: torch.from_numpy(v) for k, v in seeded_weights(piece).items()})
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        assert relative_error(run_onnx(export_operator(op.name, shape), x), expected) <= 1e-5, op


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        (
            "digits32",
            ["SEP_7_SE", "Choice_x", "MB_3_6_SE", "Choice_5", "MB_5_3", "SEP_3", "MB_7_1"],
        ),
        ("cifar32", ["Choice_3_SE", "MB_3_3", "SEP_5", "Choice_x_SE"] * 3),
        ("proxyless224", ["MB_3_3", "MB_5_3_SE", "SEP_3"] * 7),
    ],
)
def test_a_trained_network_and_its_onnx_graph_agree(name, operators):
    backbone = load_backbone(name)
    torch.manual_seed(0)
    x = torch.randn(1, backbone.input_channels, backbone.input_height, backbone.input_width)
    network = settled(Network(backbone, operators), x)
    content = export_architecture(backbone, operators, network)
    with torch.no_grad():
        expected = network(x).numpy()
    assert relative_error(run_onnx(content, x.numpy()), expected) <= 1e-4
    counted = count_graph(onnx.load_from_string(content))
    assert sum(c.macs for c in counted) == backbone.macs(operators)
    assert sum(c.params for c in counted) == backbone.params(operators)


@pytest.mark.parametrize("operator", ["SEP_3_SE", "MB_7_6_SE", "Choice_x_SE", "MB_3_1"])
def test_seeded_networks_neither_blow_up_nor_die_out(operator):
    backbone = load_backbone("cifar32")
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    y = run_onnx(export_architecture(backbone, [operator] * 12), x)
    assert np.isfinite(y).all()
    assert 1e-3 < np.abs(y).max() < 1e3


def test_exporting_twice_gives_equal_bytes_even_without_the_cache(tmp_path, monkeypatch):
    from hurricane.ops import graph

    shape = LayerShape(8, 8, 8, 8, 1)
    names = ["Choice_x_SE", "MB_5_3_SE", "SEP_7"]
    first = [export_operator(n, shape) for n in names]
    monkeypatch.setattr(graph, "_MEMORY", {})
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path))
    assert [export_operator(n, shape) for n in names] == first
    assert any(tmp_path.rglob("*.onnx"))


def test_tracing_leaves_torchs_threads_as_they_were(tmp_path, monkeypatch):
    """A training that follows would otherwise be slower, and end in other last bits."""
    from hurricane.ops import graph

    monkeypatch.setattr(graph, "_MEMORY", {})
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        export_operator("SEP_3", LayerShape(8, 8, 8, 8, 1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert any(tmp_path.rglob("*.onnx"))


def test_copies_in_a_context_do_not_share_weights():
    piece = Piece("SEP_3", LayerShape(8, 8, 8, 8, 1))
    graph = onnx.load_from_string(export_context([piece, piece])).graph
    by_suffix: dict[str, list[bytes]] = {}
    for tensor in graph.initializer:
        by_suffix.setdefault(tensor.name.split("/", 1)[1], []).append(tensor.raw_data)
    assert by_suffix
    assert all(len(set(values)) == 2 for values in by_suffix.values())


def test_graphs_are_opset_13_and_hold_no_batchnorm_and_no_hard_swish():
    backbone = load_backbone("digits32")
    model = onnx.load_from_string(export_architecture(backbone, ["MB_5_6_SE"] * 7))
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import] == [13]
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "HardSwish", "HardSigmoid", "ReduceMean"}
    assert "GlobalAveragePool" in kinds


def test_an_operator_that_does_not_apply_is_refused():
    with pytest.raises(BadRequest, match="Choice_3 does not apply"):
        export_operator("Choice_3", LayerShape(8, 8, 7, 7, 1))
    with pytest.raises(BadRequest, match="digits32 has 7 layers, these are 6"):
        export_architecture(load_backbone("digits32"), ["SEP_3"] * 6)


def test_pieces_that_do_not_follow_each_other_are_refused():
    a, b = Piece("SEP_3", LayerShape(8, 8, 8, 8, 1)), Piece("SEP_3", LayerShape(8, 8, 16, 16, 1))
    with pytest.raises(HurricaneError, match="does not follow"):
        export_context([a, b])


def own_block(kernel: int):
    """Source of a module with a user's operator, of a kernel, BatchNorm in its place or not."""
    return f"""
from torch import nn

class Loose(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return self.norm(self.conv(x))

def build(shape, gate):
    c = shape.in_channels
    return nn.Sequential(nn.Conv2d(c, c, {kernel}, 1, {kernel // 2}), nn.BatchNorm2d(c))

def loose(shape, gate):
    return Loose(shape.in_channels)
"""


def load_module(file: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    return names


def test_a_users_operator_is_traced_anew_when_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_CUSTOM", {})
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "own_package.py"
    piece = Piece("Own", LayerShape(4, 4, 6, 6, 1))
    weights = []
    for kernel in (1, 3):
        monkeypatch.setattr(graph, "_MEMORY", {})  # as in a new process
        pool._CUSTOM.clear()
        file.write_text(own_block(kernel))
        pool.register_operator("Own", load_module(file)["build"])
        weights.append(count_graph(join([Part(piece)]))[0].params)
    assert weights == [36, 324]


def test_templates_are_made_anew_for_another_onnx_or_torch(monkeypatch):
    version = importlib.metadata.version
    found = {graph._generation.__wrapped__()}
    for package in ("onnx", "torch"):
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name, package=package: "0.1" if name == package else version(name),
        )
        found.add(graph._generation.__wrapped__())
    assert len(found) == 3


def test_a_batchnorm_out_of_place_is_refused_with_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_CUSTOM", {})
    monkeypatch.setattr(graph, "_MEMORY", {})
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "own_package.py"
    file.write_text(own_block(1))
    pool.register_operator("Own", load_module(file)["loose"])
    with pytest.raises(HurricaneError, match=r"BatchNorm2d right behind its Conv2d in an nn\.Seq"):
        export_operator("Own", LayerShape(4, 4, 6, 6, 1))


@pytest.mark.process
def test_a_script_is_run_once_though_processes_export_for_it(tmp_path):
    script = tmp_path / "script.py"  # as one writes it in a hurry
    script.write_text(
        "from hurricane.ops.backbone import load_backbone\n"
        "from hurricane.ops.graph import Piece, prepare_templates\n"
        "from hurricane.ops.pool import POOL\n"
        "print('begins', flush=True)\n"
        "shape = load_backbone('digits32').layers[1]\n"
        "pieces = [Piece(o.name, shape) for o in POOL if o.applies_to(shape)]\n"
        "prepare_templates(pieces)\n"
        "print(len(pieces), 'ready')\n"
    )
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begins", "32 ready"]
