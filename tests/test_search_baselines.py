"""Baselines: found at equal cost, scaled by timing, timed side by side, kept and resumed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hurricane.lookup_tables.architecture import Accuracy, Architecture
from hurricane.ops.backbone import Backbone, load_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import POOL, parse_operator
from hurricane.ops.reference import REFERENCES, ReferenceNetwork
from hurricane.profiler.networks import WholeNetwork
from hurricane.search.baseline_searches import (
    Contest,
    macs_budget,
    macs_search,
    random_search,
    uniform_network,
)
from hurricane.search.baselines import BASELINES, Baseline, Comparison, parse_baselines
from hurricane.search.comparison import BaselineSettings
from hurricane.search.evolution import Evaluated, best_first
from hurricane.search.feasible import FeasibleSet
from hurricane.search.measuring import Measurement, NotMeasurable
from hurricane.search.pipeline import RunOutcome, SearchSettings, run_search
from hurricane.search.report import gather_run, render_report
from hurricane.search.rundir import evaluated_rows
from hurricane.search.scaling import WIDTHS, next_width, reference, scale
from hurricane.search.space import SearchSpace
from hurricane.search.summary import describe_comparison
from hurricane.search.two_stage import StageResult

from .search_problem import make_problem, predicted

DIGITS = load_backbone("digits32")


# Names


def test_names_are_put_in_order_and_wrong_ones_refused() -> None:
    assert parse_baselines("all") == BASELINES
    assert parse_baselines("none") == ()
    assert parse_baselines("shufflenet-v2, random") == ("random", "shufflenet-v2")
    for text in ("best", "all,random", "none,macs", "", " , "):
        with pytest.raises(BadRequest, match="there are all, none, random"):
            parse_baselines(text)


# Widths


@given(st.integers(0, 60), st.integers(-1, 60))
def test_bisection_finds_the_last_width_that_fits_in_few_steps(count: int, last: int) -> None:
    last = min(last, count - 1)
    met: dict[int, bool] = {}
    while (i := next_width(met, count)) is not None:
        assert i not in met
        met[i] = i <= last
    assert max((i for i, good in met.items() if good), default=-1) == last
    assert len(met) <= count.bit_length()


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_bisection_ends_whatever_noise_says(answers: list[bool]) -> None:
    met: dict[int, bool] = {}
    while (i := next_width(met, len(answers))) is not None:
        assert i not in met
        met[i] = answers[i]
    good = [i for i, fits in met.items() if fits]
    assert all(met[i] for i in good)
    if not good:
        assert met.get(0) is False  # the narrowest was timed before a network is given up


class Board:
    """Times published networks: so many ms a million MACs, with halves that differ."""

    def __init__(self, ms_per_million: float = 0.05, spread: float = 0.0) -> None:
        self.rate = ms_per_million
        self.spread = spread
        self.batches: list[list[ReferenceNetwork]] = []

    def __call__(self, batch: Sequence[ReferenceNetwork]) -> list[Measurement | str]:
        self.batches.append(list(batch))
        return [self.answer(network) for network in batch]

    def answer(self, network: ReferenceNetwork) -> Measurement | str:
        if network.name == "mobilenet-v3-large":
            return "no such operator"
        ms = self.rate * network.macs / 1e6
        return Measurement(ms, ms * (1 + self.spread), ms)


@pytest.mark.process
def test_networks_are_scaled_to_the_widest_that_fits_side_by_side() -> None:
    names = ("mobilenet-v2", "shufflenet-v2", "mobilenet-v3-large")
    board = Board()
    found = scale(names, DIGITS, 1.0, board)
    assert [n.name for n in board.batches[0]] == list(names)  # all take the step together
    for name in names[:2]:
        network, tried = found[name].network, dict(found[name].tried)
        assert network is not None
        wider = reference(name, WIDTHS[WIDTHS.index(network.multiplier) + 1], DIGITS)
        assert 0.05 * network.macs / 1e6 <= 1.0 < 0.05 * wider.macs / 1e6
        assert tried[network.multiplier] == pytest.approx(0.05 * network.macs / 1e6)
        assert found[name].measured is not None
    refused = found["mobilenet-v3-large"]
    assert refused.network is None
    assert refused.problem == "cannot run on the target: no such operator"
    assert all(ms is None for _, ms in refused.tried)


@pytest.mark.process
def test_a_width_must_fit_with_the_difference_of_its_halves_to_spare() -> None:
    calm = scale(["mobilenet-v2"], DIGITS, 1.0, Board())["mobilenet-v2"].network
    restless = scale(["mobilenet-v2"], DIGITS, 1.0, Board(spread=0.5))["mobilenet-v2"].network
    assert calm is not None
    assert restless is not None
    assert restless.multiplier < calm.multiplier


@pytest.mark.process
def test_a_network_that_is_too_slow_at_every_width_says_how_slow() -> None:
    found = scale(["mobilenet-v2"], DIGITS, 1.0, Board(1000.0))["mobilenet-v2"]
    smallest = reference("mobilenet-v2", WIDTHS[0], DIGITS)
    assert found.network is None
    assert (
        found.problem
        == f"too slow at every width: x{WIDTHS[0]:g} takes {smallest.macs / 1e3:.4g} ms"
    )


def test_a_published_network_takes_image_and_classes_of_the_backbone() -> None:
    network = reference("mobilenet-v2", 0.5, DIGITS)
    assert (network.channels, network.height, network.width) == (1, 32, 32)
    assert network.classes == DIGITS.classes == 10


# Searches


def contest(backbone: Backbone, space: SearchSpace, count: int = 40) -> Contest:
    """A contest on a made-up accuracy, the more MACs in the last layer the better."""
    feasible = space.feasible_set

    def fitness(codes: np.ndarray) -> list[float]:
        shape = backbone.layers[-1]
        names = [space.candidates[-1][code] for code in codes[:, -1]]
        return [parse_operator(name).macs(shape) / 1e9 for name in names]

    def search(name, strategy, within: FeasibleSet) -> list[Evaluated]:
        rng = np.random.default_rng(0)
        codes = np.unique(within.sample(rng, count), axis=0)
        ms = feasible.latency_ms(codes).tolist()
        rows = zip(map(tuple, codes.tolist()), fitness(codes), ms, strict=True)
        asked.append((name, strategy.name, within))
        return [Evaluated(row, value, cost, 0) for row, value, cost in rows]

    asked: list[tuple[str, str, FeasibleSet]] = []
    stage = StageResult(1, space.candidates, space.a_win0, 0.5, 1.0, 1, ())
    uniform = (("MB_3_3", 0.9 * space.budget_ms), ("SEP_3", 0.1), ("MB_7_6", 9.0))
    made = Contest(backbone, space.budget_ms, stage, feasible, uniform, 10, 0, search, fitness)
    contest_asked[id(made)] = asked
    return made


contest_asked: dict[int, list[tuple[str, str, FeasibleSet]]] = {}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, SearchSpace]:
    """A space of which a search of one stage evaluates a part only."""
    backbone, space = make_problem(tmp_path_factory.mktemp("p") / "tiny.toml")
    return backbone, replace(space, split=0)


def test_random_search_draws_within_the_budget_and_ranks_by_accuracy(problem) -> None:
    made = contest(*problem)
    ranking = random_search(made)
    ((name, strategy, within),) = contest_asked[id(made)]
    assert (name, strategy, within) == ("random", "random", made.feasible)
    fitness = [c.fitness for c in ranking.candidates]
    assert fitness == sorted(fitness, reverse=True)
    assert ranking.candidates[0].predicted_ms == best_first(ranking.evaluated)[0].latency_ms
    assert f"best of {len(ranking.evaluated)}" in ranking.detail


def test_macs_search_knows_macs_alone(problem) -> None:
    backbone, space = problem
    made = contest(*problem)
    ranking = macs_search(made)
    ((_, strategy, within),) = contest_asked[id(made)]
    assert strategy == "evolution"
    fixed = sum(cost.macs for cost in backbone.fixed_convolutions())
    assert within.fixed_ms == pytest.approx(fixed / 1e6)
    limit = within.budget_ms
    for candidate in ranking.candidates:
        macs = backbone.macs(candidate.operators) / 1e6
        assert macs <= limit + 1e-9
        assert candidate.predicted_ms == pytest.approx(space.budget_ms * macs / limit)


def test_the_budget_of_macs_is_what_networks_at_the_latency_budget_have() -> None:
    rng = np.random.default_rng(0)
    macs = [rng.uniform(1, 10, 4) for _ in range(8)]
    exact = FeasibleSet([2 * m for m in macs], 3.0, 83.0)  # latency is 3 + 2 x MACs
    assert macs_budget(macs, 5.0, exact, 0) == pytest.approx(5.0 + 40.0, rel=0.02)
    tight = FeasibleSet([2 * m for m in macs], 3.0, 3.5)  # nothing is so fast
    least = 5.0 + sum(float(m.min()) for m in macs)
    assert macs_budget(macs, 5.0, tight, 0) >= least


def test_the_uniform_network_is_the_largest_and_scored_where_the_supernet_has_it(problem) -> None:
    _, space = problem
    everywhere = [op.name for op in POOL if all(op.name in c for c in space.candidates)]
    made = contest(*problem)
    ranking = uniform_network(made)
    order = [c.operators[0] for c in ranking.candidates]
    assert order == ["MB_7_6", "MB_3_3", "SEP_3"]
    assert all(set(c.operators) == {c.operators[0]} for c in ranking.candidates)
    assert not ranking.evaluated
    assert not ranking.by_accuracy
    own = replace(made, uniform=tuple((name, 0.1) for name in everywhere))
    if everywhere:
        assert len(uniform_network(own).evaluated) == len(everywhere)
    late = replace(made, uniform=tuple((name, 99.0) for name in everywhere))
    assert not uniform_network(late).evaluated


# The file, and the lines that are shown


def test_a_comparison_survives_its_file(tmp_path: Path) -> None:
    measured = Measurement(1.0, 1.1, 0.9)
    figures = (Accuracy(0.9, "test", "trained from scratch on digits", 10),)
    comparison = Comparison(2.0, "measured", winner=measured).with_baselines(
        [
            Baseline(
                "shufflenet-v2", multiplier=0.5, macs=5, params=6, tried=((1.0, None), (0.5, 2.0))
            ),
            Baseline("random", "best", ("SEP_3",), None, 7, 8, 1.5, measured, figures),
            Baseline("macs", problem="no supernet"),
        ]
    )
    assert [b.name for b in comparison.baselines] == ["random", "macs", "shufflenet-v2"]
    comparison.save(tmp_path / "baselines.json")
    assert Comparison.load(tmp_path / "baselines.json") == comparison
    text = (tmp_path / "baselines.json").read_text()
    (tmp_path / "baselines.json").write_text(text.replace('"ms": 1.0', '"ms": 0.0'))
    with pytest.raises(BadRequest, match="more than 0"):
        Comparison.load(tmp_path / "baselines.json")


def test_lines_tell_supernet_figures_from_trained_ones_and_misses() -> None:
    def accuracy(value: float, how: str) -> Accuracy:
        return Accuracy(value, "test", how, 1000)

    winner = Architecture(
        "digits32",
        ("SEP_3",) * len(DIGITS.layers),
        predicted_ms=1.2,
        accuracy=(accuracy(0.8, "supernet of stage 1"), accuracy(0.95, "trained from scratch")),
    )
    random = Baseline("random", "drawn", winner.operators, None, 2_000_000, 1_000_000, 1.9)
    random = replace(random, accuracy=(accuracy(0.7, "supernet of stage 1"),))
    slow = replace(random, name="macs", measured=Measurement(2.5, 2.5, 2.5), accuracy=())
    comparison = Comparison(2.0, "measured", (random, slow, Baseline("uniform", problem="none")))
    head, first, second, _, last = describe_comparison(comparison, winner).splitlines()
    assert "ms predicted" in head
    assert first.split()[:3] == ["network", "found", "1.2"]
    assert first.index("80.0%") == second.index("70.0%") < first.index("95.0%")
    assert "95." not in second
    assert last.split() == ["uniform", *["–"] * 5, "none"]
    timed = replace(comparison, winner=Measurement(1.3, 1.3, 1.3))
    head, first, second, third, _ = describe_comparison(timed, winner).splitlines()
    assert "measured side by side" in head
    assert "1.3 " in first
    assert second.split()[1] == "–"  # predicted is not measured
    assert "2.5 missed" in third


# A whole run

SETTINGS = SearchSettings(training=0.05, evaluations=12, population=4, device="cpu")


class Device:
    """A device on which latencies are the table's times a factor, of published ones by MACs."""

    def __init__(self, space: SearchSpace, factor: float = 1.0) -> None:
        self.space = space
        self.factor = factor
        self.batches: list[list[str]] = []

    def __call__(
        self, backbone: Backbone, networks: Sequence[WholeNetwork], gate: str
    ) -> list[Measurement | str]:
        assert gate == self.space.gate
        self.batches.append([n.label for n in networks])
        return [self.answer(network) for network in networks]

    def answer(self, network: WholeNetwork) -> Measurement | str:
        if network.reference is not None:
            ms = network.reference.macs / 5e6
        else:
            try:
                ms = self.factor * predicted(self.space, network.operators)
            except ValueError:  # no candidate
                ms = 0.5 * self.space.budget_ms
        return Measurement(ms, ms, ms)


