"""From a table to its additivity check, and what a search makes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hurricane.lookup_tables import Calibration, LatencyModel, LookupTable, Row, Target
from hurricane.lookup_tables.architecture import Architecture, TableSource, read_table_source
from hurricane.lookup_tables.calibration import (
    calibration_path,
    find_calibration,
    save_calibration,
)
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.verdict import (
    BIAS_LIMIT,
    FLOOR_FACTOR,
    MIN_RANDOM,
    NOISE_LIMIT,
    RMSPE_LIMITS,
    TAU_MARGIN,
    AdditivityCheck,
    Cause,
    Conditions,
    ErrorFigures,
    GroupCheck,
    Verdict,
    error_beyond_noise,
    judge,
    noise_floor,
)
from hurricane.ops.backbone import load_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.jsonfile import Fields
from hurricane.ops.pool import select_operators
from hurricane.profiler.accuracy import FITTED, compare, fit_calibration
from hurricane.profiler.draws import random_networks
from hurricane.profiler.intervals import bias_interval, rmspe_interval
from hurricane.profiler.plan import parse_layers, plan_rows
from hurricane.profiler.profile import profile
from hurricane.profiler.protocol import TimingProtocol
from hurricane.profiler.session import TargetSession, connect
from hurricane.profiler.target import parse_target
from hurricane.profiler.timing.location import quiet_ms
from hurricane.profiler.verification import Verification, verify_table
from hurricane.profiler.verify_cli import verify
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
    """Without intervals: the figures themselves decide."""
    return ErrorFigures(count, bias, rmspe, 0.0, 0.0, tau)


def between(low: float, high: float, bias: tuple[float, float] = (0.0, 0.0)) -> ErrorFigures:
    """An RMSPE and a bias with their intervals."""
    return replace(
        figures((low + high) / 2, sum(bias) / 2),
        rmspe_low=low,
        rmspe_high=high,
        bias_low=bias[0],
        bias_high=bias[1],
    )


def group(
    name: str = "random",
    plain: ErrorFigures | None = None,
    calibrated: ErrorFigures | None = None,
    split_half: ErrorFigures | None = None,
) -> GroupCheck:
    """A group that is well but for what is given."""
    good = figures(0.02)
    return GroupCheck(name, plain or good, split_half or figures(0.01), 0, calibrated or good)


LIMIT = RMSPE_LIMITS["random"]
LOOSE = RMSPE_LIMITS["uniform"]
NOISY = NOISE_LIMIT  # the highest noise floor that there is an answer with


@pytest.mark.parametrize(
    ("groups", "verdict", "words"),
    [
        (
            [group()],
            "additive",
            "additivity check: passed (random networks: RMSPE 2.0% ≤ 5.0%, noise floor 0.5%)",
        ),
        ([group(plain=figures(LIMIT))], "additive", "RMSPE 5.0% ≤ 5.0%"),
        ([group(plain=figures(LIMIT + 0.01))], "additive-calibrated", "RMSPE 6.0% > 5.0%"),
        ([group(plain=figures(0.05, BIAS_LIMIT + 0.01))], "additive-calibrated", "bias +6.0% >"),
        ([group(plain=figures(0.05, -BIAS_LIMIT - 0.01))], "additive-calibrated", "bias -6.0% >"),
        (
            [group(plain=figures(0.06), calibrated=figures(0.06))],
            "not-additive",
            "failed (random networks: RMSPE 6.0% > 5.0%, noise floor 0.5%; after calibration "
            "random networks: RMSPE 6.0% > 5.0%",
        ),
        # A noisy device is not blamed on the table, as far as its noise goes.
        (
            [group(plain=figures(FLOOR_FACTOR * NOISY), split_half=figures(2 * NOISY))],
            "additive",
            "RMSPE 9.0% ≤ 9.0%, noise floor 3.0%",
        ),
        (
            [group(plain=figures(FLOOR_FACTOR * NOISY + 0.001), split_half=figures(2 * NOISY))],
            "additive-calibrated",
            "RMSPE 9.1% > 9.0%, noise floor 3.0%",
        ),
        # A calibration changes no order.
        (
            [group(plain=figures(0.06, tau=0.8), split_half=figures(0.01, tau=0.81 + TAU_MARGIN))],
            "not-additive",
            "tau 0.800, over 0.1 below the 0.910 between the halves",
        ),
        (
            [group(plain=figures(0.06, tau=math.nan), split_half=figures(0.01, tau=math.nan))],
            "additive-calibrated",
            "",
        ),
        # Networks of one operator may err more, but not without limit.
        ([group(), group("uniform", figures(LOOSE))], "additive", "uniform networks: RMSPE 10.0%"),
        (
            [group(), group("uniform", figures(LOOSE + 0.01), figures(LOOSE))],
            "additive-calibrated",
            "uniform networks: RMSPE 11.0% > 10.0%",
        ),
        (
            [group(), group("uniform", figures(0.2), figures(0.11))],
            "not-additive",
            "after calibration uniform networks: RMSPE 11.0% > 10.0%",
        ),
        (
            [group(), group("given", figures(0.2), figures(0.2))],
            "not-additive",
            "given networks",
        ),
    ],
)
def test_an_answer_follows_from_figures_and_limits(groups, verdict, words):
    found = judge(groups)
    assert found.verdict == verdict
    assert words in found.text()
    assert found.cause == (Cause.ERROR if verdict == "not-additive" else None)


INSIDE, ACROSS, BEYOND = between(0.01, 0.05), between(0.04, 0.051), between(0.0501, 0.07)


@pytest.mark.parametrize(
    ("plain", "calibrated", "verdict"),
    [
        (INSIDE, None, "additive"),
        (ACROSS, None, "inconclusive"),
        (BEYOND, None, "not-additive"),
        (BEYOND, INSIDE, "additive-calibrated"),
        (ACROSS, INSIDE, "additive-calibrated"),  # either way they are, after calibration
        (BEYOND, ACROSS, "inconclusive"),
        (ACROSS, ACROSS, "inconclusive"),
        (ACROSS, BEYOND, "inconclusive"),
        (BEYOND, BEYOND, "not-additive"),
        # The size of the bias, either way, has a limit of its own.
        (between(0.01, 0.05, (-0.049, 0.049)), None, "additive"),
        (between(0.01, 0.05, (-0.051, 0.049)), None, "inconclusive"),
        (between(0.01, 0.05, (-0.049, 0.051)), None, "inconclusive"),
        (between(0.01, 0.05, (-0.09, -0.051)), None, "not-additive"),
        (between(0.01, 0.05, (0.051, 0.09)), None, "not-additive"),
    ],
)
def test_the_interval_of_random_networks_supports_an_answer_or_none(plain, calibrated, verdict):
    found = judge([replace(group(plain=plain), calibrated=calibrated)])
    assert found.verdict == verdict
    if verdict == "inconclusive":
        assert found.cause is Cause.INTERVAL
        assert "--random 60" in found.remedy
        assert "(95%: " in found.reason


def test_groups_that_are_no_sample_are_judged_by_the_figure_itself():
    across = replace(between(0.08, 0.11), count=3)
    assert across.rmspe <= LOOSE < across.rmspe_high
    for name in ("uniform", "given"):
        assert judge([group(), group(name, across)]).verdict == "additive"


GONE = replace(group("uniform"), failed=6)  # of 26


@pytest.mark.parametrize(
    ("groups", "conditions", "cause", "words"),
    [
        ([group()], Conditions(same_target=False), Cause.OTHER_TARGET, "another target"),
        ([], Conditions(lost_groups=("random",)), Cause.FAILED, "all random networks failed"),
        ([group(), GONE], Conditions(), Cause.FAILED, "6 of 26 uniform networks failed"),
        ([], Conditions(), Cause.TOO_FEW, "0 random networks, 10 are needed"),
        ([group("uniform")], Conditions(), Cause.TOO_FEW, "0 random networks"),
        (
            [group(plain=figures(0.5, count=MIN_RANDOM - 1))],
            Conditions(),
            Cause.TOO_FEW,
            "9 random networks",
        ),
        (
            [group()],
            Conditions(slowdowns=(1.1, 1.16)),
            Cause.DRIFT,
            "device 16.0% slower than at profiling time, more than the 15% that can be corrected",
        ),
        ([group()], Conditions(slowdowns=(0.86, 0.9)), Cause.DRIFT, "device 14.0% faster than"),
        (
            [group()],
            Conditions(slowdowns=(0.95, 1.1)),
            Cause.DRIFT,
            "speed changed by 15.8% while networks were timed",
        ),
        (
            [group()],
            Conditions(disturbed=0.26),
            Cause.INTERFERENCE,
            "26% of the networks were timed under interference, more than 25%",
        ),
        (
            [group(split_half=figures(2 * NOISY + 0.002))],
            Conditions(),
            Cause.NOISE,
            "noise floor 3.1% > 3.0%",
        ),
        ([group(split_half=figures(math.nan))], Conditions(), Cause.NOISE, "noise floor nan%"),
    ],
)
def test_without_what_an_answer_takes_there_is_none_and_a_remedy(groups, conditions, cause, words):
    found = judge(groups, conditions)
    assert (found.verdict, found.cause) == (Verdict.INCONCLUSIVE, cause)
    assert words in found.reason
    assert found.text() == f"additivity check: inconclusive ({found.reason})"
    assert found.remedy == cause.remedy
    assert found.remedy


def test_just_within_the_conditions_there_is_an_answer():
    lost = replace(group("uniform"), failed=5)  # of 25
    for slowdowns in ((1.0, 1.149), (0.871, 1.0), (0.95, 1.09)):
        conditions = Conditions(slowdowns=slowdowns, disturbed=0.25)
        assert judge([group(), lost], conditions).verdict is Verdict.ADDITIVE
    enough = group(plain=figures(0.01, count=MIN_RANDOM))
    assert judge([enough]).verdict is Verdict.ADDITIVE


def test_each_answer_has_its_exit_status():
    found = {verdict: AdditivityCheck(verdict).exit_status for verdict in Verdict}
    assert found == {
        Verdict.ADDITIVE: 0,
        Verdict.ADDITIVE_CALIBRATED: 0,
        Verdict.NOT_ADDITIVE: 1,
        Verdict.INCONCLUSIVE: 3,
    }


def test_sums_that_no_line_fits_are_not_additive():
    found = judge([replace(group(plain=figures(0.5)), calibrated=None)])
    assert found == AdditivityCheck(
        Verdict.NOT_ADDITIVE,
        "random networks: RMSPE 50.0% > 5.0%, noise floor 0.5%; no calibration fits",
        Cause.ERROR,
    )


# Noise ------------------------------------------------------------------------------------------


def rmspe(a: float | np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(((a / b - 1) ** 2).mean())


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_halves_of_the_rounds_differ_by_twice_the_error_of_all_of_them(kind: str):
    """By simulation with the estimator of latencies: what a perfect prediction would show."""
    random = np.random.default_rng(0)
    shape = (20_000, 24)  # networks, rounds
    noise = random.standard_normal(shape) if kind == "normal" else random.exponential(size=shape)
    calls = 1 + 0.05 * noise
    whole = quiet_ms(calls, axis=1)
    halves = [quiet_ms(calls[:, part], axis=1) for part in (slice(12), slice(12, None))]
    error = rmspe(whole.mean(), whole)
    assert noise_floor(rmspe(*halves)) == pytest.approx(error, rel=0.07)


def test_the_networks_own_noise_is_not_the_models_error():
    random = np.random.default_rng(0)
    true = random.uniform(1, 10, 2_000)
    noise = 0.03
    halves = true * (1 + noise * random.standard_normal((2, len(true))))
    measured = halves.mean(axis=0)
    predicted = true * (1 + 0.02 * random.standard_normal(len(true)))
    floor = noise_floor(compare(*halves).rmspe)
    assert floor == pytest.approx(noise / math.sqrt(2), rel=0.05)
    found = error_beyond_noise(compare(predicted, measured), floor)
    assert found == pytest.approx(0.02, rel=0.1)
    assert error_beyond_noise(figures(0.01), 0.015) == 0


@pytest.mark.parametrize("bias", [0.0, 0.03])
def test_intervals_hold_the_error_of_the_space_that_networks_were_drawn_from(bias: float):
    random = np.random.default_rng(1)
    draws, spread = 300, 0.03
    held = np.zeros(2)
    for _ in range(draws):
        errors = bias + spread * random.standard_normal(20)
        low, high = rmspe_interval(errors)
        held[0] += low <= math.hypot(bias, spread) <= high
        low, high = bias_interval(errors)
        held[1] += low <= bias <= high
    assert (held / draws > 0.90).all()
    assert (held / draws < 0.98).all()


def test_intervals_of_samples_that_say_little_or_all():
    assert all(math.isnan(end) for end in rmspe_interval(np.array([0.1, 0.2, 0.1, 0.3])))
    assert all(math.isnan(end) for end in bias_interval(np.array([0.1, math.nan] * 5)))
    assert rmspe_interval(np.zeros(9)) == (0, 0)
    assert rmspe_interval(np.full(9, -0.25)) == pytest.approx((0.25, 0.25))
    assert bias_interval(np.full(9, -0.25)) == pytest.approx((-0.25, -0.25))
    mixed = np.array([0.0] * 5 + [0.1] * 5)
    low, high = rmspe_interval(mixed)
    assert 0 < low < math.sqrt((mixed**2).mean()) < high < math.inf


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
    result = CliRunner().invoke(command, list(words), standalone_mode=False)
    code = getattr(result.exception, "exit_status", result.return_value or result.exit_code)
    assert code == status, (result.output, result.exception)
    return result


def fill(path: Path, *options: str) -> LookupTable:
    request = parse_target(DSP, options)
    rows = plan_rows(parse_layers("digits32"), select_operators(FEW))
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        return profile([session], rows, path, TimingProtocol(seed=1)).table


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table whose latencies do not add up, verified."""
    path = tmp_path_factory.mktemp("broken") / "t.csv"
    fill(path, FALLBACK)
    words = ("--table", str(path), "--backbone", "digits32", *RANDOM, "--uniform")
    result = call(verify, *words, status=1)
    assert "additivity check: failed (random networks: RMSPE" in result.output
    assert "; after calibration random networks: RMSPE" in result.output
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


