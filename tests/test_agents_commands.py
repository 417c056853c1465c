"""Commands on this machine, and on a phone through the real adb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hurricane.agents import commands
from hurricane.agents.commands import AdbRunner, CommandRunner, LocalRunner
from hurricane.agents.errors import (
    BadRequest,
    BoardNotReady,
    DeviceLost,
    RuntimeCrashed,
    TimedOut,
    Unauthorised,
)

from .adb_support import adb, connecting, ends, running
from .fake_phone import FakePhone

pytestmark = pytest.mark.process

ODD_WORDS = (
    "two words",
    "it's",
    'say "hi"',
    "a;b|c&d",
    "$(touch pwned)`touch pwned`",
    "line\nbreak",
    "*",
    "",
    "-n",
    "\\",
    "ümläut",
)
ECHO = '#!/bin/sh\nfor word in "$@"; do printf \'<%s>\' "$word"; done\n'


@pytest.fixture
def phone(adb_server: None, tmp_path: Path) -> Iterator[FakePhone]:
    with FakePhone(tmp_path.resolve() / "phone") as there:
        adb("connect", there.serial)
        try:
            yield there
        finally:
            adb("disconnect", there.serial)


@pytest.fixture(params=["local", "adb", "adb without shell_v2"])
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommandRunner]:
    if request.param == "local":
        local = LocalRunner()
        yield local
        local.close()
        return
    request.getfixturevalue("adb_server")
    there = FakePhone(tmp_path.resolve() / "phone", shell_v2=request.param == "adb")
    with there:
        adb("connect", there.serial)
        try:
            over_adb = AdbRunner(there.serial)
            yield over_adb
            over_adb.close()
        finally:
            adb("disconnect", there.serial)


def install(runner: CommandRunner, script: str) -> str:
    """Brings a program to the board."""
    path = runner.put(script.encode(), ".sh")
    assert runner.run(("chmod", "755", path), 20).status == 0
    return path


def test_status_and_both_outputs_are_told(runner: CommandRunner) -> None:
    program = install(runner, "#!/bin/sh\necho out; echo error >&2; printf 'no end'; exit 7\n")
    found = runner.run((program,), 20)
    assert found.status == 7
    assert sorted(found.text.split("\n")) == ["error", "no end", "out"]


def test_words_and_variables_reach_a_program_as_they_are(
    runner: CommandRunner, tmp_path: Path
) -> None:
    program = install(runner, ECHO)
    found = runner.run((program, *ODD_WORDS), 20)
    assert found.text == "".join(f"<{word}>" for word in ODD_WORDS)
    shows = install(runner, "#!/bin/sh\nprintf '<%s>' \"$ODD\"\n")
    for word in ODD_WORDS:
        assert runner.run((shows,), 20, {"ODD": word}).text == f"<{word}>"
    assert not list(tmp_path.rglob("pwned"))
    for name in ("A;B", "A B", "", "1"):
        with pytest.raises(BadRequest, match="no name of a variable"):
            runner.run((shows,), 20, {name: "x"})
    with pytest.raises(BadRequest, match="NUL"):
        runner.run((shows, "a\0b"), 20)


def test_files_are_brought_once_and_read_back(runner: CommandRunner) -> None:
    content = os.urandom(300_000)
    path = runner.put(content, ".bin")
    assert runner.put(content, ".bin") == path
    assert runner.read(path, 400_000) == content
    with pytest.raises(BadRequest, match="more than 1000 bytes"):
        runner.read(path, 1000)
    with pytest.raises(BadRequest, match="cannot be read"):
        runner.read(path + ".none", 1000)


def test_a_program_that_is_not_there_is_the_boards_fault(runner: CommandRunner) -> None:
    with pytest.raises(BoardNotReady, match="snpe-nothing"):
        runner.run(("snpe-nothing", "--version"), 20)


def test_a_program_of_another_processor_is_the_boards_fault(runner: CommandRunner) -> None:
    program = install(runner, "\x7fELF\x02\x01\x01" + "\0" * 57)
    with pytest.raises(BoardNotReady, match=r"processor"):
        runner.run((program,), 20)


def test_a_program_that_takes_too_long_is_ended(runner: CommandRunner) -> None:
    marker = f"{time.time_ns()}"
    program = install(runner, f"#!/bin/sh\n# {marker}\nexec sleep 3{marker[-6:]}\n")
    with pytest.raises(TimedOut, match="longer than 1 s"):
        runner.run((program,), 1)
    assert ends(f"sleep 3{marker[-6:]}")
    assert runner.run((install(runner, ECHO), "on"), 20).text == "<on>"


@pytest.mark.parametrize("status", [0, 3])
def test_what_a_program_leaves_in_the_background_ends_with_it(
    runner: CommandRunner, status: int
) -> None:
    seconds = f"3{time.time_ns() % 10**6:06}"
    leaves = f"#!/bin/sh\nsleep {seconds} &\necho done\nexit {status}\n"
    assert runner.run((install(runner, leaves),), 20).text == "done\n"
    assert ends(f"sleep {seconds}")
    assert runner.run((install(runner, ECHO), "on"), 20).text == "<on>"


def test_output_without_end_is_refused(
    runner: CommandRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "MAX_OUTPUT_BYTES", 100_000)
    program = install(runner, "#!/bin/sh\nexec yes\n")
    with pytest.raises(RuntimeCrashed, match="more than 100000 bytes"):
        runner.run((program,), 20)


def test_a_program_cannot_forge_the_mark_that_ends_it(phone: FakePhone) -> None:
    runner = AdbRunner(phone.serial)
    program = install(runner, "#!/bin/sh\necho hurricane-0 end 0; exit 3\n")
    found = runner.run((program,), 20)
    assert found.status == 3
    assert found.text == "hurricane-0 end 0\n"


@pytest.mark.parametrize("mode", ["drop", "drop-after"])
@pytest.mark.parametrize("shell_v2", [True, False])
def test_a_link_that_is_lost_is_never_success(phone: FakePhone, mode: str, shell_v2: bool) -> None:
    phone.shell_v2 = shell_v2
    runner = AdbRunner(phone.serial)
    phone.mode = mode
    with pytest.raises(DeviceLost, match=r"the phone '127\.0\.0\.1:\d+' does not answer"):
        runner.run(("true",), 20)


def test_a_phone_that_hangs_is_lost(phone: FakePhone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_KILL_S", 1.0)
    runner = AdbRunner(phone.serial)
    phone.mode = "hang"
    with pytest.raises(DeviceLost, match=r"does not answer for 1 s; look at its cable"):
        runner.run(("true",), 1)


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("unauthorized", Unauthorised, "unlock it and confirm USB debugging"),
        ("offline", DeviceLost, "is offline|is not there"),
    ],
)
def test_a_phone_that_is_not_ready_is_told_with_what_to_do(
    adb_server: None, tmp_path: Path, mode: str, kind: type[Exception], words: str
) -> None:
    phone = FakePhone(tmp_path.resolve() / "phone", mode=mode)
    with phone, connecting(phone.serial), pytest.raises(kind, match=words):
        AdbRunner(phone.serial)


def test_a_phone_that_is_unplugged_and_back_goes_on_and_one_that_restarted_does_not(
    phone: FakePhone,
) -> None:
    runner = AdbRunner(phone.serial)
    phone.unplug()
    adb("disconnect", phone.serial)
    with pytest.raises(DeviceLost, match=r"is not there: see what 'adb devices' lists|is offline"):
        runner.run(("true",), 20)
    adb("connect", phone.serial)
    assert runner.run(("true",), 20).status == 0
    phone.restart()
    with pytest.raises(DeviceLost, match="has restarted"):
        runner.run(("true",), 20)


def test_a_file_that_arrives_cut_off_is_not_used(phone: FakePhone) -> None:
    runner = AdbRunner(phone.serial)
    content = os.urandom(1000)

    def cut(command: str) -> None:
        for path in phone.path("/data/local/tmp").rglob("*.bin"):
            path.write_bytes(path.read_bytes()[:-1])

    phone.when = cut
    with pytest.raises(DeviceLost, match="cut off; is it full"):
        runner.put(content, ".bin")


def test_what_was_brought_to_a_phone_is_removed(phone: FakePhone) -> None:
    runner = AdbRunner(phone.serial)
    runner.put(b"content", ".bin")
    there = phone.path(runner.folder)
    assert there.is_dir()
    runner.close()
    assert not there.exists()


_LEAVES = """\
import os, sys
from hurricane.agents.commands import AdbRunner
runner = AdbRunner(sys.argv[1])
print(runner.folder, flush=True)
runner.put(b"content", ".bin")
runner.run(("sleep", sys.argv[2]), 100)
"""


def test_what_a_process_that_was_killed_left_is_removed_by_the_next(phone: FakePhone) -> None:
    seconds = f"3{time.time_ns() % 10**6:06}"
    alive = AdbRunner(phone.serial)
    killed = subprocess.Popen(
        [sys.executable, "-c", _LEAVES, phone.serial, seconds], stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    there = phone.path(killed.stdout.readline().strip())
    limit_s = time.monotonic() + 60
    while not running(f"sleep {seconds}"):
        assert time.monotonic() < limit_s, "it does not begin"
    killed.kill()
    killed.wait()
    killed.stdout.close()
    other = phone.path(f"{commands.PHONE_FOLDER}/01234567-{killed.pid}-0123456789abcdef")
    other.mkdir()  # of another machine
    assert there.is_dir()
    AdbRunner(phone.serial).close()
    assert not there.exists()
    assert ends(f"sleep {seconds}")
    assert phone.path(alive.folder).is_dir()
    assert other.is_dir()
    alive.close()


@pytest.mark.parametrize("serial", ["", "-e", "--help"])
def test_a_serial_that_is_an_option_is_refused(serial: str) -> None:
    with pytest.raises(BadRequest, match="no serial"):
        AdbRunner(serial)


@pytest.mark.parametrize("serial", ["no such phone", "a;touch pwned", "$(touch pwned)", "x\ny"])
def test_an_odd_serial_reaches_adb_unharmed(
    adb_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serial: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DeviceLost, match="is not there"):
        AdbRunner(serial)
    assert not (tmp_path / "pwned").exists()


def test_without_adb_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(BoardNotReady, match="apt-get install adb"):
        AdbRunner("serial")