def run(
    space: SearchSpace, folder: Path, device: Device | None, names: str = "all", train: bool = False
) -> RunOutcome:
    wanted = BaselineSettings(parse_baselines(names), train, device)
    return run_search(space, SETTINGS, folder, until="trained", baselines=wanted)


@pytest.fixture(scope="module")
def whole(problem, tmp_path_factory) -> tuple[SearchSpace, Path, Device, RunOutcome]:
    _, space = problem
    folder = tmp_path_factory.mktemp("runs") / "whole"
    device = Device(space)
    return space, folder, device, run(space, folder, device)


@pytest.mark.process
def test_every_baseline_is_there_and_timed_beside_the_winner(whole) -> None:
    space, folder, device, outcome = whole
    comparison = outcome.comparison
    assert comparison is not None
    assert comparison == Comparison.load(folder / "baselines.json")
    assert device.batches[-1] == ["winner", *(b.name for b in comparison.baselines if b.found)]
    assert comparison.winner == Measurement(*[predicted(space, outcome.architecture.operators)] * 3)
    assert tuple(b.name for b in comparison.baselines) == BASELINES
    for baseline in comparison.baselines:
        if baseline.name == "uniform":  # which takes the table, and this space has none
            assert "no operator is known" in baseline.problem
            continue
        assert baseline.found
        assert baseline.measured is not None
        assert baseline.measured.ms <= space.budget_ms
        assert (baseline.multiplier is not None) == (baseline.name in REFERENCES)
        assert bool(baseline.tried) == (baseline.name in REFERENCES)


