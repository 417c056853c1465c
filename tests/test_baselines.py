"""What lies beside a table for each of its targets: baselines, and what calls take beyond them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.cli import table_group
from hurricane.lookup_tables.shipped import open_table
from hurricane.lookup_tables.sidecar import Sidecar
from hurricane.lookup_tables.spread import SPREADS, NetworkTimes, Spread, joined
from hurricane.lookup_tables.table import LookupTable, Target
from hurricane.ops.errors import BadRequest

TARGET = Target("board", "cpu", "onnxruntime", "1.32.0", threads=2)
OTHER = replace(TARGET, threads=1)
ONE, TWO = "1" * 64, "2" * 64
NETWORK = NetworkTimes("digits32", ("SEP_3", "Choice_3"), 2.0, 2.2, 2.6, 60)
SPREAD = Spread((NETWORK,), 1.05, 1.25, 0.01, 0.02, 0.03)
SIDECARS: dict[str, tuple[Sidecar[Any], Any, Any]] = {
    "baselines": (BASELINES, {TWO: 0.1 + 0.2, ONE: 1e-7}, {ONE: 3.0}),
    "spread": (SPREADS, SPREAD, Spread()),
}


@pytest.fixture(params=SIDECARS)
def kind(request: pytest.FixtureRequest) -> tuple[Sidecar[Any], Any, Any]:
    """A kind of file with two values that differ."""
    return SIDECARS[request.param]


def test_a_value_comes_back_as_it_was_kept(tmp_path: Path, kind):
    sidecar, value, _ = kind
    table = tmp_path / "t.csv"
    assert sidecar.load(table) == {}
    path = sidecar.save(table, TARGET, value)
    assert path == sidecar.path(table) == tmp_path / f"t.csv{sidecar.layout.suffix}"
    assert sidecar.load(str(table)) == {TARGET: value}
    assert list(tmp_path.iterdir()) == [path]


def test_the_files_are_named_after_what_they_hold():
    assert BASELINES.path("a/t.csv") == Path("a/t.csv.baselines.json")
    assert SPREADS.path("a/t.csv") == Path("a/t.csv.spread.json")


def test_each_target_of_a_table_has_its_own(tmp_path: Path, kind):
    sidecar, first, second = kind
    table = tmp_path / "t.csv"
    sidecar.save(table, TARGET, first)
    sidecar.save(table, OTHER, first)
    sidecar.save(table, TARGET, second)
    assert sidecar.load(table) == {TARGET: second, OTHER: first}


def test_the_same_values_are_the_same_bytes_in_whatever_order_they_come(tmp_path: Path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    for target in (TARGET, OTHER):
        BASELINES.save(first, target, {ONE: 1.0, TWO: 2.0})
    for target in (OTHER, TARGET):
        BASELINES.save(second, target, {TWO: 2.0, ONE: 1.0})
    assert BASELINES.path(first).read_bytes() == BASELINES.path(second).read_bytes()


def test_no_entries_are_no_file(tmp_path: Path, kind):
    sidecar, value, _ = kind
    table = tmp_path / "t.csv"
    sidecar.save(table, TARGET, value)
    sidecar.replace(table, {})
    assert list(tmp_path.iterdir()) == []
    sidecar.replace(table, {})


names = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=8)
times = st.floats(1e-9, 1e9)
networks = st.builds(
    NetworkTimes,
    names,
    st.lists(names, max_size=4).map(tuple),
    times,
    times,
    times,
    st.integers(1, 1_000_000),
)
spreads = st.builds(
    Spread, st.lists(networks, max_size=3).map(tuple), st.none() | times, st.none() | times
)
targets = st.builds(
    Target,
    names,
    st.sampled_from(["cpu", "npu"]),
    st.just("onnxruntime"),
    names,
    threads=st.integers(1, 8),
)


@given(st.dictionaries(targets, spreads, max_size=3))
def test_any_spread_comes_back(tmp_path_factory: pytest.TempPathFactory, entries):
    table = tmp_path_factory.mktemp("spread") / "t.csv"
    SPREADS.replace(table, entries)
    assert SPREADS.load(table) == entries


@given(st.dictionaries(targets, st.dictionaries(names, times, max_size=5), max_size=3))
def test_any_baselines_come_back(tmp_path_factory: pytest.TempPathFactory, entries):
    table = tmp_path_factory.mktemp("baselines") / "t.csv"
    BASELINES.replace(table, entries)
    assert BASELINES.load(table) == entries


# Broken files


def baselines(**changes: object) -> dict[str, object]:
    target = {"device": "d", "processor": "cpu", "runtime": "r"}
    entry = {"target": target, "graphs_ms": {ONE: 2}, **changes}
    return {"format": 2, "baselines": [{k: v for k, v in entry.items() if v is not None}]}


def spread(**changes: object) -> dict[str, object]:
    network = {**asdict(NETWORK), **changes}
    network = {key: value for key, value in network.items() if value is not None}
    entry = {"target": asdict(TARGET), "spread": {**asdict(SPREAD), "networks": [network]}}
    return {"format": 1, "spreads": [entry]}


def of_operators(**changes: object) -> dict[str, object]:
    entry = {"target": asdict(TARGET), "spread": {**asdict(SPREAD), **changes}}
    return {"format": 1, "spreads": [entry]}


BAD_NUMBERS = (0, -1.0, math.nan, math.inf, 1e300, 1e-300, True, "fast", [1.0], {})
BROKEN: list[tuple[Sidecar[Any], object]] = [
    *(
        (sidecar, content)
        for sidecar in (BASELINES, SPREADS)
        for content in (b"", b"{", b"\xff\xfe", b"[]", b"3", {"format": 99}, {})
    ),
    (BASELINES, {"format": 1, "anchors": []}),
    (BASELINES, {"format": 2}),
    (BASELINES, {"format": 2, "baselines": 3}),
    (BASELINES, {"format": 2, "baselines": [3]}),
    (BASELINES, baselines(target={"device": "d"})),
    (BASELINES, baselines(target={"colour": "blue"})),
    (BASELINES, baselines(target={"device": "", "processor": "cpu", "runtime": "r"})),
    (BASELINES, baselines(target=3)),
    (BASELINES, baselines(graphs_ms=None)),
    (BASELINES, baselines(graphs_ms=[1.0])),
    *((BASELINES, baselines(graphs_ms={ONE: 1.0, TWO: number})) for number in BAD_NUMBERS),
    (SPREADS, {"format": 1, "spreads": [{"target": {}}]}),
    (SPREADS, spread(quiet_ms=None)),
    (SPREADS, spread(operators="SEP_3")),
    (SPREADS, spread(operators=[1])),
    (SPREADS, spread(backbone=3)),
    (SPREADS, spread(calls=2.5)),
    (SPREADS, of_operators(networks=None)),
    (SPREADS, of_operators(networks={"a": 1})),
    *((SPREADS, spread(median_ms=number)) for number in BAD_NUMBERS),
    *((SPREADS, spread(calls=number)) for number in BAD_NUMBERS),
    *((SPREADS, of_operators(operator_p90=number)) for number in BAD_NUMBERS),
]


@pytest.mark.parametrize(("sidecar", "content"), BROKEN)
def test_a_broken_file_is_named_with_what_to_do_and_stays(
    tmp_path: Path, sidecar: Sidecar[Any], content: object
):
    path = sidecar.path(tmp_path / "t.csv")
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    with pytest.raises(BadRequest) as told:
        sidecar.load(tmp_path / "t.csv")
    words = str(told.value)
    assert str(path) in words
    assert words.endswith(f"; delete it, nothing but {sidecar.lost} is lost")
    assert len(words.splitlines()) <= 2
    value = {ONE: 1.0} if sidecar is BASELINES else SPREAD
    with pytest.raises(BadRequest):
        sidecar.save(tmp_path / "t.csv", TARGET, value)
    assert path.read_bytes() == data


def test_what_a_broken_file_lacks_is_told(tmp_path: Path):
    BASELINES.path(tmp_path / "t.csv").write_text(json.dumps({"format": 2}))
    with pytest.raises(BadRequest, match=r"is not a file of baselines \(it lacks 'baselines'\)"):
        BASELINES.load(tmp_path / "t.csv")


def test_the_smallest_files_of_the_formats_are_read(tmp_path: Path):
    table, target = tmp_path / "t.csv", Target("d", "cpu", "r")
    BASELINES.path(table).write_text(json.dumps(baselines()))
    assert BASELINES.load(table) == {target: {ONE: 2.0}}
    nothing = {"networks": [], "operator_median": None, "operator_p90": None, "drift": 0.0}
    SPREADS.path(table).write_text(json.dumps(of_operators(**nothing)))
    assert SPREADS.load(table) == {TARGET: Spread(median_change=0.02, p90_change=0.03)}


# Files of earlier versions


def anchors_of(table: Path, **graphs_ms: float) -> Path:
    path = table.with_name(f"{table.name}.anchors.json")
    entry = {"target": asdict(TARGET), "anchors_ms": graphs_ms}
    path.write_text(json.dumps({"format": 1, "anchors": [entry]}))
    return path


def test_baselines_of_an_earlier_version_are_read_and_stay_until_something_is_written(tmp_path):
    table = tmp_path / "t.csv"
    earlier = anchors_of(table, a=1.5, b=2.5)
    assert BASELINES.load(table) == {TARGET: {"a": 1.5, "b": 2.5}}
    assert list(tmp_path.iterdir()) == [earlier]
    BASELINES.save(table, OTHER, {ONE: 3.0})
    assert list(tmp_path.iterdir()) == [BASELINES.path(table)]
    assert BASELINES.load(table) == {TARGET: {"a": 1.5, "b": 2.5}, OTHER: {ONE: 3.0}}


def test_a_file_of_this_version_comes_first(tmp_path: Path):
    table = tmp_path / "t.csv"
    BASELINES.save(table, TARGET, {ONE: 3.0})
    anchors_of(table, a=1.5)
    assert BASELINES.load(table) == {TARGET: {ONE: 3.0}}


def test_a_broken_file_of_an_earlier_version_is_named(tmp_path: Path):
    earlier = anchors_of(tmp_path / "t.csv", a=-1.5)
    with pytest.raises(BadRequest, match=r"t\.csv\.anchors\.json .*delete it, nothing but"):
        BASELINES.load(tmp_path / "t.csv")
    assert earlier.exists()


# Merging tables


def test_a_merge_keeps_what_lies_beside_targets_that_come_whole_from_one_table(
    tmp_path: Path, kind
):
    sidecar, one, two = kind
    first, second, third, merged = (str(tmp_path / f"{n}.csv") for n in ("a", "b", "c", "m"))
    tables = [open_table(f"imagenet224-sim-{n}") for n in ("hexagon685-dsp", "myriadx-vpu")]
    a, b = (table.target() for table in tables)
    rows = list(tables[0].rows)
    tables[0].save(first)
    tables[1].save(second)
    LookupTable([replace(rows[0], latency_ms=rows[0].ci_high_ms), *rows[1:9]]).save(third)
    sidecar.save(first, a, one)
    sidecar.save(second, b, two)

    def merge(*words: str) -> dict[Target, Any]:
        result = CliRunner().invoke(table_group, ["merge", *words, "-o", merged])
        assert result.exit_code == 0, result.output
        return sidecar.load(merged)

    assert merge(first, second) == {a: one, b: two}
    # Rows that were taken at two times have no speed of the device in common.
    assert merge(merged, third, "--prefer", "last") == {b: two}
    assert merge(third) == {}
    assert not sidecar.path(merged).exists()


def test_a_merge_takes_the_baselines_of_an_earlier_version_along(tmp_path: Path):
    table = tmp_path / "t.csv"
    rows = [replace(row, **asdict(TARGET)) for row in open_table("imagenet224-sim-myriadx-vpu")]
    LookupTable(rows).save(table)
    anchors_of(table, a=1.5)
    result = CliRunner().invoke(table_group, ["merge", str(table), "-o", str(tmp_path / "m.csv")])
    assert result.exit_code == 0, result.output
    assert BASELINES.load(tmp_path / "m.csv") == {TARGET: {"a": 1.5}}


# What a spread says


def test_ratios_are_of_calls_over_the_quiet_time():
    slower = replace(NETWORK, quiet_ms=1.0, median_ms=1.5, p90_ms=2.0)
    both = Spread((NETWORK, slower))
    assert NETWORK.ratio("median") == pytest.approx(1.1)
    assert both.ratio("median") == pytest.approx((1.1 + 1.5) / 2)
    assert both.ratio("p90") == pytest.approx((1.3 + 2.0) / 2)
    assert both.ratio("quiet") == Spread().ratio("quiet") == 1.0
    assert Spread().ratio("median") is None
    assert both.scatter("median") == pytest.approx(math.log(1.5 / 1.1) / math.sqrt(2))
    assert Spread((NETWORK,)).scatter("median") == both.scatter("quiet") == 0.0


def test_the_spread_of_several_is_all_networks_and_the_middle_of_the_operators():
    parts = [SPREAD, Spread((replace(NETWORK, quiet_ms=1.0),), 1.15, None), Spread((), 1.4, 1.5)]
    found = joined(parts)
    assert [n.quiet_ms for n in found.networks] == [2.0, 1.0]
    assert (found.operator_median, found.operator_p90) == (1.15, (1.25 + 1.5) / 2)
    assert [found.change(name) for name in ("median", "p90", "quiet")] == [0.02, 0.03, 0.0]
    assert joined([]) == Spread()