@pytest.mark.process
def test_an_additive_table_is_said_to_be_and_keeps_its_figures(copy: Path) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", *RANDOM, "--uniform")
    result = call(verify, *words)
    assert "additivity check: passed (random networks: RMSPE" in result.output
    assert f"kept in {calibration_path(copy)}" in result.output
    assert "end-to-end networks" in result.output
    found = known(copy)
    first = reversed(result.output.splitlines())  # of each name, the last to be entered
    lines = {line[:25].strip(): line[25:].split() for line in first}
    floor = f"{found.groups[0].noise_floor:.1%}"
    assert [lines["random"][i] for i in (0, 3)] == ["20", floor]
    assert [lines["calibrated"][i] for i in (0, 3)] == ["10", floor]
    assert f"noise floor {floor}" in result.output.splitlines()[-2]
    assert len(lines["split-half difference"]) == 6, "it has no floor of its own"
    assert found.check is not None
    assert found.verdict is Verdict.ADDITIVE
    assert (found.networks, found.held_out, found.backbone) == (10, 10, "digits32")
    assert [g.group for g in found.groups] == ["random", "uniform"]
    assert found.model_error is not None
    assert found.model_error < 0.03
    shown = call(table_group, "show", str(copy))
    told = f"verified with digits32 networks: {found.check.text()}"
    assert told in " ".join(shown.output.split())
    result = call(cli, *space_words(copy))
    assert "Note: verified: additivity check: passed (random networks: RMSPE" in result.stderr
    assert "not verified" not in result.stderr