@pytest.mark.process
def test_search_baselines_cost_as_many_evaluations_and_have_the_supernets_figures(whole) -> None:
    space, folder, _, outcome = whole
    stage = outcome.stages.stages[-1]
    for name in ("random", "macs"):
        path = folder / f"evaluated-{name}.csv"
        rows = evaluated_rows(path, path.read_bytes())
        assert len(rows) == len(stage.evaluated)
        for _, _, _, ms, operators in rows:
            # Latencies on the disk are latencies, also where MACs were what counted.
            assert float(ms) == pytest.approx(predicted(space, tuple(operators.split(" "))))
        baseline = outcome.comparison.get(name)
        best = max(float(row[2]) for row in rows)
        (validation,) = (a for a in baseline.accuracy if a.split == "validation")
        assert validation.value <= best
        assert validation.inherited
        assert baseline.test(inherited=True) is not None
        assert not baseline.trained
    known = {e.codes: e.fitness for e in stage.evaluated}
    assert known  # what both evaluated has one accuracy
    everything = {row[4]: float(row[2]) for row in rows}
    for e in stage.evaluated:
        words = " ".join(stage.names(e.codes))
        assert everything.get(words, e.fitness) == e.fitness


@pytest.mark.process
def test_a_comparison_that_is_there_is_not_made_again(whole) -> None:
    space, folder, _, outcome = whole
    again = Device(space)
    before = (folder / "baselines.json").read_bytes()
    repeated = run(space, folder, again)
    assert again.batches == []
    assert repeated.comparison == outcome.comparison
    assert (folder / "baselines.json").read_bytes() == before


