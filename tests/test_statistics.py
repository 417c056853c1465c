"""Which statistic of a network's calls a latency is of, from the table to the winner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hurricane.lookup_tables import Calibration, LatencyModel, LookupTable, Row, Target
from hurricane.lookup_tables.architecture import Architecture, TableSource
from hurricane.lookup_tables.calibration import save_calibration
from hurricane.lookup_tables.model import BETWEEN_RUNS
from hurricane.lookup_tables.spread import QUIET, SPREADS, STATISTICS, NetworkTimes, Spread
from hurricane.lookup_tables.verdict import ErrorFigures, GroupCheck
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL
from hurricane.profiler.additivity import check_statistics
from hurricane.profiler.networks import NetworkTime, WholeNetwork
from hurricane.profiler.verification import Verification
from hurricane.search.cli import cli
from hurricane.search.confirm import Candidate, confirm
from hurricane.search.measuring import Measurement, TargetMeasurer
from hurricane.search.pipeline import open_latency, predicted_interval
from hurricane.search.space import SearchSpace
from hurricane.search.summary import describe_architecture, describe_space

BACKBONE = load_backbone("digits32")
LAYERS = len(BACKBONE.layers)
CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
MEDIANS, P90S = (1.1, 1.25, 1.15), (1.4, 1.5, 1.7)
"""Over the quiet times, of three networks."""


def make_table(path: Path, target: Target = CPU) -> LookupTable:
    """A table with an interval in every row."""
    cells = [(BACKBONE.stem_name, BACKBONE.stem_shape), (BACKBONE.head_name, BACKBONE.head_shape)]
    cells += [(op.name, s) for op in POOL for s in BACKBONE.distinct_shapes if op.applies_to(s)]
    random = np.random.default_rng(0)
    rows = []
    for name, shape in cells:
        ms = float(random.uniform(0.1, 1.0))
        ends = {"ci_low_ms": 0.98 * ms, "ci_high_ms": 1.02 * ms}
        values = {"latency_ms": ms, "call_ms": 0.05, "estimator": "made up", **ends}
        rows.append(Row.of(target, name, shape, status="ok", **values))
    LookupTable(rows).save(path)
    return LookupTable.load(path)


def times(
    model: LatencyModel, errors: Sequence[float] = (0.0, 0.0, 0.0), backbone: str = BACKBONE.name
) -> tuple[NetworkTimes, ...]:
    """Three networks whose sums are off by these shares."""
    found = []
    for number, error in enumerate(errors):
        operators = model.decode(np.full((LAYERS,), number))
        quiet = model.latency_of(operators, QUIET) / (1 + error)
        found.append(
            NetworkTimes(
                backbone, operators, quiet, quiet * MEDIANS[number], quiet * P90S[number], 60
            )
        )
    return tuple(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table without a spread."""
    make_table(tmp_path / "t.csv")
    return tmp_path / "t.csv"


@pytest.fixture
def known(path: Path) -> Path:
    """The same with one."""
    model = model_of(path)
    SPREADS.save(path, CPU, Spread(times(model), 1.05, 1.3, drift=0.0))
    return path


def model_of(path: Path, **words: Any) -> LatencyModel:
    return LatencyModel(LookupTable.load(path), BACKBONE, **words)


def draw(model: LatencyModel, count: int = 20) -> np.ndarray:
    random = np.random.default_rng(1)
    columns = [random.choice(np.flatnonzero(~np.isnan(row)), count) for row in model.latency_ms]
    return np.stack(columns, axis=1)


# The model.


def test_the_statistic_is_the_median_where_it_is_known_and_else_the_quiet_time(path, tmp_path):
    assert model_of(path).statistic == QUIET
    assert LatencyModel(LookupTable(LookupTable.load(path)), BACKBONE).statistic == QUIET
    model = model_of(path)
    SPREADS.save(path, replace(CPU, threads=2), Spread(times(model)))
    assert model_of(path).statistic == QUIET  # that is of another target
    SPREADS.save(path, CPU, Spread((), 1.1, 1.2))
    assert model_of(path).statistic == QUIET  # of operators alone
    SPREADS.save(path, CPU, Spread(times(model)))
    assert model_of(path).statistic == "median"


