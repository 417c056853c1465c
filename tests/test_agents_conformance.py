"""What every backend promises, checked for every target of this machine in its own formats.

A new backend is covered as soon as it is there: targets come from the agent, the simulated ones
included, and artefacts are made as the host makes them for a table. Graphs are tiny, so that the
suite costs little. A target whose runtime is absent is skipped with the reason.

``HURRICANE_TEST_AGENT=HOST:PORT`` asks an agent that runs already, such as one of another Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
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
from hurricane.ops.artifacts import edges

onnx = pytest.importorskip("onnx", reason="onnx, which makes the test graphs, is not installed")
from .agents_artifacts import BROKEN, SHAPE, convolutions, made, recipe_of  # noqa: E402

pytestmark = pytest.mark.process

CONTEXT = Context(device_name="this machine", simulate=("all",), seed=1)
# Kept loaded: the tests of one target share a worker.
QUICK = Protocol(rounds=3, calls_per_visit=2, warmup_calls=1, keep_loaded=True)
# Simulations and estimates time graphs that they need not be able to compute.
COMPUTES = (Availability.AVAILABLE, Availability.EMULATED)
TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.05}
"""Largest difference from the reference, as a share of the largest value."""

ADDRESS = os.environ.get("HURRICANE_TEST_AGENT", "")


def _targets() -> list[TargetInfo]:
    if not ADDRESS:
        return list(discover(CONTEXT).targets)
    with AgentClient(ADDRESS) as client:
        return list(client.describe().targets)


TARGETS = _targets()
USABLE = [target for target in TARGETS if target.availability != Availability.UNAVAILABLE]
TIMED = [target for target in USABLE if target.availability.timed]
COMPUTING = [target for target in USABLE if target.availability in COMPUTES]
REPEATING = [target for target in TIMED if target not in COMPUTING]


def each(targets: list[TargetInfo]) -> pytest.MarkDecorator:
    # Of module scope, so that all tests of a target run one after the other.
    return pytest.mark.parametrize(
        "target", targets, ids=[target.name for target in targets], scope="module"
    )


@dataclass
class Board:
    client: AgentClient

    def measure(self, target: TargetInfo, *contents: bytes, **settings: object) -> list:
        digests = [self.client.upload(content) for content in contents]
        request: dict = {"protocol": QUICK, "format": recipe_of(target).format, **settings}
        if target not in TIMED:  # it is asked for no time
            request["protocol"] = dataclasses.replace(
                request["protocol"], rounds=0, keep_loaded=True
            )
        results = self.client.benchmark(digests, target.name, **request)
        return [results[digest] for digest in digests]

    def outputs(self, target: TargetInfo, content: bytes, x: np.ndarray) -> np.ndarray:
        """The one output for a real-valued input, both in ONNX's layout."""
        format = recipe_of(target).format
        around = edges(content, format)
        (entry,), (result,) = around.inputs, around.outputs
        digest = self.client.upload(content)
        outputs = self.client.run(digest, target.name, {entry.name: entry.encode(x)}, format=format)
        assert set(outputs) == {result.name}
        assert outputs[result.name].dtype == np.dtype(result.dtype)
        assert outputs[result.name].shape == result.shape
        return result.decode(outputs[result.name])


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    if ADDRESS:
        with AgentClient(ADDRESS) as client:
            yield Board(client)
        return
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
    for runtime in ("onnxruntime", "openvino", "litert"):
        assert {f"cpu-{runtime}-fp32", f"cpu-{runtime}-int8"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_says_what_it_is(target: TargetInfo) -> None:
    if target.name.startswith("sim-"):
        assert target.availability in (Availability.SIMULATED, Availability.UNAVAILABLE)
    else:
        parts = (target.processor, target.runtime, target.precision)
        assert target.name == "-".join(parts)
        assert target.device
    assert target.processor in ("cpu", "dsp", "vpu", "npu", "gpu")
    assert target.runtime
    assert target.precision
    assert target.max_threads >= 1
    # The host makes an artefact for it, and the tests below can break one.
    assert recipe_of(target).format in BROKEN
    if target.availability == Availability.UNAVAILABLE:
        assert target.reason
        pytest.skip(target.reason)
    assert target.runtime_version
    assert not target.reason


@each([target for target in USABLE if target not in TIMED])
def test_nothing_is_timed_where_nothing_can_be(board: Board, target: TargetInfo) -> None:
    digest = board.client.upload(made(target, convolutions()))
    with pytest.raises(BadRequest, match="no latency"):
        board.client.benchmark([digest], target.name, protocol=QUICK)


@each(TIMED)
def test_every_call_is_timed(board: Board, target: TargetInfo) -> None:
    graphs = [made(target, convolutions(seed)) for seed in range(3)]
    for result in board.measure(target, *graphs):
        assert result.error is None
        assert result.wall_ms.shape == (3, 2)
        assert np.all(np.isfinite(result.wall_ms))
        assert np.all(result.wall_ms > 0)
        # What is estimated is no loading.
        assert result.load_ms > 0 or target.availability == Availability.ESTIMATED
        assert result.first_call_ms > 0
        assert result.wall.samples == 6
        assert result.wall.min_ms <= result.wall.p10_ms <= result.wall.median_ms
        assert result.wall.median_ms <= result.wall.p90_ms
        if target.device_time:
            assert result.device_ms.shape == (3, 2)
            assert np.all(result.device_ms > 0)
        else:
            assert result.device_ms is None


@each(USABLE)
def test_where_a_graph_ran_is_told(board: Board, target: TargetInfo) -> None:
    (result,) = board.measure(target, made(target, convolutions()))
    assert result.compute_unit
    # tflite-runtime gives XNNPACK nothing of an int8 graph; all others run all of this one.
    if not target.runtime_version.startswith("tflite-runtime"):
        assert not [flag for flag in result.flags if flag.startswith("fallback")]
    assert not [flag for flag in result.flags if flag.startswith("precision")]


@each(USABLE)
def test_a_broken_file_is_a_typed_error_and_costs_itself_only(
    board: Board, target: TargetInfo
) -> None:
    sound = made(target, convolutions())
    garbage, good, cut = board.measure(target, b"\x08\x07garbage" * 9, sound, sound[:-40])
    for result in (garbage, cut):
        assert result.error is not None
        assert result.error.kind == ErrorKind.BAD_REQUEST
        assert "\n" not in str(result.error)
    assert good.error is None
    assert board.measure(target, sound)[0].error is None


@each([t for t in USABLE if t.availability != Availability.SIMULATED])
def test_an_operator_that_does_not_exist_is_unsupported(board: Board, target: TargetInfo) -> None:
    broken = BROKEN[recipe_of(target).format].unknown_operator(made(target, convolutions()))
    (result,) = board.measure(target, broken)
    assert result.error is not None
    assert result.error.kind == ErrorKind.UNSUPPORTED_OPERATOR


@each(USABLE)
def test_a_shape_that_is_not_fixed_is_refused_in_words(board: Board, target: TargetInfo) -> None:
    open_shape = BROKEN[recipe_of(target).format].open_shape(made(target, convolutions()))
    (result,) = board.measure(target, open_shape)
    assert result.error is not None
    assert result.error.kind in (ErrorKind.BAD_REQUEST, ErrorKind.UNSUPPORTED_OPERATOR)
    assert "shape" in str(result.error)


@each(COMPUTING)
def test_a_graph_larger_than_memory_costs_itself_only(board: Board, target: TargetInfo) -> None:
    sound = made(target, convolutions())
    huge = BROKEN[recipe_of(target).format].huge(sound)
    result, good = board.measure(target, huge, sound)
    assert result.error is not None
    assert result.error.kind != ErrorKind.INTERNAL
    assert good.error is None


@each(USABLE)
def test_a_limit_of_time_is_kept(board: Board, target: TargetInfo) -> None:
    hasty = dataclasses.replace(QUICK, artifact_timeout_s=1e-9, keep_loaded=False)
    sound = made(target, convolutions(seed=9))  # not loaded yet
    (result,) = board.measure(target, sound, protocol=hasty)
    assert result.error is not None
    assert result.error.kind == ErrorKind.TIMED_OUT
    assert board.measure(target, sound)[0].error is None


@each(USABLE)
def test_an_unknown_option_is_a_bad_request(board: Board, target: TargetInfo) -> None:
    with pytest.raises(BadRequest, match="no option 'flux_capacitor'"):
        board.measure(target, made(target, convolutions()), options={"flux_capacitor": "1"})


@each(COMPUTING)
def test_a_value_that_an_option_cannot_have_is_a_bad_request(
    board: Board, target: TargetInfo
) -> None:
    for option in target.options:
        with pytest.raises(BadRequest, match=option):
            board.measure(target, made(target, convolutions()), options={option: "no such value"})


@each(USABLE)
def test_threads_are_those_it_has(board: Board, target: TargetInfo) -> None:
    sound = made(target, convolutions())
    (result,) = board.measure(target, sound, threads=target.max_threads)
    assert result.error is None
    with pytest.raises(BadRequest, match="threads"):
        board.measure(target, sound, threads=target.max_threads + 1)


@each(USABLE)
def test_a_format_it_does_not_take_is_a_bad_request(board: Board, target: TargetInfo) -> None:
    for format in ("punch-cards", *BROKEN.keys() - set(target.formats)):
        with pytest.raises(BadRequest, match=format):
            board.measure(target, made(target, convolutions()), format=format)


@each(USABLE)
def test_outputs_are_those_of_the_reference(board: Board, target: TargetInfo) -> None:
    model = convolutions(copies=2)
    content = made(target, model)
    x = np.random.default_rng(3).uniform(-1, 1, SHAPE).astype(np.float32)
    if target not in COMPUTING:  # it may tell times only; a real target has to compute
        with contextlib.suppress(AgentError):
            board.outputs(target, content, x)
        return
    found = board.outputs(target, content, x)
    from onnx.reference import ReferenceEvaluator

    (expected,) = ReferenceEvaluator(onnx.load_from_string(model)).run(None, {"input": x})
    scale = float(np.max(np.abs(expected)))
    assert np.max(np.abs(found - expected)) <= TOLERANCE[target.precision] * scale
    digest = board.client.upload(content)
    with pytest.raises(BadRequest, match="input"):
        board.client.run(digest, target.name, {}, format=recipe_of(target).format)


@each(USABLE)
def test_graphs_may_stay_loaded(board: Board, target: TargetInfo) -> None:
    graphs = [made(target, convolutions(seed)) for seed in range(2)]
    first = board.measure(target, *graphs)
    second = board.measure(target, *graphs)
    for before, after in zip(first, second, strict=True):
        assert before.error is None
        assert after.error is None
        if target.resident:
            assert after.load_ms == before.load_ms


@each(REPEATING)
def test_what_is_not_measured_repeats_itself(board: Board, target: TargetInfo) -> None:
    graphs = [made(target, convolutions(seed)) for seed in range(3)]
    # A worker of its own for each: what is kept loaded goes on where it was.
    alone = dataclasses.replace(QUICK, keep_loaded=False)
    _, first, again = (board.measure(target, *graphs, protocol=alone) for _ in range(3))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.wall_ms, other.wall_ms)
        # A stand-in for a runtime loads on this machine's clock.
        if target.name.startswith("sim-") or target.availability != Availability.SIMULATED:
            assert math.isclose(one.load_ms, other.load_ms, rel_tol=1e-9)
