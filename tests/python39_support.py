"""Environments of Python 3.9, for tests of agents on old boards."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "python3.9"
INSTALL_S = 300


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the agent."""

    folder: Path

    @property
    def agent(self) -> str:
        return str(self.folder / "bin" / "agent")

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / "python"), "-m", "pip", "--quiet", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )

    def fetch(self, *arguments: str) -> None:
        """Installs from the package index; skips where it is out of reach."""
        done = self.pip("install", "--no-compile", *arguments)
        if done.returncode:
            pytest.skip(f"packages for {PYTHON} cannot be had: {done.stderr.strip()[-300:]}")


def find_python() -> str | None:
    """A Python of that version which starts: pyenv puts commands on PATH that do not."""
    installed = sorted(Path.home().glob(f".pyenv/versions/3.9.*/bin/{PYTHON}"))
    for python in filter(None, (shutil.which(PYTHON), *map(str, installed))):
        if subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    return None


def copy_of_the_code(folder: Path) -> Path:
    """A copy of the tree, for building leaves files behind.

    Args:
        folder: for it.
    """
    shutil.copytree(ROOT, folder, ignore=_beside_the_code, dirs_exist_ok=True)
    return folder


def _beside_the_code(folder: str, names: list[str]) -> set[str]:
    if Path(folder) != ROOT:
        return {name for name in names if name == "__pycache__"}
    code = {"agents", "lookup_tables", "ops", "profiler", "search"}
    files = {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"}
    return set(names) - code - files
