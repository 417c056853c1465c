"""Graphs with nodes that the `.tflite` writer does not know: by litert-torch, where it is there."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from hurricane.agents.formats import tflite_file as tflite_check
from hurricane.ops import pool, tflite
from hurricane.ops.artifacts import Recipe, cache, edges, prepare
from hurricane.ops.calibration import random_samples
from hurricane.ops.errors import BadRequest, HurricaneError, UnsupportedNode
from hurricane.ops.export import CanonicalGraph, export_context, export_operator
from hurricane.ops.graph import Piece
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite.flatbuffer import ModelBuilder, pack_model, schema, unpack_model

SHAPE = LayerShape(8, 12, 8, 8, 1)
OURS = ("litert-torch", "litert-converter")
REAL = importlib.util.find_spec("litert_torch") is not None
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "int8"])


def strange(shape: LayerShape, gate: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(shape.in_channels, shape.out_channels, 3, shape.stride, 1, bias=False),
        nn.BatchNorm2d(shape.out_channels),
        nn.Softplus(),
    )


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_CUSTOM", {})
    pool.register_operator("Strange_3", strange)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path))
    return tmp_path / "artifacts"


def graph() -> CanonicalGraph:
    return export_operator("Strange_3", SHAPE)


def known() -> CanonicalGraph:
    return export_operator("SEP_3", SHAPE)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def install(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """litert-torch as it looks where it is installed in a version, or not at all."""
    original = importlib.metadata.version

    def told(package: str) -> str:
        if package not in OURS:
            return original(package)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(importlib.metadata, "version", told)


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[CanonicalGraph]:
    """The graphs that a stand-in for litert-torch, 9.8.7, is given; it writes another's file."""
    given: list[CanonicalGraph] = []

    def convert(model: CanonicalGraph) -> bytes:
        given.append(model)
        return tflite.write_tflite(known())

    monkeypatch.setattr(tflite, "convert_modules", convert)
    install(monkeypatch, "9.8.7")
    return given


@PRECISIONS
def test_what_to_install_is_said_with_the_node(
    precision: str,
    converted: list[CanonicalGraph],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, None)
    asked = r"Softplus node '0/2/Softplus' .*pip install 'hurricane-nas\[litert-torch\]'"
    with pytest.raises(UnsupportedNode, match=asked) as caught:
        cache.cached(graph, Recipe("tflite", precision))
    assert len(str(caught.value)) <= 300  # a cell of a support report
    assert converted == []
    assert files(folder) == []


@PRECISIONS
def test_litert_torch_makes_what_the_writer_refuses_and_nothing_else(
    precision: str, converted: list[CanonicalGraph]
) -> None:
    ordinary = prepare(known(), Recipe("tflite", precision))
    assert "litert-torch" not in ordinary.info.converter
    older = onnx.load_from_string(known())
    older.opset_import[0].version = 12
    with pytest.raises(BadRequest, match="opset"):
        prepare(CanonicalGraph(older.SerializeToString()), Recipe("tflite", precision))
    assert converted == []
    made = prepare(graph(), Recipe("tflite", precision))
    assert [model.pieces for model in converted] == [(Piece("Strange_3", SHAPE),)]
    assert made.content == ordinary.content  # of the stand-in's file, quantised as any other
    assert made.info.converter.startswith(ordinary.info.converter + " + litert-torch 9.8.7 + ")


@pytest.mark.parametrize(
    ("precision", "make"),
    [("fp16", graph), ("fp32", lambda: bytes(graph()))],
    ids=["fp16", "bytes of unknown origin"],
)
def test_what_litert_torch_cannot_be_given_is_refused_as_by_the_writer(
    precision: str, make: Callable[[], bytes], converted: list[CanonicalGraph]
) -> None:
    with pytest.raises(UnsupportedNode, match="Softplus") as caught:
        prepare(make(), Recipe("tflite", precision))
    assert "litert-torch" not in str(caught.value)
    assert converted == []


