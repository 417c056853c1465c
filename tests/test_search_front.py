"""Networks for several budgets from one supernet."""

from __future__ import annotations

import html
import json
import shlex
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from hurricane.lookup_tables.architecture import Accuracy, Architecture
from hurricane.lookup_tables.model import LatencyModel
from hurricane.lookup_tables.table import LookupTable, Row, Target
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import GATES, POOL
from hurricane.search.candidates import FRONT_TOP
from hurricane.search.cli import cli
from hurricane.search.evolution import Codes, EvolutionSearch, RandomSearch
from hurricane.search.front import (
    CARRIED,
    TrainedSupernet,
    front_search,
    mixed_sampler,
    run_front,
    surpassed_by,
    train_command,
)
from hurricane.search.front_report import Front, FrontPoint, render_fronts
from hurricane.search.measuring import Measurement, NotMeasurable
from hurricane.search.pipeline import SearchSettings
from hurricane.search.report import NetworkFigures
from hurricane.search.rundir import RunDirectory
from hurricane.search.space import SearchSpace, build_space, retime
from hurricane.search.summary import describe_front
from hurricane.search.two_stage import Candidates, Sampler

from .search_problem import make_problem, predicted

BACKBONE = load_backbone("digits32")
BUDGETS = (0.7, 1.0, 1.6)


@dataclass(frozen=True)
class Model:
    """Latencies by capacity, equal for equal shapes."""

    latency_ms: NDArray[np.float64]
    operators: tuple[str, ...] = tuple(op.name for op in POOL)
    fixed_ms: float = 0.1

    @classmethod
    def make(cls, factor: float = 1.0) -> Model:
        rng = np.random.default_rng(1)
        noise = {shape: rng.lognormal(0, 0.1, len(POOL)) for shape in BACKBONE.layers}
        rows = [[op.macs(s) / 1e7 + 0.05 for op in POOL] * noise[s] for s in BACKBONE.layers]
        return cls(factor * np.array(rows))


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return build_space(Model.make(), BACKBONE, [1.6, 0.7, 1.0])


