"""The two stages, with an evaluator that needs no training, and the directory of a run."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from hurricane.lookup_tables.proportion import wilson_interval
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import POOL
from hurricane.search.evolution import Codes, Evaluated, EvolutionSearch, RandomSearch
from hurricane.search.feasible import FeasibleSet
from hurricane.search.rundir import RunDirectory, read_config
from hurricane.search.space import SearchSpace, build_space
from hurricane.search.summary import describe_stage
from hurricane.search.two_stage import Candidates, Sampler, two_stage_search

SPLIT = 3
CONFIG = {"seed": 0, "stages": 2}


class Model:
    """Latencies by capacity, equal for equal shapes."""

    fixed_ms = 0.1
    operators = tuple(op.name for op in POOL)

    def __init__(self) -> None:
        shapes = load_backbone("digits32").layers
        rng = np.random.default_rng(1)
        noise = {shape: rng.lognormal(0, 0.1, len(POOL)) for shape in shapes}
        self.latency_ms = np.array(
            [[op.macs(s) / 1e7 + 0.05 for op in POOL] * noise[s] for s in shapes]
        )


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return build_space(Model(), load_backbone("digits32"), 1.5, split=SPLIT)


class Evaluator:
    """Accuracy from a hash of the operators; remembers what it was asked."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.prepared: list[tuple[int, Candidates, Candidates | None]] = []
        self.evaluated = 0
        self._dies_after = dies_after

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        self.prepared.append((stage, candidates, previous))
        self.sample = sampler(np.random.default_rng(0), 50)

    def evaluate(self, codes: Codes) -> list[float]:
        if self._dies_after is not None and self.evaluated + len(codes) > self._dies_after:
            raise KeyboardInterrupt
        self.evaluated += len(codes)
        _, candidates, _ = self.prepared[-1]
        return [
            zlib.crc32(" ".join(c[i] for c, i in zip(candidates, code, strict=True)).encode())
            / 2**32
            for code in codes.tolist()
        ]


def test_stage_1_keeps_the_first_layers_and_stage_2_the_later(space: SearchSpace) -> None:
    evaluator = Evaluator()
    result = two_stage_search(space, evaluator, evaluations=60)
    one, two = result.stages
    assert one.operators[:SPLIT] == space.a_win0[:SPLIT]
    assert two.operators[SPLIT:] == one.operators[SPLIT:]
    assert one.candidates[:SPLIT] == tuple((name,) for name in space.a_win0[:SPLIT])
    assert one.candidates[SPLIT:] == space.candidates[SPLIT:]
    assert two.candidates[:SPLIT] == space.candidates[:SPLIT]
    assert two.candidates[SPLIT:] == tuple((name,) for name in one.operators[SPLIT:])
    assert evaluator.prepared == [(1, one.candidates, None), (2, two.candidates, one.candidates)]
    assert result.winner is two


def test_every_evaluated_network_and_the_winners_meet_the_budget(space: SearchSpace) -> None:
    for stage in two_stage_search(space, Evaluator(), evaluations=60).stages:
        table = [
            dict(zip(names, ms, strict=True))
            for names, ms in zip(space.candidates, space.latency_ms, strict=True)
        ]
        for item in stage.evaluated:
            names = [c[i] for c, i in zip(stage.candidates, item.codes, strict=True)]
            total = space.fixed_ms + sum(t[n] for t, n in zip(table, names, strict=True))
            assert item.latency_ms == pytest.approx(total, abs=1e-9)
            assert total <= space.budget_ms + 1e-9
        assert stage.fitness == max(item.fitness for item in stage.evaluated)


def test_the_sampler_draws_paths_of_the_stage_within_the_budget(space: SearchSpace) -> None:
    evaluator = Evaluator()
    two_stage_search(space, evaluator, stages=1, evaluations=10)
    assert (evaluator.sample[:, :SPLIT] == 0).all()
    assert space.stage1_set.contains(evaluator.sample).all()
    assert len(np.unique(evaluator.sample, axis=0)) > 10


