"""What a few graphs took when a table was made, kept beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hurricane.lookup_tables.anchors import anchors_path, load_anchors, save_anchors
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.shipped import open_table
from hurricane.lookup_tables.table import LookupTable, Target
from hurricane.ops.errors import BadRequest

TARGET = Target("board", "cpu", "onnxruntime", "1.32.0", threads=2)
OTHER = replace(TARGET, threads=1)
ONE, TWO = "1" * 64, "2" * 64


def test_anchors_come_back_as_they_were_kept(tmp_path: Path):
    table = tmp_path / "t.csv"
    assert load_anchors(table, TARGET) == {}
    path = save_anchors(table, TARGET, {TWO: 0.1 + 0.2, ONE: 1e-7})
    assert path == anchors_path(table) == tmp_path / "t.csv.anchors.json"
    assert load_anchors(str(table), TARGET) == {ONE: 1e-7, TWO: 0.1 + 0.2}
    assert load_anchors(table, OTHER) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv.anchors.json"]


def test_each_target_of_a_table_has_its_own(tmp_path: Path):
    table = tmp_path / "t.csv"
    save_anchors(table, TARGET, {ONE: 1.0, TWO: 2.0})
    save_anchors(table, OTHER, {ONE: 3.0})
    save_anchors(table, TARGET, {ONE: 4.0})
    assert load_anchors(table, TARGET) == {ONE: 4.0}
    assert load_anchors(table, OTHER) == {ONE: 3.0}


def test_the_same_anchors_are_the_same_bytes_in_whatever_order_they_come(tmp_path: Path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    for target in (TARGET, OTHER):
        save_anchors(first, target, {ONE: 1.0, TWO: 2.0})
    for target in (OTHER, TARGET):
        save_anchors(second, target, {TWO: 2.0, ONE: 1.0})
    assert anchors_path(first).read_bytes() == anchors_path(second).read_bytes()


def entry(**changes: object) -> dict[str, object]:
    return {"target": {"device": "d", "processor": "cpu", "runtime": "r"}, "anchors_ms": {}} | {
        **changes
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        {"format": 2, "anchors": []},
        {"format": 1},
        {"format": 1, "anchors": 3},
        {"format": 1, "anchors": [entry(target={"device": "d"})]},
        {"format": 1, "anchors": [entry(target={"colour": "blue"})]},
        {"format": 1, "anchors": [entry(anchors_ms=[1.0])]},
        {"format": 1, "anchors": [entry(anchors_ms={ONE: "fast"})]},
        {"format": 1, "anchors": [entry(anchors_ms={ONE: 0.0})]},
        {"format": 1, "anchors": [entry(anchors_ms={ONE: float("nan")})]},
    ],
)
def test_a_broken_file_is_named_with_what_to_do_and_stays(tmp_path: Path, content: object):
    path = anchors_path(tmp_path / "t.csv")
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    with pytest.raises(BadRequest, match=r"t\.csv\.anchors\.json.*; delete it, nothing but"):
        load_anchors(tmp_path / "t.csv", TARGET)
    with pytest.raises(BadRequest) as told:
        save_anchors(tmp_path / "t.csv", TARGET, {ONE: 1.0})
    assert len(str(told.value).splitlines()) <= 2
    assert path.read_bytes() == data


def test_the_smallest_file_of_the_format_is_read(tmp_path: Path):
    path = anchors_path(tmp_path / "t.csv")
    path.write_text(json.dumps({"format": 1, "anchors": [entry(anchors_ms={ONE: 2})]}))
    assert load_anchors(tmp_path / "t.csv", Target("d", "cpu", "r")) == {ONE: 2.0}


def test_a_merge_keeps_the_anchors_of_targets_that_come_whole_from_one_table(tmp_path: Path):
    first, second, third, merged = (str(tmp_path / f"{n}.csv") for n in ("a", "b", "c", "m"))
    tables = [open_table(f"imagenet224-sim-{n}") for n in ("hexagon685-dsp", "myriadx-vpu")]
    targets = [table.target() for table in tables]
    rows = list(tables[0].rows)
    tables[0].save(first)
    tables[1].save(second)
    LookupTable([replace(rows[0], latency_ms=rows[0].ci_high_ms), *rows[1:9]]).save(third)
    save_anchors(first, targets[0], {ONE: 1.0})
    save_anchors(second, targets[1], {TWO: 2.0})

    def merge(*words: str) -> tuple[dict[str, float], dict[str, float]]:
        result = CliRunner().invoke(table_group, ["merge", *words, "-o", merged])
        assert result.exit_code == 0, result.output
        return load_anchors(merged, targets[0]), load_anchors(merged, targets[1])

    assert merge(first, second) == ({ONE: 1.0}, {TWO: 2.0})
    # Rows that were taken at two times have no speed of the device in common.
    assert merge(merged, third, "--prefer", "last") == ({}, {TWO: 2.0})
    assert merge(third) == ({}, {})
    assert not anchors_path(merged).exists()
