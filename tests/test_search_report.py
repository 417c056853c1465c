"""The report: what it shows of a run, what it leaves out, and what it never pretends."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hurricane.lookup_tables import Calibration, LatencyModel, LookupTable, Row, Target
from hurricane.lookup_tables.architecture import Accuracy, Architecture, TableSource
from hurricane.lookup_tables.calibration import save_calibration
from hurricane.lookup_tables.spread import SPREADS, NetworkTimes, Spread
from hurricane.lookup_tables.verdict import AdditivityCheck, Cause, Verdict
from hurricane.ops.backbone import load_backbone, parse_backbone
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.pool import POOL
from hurricane.profiler.additivity import check_networks
from hurricane.profiler.draws import random_networks, uniform_networks
from hurricane.profiler.networks import NetworkTime
from hurricane.search.candidates import METHODS
from hurricane.search.cli import cli
from hurricane.search.evolution import Evaluated
from hurricane.search.pipeline import (
    SearchSettings,
    open_latency,
    predicted_interval,
    space_facts,
)
from hurricane.search.report import (
    HEAT_LEVELS,
    Axis,
    EvaluatedPoint,
    HeatCell,
    Stage,
    commands,
    count,
    gather_run,
    heat_map,
    interval,
    ms,
    read_verification,
    reductions,
    signed_percent,
    write_report,
)
from hurricane.search.report_cli import find_runs, report_command
from hurricane.search.rundir import RunDirectory
from hurricane.search.space import SearchSpace, build_space

BACKBONE = load_backbone("digits32")
CPU = Target("Bench CPU", "cpu", "onnxruntime", "1.20.0")
DSP = Target("hexagon685-dsp", "dsp", "simulated_snpe", "1", "", "int8", origin="simulated")
SETTINGS = SearchSettings(evaluations=40, training=0.25)
HOW = "trained from scratch on digits"


def make_table(path: Path, target: Target = CPU, **changes: dict[str, Any]) -> LookupTable:
    """A table of all operators; latency follows the MACs.

    `changes`: columns by operator; ``frame`` stands for stem and head.
    """
    rows = []
    for shape in BACKBONE.distinct_shapes:
        for operator in POOL:
            if operator.applies_to(shape):
                latency = 0.001 + operator.macs(shape) / 1e8
                values = {"status": "ok", "latency_ms": latency, "estimator": "test"}
                values |= changes.get(operator.name, {})
                rows.append(Row.of(target, operator.name, shape, **values))
    for name, shape in (
        (BACKBONE.stem_name, BACKBONE.stem_shape),
        (BACKBONE.head_name, BACKBONE.head_shape),
    ):
        values = {"latency_ms": 0.02, "call_ms": 0.01, "estimator": "test"}
        values |= changes.get("frame", {})
        rows.append(Row.of(target, name, shape, status="ok", **values))
    table = LookupTable(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    return LookupTable.load(path)


def make_space(
    table: LookupTable,
    model: LatencyModel | None = None,
    source: TableSource | None = None,
    method: str = "hurricane",
) -> SearchSpace:
    model = model or LatencyModel(table, BACKBONE)
    low, high = model.bounds()
    source = source or TableSource(str(table.path), table.sha256(), model.target.name)
    return build_space(model, BACKBONE, round(low + 0.3 * (high - low), 4), method, table=source)


def open_run(folder: Path, space: SearchSpace) -> RunDirectory:
    config = {"command": "search", **space_facts(space), **asdict(SETTINGS), "preset": None}
    return RunDirectory.open(folder, config)


def make_run(
    folder: Path,
    table: LookupTable,
    measured: bool = True,
    model: LatencyModel | None = None,
    source: TableSource | None = None,
    method: str = "hurricane",
) -> SearchSpace:
    """A finished run with everything a report can show."""
    model = model or LatencyModel(table, BACKBONE)
    space = make_space(table, model, source, method)
    rng = np.random.default_rng(0)
    with open_run(folder, space) as run:
        run.save_space(space)
        for stage in range(1, space.stages + 1):
            codes = space.feasible_set.sample(rng, 30)
            batch = [
                Evaluated(
                    tuple(int(c) for c in row),
                    0.5 + 0.01 * i,
                    model.latency_of(names_of(space, row)),
                    i // 10,
                )
                for i, row in enumerate(codes)
            ]
            run.append_evaluated(stage, space.candidates, batch)
            best = batch[-1]
            winner = Architecture(
                backbone=space.backbone,
                operators=names_of(space, best.codes),
                table=space.table,
                budget_ms=space.budget_ms,
                predicted_ms=best.latency_ms,
                accuracy=(Accuracy(best.fitness, "validation", f"supernet of stage {stage}"),),
                seed=0,
                versions={"python": "3.11"},
            )
            run.save_winner(stage, winner)
        predicted = winner.predicted_ms or 0.0
        winner = winner.with_accuracy(
            Accuracy(0.953, "validation", HOW), Accuracy(0.947, "test", HOW)
        )
        if measured:
            halves = (1.021 * predicted, 1.019 * predicted)
            winner = replace(winner, measured_ms=1.02 * predicted, measured_halves_ms=halves)
        run.save_architecture(winner)
        run.model_path.write_bytes(b"a model")
    (folder / "verify.json").write_text(json.dumps(verification(model)))
    make_baseline(folder / "baseline", space)
    return space


def make_baseline(folder: Path, space: SearchSpace, **settings: Any) -> None:
    config = {"command": "train", **asdict(replace(SETTINGS, **settings)), "preset": None}
    with RunDirectory.open(folder, config) as run:
        run.save_architecture(
            Architecture(
                backbone=space.backbone,
                operators=("Choice_3",) * len(BACKBONE.layers),
                table=space.table,
                measured_ms=0.777,
                accuracy=(Accuracy(0.911, "test", HOW),),
            )
        )


def names_of(space: SearchSpace, codes: Sequence[int]) -> tuple[str, ...]:
    return tuple(names[code] for names, code in zip(space.candidates, codes, strict=True))


def verification(model: LatencyModel) -> dict[str, Any]:
    """What ``hurricane verify --json`` prints, from whole networks that take 2% longer."""
    networks = [*random_networks(model, 5, 0), *uniform_networks(model)[:1]]
    times = []
    for network in networks:
        took = 1.02 * model.latency_of(network.operators)
        times.append(NetworkTime(network, took, took, 1.01 * took))
    groups, checks = check_networks(model, times)
    result = {
        "table": "t.csv",
        "table_target": str(model.target),
        "measured_on": str(model.target),
        "groups": [asdict(g) for g in groups],
        "networks": [asdict(c) for c in checks],
    }
    return json.loads(
        json.dumps(result), parse_constant=lambda word: None
    )  # not-a-number as null, as the command does


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run on a real CPU."""
    folder = tmp_path / "runs" / "cpu"
    make_run(folder, make_table(tmp_path / "cpu.csv"))
    return folder


