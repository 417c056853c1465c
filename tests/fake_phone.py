"""A phone that is not there: speaks adb's wire protocol over TCP to the real adb.

It has the services that are needed (shell with and without ``shell_v2``, and sync for files), a
folder that stands for its file system, and programs of that folder's ``bin`` on its PATH. As on a
phone, what a command started goes on when the link is lost.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CNXN, _OPEN, _OKAY, _CLSE, _WRTE, _AUTH = (
    int.from_bytes(word, "little")
    for word in (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE", b"AUTH")
)
_MAX_DATA = 256 * 1024
_PIECE = 64 * 1024
_STDOUT, _STDERR, _EXIT = 1, 2, 3
PLACES = ("/data/local/tmp", "/proc/sys/kernel/random/boot_id", "/sys/class/thermal")
"""Parts of a phone that lie in its folder here."""


_GETPROP = """\
#!/bin/sh
case "$1" in
ro.product.model) echo Fake 1 ;;
ro.hurricane.simulated) echo 1 ;;
esac
"""


class _Gone(Exception):
    """The other side is gone."""


@dataclass(eq=False)
class FakePhone:
    """A phone; a context manager that switches it on.

    Attributes:
        folder: its file system.
        mode: ``ok``, ``unauthorized``, ``offline``; ``drop`` loses the link when a command comes,
            ``drop-after`` when it has ended, ``hang`` never answers one.
        shell_v2: whether exit statuses are told.
        when: called with each command before it is run; may change the phone.
        commands: that came, as the phone got them.
        port: on which it listens on this machine.
    """

    folder: Path
    mode: str = "ok"
    shell_v2: bool = True
    when: Callable[[str], None] = lambda command: None
    commands: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._listener: socket.socket | None = None
        self._links: list[_Link] = []
        for place in PLACES:
            self.path(place).parent.mkdir(parents=True, exist_ok=True)
        self.path("/data/local/tmp").mkdir(exist_ok=True)
        (self.folder / "bin").mkdir(exist_ok=True)
        self.install("getprop", _GETPROP)
        self.install("dumpsys", '#!/bin/sh\ncat "$PHONE/dumpsys-$1"\n')
        self.charge(84)
        self.throttle(0)
        self.restart()

    @property
    def serial(self) -> str:
        """By which adb knows it."""
        return f"127.0.0.1:{self.port}"

    def path(self, place: str) -> Path:
        """Where something of the phone lies here."""
        path = Path(os.path.normpath(f"{self.folder}/{place.lstrip('/')}"))
        if self.folder not in (path, *path.parents):
            raise ValueError(place)
        return path

    def install(self, name: str, script: str) -> None:
        """Puts a program on its PATH."""
        program = self.folder / "bin" / name
        program.write_text(script)
        program.chmod(0o755)

    def restart(self) -> None:
        """It runs anew."""
        self.path(PLACES[1]).write_text(f"{uuid.uuid4()}\n")

    def charge(self, percent: int) -> None:
        """Its battery has this much of its charge."""
        (self.folder / "dumpsys-battery").write_text(
            "Current Battery Service state:\n  USB powered: true\n  status: 2\n"
            f"  present: true\n  level: {percent}\n  scale: 100\n  temperature: 281\n"
        )

    def throttle(self, status: int) -> None:
        """Android throttles it this much; 0: not."""
        (self.folder / "dumpsys-thermalservice").write_text(
            "IsStatusOverride: false\nThermalEventListeners:\n\tcallbacks: 2\n\tkilled: false\n"
            f"Thermal Status: {status}\nCached temperatures:\n\tTemperature{{mValue=41.0}}\n"
        )

    def unplug(self) -> None:
        """Loses every link."""
        for link in self._links:
            link.close()

    def __enter__(self) -> FakePhone:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.unplug()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                link = _Link(self, listener.accept()[0])
                self._links.append(link)
                threading.Thread(target=link.serve, daemon=True).start()


class _Link:
    """A connection with an adb server."""

    def __init__(self, phone: FakePhone, connection: socket.socket) -> None:
        self.phone = phone
        self._connection = connection
        self._sending = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        for stream in list(self._streams.values()):
            stream.end()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack(
            "<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF
        )
        with self._sending:
            self._connection.sendall(head + data)

    def serve(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", self._read(24))
                self._take(command, first, second, self._read(size))
        except (_Gone, OSError):
            self.close()
        finally:
            self._connection.close()

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            part = self._connection.recv(size - len(content))
            if not part:
                raise _Gone
            content += part
        return content

    def _take(self, command: int, first: int, second: int, data: bytes) -> None:
        phone = self.phone
        if command in (_CNXN, _AUTH) and phone.mode == "unauthorized":
            self.send(_AUTH, 1, 0, os.urandom(20))
        elif command == _CNXN and phone.mode != "offline":
            features = "shell_v2,cmd,stat_v2" if phone.shell_v2 else "cmd"
            banner = (
                "device::ro.product.name=fake;ro.product.model=Fake_1;ro.product.device=fake;"
                f"features={features}"
            )
            self.send(_CNXN, 0x01000001, _MAX_DATA, banner.encode())
        elif command == _OPEN:
            stream = _Stream(self, first, len(self._streams) + 1)
            self._streams[stream.local] = stream
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=stream.serve, args=(service,), daemon=True).start()
        elif command in (_WRTE, _OKAY, _CLSE) and second in self._streams:
            stream = self._streams[second]
            if command == _WRTE:
                stream.feed(data)
                self.send(_OKAY, stream.local, stream.remote)
            elif command == _OKAY:
                stream.acknowledged.release()
            else:
                stream.end()


class _Stream:
    """One service of a connection."""

    def __init__(self, link: _Link, remote: int, local: int) -> None:
        self.remote, self.local = remote, local
        self.acknowledged = threading.Semaphore(0)
        self._link = link
        self._come = b""
        self._changed = threading.Condition()
        self._ended = False

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._come += data
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.acknowledged.release()

    def serve(self, service: str) -> None:
        self._link.send(_OKAY, self.local, self.remote)
        try:
            name, _, argument = service.partition(":")
            if name.startswith("shell"):
                self._shell(argument, told="v2" in name)
            elif name == "sync":
                self._sync()
        except (_Gone, OSError, ValueError):
            pass
        finally:
            with contextlib.suppress(OSError):
                self._link.send(_CLSE, self.local, self.remote)

    def _take(self, size: int) -> bytes:
        with self._changed:
            while len(self._come) < size:
                if self._ended:
                    raise _Gone
                self._changed.wait()
            taken, self._come = self._come[:size], self._come[size:]
            return taken

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            if self._ended:
                raise _Gone
            self._link.send(_WRTE, self.local, self.remote, data[start : start + _PIECE])
            self.acknowledged.acquire()
        if self._ended:
            raise _Gone

    def _shell(self, command: str, told: bool) -> None:
        phone = self._link.phone
        phone.commands.append(command)
        phone.when(command)
        if phone.mode == "drop":
            self._link.close()
            raise _Gone
        if phone.mode == "hang":
            self._take(1 << 30)
        folder = str(phone.folder)
        for place in PLACES:
            command = command.replace(place, folder + place)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env={"PATH": f"{folder}/bin:/usr/bin:/bin", "PHONE": folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if told else subprocess.STDOUT,
        )
        threads = [
            threading.Thread(target=self._pump, args=(stream, number, told), daemon=True)
            for stream, number in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
            if stream is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if phone.mode == "drop-after":
            self._link.close()
            raise _Gone
        if self._ended:
            raise _Gone  # nobody listens: what it started goes on
        status = process.wait()
        if told:
            self._write(struct.pack("<BIB", _EXIT, 1, status & 0xFF))

    def _pump(self, stream, number: int, told: bool) -> None:
        with contextlib.suppress(_Gone, OSError):
            for part in iter(lambda: os.read(stream.fileno(), 32768), b""):
                if self._link.phone.mode == "drop-after":
                    continue
                self._write(struct.pack("<BI", number, len(part)) + part if told else part)

    def _sync(self) -> None:
        phone = self._link.phone
        while True:
            ident, size = self._take(4), struct.unpack("<I", self._take(4))[0]
            if ident == b"QUIT":
                return
            argument = self._take(size).decode()
            if ident in (b"STAT", b"STA2", b"LST2"):
                self._write(_stat_answer(ident, phone.path(argument)))
            elif ident == b"SEND":
                self._receive(phone, argument)
            elif ident == b"RECV":
                self._give(phone.path(argument))
            else:
                raise ValueError(ident)

    def _receive(self, phone: FakePhone, argument: str) -> None:
        name, _, mode = argument.rpartition(",")
        path = phone.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for data in self._data():
                file.write(data)
        path.chmod((int(mode) & 0o777) or 0o644)
        self._write(b"OKAY" + struct.pack("<I", 0))

    def _data(self) -> Iterator[bytes]:
        while True:
            kind, size = self._take(4), struct.unpack("<I", self._take(4))[0]
            if kind == b"DONE":
                return
            yield self._take(size)

    def _give(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            message = str(error.strerror).encode()
            self._write(b"FAIL" + struct.pack("<I", len(message)) + message)
            return
        for start in range(0, len(content), _PIECE - 8):
            part = content[start : start + _PIECE - 8]
            self._write(b"DATA" + struct.pack("<I", len(part)) + part)
        self._write(b"DONE" + struct.pack("<I", 0))


def _stat_answer(ident: bytes, path: Path) -> bytes:
    try:
        found = path.stat()
        mode, size, when = found.st_mode, found.st_size, int(found.st_mtime)
    except OSError:
        mode = size = when = 0
    if ident == b"STAT":
        return ident + struct.pack("<3I", mode, size, when)
    missing = 0 if mode and not stat.S_ISLNK(mode) else 2
    return ident + struct.pack("<IQQIIIIQqqq", missing, 0, 0, mode, 1, 0, 0, size, when, when, when)


_STUB = """\
#!/bin/sh
d=$(mktemp -d "$PHONE/answers/XXXXXX") || exit 1
for word in "$@"; do printf '%s\\0' "$word"; done > "$d/arguments"
mkfifo "$d/status"
echo "$d ${0##*/}" > "$PHONE/answers/questions"
read -r status < "$d/status"
cat "$d/text"
rm -r "$d"
exit "$status"
"""


class Programs:
    """Programs of a phone that are functions of this process; a context manager.

    Args:
        phone: whose.
        place: folder of the phone that they lie in.
        functions: by name; each takes the arguments, and gives a status and what is printed.
    """

    def __init__(
        self,
        phone: FakePhone,
        place: str,
        functions: Mapping[str, Callable[[Sequence[str]], tuple[int, str]]],
    ) -> None:
        self._answers = phone.folder / "answers"
        self._answers.mkdir()
        self._questions = self._answers / "questions"
        os.mkfifo(self._questions)
        self._functions = functions
        folder = phone.path(place)
        folder.mkdir(parents=True)
        for name in functions:
            (folder / name).write_text(_STUB)
            (folder / name).chmod(0o755)

    def __enter__(self) -> Programs:
        # Opened for writing as well, so that it never ends.
        self._descriptor = os.open(self._questions, os.O_RDWR)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        os.write(self._descriptor, b"end end\n")
        self._thread.join()
        os.close(self._descriptor)

    def _serve(self) -> None:
        with os.fdopen(os.dup(self._descriptor)) as questions:
            for line in questions:
                folder, _, name = line.strip().rpartition(" ")
                if name == "end":
                    return
                here = Path(folder)
                words = (here / "arguments").read_bytes().decode().split("\0")[:-1]
                status, text = self._functions[name](words)
                (here / "text").write_text(text)
                (here / "status").write_text(f"{status}\n")
