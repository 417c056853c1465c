"""A network trained from scratch: its figures, its files, and networks read back from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.search.data import ImageData, Split, load_data
from hurricane.search.evaluation import evaluate_network
from hurricane.search.retrain import OtherWeights, load_network, train_architecture
from hurricane.search.training import PRESETS, preset_for

from . import search_training_worker as worker

pytestmark = pytest.mark.process

OPERATORS = ("Choice_3_SE", "MB_3_3")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", worker.BACKBONE)


def test_a_network_learns_digits_and_its_figures_can_be_checked(digits: ImageData, tmp_path: Path):
    settings = worker.settings(1, epochs=6, batch=32, checkpoint_steps=100)
    trained = train_architecture(worker.BACKBONE, OPERATORS, digits, settings, tmp_path)
    assert trained.test_accuracy > 0.85  # guessing gives 0.1
    figures = json.loads(json.dumps(trained.figures()))
    assert (figures["validation_images"], figures["test_images"]) == (300, 360)
    with torch.no_grad():
        logits = trained.network(digits.normalise(digits.test.images))
    right = int((logits.argmax(1) == digits.test.labels).sum())
    assert trained.test_accuracy == pytest.approx(right / 360, abs=1 / 360)
    assert not trained.network.training

    again = load_network(worker.BACKBONE, OPERATORS, tmp_path / "weights.pt")
    assert evaluate_network(again, digits.test, digits) == trained.test_accuracy
    told: list[int] = []
    finished = train_architecture(
        worker.BACKBONE, OPERATORS, digits, settings, tmp_path, progress=lambda *a: told.append(1)
    )
    assert finished.figures() == trained.figures()
    assert told == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_each_accuracy_is_of_the_split_whose_name_it_has(digits: ImageData, split: str):
    """One split has every label wrong: its accuracy, and no other, is next to nothing."""
    images, labels = getattr(digits, split).images, getattr(digits, split).labels
    data = replace(digits, **{split: Split(images, (labels + 1) % 10)})
    settings = worker.settings(1, epochs=3, batch=32)
    trained = train_architecture(worker.BACKBONE, OPERATORS, data, settings)
    found = {"validation": trained.validation_accuracy, "test": trained.test_accuracy}
    assert found.pop(split) < 0.2
    assert min(found.values()) > 0.5
    assert trained.figures()["validation"] == trained.validation_accuracy
    assert trained.figures()["test"] == trained.test_accuracy


def test_weights_of_another_architecture_are_refused(digits: ImageData, tmp_path: Path):
    settings = worker.settings(1, epochs=0.1)
    train_architecture(worker.BACKBONE, OPERATORS, digits, settings, tmp_path)
    weights = tmp_path / "weights.pt"
    for operators, gate in (
        (("SEP_3", "SEP_3"), "h-swish"),
        (OPERATORS, "hard-sigmoid"),  # has the same parameters
    ):
        with pytest.raises(OtherWeights, match=r"weights\.pt are another network's.*--weights"):
            load_network(worker.BACKBONE, operators, weights, gate)
    with pytest.raises(BadRequest, match=r"none\.pt does not exist"):
        load_network(worker.BACKBONE, OPERATORS, tmp_path / "none.pt")
    weights.write_bytes(b"broken")
    with pytest.raises(HurricaneError, match=r"cannot be read .*; name another with --weights"):
        load_network(worker.BACKBONE, OPERATORS, weights)
    with pytest.raises(BadRequest, match="other operators"):
        train_architecture(worker.BACKBONE, ("SEP_3", "SEP_3"), digits, settings, tmp_path)


def test_an_architecture_of_the_wrong_length_is_refused(digits: ImageData):
    with pytest.raises(BadRequest, match="has 2 layers"):
        train_architecture(worker.BACKBONE, OPERATORS[:1], digits)


def test_evaluation_does_not_depend_on_the_batch_and_keeps_the_mode(digits: ImageData):
    settings = worker.settings(1, epochs=1)
    network = train_architecture(worker.BACKBONE, OPERATORS, digits, settings).network
    network.train()
    found = {evaluate_network(network, digits.validation, digits, n) for n in (7, 300)}
    assert len(found) == 1
    assert network.training


def test_the_data_picks_the_preset():
    data = load_data("digits?limit=10", load_backbone("digits32"))
    assert preset_for(data) is PRESETS["digits"]