class Evaluator:
    """Accuracy by the operators' names and their number; remembers what it was asked."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.prepared: list[tuple[int, Candidates, Candidates | None]] = []
        self.asked: list[tuple[int, ...]] = []
        self._dies_after = dies_after

    def prepare(
        self,
        stage: int,
        candidates: Candidates,
        sampler: Sampler,
        previous: Candidates | None = None,
    ) -> None:
        self.prepared.append((stage, candidates, previous))
        self.sampler = sampler

    def evaluate(self, codes: Codes) -> list[float]:
        if self._dies_after is not None and len(self.asked) + len(codes) > self._dies_after:
            raise KeyboardInterrupt
        self.asked += map(tuple, codes.tolist())
        return [zlib.crc32(str(code).encode()) / 2**32 for code in codes.tolist()]


def latency(space: SearchSpace, codes: Codes) -> NDArray[np.float64]:
    return space.fixed_ms + np.array(
        [sum(ms[c] for ms, c in zip(space.latency_ms, row, strict=True)) for row in codes.tolist()]
    )


# --- The space ---------------------------------------------------------------------------------


def test_a_space_for_several_budgets_keeps_them_in_its_file(
    space: SearchSpace, tmp_path: Path
) -> None:
    assert space.budgets_ms == BUDGETS
    assert {len(names) for names in space.candidates} == {FRONT_TOP}
    fastest = space.fixed_ms + sum(ms[0] for ms in space.latency_ms)
    assert fastest <= BUDGETS[0]  # the first candidates meet all of them
    space.save(tmp_path / "space.json")
    assert SearchSpace.load(tmp_path / "space.json") == space
    one = space.within(1.0)
    assert one.budgets_ms == (1.0,)
    assert one.candidates == space.candidates
    assert "lower_ms" not in one.to_dict()


@pytest.mark.parametrize("lower", [[1.0, 0.7], [0.7, 1.6], [0.7, 0.7], [2.0]])
def test_budgets_out_of_order_are_refused(
    space: SearchSpace, tmp_path: Path, lower: list[float]
) -> None:
    path = tmp_path / "space.json"
    path.write_text(json.dumps({**space.to_dict(), "lower_ms": lower}))
    with pytest.raises(BadRequest, match="lower_ms"):
        SearchSpace.load(path)


def test_one_budget_given_as_a_list_is_one_budget() -> None:
    model = Model.make()
    assert build_space(model, BACKBONE, [1.0, 1.0]) == build_space(model, BACKBONE, 1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "hurricane"}, "leave out --split and --method hurricane"),
        ({"method": "hurricane", "split": 0}, "for one budget"),
        ({"split": 2}, "leave out --split"),
        ({"latency_ms": [0.2, 1.0]}, "0.2 ms cannot be met"),
        ({"latency_ms": [1.0, 900.0]}, "900 ms is no constraint"),
        ({"latency_ms": [1.0, float("nan")]}, "finite number"),
        ({"latency_ms": []}, "must be one"),
    ],
)
def test_what_several_budgets_cannot_have_is_refused(options: dict, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        build_space(Model.make(), BACKBONE, **{"latency_ms": list(BUDGETS), **options})


def test_the_sampler_draws_as_many_for_every_budget(space: SearchSpace) -> None:
    codes = mixed_sampler(space)(np.random.default_rng(0), 3000)
    assert (latency(space, codes) <= BUDGETS[-1] + 1e-9).all()
    own = space.feasible_set.sample(np.random.default_rng(0), 3000)
    for number, budget in enumerate(BUDGETS[:-1], 1):
        share = (latency(space, codes) <= budget + 1e-9).mean()
        assert share > number / 3 - 0.04  # 4.6 standard deviations
        assert share > (latency(space, own) <= budget + 1e-9).mean()
    again = mixed_sampler(space)(np.random.default_rng(0), 3000)
    assert (codes == again).all()


def test_candidates_take_another_tables_latencies(space: SearchSpace) -> None:
    slower = Model.make(2.0)
    other = retime(space, slower, BACKBONE, [2.0, 3.0], space.gate)
    assert other.candidates == space.candidates
    assert other.budgets_ms == (2.0, 3.0)
    for ours, theirs in zip(space.latency_ms, other.latency_ms, strict=True):
        assert theirs == pytest.approx([2 * ms for ms in ours])
    same = retime(space, Model.make(), BACKBONE, BUDGETS, space.gate)
    assert same == replace(space, reachable_ms=same.reachable_ms)
    gone = space.candidates[2][1]
    with_gap = Model.make()
    with_gap.latency_ms[:, with_gap.operators.index(gone)] = np.nan
    left = retime(space, with_gap, BACKBONE, 1.0, space.gate)
    assert left.candidates[2] == tuple(n for n in space.candidates[2] if n != gone)


def test_candidates_that_do_not_fit_a_table_are_refused(space: SearchSpace) -> None:
    model = Model.make()
    (other,) = [gate for gate in GATES if gate != space.gate][:1]
    with pytest.raises(BadRequest, match="gate"):
        retime(space, model, BACKBONE, 1.0, other)
    with pytest.raises(BadRequest, match="the space is of"):
        retime(space, model, load_backbone("cifar32"), 1.0, space.gate)
    for name in space.candidates[3]:
        model.latency_ms[3, model.operators.index(name)] = np.nan
    with pytest.raises(BadRequest, match="layer 3: the table has none of"):
        retime(space, model, BACKBONE, 1.0, space.gate)
    with pytest.raises(BadRequest, match="cannot be met"):
        retime(space, Model.make(), BACKBONE, 0.2, space.gate)


# --- The search --------------------------------------------------------------------------------


def test_one_supernet_serves_every_budget_and_no_network_is_scored_twice(
    space: SearchSpace,
) -> None:
    evaluator = Evaluator()
    results = front_search(space, evaluator, evaluations=60)
    assert evaluator.prepared == [(1, space.candidates, None)]
    assert len(set(evaluator.asked)) == len(evaluator.asked)
    everything = {e.codes: e for r in results for e in r.evaluated}
    assert set(everything) == set(evaluator.asked)
    drawn = evaluator.sampler(np.random.default_rng(3), 40)
    assert (drawn == mixed_sampler(space)(np.random.default_rng(3), 40)).all()
    # Each has the best of all that meets its budget, whichever it was evaluated for.
    for result, budget in zip(results, BUDGETS, strict=True):
        meets = [e for e in everything.values() if e.latency_ms <= budget + 1e-9]
        assert sorted(result.evaluated, key=lambda e: e.codes) == sorted(
            meets, key=lambda e: e.codes
        )
        assert result.fitness == max(e.fitness for e in meets)
        assert result.latency_ms <= budget + 1e-9
        assert result.latency_ms == pytest.approx(predicted(space, result.operators))
    assert [r.fitness for r in results] == sorted(r.fitness for r in results)


def test_a_budgets_search_starts_with_the_best_of_the_lower_ones(space: SearchSpace) -> None:
    class Log:
        first: ClassVar[dict[int, list[tuple[int, ...]]]] = {}

        def read_evaluated(self, stage: int, candidates: Candidates) -> list:
            return []

        def append_evaluated(self, stage: int, candidates: Candidates, batch) -> None:
            self.first.setdefault(stage, [e.codes for e in batch])

    evaluator = Evaluator()
    results = front_search(space, evaluator, RandomSearch(), evaluations=50, log=Log())
    lowest = sorted(
        (e for e in results[0].evaluated if e.codes in Log.first[1]), key=lambda e: -e.fitness
    )
    assert Log.first[2][:CARRIED] == [e.codes for e in lowest[:CARRIED]]


def test_a_front_that_was_stopped_goes_on_to_the_same_end(
    space: SearchSpace, tmp_path: Path
) -> None:
    whole = front_search(space, Evaluator(), EvolutionSearch(), 60, seed=5)
    stops = 0
    with RunDirectory.open(tmp_path / "run", {"seed": 5}) as run:
        for dies_after in (30, 30, 30, 30, 30, 1000):
            evaluator = Evaluator(dies_after)
            try:
                found = front_search(space, evaluator, EvolutionSearch(), 60, seed=5, log=run)
            except KeyboardInterrupt:
                stops += 1
                continue
            break
        else:
            pytest.fail("it never ended")
    assert stops >= 2
    assert found == whole
    for number in (1, 2, 3):
        assert (tmp_path / "run" / f"evaluated-{number}.csv").exists()


def test_a_space_of_two_stages_has_no_front() -> None:
    paper = build_space(Model.make(), BACKBONE, 1.0, "hurricane", split=3)
    with pytest.raises(BadRequest, match="one stage"):
        front_search(paper, Evaluator())


# --- A run -------------------------------------------------------------------------------------

SETTINGS = SearchSettings(
    training=0.05, evaluations=12, population=4, device="cpu", data="digits?limit=200"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SearchSpace:
    """Three budgets of a backbone of three layers."""
    _, made = make_problem(tmp_path_factory.mktemp("front") / "tiny.toml")
    low, high = made.lowest_ms, made.highest_ms
    budgets = [low + share * (high - low) for share in (0.4, 0.6, 0.8)]
    return replace(made, split=0, budget_ms=budgets[-1], lower_ms=tuple(budgets[:-1]))


class Device:
    """A device of which every network takes longer than the table says."""

    def __init__(self, space: SearchSpace, factor: float) -> None:
        self._space = space
        self._factor = factor
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, backbone, operators, gate, make=None) -> Measurement:
        self.asked.append(tuple(operators))
        ms = self._factor * predicted(self._space, tuple(operators))
        return Measurement(ms, ms, ms)


def files(folder: Path) -> dict[str, bytes]:
    kinds = ("evaluated-*.csv", "confirmed-*.json", "point-*.json")
    return {f.name: f.read_bytes() for kind in kinds for f in folder.glob(kind)}


@pytest.mark.process
def test_a_run_gives_each_budget_networks_that_meet_it_as_measured(
    small: SearchSpace, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, finalists=2, evaluations=20)
    device = Device(small, 1.05)
    outcome = run_front(small, settings, tmp_path / "run", measure=device)
    assert len(outcome.points) == 6
    networks = [point.architecture for point in outcome.points]
    assert len({n.operators for n in networks}) == 6
    assert [n.budget_ms for n in networks] == [ms for ms in small.budgets_ms for _ in range(2)]
    for point in outcome.points:
        network = point.architecture
        assert point.met
        assert network.measured_ms == pytest.approx(1.05 * predicted(small, network.operators))
        assert network.budget_ms is not None
        assert network.measured_ms <= network.budget_ms
        assert {a.split for a in network.accuracy} == {"validation", "test"}
        assert Architecture.load(point.file) == network
    text = describe_front(outcome)
    # Each, the one in the command that trains one, and those that are better elsewhere too.
    better = [file for file in outcome.surpassed if file is not None]
    assert text.count("point-") == 7 + len(better)
    assert "missed" not in text
    assert json.dumps(outcome.to_dict())
    # The page has each network with its figures, and the budgets.
    page = render_fronts([Front.read(tmp_path / "run")], "five")
    for point in outcome.points:
        assert point.file.name in page
        assert f"{point.architecture.accuracy[0].value:.1%}".rstrip("%") in page
    assert page.count("✓ met") == 6
    assert page.count('class="budget"') == 3
    assert page.count('class="solid"') == 6
    # Done again it does nothing; a file that was lost, or is of another budget, is made anew.
    before = files(tmp_path / "run")
    (tmp_path / "run" / "point-4.json").unlink()
    replace(networks[1], budget_ms=9.0).save(tmp_path / "run" / "point-2.json")
    asked = len(device.asked)
    run_front(small, settings, tmp_path / "run", measure=device)
    assert files(tmp_path / "run") == before
    assert len(device.asked) == asked


@pytest.mark.process
def test_a_device_that_is_too_slow_for_a_budget_is_said_to_miss_it(
    small: SearchSpace, tmp_path: Path
) -> None:
    outcome = run_front(small, SETTINGS, tmp_path / "run", measure=Device(small, 9.0))
    assert [point.met for point in outcome.points] == [False, False, False]
    assert describe_front(outcome).count("missed") == 3


@pytest.mark.process
def test_without_a_device_networks_stay_unmeasured_and_a_later_run_times_them(
    small: SearchSpace, tmp_path: Path
) -> None:
    def absent(*arguments, **options) -> Measurement:
        raise NotMeasurable("it is not here")

    outcome = run_front(small, SETTINGS, tmp_path / "run", measure=absent)
    assert outcome.unmeasured == "it is not here"
    assert {point.met for point in outcome.points} == {None}
    assert "not measured: it is not here" in describe_front(outcome)
    later = run_front(small, SETTINGS, tmp_path / "run", measure=Device(small, 1.0))
    assert all(p.architecture.measured_ms is not None for p in later.points)
    assert not later.unmeasured


@pytest.mark.process
def test_networks_given_before_they_were_timed_do_not_stay(
    small: SearchSpace, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, finalists=2)
    assert len(run_front(small, settings, tmp_path / "run").points) == 6
    # Of each budget only the fastest is given, as none meets it.
    outcome = run_front(small, settings, tmp_path / "run", measure=Device(small, 9.0))
    shown = Front.read(tmp_path / "run").points
    assert [point.file for point in shown] == [point.file for point in outcome.points]
    assert [point.budget_ms for point in shown] == list(small.budgets_ms)
    assert [point.met for point in shown] == [False, False, False]


def test_the_page_says_met_where_the_terminal_does() -> None:
    measured = Measurement(0.95, 1.0, 0.9)
    figures = NetworkFigures("point-1.json", ("Choice_3",), 1, 1, whole_ms=measured.ms)
    noisy = replace(figures, halves_ms=(measured.first_ms, measured.second_ms))
    for budget_ms in (0.9, 1.0, 1.1):
        point = FrontPoint(Path("point-1.json"), budget_ms, noisy)
        assert point.met == (measured.careful_ms <= budget_ms)
    assert FrontPoint(Path("point-1.json"), 1.0, figures).met
    assert FrontPoint(Path("point-1.json"), 1.0, replace(noisy, whole_ms=None)).met is None


def test_the_most_accurate_network_is_trained_on_the_data_of_the_search() -> None:
    networks = [
        (Path(f"my runs/point-{number}.json"), (Accuracy(value, "validation", "supernet", 300),))
        for number, value in enumerate((0.7, 0.9, 0.9, 0.8), 1)
    ]
    words = shlex.split(train_command(networks, "folder:my photos?limit=9"))
    assert words[:3] == ["hurricane", "train", "my runs/point-2.json"]
    assert words[3:] == ["--data", "folder:my photos?limit=9", "-o", "RUN"]


@pytest.mark.process
def test_a_trained_supernet_is_searched_again_without_training(
    small: SearchSpace, tmp_path: Path
) -> None:
    first = run_front(small, SETTINGS, tmp_path / "first")
    trained = TrainedSupernet.of_run(tmp_path / "first")
    assert trained.space == small
    # The same budgets: the same networks with the same accuracies, though nothing is trained.
    again = run_front(small, SETTINGS, tmp_path / "again", reuse=trained)
    assert [p.architecture for p in again.points] == [p.architecture for p in first.points]
    assert not list((tmp_path / "again").glob("*.pt"))
    # With fewer operators: those that are left keep their weights.
    part = replace(
        small,
        candidates=tuple(names[1:] for names in small.candidates),
        latency_ms=tuple(ms[1:] for ms in small.latency_ms),
        exploring=(None,) * small.layers,
    )
    fewer = run_front(part, SETTINGS, tmp_path / "fewer", reuse=trained)
    known = {first.results[0].names(e.codes): e.fitness for r in first.results for e in r.evaluated}
    shared = {
        names: (e.fitness, known[names])
        for e in fewer.results[-1].evaluated
        if (names := fewer.results[-1].names(e.codes)) in known
    }
    assert len(shared) > 2
    assert all(a == b for a, b in shared.values())
    # It knows nothing of other data, which has as many classes.
    with pytest.raises(BadRequest, match="give --data 'digits\\?limit=200'"):
        run_front(small, replace(SETTINGS, data="digits"), tmp_path / "other", reuse=trained)
    assert not (tmp_path / "other").exists()
    # It is another run: the folder is refused to a search that trains.
    with pytest.raises(BadRequest, match="supernet_sha256"):
        run_front(small, SETTINGS, tmp_path / "again")


def test_a_network_of_a_lower_budget_that_is_better_is_named() -> None:
    shares = [0.5, 0.4, 0.6, 0.6, 0.55, 0.7]
    networks = [
        (Path(f"point-{n}.json"), [Accuracy(0.1, "test", "x"), Accuracy(share, "validation", "x")])
        for n, share in enumerate(shares, 1)
    ]
    budgets = [1.0, 1.0, 2.0, 3.0, 3.0, 4.0]
    names = [file and file.name for file in surpassed_by(networks, budgets)]
    assert names == [None, None, None, None, "point-3.json", None]
    lower = surpassed_by(networks, [1.0, 2.0, 3.0, 3.0, 4.0, 5.0])
    assert [file and file.name for file in lower] == [
        None, "point-1.json", None, None, "point-3.json", None,
    ]  # fmt: skip
    assert "point-6.json --data 'a b'" in train_command(networks, "a b")


def test_a_page_is_of_one_kind_of_runs(small: SearchSpace, tmp_path: Path) -> None:
    for name, command in (("front", "front"), ("train", "train")):
        with RunDirectory.open(tmp_path / "runs" / name, {"command": command}) as run:
            run.save_space(small)
    assert "name those of one kind" in call("report", str(tmp_path / "runs"), status=2)
    call("report", str(tmp_path / "runs" / "front"))
    page = (tmp_path / "runs" / "front" / "report.html").read_text()
    assert "has found no networks yet" in page
    with pytest.raises(BadRequest, match="no search for several budgets"):
        Front.read(tmp_path / "runs" / "train")


def test_what_is_no_trained_supernet_of_all_layers_is_refused(
    small: SearchSpace, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="holds no run"):
        TrainedSupernet.of_run(tmp_path)
    with RunDirectory.open(tmp_path / "run", {"command": "front"}) as run:
        run.save_space(replace(small, split=1, lower_ms=()))
    with pytest.raises(BadRequest, match="first 1 layers fixed"):
        TrainedSupernet.of_run(tmp_path / "run")
    small.save(tmp_path / "run" / "space.json")
    with pytest.raises(BadRequest, match=r"no supernet-1\.pt"):
        TrainedSupernet.of_run(tmp_path / "run")
    (tmp_path / "run" / "supernet-1.pt").write_bytes(b"a checkpoint in the middle of training")
    with pytest.raises(BadRequest, match="half trained"):
        TrainedSupernet.of_run(tmp_path / "run")
    (tmp_path / "run" / "evaluated-1.csv").write_text("evaluation\n")
    assert TrainedSupernet.of_run(tmp_path / "run").space == small


# --- The command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A table in a file, its backbone, and three budgets."""
    folder = tmp_path_factory.mktemp("table")
    backbone, _ = make_problem(folder / "tiny.toml")
    target = Target("board", "dsp", "qnn", "1.0", precision="int8")
    values = {"latency_ms": 0.05, "call_ms": 0.01, "estimator": "made up"}
    rows = [
        Row.of(target, name, shape, status="ok", **values)
        for name, shape in (
            (backbone.stem_name, backbone.stem_shape),
            (backbone.head_name, backbone.head_shape),
        )
    ]
    rows += [
        Row.of(target, op.name, s, status="ok", **{**values, "latency_ms": op.macs(s) / 3e6})
        for s in backbone.distinct_shapes
        for op in POOL
    ]
    LookupTable(rows).save(folder / "tiny.csv")
    low, high = LatencyModel(LookupTable(rows), backbone).bounds()
    budgets = [f"{low + share * (high - low):.5f}" for share in (0.3, 0.45, 0.6)]
    return folder / "tiny.csv", folder / "tiny.toml", budgets


