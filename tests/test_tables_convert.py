"""``hurricane table convert``: tables of earlier versions become tables of this one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hurricane.agents.console import run_command
from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.calibration import Calibration, load_calibrations, save_calibration
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.runs import Run, load_runs, runs_path
from hurricane.lookup_tables.shipped import open_table, shipped_tables
from hurricane.lookup_tables.spread import SPREADS, Spread
from hurricane.lookup_tables.table import EARLIER_COLUMNS, LookupTable, Row, Target
from hurricane.ops.errors import BadRequest
from hurricane.ops.shapes import LayerShape
from hurricane.search.cli import cli

CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
OTHER = replace(CPU, threads=2)
SHAPE = LayerShape(8, 8, 4, 4, 1)
FLAGS = {
    "SEP_3": "",
    "SEP_5": "disturbed",
    "SEP_7": "disturbed;simulated;unstable",
    "Choice_3": "throttled",
}
RENAMED = {"SEP_5": "interference", "SEP_7": "interference;simulated;unstable"}


def rows(flags: dict[str, str], target: Target = CPU) -> list[Row]:
    values = {"status": "ok", "latency_ms": 1 / 3, "estimator": "neighbours"}
    return [Row.of(target, name, SHAPE, flags=text, **values) for name, text in flags.items()]


def write_earlier(path: Path, table: LookupTable) -> None:
    """A table as version 0.1.0 wrote it: without two columns."""
    drop = [name for name in table.to_frame().columns if name not in EARLIER_COLUMNS]
    table.to_frame().drop(columns=drop).to_csv(path, index=False, float_format="%.6g")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A table of version 0.1.0 with all that it had beside it."""
    path = tmp_path / "old.csv"
    write_earlier(path, LookupTable([*rows(FLAGS), *rows({"SEP_3": "disturbed"}, OTHER)]))
    anchors = [{"target": asdict(CPU), "anchors_ms": {"1" * 64: 1.5}}]
    beside(path, "anchors.json").write_text(json.dumps({"format": 1, "anchors": anchors}))
    run = {"ended_at": "2026-01-01T00:00:00Z", "target": str(CPU), "agent_version": "0.1.0"}
    run |= {"rows": 4, "device_s": 1.5, "laps": 9, "laps_repeated": 2, "level": 1.25}
    runs_path(path).write_text(json.dumps(run) + "\n")
    return path


def beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}.{name}")


def convert(*words: object):
    return CliRunner().invoke(table_group, ["convert", *map(str, words)])


def test_a_table_of_an_earlier_version_comes_out_in_todays_words(old: Path):
    new = old.with_name("new.csv")
    result = convert(old, "-o", new)
    assert result.exception is None, result.exception
    wanted = [*rows({**FLAGS, **RENAMED}), *rows({"SEP_3": "interference"}, OTHER)]
    assert LookupTable.load(new) == LookupTable(wanted)
    assert BASELINES.load(new) == {CPU: {"1" * 64: 1.5}}
    (run,) = load_runs(new)
    assert (run.batches, run.batches_rejected, run.slowdown) == (9, 2, 1.25)
    files = sorted(file.name for file in old.parent.glob("new*"))
    assert files == ["new.csv", "new.csv.baselines.json", "new.csv.runs.jsonl"]
    texts = "".join((old.parent / name).read_text() for name in files)
    for word in ("disturbed", "anchors", "laps", "level"):
        assert word not in texts


def test_it_says_in_one_line_what_it_did(old: Path):
    new = old.with_name("new.csv")
    said = f"{new}: 5 rows of {old}, with baselines, runs; flags renamed in 3 rows\n"
    assert convert(old, "-o", new).stdout == said
    told = json.loads(convert(old, "-o", new, "--json").stdout)
    assert (told["table"], told["rows_total"], told["renamed"]) == (str(new), 5, 3)
    assert told["beside"] == ["baselines", "runs"]
    assert told["sha256"] == LookupTable.load(new).sha256()


def test_the_old_table_stays_as_it_was(old: Path):
    before = {file: file.read_bytes() for file in old.parent.iterdir()}
    convert(old, "-o", old.with_name("new.csv"))
    assert {file: file.read_bytes() for file in before} == before


