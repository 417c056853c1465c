"""The journal: a killed run loses nothing that was recorded, and never reads a half row."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hurricane.lookup_tables import Journal, LookupTable, Row, TableError, Target
from hurricane.lookup_tables import journal as journal_module
from hurricane.lookup_tables.baselines import BASELINES
from hurricane.lookup_tables.journal import _to_json as to_json
from hurricane.lookup_tables.journal import journal_path, load_with_journal, read_journal
from hurricane.lookup_tables.raw import DeviceRun, LoopTimes, RawData, RawRow, Reference
from hurricane.lookup_tables.spread import SPREADS, NetworkTimes, Spread, spread_to_json
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.shapes import LayerShape

CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
OTHER = dataclasses.replace(CPU, runtime="openvino", options="streams=1")


def row(width: int, target: Target = CPU, **values) -> Row:
    values = {"status": "ok", "latency_ms": width / 7, "estimator": "slope", **values}
    return Row.of(target, "SEP_3", LayerShape(8, width, 4, 4, 1), **values)


def raws(*rows: Row) -> list[RawRow]:
    """Rows as they shall be: of no run."""
    return [RawRow(row) for row in rows]


ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
SPREAD = Spread((NetworkTimes("digits32", ("SEP_3", "SEP_5"), 2.0, 2.2, 2.5, 60),), 1.04, 1.15)
ENTRIES = [
    Reference("reference", {ONE: 0.9, TWO: 2.1}),
    DeviceRun(1, "board:1", 1.0, None, {ONE: 1.0, TWO: 2.0}),
    RawRow(row(1), 1, 1.01, {THREE: 3.0}),
    RawRow(row(2), 1, 1.5),
    RawRow(row(4, status="failed", latency_ms=None, estimator="", flags="internal"), 1),
    LoopTimes("SEP_3", row(1).shape, 0.5, 0.4, 0.3, 0.45, 0.2),
    LoopTimes("SEP_3", row(2).shape, 0.5, 0.4, 0.3, 0.45),
    DeviceRun(1, "board:1", 1.02, 1.2, {ONE: 1.01, TWO: 2.02}, SPREAD),
    RawRow(row(3), 2),
    DeviceRun(2, "board:2", 0.98, 1.3, {TWO: 1.0}),
]
"""Every kind of entry, as a run writes them down."""


def test_a_run_without_a_journal_has_nothing_recorded(tmp_path):
    assert read_journal(tmp_path / "t.csv").rows == ()
    assert load_with_journal(tmp_path / "t.csv") == LookupTable()


def test_recorded_rows_are_there_for_the_next_run(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1), row(2)))
        journal.append(raws(row(3)))
    assert not path.exists()
    assert load_with_journal(path) == LookupTable([row(1), row(2), row(3)])
    with Journal.open(path, CPU) as journal:
        assert journal.rows == (row(1), row(2), row(3))


def test_finishing_merges_into_the_table_and_removes_the_journal(tmp_path):
    path = tmp_path / "t.csv"
    LookupTable([row(1), row(9, OTHER)]).save(path)
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(2), row(1, latency_ms=5.0)))
        finished = journal.finish()
    expected = LookupTable([row(1, latency_ms=5.0), row(2), row(9, OTHER)])
    assert finished == LookupTable.load(path) == expected
    assert finished.path == path
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_run_that_measured_nothing_leaves_the_table_untouched(tmp_path):
    path = tmp_path / "t.csv"
    LookupTable([row(1)]).save(path)
    before = path.stat()
    with Journal.open(path, CPU) as journal:
        journal.finish()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_run_that_ends_leaves_alone_the_journal_of_one_that_begins(tmp_path, monkeypatch):
    path, others = tmp_path / "t.csv", []

    def begin_another(_):
        monkeypatch.undo()
        others.append(Journal.open(path, CPU))

    with Journal.open(path, CPU) as journal:
        monkeypatch.setattr(journal_module, "sync_folder", begin_another)
        journal.finish()
    with others[0] as other:
        other.append(raws(row(1)))
    assert read_journal(path).rows == (row(1),)


def test_killed_between_saving_and_removing_the_next_run_ends_with_the_same_table(
    tmp_path, monkeypatch
):
    def killed(_):
        raise KeyboardInterrupt

    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1), row(2)))
        with monkeypatch.context() as patch:
            patch.setattr(journal_module.os, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.finish()
    assert journal_path(path).exists()
    with Journal.open(path, CPU) as journal:
        assert journal.finish() == LookupTable([row(1), row(2)])


def state(path: Path) -> tuple[LookupTable, dict, dict]:
    """The table on the disk with what lies beside it."""
    return LookupTable.load(path), BASELINES.load(path), SPREADS.load(path)


@pytest.mark.parametrize("there", [True, False])
def test_killed_at_any_step_of_finishing_nothing_is_lost(tmp_path, monkeypatch, there):
    """At each call that changes the disk, before it is done: entries are in table or journal."""
    count = 0

    class Killed(BaseException):
        pass

    def counted(call):
        def instead(*args, **options):
            nonlocal count
            count -= 1
            if count < 0:
                raise Killed
            return call(*args, **options)

        return instead

    def begun(folder: Path) -> Path:
        folder.mkdir()
        path = folder / "t.csv"
        if there:
            LookupTable([row(1), row(9), row(9, OTHER)]).save(path)
            BASELINES.replace(path, {CPU: {"f" * 64: 7.0}, OTHER: {ONE: 8.0}})
            SPREADS.save(path, OTHER, Spread((), 1.1, 1.2))
        return path

    path = begun(tmp_path / "undisturbed")
    with Journal.open(path, CPU) as journal:
        journal.append(ENTRIES)
        journal.finish()
    expected, steps = state(path), 0
    while True:
        path = begun(tmp_path / str(steps))
        with Journal.open(path, CPU) as journal:
            journal.append(ENTRIES)
            with monkeypatch.context() as patch:
                count = steps
                for name in ("replace", "unlink", "fsync", "ftruncate", "fchmod", "write"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                try:
                    journal.finish()
                    break
                except Killed:
                    pass
        assert load_with_journal(path) == expected[0], steps
        with Journal.open(path, CPU) as journal:
            assert journal.finish() == expected[0]
        assert state(path) == expected, steps
        steps += 1
    assert steps >= 12
    assert state(path) == expected
    assert set(expected[1][CPU]) == {ONE, TWO, THREE} | ({"f" * 64} if there else set())
    assert set(expected[2]) == {CPU} | ({OTHER} if there else set())


@pytest.mark.parametrize("suffix", [".baselines.json", ".spread.json"])
def test_a_broken_file_beside_the_table_shows_before_anything_is_measured(tmp_path, suffix):
    path = tmp_path / "t.csv"
    LookupTable([row(1)]).save(path)
    path.with_name(path.name + suffix).write_text("{")
    with pytest.raises(BadRequest, match=suffix):
        Journal.open(path, CPU)
    assert not journal_path(path).exists()


def test_every_kind_of_entry_comes_back_as_it_was(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        for entry in ENTRIES:
            journal.append([entry])
        data = journal.data
    assert read_journal(path).data == data == RawData().with_entries(ENTRIES)


@pytest.mark.process
def test_cut_off_at_any_byte_a_journal_of_every_kind_of_entry_yields_its_first_ones(tmp_path):
    whole, path = tmp_path / "whole.csv", tmp_path / "t.csv"
    with Journal.open(whole, CPU) as journal:
        journal.append(ENTRIES)
    content = journal_path(whole).read_bytes()
    ends = [at for at, byte in enumerate(content, start=1) if byte == ord("\n")]
    assert len(ends) == 1 + len(ENTRIES)
    for length in range(len(content) + 1):
        journal_path(path).write_bytes(content[:length])
        kept = max(0, sum(end <= length for end in ends) - 1)
        assert read_journal(path).data == RawData().with_entries(ENTRIES[:kept])
    for end in ends[:-1]:
        for length in (end, end + 1, end + 40):
            journal_path(path).write_bytes(content[:length])
            kept = sum(other <= length for other in ends) - 1
            with Journal.open(path, CPU) as journal:
                journal.append(ENTRIES[kept:])
            assert journal_path(path).read_bytes() == content


def test_cut_off_at_any_byte_a_journal_yields_its_first_rows_and_can_go_on(tmp_path):
    rows = [row(1), row(2, status="failed", latency_ms=None, estimator=""), row(3)]
    whole_path = tmp_path / "whole.csv"
    with Journal.open(whole_path, CPU) as journal:
        journal.append(raws(*rows))
    content = journal_path(whole_path).read_bytes()
    path = tmp_path / "t.csv"
    seen = []
    for length in range(len(content) + 1):
        journal_path(path).write_bytes(content[:length])
        kept = read_journal(path).rows
        assert kept == tuple(rows[: len(kept)])
        seen.append(len(kept))
        with Journal.open(path, CPU) as journal:
            assert journal.rows == kept
            journal.append(raws(*rows[len(kept) :]))
        assert journal_path(path).read_bytes() == content
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


def test_zeros_left_by_a_power_cut_are_dropped(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1)))
    with journal_path(path).open("ab") as file:
        file.write(b"\0" * 100)
    with Journal.open(path, CPU) as journal:
        assert journal.rows == (row(1),)


@pytest.mark.process
def test_a_process_killed_while_appending_loses_no_row_it_had_recorded(tmp_path):
    path = tmp_path / "t.csv"
    code = f"""
