"""From a table to a verdict on its sums, and what a search makes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hurricane.lookup_tables import Calibration, LatencyModel, LookupTable, Row, Target
from hurricane.lookup_tables.calibration import (
    calibration_path,
    find_calibration,
    save_calibration,
)
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.verdict import (
    BIAS_LIMIT,
    MIN_RANDOM,
    RETEST_FACTOR,
    RETEST_LIMIT,
    RMSPE_LIMITS,
    TAU_MARGIN,
    ErrorFigures,
    GroupCheck,
    Verdict,
    error_beyond_retest,
    judge,
)
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import select_operators
from hurricane.profiler.measuring import Bench, MeasuringSettings, connect, parse_target
from hurricane.profiler.networks import FITTED, compare, fit_calibration, random_networks
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.verification import verify_table
from hurricane.profiler.verify_cli import verify
from hurricane.search.architecture import Architecture
from hurricane.search.cli import cli
from hurricane.search.pipeline import (
    SearchSettings,
    accepted,
    open_latency,
    refusal,
    run_search,
)
from hurricane.search.space import SearchSpace, build_space
from hurricane.search.summary import describe_architecture

DSP = "sim-hexagon685-dsp"
FALLBACK = "fallback_on=Split"
"""A graph that splits channels runs on another unit from end to end: Choice costs a network far
more than it does alone, and latencies do not add up."""

FEW = "SEP_3,MB_3_3,Choice_3,Choice_5"
BACKBONE = load_backbone("digits32")
RANDOM = ("--random", "20")


# The rules --------------------------------------------------------------------------------------


def figures(rmspe: float, bias: float = 0.0, tau: float = 0.98, count: int = 20) -> ErrorFigures:
    return ErrorFigures(count, bias, rmspe, 0.0, 0.0, tau)


def group(
    name: str = "random",
    plain: ErrorFigures | None = None,
    calibrated: ErrorFigures | None = None,
    retest: ErrorFigures | None = None,
) -> GroupCheck:
    """A group that is well but for what is given."""
    good = figures(0.02)
    return GroupCheck(name, plain or good, retest or figures(0.01), 0, calibrated or good)


LIMIT = RMSPE_LIMITS["random"]
LOOSE = RMSPE_LIMITS["uniform"]


@pytest.mark.parametrize(
    ("groups", "verdict", "words"),
    [
        ([group()], "holds", "RMSPE 2.0%, within 5.0%"),
        ([group(plain=figures(LIMIT))], "holds", "within 5.0%"),
        ([group(plain=figures(LIMIT + 0.01))], "holds-calibrated", "RMSPE 6.0%, over 5.0%"),
        ([group(plain=figures(0.05, BIAS_LIMIT + 0.01))], "holds-calibrated", "bias +6.0%"),
        ([group(plain=figures(0.05, -BIAS_LIMIT - 0.01))], "holds-calibrated", "bias -6.0%"),
        (
            [group(plain=figures(0.06), calibrated=figures(0.06))],
            "broken",
            "after calibration random networks: RMSPE 6.0%, over 5.0%",
        ),
        # A noisy device is not blamed on the table, as far as its noise goes.
        (
            [group(plain=figures(RETEST_FACTOR * 0.06), retest=figures(0.06))],
            "holds",
            "RMSPE 9.0%, within 9.0%",
        ),
        (
            [group(retest=figures(RETEST_LIMIT + 0.001))],
            "undecided",
            "own retest has an RMSPE of 10.1%",
        ),
        # A calibration changes no order.
        (
            [group(plain=figures(0.06, tau=0.9 - TAU_MARGIN), retest=figures(0.01, tau=0.95))],
            "broken",
            "tau 0.800, over 0.1 below the retest's 0.950",
        ),
        (
            [group(plain=figures(0.06, tau=math.nan), retest=figures(0.01, tau=math.nan))],
            "holds-calibrated",
            "",
        ),
        # Networks of one operator may err more, but not without limit.
        ([group(), group("uniform", figures(LOOSE))], "holds", "uniform networks: RMSPE 10.0%"),
        (
            [group(), group("uniform", figures(LOOSE + 0.01), figures(LOOSE))],
            "holds-calibrated",
            "uniform networks: RMSPE 11.0%, over 10.0%",
        ),
        (
            [group(), group("uniform", figures(0.2), figures(0.11))],
            "broken",
            "after calibration uniform networks: RMSPE 11.0%, over 10.0%",
        ),
        ([group(), group("given", figures(0.2), figures(0.2))], "broken", "given networks"),
    ],
)
def test_a_verdict_follows_from_figures_and_limits(groups, verdict, words):
    found = judge(groups)
    assert found is not None
    assert found[0] == verdict
    assert words in found[1]


def test_few_random_networks_give_no_verdict():
    assert judge([group(plain=figures(0.5, count=MIN_RANDOM - 1))]) is None
    assert judge([group("uniform")]) is None
    assert judge([]) is None
    assert judge([group(plain=figures(0.01, count=MIN_RANDOM))]) is not None


def test_sums_that_no_line_fits_do_not_hold():
    found = judge([replace(group(plain=figures(0.5)), calibrated=None)])
    assert found == (
        Verdict.BROKEN,
        "random networks: RMSPE 50.0%, over 5.0%; no calibration fits",
    )


def test_the_networks_own_noise_is_not_the_models_error():
    random = np.random.default_rng(0)
    true = random.uniform(1, 10, 2_000)
    noise = 0.03
    halves = true * (1 + noise * random.standard_normal((2, len(true))))
    measured = halves.mean(axis=0)
    predicted = true * (1 + 0.02 * random.standard_normal(len(true)))
    found = error_beyond_retest(compare(predicted, measured), compare(*halves))
    assert found == pytest.approx(0.02, rel=0.1)
    assert error_beyond_retest(figures(0.01), figures(0.03)) == 0


# The calibration --------------------------------------------------------------------------------


def test_a_calibration_is_checked_on_networks_that_it_was_not_fitted_to():
    random = np.random.default_rng(1)
    predicted = random.uniform(5, 50, 30)
    measured = 1.1 * predicted - 0.4
    fit = fit_calibration(predicted, measured, seed=3)
    assert fit is not None
    assert (fit.fitted, fit.held_out) == (FITTED, 20)
    assert (fit.scale, fit.offset_ms) == pytest.approx((1.1, -0.4))
    assert fit.figures is not None
    assert fit.figures.count == 20
    assert fit.figures.rmspe == pytest.approx(0, abs=1e-9)
    assert fit.helps
    # One network that is far off spoils the check or the fit, never both.
    measured[7] *= 2
    seeds = [fit_calibration(predicted, measured, seed) for seed in range(40)]
    errors = [f.figures.rmspe for f in seeds if f is not None and f.figures is not None]
    exact = [f for f in seeds if f is not None and abs(f.scale - 1.1) < 1e-6]
    assert 0 < len(exact) < len(seeds)
    assert all(f.figures is not None and f.figures.rmspe > 0.1 for f in exact)
    assert len(errors) == 40


def test_the_networks_that_are_fitted_are_spread_over_latency():
    """An outlier in the fastest tenth is drawn in a third of all draws, as one of three."""
    predicted = np.arange(1.0, 31.0)
    measured = predicted.copy()
    measured[0] *= 3
    fits = [fit_calibration(predicted, measured, seed) for seed in range(200)]
    hit = sum(f is not None and f.offset_ms > 1e-6 for f in fits)
    assert 40 < hit < 100


def test_few_networks_are_left_out_in_turn():
    predicted = np.linspace(5, 50, 2 * FITTED - 1)
    measured = 1.1 * predicted
    measured[4] *= 1.5
    fit = fit_calibration(predicted, measured)
    assert fit is not None
    assert (fit.fitted, fit.held_out) == (2 * FITTED - 1, 0)
    assert fit.figures is not None
    assert fit.figures.count == 2 * FITTED - 1
    whole = compare(fit.apply(predicted), measured)
    assert fit.figures.rmspe > whole.rmspe


def test_a_line_that_falls_is_no_calibration():
    predicted = np.linspace(1, 2, 12)
    assert fit_calibration(predicted, 3 - predicted) is None


# From the device to the search ------------------------------------------------------------------


def call(command, *words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(command, list(words), catch_exceptions=True)
    code = getattr(result.exception, "exit_status", result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


def fill(path: Path, *options: str) -> LookupTable:
    request = parse_target(DSP, options)
    rows = plan_rows(parse_layers("digits32"), select_operators(FEW))
    with connect([], request) as clients:
        bench = Bench.open(clients[0], request)
        return profile([bench], rows, path, MeasuringSettings(seed=1)).table


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose latencies do not add up, verified."""
    path = tmp_path_factory.mktemp("broken") / "t.csv"
    fill(path, FALLBACK)
    result = call(verify, "--table", str(path), "--backbone", "digits32", *RANDOM, "--uniform")
    assert "verdict: does not hold (after calibration random networks: RMSPE" in result.output
    assert "profile again on a quiet device" in result.output
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose latencies add up, not verified."""
    path = tmp_path_factory.mktemp("sound") / "t.csv"
    fill(path)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """The sound table in a folder of its own."""
    path = tmp_path / "t.csv"
    path.write_bytes(sound.read_bytes())
    return path


def known(path: Path) -> Calibration:
    found = find_calibration(path, LookupTable.load(path).target(), "digits32")
    assert found is not None
    return found


def space_words(path: Path, *more: str) -> list[str]:
    model = LatencyModel(LookupTable.load(path), BACKBONE)
    low, high = model.bounds()
    budget = f"{low + 0.5 * (high - low):.4g}"
    table = ["--table", str(path), "--backbone", "digits32"]
    return ["space", *table, "--latency", budget, *more]


def test_a_table_that_holds_is_said_to_and_keeps_its_figures(copy: Path) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", *RANDOM, "--uniform")
    result = call(verify, *words)
    assert "verdict: holds (random networks: RMSPE" in result.output
    assert f"kept in {calibration_path(copy)}" in result.output
    for line in ("random         20", "  calibrated   10", "  retest       20", "uniform"):
        assert line in result.output
    found = known(copy)
    assert found.verdict is Verdict.HOLDS
    assert (found.networks, found.held_out, found.backbone) == (10, 10, "digits32")
    assert [g.group for g in found.groups] == ["random", "uniform"]
    assert found.model_error is not None
    assert found.model_error < 0.03
    shown = call(table_group, "show", str(copy))
    assert f"verdict with digits32 networks: holds ({found.reason})" in shown.output
    result = call(cli, *space_words(copy))
    assert "Note: verified: holds (random networks: RMSPE" in result.stderr
    assert "not verified" not in result.stderr


@pytest.mark.parametrize("option", ["--no-store", "--store"])
def test_what_is_kept_is_up_to_the_user(copy: Path, option: str) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", "--json")
    result = call(verify, *words, "--random", "12" if option == "--no-store" else "4", option)
    content = json.loads(result.stdout)
    if option == "--no-store":
        assert content["verdict"] == "holds"
        assert content["stored"] is None
        assert not calibration_path(copy).exists()
    else:
        assert content["verdict"] is None
        assert content["stored"] == str(calibration_path(copy))
        assert (known(copy).verdict, known(copy).networks) == (None, 4)


def test_few_networks_are_compared_and_nothing_is_kept(copy: Path) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", "--random", "5")
    result = call(verify, *words)
    assert "no verdict: --random 10 or more gives one" in result.output
    assert not calibration_path(copy).exists()


def test_a_shipped_table_only_gets_its_verdict_printed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hurricane.lookup_tables.shipped._folder", lambda: copy.parent)
    words = ("--table", copy.stem, "--backbone", "digits32", "--random", "10", "--rounds", "4")
    result = call(verify, *words)
    assert "verdict: " in result.output
    assert "not kept: the table is a shipped one" in result.output
    assert not calibration_path(copy).exists()


def test_a_noisy_day_takes_no_verdict_away(copy: Path) -> None:
    from hurricane.profiler.verify_cli import _keep

    table = LookupTable.load(copy)
    rows = table.select(table.target()).sha256()
    old = Calibration(table.target(), rows_sha256=rows, verdict=Verdict.BROKEN)
    noisy = replace(old, verdict=Verdict.UNDECIDED)
    assert _keep(noisy, copy, table, None)[0] == calibration_path(copy)
    save_calibration(copy, old)
    path, words = _keep(noisy, copy, table, None)
    assert path is None
    assert words == "not kept: an earlier verdict stays, does not hold"
    assert known(copy) == old
    save_calibration(copy, replace(old, rows_sha256="ab" * 32))
    assert _keep(noisy, copy, table, None)[0] is not None


def test_a_noisy_device_is_not_blamed_on_the_table(copy: Path) -> None:
    request = parse_target(DSP, ("noise=0.4", "call_ms=0"))
    model = LatencyModel(LookupTable.load(copy), BACKBONE)
    with connect([], request) as clients:
        bench = Bench.open(clients[0], request)
        networks = random_networks(model, 12, seed=0)
        found = verify_table(bench, model, networks, MeasuringSettings(rounds=4))
    assert found.judgement is None, "the table is of another target"
    here = replace(found, table_target=found.measured_on)
    assert here.judgement is not None
    assert here.judgement[0] is Verdict.UNDECIDED
    calibration = here.calibration(LookupTable.load(copy))
    assert not calibration.applied
    assert "measure on a quiet device" in here.verdict_text(calibration)


def test_rows_that_are_all_off_by_a_factor_hold_after_calibration(copy: Path) -> None:
    def slower(row: Row) -> Row:
        names = ("latency_ms", "ci_low_ms", "ci_high_ms", "call_ms")
        values = {n: getattr(row, n) for n in names}
        return replace(row, **{n: None if v is None else 1.15 * v for n, v in values.items()})

    LookupTable([slower(row) for row in LookupTable.load(copy)]).save(copy)
    result = call(verify, "--table", str(copy), "--backbone", "digits32", *RANDOM)
    assert "verdict: holds after calibration (random networks: RMSPE" in result.output
    found = known(copy)
    assert found.applied
    assert found.line[0] == pytest.approx(1 / 1.15, rel=0.05)
    opened = open_latency(copy, "digits32")
    assert opened.source.verdict == "holds-calibrated"
    plain = LatencyModel(LookupTable.load(copy), BACKBONE)
    ratio = opened.model.bounds()[1] / plain.bounds()[1]
    assert ratio == pytest.approx(1 / 1.15, rel=0.03)
    assert any(note.startswith("calibrated: ") for note in opened.notes())


def test_a_table_that_does_not_hold_is_refused_and_can_be_accepted(
    broken: Path, tmp_path: Path
) -> None:
    words = space_words(broken)
    for command in (words, ["search", *words[1:], "--output", str(tmp_path / "run")]):
        result = call(cli, *command, status=2)
        message = str(result.exception)
        assert f"{broken}: its sums do not hold on {DSP}: after calibration" in message
        assert "--accept-table" in message
        assert len(message.splitlines()) == 2
    assert not (tmp_path / "run").exists()
    file = tmp_path / "space.json"
    result = call(cli, *words, "--accept-table", "-o", str(file))
    assert "Note: verified: does not hold (" in result.stderr
    assert json.loads(file.read_text())["table"]["verdict"] == "broken"
    assert refusal(SearchSpace.load(file)) == "", "it was accepted when it was built"
    shown = call(table_group, "show", str(broken), "--json")
    (verdict,) = json.loads(shown.stdout)["verdicts"]
    assert (verdict["verdict"], verdict["current"]) == ("broken", True)


def test_sums_that_do_not_hold_are_not_calibrated(broken: Path) -> None:
    found = known(broken)
    assert found.verdict is Verdict.BROKEN
    assert not found.applied
    accepted_model = open_latency(broken, "digits32", accept_table=True).model
    plain = LatencyModel(LookupTable.load(broken), BACKBONE)
    np.testing.assert_array_equal(accepted_model.latency_ms, plain.latency_ms)


def test_a_space_from_before_the_verdict_is_refused_too(copy: Path, tmp_path: Path) -> None:
    latency = open_latency(copy, "digits32")
    low, high = latency.model.bounds()
    space = build_space(latency.model, BACKBONE, (low + high) / 2, table=latency.source)
    assert refusal(space) == ""
    table = LookupTable.load(copy)
    bad = Calibration(table.target(), applied=False, verdict=Verdict.BROKEN, reason="RMSPE 40%")
    save_calibration(copy, bad)
    with pytest.raises(BadRequest, match=r"do not hold on .*RMSPE 40%"):
        run_search(space, SearchSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    taken = accepted(space)
    assert taken.table is not None
    assert taken.table.verdict == "broken"
    assert refusal(taken) == ""
    # A verdict of other rows, or on another backbone, says nothing of these.
    save_calibration(copy, replace(bad, rows_sha256="ab" * 32))
    assert refusal(space) == ""
    outdated = open_latency(copy, "digits32")
    assert outdated.source.verdict is None
    assert "the table's rows have changed since" in " ".join(outdated.notes())
    calibration_path(copy).unlink()
    save_calibration(copy, replace(bad, backbone="imagenet224"))
    assert refusal(space) == ""


def test_what_a_user_should_know_of_a_table_is_told(copy: Path) -> None:
    table = LookupTable.load(copy)
    body = [row for row in table if not (row.is_stem or row.is_head)]
    flagged = [replace(row, flags="disturbed") for row in body[:3]]
    flagged += [replace(row, flags="unstable") for row in body[3:4]]
    table.merged(LookupTable(flagged), "last").save(copy)
    notes = open_latency(copy, "digits32").notes()
    assert any(n.startswith("rows flagged: 3 disturbed, 1 unstable;") for n in notes)
    assert any(n.startswith("not verified: hurricane verify") for n in notes)


def test_a_prediction_and_its_interval_are_kept_and_told(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    found = Architecture(
        "digits32",
        ("SEP_3",) * len(BACKBONE.layers),
        predicted_ms=17.2,
        predicted_interval_ms=(16.8, 17.6),
    )
    found.save(path)
    assert Architecture.load(path) == found
    assert "17.2 ms predicted (16.8–17.6)" in describe_architecture(found)
    content = json.loads(path.read_text())
    older = {k: v for k, v in content.items() if k != "predicted_interval_ms"}
    path.write_text(json.dumps(older))
    assert Architecture.load(path).predicted_interval_ms is None
    for wrong in ([1], [17.3, 18], [18, 16], "16 to 18"):
        path.write_text(json.dumps({**content, "predicted_interval_ms": wrong}))
        with pytest.raises(BadRequest, match="predicted_interval_ms must be"):
            Architecture.load(path)


def test_a_calibration_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    target = Target("bench", "cpu", "onnxruntime", "1.20.0")
    item = {
        "target": {**vars(target)},
        "scale": 1.02,
        "offset_ms": -0.05,
        "rows_sha256": "",
        "networks": 20,
        "rmspe": 0.013,
        "fitted_at": "2026-01-31T12:00:00+00:00",
    }
    calibration_path(path).write_text(json.dumps({"format": 1, "calibrations": [item]}))
    found = find_calibration(path, target, "digits32")
    assert found is not None
    assert found.verdict is None
    assert found.line == (1.02, -0.05)
    assert found.model_error == 0.013
    save_calibration(path, found)
    assert json.loads(calibration_path(path).read_text())["format"] == 2
    assert find_calibration(path, target) == found
