"""What QNN's profiling tells: the CSV of onnxruntime's provider, and qnn-profile-viewer.

The emulator writes the same CSV, and what stands there is the host's time: a reader cannot tell
it from a board's. So nothing but a backend on a board calls `read_profile`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Optional

from .text import Lines, whole

VIEWER = "qnn-profile-viewer"
PROFILE = "QNN's profile"

_HEADER = [
    "Msg Timestamp",
    "Message",
    "Time",
    "Unit of Measurement",
    "Timing Source",
    "Event Level",
    "Event Identifier",
]
_ACCELERATOR = "Accelerator (execute) time"
_CYCLES = "Accelerator (execute) time (cycles)"
_EXECUTE = "QNN (execute) time"
_UNITS = ("US", "CYCLES", "COUNT", "BYTES", "INF/SEC")
_MESSAGES = ("BACKEND", "EXECUTE", "NODE", "FINALIZE", "INIT", "DEINIT", "UNKNOWN")


@dataclass(frozen=True)
class Execution:
    """One inference.

    Attributes:
        total_us: of QNN's call, in µs.
        accelerator_us: on the accelerator, in µs; None where only cycles are told.
        cycles: of the accelerator; None where only time is told.
    """

    total_us: int
    accelerator_us: Optional[int]
    cycles: Optional[int]


def read_profile(text: str) -> list[Execution]:
    """Reads the profile that the provider writes, one entry for each inference.

    Raises:
        BadOutput: a row is unknown or cut off, or an inference has not all of its times once.
    """
    lines = Lines(PROFILE, text)
    rows = list(csv.reader(io.StringIO(text.replace("\r\n", "\n"))))
    if not rows or rows[0] != _HEADER:
        raise lines.error("does not begin with its header", ",".join(rows[0]) if rows else "")
    found: list[Execution] = []
    accelerator: list[int] = []
    cycles: list[int] = []
    open_rows = False
    for row in rows[1:]:
        shown = ",".join(row)
        if len(row) != len(_HEADER):
            raise lines.error("has a row of another length", shown)
        _, message, value, unit, _, level, name = (word.strip() for word in row)
        if message not in _MESSAGES or unit not in _UNITS or not value.isdigit():
            raise lines.error("has a row that is not known", shown)
        if message == "FINALIZE" or level != "ROOT":
            continue
        if message == "BACKEND" and name in (_ACCELERATOR, _CYCLES):
            wanted = "US" if name == _ACCELERATOR else "CYCLES"
            if unit != wanted:
                raise lines.error(f"has a time in another unit than {wanted}", shown)
            (accelerator if name == _ACCELERATOR else cycles).append(int(value))
        elif message == "EXECUTE":
            if name != _EXECUTE or unit != "US":
                raise lines.error("has a row that is not known", shown)
            if len(accelerator) > 1 or len(cycles) > 1 or not (accelerator or cycles):
                raise lines.error("has an inference without its accelerator's time, or with two")
            if accelerator and accelerator[0] > int(value):
                raise lines.error("has times that contradict each other", shown)
            found.append(
                Execution(
                    int(value),
                    accelerator[0] if accelerator else None,
                    cycles[0] if cycles else None,
                )
            )
            accelerator, cycles, open_rows = [], [], False
            continue
        open_rows = open_rows or message == "BACKEND"
    if accelerator or cycles or open_rows:
        raise lines.error("ends within an inference")
    if not found:
        raise lines.error("has no inference")
    return found


_STATS = whole(r"(.+) Stats(?: \((Average|Overall|Min|Max)\))?:")
_TITLES = (
    whole(r"-{3,}"),
    whole(r"Total Inference Time:"),
    whole(r"Graph \d+ \(.*\):"),
    whole(r"Qnn Init/Prepare/Finalize/De-Init/Execute/Lib-Load Statistics:"),
    whole(r"NetRun IPS:\s+\d+(?:\.\d+)? inf/sec"),
)
_ENTRY = whole(r"(?:Backend \((.+)\)|(NetRun)):\s+(\d+) (us|count|cycles)")
_AVERAGE = {"NetRun": "us", "QNN (execute) time": "us", "Accelerator (execute) time": "us"}


@dataclass(frozen=True)
class Average:
    """Means over all inferences, in µs, as qnn-profile-viewer tells them.

    Attributes:
        total_us: as the program that asked for it sees it.
        execute_us: of QNN's call.
        accelerator_us: on the accelerator.
    """

    total_us: int
    execute_us: int
    accelerator_us: int


def read_viewer(text: str) -> Average:
    """Reads what qnn-profile-viewer printed.

    Raises:
        BadOutput: a line is unknown, or a time is missing or stands twice.
    """
    lines = Lines(VIEWER, text)
    part = ""
    found: dict[str, list[int]] = {name: [] for name in _AVERAGE}
    parts: list[str] = []
    for line in lines:
        title = _STATS.match(line)
        if title is not None:
            part = f"{title[1]} {title[2]}" if title[2] else title[1]
            if part in parts:
                raise lines.error("has a part twice", line)
            parts.append(part)
        elif not line or any(pattern.match(line) for pattern in _TITLES):
            continue
        elif entry := _ENTRY.match(line):
            name = entry[1] or entry[2]
            if part == "Execute Average" and name in _AVERAGE:
                if entry[4] != _AVERAGE[name]:
                    raise lines.error("has a time in another unit", line)
                found[name].append(int(entry[3]))
        else:
            raise lines.error("has a line that is not known", line)
    for name, values in found.items():
        lines.only(name, values)
    total_us, execute_us, accelerator_us = (values[0] for values in found.values())
    if not 0 < accelerator_us <= execute_us <= total_us:
        raise lines.error("has times that contradict each other")
    return Average(total_us, execute_us, accelerator_us)