@pytest.mark.process
def test_a_table_that_was_not_verified_is_said_not_to_be(copy: Path) -> None:
    shown = call(table_group, "show", str(copy))
    assert "not verified: hurricane verify checks" in shown.output
    assert json.loads(call(table_group, "show", str(copy), "--json").stdout)["verdicts"] == []
    result = call(cli, *space_words(copy))
    assert "Note: not verified: hurricane verify checks" in result.stderr


@pytest.mark.process
def test_an_inconclusive_check_is_told_with_its_remedy_and_refuses_nothing(copy: Path) -> None:
    table = LookupTable.load(copy)
    check = AdditivityCheck(Verdict.INCONCLUSIVE, "noise floor 3.4% > 3.0%", Cause.NOISE)
    save_calibration(copy, Calibration(table.target(), applied=False, check=check))
    told = f"{check.text()}; {check.remedy}"
    shown = " ".join(call(table_group, "show", str(copy)).output.split())
    assert f"not verified: {told}" in shown
    result = call(cli, *space_words(copy))
    assert f"Note: not verified: {told}" in result.stderr
    opened = open_latency(copy, "digits32")
    assert opened.source.verdict == "inconclusive"
    assert not opened.source.verified
    save_calibration(copy, replace(known(copy), rows_sha256="ab" * 32))
    shown = call(table_group, "show", str(copy)).output
    assert "not verified: additivity check: inconclusive" in shown
    assert "its rows have changed since" in " ".join(shown.split())


