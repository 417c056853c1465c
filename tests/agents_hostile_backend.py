"""A backend for tests that does what a runtime would do that an uploaded graph has taken over,
loaded through HURRICANE_BACKENDS. An artefact is a JSON object that names an attempt and its
arguments; the output `said` of a run is what came of it, as text in UTF-8.

Some attempts are against the agent: they answer in its stead, over the worker's own channel.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hurricane.agents.backends.base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
)

TARGET = "dsp-hostile-fp32"
Attempt = Callable[..., str]


def _check(content: bytes) -> None:
    json.loads(content)


CHECKS = {"hostile": _check}


def targets(context: Context) -> list[TargetInfo]:
    return [
        TargetInfo(
            name=TARGET,
            device=context.device_name,
            processor="dsp",
            runtime="hostile",
            runtime_version="1",
            precision="fp32",
            availability=Availability.SIMULATED,
            formats=("hostile",),
        )
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> HostileSession:
    return HostileSession()


class HostileSession(Session):
    def load(self, content: bytes, format: str) -> HostileGraph:
        return HostileGraph(json.loads(content))


class HostileGraph(Loaded):
    compute_unit = "HOSTILE"

    def __init__(self, wanted: dict[str, Any]) -> None:
        self._wanted = wanted

    def timed_calls(self, count: int) -> list[Sample]:
        attempt(**self._wanted)
        return [Sample(1.0)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return ()

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        said = attempt(**self._wanted)
        return {"said": np.frombuffer((said or " ").encode(), np.uint8)}

    def close(self) -> None:
        pass


def attempt(name: str, **arguments: Any) -> str:
    """What came of an attempt: its own words, or how it was refused."""
    try:
        return ATTEMPTS[name](**{key: arguments[key] for key in arguments if key != "salt"})
    except OSError as error:
        return f"refused: {error.strerror}"
    except (MemoryError, RuntimeError, ValueError) as error:
        return f"refused: {type(error).__name__}"


def _libc(name: str, *arguments: Any) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def _fork() -> str:
    if os.fork() == 0:
        os._exit(0)
    return "done"


def _fork_bomb(children: int) -> str:
    born, refused = 0, 0
    for _ in range(children):
        try:
            if os.fork() == 0:
                os._exit(0)
            born += 1
        except OSError:
            refused += 1
    return f"{born} born, {refused} refused"


def _execute() -> str:
    os.execv("/bin/true", ["true"])
    raise AssertionError


def _fill(folder: str, size: int) -> str:
    path = Path(folder or os.environ["TMPDIR"]) / f"filler-{os.getpid()}"
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return f"wrote {path.stat().st_size}"


def _fill_memory_file() -> str:
    with open(os.memfd_create("filler"), "wb", buffering=0) as file:
        return f"wrote {file.write(bytes(1 << 20))}"


def _many_files(folder: str) -> str:
    for index in range(1000):
        (Path(folder or os.environ["TMPDIR"]) / f"{index}").touch()
    return "done"


def _socket(family: str, kind: str = "SOCK_STREAM") -> str:
    with socket.socket(getattr(socket, family), getattr(socket, kind)):
        return "done"


def _connect(address: str) -> str:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        return "done"


def _read(path: str) -> str:
    return Path(path.replace("PARENT", str(os.getppid()))).read_text(errors="replace")


def _list(path: str) -> str:
    return " ".join(os.listdir(path.replace("PARENT", str(os.getppid()))))


def _environment() -> str:
    return Path("/proc/self/environ").read_text(errors="replace") + repr(dict(os.environ))


def _descriptors() -> str:
    targets = []
    for name in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{name}").partition(":[")[0])
        except OSError:  # the folder's own
            continue
    return "\n".join(targets)


def _trace() -> str:
    ptrace_attach = 16
    return _libc("ptrace", ptrace_attach, os.getppid(), None, None)


def _read_memory() -> str:
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("@PN", ctypes.addressof(buffer), 8)
    return _libc("process_vm_readv", os.getppid(), vector, 1, vector, 1, 0)


def _signal() -> str:
    os.kill(os.getppid(), 0)
    return "done"


def _lower_priority() -> str:
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
    return "done"


def _reschedule() -> str:
    os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))
    return "done"


def _signal_by_file(command: str) -> str:
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(reading, getattr(fcntl, command), os.getppid())
    finally:
        os.close(reading)
        os.close(writing)
    return "done"


def _raise_limit() -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    return "done"


def _limits() -> str:
    names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE")
    return json.dumps({n: resource.getrlimit(getattr(resource, n))[0] for n in names})


def _allocate(size: int) -> str:
    return f"got {len(bytearray(size))}"


def _threads_outside() -> str:
    """What a thread may that is started now, as those of a runtime are."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(attempt("socket", family="AF_INET")))
    thread.start()
    thread.join()
    return said[0]


