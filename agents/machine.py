"""Facts about the machine that the agent runs on."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from .sandbox.kernel import PR_SET_DUMPABLE, prctl


@dataclass(frozen=True)
class DeviceInfo:
    """The device; fields are those of ``Device`` in agent.proto."""

    name: str
    model: str
    system: str
    cores: int
    memory_bytes: int
    machine: str
    python: str


def read_device(name: str = "") -> DeviceInfo:
    """Describes this machine.

    Args:
        name: what its owner calls it; empty: its model.
    """
    model = _model()
    return DeviceInfo(
        name=name or model,
        model=model,
        system=f"{_distribution()} ({platform.system()} {platform.release()})",
        cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        machine=platform.machine(),
        python=platform.python_version(),
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _model() -> str:
    # Boards name themselves in the device tree, PCs only their processor.
    board = _text("/sys/firmware/devicetree/base/model")
    if board:
        return board
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware"):
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def _distribution() -> str:
    for line in _text("/etc/os-release").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return platform.system()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def hide_memory() -> None:
    """Keeps other processes of the same user, those of workers first, from reading this one's
    memory and environment: they hold the token."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            prctl(PR_SET_DUMPABLE, 0)
