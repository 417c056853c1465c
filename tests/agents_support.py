"""Agents in processes of their own, as an operator starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEADLINE_S = 60.0
AGENT = (sys.executable, "-I", "-c", "from hurricane.agents.cli import main; main()")


@dataclass(frozen=True)
class Agent:
    """An agent that serves."""

    address: str
    process: subprocess.Popen[str]

    def peak_bytes(self) -> int:
        """The most memory that it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(words[1]) == self.process.pid and words[0] != "Z":
                    found.append(int(folder.name))
            except OSError:  # it ended
                continue
        return found


@contextmanager
def serving(
    *arguments: str,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    command: tuple[str, ...] = AGENT,
    **process: object,
) -> Iterator[Agent]:
    """`agent serve` on a free port of loopback."""
    agent = subprocess.Popen(
        [*command, "serve", "--listen", "127.0.0.1:0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        **process,  # type: ignore[call-overload]
    )
    assert agent.stdout is not None
    try:
        line = agent.stdout.readline()
        assert line.startswith("agent on "), agent.communicate(timeout=DEADLINE_S)
        yield Agent(line.split()[2].rstrip(":"), agent)
        assert agent.poll() is None, "the agent died"
    finally:
        agent.terminate()
        agent.communicate(timeout=DEADLINE_S)


def wait_until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    """Polls until a condition holds, and fails where it does not in time."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def process_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