def _flood(size: int) -> str:
    chunk = b"x" * (1 << 20)
    for _ in range(size >> 20):
        os.write(2, chunk)
    return "done"


def _who() -> str:
    return f"{os.getuid()} {os.getgid()} {sorted(os.getgroups())}"


def _where() -> str:
    return f"{os.getcwd()} {[p for p in sys.path if p in ('', os.getcwd())]}"


def _channel() -> int:
    return int(sys.argv[3])


def _shrink_heartbeat() -> str:
    for name in os.listdir("/proc/self/fd"):
        if "heartbeat" in os.readlink(f"/proc/self/fd/{name}"):
            os.ftruncate(int(name), 0)
            return "done"
    return "refused: no descriptor"


def _frame(header: Any, payload: bytes = b"", arrays: Any = ()) -> bytes:
    head = json.dumps({"header": header, "arrays": list(arrays)}).encode()
    return struct.pack("=QQ", len(head), len(payload)) + head + payload


def _say(what: str, digest: str = "", other: str = "") -> str:
    """Answers in the agent's stead with what makes no sense, and goes on as if nothing were."""
    times = [["wall_ms", "<f8", [1]], ["device_ms", "<f8", [0]]]
    conditions = {
        "temperature_c": 0.0, "frequency_mhz": 0.0, "load_1m": 0.0, "steal_share": 0.0,
        "throttle_events": 0, "governor": "", "busy_share": 0.0,
        "unwatched": ["\x1b[2J" * 1000] * 100,
    }  # fmt: skip
    result = {
        "sha256": digest, "load_ms": 1.0, "first_call_ms": 1.0, "compute_unit": "\x1b[31mEVIL",
        "flags": ["\x1b[2J" * 1000] * 100,
    }  # fmt: skip
    batch = {"before": conditions, "after": conditions, "flags": ["\x1b[2J" * 1000] * 100}
    around = _frame({"conditions": batch})
    one = struct.pack("<d", 7.0)

    def telling(fields: dict[str, Any], payload: bytes = one, arrays: Any = times) -> bytes:
        return around + _frame({"result": {**result, **fields}}, payload, arrays)

    messages = {
        "zeros": bytes(16),
        "noise": bytes(range(256)) * 4,
        "huge-header": struct.pack("=QQ", 2**63, 0),
        "huge-payload": struct.pack("=QQ", 2, 2**63) + b"{}",
        "half": telling({})[:-20],
        "no-json": struct.pack("=QQ", 3, 0) + b"{{{",
        "deep-json": struct.pack("=QQ", 200_000, 0) + b"[" * 200_000,
        "long-number": struct.pack("=QQ", 5000, 0) + b"9" * 5000,
        "list": _frame([1, 2]),
        "empty": _frame({}),
        "object-array": _frame({}, one, [["x", "|O", [1]]]),
        "negative-shape": _frame({}, b"", [["x", "<f8", [-1]]]),
        "endless-shape": _frame({}, b"", [["x", "<f8", [2**62, 2**62]]]),
        "more-array-than-data": _frame({}, one, [["x", "<f8", [2]]]),
        "less-array-than-data": _frame({}, one * 2, [["x", "<f8", [1]]]),
        "foreign-need": _frame({"need": other}),
        "path-need": _frame({"need": "../../etc/passwd"}),
        "list-need": _frame({"need": [digest]}),
        "foreign-result": telling({"sha256": other}),
        "bad-conditions": _frame({"conditions": {**batch, "after": {}}}),
        "no-object": _frame({"conditions": 7}),
        "two-conditions": around * 2,
        "no-conditions": _frame({"result": result}, one, times),
        "endless-load": telling({"load_ms": 1e400}),
        "negative-load": telling({"first_call_ms": -1.0}),
        "many-flags": telling({"flags": ["x" * 10_000] * 1000}),
        "two-results": around + _frame({"result": result}, one, times) * 2,
        "texts-for-numbers": telling({}, b"1.0 ", [["wall_ms", "|S4", [1]]]),
        "integers": telling({}, one, [["wall_ms", "<i8", [1]], times[1]]),
        "more-samples": telling({}, one * 2, [["wall_ms", "<f8", [2]], times[1]]),
        "no-arrays": telling({}, b"", []),
        "negative-time": telling({}, struct.pack("<d", -1.0)),
        "no-number": telling({}, struct.pack("<d", float("nan"))),
        "done-already": _frame({"done": True, "elapsed_ms": 1.0}),
        "lost-far-away": _frame({"lost": 10**9, "error": {"kind": 6, "message": "x"}}),
        "lost-nowhere": _frame({"lost": None, "error": {"kind": 6, "message": "x"}}),
        "error-of-no-kind": _frame({"error": {"kind": "x", "message": [1]}}),
        "error-of-many-words": _frame({"error": {"kind": 9, "message": "\x1b]0;x\x07y" * 10**5}}),
    }
    os.write(_channel(), messages[what])
    return "said"


