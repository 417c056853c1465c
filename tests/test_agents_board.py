"""What the agent keeps and reads on its board: the artefact store, the backends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hurricane.agents.backends import backend_names, load_backend
from hurricane.agents.backends.base import (
    TensorInfo,
    check_inputs,
    choice_of,
    one_line,
    random_inputs,
    time_calls,
)
from hurricane.agents.errors import BadRequest, Busy, Internal
from hurricane.agents.machine import read_device
from hurricane.agents.store import WORKER_PREFIX, Store


def add(store: Store, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    with store.incoming(digest, len(content)) as incoming:
        incoming.write(content)
        incoming.finish()
    return digest


def test_the_store_makes_room_by_dropping_what_was_used_least_recently(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100, max_bytes=250)
    first, second = add(store, b"a" * 100), add(store, b"b" * 100)
    for age, digest in enumerate((second, first)):
        os.utime(tmp_path / digest, ns=(age, age))
    assert store.missing([second]) == []  # counts as used
    third = add(store, b"c" * 100)
    assert store.missing([first, second, third]) == [first]


def test_the_store_never_drops_what_a_request_needs(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100, max_bytes=250)
    held = [add(store, b"a" * 100), add(store, b"b" * 100)]
    with store.pinned(held) as paths:
        assert [path.read_bytes()[:1] for path in paths] == [b"a", b"b"]
        with pytest.raises(Busy, match="full"):
            add(store, b"c" * 100)
        assert store.missing(held) == []
    add(store, b"c" * 100)
    with pytest.raises(BadRequest, match="1 of 2"), store.pinned(held):
        pass


def test_a_broken_upload_leaves_no_file(tmp_path: Path) -> None:
    store = Store(tmp_path, max_artifact_bytes=100)
    before = sorted(tmp_path.iterdir())

    def break_off() -> None:
        with store.incoming("0" * 64, 20) as incoming:
            incoming.write(b"a" * 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.process
def test_temporary_stores_go_with_their_agent_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from hurricane.agents.store import WORKER_PREFIX, Store\n"
        "store = Store(None, 100)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (left_over,) = tmp_path.iterdir()
    living = Store(None, 100)
    assert not left_over.exists()
    other = Store(None, 100)
    assert len(list(tmp_path.iterdir())) == 2
    living.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_marked_before_another_agent_can_take_it_for_a_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    real = fcntl.flock

    def while_another_starts(file, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        Store(tmp_path / "other", 100).close()
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", while_another_starts)
    with contextlib.closing(Store(None, 100)) as store:
        assert store.missing([add(store, b"content")]) == []


def test_a_store_counts_its_files_only_when_it_may_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Store(tmp_path, max_artifact_bytes=100)) as earlier:
        add(earlier, b"there already")
    store = Store(tmp_path, max_artifact_bytes=100, max_bytes=100)
    counted: list[Path] = []
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: counted.append(path) or real(path))
    add(store, b"1" * 30)
    assert len(counted) == 1
    add(store, b"2" * 30)
    assert len(counted) == 1
    last = add(store, b"3" * 90)  # there is room for it alone
    assert len(counted) == 2
    assert {path.name for path in tmp_path.glob("*")} == {".lock", last}
    store.close()


@pytest.mark.process
def test_folders_of_workers_that_were_killed_go_with_the_next_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left_over, living = (tmp_path / f"{WORKER_PREFIX}{n}-x" for n in (gone.pid, os.getpid()))
    left_over.mkdir()
    living.mkdir()
    Store(tmp_path / "kept", 100).close()
    assert not left_over.exists()
    assert living.exists()


def test_one_agent_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path, 100)
    with pytest.raises(BadRequest, match="in use"):
        Store(tmp_path, 100)
    store.close()
    Store(tmp_path, 100).close()


def test_the_device_has_a_model_even_without_a_name() -> None:
    assert read_device().name == read_device().model != ""
    assert read_device("my board").name == "my board"


def test_inputs_for_timing_are_fixed_and_neither_zero_nor_denormal() -> None:
    tensors = [TensorInfo("x", "float32", (3, 100)), TensorInfo("i", "uint8", (100,))]
    first, again = random_inputs(tensors), random_inputs(tensors)
    assert np.array_equal(first["x"], again["x"])
    assert (first["x"].dtype, first["i"].dtype) == (np.float32, np.uint8)
    assert first["x"].min() >= 0.1
    assert first["x"].max() < 1.0
    assert len(np.unique(first["x"])) > 200
    check_inputs(tensors, first)


def test_every_call_is_made_and_timed() -> None:
    calls: list[int] = []
    samples = time_calls(lambda: calls.append(1), 5)
    assert len(calls) == len(samples) == 5
    assert all(sample.wall_ms > 0 and sample.device_ms is None for sample in samples)


def test_openvino_is_timed_by_the_clock_of_its_own_request() -> None:
    from hurricane.agents.backends._openvino import OpenvinoGraph

    took_ms = iter([1.5, 1.25])

    def infer(**options: bool) -> None:
        assert options["share_outputs"]
        request.latency = next(took_ms)

    request = SimpleNamespace(infer=infer, latency=9.0)
    graph = OpenvinoGraph.__new__(OpenvinoGraph)
    graph._counters = False
    graph._request = request
    assert [sample.wall_ms for sample in graph.timed_calls(2)] == [1.5, 1.25]


def test_an_option_has_its_first_value_by_default() -> None:
    assert choice_of({}, "mode", ("fast", "slow")) == "fast"
    assert choice_of({"mode": "slow"}, "mode", ("fast", "slow")) == "slow"
    with pytest.raises(BadRequest, match="'mode' is one of fast, slow"):
        choice_of({"mode": "odd"}, "mode", ("fast", "slow"))


def test_a_runtimes_message_becomes_one_short_line() -> None:
    assert one_line(" a\n  b\tc ") == "a b c"
    assert len(one_line("x" * 1000)) == 400


def test_operators_may_bring_backends_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = backend_names()
    assert "hurricane.agents.backends.onnxruntime_cpu" in ours
    assert not any(name.endswith(("base", "__init__")) for name in ours)
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("def targets(context): return []\ndef open_target(*_): ...\n")
    other.write_text("def targets(context): return []\n")
    monkeypatch.setenv("HURRICANE_BACKENDS", f"{mine}:{other}")
    assert backend_names() == [*ours, str(mine), str(other)]
    assert load_backend(str(mine)).targets(None) == []
    with pytest.raises(Internal, match="open_target"):
        load_backend(str(other))
    with pytest.raises(Internal, match="cannot be imported"):
        load_backend(str(tmp_path / "absent.py"))


def test_installed_packages_may_bring_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "operator_runtime-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: operator-runtime\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[hurricane.backends]\nmine = operator_runtime\n")
    (tmp_path / "operator_runtime.py").write_text(
        "def targets(context): return []\ndef open_target(*_): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "operator_runtime" in backend_names()
    assert load_backend("operator_runtime").targets(None) == []
