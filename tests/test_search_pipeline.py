"""A run in steps: searched, confirmed on the target, trained, measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hurricane.lookup_tables.architecture import Architecture
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL
from hurricane.search.confirm import Confirmation
from hurricane.search.data import load_data
from hurricane.search.evaluation import PathScorer, evaluate_network
from hurricane.search.measuring import Measurement
from hurricane.search.pipeline import SearchSettings, run_search, run_training
from hurricane.search.retrain import load_network
from hurricane.search.training import Preset, TrainingSettings, build_supernet, load_weights
from hurricane.search.two_stage import StageResult

from .search_problem import Problem, make_problem, predicted

pytestmark = pytest.mark.process

SETTINGS = SearchSettings(training=0.05, evaluations=12, population=4, device="cpu")


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("p") / "tiny.toml")


class Device:
    """A device that is slower than the table says, and remembers what it was asked."""

    def __init__(self, model_ms, factor: float) -> None:
        self.model_ms = model_ms
        self.factor = factor
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, backbone, operators, gate, make=None) -> Measurement:
        self.asked.append(tuple(operators))
        ms = self.factor * self.model_ms(tuple(operators))
        return Measurement(ms, ms, ms)


def test_a_winner_that_misses_its_budget_gives_way_before_it_is_trained(problem, tmp_path: Path):
    _, space = problem
    folder = tmp_path / "run"
    searched = run_search(space, SETTINGS, folder, until="searched").architecture
    assert searched.predicted_ms is not None
    slow = 1.001 * space.budget_ms / searched.predicted_ms
    device = Device(lambda names: predicted(space, names), slow)
    run_search(space, SETTINGS, folder, None, device, until="confirmed")
    chosen = Confirmation.load(folder / "confirmed.json").candidate
    assert device.asked[0] == searched.operators
    assert chosen.operators != searched.operators
    # The training and all that follows take the confirmed network, measurer or not.
    trained = run_search(space, SETTINGS, folder, until="trained").architecture
    assert trained.operators == chosen.operators
    done = run_search(space, SETTINGS, folder, None, device).architecture
    assert done.operators == chosen.operators
    assert done.measured_ms is not None
    assert done.measured_ms <= space.budget_ms
    assert Architecture.load(folder / "architecture.json") == done


def test_a_network_already_in_training_is_not_exchanged(problem, tmp_path: Path):
    _, space = problem
    folder = tmp_path / "run"
    trained = run_search(space, SETTINGS, folder).architecture
    assert trained.measured_ms is None
    device = Device(lambda names: predicted(space, names), 1.1)
    done = run_search(space, SETTINGS, folder, None, device).architecture
    assert done.operators == trained.operators
    assert done.measured_ms is not None
    assert not (folder / "confirmed.json").exists()


@pytest.mark.parametrize("command", ["search", "train"])
def test_a_run_whose_data_is_wrong_leaves_nothing_behind(problem, tmp_path: Path, command: str):
    _, space = problem
    wrong = replace(SETTINGS, data=f"cifar10:{tmp_path}/absent")
    made, given = tmp_path / "made", tmp_path / "given"
    given.mkdir()
    plain = Architecture(space.backbone, tuple(c[0] for c in space.candidates))
    start = run_search if command == "search" else run_training
    for folder in (made, given):
        with pytest.raises(BadRequest, match="absent"):
            start(space if command == "search" else plain, wrong, folder)
    assert not made.exists()
    assert list(given.iterdir()) == []


@pytest.mark.parametrize("command", ["search", "train"])
def test_a_run_for_an_absent_device_leaves_nothing_behind(problem, tmp_path: Path, command: str):
    _, space = problem
    wrong = replace(SETTINGS, device="cuda:99")
    plain = Architecture(space.backbone, tuple(c[0] for c in space.candidates))
    start = run_search if command == "search" else run_training
    with pytest.raises(BadRequest, match="cuda:99"):
        start(space if command == "search" else plain, wrong, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_corrected_request_takes_the_directory_of_the_wrong_one(problem, tmp_path: Path):
    _, space = problem
    folder = tmp_path / "run"
    with pytest.raises(BadRequest):
        run_search(space, replace(SETTINGS, data="cifar10:absent"), folder)
    run_search(space, SETTINGS, folder, until="searched")
    # A run that is under way is kept, whatever the next request is.
    kept = sorted(f.name for f in folder.iterdir())
    with pytest.raises(BadRequest):
        run_search(space, replace(SETTINGS, data="cifar10:absent"), folder)
    assert sorted(f.name for f in folder.iterdir()) == kept


def test_every_figure_of_a_run_is_that_of_its_own_network(tmp_path: Path):
    """Each accuracy is found again from what the run left: supernets, weights, data."""
    with_gate = [operator.name for operator in POOL if operator.se]
    backbone, space = make_problem(tmp_path / "tiny.toml", with_gate)
    settings = replace(SETTINGS, training=1.0, data="digits?limit=200")
    training = TrainingSettings(epochs=4, batch=25, learning_rate=0.1)
    # The second stage's training is so slow that it leaves the weights as they were inherited.
    slow = replace(training, learning_rate=1e-12)
    preset = Preset("short", training, slow, training, 100, evaluation_batch=50)
    folder = tmp_path / "run"
    outcome = run_search(space, settings, folder, preset, until="trained")
    data = load_data(settings.data, backbone)
    assert outcome.stages is not None
    supernets = []
    for result in outcome.stages.stages:

        def scores(gate: str, result: StageResult = result) -> list[float]:
            supernet = build_supernet(backbone, result.candidates, gate, settings.seed)
            load_weights(supernet, folder / f"supernet-{result.stage}.pt")
            scorer = PathScorer(supernet, data, 100, 50, "cpu", kept_bytes=0)
            if gate == space.gate:
                supernets.append(supernet)
            return [scorer.score(np.array([e.codes]))[0] for e in result.evaluated]

        told = [e.fitness for e in result.evaluated]
        assert told == scores(space.gate)
        assert told != scores("h-swish")  # so the gate matters
        assert len(set(told)) > len(told) // 2  # and the order does

    unseen = replace(data, validation=data.test)
    for result, supernet in zip(outcome.stages.stages, supernets, strict=True):
        kept = Architecture.load(folder / f"winner-{result.stage}.json")
        code = [n.index(o) for n, o in zip(result.candidates, result.operators, strict=True)]
        (tested,) = (a.value for a in kept.accuracy if a.split == "test")
        assert [tested] == PathScorer(supernet, unseen, 100, 50, "cpu").score(np.array([code]))

    first, second = supernets
    inherited = [(first.stem, second.stem), (first.head, second.head)]
    for layer, names in enumerate(second.candidates):
        for choice, name in enumerate(names):
            if name in first.candidates[layer]:
                there = first.candidates[layer].index(name)
                inherited.append((first.operator(layer, there), second.operator(layer, choice)))
    assert len(inherited) >= 2 + len(backbone.layers)
    for one, other in inherited:
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)

    found = outcome.architecture
    network = load_network(backbone, found.operators, folder / "weights.pt", space.gate)
    for split in ("validation", "test"):
        (told,) = (a.value for a in found.accuracy if a.split == split and "scratch" in a.how)
        assert told == evaluate_network(network, getattr(data, split), data, device="cpu")
