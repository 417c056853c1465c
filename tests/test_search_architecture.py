"""`architecture.json`: what is written comes back, what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hurricane.lookup_tables.architecture import (
    Accuracy,
    Architecture,
    TableSource,
    backbone_reference,
    package_versions,
)
from hurricane.lookup_tables.proportion import wilson_interval
from hurricane.ops.backbone import load_backbone, parse_backbone
from hurricane.ops.errors import BadRequest
from hurricane.search.summary import describe_architecture


@pytest.fixture
def architecture() -> Architecture:
    return Architecture(
        backbone="digits32",
        operators=("SEP_3", "Choice_3", "MB_5_6_SE", "SEP_3", "Choice_x", "SEP_7", "MB_3_1"),
        table=TableSource("cpu.csv", "cd" * 32, "cpu-onnxruntime-fp32"),
        budget_ms=2.0,
        predicted_ms=1.9375,
        measured_ms=1.95,
        measured_halves_ms=(1.94, 1.96),
        accuracy=(
            Accuracy(0.97, "validation", "supernet", 300),
            Accuracy(0.96, "test", "retrained"),
        ),
        seed=3,
        versions=package_versions(),
    )


def test_what_is_written_comes_back(architecture: Architecture, tmp_path: Path) -> None:
    architecture.save(tmp_path / "a" / "architecture.json")
    assert Architecture.load(tmp_path / "a" / "architecture.json") == architecture


def test_unmeasured_figures_are_null(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    Architecture("digits32", ("SEP_3",) * 7).save(path)
    content = json.loads(path.read_text())
    assert content["measured_ms"] is None
    assert content["table"] is None
    assert Architecture.load(path).measured_ms is None


BREAKAGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("operators"), "lacks the field operators"),
    (lambda c: c.update(format_version=2), "format version 2"),
    (lambda c: c["operators"].pop(), "digits32 has 7 layers"),
    (lambda c: c["operators"].__setitem__(1, "Chioce_3"), "did you mean Choice_3"),
    (lambda c: c.update(operators="SEP_3"), "operators must be a list"),
    (lambda c: c.update(backbone="resnet"), "backbone 'resnet'"),
    (lambda c: c.update(gate="sigmoid"), "gate must be one of h-swish, hard-sigmoid"),
    (lambda c: c.update(predicted_ms="fast"), "predicted_ms must be a number"),
    (lambda c: c.update(measured_ms=-1), "measured_ms must be a number of at least 0"),
    (lambda c: c.update(measured_halves_ms=[1.0]), "measured_halves_ms must be two numbers"),
    (lambda c: c.update(seed=1.5), "seed must be a whole number"),
    (lambda c: c["accuracy"][0].update(value=97.0), "value must be a share between 0 and 1"),
    (lambda c: c["accuracy"][0].update(split="train"), "split must be one of"),
    (lambda c: c["accuracy"][0].update(images=0), "images must be a whole number of at least 1"),
    (lambda c: c["accuracy"][0].update(images=301), "value must be a share of 301 images"),
    (lambda c: c["table"].pop("sha256"), "table lacks the field sha256"),
    (lambda c: c.update(accuracy={}), "accuracy must be a list"),
]


@pytest.mark.parametrize(("change", "words"), BREAKAGES, ids=[words for _, words in BREAKAGES])
def test_a_broken_file_is_refused_by_name_of_file_and_field(
    architecture: Architecture,
    change: Callable[[dict[str, Any]], Any],
    words: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "architecture.json"
    architecture.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadRequest) as caught:
        Architecture.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "must hold a JSON object")],
)
def test_what_is_no_json_object_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=words):
        Architecture.load(path)


def test_a_figure_is_written_with_its_images_and_what_they_can_tell(
    architecture: Architecture, tmp_path: Path
) -> None:
    path = tmp_path / "architecture.json"
    architecture.save(path)
    known, unknown = json.loads(path.read_text())["accuracy"]
    assert known["images"] == 300
    assert (known["low"], known["high"]) == wilson_interval(291, 300)
    assert (unknown["images"], unknown["low"], unknown["high"]) == (None, None, None)
    validation, test = architecture.accuracy
    assert validation.text == "97.0% (94.4–98.4%, 300 images; supernet)"
    assert test.text == "96.0% (retrained)"


def test_a_file_of_an_earlier_version_tells_no_number_of_images(
    architecture: Architecture, tmp_path: Path
) -> None:
    path = tmp_path / "architecture.json"
    content = architecture.to_dict()
    for figure in content["accuracy"]:
        for name in ("images", "low", "high"):
            del figure[name]
    path.write_text(json.dumps(content))
    assert [f.images for f in Architecture.load(path).accuracy] == [None, None]


def test_a_missing_file_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="does not exist"):
        Architecture.load(tmp_path / "architecture.json")


def test_figures_of_the_same_split_and_origin_are_replaced(architecture: Architecture) -> None:
    changed = architecture.with_accuracy(Accuracy(0.98, "test", "retrained"))
    assert [f.value for f in changed.accuracy] == [0.97, 0.98]


def test_a_users_backbone_is_found_beside_the_architecture(
    architecture: Architecture, tmp_path: Path
) -> None:
    text = (resources.files("hurricane.ops") / "backbones" / "digits32.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)
    own = parse_backbone(text, "mine", "mine.toml")
    assert backbone_reference(own) == "mine.toml"
    assert backbone_reference(load_backbone("digits32")) == "digits32"
    content = {**architecture.to_dict(), "backbone": "mine.toml"}
    (tmp_path / "architecture.json").write_text(json.dumps(content))
    loaded = Architecture.load(tmp_path / "architecture.json")
    assert loaded.load_backbone().layers == own.layers


def test_a_failed_write_leaves_the_old_file(architecture: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    architecture.save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        Architecture("digits32", architecture.operators, predicted_ms=float("nan")).save(path)
    assert path.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["architecture.json"]


@pytest.mark.parametrize("origin", ["measured", "simulated", "estimated"])
def test_what_a_target_tells_is_called_by_the_origin_of_its_table(
    architecture: Architecture, origin: str, tmp_path: Path
) -> None:
    assert architecture.table is not None
    source = replace(architecture.table, origin=origin)
    replace(architecture, table=source).save(tmp_path / "a.json")
    found = Architecture.load(tmp_path / "a.json")
    assert found.table == source
    assert f"{found.measured_ms:.4g} ms {origin}" in describe_architecture(found)


def test_a_table_of_an_earlier_version_is_a_measured_one(
    architecture: Architecture, tmp_path: Path
) -> None:
    content = architecture.to_dict()
    del content["table"]["origin"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert Architecture.load(tmp_path / "a.json") == architecture
    content["table"]["origin"] = "guessed"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(BadRequest, match="origin must be one of"):
        Architecture.load(tmp_path / "a.json")
