"""Targets: what ``--target`` and ``--option`` ask for, and how a table names it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..agents.backends.base import TargetInfo
from ..lookup_tables.table import Target, format_options, parse_options
from ..ops.errors import BadRequest
from ..ops.pool import GATES
from .origin import ORIGIN

_THREADS = re.compile(r"(?P<name>.+)-t(?P<threads>[1-9][0-9]*)")

GATE_OPTION = "gate"
"""In a table's options, where squeeze-and-excitation has another gate than the default."""


@dataclass(frozen=True)
class TargetRequest:
    """What ``--target`` and ``--option`` ask for.

    Attributes:
        name: the target's name without threads.
        threads: at least 1.
        options: everything else that changes the result.
    """

    name: str
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def runtime_options(self) -> dict[str, str]:
        """Options that go to the agent; the gate is in the graphs."""
        return {key: value for key, value in self.options.items() if key != GATE_OPTION}

    @property
    def simulated_device(self) -> str | None:
        """The device file's name if the target is a simulated one."""
        return self.name.removeprefix("sim-") if self.name.startswith("sim-") else None


def parse_target(name: str, options: Sequence[str] = ()) -> TargetRequest:
    """Reads ``cpu-onnxruntime-fp32-t2`` and ``key=value`` options.

    Raises:
        BadRequest: an option is not ``key=value``.
    """
    match = _THREADS.fullmatch(name)
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise BadRequest(f"--option {option!r}: write key=value")
        pairs[key] = value
    if match:
        return TargetRequest(match["name"], int(match["threads"]), pairs)
    return TargetRequest(name, 1, pairs)


def table_target(info: TargetInfo, request: TargetRequest) -> Target:
    """The target as a table's identity columns name it.

    Raises:
        TableError: the agent describes it as no table can.
    """
    defaults = parse_options(";".join(sorted(info.defaults)))
    return Target(
        device=info.device,
        processor=info.processor,
        runtime=info.runtime,
        runtime_version=info.runtime_version,
        options=format_options({**defaults, **request.options}),
        precision=info.precision,
        threads=request.threads,
        origin=ORIGIN[info.availability],
    )


def gate_of(target: Target) -> str:
    """The gate of squeeze-and-excitation that a table's graphs have."""
    return parse_options(target.options).get(GATE_OPTION, GATES[0])


def without_gate(target: Target) -> Target:
    """The target that a table's graphs ran on: the gate is in the graphs."""
    options = parse_options(target.options)
    options.pop(GATE_OPTION, None)
    return replace(target, options=format_options(options))
