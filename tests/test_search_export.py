"""A trained network as the file for its device: what is in it, and its accuracy there."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from hurricane.agents.client import check_artifact
from hurricane.lookup_tables.architecture import Architecture, TableSource, TrainingData
from hurricane.lookup_tables.table import LookupTable, Row, Target
from hurricane.ops import artifacts
from hurricane.ops.artifacts import Recipe, edges
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.export import sha256
from hurricane.ops.socs import check_binary, soc_of
from hurricane.ops.tflite.flatbuffer import unpack_model
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.search import pipeline
from hurricane.search.cli import cli
from hurricane.search.data import ImageData, Split, load_data
from hurricane.search.deployment import (
    KEY,
    calibration_samples,
    check_same_classes,
    make_artifact,
    training_data,
)
from hurricane.search.evaluation import evaluate_network
from hurricane.search.export_cli import FORMATS, PRECISIONS
from hurricane.search.measuring import Measurement, TargetMeasurer
from hurricane.search.pipeline import RunOutcome, SearchSettings, run_training
from hurricane.search.report import gather_run, render_report
from hurricane.search.retrain import load_network
from hurricane.search.summary import describe_architecture

pytestmark = pytest.mark.process

EXAMPLE = Path(__file__).parent.parent / "examples" / "classify.py"
OPERATORS = ("MB_3_3_SE", "Choice_3")
INT8 = ("cpu-litert-int8", "cpu-onnxruntime-int8")
SUFFIXES = {"cpu-litert-int8": ".tflite", "cpu-onnxruntime-int8": ".onnx"}
BACKBONE = """
classes = 10
split = 1
exploring_layers = 1
[input]
channels = 3
height = 8
width = 8
[[stem]]
channels = 16
kernel = 3
stride = 1
[[stages]]
channels = 32
repeats = 2
stride = 2
[head]
channels = 32
"""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("backbone") / "tiny.toml"
    path.write_text(BACKBONE)
    return load_backbone(path)


@pytest.fixture(scope="module")
def digits(backbone: Backbone) -> ImageData:
    return load_data("digits", backbone)


@pytest.fixture(scope="module")
def targets() -> Mapping[str, Target]:
    """The int8 targets of this machine, as a table names them."""
    found = {}
    for name in INT8:
        request = parse_target(name)
        with connect((), request) as clients:
            found[name] = TargetSession.open(clients[0], request).target
    return found


@pytest.fixture(scope="module")
def tables(
    targets: Mapping[str, Target], tmp_path_factory: pytest.TempPathFactory, backbone: Backbone
) -> Mapping[str, TableSource]:
    """A table of each target; its latencies play no part."""
    folder, found = tmp_path_factory.mktemp("tables"), {}
    for name, target in targets.items():
        row = Row.of(
            target, backbone.stem_name, backbone.stem_shape, status="ok", latency_ms=1.0,
            call_ms=0.01, estimator="made up",
        )  # fmt: skip
        LookupTable([row]).save(folder / f"{name}.csv")
        digest = LookupTable.load(folder / f"{name}.csv").sha256()
        found[name] = TableSource(str(folder / f"{name}.csv"), digest, name)
    return found


def no_time(backbone: Any, operators: Any, gate: Any, model: Any = None) -> Measurement:
    """A measurer that times nothing."""
    return Measurement(1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def outcome(
    backbone: Backbone,
    tables: Mapping[str, TableSource],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunOutcome:
    """A network trained on the digits for LiteRT, tested there on the whole test split."""
    plain = Architecture(backbone.source, OPERATORS, table=tables["cpu-litert-int8"])
    return run_training(
        plain,
        SearchSettings(data="digits", device="cpu", training=0.5),
        tmp_path_factory.mktemp("runs") / "run",
        measure=no_time,
        test=TargetMeasurer.of_table(tables["cpu-litert-int8"]).accuracy,
    )


def call(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=True)
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


def fp32_accuracy(outcome: RunOutcome) -> float:
    return next(a.value for a in outcome.architecture.accuracy if a.split == "test")


# Accuracy through the artefact


def test_the_winners_int8_file_is_tested_on_its_target_beside_the_fp32_figure(
    outcome: RunOutcome, targets: Mapping[str, Target], digits: ImageData
) -> None:
    found = outcome.architecture.artifact_accuracy
    assert found is not None
    assert outcome.untested == ""
    assert (found.format, found.precision) == ("tflite", "int8")
    assert (found.target, found.origin) == ("cpu-litert-int8", "measured")
    assert found.runtime_version == targets["cpu-litert-int8"].runtime_version
    assert (found.images, found.data) == (len(digits.test), "digits")
    assert found.calibration == "256 training images of digits"
    assert fp32_accuracy(outcome) > 0.85  # guessing gives 0.1
    assert found.value >= fp32_accuracy(outcome) - 0.01
    content = (outcome.directory / "model-int8.tflite").read_bytes()
    assert artifacts.edges(content, "tflite").inputs[0].dtype == "int8"
    assert found.artifact_sha256 == sha256(content)
    assert Architecture.load(outcome.directory / "architecture.json") == outcome.architecture


def test_the_accuracy_is_that_of_the_files_own_answers(
    outcome: RunOutcome, digits: ImageData
) -> None:
    """Run here, without an agent, the file classifies as many images rightly."""
    path = outcome.directory / "model-int8.tflite"
    found = outcome.architecture.artifact_accuracy
    answers = own_answers(path, "tflite", digits)
    assert found is not None
    assert found.right == sum(answers == digits.test.labels.numpy())


def test_the_accuracy_is_of_the_file_and_of_no_other_network(
    outcome: RunOutcome, tables: Mapping[str, TableSource], digits: ImageData, backbone: Backbone
) -> None:
    """A file without training guesses, however good the network of the run is."""
    model = pipeline.export_trained(Architecture(backbone.source, OPERATORS), backbone, None)
    samples, known = calibration_samples(digits), training_data(digits)
    some = replace(digits, test=digits.test.balanced(60))
    told: list[tuple[int, int]] = []
    for source in tables.values():
        found = TargetMeasurer.of_table(source).accuracy(
            lambda recipe: make_artifact(model, recipe, backbone, known, samples),
            some,
            lambda done, images: told.append((done, images)),
        )
        assert found.images == 60
        assert found.value < 0.5
    assert told == [(n, 60) for n in range(1, 61)] * len(tables)


def own_answers(path: Path, form: str, data: ImageData, count: int | None = None) -> np.ndarray:
    """Classes of the first test images by the project's own encoding of inputs and outputs."""
    content = path.read_bytes()
    (source,), (target,) = edges(content, form).inputs, edges(content, form).outputs
    images = data.normalise(data.test.images[:count]).numpy()
    run = example().load(str(path))
    outputs = [target.decode(run(source.encode(image[np.newaxis]))) for image in images]
    return np.array([int(output.argmax()) for output in outputs])