@pytest.mark.process
@pytest.mark.parametrize("option", ["--no-store", "--store"])
def test_what_is_kept_is_up_to_the_user(copy: Path, option: str) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", "--json")
    count, status = ("20", 0) if option == "--no-store" else ("4", 3)
    content = json.loads(call(verify, *words, "--random", count, option, status=status).stdout)
    if option == "--no-store":
        assert content["verdict"] == "additive"
        assert (content["cause"], content["remedy"]) == (None, "")
        (random,) = content["groups"]
        assert random["noise_floor"] == noise_floor(random["split_half"]["rmspe"])
        assert content["stored"] is None
        assert not calibration_path(copy).exists()
    else:
        assert (content["verdict"], content["cause"]) == ("inconclusive", "too-few-networks")
        assert content["remedy"] == Cause.TOO_FEW.remedy
        assert content["stored"] == str(calibration_path(copy))
        found = known(copy)
        assert (found.verdict, found.networks) == (Verdict.INCONCLUSIVE, 4)
        assert found.applied


@pytest.mark.process
def test_few_networks_are_compared_and_nothing_is_kept(copy: Path) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", "--random", "5")
    result = call(verify, *words, status=3)
    told = "additivity check: inconclusive (5 random networks, 10 are needed)\n"
    assert told + Cause.TOO_FEW.remedy in result.output
    assert "not kept: too few networks" in result.output
    assert not calibration_path(copy).exists()