def call(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=True)
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result.stdout if not status else result.stderr + str(result.exception)


@pytest.mark.process
def test_the_command_finds_a_front_and_uses_its_supernet_again(
    table: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    made = ["--table", str(table[0]), "--backbone", str(table[1])]
    low, middle, high = table[2]
    space = json.loads(call("space", *made, "--latency", f"{high},{low}", "--json"))
    assert (space["lower_ms"], space["budget_ms"]) == ([float(low)], float(high))
    fast = ["--training", "0.02", "--evaluations", "6", "--population", "3", "--device", "cpu"]
    fast += ["--data", "digits?limit=60", "--no-measure"]
    run = tmp_path / "front"
    text = call("search", *made, *fast, "--latency", f"{low},{high}", "-o", str(run))
    assert "with one supernet" in text
    command = text[text.index("hurricane train") :].splitlines()[0]
    words = shlex.split(command)[1:-1]
    call(*words, str(tmp_path / "trained"), "--training", "0.02", "--no-measure")
    page = (run / "report.html").read_text()
    assert command in html.unescape(page)
    assert "point-2.json" in page
    (run / "report.html").unlink()
    call("report", str(run))
    assert (run / "report.html").read_text().count("point-1.json") == page.count("point-1.json")
    again = [*made, *fast, "--reuse", str(run), "-o", str(tmp_path / "again"), "--json"]
    found = json.loads(call("search", *again, "--latency", middle))
    (point,) = found["points"]
    assert point["budget_ms"] == float(middle)
    assert point["predicted_ms"] <= float(middle)
    assert point["met"] is None


def test_the_command_refuses_what_does_not_go_together(
    table: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    made = ["--table", str(table[0]), "--backbone", str(table[1]), "-o", str(tmp_path / "run")]
    assert "no number of ms" in call("search", *made, "--latency", "0.2,much", status=2)
    none = ["--baselines", "none", "--train-baselines"]
    assert "nothing to train" in call("search", *made, "--latency", "0.2", *none, status=2)
    assert "names no baseline" in call(
        "search", *made, "--latency", "0.2", "--baselines", "", status=2
    )
    assert "--method hurricane" in call(
        "search", *made, "--latency", ",".join(table[2]), "--method", "hurricane", status=2
    )
    assert "holds no run" in call(
        "search", *made, "--latency", "0.2", "--reuse", str(tmp_path), status=2
    )
    assert not (tmp_path / "run").exists()