@pytest.mark.parametrize(("statistic", "ratio"), [("median", 1.15), ("p90", 1.5), (QUIET, 1.0)])
def test_latencies_are_quiet_times_times_the_median_ratio_of_networks(known, statistic, ratio):
    quiet, model = model_of(known, statistic=QUIET), model_of(known, statistic=statistic)
    assert model.statistic == statistic
    assert model.ratio(statistic) == pytest.approx(ratio)
    codes = draw(model)
    np.testing.assert_allclose(model.predict(codes), ratio * quiet.predict(codes))
    np.testing.assert_allclose(model.latency_ms, ratio * quiet.latency_ms)
    assert model.fixed_ms == pytest.approx(ratio * quiet.fixed_ms)
    assert model.bounds() == pytest.approx(tuple(ratio * ms for ms in quiet.bounds()))
    assert model.call_ms == quiet.call_ms  # as the row has it


@pytest.mark.parametrize("applied", [False, True])
def test_every_model_predicts_every_statistic_alike(known, applied):
    calibration = Calibration(CPU, 1.25, -0.3) if applied else None
    models = [model_of(known, statistic=s, calibration=calibration) for s in STATISTICS]
    codes = draw(models[0])
    operators = models[0].decode(codes[0])
    for statistic, own in zip(STATISTICS, models, strict=True):
        for model in models:
            np.testing.assert_allclose(model.predict(codes, statistic), own.predict(codes))
            assert model.latency_of(operators, statistic) == pytest.approx(
                own.latency_of(operators)
            )
        plain = own.fixed_ms + own.latency_ms[np.arange(LAYERS), codes].sum(axis=1)
        np.testing.assert_allclose(own.predict(codes), plain)
        assert own.predict(codes, None) == pytest.approx(own.predict(codes, statistic))


def test_a_calibration_is_of_quiet_times(known):
    quiet = model_of(known, statistic=QUIET)
    model = model_of(known, calibration=Calibration(CPU, 1.25, -0.3))
    codes = draw(model)
    np.testing.assert_allclose(
        model.predict(codes), 1.15 * (1.25 * quiet.predict(codes) - 0.3), rtol=1e-9
    )
    np.testing.assert_allclose(model.predict(codes, QUIET), 1.25 * quiet.predict(codes) - 0.3)


@pytest.mark.parametrize("statistic", ["median", "p90"])
def test_a_statistic_that_is_not_known_is_refused_with_what_to_do(path, statistic):
    words = (
        rf"does not tell the {statistic} on .*: profile a whole backbone again, or ask for quiet"
    )
    with pytest.raises(BadRequest, match=words) as told:
        model_of(path, statistic=statistic)
    assert len(str(told.value).splitlines()) <= 2
    assert str(path) in str(told.value)
    model = model_of(path)
    with pytest.raises(BadRequest, match=words):
        model.predict(draw(model), statistic)


def test_a_statistic_that_does_not_exist_is_refused(known):
    with pytest.raises(BadRequest, match="'mean' is none of median, p90, quiet"):
        model_of(known, statistic="mean")
    model = model_of(known)
    with pytest.raises(BadRequest, match="'mean' is none of"):
        model.latency_of(model.decode(draw(model)[0]), "mean")


def test_what_is_calculated_takes_as_long_every_time(tmp_path):
    target = replace(CPU, origin="estimated")
    table = make_table(tmp_path / "t.csv", target)
    model = LatencyModel(table, BACKBONE)
    assert model.statistic == "median"
    assert {model.ratio(statistic) for statistic in STATISTICS} == {1.0}
    assert model.additivity_error == 0.0


# Intervals.


def test_the_additivity_error_is_that_of_the_networks_timed_among_the_rows(path):
    errors = (0.03, -0.01, 0.02)
    model = model_of(path)
    assert model.additivity_error == 0.0
    SPREADS.save(path, CPU, Spread(times(model, errors)))
    expected = np.sqrt(np.mean(np.square(errors)))
    for statistic in STATISTICS:
        assert model_of(path, statistic=statistic).additivity_error == pytest.approx(expected)


