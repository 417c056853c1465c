"""An environment of Python 3.9, for tests of agents on old boards and beside a Myriad X.

It is made once by the documented script, of this tree's wheel; what comes from the index is kept in
pytest's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hurricane.agents.client import AgentClient

from .agents_support import Agent, serving

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "ncs2_agent.sh"
PYTHON = "python3.9"
INSTALL_S = 300

UNREACHABLE = (
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "NameResolution",
    "ProxyError",
)
"""What pip says where there is no way to the index, and only then."""


def check_installed(done: subprocess.CompletedProcess[str]) -> None:
    """Skips where the index is out of reach; fails where anything else went wrong."""
    if done.returncode and any(words in done.stderr for words in UNREACHABLE):
        pytest.skip(f"packages for {PYTHON} cannot be had: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the agent."""

    folder: Path

    @property
    def agent(self) -> str:
        return str(self.folder / "bin" / "agent")

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python, "-m", "pip", "--quiet", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )

    def fetched(self, name: str, *arguments: str) -> str:
        """A folder for PYTHONPATH with packages from the index; skips where it is out of reach."""
        folder = self.folder / name
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            check_installed(self.pip("install", "--target", str(part), "--no-deps", *arguments))
            part.rename(folder)
        return str(folder)


def find_python() -> str | None:
    """A Python of that version which starts: pyenv puts commands on PATH that do not."""
    installed = sorted(Path.home().glob(f".pyenv/versions/3.9.*/bin/{PYTHON}"))
    for python in filter(None, (shutil.which(PYTHON), *map(str, installed))):
        if subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    return None


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built in a copy, for building leaves files behind."""
    pytest.importorskip("setuptools", reason="setuptools, which builds the wheel, is not there")
    folder, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT, tree, ignore=_beside_the_code, dirs_exist_ok=True)
    build = ["--no-index", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "--quiet", "wheel", *build, "-w", str(folder)]
    done = subprocess.run(
        [*command, str(tree)], capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def _beside_the_code(folder: str, names: list[str]) -> set[str]:
    if Path(folder) != ROOT:
        return {name for name in names if name == "__pycache__"}
    code = {"agents", "lookup_tables", "ops", "profiler", "search"}
    files = {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"}
    return set(names) - code - files


@pytest.fixture(scope="session")
def python39(request: pytest.FixtureRequest, wheel: Path) -> Environment:
    """What the script installs: the agent, OpenVINO 2021.4.2, libusb and onnxruntime."""
    python = find_python()
    if python is None:
        pytest.skip(f"no {PYTHON} that starts is on PATH or among pyenv's versions")
    cache: Any = request.config.cache
    made = Environment(cache.mkdir("python39"))
    ready = made.folder / "ready"
    content = "\n".join([os.path.realpath(python), SCRIPT.read_text(), _setup()])
    if not ready.exists() or ready.read_text() != content:
        shutil.rmtree(made.folder)
        done = subprocess.run(
            ["sh", str(SCRIPT), str(made.folder), str(wheel)],
            env={**os.environ, "PYTHON": python},
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )
        check_installed(done)
        assert re.search(r"^cpu-openvino2021-fp32 +available", done.stdout, re.MULTILINE)
        ready.write_text(content)
    else:
        again = ("--no-index", "--no-deps", "--force-reinstall")
        check_installed(made.pip("install", *again, str(wheel)))
    return made


def _setup() -> str:
    return (ROOT / "setup.cfg").read_text("utf-8")


@pytest.fixture(scope="session")
def agent39(python39: Environment) -> Iterator[Agent]:
    """An agent in that environment."""
    with serving(command=(python39.agent,)) as agent:
        yield agent


@pytest.fixture(scope="session")
def board39(agent39: Agent) -> Iterator[AgentClient]:
    """A client of that agent."""
    with AgentClient(agent39.address) as client:
        yield client
