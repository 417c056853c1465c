"""Artefacts: chosen by a target's formats, made once, kept by what they depend on."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hurricane.ops import artifacts
from hurricane.ops.artifacts import (
    Recipe,
    Samples,
    cache,
    choose_recipe,
    edges,
    prepare,
    source_sha256,
)
from hurricane.ops.calibration import CALIBRATION_SAMPLES, random_samples
from hurricane.ops.edges import Edge
from hurricane.ops.errors import BadRequest, HurricaneError, UnsupportedNode
from hurricane.ops.export import export_operator, sha256
from hurricane.ops.shapes import LayerShape
from hurricane.ops.tflite.flatbuffer import tensor_type, unpack_model

SHAPE = LayerShape(8, 12, 8, 8, 1)
ONNX = Recipe("onnx", "fp32")
QDQ = Recipe("onnx-qdq", "int8")
TFLITE = Recipe("tflite", "fp32")
TFLITE_HALF = Recipe("tflite", "fp16")
TFLITE_INT8 = Recipe("tflite", "int8")
SNPE = Recipe("snpe", "int8")
EVERY = (ONNX, QDQ, SNPE, TFLITE, TFLITE_HALF, TFLITE_INT8)
CALIBRATED = (QDQ, SNPE, TFLITE_INT8)
OPS = Path(artifacts.__file__).parent.parent


def each(*recipes: Recipe) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "recipe", recipes, ids=[f"{recipe.format}-{recipe.precision}" for recipe in recipes]
    )


@functools.cache
def graph(name: str = "SEP_3") -> bytes:
    return export_operator(name, SHAPE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    graph()  # traced into the cache of all tests
    monkeypatch.setenv("HURRICANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def unknown_node() -> bytes:
    """A graph with a node that .tflite files are not written with."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 12])
        for name in ("input", "output")
    ]
    nodes = [helper.make_node("Softplus", ["input"], ["output"], "strange")]
    made = helper.make_graph(nodes, "graph", values[:1], values[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 7
    return model.SerializeToString()


def test_the_first_format_that_can_be_made_is_chosen() -> None:
    assert choose_recipe(["onnx"], "fp32") == ONNX
    assert choose_recipe(["onnx"], "int8") == Recipe("onnx", "int8")  # lowered by the runtime
    assert choose_recipe(["punch-cards", "tflite", "onnx"], "int8") == TFLITE_INT8
    assert choose_recipe(["onnx-qdq", "tflite"], "fp32") == TFLITE
    with pytest.raises(BadRequest, match=r"no artefact of fp32 can be made as dlc or onnx-qdq"):
        choose_recipe(["dlc", "onnx-qdq"], "fp32")
    assert {recipe.format for recipe in EVERY} == set(artifacts.formats())


@each(*EVERY)
def test_an_artefact_says_what_it_was_made_of_and_by(recipe: Recipe) -> None:
    artifact = prepare(graph(), recipe)
    info = artifact.info
    assert info.graph_sha256 == sha256(graph())
    assert info.artifact_sha256 == sha256(artifact.content)
    assert (info.calibration == "16 random samples") == (recipe in CALIBRATED)
    if recipe == ONNX:
        assert artifact.content == graph()
        assert info.converter == ""
    else:
        assert info.converter.startswith("hurricane-nas ")
        assert info.artifact_sha256 != info.graph_sha256
    if recipe == QDQ:
        assert f"onnxruntime {onnxruntime.__version__}" in info.converter
    if recipe.format == "tflite":
        assert "ai-edge-litert " in info.converter
    if recipe == TFLITE_INT8:
        assert "litert-quantizer 0." in info.converter


def test_only_weights_of_fp16_are_halves() -> None:
    for recipe in (TFLITE, TFLITE_HALF, TFLITE_INT8):
        tensors = unpack_model(prepare(graph(), recipe).content).subgraphs[0].tensors
        halves = [tensor for tensor in tensors if tensor_type(tensor.type) == "float16"]
        assert bool(halves) == (recipe == TFLITE_HALF)


@each(*EVERY)
def test_inputs_and_outputs_are_told_in_the_runtimes_terms(recipe: Recipe) -> None:
    around = edges(prepare(graph(), recipe).content, recipe.format)
    (entry,), (result,) = around.inputs, around.outputs
    assert (entry.name, result.name) == ("input", "output")
    shape = (1, 8, 12, 8) if recipe.format == "tflite" else (1, 8, 8, 12)
    for edge in (entry, result):
        assert edge.shape == shape
        assert edge.channels_last == (recipe.format == "tflite")
        eight = (
            {"onnx-qdq": "uint8", "snpe": "uint8", "tflite": "int8"}[recipe.format]
            if edge.scale
            else ""
        )
        assert edge.dtype == (eight or "float32")
        assert (edge.scale > 0) == (recipe in CALIBRATED)
    if recipe in CALIBRATED:  # the stored values reach as far as the random samples, -1 to 1
        limits = np.iinfo(entry.dtype)
        ends = entry.decode(np.array([limits.min, limits.max], entry.dtype))
        assert ends == pytest.approx([-1, 1], abs=0.02)


def test_values_are_encoded_to_the_nearest_and_back() -> None:
    edge = Edge("x", (1, 2, 3, 4), "int8", scale=0.5, zero_point=3, channels_last=True)
    values = np.arange(24, dtype=np.float32).reshape(1, 4, 2, 3) / 2 - 4
    stored = edge.encode(values)
    assert stored.dtype == np.int8
    assert stored.shape == (1, 2, 3, 4)
    assert stored[0, 1, 2, 3] == round(values[0, 3, 1, 2] / 0.5) + 3
    assert np.array_equal(edge.decode(stored), values)
    near = edge.encode(np.float32([0.2, 0.3, -0.2, -0.3]))  # between two that can be stored
    assert near.tolist() == [3, 4, 3, 2]
    assert edge.encode(np.float32([1e9])) == 127
    assert edge.encode(np.float32([-1e9])) == -128


@each(*CALIBRATED)
def test_calibration_data_change_the_artefact_and_are_named(recipe: Recipe) -> None:
    values = np.random.default_rng(0).normal(size=(4, 8, 8, 12)).astype(np.float32)
    artifact = prepare(graph(), recipe, Samples(values, "4 images of mine"))
    assert artifact.info.calibration == "4 images of mine"
    assert artifact.content != prepare(graph(), recipe).content


@each(*CALIBRATED)
def test_without_calibration_data_it_is_calibrated_on_the_random_samples_that_are_named(
    recipe: Recipe,
) -> None:
    artifact = prepare(graph(), recipe)
    samples = Samples(random_samples((8, 8, 12), CALIBRATION_SAMPLES), artifacts.RANDOM_SOURCE)
    assert artifact == prepare(graph(), recipe, samples)


@each(TFLITE, TFLITE_INT8)
def test_a_node_that_a_format_cannot_express_is_named(recipe: Recipe, folder: Path) -> None:
    with pytest.raises(UnsupportedNode, match="Softplus node 'strange'"):
        cache.cached(unknown_node, recipe)
    cache.fill([unknown_node], recipe)  # is left out
    assert files(folder) == []


@each(*CALIBRATED)
def test_what_takes_time_is_made_once(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.cached(graph, recipe)
    (file,) = files(folder)
    monkeypatch.setattr(cache, "prepare", None)
    assert cache.cached(graph, recipe) == first
    cache.fill([graph], recipe)
    assert files(folder) == [file]


@each(*CALIBRATED)
def test_the_cache_keeps_what_was_made_with_the_calibration_data_given(
    recipe: Recipe, folder: Path
) -> None:
    values = np.random.default_rng(0).normal(size=(4, 8, 8, 12)).astype(np.float32)
    samples = Samples(values, "4 images of mine")
    expected = prepare(graph(), recipe, samples)
    cache.cached(graph, recipe)  # of random samples, which are none of these
    assert cache.cached(graph, recipe, samples) == expected  # made now
    assert cache.cached(graph, recipe, samples) == expected  # from its file
    assert len(files(folder)) == 2


def test_a_change_of_our_source_files_makes_files_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "onnx-qdq": ["calibration.py", "onnx_qdq.py", "artifacts/onnx_qdq_file.py"],
        "tflite": ["calibration.py", "tflite/scales.py", "artifacts/tflite_file.py"],
    }
    read = Path.read_bytes
    for format, names in sources.items():
        before = source_sha256(format)
        for changed in (OPS / name for name in names):
            assert changed.is_file()
            with monkeypatch.context() as patch:
                patch.setattr(
                    Path,
                    "read_bytes",
                    lambda path, changed=changed: read(path) + b"#" * (path == changed),
                )
                assert source_sha256.__wrapped__(format) != before, changed


def test_a_file_depends_on_everything_that_it_is_made_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ones((2, 8, 8, 12), np.float32)
    cache.cached(graph, QDQ)
    cache.cached(functools.partial(graph, "SEP_5"), QDQ)
    cache.cached(graph, TFLITE_INT8)
    cache.cached(graph, QDQ, Samples(values, "ones"))
    cache.cached(graph, QDQ, Samples(2 * values, "ones"))
    assert len(files(folder)) == 5
    monkeypatch.setattr(onnxruntime, "__version__", "0")
    monkeypatch.setattr(artifacts.importlib.metadata, "version", lambda package: "0")
    cache.cached(graph, Recipe("onnx-qdq", "int8"))
    assert len(files(folder)) == 6
    monkeypatch.setattr(cache, "source_sha256", lambda format: "another")
    cache.cached(graph, QDQ)
    assert len(files(folder)) == 7


@each(*CALIBRATED)
def test_a_file_that_was_cut_off_or_changed_is_made_anew(recipe: Recipe, folder: Path) -> None:
    first = cache.cached(graph, recipe)
    (file,) = files(folder)
    whole = file.read_bytes()
    for broken in (b"", whole[:20], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(broken)
        assert cache.cached(graph, recipe) == first
        assert file.read_bytes() == whole


@pytest.mark.process
@each(*CALIBRATED)
def test_all_cores_make_the_same_as_one(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("SEP_3", "SEP_5", "SEP_3_SE", "Choice_3", "MB_3_3")
    makes = [functools.partial(export_operator, name, SHAPE) for name in names]
    told: list[tuple[int, int]] = []
    cache.fill(makes, recipe, lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    assert len(files(folder)) == 5
    monkeypatch.setattr(cache, "prepare", None)  # each is found, and is that of its own graph
    assert [cache.cached(make, recipe) for make in makes] == [
        prepare(make(), recipe) for make in makes
    ]


@pytest.mark.process
@each(QDQ, TFLITE, TFLITE_INT8)
def test_another_process_makes_the_same_bytes(recipe: Recipe) -> None:
    code = (
        "import pickle, sys; from hurricane.ops.artifacts import prepare; "
        "model, recipe = pickle.load(sys.stdin.buffer); "
        "print(prepare(model, recipe).info.artifact_sha256)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((graph(), recipe)),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
    )
    assert found.stdout.decode().strip() == prepare(graph(), recipe).info.artifact_sha256


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_is_told_in_one_line(folder: Path) -> None:
    folder.parent.mkdir(mode=0o500)
    with pytest.raises(HurricaneError, match="HURRICANE_CACHE"):
        cache.cached(graph, QDQ)


def test_a_cache_that_is_no_folder_is_told_in_one_line(folder: Path) -> None:
    folder.parent.write_text("")
    with pytest.raises(HurricaneError, match=r"cannot be written.*HURRICANE_CACHE") as caught:
        cache.cached(graph, QDQ)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_and_leaves_no_half_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(HurricaneError, match=r"No space left.*HURRICANE_CACHE"):
        cache.cached(graph, QDQ)
    assert files(folder) == []


def deadly(name: str) -> bytes:
    """A graph that a process for artefacts does not survive."""
    if name == "SEP_5" and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return export_operator(name, SHAPE)


@pytest.mark.process
def test_a_process_that_is_killed_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    names = ("SEP_3", "SEP_5", "SEP_7", "Choice_3")
    with pytest.raises(HurricaneError, match="was killed"):
        cache.fill([functools.partial(deadly, name) for name in names], QDQ)


def test_the_least_recently_used_files_go_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("SEP_3", "SEP_5", "SEP_7")
    makes = [functools.partial(export_operator, name, SHAPE) for name in names]
    for age, make in enumerate(makes):
        before = set(files(folder))
        cache.cached(make, QDQ)
        (new,) = set(files(folder)) - before
        os.utime(new, (1000 - age, 1000 - age))  # the first one made is the youngest
    size = sum(file.stat().st_size for file in files(folder))
    cache.cached(makes[2], QDQ)  # used: now it is
    another = functools.partial(export_operator, "Choice_3", SHAPE)
    added = len(prepare(another(), QDQ).content) + 32
    monkeypatch.setattr(cache, "MAX_BYTES", size + added - 100)
    cache.fill([another], QDQ)
    monkeypatch.setattr(cache, "prepare", None)
    assert cache.cached(makes[0], QDQ)
    assert cache.cached(makes[2], QDQ)
    with pytest.raises(TypeError):
        cache.cached(makes[1], QDQ)


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "litert-quantizer":
            raise artifacts.importlib.metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(artifacts.importlib.metadata, "version", version)
    with pytest.raises(HurricaneError, match=r"litert-quantizer.*hurricane-nas\[tflite\]"):
        prepare(graph(), Recipe("tflite", "int8"))
    assert prepare(graph(), Recipe("tflite", "fp32")).content


def test_a_graph_without_a_fixed_input_has_no_random_calibration_data() -> None:
    model = onnx.load_from_string(graph())
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    with pytest.raises(BadRequest, match="no fixed size"):
        prepare(model.SerializeToString(), QDQ)