def page_of(*folders: Path, **options: Any) -> str:
    output = folders[0].parent / "page.html"
    return write_report(folders, output, options.pop("title", "A title"), **options).read_text()


def words_of(page: str) -> str:
    """A page as it is read: no tags, no styles, one space between words."""
    body = re.sub(r"<style>.*?</style>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def test_a_finished_run_shows_its_figures_beside_the_baseline(finished: Path) -> None:
    run = gather_run(finished)
    words = words_of(page_of(finished))
    assert run.gaps == {}
    assert run.winner is not None
    assert run.baseline is not None
    assert run.baseline.label == "uniform Choice_3"
    for value in (run.winner.predicted_ms, run.winner.whole_ms, run.budget_ms, 0.777):
        assert f" {ms(value)} " in words
    for share in ("94.7 %", "95.3 %", "91.1 %"):
        assert share in words
    assert "split-half difference 0.2 %" in words
    assert "noise floor 0.1 %" in words
    assert "trained the same way" in words
    assert f"Test accuracy: {HOW}." in words


def test_the_layers_of_winner_and_baseline_add_up_to_their_predictions(finished: Path) -> None:
    run = gather_run(finished)
    for network in (run.winner, run.baseline):
        assert network is not None
        assert network.layer_ms is not None
        assert run.fixed_ms is not None
        assert network.predicted_ms == pytest.approx(sum(network.layer_ms) + run.fixed_ms)


def test_the_space_is_shown_with_its_figures_and_every_candidate(finished: Path) -> None:
    space = SearchSpace.load(finished / "space.json")
    page = page_of(finished)
    words = words_of(page)
    assert f"{ms(space.lowest_ms)} to {ms(space.highest_ms)} ms, mean {ms(space.mean_ms)}" in words
    assert f"{space.feasible_set.total:,}" in words
    assert f"{space.feasible_set.count:,}" in words
    table = re.findall(r'<td class="run wrap">(.*?)</td>', page, flags=re.S)
    shown = [re.findall(r">([A-Za-z0-9_]+)</span>", cell) for cell in table]
    assert shown == [list(names) for names in space.candidates]
    explored = [bool(re.search(r'class="chip \w+ explore', cell)) for cell in table]
    assert explored == [name is not None for name in space.exploring]
    assert all("first" in cell.split("</span>")[0] for cell in table)
    assert page.count('chosen" title') == len(BACKBONE.layers)


def test_every_evaluated_architecture_is_a_dot(finished: Path) -> None:
    stages = re.findall(r"<h3>Stage \d</h3>.*?</figure>", page_of(finished), flags=re.S)
    assert len(stages) == 2
    for stage in stages:
        dots = re.findall(r'class="dots s\d" d="([^"]*)"', stage)
        assert sum(path.count("M") for path in dots) == 30
        assert all(dots), "every third of the generations has its shade"


def test_accuracies_stand_with_their_intervals_and_what_is_as_good_within_them(
    finished: Path,
) -> None:
    """A winner of 79%, as 30 networks of 50 to 79% have it, of 100 images: 70.0 to 85.8%."""
    file = finished / "winner-1.json"
    winner = Architecture.load(file)
    (figure,) = winner.accuracy
    replace(winner, accuracy=(replace(figure, images=100),)).save(file)
    found = Architecture.load(finished / "architecture.json")
    tested = Accuracy(0.75, "test", "supernet of stage 2; images that chose nothing", 200)
    last = tuple(replace(a, images=1000) for a in found.accuracy)
    replace(found, accuracy=(tested, *last)).save(finished / "architecture.json")
    for number, value in ((1, 0.953), (2, 0.951)):
        figures = (Accuracy(value, "validation", HOW, 1000), Accuracy(0.9, "test", HOW, 500))
        finalist = replace(found, accuracy=figures)
        finalist.save(finished / f"finalist-{number}" / "architecture.json")
    first, second = gather_run(finished).stages
    assert [p.accuracy for p in second.within_noise] == []
    assert sorted(p.accuracy for p in first.within_noise) == pytest.approx(
        [0.5 + 0.01 * i for i in range(21, 30)]
    )
    fastest = first.within_noise[0]
    assert fastest.predicted_ms == min(p.predicted_ms for p in first.within_noise)
    words = words_of(page_of(finished))
    assert "winner 79.0 % (70.0–85.8 %, 100 images)" in words
    assert "9 of them lie within that interval, the fastest at" in words
    assert f"{ms(fastest.predicted_ms)} ms with {100 * fastest.accuracy:.1f} %" in words
    assert "test accuracy 94.7 % (93.1–95.9 %, 1,000 images) 91.1 %" in words
    assert "test accuracy with the supernet’s weights 75.0 % (68.6–80.5 %, 200 images)" in words
    assert "the most accurate of 2 finalists on the validation split" in words
    assert "95.1 % (93.6–96.3 %, 1,000 images), test 90.0 % (87.1–92.3 %, 500 images)." in words
    assert "the test split chooses nothing" in words


def test_a_run_over_all_layers_at_once_has_one_stage_and_lacks_none(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    space = make_run(folder, make_table(tmp_path / "cpu.csv"), method="pareto")
    run = gather_run(folder)
    page = page_of(folder)
    words = words_of(page)
    assert [stage.number for stage in run.stages] == [1]
    assert "stages" not in run.gaps
    assert reductions(run.config) == reductions({**run.config, "stages": 1})
    assert (
        f"method pareto, the best operators around a price of a ms price {space.price_per_ms:.4g}"
        in (words)
    )
    assert f"one stage layers 0–{space.layers - 1};" in words
    assert "<dt>α</dt>" not in page
    assert "Stage 2" not in words


def test_errors_stand_beside_their_noise_floor(finished: Path) -> None:
    run = gather_run(finished)
    assert run.verification is not None
    random, uniform = run.verification.groups
    assert (random.group, random.prediction.count) == ("random", 5)
    assert random.prediction.bias == pytest.approx(1 / 1.02 - 1)
    assert uniform.prediction.kendall_tau is None, "one network has no ranking"
    words = words_of(page_of(finished))
    assert random.noise_floor == pytest.approx((1 - 1 / 1.01) / 2)
    told = "−2.0 % 2.0 % 0.5 % 100 %"  # bias, RMSPE, noise floor, within 5%
    assert f"random 5 {told} 1.000 split-half difference −1.0 % 1.0 % 100 % 1.000" in words
    assert f"uniform 1 {told} – split-half difference −1.0 % 1.0 %" in words
    assert "retest" not in words


def test_a_verification_of_an_earlier_version_is_still_read(finished: Path) -> None:
    file = finished / "verify.json"
    now = read_verification(file)
    file.write_text(file.read_text().replace('"split_half"', '"retest"'))
    assert read_verification(file) == now


def test_provenance_names_table_target_versions_settings_and_reductions(finished: Path) -> None:
    run = gather_run(finished)
    words = words_of(page_of(finished, notes=["Cut short: on purpose."]))
    assert run.source is not None
    assert run.model is not None
    for fact in (run.source.path, run.source.sha256, str(run.target), "python 3.11", run.model[1]):
        assert fact in words
    assert "Cut short: on purpose." in words
    assert "40 architectures evaluated in each stage at most, not 1,000" in words
    assert "all trainings 0.25 times as long as the preset's" in words


def test_a_full_run_names_no_reduction() -> None:
    assert reductions({"command": "search", **asdict(SearchSettings()), "preset": None}) == ()


@pytest.mark.parametrize("method", METHODS)
def test_the_commands_shown_build_the_same_space(method: str, tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    make_run(finished, make_table(tmp_path / "cpu.csv"), method=method)
    run = gather_run(finished)
    lines = [shlex.split(line) for line in commands(run)]
    (line,) = [words for words in lines if words[:2] == ["hurricane", "space"]]
    output = tmp_path / "again.json"
    result = CliRunner().invoke(
        cli, [*line[1:-1], str(output)], catch_exceptions=False, standalone_mode=False
    )
    assert result.exit_code == 0
    assert output.read_text() == (finished / "space.json").read_text()
    assert [words[:2] for words in lines] == [
        ["profile-ops", "--layers"],
        ["hurricane", "space"],
        ["hurricane", "search"],
        ["hurricane", "train"],
        ["hurricane", "verify"],
    ]
    search = lines[2]
    assert search[search.index("--evaluations") + 1] == "40"
    assert search[search.index("--training") + 1] == "0.25"
    assert search[-1] == str(finished)


def test_a_calibration_is_told_and_comes_before_the_space(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    table = make_table(path)
    save_calibration(path, Calibration(CPU, 1.25, -0.002, networks=16, rmspe=0.031))
    model = open_latency(path, "digits32").model
    make_run(tmp_path / "run", table, model=model)
    run = gather_run(tmp_path / "run")
    assert "changed" not in run.gaps, "the prediction is that of the calibrated model"
    told = "1.25 × sum −0.002 ms, fitted to 16 networks; RMSPE 3.1 % on those left out in turn"
    assert words_of(page_of(tmp_path / "run")).count(told) == 2
    calibrate, space = commands(run)[1:3]
    assert calibrate.endswith("--random 16 --store")
    assert space.startswith("hurricane space")


def test_a_verdict_is_told_with_its_reason_and_a_calibration_that_is_not_applied(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cpu.csv"
    table = make_table(path)
    known = Calibration(CPU, 1.25, networks=10, rmspe=0.031, held_out=6, applied=False)
    save_calibration(path, replace(known, check=AdditivityCheck(Verdict.ADDITIVE, "RMSPE 1.8%")))
    latency = open_latency(path, "digits32")
    make_run(tmp_path / "run", table, model=latency.model, source=latency.source)
    run = gather_run(tmp_path / "run")
    assert run.verdict is Verdict.ADDITIVE
    words = words_of(page_of(tmp_path / "run"))
    assert "additivity check passed: RMSPE 1.8%" in words
    assert "not verified" not in words
    assert "fitted to 10 networks; RMSPE 3.1 % on 6 held out; not applied" in words
    assert "failed its additivity check" not in words
    assert "times the scale of its calibration" not in words
    _, verify, *_, last = commands(run)
    assert verify.endswith("--random 16"), "fitted and held out"
    assert "--no-store" in last


def test_a_table_that_was_accepted_is_told_before_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    table = make_table(path)
    check = AdditivityCheck(Verdict.NOT_ADDITIVE, "RMSPE 40%", Cause.ERROR)
    known = Calibration(CPU, applied=False, check=check)
    save_calibration(path, known)
    latency = open_latency(path, "digits32", accept_table=True)
    make_run(tmp_path / "run", table, model=latency.model, source=latency.source)
    words = words_of(page_of(tmp_path / "run"))
    told = words.index("failed its additivity check")
    assert told < words.index("predicted (quiet, not verified), ms")
    assert f"additivity check failed: RMSPE 40%; {Cause.ERROR.remedy}" in words
    (space,) = [c for c in commands(gather_run(tmp_path / "run")) if "hurricane space" in c]
    assert " --accept-table " in space


def test_predictions_stand_with_their_intervals(tmp_path: Path) -> None:
    ends = {"ci_low_ms": 0.0005, "ci_high_ms": 0.5}
    table = make_table(tmp_path / "cpu.csv", frame=ends, **{op.name: ends for op in POOL})
    space = make_run(tmp_path / "run", table)
    model = LatencyModel(table, BACKBONE)
    path = tmp_path / "run" / "architecture.json"
    found = Architecture.load(path)
    own = predicted_interval(space, found.operators, found.predicted_ms or 0.0)
    assert own == model.interval_of(found.operators)
    assert own is not None
    replace(found, predicted_interval_ms=own).save(path)
    other = model.interval_of(("Choice_3",) * len(BACKBONE.layers))
    assert other is not None
    words = words_of(page_of(tmp_path / "run"))
    told = "its 90 % interval (of the rows’ noise alone: not verified)"
    assert f"{told} {interval(own)} {interval(other)}" in words
    assert "predicted (quiet, not verified), ms" in words
    assert "none when the run began: predictions are not verified" in words


def test_a_budget_stands_with_the_statistic_that_it_holds_for(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    table = make_table(path)
    network = NetworkTimes("digits32", ("SEP_3",) * len(BACKBONE.layers), 1.0, 1.2, 1.5, 60)
    SPREADS.save(path, CPU, Spread((network,)))
    latency = open_latency(path, "digits32", statistic="p90")
    space = make_run(tmp_path / "run", table, model=latency.model, source=latency.source)
    words = words_of(page_of(tmp_path / "run"))
    assert f"{ms(space.budget_ms)} ms budget (p90)" in words
    assert f"budget {ms(space.budget_ms)} ms (p90)" in words  # of the space
    assert "predicted (p90, not verified), ms" in words
    run = gather_run(tmp_path / "run")
    (command,) = [c for c in commands(run) if c.startswith("hurricane space")]
    assert " --statistic p90 " in command
    (told,) = json.loads(run_command(tmp_path / "run", "--json").output)["runs"]
    assert told["statistic"] == "p90"
    assert run.winner is not None
    assert run.winner.predicted_ms == pytest.approx(
        latency.model.latency_of(run.winner.operators, "p90")
    )


def test_simulated_numbers_are_never_called_measured(tmp_path: Path) -> None:
    folder = tmp_path / "dsp"
    make_run(folder, make_table(tmp_path / "dsp.csv", DSP))
    page = page_of(folder)
    words = words_of(page)
    badges = set(re.findall(r'<span class="badge (\w+)">(\w+)</span>', page))
    assert badges == {("model", "simulated")}
    assert "Not everything here was measured." in words
    assert re.findall(r"\bmeasured\b", words, flags=re.I) == ["measured"], "in the warning alone"
    assert 'class="card real"' not in page


def test_a_flag_that_only_repeats_the_origin_marks_no_cell(tmp_path: Path) -> None:
    flagged = {op.name: {"flags": "simulated"} for op in POOL}
    flagged["SEP_3"] = {"flags": "fallback;simulated"}
    make_run(tmp_path / "dsp", make_table(tmp_path / "dsp.csv", DSP, **flagged))
    run = gather_run(tmp_path / "dsp")
    shapes = len(BACKBONE.distinct_shapes)
    assert run.heat is not None
    assert run.table is not None
    assert run.heat.flags == (("fallback", shapes),)
    assert run.table.flagged == shapes


def test_a_measured_run_needs_no_warning(finished: Path) -> None:
    page = page_of(finished)
    assert "Not everything here was measured" not in page
    assert 'class="badge model"' not in page


def test_without_its_table_a_run_says_neither_measured_nor_simulated(
    finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "cpu.csv").unlink()
    run = gather_run(finished)
    words = words_of(page_of(finished))
    assert run.origin == "origin unknown"
    assert run.heat is None
    assert "was not found here" in words
    assert "origin unknown" in words
    assert "measured, ms" not in words
    assert f" {ms(run.winner and run.winner.predicted_ms)} " in words


def test_a_table_is_found_beside_the_run_when_it_was_moved(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "cpu.csv").rename(finished.parent / "cpu.csv")
    assert gather_run(finished).target == CPU


def test_a_table_that_changed_since_is_told(finished: Path, tmp_path: Path) -> None:
    winner = Architecture.load(finished / "architecture.json").operators[0]
    make_table(tmp_path / "cpu.csv", **{winner: {"latency_ms": 0.5}})
    gaps = gather_run(finished).gaps
    assert "has changed since the run" in gaps["table"]
    assert "By the table as it is now the network takes" in gaps["changed"]
    words = words_of(page_of(finished))
    assert gaps["table"] in words
    assert gaps["changed"] in words


def test_a_run_that_just_began_says_what_is_not_there(tmp_path: Path) -> None:
    space = make_space(make_table(tmp_path / "cpu.csv"))
    folder = tmp_path / "run"
    open_run(folder, space).close()
    run = gather_run(folder)
    assert set(run.gaps) == {"winner", "space", "stages", "baseline", "verification"}
    assert run.heat is not None, "the table is named by the configuration"
    words = words_of(page_of(folder))
    for part in ("winner", "space", "stages", "verification"):
        assert run.gaps[part] in words
    assert not re.search(r"\d\.\d+ ms (measured|predicted)", words)


def test_a_run_in_its_second_stage_shows_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, make_table(tmp_path / "cpu.csv"))
    for name in ("architecture.json", "winner-2.json", "evaluated-2.csv", "model.onnx"):
        (folder / name).unlink()
    run = gather_run(folder)
    assert [stage.number for stage in run.stages] == [1]
    assert run.gaps["stages"] == "Stage 2 has evaluated nothing yet."
    assert "the run is not finished" in words_of(page_of(folder))


def test_a_winner_that_was_not_measured_is_not_given_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, make_table(tmp_path / "cpu.csv"), measured=False)
    words = words_of(page_of(folder))
    assert "The whole network was not timed on the target." in words
    assert "measured, ms – " in words
    assert "measured, vs budget – " in words


def test_a_missed_budget_is_said(finished: Path) -> None:
    found = Architecture.load(finished / "architecture.json")
    assert found.budget_ms is not None
    replace(found, measured_ms=1.5 * found.budget_ms).save(finished / "architecture.json")
    assert "measured, vs budget +50.0 % ✗ missed" in words_of(page_of(finished))


def test_a_trained_network_alone_has_a_report(finished: Path) -> None:
    run = gather_run(finished / "baseline")
    words = words_of(page_of(finished / "baseline"))
    assert run.space is None
    assert run.gaps["space"].endswith("there was no search space.")
    assert "91.1 %" in words
    assert "Not everything here was measured" not in words


def test_a_baseline_trained_in_another_way_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    space = make_run(folder, make_table(tmp_path / "cpu.csv"))
    for file in (folder / "baseline").iterdir():
        file.unlink()
    make_baseline(folder / "baseline", space, training=1.0)
    assert "trained in another way: training 1.0 where the winner has 0.25" in words_of(
        page_of(folder)
    )


def test_a_baseline_beside_the_runs_serves_all_but_lends_no_latency_of_another_target(
    tmp_path: Path,
) -> None:
    cpu, dsp = tmp_path / "runs" / "cpu", tmp_path / "runs" / "dsp"
    make_run(cpu, make_table(tmp_path / "cpu.csv"))
    make_run(dsp, make_table(tmp_path / "dsp.csv", DSP))
    for folder in (cpu, dsp):
        (folder / "baseline").rename(tmp_path / f"{folder.name}-baseline")
    (tmp_path / "cpu-baseline").rename(tmp_path / "runs" / "baseline")
    on_cpu, on_dsp = gather_run(cpu).baseline, gather_run(dsp).baseline
    assert on_cpu is not None
    assert on_dsp is not None
    assert (on_cpu.whole_ms, on_dsp.whole_ms) == (0.777, None)
    assert on_cpu.test == on_dsp.test
    model = LatencyModel(LookupTable.load(tmp_path / "dsp.csv"), BACKBONE)
    assert on_dsp.predicted_ms == pytest.approx(model.latency_of(on_dsp.operators))


def test_runs_of_a_folder_stand_side_by_side(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "cpu", make_table(tmp_path / "cpu.csv"))
    make_run(tmp_path / "runs" / "dsp", make_table(tmp_path / "dsp.csv", DSP))
    folders = find_runs([tmp_path / "runs"])
    assert [folder.name for folder in folders] == ["cpu", "dsp"]
    page = page_of(*folders)
    for device in ("Bench CPU", "hexagon685-dsp"):
        assert page.count(f"<strong>{device}</strong>") >= 7, "once in every part"
    badges = re.findall(r'<span class="badge \w+">(\w+)</span><strong>([^<]+)</strong>', page)
    assert set(badges) == {("measured", "Bench CPU"), ("simulated", "hexagon685-dsp")}


def test_two_runs_on_one_target_share_a_heat_map(tmp_path: Path) -> None:
    table = make_table(tmp_path / "cpu.csv")
    for name in ("one", "two"):
        make_run(tmp_path / name, table)
    assert page_of(tmp_path / "one", tmp_path / "two").count('<table class="heat">') == 1


def test_the_heat_map_marks_the_fastest_the_flagged_and_what_has_no_latency(
    tmp_path: Path,
) -> None:
    nothing = {"latency_ms": None, "estimator": ""}
    table = make_table(
        tmp_path / "t.csv",
        SEP_3={"latency_ms": 0.0005, "flags": "fallback"},
        SEP_5={"latency_ms": 0.001},
        SEP_7={"status": "unsupported", **nothing},
        MB_3_1={"status": "timeout", **nothing},
    )
    rows = dict(heat_map(table, CPU, BACKBONE).rows)
    assert list(rows) == [operator.name for operator in POOL]
    assert {(c.ratio, c.level, c.flags) for c in rows["SEP_3"]} == {(1.0, 0, ("fallback",))}
    assert {(c.ratio, c.level) for c in rows["SEP_5"]} == {(2.0, 2)}
    assert {(c.status, c.ms) for c in rows["SEP_7"]} == {("unsupported", None)}
    assert {(c.status, c.ms) for c in rows["MB_3_1"]} == {("timeout", None)}
    assert heat_map(table, CPU, BACKBONE).flags == (("fallback", len(BACKBONE.distinct_shapes)),)
    make_run(tmp_path / "run", table)
    page = page_of(tmp_path / "run")
    shapes = len(BACKBONE.distinct_shapes)
    assert page.count('class="h0 fastest flag"') == shapes
    assert page.count('class="none"') == 2 * shapes


NARROWING = """
classes = 10
split = 1
exploring_layers = 0
input = {channels = 1, height = 8, width = 8}
stem = [{channels = 32, kernel = 3, stride = 1}]
stages = [{channels = 48, repeats = 1, stride = 1}, {channels = 24, repeats = 1, stride = 1}]
head = {channels = 64}
"""


def test_the_heat_map_tells_absent_from_inapplicable() -> None:
    backbone = parse_backbone(NARROWING, "narrowing", "narrowing.toml")
    wide, narrow = backbone.layers
    row = Row.of(CPU, "Choice_3", wide, status="ok", latency_ms=1.0, estimator="test")
    separable = Row.of(CPU, "SEP_3", narrow, status="ok", latency_ms=1.0, estimator="test")
    rows = heat_map(LookupTable([row, separable]), CPU, backbone).rows
    assert [(name, [cell.status for cell in cells]) for name, cells in rows] == [
        ("Choice_3", ["ok", "inapplicable"]),
        ("SEP_3", ["absent", "ok"]),
    ]


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_colours_never_fall_with_latency(a: float, b: float) -> None:
    shape = BACKBONE.layers[0]
    low, high = (HeatCell("SEP_3", shape, "ok", ratio=ratio).level for ratio in sorted((a, b)))
    assert 0 <= low <= high < HEAT_LEVELS


def test_the_page_needs_nothing_from_outside(finished: Path) -> None:
    page = page_of(finished)
    tags = Tags(page)
    assert tags.open == []
    assert not tags.names & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not {name for name, _ in tags.attributes} & {"src", "href", "srcset", "action"}
    assert not {name for name, _ in tags.attributes if name.startswith("on")}
    assert not re.search(r"https?:|//\w|url\(|@import|data:", page)


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a\"b'c&d", "</style><b>x"])
def test_texts_from_files_are_escaped(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run"
    make_run(folder, make_table(tmp_path / "t.csv", replace(CPU, device=text)))
    found = Architecture.load(folder / "architecture.json")
    named = replace(found, accuracy=(Accuracy(0.5, "test", text),), versions={text: text})
    named.save(folder / "architecture.json")
    page = page_of(folder, title=text, notes=[text])
    assert text not in page
    assert Tags(page).names == Tags(page_of(folder, title="plain")).names
    assert page.count("&lt;" if "<" in text else "&amp;") > 5


def test_reports_of_unchanged_runs_are_equal_and_the_runs_untouched(finished: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert page_of(finished) == page_of(finished)
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}


def test_a_line_that_is_being_written_is_not_read_and_not_touched(finished: Path) -> None:
    file = finished / "evaluated-2.csv"
    with file.open("a") as out:
        out.write("30,2,0.99")
    content = file.read_bytes()
    assert len(gather_run(finished).stages[1].points) == 30
    assert file.read_bytes() == content


def test_best_so_far_counts_improvements_only() -> None:
    points = tuple(EvaluatedPoint(0, share, 1.0) for share in (0.5, 0.5, 0.4, 0.6, 0.6, 0.7))
    assert Stage(1, points, None).best_so_far == ((1, 0.5), (4, 0.6), (6, 0.7))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_space(folder: Path) -> None:
    (folder / "space.json").write_text('{"format_version": 1}')


def broken_architecture(folder: Path) -> None:
    content = json.loads((folder / "architecture.json").read_text())
    (folder / "architecture.json").write_text(json.dumps({**content, "operators": ["MB_9"]}))


def broken_evaluated(folder: Path) -> None:
    with (folder / "evaluated-1.csv").open("a") as out:
        out.write("30,2,fast,0.1,x\n")


def impossible_accuracy(folder: Path) -> None:
    with (folder / "evaluated-1.csv").open("a") as out:
        out.write("30,2,nan,0.1,x\n")


def broken_verification(folder: Path) -> None:
    (folder / "verify.json").write_text('{"groups": [], "networks": [{"group": "random"}]}')


def broken_table(folder: Path) -> None:
    (folder.parent.parent / "cpu.csv").write_text("a,b\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (broken_config, "config.json is not JSON"),
        (broken_space, "space.json lacks the field layers"),
        (broken_architecture, "architecture.json"),
        (broken_evaluated, "evaluated-1.csv line 32"),
        (impossible_accuracy, "evaluated-1.csv line 32"),
        (broken_verification, "verify.json"),
        (broken_table, "cpu.csv:1"),
    ],
)
def test_a_broken_run_is_told_in_one_line_and_writes_nothing(
    finished: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(finished)
    output = finished.parent / "page.html"
    with pytest.raises(BadRequest) as caught:
        write_report([finished], output, "x")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()


def run_command(*words: str | Path) -> Any:
    return CliRunner().invoke(
        report_command, [str(w) for w in words], catch_exceptions=False, standalone_mode=False
    )


def test_the_command_writes_into_the_run_and_tells_what_it_found(finished: Path) -> None:
    result = run_command(finished, "--json")
    told = json.loads(result.output)
    assert told["output"] == str(finished / "report.html")
    (run,) = told["runs"]
    assert (run["origin"], run["target"]) == ("measured", CPU.name)
    assert run["winner"]["test_accuracy"] == 0.947
    assert run["winner"]["measured_ms"] == pytest.approx(1.02 * run["winner"]["predicted_ms"])
    assert "cpu" in (finished / "report.html").read_text()


def test_the_json_of_a_simulated_run_holds_no_measured_figure(tmp_path: Path) -> None:
    make_run(tmp_path / "dsp", make_table(tmp_path / "dsp.csv", DSP))
    (run,) = json.loads(run_command(tmp_path / "dsp", "--json").output)["runs"]
    assert "simulated_ms" in run["winner"]
    assert "measured" not in json.dumps(run)


def test_the_command_takes_a_folder_of_runs(finished: Path) -> None:
    run_command(finished.parent, "--title", "All of them")
    assert "<h1>All of them</h1>" in (finished.parent / "report.html").read_text()


def test_wrong_requests_are_refused(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "empty"], "holds no run"),
        ([finished, finished / "baseline"], "-o FILE"),
    ):
        with pytest.raises(BadRequest, match=message):
            run_command(*words)
    with pytest.raises(HurricaneError, match="cannot be written"):
        write_report([finished], finished / "config.json" / "page.html", "x")


@given(
    st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=20),
    st.booleans(),
)
def test_an_axis_holds_its_values_and_labels_places_truly(values: list[float], log: bool) -> None:
    axis = Axis.over(values, 40, 360, log=log)
    for value in values:
        assert 40 <= axis.at(value) <= 360
    assert len(axis.ticks) <= 24
    for label, place in axis.ticks:
        rounding = 0.5 * 10 ** -len(label.partition(".")[2]) if not log else 0.0
        slope = abs(axis.at(float(label) + rounding or 1e-9) - place) if rounding else 0.0
        assert abs(axis.at(float(label)) - place) <= slope + 0.2


def test_numbers_have_one_form() -> None:
    assert [ms(v) for v in (0.01234567, 1.2, 17, 1234.5, 98765.4)] == [
        "0.01235",
        "1.200",
        "17.00",
        "1234",
        "98,765",
    ]
    assert ms(None) == "–"
    assert [signed_percent(v) for v in (0.0123, -0.5, -0.00001, None)] == [
        "+1.2 %",
        "−50.0 %",
        "0.0 %",
        "–",
    ]
    assert [count(v) for v in (25600, 2_684_354_560_000)] == ["25,600", "2.68 × 10¹²"]
