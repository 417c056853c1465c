"""How the code of the profiler is put together: small, and without circles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hurricane.profiler

FOLDER = Path(hurricane.profiler.__file__).parent
ROOT = FOLDER.parent
FILES = sorted(FOLDER.rglob("*.py"))
NAMES = [str(path.relative_to(FOLDER)) for path in FILES]

MOST_ATTRIBUTES = 10
MOST_LINES = 300
TUNABLES = "TimingProtocol"
"""The list of all tunables, which is long so that no other class is."""

BELOW = {
    "ops": {"ops"},
    "agents": {"agents"},
    "lookup_tables": {"lookup_tables", "ops"},
    "profiler": {"profiler", "lookup_tables", "agents", "ops"},
}
"""What each package may import of ours."""


def attributes(node: ast.ClassDef) -> set[str]:
    """Fields of a class, and what its `__init__` assigns."""
    found = {
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "ClassVar" not in ast.unparse(item.annotation)
    }
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            found |= {
                target.attr
                for target in ast.walk(item)
                if isinstance(target, ast.Attribute)
                and isinstance(target.ctx, ast.Store)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
    return found


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever it does; those for type checkers alone are left out."""
    package = ["hurricane", *path.relative_to(ROOT).parent.parts]

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text()))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["hurricane", *(part for part in parts if part != "__init__")])


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_class_holds_much(path: Path):
    classes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    counts = {node.name: len(attributes(node)) for node in classes if node.name != TUNABLES}
    assert {name: n for name, n in counts.items() if n > MOST_ATTRIBUTES} == {}


def test_attributes_are_fields_and_what_is_assigned_at_first():
    source = """
class Held:
    one: int
    two: ClassVar[int] = 2
    three = 3
    def __init__(self):
        self.four, other.five = 4, 5
        self.six: int = 6
        if True:
            self.four = 7
    def later(self):
        self.eight = 8
"""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    assert attributes(node) == {"one", "four", "six"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_is_long(path: Path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


TIMING = [path for path in FILES if path.parent.name == "timing"]


@pytest.mark.parametrize("path", TIMING, ids=lambda path: path.name)
def test_what_times_mean_needs_numpy_alone(path: Path):
    own = "hurricane.profiler.timing"
    foreign = {
        name
        for name in imports(path)
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}
        and name != own
        and not name.startswith(own + ".")
    }
    assert foreign == set()


def test_there_is_something_that_says_what_times_mean():
    assert len(TIMING) > 5
