"""Commands on a board: on this machine itself, or on a phone over adb.

Both kinds run one command at a time with a time limit, give its exit status and what it printed,
and leave no process behind. Words reach the program as they are, whatever characters they hold.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import re
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from .backends.base import one_line
from .errors import (
    AgentError,
    BadRequest,
    BoardNotReady,
    Busy,
    DeviceLost,
    RuntimeCrashed,
    TimedOut,
    Unauthorised,
)

MAX_OUTPUT_BYTES = 4 * 1024 * 1024
"""Of what a command may print."""

PHONE_FOLDER = "/data/local/tmp/hurricane"
"""Where files lie on a phone: the one place where a shell may write and start programs."""

PROGRAMS = ("/bin", "/usr/bin", "/usr/local/bin", "/usr/lib/android-sdk")
"""Where programs lie, adb's client among them; a sandbox is to leave these open."""

TOOL_S, COMMAND_S = 600.0, 30.0
"""How long a vendor's tool may run a network, and a command that only asks for something."""

_SHORT_S = 20.0  # for adb's own commands
_KILL_S = 5.0
_ENDED_S = 0.25  # between two looks whether a program has ended that something else outlives
_PUSH_BYTES_S = 1e6  # slower than that a push hangs


@dataclass(frozen=True)
class Output:
    """What came of a command.

    Attributes:
        status: its exit status; 128 and more: ended by a signal.
        text: standard output and error together.
    """

    status: int
    text: str


class CommandRunner(abc.ABC):
    """A board on which commands are run.

    Attributes:
        folder: for files on the board.
    """

    folder: str

    @abc.abstractmethod
    def run(
        self,
        words: Sequence[str],
        timeout_s: float,
        environment: Optional[Mapping[str, str]] = None,
    ) -> Output:
        """Runs a program and waits for it.

        Args:
            words: the program and its arguments.
            timeout_s: after which it is killed.
            environment: variables beside those that are set there.

        Raises:
            BoardNotReady: there is no such program, or it is of another kind of processor.
            TimedOut: it took too long; it is ended.
            DeviceLost: the board does not answer, or has restarted.
            AgentError: of another kind, as it says.
        """

    @abc.abstractmethod
    def put(self, content: bytes, suffix: str) -> str:
        """Brings a file to the board, once; its path there, named by its digest.

        Args:
            content: of the file.
            suffix: of its name, with the dot.
        """

    @abc.abstractmethod
    def read(self, path: str, limit: int) -> bytes:
        """The content of a file on the board.

        Raises:
            BadRequest: it is not there, or is larger than the limit in bytes.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Removes what was brought to the board. Called once."""