def test_stage_2_compares_with_the_winner_of_stage_1(space: SearchSpace) -> None:
    one, two = two_stage_search(space, Evaluator(), evaluations=5).stages
    first = two.evaluated[0].codes
    assert tuple(c[i] for c, i in zip(two.candidates, first, strict=True)) == one.operators
    assert two.fitness >= one.fitness


def test_networks_within_noise_are_those_in_the_winners_interval(space: SearchSpace) -> None:
    one, _ = two_stage_search(space, Evaluator(), evaluations=60).stages
    images = 20
    low, high = wilson_interval(round(one.fitness * images), images)
    alike = one.within_noise(images)
    assert one.names(alike[0].codes) == one.operators
    assert 1 < len(alike) < len(one.evaluated)
    assert {e for e in one.evaluated if low <= e.fitness <= high} == set(alike)
    assert len(one.within_noise(10**9)) == 1
    text = describe_stage(one, images)
    fastest = min(alike, key=lambda e: e.latency_ms)
    assert f"({100 * low:.1f}–{high:.1%}, 20 images)" in text
    assert f"{len(alike)} of them lie within that interval, the fastest at" in text
    assert f"{fastest.latency_ms:.4g} ms with {fastest.fitness:.1%}" in text
    assert "images" not in describe_stage(one)


class Recording(RandomSearch):
    """Random search that keeps the first number that each of its generations could draw."""

    drawn: ClassVar[list[int]] = []

    def propose(
        self,
        feasible: FeasibleSet,
        history: Sequence[Evaluated],
        rng: np.random.Generator,
        wanted: int,
    ) -> Codes:
        self.drawn.append(int(copy.deepcopy(rng).integers(2**60)))
        return super().propose(feasible, history, rng, wanted)


def test_each_stage_and_seed_draws_its_own_numbers(space: SearchSpace) -> None:
    def drawn(seed: int) -> list[int]:
        Recording.drawn.clear()
        two_stage_search(space, Evaluator(), strategy=Recording(3), evaluations=6, seed=seed)
        return list(Recording.drawn)

    first = drawn(0)
    assert len(set(first)) == len(first) == 4  # two generations in each of two stages
    assert drawn(0) == first
    assert set(drawn(1)).isdisjoint(first)


def test_progress_counts_what_there_is_from_where_it_was(
    space: SearchSpace, tmp_path: Path
) -> None:
    told: list[tuple[int, int, int]] = []
    strategy = EvolutionSearch.of_population(10)

    def search(evaluator: Evaluator, evaluations: int, log: RunDirectory | None = None):
        told.clear()
        return two_stage_search(
            space,
            evaluator,
            strategy=strategy,
            evaluations=evaluations,
            log=log,
            progress=lambda *news: told.append(news),
        )

    result = search(Evaluator(), 10**6)
    for stage in result.stages:
        assert stage.feasible == len(stage.evaluated)
        counts = [(done, total) for number, done, total in told if number == stage.stage]
        assert counts[0] == (0, stage.feasible)
        assert counts[-1] == (stage.feasible, stage.feasible)
    with RunDirectory.open(tmp_path / "run", CONFIG) as run, pytest.raises(KeyboardInterrupt):
        search(Evaluator(25), 40, run)
    assert told[-1] == (1, 20, 40)
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        search(Evaluator(), 40, run)
    assert told[:3] == [(1, 20, 40), (1, 30, 40), (1, 30, 40)]


def test_one_stage_ends_with_its_winner(space: SearchSpace) -> None:
    result = two_stage_search(space, Evaluator(), stages=1, evaluations=20)
    assert len(result.stages) == 1
    assert result.winner.operators[:SPLIT] == space.a_win0[:SPLIT]