@pytest.mark.process
def test_what_is_too_slow_at_every_width_is_timed_once(whole, tmp_path: Path) -> None:
    class Slow(Device):
        def answer(self, network: WholeNetwork) -> Measurement | str:
            if network.reference is not None:
                return Measurement(9e3, 9e3, 9e3)
            return super().answer(network)

    class Broken(Device):
        def answer(self, network: WholeNetwork) -> Measurement | str:
            return "broken" if network.reference is not None else super().answer(network)

    space, folder, *_ = whole
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    (copied / "baselines.json").unlink()
    for device, asked in ((Broken(space), True), (Slow(space), True), (Slow(space), False)):
        run(space, copied, device, "shufflenet-v2")
        assert bool(device.batches) == asked


@pytest.mark.process
def test_a_comparison_that_was_cut_off_ends_as_one_that_was_not(whole, tmp_path: Path) -> None:
    space, folder, _, outcome = whole
    copied = tmp_path / "run"
    shutil.copytree(folder, copied)
    (copied / "baselines.json").unlink()
    for name in ("random", "macs"):
        path = copied / f"evaluated-{name}.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]) + "5,0,0.")
    resumed = run(space, copied, Device(space), "random,macs,uniform")
    for name in ("random", "macs"):
        file = f"evaluated-{name}.csv"
        assert (copied / file).read_bytes() == (folder / file).read_bytes()
        assert resumed.comparison.get(name) == outcome.comparison.get(name)