def test_networks_of_another_backbone_or_other_operators_tell_no_additivity_error(path):
    model = model_of(path)
    networks = (
        *times(model, (0.02,)),
        *times(model, (0.5,), "imagenet224"),
        replace(times(model, (0.5,))[0], operators=("SEP_3",) * (LAYERS - 1) + ("gone",)),
    )
    SPREADS.save(path, CPU, Spread(networks))
    assert model_of(path).additivity_error == pytest.approx(0.02)


def figures(rmspe: float) -> ErrorFigures:
    return ErrorFigures(20, 0.0, rmspe, 1.0, 1.0, 1.0)


def test_a_verification_tells_the_additivity_error_better(path):
    SPREADS.save(path, CPU, Spread(times(model_of(path), (0.1, 0.1, 0.1))))
    groups = (GroupCheck("random", figures(0.05), figures(0.06), 0),)
    model = model_of(path, calibration=Calibration(CPU, applied=False, groups=groups))
    assert model.additivity_error == pytest.approx(0.04)  # less the noise floor, 0.03
    none = model_of(path, calibration=Calibration(CPU, applied=False))
    assert none.additivity_error == pytest.approx(0.1)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_an_interval_is_of_rows_additivity_scatter_and_drift(path, statistic):
    """The latter two, and what runs differ by, count for calls, not for the quiet time."""
    bare = model_of(path, statistic=QUIET)
    SPREADS.save(path, CPU, Spread(times(bare, (0.03, 0.03, 0.03)), None, None, 0.02, 0.05, 0.07))
    model = model_of(path, statistic=statistic)
    codes = draw(model)
    ratio = model.ratio(statistic)
    rows = ratio * (bare.interval(codes)[1] - bare.predict(codes))
    ratios = {"median": MEDIANS, "p90": P90S, QUIET: (1.0,) * 3}[statistic]
    error = 0.03**2
    if statistic != QUIET:
        error += np.std(np.log(ratios), ddof=1) ** 2 + 0.02**2 + BETWEEN_RUNS**2
        error += ({"median": 0.05, "p90": 0.07}[statistic] / 2) ** 2
    predicted = model.predict(codes)
    half = np.sqrt(rows**2 + (1.645 * predicted) ** 2 * error)
    low, high = model.interval(codes)
    np.testing.assert_allclose(high - predicted, half, rtol=1e-5)  # cells are rounded
    np.testing.assert_allclose(predicted - low, half, rtol=1e-5)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_intervals_hold_nine_networks_of_ten(path, statistic):
    """Where sums err, ratios scatter and the device drifts as much as the table says."""
    random, drift = np.random.default_rng(0), 0.04
    SPREADS.save(path, CPU, Spread(times(model_of(path), (0.03, -0.03, 0.03)), drift=drift))
    model = model_of(path, statistic=statistic)
    codes = draw(model, 4000)
    parts = [0.03] if statistic == QUIET else [0.03, model.spread.scatter(statistic), drift]
    errors = sum(part * random.normal(size=len(codes)) for part in parts)
    low, high = model.interval(codes)
    truth = model.predict(codes) * (1 + errors)
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.02)


# Files.


def test_a_file_says_what_its_latencies_are_of_and_an_earlier_one_means_quiet_times(tmp_path):
    source = TableSource("t.csv", "ab" * 32, CPU.name, statistic="p90")
    architecture = Architecture("digits32", ("SEP_3",) * LAYERS, table=source, predicted_ms=2.0)
    file = tmp_path / "architecture.json"
    architecture.save(file)
    assert json.loads(file.read_text())["table"]["statistic"] == "p90"
    assert Architecture.load(file) == architecture
    content = architecture.to_dict()
    del content["table"]["statistic"]
    file.write_text(json.dumps(content))
    earlier = Architecture.load(file).table
    assert earlier is not None
    assert earlier.statistic == QUIET
    content["table"]["statistic"] = "mean"
    file.write_text(json.dumps(content))
    with pytest.raises(BadRequest, match="statistic must be one of median, p90, quiet"):
        Architecture.load(file)