@pytest.mark.parametrize("stages", [0, 3])
def test_other_numbers_of_stages_are_refused(space: SearchSpace, stages: int) -> None:
    with pytest.raises(BadRequest, match="1 or 2"):
        two_stage_search(space, Evaluator(), stages=stages)


@pytest.mark.parametrize("dies_after", [0, 25, 40, 70])
def test_a_killed_search_resumes_to_the_same_architecture(
    space: SearchSpace, dies_after: int, tmp_path: Path
) -> None:
    strategy = EvolutionSearch.of_population(10)
    whole = two_stage_search(space, Evaluator(), strategy=strategy, evaluations=40)
    with RunDirectory.open(tmp_path / "run", CONFIG) as run, pytest.raises(KeyboardInterrupt):
        two_stage_search(space, Evaluator(dies_after), strategy=strategy, evaluations=40, log=run)
    evaluator = Evaluator()
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        assert run.resumed
        resumed = two_stage_search(space, evaluator, strategy=strategy, evaluations=40, log=run)
    assert resumed == whole
    done = dies_after // 10 * 10
    assert evaluator.evaluated == sum(len(s.evaluated) for s in whole.stages) - done
    assert [stage for stage, _, _ in evaluator.prepared] == ([1, 2] if done < 40 else [2])


def test_a_finished_search_is_read_and_not_done_again(space: SearchSpace, tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, CONFIG) as run:
        whole = two_stage_search(space, Evaluator(), evaluations=30, log=run)
        evaluator = Evaluator()
        assert two_stage_search(space, evaluator, evaluations=30, log=run) == whole
    assert evaluator.prepared == []


def test_an_unfinished_line_is_dropped_and_evaluated_again(
    space: SearchSpace, tmp_path: Path
) -> None:
    with RunDirectory.open(tmp_path, CONFIG) as run:
        whole = two_stage_search(space, Evaluator(), stages=1, evaluations=30, log=run)
        content = run.evaluated_path(1).read_bytes()
        run.evaluated_path(1).write_bytes(content[:-25])
        evaluator = Evaluator()
        again = two_stage_search(space, evaluator, stages=1, evaluations=30, log=run)
        assert again == whole
        assert evaluator.evaluated == 1
        assert run.evaluated_path(1).read_bytes() == content


def test_a_broken_record_is_refused_by_line(space: SearchSpace, tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path, CONFIG) as run:
        two_stage_search(space, Evaluator(), stages=1, evaluations=30, log=run)
        lines = run.evaluated_path(1).read_text().splitlines(keepends=True)
        lines[4] = lines[4].replace(space.a_win0[0], "MB_9", 1)
        run.evaluated_path(1).write_text("".join(lines))
        with pytest.raises(BadRequest, match=r"evaluated-1.csv line 5"):
            two_stage_search(space, Evaluator(), stages=1, evaluations=30, log=run)


def test_a_run_with_another_configuration_is_refused(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG).close()
    with pytest.raises(BadRequest, match=r"seed=0, not seed=1"):
        RunDirectory.open(tmp_path / "run", {**CONFIG, "seed": 1})
    assert read_config(tmp_path / "run") == CONFIG


def test_a_directory_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadRequest, match="holds no run"):
        RunDirectory.open(tmp_path, CONFIG)
    with pytest.raises(BadRequest, match="is a file"):
        RunDirectory.open(tmp_path / "thesis.tex", CONFIG)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_work_in_one_run(tmp_path: Path) -> None:
    with (
        RunDirectory.open(tmp_path / "run", CONFIG),
        pytest.raises(HurricaneError, match="another process"),
    ):
        RunDirectory.open(tmp_path / "run", CONFIG)
    RunDirectory.open(tmp_path / "run", CONFIG).close()


def test_only_rank_0_writes(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        result = two_stage_search(space, Evaluator(), stages=1, evaluations=10, log=run)
        run.save_space(replace(space, table=None))
    assert len(result.winner.evaluated) == 10
    assert not (tmp_path / "run").exists()