@pytest.mark.process
def test_a_baseline_that_is_added_is_timed_with_all_others(whole, tmp_path: Path) -> None:
    space, _, _, _ = whole
    folder = tmp_path / "run"
    first = run(space, folder, Device(space), "random")
    assert [b.name for b in first.comparison.baselines] == ["random"]
    device = Device(space)
    second = run(space, folder, device, "mobilenet-v2")
    assert [b.name for b in second.comparison.baselines] == ["random", "mobilenet-v2"]
    assert device.batches[-1] == ["winner", "random", "mobilenet-v2"]


@pytest.mark.process
def test_a_search_without_a_device_has_predictions_and_no_published_networks(
    whole, tmp_path: Path
) -> None:
    space, _, _, _ = whole
    comparison = run(space, tmp_path / "run", None, "random,shufflenet-v2").comparison
    random, published = comparison.baselines
    assert comparison.winner is None
    assert random.measured is None
    assert random.predicted_ms == pytest.approx(predicted(space, random.operators))
    assert random.predicted_ms <= space.budget_ms
    assert not published.found
    assert published.problem == "not timed: nothing was to be measured"


@pytest.mark.process
def test_a_baseline_that_is_trained_is_timed_later_and_not_exchanged(whole, tmp_path: Path) -> None:
    space = whole[0]
    first = run(space, tmp_path / "run", None, "random", train=True).comparison.get("random")
    assert first.measured is None
    slow = Device(space, 1.001 * space.budget_ms / predicted(space, first.operators))
    later = run(space, tmp_path / "run", slow, "random", train=True).comparison.get("random")
    assert slow.batches == [["winner", "random"]]
    assert later == replace(first, measured=later.measured)
    assert later.measured.ms > space.budget_ms


@pytest.mark.process
def test_what_stops_the_device_is_told_and_the_winner_is_not_lost(whole, tmp_path: Path) -> None:
    space, _, _, outcome = whole

    class Absent(Device):
        def __call__(self, backbone, networks, gate):
            raise NotMeasurable("name the board's agent")

    class Broken(Device):
        def __call__(self, backbone, networks, gate):
            if any(n.label == "shufflenet-v2" for n in networks):
                raise HurricaneError("a converter failed")
            return super().__call__(backbone, networks, gate)

    absent = run(space, tmp_path / "a", Absent(space), "random,shufflenet-v2")
    assert absent.architecture.operators == outcome.architecture.operators
    assert absent.comparison.get("random").predicted_ms is not None
    assert "name the board's agent" in absent.comparison.get("shufflenet-v2").problem
    broken = run(space, tmp_path / "b", Broken(space), "shufflenet-v2,mobilenet-v2").comparison
    assert "a converter failed" in broken.get("shufflenet-v2").problem
    assert broken.get("mobilenet-v2").measured is not None


@pytest.mark.process
def test_a_baseline_that_misses_its_budget_gives_way_as_a_winner_does(
    whole, tmp_path: Path
) -> None:
    space, _, _, outcome = whole
    best = outcome.comparison.get("random")
    slow = 1.001 * space.budget_ms / predicted(space, best.operators)
    found = run(space, tmp_path / "run", Device(space, slow), "random").comparison.get("random")
    assert found.operators != best.operators
    assert found.measured.ms <= space.budget_ms


@pytest.mark.process
def test_baselines_are_trained_as_the_winner_is_where_asked(whole) -> None:
    space, folder, _, outcome = whole
    names = "random,shufflenet-v2"
    comparison = run(space, folder, Device(space), names, train=True).comparison
    (how,) = {a.how for a in outcome.architecture.accuracy if not a.inherited and a.split == "test"}
    for name in names.split(","):
        figure = comparison.get(name).test(inherited=False)
        assert figure is not None
        assert figure.how == how
    assert not comparison.get("macs").trained
    assert (folder / "baselines" / "shufflenet-v2" / "training.pt").exists()
    again = run(space, folder, Device(space), names, train=True).comparison
    assert again == comparison
    page = render_report([gather_run(folder)], "t")
    assert "What one would have had otherwise" in page
    assert page.index("network found") < page.index("random") < page.index("shufflenet-v2 x")
