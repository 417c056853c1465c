"""Writes `docs/design/protocol.md` from `TimingProtocol` and the numbers outside it.

python tools/protocol_page.py
"""

from __future__ import annotations

import ast
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from hurricane.profiler.protocol import TimingProtocol

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "design" / "protocol.md"

TUNABLES_BEFORE = 64
"""In the protocol that this one replaced, counted in the files whose successors are below."""

OUTSIDE: dict[str, tuple[str, ...]] = {
    "profiler/timing/location.py": (),
    "profiler/timing/marginal.py": (),
    "profiler/timing/drift.py": (),
    "profiler/timing/interference.py": (),
    "profiler/timing/stopping.py": (),
    "profiler/timing/samples.py": (),
    "profiler/timing/batch.py": (),
    "lookup_tables/raw.py": (),
    "lookup_tables/model.py": ("BETWEEN_RUNS",),
    "profiler/plan.py": (
        "NEIGHBOURS",
        "HEAVY",
        "AFTER_STEM",
        "REFERENCE_NETWORKS",
        "REFERENCE_DRAWS",
    ),
    "profiler/delivery.py": (),
    "profiler/measurement.py": (),
    "profiler/draws.py": (),
    "profiler/accuracy.py": (),
    "profiler/warnings.py": (),
    "lookup_tables/verdict.py": (
        "MIN_RANDOM",
        "RMSPE_LIMITS",
        "FLOOR_FACTOR",
        "BIAS_LIMIT",
        "TAU_MARGIN",
        "NOISE_LIMIT",
        "DRIFT_LIMIT",
        "INTERFERENCE_LIMIT",
        "FAILED_LIMIT",
    ),
    "agents/conditions.py": ("STEAL_LIMIT, BUSY_LIMIT",),
    "agents/worker.py": ("_RENEWAL_SHARE",),
    "agents/backends/onnxruntime_cpu.py": ("_GROWTH_FAULTS",),
    "search/measuring.py": (),
    "search/confirm.py": ("ATTEMPTS",),
}
"""Files, and the constants of each that are tunables; none named: all its numbers are."""


_PAGE = """\
# The timing protocol

Written by `make protocol-page` from `profiler/protocol.py` and the constants named below: change
those, not this page. [measurement.md](measurement.md) has the decisions.

{count} tunables: {fields} fields of `TimingProtocol`, {preset} numbers of its preset for targets
that keep one graph at a time, and {outside} constants outside it. The protocol before had {before},
counted alike: 16 fields and 48 constants.

## `TimingProtocol`

| field | default | one graph at a time | why |
|---|---|---|---|
{rows}

## Constants

Of statistics and of checks: nobody is expected to change them from one run to another.

| file | constant | value | why |
|---|---|---|---|
{constants}
"""


def page() -> str:
    """The page, as it ought to lie in the docs."""
    protocol = TimingProtocol()
    resident, single = protocol.for_target(True), protocol.for_target(False)
    preset = 0
    rows = []
    for item in fields(TimingProtocol):
        value, other = getattr(resident, item.name), getattr(single, item.name)
        differs = value != other
        preset += differs and other not in (0, 1)  # else a mechanism is off, and no number chosen
        rows.append(
            f"| `{item.name}` | {_words(item, value)} | {_words(item, other) if differs else ''} "
            f"| {item.metadata['reason']} |"
        )
    found = [(file, *one) for file, names in OUTSIDE.items() for one in _constants(file, names)]
    constants = [
        f"| `{file}` | `{name}` | {value} | {reason} |" for file, name, value, reason in found
    ]
    outside = sum(1 + name.count(",") for _, name, _, _ in found)
    return _PAGE.format(
        count=len(rows) + preset + outside,
        fields=len(rows),
        preset=preset,
        outside=outside,
        before=TUNABLES_BEFORE,
        rows="\n".join(rows),
        constants="\n".join(constants),
    )


def _words(item: Field[Any], value: float) -> str:
    """A value with its unit."""
    unit = item.metadata["unit"]
    if value == float("inf"):
        return "none"
    if unit == "bytes":
        return f"{value / 2**20:g} MiB"
    if unit == "share":
        return f"{100 * value:g}%"
    return f"{value:g} {unit[:-1] if value == 1 and unit != 's' else unit}".rstrip()


def _constants(file: str, names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Constants of a module: name, value and reason, which stands below or beside each."""
    source = (ROOT / file).read_text()
    lines, body = source.splitlines(), ast.parse(source).body
    found = []
    for index, node in enumerate(body):
        if not isinstance(node, ast.Assign):
            continue
        name, after = ast.unparse(node.targets[0]).strip("()"), body[index + 1 : index + 2]
        if name not in names and (names or not _is_tunable(name, node.value)):
            continue
        _, _, reason = lines[node.lineno - 1].partition("  # ")
        if after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant):
            reason = " ".join(str(after[0].value.value).split())
        found.append((name, ast.unparse(node.value), reason))
    if missing := set(names) - {name for name, _, _ in found}:
        raise SystemExit(f"{file} has no {', '.join(sorted(missing))}")
    return found


def _is_tunable(name: str, value: ast.expr) -> bool:
    """Whether a constant is a number, or holds numbers."""
    if not name.replace("_", "").isupper() or any(isinstance(n, ast.Call) for n in ast.walk(value)):
        return False
    leaves = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return any(isinstance(leaf, int | float) for leaf in leaves)


if __name__ == "__main__":
    PAGE.write_text(page())
