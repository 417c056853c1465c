"""Simulated devices: their model, their files, their disturbances, and the paper's insights."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hurricane.agents.backends import simulated
from hurricane.agents.backends._simulation_device import (
    OPTIONS,
    Device,
    load_device,
    parse_device,
    price,
    with_options,
)
from hurricane.agents.backends._simulation_graph import Work, WorkGraph, read_graph
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.client import AgentClient
from hurricane.agents.devices import device_names
from hurricane.agents.errors import BadRequest, DeviceLost, OutOfMemory, UnsupportedOperator
from hurricane.agents.results import Protocol
from hurricane.agents.server import AgentServer
from hurricane.agents.worker import Bench, Heartbeat
from hurricane.ops.backbone import load_backbone
from hurricane.ops.export import architecture_pieces, export_architecture, export_context
from hurricane.ops.graph import Piece, prepare_templates, template
from hurricane.ops.pool import POOL, parse_operator
from hurricane.ops.shapes import LayerShape

CPU, DSP, VPU = "snapdragon845-cpu", "hexagon685-dsp", "myriadx-vpu"
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
QUIET = """
[device]
device = "test device"
processor = "dsp"
runtime = "test"
precision = "int8"
unit = "UNIT"
element_bytes = 1
device_time = true
temperature_c = 30.0
hot_c = 70.0
frequency_mhz = 1000.0
fused = ["Relu"]
[call]
call_ms = 2.0
load_ms = 3.0
[memory]
dram_gbs = 1.0
node_ms = 0.01
[kinds.dense]
gmacs = 10.0
[kinds.pointwise]
gmacs = 10.0
[kinds.depthwise]
gmacs = 1.0
[kinds.linear]
gmacs = 10.0
"""


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def device_of(text: str = QUIET) -> Device:
    return parse_device(text, "test", "test.toml")


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = (1, 32, 8, 8),
    weights: Sequence[tuple[str, Sequence[int]]] = (),
    outputs: Sequence[str] = ("y",),
) -> bytes:
    """An ONNX file with the input x of a shape, weights of zeros, and some outputs."""
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            [
                helper.make_tensor(n, TensorProto.FLOAT, d, bytes(4 * math.prod(d)), raw=True)
                for n, d in weights
            ],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    ).SerializeToString()


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)  # type: ignore[arg-type]


CONV = [node("Conv", "x w", "y")]
CONV_WEIGHT = [("w", (64, 32, 1, 1))]


@pytest.fixture
def artefact() -> bytes:
    """One 1x1 convolution."""
    return graph_of(CONV, weights=CONV_WEIGHT)


def session_of(
    tmp_path: Path, options: dict[str, str] | None = None, seed: int = 0, text: str = QUIET
) -> simulated.SimulatedSession:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    context = Context(simulate=(str(file),), seed=seed)
    session = simulated.open_target(context, "sim-mine", options or {}, 1)
    session.begin(0)
    return session


# --- reading graphs -------------------------------------------------------------------------


@pytest.mark.process
def test_work_of_every_operator_at_every_shape_adds_up_to_its_macs() -> None:
    shapes = load_backbone("imagenet224").distinct_shapes
    cells = [(o, s) for o in POOL for s in shapes if o.applies_to(s)]
    prepare_templates([Piece(o.name, s) for o, s in cells])
    for operator, shape in cells:
        graph = read_graph(template(Piece(operator.name, shape)).SerializeToString())
        assert sum(n.work.macs for n in graph.nodes) == operator.macs(shape), (operator, shape)


def test_kinds_tell_the_parts_of_an_operator_apart() -> None:
    piece = Piece("Choice_3_SE", LayerShape(14, 14, 320, 320, 1))
    graph = read_graph(template(piece).SerializeToString())
    kinds = [n.work.kind for n in graph.nodes if not (n.work.follows or n.work.kind == "view")]
    assert kinds == [
        "copy", "pointwise", "depthwise", "pointwise", "global_pool", "linear", "linear",
        "gate", "gate", "gate", "broadcast", "copy", "transpose",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "weights", "macs"),
    [
        (CONV, CONV_WEIGHT, 64 * 32 * 64),
        (
            [node("Conv", "x w", "y", group=4, strides=[2, 2], pads=[1, 1, 1, 1])],
            [("w", (8, 8, 3, 3))],
            9 * 8 * 8 * 16,
        ),
        ([node("ConvTranspose", "x w", "y", strides=[2, 2])], [("w", (32, 5, 2, 2))], 40960),
        ([node("Flatten", "x", "f"), node("Gemm", "f w", "y")], [("w", (2048, 10))], 20480),
        ([node("MatMul", "x w", "y")], [("w", (8, 3))], 32 * 8 * 8 * 3),
        ([node("MatMul", "x x", "y")], [], 32 * 8 * 8 * 8),
    ],
)
def test_macs_of_other_convolutions_and_products(
    nodes: list[onnx.NodeProto], weights: list[tuple[str, Sequence[int]]], macs: int
) -> None:
    assert sum(n.work.macs for n in read_graph(graph_of(nodes, weights=weights)).nodes) == macs


def test_a_file_that_is_no_onnx_graph_is_a_bad_request() -> None:
    whole = graph_of(CONV, weights=CONV_WEIGHT)
    for content in (b"", b"not a graph", whole[: len(whole) // 2]):
        with pytest.raises(BadRequest):
            read_graph(content)


def test_a_graph_without_fixed_shapes_is_unsupported() -> None:
    with pytest.raises(UnsupportedOperator, match="fixed"):
        read_graph(graph_of([node("Relu", "x", "y")], shape=("batch", 32, 8, 8)))


# --- the model ------------------------------------------------------------------------------


def test_a_node_takes_the_longer_of_computing_and_moving_plus_its_overhead() -> None:
    device = device_of()
    work = read_graph(graph_of(CONV, weights=CONV_WEIGHT)).nodes[0].work
    computing = 64 * 32 * 64 / 10e6
    moving = (32 * 64 + 64 * 64 + 64 * 32) / 1e6
    assert device.node_ms(work) == pytest.approx(max(computing, moving) + 0.01)
    assert computing > moving
    slow_memory = replace(device, memory=replace(device.memory, dram_gbs=0.1))
    assert slow_memory.node_ms(work) == pytest.approx(moving * 10 + 0.01)


def test_channels_and_width_are_padded_to_the_units_multiples() -> None:
    aligned = "[kinds.pointwise]\nalign_in = 24\nalign_out = 48\nalign_width = 5\n"
    device = device_of(QUIET.replace("[kinds.pointwise]\n", aligned))
    work = read_graph(graph_of(CONV, weights=CONV_WEIGHT)).nodes[0].work
    assert device.node_ms(work) == pytest.approx(48 * 96 * 8 * 10 / 10e6 + 0.01)


def test_small_tensors_stay_on_the_chip_and_weights_do_not() -> None:
    on_chip = "[memory]\non_chip_kib = 1\non_chip_gbs = 4.0\n"
    device = device_of(QUIET.replace("[memory]\n", on_chip))
    work = Work("Mystery", "elementwise", reads=(2048,), writes=(512,), weights=1000)
    assert device.node_ms(work) == pytest.approx((1024 / 4 + 1024 + 512 / 4 + 1000) / 1e6 + 0.01)


def test_kernel_cost_is_interpolated_between_the_listed_sides() -> None:
    device = load_device(DSP)
    times = {
        k: device.node_ms(Work("Conv", "depthwise", (k, k), 1, 320, 1, 56, 56))
        - device.memory.node_ms
        for k in (3, 4, 5, 7, 9)
    }
    assert times[5] / times[3] == pytest.approx(25 / 9 * 1.8)
    assert times[4] / times[3] == pytest.approx(16 / 9 * 1.4)
    assert times[9] / times[7] == pytest.approx(81 / 49)


def test_an_activation_after_a_convolution_is_free_unless_something_else_reads_between() -> None:
    device = device_of()
    fused = graph_of([node("Conv", "x w", "c"), node("Relu", "c", "y")], weights=CONV_WEIGHT)
    alone = graph_of(CONV, weights=CONV_WEIGHT)
    assert price(read_graph(fused), device).device_ms == price(read_graph(alone), device).device_ms
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Add", "c r", "y")]
    shared = price(read_graph(graph_of(nodes, weights=CONV_WEIGHT)), device)
    assert shared.nodes_ms[1] > 0


def test_views_and_what_is_computed_from_constants_cost_nothing() -> None:
    value = helper.make_tensor("v", TensorProto.INT64, [2], [1, 2048])
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=value),
        node("Add", "w w", "unused"),
        node("Reshape", "x shape", "y"),
    ]
    assert price(read_graph(graph_of(nodes, weights=CONV_WEIGHT)), device_of()).device_ms == 0


def test_the_price_of_a_call_is_apart_and_grows_with_the_graphs_edges() -> None:
    graph = read_graph(graph_of(CONV, weights=CONV_WEIGHT))
    device = device_of()
    priced = price(graph, device)
    assert priced.call_ms == 2.0
    moving = replace(device, call=replace(device.call, transfer_gbs=0.5))
    assert price(graph, moving).call_ms == pytest.approx(2.0 + (32 * 64 + 64 * 64) / 0.5e6)
    assert price(graph, moving).device_ms == priced.device_ms
    assert priced.total_ms == priced.call_ms + priced.device_ms


def test_every_activation_that_crosses_to_the_slow_unit_pays_once_in_each_direction() -> None:
    slow = '[slow_unit]\nname = "HOST"\nops = ["Sigmoid"]\nsync_ms = 100.0\ntransfer_gbs = 1.0\n'
    device = device_of(QUIET + slow)

    def crossings(nodes: list[onnx.NodeProto]) -> int:
        graph = read_graph(graph_of(nodes))
        return round(price(graph, device).device_ms / 100)

    assert crossings([node("Tanh", "x", "y")]) == 0
    assert crossings([node("Tanh", "x", "a"), node("Sigmoid", "a", "y")]) == 1
    there_and_back = [node("Tanh", "x", "a"), node("Sigmoid", "a", "b"), node("Tanh", "b", "y")]
    assert crossings(there_and_back) == 2
    twice_read = [
        node("Tanh", "x", "a"),
        node("Sigmoid", "a", "b"),
        node("Sigmoid", "a", "c"),
        node("Mul", "b c", "y"),
    ]
    assert crossings(twice_read) == 3
    chain = [node("Sigmoid", "x", "a"), node("Sigmoid", "a", "b"), node("Tanh", "b", "y")]
    assert crossings(chain) == 2


def test_unknown_op_types_are_elementwise_or_refused_as_the_device_file_says() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    work = Work("NonZero", "unknown", reads=(100,), writes=(100,))
    device = device_of()
    assert device.node_ms(work) == device.node_ms(replace(work, kind="elementwise")) > 0.01
    graph = read_graph(graph_of([node("Celu", "x", "y")]))
    assert graph.nodes[0].work.kind == "unknown"
    assert price(graph, device).device_ms > 0
    strict = replace(device, unknown_ops="unsupported")
    with pytest.raises(UnsupportedOperator, match="Celu"):
        price(graph, strict)
    with pytest.raises(UnsupportedOperator, match="fixed shape"):
        read_graph(graph_of(nodes))


@given(
    st.sampled_from([CPU, DSP, VPU]),
    st.sampled_from(["dense", "pointwise", "depthwise", "linear"]),
    *[st.integers(1, 200)] * 3,
    st.integers(1, 60),
)
def test_more_work_never_takes_less_time(
    name: str, kind: str, c_in: int, c_out: int, more: int, side: int
) -> None:
    def work(channels: int) -> Work:
        c = 1 if kind == "depthwise" else c_in
        pixels = side * side
        reads = ((channels if kind == "depthwise" else c_in) * pixels,)
        kernel = (3, 3) if kind in ("dense", "depthwise") else (1, 1)
        writes = (channels * pixels,)
        return Work("Conv", kind, kernel, c, channels, 1, side, side, reads, writes, c * channels)

    device = load_device(name)
    assert 0 < device.node_ms(work(c_out)) <= device.node_ms(work(c_out + more))


# --- additivity -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CPU, DSP, VPU])
def test_marginals_add_up_to_whole_networks(name: str) -> None:
    backbone = load_backbone("cifar32")
    device = with_options(load_device(name), name, {"call_ms": "1.0", "transfer_gbs": "0"})
    random = np.random.default_rng(3)
    plans = []
    for _ in range(3):
        fitting = [[o.name for o in POOL if o.applies_to(s)] for s in backbone.layers]
        plans.append([str(random.choice(names)) for names in fitting])

    def price_ms(pieces: Sequence[Piece]) -> float:
        return price(read_graph(export_context(pieces)), device).total_ms

    for operators in plans:
        pieces = architecture_pieces(backbone, operators)
        # A piece between its neighbours, less the neighbours' own time and one price of a call.
        ends = [price_ms([p]) - 1.0 for p in pieces]
        total = 1.0 + ends[0] + ends[-1]
        for i in range(1, len(pieces) - 1):
            around = price_ms(pieces[i - 1 : i + 2])
            total += around - 1.0 - ends[i - 1] - ends[i + 1]
        whole = price(read_graph(export_architecture(backbone, operators)), device).total_ms
        assert total == pytest.approx(whole, rel=1e-9)


def test_a_known_price_of_a_call_shifts_every_graph_by_itself_alone() -> None:
    device = load_device(DSP)
    shape = LayerShape(28, 28, 160, 160, 1)
    graphs = [
        read_graph(template(Piece(name, shape)).SerializeToString())
        for name in ("SEP_3", "Choice_3", "MB_7_3")
    ]
    free = with_options(device, "sim", {"call_ms": "0.0"})
    priced = with_options(device, "sim", {"call_ms": "1.0"})
    for graph in graphs:
        difference = price(graph, priced).total_ms - price(graph, free).total_ms
        assert difference == pytest.approx(1.0, rel=1e-9)


def test_fusion_across_layers_makes_a_graph_faster_than_the_sum_of_its_nodes() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b v", "y")]
    content = graph_of(nodes, weights=[*CONV_WEIGHT, ("v", (8, 64, 1, 1))])
    graph = read_graph(content)
    plain = price(graph, device_of())
    fused = price(graph, with_options(device_of(), "sim", {"fusion": "0.5"}))
    cheaper = min(t for t in plain.nodes_ms if t)
    assert plain.device_ms - fused.device_ms == pytest.approx(cheaper / 2)


# --- the paper's insights -------------------------------------------------------------------


@pytest.fixture(scope="module")
def insights() -> dict:
    return benchmark("simulated_insights").insights(load_backbone("imagenet224"))


def test_choice_3_is_the_fastest_plain_operator_on_the_cpu(insights: dict) -> None:
    found = insights["fastest_plain"][CPU]
    assert found["lowest_median_over_layers"] == "Choice_3"
    assert found["lowest_uniform_network"] == "Choice_3"
    assert found["share_of_stride_1_shapes"] == 1.0
    assert found["share_of_layers"] == 0.8
    assert found["median_over_next_best"] < 0.95


def test_sep_3_is_the_fastest_plain_operator_on_the_dsp_at_every_shape(insights: dict) -> None:
    found = insights["fastest_plain"][DSP]
    assert found["share_of_shapes"] == 1.0
    assert found["lowest_uniform_network"] == "SEP_3"


def test_at_stride_2_choice_computes_more_than_sep_of_every_kind() -> None:
    """Why no device of this model can have Choice_3 fastest there."""
    for shape in load_backbone("imagenet224").distinct_shapes:
        if not shape.keeps_shape:
            choice, sep = (parse_operator(n).macs(shape) for n in ("Choice_3", "SEP_3"))
            assert choice > 2 * sep


def test_squeeze_and_excitation_costs_the_vpu_what_the_paper_says(insights: dict) -> None:
    gap = insights["squeeze_gap_vpu_over_dsp"]
    assert 10 <= gap["median"] <= 40
    assert gap["share_between_10_and_40"] == 1.0


def test_large_kernels_cost_least_on_the_vpu_and_most_on_the_dsp(insights: dict) -> None:
    growth = insights["kernel_3_to_7"]
    for group in ("SEP", "MB", "Choice", "overall"):
        assert 1.0 < growth[VPU][group] < growth[CPU][group] < growth[DSP][group]


def test_the_best_operator_changes_from_layer_to_layer(insights: dict) -> None:
    for name, by_alpha in insights["best_by_score"].items():
        assert max(len(leaders) for leaders in by_alpha.values()) >= 2, name
    best = [max(insights["best_by_score"][n]["0.45"].items(), key=lambda i: i[1])[0]
            for n in (CPU, DSP, VPU)]  # fmt: skip
    assert len(set(best)) == 3


def test_similar_macs_do_not_mean_similar_latency(insights: dict) -> None:
    assert insights["similar_macs"][DSP]["median_ratio"] > 1.3
    assert insights["similar_macs"][VPU]["highest_ratio"] > 1.5
    networks = insights["uniform_networks_ms"][DSP]
    # 296 M against 384 M multiply-accumulates.
    assert networks["Choice_3"] > 1.5 * networks["SEP_3"]


def test_the_papers_budgets_lie_inside_what_can_be_reached(insights: dict) -> None:
    for name, budget in insights["budgets"].items():
        assert budget["lowest_ms"] * 1.5 < budget["budget_ms"] < budget["highest_ms"] / 1.5, name


# --- calibration ----------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "macs"), [(3, 220.11968e6), (1, 7.78304e6)])
def test_calibration_rebuilds_the_networks_that_were_measured(operation: int, macs: float) -> None:
    """NAS-Bench-201 publishes 220.12 and 7.78 M for these two cells."""
    works = benchmark("simulated_calibration").nasbench_network([operation] * 6)
    assert sum(work.macs * count for work, count in works.items()) == macs


def test_the_cpu_agrees_with_measurements_of_its_own_chip(data_folder: Path) -> None:
    module = benchmark("simulated_calibration")
    file = data_folder / "latency" / "nasbench201_devices_ms.csv"
    data = module.nasbench_problems(file, ["pixel3_cpu"], every=10)["pixel3_cpu"]
    found = module.errors(data.predict(load_device(CPU)), data.measured_ms)
    assert abs(found["bias"]) < 0.1
    assert found["rmspe"] < 0.2
    assert found["kendall_tau"] > 0.7


# --- device files ---------------------------------------------------------------------------


def test_every_shipped_device_is_read_and_labelled_simulated() -> None:
    assert set(device_names()) >= {CPU, DSP, VPU}
    found = simulated.targets(Context(simulate=("all",)))
    assert [t.name for t in found] == [f"sim-{name}" for name in device_names()]
    for target in found:
        assert target.availability == Availability.SIMULATED
        assert target.runtime.startswith("simulated_")
        assert target.options == OPTIONS
    assert {t.name: (t.processor, t.precision) for t in found} == {
        f"sim-{CPU}": ("cpu", "fp32"),
        f"sim-{DSP}": ("dsp", "int8"),
        f"sim-{VPU}": ("vpu", "fp16"),
    }


def test_nothing_is_simulated_unless_asked_for() -> None:
    assert simulated.targets(Context()) == []
    with pytest.raises(BadRequest, match="--simulate"):
        simulated.open_target(Context(), f"sim-{CPU}", {}, 1)


def test_a_device_is_one_file_given_by_its_path(tmp_path: Path, artefact: bytes) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(QUIET)
    context = Context(simulate=(str(file),))
    assert [t.name for t in simulated.targets(context)] == ["sim-mine"]
    loaded = simulated.open_target(context, "sim-mine", {}, 1).load(artefact, "onnx")
    assert loaded.timed_calls(1)[0].wall_ms > 2.0


def test_a_broken_device_file_is_told_in_the_targets_reason(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(QUIET.replace("gmacs = 1.0", "gmacs = -1.0"))
    found = simulated.targets(Context(simulate=(str(file), "nothing")))
    assert [t.availability for t in found] == [Availability.UNAVAILABLE] * 2
    assert "kinds.depthwise.gmacs must not be negative" in found[0].reason
    assert "hexagon685-dsp" in found[1].reason


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[memory]", "[memory", "is not TOML"),
        ("[memory]", "[mammary]", r"unknown section \[mammary\]"),
        ("dram_gbs = 1.0", "", "memory lacks 'dram_gbs'"),
        ("dram_gbs = 1.0", 'dram_gbs = "fast"', "memory.dram_gbs must be a number"),
        ("dram_gbs = 1.0", "dram_gbs = 0", "must be above 0"),
        ("dram_gbs = 1.0", "dram_gbs = nan", "must be a number"),
        ("node_ms = 0.01", "nod_ms = 0.01", "memory has no key 'nod_ms'"),
        ("element_bytes = 1", "element_bytes = 1.5", "whole number"),
        ('fused = ["Relu"]', 'fused = "Relu"', "must be a list"),
        ("device_time = true", "device_time = 1", "true or false"),
        ('processor = "dsp"', 'processor = "abacus"', "processor must be cpu or dsp"),
        ('runtime = "test"', 'runtime = "a runtime"', "runtime must be lower-case"),
        ("[kinds.linear]\ngmacs = 10.0", "", r"\[kinds.linear\] needs gmacs"),
        ("[kinds.linear]", "[kinds.liner]", "unknown kind of node 'liner'"),
        ('unit = "UNIT"', 'unit = "U"\nunknown_ops = "guess"', "elementwise or unsupported"),
        ("gmacs = 1.0", "gmacs = 1.0\nkernel_cost = { three = 1.0 }", "kernel_cost"),
        ("gmacs = 1.0", "gmacs = 1.0\n[disturbances]\nfusion = 2.0", "between 0 and 1"),
        ("gmacs = 1.0", 'gmacs = 1.0\n[slow_unit]\nname = "X"\nkinds = ["se"]', "unknown 'se'"),
    ],
)
def test_a_wrong_device_file_is_named_with_its_key(before: str, after: str, words: str) -> None:
    assert before in QUIET
    with pytest.raises(BadRequest, match=words) as caught:
        device_of(QUIET.replace(before, after, 1))
    assert "test.toml" in str(caught.value)


def test_the_version_follows_the_parameters_and_not_the_comments() -> None:
    assert device_of("# a comment\n" + QUIET).version == device_of().version
    assert device_of(QUIET.replace("gmacs = 1.0", "gmacs = 1.1")).version != device_of().version


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": "2"}, "no option 'speed'"),
        ({"call_ms": "fast"}, "must be a number"),
        ({"call_ms": "-1"}, "must not be negative"),
        ({"call_ms": "nan"}, "must be a number"),
        ({"outlier_probability": "1.5"}, "between 0 and 1"),
        ({"throttle_factor": "0"}, "above 0"),
        ({"warm_gain": "1.5"}, "between 0 and 1"),
        ({"cache_mib": "-1"}, "must not be negative"),
        ({"drift_most": "-0.1"}, "must not be negative"),
    ],
)
def test_wrong_options_are_bad_requests(options: dict[str, str], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        simulated.open_target(Context(simulate=(DSP,)), f"sim-{DSP}", options, 1)


def test_more_than_one_thread_is_refused() -> None:
    with pytest.raises(BadRequest, match="threads"):
        simulated.open_target(Context(simulate=(CPU,)), f"sim-{CPU}", {}, 2)


# --- clock, noise, disturbances -------------------------------------------------------------


def wall_ms(graph: simulated.SimulatedGraph, count: int) -> np.ndarray:
    return np.array([sample.wall_ms for sample in graph.timed_calls(count)])


def test_without_noise_every_call_takes_the_computed_time(tmp_path: Path, artefact: bytes) -> None:
    graph = session_of(tmp_path).load(artefact, "onnx")
    expected = price(read_graph(artefact), device_of())
    samples = graph.timed_calls(5)
    assert {s.wall_ms for s in samples} == {expected.total_ms}
    assert {s.device_ms for s in samples} == {expected.device_ms}
    assert graph.flags == ("simulated",)
    assert graph.compute_unit == "simulated:UNIT"


def test_device_time_is_reported_only_where_the_runtime_has_a_counter(
    tmp_path: Path, artefact: bytes
) -> None:
    text = QUIET.replace("device_time = true", "device_time = false")
    graph = session_of(tmp_path, text=text).load(artefact, "onnx")
    assert graph.timed_calls(1)[0].device_ms is None


def test_the_virtual_clock_advances_by_loads_and_calls_and_nobody_waits(
    tmp_path: Path, artefact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("slept"))
    session = session_of(tmp_path)
    graph = session.load(artefact, "onnx")
    loaded_ms = 3.0 + len(artefact) / 1e6
    assert session.elapsed_ms() == pytest.approx(loaded_ms)
    calls_ms = wall_ms(graph, 1000).sum()
    assert session.elapsed_ms() == pytest.approx(loaded_ms + calls_ms)


def test_at_real_pace_it_waits_as_long_as_its_clock_says(
    artefact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    context = Context(simulate=(DSP,), pace="real")
    session = simulated.open_target(context, f"sim-{DSP}", {}, 1)
    session.load(artefact, "onnx").timed_calls(7)
    assert sum(waited) * 1e3 == pytest.approx(session.elapsed_ms())
    assert session.elapsed_ms() > 7 * 1.0


def test_noise_is_seeded_and_independent_of_the_rest_of_the_batch(
    tmp_path: Path, artefact: bytes
) -> None:
    def samples(seed: int, batch: int, other: bool) -> list[float]:
        session = session_of(tmp_path, {"noise": "0.05"}, seed)
        session.begin(batch)
        if other:
            path = tmp_path / "other.onnx"
            path.write_bytes(graph_of([node("Relu", "x", "y")]))
            session.load(path.read_bytes(), "onnx").timed_calls(3)
        return wall_ms(session.load(artefact, "onnx"), 20).tolist()

    assert samples(1, 2, False) == samples(1, 2, True)
    assert samples(1, 2, False) != samples(2, 2, False)
    assert samples(1, 2, False) != samples(1, 3, False)


def test_noise_has_the_stated_spread_around_the_computed_time(
    tmp_path: Path, artefact: bytes
) -> None:
    graph = session_of(tmp_path, {"noise": "0.1", "call_jitter": "0.02"}).load(artefact, "onnx")
    expected = price(read_graph(artefact), device_of())
    samples = graph.timed_calls(4000)
    device = np.log([s.device_ms for s in samples if s.device_ms]) - np.log(expected.device_ms)
    call = np.array([s.wall_ms - (s.device_ms or 0) for s in samples]) / expected.call_ms
    assert np.std(device) == pytest.approx(0.1, rel=0.1)
    assert np.mean(device) == pytest.approx(0.0, abs=0.01)
    assert np.std(np.log(call)) == pytest.approx(0.02, rel=0.1)


def test_outliers_come_as_often_and_as_large_as_stated(tmp_path: Path, artefact: bytes) -> None:
    options = {"outlier_probability": "0.1", "outlier_factor": "20", "call_ms": "0"}
    walls = wall_ms(session_of(tmp_path, options).load(artefact, "onnx"), 5000)
    assert np.mean(walls > 1.5 * walls.min()) == pytest.approx(0.1, abs=0.02)
    assert set(np.round(walls / walls.min(), 9)) == {1.0, 20.0}


def test_a_bimodal_device_is_in_one_mode_for_a_whole_visit(tmp_path: Path, artefact: bytes) -> None:
    options = {"bimodal_probability": "0.5", "bimodal_factor": "3", "call_ms": "0"}
    graph = session_of(tmp_path, options).load(artefact, "onnx")
    visits = [set(np.round(wall_ms(graph, 4), 9)) for _ in range(50)]
    assert all(len(visit) == 1 for visit in visits)
    modes = sorted({value for visit in visits for value in visit})
    assert modes[1] / modes[0] == pytest.approx(3)


def test_drift_slows_calls_down_with_time(tmp_path: Path, artefact: bytes) -> None:
    options = {"drift_per_minute": "0.5", "call_ms": "100"}
    graph = session_of(tmp_path, options).load(artefact, "onnx")
    first = graph.timed_calls(600)[0].device_ms
    assert graph.timed_calls(1)[0].device_ms == pytest.approx(1.5 * (first or 0), rel=0.01)


def test_throttling_shows_in_times_and_conditions(tmp_path: Path, artefact: bytes) -> None:
    options = {"throttle_after_s": "10", "throttle_factor": "2", "call_ms": "100"}
    session = session_of(tmp_path, options)
    graph = session.load(artefact, "onnx")
    cold = graph.timed_calls(50)[0].device_ms
    warm = session.conditions()
    assert 40 < warm.temperature_c < 60
    assert (warm.frequency_mhz, warm.throttle_events) == (1000.0, 0)
    graph.timed_calls(60)
    hot = session.conditions()
    assert (hot.temperature_c, hot.frequency_mhz, hot.throttle_events) == (70.0, 500.0, 1)
    assert graph.timed_calls(1)[0].device_ms == pytest.approx(2 * (cold or 0))


def test_a_slower_board_is_slower_in_everything_and_no_other_target(
    tmp_path: Path, artefact: bytes
) -> None:
    shipped = resources.files("hurricane.agents.devices").joinpath(f"{DSP}.toml").read_text("utf-8")
    assert "[disturbances]" in shipped
    file = tmp_path / f"{DSP}.toml"
    file.write_text(shipped.replace("[disturbances]", "[disturbances]\nslower = 1.25"))
    kind, board = Context(simulate=(DSP,)), Context(simulate=(str(file),))
    assert simulated.targets(board) == simulated.targets(kind)

    took = []
    for context in (kind, board):
        session = simulated.open_target(context, f"sim-{DSP}", {}, 1)
        session.begin(0)
        graph = session.load(artefact, "onnx")
        samples = [(sample.wall_ms, sample.device_ms) for sample in graph.timed_calls(5)]
        took.append(np.array([(session.elapsed_ms(), 0.0), *samples], float))
    np.testing.assert_allclose(took[1], 1.25 * took[0], rtol=1e-12)


def test_being_slower_is_no_option_and_has_to_be_a_factor() -> None:
    with pytest.raises(BadRequest, match="no option 'slower'"):
        simulated.open_target(Context(simulate=(DSP,)), f"sim-{DSP}", {"slower": "1.1"}, 1)
    with pytest.raises(BadRequest, match="slower must be above 0"):
        device_of(QUIET + "[disturbances]\nslower = 0\n")


def test_drift_counts_the_time_of_loading_and_of_calls_alike(
    tmp_path: Path, artefact: bytes
) -> None:
    session = session_of(tmp_path, {"drift_per_minute": "0.3", "load_ms": "60000"})
    plain = price(read_graph(artefact), session.device).device_ms
    first = session.load(artefact, "onnx").timed_calls(1)[0].device_ms
    assert first == pytest.approx(1.3 * plain, rel=1e-4)
    graph = session.load(artefact, "onnx")
    for _ in range(3):
        minutes = session.elapsed_ms() / 60e3
        assert graph.timed_calls(100)[0].device_ms == pytest.approx((1 + 0.3 * minutes) * plain)


@pytest.mark.parametrize(("drift", "ends_at"), [("0.2", 1.1), ("-0.2", 0.9)])
def test_drift_ends_at_its_most_in_either_direction(
    tmp_path: Path, artefact: bytes, drift: str, ends_at: float
) -> None:
    options = {"drift_per_minute": drift, "drift_most": "0.1", "call_ms": "100"}
    graph = session_of(tmp_path, options).load(artefact, "onnx")
    plain = price(read_graph(artefact), device_of()).device_ms
    minute = [graph.timed_calls(150)[0].device_ms for _ in range(6)]
    shares = np.array([ms or 0 for ms in minute]) / plain - 1
    slope = np.sign(ends_at - 1)
    np.testing.assert_allclose(slope * shares, [0, 0.05, 0.1, 0.1, 0.1, 0.1], atol=0.001)


# --- the cache ------------------------------------------------------------------------------


def square(channels: int) -> bytes:
    """A 1x1 convolution on one pixel, of channels² weights."""
    weight = [("w", (channels, channels, 1, 1))]
    return graph_of(CONV, shape=(1, channels, 1, 1), weights=weight)


SIDE = 512
SQUARE_BYTES = SIDE * SIDE + 2 * SIDE
"""Memory of a graph of `squares`: weights, input and output at one byte each."""


def squares(
    tmp_path: Path, cache_bytes: float, count: int
) -> tuple[list[simulated.SimulatedGraph], float]:
    """Graphs of equal size on a device with a cache; their plain time in ms."""
    options = {"warm_gain": "0.4", "cache_mib": repr(cache_bytes / 2**20), "call_ms": "0"}
    session = session_of(tmp_path, options)
    graphs = [session.load(square(SIDE), "onnx") for _ in range(count)]
    return graphs, price(read_graph(square(SIDE)), device_of()).device_ms


def saved(graph: simulated.SimulatedGraph, plain_ms: float) -> float:
    """Share of the most that a cache can save that one call saved."""
    return (1 - wall_ms(graph, 1)[0] / plain_ms) / 0.4


def test_a_call_touches_weights_and_the_activations_of_the_largest_node() -> None:
    nodes = [node("Conv", "x w", "a"), node("Tanh", "a", "b"), node("Conv", "b v", "y")]
    graph = read_graph(graph_of(nodes, weights=[*CONV_WEIGHT, ("v", (8, 64, 1, 1))]))
    device = device_of()
    assert device.touched(graph) == 64 * 32 + 8 * 64 + 2 * 64 * 64
    assert replace(device, element_bytes=4).touched(graph) == 4 * device.touched(graph)


def test_a_graph_among_others_that_fill_the_cache_takes_its_plain_time(tmp_path: Path) -> None:
    graphs, plain = squares(tmp_path, 4 * SQUARE_BYTES, count=5)
    rounds = [[wall_ms(graph, 1)[0] for graph in graphs] for _ in range(3)]
    assert set(np.ravel(rounds)) == {plain}


def test_a_graph_that_is_looped_saves_all_but_in_its_first_call(tmp_path: Path) -> None:
    (graph,), plain = squares(tmp_path, 4 * SQUARE_BYTES, count=1)
    assert wall_ms(graph, 4) / plain == pytest.approx([1, 0.6, 0.6, 0.6])


def test_what_others_left_of_a_graph_is_saved_in_part(tmp_path: Path) -> None:
    graphs, plain = squares(tmp_path, 2.75 * SQUARE_BYTES, count=4)
    for others, share in ((0, 1), (1, 1), (2, 0.75), (3, 0)):
        graphs[0].timed_calls(1)
        for other in graphs[1 : 1 + others]:
            other.timed_calls(1)
        assert saved(graphs[0], plain) == pytest.approx(share), others


def test_a_graph_larger_than_the_cache_is_never_wholly_warm(tmp_path: Path) -> None:
    (graph,), plain = squares(tmp_path, 0.25 * SQUARE_BYTES, count=1)
    graph.timed_calls(1)
    assert saved(graph, plain) == pytest.approx(0.25)


def test_another_graph_called_often_evicts_no_more_than_called_once(tmp_path: Path) -> None:
    (one, other), plain = squares(tmp_path, 2 * SQUARE_BYTES, count=2)
    one.timed_calls(1)
    other.timed_calls(10)
    assert saved(one, plain) == pytest.approx(1)


def test_the_least_recently_called_graph_is_evicted_first(tmp_path: Path) -> None:
    (a, b, c), plain = squares(tmp_path, 2 * SQUARE_BYTES, count=3)
    for graph in (a, b, a, c):  # a came first, but was called again
        graph.timed_calls(1)
    assert saved(a, plain) == pytest.approx(1)
    assert saved(b, plain) == 0


def test_a_graph_is_cold_after_loading_and_leaves_the_cache_when_closed(tmp_path: Path) -> None:
    (a, b, c), plain = squares(tmp_path, 2 * SQUARE_BYTES, count=3)  # one file, three loadings
    assert [saved(graph, plain) for graph in (a, b)] == [0, 0]
    b.close()
    assert saved(c, plain) == 0
    assert saved(a, plain) == pytest.approx(1)


def test_what_the_cache_holds_outlives_a_request_and_not_the_worker(tmp_path: Path) -> None:
    def visits(seed: int) -> list[float]:
        session = session_of(tmp_path, {"warm_gain": "0.4", "cache_mib": "1", "call_ms": "0"})
        graphs = [session.load(square(SIDE), "onnx") for _ in range(2)]
        plain = price(read_graph(square(SIDE)), session.device).device_ms
        found = []
        for request in range(2):
            session.begin(seed + request)
            found += [saved(graph, plain) for graph in graphs]
        return found

    first = visits(0)
    assert first == pytest.approx([0, 0, 1, 1])
    assert visits(0) == first
    assert visits(7) == first  # seeds draw noise, of which there is none


def test_the_cache_has_a_part_in_the_version_only_where_it_acts() -> None:
    def version(**options: str) -> str:
        return with_options(device_of(), "sim", options).version

    assert version(cache_mib="8") == version() == device_of().version
    assert len({version(warm_gain="0.2", cache_mib=mib) for mib in ("0", "8", "9")}) == 3
    assert version(drift_most="0.1") == version()
    assert version(drift_per_minute="0.2", drift_most="0.1") != version(drift_per_minute="0.2")


def test_without_a_size_the_cache_holds_the_graph_called_last(
    tmp_path: Path, artefact: bytes
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(graph_of([node("Tanh", "x", "y")]))
    session = session_of(tmp_path, {"warm_gain": "0.25", "call_ms": "0"})
    one, two = session.load(artefact, "onnx"), session.load(other.read_bytes(), "onnx")
    first = wall_ms(one, 3)
    assert first[1:] / first[0] == pytest.approx([0.75, 0.75])
    assert wall_ms(one, 1)[0] == first[1]
    two.timed_calls(1)
    assert wall_ms(one, 1)[0] == first[0]


def test_a_graph_falls_back_by_op_type_or_digest_and_says_so(
    tmp_path: Path, artefact: bytes
) -> None:
    normal = session_of(tmp_path).load(artefact, "onnx").timed_calls(1)[0].device_ms
    digest = hashlib.sha256(artefact).hexdigest()
    for named in ("Conv", digest[:8], digest):
        graph = session_of(tmp_path, {"fallback_on": named}).load(artefact, "onnx")
        assert graph.flags == ("simulated", "fallback:cpu")
        assert graph.compute_unit == "simulated:CPU"
        assert graph.timed_calls(1)[0].device_ms == pytest.approx(8 * (normal or 0))
    for named in ("Gemm", "0" * 64, digest[:4]):
        graph = session_of(tmp_path, {"fallback_on": named}).load(artefact, "onnx")
        assert graph.flags == ("simulated",)


def test_a_hang_passes_any_time_limit_on_the_virtual_clock(tmp_path: Path, artefact: bytes) -> None:
    session = session_of(tmp_path, {"hang_on": "Conv", "throttle_after_s": "60"})
    session.load(artefact, "onnx").timed_calls(1)
    assert session.elapsed_ms() >= 3_600_000
    assert session.conditions().throttle_events == 0


@pytest.mark.process
def test_a_crash_kills_the_process(tmp_path: Path, artefact: bytes) -> None:
    code = (
        "from hurricane.agents.backends import simulated as s\n"
        "from hurricane.agents.backends.base import Context\n"
        f"t = s.open_target(Context(simulate=({DSP!r},)), 'sim-{DSP}', {{'crash_on': 'Conv'}}, 1)\n"
        f"g = t.load({artefact!r}, 'onnx')\n"
        "print('loaded', flush=True)\n"
        "g.timed_calls(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "loaded\n"
    assert done.returncode == -signal.SIGSEGV


def test_a_device_drops_off_after_its_time(tmp_path: Path, artefact: bytes) -> None:
    session = session_of(tmp_path, {"lost_after_s": "1", "call_ms": "100"})
    graph = session.load(artefact, "onnx")
    graph.timed_calls(20)
    with pytest.raises(DeviceLost):
        graph.timed_calls(1)
    with pytest.raises(DeviceLost):
        session.load(artefact, "onnx")


def test_an_artefact_larger_than_the_memory_does_not_fit(tmp_path: Path, artefact: bytes) -> None:
    with pytest.raises(OutOfMemory, match="MiB"):
        session_of(tmp_path, {"memory_mib": "0.001"}).load(artefact, "onnx")
    session_of(tmp_path, {"memory_mib": "1"}).load(artefact, "onnx")


def test_unsupported_op_types_are_refused(tmp_path: Path, artefact: bytes) -> None:
    with pytest.raises(UnsupportedOperator, match="Conv"):
        session_of(tmp_path, {"unsupported_ops": "Gemm, Conv"}).load(artefact, "onnx")
    session_of(tmp_path, {"unsupported_ops": "Gemm"}).load(artefact, "onnx")


def test_a_device_that_is_not_resident_holds_one_graph(tmp_path: Path, artefact: bytes) -> None:
    text = QUIET.replace("device_time = true", "device_time = true\nresident = false")
    session = session_of(tmp_path, text=text)
    assert not simulated.targets(Context(simulate=(str(tmp_path / "mine.toml"),)))[0].resident
    first = session.load(artefact, "onnx")
    with pytest.raises(OutOfMemory, match="one graph"):
        session.load(artefact, "onnx")
    first.close()
    session.load(artefact, "onnx")


def test_the_slow_unit_is_named_among_units_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "se.onnx"
    piece = Piece("Choice_3_SE", LayerShape(7, 7, 640, 640, 1))
    path.write_bytes(export_context([piece]))
    session = simulated.open_target(Context(simulate=(VPU,)), f"sim-{VPU}", {}, 1)
    graph = session.load(path.read_bytes(), "onnx")
    assert graph.compute_unit == "simulated:NCE+SHAVE"
    assert graph.flags == ("simulated", "slow-unit:shave")


def test_outputs_are_those_of_onnxruntime(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "block.onnx"
    path.write_bytes(export_context([Piece("MB_3_3_SE", LayerShape(8, 8, 16, 16, 1))]))
    graph = simulated.open_target(Context(simulate=(DSP,)), f"sim-{DSP}", {}, 1).load(
        path.read_bytes(), "onnx"
    )
    (tensor,) = graph.inputs()
    assert (tensor.name, tensor.dtype, tensor.shape) == ("input", "float32", (1, 16, 8, 8))
    given_inputs = {"input": np.random.default_rng(0).random(tensor.shape, dtype=np.float32)}
    (expected,) = runtime.InferenceSession(str(path)).run(None, given_inputs)
    np.testing.assert_allclose(
        graph.outputs(given_inputs)["output"], expected, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(BadRequest, match="missing"):
        graph.outputs({})


@pytest.mark.process
def test_serving_the_backend_imports_onnx_only_when_a_graph_is_read() -> None:
    code = (
        "import sys\n"
        "from hurricane.agents.backends import simulated as s\n"
        "from hurricane.agents.backends.base import Context\n"
        f"c = Context(simulate=('all',)); s.targets(c); s.open_target(c, 'sim-{DSP}', {{}}, 1)\n"
        "assert not {'onnx', 'torch', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_graph_is_priced_once_for_each_digest(
    tmp_path: Path, artefact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counting(content: bytes) -> WorkGraph:
        read.append(len(content))
        return read_graph(content)

    monkeypatch.setattr(simulated, "read_graph", counting)
    session = session_of(tmp_path)
    for _ in range(3):
        session.load(artefact, "onnx").timed_calls(2)
    assert len(read) == 1


# --- one request after the other ------------------------------------------------------------


class Board:
    """A worker's bench on a simulated device: requests that keep their graphs loaded."""

    def __init__(self, tmp_path: Path, artefact: bytes, **options: object) -> None:
        texts = {name: str(value) for name, value in options.items()}
        self.session = session_of(tmp_path, texts)
        with tempfile.TemporaryFile() as memory:
            memory.truncate(Heartbeat.SIZE)
            self._bench = Bench(self.session, Heartbeat(memory.fileno()), lambda digest: artefact)
        digest = hashlib.sha256(artefact).hexdigest()
        self._artefact = digest

    def request(self, seed: int, rounds: int = 10) -> tuple[np.ndarray, dict]:
        """Device times [rounds, 3] in ms, and the whole result."""
        protocol = Protocol(rounds, 3, 1, seed, artifact_timeout_s=1e9, keep_loaded=True)
        (result,) = self._bench.measure([self._artefact], "onnx", protocol, True)["results"]
        return np.array(result["device_ms"]).reshape(rounds, 3), result


