"""``hurricane table`` and the comparison behind ``diff``, from outside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hurricane.lookup_tables import LookupTable, Row, Target, open_table, shipped_tables
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.diff import compare
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.shapes import LayerShape

CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
NEWER = dataclasses.replace(CPU, runtime_version="1.32.0")
DSP = Target("hexagon685-dsp", "dsp", "simulated", "1", "", "int8", origin="simulated")
LARGE, SMALL = LayerShape(56, 56, 64, 64, 1), LayerShape(7, 7, 640, 640, 1)


def ok(operator: str, latency_ms: float, shape=LARGE, target=CPU, **values) -> Row:
    values = {"estimator": "slope", **values}
    return Row.of(target, operator, shape, status="ok", latency_ms=latency_ms, **values)


def unsupported(operator: str, shape=LARGE, target=CPU) -> Row:
    return Row.of(target, operator, shape, status="unsupported")


ROWS = [
    ok("stem", 0.9, LayerShape(224, 224, 3, 16, 2), call_ms=0.03),
    ok("SEP_3", 1.0, ci_low_ms=0.99, ci_high_ms=1.01),
    ok("Choice_3", 0.5),
    ok("SEP_3", 2.0, SMALL),
    unsupported("Choice_3", SMALL),
    ok("SEP_3_SE", 2.5, SMALL, flags="fallback"),
    ok("head:1024", 0.7, LayerShape(7, 7, 640, 1000, 1)),
]


@pytest.fixture
def path(tmp_path) -> Path:
    LookupTable(ROWS).save(tmp_path / "table.csv")
    return tmp_path / "table.csv"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(table_group, [str(a) for a in arguments], catch_exceptions=True)


def output(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exception is None, result.exception
    return result.stdout


def refusal(*arguments: object) -> HurricaneError:
    result = call(*arguments)
    assert isinstance(result.exception, HurricaneError), result
    return result.exception


def test_help_has_examples_for_every_command():
    for name, command in table_group.commands.items():
        text = output(name, "--help")
        assert "Examples:" in text
        assert f"hurricane table {name}" in text
        assert any("--json" in parameter.opts for parameter in command.params)


def test_show_prints_operators_against_shapes(path):
    lines = output("show", path).splitlines()
    assert lines[0].startswith("cpu-onnxruntime-fp32 (bench, onnxruntime 1.20.0): 6 of 7 rows ok")
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert cells["SEP_3"] == ["1", "2"]
    assert cells["Choice_3"] == ["0.5", "unsup."]
    assert cells["SEP_3_SE"] == ["·", "2.5*"]
    assert any(line.startswith("* fallback: SEP_3_SE at ") for line in lines)
    assert "price of a call, median: 0.03" in lines


def test_a_flag_that_all_rows_have_marks_none(path):
    flagged = [ok("SEP_3", 1, flags="simulated"), ok("SEP_5", 2, flags="simulated;slow")]
    LookupTable(flagged).save(path)
    shown = output("show", path)
    assert "SEP_3     " in shown
    assert "1*" not in shown
    assert "2*" in shown
    assert "flag of all rows: simulated" in shown


def test_show_lists_the_fastest_of_each_shape(path):
    lines = [line.split() for line in output("show", path, "--fastest", "1").splitlines()]
    assert ["Choice_3", "0.5", "x1.00"] in lines
    assert ["SEP_3", "2", "x1.00"] in lines
    assert ["SEP_3", "1", "x2.00"] not in lines


def test_show_filters_and_prints_json(path):
    LookupTable([*ROWS, ok("SEP_3", 4, target=DSP)]).save(path)
    shown = json.loads(output("show", path, "--target", DSP.name, "--json"))
    assert [(r["operator"], r["latency_ms"]) for r in shown["rows"]] == [("SEP_3", 4.0)]
    assert shown["targets"][0]["name"] == "sim-hexagon685-dsp"
    shown = json.loads(output("show", path, "--operators", "SEP*", "--json"))
    assert {r["operator"] for r in shown["rows"]} == {"SEP_3", "SEP_3_SE"}
    assert "no rows that match 'MB_*'" in str(refusal("show", path, "--operators", "MB_*"))
    assert "no target gpu" in str(refusal("show", path, "--target", "gpu"))


def test_validate_lists_every_wrong_line_and_fails(path):
    assert output("validate", path) == f"{path}: ok, 7 rows\n"
    path.write_text(path.read_text().replace(",0.5,", ",-3,").replace(",2.5,", ",nan,"))
    result = call("validate", path)
    lines = result.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:4", f"{path}:7"]
    assert isinstance(result.exception, HurricaneError)
    assert result.exception.exit_status == 1
    assert str(result.exception) == f"2 problems in {path}"
    told = json.loads(call("validate", path, "--json").stdout)
    assert told["tables"][0]["problems"] == lines


def test_merge_puts_tables_together(path, tmp_path):
    other, out = tmp_path / "other.csv", tmp_path / "out.csv"
    LookupTable([ok("SEP_3", 3, target=DSP), ROWS[1]]).save(other)
    merged = json.loads(output("merge", path, other, "-o", out, "--json"))
    assert merged["rows_total"] == 8
    assert LookupTable.load(out) == LookupTable([*ROWS, ok("SEP_3", 3, target=DSP)])
    assert merged["sha256"] == LookupTable.load(out).sha256()


def test_merge_refuses_a_conflict_and_writes_nothing_until_told_who_wins(path, tmp_path):
    other, out = tmp_path / "other.csv", tmp_path / "out.csv"
    LookupTable([ok("SEP_3", 3)]).save(other)
    error = refusal("merge", path, other, "-o", out)
    assert error.exit_status == 2
    assert "SEP_3" in str(error)
    assert "--prefer" in str(error)
    assert not out.exists()
    for prefer, latency_ms in (("first", 1.0), ("last", 3.0)):
        output("merge", path, other, "-o", out, "--prefer", prefer)
        assert LookupTable.load(out).get(ROWS[1].key).latency_ms == latency_ms


def test_list_names_the_shipped_tables():
    listed = json.loads(output("list", "--json"))["tables"]
    assert [entry["name"] for entry in listed] == list(shipped_tables())
    assert output("list")


def test_an_interrupted_run_is_told_from_a_table_that_is_not_there(path):
    journal = path.with_name("half.csv.journal")
    journal.write_text("")
    assert "was interrupted" in str(refusal("show", path.with_name("half.csv")))
    assert "neither a file nor shipped" in str(refusal("show", path.with_name("none.csv")))


# Comparing ---------------------------------------------------------------------------


def test_equal_tables_have_ratio_one(path):
    difference = compare(open_table(path), open_table(path))
    assert difference.median_ratio == 1
    assert difference.within_95 == 0
    assert difference.summary()["status_changes"] == 0
    assert "6 rows compared: median ratio 1.0000" in output("diff", path, path)


def test_ratios_statuses_and_lonely_rows_are_told():
    first = LookupTable([ok("SEP_3", 1), ok("SEP_5", 2), ok("SEP_7", 2), ok("MB_3_1", 1)])
    second = LookupTable([ok("SEP_3", 1.1), ok("SEP_5", 1), unsupported("SEP_7"), ok("MB_3_3", 1)])
    difference = compare(first, second)
    assert {p.first.operator: p.ratio for p in difference.compared} == {"SEP_3": 1.1, "SEP_5": 0.5}
    assert difference.median_ratio == pytest.approx(0.8)
    assert difference.within_95 == pytest.approx(0.1 + 0.95 * 0.9)
    assert [p.second.status for p in difference.status_changes] == ["unsupported"]
    assert [row.operator for row in difference.only_first] == ["MB_3_1"]
    assert [row.operator for row in difference.only_second] == ["MB_3_3"]


def test_half_and_double_are_the_same_size_of_change():
    one, two = LookupTable([ok("SEP_3", 1)]), LookupTable([ok("SEP_3", 2)])
    assert compare(one, two).within_95 == compare(two, one).within_95 == 1.0


def test_a_device_that_is_slower_as_a_whole_is_told_from_rows_that_changed():
    names = ("SEP_3", "SEP_5", "SEP_7")
    first = LookupTable([ok(name, 1) for name in names])
    slower = compare(first, LookupTable([ok(name, 1.1) for name in names]))
    assert slower.within_95 == pytest.approx(0.1)
    assert slower.within_95_of_median == pytest.approx(0)
    values = zip(names, (1, 1.1, 1.1), strict=True)
    changed = compare(first, LookupTable([ok(name, ms) for name, ms in values]))
    assert changed.within_95_of_median == pytest.approx(0.9 * 0.1)
    assert compare(first, LookupTable([])).summary()["within_95_of_median"] is None


@pytest.mark.parametrize(
    ("low", "high", "apart"), [(1.02, 1.2, 1), (1.005, 1.2, 0), (0.9, 0.98, 1), (None, None, 0)]
)
def test_intervals_that_do_not_meet_are_counted(low, high, apart):
    middle = 1.1 if low is None else (low + high) / 2
    second = LookupTable([ok("SEP_3", middle, ci_low_ms=low, ci_high_ms=high)])
    assert compare(LookupTable([ROWS[1]]), second).apart == apart


def test_rows_meet_across_versions_or_across_targets_as_asked():
    old, new = LookupTable([ok("SEP_3", 1)]), LookupTable([ok("SEP_3", 2, target=NEWER)])
    dsp = LookupTable([ok("SEP_3", 4, target=DSP)])
    assert compare(old, new).median_ratio == 2
    assert compare(old, new, "exact").compared == ()
    assert compare(old, dsp).compared == ()
    assert compare(old, dsp, "shape").median_ratio == 4
    with pytest.raises(BadRequest, match="--match exact"):
        compare(old.merged(new), old)


def test_diff_prints_the_largest_change_first_and_json(path, tmp_path):
    other = tmp_path / "other.csv"
    slower = [dataclasses.replace(ROWS[1], latency_ms=1.2, ci_low_ms=1.1, ci_high_ms=1.3)]
    slower += [ok("Choice_3", 1.0), ok("Choice_3", 3.0, SMALL)]
    LookupTable(slower).save(other)
    lines = output("diff", path, other, "--operators", "SEP_3,Choice_3").splitlines()
    assert lines[0].endswith("unsupported -> ok")
    assert lines[1].startswith(f"only in {path}: SEP_3 at 7x7")
    assert lines[2].split()[0] == "Choice_3"
    assert lines[2].endswith("x2.000")
    assert lines[3].endswith("x1.200  intervals apart")
    told = json.loads(output("diff", path, other, "--operators", "SEP_3,Choice_3", "--json"))
    assert told["summary"]["compared"] == 2
    assert told["summary"]["intervals_apart"] == 1
    assert {r["ratio"] for r in told["ratios"]} == {1.2, 2.0}
    assert len(told["only_first"]) == 1


def test_diff_of_tables_that_share_nothing_says_what_to_try(path, tmp_path):
    other = tmp_path / "other.csv"
    LookupTable([ok("SEP_3", 4, target=DSP)]).save(other)
    assert "--match shape matches more" in output("diff", path, other)
