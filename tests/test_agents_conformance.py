"""What every backend promises, checked for every target that is available on this machine.

A new backend is covered as soon as it is there: targets come from the agent, the simulated ones
included. Graphs are tiny, so that the suite costs little.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from hurricane.agents.backends import backend_names
from hurricane.agents.backends.base import Availability, Context, TargetInfo
from hurricane.agents.client import AgentClient, Protocol
from hurricane.agents.errors import AgentError, BadRequest, ErrorKind
from hurricane.agents.server import AgentServer
from hurricane.agents.supervisor import discover

onnx = pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

CONTEXT = Context(device_name="this machine", simulate=("all",), seed=1)
# Kept loaded: the tests of one target share a worker.
QUICK = Protocol(rounds=3, calls_per_visit=2, warmup_calls=1, keep_loaded=True)
SHAPE = (1, 8, 12, 12)


def discovered() -> list[TargetInfo]:
    return [target for target in discover(CONTEXT).targets if "onnx" in target.formats]


TARGETS = discovered()
USABLE = [target for target in TARGETS if target.availability != Availability.UNAVAILABLE]
# A simulation times graphs that it need not be able to compute.
COMPUTING = [target for target in USABLE if target.availability != Availability.SIMULATED]
SIMULATED = [target for target in USABLE if target.availability == Availability.SIMULATED]


def each(targets: list[TargetInfo]) -> pytest.MarkDecorator:
    # Of module scope, so that all tests of a target run one after the other.
    return pytest.mark.parametrize(
        "target", targets, ids=[target.name for target in targets], scope="module"
    )


def conv_graph(operator: str = "Relu", seed: int = 0, copies: int = 1) -> bytes:
    """Convolutions 3×3 on 8 channels, each followed by an operator without attributes."""
    weights = np.random.default_rng(seed).normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32)
    nodes, last = [], "x"
    for index in range(copies):
        pads = [1, 1, 1, 1]
        nodes.append(helper.make_node("Conv", [last, "w"], [f"c{index}"], pads=pads))
        nodes.append(helper.make_node(operator, [f"c{index}"], [f"r{index}"]))
        last = f"r{index}"
    return model_of(nodes, last, [numpy_helper.from_array(weights, "w")])


def model_of(nodes: list, output: str, initializers: list, shape: tuple = SHAPE) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, list(shape))],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    return model.SerializeToString()


@dataclass
class Board:
    client: AgentClient

    def measure(self, target: TargetInfo, *contents: bytes, **settings: object) -> list:
        digests = [self.client.upload(content) for content in contents]
        request: dict = {"protocol": QUICK, **settings}
        results = self.client.benchmark(digests, target.name, **request)
        return [results[digest] for digest in digests]


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    server = AgentServer("127.0.0.1:0", CONTEXT)
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield Board(client)
    finally:
        server.stop()


def test_every_backend_file_offers_a_target() -> None:
    assert len(backend_names()) >= 2
    names = [target.name for target in TARGETS]
    assert "cpu-onnxruntime-fp32" in names
    assert "cpu-openvino-fp32" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_says_what_it_is(target: TargetInfo) -> None:
    if target.name.startswith("sim-"):
        assert target.availability in (Availability.SIMULATED, Availability.UNAVAILABLE)
    else:
        parts = (target.processor, target.runtime, target.precision)
        assert target.name == "-".join(parts)
        assert target.device == CONTEXT.device_name
    assert target.processor in ("cpu", "dsp", "vpu", "npu", "gpu")
    assert target.runtime
    assert target.precision
    assert target.max_threads >= 1
    if target.availability == Availability.UNAVAILABLE:
        assert target.reason
    else:
        assert target.runtime_version
        assert not target.reason


@each(USABLE)
def test_every_call_is_timed(board: Board, target: TargetInfo) -> None:
    graphs = [conv_graph(seed=seed) for seed in range(3)]
    for result in board.measure(target, *graphs):
        assert result.error is None
        assert result.wall_ms.shape == (3, 2)
        assert np.all(np.isfinite(result.wall_ms))
        assert np.all(result.wall_ms > 0)
        assert result.load_ms > 0
        assert result.first_call_ms > 0
        assert result.compute_unit
        assert result.wall.samples == 6
        assert result.wall.min_ms <= result.wall.p10_ms <= result.wall.median_ms
        assert result.wall.median_ms <= result.wall.p90_ms
        if target.device_time:
            assert result.device_ms.shape == (3, 2)
            assert np.all(result.device_ms > 0)
        else:
            assert result.device_ms is None


@each(USABLE)
def test_a_corrupt_file_is_a_typed_error_and_costs_itself_only(
    board: Board, target: TargetInfo
) -> None:
    truncated = conv_graph()[:-40]
    garbage, good, cut = board.measure(target, b"\x08\x07garbage" * 9, conv_graph(), truncated)
    for result in (garbage, cut):
        assert result.error is not None
        assert result.error.kind == ErrorKind.BAD_REQUEST
        assert "\n" not in str(result.error)
    assert good.error is None
    assert board.measure(target, conv_graph())[0].error is None


@each(COMPUTING)
def test_an_operator_that_does_not_exist_is_unsupported(board: Board, target: TargetInfo) -> None:
    (result,) = board.measure(target, conv_graph("Nonsense"))
    assert result.error is not None
    assert result.error.kind == ErrorKind.UNSUPPORTED_OPERATOR


@each(USABLE)
def test_a_shape_that_is_not_fixed_is_refused_in_words(board: Board, target: TargetInfo) -> None:
    graph = model_of([helper.make_node("Relu", ["x"], ["y"])], "y", [], ("n", 8, 12, 12))
    (result,) = board.measure(target, graph)
    assert result.error is not None
    assert result.error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.UNSUPPORTED_OPERATOR)
    assert "shape" in str(result.error)


@each(USABLE)
def test_an_unknown_option_is_a_bad_request(board: Board, target: TargetInfo) -> None:
    with pytest.raises(BadRequest, match="no option 'flux_capacitor'"):
        board.measure(target, conv_graph(), options={"flux_capacitor": "1"})


@each(COMPUTING)
def test_a_value_that_an_option_cannot_have_is_a_bad_request(
    board: Board, target: TargetInfo
) -> None:
    for option in target.options:
        with pytest.raises(BadRequest, match=option):
            board.measure(target, conv_graph(), options={option: "no such value"})


@each(USABLE)
def test_threads_are_those_it_has(board: Board, target: TargetInfo) -> None:
    (result,) = board.measure(target, conv_graph(), threads=target.max_threads)
    assert result.error is None
    with pytest.raises(BadRequest, match="threads"):
        board.measure(target, conv_graph(), threads=target.max_threads + 1)


@each(USABLE)
def test_a_format_it_does_not_take_is_a_bad_request(board: Board, target: TargetInfo) -> None:
    with pytest.raises(BadRequest, match="punch-cards"):
        board.measure(target, conv_graph(), format="punch-cards")


@each(USABLE)
def test_outputs_are_those_of_the_reference(board: Board, target: TargetInfo) -> None:
    content = conv_graph(copies=2)
    x = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    digest = board.client.upload(content)
    try:
        outputs = board.client.run(digest, target.name, {"x": x})
    except AgentError:
        # A simulation may tell times only; a real target has to compute.
        assert target.availability == Availability.SIMULATED
        return
    from onnx.reference import ReferenceEvaluator

    (expected,) = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"x": x})
    tolerance = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[target.precision]
    scale = float(np.max(np.abs(expected)))
    assert outputs["r1"].dtype == np.float32
    assert np.max(np.abs(outputs["r1"] - expected)) <= tolerance * scale
    with pytest.raises(BadRequest, match="x"):
        board.client.run(digest, target.name, {})


@each(USABLE)
def test_graphs_may_stay_loaded(board: Board, target: TargetInfo) -> None:
    graphs = [conv_graph(seed=seed) for seed in range(2)]
    first = board.measure(target, *graphs)
    second = board.measure(target, *graphs)
    for before, after in zip(first, second, strict=True):
        assert before.error is None
        assert after.error is None
        if target.resident:
            assert after.load_ms == before.load_ms


@each(SIMULATED)
def test_a_simulation_repeats_itself(board: Board, target: TargetInfo) -> None:
    graphs = [conv_graph(seed=seed) for seed in range(3)]
    # A worker of its own for each: what is kept loaded goes on where it was.
    alone = dataclasses.replace(QUICK, keep_loaded=False)
    _, first, again = (board.measure(target, *graphs, protocol=alone) for _ in range(3))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.wall_ms, other.wall_ms)
        assert math.isclose(one.load_ms, other.load_ms, rel_tol=1e-9)


@each([target for target in COMPUTING if target.precision == "fp32"])
def test_single_precision_is_never_lowered_silently(board: Board, target: TargetInfo) -> None:
    (result,) = board.measure(target, conv_graph())
    assert not any(flag.startswith("precision:") for flag in result.flags)