@pytest.mark.process
def test_without_random_networks_no_additivity_check_is_run(copy: Path) -> None:
    words = ("--table", str(copy), "--backbone", "digits32", "--uniform", "--rounds", "4")
    result = call(verify, *words)
    assert "additivity check: not run (--random 10 or more runs it)" in result.output
    assert json.loads(call(verify, *words, "--json").stdout)["verdict"] is None
    assert not calibration_path(copy).exists()


@pytest.mark.process
def test_a_shipped_table_only_gets_its_check_printed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hurricane.lookup_tables.shipped._folder", lambda: copy.parent)
    words = ("--table", copy.stem, "--backbone", "digits32", "--random", "20")
    result = call(verify, *words)
    assert "additivity check: passed (" in result.output
    assert "not kept: the table is a shipped one" in result.output
    assert not calibration_path(copy).exists()


@pytest.mark.process
def test_a_noisy_day_takes_no_answer_away(copy: Path) -> None:
    from hurricane.profiler.verify_cli import _keep

    table = LookupTable.load(copy)
    rows = table.select(table.target()).sha256()
    failed = AdditivityCheck(Verdict.NOT_ADDITIVE, "RMSPE 40%", Cause.ERROR)
    old = Calibration(table.target(), rows_sha256=rows, check=failed)
    noisy = replace(old, check=AdditivityCheck(Verdict.INCONCLUSIVE, "noise", Cause.NOISE))
    assert _keep(noisy, copy, table, None)[0] == calibration_path(copy)
    save_calibration(copy, old)
    path, words = _keep(noisy, copy, table, None)
    assert path is None
    assert words == "not kept: an earlier check stays, failed"
    assert known(copy) == old
    save_calibration(copy, replace(old, rows_sha256="ab" * 32))
    assert _keep(noisy, copy, table, None)[0] is not None


