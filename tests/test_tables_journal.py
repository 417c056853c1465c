"""The journal: a killed run loses nothing that was recorded, and never reads a half row."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hurricane.lookup_tables import Journal, LookupTable, Row, TableError, Target
from hurricane.lookup_tables import journal as journal_module
from hurricane.lookup_tables.journal import journal_path, read_journal
from hurricane.ops.errors import BadRequest, HurricaneError
from hurricane.ops.shapes import LayerShape

CPU = Target("bench", "cpu", "onnxruntime", "1.20.0")
OTHER = dataclasses.replace(CPU, runtime="openvino", options="streams=1")


def row(width: int, target: Target = CPU, **values) -> Row:
    values = {"status": "ok", "latency_ms": width / 7, "estimator": "slope", **values}
    return Row.of(target, "SEP_3", LayerShape(8, width, 4, 4, 1), **values)


def test_a_run_without_a_journal_has_nothing_recorded(tmp_path):
    assert read_journal(tmp_path / "t.csv").rows == ()
    assert LookupTable.load_with_journal(tmp_path / "t.csv") == LookupTable()


def test_recorded_rows_are_there_for_the_next_run(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append([row(1), row(2)])
        journal.append([row(3)])
    assert not path.exists()
    assert LookupTable.load_with_journal(path) == LookupTable([row(1), row(2), row(3)])
    with Journal.open(path, CPU) as journal:
        assert journal.rows == (row(1), row(2), row(3))


def test_finishing_merges_into_the_table_and_removes_the_journal(tmp_path):
    path = tmp_path / "t.csv"
    LookupTable([row(1), row(9, OTHER)]).save(path)
    with Journal.open(path, CPU) as journal:
        journal.append([row(2), row(1, latency_ms=5.0)])
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
        other.append([row(1)])
    assert read_journal(path).rows == (row(1),)


def test_killed_between_saving_and_removing_the_next_run_ends_with_the_same_table(
    tmp_path, monkeypatch
):
    def killed(_):
        raise KeyboardInterrupt

    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append([row(1), row(2)])
        with monkeypatch.context() as patch:
            patch.setattr(journal_module.os, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.finish()
    assert journal_path(path).exists()
    with Journal.open(path, CPU) as journal:
        assert journal.finish() == LookupTable([row(1), row(2)])


@pytest.mark.parametrize("there", [True, False])
def test_killed_at_any_step_of_finishing_no_row_is_lost(tmp_path, monkeypatch, there):
    """At each call that changes the disk, before it is done: the rows are in table or journal."""
    path, count = tmp_path / "t.csv", 0
    expected = LookupTable([row(1, latency_ms=5.0), row(2), *([row(9, OTHER)] if there else [])])

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

    steps = 0
    while True:
        for file in tmp_path.iterdir():
            file.unlink()
        if there:
            LookupTable([row(1), row(9, OTHER)]).save(path)
        with Journal.open(path, CPU) as journal:
            journal.append([row(2), row(1, latency_ms=5.0)])
            with monkeypatch.context() as patch:
                count = steps
                for name in ("replace", "unlink", "fsync", "ftruncate", "fchmod", "write"):
                    patch.setattr(os, name, counted(getattr(os, name)))
                try:
                    journal.finish()
                    break
                except Killed:
                    pass
        assert LookupTable.load_with_journal(path) == expected, steps
        with Journal.open(path, CPU) as journal:
            assert journal.finish() == LookupTable.load(path) == expected
        steps += 1
    assert steps >= 5
    assert LookupTable.load(path) == expected


def test_cut_off_at_any_byte_a_journal_yields_its_first_rows_and_can_go_on(tmp_path):
    rows = [row(1), row(2, status="failed", latency_ms=None, estimator=""), row(3)]
    whole_path = tmp_path / "whole.csv"
    with Journal.open(whole_path, CPU) as journal:
        journal.append(rows)
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
            journal.append(rows[len(kept) :])
        assert journal_path(path).read_bytes() == content
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2, 3}


def test_zeros_left_by_a_power_cut_are_dropped(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append([row(1)])
    with journal_path(path).open("ab") as file:
        file.write(b"\0" * 100)
    with Journal.open(path, CPU) as journal:
        assert journal.rows == (row(1),)


def test_a_process_killed_while_appending_loses_no_row_it_had_recorded(tmp_path):
    path = tmp_path / "t.csv"
    code = f"""
from hurricane.lookup_tables import Journal, Row, Target
from hurricane.ops.shapes import LayerShape
target = Target("bench", "cpu", "onnxruntime", "1.20.0")
with Journal.open({str(path)!r}, target) as journal:
    for width in range(1, 100_000):
        shape = LayerShape(8, width, 4, 4, 1)
        journal.append([Row.of(target, "SEP_3", shape, status="ok", latency_ms=width / 7,
                               estimator="slope")])
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
        journal.append([row(1)])
    with pytest.raises(BadRequest) as caught:
        Journal.open(path, OTHER)
    assert "runtime 'onnxruntime', not 'openvino'" in str(caught.value)
    assert "options '', not 'streams=1'" in str(caught.value)
    assert read_journal(path).rows == (row(1),)


def test_a_row_of_another_target_is_not_taken(tmp_path):
    with Journal.open(tmp_path / "t.csv", CPU) as journal:
        with pytest.raises(ValueError, match="openvino"):
            journal.append([row(1), row(1, OTHER)])
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
                target=lambda start=start: [journal.append([row(start + i)]) for i in range(10)]
            )
            for start in (1, 101, 201, 301)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(LookupTable.load_with_journal(path)) == 40


def test_a_full_disk_takes_nothing_of_what_was_recorded(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append([row(1)])
        write = os.write

        def half_then_full(descriptor: int, data: memoryview) -> int:
            if len(data) < 60:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[:50])

        with monkeypatch.context() as patch:
            patch.setattr(journal_module.os, "write", half_then_full)
            with pytest.raises(HurricaneError, match="No space left on device; the 1 rows"):
                journal.append([row(2)])
        assert read_journal(path).rows == (row(1),)
        journal.append([row(3)])
    assert read_journal(path).rows == (row(1), row(3))


def test_a_whole_line_that_is_wrong_is_named_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "t.csv"
    with Journal.open(path, CPU) as journal:
        journal.append([row(1), row(2)])
    content = journal_path(path).read_bytes()
    broken = content.replace(row(1).to_line().encode(), b"bench,cpu\n")
    journal_path(path).write_bytes(broken)
    with pytest.raises(TableError, match=r"t\.csv\.journal:2: has 2 cells"):
        Journal.open(path, CPU)
    foreign = content.replace(row(1).to_line().encode(), row(1, OTHER).to_line().encode())
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
