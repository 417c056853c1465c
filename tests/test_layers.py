"""What may import what: no circles, nothing from above, nothing private of another package.

Every import counts: those inside functions, and those for type checkers only.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = ("ops", "agents", "lookup_tables", "profiler", "search")
"""From the bottom up; each may import those before it."""

ON_A_BOARD = {"ops.cached_files", "ops.errors", "ops.socs"}
"""All that agents import of the host's packages: it runs on Python 3.9 without torch."""

CLIENT_SIDE = {
    f"agents.{name}"
    for name in (
        "backends.base",
        "client",
        "conditions",
        "console",
        "devices",
        "errors",
        "results",
        "security",
        "version",
    )
}
"""What the host imports of agents; the rest runs on boards only."""


class Import(NamedTuple):
    """An import by one of our modules of another of them."""

    importer: str
    imported: str
    name: str
    line: int


def sources() -> dict[str, str]:
    """Every module of ours; packages end with ``.__init__``."""
    files = (file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py")))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text("utf-8")
        for file in files
    }


def imports(modules: Mapping[str, str]) -> list[Import]:
    """All imports among the given modules, wherever they stand in them."""
    packages = {name.removesuffix(".__init__") for name in modules}

    def found_in(importer: str, source: str) -> Iterator[Import]:
        here = importer.split(".")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("hurricane."):
                        module = alias.name.removeprefix("hurricane.")
                        yield Import(importer, module, "", node.lineno)
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.level:
                base = ".".join([*here[: len(here) - node.level], *filter(None, [node.module])])
            elif node.module and node.module.startswith("hurricane."):
                base = node.module.removeprefix("hurricane.")
            else:
                continue
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                module, name = (whole, "") if whole in packages else (base, alias.name)
                yield Import(importer, module, name, node.lineno)

    return [
        entry._replace(importer=importer.removesuffix(".__init__"))
        for importer, source in modules.items()
        for entry in found_in(importer, source)
    ]


def circles(found: list[Import]) -> list[set[str]]:
    """Groups of modules that import each other, directly or by way of others."""
    reached = {entry.importer: {entry.imported} for entry in found}
    for entry in found:
        reached[entry.importer].add(entry.imported)
    grown = True
    while grown:
        grown = False
        for targets in reached.values():
            more = set().union(*(reached.get(module, set()) for module in targets)) - targets
            targets |= more
            grown = grown or bool(more)
    groups: list[set[str]] = []
    for module in sorted(reached):
        group = {other for other in reached[module] if module in reached.get(other, set())}
        if group and group not in groups:
            groups.append(group)
    return groups


def from_above(found: list[Import]) -> list[Import]:
    """Imports of a package that lies higher."""
    rank = {layer: number for number, layer in enumerate(LAYERS)}
    return [
        entry
        for entry in found
        if rank[entry.imported.split(".")[0]] > rank[entry.importer.split(".")[0]]
    ]


def private_elsewhere(found: list[Import]) -> list[Import]:
    """Imports of modules and names with an underscore in front from outside their package."""

    def is_private(word: str) -> bool:
        return word.startswith("_") and not word.startswith("__")

    def offends(entry: Import) -> bool:
        parts = entry.imported.split(".")
        owners = [".".join(parts[:i]) for i, word in enumerate(parts) if is_private(word)]
        if is_private(entry.name):
            owners.append(entry.imported)
        return not all(f"{entry.importer}.".startswith(f"{owner}.") for owner in owners)

    return [entry for entry in found if offends(entry)]


@pytest.fixture(scope="module")
def ours() -> list[Import]:
    return imports(sources())


def test_no_module_imports_itself_by_way_of_others(ours: list[Import]) -> None:
    assert circles(ours) == []


def test_nothing_is_imported_from_a_package_above(ours: list[Import]) -> None:
    assert from_above(ours) == []


def test_nothing_private_is_imported_from_another_package(ours: list[Import]) -> None:
    assert private_elsewhere(ours) == []


def test_agents_need_nothing_of_the_host_but_its_errors(ours: list[Import]) -> None:
    of_the_host = {
        entry.imported
        for entry in ours
        if entry.importer.startswith("agents.") and not entry.imported.startswith("agents")
    }
    assert of_the_host == ON_A_BOARD


def test_the_host_imports_the_client_side_of_agents_only(ours: list[Import]) -> None:
    used = {
        entry.imported
        for entry in ours
        if entry.imported.startswith("agents") and not entry.importer.startswith("agents")
    }
    assert used == CLIENT_SIDE


def test_type_checkers_of_users_are_told_that_every_package_has_types() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    content = setup["options.package_data"]
    for layer in LAYERS:
        assert "py.typed" in content[f"hurricane.{layer}"]
        assert (ROOT / layer / "py.typed").is_file()


def test_every_import_is_seen_wherever_it_stands() -> None:
    modules = {
        "ops.__init__": "",
        "ops.pool": "def f():\n    from .blocks import g",
        "ops.blocks": "import typing\nif typing.TYPE_CHECKING:\n    from . import shapes",
        "ops.shapes": "import hurricane.ops.pool",
        "ops.tflite.__init__": "from ..shapes import x\nfrom .writer import y",
        "ops.tflite.writer": "from hurricane.ops.shapes import z\nimport torch",
        "search.cli": "from ..ops import pool, absent",
    }
    assert [entry[:3] for entry in imports(modules)] == [
        ("ops.pool", "ops.blocks", "g"),
        ("ops.blocks", "ops.shapes", ""),
        ("ops.shapes", "ops.pool", ""),
        ("ops.tflite", "ops.shapes", "x"),
        ("ops.tflite", "ops.tflite.writer", "y"),
        ("ops.tflite.writer", "ops.shapes", "z"),
        ("search.cli", "ops.pool", ""),
        ("search.cli", "ops", "absent"),
    ]
    assert circles(imports(modules)) == [{"ops.pool", "ops.blocks", "ops.shapes"}]


def test_the_rules_find_what_breaks_them() -> None:
    modules = {
        "ops.pool": "from ..profiler.plan import p",
        "agents.backends._device": "from .simulated import _s",
        "agents.backends.simulated": "from ._device import d",
        "profiler.plan": "from ..agents.backends._device import d",
        "search.cli": "from .demo import _d\nfrom .demo import d",
        "search.demo": "from ..ops.pool import _P, __version__",
    }
    found = imports(modules)
    assert [entry[:2] for entry in from_above(found)] == [("ops.pool", "profiler.plan")]
    assert [(entry.importer, entry.name) for entry in private_elsewhere(found)] == [
        ("agents.backends._device", "_s"),
        ("profiler.plan", "d"),
        ("search.cli", "_d"),
        ("search.demo", "_P"),
    ]