def test_an_interval_of_a_prediction_is_that_of_its_statistic(known):
    for statistic in STATISTICS:
        opened = open_latency(known, "digits32", statistic=statistic)
        low, high = opened.model.bounds()
        space = space_of(known, (low + high) / 2, "--statistic", statistic)
        operators = opened.model.decode(draw(opened.model)[0])
        predicted = opened.model.latency_of(operators)
        assert predicted_interval(space, operators, predicted) == opened.model.interval_of(
            operators
        )


# Commands.


def call(*words: str | Path, status: int = 0) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


def space_of(path: Path, budget_ms: float, *words: str) -> SearchSpace:
    file = path.with_name("space.json")
    call(
        *("space", "--table", path, "--backbone", "digits32", "--latency", f"{budget_ms:g}"),
        *(*words, "-o", file),
    )
    return SearchSpace.load(file)


def middle_ms(path: Path) -> float:
    low, high = model_of(path).bounds()
    return low + 0.3 * (high - low)


@pytest.mark.parametrize("words", [(), ("--statistic", "p90"), ("--statistic", QUIET)])
def test_a_space_is_of_the_statistic_that_is_asked_for(known, words):
    statistic = words[-1] if words else "median"
    space = space_of(known, middle_ms(known), *words)
    assert space.table is not None
    assert space.table.statistic == statistic
    model = model_of(known, statistic=statistic)
    assert space.fixed_ms == pytest.approx(model.fixed_ms)
    assert space.reachable_ms == pytest.approx(model.bounds())
    assert f"budget {space.budget_ms:g} ms ({statistic})" in describe_space(space)


def test_a_space_of_an_earlier_version_is_of_quiet_times(known):
    space = space_of(known, middle_ms(known))
    content = space.to_dict()
    del content["table"]["statistic"]
    file = known.with_name("earlier.json")
    file.write_text(json.dumps(content))
    found = SearchSpace.load(file).table
    assert found is not None
    assert found.statistic == QUIET


def test_a_space_of_a_statistic_that_the_table_does_not_know_is_refused(path):
    words = ("--table", path, "--backbone", "digits32", "--latency", "3", "--statistic", "p90")
    for command in (("space",), ("search", "-o", path.with_name("run"))):
        result = call(*command, *words, status=2)
        assert "does not tell the p90" in str(result.exception)
    assert not path.with_name("run").exists()
    call("space", *words[:-1], "mean", status=2)


def test_a_space_file_settles_the_statistic(known):
    space_of(known, middle_ms(known))
    file, run = known.with_name("space.json"), known.with_name("run")
    result = call("search", "--space", file, "--statistic", "p90", "-o", run, status=2)
    assert "already settles --statistic" in str(result.exception)


def test_a_latency_is_told_with_what_it_is_of():
    source = TableSource("t.csv", "ab" * 32, CPU.name, statistic="p90")
    architecture = Architecture(
        "digits32", ("SEP_3",) * LAYERS, table=source, budget_ms=3.0, predicted_ms=2.0
    )
    (line, *_) = describe_architecture(architecture).splitlines()
    assert line == "latency (p90): 2 ms predicted (not verified); budget 3 ms"
    alone = replace(architecture, table=None)
    assert describe_architecture(alone).startswith("latency: 2 ms predicted")


# What is measured.


def network_time(*calls_ms: float, quiet_ms: float = 0.5) -> NetworkTime:
    network = WholeNetwork("random", "random-0", ("SEP_3",) * LAYERS)
    return NetworkTime(network, quiet_ms, 0.4, 0.6, as_timed_ms=0.55, calls_ms=np.array(calls_ms))


def test_a_networks_statistic_is_of_all_its_calls_and_of_each_half():
    time = network_time(1.0, 2.0, 3.0, 10.0, 20.0, 60.0)
    assert time.of("median") == (6.5, 2.0, 20.0)
    assert time.of("p90") == pytest.approx((40.0, 2.8, 52.0))
    assert time.of(QUIET) == (0.5, 0.4, 0.6)  # drift-corrected


