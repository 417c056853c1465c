"""The real adb, with a server that is nobody else's."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest


def adb(*words: str) -> str:
    """Runs adb; what it printed."""
    done = subprocess.run(["adb", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


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
