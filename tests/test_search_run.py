"""What a run passes on to its steps, and what it keeps: nothing is trained here.

Supernets and trainings are stand-ins that answer at once, by a hash of the operators.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hurricane.lookup_tables.architecture import Accuracy, Architecture
from hurricane.ops.blocks import Network
from hurricane.ops.errors import BadRequest
from hurricane.search import evaluation, pipeline, retrain
from hurricane.search.confirm import Confirmation
from hurricane.search.evolution import best_first
from hurricane.search.measuring import Measurement
from hurricane.search.pipeline import RunOutcome, SearchSettings, run_search
from hurricane.search.retrain import TrainedNetwork
from hurricane.search.space import SearchSpace
from hurricane.search.training import PRESETS, Preset, save_weights

from .search_problem import make_problem, predicted

SETTINGS = SearchSettings(evaluations=12, population=4, device="cpu", seed=3, training=0.5)
PRESET = PRESETS["digits"]


def hashed(*words: object) -> float:
    """A share of 300 images that depends on the words."""
    return zlib.crc32(repr(words).encode()) % 300 / 300


class Stop(Exception):
    """A run is cut off here."""


@dataclass
class Bench:
    """What stand-ins were asked.

    Attributes:
        space: what is searched.
        evaluators: arguments that each was made with.
        trained: arguments of each training from scratch.
        tested: how often a network was run on test images with a supernet's weights.
        inherited_test: whether there is a supernet for that.
        validation: from operators to the accuracy of a training from scratch.
        cut_at: the training, from 1, at which the process ends; 0: none.
    """

    space: SearchSpace
    evaluators: list[tuple[Any, ...]] = field(default_factory=list)
    trained: list[tuple[Any, ...]] = field(default_factory=list)
    tested: int = 0
    inherited_test: bool = True
    validation: Callable[[Sequence[str]], float] = lambda operators: hashed("validation", operators)
    cut_at: int = 0

    def run(self, folder: Path, settings: SearchSettings = SETTINGS, **more: Any) -> RunOutcome:
        return run_search(self.space, settings, folder, PRESET, **more)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "bench").mkdir()
    _, space = make_problem(tmp_path / "bench" / "tiny.toml")
    found = Bench(space)

    class Evaluator:
        def __init__(self, backbone: Any, data: Any, directory: Path, *settings: Any, **_: Any):
            found.evaluators.append(settings)
            self._candidates: Any = ()

        def prepare(self, stage: int, candidates: Any, sampler: Any, previous: Any = None) -> None:
            self._candidates = candidates

        def evaluate(self, codes: np.ndarray) -> list[float]:
            names = [
                tuple(n[c] for n, c in zip(self._candidates, code, strict=True))
                for code in codes.tolist()
            ]
            return [hashed(name) for name in names]

        def test(self, stage: int, candidates: Any, codes: Any) -> list[float] | None:
            found.tested += 1
            return [hashed("test", stage)] * len(codes) if found.inherited_test else None

    def train(
        backbone: Any, operators: Any, data: Any, settings: Any, folder: Path, gate: str, told: Any
    ) -> TrainedNetwork:
        found.trained.append((tuple(operators), settings, folder, gate))
        if len(found.trained) == found.cut_at:
            raise Stop
        network = Network(backbone, operators, gate).eval()
        content = {"operators": list(operators), "gate": gate, "model": network.state_dict()}
        save_weights(folder / "weights.pt", content)
        return TrainedNetwork(
            network,
            tuple(operators),
            found.validation(operators),
            hashed("test", operators),
            validation_images=300,
            test_images=600,
            train_images=1000,
            settings=settings,
            spec="digits",
        )

    monkeypatch.setattr(evaluation, "SupernetEvaluator", Evaluator)
    monkeypatch.setattr(retrain, "train_architecture", train)
    return found


class Device:
    """Slower than the table by a factor of its own for each network, or one for all."""

    def __init__(self, space: SearchSpace, factor: Callable[[tuple[str, ...]], float]) -> None:
        self._space = space
        self._factor = factor
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, backbone: Any, operators: Any, gate: str, make: Any = None) -> Measurement:
        if make is None:
            self.asked.append(tuple(operators))
        ms = predicted(self._space, tuple(operators)) * self._factor(tuple(operators))
        return Measurement(ms, ms, ms)


def scratch(architecture: Architecture, split: str) -> Accuracy:
    found = [a for a in architecture.accuracy if a.split == split and not a.inherited]
    (figure,) = found
    return figure


def test_trainings_get_the_runs_length_seed_device_and_gate(bench: Bench, tmp_path: Path):
    settings = replace(SETTINGS, supernet="fair")
    done = bench.run(tmp_path / "run", settings, until="trained").architecture
    wanted = PRESET.scaled(0.5).adjusted(seed=3, device="cpu")
    fair = replace(
        wanted,
        supernet=replace(wanted.supernet, strategy="fair"),
        stage_2=replace(wanted.stage_2, strategy="fair"),
    )
    ((preset, gate, seed, device),) = bench.evaluators
    assert isinstance(preset, Preset)
    assert (preset, gate, seed, device) == (fair, "hard-sigmoid", 3, "cpu")
    assert bench.trained == [(done.operators, wanted.retrain, tmp_path / "run", "hard-sigmoid")]


def test_trainings_get_the_runs_batch_epochs_and_precision_and_keep_them(
    bench: Bench, tmp_path: Path
):
    settings = replace(SETTINGS, training=1.0, epochs=3.0, batch=16, precision="bf16")
    bench.run(tmp_path / "run", settings, until="trained")
    wanted = PRESET.lasting(3.0).with_batch(16).adjusted(seed=3, device="cpu", precision="bf16")
    assert bench.evaluators[0][0] == wanted
    assert bench.trained[0][1] == wanted.retrain
    for changes in ({"batch": 32}, {"batch": None}, {"precision": "auto"}, {"epochs": 4.0}):
        (name,) = changes
        with pytest.raises(BadRequest, match=f"holds a run with {name}=") as refused:
            bench.run(tmp_path / "run", replace(settings, **changes))
        assert len(str(refused.value).splitlines()) == 2
    # What a run left open is settled where it began.
    bench.run(tmp_path / "open", SETTINGS, until="searched")
    kept = tmp_path / "open" / "trainings.json"
    kept.write_text(kept.read_text().replace('"precision": "fp32"', '"precision": "bf16"', 1))
    bench.run(tmp_path / "open", SETTINGS, until="trained")
    wanted = PRESET.scaled(0.5).adjusted(seed=3, device="cpu", precision="bf16")
    assert bench.trained[-1][1] == wanted.retrain


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3.0}, "give one of them"),
        ({"training": 1.0, "epochs": 0.0}, "epochs must be more than 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"precision": "int8"}, "precision must be one of auto, fp32, bf16"),
    ],
)
def test_trainings_that_cannot_be_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(BadRequest, match=words):
        replace(SETTINGS, **changes)


def test_a_search_gets_the_runs_evaluations_seed_and_strategy(bench: Bench, tmp_path: Path):
    def evaluated(folder: str, **changes: Any) -> list[list[tuple[int, ...]]]:
        settings = replace(SETTINGS, **changes)
        stages = bench.run(tmp_path / folder, settings, until="searched").stages
        assert stages is not None
        return [[e.codes for e in stage.evaluated] for stage in stages.stages]

    found = evaluated("a")
    assert len(found[0]) == 12
    assert len(found) == 2
    assert evaluated("b") == found
    assert evaluated("c", seed=4)[0] != found[0]
    assert evaluated("d", strategy="random")[0] != found[0]
    assert len(evaluated("e", stages=1)) == 1


def test_every_figure_tells_its_split_its_images_and_what_they_chose(bench: Bench, tmp_path: Path):
    outcome = bench.run(tmp_path / "run", until="trained")
    assert outcome.stages is not None
    assert outcome.validation_images == 300
    best, found = outcome.stages.winner, outcome.architecture
    assert [(a.value, a.split, a.images, a.inherited) for a in found.accuracy] == [
        (best.fitness, "validation", 300, True),
        (hashed("test", 2), "test", 360, True),
        (hashed("validation", found.operators), "validation", 300, False),
        (hashed("test", found.operators), "test", 600, False),
    ]
    validation, test, *_ = (a.how for a in found.accuracy)
    ranked = f"the images that {len(best.evaluated)} networks were ranked by"
    assert validation == f"supernet of stage 2, BatchNorm recalibrated, on digits; {ranked}"
    assert (
        test == "supernet of stage 2, BatchNorm recalibrated, on digits; images that chose nothing"
    )
    for stage in outcome.stages.stages:
        kept = Architecture.load(tmp_path / "run" / f"winner-{stage.stage}.json")
        assert kept.operators == stage.operators
        assert kept.accuracy[0].value == stage.fitness
        assert kept.accuracy[1].value == hashed("test", stage.stage)


def test_without_a_supernet_at_hand_there_is_no_figure_of_it_on_test_images(
    bench: Bench, tmp_path: Path
):
    bench.inherited_test = False
    found = bench.run(tmp_path / "run", until="searched").architecture
    assert [a.split for a in found.accuracy] == ["validation"]


def test_a_finished_run_is_read_and_nothing_of_it_done_again(bench: Bench, tmp_path: Path):
    device = Device(bench.space, lambda names: 0.9)
    first = bench.run(tmp_path / "run", measure=device)
    done = (len(bench.trained), bench.tested, len(device.asked), len(bench.evaluators))
    again = bench.run(tmp_path / "run", measure=device)
    assert again.architecture == first.architecture
    assert (len(bench.trained), bench.tested, len(device.asked), len(bench.evaluators)) == done
    assert done[0] == done[2] == 1


def test_what_one_supernet_found_is_timed_before_what_the_earlier_one_did(
    bench: Bench, tmp_path: Path
):
    """The last stage's networks, best first, then the first stage's: all miss until the last."""
    searched = bench.run(tmp_path / "run", until="searched")
    assert searched.stages is not None
    first, last = searched.stages.stages
    order = [last.names(e.codes) for e in best_first(last.evaluated)]
    order += [first.names(e.codes) for e in best_first(first.evaluated)]
    order = list(dict.fromkeys(order))
    budget = bench.space.budget_ms
    slow = order[:5]
    # As slow as the budget and a bit: a correction leaves all others within it.
    late = Device(
        bench.space,
        lambda n: 1.0001 * budget / predicted(bench.space, n) if n in slow else 0.5,
    )
    bench.run(tmp_path / "run", until="confirmed", measure=late)
    assert late.asked[0] == order[0]
    places = [order.index(names) for names in late.asked]
    assert places == sorted(places)
    assert (
        Confirmation.load(tmp_path / "run" / "confirmed.json").candidate.operators == late.asked[-1]
    )


def test_a_table_that_is_not_additive_is_refused_before_anything_begins(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "refusal", lambda space: "latencies are not additive")
    with pytest.raises(BadRequest, match="not additive"):
        bench.run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # A run that has begun goes on.
    monkeypatch.setattr(pipeline, "refusal", lambda space: "")
    bench.run(tmp_path / "run", until="searched")
    monkeypatch.setattr(pipeline, "refusal", lambda space: "latencies are not additive")
    bench.run(tmp_path / "run", until="searched")


# Finalists


def test_finalists_are_the_best_of_the_search_and_the_winner_the_best_of_them(
    bench: Bench, tmp_path: Path
):
    folder = tmp_path / "run"
    done = bench.run(folder, replace(SETTINGS, finalists=3), until="trained")
    assert done.stages is not None
    last = done.stages.winner
    wanted = [last.names(e.codes) for e in best_first(last.evaluated)[:3]]
    assert [t[0] for t in bench.trained] == wanted
    assert [t[2] for t in bench.trained] == [folder / f"finalist-{n}" for n in (1, 2, 3)]
    finalists = [
        Architecture.load(folder / f"finalist-{n}" / "architecture.json") for n in (1, 2, 3)
    ]
    assert [f.operators for f in finalists] == wanted
    best = max(finalists, key=lambda f: scratch(f, "validation").value)
    assert done.architecture.operators == best.operators
    assert done.architecture.accuracy == best.accuracy
    number = finalists.index(best) + 1
    weights = (folder / f"finalist-{number}" / "weights.pt").read_bytes()
    assert (folder / "weights.pt").read_bytes() == weights
    assert scratch(best, "validation").how.endswith("the images that 3 finalists were ranked by")
    assert "ranked" not in scratch(best, "test").how
    assert (folder / "model.onnx").exists()


def test_of_finalists_that_are_equal_the_faster_is_taken(bench: Bench, tmp_path: Path):
    bench.validation = lambda operators: 0.5
    settings = replace(SETTINGS, finalists=4, seed=8)
    done = bench.run(tmp_path / "run", settings, until="trained")
    times = [predicted(bench.space, t[0]) for t in bench.trained]
    assert len(times) == 4
    assert times[0] > min(times)
    assert done.architecture.predicted_ms == pytest.approx(min(times))


def test_finalists_that_were_trained_are_not_trained_again(bench: Bench, tmp_path: Path):
    settings = replace(SETTINGS, finalists=3)
    whole = bench.run(tmp_path / "whole", settings, until="trained").architecture
    bench.trained.clear()
    bench.cut_at = 2
    with pytest.raises(Stop):
        bench.run(tmp_path / "run", settings, until="trained")
    bench.cut_at = 0
    again = bench.run(tmp_path / "run", settings, until="trained").architecture
    assert [t[2].name for t in bench.trained] == [f"finalist-{n}" for n in (1, 2, 2, 3)]
    assert again == whole
    assert bench.run(tmp_path / "run", settings, until="trained").architecture == whole
    assert len(bench.trained) == 4


def test_finalists_meet_the_budget_as_measured(bench: Bench, tmp_path: Path):
    searched = bench.run(tmp_path / "one", until="searched").architecture
    slow = searched.operators
    device = Device(bench.space, lambda names: 5.0 if names == slow else 0.1)
    done = bench.run(tmp_path / "run", replace(SETTINGS, finalists=2), measure=device)
    chosen = Confirmation.load(tmp_path / "run" / "confirmed.json").finalists
    assert slow not in [c.operators for c in chosen]
    assert [t[0] for t in bench.trained] == [c.operators for c in chosen]
    assert done.architecture.measured_ms is not None


def test_finalists_in_training_are_not_exchanged(bench: Bench, tmp_path: Path):
    settings = replace(SETTINGS, finalists=2)
    first = bench.run(tmp_path / "run", settings, until="trained").architecture
    (tmp_path / "run" / "finalist-1" / "training.pt").write_bytes(b"")
    device = Device(bench.space, lambda names: 1.5)
    done = bench.run(tmp_path / "run", settings, measure=device).architecture
    assert done.operators == first.operators
    assert device.asked == []


def test_a_run_of_one_finalist_is_that_of_earlier_versions(bench: Bench, tmp_path: Path):
    bench.run(tmp_path / "run", until="searched")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.keys().isdisjoint({"finalists", "epochs", "batch", "precision"})
    with pytest.raises(BadRequest, match="finalists"):
        bench.run(tmp_path / "run", replace(SETTINGS, finalists=2))
    with pytest.raises(BadRequest, match="finalists must be at least 1"):
        replace(SETTINGS, finalists=0)
