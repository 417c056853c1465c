"""The lookup table: what a file may hold, and that it comes back as it was written."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import stat
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hurricane.lookup_tables import LookupTable, Row, TableError, Target, open_table, shipped_tables
from hurricane.lookup_tables.table import (
    COLUMNS,
    IDENTITY_COLUMNS,
    VALUE_COLUMNS,
    format_flags,
    format_options,
    parse_options,
)
from hurricane.ops import atomic
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.shapes import LayerShape

GOLDEN = Path(__file__).parent / "golden" / "table.csv"
EARLIER_GOLDEN = GOLDEN.with_name("table-0.1.0.csv")
SHAPE = LayerShape(56, 56, 64, 64, 1)
SMALL = LayerShape(7, 7, 640, 640, 1)
CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
DSP = Target("hexagon685-dsp", "dsp", "simulated", "1", "seed=7", "int8", origin="simulated")


def ok_row(
    target: Target = CPU, operator: str = "SEP_3", shape: LayerShape = SHAPE, **values
) -> Row:
    values = {"status": "ok", "latency_ms": 0.5, "estimator": "slope", **values}
    return Row.of(target, operator, shape, **values)


FULL = ok_row(
    ci_low_ms=0.49,
    ci_high_ms=0.52,
    call_ms=0.04,
    warm_ms=0.48,
    cold_ms=0.55,
    p10_ms=0.53,
    p90_ms=0.61,
    device_ms=0.47,
    samples=72,
    rounds=24,
    flags="fallback;throttled",
    compute_unit="cpu",
    macs=13647872,
    params=4672,
    graph_sha256="ab" * 32,
    artifact_sha256="cd" * 32,
    converter="hurricane-nas 0.1.0 + litert-quantizer 0.11.0",
    calibration="16 random samples",
    agent_version="0.1.0",
    temperature_before_c=41.5,
    temperature_after_c=43,
    frequency_before_mhz=2450,
    frequency_after_mhz=2400,
    measured_at="2026-01-31T12:00:00+00:00",
)


def golden_rows() -> list[Row]:
    return [
        FULL,
        ok_row(operator="Choice_3", latency_ms=1 / 3, call_ms=0),
        Row.of(CPU, "MB_7_6_SE", SMALL, status="unsupported"),
        Row.of(CPU, "my.block:2", SMALL, status="timeout", flags="retried"),
        ok_row(operator="stem", shape=LayerShape(224, 224, 3, 16, 2), latency_ms=123456.7),
        ok_row(operator="head:1024", shape=LayerShape(7, 7, 640, 1000, 1), latency_ms=1e-7),
        ok_row(dataclasses.replace(CPU, device='8-core "big", board'), batch=4),
        ok_row(DSP, operator="SEP_7"),
    ]


def test_the_columns_are_those_of_the_contract():
    assert ",".join(IDENTITY_COLUMNS) == (
        "device,processor,runtime,runtime_version,options,precision,threads,origin,operator,"
        "height,width,in_channels,out_channels,stride,batch"
    )
    assert ",".join(COLUMNS[len(IDENTITY_COLUMNS) :]) == (
        "status,latency_ms,ci_low_ms,ci_high_ms,call_ms,warm_ms,cold_ms,p10_ms,p90_ms,device_ms,"
        "samples,rounds,estimator,flags,compute_unit,macs,params,graph_sha256,artifact_sha256,"
        "converter,calibration,"
        "agent_version,temperature_before_c,temperature_after_c,frequency_before_mhz,"
        "frequency_after_mhz,measured_at"
    )


def test_a_table_is_written_as_the_golden_file():
    table = LookupTable(reversed(golden_rows()))
    assert table.to_csv() == GOLDEN.read_text("utf-8")
    assert LookupTable.load(GOLDEN) == table


def test_a_table_of_the_first_version_is_read_and_written_with_all_columns(tmp_path):
    rows = [dataclasses.replace(row, converter="", calibration="") for row in golden_rows()]
    table = LookupTable.load(EARLIER_GOLDEN)
    assert table == LookupTable(rows)
    table.save(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().split("\n")[0] == ",".join(COLUMNS)
    lines = EARLIER_GOLDEN.read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "long.csv").write_text(lines[0] + lines[1].rstrip("\n") + ",\n")
    with pytest.raises(TableError, match=r"long.csv:2: has 41 cells where the header has 40"):
        LookupTable.load(tmp_path / "long.csv")


def test_pandas_reads_the_golden_file_as_it_is():
    import pandas

    frame = pandas.read_csv(GOLDEN)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(golden_rows())
    assert frame[frame.operator == "head:1024"].latency_ms.item() == 1e-7


def test_rows_go_by_target_then_stem_layers_from_large_to_small_pool_order_and_head():
    stem = LayerShape(224, 224, 3, 16, 2)
    head = LayerShape(7, 7, 640, 1000, 1)
    expected = [
        ok_row(operator="stem", shape=stem),
        ok_row(operator="SEP_7"),
        ok_row(operator="MB_3_1"),
        ok_row(operator="SEP_3_SE"),
        ok_row(operator="own_block"),
        ok_row(operator="Choice_x", shape=SMALL),
        ok_row(operator="head:1024", shape=head),
        ok_row(DSP, operator="stem", shape=stem),
    ]
    assert list(LookupTable(sorted(expected, key=lambda row: row.to_line())).rows) == expected


def test_equal_tables_have_equal_digests_whatever_the_order_of_their_rows():
    rows = golden_rows()
    assert LookupTable(rows).sha256() == LookupTable(rows[::-1]).sha256()
    assert LookupTable(rows).sha256() != LookupTable(rows[1:]).sha256()


def test_numbers_are_kept_to_six_digits_in_memory_as_on_the_disk():
    row = ok_row(latency_ms=0.123456789, ci_low_ms=0.12345678, ci_high_ms=0.12345681)
    assert row.latency_ms == 0.123457
    assert Row.from_line(row.to_line()) == row


def test_numpy_numbers_become_plain_ones():
    import numpy as np

    row = ok_row(latency_ms=np.float32(0.25), samples=np.int64(3), shape=SHAPE)
    assert type(row.latency_ms) is float
    assert type(row.samples) is int


# Round trips -----------------------------------------------------------------------------

positive = st.floats(1e-9, 1e6, allow_nan=False)
words = st.text(string.ascii_lowercase, min_size=1, max_size=6)
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from('," '),
    max_size=12,
).map(str.strip)
options = st.dictionaries(
    st.text(string.ascii_letters + "_.-", min_size=1, max_size=5),
    st.text(string.ascii_letters + string.digits + ' ,"/', min_size=1, max_size=8)
    .map(str.strip)
    .filter(bool),
    max_size=3,
)
targets = st.builds(
    Target,
    device=texts.filter(bool),
    processor=st.sampled_from(["cpu", "dsp", "vpu", "npu", "gpu"]),
    runtime=words,
    runtime_version=texts,
    options=options.map(format_options),
    precision=words,
    threads=st.integers(1, 64),
    origin=st.sampled_from(["measured", "simulated", "estimated", "imported"]),
)
shapes = st.builds(LayerShape, *[st.integers(1, 2000)] * 4, st.sampled_from([1, 2]))
operators = st.sampled_from(["SEP_3", "Choice_x_SE", "stem", "head:1024:relu6", "my.own-block"])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    identity = {"target": draw(targets), "operator": draw(operators), "shape": draw(shapes)}
    provenance = {
        "flags": format_flags(draw(st.lists(words, max_size=3))),
        "compute_unit": draw(texts),
        "macs": draw(st.none() | st.integers(0, 10**12)),
        "temperature_before_c": draw(st.none() | st.floats(-40, 120)),
        "frequency_after_mhz": draw(st.none() | st.floats(1, 6000)),
    }
    status = draw(st.sampled_from(["ok", "unsupported", "failed", "timeout"]))
    if status != "ok":
        return Row.of(**identity, status=status, **provenance)
    low, latency, high = sorted(draw(st.tuples(positive, positive, positive)))
    return Row.of(
        **identity,
        status="ok",
        latency_ms=latency,
        ci_low_ms=low,
        ci_high_ms=high,
        call_ms=draw(st.none() | st.just(0.0) | positive),
        cold_ms=draw(st.none() | positive),
        samples=draw(st.none() | st.integers(1, 10**6)),
        estimator=draw(texts.filter(bool)),
        **provenance,
    )


tables = st.lists(rows(), max_size=6, unique_by=lambda row: row.key).map(LookupTable)


@given(rows())
def test_a_row_comes_back_from_its_line(row):
    line = row.to_line()
    assert line.count("\n") == 1
    assert Row.from_line(line) == row


@settings(max_examples=40)
@given(table=tables)
def test_a_table_comes_back_from_its_file_and_is_written_as_the_same_bytes(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("round") / "table.csv"
    table.save(path)
    loaded = LookupTable.load(path)
    assert loaded == table
    assert loaded.to_csv().encode() == path.read_bytes()


@settings(max_examples=25)
@given(table=tables)
def test_a_table_comes_back_from_a_data_frame(table):
    assert LookupTable.from_frame(table.to_frame()) == table


@given(options)
def test_options_come_back_from_their_text(chosen):
    assert parse_options(format_options(chosen)) == chosen


def test_options_are_sorted_whatever_the_order_they_are_given_in():
    assert format_options({"xnnpack": 0, "arena": "off"}) == "arena=off;xnnpack=0"


def test_a_file_saved_by_excel_is_read(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOLDEN.read_bytes().replace(b"\n", b"\r\n"))
    assert LookupTable.load(path) == LookupTable.load(GOLDEN)


# What is refused ---------------------------------------------------------------------------


def broken(tmp_path: Path, column: str, value: str, row: Row = FULL) -> Path:
    """A table whose third line has one cell replaced."""
    cells = row.to_line().rstrip("\n").split(",")
    cells[COLUMNS.index(column)] = value
    path = tmp_path / "table.csv"
    good = ok_row(operator="SEP_7")
    path.write_text(f"{','.join(COLUMNS)}\n{good.to_line()}{','.join(cells)}\n")
    return path


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("device", "", "device is empty"),
        ("device", " bench", "device is ' bench'"),
        ("device", "be\tnch", "printable"),
        ("processor", "tpu", "processor is 'tpu'; it is one of cpu"),
        ("runtime", "ONNX Runtime", "runtime is"),
        ("runtime_version", "1.2 ", "runtime_version is"),
        ("options", "b=1;a=2", "sort it: 'a=2;b=1'"),
        ("options", "fast", "key=value"),
        ("options", "a=1;a=2", "each key once"),
        ("options", "a=", "option a"),
        ("options", "a=" + 1999 * "x", "options has 2,001 characters; a cell has at most 2,000"),
        ("precision", "FP32", "precision is 'FP32'"),
        ("threads", "0", "threads is 0"),
        ("threads", "two", "threads is 'two'; it is a whole number"),
        ("threads", "", "threads is empty"),
        ("origin", "guessed", "origin is 'guessed'"),
        ("operator", "", "operator is ''"),
        ("operator", "SEP 3", "operator is 'SEP 3'"),
        ("operator", "3_SEP", "starts with a letter"),
        ("height", "-56", "height is -56"),
        ("width", "56.0", "width is '56.0'; it is a whole number"),
        ("in_channels", "1_0", "in_channels is '1_0'"),
        ("stride", "0", "stride is 0"),
        ("batch", "", "batch is empty"),
        ("status", "OK", "status is 'OK'; it is one of ok"),
        ("status", "failed", "latency_ms is filled though status is failed"),
        ("latency_ms", "-3", "latency_ms is -3; a latency is a positive number of milliseconds"),
        ("latency_ms", "0", "latency_ms is 0; a latency is a positive"),
        ("latency_ms", "nan", "latency_ms is nan; it is a finite number"),
        ("latency_ms", "inf", "latency_ms is inf; it is a finite number"),
        ("latency_ms", "", "latency_ms is empty though status is ok"),
        ("latency_ms", "0.5 ms", "without its unit"),
        ("latency_ms", "0,5", "cells where the header has"),
        ("latency_ms", "0.6", "outside its interval 0.49 to 0.52"),
        ("latency_ms", "0.4", "outside its interval 0.49 to 0.52"),
        ("latency_ms", "5e8", "the unit is milliseconds"),
        ("ci_low_ms", "", "must both be there"),
        ("ci_high_ms", "", "must both be there"),
        ("ci_high_ms", "-inf", "finite"),
        ("call_ms", "-0.1", "call_ms is -0.1"),
        ("warm_ms", "0", "warm_ms is 0; a latency is a positive"),
        ("cold_ms", "-1", "cold_ms is -1"),
        ("p10_ms", "0.7", "p10_ms 0.7 exceeds p90_ms 0.61"),
        ("p90_ms", "fast", "p90_ms is 'fast'"),
        ("device_ms", "0", "device_ms is 0"),
        ("samples", "0", "samples is 0"),
        ("samples", "72.5", "samples is '72.5'"),
        ("rounds", "-1", "rounds is -1"),
        ("estimator", "", "estimator is empty"),
        ("flags", "fallback; slow", "flags is"),
        ("flags", "slow;slow", "different words"),
        ("macs", "-1", "macs is -1"),
        ("params", "1e3", "params is '1e3'"),
        ("graph_sha256", "AB" * 32, "graph_sha256 is"),
        ("artifact_sha256", "abc", "64 hexadecimal"),
        ("converter", "litert 1 ", "converter is 'litert 1 '"),
        ("calibration", "16\timages", "calibration is '16\\timages'"),
        ("agent_version", " 1", "agent_version is ' 1'"),
        ("temperature_before_c", "315", "degrees Celsius"),
        ("temperature_after_c", "hot", "temperature_after_c is 'hot'"),
        ("frequency_before_mhz", "2450000", "the unit is MHz"),
        ("frequency_after_mhz", "0", "unknown is an empty cell"),
        ("measured_at", "yesterday", "measured_at is 'yesterday'"),
        ("measured_at", "2026-01-31T12:00:00", "with the zone"),
        ("compute_unit", '"gpu', "quotes"),
    ],
)
def test_a_broken_cell_is_refused_with_its_line(tmp_path, column, value, words):
    path = broken(tmp_path, column, value)
    with pytest.raises(TableError) as caught:
        LookupTable.load(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert words in str(caught.value)
    assert caught.value.exit_status == 2


def test_the_table_that_is_broken_on_purpose_is_good_before(tmp_path):
    assert len(LookupTable.load(broken(tmp_path, "device", "bench"))) == 2


@pytest.mark.parametrize("column", [name for name in VALUE_COLUMNS if name != "latency_ms"])
def test_a_row_that_is_not_ok_has_no_values(column):
    value = {"samples": 3, "rounds": 3, "estimator": "slope"}.get(column, 0.5)
    with pytest.raises(TableError, match=f"{column} is filled though status is timeout"):
        Row.of(CPU, "SEP_3", SHAPE, status="timeout", **{column: value})


def test_a_low_end_of_the_interval_may_be_negative():
    assert ok_row(ci_low_ms=-0.01, ci_high_ms=1).ci_low_ms == -0.01


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", True])
def test_a_row_made_in_python_is_checked_as_well(value):
    with pytest.raises(TableError, match="latency_ms is"):
        ok_row(latency_ms=value)


def header(*names: str) -> str:
    return ",".join(names) + "\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file is empty"),
        ("name,ms\nSEP_3,1\n", "not the header of a lookup table"),
        (FULL.to_line(), "not the header of a lookup table"),
        (header(*COLUMNS[:-1]), "the header lacks measured_at"),
        (header(*COLUMNS, "notes"), "the header has 'notes'"),
        (header(*COLUMNS, "device"), "the header has device twice"),
        (
            header(COLUMNS[1], COLUMNS[0], *COLUMNS[2:]),
            "column 1 is processor and should be device",
        ),
        (
            header(*COLUMNS).replace("latency_ms", "latency_us"),
            "lacks latency_ms and has 'latency_us'",
        ),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, content, words):
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(TableError) as caught:
        LookupTable.load(path)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert words in str(caught.value)


def test_a_table_cut_off_anywhere_is_refused_or_has_only_whole_rows(tmp_path):
    content = (header(*COLUMNS) + FULL.to_line() + ok_row(operator="SEP_5").to_line()).encode()
    path = tmp_path / "table.csv"
    accepted = []
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with contextlib.suppress(TableError):
            accepted.append((length, len(LookupTable.load(path))))
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert accepted == list(zip(ends, [0, 1, 2], strict=True))


def test_a_cut_off_last_line_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(header(*COLUMNS) + FULL.to_line()[:-1])
    with pytest.raises(TableError, match=r"table\.csv:2: the last line has no end"):
        LookupTable.load(path)


def test_too_few_cells_and_empty_lines_are_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(header(*COLUMNS) + "bench,cpu\n\n" + FULL.to_line())
    with pytest.raises(TableError, match=r"table\.csv:2: has 2 cells .*1 more") as caught:
        LookupTable.load(path)
    assert "table.csv:3: is an empty line" in caught.value.problems[1]


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(
        header(*COLUMNS).encode() + FULL.to_line().replace("bench", "bänk").encode("latin-1")
    )
    with pytest.raises(TableError, match=r"table\.csv:2: is not UTF-8"):
        LookupTable.load(path)


def test_two_rows_with_one_identity_are_refused_with_both_lines(tmp_path):
    path = tmp_path / "table.csv"
    again = dataclasses.replace(FULL, latency_ms=0.5, measured_at="")
    path.write_text(header(*COLUMNS) + FULL.to_line() + again.to_line())
    with pytest.raises(TableError, match=r"table\.csv:3: SEP_3 at .* is on line 2 already"):
        LookupTable.load(path)
    with pytest.raises(TableError, match="two rows for SEP_3"):
        LookupTable([FULL, again])


def test_every_wrong_line_is_among_the_problems(tmp_path):
    path = tmp_path / "table.csv"
    bad = FULL.to_line().replace(",0.5,", ",-1,")
    path.write_text(header(*COLUMNS) + bad + FULL.to_line() + bad + bad[:20])
    with pytest.raises(TableError) as caught:
        LookupTable.load(path)
    assert [p.split(":")[1] for p in caught.value.problems] == ["2", "4", "5"]


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadRequest, match=r"none\.csv does not exist"):
        LookupTable.load(tmp_path / "none.csv")
    with pytest.raises(BadRequest, match="cannot be read"):
        LookupTable.load(tmp_path)


def test_an_operator_that_nobody_knows_is_not_the_tables_fault(tmp_path):
    LookupTable([ok_row(operator="their.block-9")]).save(tmp_path / "table.csv")
    assert LookupTable.load(tmp_path / "table.csv").rows[0].operator == "their.block-9"


def test_a_data_frame_with_other_columns_or_a_wrong_row_is_refused():
    frame = LookupTable([FULL]).to_frame()
    with pytest.raises(TableError, match="lacks macs"):
        LookupTable.from_frame(frame.drop(columns="macs"))
    frame.loc[0, "latency_ms"] = -1.0
    with pytest.raises(TableError, match="row 0: latency_ms is -1"):
        LookupTable.from_frame(frame)


# Targets and selecting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (CPU, "cpu-onnxruntime-fp32"),
        (dataclasses.replace(CPU, threads=4), "cpu-onnxruntime-fp32-t4"),
        (DSP, "sim-hexagon685-dsp"),
        (dataclasses.replace(DSP, threads=2), "sim-hexagon685-dsp-t2"),
        (Target("sm8550", "dsp", "qnn", precision="int8", origin="emulated"), "dsp-qnn-int8"),
        (Target("stand-in", "dsp", "snpe", precision="int8", origin="simulated"), "dsp-snpe-int8"),
    ],
)
def test_targets_are_named_as_on_the_command_line(target, name):
    assert target.name == name


def test_the_target_may_be_left_out_where_the_table_has_one():
    assert LookupTable([FULL]).target() == CPU


def test_several_targets_are_listed_when_none_is_named():
    with pytest.raises(BadRequest) as caught:
        LookupTable([FULL, ok_row(DSP)]).target()
    assert "sim-hexagon685-dsp" in str(caught.value)
    assert "cpu-onnxruntime-fp32" in str(caught.value)
    assert "--target" in str(caught.value)


def test_an_unknown_target_is_answered_with_those_there_are():
    with pytest.raises(BadRequest, match="no target vpu-x-fp16; it has cpu-onnxruntime-fp32"):
        LookupTable([FULL]).target("vpu-x-fp16")


def test_targets_of_one_name_are_told_apart_by_what_differs():
    newer = dataclasses.replace(CPU, runtime_version="1.32.0", options="xnnpack=0")
    table = LookupTable([FULL, ok_row(newer)])
    with pytest.raises(BadRequest, match=r"cpu-onnxruntime-fp32,runtime_version=1\.20\.0,options="):
        table.target("cpu-onnxruntime-fp32")
    assert table.target("cpu-onnxruntime-fp32,options=xnnpack=0") == newer
    assert table.target("cpu-onnxruntime-fp32,runtime_version=1.20.0,options=") == CPU
    assert table.target(newer) == newer


def test_rows_are_selected_by_target_operator_and_status():
    table = LookupTable([*golden_rows()])
    assert {row.operator for row in table.select("sim-hexagon685-dsp")} == {"SEP_7"}
    assert {row.operator for row in table.select(operators="MB_*, head:*")} == {
        "MB_7_6_SE",
        "head:1024",
    }
    assert len(table.select(status="timeout")) == 1
    assert table.get(FULL.key) == FULL


# Adding and merging ---------------------------------------------------------------------------


def test_adding_a_row_twice_is_refused_and_leaves_the_table_alone():
    table = LookupTable([FULL])
    with pytest.raises(TableError):
        table.add([FULL])
    assert len(table.add([ok_row(DSP)])) == 2
    assert len(table) == 1


def test_merging_takes_equal_rows_once_and_different_ones_as_told():
    other = dataclasses.replace(FULL, latency_ms=0.51)
    a, b = LookupTable([FULL, ok_row(DSP)]), LookupTable([other])
    assert a.merged(a) == a
    with pytest.raises(TableError, match=r"differ in 1 of their rows.* SEP_3 at .* --prefer"):
        a.merged(b)
    assert a.merged(b, "first").get(FULL.key) == FULL
    assert a.merged(b, "last").get(FULL.key) == other


# Writing ---------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_table_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    LookupTable([FULL]).save(path)
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(HurricaneError, match="No space left on device") as caught:
        LookupTable().save(path)
    assert caught.value.exit_status == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_reader_in_the_middle_of_the_old_table_reads_it_to_its_end(tmp_path):
    path = tmp_path / "table.csv"
    LookupTable([FULL]).save(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        start = reader.read(10)
        LookupTable(golden_rows()).save(path)
        assert start + reader.read() == before
    assert LookupTable.load(path) == LookupTable(golden_rows())


def test_saving_keeps_links_and_permissions(tmp_path):
    path, link = tmp_path / "table.csv", tmp_path / "link.csv"
    LookupTable().save(path)
    path.chmod(0o640)
    link.symlink_to(path)
    LookupTable([FULL]).save(link)
    assert link.is_symlink()
    assert len(LookupTable.load(path)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_saving_into_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="does not exist"):
        LookupTable().save(tmp_path / "none" / "table.csv")


def test_tables_are_opened_by_path_and_shipped_ones_are_valid():
    assert open_table(GOLDEN) == LookupTable.load(GOLDEN)
    for name in shipped_tables():
        table = open_table(name)
        assert table.rows
        assert table.path is not None
        assert table.path.read_text("utf-8") == table.to_csv()
    with pytest.raises(BadRequest, match="neither a file nor shipped"):
        open_table("no-such-table")


@pytest.mark.process
def test_the_room_imports_neither_torch_nor_pandas():
    code = (
        "import sys, hurricane.lookup_tables as t; t.LatencyModel; t.LookupTable; t.open_table;"
        "import hurricane.lookup_tables.cli, hurricane.lookup_tables.diff;"
        "print([m for m in ('torch', 'pandas', 'onnx', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_column_is_documented():
    document = (Path(__file__).parent.parent / "docs" / "table-format.md").read_text("utf-8")
    described = document.split("## Columns")[1].split("### A row")[0]
    assert [name for name in COLUMNS if f"`{name}`" not in described] == []