def _silent() -> str:
    os.write(_channel(), struct.pack("=QQ", 100, 0) + b"{")
    threading.Event().wait()
    raise AssertionError


def _steal(digest: str) -> str:
    """Asks the agent for an artefact, as the worker does for its own."""
    os.write(_channel(), _frame({"need": digest}))
    end = socket.socket(fileno=os.dup(_channel()))
    sizes, descriptors, _, _ = socket.recv_fds(end, 16, 1)
    end.recv(sum(struct.unpack("=QQ", sizes)))
    with open(descriptors[0], "rb") as file:
        return file.read().decode()


def _hand_over() -> str:
    end = socket.socket(fileno=os.dup(_channel()))
    socket.send_fds(end, [_frame({"compute_unit": "x"})], [0])
    return "said"


ATTEMPTS: dict[str, Attempt] = {
    "allocate": _allocate,
    "chmod": lambda path: _libc("chmod", path.encode(), 0o777),
    "connect": _connect,
    "descriptors": _descriptors,
    "environment": _environment,
    "execute": _execute,
    "fill": _fill,
    "fill-memory-file": _fill_memory_file,
    "flood": _flood,
    "fork": _fork,
    "fork-bomb": _fork_bomb,
    "hand-over": _hand_over,
    "limits": _limits,
    "lower-priority": _lower_priority,
    "list": _list,
    "many-files": _many_files,
    "mount": lambda: _libc("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    "nothing": lambda: "done",
    "raise-limit": _raise_limit,
    "read": _read,
    "read-memory": _read_memory,
    "reschedule": _reschedule,
    "say": _say,
    "shrink-heartbeat": _shrink_heartbeat,
    "signal": _signal,
    "signal-by-file": _signal_by_file,
    "silent": _silent,
    "socket": _socket,
    "socket-pair": lambda: str(bool(socket.socketpair())),
    "steal": _steal,
    "threads": _threads_outside,
    "trace": _trace,
    "unshare": lambda: _libc("unshare", 0x10000000),
    "where": _where,
    "who": _who,
}