def test_a_network_without_calls_has_no_statistic_but_its_quiet_time():
    assert np.isnan(network_time().of("median")).all()
    whole, first, second = network_time(7.0).of("median")
    assert (whole, first) == (7.0, 7.0)
    assert np.isnan(second)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_winner_is_measured_by_the_statistic_of_its_budget(known, monkeypatch, statistic):
    source = open_latency(known, "digits32", statistic=statistic).source
    assert source.statistic == statistic
    measurer = TargetMeasurer.of_table(source)
    time = network_time(1.0, 2.0, 3.0, 10.0, 20.0, 60.0)
    monkeypatch.setattr(TargetMeasurer, "_session", lambda self: NoSession())
    monkeypatch.setattr("hurricane.profiler.networks.time_networks", lambda *words, **more: [time])
    found = measurer(BACKBONE, ("SEP_3",) * LAYERS, "h-swish")
    assert found == Measurement(*time.of(statistic))


class NoSession:
    """In place of an agent, which is not asked."""

    def __enter__(self) -> NoSession:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_candidate_must_meet_the_budget_by_the_statistic_that_is_measured():
    time = network_time(1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0)
    candidate = Candidate(("SEP_3",), 0.9, 1.2)

    def met(statistic: str) -> bool:
        measured = Measurement(*time.of(statistic))
        return confirm([candidate], 1.3, lambda _: measured).attempts[0].met

    assert met("median")
    assert not met("p90")


# The check of a table.


def random_times(model: LatencyModel, factor: float, error: str = "") -> list[NetworkTime]:
    found = []
    for number, codes in enumerate(draw(model, 12)):
        network = WholeNetwork("random", f"random-{number}", model.decode(codes))
        quiet = model.latency_of(network.operators, QUIET)
        # Of ten calls, the median is 1.2 × factor and the 90th percentile 1.5 × factor.
        calls = factor * quiet * np.array([1.0] * 4 + [1.2] * 3 + [1.5] * 3)
        found.append(NetworkTime(network, quiet, quiet, quiet, quiet, calls, error=error))
    return found


def test_predicted_medians_and_percentiles_stand_beside_those_of_random_networks(known):
    model = model_of(known)  # its median is 1.15, its p90 1.5 times the quiet time
    found = check_statistics(model, random_times(model, 1.25))
    assert set(found) == {"median", "p90"}
    assert found["median"].count == 12
    assert found["median"].bias == pytest.approx(1.15 / (1.25 * 1.2) - 1)
    assert found["p90"].bias == pytest.approx(1.5 / (1.25 * 1.5) - 1)
    assert found["p90"].rmspe == pytest.approx(0.2)


def test_only_random_networks_that_could_be_timed_count(known):
    model = model_of(known)
    good = random_times(model, 1.0)
    uniform = [
        replace(t, network=replace(t.network, group="uniform")) for t in random_times(model, 3.0)
    ]
    failed = random_times(model, 5.0, error="out of memory")
    assert check_statistics(model, [*good, *uniform, *failed]) == check_statistics(model, good)
    assert check_statistics(model, [*uniform, *failed]) == {}


def test_a_table_that_does_not_know_what_calls_take_has_no_such_figures(path):
    model = model_of(path)
    assert check_statistics(model, random_times(model, 1.0)) == {}


def test_a_verification_tells_its_statistics():
    found = Verification(CPU, CPU, (), (), statistics={"median": figures(0.04)})
    assert found.to_dict("t.csv")["statistics"]["median"]["rmspe"] == 0.04
    (line,) = [line for line in found.text().splitlines() if "as timed" in line]
    assert line.split() == ["random,", "median", "as", "timed", "20", *line.split()[5:]]
    assert "4.0%" in line
    assert Verification(CPU, CPU, (), ()).to_dict("t.csv")["statistics"] == {}


def test_an_applied_calibration_beside_the_table_is_in_every_statistic(known):
    table = LookupTable.load(known)
    save_calibration(
        known, Calibration(CPU, 1.2, 0.1, rows_sha256=table.select(CPU).sha256(), applied=True)
    )
    quiet = model_of(known, statistic=QUIET)
    opened = open_latency(known, "digits32", statistic="p90")
    codes = draw(quiet)
    np.testing.assert_allclose(
        opened.model.predict(codes), 1.5 * (1.2 * quiet.predict(codes) + 0.1)
    )