def test_a_table_may_be_converted_in_its_place_and_again(old: Path):
    assert convert(old, "-o", old).exception is None
    once = {file.name: file.read_bytes() for file in old.parent.iterdir()}
    assert sorted(once) == ["old.csv", "old.csv.baselines.json", "old.csv.runs.jsonl"]
    assert "flags renamed in 0 rows" in convert(old, "-o", old).stdout
    assert {file.name: file.read_bytes() for file in old.parent.iterdir()} == once


def test_a_calibration_of_these_rows_stays_one_of_them(old: Path):
    """Its digest is of the bytes as version 0.1.0 wrote them, or of those that we write."""
    table = LookupTable.load(old)
    one = old.with_name("one.csv")
    write_earlier(one, table.select(CPU))
    digests = {
        "as written": hashlib.sha256(one.read_bytes()).hexdigest(),
        "as read": table.select(CPU).sha256(),
        "of other rows": "a" * 64,
        "of any": "",
    }
    for name, digest in digests.items():
        known = Calibration(CPU, 1.1, 0.2, digest, backbone=name)
        save_calibration(old, known)
    new = old.with_name("new.csv")
    save_calibration(new, Calibration(CPU, 9.9, backbone="of the file that was there"))
    assert "calibrations" in convert(old, "-o", new).stdout
    found = {c.backbone: c for c in load_calibrations(new)}
    assert found.keys() == digests.keys()
    converted = LookupTable.load(new)
    assert {name for name, c in found.items() if c.fits(converted)} == {
        "as written",
        "as read",
        "of any",
    }
    assert found["of other rows"].rows_sha256 == "a" * 64
    assert {(c.scale, c.offset_ms) for c in found.values()} == {(1.1, 0.2)}


def test_what_lay_beside_the_file_that_is_replaced_goes(old: Path):
    new = old.with_name("new.csv")
    SPREADS.save(new, CPU, Spread((), 1.1, 1.2))
    BASELINES.save(new, OTHER, {"2" * 64: 2.0})
    convert(old, "-o", new)
    assert SPREADS.load(new) == {}
    assert BASELINES.load(new) == {CPU: {"1" * 64: 1.5}}


def test_a_table_of_this_version_is_copied_with_all_that_lies_beside_it(tmp_path: Path):
    path, new = tmp_path / "t.csv", tmp_path / "new.csv"
    LookupTable(rows({"SEP_3": "unstable"})).save(path)
    SPREADS.save(path, CPU, Spread((), 1.1, 1.2))
    assert "with spreads; flags renamed in 0 rows" in convert(path, "-o", new).stdout
    assert new.read_bytes() == path.read_bytes()
    assert SPREADS.load(new) == SPREADS.load(path)


def broken_anchors(old: Path) -> None:
    beside(old, "anchors.json").write_text("{")


def broken_runs(old: Path) -> None:
    runs_path(old).write_text('{"laps": 3}\n')


def broken_calibration(old: Path) -> None:
    beside(old, "calibration.json").write_text("[]")


def an_unfinished_run(old: Path) -> None:
    beside(old, "journal").write_text("")


def an_unfinished_run_of_the_new_one(old: Path) -> None:
    (old.parent / "new.csv.journal").write_text("")


def cut_off(old: Path) -> None:
    old.write_bytes(old.read_bytes()[:-30])


def other_columns(old: Path) -> None:
    old.write_text("device,latency\n")


