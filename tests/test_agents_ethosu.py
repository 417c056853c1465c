"""Ethos-U targets: vela's own figures, labelled as estimates, from an agent and its workers."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ethosu.regor", reason="ethos-u-vela is not installed")
pytest.importorskip("litert_quantizer", reason="litert-quantizer is not installed")

from hurricane.agents.backends import _distribution, ethosu_vela
from hurricane.agents.backends.base import Availability, Context
from hurricane.agents.backends.ethosu_vela import SERIES, Series
from hurricane.agents.client import AgentClient, ArtifactResult, Protocol
from hurricane.agents.conditions import Conditions
from hurricane.agents.errors import BadRequest, ErrorKind
from hurricane.agents.server import AgentServer
from hurricane.lookup_tables.table import parse_options
from hurricane.ops.calibration import random_samples
from hurricane.ops.export import export_operator
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite import quantise_tflite, write_tflite
from hurricane.ops.tflite.flatbuffer import pack_model, schema, unpack_model
from hurricane.profiler.session import TargetSession
from hurricane.profiler.target import TargetRequest

from .agents_support import serving

pytestmark = pytest.mark.process

U65, U55 = "npu-ethosu65-int8", "npu-ethosu55-int8"
SMALL = LayerShape(14, 14, 16, 16, 1)
LARGE = LayerShape(56, 56, 64, 64, 1)  # where vela leaves the shuffle of Choice to the CPU
QUICK = Protocol(rounds=2, calls_per_visit=3, warmup_calls=1)
FALLBACK = ("estimated", "fallback:Transpose", "lower-bound")


@functools.cache
def fp32(name: str, shape: LayerShape = SMALL) -> bytes:
    return write_tflite(export_operator(name, shape))


@functools.cache
def int8(name: str, shape: LayerShape = SMALL) -> bytes:
    samples = random_samples((shape.in_channels, shape.height, shape.width), 1, 0)
    return quantise_tflite(fp32(name, shape), samples)


def left_to_the_cpu() -> bytes:
    """A graph with no operator that an NPU has: the convolutions are sines."""
    model = unpack_model(int8("SEP_3"))
    for code in model.operatorCodes:
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SIN
    for operator in model.subgraphs[0].operators:
        operator.inputs = operator.inputs[:1]
        operator.builtinOptionsType, operator.builtinOptions = 0, None
    return pack_model(model)


@pytest.fixture(scope="module")
def agent() -> Iterator[AgentClient]:
    server = AgentServer("127.0.0.1:0", Context(device_name="this machine"))
    server.start()
    try:
        with AgentClient(server.address) as client:
            yield client
    finally:
        server.stop()


def estimates(
    agent: AgentClient,
    target: str,
    *contents: bytes,
    options: Mapping[str, str] | None = None,
) -> list[ArtifactResult]:
    digests = [agent.upload(content) for content in contents]
    results = agent.benchmark(digests, target, options=options, protocol=QUICK, format="tflite")
    return [results[digest] for digest in digests]


def call_ms(
    agent: AgentClient, target: str, content: bytes, options: Mapping[str, str] | None = None
) -> float:
    (result,) = estimates(agent, target, content, options=options)
    assert result.error is None, result.error
    assert (result.wall_ms == result.wall_ms[0, 0]).all()
    return float(result.wall_ms[0, 0])


def command_line(content: bytes, options: Mapping[str, str], folder: Path) -> tuple[float, int]:
    """What ``vela`` says where it is called as a user calls it: ms, and operators on the CPU."""
    (folder / "graph.tflite").write_bytes(content)
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "ethosu.vela", "graph.tflite", "--config", "Arm/vela.ini"]
    command += [word.replace("_", "-") if word.startswith("--") else word for word in words]
    subprocess.run(
        [*command, "--output-dir", ".", "--verbose-performance"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    summary, layers = folder.glob("*_summary_*.csv"), folder.glob("*_per-layer.csv")
    with next(summary).open() as file:
        (whole,) = csv.DictReader(file)
    with next(layers).open() as file:
        on_cpu = sum(row["Target"] == "CPU" for row in csv.DictReader(file))
    return 1e3 * float(whole["inference_time"]), on_cpu


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.target)
def test_a_target_says_that_it_is_estimated_and_of_what(agent: AgentClient, series: Series) -> None:
    target = agent.describe().target(series.target)
    assert target.name == f"{target.processor}-{target.runtime}-{target.precision}"
    assert target.availability == Availability.ESTIMATED
    assert target.device == series.device
    assert target.runtime_version == f"vela-{importlib.metadata.version('ethos-u-vela')}"
    assert not target.device_time


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.target)
def test_a_row_names_everything_that_changes_its_number(agent: AgentClient, series: Series) -> None:
    plain = TargetSession.open(agent, TargetRequest(series.target)).target
    assert plain.origin == "estimated"
    assert parse_options(plain.options) == series.defaults
    asked = {"accelerator_config": series.accelerator_configs[1]}
    other = TargetSession.open(agent, TargetRequest(series.target, options=asked)).target
    assert parse_options(other.options) == {**series.defaults, **asked}
    # To name the defaults is to ask for the same.
    named = TargetSession.open(agent, TargetRequest(series.target, options=series.defaults)).target
    assert named == plain


def test_an_estimate_is_labelled_and_has_no_conditions(agent: AgentClient) -> None:
    (result,) = estimates(agent, U65, int8("SEP_3"))
    assert result.error is None
    assert result.compute_unit == "NPU"
    assert result.flags == ("estimated",)
    assert result.device_ms is None
    assert result.before == result.after == Conditions()


@pytest.mark.parametrize(
    ("series", "options", "name", "shape"),
    [
        (SERIES[0], {}, "MB_3_3_SE", SMALL),
        (SERIES[0], {}, "Choice_3", LARGE),
        (SERIES[0], {"accelerator_config": "ethos-u65-512"}, "MB_3_3_SE", LARGE),
        (SERIES[0], {"memory_mode": "Sram_Only"}, "SEP_3", LARGE),
        (SERIES[1], {}, "MB_3_3_SE", LARGE),
        (SERIES[1], {"system_config": "Ethos_U55_Deep_Embedded"}, "Choice_3", LARGE),
    ],
)
def test_the_numbers_are_those_of_velas_command_line(
    agent: AgentClient,
    series: Series,
    options: dict[str, str],
    name: str,
    shape: LayerShape,
    tmp_path: Path,
) -> None:
    content = int8(name, shape)
    expected_ms, on_cpu = command_line(content, {**series.defaults, **options}, tmp_path)
    (result,) = estimates(agent, series.target, content, options=options)
    assert result.wall_ms[0, 0] == pytest.approx(expected_ms, rel=1e-12)
    assert ("lower-bound" in result.flags) == bool(on_cpu)


def test_estimates_repeat_themselves_in_another_process_and_another_order(
    agent: AgentClient,
) -> None:
    graphs = [int8("SEP_3"), int8("MB_3_3_SE"), int8("Choice_3", LARGE)]
    first = [result.wall_ms for result in estimates(agent, U65, *graphs)]
    again = [result.wall_ms for result in estimates(agent, U65, *graphs)]
    with serving() as other, AgentClient(other.address) as client:
        turned = [result.wall_ms for result in estimates(client, U65, *graphs[::-1])][::-1]
    for one, two, three in zip(first, again, turned, strict=True):
        assert np.array_equal(one, two)
        assert np.array_equal(one, three)
    assert len({float(times[0, 0]) for times in first}) == 3


def test_what_is_left_to_the_cpu_is_named_and_the_estimate_a_lower_bound(
    agent: AgentClient,
) -> None:
    whole, fallen = estimates(agent, U65, int8("Choice_3"), int8("Choice_3", LARGE))
    assert (whole.compute_unit, whole.flags) == ("NPU", ("estimated",))
    operators = len(unpack_model(int8("Choice_3", LARGE)).subgraphs[0].operators)
    assert fallen.compute_unit == f"NPU {operators - 1}/{operators}"
    assert fallen.flags == FALLBACK


@pytest.mark.parametrize("target", [U65, U55])
def test_a_graph_without_any_operator_for_the_npu_is_unsupported(
    agent: AgentClient, target: str
) -> None:
    refused, good = estimates(agent, target, left_to_the_cpu(), int8("SEP_3"))
    assert refused.error is not None
    assert refused.error.kind == ErrorKind.UNSUPPORTED_OPERATOR
    assert "Sin" in str(refused.error)
    assert good.error is None


def test_accelerators_and_systems_differ(agent: AgentClient) -> None:
    content = int8("MB_3_3_SE", LARGE)
    asked = [
        (U65, {}),
        (U65, {"accelerator_config": "ethos-u65-512"}),
        (U65, {"system_config": "Ethos_U65_Mid_End"}),
        (U65, {"memory_mode": "Sram_Only"}),
        (U55, {}),
        (U55, {"accelerator_config": "ethos-u55-32"}),
    ]
    found = [call_ms(agent, target, content, options) for target, options in asked]
    assert len(set(found)) == len(asked)
    assert found[4] < found[5]  # a quarter of the multipliers


@pytest.mark.parametrize("series", SERIES, ids=lambda series: series.target)
def test_defaults_are_those_that_the_target_tells(agent: AgentClient, series: Series) -> None:
    content = int8("MB_3_3_SE", LARGE)
    told = agent.describe().target(series.target).defaults
    named = dict(text.split("=") for text in told)
    assert call_ms(agent, series.target, content) == call_ms(agent, series.target, content, named)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accelerator_config": "ethos-u55-128"}, "one of ethos-u65-256, ethos-u65-512, not"),
        ({"system_config": "Ethos_U55_High_End_Embedded"}, "one of .*Ethos_U65_Mid_End.*, not"),
        ({"memory_mode": "Sram"}, "one of Sram_Only, Shared_Sram, .*, not 'Sram'"),
        ({"memory_mode": "Sram_Only=1"}, "one of"),
        (
            {"system_config": "Ethos_U65_Embedded"},
            "'Dedicated_Sram_384KB' does not go with .* 'Ethos_U65_Embedded'",
        ),
        ({"cycles": "1"}, "it takes accelerator_config, system_config, memory_mode"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_words(
    agent: AgentClient, options: dict[str, str], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        estimates(agent, U65, int8("SEP_3"), options=options)


def test_more_than_one_thread_is_refused(agent: AgentClient) -> None:
    digest = agent.upload(int8("SEP_3"))
    with pytest.raises(BadRequest, match="1 to 1 threads"):
        agent.benchmark([digest], U65, threads=2, format="tflite")


def test_a_graph_of_another_precision_is_refused(agent: AgentClient) -> None:
    wrong, good = estimates(agent, U65, fp32("SEP_3"), int8("SEP_3"))
    assert wrong.error is not None
    assert wrong.error.kind == ErrorKind.BAD_REQUEST
    assert "float32" in str(wrong.error)
    assert "int8" in str(wrong.error)
    assert good.error is None


def test_a_graph_whose_output_is_of_another_precision_is_refused(agent: AgentClient) -> None:
    model = unpack_model(int8("SEP_3"))
    graph = model.subgraphs[0]
    real = schema.TensorT(
        name=b"real",
        shape=graph.tensors[graph.outputs[0]].shape,
        type=schema.TensorType.FLOAT32,
    )
    graph.tensors.append(real)
    code = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(
        schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1)
    )
    given, made = graph.outputs, np.array([len(graph.tensors) - 1], np.int32)
    last = len(model.operatorCodes) - 1
    graph.operators.append(schema.OperatorT(opcodeIndex=last, inputs=given, outputs=made))
    graph.outputs, model.signatureDefs = made, []
    (result,) = estimates(agent, U65, pack_model(model))
    assert result.error is not None
    assert result.error.kind == ErrorKind.BAD_REQUEST
    assert "'real' is float32" in str(result.error)


def test_memory_that_vela_lacks_is_no_operator_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = ethosu_vela.open_target(Context(), U65, {}, 1)

    def compile(*arguments: object, **settings: object) -> None:
        raise MemoryError

    monkeypatch.setattr(session._compiler, "_regor", SimpleNamespace(compile=compile))
    with pytest.raises(MemoryError):
        session.load(int8("SEP_3"), "tflite")


@pytest.mark.parametrize("kind", ["FLOAT8_E5M2", "UINT4"])  # vela's schema is an older one
def test_a_type_that_vela_does_not_know_is_refused_in_words(agent: AgentClient, kind: str) -> None:
    model = unpack_model(int8("SEP_3"))
    graph = model.subgraphs[0]
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RESHAPE
    del model.operatorCodes[1:]
    operator = graph.operators[0]
    operator.inputs, operator.outputs = np.array([0], np.int32), np.array([1], np.int32)
    operator.opcodeIndex = 0
    operator.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    operator.builtinOptions = schema.ReshapeOptionsT(newShape=np.array([4], np.int32))
    graph.operators, graph.tensors = [operator], graph.tensors[:2]
    graph.inputs, graph.outputs, model.signatureDefs = operator.inputs, operator.outputs, []
    for tensor in graph.tensors:
        tensor.shape, tensor.buffer, tensor.quantization = np.array([4], np.int32), 0, None
        tensor.type = getattr(schema.TensorType, kind)
    (result,) = estimates(agent, U65, pack_model(model))
    assert result.error is not None
    assert result.error.kind == ErrorKind.BAD_REQUEST
    assert f"is {kind.lower()}; {U65} takes int8" in str(result.error)


def test_tensors_need_no_names(agent: AgentClient) -> None:
    model = unpack_model(int8("SEP_3"))
    for tensor in model.subgraphs[0].tensors:
        tensor.name = None
    assert call_ms(agent, U65, pack_model(model)) == call_ms(agent, U65, int8("SEP_3"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_a_typed_error_and_costs_itself_only(
    agent: AgentClient, share: float
) -> None:
    content = int8("SEP_3")
    cut, good = estimates(agent, U65, content[: int(share * len(content))], content)
    assert cut.error is not None
    assert cut.error.kind == ErrorKind.BAD_REQUEST
    assert good.error is None


def test_outputs_are_not_estimated(agent: AgentClient) -> None:
    digest = agent.upload(int8("SEP_3"))
    x = np.zeros((1, 14, 14, 16), np.int8)
    with pytest.raises(BadRequest, match="computes no outputs"):
        agent.run(digest, U65, {"x": x}, format="tflite")


def test_vela_needs_nothing_that_the_sandbox_denies() -> None:
    assert not hasattr(ethosu_vela, "NEEDS")


def test_estimates_take_turns_with_what_is_measured_on_this_machine() -> None:
    """They share its processor's worker, which does one thing at a time."""
    kept = dataclasses.replace(QUICK, keep_loaded=True)
    asked = [("cpu-onnxruntime-fp32", export_operator("SEP_3", SMALL), "onnx")]
    asked += [(target, int8("SEP_3"), "tflite") for target in (U65, U55)]
    with serving() as agent, AgentClient(agent.address) as client:
        for target, content, format in asked:
            digest = client.upload(content)
            results = client.benchmark([digest], target, protocol=kept, format=format)
            assert results[digest].error is None
            assert len(agent.workers()) == 1


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("4.5.0", r"4\.5\.0 is not 5\.2"),
        ("5.20.0", r"5\.20\.0 is not 5\.2"),
        ("", r"not installed; run: pip install 'hurricane-nas\[ethosu\]'"),
    ],
)
def test_a_vela_that_does_not_fit_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch, version: str, words: str
) -> None:
    def installed(name: str) -> str:
        if not version:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    for target in ethosu_vela.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert re.search(words, target.reason)


def test_without_vela_an_older_python_is_told_that_it_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def installed(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(_distribution, "sys", SimpleNamespace(version_info=(3, 9, 18)))
    for target in ethosu_vela.targets(Context()):
        assert target.reason == "ethos-u-vela is not installed; it needs Python 3.10 or newer"


def test_a_vela_that_does_not_import_is_told_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ethosu.regor", None)
    for target in ethosu_vela.targets(Context()):
        assert target.availability == Availability.UNAVAILABLE
        assert "does not import" in target.reason
        assert "pip install 'hurricane-nas[ethosu]'" in target.reason