from hurricane.lookup_tables import Journal, Row, Target
from hurricane.lookup_tables.raw import RawRow
from hurricane.ops.shapes import LayerShape
target = Target("bench", "cpu", "onnxruntime", "1.20.0")
with Journal.open({str(path)!r}, target) as journal:
    for width in range(1, 100_000):
        shape = LayerShape(8, width, 4, 4, 1)
        row = Row.of(target, "SEP_3", shape, status="ok", latency_ms=width / 7, estimator="slope")
        journal.append([RawRow(row)])
        print(width, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            break
    child.send_signal(signal.SIGKILL)
    told = [20, *map(int, child.stdout.read().split())][-1]
    child.stdout.close()
    child.wait()
    rows = read_journal(path).rows
    assert len(rows) in (told, told + 1)
    assert rows == tuple(row(width) for width in range(1, len(rows) + 1))


def test_a_journal_of_another_target_is_refused_and_kept(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1)))
    with pytest.raises(BadRequest) as caught:
        Journal.open(path, OTHER)
    assert "runtime 'onnxruntime', not 'openvino'" in str(caught.value)
    assert "options '', not 'streams=1'" in str(caught.value)
    assert read_journal(path).rows == (row(1),)


def test_a_row_of_another_target_is_not_taken(tmp_path):
    with Journal.open(tmp_path / "t.csv", CPU) as journal:
        with pytest.raises(ValueError, match="openvino"):
            journal.append(raws(row(1), row(1, OTHER)))
        assert journal.rows == ()


