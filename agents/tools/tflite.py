"""What TensorFlow Lite's `benchmark_model` prints, with an external delegate or without.

Lines come with or without a level (``INFO: ``), as they do from versions since 2.17 or before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ..backends.base import one_line
from ..errors import AgentError, BoardNotReady, UnsupportedOperator
from .text import BadOutput, Lines, whole

BENCHMARK = "benchmark_model"

_LEVEL = re.compile(r"(?:(?:VERBOSE|INFO|WARNING): )?(?:\[\w[\w ]*\] )?")
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_TAKEN = (
    whole(
        r"Replacing (?P<taken>\d+) out of (?P<all>\d+) node\(s\) with delegate \((?P<name>\w+)\) "
        r"node(?:, yielding \d+ partitions(?: for the whole graph)?)?\.?"
    ),
    whole(
        r"(?P<name>\w+) delegate: (?P<taken>\d+) nodes delegated out of (?P<all>\d+) nodes"
        r"(?: with \d+ partitions)?\.?"
    ),
)
_ALL = "and the model graph will be completely executed by the delegate."
_NONE = "the model graph will not be executed by the delegate."
_TIMES = re.compile(
    rf"count=(\d+) (?:first=({_NUMBER}) )?curr=({_NUMBER})"
    rf"(?: min=({_NUMBER}) max=({_NUMBER}) avg=({_NUMBER}) std=({_NUMBER}))?"
    rf"(?: p5=({_NUMBER}) median=({_NUMBER}) p95=({_NUMBER}))?\Z"
)
_LAST = re.compile(rf"Inference timings in us: .*Inference \(avg\): ({_NUMBER})\Z")
_AGREES = 0.01


@dataclass(frozen=True)
class Placement:
    """What a delegate took.

    Attributes:
        delegate: its name.
        taken, nodes: how many nodes of how many.
    """

    delegate: str
    taken: int
    nodes: int


@dataclass(frozen=True)
class Timing:
    """What `benchmark_model` tells of the timed calls; times in µs.

    Attributes:
        calls: how many.
        mean_us, min_us, max_us: of them.
        placement: None where no delegate spoke.
    """

    calls: int
    mean_us: float
    min_us: float
    max_us: float
    placement: Optional[Placement]


def read_benchmark(text: str, delegated: bool) -> Timing:
    """Reads what `benchmark_model` printed.

    Args:
        text: standard output and error together.
        delegated: whether a delegate was to take the whole graph.

    Raises:
        UnsupportedOperator: the delegate left nodes to the CPU.
        AgentError: what the tool says went wrong.
        BadOutput: timings are missing, doubled, or contradict each other.
    """
    error = tflite_error(text)
    if error is not None:
        raise error
    lines = Lines(BENCHMARK, text)
    placements: list[Placement] = []
    whole_graph = False
    times: list[re.Match[str]] = []
    last: list[float] = []
    for line in lines:
        line = _LEVEL.sub("", line, count=1)
        found = next((m for pattern in _TAKEN if (m := pattern.match(line))), None)
        if found is not None:
            placements.append(Placement(found["name"], int(found["taken"]), int(found["all"])))
        elif line.endswith(_ALL):
            whole_graph = True
        elif line.endswith(_NONE):
            raise UnsupportedOperator(f"the delegate takes nothing of the graph{_of(placements)}")
        elif "count=" in line:
            timing = _TIMES.search(line)
            if timing is None:
                raise lines.error("has timings that are not understood", line)
            times.append(timing)
        elif line.startswith("Inference timings in us:"):
            end = _LAST.match(line)
            if end is None:
                raise lines.error("has timings that are not understood", line)
            last.append(float(end[1]))
    placement = _only_placement(lines, placements)
    if placement is not None and placement.taken != placement.nodes:
        raise UnsupportedOperator(
            f"{placement.delegate} took {placement.taken} of {placement.nodes} nodes"
        )
    if delegated and placement is None and not whole_graph:
        raise BadOutput(f"{BENCHMARK} does not say what the delegate took; give it --verbose=true")
    if len(times) != 2:  # warm-up, and the timed calls
        raise lines.error(f"has {len(times)} lines of timings, not 2")
    lines.only("Inference timings in us", last)
    return _timing(lines, times[1], last[0], placement)


def _timing(
    lines: Lines, found: re.Match[str], mean_us: float, placement: Optional[Placement]
) -> Timing:
    calls = int(found[1])
    if found[4] is None:  # all calls took equally long
        low = high = mean = float(found[3])
    else:
        low, high, mean = float(found[4]), float(found[5]), float(found[6])
    if not calls or not 0 < low <= mean <= high or abs(mean / mean_us - 1) > _AGREES:
        raise lines.error("has timings that contradict each other")
    return Timing(calls, mean, low, high, placement)


def _only_placement(lines: Lines, found: Sequence[Placement]) -> Optional[Placement]:
    """What all lines about a delegate say: some print it twice, in two ways."""
    distinct = set(found)
    if len(distinct) > 1:
        raise lines.error("has several delegates, or one that says two things")
    return next(iter(distinct), None)


def _of(found: Sequence[Placement]) -> str:
    return f" ({found[0].taken} of {found[0].nodes} nodes)" if found else ""


_FAILURES: tuple[tuple[str, type[AgentError], str], ...] = (
    (
        r"(?:Failed to load delegate|dlopen failed|cannot open shared object)[^\n]*",
        BoardNotReady,
        "the delegate's library cannot be loaded; push it to the phone's folder tflite with what "
        "it needs, and name it with the option 'delegate' (docs/snapdragon.md)",
    ),
    (
        r"Failed to apply [^\n]* delegate[^\n]*",
        UnsupportedOperator,
        "the delegate does not take the whole graph",
    ),
    (
        r"CANNOT LINK EXECUTABLE[^\n]*",
        BoardNotReady,
        "push that library to the phone's folder tflite (docs/snapdragon.md)",
    ),
)


def tflite_error(text: str) -> Optional[AgentError]:
    """What `benchmark_model` says went wrong, with advice; None: nothing of that kind."""
    for pattern, kind, advice in _FAILURES:
        found = re.search(pattern, text)
        if found:
            return kind(f"{one_line(found[0], 160)}; {advice}")
    return None
