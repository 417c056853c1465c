"""Writing files in one step."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from hurricane.ops import atomic
from hurricane.ops.atomic import remove_partials, replacing, write_atomically
from hurricane.ops.errors import BadRequest, HurricaneError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ops", "agents", "lookup_tables", "profiler", "search")


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_file_has_the_old_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, write)
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_while_writing_leaves_the_old_file_alone(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    expected = HurricaneError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{path} cannot be written: No space left on device; what was there is untouched"
        )
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_new_files_have_the_permissions_of_the_umask_and_old_ones_keep_theirs(
    tmp_path: Path, umask: int
) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o604)
    write_atomically(path, b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_folder_is_made_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "b" / "c" / "a"
    with pytest.raises(BadRequest, match=r"the folder .*b/c does not exist"):
        write_atomically(path, b"1")
    write_atomically(path, b"1", make_folder=True)
    assert path.read_bytes() == b"1"


def test_content_and_name_are_on_the_disk_before_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        assert Path(source).read_bytes() == b"1"
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", synced)
    monkeypatch.setattr(atomic.os, "replace", replaced)
    write_atomically(tmp_path / "a", b"1")
    assert done == ["file", "replace", "folder"]


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path, meet = tmp_path / "a", threading.Barrier(2)

    def write(letter: bytes) -> None:
        with replacing(path, durable=False) as file:
            file.write(letter * 1000)
            meet.wait()
            file.write(letter * 1000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 2000, b"b" * 2000)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.process
def test_what_a_kill_leaves_can_be_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom hurricane.ops.atomic import write_atomically\n"
        "write_atomically(sys.argv[1], lambda file: os.kill(os.getpid(), 9))\n"
    )
    path, other = tmp_path / "a.pt", tmp_path / ".b.pt.0.partial"
    path.write_bytes(b"old")
    other.write_bytes(b"of another file")
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 3
    remove_partials(path)
    assert sorted(os.listdir(tmp_path)) == [".b.pt.0.partial", "a.pt"]


def test_files_are_replaced_in_one_place() -> None:
    """The store of an agent apart, which checks what it takes in while it comes."""
    found = [
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if any(word in file.read_text("utf-8") for word in ("os.replace", "mkstemp", "os.umask"))
    ]
    assert found == ["ops/atomic.py", "agents/store.py"]