class LocalRunner(CommandRunner):
    """This machine.

    Args:
        scratch: where the folder for files is made; None: where temporary ones are.
    """

    def __init__(self, scratch: Optional[str] = None) -> None:
        self.folder = tempfile.mkdtemp(prefix="hurricane-tool-", dir=scratch)

    def run(
        self,
        words: Sequence[str],
        timeout_s: float,
        environment: Optional[Mapping[str, str]] = None,
    ) -> Output:
        _check(words, environment or {})
        program = words[0]
        if shutil.which(program) is None:
            raise BoardNotReady(
                f"there is no program '{one_line(program, 80)}' on this board's PATH; install it, "
                "or start the agent with another PATH"
            )
        variables = {**os.environ, **(environment or {})}
        captured = _capture(words, timeout_s, variables, self.folder, together=True)
        if captured.too_much:
            raise RuntimeCrashed(f"{_name(program)} printed more than {MAX_OUTPUT_BYTES} bytes")
        if captured.timed_out:
            raise TimedOut(f"{_name(program)} took longer than {timeout_s:g} s")
        status = captured.status
        return Output(128 - status if status < 0 else status, _text(captured.out))

    def put(self, content: bytes, suffix: str) -> str:
        path = Path(self.folder, hashlib.sha256(content).hexdigest() + suffix)
        if not path.exists():
            path.write_bytes(content)
        return str(path)

    def read(self, path: str, limit: int) -> bytes:
        try:
            with open(path, "rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise BadRequest(f"{one_line(path, 120)} cannot be read: {error.strerror}") from error
        if len(content) > limit:
            raise BadRequest(f"{one_line(path, 120)} has more than {limit} bytes")
        return content

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class AdbRunner(CommandRunner):
    """A phone that an adb server on this machine reaches.

    The exit status of `adb shell` is not trusted: it is 0 where the link was lost, and always 0
    on phones without ``shell_v2``. Every command begins with a mark that tells since when the phone
    runs, and ends in one with its status. Before that, whatever the program has left running in
    the background is ended.

    The folder's name tells this machine and this process. What a process that has ended left on
    the phone, running or lying, is removed by the next one.

    Args:
        serial: of the phone, as ``adb devices`` lists it.
        scratch: for files on their way, on this machine; None: where temporary ones are.
    """

    def __init__(self, serial: str, scratch: Optional[str] = None) -> None:
        if not serial or serial.startswith("-"):
            raise BadRequest(f"'{one_line(serial, 80)}' is no serial of a phone")
        if shutil.which("adb") is None:
            raise BoardNotReady(_NO_ADB)
        self.serial, self._scratch = serial, scratch
        self.folder = f"{PHONE_FOLDER}/{_this_machine()}-{os.getpid()}-{secrets.token_hex(8)}"
        self._boot = ""
        self._held: set[str] = set()
        self._boot = self._begun(("mkdir", "-p", self.folder), _SHORT_S, {})[0]
        self._sweep()

    def run(
        self,
        words: Sequence[str],
        timeout_s: float,
        environment: Optional[Mapping[str, str]] = None,
    ) -> Output:
        boot, output = self._begun(words, timeout_s, environment or {})
        if boot != self._boot:
            raise DeviceLost(f"the phone {self._named} has restarted; begin again")
        if output.status in (126, 127):
            raise BoardNotReady(
                f"{_name(words[0])} cannot be run on the phone {self._named}: "
                f"{one_line(output.text, 160) or 'it is not there'}; push the program for its "
                "processor, and chmod 755 it (docs/snapdragon.md)"
            )
        return output

    def put(self, content: bytes, suffix: str) -> str:
        path = f"{self.folder}/{hashlib.sha256(content).hexdigest()}{suffix}"
        if path not in self._held:
            with tempfile.NamedTemporaryFile(prefix="hurricane-push-", dir=self._scratch) as file:
                file.write(content)
                file.flush()
                timeout_s = _SHORT_S + len(content) / _PUSH_BYTES_S
                self._adb(("push", file.name, path), timeout_s)
            size = self.run(("wc", "-c", path), _SHORT_S).text.split()
            if not size or size[0] != str(len(content)):
                raise DeviceLost(f"a file came to the phone {self._named} cut off; is it full?")
            self._held.add(path)
        return path

    def read(self, path: str, limit: int) -> bytes:
        size = self.run(("wc", "-c", path), _SHORT_S)
        count = size.text.split()[:1]
        if size.status or not count or not count[0].isdigit():
            raise BadRequest(f"{one_line(path, 120)} cannot be read on the phone {self._named}")
        if int(count[0]) > limit:
            raise BadRequest(f"{one_line(path, 120)} has more than {limit} bytes")
        with tempfile.TemporaryDirectory(prefix="hurricane-pull-", dir=self._scratch) as folder:
            here = Path(folder, "file")
            self._adb(("pull", path, str(here)), _SHORT_S + limit / _PUSH_BYTES_S)
            content = here.read_bytes()
        if len(content) != int(count[0]):
            raise DeviceLost(f"a file came from the phone {self._named} cut off")
        return content

    def close(self) -> None:
        with contextlib.suppress(AgentError):
            self.run(("rm", "-rf", self.folder), _SHORT_S)

    def _sweep(self) -> None:
        """Removes what processes of this machine that have ended left on the phone."""
        for name in self.run(("ls", PHONE_FOLDER), _SHORT_S).text.split():
            found = _PHONE_NAME.fullmatch(name)
            if found and found["machine"] == _this_machine() and not _runs(int(found["process"])):
                self._end(f"{PHONE_FOLDER}/{name}")
                self.run(("rm", "-rf", f"{PHONE_FOLDER}/{name}"), _SHORT_S)

    @property
    def _named(self) -> str:
        return f"'{one_line(self.serial, 80)}'"

    def _begun(
        self, words: Sequence[str], timeout_s: float, environment: Mapping[str, str]
    ) -> tuple[str, Output]:
        """Runs a program on the phone; since when the phone runs, and what came of it."""
        _check(words, environment)
        mark = f"hurricane-{secrets.token_hex(16)}"
        command = " ".join(shlex.quote(word) for word in words)
        settings = "".join(
            f"export {name}={shlex.quote(value)}; " for name, value in environment.items()
        )
        line = (
            f"{settings}cd {shlex.quote(self.folder)} 2>/dev/null; "
            f"echo {mark} begin $(cat /proc/sys/kernel/random/boot_id); {command} </dev/null 2>&1; "
            f"s=$?; {_ending(self.folder)}; echo {mark} end $s"
        )
        captured = _capture(self._words(("shell", line)), timeout_s, os.environ, None)
        text = _text(captured.out)
        begin = re.search(rf"{mark} begin ([0-9a-f-]+)\n", text)
        end = re.search(rf"{mark} end (\d+)\n\Z", text)
        answers = end is not None or self._end(self.folder)
        if captured.too_much:
            raise RuntimeCrashed(f"{_name(words[0])} printed more than {MAX_OUTPUT_BYTES} bytes")
        if captured.timed_out and not answers:
            raise DeviceLost(
                f"the phone {self._named} does not answer for {timeout_s:g} s; look at its cable, "
                "or restart it"
            )
        if captured.timed_out:
            raise TimedOut(
                f"{_name(words[0])} took longer than {timeout_s:g} s on the phone {self._named}"
            )
        if begin is None and end is not None:
            raise DeviceLost(f"the phone {self._named} does not tell since when it runs")
        if begin is None or end is None:
            raise self._failure(_text(captured.err), "the link to it was lost during a command")
        printed = text[: begin.start()] + text[begin.end() : end.start()]
        return begin[1], Output(int(end[1]), printed)

    def _end(self, folder: str) -> bool:
        """Ends what runs in a folder of the phone; False: the phone does not answer."""
        line = f"{_ending(folder)}; echo ended"
        with contextlib.suppress(AgentError):
            captured = _capture(self._words(("shell", line)), _KILL_S, os.environ, None)
            return _text(captured.out) == "ended\n"
        return False

    def _adb(self, words: Sequence[str], timeout_s: float) -> None:
        captured = _capture(self._words(words), timeout_s, os.environ, None)
        if captured.timed_out:
            raise DeviceLost(f"the phone {self._named} does not answer; look at its cable")
        if captured.status:
            raise self._failure(_text(captured.err + captured.out), "adb failed")

    def _words(self, words: Sequence[str]) -> list[str]:
        _check_adb_server()
        return ["adb", "-s", self.serial, *words]

    def _failure(self, said: str, otherwise: str) -> AgentError:
        """The error for what adb itself said."""
        phone = f"the phone {self._named}"
        for pattern, kind, what in _ADB_SAYS:
            if re.search(pattern, said):
                return kind(f"{phone} {what}")
        shown = f" ({one_line(said, 160)})" if said.strip() else ""
        return DeviceLost(f"{phone} does not answer: {otherwise}{shown}")


def _ending(folder: str) -> str:
    """Shell that ends whatever else runs in a folder of a phone."""
    return (
        f'for c in /proc/[0-9]*/cwd; do if [ "$c" -ef {shlex.quote(folder)} ]; then '
        'c=${c%/cwd}; c=${c#/proc/}; if [ "$c" != $$ ]; then kill -9 "$c"; fi; fi; done 2>/dev/null'
    )


def run_tool(
    runner: CommandRunner,
    words: Sequence[str],
    timeout_s: float,
    environment: Mapping[str, str],
    error_in: Callable[[str], Optional[AgentError]],
) -> Output:
    """Runs a vendor's tool, which must end well.

    Args:
        error_in: finds what the tool itself says went wrong; None: nothing.

    Raises:
        RuntimeCrashed: it ended with another status than 0 and did not say why.
        AgentError: what it says went wrong, or as for `CommandRunner.run`.
    """
    output = runner.run(words, timeout_s, environment)
    error = error_in(output.text)
    if error is not None:
        raise error
    if output.status:
        said = one_line(output.text[-400:], 200) or "nothing"
        raise RuntimeCrashed(
            f"{_name(words[0])} ended with status {output.status}; it said: {said}"
        )
    return output


def start_adb_server() -> None:
    """Starts adb's server on this machine where it does not run.

    Raises:
        BoardNotReady: there is no adb, or it does not start.
    """
    if shutil.which("adb") is None:
        raise BoardNotReady(_NO_ADB)
    captured = _capture(("adb", "start-server"), _SHORT_S, os.environ, None)
    if captured.timed_out or captured.status:
        said = one_line(_text(captured.err), 160)
        raise BoardNotReady(f"adb's server does not start: {said or 'it does not answer'}")


_PHONE_NAME = re.compile(r"(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{16}")


def _this_machine() -> str:
    """This machine, as far as its process ids reach, in a form that a file's name can hold."""
    known = socket.gethostname()
    with contextlib.suppress(OSError):  # containers share the name, and not the ids
        known += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def _runs(process: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is not ours
        return True
    return True


def _check_adb_server() -> None:
    """Refuses to go on without adb's server: adb would start one that outlives this process."""
    port = os.environ.get("ANDROID_ADB_SERVER_PORT", "5037")
    try:
        socket.create_connection(("127.0.0.1", int(port)), _KILL_S).close()
    except (OSError, ValueError):
        raise BoardNotReady(
            f"adb's server does not run (port {port}); run: adb start-server"
        ) from None


_NO_ADB = "adb is not installed; run: apt-get install adb"

_ADB_SAYS: tuple[tuple[str, type[AgentError], str], ...] = (
    (
        r"device unauthorized|device still authorizing",
        Unauthorised,
        "has not allowed this machine: unlock it and confirm USB debugging",
    ),
    (r"device offline", DeviceLost, "is offline: plug it in again, or restart it"),
    (
        r"(?s)device '.*' not found|no devices/emulators found|device not found",
        DeviceLost,
        "is not there: see what 'adb devices' lists",
    ),
    (r"more than one device", BoardNotReady, "is not the only one of that name; give its serial"),
    (r"No space left on device", Busy, "has no space left"),
    (r"cannot connect to daemon|failed to start daemon", BoardNotReady, "cannot be reached: adb's "
     "server does not start; run: adb start-server"),
)  # fmt: skip


@dataclass
class _Captured:
    out: bytes
    err: bytes
    status: int
    timed_out: bool
    too_much: bool


def _capture(
    words: Sequence[str],
    timeout_s: float,
    environment: Mapping[str, str],
    folder: Optional[str],
    together: bool = False,
) -> _Captured:
    """Runs a program here in a session of its own, which ends with it: what it leaves running
    in the background is killed.

    It is ended as well where it takes too long or prints more than `MAX_OUTPUT_BYTES`.

    Args:
        together: standard output and error are one.

    Raises:
        BoardNotReady: it cannot be started.
    """
    try:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if together else subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise BoardNotReady(
            f"{_name(words[0])} cannot be started: {error.strerror}; is it a program for this "
            "board's processor?"
        ) from error
    outputs = [process.stdout, process.stderr]
    streams = {stream: bytearray() for stream in outputs if stream is not None}
    until = time.monotonic() + timeout_s
    timed_out = too_much = swept = False
    try:
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                left_s = until - time.monotonic()
                if left_s <= 0:
                    timed_out = True
                    break
                ready = selector.select(min(left_s, _ENDED_S))
                if not ready and process.poll() is not None:
                    if swept:  # what holds its output has a session of its own
                        break
                    _kill_group(process.pid)
                    swept = True
                for key, _ in ready:
                    part = os.read(key.fd, 65536)
                    if not part:
                        selector.unregister(key.fileobj)
                    kept = streams[key.fileobj]  # type: ignore[index]
                    kept += part
                    if len(kept) > MAX_OUTPUT_BYTES:
                        too_much = True
                        break
                if too_much:
                    break
        if not (timed_out or too_much):
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                timed_out = True
    finally:
        _kill_group(process.pid)
        process.wait()
        for stream in streams:
            stream.close()
    out, err = (bytes(streams[s]) if s is not None else b"" for s in outputs)
    return _Captured(out, err, process.returncode, timed_out, too_much)


def _kill_group(process: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)


def _check(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuses what no command line can hold."""
    if any("\0" in word for word in (*words, *environment.values())):
        raise BadRequest("a word of a command holds a NUL")
    for name in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise BadRequest(f"'{one_line(name, 80)}' is no name of a variable")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace").replace("\r\n", "\n")


def _name(program: str) -> str:
    return one_line(program.rpartition("/")[2], 80)