@pytest.mark.process
def test_a_noisy_device_is_not_blamed_on_the_table(copy: Path) -> None:
    request = parse_target(DSP, ("noise=0.4", "call_ms=0"))
    model = LatencyModel(LookupTable.load(copy), BACKBONE)
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        networks = random_networks(model, 12, seed=0)
        found = verify_table(session, model, networks, TimingProtocol(network_rounds=4))
    assert found.check is not None
    assert found.check.cause is Cause.OTHER_TARGET
    here = replace(found, table_target=found.measured_on)
    assert here.check is not None
    assert (here.check.verdict, here.check.cause) == (Verdict.INCONCLUSIVE, Cause.NOISE)
    assert not here.calibration(LookupTable.load(copy)).applied
    assert here.check_text().endswith(f"\n{Cause.NOISE.remedy}")


@pytest.fixture(scope="module")
def verification(sound: Path) -> Verification:
    """Twenty random networks on the table's device."""
    request = parse_target(DSP)
    model = LatencyModel(LookupTable.load(sound), BACKBONE)
    with connect([], request) as clients:
        session = TargetSession.open(clients[0], request)
        networks = random_networks(model, 20, seed=0)
        return verify_table(session, model, networks, TimingProtocol())


def changed(found: Verification, count: int, **values: object) -> Verification:
    """The first networks of a verification, with other values."""
    networks = found.networks
    altered = tuple(replace(c, **values) for c in networks[:count])
    return replace(found, networks=altered + networks[count:])


@pytest.mark.process
def test_what_happened_meanwhile_leaves_no_answer(verification: Verification) -> None:
    assert verification.check is not None
    assert verification.check.verdict is Verdict.ADDITIVE

    def cause(found: Verification) -> Cause | None:
        assert found.check is not None
        return found.check.cause

    assert cause(changed(verification, 5, flags=("interference",))) is None
    assert cause(changed(verification, 6, flags=("interference",))) is Cause.INTERFERENCE
    assert cause(changed(verification, 20, flags=("throttled",))) is Cause.INTERFERENCE
    assert cause(changed(verification, 20, flags=("simulated",))) is None
    for factor, expected in ((1.14, None), (1.17, Cause.DRIFT), (0.85, Cause.DRIFT)):
        one = verification.networks[0]
        found = changed(verification, 1, as_timed_ms=factor * one.measured_ms)
        assert cause(found) is expected, factor
    lost = replace(changed(verification, 20, error="out of memory"), groups=())
    assert cause(lost) is Cause.FAILED


@pytest.mark.process
def test_a_drift_is_told_and_corrected(verification: Verification) -> None:
    slower = tuple(replace(c, as_timed_ms=1.009 * c.measured_ms) for c in verification.networks)
    told = "device 0.9% slower than at profiling time (drift-corrected; random networks as timed:"
    assert told in replace(verification, networks=slower).text()
    faster = tuple(replace(c, as_timed_ms=0.98 * c.measured_ms) for c in verification.networks)
    assert "device 2.0% faster than" in replace(verification, networks=faster).text()


