"""The real adb, with a server that is nobody else's."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def adb(*words: str) -> str:
    """Runs adb; what it printed."""
    done = subprocess.run(["adb", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def running(command: str) -> list[str]:
    """Processes of this machine with such a command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if command in words:
            found.append(words)
    return found


def ends(command: str) -> bool:
    """Whether processes with such a command line, which were killed, end in time."""
    limit_s = time.monotonic() + 30
    while running(command):
        if time.monotonic() > limit_s:
            return False
    return True


@contextmanager
def connecting(serial: str) -> Iterator[None]:
    """A phone that answers no greeting is connected to: as long as that lasts, it is offline."""
    process = subprocess.Popen(["adb", "connect", serial], stdout=subprocess.DEVNULL)
    try:
        limit_s = time.monotonic() + 60
        while serial not in adb("devices"):
            assert time.monotonic() < limit_s, "adb does not know it"
        yield
    finally:
        process.kill()
        process.wait()
        adb("disconnect", serial)


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server on a port and with a home of its own."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("adb")))
        adb("start-server")
        try:
            yield
        finally:
            adb("kill-server")