def test_a_refusal_of_litert_torch_is_said_with_the_node(
    converted: list[CanonicalGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: CanonicalGraph) -> bytes:
        raise HurricaneError("litert-torch failed: no lowering")

    monkeypatch.setattr(tflite, "convert_modules", fail)
    with pytest.raises(
        UnsupportedNode, match=r"Softplus node .*; litert-torch failed: no lowering"
    ):
        prepare(graph(), Recipe("tflite", "fp32"))


@PRECISIONS
def test_it_is_made_once_and_again_by_another_version(
    precision: str,
    converted: list[CanonicalGraph],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = cache.cached(graph, Recipe("tflite", precision))
    assert cache.cached(graph, Recipe("tflite", precision)) == first
    assert "litert-torch 9.8.7" in first.info.converter
    cache.cached(known, Recipe("tflite", precision))
    kept, made = len(files(folder)), len(converted)
    assert (kept, made) == (2 if precision == "int8" else 1, 1)
    install(monkeypatch, "9.9.0")
    second = cache.cached(graph, Recipe("tflite", precision))
    assert "litert-torch 9.9.0" in second.info.converter
    cache.cached(known, Recipe("tflite", precision))
    assert (len(files(folder)), len(converted)) == (kept + 1, 2)


def test_making_ahead_keeps_it_too(converted: list[CanonicalGraph], folder: Path) -> None:
    recipe = Recipe("tflite", "int8")
    for _ in range(2):
        cache.fill([graph, known], recipe)
        assert len(converted) == 1
    assert "litert-torch" in cache.cached(graph, recipe).info.converter
    assert "litert-torch" not in cache.cached(known, recipe).info.converter
    assert len(converted) == 1
    assert len(files(folder)) == 2


def test_a_graph_knows_its_pieces_in_another_process_too() -> None:
    pieces = (Piece("SEP_3", SHAPE), Piece("Strange_3", SHAPE))
    model = pickle.loads(pickle.dumps(export_context(pieces)))
    assert model == export_context(pieces)
    assert model.pieces == pieces


# --- The int8 of operators that the writer does not write


def written_softplus() -> bytes:
    """log(1 + exp(8 x)), or 8 x where that is large, as litert-torch writes a Softplus."""
    builder, kind, shape = ModelBuilder("test"), schema.BuiltinOperator, (1, 8, 12, 8)
    x, scaled, power, more, log, out = (builder.tensor(name, shape) for name in "xabcdy")
    large = builder.tensor("large", shape)
    builder._graph.tensors[large].type = schema.TensorType.BOOL
    eight, one, twenty = (
        builder.constant(f"of {value}", np.array([value], np.float32)) for value in (8, 1, 20)
    )
    builder.operator(kind.MUL, [x, eight], [scaled], schema.MulOptionsT())
    builder.operator(kind.EXP, [scaled], [power], schema.ExpOptionsT())
    builder.operator(kind.ADD, [power, one], [more], schema.AddOptionsT())
    builder.operator(kind.LOG, [more], [log])
    builder.operator(kind.GREATER, [scaled, twenty], [large], schema.GreaterOptionsT())
    builder.operator(kind.SELECT, [large, scaled, log], [out], schema.SelectOptionsT())
    builder.signature({"input": x}, {"output": out})
    return builder.pack()


def run(content: bytes, values: np.ndarray) -> np.ndarray:
    """The output for [1, C, H, W], in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    around = edges(content, "tflite")
    ((entry,), (result,)) = around.inputs, around.outputs
    runner: Any = Interpreter(model_content=content).get_signature_runner()
    return result.decode(runner(input=entry.encode(values))["output"])


def sqnr_db(values: np.ndarray, wanted: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(values - wanted).sum()))


def test_what_lies_between_an_exponential_and_a_logarithm_stays_in_fp32() -> None:
    content = tflite.quantise_tflite(written_softplus(), random_samples((8, 8, 12)))
    values = random_samples((8, 8, 12), 1, seed=3)
    assert edges(content, "tflite").inputs[0].dtype == "int8"
    assert sqnr_db(run(content, values), np.logaddexp(0, 8 * values)) > 40


def test_an_output_that_stays_in_fp32_until_the_end_is_called_as_before() -> None:
    builder, kind = ModelBuilder("test"), schema.BuiltinOperator
    x, doubled, y = (builder.tensor(name, (1, 8, 12, 8)) for name in ("input", "b", "output"))
    two = builder.constant("two", np.array([2], np.float32))
    builder.operator(kind.MUL, [x, two], [doubled], schema.MulOptionsT())
    builder.operator(kind.LEAKY_RELU, [doubled], [y], schema.LeakyReluOptionsT(alpha=0.25))
    builder.signature({"input": x}, {"output": y})
    content = tflite.quantise_tflite(builder.pack(), random_samples((8, 8, 12)))
    around = edges(content, "tflite")
    assert [edge.name for edge in (*around.inputs, *around.outputs)] == ["input", "output"]
    values = random_samples((8, 8, 12), 1, seed=3)
    assert sqnr_db(run(content, values), np.where(values > 0, 2, 0.5) * values) > 35


def test_a_version_that_another_converter_gave_is_not_lowered() -> None:
    model = unpack_model(tflite.write_tflite(known()))
    model.operatorCodes[0].version = 7
    assert unpack_model(pack_model(model)).operatorCodes[0].version == 7


# --- With litert-torch itself


@functools.cache
def real_graph() -> CanonicalGraph:
    """The operator among ours, at stride 2, with a channel shuffle and squeeze-and-excitation."""
    after = LayerShape(4, 6, 16, 16, 1)
    return export_context(
        [
            Piece("SEP_3", SHAPE),
            Piece("Strange_3", LayerShape(8, 12, 8, 16, 2)),
            Piece("Choice_3", after),
            Piece("MB_3_3_SE", after),
        ]
    )


@pytest.mark.skipif(not REAL, reason="litert-torch is not installed")
@PRECISIONS
def test_the_file_computes_what_the_graph_does(
    precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = prepare(real_graph(), Recipe("tflite", precision))
    assert capfd.readouterr().out == ""
    tflite_check.check(made.content)
    around = edges(made.content, "tflite")
    assert [edge.name for edge in (*around.inputs, *around.outputs)] == ["input", "output"]
    values = random_samples((8, 8, 12), 1, seed=3)
    session = onnxruntime.InferenceSession(bytes(real_graph()), providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, {"input": values})[0])
    found = run(made.content, values)
    if precision == "fp32":
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    else:
        assert sqnr_db(found, wanted) > 30
    assert prepare(real_graph(), Recipe("tflite", precision)).content == made.content
    version = importlib.metadata.version("litert-torch")
    assert f"litert-torch {version}" in made.info.converter


@pytest.mark.skipif(not REAL, reason="litert-torch is not installed")
def test_what_litert_torch_cannot_express_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    import litert_torch  # pyright: ignore[reportMissingImports]

    def fail(*_: object) -> None:
        raise RuntimeError("no lowering for this\nand a long story")

    monkeypatch.setattr(litert_torch, "convert", fail)
    with pytest.raises(UnsupportedNode, match=r"litert-torch failed: no lowering for this$"):
        prepare(graph(), Recipe("tflite", "fp32"))