@pytest.mark.process
def test_rows_that_are_all_off_by_a_factor_pass_after_calibration(copy: Path) -> None:
    def slower(row: Row) -> Row:
        names = ("latency_ms", "ci_low_ms", "ci_high_ms", "call_ms")
        values = {n: getattr(row, n) for n in names}
        return replace(row, **{n: None if v is None else 1.15 * v for n, v in values.items()})

    LookupTable([slower(row) for row in LookupTable.load(copy)]).save(copy)
    result = call(verify, "--table", str(copy), "--backbone", "digits32", *RANDOM)
    assert "additivity check: passed after calibration (random networks: RMSPE" in result.output
    found = known(copy)
    assert found.applied
    assert found.line[0] == pytest.approx(1 / 1.15, rel=0.05)
    opened = open_latency(copy, "digits32")
    assert opened.source.verdict == "additive-calibrated"
    assert opened.source.verified
    plain = LatencyModel(LookupTable.load(copy), BACKBONE)
    ratio = opened.model.bounds()[1] / plain.bounds()[1]
    assert ratio == pytest.approx(1 / 1.15, rel=0.03)
    assert any(note.startswith("calibrated: ") for note in opened.notes())


@pytest.mark.process
def test_a_table_that_is_not_additive_is_refused_and_can_be_accepted(
    broken: Path, tmp_path: Path
) -> None:
    words = space_words(broken)
    for command in (words, ["search", *words[1:], "--output", str(tmp_path / "run")]):
        result = call(cli, *command, status=2)
        message = str(result.exception)
        assert f"{broken}: latencies are not additive on {DSP}: random networks" in message
        assert Cause.ERROR.remedy in message
        assert "--accept-table" in message
        assert len(message.splitlines()) == 2
    assert not (tmp_path / "run").exists()
    file = tmp_path / "space.json"
    result = call(cli, *words, "--accept-table", "-o", str(file))
    assert "Note: not verified: additivity check: failed (" in result.stderr
    assert json.loads(file.read_text())["table"]["verdict"] == "not-additive"
    assert refusal(SearchSpace.load(file)) == "", "it was accepted when it was built"
    shown = call(table_group, "show", str(broken), "--json")
    (verdict,) = json.loads(shown.stdout)["verdicts"]
    assert (verdict["verdict"], verdict["cause"]) == ("not-additive", "error")
    assert (verdict["remedy"], verdict["current"]) == (Cause.ERROR.remedy, True)


@pytest.mark.process
def test_sums_that_are_not_additive_are_not_calibrated(broken: Path) -> None:
    found = known(broken)
    assert found.verdict is Verdict.NOT_ADDITIVE
    assert not found.applied
    accepted_model = open_latency(broken, "digits32", accept_table=True).model
    plain = LatencyModel(LookupTable.load(broken), BACKBONE)
    np.testing.assert_array_equal(accepted_model.latency_ms, plain.latency_ms)