def test_two_runs_cannot_write_one_journal(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        with pytest.raises(BadRequest, match="another run is writing"):
            Journal.open(path, CPU)
        journal.finish()
    Journal.open(path, CPU).close()


def test_threads_append_whole_rows(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        threads = [
            threading.Thread(
                target=lambda start=start: [journal.append(raws(row(start + i))) for i in range(10)]
            )
            for start in (1, 101, 201, 301)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(load_with_journal(path)) == 40


def test_a_full_disk_takes_nothing_of_what_was_recorded(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1)))
        write = os.write

        def half_then_full(descriptor: int, data: memoryview) -> int:
            if len(data) < 60:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:50])

        with monkeypatch.context() as patch:
            patch.setattr(journal_module.os, "write", half_then_full)
            with pytest.raises(HurricaneError, match="No space left on device; the 1 rows"):
                journal.append(raws(row(2)))
        assert read_journal(path).rows == (row(1),)
        journal.append(raws(row(3)))
    assert read_journal(path).rows == (row(1), row(3))


def test_a_whole_line_that_is_wrong_is_named_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(raws(row(1), row(2)))
    content = journal_path(path).read_bytes()
    broken = content.replace(row(1).to_line().strip().encode(), b"bench,cpu")
    journal_path(path).write_bytes(broken)
    with pytest.raises(TableError, match=r"t\.csv\.journal:2: has 2 cells"):
        Journal.open(path, CPU)
    foreign = content.replace(
        row(1).to_line().strip().encode(), row(1, OTHER).to_line().strip().encode()
    )
    journal_path(path).write_bytes(foreign)
    with pytest.raises(TableError, match=r"t\.csv\.journal:2: is a row of cpu-openvino-fp32"):
        read_journal(path)
    assert journal_path(path).read_bytes() == foreign


@pytest.mark.parametrize(
    "line",
    ["hello", "{}", "[]", '{"hurricane_journal": 99, "target": {}}', '{"hurricane_journal": 1}'],
)
def test_a_file_that_is_no_journal_is_refused_and_kept(tmp_path, line):
    path = journal_path(tmp_path / "t.csv")
    path.write_text(line + "\n")
    with pytest.raises(TableError, match=r"journal:1: is not the first line of a journal"):
        Journal.open(tmp_path / "t.csv", CPU)
    assert path.read_text() == line + "\n"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadRequest, match="does not exist"):
        Journal.open(tmp_path / "none" / "t.csv", CPU)


def entry_of(kind: type) -> dict:
    """The last entry of a kind as the journal holds it."""
    return json.loads(json.dumps(to_json([e for e in ENTRIES if isinstance(e, kind)][-1])))


def changed(kind: type, **values) -> dict:
    return {**entry_of(kind), **values}


def without(kind: type, key: str) -> dict:
    return {k: v for k, v in entry_of(kind).items() if k != key}


BAD_NUMBERS = (float("nan"), float("inf"), -1.0, 0, 1e300, 1e-300, True, "1", None, [1.0])


def of_networks(**values) -> dict:
    spread = spread_to_json(SPREAD)
    return {**spread, "networks": [{**spread["networks"][0], **values}]}


