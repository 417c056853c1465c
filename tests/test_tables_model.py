"""The latency model: exact sums, exact bounds, and clear words where a cell is missing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.lookup_tables import (
    Calibration,
    LatencyModel,
    LookupTable,
    Row,
    Target,
    guess_backbone,
)
from hurricane.lookup_tables.calibration import (
    calibration_path,
    find_calibration,
    load_calibrations,
    save_calibration,
)
from hurricane.lookup_tables.model import fill_command
from hurricane.lookup_tables.verdict import (
    AdditivityCheck,
    Cause,
    ErrorFigures,
    GroupCheck,
    Verdict,
)
from hurricane.ops.backbone import Backbone, load_backbone, parse_backbone
from hurricane.ops.errors import BadRequest
from hurricane.ops.pool import POOL

CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
IMAGENET = load_backbone("imagenet224")
SMALL = parse_backbone(
    """
    classes = 10
    split = 1
    exploring_layers = 1
    [input]
    channels = 1
    height = 16
    width = 16
    [[stem]]
    channels = 8
    kernel = 3
    stride = 1
    [[stages]]
    channels = 16
    repeats = 3
    stride = 2
    [head]
    channels = 32
    """,
    "small",
    "small.toml",
)
"""Three layers, of which the last two have one shape."""


def full_table(backbone: Backbone, target: Target = CPU, seed: int = 0) -> LookupTable:
    random = np.random.default_rng(seed)
    cells = [(backbone.stem_name, backbone.stem_shape), (backbone.head_name, backbone.head_shape)]
    cells += [
        (operator.name, shape)
        for shape in backbone.distinct_shapes
        for operator in POOL
        if operator.applies_to(shape)
    ]
    return LookupTable(
        Row.of(
            target,
            name,
            shape,
            status="ok",
            latency_ms=random.lognormal(),
            call_ms=random.uniform(0.1, 0.2),
            estimator="random",
        )
        for name, shape in cells
    )


def without(table: LookupTable, *names: str, **wanted: object) -> LookupTable:
    """The table less the rows of these operators whose columns have these values."""
    return LookupTable(
        row
        for row in table
        if row.operator not in names or any(getattr(row, k) != v for k, v in wanted.items())
    )


def with_status(table: LookupTable, name: str, status: str, height: int) -> LookupTable:
    """The table with one operator not ok at the shapes of one height."""
    gone = [row for row in table if row.operator == name and row.height == height]
    lost = [Row.of(row.target, name, row.shape, status=status) for row in gone]
    return without(table, name, height=height).add(lost)


def plain_sum(table: LookupTable, backbone: Backbone, names, call_ms: float) -> float:
    """The definition, row by row: the price of a call once, stem, layers, head."""
    rows = {(row.operator, row.shape): row for row in table}
    stem = rows[backbone.stem_name, backbone.stem_shape]
    total = stem.latency_ms + rows[backbone.head_name, backbone.head_shape].latency_ms + call_ms
    for name, shape in zip(names, backbone.layers, strict=True):
        total += rows[name, shape].latency_ms
    return total


def draw(model: LatencyModel, count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    columns = [random.choice(np.flatnonzero(~np.isnan(row)), count) for row in model.latency_ms]
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def table() -> LookupTable:
    return full_table(IMAGENET)


@pytest.fixture(scope="module")
def model(table) -> LatencyModel:
    return LatencyModel(table, IMAGENET)


def test_a_full_table_gives_a_full_array_in_the_order_of_the_pool(model):
    assert model.operators == tuple(operator.name for operator in POOL)
    assert model.latency_ms.shape == (20, 32)
    assert not np.isnan(model.latency_ms).any()
    assert model.missing() == ()
    with pytest.raises(ValueError, match="read-only"):
        model.latency_ms[0, 0] = 1


def test_a_model_says_what_it_is_of(model):
    layers, operators = model.latency_ms.shape
    assert repr(model) == (
        f"LatencyModel({model.backbone.name} on {model.target.name}, "
        f"{layers} layers, {operators} operators)"
    )


def test_predictions_are_the_sums_of_the_rows(table, model):
    codes = draw(model, 200)
    expected = [plain_sum(table, IMAGENET, model.decode(row), model.call_ms) for row in codes]
    np.testing.assert_allclose(model.predict(codes), expected, rtol=0, atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 300), st.sampled_from("bBhHiIlL"))
def test_predictions_equal_a_plain_loop_for_every_integer_type(model, seed, count, kind):
    codes = draw(model, count, seed).astype(kind)
    expected = []
    for architecture in codes.tolist():
        total = model.fixed_ms
        for layer, code in enumerate(architecture):
            total += float(model.latency_ms[layer, code])
        expected.append(total)
    assert model.predict(codes).tolist() == expected


def test_names_and_codes_are_two_forms_of_one_architecture(model):
    for codes in draw(model, 20):
        names = model.decode(codes)
        assert model.encode(names).tolist() == codes.tolist()
        assert model.latency_of(names) == model.predict(codes[None])[0]


def test_the_price_of_a_call_is_counted_once_and_is_the_stems(table, model):
    stem = next(row for row in table if row.operator == "stem")
    head = next(row for row in table if row.operator == "head:1024")
    assert model.call_ms == stem.call_ms
    assert model.fixed_ms == stem.latency_ms + head.latency_ms + model.call_ms


def test_without_the_stems_the_price_of_a_call_is_the_median_of_the_operators():
    rows = full_table(SMALL).rows
    rows = [dataclasses.replace(row, call_ms=None) if row.is_stem else row for row in rows]
    prices = [row.call_ms for row in rows if not (row.is_stem or row.is_head)]
    assert LatencyModel(LookupTable(rows), SMALL).call_ms == pytest.approx(np.median(prices))
    free = LookupTable(dataclasses.replace(row, call_ms=None) for row in rows)
    assert LatencyModel(free, SMALL).call_ms == 0


def test_bounds_are_the_extremes_over_all_architectures():
    chosen = ["SEP_3", "MB_3_6", "Choice_3", "Choice_x_SE"]
    small = LatencyModel(full_table(SMALL), SMALL, operators=chosen)
    everything = list(itertools.product(range(4), repeat=3))
    latencies = small.predict(np.array(everything))
    assert small.bounds() == (latencies.min(), latencies.max())
    allowed = [["SEP_3"], ["MB_3_6", "Choice_3"], [0, 3]]
    sets = [{small.operators.index(x) if isinstance(x, str) else x for x in a} for a in allowed]
    inside = [
        ms
        for architecture, ms in zip(everything, latencies, strict=True)
        if all(code in choices for code, choices in zip(architecture, sets, strict=True))
    ]
    assert len(inside) == 4
    assert small.bounds(allowed) == (min(inside), max(inside))
    assert small.bounds(small.mask(allowed)) == (min(inside), max(inside))


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_no_architecture_lies_outside_the_bounds_by_any_rounding(model, seed):
    low, high = model.bounds()
    latencies = model.predict(draw(model, 200, seed))
    assert low <= latencies.min()
    assert latencies.max() <= high


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        ([["SEP_3"]], "choices for 1 layers, not 3"),
        ([["SEP_3"], [], ["SEP_3"]], "layer 1 has no operator to choose from"),
        ([["SEP_3"], ["SEP_9"], ["SEP_3"]], "'SEP_9' has no latency .* did you mean SEP_"),
        ([["SEP_3"], [99], ["SEP_3"]], "no operator has code 99"),
        (np.ones((2, 2), bool), "the mask has shape"),
    ],
)
def test_choices_that_make_no_sense_are_refused(allowed, words):
    with pytest.raises(BadRequest, match=words):
        LatencyModel(full_table(SMALL), SMALL).bounds(allowed)


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([[0.0] * 20], "float64"),
        ([0] * 20, r"\[20\]"),
        ([[0] * 19], r"\[1, 19\]"),
        ([[0] * 19 + [32]], "code 32 is outside 0 to 31"),
        ([[0] * 19 + [-1]], "code -1 is outside"),
    ],
)
def test_codes_that_make_no_sense_are_refused(model, codes, words):
    with pytest.raises(BadRequest, match=words):
        model.predict(codes)


# Cells without a latency -----------------------------------------------------------------------


def test_an_operator_is_a_column_as_soon_as_it_has_one_row(table):
    at_one_shape = table.select(operators="SEP_3,stem,head:*").add(
        [table.get(row.key) for row in table if row.operator == "MB_3_6" and row.height == 7]
    )
    model = LatencyModel(at_one_shape, IMAGENET)
    assert model.operators == ("SEP_3", "MB_3_6")
    assert np.isnan(model.latency_ms[:, 1]).sum() == 17
    assert model.candidates(0) == ("SEP_3",)
    assert model.candidates(19) == ("SEP_3", "MB_3_6")


def test_missing_cells_say_why(table):
    partly = with_status(table, "SEP_3", "unsupported", 112)
    partly = with_status(partly, "SEP_5", "failed", 7)
    partly = with_status(partly, "SEP_7", "timeout", 7)
    partly = without(partly, "MB_3_1", height=7)
    model = LatencyModel(partly, IMAGENET)
    assert {(c.operator, c.shape.height, c.reason) for c in model.missing()} == {
        ("SEP_3", 112, "unsupported"),
        ("SEP_5", 7, "failed"),
        ("SEP_7", 7, "timeout"),
        ("MB_3_1", 7, "absent"),
    }
    names = ["SEP_7"] * 20
    with pytest.raises(BadRequest, match=r"layer 17 .* SEP_7 has no latency .*\(timeout\)"):
        model.encode(names)
    codes = np.full((5, 20), model.operators.index("SEP_5"))
    codes[:3, 17:] = model.operators.index("SEP_3")
    with pytest.raises(BadRequest, match=r"layer 17 .* SEP_5 has no latency .*\(failed\)"):
        model.predict(codes)
    low, high = model.bounds()
    assert math.isfinite(low)
    assert math.isfinite(high)
    with pytest.raises(BadRequest, match="SEP_3 has no latency"):
        model.bounds([["SEP_3"]] * 20)


def test_where_an_operator_does_not_apply_nothing_is_missing():
    narrowing = parse_backbone(
        (
            "classes=10\nsplit=1\nexploring_layers=0\n"
            "[input]\nchannels=3\nheight=8\nwidth=8\n"
            "[[stem]]\nchannels=16\nkernel=3\nstride=1\n"
            "[[stages]]\nchannels=8\nrepeats=2\nstride=1\n[head]\nchannels=8\n"
        ),
        "narrowing",
        "narrowing.toml",
    )
    model = LatencyModel(full_table(narrowing), narrowing)
    assert model.missing() == ()
    assert not [name for name in model.candidates(0) if name.startswith("Choice")]
    assert "Choice_3" in model.candidates(1)
    with pytest.raises(BadRequest, match=r"layer 0 .*Choice_3 .*does not apply"):
        model.encode(["Choice_3", "Choice_3"])


def test_only_the_operators_asked_for_are_columns_and_missing_ones_are_told(table):
    fewer = without(table, "SEP_5")
    model = LatencyModel(fewer, IMAGENET, operators=["Choice_3", "SEP_5", "SEP_3"])
    assert model.operators == ("SEP_3", "Choice_3")
    assert {cell.operator for cell in model.missing()} == {"SEP_5"}
    assert len(model.missing()) == 8
    with pytest.raises(BadRequest, match="operator 'SEP_9' is unknown"):
        LatencyModel(table, IMAGENET, operators=["SEP_9"])


def test_a_users_operator_that_is_not_loaded_counts_where_it_has_rows(table):
    last = IMAGENET.layers[-1]
    own = Row.of(CPU, "own_block", last, status="ok", latency_ms=0.001, estimator="slope")
    model = LatencyModel(table.add([own]), IMAGENET)
    assert model.operators[-1] == "own_block"
    assert "own_block" in model.candidates(19)
    assert model.missing() == ()


def test_a_layer_without_any_operator_is_refused_with_the_command_that_fills_it(table):
    less = without(table, *[operator.name for operator in POOL], height=28, out_channels=160)
    less = LookupTable(less.rows, "cpu.csv")
    with pytest.raises(BadRequest) as caught:
        LatencyModel(less, IMAGENET)
    assert str(caught.value) == (
        "cpu.csv has no operator for layers 5-7 of imagenet224 on cpu-onnxruntime-fp32; fill them: "
        "profile-ops --layers imagenet224:5-7 --target cpu-onnxruntime-fp32 -o cpu.csv"
    )


@pytest.mark.parametrize("lacking", ["stem", "head:1024"])
def test_a_table_without_stem_or_head_is_refused_with_the_command_that_fills_it(table, lacking):
    with pytest.raises(BadRequest, match=f"lacks {lacking} at .*profile-ops --layers imagenet224 "):
        LatencyModel(without(table, lacking), IMAGENET)


@pytest.mark.parametrize("status", ["failed", "unsupported", "timeout"])
@pytest.mark.parametrize("name", [IMAGENET.stem_name, IMAGENET.head_name])
def test_a_stem_or_head_without_a_latency_is_told_and_not_taken_for_nothing(table, name, status):
    height = next(row.height for row in table if row.operator == name)
    with pytest.raises(BadRequest, match=rf"lacks {name} at .* \({status}\) of imagenet224 on"):
        LatencyModel(with_status(table, name, status, height), IMAGENET)
    with pytest.raises(BadRequest, match="covers all layers of no shipped backbone"):
        guess_backbone(with_status(table, name, status, height))


def test_the_command_names_options_threads_and_a_users_file():
    target = dataclasses.replace(CPU, threads=4, options="affinity=0 1;xnnpack=0")
    assert fill_command("my table.csv", SMALL, target, "0,2") == (
        "profile-ops --layers small.toml:0,2 --target cpu-onnxruntime-fp32-t4 "
        "--option 'affinity=0 1' --option xnnpack=0 -o 'my table.csv'"
    )
    gated = dataclasses.replace(CPU, options="gate=hard-sigmoid;xnnpack=0")
    assert fill_command("t.csv", IMAGENET, gated) == (
        "profile-ops --layers imagenet224 --target cpu-onnxruntime-fp32 "
        "--gate hard-sigmoid --option xnnpack=0 -o t.csv"
    )


def test_several_targets_need_a_name(table):
    other = dataclasses.replace(CPU, runtime="openvino")
    both = table.merged(full_table(IMAGENET, other, seed=1))
    with pytest.raises(BadRequest, match="cpu-openvino-fp32"):
        LatencyModel(both, IMAGENET)
    assert LatencyModel(both, IMAGENET, "cpu-onnxruntime-fp32").fixed_ms == (
        LatencyModel(table, IMAGENET).fixed_ms
    )
    assert LatencyModel(both, IMAGENET, other).target == other


def test_rows_of_another_batch_are_not_used():
    batched = LookupTable(dataclasses.replace(row, batch=8) for row in full_table(SMALL))
    with pytest.raises(BadRequest, match="lacks stem"):
        LatencyModel(batched, SMALL)
    assert LatencyModel(batched, SMALL, batch=8).fixed_ms > 0


def test_a_stem_or_head_that_fell_back_can_be_told():
    for name in (SMALL.stem_name, SMALL.head_name):
        rows = [
            dataclasses.replace(r, flags="fallback:cpu") if r.operator == name else r
            for r in full_table(SMALL).rows
        ]
        model = LatencyModel(LookupTable(rows), SMALL)
        assert [row.operator for row in model.flagged("fallback")] == [name]


def test_rows_that_fell_back_can_be_told():
    rows = full_table(SMALL).rows
    flagged = [
        dataclasses.replace(r, flags="fallback:cpu;slow") if r.operator == "SEP_3" else r
        for r in rows
    ]
    model = LatencyModel(LookupTable(flagged), SMALL)
    assert {row.operator for row in model.flagged("fallback")} == {"SEP_3"}
    assert len(model.flagged("fallback")) == len(model.flagged("fallback:cpu")) == 2
    assert model.flagged("fallback:gpu") == ()
    assert model.flagged("throttled") == ()


# Backbones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet224", "cifar32", "digits32", "proxyless224"])
def test_the_backbone_is_found_from_the_table(name):
    backbone = load_backbone(name)
    table = full_table(backbone)
    assert guess_backbone(table) == backbone
    with pytest.raises(BadRequest, match="--backbone"):
        guess_backbone(without(table, backbone.head_name))


def test_a_table_of_two_backbones_needs_a_name():
    both = full_table(IMAGENET).merged(full_table(load_backbone("cifar32")))
    with pytest.raises(BadRequest, match="--backbone: cifar32, imagenet224"):
        guess_backbone(both)


def test_a_table_that_lacks_a_layer_covers_no_backbone(table):
    less = without(table, *[operator.name for operator in POOL], height=7)
    with pytest.raises(BadRequest, match="covers all layers of no shipped backbone"):
        guess_backbone(less)


# Calibration -------------------------------------------------------------------------------------


def test_a_calibration_is_linear_in_the_sum_and_works_on_the_array(table, model):
    calibration = Calibration(CPU, scale=1.25, offset_ms=-0.3)
    calibrated = LatencyModel(table, IMAGENET, calibration=calibration)
    codes = draw(model, 50)
    np.testing.assert_allclose(calibrated.predict(codes), 1.25 * model.predict(codes) - 0.3)
    low, high = model.bounds()
    assert calibrated.bounds() == pytest.approx((1.25 * low - 0.3, 1.25 * high - 0.3))


def test_a_calibration_of_other_rows_or_another_target_is_refused(table):
    fitted = Calibration(CPU, rows_sha256=table.select(CPU).sha256())
    other = full_table(IMAGENET, dataclasses.replace(CPU, runtime="openvino"))
    LatencyModel(table.merged(other), IMAGENET, CPU, calibration=fitted)
    with pytest.raises(BadRequest, match="have changed since"):
        LatencyModel(full_table(IMAGENET, seed=9), IMAGENET, calibration=fitted)
    with pytest.raises(BadRequest, match="calibration is of cpu-onnxruntime"):
        LatencyModel(other, IMAGENET, calibration=fitted)


def test_a_calibration_that_gives_no_latency_is_refused(table):
    with pytest.raises(BadRequest, match="gives the fastest network -"):
        LatencyModel(table, IMAGENET, calibration=Calibration(CPU, 1.0, -1e6))


# Intervals ---------------------------------------------------------------------------------------


def with_intervals(table: LookupTable) -> LookupTable:
    """The table with an interval in every row, further up than down."""
    random = np.random.default_rng(5)
    rows = []
    for row in table:
        width = row.latency_ms * random.uniform(0.01, 0.1)
        ends = {"ci_low_ms": row.latency_ms - width, "ci_high_ms": row.latency_ms + 2 * width}
        rows.append(dataclasses.replace(row, **ends))
    return LookupTable(rows)


def plain_interval(table: LookupTable, backbone: Backbone, names) -> tuple[float, float]:
    """The definition, row by row; half-widths below and above."""
    rows = {(row.operator, row.shape): row for row in table}
    used = [(backbone.stem_name, backbone.stem_shape), (backbone.head_name, backbone.head_shape)]
    used += list(zip(names, backbone.layers, strict=True))
    below = above = 0.0
    for key in set(used):
        row, times = rows[key], used.count(key)
        below += (times * (row.latency_ms - row.ci_low_ms)) ** 2
        above += (times * (row.ci_high_ms - row.latency_ms)) ** 2
    to_90 = 1.645 / 1.96  # rows have 95% intervals
    return to_90 * math.sqrt(below), to_90 * math.sqrt(above)


def test_intervals_add_up_in_quadrature_but_linearly_within_a_row(table):
    noisy = with_intervals(table)
    model = LatencyModel(noisy, IMAGENET)
    uniform = np.tile(np.arange(3)[:, None], 20)
    codes = np.concatenate([draw(model, 60), uniform])
    low, high = model.interval(codes)
    expected = [plain_interval(noisy, IMAGENET, model.decode(row)) for row in codes]
    predicted = model.predict(codes)
    np.testing.assert_allclose(np.stack([predicted - low, high - predicted], 1), expected)
    assert model.interval_of(model.decode(codes[0])) == (low[0], high[0])
    # Small types of code, no architectures at all.
    np.testing.assert_array_equal(model.interval(codes.astype(np.int8))[0], low)
    assert model.interval(codes[:0])[0].shape == (0,)


def test_an_interval_holds_the_error_that_a_verification_found(table):
    noisy = with_intervals(table)
    one = ErrorFigures(20, 0.0, 0.05, 1.0, 1.0, 1.0)
    other = dataclasses.replace(one, rmspe=0.03)
    split_half = dataclasses.replace(one, rmspe=0.02)
    groups = (GroupCheck("random", one, split_half, 0, other),)
    applied = Calibration(CPU, 1.25, -0.3, groups=groups)
    plain = LatencyModel(noisy, IMAGENET)
    codes = draw(plain, 20)
    below = plain.predict(codes) - plain.interval(codes)[0]
    for calibration, rmspe, scale in (
        (applied, 0.03, 1.25),
        (dataclasses.replace(applied, applied=False), 0.05, 1.0),
    ):
        model = LatencyModel(noisy, IMAGENET, calibration=calibration)
        error = math.sqrt(rmspe**2 - 0.01**2)
        predicted = model.predict(codes)
        widths = np.sqrt((scale * below) ** 2 + (1.645 * error * predicted) ** 2)
        np.testing.assert_allclose(predicted - model.interval(codes)[0], widths)
        above = model.interval(codes)[1] - predicted
        assert (above > widths).all()


def test_a_row_without_an_interval_leaves_a_network_without_one(table):
    noisy = with_intervals(table)
    bare = [dataclasses.replace(row, ci_low_ms=None, ci_high_ms=None) for row in noisy]
    assert LatencyModel(LookupTable(bare), IMAGENET).interval_of(["SEP_3"] * 20) is None
    some = LookupTable(b if b.operator == "SEP_5" else n for b, n in zip(bare, noisy, strict=True))
    model = LatencyModel(some, IMAGENET)
    assert model.interval_of(["SEP_3"] * 20) is not None
    assert model.interval_of(["SEP_3"] * 19 + ["SEP_5"]) is None


def test_an_interval_does_not_reach_below_nothing():
    table = full_table(SMALL)
    wide = LookupTable(
        dataclasses.replace(row, ci_low_ms=0.0, ci_high_ms=50 * row.latency_ms) for row in table
    )
    figures = ErrorFigures(20, 0.0, 3.0, 0.0, 0.0, 0.0)
    groups = (GroupCheck("random", figures, dataclasses.replace(figures, rmspe=0.0), 0),)
    calibration = Calibration(CPU, applied=False, groups=groups)
    low, high = LatencyModel(wide, SMALL, calibration=calibration).interval(np.zeros((4, 3), int))
    assert (low == 0).all()
    assert (high > 0).all()


# Files of calibrations ---------------------------------------------------------------------------


def test_calibrations_are_kept_one_a_target(tmp_path):
    path = tmp_path / "t.csv"
    other = dataclasses.replace(CPU, runtime="openvino")
    assert load_calibrations(path) == ()
    assert find_calibration(path, CPU) is None
    first = Calibration(CPU, 1.1, 0.2, "ab" * 32, 20, 0.013, "2026-01-31T12:00:00+00:00")
    save_calibration(path, first)
    save_calibration(path, Calibration(other, 0.9))
    save_calibration(path, dataclasses.replace(first, scale=1.05))
    assert find_calibration(path, CPU) == dataclasses.replace(first, scale=1.05)
    assert find_calibration(path, other) == Calibration(other, 0.9)
    assert len(load_calibrations(path)) == 2


def test_everything_a_verification_found_comes_back(tmp_path):
    path = tmp_path / "t.csv"
    figures = ErrorFigures(20, -0.01, 0.02, 0.95, 1.0, 0.99, 0.015, 0.03, -0.02, 0.01)
    lone = ErrorFigures(1, 0.01, 0.01, 1.0, 1.0, math.nan)
    calibration = Calibration(
        CPU,
        1.1,
        backbone="digits32",
        networks=10,
        held_out=10,
        applied=False,
        check=AdditivityCheck(Verdict.NOT_ADDITIVE, "RMSPE 40%", Cause.ERROR),
        groups=(GroupCheck("random", figures, figures, 0, figures), GroupCheck("x", lone, lone, 2)),
    )
    save_calibration(path, calibration)
    assert "NaN" not in calibration_path(path).read_text()
    (found,) = load_calibrations(path)
    assert str(found) == str(calibration)  # not-a-number differs from itself
    other = dataclasses.replace(calibration, backbone="imagenet224", scale=0.9)
    save_calibration(path, other)
    save_calibration(path, Calibration(CPU, 0.5))
    for backbone, scale in (("digits32", 1.1), ("imagenet224", 0.9), ("cifar32", 0.5)):
        known = find_calibration(path, CPU, backbone)
        assert known is not None
        assert known.scale == scale


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 0}, "scale is 0"),
        ({"scale": -1.5}, "scale is -1.5"),
        ({"scale": float("nan")}, "scale must be a number that is finite, not nan"),
        ({"scale": "1"}, "scale is '1'"),
        ({"scale": None}, "calibration"),
        ({"offset_ms": float("inf")}, "offset_ms must be a number that is finite, not inf"),
        ({"rmspe": -0.1}, "rmspe is -0.1"),
        ({"networks": -1}, "networks is -1"),
        ({"fitted_at": "today"}, "today"),
        ({"target": {"device": "bench"}}, "target|argument"),
        ({"target": {**dataclasses.asdict(CPU), "processor": "tpu"}}, "processor is 'tpu'"),
        ({"slope": 1}, "unknown key 'slope'"),
        ({"verdict": "additive"}, "unknown key 'verdict'"),
        ({"check": "additive"}, "check must be an object"),
        ({"check": {"verdict": "good"}}, "'good'"),
        ({"check": {"verdict": ["additive"]}}, "not a valid Verdict"),
        ({"check": {"cause": "noise"}}, "lacks the key 'verdict'"),
        ({"check": {"verdict": "inconclusive", "cause": "rain"}}, "'rain'"),
        ({"check": {"verdict": "additive", "reason": 5}}, "reason is 5"),
        ({"applied": 1}, "applied is 1"),
        ({"held_out": -1}, "held_out is -1"),
        ({"groups": [{"group": "random"}]}, "lacks the key 'prediction'"),
        ({"groups": [{"group": "random", "bias": 1}]}, "unknown key 'bias'"),
    ],
)
def test_a_broken_calibration_file_is_refused(tmp_path, change, words):
    path = tmp_path / "t.csv"
    save_calibration(path, Calibration(CPU, 1.1))
    data = json.loads(calibration_path(path).read_text())
    data["calibrations"][0] |= change
    calibration_path(path).write_text(json.dumps(data))
    with pytest.raises(BadRequest, match=words) as caught:
        load_calibrations(path)
    assert str(calibration_path(path)) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 4, "calibrations": []}',
        '{"format": 1}',
        '{"format": 1, "calibrations": [{"scale": 1}]}',
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path, content):
    calibration_path(tmp_path / "t.csv").write_text(content)
    with pytest.raises(BadRequest, match="delete"):
        load_calibrations(tmp_path / "t.csv")