@pytest.fixture
def computed_ms(artefact: bytes) -> float:
    """Noise-free device time of the artefact."""
    return price(read_graph(artefact), device_of()).device_ms


def test_drift_goes_on_from_one_request_to_the_next(
    tmp_path: Path, artefact: bytes, computed_ms: float
) -> None:
    # A call costs a second: one to warm up, and 30 a request.
    board = Board(tmp_path, artefact, drift_per_minute=0.1, call_ms=1000)
    for seed in range(3):
        times, _ = board.request(seed)
        worked_s = 1 + 30 * seed
        assert times[0, 0] == pytest.approx(computed_ms * (1 + 0.1 * worked_s / 60), rel=1e-4)
        assert np.all(np.diff(times[:, 0]) > 0)


def test_throttling_begins_in_one_request_and_lasts_in_the_next(
    tmp_path: Path, artefact: bytes, computed_ms: float
) -> None:
    board = Board(tmp_path, artefact, throttle_after_s=45, throttle_factor=2, call_ms=1000)
    (cool, _), (turning, second), (hot, third) = (board.request(seed) for seed in range(3))
    assert np.all(cool == computed_ms)
    assert set(turning.ravel()) == {computed_ms, 2 * computed_ms}
    assert np.all(np.diff(turning[:, 0]) >= 0)
    assert np.all(hot == 2 * computed_ms)
    assert "throttled" in second["flags"]
    # The event is over; the clock is still low.
    assert "throttled" not in third["flags"]
    assert [third[when]["frequency_mhz"] for when in ("before", "after")] == [500.0, 500.0]
    assert second["before"]["temperature_c"] < second["after"]["temperature_c"] == 70.0