def a_support_report(old: Path) -> None:
    old.write_text("device,operator,sqnr_db\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (Path.unlink, "neither a file nor shipped"),
        (cut_off, "old.csv:6: "),
        (other_columns, "old.csv:1: this is not the header of a lookup table"),
        (a_support_report, "this is a support report"),
        (broken_anchors, "old.csv.anchors.json"),
        (broken_runs, "old.csv.runs.jsonl, line 1"),
        (broken_calibration, "old.csv.calibration.json"),
        (an_unfinished_run, "old.csv.journal is of a run that did not finish"),
        (an_unfinished_run_of_the_new_one, "new.csv.journal is of a run that did not finish"),
    ],
)
def test_a_wrong_input_is_one_line_with_status_2_and_nothing_is_written(
    old: Path, capsys: pytest.CaptureFixture[str], spoil, words: str
):
    new = old.with_name("new.csv")
    spoil(old)
    before = sorted(old.parent.iterdir())
    with pytest.raises(SystemExit) as ended:
        run_command(cli, "hurricane", ["table", "convert", str(old), "-o", str(new)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert sorted(old.parent.iterdir()) == before


@pytest.mark.parametrize("place", ["none/new.csv", "old.csv/new.csv", "imagenet224"])
def test_an_output_that_cannot_be_written_is_told(old: Path, place: str):
    output = shipped_tables()[0] if place == "imagenet224" else str(old.parent / place)
    result = convert(old, "-o", output)
    assert isinstance(result.exception, BadRequest)
    assert output in str(result.exception)


def test_killed_before_the_table_is_there_the_old_one_is_still_whole(old: Path, monkeypatch):
    before = LookupTable.load(old)
    monkeypatch.setattr(LookupTable, "save", lambda self, path: 1 / 0)
    assert isinstance(convert(old, "-o", old).exception, ZeroDivisionError)
    monkeypatch.undo()
    assert LookupTable.load(old) == before
    assert convert(old, "-o", old).exception is None
    assert BASELINES.load(old) == {CPU: {"1" * 64: 1.5}}
    assert len(load_runs(old)) == 1


# Reading without converting


def test_an_earlier_table_is_read_as_it_is_wherever_a_table_is(old: Path):
    result = CliRunner().invoke(table_group, ["show", str(old)])
    assert result.exception is None, result.exception
    assert "* disturbed: 2 rows" in result.stdout
    assert "4 rows in 9 batches (2 rejected)" in result.stdout
    assert {row.flags for row in open_table(old).select(CPU)} == set(FLAGS.values())


def a_run(**names: object) -> dict[str, object]:
    run = asdict(Run("2026-01-01T00:00:00Z", "t", "1", 3, 1.0, 9, 2, 1.25))
    return {**{key: run[key] for key in run if key not in ("batches", "slowdown")}, **names}


@pytest.mark.parametrize(
    "names",
    [
        {"batches": 9, "slowdown": 1.25},
        {"laps": 9, "level": 1.25},
        {"laps": 9, "slowdown": 1.25},
    ],
)
def test_runs_are_read_by_todays_and_by_earlier_names(tmp_path: Path, names):
    runs_path(tmp_path / "t.csv").write_text(json.dumps(a_run(**names)) + "\n")
    assert load_runs(tmp_path / "t.csv") == [
        Run("2026-01-01T00:00:00Z", "t", "1", 3, 1.0, 9, 2, 1.25)
    ]


@pytest.mark.parametrize(
    "names",
    [{"laps": 9}, {"laps": "9", "level": 1.0}, {"laps": 9, "level": 1.0, "lap": 3}],
)
def test_a_run_of_other_names_is_refused_with_its_line(tmp_path: Path, names):
    runs_path(tmp_path / "t.csv").write_text(json.dumps(a_run(**names)) + "\n")
    with pytest.raises(BadRequest, match=r"t\.csv\.runs\.jsonl, line 1: .*; delete the file"):
        load_runs(tmp_path / "t.csv")


# The shipped tables


def test_the_shipped_tables_are_in_todays_words():
    for name in shipped_tables():
        table = open_table(name)
        assert table.path is not None
        folder = table.path.parent
        beside_it = {file.name for file in folder.glob(f"{name}.csv.*")}
        assert beside_it == {f"{name}.csv.baselines.json", f"{name}.csv.runs.jsonl"}
        assert BASELINES.load(table.path).keys() == set(table.targets())
        assert "disturbed" not in {word for row in table for word in row.flag_words}
        history = json.loads(runs_path(table.path).read_text().splitlines()[-1])
        assert set(history) == set(asdict(load_runs(table.path)[-1]))