@pytest.mark.process
def test_a_space_from_before_the_check_is_refused_too(copy: Path, tmp_path: Path) -> None:
    latency = open_latency(copy, "digits32")
    low, high = latency.model.bounds()
    space = build_space(latency.model, BACKBONE, (low + high) / 2, table=latency.source)
    assert refusal(space) == ""
    table = LookupTable.load(copy)
    check = AdditivityCheck(Verdict.NOT_ADDITIVE, "RMSPE 40%", Cause.ERROR)
    bad = Calibration(table.target(), applied=False, check=check)
    save_calibration(copy, bad)
    with pytest.raises(BadRequest, match=r"not additive on .*RMSPE 40%"):
        run_search(space, SearchSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    taken = accepted(space)
    assert taken.table is not None
    assert taken.table.verdict == "not-additive"
    assert refusal(taken) == ""
    # A check of other rows, or on another backbone, says nothing of these.
    save_calibration(copy, replace(bad, rows_sha256="ab" * 32))
    assert refusal(space) == ""
    outdated = open_latency(copy, "digits32")
    assert outdated.source.verdict is None
    assert "the table's rows have changed since" in " ".join(outdated.notes())
    calibration_path(copy).unlink()
    save_calibration(copy, replace(bad, backbone="imagenet224"))
    assert refusal(space) == ""


@pytest.mark.process
def test_what_a_user_should_know_of_a_table_is_told(copy: Path) -> None:
    table = LookupTable.load(copy)
    body = [row for row in table if not (row.is_stem or row.is_head)]
    flagged = [replace(row, flags="interference") for row in body[:3]]
    flagged += [replace(row, flags="unstable") for row in body[3:4]]
    table.merged(LookupTable(flagged), "last").save(copy)
    notes = open_latency(copy, "digits32").notes()
    assert any(n.startswith("rows flagged: 3 interference, 1 unstable;") for n in notes)
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
    assert "17.2 ms predicted (16.8–17.6; not verified)" in describe_architecture(found)
    for verdict in Verdict:
        source = TableSource("t.csv", "ab" * 32, "cpu", str(verdict))
        words = describe_architecture(replace(found, table=source, predicted_interval_ms=None))
        good = verdict in (Verdict.ADDITIVE, Verdict.ADDITIVE_CALIBRATED)
        assert ("17.2 ms predicted (not verified)" in words) is not good
        assert ("are not additive" in words) is (verdict is Verdict.NOT_ADDITIVE)
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
    target = Target("session", "cpu", "onnxruntime", "1.20.0")
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
    assert json.loads(calibration_path(path).read_text())["format"] == 3
    assert find_calibration(path, target) == found


@pytest.mark.parametrize(
    ("former", "verdict", "cause"),
    [
        ("holds", Verdict.ADDITIVE, None),
        ("holds-calibrated", Verdict.ADDITIVE_CALIBRATED, None),
        ("broken", Verdict.NOT_ADDITIVE, Cause.ERROR),
        ("undecided", Verdict.INCONCLUSIVE, Cause.NOISE),
        (None, None, None),
    ],
)
def test_words_of_the_second_format_are_still_read(
    tmp_path: Path, former: str | None, verdict: Verdict | None, cause: Cause | None
) -> None:
    path = tmp_path / "t.csv"
    target = Target("session", "cpu", "onnxruntime", "1.20.0")
    one = {"count": 20, "bias": 0.01, "rmspe": 0.02, "within_5": 1.0, "within_10": 1.0}
    one["kendall_tau"] = None
    group = {"group": "random", "prediction": one, "retest": one, "failed": 0, "calibrated": None}
    item = {
        "target": {**vars(target)},
        "scale": 1.02,
        "offset_ms": -0.05,
        "applied": False,
        "verdict": former,
        "reason": "RMSPE 2.0%, within 5.0%",
        "groups": [group],
    }
    calibration_path(path).write_text(json.dumps({"format": 2, "calibrations": [item]}))
    found = find_calibration(path, target)
    assert found is not None
    if former is None:
        assert found.check is None
    else:
        assert found.check == AdditivityCheck(verdict, "RMSPE 2.0%, within 5.0%", cause)
    assert found.groups[0].noise_floor == 0.01
    assert found.model_error == pytest.approx(math.sqrt(0.02**2 - 0.01**2))
    assert math.isnan(found.groups[0].prediction.rmspe_low)
    save_calibration(path, found)
    text = calibration_path(path).read_text()
    assert '"split_half"' in text
    assert '"retest"' not in text
    assert str(find_calibration(path, target)) == str(found)


def test_words_of_earlier_spaces_are_still_read() -> None:
    content = {"path": "t.csv", "sha256": "ab" * 32, "target": "cpu", "origin": "measured"}
    for former, verdict in (("holds", "additive"), ("broken", "not-additive"), (None, None)):
        found = read_table_source(Fields({**content, "verdict": former}, "a space"))
        assert found.verdict == verdict
    with pytest.raises(BadRequest, match="verdict must be one of additive, additive-calibrated"):
        read_table_source(Fields({**content, "verdict": "good"}, "a space"))