@pytest.mark.parametrize("number", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: changed(RawRow, slowdown=x),
        lambda x: changed(RawRow, graphs_ms={ONE: x}),
        lambda x: changed(LoopTimes, cold_ms=x),
        lambda x: changed(LoopTimes, warm_ms=x),
        lambda x: changed(LoopTimes, p90_ms=x),
        lambda x: changed(DeviceRun, quiet_slowdown=x),
        lambda x: changed(DeviceRun, baselines_ms={ONE: 1.0, TWO: x}),
        lambda x: changed(DeviceRun, spread=of_networks(quiet_ms=x)),
        lambda x: changed(DeviceRun, spread=of_networks(calls=x)),
        lambda x: changed(Reference, graphs_ms={ONE: x}),
    ],
    ids=[
        *("slowdown", "graph", "cold", "warm", "p90", "quiet slowdown", "baseline", "network"),
        *("calls", "reference"),
    ],
)
def test_a_number_that_is_none_or_not_positive_is_refused_with_its_line(tmp_path, change, number):
    path = tmp_path / "t.csv"
    Journal.open(path, CPU)
    line = json.dumps(change(number))
    with journal_path(path).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TableError, match=r"^\S*t\.csv\.journal:2: ") as caught:
        read_journal(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("; delete the line or the journal")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "None is no kind of entry"),
        ({"entry": "opinion"}, "'opinion' is no kind of entry"),
        ({"entry": ["row"]}, "is no kind of entry"),
        ([], "it is no object"),
        (3, "it is no object"),
        (without(RawRow, "slowdown"), "it lacks 'slowdown'"),
        (without(LoopTimes, "shape"), "it lacks 'shape'"),
        (without(DeviceRun, "spread"), "it lacks 'spread'"),
        (changed(RawRow, run="1"), "run is '1'"),
        (changed(RawRow, row=7), "row is 7"),
        (changed(LoopTimes, operator=""), "operator is ''"),
        (changed(LoopTimes, shape={"height": 1}), "missing"),
        (changed(LoopTimes, p10_ms=9.0), "p10_ms 9 exceeds p90_ms"),
        (changed(RawRow, row=row(1).to_line().strip().replace("0.142857", "nan")), "nan"),
        (changed(RawRow, row=row(1).to_line().strip().replace("0.142857", "-1")), "-1"),
        (changed(DeviceRun, baselines_ms=[1.0]), "baselines_ms is"),
        (changed(Reference, name=None), "name is None"),
    ],
)
def test_a_line_that_is_no_entry_is_told_in_one_line_and_kept(tmp_path, entry, words):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append(ENTRIES)
    content = journal_path(path).read_bytes() + (json.dumps(entry) + "\n").encode()
    journal_path(path).write_bytes(content)
    with pytest.raises(TableError, match=r"t\.csv\.journal:12: ") as caught:
        Journal.open(path, CPU)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert journal_path(path).read_bytes() == content


@pytest.mark.parametrize("earlier", [1, 2])
def test_a_journal_that_an_earlier_version_began_is_left_to_it(tmp_path, earlier):
    path = tmp_path / "t.csv"
    head = json.dumps({"hurricane_journal": earlier, "target": dataclasses.asdict(CPU)})
    content = f"{head}\n{row(1).to_line()}"
    journal_path(path).write_text(content)
    with pytest.raises(TableError, match="an earlier version began it; finish it with that") as one:
        Journal.open(path, CPU)
    assert len(str(one.value).splitlines()) == 1
    assert journal_path(path).read_text() == content


def test_what_lies_beside_a_table_is_of_the_rows_that_it_holds(tmp_path):
    """A run of some layers times no networks; those that were timed before stay, as rows do."""
    path = tmp_path / "t.csv"
    network = SPREAD.networks[0]
    runs = [
        DeviceRun(1, "board:1", 1.0, None, {ONE: 1.0}, SPREAD),
        DeviceRun(1, "board:1", 1.0, None, {TWO: 2.0}, Spread((), 1.5, 1.9)),
    ]
    for number, run in enumerate(runs, start=1):
        with Journal.open(path, CPU) as journal:
            journal.append([run, RawRow(row(number), 1)])
            journal.finish()
    assert BASELINES.load(path) == {CPU: {ONE: 1.0, TWO: 2.0}}
    assert SPREADS.load(path) == {CPU: Spread((network,), 1.5, 1.9)}
    path.unlink()  # and with it what its baselines and networks were for
    with Journal.open(path, CPU) as journal:
        journal.append([runs[1], RawRow(row(2), 1)])
        journal.finish()
    assert BASELINES.load(path) == {CPU: {TWO: 2.0}}
    assert SPREADS.load(path) == {CPU: Spread((), 1.5, 1.9)}