def test_throttling_while_graphs_are_loaded_belongs_to_the_request(
    tmp_path: Path, artefact: bytes
) -> None:
    board = Board(tmp_path, artefact, throttle_after_s=45, load_ms=50_000, call_ms=1)
    _, result = board.request(0)
    assert "throttled" in result["flags"]
    assert [result[when]["throttle_events"] for when in ("before", "after")] == [0, 1]


@pytest.mark.process
def test_slow_visits_and_outliers_come_anew_with_each_seed_and_as_often_as_stated(
    tmp_path: Path, artefact: bytes, computed_ms: float
) -> None:
    board = Board(
        tmp_path,
        artefact,
        bimodal_probability=0.25,
        bimodal_factor=2,
        outlier_probability=0.1,
        outlier_factor=7,
    )
    factors = np.stack([board.request(seed, 200)[0] for seed in range(10)]) / computed_ms
    slow = np.isin(np.round(factors, 9), (2, 14))
    late = np.isin(np.round(factors, 9), (7, 14))
    assert np.all(slow | late | (np.round(factors, 9) == 1))
    assert np.all(slow == slow[..., :1])
    assert np.mean(slow) == pytest.approx(0.25, abs=0.03)
    assert np.mean(late) == pytest.approx(0.1, abs=0.015)
    assert len({request.tobytes() for request in factors}) == 10
    # The same request again is the same noise, on whatever day.
    np.testing.assert_array_equal(board.request(4, 200)[0], computed_ms * factors[4])


@pytest.mark.process
def test_a_kept_board_goes_on_where_it_was_and_a_new_one_begins_anew(
    tmp_path: Path, artefact: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = "hurricane.agents.backends.simulated"
    monkeypatch.setattr("hurricane.agents.supervisor.backend_names", lambda: [backend])
    (tmp_path / "mine.toml").write_text(QUIET)
    server = AgentServer("127.0.0.1:0", Context("host", (str(tmp_path / "mine.toml"),)))
    server.start()
    try:
        with AgentClient(server.address) as client:
            digest = client.upload(artefact)

            def times(keep_loaded: bool) -> np.ndarray:
                protocol = Protocol(rounds=5, calls_per_visit=1, keep_loaded=keep_loaded)
                options = {"drift_per_minute": "1", "call_ms": "1000"}
                results = client.benchmark([digest], "sim-mine", options=options, protocol=protocol)
                wall_ms = results[digest].wall_ms.ravel()
                assert np.all(np.diff(wall_ms) > 0)
                return wall_ms

            first, second, third = times(True), times(False), times(True)
            assert second[0] > first[-1]
            np.testing.assert_array_equal(third, first)
    finally:
        server.stop()
