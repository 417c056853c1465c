"""How a table came about: what each agent did in each run, and what its machine was like.

Kept beside the table as ``table.csv.runs.jsonl``, one JSON object a line, the latest last; pandas
reads it with ``read_json(path, lines=True)``. Rows hold what concerns themselves; this is what
else is needed to find out why another run gave other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType

from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from ..ops.files import MissingFile, parse_json, read_text
from ..ops.jsonfile import without_nan

SUFFIX = ".runs.jsonl"

_ADVICE = "delete the file, nothing but the history of the table is lost"

SHOWN_SHARE = 0.0005
"""Shares from which on they are put into words."""


@dataclass(frozen=True)
class Run:
    """One agent's part in one run. What the machine does not report is None.

    Attributes:
        ended_at: ISO 8601 with the zone.
        target: what was measured on, in words.
        agent_version: of the agent.
        rows: that this agent measured.
        device_s: time that its requests took, on the device's clock.
        batches: requests over the active rows.
        batches_rejected: of these, too slow or contended by other work, and repeated.
        slowdown: of the quiet device, against its first batches; divided out. None: not known.
        governor: what sets the clock of the cores in use.
        frequency_before_mhz, frequency_after_mhz: of these cores, around all requests.
        temperature_before_c, temperature_after_c: of the processor.
        load_before, load_after: load average of the last minute.
        throttle_events: thermal throttling events of these cores meanwhile.
        steal_share: share of the time that a hypervisor gave to other machines, a fraction.
        busy_share: share of the time that other processes took, a fraction.
    """

    ended_at: str
    target: str
    agent_version: str
    rows: int
    device_s: float
    batches: int
    batches_rejected: int
    slowdown: float | None
    governor: str | None = None
    frequency_before_mhz: float | None = None
    frequency_after_mhz: float | None = None
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    load_before: float | None = None
    load_after: float | None = None
    throttle_events: int = 0
    steal_share: float = 0.0
    busy_share: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, kinds = getattr(self, item.name), _KINDS[str(item.type)]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ValueError(f"{item.name} is {value!r}; it is of type {item.type}")

    def text(self) -> str:
        """The machine's part in words; empty where nothing is known."""
        facts = []
        if self.governor:
            facts.append(f"governor {self.governor}")
        for unit, digits, before, after in (
            ("MHz", 0, self.frequency_before_mhz, self.frequency_after_mhz),
            ("°C", 0, self.temperature_before_c, self.temperature_after_c),
            ("load", 2, self.load_before, self.load_after),
        ):
            if before is not None and after is not None:
                words = f"{before:.{digits}f} to {after:.{digits}f}"
                facts.append(f"load {words}" if unit == "load" else f"{words} {unit}")
        if self.steal_share >= SHOWN_SHARE:
            facts.append(f"{self.steal_share:.1%} stolen by other machines")
        if self.busy_share >= SHOWN_SHARE:
            facts.append(f"{self.busy_share:.1%} taken by other processes")
        if self.throttle_events:
            facts.append(f"throttled {self.throttle_events} times")
        return ", ".join(facts)


_EARLIER_NAMES = {"laps": "batches", "laps_repeated": "batches_rejected", "level": "slowdown"}
"""Of version 0.1.0's files, which are still read."""

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, NoneType),
    "float | None": (int, float, NoneType),
}
"""What a field of each type may hold."""


def runs_path(table_path: str | Path) -> Path:
    """Where the runs of a table lie."""
    path = Path(table_path)
    return path.with_name(path.name + SUFFIX)


def load_runs(table_path: str | Path) -> list[Run]:
    """The runs behind a table, the latest last; empty where none is known.

    Raises:
        BadRequest: the file breaks the format; the message names the line.
    """
    path = runs_path(table_path)
    known = {field.name for field in fields(Run)}
    found: list[Run] = []
    try:
        lines = read_text(path, "history").splitlines()
    except MissingFile:
        return []
    except BadRequest as error:
        raise BadRequest(f"{error}; {_ADVICE}") from error
    for number, line in enumerate(lines, 1):
        try:
            item = parse_json(line, "it")
            if not isinstance(item, dict):
                raise ValueError("it is no run of profile-ops")
            item = {_EARLIER_NAMES.get(str(key), str(key)): item[key] for key in item}
            if not known.issuperset(item):
                raise ValueError("it is no run of profile-ops")
            found.append(Run(**item))
        except (ValueError, TypeError, BadRequest) as error:
            raise BadRequest(f"history {path}, line {number}: {error}; {_ADVICE}") from error
    return found


def save_runs(table_path: str | Path, runs: Iterable[Run]) -> None:
    """Keeps these runs beside a table, in place of those that were there; none: no file."""
    lines = [json.dumps(without_nan(asdict(run))) + "\n" for run in runs]
    if lines:
        write_atomically(runs_path(table_path), "".join(lines).encode())
    else:
        runs_path(table_path).unlink(missing_ok=True)