@pytest.mark.parametrize("target", INT8)
def test_export_tests_the_file_that_it_wrote(
    outcome: RunOutcome, target: str, tmp_path: Path
) -> None:
    output = tmp_path / f"model{SUFFIXES[target]}"
    result = call(
        "export", outcome.directory / "architecture.json", "-o", output, "--precision", "int8",
        "--test", "--target", target, "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    tested = told["test"]
    assert tested["fp32_accuracy"] == fp32_accuracy(outcome)
    assert (tested["target"], tested["precision"], tested["images"]) == (target, "int8", 360)
    assert tested["value"] >= tested["fp32_accuracy"] - 0.01
    assert tested["artifact_sha256"] == told["sha256"]
    assert told["sha256"] == sha256(output.read_bytes())
    if target == "cpu-litert-int8":
        assert output.read_bytes() == (outcome.directory / "model-int8.tflite").read_bytes()
        assert outcome.architecture.artifact_accuracy is not None
        assert tested["value"] == outcome.architecture.artifact_accuracy.value


def test_a_file_of_one_precision_is_not_tested_as_another(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    found = outcome.directory / "architecture.json"
    test = ["--test", "--target", "cpu-litert-int8"]
    result = call(
        "export", found, "-o", tmp_path / "a.tflite", "--precision", "fp32", *test, status=1
    )
    assert "computes in fp32, not in int8" in str(result.exception)
    result = call(
        "export", found, "-o", tmp_path / "a.onnx", "--precision", "int8", *test, status=2
    )
    assert "takes tflite, and this is onnx-qdq" in str(result.exception)


def test_a_network_that_is_not_trained_has_no_accuracy(backbone: Backbone, tmp_path: Path) -> None:
    Architecture(backbone.source, OPERATORS).save(tmp_path / "architecture.json")
    result = call(
        "export", tmp_path / "architecture.json", "-o", tmp_path / "a.onnx", "--test", status=2
    )
    assert "no accuracy without trained weights" in str(result.exception)
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("origin", ["simulated", "estimated"])
def test_what_computes_nothing_has_no_accuracy(origin: str, digits: ImageData) -> None:
    target = Target("myriadx-vpu", "vpu", "openvino", precision="fp16", origin=origin)
    with pytest.raises(pipeline.NotMeasurable, match=f"are {origin}: nothing is computed"):
        TargetMeasurer(target).accuracy(lambda recipe: pytest.fail("made"), digits)


def test_a_named_target_that_computes_nothing_has_no_accuracy_either(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    result = call(
        "export", outcome.directory / "architecture.json", "-o", tmp_path / "a.onnx",
        "--precision", "fp32", "--test", "--target", "sim-myriadx-vpu", status=2,
    )  # fmt: skip
    assert "simulated: nothing is computed" in str(result.exception)


def test_a_target_that_is_not_there_is_wrong_use(outcome: RunOutcome, tmp_path: Path) -> None:
    result = call(
        "export", outcome.directory / "architecture.json", "-o", tmp_path / "a.onnx",
        "--precision", "fp32", "--test", "--target", "npu-nobody-fp32", status=2,
    )  # fmt: skip
    assert "does not know the target 'npu-nobody-fp32'" in str(result.exception)


def test_the_accuracy_is_with_the_mean_and_deviation_that_the_file_tells(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    """Not with those of the data named, whose training images may be others."""
    architecture = outcome.architecture
    assert architecture.trained_on is not None
    odd = replace(architecture.trained_on, mean=(9.0, 9.0, 9.0))
    replace(architecture, trained_on=odd).save(tmp_path / "architecture.json")
    (tmp_path / "weights.pt").write_bytes((outcome.directory / "weights.pt").read_bytes())
    output = tmp_path / "a.onnx"
    result = call(
        "export", tmp_path / "architecture.json", "-o", output, "--precision", "fp32",
        "--test", "--target", "cpu-onnxruntime-fp32", "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)["test"]
    assert json.loads(Path(f"{output}.json").read_text())["mean"] == [9.0, 9.0, 9.0]
    assert found["fp32_accuracy"] < 0.5
    assert found["value"] == found["fp32_accuracy"]


def test_the_figure_stands_in_the_report_and_on_the_terminal(outcome: RunOutcome) -> None:
    found = outcome.architecture.artifact_accuracy
    assert found is not None
    words = "int8 tflite on cpu-litert-int8"
    assert f"test accuracy: {found.value:.1%} ({words}" in describe_architecture(
        outcome.architecture
    )
    page = render_report([gather_run(outcome.directory)], "one")
    assert words in page
    assert "calibrated with 256 training images of digits" in page
    assert "test accuracy on the target" in page
    assert "test accuracy, fp32" in page


# Calibration


def test_calibration_data_are_training_images_alone(digits: ImageData) -> None:
    """Other splits change nothing, whatever is in them; other training images do."""
    samples = calibration_samples(digits)
    assert samples.source == "256 training images of digits"

    def black(split: Split) -> Split:
        return Split(torch.zeros_like(split.images), split.labels)

    others = replace(digits, validation=black(digits.validation), test=black(digits.test))
    assert calibration_samples(others).sha256 == samples.sha256
    own = {image.tobytes() for image in digits.normalise(digits.train.images).numpy()}
    assert all(image.tobytes() in own for image in samples.values)


def test_calibration_images_are_balanced_and_the_same_each_time(digits: ImageData) -> None:
    drawn = digits.train.balanced(256)
    counts = torch.bincount(drawn.labels, minlength=10)
    assert int(counts.min()) == 25
    assert int(counts.max()) == 26
    again = digits.train.balanced(256)
    assert torch.equal(again.images, drawn.images)
    assert len({image.numpy().tobytes() for image in drawn.images}) > 250  # none twice
    assert len(digits.train.balanced(10**6)) == len(digits.train)
    few = Split(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 0, 0, 1]))
    assert sorted(few.balanced(2).labels.tolist()) == [0, 1]


def test_images_can_be_named_for_calibration(
    outcome: RunOutcome, backbone: Backbone, tmp_path: Path
) -> None:
    path = outcome.directory / "architecture.json"
    result = call(
        "export", path, "-o", tmp_path / "a.onnx", "--precision", "int8",
        "--calibration", "digits?limit=20", "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert told["calibration"] == "20 training images of digits?limit=20"
    (tmp_path / "images" / "train").mkdir(parents=True)
    result = call(
        "export", path, "-o", tmp_path / "b.onnx", "--precision", "int8",
        "--calibration", f"folder:{tmp_path / 'images'}", status=2,
    )  # fmt: skip
    assert "holds no images" in str(result.exception)
    result = call("export", path, "-o", tmp_path / "c.onnx", "--precision", "fp32",
                  "--calibration", "digits", status=2)  # fmt: skip
    assert "--calibration is for int8" in str(result.exception)


def test_random_calibration_is_told_where_there_are_no_images(
    backbone: Backbone, tmp_path: Path
) -> None:
    Architecture(backbone.source, OPERATORS).save(tmp_path / "architecture.json")
    result = call(
        "export", tmp_path / "architecture.json", "-o", tmp_path / "a.onnx", "--precision", "int8",
        "--json",
    )  # fmt: skip
    assert "random values" in result.stderr
    assert json.loads(result.stdout)["calibration"] == artifacts.RANDOM_SOURCE
    assert json.loads(result.stdout)["description"] is None


# Files for chips


@pytest.mark.parametrize("soc", ["SM8650", "SM8550"])
def test_a_network_is_compiled_for_a_chip_and_its_accuracy_is_the_emulators(
    outcome: RunOutcome, tmp_path: Path, soc: str
) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    path, output = outcome.directory / "architecture.json", tmp_path / "model.onnx"
    result = call(
        "export", path, "-o", output, "--format", "qnn-context", "--soc", soc,
        "--test", "--target", "dsp-qnn-int8", "--precision", "int8", "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert (told["format"], told["soc"], told["precision"]) == ("qnn-context", soc, "int8")
    check_binary(output.read_bytes(), soc_of(soc))
    (node,) = onnx.load(output).graph.node
    assert node.op_type == "EPContext"
    assert told["test"]["origin"] == "emulated"
    assert abs(told["test"]["value"] - told["test"]["fp32_accuracy"]) < 0.05
    described = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (described["format"], described["soc"]) == ("qnn-context", soc)
    assert described["input"]["type"] == "uint8"


def test_a_dlc_is_what_snpe_reads(outcome: RunOutcome, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn is not installed")
    output = tmp_path / "model.dlc"
    path = outcome.directory / "architecture.json"
    result = call("export", path, "-o", output, "--precision", "int8", "--json")
    told = json.loads(result.stdout)
    assert told["format"] == "dlc"
    assert told["sha256"] == sha256(output.read_bytes())
    with zipfile.ZipFile(output) as archive:
        assert {"model", "model.params"} <= set(archive.namelist())
    assert json.loads((tmp_path / "model.dlc.json").read_text())["format"] == "dlc"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--format", "qnn-context"), "name it with --soc"),
        (("--format", "qnn-context", "--soc", "SM8250"), "SM8250 has no HTP"),
        (("--format", "qnn-context", "--soc", "SM8350", "--precision", "fp16"), "fp16"),
        (("--format", "qnn-context", "--soc", "SM8650", "--precision", "fp32"), "cannot be fp32"),
        (("--format", "dlc", "--soc", "SM8650"), "is of no chip"),
        (("--format", "tflite", "--soc", "SM8650"), "--soc is for --format qnn-context"),
        (("--soc", "SM8650"), "--soc is for --format qnn-context"),
    ],
)
def test_a_file_for_a_chip_that_cannot_be_is_refused_and_nothing_is_written(
    outcome: RunOutcome, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    path = outcome.directory / "architecture.json"
    result = call("export", path, "-o", tmp_path / "model.onnx", *words, status=2)
    assert problem in str(result.exception)
    assert list(tmp_path.iterdir()) == []


# Format and precision


def test_every_format_and_precision_can_be_asked_for() -> None:
    assert set(FORMATS) == set(artifacts.formats())
    assert set(PRECISIONS) == {p for form in FORMATS for p in artifacts.precisions(form)}


@pytest.mark.parametrize(
    ("target", "name", "recipe"),
    [
        ("cpu-litert-int8", "a.tflite", Recipe("tflite", "int8")),
        ("cpu-onnxruntime-int8", "a.onnx", Recipe("onnx-qdq", "int8")),
    ],
)
def test_by_default_a_file_is_as_the_tables_target_takes_it(
    outcome: RunOutcome,
    tables: Mapping[str, TableSource],
    target: str,
    name: str,
    recipe: Recipe,
    tmp_path: Path,
) -> None:
    architecture = replace(outcome.architecture, table=tables[target])
    architecture.save(tmp_path / "architecture.json")
    result = call("export", tmp_path / "architecture.json", "-o", tmp_path / name, "--json")
    told = json.loads(result.stdout)
    assert (told["format"], told["precision"]) == (recipe.format, recipe.precision)
    check_artifact((tmp_path / name).read_bytes(), recipe.format)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.onnx", ["--precision", "fp16"], "cannot be fp16: onnx has fp32; onnx-qdq has int8"),
        ("a.onnx", ["--format", "onnx-qdq", "--precision", "fp32"], "cannot be fp32"),
        ("a.bin", [], "end it in .onnx, .tflite or .dlc"),
        ("a.onnx", ["--target", "cpu-onnxruntime-int8"], "add --test"),
    ],
)
def test_what_cannot_be_written_is_refused(
    outcome: RunOutcome, name: str, options: list[str], words: str, tmp_path: Path
) -> None:
    path = outcome.directory / "architecture.json"
    result = call("export", path, "-o", tmp_path / name, *options, status=2)
    assert words in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_precision_that_onnx_leaves_to_the_runtime_is_written_as_fp32(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    """Such as that of the shipped table of an fp16 device."""
    name = "imagenet224-sim-myriadx-vpu"
    source = TableSource(name, "0" * 64, "sim-myriadx-vpu")
    found = tmp_path / "architecture.json"
    replace(outcome.architecture, table=source).save(found)
    words = ("export", found, "-o", tmp_path / "a.onnx", "--json")
    assert json.loads(call(*words).stdout)["precision"] == "fp32"
    assert json.loads(call(*words, "--format", "onnx").stdout)["format"] == "onnx"
    assert "cannot be fp16" in str(call(*words, "--precision", "fp16", status=2).exception)


def test_an_output_that_cannot_be_written_is_told(outcome: RunOutcome, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "a.tflite"
    path = outcome.directory / "architecture.json"
    result = call("export", path, "-o", output, "--precision", "fp16", status=1)
    assert "cannot be written" in str(result.exception)


def test_a_table_that_is_gone_leaves_the_precision_to_be_told(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    architecture = outcome.architecture
    assert architecture.table is not None
    gone = replace(architecture.table, path=str(tmp_path / "gone.csv"))
    replace(architecture, table=gone).save(tmp_path / "architecture.json")
    arguments = ["export", tmp_path / "architecture.json", "-o", tmp_path / "a.onnx"]
    assert "add --precision" in str(call(*arguments, status=2).exception)
    call(*arguments, "--precision", "fp32")


def test_data_that_has_moved_is_named(outcome: RunOutcome, tmp_path: Path) -> None:
    architecture = outcome.architecture
    assert architecture.trained_on is not None
    moved = replace(architecture.trained_on, spec=f"folder:{tmp_path / 'gone'}")
    replace(architecture, trained_on=moved).save(tmp_path / "architecture.json")
    weights = (outcome.directory / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(weights)
    arguments = ["export", tmp_path / "architecture.json", "-o", tmp_path / "a.tflite"]
    assert "--data" in str(call(*arguments, status=2).exception)
    call(*arguments, "--data", "digits")
    found = (tmp_path / "a.tflite").read_bytes()
    assert found == (outcome.directory / "model-int8.tflite").read_bytes()


# What an application must know


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("onnx", "fp32"),
        Recipe("onnx-qdq", "int8"),
        Recipe("tflite", "fp32"),
        Recipe("tflite", "fp16"),
        Recipe("tflite", "int8"),
    ],
    ids=lambda recipe: f"{recipe.format}-{recipe.precision}",
)
def test_a_file_holds_what_lies_beside_it_and_can_be_loaded(
    outcome: RunOutcome, recipe: Recipe, digits: ImageData, tmp_path: Path
) -> None:
    output = tmp_path / f"model{artifacts.suffix_of(recipe.format)}"
    arguments = [
        "export", outcome.directory / "architecture.json", "-o", output,
        "--format", recipe.format, "--precision", recipe.precision,
    ]  # fmt: skip
    call(*arguments)
    content = output.read_bytes()
    beside = output.with_name(output.name + ".json").read_text()
    assert inside(content, recipe.format) == beside
    about = json.loads(beside)
    assert (about["format"], about["precision"]) == (recipe.format, recipe.precision)
    assert (about["mean"], about["std"]) == (list(digits.mean), list(digits.std))
    assert about["classes"] == [str(n) for n in range(10)]
    assert about["input"]["layout"] == ("NHWC" if recipe.format == "tflite" else "NCHW")
    check_artifact(content, recipe.format)
    call(*arguments)
    assert output.read_bytes() == content


def inside(content: bytes, form: str) -> str:
    """The description in a file."""
    if form == "tflite":
        model = unpack_model(content)
        (entry,) = [e for e in model.metadata if e.name.decode() == KEY]
        return model.buffers[entry.buffer].data.tobytes().decode()
    (text,) = [p.value for p in onnx.load_from_string(content).metadata_props if p.key == KEY]
    return text


def test_a_description_is_not_added_twice(outcome: RunOutcome, backbone: Backbone) -> None:
    model = (outcome.directory / "model.onnx").read_bytes()
    recipe = Recipe("onnx", "fp16")  # what a runtime lowers itself is stored in fp32
    again = make_artifact(model, recipe, backbone, outcome.architecture.trained_on)
    assert again.content == model


def test_data_with_the_classes_in_another_order_is_refused(digits: ImageData) -> None:
    known = training_data(digits)
    check_same_classes(digits, known)
    for classes in (digits.classes[::-1], digits.classes[:9]):
        with pytest.raises(BadRequest, match="other classes"):
            check_same_classes(digits, replace(known, classes=classes))


# The example


def example() -> Any:
    spec = importlib.util.spec_from_file_location("classify", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["a.tflite", "a.onnx"])
def test_the_example_gives_pictures_the_classes_that_the_project_gives_them(
    outcome: RunOutcome, digits: ImageData, name: str, tmp_path: Path
) -> None:
    model = tmp_path / name
    call("export", outcome.directory / "architecture.json", "-o", model, "--precision", "int8")
    pictures = []
    for number, image in enumerate(digits.test.images[:200]):
        pictures.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures[-1])
    done = subprocess.run(
        [sys.executable, EXAMPLE, model, *pictures], capture_output=True, text=True, check=True
    )
    told = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    form = "tflite" if name.endswith("tflite") else "onnx-qdq"
    answers = own_answers(model, form, digits, 200)
    assert told == [digits.classes[answer] for answer in answers]
    assert len(set(told)) == 10


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder of colourful pictures of all sizes and forms, and its test pictures in order."""
    random = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 2)):
        for label in range(10):
            for number in range(count):
                folder = tmp_path / "data" / split / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                size = random.integers(6, 30, 2)
                pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                pixels[..., 2] //= 4  # so that colours differ
                form = ("png", "jpg")[number % 2]
                Image.fromarray(pixels).save(folder / f"{number}.{form}")
    return tmp_path / "data", sorted((tmp_path / "data" / "test").rglob("*.*"))


@pytest.mark.parametrize("recipe", [Recipe("tflite", "int8"), Recipe("onnx-qdq", "int8")])
def test_the_example_prepares_a_picture_as_training_did(
    photographs: tuple[Path, list[Path]], recipe: Recipe, backbone: Backbone, tmp_path: Path
) -> None:
    """To the last bit: size, colours, mean and deviation, quantisation, layout."""
    folder, pictures = photographs
    data = load_data(f"folder:{folder}", backbone)
    model = pipeline.export_trained(Architecture(backbone.source, OPERATORS), backbone, None)
    samples = calibration_samples(data)
    made = make_artifact(model, recipe, backbone, training_data(data), samples)
    about = json.loads(inside(made.content, recipe.format))
    (source,) = edges(made.content, recipe.format).inputs
    assert about["classes"] == [f"class{n}" for n in range(10)]
    for picture, image in zip(pictures, data.test.images, strict=True):
        wanted = source.encode(data.normalise(image[None]).numpy())
        found = example().read(picture, about)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


# architecture.json


def test_a_run_of_an_earlier_version_is_exported_with_its_data(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    content = outcome.architecture.to_dict()
    del content["artifact_accuracy"], content["trained_on"]
    (tmp_path / "architecture.json").write_text(json.dumps(content))
    for name in ("weights.pt", "config.json"):
        (tmp_path / name).write_bytes((outcome.directory / name).read_bytes())
    assert Architecture.load(tmp_path / "architecture.json").artifact_accuracy is None
    call("export", tmp_path / "architecture.json", "-o", tmp_path / "a.tflite")
    found = (tmp_path / "a.tflite").read_bytes()
    assert found == (outcome.directory / "model-int8.tflite").read_bytes()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("artifact_accuracy", "right"), 361, "right must be at most 360"),
        (("artifact_accuracy", "value"), 0.5, "value must be right / images"),
        (("artifact_accuracy", "artifact_sha256"), "abc", "64 hexadecimal digits"),
        (("artifact_accuracy", "origin"), "simulated", "origin must be one of"),
        (("artifact_accuracy", "images"), 0, "images must be a whole number of at least 1"),
        (("trained_on", "classes"), ["a"], "trained_on has 1 classes"),
        (("trained_on", "std"), [1, 1, 0], "std must be numbers above 0"),
        (("trained_on", "mean"), [1], "mean and std of 3 channels"),
    ],
)
def test_wrong_figures_are_refused(
    outcome: RunOutcome, place: tuple[str, str], value: Any, words: str, tmp_path: Path
) -> None:
    content = outcome.architecture.to_dict()
    content[place[0]][place[1]] = value
    (tmp_path / "architecture.json").write_text(json.dumps(content))
    with pytest.raises(BadRequest, match=words):
        Architecture.load(tmp_path / "architecture.json")


def test_training_anew_takes_the_old_figures_away(
    outcome: RunOutcome, backbone: Backbone, tmp_path: Path
) -> None:
    settings = SearchSettings(data="digits?limit=40", device="cpu", training=0.05)
    again = run_training(outcome.architecture, settings, tmp_path / "run").architecture
    assert again.artifact_accuracy is None
    data = load_data("digits?limit=40", backbone)
    assert again.trained_on == TrainingData("digits?limit=40", data.classes, data.mean, data.std)
    network = load_network(backbone, OPERATORS, tmp_path / "run" / "weights.pt")
    (told,) = (a.value for a in again.accuracy if a.split == "test")
    assert told == evaluate_network(network, data.test, data, device="cpu")


def test_a_file_of_lost_weights_lends_no_figure_to_new_ones(
    outcome: RunOutcome, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(outcome.directory, run)
    (run / "weights.pt").unlink()
    plain = replace(outcome.architecture, accuracy=())
    settings = SearchSettings(data="digits", device="cpu", training=0.5)
    again = run_training(plain, settings, run).architecture
    assert again.artifact_accuracy is None
    assert Architecture.load(run / "architecture.json").artifact_accuracy is None
